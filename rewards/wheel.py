"""Stage ``make wheel``: problems, judgement and doctor as one wheel, ``slotwise``.

``data`` and ``rewards`` cannot be installed under such common names: the files are copied below
``slotwise``, ``rewards/environments`` to its top, and what they import of one another is renamed.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from shutil import copyfile
from tempfile import TemporaryDirectory

from data.common.errors import UserError, run_main

ROOT = Path(__file__).resolve().parents[1]
#: Folders, and files of the pipeline that the doctor imports.
PARTS = (
    *("data", "rewards", "pipeline/health", "pipeline/__init__.py"),
    *("pipeline/doctor.py", "pipeline/train/__init__.py", "pipeline/train/checkpoints.py"),
    *("pipeline/model/__init__.py", "pipeline/model/processes.py"),
)
_TOP = "rewards/environments"
_IMPORT = re.compile(r"^( *)(from|import) (data|rewards|pipeline)\b", re.MULTILINE)
_PROJECT = """
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"
[project]
name = "slotwise"
version = "0.1.0"
description = "Scheduling problems with proven optima, their verifier and rewards"
license = "Apache-2.0"
requires-python = ">=3.11"
dependencies = ["filelock", "ortools>=9.12", "pyyaml", "rich", "scipy"]
[project.scripts]
slotwise-doctor = "slotwise.pipeline.doctor:command"
[tool.setuptools]
packages = {packages}
[tool.setuptools.package-data]
"*" = ["*.md"]
"""


def _files() -> Iterator[Path]:
    for part in (ROOT / name for name in PARTS):
        yield from sorted([*part.rglob("*.py"), *part.rglob("*.md")]) if part.is_dir() else [part]


def stage(folder: Path) -> None:
    """Write the sources of the wheel below ``folder``."""
    packages = set()
    for path in _files():
        inside = path.relative_to(ROOT).as_posix()
        copy = folder / "slotwise" / inside.removeprefix(f"{_TOP}/")
        copy.parent.mkdir(parents=True, exist_ok=True)
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".py":
            text = text.replace(f"from {_TOP.replace('/', '.')}", "from slotwise")
            text = _IMPORT.sub(r"\1\2 slotwise.\3", text)
        copy.write_text(text, encoding="utf-8")
        packages.add(".".join(copy.parent.relative_to(folder).parts))
    project = _PROJECT.format(packages=sorted(packages))
    copyfile(ROOT / "LICENSE", folder / "LICENSE")
    (folder / "pyproject.toml").write_text(project, encoding="utf-8")


def build(out: Path) -> Path:
    """Build the wheel into the folder ``out``.

    Raises:
        UserError: with the last line that pip said, when it fails.
    """
    with TemporaryDirectory() as folder:
        stage(Path(folder))
        command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps"]
        command += ["--no-build-isolation", "--wheel-dir", str(out), folder]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"pip cannot build the wheel ({done.stderr.strip().splitlines()[-1]})")
    return max(out.glob("slotwise-*.whl"), key=lambda path: path.stat().st_mtime)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("dist"), help="folder (default: dist)")
    print(f"pip install {build(parser.parse_args().out)}")


if __name__ == "__main__":
    run_main(main)
