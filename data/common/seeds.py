"""Randomness: every stream has a seed hashed from what it is for, never one added to another."""

from __future__ import annotations

import hashlib


def seed_of(*parts: int | str) -> int:
    """A 63-bit seed from a path such as ``(master seed, split, tier, index)``."""
    text = "\x1f".join(map(str, parts))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) >> 1
