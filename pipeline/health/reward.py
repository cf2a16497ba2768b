"""Symptoms of the reward: what it pays for, and whether right answers follow."""

from __future__ import annotations

import math
from statistics import fmean, stdev

from pipeline.health.signals import FIRM, NO_SPREAD, SURE, Signals
from pipeline.health.symptom import Level, Seen, Symptom
from pipeline.health.trends import ENOUGH, FEW, MANY, SOME, constant, falls, rises, thirds

#: Relative loss in the share of right answers that counts as a fall.
_FALLEN = 0.25
#: Gain in a share of answers that counts, and gain in truth relative to that in form or reward that
#: is as good as none.
_FORM, _LITTLE = 0.05, 0.25


@Symptom(
    title="Groups are rewarded alike: nothing to learn from",
    cause="The advantage is the reward less the group's mean, so a group whose answers are all "
    "paid alike has no gradient: the problems are far too hard, or solved.",
    advice=(
        "all wrong: easier problems, more SFT, a graded reward",
        "all right: harder problems",
        "raise `num_generations`",
        "raise `redraws` under sampling:, which asks other problems instead",
        "ask make probe before training",
    ),
    source="arXiv 2503.14476, dynamic sampling; arXiv 2402.03300 (the advantage)",
    needs={"flat groups or reward spread": 1},
    worst=Level.STOP,
)
def zero_variance(
    s: Signals,
    many: float = 0.8,  # share of flat groups that is too large
    hopeless: float = 0.95,
    errors: float = 1.65,  # standard errors by which the mean must exceed ``many``
) -> Seen | None:
    """Uses a mean with its error: with few groups a step the share jumps between 0 and 1."""
    shares = s["flat groups"].last(2 * ENOUGH)
    if not shares:  # older versions of TRL
        shares = [float(spread <= NO_SPREAD) for spread in s["reward spread"].last(2 * ENOUGH)]
    if len(shares) < ENOUGH:
        return None
    share = fmean(shares)
    if share - errors * stdev(shares) / math.sqrt(len(shares)) < many:
        return None
    truth = f"; right answers: {s['truth'].now(ENOUGH):.1%}" if s["truth"].count else ""
    lost = share >= hopeless and not s.solved()
    return Level.STOP if lost else Level.WARNING, (
        f"{share:.0%} of the groups have equal rewards (mean of the last {len(shares)} rows), "
        f"so they teach nothing{truth}"
    )


def dead(s: Signals) -> bool:
    """Whether most groups teach nothing, which explains everything else that does not move."""
    return zero_variance.test(s) is not None


@Symptom(
    title="The reward plateaus early",
    cause="Nothing that GRPO sees points upwards: right answers are too rare in a group, the "
    "reward cannot tell better from worse, or the steps are too short.",
    advice=(
        "look at the share of flat groups (make probe foretells it)",
        "raise `num_generations`",
        "start from more SFT or an easier tier, use a graded reward",
        "raise `learning_rate` then",
    ),
    source="open-r1 issues 436 and 474 (reports of it); arXiv 2503.14476 (groups without a "
    "gradient)",
    needs={"reward": 1, "reward spread": 1},
    trend=True,
    unless=(
        "reward-falls",
        "truth-falls",
        "kl-runaway",
        "entropy-collapse",
        "entropy-rises",
        "nonfinite",
    ),
)
def plateau(
    s: Signals,
    gain: float = 0.1,  # over all rows, that counts
    early: float = 0.3,  # gain since the start after which a plateau is not early
) -> Seen | None:
    """Measures gains in units of the spread of single rewards, whatever their scale."""
    if not s.long("reward") or s.solved():
        return None
    name, unit = _progress(s)
    values = s[name].whole()
    if len(values) < MANY or unit <= 0:
        return None
    first, last = thirds(values)
    if max(last - first, 0) >= gain * unit:
        return None
    start, most = s[name].start(), max(0.0, s.most_gained(values))
    if last - start >= early * unit or most >= gain * unit or s.learns() or dead(s):
        return None
    return Level.WARNING, (
        f"{name} {start:.3g} in the first rows, {last:.3g} in the last third of {s[name].count} "
        f"(step {s[name].steps[1]}); its spread is {unit:.2g}"
    )


def _progress(s: Signals) -> tuple[str, float]:
    """The signal that shows progress, and its spread over single answers: the truth where answers
    are paid by comparison with their group, since the mean reward then never moves."""
    truth = s["truth"]
    if not constant(s["reward"].whole()):
        return "reward", _spread(s)
    if not truth.count:
        return "reward", 0.0
    return "truth", math.sqrt(max(0.0, truth.now() * (1 - truth.now())))


def _spread(s: Signals) -> float:
    """Spread of single rewards now; 0 where it is not logged."""
    return s["reward spread"].now() if s["reward spread"].count else 0.0


@Symptom(
    title="The reward falls",
    cause="Steps are so long that the policy loses what it could do, or the problems become harder "
    "along the way.",
    advice=(
        "go back to an earlier checkpoint",
        "lower `learning_rate` 3 to 10 times",
        "raise `num_generations`, or the prompts a step",
        "with a curriculum, compare on val",
    ),
    source="ms-swift issue 6550 (all rewards fall as the KL jumps); here: at 100 times the "
    "learning rate (docs/watching.md)",
    needs={"reward": ENOUGH, "reward spread": 1},
    trend=True,
    unless=("hacking",),
)
def reward_falls(
    s: Signals,
    loss: float = 0.4,  # relative to the spread of single rewards
) -> Seen | None:
    values, unit = s["reward"].whole(), max(s["reward spread"].last())
    early, late = thirds(values)
    if unit <= 0 or early - late < loss * unit or falls(values) > s.likely(FIRM):
        return None
    return Level.WARNING, (
        f"from the first to the last third of {s['reward'].count} rows, reward {early:.3g} → "
        f"{late:.3g}, by chance with p = {falls(values):.1g}"
    )


@Symptom(
    title="The reward rises, the truth does not: reward hacking",
    cause="The reward pays for something other than right answers, and the policy found it.",
    advice=(
        "stop, and read the best-paid answers",
        "run make audit, and pay for the verdict (shape graded, binary or ranked)",
        "keep an earlier checkpoint",
    ),
    source="arXiv 2210.10760 (a proxy goes on rising while the true reward falls); here: the "
    "published reward from 58 to 67 of 100, optimal answers below where they began "
    "(docs/results.md)",
    needs={"reward": ENOUGH, "truth": ENOUGH},
    worst=Level.STOP,
    trend=True,
)
def hacking(
    s: Signals,
    gain: float = 0.2,  # relative to the spread of single rewards
) -> Seen | None:
    """The share of right answers falls as the reward rises, or surely stands still: along the whole
    training, or its last rows."""
    reward, truth = s["reward"], s["truth"]
    if s.solved():
        return None
    return _parting(s, reward.whole(), truth.whole(), gain) or _parting(
        s, reward.last(), truth.last(), gain
    )


def _parting(s: Signals, paid: list[float], true: list[float], least: float) -> Seen | None:
    (reward, more), (truth, less), spread = thirds(paid), thirds(true), _spread(s)
    gain, loss = more - reward, truth - less
    if loss < 0 or gain <= least * spread or constant(paid):
        return None
    words = (
        f"from the first to the last third of {len(paid)} points, reward {reward:.3g} → "
        f"{more:.3g}, right answers {truth:.1%} → {less:.1%}"
    )
    if loss >= _FALLEN * truth > 0:
        p = max(rises(paid), falls(true))
        if p > s.likely(SURE):
            return None
        level = Level.STOP if p <= FIRM else Level.WARNING
        return level, f"{words}; each by chance with p of at most {p:.1g}"
    if not s.long("reward") or spread <= 0 or rises(paid) > s.likely(FIRM):
        return None
    unit = math.sqrt(max(truth * (1 - truth), 1e-6))
    if s.most_gained(true) > min(_FORM, _LITTLE * gain / spread * unit) or form_alone.test(s):
        return None
    return Level.WARNING, f"{words}: no sure fall, but surely no rise"


@Symptom(
    title="Right answers become fewer, and the reward hardly tells",
    cause="What the reward pays for beside right answers outweighs them, the policy drifts where "
    "the reward cannot tell better from worse, or the problems become harder along the way.",
    advice=(
        "read old and new answers, with a curriculum compare on val",
        "pay more for the verdict (shape graded or binary)",
        "lower `learning_rate`",
        "raise `beta` to 0.01 to 0.04",
    ),
    source="arXiv 2210.10760 (beyond a peak the true reward falls, whatever the proxy does)",
    needs={"truth": 1},
    trend=True,
)
def truth_falls(s: Signals) -> Seen | None:
    """Silent where the reward rises (hacking) or falls too, and where val shows that the problems
    became harder instead of the policy worse."""
    if not s.long("truth") or s.solved():
        return None
    values = s["truth"].whole()
    early, late = thirds(values)
    if late > (1 - _FALLEN) * early or falls(values) > s.likely(SURE * FIRM):
        return None
    if hacking.test(s) or reward_falls.test(s):
        return None
    val = s["val truth"]
    if val.count and val.now(FEW) >= val.start():
        return None
    words = (
        f"right answers {early:.1%} in the first third of {s['truth'].count} rows, {late:.1%} in "
        "the last"
    )
    if s["reward"].count >= MANY:
        words += "; reward {:.3g} → {:.3g}".format(*thirds(s["reward"].whole()))
    return Level.WARNING, words


@Symptom(
    title="The form improves, the answers do not",
    cause="Form is easier to learn and is paid on its own, so the policy learns it first, and here "
    "nothing else.",
    advice=(
        "shift weight from format and validity to optimality",
        "start from more SFT, so that the form is there",
        "check that groups hold any right answer at all",
    ),
    source="here: with the graded reward the share of valid answers rose from 0.3 to 65 % with "
    "under 1 % optimal (docs/results.md)",
    needs={"form or format": 1, "truth": 1},
    trend=True,
)
def form_alone(s: Signals) -> Seen | None:
    return _rising(s, "form") or _rising(s, "format")


def _rising(s: Signals, name: str) -> Seen | None:
    if not s.long(name) or not s.long("truth") or s.solved():
        return None
    formed, true = s[name].whole(), s["truth"].whole()
    (form, more), (truth, late) = thirds(formed), thirds(true)
    little = _LITTLE * (more - form)
    if more - form < _FORM or late - truth > little:
        return None
    if rises(formed) > s.likely(FIRM) or s.most_gained(true) > min(_FORM, little):
        return None
    return Level.WARNING, (
        f"from the first to the last third of {s[name].count} rows, well-formed answers "
        f"{form:.1%} → {more:.1%}, right ones {truth:.1%} → {late:.1%}"
    )


@Symptom(
    title="The reasoning comes apart from the truth",
    cause="Where the answer alone is paid, what stands before it may drift: claims that are false "
    "cost nothing as long as the answer is right.",
    advice=(
        "set `shape` under reward: to reasoned, which pays for true claims too",
        "raise `beta` to 0.04 or so",
        "lower `learning_rate`",
        "do not take its claims for facts",
    ),
    source="here: of five rewards one alone kept it true in every seed, a KL did so too, and at a "
    "rate of 1e-3 nothing did (docs/results.md); arXiv 2305.04388 (reasoning that is not why a "
    "model answers)",
    needs={"reasoning": FEW + SOME, "true reasoning": FEW + SOME},
    trend=True,
)
def reasoning_drifts(
    s: Signals,
    many: float = 0.2,  # share of the answers that reason, from which on it matters
    lost: float = 0.5,  # share of the soundness at the start
) -> Seen | None:
    reasoned, true = s["reasoning"], s["true reasoning"]
    if not reasoned.start() or reasoned.now() < many:
        return None
    pairs = zip(true.whole(), reasoned.whole(), strict=False)
    shares = [part / whole if whole else 1.0 for part, whole in pairs]
    before, now = true.start() / reasoned.start(), true.now() / reasoned.now()
    if now > (1 - lost) * before or falls(shares) > s.likely(FIRM):
        return None
    return Level.WARNING, (
        f"{now:.0%} of the answers that reason make true claims alone, {before:.0%} at the start; "
        f"{reasoned.now():.0%} of all answers reason"
    )


@Symptom(
    title="Answers are cut off",
    cause="They reach max_completion_length before their end, so right ones are judged wrong and "
    "the reward teaches brevity.",
    advice=(
        "raise `max_completion_length`",
        "set `mask_truncated_completions` to true",
        "where answers ramble, more SFT",
    ),
    source="arXiv 2503.14476, overlong filtering; TRL's GRPOConfig.mask_truncated_completions",
    needs={"answers cut off": SOME},
)
def truncation(
    s: Signals,
    most: float = 0.2,  # share of the answers
) -> Seen | None:
    share = s["answers cut off"].now()
    if share < most:
        return None
    return Level.WARNING, f"{share:.0%} of the answers are cut off (median of {SOME} rows)"


@Symptom(
    title="Training answers improve, val answers do not",
    cause="The policy memorises the training problems: too few of them, seen too often.",
    advice=(
        "keep the checkpoint that is best on val",
        "more training problems, fewer epochs",
        "raise `beta` to 0.01 to 0.04",
    ),
    source="the usual reading of a gap that grows; nothing here is tuned to it",
    needs={"truth": ENOUGH, "val truth": 6},
    trend=True,
)
def train_val_gap(
    s: Signals,
    gap: float = 0.2,  # growth of training truth beyond that on val
) -> Seen | None:
    val, truth = s["val truth"], s["truth"]
    # Over the same steps: val is measured seldom, perhaps first when much was learnt.
    train = truth.between(*val.at_end()) - truth.between(*val.at_start())
    held = val.now(FEW) - val.start()
    if train <= 0 or train - held < gap:
        return None
    return Level.WARNING, (
        f"since val was first measured, right answers {100 * train:+.1f} points on training "
        f"problems, {100 * held:+.1f} on val"
    )
