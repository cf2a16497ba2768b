"""Files that stages leave for each other: JSONL, whole-file writes, and manifests.

Every file is written under a temporary name and renamed, so a reader never sees half of one.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from filelock import BaseFileLock

from data.common.errors import UserError, require
from data.common.locks import hold, release

MANIFEST, BEGUN = "manifest.json", "begun.json"
#: Packages on which weights, answers and intervals depend.
_RECORDED = (
    "torch", "transformers", "trl", "peft", "datasets", "accelerate", "unsloth",
    "ortools", "numpy", "scipy",
)  # fmt: skip


def read_jsonl(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line number, record) of a JSONL file; blank lines are passed over.

    Raises:
        UserError: when the file is missing, or naming the line that is not a JSON object.
    """
    require(path.is_file(), f"{path} {'is a folder' if path.is_dir() else 'does not exist'}")
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            record = decoded(line, f"{path}:{number}")
            if not isinstance(record, dict):
                raise UserError(f"{path}:{number} must be a JSON object")
            yield number, record


def decoded(text: str | bytes, what: str) -> Any:
    """What a JSON text holds; UserError says that ``what`` is not valid where it is not."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{what} is not valid JSON ({error})") from None


def to_line(record: Mapping[str, object]) -> str:
    """One JSONL line, the same bytes on every machine."""
    return json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n"


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file whole: under a temporary name, flushed to disk, then renamed.

    A leftover temporary file is overwritten.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text whole, as UTF-8; lone surrogates, which a completion may hold, as escapes."""
    write_bytes(path, text.encode("utf-8", errors="backslashreplace"))


def write_jsonl(path: Path, records: Iterable[Mapping[str, object]]) -> None:
    write_text(path, "".join(map(to_line, records)))


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_folder(folder: Path, fill: Callable[[Path], Any]) -> None:
    """Have ``fill`` write a folder beside the old one, flush it to disk, and put it in its place.

    The old one is whole until then, or lies aside until the next call puts it back.
    """
    fresh, aside = (folder.with_name(f".{folder.name}.{end}") for end in ("tmp", "old"))
    if aside.exists() and not folder.exists():
        aside.rename(folder)
    remove(fresh)
    remove(aside)
    try:
        fill(fresh)
        for path in fresh.rglob("*"):
            if path.is_file():
                with path.open("rb") as file:
                    os.fsync(file.fileno())
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)  # half of it, where room may be lacking
        raise
    if folder.exists():
        folder.rename(aside)
    fresh.rename(folder)
    remove(aside)


def remove(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def sha256(path: Path) -> str:
    """Hash of a file, or of a folder's files by name, without manifests, which hold wall times.

    Raises:
        UserError: when there is nothing at ``path``.
    """
    require(path.exists(), f"{path} does not exist")
    digest = hashlib.sha256()
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    for file in files:
        if file.name not in (MANIFEST, BEGUN):
            name = file.name if file == path else file.relative_to(path).as_posix()
            digest.update(name.encode() + b"\0")
            with file.open("rb") as content:
                hashlib.file_digest(content, lambda: digest)
    return digest.hexdigest()


def finished(folder: Path) -> bool:
    """Whether the stage of ``folder`` ran to its end: its manifest is written last."""
    return (folder / MANIFEST).is_file()


def stage_facts(folder: Path) -> dict[str, Any]:
    """The manifest of a finished stage, with ``settings`` and ``inputs``.

    Raises:
        UserError: when it is missing or spoilt.
    """
    path = folder / MANIFEST
    require(path.is_file(), f"{path} does not exist: its stage is not finished")
    manifest = read_object(path)
    if not all(isinstance(manifest.get(key), dict) for key in ("settings", "inputs")):
        raise UserError(f"{path} cannot be read; delete it, and its stage is done again")
    return manifest


class Stage:
    """One stage's output folder and the manifest that says what made it.

    A stage is done when its manifest names the same settings and the same input contents, and its
    outputs still exist. The manifest is removed before the stage's work and written after it, so
    an interrupted stage is never taken for a finished one. A stage that began is noted, so that the
    same one may go on with what it finds (``goes_on``), and no other. One process at a time does
    the work of a folder.
    """

    def __init__(
        self, folder: Path, name: str, settings: Mapping[str, Any], inputs: Sequence[Path] = ()
    ) -> None:
        self.folder, self.name = folder, name
        self.key = {
            "stage": name,
            "settings": json.loads(json.dumps(settings)),
            "inputs": {str(path): sha256(path) for path in inputs},
        }
        self.goes_on = False
        self._started = time.monotonic()
        self._lock: BaseFileLock | None = None

    def __getstate__(self) -> dict[str, Any]:
        """A copy for another process that trains along: the lock stays with this one."""
        return {**vars(self), "_lock": None}

    def is_done(self) -> bool:
        """Whether the work is done already."""
        manifest = read_object(self.folder / MANIFEST)
        return all(manifest.get(key) == value for key, value in self.key.items()) and all(
            (self.folder / output).exists() for output in manifest.get("outputs", ())
        )

    def begin_unless_done(self, force: bool = False, partial: Iterable[Path] = ()) -> bool:
        """``claim`` and ``begin``; returns whether there is work to do, and says where not.

        Args:
            force: do it though it is done.
            partial: see ``begin``.

        Raises:
            UserError: when another process is at it.
        """
        if not self.claim(force):
            return False
        self.begin(force, partial)
        return True

    def claim(self, force: bool = False) -> bool:
        """Keep other processes from the folder until it is finished or this process ends.

        Returns whether there is work to do, and says where not.

        Raises:
            UserError: when another process is at it.
        """
        if self._says_done(force):
            return False
        self._lock = hold(self.folder)
        if self._says_done(force):  # by another process, just now
            release(self._lock)
            return False
        return True

    def begin(self, force: bool = False, partial: Iterable[Path] = ()) -> None:
        """Mark the work as begun: what was finished before is so no longer.

        Args:
            force: start from nothing.
            partial: the files and folders that the work leaves half done, to go on with. Unless it
                goes on they are removed, before it is noted as begun: killed between the two, it
                would take another's for its own.
        """
        (self.folder / MANIFEST).unlink(missing_ok=True)
        begun = self.folder / BEGUN
        self.goes_on = not force and read_object(begun) == self.key
        if not self.goes_on:
            begun.unlink(missing_ok=True)
            for path in partial:
                remove(path)
            write_json(begun, self.key)

    def finish(self, outputs: Sequence[str], **facts: Any) -> None:
        """Write the manifest: key, outputs, versions, commit, machine, seconds, further facts."""
        write_json(
            self.folder / MANIFEST,
            {
                **self.key,
                "outputs": list(outputs),
                "versions": _versions(),
                "commit": _commit(),
                "machine": _machine(),
                "seconds": round(time.monotonic() - self._started, 1),
                **facts,
            },
        )
        (self.folder / BEGUN).unlink(missing_ok=True)
        if self._lock:
            release(self._lock)

    def _says_done(self, force: bool) -> bool:
        """Say that the work is done, where it is and nobody insists."""
        if force or not self.is_done():
            return False
        print(f"{self.name}: up to date ({self.folder}); FORCE=1 redoes it", flush=True)
        return True


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file of ours; empty when it is missing or spoilt: its work is redone."""
    with suppress(FileNotFoundError, ValueError, RecursionError):
        content = json.loads(path.read_text(encoding="utf-8"))
        return content if isinstance(content, dict) else {}
    return {}


def _versions() -> dict[str, str]:
    versions = {}
    for package in _RECORDED:
        with suppress(PackageNotFoundError):
            versions[package] = version(package)
    return versions


def _machine() -> str:
    """Processor and cores, and the GPU where torch is in use and has one."""
    text = f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPU cores"
    torch = sys.modules.get("torch")
    if torch and torch.cuda.is_available():
        text += f", {torch.cuda.device_count()} x {torch.cuda.get_device_name(0)}"
    return text


def _commit() -> str | None:
    """The git commit of this code, marked when the tree differs from it; None outside git."""
    here, command = Path(__file__).parent, ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        done = subprocess.run(command, cwd=here, capture_output=True, text=True, check=True)
        return done.stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
