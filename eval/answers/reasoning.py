"""What a model says before it answers: are its claims true, and does it reflect?

``data.prompts.trace`` writes reasoning in which every claim can be checked. The same claims are
read here out of any model's reasoning and held against the problem. What is hostile in model text
costs no more than its length: lines are cut at fixed words, and each claim about a rule is checked
once.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.event import Event
from data.problem import Problem
from data.rules import KINDS
from data.sections import RESAMPLES
from eval.stats.estimate import bootstrap_indices, mean_interval, ratio_interval
from rewards.parse import ParseFailure, parse
from rewards.verify import Status


class Claim(StrEnum):
    """What a line of reasoning may claim, in the forms of ``data.prompts.trace``."""

    VALUE = "value"  # NAME = weighted minutes; says too that the event is kept
    OVERLAP = "overlap"  # NAME overlaps RIVAL
    RULE = "rule"  # NAME breaks kind of rule
    TOTAL = "total"  # Total weighted minutes


class Truth(StrEnum):
    """UNKNOWN: the claim is about an event that the day does not have, or no kind of rule."""

    TRUE = "true"
    FALSE = "false"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Trace:
    """The reasoning of one answer, checked.

    Attributes:
        claims: how many claims of each kind have each truth.
        adds_up: whether the total is the sum of the values claimed, true or not; None without one.
        follows: whether the answer has the very events that the reasoning keeps; None where it
            keeps none, or no schedule can be read.
    """

    claims: Counter[tuple[Claim, Truth]]
    adds_up: bool | None
    follows: bool | None

    def count(self, truth: Truth) -> int:
        return sum(count for (_, found), count in self.claims.items() if found == truth)


#: Longer numbers are no claim (and Python converts very long ones in quadratic time).
_NUMBER = re.compile(r"[0-9]{1,9}", re.ASCII)
#: Words of second thoughts, after the keyword search of Liu et al. 2025 (arXiv 2503.20783).
_REFLECTION = re.compile(
    r"\b(?:wait\b|hold on\b|on second thought|double[- ]check|check again|think again|try again|"
    r"verify again|start over|re-?check|re-?think|re-?assess|re-?evaluat|re-?examin|re-?consider|"
    r"re-?analy[sz]|re-?verif)"
)


def reasoning_of(completion: str) -> str:
    """What stands before the answer: up to the last ``</think>``, or of reasoning that was cut off
    what there is."""
    before, end, _ = completion.rpartition("</think>")
    text = before if end else completion.partition("<think>")[2]
    return text.replace("<think>", "\n").replace("</think>", "\n")


def _claims(reasoning: str) -> Iterator[tuple[Claim, str, str]]:
    """(kind, whom it is about, what is said of it) of each line that claims something."""
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
    found = list(_claims(reasoning_of(completion)))
    said = {name: int(number) for kind, name, number in found if kind == Claim.VALUE}
    kept = sorted(problem.by_name[name] for name in said if name in problem.by_name)
    total = problem.objective(kept)

    @cache
    def breaks(name: str, kind: str) -> bool:
        return _breaks(problem, kept, problem.by_name[name], kind)

    def truth(kind: Claim, name: str, rest: str) -> Truth:
        if kind == Claim.TOTAL:
            return _truth(len(kept) == len(said) and int(rest) == total)
        known = name in problem.by_name
        if kind == Claim.VALUE:
            return _truth(int(rest) == problem.value[name]) if known else Truth.UNKNOWN
        if kind == Claim.OVERLAP and known and rest in problem.by_name:
            a, b = problem.by_name[name], problem.by_name[rest]
            return _truth(name != rest and a.overlaps(b))
        if kind == Claim.RULE and known and rest in KINDS:
            return _truth(breaks(name, rest))
        return Truth.UNKNOWN

    schedule = parse(completion)
    readable = not isinstance(schedule, ParseFailure)
    totals = [int(number) for kind, _, number in found if kind == Claim.TOTAL]
    return Trace(
        Counter((claim[0], truth(*claim)) for claim in found),
        totals[-1] == sum(said.values()) if totals else None,
        said.keys() == {event.name for event in schedule} if said and readable else None,
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
    """The words of second thoughts before the schedule, those aside that an event's name has."""
    before, opening, after = completion.rpartition("<schedule>")
    text = before if opening else after
    names = "\n".join(problem.by_name).lower()
    return set(_REFLECTION.findall(text.lower())) - set(_REFLECTION.findall(names))


def reasoning_report(
    problems: Mapping[str, Problem],
    rows: Iterable[Mapping[str, Any]],
    seed: int,
    resamples: int = RESAMPLES,
) -> dict[str, Any]:
    """What one arm's reasoning on one tier is worth, ready for JSON.

    Shares are means over problems with intervals that resample problems; the same seed gives all
    arms the same resamples. None where some resample has nothing to take the share of. Who reflects
    may do so on harder problems, so ``within_problem`` compares success with and without it on the
    problems that have both.

    Args:
        rows: verdicts ``{id, status, answer}`` as ``eval.answers.judge.judge_arm`` yields them; each
            problem needs one or more.
    """
    answers: dict[str, Counter[tuple[str, bool]]] = {name: Counter() for name in problems}
    for row in rows:
        answers[row["id"]][row["answer"], row["status"] == Status.OPTIMAL] += 1
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
    """What one answer counts in, each claim once."""
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
    """Counts by problem, ``{what: [problems]}``, and the estimates made of them."""

    def __init__(
        self, counts: Mapping[str, NDArray[np.float64]], rng: np.random.Generator, resamples: int
    ) -> None:
        self.counts, self.rng, self.resamples = counts, rng, resamples
        self.answers = counts["answers"]
        self.indices = bootstrap_indices(len(self.answers), resamples, rng)

    def share(self, of: Sequence[str], among: Sequence[str]) -> dict[str, Any] | None:
        """Every problem weighs the same, however often it was asked."""
        part, whole = (
            sum(self.counts[name] for name in names)[:, None] / self.answers[:, None]
            for names in (of, among)
        )
        [found] = ratio_interval(part, whole, self.indices)
        return None if found is None else found.to_json()

    def holding(self, name: str) -> dict[str, Any] | None:
        return self.share([f"{name} True"], [f"{name} True", f"{name} False"])

    def group(self, name: str) -> dict[str, Any]:
        return {
            "answers": int(self.counts[name].sum()),
            "share": self.share([name], ["answers"]),
            "optimal": self.share([f"{name} optimal"], [name]),
        }

    def within_problem(self, a: str, b: str) -> dict[str, Any] | None:
        both = (self.counts[a] > 0) & (self.counts[b] > 0)
        if not both.any():
            return None
        of_a, of_b = (
            self.counts[f"{name} optimal"][both] / self.counts[name][both] for name in (a, b)
        )
        indices = bootstrap_indices(int(both.sum()), self.resamples, self.rng)
        [found] = mean_interval((of_a - of_b)[:, None], indices, bounds=(-1.0, 1.0))
        return found.to_json()

    def claims(self, kind: Claim) -> dict[str, Any]:
        true, false, unknown = (f"{kind} {truth}" for truth in Truth)
        return {
            "made": int(sum(self.counts[name].sum() for name in (true, false, unknown))),
            "true": self.share([true], [true, false]),
            "unknown": self.share([unknown], [true, false, unknown]),
        }

    def report(self, keywords: Counter[str]) -> dict[str, Any]:
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
