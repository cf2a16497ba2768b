"""Symptoms of the optimisation: loss, gradient norm and learning rate, of SFT and GRPO."""

from __future__ import annotations

from statistics import fmean, median

from pipeline.health.reward import dead
from pipeline.health.signals import FIRM, GRPO, SFT, SURE, Signals
from pipeline.health.symptom import Level, Seen, Symptom
from pipeline.health.trends import ENOUGH, FEW, RECENT, falls, lowest, rises, thirds


@Symptom(
    title="Loss or gradient is not a number",
    cause="Numbers overflowed, mostly in float16 or by too long a step; weights that took in a NaN "
    "keep it, and everything sampled from them is noise.",
    advice=(
        "stop, and go back to the last checkpoint",
        "lower `learning_rate` to a half",
        "train in bfloat16 or float32",
        "check that every document has tokens that count (labels above -100)",
    ),
    source="TRL issue 4040 (beta 0 reports no KL at all, so a NaN is a fault); ms-swift issues "
    "3136 and 3930 (NaN to the end; none at a lower learning rate)",
    kinds=(SFT, GRPO),
    needs={"loss": 0},
    worst=Level.STOP,
)
def nonfinite(
    s: Signals,
    bad_rows: int = 2,  # mixed precision skips a single one
) -> Seen | None:
    """A loss counts at once, a gradient norm when it lasts. One that was never there, only null,
    may be a column left empty, unless nothing improves either."""
    if s.lost["loss"]:
        return Level.STOP, "the loss is not a finite number"
    if s.lost["val loss"] and s["loss"].count and not s["reward"].count:
        return Level.STOP, "the loss on val is not a finite number"
    rows = s.lost["gradient norm"]
    if rows < bad_rows or ("gradient norm" not in s.told and (rows < ENOUGH or improves(s))):
        return None
    return Level.STOP, f"no finite gradient norm in {rows} rows in a row"


@Symptom(
    title="The KL is not a number",
    cause="The reference model gives no finite probabilities: its adapter, its weights or its "
    "precision are broken, or tokens that the policy draws are impossible to it.",
    advice=(
        "check the reference model, and its precision",
        "train in bfloat16 or float32",
        "lower `beta` to 0, which needs no reference",
    ),
    source="TRL issue 4040 (beta 0 reports no KL at all, so a NaN is a fault)",
    unless=("nonfinite",),
    needs={"loss": 0},
)
def kl_lost(s: Signals, bad_rows: int = 2) -> Seen | None:
    if s.lost["KL"] < bad_rows or "KL" not in s.told:
        return None
    return Level.WARNING, f"no finite KL in {s.lost['KL']} rows in a row"


def _mostly_flat(s: Signals, share: float = 0.5) -> bool:
    """Whether so many groups teach nothing that a step may have no gradient at all."""
    flat = s["flat groups"].last()
    return bool(flat) and fmean(flat) >= share


def improves(s: Signals) -> bool:
    """Whether reward, truth or loss gets better, or groups that teach nothing explain that none
    does."""
    return dead(s) or s.learns() or falls(s["loss"].whole()) <= SURE


@Symptom(
    title="The loss is exactly 0",
    cause="No token of the documents counts (all labels are -100: a template that is not found, "
    "or documents cut before their answer), or the loss is NaN, which transformers shows as 0.",
    advice=(
        "stop, and look at the labels of one batch",
        "check the template that marks answers, and that `max_length` leaves room for them",
        "train in bfloat16 or float32",
    ),
    source="transformers' TrainingArguments.logging_nan_inf_filter (on by default, it leaves NaN "
    "out of the logged loss); unslothai/unsloth issue 2614",
    kinds=(SFT,),
    needs={"loss": 2},
    worst=Level.STOP,
)
def loss_zero(
    s: Signals,
    learnt: float = 0.05,  # a loss below it may be rounded to 0 soon
) -> Seen | None:
    loss = s["loss"].last()
    rows = next((n for n, value in enumerate(reversed(loss)) if value), len(loss))
    if rows < 2 or (rows < len(loss) and loss[-rows - 1] < learnt):
        return None
    return Level.STOP, f"the loss is 0 in the last {rows} rows"


@Symptom(
    title="Nothing is trained: no gradient, or no step",
    cause="All weights are frozen, the gradient is cut off on its way to them (as by gradient "
    "checkpointing below an adapter whose inputs need none), or the schedule has run out.",
    advice=(
        "check what is trainable (the adapter's layers exist, requires_grad)",
        "call enable_input_require_grads, or set use_reentrant to false",
        "check learning_rate and its schedule",
    ),
    source="microsoft/LoRA issue 120, open-unlearning issue 178 (checkpointing leaves the adapter "
    "without a gradient)",
    kinds=(SFT, GRPO),
    needs={"gradient norm or learning rate": 1},
    worst=Level.STOP,
)
def untrained(s: Signals) -> Seen | None:
    """A norm of 0 while something improves was not measured."""
    rates, norms = s["learning rate"].last(ENOUGH), s["gradient norm"].last(2 * ENOUGH)
    if len(rates) == ENOUGH and not any(rates):
        return Level.STOP, f"the learning rate was 0 in the last {ENOUGH} rows"
    if len(norms) < 2 * ENOUGH or any(norms) or _mostly_flat(s) or improves(s):
        return None
    return Level.STOP, f"the gradient norm was 0 in the last {len(norms)} rows that had one"


@Symptom(
    title="The gradient norm spikes, again and again",
    cause="Single batches pull far harder than the others: too high a learning rate, too few "
    "answers or documents a step, or stale samples (num_iterations above 1).",
    advice=(
        "lower `learning_rate`",
        "raise `per_device_train_batch_size` or `gradient_accumulation_steps`",
        "lower `max_grad_norm` to 0.1 to 0.2",
        "set `num_iterations` to 1",
    ),
    source="TRL issue 2980 (spikes under num_iterations 4 after a long training)",
    kinds=(SFT, GRPO),
    needs={"gradient norm": 2 * ENOUGH},
    unless=("untrained",),
)
def grad_spikes(
    s: Signals,
    times: float = 5.0,  # the usual norm
    spikes: int = 3,  # within twice ENOUGH rows
    zero: float = 1e-3,  # of the largest norm; below it is none
) -> Seen | None:
    """Norms of 0, or near it beside the others, are of groups that teach nothing: where those are
    many, the others are no spikes."""
    norms = s["gradient norm"].last()
    none = zero * max(norms)
    norms = [norm for norm in norms if norm > none]
    if len(norms) < 2 * ENOUGH or _mostly_flat(s):
        return None
    usual, last = median(norms), norms[-2 * ENOUGH :]
    high = [norm for norm in last if norm > times * usual]
    if len(high) < spikes:
        return None
    return Level.WARNING, (
        f"{len(high)} of the last {len(last)} rows have a gradient norm above {times:g} times "
        f"the usual {usual:.3g}, up to {max(high):.3g}"
    )


@Symptom(
    title="The loss on val rises while that in training falls",
    cause="The model memorises its documents.",
    advice=(
        "keep the checkpoint with the lowest loss on val",
        "lower `num_train_epochs`",
        "lower `max_steps`",
        "use more documents",
        "lower `learning_rate` or the adapter's rank",
    ),
    source="the usual reading of a gap that grows; nothing here is tuned to it",
    kinds=(SFT,),
    needs={"loss": FEW, "val loss": 6},
)
def overfitting(
    s: Signals,
    growth: float = 0.05,  # beyond the lowest, as a share of it
) -> Seen | None:
    val, loss = s["val loss"], s["loss"]
    values = val.last()
    least, now = lowest(values[:-FEW], FEW), val.now(FEW)
    if least <= 0 or now < (1 + growth) * least or loss.now(FEW) >= loss.start():
        return None
    if rises(values[values.index(min(values)) :]) > SURE:
        return None
    return Level.WARNING, (
        f"loss on val {least:.3g} at its lowest, {now:.3g} now; in training "
        f"{loss.start():.3g} → {loss.now(FEW):.3g}"
    )


@Symptom(
    title="The loss rises far above where it was",
    cause="The learning rate is too high, or documents of another kind come late in the order.",
    advice=("stop", "lower `learning_rate` 3 to 10 times", "raise `warmup_steps`", "shuffle"),
    source="the usual reading of a rising loss; nothing here is tuned to it",
    kinds=(SFT,),
    needs={"loss": 0},
    worst=Level.STOP,
    unless=("overfitting",),
)
def diverged(
    s: Signals,
    up: float = 1.5,  # times its lowest
    doubled: float = 2.0,  # times its start
) -> Seen | None:
    """Compares with the lowest loss; with few rows, or bins of them, with the start. Only val may
    have been measured before the first step."""
    loss, val = s["loss"], s["val loss"]
    if val.count > 2 and (held := min(val.last(2))) >= up * val.start(1) > 0:
        return Level.STOP, f"loss on val {val.start(1):.3g} at first, {held:.3g} and more now"
    if loss.count < ENOUGH:
        return None
    start, late = loss.start(), loss.now()
    if start > 0 and late >= doubled * start:
        return Level.STOP, f"loss {start:.3g} at the start, {late:.3g} now"
    values = loss.last() if loss.count <= RECENT else loss.whole()
    if len(values) < 2 * ENOUGH:
        return None
    least, now = lowest(values, ENOUGH), loss.now(ENOUGH)
    if least <= 0 or now < up * least:
        return None
    return Level.STOP, f"loss {least:.3g} at its lowest, {now:.3g} now"


@Symptom(
    title="The loss does not fall",
    cause="The learning rate is too low, the weights are not trained, or the model knows it all.",
    advice=(
        "raise `learning_rate` 3 to 10 times",
        "with LoRA, check that its layers exist",
        "where mean_token_accuracy is near 1, skip SFT",
    ),
    source="the usual reading of a flat loss; nothing here is tuned to it",
    kinds=(SFT,),
    needs={"loss": 0},
    trend=True,
    unless=("nonfinite", "loss-zero", "diverged", "overfitting", "untrained"),
)
def loss_stands(
    s: Signals,
    change: float = 0.02,  # share of the loss that counts as a change
) -> Seen | None:
    if not s.long("loss"):
        return None
    values, val = s["loss"].whole(), s["val loss"].whole()
    early, late = thirds(values)
    if early <= 0 or abs(1 - late / early) >= change or falls(values) <= SURE:
        return None
    if len(val) > 1 and falls(val) <= FIRM:
        return None
    return Level.WARNING, (
        f"loss {early:.4g} in the first third of {s['loss'].steps[1]} steps, {late:.4g} in the last"
    )


@Symptom(
    title="A loss near 0 is no fault",
    cause="Advantages have mean 0 in their group and the probability ratio is 1 at the first "
    "update, so the loss is near beta times the KL by construction; its gradient is not.",
    advice=("watch reward, truth, KL and gradient norm instead",),
    source="TRL issues 2703 and 3452; open-r1 issue 239",
    needs={"loss": ENOUGH, "gradient norm": ENOUGH},
    worst=Level.NOTE,
    unless=("nonfinite", "untrained"),
)
def loss_near_zero(
    s: Signals,
    near: float = 0.05,  # users ask about a loss up to this
) -> Seen | None:
    loss, norm = median(map(abs, s["loss"].last(ENOUGH))), s["gradient norm"].now(ENOUGH)
    if loss > near or norm <= 0:
        return None
    return Level.NOTE, f"|loss| {loss:.2g}, gradient norm {norm:.2g} (medians of {ENOUGH} rows)"
