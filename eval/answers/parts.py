"""An arm's samples on disk, drawn by one process, or in parts by several at the same time.

``samples.jsonl`` is the whole. While n processes draw, each with a GPU or a machine of its own, it
is ``samples.1-of-n.jsonl`` to ``samples.n-of-n.jsonl`` beside it, each written as the answers come,
and who finishes last puts them together. Nothing but this folder, which all of them see, holds them
together:

- Every file that is written has a lock (``flock``, which ends with its process), so that no two
  processes write one file, nor one the whole while others draw parts.
- To begin and to put together, processes take turns. So of two that finish at the same moment the
  first may lack the second's answers, but the second finds the first's; or the first finds all, and
  the second a finished stage.
- A problem's answers count wherever they lie, so what several began one may finish.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.common.errors import UserError
from data.common.files import BEGUN, Stage, finished, write_bytes
from data.common.locks import holding, is_held, lock_file


@dataclass(frozen=True, order=True)
class Shard:
    """Part ``number``, from 1, of ``of``."""

    number: int
    of: int

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"

    def path(self, whole: Path) -> Path:
        return whole.with_name(f"{whole.stem}.{self.number}-of-{self.of}{whole.suffix}")


def read_shard(text: str) -> Shard:
    """``2/4`` as a Shard.

    Raises:
        UserError: when it is none.
    """
    found = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text)
    shard = Shard(int(found[1]), int(found[2])) if found else None
    if shard is None or not 1 <= shard.number <= shard.of:
        raise UserError(f"--shard must be i/n with i from 1 to n, such as 2/4, not {text!r}")
    return shard


def parts(whole: Path) -> dict[Shard, Path]:
    """The parts that lie beside ``whole``, in their order."""
    name = re.compile(rf"{re.escape(whole.stem)}\.(\d+)-of-(\d+){re.escape(whole.suffix)}")
    matches = ((name.fullmatch(path.name), path) for path in whole.parent.glob(f"{whole.stem}.*"))
    return dict(sorted((Shard(int(m[1]), int(m[2])), path) for m, path in matches if m))


# --- answers ---------------------------------------------------------------------------------


def kept(path: Path, samples: int) -> dict[str, list[bytes]]:
    """By problem, the lines of a file; only of problems with all their ``samples`` answers."""
    if not path.is_file():
        return {}
    rows: dict[str, list[bytes]] = {}
    for line in path.read_bytes().splitlines(keepends=True):
        if not line.endswith(b"\n"):  # the torn last line of an interrupted write
            break
        # A spoilt line is left out: then its problem lacks an answer, and is asked again.
        with suppress(ValueError, RecursionError, KeyError, TypeError):
            rows.setdefault(json.loads(line)["id"], []).append(line)
    return {identity: lines for identity, lines in rows.items() if len(lines) == samples}


def gathered(whole: Path, samples: int, but: Path | None = None) -> dict[str, list[bytes]]:
    """``kept`` of the whole and all its parts, ``but`` left out."""
    found: dict[str, list[bytes]] = {}
    for path in (whole, *parts(whole).values()):
        if path != but:
            found |= kept(path, samples)
    return found


def put_together(whole: Path, rows: Sequence[Mapping[str, Any]], samples: int) -> set[str]:
    """Write the answers to ``rows`` as one file, in the order of ``rows``, and remove its parts.

    So the file is the same whoever drew the answers, in whatever order. Returns the problems that
    are not answered yet; while there are any, nothing is written.
    """
    found = gathered(whole, samples)
    lacking = {row["id"] for row in rows} - found.keys()
    if not lacking:
        write_bytes(whole, b"".join(line for row in rows for line in found[row["id"]]))
        _remove(parts(whole).values())
        # A process that still holds one of these has nothing left to write.
        _remove(map(lock_file, _locked_parts(whole)))
    return lacking


def _remove(paths: Iterable[Path]) -> None:
    for path in paths:
        path.unlink(missing_ok=True)


# --- who may write ---------------------------------------------------------------------------


@contextmanager
def claimed(whole: Path, shard: Shard | None = None) -> Iterator[bool]:
    """Hold what this process is going to write: the whole, or one part.

    Yields whether no other process draws a part.

    Raises:
        UserError: when another process holds it.
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
    """Whether there is anything to draw, said where there is not. To be called in turn, holding
    what ``claimed`` gives.

    What lies there from another way of asking is removed. ``force`` begins anew what is finished;
    of a stage that others have begun a part redoes itself alone.

    Raises:
        UserError: when others are drawing by other settings, or for another number of parts.
    """
    if not alone and not finished(stage.folder) and _begun(stage.folder) != stage.key:
        raise UserError(
            f"{stage.folder} is being sampled by other processes with other settings; stop them, "
            "or let them finish"
        )
    begun = [whole, *parts(whole).values()]
    force_all = force and (shard is None or finished(stage.folder))
    if not stage.begin_unless_done(force_all, begun, shared=True):
        return False
    if stage.goes_on and shard:
        if force:
            _remove([shard.path(whole)])
        others = sorted({str(one.of) for one in parts(whole)} - {str(shard.of)})
        if others:
            raise UserError(
                f"{stage.folder} holds parts of {' and '.join(others)}, not of {shard.of}; go on "
                f"with --shard i/{others[0]}, or let one process draw the rest (without --shard)"
            )
    return True


def _begun(folder: Path) -> Any:
    """What a stage noted that it had begun; None where there is none."""
    try:
        return json.loads((folder / BEGUN).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError, RecursionError):
        return None
