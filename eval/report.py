"""Verdicts of several arms to tables, ``report.json``, ``report.md`` and ``passk.png``.

Rows are counted as they come and then forgotten, so a million of them need no more memory than the
problems they answer. Everything shown is read from the one dictionary that becomes ``report.json``.
"""

from __future__ import annotations

import io
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from rich import box
from rich.console import Console
from rich.table import Table

from data.errors import UserError
from data.files import write_json, write_text
from data.policies import GREEDY
from data.seeds import seed_of
from eval.passk import (
    RESAMPLES,
    Estimate,
    bootstrap_indices,
    ks_for,
    mean_interval,
    overtaking_k,
    paired_difference,
    pass_at_k,
)
from rewards.verify import Status

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LEVEL = 0.95
OUTPUTS = ("report.json", "report.md", "passk.png")
#: Which arms are compared, tuned first; a pair is shown where both arms are there.
COMPARISONS = (("grpo", "sft"), ("grpo", "base"), ("sft", "base"))
#: Columns of plain text that a table may take.
WIDTH = 100
_VALID = (Status.OPTIMAL, Status.FEASIBLE)
_LABELS = {"sft": "SFT", "grpo": "GRPO"}

#: ``{tier: {policy: {k: share solved}}}``, as ``data.policies.floor`` gives it for a tier.
Floors = Mapping[str, Mapping[str, Mapping[int, float]]]


def write_report(
    folder: Path,
    tiers: Sequence[str],
    main: str,
    arms: Sequence[str],
    floors: Floors,
    verdict_rows: Mapping[str, Iterable[Mapping[str, Any]]],
    problems_by_id: Mapping[str, str],
    seed: int,
    resamples: int = RESAMPLES,
    comparisons: Sequence[tuple[str, str]] = COMPARISONS,
    console: Console | None = None,
) -> dict[str, Any]:
    """Summarise every arm's verdicts, print the tables and write OUTPUTS into ``folder``.

    Args:
        tiers: in the order to be shown; the main one is shown first.
        arms: in the order to be shown; one without ``verdict_rows`` is left out.
        floors: at any k; those of ``ks_for(samples)`` are shown.
        verdict_rows: per arm, rows ``{id, status, violations, ratio}``; ``finish_reason`` and
            ``answer`` (any text or number that tells answers to one problem apart) where known.
        problems_by_id: the tier of each problem asked.
        seed: the recipe's; the resampling of each tier is hashed from it.

    Returns:
        The content of ``report.json``.

    Raises:
        UserError: when an arm's problems or samples are not those of the others.
    """
    report = summarise(
        tiers, main, arms, floors, verdict_rows, problems_by_id, seed, resamples, comparisons
    )
    write_json(folder / "report.json", report)
    write_text(folder / "report.md", markdown(report))
    draw(report, folder / "passk.png")
    print_report(report, console)
    return report


# --- counting ------------------------------------------------------------------------------------


@dataclass
class Tally:
    """One arm's counts: arrays by problem, in the order of the problems, and totals by tier."""

    samples: NDArray[np.int64]
    optimal: NDArray[np.int64]
    valid: NDArray[np.int64]
    ratio: NDArray[np.float64]
    distinct: NDArray[np.int64] | None
    totals: dict[str, TierTotals]


@dataclass
class TierTotals:
    """How many answers have a status, show a kind of violation (once each), ended for a reason."""

    statuses: Counter[str] = field(default_factory=Counter)
    violations: Counter[str] = field(default_factory=Counter)
    finish_reasons: Counter[str] = field(default_factory=Counter)


def tally(arm: str, rows: Iterable[Mapping[str, Any]], problems_by_id: Mapping[str, str]) -> Tally:
    """Count one arm's verdicts.

    Raises:
        UserError: when a row lacks a key, or has a problem or status that is not known.
    """
    place = {name: i for i, name in enumerate(problems_by_id)}
    tier_at = list(problems_by_id.values())
    samples, optimal, valid = ([0] * len(place) for _ in range(3))
    ratio = [0.0] * len(place)
    answers: set[int] = set()
    distinct: list[int] | None = [0] * len(place)
    totals = {tier: TierTotals() for tier in tier_at}
    known = {str(status) for status in Status}
    try:
        for row in rows:
            i = place.get(row["id"])
            if i is None:
                raise UserError(f"arm {arm!r} answers {row['id']!r}, which is not asked here")
            status, total = row["status"], totals[tier_at[i]]
            if status not in known:
                raise UserError(f"arm {arm!r} has a verdict of unknown status {status!r:.80}")
            samples[i] += 1
            optimal[i] += status == Status.OPTIMAL
            valid[i] += status in _VALID
            ratio[i] += row["ratio"]
            total.statuses[status] += 1
            total.violations.update({text.partition(":")[0] for text in row["violations"]})
            if (reason := row.get("finish_reason")) is not None:
                total.finish_reasons[reason] += 1
            if (answer := row.get("answer")) is None:
                distinct = None  # a share among some of the answers would mislead
            elif distinct is not None:
                seen = len(answers)
                answers.add(hash((i, answer)))
                distinct[i] += len(answers) - seen
    except KeyError as missing:
        raise UserError(f"arm {arm!r} has a verdict without {missing}; score it again") from None
    return Tally(
        np.array(samples),
        np.array(optimal),
        np.array(valid),
        np.array(ratio),
        None if distinct is None else np.array(distinct),
        totals,
    )


def check_alike(
    tallies: Mapping[str, Tally], problems_by_id: Mapping[str, str], tiers: Iterable[str]
) -> None:
    """Raise UserError unless every arm has equally many samples of every problem of a tier."""
    names, tier_of = list(problems_by_id), np.array(list(problems_by_id.values()))
    for tier in tiers:
        here = np.flatnonzero(tier_of == tier)
        most = max(tallies, key=lambda arm: tallies[arm].samples[here].max())
        wanted = int(tallies[most].samples[here].max())
        if not wanted:
            raise UserError(f"no arm has samples of tier {tier!r}; sample it or leave it out")
        for arm, counts in tallies.items():
            odd = here[counts.samples[here] != wanted]
            if len(odd):
                raise UserError(
                    f"arm {arm!r} has {counts.samples[odd[0]]} samples of problem "
                    f"{names[odd[0]]!r} where {most!r} has {wanted} a problem; arms are compared "
                    "only on the same problems, each sampled equally often, so finish or redo its "
                    "sampling"
                )


# --- statistics ----------------------------------------------------------------------------------


def summarise(
    tiers: Sequence[str],
    main: str,
    arms: Sequence[str],
    floors: Floors,
    verdict_rows: Mapping[str, Iterable[Mapping[str, Any]]],
    problems_by_id: Mapping[str, str],
    seed: int,
    resamples: int = RESAMPLES,
    comparisons: Sequence[tuple[str, str]] = COMPARISONS,
) -> dict[str, Any]:
    """The content of ``report.json``; see ``write_report``."""
    present = [arm for arm in arms if arm in verdict_rows]
    if not present:
        raise UserError(f"none of the arms {', '.join(arms)} has verdicts; sample one first")
    tier_of = np.array(list(problems_by_id.values()))
    shown = [tier for tier in sorted(tiers, key=lambda t: t != main) if (tier_of == tier).any()]
    if main not in shown:
        raise UserError(f"the main tier {main!r} has no problem to report on")
    tallies = {arm: tally(arm, verdict_rows[arm], problems_by_id) for arm in present}
    check_alike(tallies, problems_by_id, shown)
    return {
        "success": str(Status.OPTIMAL),
        "interval": f"{100 * LEVEL:.0f} % interval, problems resampled {resamples:,} times",
        "level": LEVEL,
        "resamples": resamples,
        "seed": seed,
        "main": main,
        "arms": present,
        "tiers": {
            tier: _tier_summary(
                tier, np.flatnonzero(tier_of == tier), tallies, floors, seed, resamples, comparisons
            )
            for tier in shown
        },
    }


def _tier_summary(
    tier: str,
    here: NDArray[np.intp],
    tallies: Mapping[str, Tally],
    floors: Floors,
    seed: int,
    resamples: int,
    comparisons: Sequence[tuple[str, str]],
) -> dict[str, Any]:
    """Everything about one tier, whose problems are at ``here``."""
    n = int(next(iter(tallies.values())).samples[here[0]])
    ks = np.array(ks_for(n))
    # One set of indices for all arms: the differences between them are paired.
    rng = np.random.default_rng(seed_of(seed, "report", tier))
    indices = bootstrap_indices(len(here), resamples, rng)
    curves = {arm: pass_at_k(n, t.optimal[here], np.arange(1, n + 1)) for arm, t in tallies.items()}
    return {
        "problems": len(here),
        "samples": n,
        "ks": ks.tolist(),
        "arms": {
            arm: {
                "answers": len(here) * n,
                "pass_at_k": _by_k(ks, mean_interval(curves[arm][:, ks - 1], indices, LEVEL)),
                **_rates(tally, here, indices),
                **_counts(tally.totals[tier]),
            }
            for arm, tally in tallies.items()
        },
        "differences": [
            {
                "tuned": tuned,
                "reference": reference,
                "at_k": _by_k(
                    ks,
                    paired_difference(
                        curves[tuned][:, ks - 1], curves[reference][:, ks - 1], indices, LEVEL
                    ),
                ),
                "overtaken_at": overtaking_k(
                    curves[reference].mean(axis=0), curves[tuned].mean(axis=0)
                ),
            }
            for tuned, reference in comparisons
            if tuned in tallies and reference in tallies
        ],
        "floors": {
            policy: {str(k): shares.get(k) for k in ks.tolist()}
            for policy, shares in floors.get(tier, {}).items()
        },
    }


def _by_k(ks: NDArray[np.int64], estimates: Iterable[Estimate]) -> dict[str, Any]:
    return {str(k): e.to_json() for k, e in zip(ks.tolist(), estimates, strict=True)}


def _rates(
    tally: Tally, here: NDArray[np.intp], indices: NDArray[np.int32]
) -> dict[str, dict[str, Any] | None]:
    """Shares of answers, each a mean over problems: valid, ratio, distinct (where known)."""
    sums = {"valid": tally.valid, "ratio": tally.ratio, "distinct": tally.distinct}
    known = {name: total for name, total in sums.items() if total is not None}
    columns = np.stack([total[here] / tally.samples[here] for total in known.values()], axis=1)
    estimates = mean_interval(columns, indices, LEVEL)
    found = {name: e.to_json() for name, e in zip(known, estimates, strict=True)}
    return {name: found.get(name) for name in sums}


def _counts(totals: TierTotals) -> dict[str, dict[str, int]]:
    return {
        "statuses": {str(status): totals.statuses[status] for status in Status},
        "violations": dict(totals.violations.most_common()),
        "finish_reasons": dict(totals.finish_reasons.most_common()),
    }


# --- tables --------------------------------------------------------------------------------------


@dataclass
class Sheet:
    """One table, before it is rich text or Markdown; ``notes`` are sentences below it."""

    title: str
    columns: list[str]
    rows: list[list[str]]
    notes: list[str]


def label(arm: str) -> str:
    """An arm as readers know it."""
    return _LABELS.get(arm, arm)


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}"


def _cell(estimate: Mapping[str, float] | None, sign: str = "") -> str:
    """``27.1 [24.0, 30.2]`` in per cent, or points with ``sign='+'``."""
    if estimate is None:
        return ""
    value, low, high = (
        # Adding 0.0 turns a rounded -0.0 into 0.0.
        f"{round(100 * estimate[key], 1) + 0.0:{sign}.1f}"
        for key in ("value", "low", "high")
    )
    return f"{value} [{low}, {high}]"


def _basis(report: Mapping[str, Any], tier: str) -> str:
    found = report["tiers"][tier]
    return f"{found['problems']:,} problems x {found['samples']} samples; {report['interval']}"


def _tier_title(report: Mapping[str, Any], tier: str) -> str:
    return f"{tier} (main tier)" if tier == report["main"] else tier


def _pass_sheet(report: Mapping[str, Any], tier: str) -> Sheet:
    found = report["tiers"][tier]
    constant = [policy for policy in found["floors"] if policy in GREEDY]
    by_k = [policy for policy in found["floors"] if policy not in GREEDY]
    rows = [
        [
            k,
            *(_cell(arm["pass_at_k"][k]) for arm in found["arms"].values()),
            *(_percent(found["floors"][policy][k]) for policy in by_k),
        ]
        for k in map(str, found["ks"])
    ]
    notes = []
    if constant:
        shares = (
            f"{policy.replace('_', ' ')} {_percent(found['floors'][policy]['1'])} %"
            for policy in constant
        )
        notes.append(f"Floors at any k: {', '.join(shares)}.")
    return Sheet(
        f"{_tier_title(report, tier)}: pass@k in %, success = {report['success']}",
        ["k", *map(label, found["arms"]), *(policy.replace("_", " ") for policy in by_k)],
        rows,
        [_basis(report, tier), *notes],
    )


def _difference_sheet(report: Mapping[str, Any], tier: str) -> Sheet:
    found = report["tiers"][tier]
    pairs = found["differences"]
    return Sheet(
        f"{_tier_title(report, tier)}: paired differences of pass@k in points",
        ["k", *(f"{label(p['tuned'])} - {label(p['reference'])}" for p in pairs)],
        [[k, *(_cell(pair["at_k"][k], "+") for pair in pairs)] for k in map(str, found["ks"])],
        [_basis(report, tier), *_overtaking(found)],
    )


def _overtaking(found: Mapping[str, Any]) -> Iterator[str]:
    """Where the base's curve meets GRPO's."""
    for pair in found["differences"]:
        if (pair["tuned"], pair["reference"]) == ("grpo", "base"):
            k = pair["overtaken_at"]
            yield (
                f"base stays below GRPO at every k up to {found['samples']}."
                if k is None
                else f"base first meets or passes GRPO at k = {k}."
            )


def _answer_sheet(report: Mapping[str, Any], tier: str) -> Sheet:
    found = report["tiers"][tier]
    arms = found["arms"].values()
    names = {
        "valid": "valid (optimal or feasible)",
        "ratio": "mean ratio to the optimum",
        "distinct": "distinct answers",
    }
    rows = [
        [name, *(_cell(arm[key]) for arm in arms)]
        for key, name in names.items()
        if any(arm[key] for arm in arms)
    ]
    for key in ("statuses", "violations", "finish_reasons"):
        total: Counter[str] = Counter()
        for arm in arms:
            total.update(arm[key])
        order = list(total) if key == "statuses" else [kind for kind, _ in total.most_common()]
        heading = {"statuses": "status", "violations": "broken", "finish_reasons": "ended by"}[key]
        for kind in order:
            counts = [(arm[key].get(kind, 0), arm["answers"]) for arm in arms]
            cells = [f"{count:,} ({_percent(count / answers)} %)" for count, answers in counts]
            rows.append([f"{heading}: {kind}", *cells])
    return Sheet(
        f"{_tier_title(report, tier)}: answers; means in %, then answers counted",
        ["", *map(label, found["arms"])],
        rows,
        [_basis(report, tier)],
    )


def sheets(report: Mapping[str, Any]) -> Iterator[Sheet]:
    """Every table of the report, tier by tier."""
    for tier, found in report["tiers"].items():
        yield _pass_sheet(report, tier)
        if found["differences"]:
            yield _difference_sheet(report, tier)
        yield _answer_sheet(report, tier)


def headline(report: Mapping[str, Any]) -> str | None:
    """The first comparison at k = 1 on the main tier, as a sentence; None with a single arm."""
    pairs = report["tiers"][report["main"]]["differences"]
    if not pairs:
        return None
    pair, at_1 = pairs[0], pairs[0]["at_k"]["1"]
    excludes = "excludes" if Estimate(**at_1).excludes_zero else "includes"
    return (
        f"{report['main']} (main tier), pass@1: {label(pair['tuned'])} - "
        f"{label(pair['reference'])} = {_cell(at_1, '+')} points; the interval {excludes} 0."
    )


def print_report(report: Mapping[str, Any], console: Console | None = None) -> None:
    """Print every table, plain text where the output is not a terminal."""
    if console is None:
        console = Console(highlight=False)
        if not console.is_terminal and "COLUMNS" not in os.environ:
            console = Console(highlight=False, width=WIDTH)
    width = min(console.width, WIDTH)
    for sheet in sheets(report):
        console.print(f"\n{sheet.title}", style="bold", markup=False, soft_wrap=True)
        for columns in _column_groups(sheet, width):
            table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
            for column in columns:
                table.add_column(
                    sheet.columns[column], justify="right" if column else "left", no_wrap=True
                )
            for row in sheet.rows:
                table.add_row(*(row[column] for column in columns))
            console.print(table, markup=False)
        for note in sheet.notes:
            console.print(note, markup=False, soft_wrap=True)
    if sentence := headline(report):
        console.print(f"\n{sentence}", markup=False, soft_wrap=True)


def _column_groups(sheet: Sheet, width: int) -> Iterator[list[int]]:
    """Columns in groups that fit ``width``, the first column leading each."""
    cells = [sheet.columns, *sheet.rows]
    needed = [max(len(row[i]) for row in cells) + 3 for i in range(len(sheet.columns))]
    group = [0]
    for i in range(1, len(needed)):
        if len(group) > 1 and sum(needed[j] for j in [*group, i]) > width:
            yield group
            group = [0]
        group.append(i)
    yield group


def markdown(report: Mapping[str, Any]) -> str:
    """Every table in Markdown, ready for the README."""
    return "\n".join(chain.from_iterable(_markdown_lines(sheet) for sheet in sheets(report)))


def _markdown_lines(sheet: Sheet) -> Iterator[str]:
    yield f"**{sheet.title}**"
    yield ""
    yield f"| {' | '.join(sheet.columns)} |"
    yield f"|---{'|---:' * (len(sheet.columns) - 1)}|"
    for row in sheet.rows:
        yield f"| {' | '.join(row)} |"
    yield ""
    yield f"{sheet.notes[0]}. {' '.join(sheet.notes[1:])}".rstrip()
    yield ""


# --- plot ----------------------------------------------------------------------------------------

#: Okabe and Ito's colours, told apart by colour-blind readers too, and a marker each.
_STYLES = (
    ("#0072B2", "o"),
    ("#009E73", "s"),
    ("#D55E00", "^"),
    ("#CC79A7", "D"),
    ("#56B4E9", "v"),
    ("#E69F00", "P"),
    ("#000000", "X"),
)
_FLOOR_COLOUR = "#767676"
_FLOOR_DASHES = ((0, (5, 2)), (0, (2, 2)), (0, (1, 2)), (0, (8, 3, 1, 3)), (0, (3, 1, 1, 1)))


def draw(report: Mapping[str, Any], path: Path) -> None:
    """Draw pass@k with bands and floors, a panel a tier, to a PNG."""
    # Imported here, as it is slow and needed once. A Figure of its own, outside pyplot, draws with
    # Agg whatever display there is.
    from matplotlib.figure import Figure

    tiers = list(report["tiers"])
    across = min(3, len(tiers))
    down = -(-len(tiers) // across)
    figure = Figure(figsize=(1.2 + 4.6 * across, 4.3 * down + 0.3), layout="constrained")
    axes = figure.subplots(down, across, sharey=True, squeeze=False)
    colours = dict(zip(report["arms"], _STYLES * len(report["arms"]), strict=False))
    top = _highest(report)
    for ax, tier in zip(axes.flat, tiers, strict=False):
        _draw_tier(ax, report, tier, colours, top)
    for ax in axes.flat[len(tiers) :]:
        ax.set_visible(False)
    for ax in axes[:, 0]:
        ax.set_ylabel(f"problems solved ({report['success']} answer), %")
    figure.supxlabel(f"k, answers to each problem. Bands: {report['interval']}", fontsize=9)
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=160, metadata={"Software": None})
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content.getvalue())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _highest(report: Mapping[str, Any]) -> float:
    """The upper end of the y axis in %, a multiple of 10 that holds every curve and band."""
    found = [
        share
        for tier in report["tiers"].values()
        for share in chain(
            (e["high"] for arm in tier["arms"].values() for e in arm["pass_at_k"].values()),
            (s for policy in tier["floors"].values() for s in policy.values() if s is not None),
        )
    ]
    return min(100.0, 10 * np.ceil(10 * max(found) + 0.2))


def _draw_tier(
    ax: Axes,
    report: Mapping[str, Any],
    tier: str,
    colours: Mapping[str, tuple[str, str]],
    top: float,
) -> None:
    found = report["tiers"][tier]
    ks = found["ks"]
    labels: list[tuple[float, str, str]] = []
    best_greedy = max(
        (p for p in found["floors"] if p in GREEDY),
        key=lambda p: found["floors"][p]["1"],
        default=None,
    )
    floors = [p for p in found["floors"] if p not in GREEDY or p == best_greedy]
    for policy, dashes in zip(floors, _FLOOR_DASHES * len(floors), strict=False):
        points = [(k, 100 * s) for k in ks if (s := found["floors"][policy][str(k)]) is not None]
        if points:
            ax.plot(*zip(*points, strict=True), color=_FLOOR_COLOUR, linestyle=dashes, lw=1.2)
            labels.append((points[-1][1], policy.replace("_", " "), _FLOOR_COLOUR))
    for arm, result in found["arms"].items():
        colour, marker = colours[arm]
        value, low, high = (
            [100 * result["pass_at_k"][str(k)][key] for k in ks] for key in ("value", "low", "high")
        )
        ax.fill_between(ks, low, high, color=colour, alpha=0.16, lw=0)
        ax.plot(ks, value, color=colour, marker=marker, ms=5, lw=2, clip_on=False)
        labels.append((value[-1], label(arm), colour))
    ax.set_xscale("log", base=2)
    ax.set_xticks(ks, [str(k) for k in ks])
    ax.minorticks_off()
    ax.set_ylim(0, top)
    ax.set_title(
        f"{_tier_title(report, tier)}\n", loc="left", fontsize=11, fontweight="bold", pad=2
    )
    ax.text(
        0,
        1.02,
        f"{found['problems']:,} problems x {found['samples']} samples",
        fontsize=9,
        transform=ax.transAxes,
    )
    ax.grid(axis="y", color="#E4E4E4", lw=0.8)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
    ax.tick_params(length=0, labelleft=True)
    _label_ends(ax, labels, top)


def _label_ends(ax: Axes, labels: list[tuple[float, str, str]], top: float) -> None:
    """Name each curve at its right end, pushed apart where ends are close."""
    from scipy.optimize import isotonic_regression

    gap = 0.055 * top
    labels = sorted(labels)
    # Least squares with at least a gap between neighbours is isotonic regression, shifted.
    shifts = gap * np.arange(len(labels))
    free = isotonic_regression([height for height, _, _ in labels] - shifts).x
    heights = np.clip(free, 0, top - shifts[-1]) + shifts
    for height, (_, text, colour) in zip(heights, labels, strict=True):
        ax.annotate(
            text,
            (1, height),
            xycoords=("axes fraction", "data"),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            color=colour,
            fontsize=9,
            fontweight="normal" if colour == _FLOOR_COLOUR else "bold",
            annotation_clip=False,
        )
