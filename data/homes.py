"""Which section of a recipe a key belongs in, for one that stands in another."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from data.common.fields import keys_of
from data.sections import (
    Arm,
    ConclusionSection,
    DataSection,
    EvalSection,
    Margins,
    MonitorSection,
    RewardSection,
    SamplingSection,
    TierUse,
)
from data.tiers import TIERS, Tier

_OF_BOTH = (
    "max_steps", "num_train_epochs", "per_device_train_batch_size", "gradient_accumulation_steps",
    "gradient_checkpointing", "learning_rate", "lr_scheduler_type", "warmup_steps", "weight_decay",
    "max_grad_norm", "optim", "logging_steps", "save_steps", "report_to", "use_liger_kernel",
)  # fmt: skip
#: The keys of every section; of TRL's and PEFT's, which are not asked here, those that most give.
_KEYS: Mapping[str, Collection[str]] = {
    "data": keys_of(DataSection),
    "data.tiers.NAME": (*keys_of(TierUse), *keys_of(Tier)),
    "reward": keys_of(RewardSection),
    "sampling": keys_of(SamplingSection),
    "eval": keys_of(EvalSection),
    "arms.NAME": keys_of(Arm),
    "conclusion": keys_of(ConclusionSection),
    "conclusion.margins": keys_of(Margins),
    "monitor": keys_of(MonitorSection),
    "data.tiers": TIERS,
    "sft": (*_OF_BOTH, "max_length", "packing"),
    "grpo": (
        *_OF_BOTH, "num_generations", "max_completion_length", "num_iterations", "beta", "epsilon",
        "loss_type", "scale_rewards", "temperature", "top_p", "use_vllm",
    ),
    "lora": ("r", "lora_alpha", "lora_dropout", "target_modules"),
}  # fmt: skip


def with_home(text: str, key: str, where: str, top: Collection[str]) -> str:
    """``text``, of an unknown key, with the places that have one of its name.

    Args:
        key: as the text names it.
        where: it stands in the recipe.
        top: the keys of a recipe.
    """
    name, arm = where.rpartition(".")[2], re.match(r"arms\.[^.]+\b", where)
    homes = ["at the top"] if name in top else []
    for section, names in _KEYS.items():
        only = ""
        if arm and section in ("sft", "grpo"):
            only = "" if name in _OF_BOTH else f" where the trainer is {section}"
            section = f"{arm[0]}.settings"
        elif arm and section in ("eval", "sampling", "reward"):
            section = f"{arm[0]}.{section}"
        if name in names and (only or f"{section}.{name}" != where):
            homes.append(f"under `{section}`{only}")
    if not homes:
        return text
    said, places = f"unknown key '{key}'", " or ".join(dict.fromkeys(homes))
    text = text.replace(f"{said}; did", f"{said}, or did")
    return text.replace(said, f"{said}; `{name}` belongs {places}", 1)
