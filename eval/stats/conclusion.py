"""The conclusion: did reinforcement learning elicit what the base could do, or teach something new?

The criterion, written down before any data. Every condition is about an interval, never about a
point; "gain over X" is the paired difference of pass@1, tuned - X; the margins are ``Margins``.

    1  beyond the base, format-only and the SFT start   low > new      -> new capability
       alike, no control is missing, and made common    low <= luck
    2  gain over the base, or over the SFT start        high < 0       -> worse
    3  beyond the base                                  low > new
       but not beyond format-only                       high < least   -> format only
       but not beyond the SFT start                     high < least   -> distilled
       and nothing of these can be said                                -> inconclusive
    4  gain over the base                               high < gain    -> inconclusive (no gain)
                                                        low <= 0       -> inconclusive
    5  gain over format-only, where that arm is there,  high < gain    -> format only
       else over the base's own answers in form
                                                        low <= 0       -> inconclusive
    6  gain over the SFT start, where that arm is there high < gain    -> distilled
                                                        low <= 0       -> inconclusive
    7  gain over a blind guess                          low <= 0       -> inconclusive
    8  perhaps beyond the base                          high >= reach  -> inconclusive
    9  pass@n, tuned - base            low <= -narrowed and high < 0   -> elicited and narrowed
                                       otherwise                       -> elicited

The first line that holds decides. ``least`` is ``reach``, or the low end of "beyond the base" where
that is less: the other arm must be seen to explain it.

**Controls**. A lower temperature, or the form of an answer learnt, can make a success common that
the base has once in millions. So nothing is called new without the base at its best
(``base_best``), nor without ``format_only``, unless it is known how often the base answered each
problem in form. Then "beyond form" counts only such misses, and "gain over form" is a gain over the
share of such answers that are right.

**Beyond X** is a share of problems. A problem counts when X missed it in its n samples, was asked
again with new seeds and missed it in all m confirmation samples too, and the tuned arm is right so
often on confirmation samples of its own that it has a ``certificate``: neither X sharpened up to
``lift`` times over nor blind guessing would come by that and X's misses together on more than
``luck`` of the problems. From each problem that X missed the chance of one blind guess is taken
off, so a guess made once and kept to is no skill. From the share the control is taken off, base
against base: problems missed at first that base's own fresh samples would have certified.

So "new capability" rests on confirmation samples, has base against base as its null, holds at large
k against the base at its best (missed by ``base`` and by ``base_best``), and says "not reachable
within n + m samples". It never says out of reach: a base that would need thousands of samples looks
like one that never succeeds, and sharpening beyond ``lift`` like a new skill. The reason says so.

Each problem is counted by itself, since a sum of gains and losses would let problems on which the
base has a little luck, or guesses more than the tuned arm, hide the new ones.

**Made common** is the share of problems that the base first missed and then solved once or twice
in its m confirmation samples, on which the tuned arm has a certificate: sharpened more than
``lift`` times. Where training does that, what the base missed may be of the same kind.

**Perhaps beyond the base** asks less, since "elicited" is a claim as well and needs evidence: the
share of problems that the base missed in all n + m samples, each with the tuned arm's chance of
solving it within ``tries``, a ``lift``-th of m; by skill or by a guess, as the base did neither. At
most ``reach`` may be so.

"No change" is no conclusion of its own: the question is what a gain consists of. The reason says
whether a gain was ruled out or the data are too few.

Several tiers are several chances of a false discovery. "New capability" is tested with Holm's
correction over the tiers and the pooled problems of an arm, at one-sided ``(1 - level) / 2``, of
which each of several judged arms gets an equal part (Bonferroni: an arm's conclusion does not hang
on another's). So the chance of any false one in the experiment stays below that. The other
conclusions claim nothing new and are not corrected. Overall: new capability where some tier
or the pool has it, else the criterion on the problems of all tiers together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum

from data.sections import Margins
from eval.stats.estimate import Estimate, cell


class Conclusion(StrEnum):
    """What training did."""

    NEW = "new capability"
    NARROWED = "elicited and narrowed"
    ELICITED = "elicited"
    DISTILLED = "distilled"
    FORMAT = "format only"
    WORSE = "worse"
    INCONCLUSIVE = "inconclusive"


#: Other explanations than the whole reward, in the order of the criterion: what a gain is where one
#: of them has it too, and its name in words.
_RIVALS = {
    "format_only": (Conclusion.FORMAT, "format-only training"),
    "sft": (Conclusion.DISTILLED, "its SFT start"),
}


@dataclass(frozen=True)
class SampleBudget:
    """How many samples each condition is about.

    Attributes:
        n: samples of every arm, the k of narrowing.
        tries: of the tuned arm, for what is perhaps beyond the base.
        reach: samples in which the base missed what is called not reachable, n + m.
        fresh: confirmation samples of the tuned arm, of which ``needed`` (the median over problems)
            must be right for a certificate.
        guessed, guessed_n, guessed_reach: share of problems that blind guessing solves within
            ``tries``, n and ``reach``.
        missing: controls that were not sampled, as the recipe names them.
    """

    n: int
    tries: int
    reach: int
    fresh: int
    needed: int
    guessed: float
    guessed_n: float
    guessed_reach: float
    missing: tuple[str, ...] = ()


@dataclass(frozen=True)
class Evidence:
    """What the criterion looks at.

    Attributes:
        estimates: every quantity with its interval: "gain over X" and "beyond X" for the base and
            each rival, "large k", "certified", "control" and "perhaps beyond base".
        budget: the samples behind them.
    """

    estimates: Mapping[str, Estimate]
    budget: SampleBudget

    def shows_new(self, margins: Margins) -> bool:
        """Whether line 1 holds, missing controls aside. All its parts must hold, so nothing is
        corrected for their number: a test that rejects only where each of its parts does has the
        level of each (Berger 1982, Technometrics 24:295)."""
        beyond = [e for name, e in self.estimates.items() if name.startswith("beyond ")]
        rare = self.estimates["made common"].low > margins.luck
        return not rare and all(e.low > margins.new for e in beyond)


#: A conclusion, and the condition that decided in words.
Decision = tuple[Conclusion, str]


def decide(evidence: Evidence, margins: Margins, new: bool, who: str = "GRPO") -> Decision:
    """The criterion of this module's docstring: the first line that holds.

    Args:
        new: whether ``shows_new`` holds at the level that the correction asks for.
        who: what the judged arm is called.
    """
    if new and not evidence.budget.missing:
        return _new_capability(evidence, margins, who)
    lines = (
        _worse,
        _explained_beyond_base,
        _no_sure_gain,
        _explained_gain,
        _no_better_than_guessing,
        _perhaps_out_of_reach,
        _elicited,
    )
    decisions = (line(evidence, margins, who) for line in lines)
    return next(decision for decision in decisions if decision is not None)


def _new_capability(evidence: Evidence, margins: Margins, who: str) -> Decision:
    budget = evidence.budget
    return Conclusion.NEW, (
        f"on {_share(evidence.estimates['beyond base'])} of problems {who} answers reliably (in "
        f"{budget.needed} or more of {budget.fresh} fresh tries) what was not reachable for base "
        f"within {budget.reach} samples, nor by guessing or by sharpening base up to "
        f"{margins.lift} times over; rarer successes, sharpened more, cannot be told from a new "
        "skill" + "".join(f"; yet it {loss}" for loss in _losses(evidence))
    )


def _losses(evidence: Evidence) -> list[str]:
    """What the arm surely lost at k = 1, in words."""
    gains = {
        "base": evidence.estimates["gain over base"],
        _RIVALS["sft"][1]: evidence.estimates.get("gain over sft"),
    }
    return [
        f"falls behind {name} at k = 1 ({_points(gain)})"
        for name, gain in gains.items()
        if gain is not None and gain.high < 0
    ]


def _worse(evidence: Evidence, margins: Margins, who: str) -> Decision | None:
    """Line 2: behind the base or its start, whatever else it shows."""
    losses = _losses(evidence)
    if not losses:
        return None
    beyond = _explained_beyond_base(evidence, margins, who)
    besides = f"; {beyond[1]}" if beyond else ""
    gain = evidence.estimates["gain over base"]
    if gain.low > 0:
        besides = f", though it gains {_points(gain)} over base{besides}"
    return Conclusion.WORSE, f"{who} {' and '.join(losses)}{besides}"


def _explained_beyond_base(evidence: Evidence, margins: Margins, who: str) -> Decision | None:
    """Line 3: beyond the base, yet not a new capability of reinforcement learning."""
    estimates = evidence.estimates
    base, rare, budget = estimates["beyond base"], estimates["made common"], evidence.budget
    if base.low <= margins.new:
        return None
    beyond = (
        f"{_share(base)} of problems lie beyond base, not reachable within {budget.reach} samples"
    )
    open_ones: list[str] = []
    for rival, (conclusion, name) in _RIVALS.items():
        over = estimates.get(f"beyond {rival}")
        if over is not None and over.high < min(margins.reach, base.low):
            return conclusion, f"{beyond}, but not beyond {name} ({_share(over)})"
        if over is not None and over.low <= margins.new:
            open_ones.insert(0, name)
    form, missing = estimates.get("beyond form"), budget.missing
    if form is not None and form.low <= margins.new:
        missing = (*missing, "format_only")
    if missing:
        why = f", but {_unasked(missing)}"
    elif rare.low > margins.luck:
        why = (
            f", but on {_share(rare)} {who} made reliable what base solved in one or two of its "
            "fresh tries: rare successes made common cannot be told from a new skill"
        )
    elif open_ones:
        why = f"; whether {' and '.join(open_ones)} explains them is open"
    else:
        why = ", which is not sure enough after the correction for the number of tiers and arms"
    return Conclusion.INCONCLUSIVE, f"{beyond}{why}"


#: Explanations that a missing control would rule out.
_CONTROLS = {
    "base_best": "a lower temperature or a better reading of base",
    "format_only": "the form of the answers",
}


def _unasked(missing: Sequence[str]) -> str:
    explanations = " and ".join(_CONTROLS[name] for name in missing)
    keys = " and ".join(f"conclusion.{name}" for name in missing)
    return f"whether {explanations} explains that was not asked: name an arm for it in {keys}"


def _no_sure_gain(evidence: Evidence, margins: Margins, who: str) -> Decision | None:
    """Line 4: no gain over the base, or none that is sure."""
    gain = evidence.estimates["gain over base"]
    if gain.high < margins.gain:
        why = (
            f"{who} gains nothing of weight over base at k = 1 ({_points(gain)}), so there is "
            "nothing to explain"
        )
    elif gain.low <= 0:
        why = f"whether {who} gains at k = 1 is open ({_points(gain)})"
    else:
        return None
    return Conclusion.INCONCLUSIVE, why


def _gained(evidence: Evidence, who: str) -> str:
    return f"{who} gains {_points(evidence.estimates['gain over base'])} over base at k = 1"


def _explained_gain(evidence: Evidence, margins: Margins, who: str) -> Decision | None:
    """Lines 5 and 6: a rival has the gain too, or may have it."""
    gained = _gained(evidence, who)
    in_form = {"form": (Conclusion.FORMAT, "base's own answers in form")}
    for rival, (conclusion, name) in (in_form | _RIVALS).items():
        over = evidence.estimates.get(f"gain over {rival}")
        if over is not None and over.high < margins.gain:
            return conclusion, f"{gained} but nothing of weight over {name} ({_points(over)})"
        if over is not None and over.low <= 0:
            why = f"{gained}; whether {name} explains it is open ({_points(over)})"
            return Conclusion.INCONCLUSIVE, why
    return None


def _no_better_than_guessing(evidence: Evidence, margins: Margins, who: str) -> Decision | None:
    """Line 7: a gain up to what a blind guess gives shows no skill."""
    over = evidence.estimates["over guessing"]
    if over.low > 0:
        return None
    what = "does not beat" if over.high < 0 else "is not sure to beat"
    why = f"{_gained(evidence, who)}, but {what} a blind guess there ({_points(over)})"
    return Conclusion.INCONCLUSIVE, why


def _perhaps_out_of_reach(evidence: Evidence, margins: Margins, who: str) -> Decision | None:
    """Line 8: the base may not have reached all of the gain."""
    perhaps, budget = evidence.estimates["perhaps beyond base"], evidence.budget
    if perhaps.high < margins.reach:
        return None
    also = ""
    if perhaps.value == 0:
        also = f"; {perhaps.n} problems are too few to say more"
    elif budget.missing:
        also = f"; {_unasked(budget.missing)}"
    return Conclusion.INCONCLUSIVE, (
        f"{_gained(evidence, who)}; whether all of it was reachable for base is open: on "
        f"{_share(perhaps)} of problems it solves within {_tries(budget.tries)} what base missed "
        f"in all {budget.reach} samples{also}"
    )


def _elicited(evidence: Evidence, margins: Margins, who: str) -> Decision:
    """Line 9: elicited, and narrowed where pass@n fell."""
    budget, large = evidence.budget, evidence.estimates["large k"]
    at_best = "" if "base_best" in budget.missing else ", as it is or at its best"
    within = (
        f"{_gained(evidence, who)}, and what it solves within {_tries(budget.tries)} is in reach "
        f"of base within {budget.reach} samples{at_best}, except on at most "
        f"{evidence.estimates['perhaps beyond base'].high:.1%} of problems"
    )
    if large.low <= -margins.narrowed and large.high < 0:
        return Conclusion.NARROWED, f"{within}; at k = {budget.n} it loses ({_points(large)})"
    return Conclusion.ELICITED, within


def notes_on(evidence: Evidence, margins: Margins, conclusion: Conclusion) -> list[str]:
    """What a reader must know beside a conclusion."""
    notes: list[str] = []
    large, missed = (evidence.estimates[name] for name in ("large k", "missed"))
    budget = evidence.budget
    if conclusion == Conclusion.ELICITED and large.low <= -margins.narrowed:
        notes.append(f"whether it narrowed at k = {budget.n} is open ({_points(large)})")
    if conclusion == Conclusion.NEW and large.high < 0:
        notes.append(f"it also lost at k = {budget.n} ({_points(large)})")
    elicited = conclusion in (Conclusion.ELICITED, Conclusion.NARROWED)
    if elicited and "format_only" in budget.missing:
        notes.append(_unasked(("format_only",)))
    if elicited and budget.guessed_reach > margins.floor:
        notes.append(
            f"blind guessing solves {budget.guessed_reach:.1%} within {_tries(budget.reach)} too, "
            "so that base reaches these problems does not by itself show the skill"
        )
    if budget.guessed_n > margins.floor:
        notes.append(
            f"blind guessing solves {budget.guessed_n:.1%} within {_tries(budget.n)}, so what was "
            "lost or kept at that k may be guessing"
        )
    if budget.guessed > margins.floor:
        notes.append(
            f"blind guessing solves {budget.guessed:.1%} within {_tries(budget.tries)}: these "
            "problems leave little room to show a new capability"
        )
    if budget.needed > budget.fresh > 0:
        notes.append(
            f"{budget.reach} samples of the base and {budget.fresh} confirmation samples are too "
            f"few to tell any new capability from sharpening {margins.lift} times over"
        )
    elif conclusion != Conclusion.NEW and missed.low <= margins.new:
        notes.append(
            f"base missed too few problems ({_share(missed)}, guessing aside) for even a perfect "
            "solver to show a new capability"
        )
    return notes


def _tries(count: int) -> str:
    return "1 try" if count == 1 else f"{count} tries"


def _points(estimate: Estimate) -> str:
    return f"{cell(asdict(estimate), '+')} points"


def _share(estimate: Estimate) -> str:
    return f"{cell(asdict(estimate))} %"
