"""Stage ``make audit``: what answers that solve nothing earn under a recipe's reward.

A panel of such answers is derived from each problem, none of them right, and an automatic search
edits the best paid of them further (``rewards.attacks``). The audit fails where

- one of them earns more, on average, than the ceiling: ``CEILING`` of what gold earns. At half, a
  policy that learned to cheat still gains more by learning to solve than it has;
- one of them earns more than a random feasible schedule of the same problems, by more than chance:
  the paired difference lies ``ERRORS`` standard errors above 0. (Both means are drawn, and a single
  long event may be worth about as much as a random schedule.);
- the reward does not follow the verdict: of two answers to one problem the worse earns more, or as
  much as an optimal one, or two that are judged alike earn differently;
- an answer is judged better or worse than it can be by its making: then the verifier is at fault.

Feasible answers that the search meets, and the random schedules beside it, are confirmed by CP-SAT.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import groupby
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from data.common.console import plain_console
from data.common.errors import UserError, run_main
from data.common.fields import nearest
from data.common.files import Stage, write_json, write_text
from data.common.seeds import seed_of
from data.draw import make_problem
from data.event import Schedule
from data.problem import Problem
from data.published import read_published
from data.recipe import Recipe, recipe_arguments, recipe_from
from data.sections import RewardSection, TierUse
from data.solver import optimal_schedule
from data.tiers import TIERS
from rewards.attacks import ATTACKS, EDITS, Case, references, scale
from rewards.parse import parse
from rewards.reward import SHAPES, check, order, totals
from rewards.verify import VALID, Status, Verdict, confirm, verify_text

CEILING = 0.5
ERRORS = 3.0
PROBLEMS = 1000
#: Problems of a tier on which the search runs, and edits tried on each.
SEARCHED, TRIES = 100, 150
#: Kinds of rows: for scale; attacks without a right answer in them; right answers spoilt or hidden;
#: and the best paid infeasible or unparsable answer that the search found.
SCALE, BLIND, SPOILT, SEARCH = "scale", "blind", "spoilt", "search"
#: How a failure says what it is about.
_CALLED = {BLIND: "{!r}", SPOILT: "{!r}", SEARCH: "the best spoilt answer of the search"}
#: Characters of the longest text that the search edits.
_SEARCHABLE = 5_000
#: Columns of plain text where the output is not a terminal.
_WIDTH = 120
#: Rewards are sums of floats.
_TOLERANCE = 1e-9
_RANKS = list(Status)
#: What honest answers are by their making.
_AT_WORST = {
    "gold": Status.OPTIMAL,
    "near-optimal": Status.FEASIBLE,
    "random feasible": Status.FEASIBLE,
    "random maximal": Status.FEASIBLE,
}


@dataclass(frozen=True)
class _Paid:
    """An answer, its verdict and its reward."""

    policy: str
    completion: str
    verdict: Verdict
    reward: float

    @property
    def spoilt(self) -> bool:
        return self.verdict.status in (Status.INFEASIBLE, Status.UNPARSABLE)

    @property
    def editable(self) -> bool:
        return self.spoilt and len(self.completion) <= _SEARCHABLE

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "verdict": self.verdict.to_json()}


#: Pays an answer, given by its policy's name and its text.
_Pay = Callable[[str, str], _Paid]


def _climb(case: Case, start: _Paid, pay: _Pay) -> Iterator[_Paid]:
    """Every answer that hill climbing tries, from ``start``: a random edit is kept when the answer
    stays infeasible or unparsable and earns no less. Equal pay is kept too, to cross plains."""
    here = start
    for _ in range(TRIES):
        text = case.rng.choice(EDITS)(here.completion, case)
        if text == here.completion:
            continue
        there = pay(SEARCH, text)
        yield there
        if there.editable and there.reward >= here.reward:
            here = there


# --- the audit ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """What one policy earns on one tier.

    Attributes:
        kind: ``scale``, ``blind``, ``spoilt`` or ``search``.
        n, skipped: problems it answered, and those where it has no answer or would be right.
        mean, p95, max: of its rewards.
        feasible, optimal: share of its answers.
        of_gold: its mean as a share of gold's on the same problems.
        above_feasible: its mean less that of random feasible on the same problems; and
        above_feasible_low: that less ``ERRORS`` standard errors, None for fewer than two problems.
    """

    tier: str
    policy: str
    kind: str
    n: int
    skipped: int
    mean: float
    p95: float
    max: float
    feasible: float
    optimal: float
    of_gold: float
    above_feasible: float
    above_feasible_low: float | None


@dataclass(frozen=True)
class Audit:
    """The outcome.

    Attributes:
        failures: a sentence each, with figures; none means that the reward is sound.
        findings: pairs of answers to one problem that are paid against their verdicts, the worst
            of each tier.
    """

    shape: str
    weights: dict[str, float] | None
    seed: int
    ceiling: float
    rows: tuple[Row, ...]
    failures: tuple[str, ...]
    findings: tuple[dict[str, Any], ...]

    def to_json(self) -> dict[str, Any]:
        return {"sound": not self.failures, "errors": ERRORS, **asdict(self)}

    @property
    def best_attack(self) -> Row:
        """Of what is no right answer, what earns most of what gold earns."""
        return max((r for r in self.rows if r.kind != SCALE), key=lambda row: row.of_gold)


@dataclass
class _Tally:
    """The answers of one tier as they come in, by policy, and where pay and verdict disagree."""

    paid: dict[str, dict[int, _Paid]] = field(default_factory=dict)
    kinds: dict[str, str] = field(default_factory=dict)
    disagreements: list[dict[str, Any]] = field(default_factory=list)
    problems: int = 0

    def add(self, kind: str, index: int, paid: _Paid) -> None:
        self.kinds[paid.policy] = kind
        self.paid.setdefault(paid.policy, {})[index] = paid


def audit(
    section: RewardSection,
    problems_by_tier: Mapping[str, Sequence[Problem]],
    seed: int,
    ceiling: float = CEILING,
) -> Audit:
    """Score the whole panel on every problem, and search on the first ``SEARCHED`` of each tier.

    Under a reward by comparison every answer is scored in a group with ``references``.

    Raises:
        AssertionError, DisagreementError: when the verifier contradicts the proven optimum or
            CP-SAT.
    """
    rows: list[Row] = []
    failures: list[str] = []
    findings: list[dict[str, Any]] = []
    for tier, problems in problems_by_tier.items():
        if not problems:
            continue
        tally = _score_tier(section, tier, problems, seed)
        found = _rows(tier, tally)
        rows += found
        failures += [*_overpaid(found, ceiling), *_misjudged(tier, tally)]
        if tally.disagreements:
            worst = max(tally.disagreements, key=lambda finding: finding["gap"])
            findings.append({"tier": tier, **worst})
            failures.append(_against_the_verdict(tier, tally, worst))
    return Audit(
        section.shape, section.weights, seed, ceiling, tuple(rows), tuple(failures), tuple(findings)
    )


def _score_tier(
    section: RewardSection, tier: str, problems: Sequence[Problem], seed: int
) -> _Tally:
    golds = [optimal_schedule(problem) or () for problem in problems]
    tally = _Tally(problems=len(problems))
    for index, (problem, gold) in enumerate(zip(problems, golds, strict=True)):
        rng = random.Random(seed_of(seed, "audit answers", tier, index))
        case = Case(problem, gold, _stranger(problem, golds, index), rng)
        honest, made = scale(case), {name: attack.make(case) for name, attack in ATTACKS.items()}
        # Drawn last: the answers are the same under every shape.
        pay = _payer(section, case, references(case))
        seen = [pay(policy, text) for policy, text in honest.items()]
        for paid in seen:
            tally.add(SCALE, index, paid)
        attacks = [pay(policy, text) for policy, text in made.items() if text is not None]
        for paid in attacks:
            tally.add(BLIND if ATTACKS[paid.policy].blind else SPOILT, index, paid)
        if index < SEARCHED:
            start = max((a for a in attacks if a.editable), key=lambda answer: answer.reward)
            tried = list(_climb(case, start, pay))
            best = max((start, *(t for t in tried if t.spoilt)), key=lambda answer: answer.reward)
            tally.add(SEARCH, index, replace(best, policy=SEARCH))
            _confirm(problem, [*seen, *tried])
            seen += tried
        disagreement = _disagreement([*seen, *attacks])
        if disagreement:
            tally.disagreements.append({"index": index, **disagreement, "problem": case.text})
    return tally


def _payer(section: RewardSection, case: Case, group: list[str]) -> _Pay:
    """What an answer to this problem earns, in a group with ``group`` where that matters."""
    others = group if SHAPES[section.shape].in_group else []
    problems = [case.text] * (1 + len(others))

    def pay(policy: str, completion: str) -> _Paid:
        reward = totals(section, problems, [completion, *others])[0]
        return _Paid(policy, completion, verify_text(case.text, completion), reward)

    return pay


def _stranger(problem: Problem, golds: Sequence[Schedule], index: int) -> Schedule | None:
    """The next gold that is not of this problem's events alone."""
    known = set(problem.events)
    others = (golds[(index + step) % len(golds)] for step in range(1, len(golds)))
    return next((gold for gold in others if not set(gold) <= known), None)


def _confirm(problem: Problem, answers: Iterable[_Paid], most: int = 6) -> None:
    """Have CP-SAT confirm the first few different schedules that were found feasible."""
    found = (parse(answer.completion) for answer in answers if not answer.spoilt)
    for schedule in list(dict.fromkeys(s for s in found if isinstance(s, tuple)))[:most]:
        confirm(problem, schedule)


def _disagreement(answers: Iterable[_Paid]) -> dict[str, Any] | None:
    """The widest gap between two answers to one problem of which the worse earns more, or as much
    as an optimal one, or that are judged alike and earn differently; None where pay follows the
    verdict."""

    def key(answer: _Paid) -> tuple[int, float]:
        return order(answer.verdict)

    def reward(answer: _Paid) -> float:
        return answer.reward

    widest: dict[str, Any] | None = None
    best_of_worse: _Paid | None = None
    for _, alike in groupby(sorted(answers, key=key), key=key):
        group = list(alike)
        least, most = min(group, key=reward), max(group, key=reward)
        best_paid = max((a for a in (best_of_worse, most) if a), key=reward)
        as_much_as_optimal = (
            best_of_worse is not None
            and least.verdict.status == Status.OPTIMAL
            and best_of_worse.reward >= least.reward - _TOLERANCE
        )
        gap = best_paid.reward - least.reward
        wrong = gap > _TOLERANCE or as_much_as_optimal
        if wrong and (widest is None or gap > widest["gap"]):
            more = best_of_worse if as_much_as_optimal else best_paid
            widest = {"gap": gap, "earns_more": more.to_json(), "earns_less": least.to_json()}
        best_of_worse = best_paid
    return widest


def _rows(tier: str, tally: _Tally) -> list[Row]:
    gold, feasible = tally.paid["gold"], tally.paid["random feasible"]
    rows = []
    for policy, paid in tally.paid.items():
        rewards = sorted(answer.reward for answer in paid.values())
        n = len(rewards)
        share = [answer.verdict.status for answer in paid.values()]
        differences = [answer.reward - feasible[i].reward for i, answer in paid.items()]
        golds = math.fsum(gold[i].reward for i in paid)
        kind = tally.kinds[policy]
        rows.append(
            Row(
                tier,
                policy,
                kind,
                n,
                (min(SEARCHED, tally.problems) if kind == SEARCH else tally.problems) - n,
                mean=math.fsum(rewards) / n,
                p95=rewards[math.ceil(0.95 * n) - 1],
                max=rewards[-1],
                feasible=sum(s in VALID for s in share) / n,
                optimal=share.count(Status.OPTIMAL) / n,
                of_gold=math.fsum(rewards) / golds if golds else 0.0,
                above_feasible=math.fsum(differences) / n,
                above_feasible_low=_low(differences),
            )
        )
    return rows


def _low(differences: Sequence[float]) -> float | None:
    """The mean less ``ERRORS`` standard errors."""
    n = len(differences)
    if n < 2:
        return None
    mean = math.fsum(differences) / n
    variance = math.fsum((d - mean) ** 2 for d in differences) / (n - 1)
    return mean - ERRORS * math.sqrt(variance / n)


def _overpaid(rows: Iterable[Row], ceiling: float) -> Iterator[str]:
    """What earns too much without solving; what has no right answer in it comes first."""
    for row in _by_kind(rows):
        if row.kind == SCALE:
            continue
        called = _CALLED[row.kind].format(row.policy)
        earns = f"{row.tier}: {called} earns {row.mean:.3f} on average over {row.n} problems"
        if row.of_gold > ceiling:
            yield f"{earns}, {row.of_gold:.0%} of gold's reward; the ceiling is {ceiling:.0%}"
        elif row.above_feasible_low is not None and row.above_feasible_low > _TOLERANCE:
            yield (
                f"{earns}, {row.above_feasible:.3f} more than a random feasible schedule "
                f"(at least {row.above_feasible_low:.3f}, {ERRORS:g} standard errors allowed for)"
            )


def _by_kind(rows: Iterable[Row]) -> list[Row]:
    """Kind by kind, and the best paid first."""
    kinds = (SCALE, BLIND, SPOILT, SEARCH)
    return sorted(rows, key=lambda row: (kinds.index(row.kind), -row.mean))


def _misjudged(tier: str, tally: _Tally) -> Iterator[str]:
    """Where the verifier contradicts what an answer is by its making."""
    for policy, paid in tally.paid.items():
        best = ATTACKS[policy].at_best if policy in ATTACKS else Status.OPTIMAL
        worst = _AT_WORST.get(policy, Status.UNPARSABLE)
        judged = [answer.verdict.status for answer in paid.values()]
        for wrong, limit, word in (
            ([s for s in judged if _RANKS.index(s) < _RANKS.index(best)], best, "best"),
            ([s for s in judged if _RANKS.index(s) > _RANKS.index(worst)], worst, "worst"),
        ):
            if wrong:
                yield (
                    f"{tier}: the verifier calls {policy!r} {wrong[0]} on {len(wrong)} of "
                    f"{len(judged)} problems, though it is {limit} at {word}"
                )


def _against_the_verdict(tier: str, tally: _Tally, worst: Mapping[str, Any]) -> str:
    more, less = worst["earns_more"], worst["earns_less"]
    return (
        f"{tier}: the reward does not follow the verdict on {len(tally.disagreements)} of "
        f"{tally.problems} problems; the widest gap is {more['policy']!r} "
        f"({more['verdict']['status']}) with {more['reward']:.3f} against {less['policy']!r} "
        f"({less['verdict']['status']}) with {less['reward']:.3f}"
    )


# --- the gate before training, and the stage ------------------------------------------------


def gate(
    recipe: Recipe, problems_by_tier: Mapping[str, Sequence[Problem]], allow_unsound: bool
) -> None:
    """Audit the recipe's reward on up to ``PROBLEMS`` training problems a tier before training.

    Raises:
        UserError: when it fails and ``allow_unsound`` is not given, with the figure.
    """
    check(recipe.reward, str(recipe.path))
    first = {tier: problems[:PROBLEMS] for tier, problems in problems_by_tier.items()}
    outcome = audit(recipe.reward, first, recipe.seed)
    say = Console()
    if not outcome.failures:
        say.print(f"audit: {_in_short(outcome)}", markup=False, highlight=False, soft_wrap=True)
        return
    if not allow_unsound:
        raise UserError(
            f"{recipe.path}: {_in_short(outcome)}; mend the reward, or train all the same with "
            "`UNSOUND=1 make grpo` (--unsound), or `unsound: true` under the arm's reward"
        )
    warning = ["WARNING: training under a reward that the audit fails:", *outcome.failures]
    say.print("\n  ".join(warning), style="bold red", markup=False, highlight=False, soft_wrap=True)


def _in_short(outcome: Audit) -> str:
    """The outcome in one sentence, without its full stop."""
    if outcome.failures:
        first, *more = outcome.failures
        further = f" (and {len(more)} failures more; `make audit` lists them)" if more else ""
        return f"the reward {outcome.shape!r} fails its audit: {first}{further}"
    best = outcome.best_attack
    return (
        f"the reward {outcome.shape!r} is sound; no policy that does not solve earns more than "
        f"{best.of_gold:.0%} of gold's reward ({best.policy!r}, tier {best.tier}; the ceiling is "
        f"{outcome.ceiling:.0%})"
    )


def problems_of(
    recipe: Recipe, tiers: Sequence[str] | None, count: int
) -> dict[str, list[Problem]]:
    """``count`` fresh problems of each tier, by default the recipe's; of an imported one, all.

    Raises:
        UserError: naming a tier that there is not.
    """
    uses = recipe.tier_uses
    found = {}
    for name in tiers or uses:
        if name not in uses and name not in TIERS:
            known = sorted({*uses, *TIERS})
            raise UserError(
                f"--tiers: unknown tier {name!r} (the tiers are {', '.join(known)})"
                f"{nearest(name, known)}"
            )
        use = uses.get(name) or TierUse(tier=TIERS[name])
        if use.source:
            sources = dict.fromkeys(use.source.replace("{split}", s) for s in ("train", "test"))
            found[name] = [problem for s in sources for _, problem, _ in read_published(s)[0]]
        else:
            found[name] = [
                make_problem(recipe.seed, "audit", name, use.tier, i) for i in range(count)
            ]
    return found


_COLUMNS = (
    "policy",
    "kind",
    "n",
    "skipped",
    "mean",
    "of gold",
    "p95",
    "max",
    "feasible",
    "optimal",
)


def _cells(row: Row) -> list[str]:
    return [
        row.policy, row.kind, f"{row.n:,}", str(row.skipped or ""),
        f"{row.mean:.3f}", f"{row.of_gold:.0%}", f"{row.p95:.3f}", f"{row.max:.3f}",
        f"{row.feasible:.0%}", f"{row.optimal:.1%}",
    ]  # fmt: skip


def _sections(outcome: Audit) -> Iterator[tuple[str, list[Row]]]:
    """(tier, its rows)."""
    for tier in dict.fromkeys(row.tier for row in outcome.rows):
        yield tier, _by_kind(row for row in outcome.rows if row.tier == tier)


def to_markdown(outcome: Audit) -> str:
    """The tables and the failures."""
    lines = [
        f"# Audit of the reward `{outcome.shape}`",
        "",
        SHAPES[outcome.shape].about,
        "",
        f"Ceiling: {outcome.ceiling:.0%} of gold's reward. Seed {outcome.seed}.",
        "",
        *([f"- **fails:** {failure}" for failure in outcome.failures] or ["No failures."]),
    ]
    for tier, rows in _sections(outcome):
        lines += ["", f"## {tier}", "", f"| {' | '.join(_COLUMNS)} |"]
        lines.append("|---|---|" + "--:|" * (len(_COLUMNS) - 2))
        lines += [f"| {' | '.join(_cells(row))} |" for row in rows]
    return "\n".join(lines) + "\n"


def _print(say: Console, outcome: Audit) -> None:
    for tier, rows in _sections(outcome):
        table = Table(title=f"{tier} under the reward {outcome.shape!r}", box=box.SIMPLE)
        for column in _COLUMNS:
            left = column in ("policy", "kind")
            table.add_column(column, justify="left" if left else "right", no_wrap=True)
        for i, row in enumerate(rows):
            end = rows[i + 1 :] and rows[i + 1].kind != row.kind
            table.add_row(*_cells(row), end_section=bool(end))
        say.print(table)


def run(recipe: Recipe, problems: Mapping[str, Sequence[Problem]], ceiling: float) -> None:
    """Audit, print, and write ``runs/<run>/audit``; it takes seconds and is always done anew.

    Raises:
        UserError: when the reward fails.
    """
    counts = {tier: len(found) for tier, found in problems.items()}
    settings = {"reward": asdict(recipe.reward), "seed": recipe.seed, "ceiling": ceiling}
    folder = recipe.run.audit
    stage = Stage(folder, "audit", {**settings, "problems": counts})
    stage.begin_unless_done(force=True)
    outcome = audit(recipe.reward, problems, recipe.seed, ceiling)
    write_json(folder / "audit.json", outcome.to_json())
    write_text(folder / "audit.md", to_markdown(outcome))
    stage.finish(["audit.json", "audit.md"], failures=len(outcome.failures))
    say = plain_console(_WIDTH)
    _print(say, outcome)
    if not outcome.failures:
        say.print(f"{_in_short(outcome)}. {folder}", markup=False, highlight=False, soft_wrap=True)
        return
    for failure in outcome.failures:
        say.print(f"fails: {failure}", style="red", markup=False, highlight=False, soft_wrap=True)
    raise UserError(f"{_in_short(outcome)}; see {folder / 'audit.md'}")


def main() -> None:
    parser = recipe_arguments(__doc__.split("\n")[0])
    parser.add_argument("--tiers", nargs="+", help="tiers to audit, instead of the recipe's")
    parser.add_argument("--problems", type=int, default=PROBLEMS, help="fresh problems a tier")
    parser.add_argument(
        "--ceiling", type=float, default=CEILING, help="greatest share of gold's reward, 0 to 1"
    )
    arguments = parser.parse_args()
    if arguments.problems < 1:
        raise UserError("--problems must be 1 or more")
    if not 0 <= arguments.ceiling <= 1:
        raise UserError("--ceiling must be 0 to 1")
    recipe = recipe_from(arguments)
    check(recipe.reward, str(recipe.path))
    run(recipe, problems_of(recipe, arguments.tiers, arguments.problems), arguments.ceiling)


if __name__ == "__main__":
    run_main(main)
