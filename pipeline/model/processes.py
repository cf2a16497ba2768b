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
from typing import Any, TypeVar

from data.common.errors import is_another, require

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
    """Make ready, before anything of accelerate is built.

    Raises:
        UserError: where each process would hold a part of the weights alone.
    """
    import torch

    for name in ("FSDP", "DEEPSPEED"):
        require(
            os.environ.get(f"ACCELERATE_USE_{name}", "false").lower() != "true",
            f"{name} splits a model, which is not supported; pipeline/accelerate/ddp.yaml leaves "
            "it whole in every process",
        )
    if count() > 1 and not torch.cuda.is_available():
        # Else its device is cpu:0, to which torch loads no state of an optimizer when resuming.
        os.environ.setdefault("ACCELERATE_TORCH_DEVICE", "cpu")
        atexit.register(_part)


def _part() -> None:
    """End the group of CPU processes, whose threads may otherwise abort one that is done."""
    from torch import distributed

    if distributed.is_initialized():
        distributed.destroy_process_group()


def layout() -> dict[str, Any]:
    """What a stage's result depends on beside its recipe, whose batch sizes are a device's: empty
    for a single process."""
    return {"processes": count()} if count() > 1 else {}


def run_apart(*arguments: str) -> str:
    """What python prints with these arguments, in a process of its own.

    Raises:
        UserError: the last line that it said, where it fails.
    """
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True)
    reason = (done.stderr.strip().splitlines() or ["it was killed"])[-1]
    require(done.returncode == 0, reason.removeprefix("error: "))
    return done.stdout


#: How long the others wait for the main process, which may draw many answers meanwhile.
_PATIENCE = timedelta(days=1)


def by_main(find: Callable[[], T]) -> T:
    """What ``find`` returns in the main process, in every process; the others wait for it. Where it
    raises, they end without a word."""
    if count() == 1:
        return find()
    import torch
    from accelerate import PartialState
    from accelerate.utils import broadcast_object_list

    state = PartialState(cpu=not torch.cuda.is_available(), timeout=_PATIENCE)
    outcome: list[Any] = [None, False]
    try:
        if state.is_main_process:
            outcome = [find(), True]
    finally:
        broadcast_object_list(outcome)
    if not outcome[1]:
        sys.exit(1)
    return outcome[0]
