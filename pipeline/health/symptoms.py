"""The table of what can be wrong with an SFT or GRPO training, as far as its log tells.

RULES has one entry a symptom: who has it, what it is called, what causes it, what to change, and
who says so. A rule looks at signals by the names of ``pipeline.health.signals.SIGNALS``, holds them
against its ``THRESHOLDS``, and is silent where one is missing. ``pipeline.health.diagnosis`` runs the rules.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from statistics import fmean, median, stdev

from pipeline.health.signals import GRPO, NO_SPREAD, SFT, Signals
from pipeline.health.trends import FIRST, RECENT, constant, falls, most_gained, rises, thirds


class Level(StrEnum):
    """How bad: end the run, look at it, or nothing but good to know."""

    STOP = "stop"
    WARNING = "warning"
    NOTE = "note"


#: What a rule saw: how bad it is and the numbers in words.
Seen = tuple[Level, str]


def dead(s: Signals) -> bool:
    """Whether most groups teach nothing, which would explain all else that does not move."""
    return zero_variance(s) is not None


def lost(s: Signals) -> Seen | None:
    """A loss is lost at once; a gradient norm when it stays so."""
    if s.lost_loss:
        return Level.STOP, "the loss is not a finite number"
    if s.lost_norm >= s.thresholds.bad_rows:
        return Level.STOP, f"no finite gradient norm in {s.lost_norm} rows in a row"
    return None


def untrained(s: Signals) -> Seen | None:
    """A norm that is 0 while something improves was not measured."""
    t = s.thresholds
    rates, norms = s["learning rate"].last(t.rows), s["gradient norm"].last(2 * t.rows)
    if len(rates) == t.rows and not any(rates):
        return Level.STOP, f"the learning rate was 0 in the last {t.rows} rows"
    if len(norms) < 2 * t.rows or any(norms) or dead(s) or s.learns():
        return None
    if falls(s["loss"].whole()) <= t.sure:
        return None
    return Level.STOP, f"the gradient norm was 0 in the last {len(norms)} rows that had one"


def spikes(s: Signals) -> Seen | None:
    t = s.thresholds
    norms = s["gradient norm"].last(RECENT)
    if len(norms) < 2 * t.rows:
        return None
    usual, last = median(norms), norms[-2 * t.rows :]
    high = [norm for norm in last if norm > t.spike * usual]
    if len(high) < t.spikes:
        return None
    return Level.WARNING, (
        f"{len(high)} of the last {len(last)} rows have a gradient norm above {t.spike:g} times "
        f"the usual {usual:.3g}, up to {max(high):.3g}"
    )


def kl_flat(s: Signals) -> Seen | None:
    """None at all, or little that has stopped to grow."""
    t = s.thresholds
    if not s.long("KL") or (kl := s["KL"].now(t.rows)) > t.kl_slow or s.solved():
        return None
    # A KL that stands says enough: a rise by chance, one in ten, is no reason to be silent.
    if s.learns(t.firm) or dead(s):
        return None
    values = s["KL"].whole()
    if not any(values):  # what a trainer writes that does not measure it
        return None
    if kl > t.kl_flat and most_gained(values[len(values) // 2 :], t.level) > t.kl_still * kl:
        return None
    rate = s["learning rate"]
    paid = f" at a learning rate of {rate.now(1):.2g}" if rate.count else ""
    little = f"up to {t.kl_flat:g} is none" if kl <= t.kl_flat else "little, and it stands still"
    return Level.WARNING, (
        f"after {s['KL'].steps[1]} steps the KL is {kl:.1e} nats a token ({little}){paid}, and the "
        "reward does not rise"
    )


def kl_slow(s: Signals) -> Seen | None:
    t, series = s.thresholds, s["KL"]
    if not s.long("KL") or series.steps[1] - series.steps[0] < t.kl_slow_steps:
        return None
    kl = series.now(t.rows)
    if not t.kl_flat < kl <= t.kl_slow or s.solved() or s.learns(t.firm) or dead(s):
        return None
    return Level.WARNING, (
        f"after {series.steps[1]} steps the KL is {kl:.1e} nats a token (up to {t.kl_slow:g} is "
        "little), and the reward does not rise"
    )


def kl_runaway(s: Signals) -> Seen | None:
    t, series = s.thresholds, s["KL"]
    # So far no sample strays twice: measured every few steps, more would come late.
    if series.count > 1 and (kl := min(series.last(2))) >= t.kl_far:
        level = Level.STOP if kl >= t.kl_lost else Level.WARNING
        return level, f"the KL is {kl:.3g} nats a token and more (far is {t.kl_far:g})"
    if series.count < t.now or (kl := series.now(t.now)) < t.kl_least:
        return None
    before = series.last(t.now + t.rows)[: -t.now]
    if len(before) < t.rows or kl < t.kl_jump * median(before):
        return None
    return Level.WARNING, (
        f"the KL went from {median(before):.3g} to {kl:.3g} nats a token within "
        f"{t.now + t.rows} rows"
    )


def plateau(s: Signals) -> Seen | None:
    """In units of the spread of single rewards, whatever their scale."""
    t = s.thresholds
    if not s.long("reward") or s.solved():
        return None
    name, unit = _progress(s)
    values = s[name].whole()
    if len(values) < t.many or unit <= 0:
        return None
    early, late = thirds(values)
    if max(late - early, 0) >= t.plateau * unit:
        return None
    start = s[name].start(t.start)
    most = max(0.0, most_gained(values, t.level))
    if late - start >= t.gained * unit or most >= t.plateau * unit or s.learns() or dead(s):
        return None
    return Level.WARNING, (
        f"{name} {start:.3g} in the first rows, {late:.3g} in the last third of {s[name].count} "
        f"(step {s[name].steps[1]}); that it gained {most / unit:.2f} of its spread of {unit:.2g} "
        "can be ruled out"
    )


def _progress(s: Signals) -> tuple[str, float]:
    """The signal that shows progress, and the spread of single answers. Where answers are paid by
    comparison with their group the mean reward never moves, and the truth is looked at."""
    t, name, truth = s.thresholds, "reward", s["truth"]
    if not constant(s["reward"].whole()):
        return name, s["reward spread"].now(t.now) if s["reward spread"].count else 0.0
    if not truth.count:
        return name, 0.0
    return "truth", math.sqrt(max(0.0, truth.now(t.now) * (1 - truth.now(t.now))))


def reward_falls(s: Signals) -> Seen | None:
    t = s.thresholds
    if s["reward"].count < t.rows or not s["reward spread"].count:
        return None
    values, unit = s["reward"].whole(), max(s["reward spread"].last(RECENT))
    early, late = thirds(values)
    if unit <= 0 or early - late < t.lost * unit or falls(values) > t.firm:
        return None
    return Level.WARNING, (
        f"from the first to the last third of {s['reward'].count} rows, reward {early:.3g} → "
        f"{late:.3g}, by chance with p = {falls(values):.1g}"
    )


def hacking(s: Signals) -> Seen | None:
    """The reward rises while the share of right answers falls, or surely stands still."""
    t = s.thresholds
    if min(s["reward"].count, s["truth"].count) < t.rows or s.solved():
        return None
    spread = s["reward spread"].now(t.now) if s["reward spread"].count else 0.0
    for paid, true in (
        (s["reward"].whole(), s["truth"].whole()),
        (s["reward"].last(RECENT), s["truth"].last(RECENT)),
    ):
        (reward, more), (truth, less) = thirds(paid), thirds(true)
        gain, loss = more - reward, truth - less
        if loss < 0 or gain <= t.paid * spread or constant(paid):
            continue
        words = (
            f"from the first to the last third of {len(paid)} points, reward {reward:.3g} → "
            f"{more:.3g}, right answers {truth:.1%} → {less:.1%}"
        )
        if loss >= t.fallen * truth > 0:
            p = max(rises(paid), falls(true))
            if p <= t.sure:
                level = Level.STOP if p <= t.firm else Level.WARNING
                return level, f"{words}; each by chance with p of at most {p:.1g}"
        elif s.long("reward") and spread > 0 and rises(paid) <= t.firm:
            unit = math.sqrt(max(truth * (1 - truth), 1e-6))
            most = min(t.form, t.little * gain / spread * unit)
            little = most_gained(true, t.level) <= most
            if little and form_alone(s) is None:
                return Level.WARNING, f"{words}: no sure fall, but surely no rise"
    return None


def truth_falls(s: Signals) -> Seen | None:
    """Where the reward rises too it is hacking, where it falls a reward that falls. Val tells
    harder problems along the way from a worse policy."""
    t = s.thresholds
    if not s.long("truth") or s.solved():
        return None
    values = s["truth"].whole()
    early, late = thirds(values)
    if late > (1 - t.fallen) * early or falls(values) > t.sure * t.firm:
        return None
    if hacking(s) or reward_falls(s):
        return None
    val = s["val truth"]
    if val.count and val.now(t.start) >= val.start(t.start):
        return None
    words = f"right answers {early:.1%} in the first third of {s['truth'].count} rows, {late:.1%}"
    if s["reward"].count >= t.many:
        words += " in the last; reward {:.3g} → {:.3g}".format(*thirds(s["reward"].whole()))
    return Level.WARNING, words


def form_alone(s: Signals) -> Seen | None:
    return _form_alone(s, "form") or _form_alone(s, "format")


def _form_alone(s: Signals, name: str) -> Seen | None:
    t = s.thresholds
    if not s.long(name) or not s.long("truth") or s.solved():
        return None
    formed, true = s[name].whole(), s["truth"].whole()
    (form, more), (truth, late) = thirds(formed), thirds(true)
    if more - form < t.form or late - truth > t.little * (more - form):
        return None
    most = min(t.form, t.little * (more - form))
    if rises(formed) > t.firm or most_gained(true, t.level) > most:
        return None
    return Level.WARNING, (
        f"from the first to the last third of {s[name].count} rows, well-formed answers "
        f"{form:.1%} → {more:.1%}, right ones {truth:.1%} → {late:.1%}"
    )


def zero_variance(s: Signals) -> Seen | None:
    """A mean with its error: of a few groups a step the share jumps between 0 and 1."""
    t = s.thresholds
    shares = s["flat groups"].last(2 * t.rows)
    if not shares:  # TRL of before that signal
        shares = [float(spread <= NO_SPREAD) for spread in s["reward spread"].last(2 * t.rows)]
    if len(shares) < t.rows:
        return None
    share = fmean(shares)
    if share - t.errors * stdev(shares) / math.sqrt(len(shares)) < t.flat_groups:
        return None
    truth = f"; right answers: {s['truth'].now(t.rows):.1%}" if s["truth"].count else ""
    hopeless = share >= t.dead_groups and not s.solved()
    return Level.STOP if hopeless else Level.WARNING, (
        f"{share:.0%} of the groups have equal rewards (mean of the last {len(shares)} rows), so "
        f"they teach nothing{truth}"
    )


def entropy_collapse(s: Signals) -> Seen | None:
    t, series = s.thresholds, s["entropy"]
    if series.count < 2 * t.start:
        return None
    rows = max(t.start, min(t.rows, series.count // 4))
    now, start = series.now(rows), series.start(min(rows, FIRST))
    before = series.ago(t.entropy_steps, rows)
    words = ""
    if 0 < now <= t.entropy_left * start:
        words = f"entropy {start:.3g} → {now:.3g} nats a token since the start"
    elif before and 0 < now <= t.entropy_halved * before:
        words = f"entropy {before:.3g} → {now:.3g} nats a token within {t.entropy_steps} steps"
    if not words:
        return None
    if s["answer length"].count > t.start:
        length = s["answer length"]
        words += f"; answers {length.start(t.start):.0f} → {length.now(t.start):.0f} tokens"
    if s["duplicates"].count >= t.start:
        words += f"; {s['duplicates'].now(t.start):.0%} of the answers equal another of their group"
    return Level.WARNING, words


def entropy_rises(s: Signals) -> Seen | None:
    t, series = s.thresholds, s["entropy"]
    if series.count < 2 * t.start:
        return None
    now, start = series.now(t.start), series.start(t.start)
    if now < max(t.entropy_risen * start, start + t.entropy_more):
        return None
    words = f"entropy {start:.3g} → {now:.3g} nats a token since the start"
    if s["reward"].count >= t.start:
        words += f"; reward {s['reward'].start(t.start):.3g} → {s['reward'].now(t.start):.3g}"
    return Level.WARNING, words


def entropy_flat(s: Signals) -> Seen | None:
    t, series = s.thresholds, s["entropy"]
    if series.count < t.rows or s.solved():
        return None
    start, now = series.start(t.start), series.now(t.now)
    if 0 <= max(start, now) <= t.entropy_none:
        if s.learns():
            return None
        return Level.WARNING, (
            f"entropy {now:.2g} nats a token from the start (up to {t.entropy_none:g} is none): "
            "all answers to a prompt are nearly the same"
        )
    if not s.long("entropy") or not s["reward"].count or start <= 0:
        return None
    if abs(now / start - 1) > t.entropy_same:
        return None
    values = series.whole()
    most = max(most_gained(values, t.level), most_gained([-value for value in values], t.level))
    if most > 3 * t.entropy_same * start or s.learns() or dead(s):
        return None
    return Level.WARNING, (
        f"entropy {start:.3g} → {now:.3g} nats a token in {series.steps[1]} steps, surely no "
        "trend, and the reward does not rise"
    )


def truncation(s: Signals) -> Seen | None:
    t = s.thresholds
    cut = s["answers cut off"]
    if cut.count < t.now or (share := cut.now(t.now)) < t.cut_off:
        return None
    return Level.WARNING, f"{share:.0%} of the answers are cut off (median of {t.now} rows)"


def train_val_gap(s: Signals) -> Seen | None:
    t, val = s.thresholds, s["val truth"]
    if val.count < t.val_points or s["truth"].count < t.rows:
        return None
    # Over the same steps: val is measured seldom, and first when much may have been learnt.
    train = s["truth"].between(*val.at_end(t.start)) - s["truth"].between(*val.at_start(t.start))
    held = val.now(t.start) - val.start(t.start)
    if train <= 0 or train - held < t.gap:
        return None
    return Level.WARNING, (
        f"since val was first measured, right answers {100 * train:+.1f} points on training "
        f"problems, {100 * held:+.1f} on val"
    )


def overfitting(s: Signals) -> Seen | None:
    t, val = s.thresholds, s["val loss"]
    if val.count < t.val_points or s["loss"].count < t.start:
        return None
    points, now = val.last(RECENT), val.now(t.start)
    lowest = _lowest(points[: -t.start], t.start)
    if lowest <= 0 or now < (1 + t.val_loss) * lowest:
        return None
    if s["loss"].now(t.start) >= s["loss"].start(t.start):
        return None
    return Level.WARNING, (
        f"loss on val {lowest:.3g} at its lowest, {now:.3g} now; in training "
        f"{s['loss'].start(t.start):.3g} → {s['loss'].now(t.start):.3g}"
    )


def _lowest(values: Sequence[float], rows: int) -> float:
    """The lowest median of so many neighbours."""
    return min(median(values[i : i + rows]) for i in range(len(values) - rows + 1))


def diverged(s: Signals) -> Seen | None:
    """Far above its lowest; while there are few rows, or bins of them, far above its start. On val
    it may have been measured before the first step."""
    t, loss, val = s.thresholds, s["loss"], s["val loss"]
    if val.count > 2 and (held := min(val.last(2))) >= t.loss_up * val.start(1) > 0:
        return Level.STOP, f"loss on val {val.start(1):.3g} at first, {held:.3g} and more now"
    if loss.count < t.rows:
        return None
    start, late = loss.start(t.start), loss.now(t.now)
    if start > 0 and late >= t.loss_doubled * start:
        return Level.STOP, f"loss {start:.3g} at the start, {late:.3g} now"
    values = loss.last(RECENT) if loss.count <= RECENT else loss.whole()
    if len(values) < 2 * t.rows:
        return None
    lowest, now = _lowest(values, t.rows), loss.now(t.rows)
    if lowest <= 0 or now < t.loss_up * lowest:
        return None
    return Level.STOP, f"loss {lowest:.3g} at its lowest, {now:.3g} now"


def loss_stands(s: Signals) -> Seen | None:
    t = s.thresholds
    if not s.long("loss"):
        return None
    early, late = thirds(s["loss"].whole())
    if early <= 0 or abs(1 - late / early) >= t.loss_down or falls(s["loss"].whole()) <= t.sure:
        return None
    val = s["val loss"].whole()
    if len(val) > 1 and falls(val) <= t.firm:
        return None
    return Level.WARNING, (
        f"loss {early:.4g} in the first third of {s['loss'].steps[1]} steps, {late:.4g} in the last"
    )


def loss_near_zero(s: Signals) -> Seen | None:
    t = s.thresholds
    if min(s["loss"].count, s["gradient norm"].count) < t.rows:
        return None
    loss, norm = median(map(abs, s["loss"].last(t.rows))), s["gradient norm"].now(t.rows)
    if loss > t.loss_zero or norm <= 0:
        return None
    return Level.NOTE, f"|loss| {loss:.2g}, gradient norm {norm:.2g} (medians of {t.rows} rows)"


@dataclass(frozen=True)
class Rule:
    """One symptom.

    Attributes:
        name: in JSON and for a program.
        kinds: the trainers that may have it.
        title: what users call it.
        cause: why it happens.
        advice: what to change.
        source: who says so, or where it was measured.
        needs: signals without which it is silent; "a or b" is either.
        test: what it sees in the signals, or None.
        worst: the level beyond which it does not get worse.
        trend: whether it tests a trend or the lack of one. Asked at every row, chance would answer
            sooner or later: it is asked when there are ``again`` times the rows.
    """

    name: str
    kinds: tuple[str, ...]
    title: str
    cause: str
    advice: str
    source: str
    needs: tuple[str, ...]
    test: Callable[[Signals], Seen | None]
    worst: Level = Level.WARNING
    trend: bool = False


RULES: tuple[Rule, ...] = (
    Rule(
        "nonfinite",
        (SFT, GRPO),
        "Loss or gradient is not a number",
        "Numbers overflowed, mostly in float16 or at too long a step; weights that took in a NaN "
        "stay so, and all that is sampled from them is noise.",
        "Stop, go back to the last checkpoint, halve the learning rate, train in bfloat16 or "
        "float32, keep max_grad_norm at 1 or below.",
        "TRL issue 4040 (beta 0 reports no KL at all, so a NaN is a fault); ms-swift issues 3136 "
        "and 3930 (NaN to the end; gone at a lower learning rate)",
        ("loss",),
        lost,
        Level.STOP,
    ),
    Rule(
        "untrained",
        (SFT, GRPO),
        "Nothing is trained: no gradient, or no step",
        "All weights are frozen, the gradient is cut off on its way to them (as by gradient "
        "checkpointing below an adapter whose inputs need none), or the schedule has run out.",
        "See what is trainable (the adapter's layers exist, requires_grad), call "
        "enable_input_require_grads or set use_reentrant to false, and look at learning_rate and "
        "its schedule.",
        "microsoft/LoRA issue 120, open-unlearning issue 178 (checkpointing leaves the adapter "
        "without a gradient)",
        ("gradient norm or learning rate",),
        untrained,
        Level.STOP,
    ),
    Rule(
        "grad-spikes",
        (SFT, GRPO),
        "The gradient norm spikes, again and again",
        "Single batches pull far harder than the others: too high a learning rate, too few "
        "answers or documents a step, or stale samples (num_iterations above 1).",
        "Lower the learning rate, enlarge the batch, set max_grad_norm to 0.1 to 1, and "
        "num_iterations to 1.",
        "TRL issue 2980 (spikes under num_iterations 4 after a long training)",
        ("gradient norm",),
        spikes,
    ),
    Rule(
        "kl-flat",
        (GRPO,),
        "The KL is flat: the policy does not move",
        "The learning rate is too low for the number of steps, beta holds the model to its start, "
        "or the adapter is not trained.",
        "Raise the learning rate 3 to 10 times (LoRA wants a higher one than full fine-tuning), "
        "lower beta or set it to 0.",
        "TRL issue 3452 (KL of 5e-4 at learning rate 3e-6, reports of no gain); TRL's GRPO page: "
        "beta is 0 by default, as in arXiv 2503.14476 and 2503.20783",
        ("KL",),
        kl_flat,
        trend=True,
    ),
    Rule(
        "kl-slow",
        (GRPO,),
        "The KL creeps: the policy hardly moves",
        "Steps are too short: the learning rate, or what beta leaves of it.",
        "Raise the learning rate 2 to 3 times, lower beta, or train longer.",
        "TRL issue 3452; arXiv 2402.03300 (beta 0.04, which holds the policy)",
        ("KL",),
        kl_slow,
        trend=True,
    ),
    Rule(
        "kl-runaway",
        (GRPO,),
        "The KL runs away",
        "The policy leaves what it knew faster than the reward can guide it: too high a learning "
        "rate, too small a beta, or a reward with a hole that it found.",
        "Go back to the checkpoint before, lower the learning rate 2 to 5 times, set beta to 0.01 "
        "to 0.04, and read a few answers.",
        "ms-swift issue 6550 (all rewards fall as the KL jumps); arXiv 2210.10760 (true reward "
        "falls with KL beyond a peak)",
        ("KL",),
        kl_runaway,
        Level.STOP,
    ),
    Rule(
        "plateau",
        (GRPO,),
        "The reward plateaus early",
        "Nothing that GRPO sees points upwards: right answers are too rare in a group, the reward "
        "cannot tell better from worse, or the steps are too short.",
        "Look at the share of flat groups (`make probe` foretells it), enlarge the group, start "
        "from more SFT or an easier tier, use a graded reward; then raise the learning rate.",
        "open-r1 issues 436 and 474 (reports of it); arXiv 2503.14476 (groups without a gradient)",
        ("reward", "reward spread"),
        plateau,
        trend=True,
    ),
    Rule(
        "reward-falls",
        (GRPO,),
        "The reward falls",
        "Steps are so long that the policy loses what it could do, or the problems become harder "
        "along the way.",
        "Go back to an earlier checkpoint, lower the learning rate 3 to 10 times, larger groups or "
        "more prompts a step; with a curriculum, compare on val.",
        "ms-swift issue 6550 (all rewards fall as the KL jumps); here: at 100 times the learning "
        "rate (README, sick on purpose)",
        ("reward", "reward spread"),
        reward_falls,
        trend=True,
    ),
    Rule(
        "hacking",
        (GRPO,),
        "The reward rises, the truth does not: reward hacking",
        "The reward pays for something other than right answers, and the policy found it.",
        "Stop and read the best-paid answers; run `make audit`, pay for the verdict (shape "
        "graded, binary or ranked), and keep an earlier checkpoint.",
        "arXiv 2210.10760 (a proxy goes on rising while the true reward falls); here: the "
        "published reward from 58 to 67 of 100, optimal answers below where they began (README)",
        ("reward", "truth"),
        hacking,
        Level.STOP,
        trend=True,
    ),
    Rule(
        "truth-falls",
        (GRPO,),
        "Right answers become fewer, and the reward hardly tells",
        "What the reward pays for beside right answers outweighs them, the policy drifts where the "
        "reward cannot tell better from worse, or the problems become harder along the way.",
        "Read answers of before and now, with a curriculum compare on val; pay more for the "
        "verdict (shape graded or binary), lower the learning rate, or hold the policy by a beta "
        "of 0.01 to 0.04.",
        "arXiv 2210.10760 (beyond a peak the true reward falls, whatever the proxy does)",
        ("truth",),
        truth_falls,
        trend=True,
    ),
    Rule(
        "form-alone",
        (GRPO,),
        "The form improves, the answers do not",
        "Form is easier to learn and is paid on its own, so the policy learns it first, and here "
        "nothing else.",
        "Shift weight from format and validity to optimality, start from more SFT so that the "
        "form is there, and check that groups hold any right answer at all.",
        "here: with the graded reward the share of valid answers rose from 0.3 to 65 % with under "
        "1 % optimal (README, four cells)",
        ("form or format", "truth"),
        form_alone,
        trend=True,
    ),
    Rule(
        "zero-variance",
        (GRPO,),
        "Groups are rewarded alike: nothing to learn from",
        "The advantage is the reward less the group's mean, so a group whose answers are all paid "
        "alike has no gradient: the problems are far too hard, or solved.",
        "All wrong: easier problems, more SFT, larger groups, a graded reward. All right: harder "
        "problems. `make probe` tells before training.",
        "arXiv 2503.14476, dynamic sampling; arXiv 2402.03300 (the advantage)",
        ("flat groups or reward spread",),
        zero_variance,
        Level.STOP,
    ),
    Rule(
        "entropy-collapse",
        (GRPO,),
        "The entropy collapses",
        "The policy became sure of few answers and stops to explore; pass@1 may still rise while "
        "pass@k falls.",
        "Lower the learning rate, raise epsilon_high to 0.28, keep the temperature at 1, set beta "
        "to 0.01 or so, or stop earlier.",
        "arXiv 2505.22617 (performance is traded from entropy and ends with it); arXiv 2503.14476, "
        "clip-higher; here: at learning rate 1e-3, solved in 32 fell by 27 points (README)",
        ("entropy",),
        entropy_collapse,
    ),
    Rule(
        "entropy-rises",
        (GRPO,),
        "The entropy runs up: answers become noise",
        "Steps are so long that the policy loses what it knew, a large epsilon_high rewards chance "
        "itself, or long answers that ramble weigh too little (loss_type grpo).",
        "Go back to the checkpoint before, lower the learning rate 3 to 10 times, lower "
        "epsilon_high, keep the loss_type dapo.",
        "arXiv 2503.14476, section 3.3 (an unhealthy rise of entropy, with gibberish); here: at "
        "100 times the learning rate (README, sick on purpose)",
        ("entropy",),
        entropy_rises,
    ),
    Rule(
        "entropy-flat",
        (GRPO,),
        "The entropy is flat from the start",
        "Either the model is so sure that all answers to a prompt are the same, or training does "
        "not change it.",
        "Near 0: raise the temperature, do less SFT. Otherwise: raise the learning rate, lower "
        "beta, see that the trained weights are those that are sampled.",
        "arXiv 2505.22617 (left alone, entropy falls early in every run that learns)",
        ("entropy",),
        entropy_flat,
        trend=True,
    ),
    Rule(
        "truncation",
        (GRPO,),
        "Answers are cut off",
        "They reach max_completion_length before their end, so right ones are judged wrong and the "
        "reward teaches brevity.",
        "Raise max_completion_length, or set mask_truncated_completions; where answers ramble, "
        "more SFT.",
        "arXiv 2503.14476, overlong filtering; TRL's GRPOConfig.mask_truncated_completions",
        ("answers cut off",),
        truncation,
    ),
    Rule(
        "train-val-gap",
        (GRPO,),
        "Training answers improve, val answers do not",
        "The policy memorises the training problems: too few of them, seen too often.",
        "More training problems, fewer epochs, beta 0.01 to 0.04; keep the checkpoint that is "
        "best on val.",
        "the usual reading of a gap that grows; nothing here is tuned to it",
        ("truth", "val truth"),
        train_val_gap,
        trend=True,
    ),
    Rule(
        "overfitting",
        (SFT,),
        "The loss on val rises while that in training falls",
        "The model memorises its documents.",
        "Keep the checkpoint with the lowest loss on val, fewer epochs, more documents, a lower "
        "learning rate or LoRA rank.",
        "the usual reading of a gap that grows; nothing here is tuned to it",
        ("loss", "val loss"),
        overfitting,
    ),
    Rule(
        "diverged",
        (SFT,),
        "The loss rises far above where it was",
        "The learning rate is too high, or documents of another kind come late in the order.",
        "Stop, lower the learning rate 3 to 10 times, lengthen the warm-up, shuffle.",
        "the usual reading of a rising loss; nothing here is tuned to it",
        ("loss",),
        diverged,
        Level.STOP,
    ),
    Rule(
        "loss-stands",
        (SFT,),
        "The loss does not fall",
        "The learning rate is too low, the weights are not trained, or the model knows it all.",
        "Raise the learning rate 3 to 10 times; with LoRA, see that its layers exist; where "
        "mean_token_accuracy is near 1, skip SFT.",
        "the usual reading of a flat loss; nothing here is tuned to it",
        ("loss",),
        loss_stands,
        trend=True,
    ),
    Rule(
        "loss-near-zero",
        (GRPO,),
        "A loss near 0 is no fault",
        "Advantages have mean 0 in their group and the probability ratio is 1 at the first update, "
        "so the loss is near beta times the KL by construction; its gradient is not.",
        "Nothing: watch reward, truth, KL and gradient norm instead.",
        "TRL issues 2703 and 3452; open-r1 issue 239",
        ("loss", "gradient norm"),
        loss_near_zero,
        Level.NOTE,
    ),
)
