"""The checkpoints of a training: which of them are whole, and which one it goes on from.

Its own are named ``checkpoint-`` and a step, as transformers names them. Whatever else lies beside
them, such as a copy that somebody wants to keep, is left alone.
"""

from __future__ import annotations

import errno
import json
import re
import shutil
import zlib
from pathlib import Path
from zipfile import BadZipFile, ZipFile

from data.common.files import remove
from pipeline.model import processes

#: A checkpoint of ours, by its step.
_NAME = re.compile("checkpoint-([0-9]{1,19})")
#: Of a checkpoint, written last.
STATE = "trainer_state.json"
#: What transformers and peft call a checkpoint's weights.
WEIGHTS, ADAPTER_WEIGHTS = "model.safetensors", "adapter_model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"


def last_whole(checkpoints: Path) -> Path | None:
    """The newest checkpoint that was written to its end and is all there; read from the newest on,
    since each that is looked at is read as a whole."""
    states = [path / STATE for path in reversed(ours(checkpoints)) if (path / STATE).is_file()]
    return next((state.parent for state in states if _is_whole(state)), None)


def ours(checkpoints: Path) -> list[Path]:
    """The checkpoints that a training has made, whole or not, the oldest first."""
    steps = {path: step_of(path / STATE) for path in checkpoints.glob("checkpoint-*")}
    return sorted((path for path, step in steps.items() if step >= 0), key=steps.__getitem__)


def keep_newest(checkpoints: Path, count: int) -> None:
    """Remove all of ours but the newest ``count``, at least one."""
    for path in ours(checkpoints)[:-count]:
        shutil.rmtree(path, ignore_errors=True)


def step_of(state: Path) -> int:
    """The step of a checkpoint by the name of its folder; -1 where that is none of ours."""
    found = _NAME.fullmatch(state.parent.name)
    return int(found[1]) if found else -1


def _is_whole(state: Path) -> bool:
    """Whether a checkpoint's last file was written to its end and is of its folder's step, none of
    its weights or archives is cut off or missing, and each process left its random state, which
    the main one does not wait for. Reads optimizer and random states once, for their checksums."""
    from safetensors import SafetensorError, safe_open

    folder, single = state.parent, processes.count() == 1
    # Several may keep theirs in parts; so do DeepSpeed and FSDP, by other names, and for one, too.
    whole = single and processes.strategy() == "ddp"
    try:
        found = json.loads(state.read_text(encoding="utf-8"))
        if not isinstance(found, dict) or found.get("global_step") != step_of(state):
            return False
        for path in folder.glob("*.safetensors"):
            with safe_open(path, framework="pt"):
                pass  # its header is read, and compared with the size of the file
        weights = _weights(folder) if whole else []
    except (ValueError, SafetensorError):
        return False
    archives = [path for end in ("pt", "pth", "bin") for path in folder.glob(f"*.{end}")]
    if not all(map(_is_sound, archives)):
        return False
    if single:
        needed = ["rng_state.pth"]
    else:
        needed = [f"rng_state_{number}.pth" for number in range(processes.count())]
    if whole:
        needed += ["optimizer.pt", "scheduler.pt", *weights]
    return all((folder / name).is_file() for name in needed)


def _weights(folder: Path) -> list[str]:
    """The files that the weights of a checkpoint must be in.

    Raises:
        ValueError: when they are in several, and the list of these is none.
    """
    if (folder / ADAPTER_CONFIG).is_file():
        return [ADAPTER_WEIGHTS]
    index = folder / f"{WEIGHTS}.index.json"
    if not index.is_file():
        return [WEIGHTS]
    listed = json.loads(index.read_text(encoding="utf-8"))
    names = listed.get("weight_map") if isinstance(listed, dict) else None
    if not isinstance(names, dict) or not names:
        raise ValueError(f"{index} names no files")
    return sorted(set(map(str, names.values())))


def _is_sound(archive: Path) -> bool:
    """Whether every part of an archive of torch's has its checksum."""
    try:
        with ZipFile(archive) as parts:
            return parts.testzip() is None
    # What zipfile says of bytes that are not where they should be.
    except (BadZipFile, EOFError, ValueError, NotImplementedError, RuntimeError, zlib.error):
        return False
    except OSError as error:
        if error.errno != errno.EINVAL:  # of a place before the beginning
            raise
        return False


def go_on(checkpoints: Path, name: str) -> Path | None:
    """The checkpoint to go on from. The others of ours are removed, half ones above all: they take
    room, and would be written over."""
    last = last_whole(checkpoints)
    since = step_of(last / STATE) if last else -1
    for path in ours(checkpoints):
        if path != last:
            if (path / STATE).is_file() and step_of(path / STATE) > since:
                print(f"{name}: {path} is spoilt, and left out", flush=True)
            remove(path)
    if last:
        print(f"{name}: going on from {last}", flush=True)
    return last
