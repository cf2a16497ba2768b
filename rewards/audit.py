"""Stage ``make audit``: what answers that solve nothing earn under a recipe's reward.

The audit fails where

- one of them earns more, on average, than ``CEILING`` of what gold earns. At half, a policy that
  learned to cheat still gains more by learning to solve than it has;
- one of them earns more than a random feasible schedule of the same problems, by more than chance:
  the paired difference lies ``ERRORS`` standard errors above 0;
- the reward does not follow the verdict: of two answers to one problem the worse earns more, or as
  much as an optimal one, or two that are judged alike earn differently, but for optimal ones where
  the shape pays for being rare (``Shape.varied``): the least paid still earns more than any other;
- an answer is judged better or worse than it can be by its making: then the verifier is at fault.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass

from rich.markdown import Markdown

from data.common.console import plain_console, say
from data.common.errors import UserError, require, run_main
from data.common.fields import nearest
from data.common.files import Stage, write_json, write_text
from data.draw import make_problem
from data.problem import Problem
from data.published import read_published
from data.recipe import Recipe, recipe_arguments, recipe_from
from data.run import goal
from data.sections import RewardSection, TierUse
from data.tiers import TIERS
from rewards.attacks import ATTACKS
from rewards.reward import check_reward, shape_of
from rewards.scoring import (
    BLIND,
    ERRORS,
    SCALE,
    SEARCH,
    SPOILT,
    TOLERANCE,
    Disagreement,
    Earnings,
    PanelTally,
    earnings,
    score_tier,
)
from rewards.verify import Status

#: Greatest share of gold's reward that an answer may earn which solves nothing.
CEILING = 0.5
MOST_PROBLEMS = 1000
_KINDS = (SCALE, BLIND, SPOILT, SEARCH)
#: Columns of plain text where the output is not a terminal.
_COLUMNS = 120
_RANKS = list(Status)
#: The worst that honest answers can be, by their making.
_AT_WORST = {
    "gold": Status.OPTIMAL,
    "near-optimal": Status.FEASIBLE,
    "random feasible": Status.FEASIBLE,
    "random maximal": Status.FEASIBLE,
}


@dataclass(frozen=True)
class Audit:
    """The outcome.

    Attributes:
        failures: a sentence each, with figures; none means that the reward is sound.
        disagreements: of pay and verdict, the widest of each tier.
    """

    shape: str
    weights: dict[str, float] | None
    seed: int
    rows: tuple[Earnings, ...]
    failures: tuple[str, ...]
    disagreements: tuple[Disagreement, ...]

    def to_json(self) -> dict[str, object]:
        return {"sound": not self.failures, **asdict(self)}

    @property
    def best_attack(self) -> Earnings:
        """The attack that earns the greatest share of gold's reward."""
        return max((r for r in self.rows if r.kind != SCALE), key=lambda row: row.of_gold)

    @property
    def sentence(self) -> str:
        """The outcome in one sentence, without its full stop."""
        if self.failures:
            first, *more = self.failures
            further = (
                f" (and {len(more)} failures more; {goal('audit')} lists them)" if more else ""
            )
            return f"the reward {self.shape!r} fails its audit: {first}{further}"
        best = self.best_attack
        return (
            f"the reward {self.shape!r} is sound; no policy that does not solve earns more than "
            f"{best.of_gold:.0%} of gold's reward ({best.policy!r}, tier {best.tier}; the ceiling "
            f"is {CEILING:.0%})"
        )


def audit(
    section: RewardSection, problems_by_tier: Mapping[str, Sequence[Problem]], seed: int
) -> Audit:
    """Score the panel on every tier (``rewards.scoring.score_tier``) and find the failures."""
    rows: list[Earnings] = []
    failures: list[str] = []
    disagreements: list[Disagreement] = []
    for tier, problems in problems_by_tier.items():
        if not problems:
            continue
        tally = score_tier(section, tier, problems, seed)
        paid = earnings(tier, tally)
        of_tier = sorted(paid, key=lambda row: (_KINDS.index(row.kind), -row.mean))
        rows += of_tier
        failures += [*_overpaid(of_tier), *_misjudged(tier, tally)]
        if tally.disagreements:
            disagreements.append(max(tally.disagreements, key=lambda pair: pair.gap))
            failures.append(_against_the_verdict(tally, disagreements[-1]))
    found = tuple(rows), tuple(failures), tuple(disagreements)
    return Audit(section.name, section.weights, seed, *found)


def _overpaid(rows: Iterable[Earnings]) -> Iterator[str]:
    """Policies that earn too much without solving."""
    for row in rows:
        if row.kind == SCALE:
            continue
        called = "the best spoilt answer of the search" if row.kind == SEARCH else repr(row.policy)
        earns = f"{row.tier}: {called} earns {row.mean:.3f} on average over {row.n} problems"
        if row.of_gold > CEILING:
            yield f"{earns}, {row.of_gold:.0%} of gold's reward; the ceiling is {CEILING:.0%}"
        elif row.above_feasible_low is not None and row.above_feasible_low > TOLERANCE:
            yield (
                f"{earns}, {row.above_feasible:.3f} more than a random feasible schedule "
                f"(at least {row.above_feasible_low:.3f}, {ERRORS:g} standard errors allowed for)"
            )


def _misjudged(tier: str, tally: PanelTally) -> Iterator[str]:
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


def _against_the_verdict(tally: PanelTally, worst: Disagreement) -> str:
    more, less = worst.earns_more, worst.earns_less
    return (
        f"{worst.tier}: the reward does not follow the verdict on {len(tally.disagreements)} of "
        f"{tally.problems} problems; the widest gap is {more.policy!r} ({more.verdict.status}) "
        f"with {more.reward:.3f} against {less.policy!r} ({less.verdict.status}) with "
        f"{less.reward:.3f}"
    )


def to_markdown(outcome: Audit) -> str:
    """The failures and a table a tier."""
    lines = [
        f"# Audit of the reward `{outcome.shape}`",
        "",
        shape_of(outcome.shape).about,
        "",
        f"Ceiling: {CEILING:.0%} of gold's reward. Seed {outcome.seed}.",
        "",
        *([f"- **fails:** {failure}" for failure in outcome.failures] or ["No failures."]),
    ]
    for tier in dict.fromkeys(row.tier for row in outcome.rows):
        lines += [
            f"\n## {tier}\n",
            "| policy | kind | n | mean | of gold | max | feasible | optimal |",
            "|---|---|--:|--:|--:|--:|--:|--:|",
            *(
                f"| {r.policy} | {r.kind} | {r.n:,} | {r.mean:.3f} "
                f"| {r.of_gold:.0%} | {r.max:.3f} | {r.feasible:.0%} | {r.optimal:.1%} |"
                for r in outcome.rows
                if r.tier == tier
            ),
        ]
    return "\n".join(lines) + "\n"


# --- the gate before training, and the stage -------------------------------------------------


def gate(
    section: RewardSection,
    problems_by_tier: Mapping[str, Sequence[Problem]],
    seed: int,
    source: str,
) -> None:
    """Audit a reward on up to ``MOST_PROBLEMS`` training problems a tier before training.

    Args:
        source: the recipe, as messages name it.

    Raises:
        UserError: when it fails and is not said to be ``unsound``, with the figure.
    """
    check_reward(section, source)
    first = {tier: problems[:MOST_PROBLEMS] for tier, problems in problems_by_tier.items()}
    outcome = audit(section, first, seed)
    console = plain_console(_COLUMNS)
    if not outcome.failures:
        say(console, f"audit: {outcome.sentence}")
        return
    if not section.unsound:
        raise UserError(
            f"{source}: {outcome.sentence}; mend the reward, or train all the same with "
            "`unsound: true` under reward: (or the arm's own)"
        )
    warning = ["WARNING: training under a reward that the audit fails:", *outcome.failures]
    say(console, "\n  ".join(warning), "bold red")


def fresh_problems(
    seed: int, uses: Mapping[str, TierUse], tiers: Sequence[str] | None, count: int
) -> dict[str, list[Problem]]:
    """``count`` fresh problems of each tier, by default of all in use; of an imported one, all.

    Raises:
        UserError: naming a tier that there is not.
    """
    problems = {}
    known = {**{name: TierUse(tier=tier) for name, tier in TIERS.items()}, **uses}
    for name in tiers or uses:
        require(
            name in known,
            f"--tiers: unknown tier {name!r} (the tiers are {', '.join(sorted(known))})"
            f"{nearest(name, known)}",
        )
        use = known[name]
        if use.source:
            sources = dict.fromkeys(map(use.published, ("train", "test")))
            problems[name] = [problem for s in sources for problem, _ in read_published(s)[0]]
        else:
            problems[name] = [make_problem(seed, "audit", name, use.tier, i) for i in range(count)]
    return problems


def run(recipe: Recipe, problems: Mapping[str, Sequence[Problem]]) -> None:
    """Audit, print, and write ``runs/<run>/audit``; it takes seconds and is always redone.

    Raises:
        UserError: when the reward fails.
    """
    counts = {tier: len(of_tier) for tier, of_tier in problems.items()}
    settings = {"reward": asdict(recipe.reward), "seed": recipe.seed, "problems": counts}
    folder = recipe.run.audit
    stage = Stage(folder, "audit", settings)
    stage.begin_unless_done(force=True)
    outcome = audit(recipe.reward, problems, recipe.seed)
    text = to_markdown(outcome)
    write_json(folder / "audit.json", outcome.to_json())
    write_text(folder / "audit.md", text)
    stage.finish(["audit.json", "audit.md"], failures=len(outcome.failures))
    console = plain_console(_COLUMNS)
    console.print(Markdown(text))
    require(not outcome.failures, f"{outcome.sentence}; see {folder / 'audit.md'}")
    say(console, f"{outcome.sentence}. {folder}")


def main() -> None:
    parser = recipe_arguments(__doc__.split("\n")[0])
    parser.add_argument("--tiers", nargs="+", help="tiers to audit, instead of the recipe's")
    parser.add_argument("--problems", type=int, default=MOST_PROBLEMS, help="fresh problems a tier")
    arguments = parser.parse_args()
    require(arguments.problems >= 1, "--problems must be 1 or more")
    recipe = recipe_from(arguments, begins=True)
    check_reward(recipe.reward, str(recipe.path))
    problems = fresh_problems(recipe.seed, recipe.tier_uses, arguments.tiers, arguments.problems)
    run(recipe, problems)


if __name__ == "__main__":
    run_main(main)
