"""Training with several processes, as ``accelerate launch`` starts them: one a device, all running
the same stage. Only the main one writes below ``runs/``, decides what is done already and speaks.

Several machines must share the folder ``runs/``.
"""

from __future__ import annotations

import atexit
import os
import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from data.common.errors import is_another, require

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import Trainer

T = TypeVar("T")


def count() -> int:
    """How many processes train together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main() -> bool:
    """Whether this process is the one that writes and speaks."""
    return not is_another()


def local() -> int:
    """The number of this process, and of its GPU, on its machine."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def prepare_devices() -> None:
    """Make ready, before anything of accelerate is built."""
    import torch

    if count() > 1 and not torch.cuda.is_available():
        # Else its device is cpu:0, to which torch loads no state of an optimizer when resuming.
        os.environ.setdefault("ACCELERATE_TORCH_DEVICE", "cpu")
        atexit.register(_part)


def _part() -> None:
    """End the group of CPU processes, whose threads may otherwise abort one that is done."""
    from torch import distributed

    if distributed.is_initialized():
        distributed.destroy_process_group()


def strategy() -> str:
    """How the processes share the work: ``ddp`` (each holds everything), ``fsdp``, or ``zero1`` to
    ``zero3`` of DeepSpeed."""
    if os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true":
        return f"zero{os.environ.get('ACCELERATE_DEEPSPEED_ZERO_STAGE', '2')}"
    fsdp = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
    return "fsdp" if fsdp else "ddp"


def cuts_weights() -> bool:
    """Whether each process holds a part of every weight, and not all of it."""
    return strategy() in ("fsdp", "zero3")


def layout() -> dict[str, Any]:
    """What a stage's result depends on beside its recipe, whose batch sizes are a device's: empty
    for a single process."""
    return {"processes": {"count": count(), "strategy": strategy()}} if count() > 1 else {}


def run_apart(*arguments: str) -> str:
    """What python prints with these arguments, in a process of its own.

    Raises:
        UserError: the last line that it said, where it fails; or that it was killed.
    """
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True)
    killed = "it was killed, presumably since the machine's memory was full"
    reason = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
    require(done.returncode == 0, killed if done.returncode < 0 else reason.removeprefix("error: "))
    return done.stdout


def by_main(find: Callable[[], T]) -> T:
    """What ``find`` returns in the main process, in every process; the others wait for it. Where it
    raises, they end without a word."""
    if count() == 1:
        return find()
    import torch
    from accelerate import PartialState
    from accelerate.utils import broadcast_object_list

    # The main process may draw many answers meanwhile.
    state = PartialState(cpu=not torch.cuda.is_available(), timeout=timedelta(days=1))
    outcome: list[Any] = [None, False]
    try:
        if state.is_main_process:
            outcome = [find(), True]
    finally:
        broadcast_object_list(outcome)
    if not outcome[1]:
        sys.exit(1)
    return outcome[0]


def whole_weights(trainer: Trainer, dtype: str) -> dict[str, Tensor] | None:
    """The weights of a model of ``dtype`` that is cut up, gathered into the main process, as it
    would save them if it were not; None where it is not. Every process must call this."""
    if not cuts_weights():
        return None
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    model = trainer.model
    found = trainer.accelerator.get_state_dict(trainer.deepspeed or model)
    unset_hf_deepspeed_config()  # or the main process, merging alone, would load a part of a model
    if not is_main() or hasattr(model, "peft_config"):
        return found
    import torch

    # FSDP trains a copy of 32 bits where the recipe has bf16; and tied weights come twice.
    tied = getattr(model, "all_tied_weights_keys", {})
    kept = {name: one for name, one in found.items() if name not in tied}
    return {name: one.to(getattr(torch, dtype)) for name, one in kept.items()}
