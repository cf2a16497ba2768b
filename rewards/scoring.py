"""Pays a panel of answers under a reward, and finds where pay and verdict disagree."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from operator import attrgetter
from statistics import fmean, stdev

from data.common.console import paced
from data.common.seeds import seed_of
from data.event import Schedule
from data.problem import Problem
from data.sections import RewardSection
from data.solver import optimal_schedule
from rewards.attacks import ATTACKS, AttackCase, references, scale
from rewards.edits import EDITS
from rewards.parse import parse
from rewards.reward import order, shape_of, totals
from rewards.verify import VALID, Status, Verdict, confirm, verify_text

#: Standard errors that a mean must lie above another one to be more than chance explains.
ERRORS = 3.0
#: Problems of a tier on which the search runs, and edits tried on each.
SEARCHED, TRIES = 100, 150
#: Kinds of policies: for scale; attacks without a right answer in them; right answers spoilt or
#: hidden; and the best paid infeasible or unparsable answer that the search found.
SCALE, BLIND, SPOILT, SEARCH = "scale", "blind", "spoilt", "search"
#: Rewards are sums of floats.
TOLERANCE = 1e-9
#: Characters of the longest text that the search edits.
_SEARCHABLE = 5_000


@dataclass(frozen=True)
class Paid:
    """An answer of a policy to one problem, its verdict and its reward."""

    policy: str
    completion: str
    verdict: Verdict
    reward: float

    @property
    def spoilt(self) -> bool:
        return self.verdict.status not in VALID

    @property
    def editable(self) -> bool:
        return self.spoilt and len(self.completion) <= _SEARCHABLE


_reward = attrgetter("reward")


@dataclass(frozen=True)
class Disagreement:
    """Two answers to problem ``index`` of a tier (as JSON) that are paid against their verdicts:
    the first one more, by ``gap``, or as much though the second is optimal."""

    tier: str
    index: int
    problem: str
    gap: float
    earns_more: Paid
    earns_less: Paid


@dataclass
class PanelTally:
    """The answers to the problems of one tier by policy and problem, and what is wrong with their
    pay: at most one disagreement a problem, the widest."""

    problems: int
    paid: dict[str, dict[int, Paid]] = field(default_factory=dict)
    kinds: dict[str, str] = field(default_factory=dict)
    disagreements: list[Disagreement] = field(default_factory=list)

    def add(self, kind: str, index: int, paid: Paid) -> None:
        self.kinds[paid.policy] = kind
        self.paid.setdefault(paid.policy, {})[index] = paid


def score_tier(
    section: RewardSection, tier: str, problems: Sequence[Problem], seed: int
) -> PanelTally:
    """Score the panel on every problem, and search on the first ``SEARCHED``.

    Under a reward by comparison every answer is scored in a group with ``references``.

    Raises:
        AssertionError, DisagreementError: when the verifier contradicts the optimum or CP-SAT.
    """
    golds = [optimal_schedule(problem) or () for problem in problems]
    tally = PanelTally(len(problems))
    solved = enumerate(zip(problems, golds, strict=True))
    for index, (problem, gold) in paced(solved, len(problems), f"audit, {tier}", " problems"):
        rng = random.Random(seed_of(seed, "audit answers", tier, index))
        case = AttackCase(problem, gold, _stranger(problem, golds, index), rng)
        honest, made = scale(case), {name: attack.make(case) for name, attack in ATTACKS.items()}
        # Drawn last: the answers are the same under every shape.
        pay = _payer(section, problem, references(case))
        seen = [pay(policy, text) for policy, text in honest.items()]
        attacks = [pay(policy, text) for policy, text in made.items() if text is not None]
        for paid in seen:
            tally.add(SCALE, index, paid)
        for paid in attacks:
            tally.add(BLIND if ATTACKS[paid.policy].blind else SPOILT, index, paid)
        if index < SEARCHED:
            start = max((a for a in attacks if a.editable), key=_reward)
            tried = list(_climb(case, start, pay))
            best = max((start, *(t for t in tried if t.spoilt)), key=_reward)
            tally.add(SEARCH, index, replace(best, policy=SEARCH))
            _confirm(problem, [*seen, *tried])
            seen += tried
        if pair := _paid_against_verdict([*seen, *attacks], shape_of(section.name).varied):
            gap = pair[0].reward - pair[1].reward
            tally.disagreements.append(Disagreement(tier, index, problem.text, gap, *pair))
    return tally


#: Pays an answer, given by its policy's name and its text.
_Pay = Callable[[str, str], Paid]


def _payer(section: RewardSection, problem: Problem, group: list[str]) -> _Pay:
    """Pays answers to this problem, each in a group with ``group`` where that matters."""
    others = group if shape_of(section.name).in_group else []
    asked = [problem.text] * (1 + len(others))

    def pay(policy: str, completion: str) -> Paid:
        reward = totals(section, asked, [completion, *others])[0]
        return Paid(policy, completion, verify_text(problem.text, completion), reward)

    return pay


def _climb(case: AttackCase, start: Paid, pay: _Pay) -> Iterator[Paid]:
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


def _stranger(problem: Problem, golds: Sequence[Schedule], index: int) -> Schedule | None:
    """The next gold that is not of this problem's events alone."""
    known = set(problem.events)
    others = (golds[(index + step) % len(golds)] for step in range(1, len(golds)))
    return next((gold for gold in others if not set(gold) <= known), None)


#: Different schedules of a problem's answers that CP-SAT confirms.
_CONFIRMED = 6


def _confirm(problem: Problem, answers: Iterable[Paid]) -> None:
    """Have CP-SAT confirm the first few different schedules that were judged feasible."""
    schedules = (parse(answer.completion) for answer in answers if not answer.spoilt)
    for schedule in list(dict.fromkeys(s for s in schedules if isinstance(s, tuple)))[:_CONFIRMED]:
        confirm(problem, schedule)


def _paid_against_verdict(answers: Iterable[Paid], varied: bool) -> tuple[Paid, Paid] | None:
    """The widest apart in pay of two answers to one problem of which the worse earns more, or as
    much as an optimal one, or that are judged alike and earn differently; None where pay follows
    the verdict. ``varied`` lets optimal ones earn differently among each other."""

    def by_verdict(answer: Paid) -> tuple[int, float]:
        return order(answer.verdict)

    wrong: list[tuple[Paid, Paid]] = []
    worse: list[Paid] = []  # the best paid of all that are judged worse, if any
    for _, alike in groupby(sorted(answers, key=by_verdict), key=by_verdict):
        group = list(alike)
        least, best_paid = min(group, key=_reward), max([*worse, *group], key=_reward)
        is_optimal = least.verdict.status == Status.OPTIMAL
        if worse and is_optimal and worse[0].reward >= least.reward - TOLERANCE:
            wrong.append((worse[0], least))
        elif best_paid.reward > least.reward + TOLERANCE and not (varied and is_optimal):
            wrong.append((best_paid, least))
        worse = [best_paid]
    return max(wrong, key=lambda pair: pair[0].reward - pair[1].reward, default=None)


@dataclass(frozen=True)
class Earnings:
    """The rewards of one policy on one tier.

    Attributes:
        kind: ``scale``, ``blind``, ``spoilt`` or ``search``.
        n: problems it answered; elsewhere it has no answer, or would be right.
        mean, max: of its rewards.
        feasible, optimal: share of its answers.
        of_gold: its mean as a share of gold's on the same problems.
        above_feasible: its mean less that of random feasible on the same problems; and
        above_feasible_low: that less ``ERRORS`` standard errors, None for fewer than two problems.
    """

    tier: str
    policy: str
    kind: str
    n: int
    mean: float
    max: float
    feasible: float
    optimal: float
    of_gold: float
    above_feasible: float
    above_feasible_low: float | None


def earnings(tier: str, tally: PanelTally) -> Iterator[Earnings]:
    """The rewards of each policy."""
    gold, feasible = tally.paid["gold"], tally.paid["random feasible"]
    for policy, paid in tally.paid.items():
        rewards = list(map(_reward, paid.values()))
        judged = [answer.verdict.status for answer in paid.values()]
        differences = [answer.reward - feasible[i].reward for i, answer in paid.items()]
        golds = math.fsum(gold[i].reward for i in paid)
        yield Earnings(
            tier,
            policy,
            tally.kinds[policy],
            n=len(rewards),
            mean=fmean(rewards),
            max=max(rewards),
            feasible=fmean(status in VALID for status in judged),
            optimal=fmean(status == Status.OPTIMAL for status in judged),
            of_gold=math.fsum(rewards) / golds if golds else 0.0,
            above_feasible=fmean(differences),
            above_feasible_low=surely_above(differences),
        )


def surely_above(differences: Sequence[float]) -> float | None:
    """Their mean less ``ERRORS`` standard errors; None for fewer than two."""
    if len(differences) < 2:
        return None
    return fmean(differences) - ERRORS * stdev(differences) / math.sqrt(len(differences))
