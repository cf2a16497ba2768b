"""Symptoms of the policy: how far it is from its start (KL), and how sure it is (entropy)."""

from __future__ import annotations

from statistics import median

from pipeline.health.reward import dead
from pipeline.health.signals import FIRM, SURE, Signals
from pipeline.health.symptom import Level, Seen, Symptom
from pipeline.health.trends import ENOUGH, FEW, SOME, rises, thirds

#: Nats a token up to which the policy stands still, and up to which it creeps.
KL_FLAT, KL_SLOW = 1e-4, 2e-3
#: Nats a token up to which nothing is explored.
NO_ENTROPY = 0.02


def _unmoved(s: Signals) -> bool:
    """Whether a long training has little KL for no good reason. A rise of the reward that chance
    brings one time in ten is not one."""
    if not s.long("KL") or s["KL"].now(ENOUGH) > KL_SLOW:
        return False
    return not (s.solved() or s.learns(FIRM) or dead(s))


@Symptom(
    title="The KL is flat: the policy does not move",
    cause="The learning rate is too low for the number of steps, beta holds the model to its "
    "start, or the adapter is not trained.",
    advice=(
        "raise `learning_rate` 3 to 10 times (LoRA wants a higher one than full fine-tuning)",
        "lower `beta`, or set it to 0",
    ),
    source="TRL issue 3452 (KL of 5e-4 at learning rate 3e-6, reports of no gain); TRL's GRPO "
    "page: beta is 0 by default, as in arXiv 2503.14476 and 2503.20783",
    needs={"KL": 1},
    trend=True,
    unless=("untrained", "entropy-collapse", "entropy-rises"),
)
def kl_flat(
    s: Signals,
    still: float = 0.25,  # relative growth in the second half; even growth from 0 has twice that
) -> Seen | None:
    """No KL at all, or little that has stopped growing."""
    if not _unmoved(s):
        return None
    kl, values = s["KL"].now(ENOUGH), s["KL"].whole()
    if not any(values):  # a trainer that does not measure it writes 0
        return None
    if kl > KL_FLAT and s.most_gained(values[len(values) // 2 :]) > still * kl:
        return None
    rate = s["learning rate"]
    paid = f" at a learning rate of {rate.now(1):.2g}" if rate.count else ""
    little = f"up to {KL_FLAT:g} is none" if kl <= KL_FLAT else "little, and it stands still"
    return Level.WARNING, (
        f"after {s['KL'].steps[1]} steps the KL is {kl:.1e} nats a token ({little}){paid}, and "
        "the reward does not rise"
    )


@Symptom(
    title="The KL creeps: the policy hardly moves",
    cause="Steps are too short: the learning rate, or what beta leaves of it.",
    advice=("raise `learning_rate` 2 to 3 times", "lower `beta`", "or train longer"),
    source="TRL issue 3452; arXiv 2402.03300 (beta 0.04, which holds the policy)",
    needs={"KL": 1},
    trend=True,
    unless=("kl-flat", "untrained", "entropy-collapse", "entropy-rises"),
)
def kl_slow(
    s: Signals,
    steps: int = 120,  # by then it should do more than creep
) -> Seen | None:
    first, last = s["KL"].steps
    if last - first < steps or not _unmoved(s) or (kl := s["KL"].now(ENOUGH)) <= KL_FLAT:
        return None
    return Level.WARNING, (
        f"after {last} steps the KL is {kl:.1e} nats a token (up to {KL_SLOW:g} is little), "
        "and the reward does not rise"
    )


@Symptom(
    title="The KL runs away",
    cause="The policy leaves what it knew faster than the reward can guide it: too high a learning "
    "rate, too small a beta, or a reward with a hole that it found.",
    advice=(
        "go back to an earlier checkpoint, and read a few answers",
        "lower `learning_rate` 2 to 5 times",
        "raise `beta` to 0.01 to 0.04",
    ),
    source="ms-swift issue 6550 (all rewards fall as the KL jumps); arXiv 2210.10760 (true reward "
    "falls with KL beyond a peak)",
    needs={"KL": 1},
    worst=Level.STOP,
    unless=("kl-reference",),
)
def kl_runaway(
    s: Signals,
    far: float = 0.7,  # nats a token; beyond it, the answers are another model's
    faster: float = 12.0,  # times the KL at half of the training; even growth has 2
    gone: float = 0.9,  # kl_start nears 1 where none of the start's tokens is likely any more
    jump: float = 10.0,  # times the KL of ENOUGH rows before
    least: float = 0.1,  # nats a token; below it, no jump matters
) -> Seen | None:
    """Others' logs may have another unit, such as nats an answer, and a KL that grows evenly while
    the reward rises is no runaway whatever its size."""
    series = s["KL"]
    # Chance does not stray so far twice; a third row might come many steps later.
    kl = min(series.last(2)) if series.count > 1 else 0.0
    if kl >= far and (s.keys["KL"] == "kl_start" or not _even(s, faster)):
        level = Level.STOP if kl >= gone else Level.WARNING
        return level, f"the KL is {kl:.3g} nats a token and more (far is {far:g})"
    if series.count < SOME or (kl := series.now()) < least:
        return None
    before = series.last(SOME + ENOUGH)[:-SOME]
    if len(before) < ENOUGH or kl < jump * median(before):
        return None
    return Level.WARNING, (
        f"the KL went from {median(before):.3g} to {kl:.3g} nats a token within "
        f"{SOME + ENOUGH} rows"
    )


def _even(s: Signals, faster: float) -> bool:
    """Whether the KL grows evenly while the reward rises, or has had no time to."""
    reward, kl = s["reward"].whole(), s["KL"].whole()
    if not reward or kl[-1] >= faster * median(kl[: len(kl) // 2 + 1][-FEW:]):
        return False
    early, late = thirds(reward)
    return late > early or len(reward) < ENOUGH


@Symptom(
    title="The KL is high from the first row: the reference is another model",
    cause="The policy is compared with a model that it did not start from, as where an adapter of "
    "an earlier training was not merged and the reference is the base below it.",
    advice=(
        "merge the adapter into the model before GRPO, or load it as the reference too",
        "check which model is the reference",
    ),
    source="the KL of a policy to its own start is 0 at the first step, by definition",
    needs={"KL": SOME},
)
def kl_reference(
    s: Signals,
    high: float = 0.3,  # nats a token
    same: float = 2.0,  # ratio of now to the first row up to which there is no trend,
    more: float = 0.25,  # and sure growth that is one
    early: int = 10,  # step up to which the first row tells with few rows
) -> Seen | None:
    if s.keys.get("KL") == "kl_start":  # which is measured against the start
        return None
    first, now = s["KL"].start(1), s["KL"].now()
    if min(first, s["KL"].start()) < high or not first / same <= now <= first * same:
        return None
    if now > (1 + more) * first and rises(s["KL"].whole()) <= FIRM:
        return None
    if s["KL"].steps[0] > early and s["KL"].count < ENOUGH:
        return None
    return Level.WARNING, f"the KL is {first:.3g} at step {s['KL'].steps[0]}, and {now:.3g} now"


@Symptom(
    title="The entropy collapses",
    cause="The policy became sure of a few answers and stops exploring; pass@1 may still rise "
    "while pass@k falls.",
    advice=(
        "lower `learning_rate`",
        "raise `epsilon_high` to 0.28 (acts where a generation is used for several steps)",
        "raise `entropy_coef` above 0 (TRL from 1.14 on)",
        "set `shape` under reward: to passk, with scale_rewards: batch, which pays little for what "
        "succeeds anyway",
        "raise `temperature` to 1",
        "raise `beta` to 0.01 or so",
        "or stop earlier",
    ),
    source="arXiv 2505.22617 (performance is traded from entropy and ends with it); arXiv "
    "2503.14476, clip-higher; here: at learning rate 1e-3, solved in 32 fell by 27 points "
    "(docs/results.md)",
    needs={"entropy": 2 * FEW},
)
def entropy_collapse(
    s: Signals,
    left: float = 0.35,  # share of the entropy at the start
    halved: float = 0.55,  # share of the entropy ``steps`` before
    steps: int = 40,
) -> Seen | None:
    series, length, twins = s["entropy"], s["answer length"], s["duplicates"]
    rows = max(FEW, min(ENOUGH, series.count // 4))
    now, start = series.now(rows), series.start(min(rows, SOME))
    before = series.ago(steps, rows)
    if start <= NO_ENTROPY or now >= start:
        return None
    if 0 < now <= left * start:
        words = f"entropy {start:.3g} → {now:.3g} nats a token since the start"
    elif before and 0 < now <= halved * before:
        words = f"entropy {before:.3g} → {now:.3g} nats a token within {steps} steps"
    else:
        return None
    if length.count > FEW:
        words += f"; answers {length.start():.0f} → {length.now(FEW):.0f} tokens"
    if twins.count >= FEW:
        words += f"; {twins.now(FEW):.0%} of the answers equal another of their group"
    return Level.WARNING, words


@Symptom(
    title="The entropy runs up: answers become noise",
    cause="Steps are so long that the policy loses what it knew, a large epsilon_high rewards "
    "chance itself, or long answers that ramble weigh too little (loss_type grpo).",
    advice=(
        "go back to an earlier checkpoint",
        "lower `learning_rate` 3 to 10 times",
        "lower `epsilon_high` (acts where a generation is used for several steps)",
        "set `loss_type` to dapo",
    ),
    source="arXiv 2503.14476, section 3.3 (an unhealthy rise of entropy, with gibberish); here: at "
    "100 times the learning rate (docs/watching.md)",
    needs={"entropy": 2 * FEW},
)
def entropy_rises(
    s: Signals,
    times: float = 3.0,  # the entropy at the start
    more: float = 0.5,  # nats a token beyond it
) -> Seen | None:
    series, reward = s["entropy"], s["reward"]
    now, start = series.now(FEW), series.start()
    if now < max(times * start, start + more):
        return None
    words = f"entropy {start:.3g} → {now:.3g} nats a token since the start"
    if reward.count >= FEW:
        words += f"; reward {reward.start():.3g} → {reward.now(FEW):.3g}"
    return Level.WARNING, words


@Symptom(
    title="The entropy is flat from the start",
    cause="Either the model is so sure that all answers to a prompt are the same, or training does "
    "not change it.",
    advice=(
        "raise `temperature`, or do less SFT, where it is near 0",
        "raise `learning_rate` otherwise",
        "lower `beta`",
        "check that the trained weights are those that are sampled",
    ),
    source="arXiv 2505.22617 (left alone, entropy falls early in every run that learns)",
    needs={"entropy": ENOUGH},
    trend=True,
    unless=("untrained", "kl-runaway"),
)
def entropy_flat(
    s: Signals,
    same: float = 0.05,  # relative change up to which it stands; 3 times as much is ruled out
) -> Seen | None:
    series = s["entropy"]
    if s.solved():
        return None
    start, now = series.start(), series.now()
    if 0 <= max(start, now) <= NO_ENTROPY:
        if s.learns():
            return None
        return Level.WARNING, (
            f"entropy {now:.2g} nats a token from the start (up to {NO_ENTROPY:g} is none): all "
            "answers to a prompt are nearly the same"
        )
    if not s.long("entropy") or not s["reward"].count or start <= 0:
        return None
    if abs(now / start - 1) > same:
        return None
    values = series.whole()
    most = max(s.most_gained(values), s.most_gained([-value for value in values]))
    if most > 3 * same * start or s.learns() or dead(s):
        return None
    return Level.WARNING, (
        f"entropy {start:.3g} → {now:.3g} nats a token in {series.steps[1]} steps, no trend, "
        "and the reward does not rise"
    )


@Symptom(
    title="Answers shrink to almost nothing",
    cause="Short answers are paid no worse, or a penalty on length or on being cut off outweighs "
    "what right answers earn.",
    advice=(
        "read the shortest answers",
        "pay nothing for brevity, nor for form alone",
        "raise `max_completion_length` where answers were cut off",
        "lower `learning_rate`",
    ),
    source="the usual reading of a length that falls while right answers do not become more; "
    "nothing here is tuned to it",
    needs={"answer length": 2 * SOME},
)
def length_collapse(
    s: Signals,
    left: float = 0.25,  # share of the length at the start
    least: float = 20.0,  # tokens at the start; fewer are short already
) -> Seen | None:
    """Silent where right answers become more: then what went was not needed."""
    length = s["answer length"]
    start, now = length.start(SOME), length.now()
    if start < least or now > left * start or s.solved():
        return None
    if s["truth"].count >= ENOUGH and rises(s["truth"].whole()) <= SURE:
        return None
    return Level.WARNING, f"answers {start:.0f} → {now:.0f} tokens since the start"


@Symptom(
    title="The sampler and the trained model disagree",
    cause="Answers are drawn by another engine (vLLM) whose weights, precision or template differ "
    "from the trainer's, so the policy learns from answers that it would not give.",
    advice=(
        "check that the engine has the newest weights, in the same precision",
        "set `vllm_importance_sampling_correction` to true",
        "train and sample in float16 or float32",
    ),
    source="TRL's GRPOConfig.vllm_importance_sampling_correction; arXiv 2510.26788 (bfloat16 parts "
    "the two)",
    needs={"distance of the sampler or weight of the samples": SOME},
)
def sampler_apart(
    s: Signals,
    far: float = 0.1,  # nats a token between the two, on average
    light: float = 0.5,  # mean weight of answers after correction; 1 where nothing is to correct
) -> Seen | None:
    apart, weight = s["distance of the sampler"], s["weight of the samples"]
    if apart.count >= SOME and apart.now() >= far:
        return Level.WARNING, f"log-probabilities differ by {apart.now():.2g} nats a token"
    if weight.count >= SOME and weight.now() < light:
        return Level.WARNING, f"answers weigh {weight.now():.2g} on average, 1 where both agree"
    return None


@Symptom(
    title="Answers are not drawn from the model that is trained",
    cause="What draws them has other weights (the base without its adapter, an earlier step), "
    "another temperature or other rules, so the policy learns from answers that are not its own.",
    advice=(
        "have the engine load the newest weights before each generation",
        "leave out `generation_kwargs` and `repetition_penalty`, which the loss knows nothing of",
        "set `use_vllm` to false",
    ),
    source="a token's negative log-probability has the mean and the variance that its distribution "
    "says; pipeline/watch/drawn.py has the bound",
    needs={"surplus of the answers": 1, "limit of the surplus": 1},
    worst=Level.STOP,
)
def foreign_answers(s: Signals) -> Seen | None:
    found, limit = s["surplus of the answers"].now(1), s["limit of the surplus"].now(1)
    if found <= limit:
        return None
    return Level.STOP, (
        f"a token surprises the trained model by {found:.3g} nats more or less than its own would "
        f"(chance and rounding: up to {limit:.2g})"
    )
