"""The worth of an arm's reasoning before its answers: are its claims true, and does it reflect?"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict

import numpy as np
from numpy.typing import NDArray

from data.problem import Problem
from data.sections import RESAMPLES
from eval.answers.files import AnsweredRow
from eval.stats.estimate import bootstrap_weights, mean_interval, ratio_interval
from rewards.claims import Claim, Trace, Truth, check_trace
from rewards.parse import reasoning_of
from rewards.verify import Status

#: Words of second thoughts, after the keyword search of Liu et al. 2025 (arXiv 2503.20783).
_REFLECTION = re.compile(
    r"\b(?:wait\b|hold on\b|on second thought|double[- ]check|check again|think again|try again|"
    r"verify again|start over|re-?check|re-?think|re-?assess|re-?evaluat|re-?examin|re-?consider|"
    r"re-?analy[sz]|re-?verif)"
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
    """The truth and use of one arm's reasoning on one tier, ready for JSON.

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
    soundness = "untraced" if not trace.claims else "sound" if trace.sound else "unsound"
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
        self.weights = bootstrap_weights(len(self.answers), resamples, rng)

    def share(self, of: Sequence[str], among: Sequence[str]) -> dict[str, float] | None:
        """Every problem weighs the same, however often it was asked."""
        part, whole = (
            np.sum([self.counts[name] for name in names], axis=0) / self.answers
            for names in (of, among)
        )
        [estimate] = ratio_interval(part[:, None], whole[:, None], self.weights)
        return None if estimate is None else asdict(estimate)

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
        weights = bootstrap_weights(int(both.sum()), self.resamples, self.rng)
        [estimate] = mean_interval((of_a - of_b)[:, None], weights, bounds=(-1.0, 1.0))
        return asdict(estimate)

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
