"""An arm's samples on disk, drawn by one process, or in parts by several at the same time.

``samples.jsonl`` is the whole. While n processes draw, each with its own GPU or machine, each
writes its part ``samples.i-of-n.jsonl`` beside it as the answers come, and the last to finish joins
them. They share nothing but this folder:

- Every file being written is locked (``data.common.locks``), so no file has two writers, and
  nobody writes the whole while others draw parts.
- Processes take turns to begin and to join. Of two that finish at the same moment, the second
  finds the answers of the first, or a finished stage.
- A problem's answers count wherever they lie, so one process may finish what several began.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from data.common.errors import UserError
from data.common.files import Stage, finished, write_bytes
from data.common.locks import holding, is_held, lock_file

T = TypeVar("T")


@dataclass(frozen=True)
class Shard:
    """Part ``number``, from 1, of ``of``."""

    number: int
    of: int

    def path(self, whole: Path) -> Path:
        return whole.with_name(f"{whole.stem}.{self.number}-of-{self.of}{whole.suffix}")

    def share(self, items: Sequence[T], batches: Sequence[Sequence[int]]) -> list[T]:
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


def parts(whole: Path) -> list[Path]:
    """The parts that lie beside ``whole``, of whatever number of them."""
    return sorted(whole.parent.glob(f"{whole.stem}.*-of-*{whole.suffix}"))


# --- answers ---------------------------------------------------------------------------------


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


def gathered(whole: Path, samples: int, but: Path | None = None) -> dict[str, list[bytes]]:
    """``kept`` of the whole and all its parts, ``but`` left out."""
    answers: dict[str, list[bytes]] = {}
    for path in (whole, *parts(whole)):
        if path != but:
            answers |= kept(path, samples)
    return answers


def put_together(whole: Path, ids: Collection[str], samples: int) -> set[str]:
    """Write the answers to all problems ``ids`` as one file, in their order, and remove its parts.

    The file is the same whoever drew the answers, in whatever order. Returns the problems that lack
    answers; while there are any, nothing is written.
    """
    answers = gathered(whole, samples)
    lacking = set(ids) - answers.keys()
    if not lacking:
        write_bytes(whole, b"".join(line for identity in ids for line in answers[identity]))
        _remove(parts(whole))
        # A process that still holds one of these has nothing left to write.
        _remove(map(lock_file, _locked_parts(whole)))
    return lacking


def _remove(paths: Iterable[Path]) -> None:
    for path in paths:
        path.unlink(missing_ok=True)


# --- who may write ---------------------------------------------------------------------------


@contextmanager
def claimed(whole: Path, shard: Shard | None = None) -> Iterator[bool]:
    """Lock what this process is going to write: the whole, or one part.

    Yields whether no other process draws a part.

    Raises:
        UserError: when another process writes it.
    """
    mine = shard.path(whole) if shard else whole
    with holding(mine):
        if shard:
            with holding(whole):  # nobody draws the whole
                pass
        alone = not any(is_held(part) for part in _locked_parts(whole) if part != mine)
        if not alone and not shard:
            raise UserError(
                f"{whole} cannot be written: other processes are drawing parts of it (--shard)"
            )
        yield alone


def _locked_parts(whole: Path) -> list[Path]:
    """The parts that have a lock file, which a killed process leaves behind."""
    locks = whole.parent.glob(lock_file(whole.with_name(f"{whole.stem}.*-of-*{whole.suffix}")).name)
    return [whole.with_name(lock.name.removeprefix(".").removesuffix(".lock")) for lock in locks]


def begin(stage: Stage, whole: Path, shard: Shard | None, force: bool, alone: bool) -> bool:
    """Mark a stage of sampling as begun unless it is done; returns whether there is work left.

    Called in turn, holding what ``claimed`` gives. Answers to another way of asking are removed.
    ``force`` restarts what is finished; in a stage that others have begun a part redoes itself
    alone.

    Raises:
        UserError: when others draw by other settings.
    """
    folder = stage.folder
    if not (alone or finished(folder) or stage.is_begun()):
        raise UserError(
            f"{folder} is being sampled by other processes with other settings; stop them, or let "
            "them finish"
        )
    partial = [whole, *parts(whole)]
    restart = force and (shard is None or finished(folder))
    if not stage.begin_unless_done(restart, partial, shared=True):
        return False
    if stage.goes_on and shard and force:
        _remove([shard.path(whole)])
    return True
