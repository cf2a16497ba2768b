"""Answers on disk: which problems of a file are answered, and parts that several processes draw.

While n processes draw an arm's answers, each with its own GPU or machine, each writes a part,
``part-i-of-n/samples.jsonl``, as a stage of its own. The last to finish joins them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from data.common.errors import UserError
from data.common.files import write_bytes

Item = TypeVar("Item")


@dataclass(frozen=True)
class Shard:
    """Part ``number``, from 1, of ``of``."""

    number: int
    of: int

    def __str__(self) -> str:
        return f"{self.number}-of-{self.of}"

    @property
    def all(self) -> list[Shard]:
        """All parts that this one is among."""
        return [Shard(number, self.of) for number in range(1, self.of + 1)]

    def share(self, items: Sequence[Item], batches: Sequence[Sequence[int]]) -> list[Item]:
        """The part's items, in order: every n-th of the ``batches``, which hold their indices.

        The last batch, which may be smaller, is the last of its part too, so a part that is cut
        into batches again gives the same ones.
        """
        dealt = batches[self.number - 1 :: self.of]
        return [items[i] for i in sorted(i for batch in dealt for i in batch)]


def read_shard(text: str) -> Shard:
    """``2/4`` as a Shard.

    Raises:
        UserError: when it is not one.
    """
    match = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text)
    shard = Shard(int(match[1]), int(match[2])) if match else None
    if shard is None or not 1 <= shard.number <= shard.of:
        raise UserError(f"--shard must be i/n with i from 1 to n, such as 2/4, not {text!r}")
    return shard


def kept(path: Path, samples: int) -> dict[str, list[bytes]]:
    """By problem, the lines of a file; only of problems with all their ``samples`` answers."""
    if not path.is_file():
        return {}
    rows: dict[str, list[bytes]] = {}
    for line in path.read_bytes().splitlines(keepends=True):
        if not line.endswith(b"\n"):  # the torn last line of an interrupted write
            break
        # Without its spoilt line a problem lacks an answer, and is asked again.
        with suppress(ValueError, RecursionError, KeyError, TypeError):
            rows.setdefault(json.loads(line)["id"], []).append(line)
    return {identity: lines for identity, lines in rows.items() if len(lines) == samples}


def join(files: Iterable[Path], whole: Path, ids: Iterable[str], samples: int) -> None:
    """Write the answers in ``files`` to one, in the order of the problems ``ids``, so that the
    bytes are the same whoever drew them, in whatever order."""
    answers: dict[str, list[bytes]] = {}
    for path in files:
        answers |= kept(path, samples)
    write_bytes(whole, b"".join(line for identity in ids for line in answers[identity]))
