"""The conclusion: did reinforcement learning elicit what the base could do, or teach something new?

The rule, written down before any data. Every condition is about an interval, never about a point;
"gain over X" is the paired difference of pass@1, tuned - X; margins are those of ``Margins``.

    1  beyond the base                                  low > new
       and beyond format-only and the SFT start alike   low > new      -> new capability
       but not beyond format-only                       high < least   -> format only
       but not beyond the SFT start                     high < least   -> distilled
       and nothing of these can be said                                -> inconclusive
    2  gain over the base                               high < gain    -> inconclusive (no gain)
                                                        low <= 0       -> inconclusive
    3  gain over format-only, where that arm is there   high < gain    -> format only
                                                        low <= 0       -> inconclusive
    4  gain over the SFT start, where that arm is there high < gain    -> distilled
                                                        low <= 0       -> inconclusive
    5  perhaps beyond the base                          high >= reach  -> inconclusive
    6  pass@n, tuned - base            low <= -narrowed and high < 0   -> elicited and narrowed
                                       otherwise                       -> elicited

The first line that holds decides; ``least`` is ``reach``, or the low end of "beyond the base" where
that is less, so that the other arm must be seen to explain it.

**Beyond X** is a share of problems. One counts when X missed it in its n samples, was asked again
with new seeds and missed it in all m confirmation samples too, and the tuned arm, on confirmation
samples of its own, is right so often that it has a ``certificate``: neither X sharpened up to
``lift`` times over nor blind guessing would come by that and X's misses together on more than
``luck`` of the problems. From each problem that X missed, the chance of one blind guess is taken
off, so that a guess made once and kept to is no skill; and from the share, the control, base
against base: problems missed at first that base's own fresh samples would have certified. So "new
capability" rests on confirmation samples, has base against base as its null, holds at large k
against the base at its best (missed by ``base`` and by ``base_best``), and says "not reachable
within n + m samples". It never says out of reach: a base that would need thousands of samples
cannot be told from one that never succeeds, nor new skill from sharpening far beyond ``lift``.

A sum of gains and losses would not do here. Problems on which the base still has a little luck, or
guessing more than the tuned arm, would be set against the new ones and hide them; so each problem
is counted by itself, and what chance may count is bounded for each.

**Perhaps beyond the base** asks less, since "elicited" is a claim as well and needs evidence: it is
the share of problems that the base missed in all n + m samples, each with the tuned arm's chance,
guessing removed, of solving it within ``tries``, a ``lift``-th of m. At most ``reach`` may be so.

"No change" is no conclusion of its own: the question is what a gain consists of, and without a gain
nothing answers it; the reason says whether a gain was ruled out or the data are too few.

Several tiers are several chances of a false discovery. "New capability" is tested with Holm's
correction over the tiers and the pooled problems, each at one-sided ``(1 - level) / 2``, so the
chance of any false one in a report stays below that. The other conclusions claim nothing new and
are not corrected. Overall: new capability where some tier or the pool has it, else the rule on the
problems of all tiers together.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import ArrayLike

from data.sections import Margins
from eval.stats.estimate import Estimate, cell
from eval.stats.passk import floor_at


class Conclusion(StrEnum):
    """What training did."""

    NEW = "new capability"
    NARROWED = "elicited and narrowed"
    ELICITED = "elicited"
    DISTILLED = "distilled"
    FORMAT = "format only"
    INCONCLUSIVE = "inconclusive"


@dataclass(frozen=True)
class Budget:
    """How many samples each condition is about; 0 where there are no confirmation samples.

    Attributes:
        n: samples of every arm, the k of narrowing.
        tries: of the tuned arm, for what is perhaps beyond the base.
        reach: samples in which the base missed what is called not reachable, n + m.
        fresh: confirmation samples of the tuned arm, of which ``needed`` (the median over problems)
            must be right for a certificate.
        guessed, guessed_n: share of problems that blind guessing solves within ``tries``, and n.
    """

    n: int
    tries: int
    reach: int
    fresh: int
    needed: int
    guessed: float | None
    guessed_n: float


def tries_for(m: int, most: int, guess: ArrayLike, margins: Margins) -> int:
    """Tries of the tuned arm, which has ``most``, against ``m`` of a reference: no more than
    ``lift`` and guessing (chance in one try, [problems]) allow, and at least 1. It depends on the
    problems and on how many samples there are, never on how they came out."""
    ks = np.arange(1, max(1, min(m // margins.lift, most)) + 1)
    return max(1, int((floor_at(guess, ks).mean(axis=0) <= margins.floor).sum()))


def is_new(estimates: Mapping[str, Estimate], margins: Margins) -> bool:
    """Whether line 1 finds a new capability. All its parts must hold, so nothing is corrected for
    there being several: a test that rejects only where each of its parts does has the level of each
    (Berger 1982, Technometrics 24:295).
    """
    beyond = [e for name, e in estimates.items() if name.startswith("beyond ")]
    return bool(beyond) and all(e.low > margins.new for e in beyond)


def decide(
    estimates: Mapping[str, Estimate],
    budget: Budget,
    margins: Margins,
    new: bool,
    who: str = "GRPO",
) -> tuple[Conclusion, str]:
    """The rule of this module's docstring: the conclusion and the deciding condition in words.

    Args:
        new: whether ``is_new`` holds at the level that the correction asks for.
        who: what the judged arm is called.
    """
    beyond = estimates.get("beyond base")
    if new:
        return Conclusion.NEW, (
            f"on {_share(beyond)} of problems {who} answers reliably (in {budget.needed} or more "
            f"of {budget.fresh} fresh tries) what was not reachable for base within {budget.reach} "
            f"samples, and what base sharpened {margins.lift} times over or guessing would not"
        )
    if beyond is not None and beyond.low > margins.new:
        return _not_new(estimates, margins)

    gain = estimates["gain over base"]
    if gain.high < margins.gain:
        what = "falls behind base" if gain.high < 0 else "gains nothing of weight over base"
        return Conclusion.INCONCLUSIVE, (
            f"{who} {what} at k = 1 ({_points(gain)}), so there is nothing to explain"
        )
    if gain.low <= 0:
        return Conclusion.INCONCLUSIVE, f"whether {who} gains at k = 1 is open ({_points(gain)})"
    for rival, conclusion in (("format_only", Conclusion.FORMAT), ("sft", Conclusion.DISTILLED)):
        over = estimates.get(f"gain over {rival}")
        if over is None:
            continue
        if over.high < margins.gain:
            return conclusion, (
                f"{who} gains {_points(gain)} over base at k = 1 but nothing of weight over "
                f"{_NAMES[rival]} ({_points(over)})"
            )
        if over.low <= 0:
            return Conclusion.INCONCLUSIVE, (
                f"{who} gains {_points(gain)} over base at k = 1; whether {_NAMES[rival]} explains "
                f"it is open ({_points(over)})"
            )
    perhaps = estimates.get("perhaps beyond base")
    if perhaps is None:
        return Conclusion.INCONCLUSIVE, (
            f"{who} gains {_points(gain)} over base at k = 1, but there are no confirmation "
            "samples to tell a skill of the base from a new one"
        )
    if perhaps.high >= margins.reach:
        return Conclusion.INCONCLUSIVE, (
            f"{who} gains {_points(gain)} over base at k = 1; whether all of it was reachable for "
            f"base is open: within {_tries(budget.tries)} it solves {_share(perhaps)} of problems "
            f"that base missed in all {budget.reach} samples"
        )
    within = (
        f"{who} gains {_points(gain)} over base at k = 1, and what it solves within "
        f"{_tries(budget.tries)} base reaches within {budget.reach} samples, but for at most "
        f"{perhaps.high:.1%} of problems"
    )
    large = estimates["large k"]
    if large.low <= -margins.narrowed and large.high < 0:
        return Conclusion.NARROWED, f"{within}; at k = {budget.n} it loses ({_points(large)})"
    return Conclusion.ELICITED, within


_NAMES = {"sft": "its SFT start", "format_only": "format-only training"}


def _not_new(estimates: Mapping[str, Estimate], margins: Margins) -> tuple[Conclusion, str]:
    """Beyond the base, yet not a new capability of reinforcement learning."""
    beyond = _share(estimates["beyond base"])
    least = min(margins.reach, estimates["beyond base"].low)
    for rival, conclusion in (("format_only", Conclusion.FORMAT), ("sft", Conclusion.DISTILLED)):
        over = estimates.get(f"beyond {rival}")
        if over is not None and over.high < least:
            return conclusion, (
                f"{beyond} of problems lie beyond base, but not beyond {_NAMES[rival]} "
                f"({_share(over)})"
            )
    open_ones = [
        _NAMES[rival]
        for rival in _NAMES
        if (over := estimates.get(f"beyond {rival}")) is not None and over.low <= margins.new
    ]
    if open_ones:
        return Conclusion.INCONCLUSIVE, (
            f"{beyond} of problems lie beyond base; whether {' and '.join(open_ones)} explains "
            "them is open"
        )
    return Conclusion.INCONCLUSIVE, (
        f"{beyond} of problems lie beyond base, which is not sure enough after the correction for "
        "the number of tiers"
    )


def notes_on(
    estimates: Mapping[str, Estimate], budget: Budget, margins: Margins, conclusion: Conclusion
) -> list[str]:
    notes: list[str] = []
    large = estimates["large k"]
    if conclusion == Conclusion.ELICITED and large.low <= -margins.narrowed:
        notes.append(f"whether it narrowed at k = {budget.n} is open ({_points(large)})")
    if conclusion == Conclusion.NEW and large.high < 0:
        notes.append(f"it also lost at k = {budget.n} ({_points(large)})")
    if budget.guessed_n > margins.floor:
        notes.append(
            f"blind guessing solves {budget.guessed_n:.1%} within {_tries(budget.n)}, so what was "
            "lost or kept at that k may be guessing"
        )
    if budget.guessed is not None and budget.guessed > margins.floor:
        notes.append(
            f"blind guessing solves {budget.guessed:.1%} within {budget.tries}: these problems "
            "leave little room to show a new capability"
        )
    if budget.needed > budget.fresh > 0:
        notes.append(
            f"{budget.reach} samples of the base and {budget.fresh} confirmation samples are too "
            f"few to tell any new capability from sharpening {margins.lift} times over"
        )
    return notes


def _tries(count: int) -> str:
    return "1 try" if count == 1 else f"{count} tries"


def _points(estimate: Estimate) -> str:
    return f"{cell(estimate.to_json(), '+')} points"


def _share(estimate: Estimate) -> str:
    return f"{cell(estimate.to_json())} %"
