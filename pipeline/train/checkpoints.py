"""The checkpoints of a training: which of them are whole, and which one it goes on from.

Its own are named ``checkpoint-`` and a step, as transformers names them. Anything else beside them,
such as a copy that somebody wants to keep, is left alone.
"""

from __future__ import annotations

import errno
import re
import shutil
import zlib
from pathlib import Path
from zipfile import BadZipFile, ZipFile

from data.common.files import read_object, remove
from pipeline.model import processes

#: A checkpoint of ours, by its step.
_CHECKPOINT = re.compile("checkpoint-([0-9]{1,19})")
#: The file of a checkpoint that is written last.
STATE = "trainer_state.json"


def last_whole(checkpoints: Path) -> Path | None:
    """The newest checkpoint that was written to its end and is all there. Starts with the newest,
    since checking one reads all of it."""
    return next((path for path in reversed(ours(checkpoints)) if _is_whole(path)), None)


def ours(checkpoints: Path) -> list[Path]:
    """The checkpoints that a training has made, whole or not, the oldest first."""
    steps = {path: step_of(path / STATE) for path in checkpoints.glob("checkpoint-*")}
    return sorted((path for path, step in steps.items() if step >= 0), key=steps.__getitem__)


def keep_newest(checkpoints: Path, count: int) -> None:
    """Remove all of ours but the newest ``count``, at least one."""
    for path in ours(checkpoints)[:-count]:
        shutil.rmtree(path, ignore_errors=True)


def go_on(checkpoints: Path, name: str) -> Path | None:
    """The checkpoint to go on from. Our others are removed: they take room, and would be written
    over."""
    last = last_whole(checkpoints)
    others = [path for path in ours(checkpoints) if path != last]
    since = step_of(last / STATE) if last else -1
    for path in others:
        if (path / STATE).is_file() and step_of(path / STATE) > since:
            print(f"{name}: {path} is spoilt, and left out", flush=True)
        remove(path)
    if last:
        print(f"{name}: going on from {last}", flush=True)
    return last


def step_of(state: Path) -> int:
    """The step of a checkpoint by the name of its folder; -1 where it is not one of ours."""
    match = _CHECKPOINT.fullmatch(state.parent.name)
    return int(match[1]) if match else -1


def _is_whole(folder: Path) -> bool:
    """Whether a checkpoint's state was written to its end and is of its folder's step, no weights
    or archives are cut off or missing, and each process left its random state, which the main one
    does not wait for. Reads optimizer and random states once, for their checksums."""
    from safetensors import SafetensorError, safe_open  # which the wheel's doctor does without

    weights = list(folder.glob("*.safetensors"))
    if read_object(folder / STATE).get("global_step") != step_of(folder / STATE):
        return False
    try:
        for path in weights:
            with safe_open(path, framework="pt"):
                pass  # reads its header, and compares it with the size of the file
    except (FileNotFoundError, ValueError, SafetensorError):
        return False
    count = processes.count()
    needed = [f"rng_state_{n}.pth" for n in range(count)] if count > 1 else ["rng_state.pth"]
    # Several processes, DeepSpeed and FSDP keep weights and optimizer by other names.
    if count == 1 and processes.strategy() == "ddp":
        needed += ["optimizer.pt", "scheduler.pt"]
        if not weights:
            return False
    archives = [path for end in ("pt", "pth", "bin") for path in folder.glob(f"*.{end}")]
    return all(map(_is_sound, archives)) and all((folder / name).is_file() for name in needed)


def _is_sound(archive: Path) -> bool:
    """Whether every part of one of torch's archives has its checksum."""
    try:
        with ZipFile(archive) as parts:
            return parts.testzip() is None
    # Zipfile's words for bytes that are not where they should be.
    except (BadZipFile, EOFError, ValueError, NotImplementedError, RuntimeError, zlib.error):
        return False
    except OSError as error:
        if error.errno != errno.EINVAL:  # of a place before the beginning
            raise
        return False
