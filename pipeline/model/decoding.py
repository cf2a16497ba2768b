"""How answers are drawn, without torch: for the sampler and for those who ask it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Decoding:
    """How answers are drawn; the same for every arm."""

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
