"""Files that stages leave for each other: JSONL, whole-file writes, and manifests.

Every file is written under a temporary name and renamed, so a reader never sees half of one.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import time
from collections.abc import Iterable, Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from data.errors import UserError

MANIFEST, BEGUN = "manifest.json", "begun.json"
_PACKAGES = ("torch", "transformers", "trl", "peft", "datasets", "accelerate", "ortools", "unsloth")


def read_jsonl(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line number, record) of a JSONL file; blank lines are passed over.

    Raises:
        UserError: when the file is missing, or naming the line that is not a JSON object.
    """
    if not path.is_file():
        raise UserError(f"{path} does not exist")
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise UserError(f"{path}:{number} is not valid JSON ({error})") from None
            if not isinstance(record, dict):
                raise UserError(f"{path}:{number} must be a JSON object")
            yield number, record


def to_line(record: dict[str, Any]) -> str:
    """One JSONL line, the same bytes on every machine."""
    return json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n"


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file whole: a temporary name beside it, flushed to disk, then renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text whole, as UTF-8. Lone surrogates, which a completion may hold but UTF-8 may
    not, are written as their escape."""
    write_bytes(path, text.encode("utf-8", errors="backslashreplace"))


def write_jsonl(path: Path, records: Iterable[dict[str, Any]]) -> None:
    write_text(path, "".join(map(to_line, records)))


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def sha256(path: Path) -> str:
    """Hash of a file, or of a folder's files by name (manifests aside: they hold wall times).

    Raises:
        UserError: when there is nothing at ``path``.
    """
    if not path.exists():
        raise UserError(f"{path} does not exist")
    digest = hashlib.sha256()
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    for file in files:
        if file.name not in (MANIFEST, BEGUN):
            name = file.name if file == path else file.relative_to(path).as_posix()
            digest.update(name.encode() + b"\0")
            with file.open("rb") as content:
                while block := content.read(1 << 20):
                    digest.update(block)
    return digest.hexdigest()


def finished(folder: Path) -> bool:
    """Whether the stage of ``folder`` ran to its end: its manifest is written last."""
    return (folder / MANIFEST).is_file()


def stage_facts(folder: Path) -> dict[str, Any]:
    """The manifest of a finished stage.

    Raises:
        UserError: when it is missing or spoilt.
    """
    found = _read_object(folder / MANIFEST)
    if not found:
        raise UserError(f"{folder / MANIFEST} cannot be read; FORCE=1 redoes its stage")
    return found


class Stage:
    """One stage's output folder and the manifest that says what made it.

    A stage is current when its manifest names the same settings and the same input contents, and
    its outputs still exist. The manifest is removed before the stage's work and written after it,
    so an interrupted stage is never taken for a finished one. What it had begun is noted, so that
    the same stage may go on with what it finds (``goes_on``) and another one does not.
    """

    def __init__(
        self, folder: Path, name: str, settings: dict[str, Any], inputs: Sequence[Path] = ()
    ) -> None:
        self.folder, self.name = folder, name
        self.key = {
            "stage": name,
            "settings": json.loads(json.dumps(settings)),
            "inputs": {str(path): sha256(path) for path in inputs},
        }
        self.goes_on = False
        self._started = time.monotonic()

    def is_current(self, force: bool = False) -> bool:
        """Whether the work is done already; says so. Otherwise marks it as begun."""
        if self.is_done(force):
            return True
        self.begin(force)
        return False

    def is_done(self, force: bool = False) -> bool:
        """Whether the work is done already; says so, and touches nothing."""
        found = {} if force else _read_object(self.folder / MANIFEST)
        done = {key: found.get(key) for key in self.key} == self.key
        if done and all((self.folder / output).exists() for output in found.get("outputs", ())):
            print(f"{self.name}: up to date ({self.folder}); FORCE=1 redoes it", flush=True)
            return True
        return False

    def begin(self, force: bool = False) -> None:
        """Mark the work as begun: what was finished before is so no longer."""
        (self.folder / MANIFEST).unlink(missing_ok=True)
        begun = self.folder / BEGUN
        self.goes_on = not force and _read_object(begun) == self.key
        write_json(begun, self.key)

    def finish(self, outputs: Sequence[str], **facts: Any) -> None:
        """Write the manifest: key, outputs, versions, commit, wall time and any further facts."""
        write_json(
            self.folder / MANIFEST,
            {
                **self.key,
                "outputs": list(outputs),
                "versions": _versions(),
                "commit": _commit(),
                "seconds": round(time.monotonic() - self._started, 1),
                **facts,
            },
        )
        (self.folder / BEGUN).unlink(missing_ok=True)


def _read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file of ours; empty when it is missing or spoilt: its work is redone."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _commit() -> str | None:
    """The git commit of this code, marked when the tree differs from it; None outside git."""
    git = [
        "git",
        "-C",
        str(Path(__file__).parent),
        "describe",
        "--always",
        "--dirty",
        "--abbrev=12",
    ]
    try:
        return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
