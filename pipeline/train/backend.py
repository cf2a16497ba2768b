"""Which backend trains: Unsloth, which saves memory, or plain TRL, the stable fallback.

Unsloth patches other libraries as it is imported, so ``choose_backend`` comes before anything that
imports transformers, peft or trl.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec

from data.common.errors import UserError, reason_of, require
from data.sections import SamplingSection
from pipeline.model import processes

#: Libraries that Unsloth patches where it is imported first.
PATCHED = ("transformers", "peft", "trl")


@dataclass(frozen=True)
class Backend:
    """The backend that trains, ``unsloth`` or ``trl``, and why."""

    name: str
    why: str

    @property
    def is_unsloth(self) -> bool:
        return self.name == "unsloth"


def takes_vllm(unsloth: bool, sampling: SamplingSection, quantised: bool) -> bool:
    """Whether vLLM draws GRPO's answers though the recipe does not say: where it is installed, with
    a GPU. By Unsloth that is its fast inference; TRL cannot hand it quantised weights. Problems are
    chosen by our own sampler."""
    import torch

    there = find_spec("vllm") is not None and torch.cuda.is_available()
    return there and not sampling and (unsloth or not quantised)


def require_packages(source: str, needs: Iterable[tuple[str, str]]) -> None:
    """Raise UserError naming the first (key of the recipe, package) whose package is missing."""
    for key, package in needs:
        require(
            find_spec(package) is not None,
            f"{source}: {key} needs {package}, which is not installed; `.venv/bin/pip install "
            f"{package.replace('_', '-')}`, or leave the key out",
        )


@cache
def choose_backend(wanted: str) -> Backend:
    """The backend for ``auto``, ``unsloth`` or ``trl``; Unsloth, if chosen, is imported.

    ``auto`` takes Unsloth where there are CUDA and Unsloth. Chosen once a process: patches stay.

    Raises:
        UserError: when Unsloth is asked for by name and not available, or cannot be imported.
    """
    import torch

    auto = wanted == "auto"
    if wanted == "trl":
        return Backend("trl", "as asked for")
    if auto and not torch.cuda.is_available():
        return Backend("trl", "there is no CUDA GPU")
    instead = "BACKEND=trl (--backend trl) goes without"
    if hindrance := _hindrance():
        require(auto, f"backend: unsloth cannot be used here: {hindrance}; {instead}")
        return Backend("trl", hindrance)
    # Else it counts its users over the network at every load, and gives up where that is slow.
    os.environ.setdefault("UNSLOTH_DISABLE_STATISTICS", "1")
    try:
        import unsloth  # noqa: F401
    except Exception as error:  # a library that patches five others may run into anything
        reason = f"{type(error).__name__}: {reason_of(error)}"
        raise UserError(f"backend: unsloth cannot be used here: {reason}; {instead}") from None
    return Backend("unsloth", "there is a CUDA GPU" if auto else "as asked for")


def is_unsloth_wanted(wanted: str) -> bool:
    """Whether ``wanted`` lets Unsloth train on this machine; imports nothing, unlike the choice."""
    import torch

    found = torch.cuda.is_available() and find_spec("unsloth") is not None
    return wanted == "unsloth" or (wanted == "auto" and found and processes.count() == 1)


def _hindrance() -> str | None:
    """Why Unsloth is not even tried here; None where it is."""
    # Unsloth documents DDP for SFT; its GRPO is reported to hang there, and neither is tried.
    if processes.count() > 1:
        return f"there are {processes.count()} processes"
    if find_spec("unsloth") is None:
        return "Unsloth is not installed"
    late = [name for name in PATCHED if name in sys.modules]
    if late and "unsloth" not in sys.modules:
        return f"{', '.join(late)} had been imported before it"
    return None
