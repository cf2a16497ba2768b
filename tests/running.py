"""Where things lie, and how a test runs something or reads what it left: a call that is refused,
another process, a work against the clock, files."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data.common.errors import UserError
from data.common.files import read_jsonl

ROOT = Path(__file__).parents[1]
RECIPES, EMBEDDED = ROOT / "pipeline" / "recipes", ROOT / "pipeline" / "embedded"
TINY = RECIPES / "tiny.yaml"
SHARED = ROOT.parent / "shared"
BLOG, CASES = SHARED / "blog", SHARED / "cases"
needs_blog = pytest.mark.skipif(not BLOG.is_dir(), reason="lies beside the project, not in it")
needs_cases = pytest.mark.skipif(not CASES.is_dir(), reason="lies beside the project, not in it")


def refusal_of(call: Callable[[], object], *named: str) -> str:
    """The one sentence in which a call is refused; it must name all of these."""
    with pytest.raises(UserError) as refused:
        call()
    said = str(refused.value)
    assert "\n" not in said
    assert [part for part in named if part not in said] == [], said
    return said


def python(
    *arguments: object, cwd: Path = ROOT, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Another process's run of python, which finds the project's modules."""
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
    )


def raising(error: BaseException) -> Callable[[], None]:
    """A command that ends so."""

    def main() -> None:
        raise error

    return main


def rows_in(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSONL file."""
    return [row for _, row in read_jsonl(path)]


def change_json(path: Path, **changes: object) -> None:
    """Change keys of a file, or drop those that are given as None."""
    content = {**json.loads(path.read_text()), **changes}
    gone = {key for key, value in changes.items() if value is None}
    path.write_text(json.dumps({key: v for key, v in content.items() if key not in gone}))


def within(limit: float, work: Callable[[], object]) -> bool:
    """Whether a work takes less than so many seconds of CPU in one of three tries: other processes
    may have the machine busy."""

    def seconds() -> float:
        started = time.process_time()
        work()
        return time.process_time() - started

    return any(seconds() < limit for _ in range(3))
