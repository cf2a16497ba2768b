"""A whole log examined: rows to signals, signals to symptoms, symptoms to findings."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data.common.errors import UserError
from data.common.fields import nearest
from data.common.files import stage_facts
from pipeline.health.diagnosis import LOST, Finding, Watch
from pipeline.health.reading import read_log
from pipeline.health.signals import (
    FORM,
    GRPO,
    SFT,
    SIGNALS,
    STEPS,
    TRUTH,
    VAL_TRUTH,
    LogRow,
    number,
)
from pipeline.health.symptom import Level
from pipeline.health.trends import MANY

#: Words in the name of a reward that pays for right answers, the surest first, and of one that
#: pays for something else.
_RIGHT = (
    "correct", "accura", "exact", "equation", "solve", "success", "verif", "right", "math",
    "answer",
)  # fmt: skip
_OTHER = (
    "format", "xml", "tag", "structure", "length", "/int_", "style", "penalty", "repet", "cosine",
    "language", "think", "reason", "approx",
)  # fmt: skip
#: Usual rewards of a right answer.
_PAID = (1, 2, 3, 4, 5, 10, 20, 50, 100)


@dataclass
class Patient:
    """One log and what was found in it.

    Attributes:
        arm: its name.
        path: of the log.
        kind: sft or grpo; None where nothing was logged yet.
        rows: with signals.
        steps: first and last.
        findings: that hold at the end of the log.
        past: that held once, and no longer do.
        looked: symptoms that had their signals.
        silent: symptoms that had not, and the signals they lack.
        short: whether there are too few rows for some symptoms.
        guessed: what was taken for the truth, or counted as steps, in words.
    """

    arm: str
    path: str
    kind: str | None = None
    rows: int = 0
    steps: tuple[int, int] = (0, 0)
    findings: list[Finding] = field(default_factory=list)
    past: list[Finding] = field(default_factory=list)
    looked: list[str] = field(default_factory=list)
    silent: dict[str, tuple[str, ...]] = field(default_factory=dict)
    short: bool = False
    guessed: list[str] = field(default_factory=list)

    @property
    def serious(self) -> list[Finding]:
        """All findings but notes."""
        return [finding for finding in self.findings if finding.level != Level.NOTE]


def examine(arm: str, path: Path, truth: str | None = None) -> Patient:
    """Watch a whole log.

    Args:
        truth: name of the reward that is the truth; guessed where it is None.

    Raises:
        UserError: when the file is not a log of an SFT or GRPO training, or no signal is in it.
    """
    rows = read_log(path)
    if not rows:
        return Patient(arm, str(path))
    kinds = set(map(kind_of, rows))
    kind = GRPO if GRPO in kinds else SFT if SFT in kinds else None
    names = ", ".join(sorted({key for row in rows[:50] for key in row})[:12]) or "none"
    if kind is None:
        raise UserError(
            f"{path} has no row of an SFT or GRPO training: neither `reward` nor, without rewards "
            f"beside it, `loss` (names in it: {names})"
        )
    guessed = [] if any("step" in row for row in rows) else ["Rows are counted as steps"]
    if kind == GRPO:
        guessed += name_truth(rows, truth, path)
    watch = Watch(kind, _settings_of(path))
    for row in rows:
        watch.update(row)
    findings, past = watch.now_and_past()
    signals, silent = watch.signals, watch.missing
    if not signals.rows and not findings:
        raise UserError(f"{path}: no signal could be read in {len(rows)} rows (names: {names})")
    return Patient(
        arm, str(path), kind, signals.rows, signals.steps, findings, past,
        looked=[symptom.name for symptom in watch.symptoms if symptom.name not in silent],
        silent=silent,
        short=signals.rows < MANY or signals.steps[1] - signals.steps[0] < STEPS,
        guessed=guessed,
    )  # fmt: skip


def _settings_of(log: Path) -> dict[str, Any]:
    """What a finished arm of ours was trained with; empty where that is not known."""
    try:
        settings = stage_facts(log.parent).get("trained_with")
    except UserError:
        return {}
    return settings if isinstance(settings, dict) else {}


def name_truth(rows: list[LogRow], named: str | None, path: Path) -> list[str]:
    """Write the share of right answers, and of well-formed ones, into rows whose log has it under
    another name; returns what was taken for what, in words.

    A reward that pays for right answers is known by its name, or as the only one, and by its
    values: 0 and one constant.

    Raises:
        UserError: when the one that was named is not there.
    """
    means: dict[str, list[float]] = {}
    for row in rows:
        for key, value in row.items():
            if (paid := number(value)) is not None:
                means.setdefault(key, []).append(paid)
    known = [
        key for key in means
        if key.startswith(("rewards/", "critic/")) and not key.endswith(("/std", "/max", "/min"))
    ]  # fmt: skip
    functions = [key for key in known if key.startswith("rewards/") and min(means[key]) >= 0]
    if named:
        forms = (named, f"rewards/{named}/mean", f"rewards/{named}", f"{named}/mean")
        right = next((each for each in forms if each in means), None)
        if right is None:
            raise UserError(
                f"{path} has no numbers under {named} (TRUTH); rewards in it: "
                f"{', '.join(known) or 'none'}{nearest(named, known)}"
            )
    elif any(name in means for name in SIGNALS["truth"][:2]):
        return []
    else:
        functions = [key for key in functions if not _graded(rows, key, means[key])]
        right = _named(functions, _RIGHT)
        if right is None and len(functions) == 1 and not _named(functions, _OTHER):
            right = functions[0]
    formats = (key for key in functions if "format" in key.lower())
    form = None if means.keys() & {*SIGNALS["form"], "rewards/format/mean"} else next(formats, None)
    guessed = []
    meant = [(right, TRUTH, VAL_TRUTH)] if right else []
    for key, name, val in [*meant, (form, FORM, "")] if form else meant:
        least, most = _scale(rows, key, means[key])
        for row in rows:
            for source, target in ((key, name), (f"eval_{key}", val)):
                if target and (paid := number(row.get(source))) is not None:
                    row[target] = (paid - least) / (most - least)
        what = "right" if name == TRUTH else "well-formed"
        how = "as TRUTH says" if named and name == TRUTH else "guessed by its name and values"
        guessed.append(f"{key} is taken for {what} answers, {least:g} or {most:g} each ({how})")
    if right and not named:
        guessed[0] += "; TRUTH=key names another"
    elif known and not right:
        names = ", ".join(known)
        guessed.append(f"Nothing is known to pay for right answers; TRUTH=key names it: {names}")
    return guessed


def _named(functions: list[str], words: tuple[str, ...]) -> str | None:
    """The first reward whose name has one of the words, of the first word that any has."""
    fit = [key for key in functions if words is _OTHER or not _named([key], _OTHER)]
    return next((key for word in words for key in fit if word in key.lower()), None)


def _scale(rows: list[LogRow], key: str, means: list[float]) -> tuple[float, float]:
    """What a reward of two values pays for wrong and right answers. With mean m and variance v of
    single answers the upper one is m + v / m where the lower is 0; single rows stray."""
    spread = f"{key.removesuffix('/mean')}/std"
    tops = sorted(
        paid + (number(row.get(spread)) or 0.0) ** 2 / paid
        for row in rows
        if (paid := number(row.get(key)) or 0.0) > 0
    )
    most = max([0.87 * tops[len(tops) * 9 // 10] if tops else 0.0, *map(abs, means)])
    paid = next((float(each) for each in _PAID if most <= each * 1.001), most)
    return (-paid if min(means) < 0 else 0.0), paid


def _graded(rows: list[LogRow], key: str, means: list[float], least: float = 0.3) -> bool:
    """Whether single answers surely earn more than two amounts: they differ far less than ones of
    0 or a constant would in the rows where those differ most."""
    most, spread = _scale(rows, key, means)[1], f"{key.removesuffix('/mean')}/std"
    shares = sorted(
        deviation**2 / (paid * (most - paid))
        for row in rows
        if (deviation := number(row.get(spread))) is not None
        and 0 < (paid := number(row.get(key)) or 0.0) < most
    )
    return bool(shares) and shares[len(shares) * 9 // 10] < least


def kind_of(row: LogRow) -> str | None:
    """The trainer that wrote a row, by its keys; None where they do not tell."""
    if LOST in row and (trainer := row.get("trainer")) in (SFT, GRPO):
        return str(trainer)
    rewarded = {*SIGNALS["reward"], *SIGNALS["reward spread"], *SIGNALS["flat groups"]}
    starts = ("completions/", "eval_completions/")
    if rewarded & row.keys() or any(key.startswith(starts) for key in row):
        return GRPO
    losses = {"loss", "Training_Loss"} & row.keys()
    if losses and not any(key.startswith(("rewards/", "objective/")) for key in row):
        return SFT
    return None
