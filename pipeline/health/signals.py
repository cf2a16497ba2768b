"""What the rules of ``pipeline.health.symptoms`` look at: the signals of a training so far, by one name
each whatever its log calls them, and every number that they are held against.

The numbers were set on logs of this project, healthy and sick, and on synthetic ones.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields

from data.common.errors import UserError
from pipeline.health.trends import RECENT, Series, rises, thirds

#: Every signal that a rule looks at, and what logs call it: TRL's names, older ones of it, those of
#: its example rewards, and our own. The first that a log has is taken; what another one said before
#: that appeared is forgotten.
SIGNALS: Mapping[str, tuple[str, ...]] = {
    "loss": ("loss",),
    "gradient norm": ("grad_norm",),
    "learning rate": ("learning_rate",),
    "reward": ("reward",),
    "reward spread": ("reward_std",),
    "truth": (
        "truth/optimal",
        "rewards/optimal/mean",
        "rewards/accuracy_reward/mean",
        "rewards/accuracy_reward",
    ),
    "form": (
        "truth/feasible",
        "rewards/validity/mean",
        "rewards/think_format_reward/mean",
        "rewards/format_reward/mean",
        "rewards/format_reward",
    ),
    "format": ("rewards/format/mean",),  # ours, which says less than that nothing is broken
    "KL": ("kl_start", "kl"),
    "entropy": ("entropy", "val/entropy"),  # Unsloth's own loss on a GPU logs none
    "answers cut off": ("completions/clipped_ratio",),
    "flat groups": ("frac_reward_zero_std",),
    "duplicates": ("completions/duplicates",),
    "answer length": ("completions/mean_length", "completion_length"),
    "val truth": ("val/optimal", "eval_rewards/optimal/mean", "eval_rewards/accuracy_reward/mean"),
    "val loss": ("val/loss", "eval_loss"),
}

SFT, GRPO = "sft", "grpo"


@dataclass(frozen=True)
class Thresholds:
    """Every number of the rules. A row is a logging step; shares are fractions of 1.

    Attributes:
        rows: fewest rows for a trend or a level.
        many: fewest rows to say that something stayed as it was.
        steps: fewest training steps to say so.
        now: rows whose median is the level of now.
        start: rows whose median is the level at the start.
        again: times the rows after which a trend is looked at again.
        sure: p of a trend that counts, one-sided.
        firm: p of a trend that is beyond doubt.
        solved: share of right answers from which on there is little left to learn.
        level: of the Theil-Sen interval.
        bad_rows: rows in a row without a finite gradient norm; one alone is what mixed precision
            skips.
        spike: times the usual gradient norm.
        spikes: of them, within twice ``rows`` rows.
        kl_flat, kl_slow: nats a token, up to which the policy stands still, or creeps.
        kl_slow_steps: training steps after which it should do more than creep.
        kl_still: growth in the second half, as a share of it, of a KL that stands; one that grows
            evenly from 0 has gained this.
        kl_far, kl_lost: nats a token beyond which the answers are another's, or nothing is left of
            the start: ``kl_start`` is near 1 where none of its tokens is likely any more.
        kl_jump: times the KL of ``rows`` rows before.
        kl_least: nats a token below which no jump matters.
        plateau: gain in reward over all rows, as a share of its spread, that would be some.
        gained: gain since the start, as a share of its spread, after which a plateau is not early.
        paid: gain in reward, as a share of its spread, that is some.
        lost: loss in reward, as a share of its spread, that is much.
        fallen: loss in the share of right answers, as a share of it, that is some.
        form: gain in the share of well-formed answers, or of right ones, that is some.
        little: gain in truth, as a share of that in form or reward, that is as good as none.
        errors: standard errors by which a mean must be beyond a threshold.
        flat_groups, dead_groups: share of groups that teach nothing: too large, hopeless.
        entropy_left: share of the entropy at the start below which it has collapsed.
        entropy_halved, entropy_steps: the same within so many training steps.
        entropy_same: change of the entropy, as a share, that is none; more than three times as
            much must be ruled out.
        entropy_none: nats a token with which nothing is explored.
        entropy_risen: times the entropy at the start beyond which answers become noise.
        entropy_more: nats a token by which it must have risen for that.
        cut_off: share of answers cut off that is too large.
        gap: growth of training truth beyond that on val.
        val_points: fewest measurements on val.
        val_loss: growth of the loss on val beyond its lowest, as a share.
        loss_up: times its lowest, where an SFT loss diverges.
        loss_doubled: times its start, where it does so at once.
        loss_down: change of an SFT loss, as a share, that is some.
        loss_zero: loss of GRPO that users ask about.
    """

    rows: int = 10
    many: int = 20
    steps: int = 100
    now: int = 5
    start: int = 3
    again: float = 1.2
    sure: float = 0.1
    firm: float = 0.02
    solved: float = 0.9
    level: float = 0.95
    bad_rows: int = 2
    spike: float = 5.0
    spikes: int = 3
    kl_flat: float = 1e-4
    kl_slow: float = 2e-3
    kl_slow_steps: int = 120
    kl_still: float = 0.5
    kl_far: float = 0.7
    kl_lost: float = 0.9
    kl_jump: float = 10.0
    kl_least: float = 0.1
    plateau: float = 0.1
    gained: float = 0.3
    paid: float = 0.2
    lost: float = 0.4
    fallen: float = 0.25
    form: float = 0.05
    little: float = 0.25
    errors: float = 1.65
    flat_groups: float = 0.8
    dead_groups: float = 0.95
    entropy_left: float = 0.35
    entropy_halved: float = 0.55
    entropy_steps: int = 40
    entropy_same: float = 0.05
    entropy_none: float = 0.02
    entropy_risen: float = 3.0
    entropy_more: float = 0.5
    cut_off: float = 0.2
    gap: float = 0.2
    val_points: int = 6
    val_loss: float = 0.05
    loss_up: float = 1.5
    loss_doubled: float = 2.0
    loss_down: float = 0.02
    loss_zero: float = 0.05

    def validate(self, source: str = "thresholds") -> None:
        """Raise UserError naming ``source`` and the key whose value makes no sense."""
        for field in fields(self):
            value = getattr(self, field.name)
            if not math.isfinite(value) or value <= 0:
                raise UserError(f"{source}.{field.name} must be above 0, not {value!r}")
            if field.name in _SHARES and value >= 1:
                raise UserError(f"{source}.{field.name} must be below 1, not {value!r}")
            if field.name in _TIMES and value <= 1:
                raise UserError(f"{source}.{field.name} must be above 1, not {value!r}")
        if self.rows < 4:
            raise UserError(f"{source}.rows must be 4 or more for a trend, not {self.rows}")
        if 2 * self.rows > RECENT:
            raise UserError(f"{source}.rows must be at most {RECENT // 2}, not {self.rows}")
        for low, high in (
            ("rows", "many"),
            ("kl_flat", "kl_slow"),
            ("kl_least", "kl_far"),
            ("kl_far", "kl_lost"),
            ("flat_groups", "dead_groups"),
            ("entropy_left", "entropy_halved"),
        ):
            if getattr(self, low) > getattr(self, high):
                raise UserError(
                    f"{source}.{low} ({getattr(self, low)}) must not be above "
                    f"{source}.{high} ({getattr(self, high)})"
                )


THRESHOLDS = Thresholds()
_SHARES = (
    "sure", "firm", "solved", "level", "form", "little", "fallen", "flat_groups", "dead_groups",
    "entropy_left", "entropy_halved", "entropy_same", "cut_off", "gap", "loss_down",
)  # fmt: skip
_TIMES = ("spike", "kl_jump", "loss_up", "loss_doubled", "entropy_risen", "again")

#: Of the rewards in a group, up to which they are alike: single precision on a scale of 100.
NO_SPREAD = 1e-5


class Signals:
    """The signals of a training so far, as the rules see them."""

    def __init__(self, thresholds: Thresholds) -> None:
        self.thresholds = thresholds
        self.series: dict[str, Series] = {name: Series() for name in SIGNALS}
        self.row = 0
        self.steps: tuple[int, int] = (0, 0)
        #: Rows without a finite number, up to the last row: of the loss, of the gradient norm.
        self.lost_loss = 0
        self.lost_norm = 0

    def __getitem__(self, name: str) -> Series:
        return self.series[name]

    def long(self, name: str) -> bool:
        """Whether a signal was watched for long enough to say that it stayed as it was."""
        t, series = self.thresholds, self[name]
        return series.count >= t.many and series.steps[1] - series.steps[0] >= t.steps

    def learns(self, p: float | None = None) -> bool:
        """Whether reward or truth rises; by chance with ``p`` at most, or with ``sure``."""
        for name in ("reward", "truth"):
            values = self[name].whole()
            if len(values) >= self.thresholds.rows:
                early, late = thirds(values)
                if late > early and rises(values) <= (p or self.thresholds.sure):
                    return True
        return False

    def solved(self) -> bool:
        """Whether there is little left to learn."""
        t = self.thresholds
        return self["truth"].count >= t.now and self["truth"].now(t.now) >= t.solved
