"""Which backend trains: Unsloth, which saves memory, or plain TRL, the stable fallback.

Unsloth patches other libraries as it is imported, so ``start_backend`` comes before anything that
imports transformers, peft or trl.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec

from data.common.errors import reason_of, require
from pipeline.model import processes

#: Libraries that Unsloth patches where it is imported first.
PATCHED = ("transformers", "peft", "trl")
#: Unsloth counts its users over the network at every load, and gives up where that is slow.
_NO_STATISTICS = {"UNSLOTH_DISABLE_STATISTICS": "1"}


@dataclass(frozen=True)
class Backend:
    """The backend that trains, ``unsloth`` or ``trl``, and why."""

    name: str
    why: str

    @property
    def is_unsloth(self) -> bool:
        return self.name == "unsloth"


def start_backend(wanted: str, fast_inference: bool, quantised: bool) -> Backend:
    """Choose the backend, import it, and make the devices ready.

    Raises:
        UserError: see ``choose_backend``; where ``fast_inference`` is not available, or weights
            that are ``quantised`` would be cut up.
    """
    require(
        not (quantised and processes.cuts_weights()),
        "quantised weights are not cut up among processes; pipeline/accelerate/ddp.yaml or "
        "zero2.yaml leaves them whole, or bits: 16",
    )
    processes.prepare_devices()
    backend = choose_backend(wanted)
    if fast_inference:
        require(
            backend.is_unsloth,
            f"fast_inference is Unsloth's, and the backend is {backend.name} ({backend.why}); take "
            "grpo.use_vllm with it, or neither",
        )
        require(
            find_spec("vllm") is not None,
            "fast_inference needs vllm, which is not installed; `.venv/bin/pip install vllm`, or "
            "leave the key out",
        )
    return backend


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

    ``auto`` takes Unsloth where there are CUDA and Unsloth. Where it cannot be imported, or cannot
    patch what is installed, TRL takes its place. Chosen once a process: patches stay.

    Raises:
        UserError: when Unsloth is asked for by name and not available.
    """
    import torch

    auto = wanted == "auto"
    if wanted == "trl":
        return Backend("trl", "as asked for")
    if auto and not torch.cuda.is_available():
        return Backend("trl", "there is no CUDA GPU")
    if processes.count() > 1:
        # Unsloth documents DDP for SFT; its GRPO is reported to hang there, and neither is tried.
        require(
            auto,
            f"backend: unsloth trains in one process here, not in {processes.count()}; BACKEND=trl "
            "(--backend trl) does in several",
        )
        return Backend("trl", f"there are {processes.count()} processes")
    if find_spec("unsloth") is None:
        require(auto, "backend: unsloth is not installed; `make setup` does that, or BACKEND=trl")
        return Backend("trl", "Unsloth is not installed")
    # An import that fails half-way has patched half, so `auto` tries in another process first.
    reason = (_try_unsloth() if auto else None) or import_unsloth()
    if reason is None:
        return Backend("unsloth", "there is a CUDA GPU" if auto else "as asked for")
    require(auto, f"backend: unsloth cannot be used here: {reason}; BACKEND=trl goes without")
    return Backend("trl", f"Unsloth cannot be used here: {reason}")


def _try_unsloth() -> str | None:
    """Import Unsloth in a process of its own; the reason in a line where that fails."""
    trial = f"import sys; from {__name__} import import_unsloth; sys.exit(import_unsloth())"
    environment = {**_NO_STATISTICS, **os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", trial], capture_output=True, text=True, env=environment
    )
    if not done.returncode:
        return None
    return (done.stderr.strip().splitlines() or [f"its import ends with {done.returncode}"])[-1]


def import_unsloth() -> str | None:
    """Import Unsloth; the reason in a line where that fails."""
    late = [name for name in PATCHED if name in sys.modules]
    if "unsloth" not in sys.modules and late:
        return f"{', '.join(late)} had been imported before it"
    for key, value in _NO_STATISTICS.items():
        os.environ.setdefault(key, value)
    try:
        import unsloth  # noqa: F401
    except Exception as error:  # a library that patches five others may run into anything
        return f"{type(error).__name__}: {reason_of(error)}"
    return None
