"""A model's reasoning before its answer: are its claims true, and does it reflect?

``data.prompts.trace`` writes reasoning in which every claim can be checked. The same claims are
read here out of any model's reasoning and held against the problem. Hostile text costs no more than
its length: lines are cut at fixed words, and each claim about a rule is checked once.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cache

import numpy as np
from numpy.typing import NDArray

from data.event import Event
from data.problem import Problem
from data.rules import KINDS
from data.sections import RESAMPLES
from eval.answers.files import AnsweredRow
from eval.stats.estimate import bootstrap_indices, mean_interval, ratio_interval
from rewards.parse import ParseFailure, parse
from rewards.verify import Status


class Claim(StrEnum):
    """The claims of a line of reasoning, in the forms of ``data.prompts.trace``."""

    VALUE = "value"  # NAME = weighted minutes; says too that the event is kept
    OVERLAP = "overlap"  # NAME overlaps RIVAL
    RULE = "rule"  # NAME breaks kind of rule
    TOTAL = "total"  # Total weighted minutes


class Truth(StrEnum):
    """UNKNOWN: the claim is about an event that the day does not have, or a word that is no kind of
    rule."""

    TRUE = "true"
    FALSE = "false"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Trace:
    """The reasoning of one answer, checked.

    Attributes:
        claims: how many claims of each kind have each truth.
        adds_up: whether the total is the sum of the values claimed, true or not; None without a
            total.
        follows: whether the answer has exactly the events that the reasoning keeps; None where it
            keeps none, or no schedule can be read.
    """

    claims: Counter[tuple[Claim, Truth]]
    adds_up: bool | None
    follows: bool | None

    def count(self, truth: Truth) -> int:
        return sum(self.claims[claim, truth] for claim in Claim)


#: Longer numbers make no claim; Python converts very long ones in quadratic time.
_NUMBER = re.compile(r"[0-9]{1,9}", re.ASCII)
#: Words of second thoughts, after the keyword search of Liu et al. 2025 (arXiv 2503.20783).
_REFLECTION = re.compile(
    r"\b(?:wait\b|hold on\b|on second thought|double[- ]check|check again|think again|try again|"
    r"verify again|start over|re-?check|re-?think|re-?assess|re-?evaluat|re-?examin|re-?consider|"
    r"re-?analy[sz]|re-?verif)"
)


def reasoning_of(completion: str) -> str:
    """The text before the last ``</think>``, or after the first ``<think>`` where the reasoning was
    cut off."""
    before, end, _ = completion.rpartition("</think>")
    text = before if end else completion.partition("<think>")[2]
    return text.replace("<think>", "\n").replace("</think>", "\n")


def _claims(reasoning: str) -> Iterator[tuple[Claim, str, str]]:
    """(kind, event, the rest) of each line that claims something."""
    for line in map(str.strip, reasoning.split("\n")):
        name, sign, number = line.rpartition(" = ")
        if sign and _NUMBER.fullmatch(number):
            yield Claim.VALUE, name, number
            continue
        word, _, number = line.partition(" ")
        if word == "Total" and _NUMBER.fullmatch(number):
            yield Claim.TOTAL, "", number
            continue
        name, sign, rival = line.partition(" overlaps ")
        if sign:
            yield Claim.OVERLAP, name, rival
            continue
        name, sign, kind = line.rpartition(" breaks ")
        if sign:
            yield Claim.RULE, name, kind


def check_trace(problem: Problem, completion: str) -> Trace:
    """Read the claims of a completion's reasoning and check each against the problem.

    A rule is broken as ``data.prompts.trace`` means it: by the event beside those that the
    reasoning keeps. A total is true when it is the weighted minutes of the events kept.
    """
    claims = list(_claims(reasoning_of(completion)))
    said = {name: int(number) for kind, name, number in claims if kind == Claim.VALUE}
    events = problem.by_name
    kept = sorted(events[name] for name in said if name in events)
    total = problem.objective(kept)

    @cache
    def breaks(name: str, kind: str) -> bool:
        return _breaks(problem, kept, events[name], kind)

    def truth(kind: Claim, name: str, rest: str) -> Truth:
        if kind == Claim.TOTAL:
            return _truth(len(kept) == len(said) and int(rest) == total)
        if name not in events:
            return Truth.UNKNOWN
        if kind == Claim.VALUE:
            return _truth(int(rest) == problem.value[name])
        if kind == Claim.OVERLAP and rest in events:
            return _truth(name != rest and events[name].overlaps(events[rest]))
        if kind == Claim.RULE and rest in KINDS:
            return _truth(breaks(name, rest))
        return Truth.UNKNOWN

    schedule = parse(completion)
    totals = [int(number) for kind, _, number in claims if kind == Claim.TOTAL]
    follows = None
    if said and not isinstance(schedule, ParseFailure):
        follows = said.keys() == {event.name for event in schedule}
    return Trace(
        Counter((claim[0], truth(*claim)) for claim in claims),
        adds_up=totals[-1] == sum(said.values()) if totals else None,
        follows=follows,
    )


def _truth(holds: bool) -> Truth:
    return Truth.TRUE if holds else Truth.FALSE


def _breaks(problem: Problem, kept: Sequence[Event], event: Event, kind: str) -> bool:
    """Whether a rule of this kind is violated in a new way when ``event`` joins ``kept``."""
    without = [other for other in kept if other != event]
    together = sorted([*without, event])
    return any(
        set(rule.violations(together)) - set(rule.violations(without))
        for rule in problem.rules
        if rule.kind == kind
    )


def reflections(problem: Problem, completion: str) -> set[str]:
    """The words of second thoughts before the schedule, except those in the names of events."""
    before, opening, after = completion.rpartition("<schedule>")
    text = before if opening else after
    names = "\n".join(problem.by_name).lower()
    return set(_REFLECTION.findall(text.lower())) - set(_REFLECTION.findall(names))


def reasoning_report(
    problems: Mapping[str, Problem],
    rows: Iterable[AnsweredRow],
    seed: int,
    resamples: int = RESAMPLES,
) -> dict[str, object]:
    """How true and how useful one arm's reasoning on one tier is, ready for JSON.

    Shares are means over problems with intervals that resample problems; the same seed gives all
    arms the same resamples. A share is None where some resample has nothing to take it of. A model
    may reflect more on harder problems, so ``within_problem`` compares success with and without
    reflection on the problems that have both.

    Args:
        rows: one or more of each problem.
    """
    answers: dict[str, Counter[tuple[str, bool]]] = {name: Counter() for name in problems}
    for row in rows:
        answers[row["id"]][row["completion"], row["status"] == Status.OPTIMAL] += 1
    counts: dict[str, NDArray[np.float64]] = defaultdict(lambda: np.zeros(len(problems)))
    keywords: Counter[str] = Counter()
    for i, (name, texts) in enumerate(answers.items()):
        for (text, optimal), times in texts.items():
            words = reflections(problems[name], text)
            keywords.update(dict.fromkeys(words, times))
            for column in _columns(check_trace(problems[name], text), text, bool(words), optimal):
                counts[column][i] += times
    return _Shares(counts, np.random.default_rng(seed), resamples).report(keywords)


def _columns(trace: Trace, text: str, reflects: bool, optimal: bool) -> Iterator[str]:
    """The columns that one answer counts in, each claim once."""
    if reasoning_of(text).strip():
        yield "reasoning"
    for (kind, truth), count in trace.claims.items():
        yield from [f"{kind} {truth}"] * count
    wrong = trace.count(Truth.FALSE) + trace.count(Truth.UNKNOWN)
    soundness = "untraced" if not trace.claims else "unsound" if wrong else "sound"
    for group in ("answers", soundness, "reflecting" if reflects else "unreflecting"):
        yield group
        if optimal:
            yield f"{group} optimal"
    for name in ("adds_up", "follows"):
        if (holds := getattr(trace, name)) is not None:
            yield f"{name} {holds}"


class _Shares:
    """Counts by problem, ``{column: [problems]}``, and the estimates made of them."""

    def __init__(
        self, counts: Mapping[str, NDArray[np.float64]], rng: np.random.Generator, resamples: int
    ) -> None:
        self.counts, self.rng, self.resamples = counts, rng, resamples
        self.answers = counts["answers"]
        self.indices = bootstrap_indices(len(self.answers), resamples, rng)

    def share(self, of: Sequence[str], among: Sequence[str]) -> dict[str, float] | None:
        """Every problem weighs the same, however often it was asked."""
        part, whole = (
            np.sum([self.counts[name] for name in names], axis=0) / self.answers
            for names in (of, among)
        )
        [estimate] = ratio_interval(part[:, None], whole[:, None], self.indices)
        return None if estimate is None else estimate.to_json()

    def holding(self, name: str) -> dict[str, float] | None:
        return self.share([f"{name} True"], [f"{name} True", f"{name} False"])

    def group(self, name: str) -> dict[str, object]:
        return {
            "answers": int(self.counts[name].sum()),
            "share": self.share([name], ["answers"]),
            "optimal": self.share([f"{name} optimal"], [name]),
        }

    def within_problem(self, a: str, b: str) -> dict[str, float] | None:
        both = (self.counts[a] > 0) & (self.counts[b] > 0)
        if not both.any():
            return None
        of_a, of_b = (
            self.counts[f"{name} optimal"][both] / self.counts[name][both] for name in (a, b)
        )
        indices = bootstrap_indices(int(both.sum()), self.resamples, self.rng)
        [estimate] = mean_interval((of_a - of_b)[:, None], indices, bounds=(-1.0, 1.0))
        return estimate.to_json()

    def claims(self, kind: Claim) -> dict[str, object]:
        true, false, unknown = (f"{kind} {truth}" for truth in Truth)
        return {
            "made": int(sum(self.counts[name].sum() for name in (true, false, unknown))),
            "true": self.share([true], [true, false]),
            "unknown": self.share([unknown], [true, false, unknown]),
        }

    def report(self, keywords: Counter[str]) -> dict[str, object]:
        return {
            "problems": len(self.answers),
            "answers": int(self.answers.sum()),
            "reasoning": self.share(["reasoning"], ["answers"]),
            "claims": {str(kind): self.claims(kind) for kind in Claim},
            "adds_up": self.holding("adds_up"),
            "follows": self.holding("follows"),
            **{name: self.group(name) for name in ("sound", "unsound", "untraced")},
            "sound_minus_unsound": self.within_problem("sound", "unsound"),
            "reflection": {
                "keywords": dict(keywords.most_common()),
                "with": self.group("reflecting"),
                "without": self.group("unreflecting"),
                "within_problem": self.within_problem("reflecting", "unreflecting"),
            },
        }
