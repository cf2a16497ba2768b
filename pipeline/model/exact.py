"""A model computed in float32 whatever its weights are held in, to see whether two ways agree."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map


class InFloat32(TorchFunctionMode):
    """A context in which every operation reads numbers of less precision as float32.

    What bfloat16 rounds away would hide the difference between two ways of computing the same: on
    texts that no model expects it is a nat and more.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        args, kwargs = tree_map(_in_float32, (args, kwargs or {}))
        return func(*args, **kwargs)


def _in_float32(value: Any) -> Any:
    low = isinstance(value, Tensor) and value.dtype in (torch.bfloat16, torch.float16)
    return value.float() if low else value
