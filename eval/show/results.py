"""Reading what ``make eval`` wrote: only whole, unchanged and of the answers that are there now."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data.common.errors import UserError
from data.common.files import finished, read_object, sha256, stage_facts
from data.run import VERDICTS, Run, goal


def read_result(path: Path) -> dict[str, Any]:
    """The content of a JSON file that ``make eval`` wrote.

    Raises:
        UserError: when it is not the one that was written, by the hash in the manifest beside it.
    """
    written = stage_facts(path.parent).get("hashes", {}).get(path.name)
    if not path.is_file() or sha256(path) != written:
        raise UserError(
            f"{path} was changed since `make eval` wrote it; delete it, and {goal('eval')} writes "
            "it again"
        )
    return read_object(path)


def standing(path: Path, run: Run, reported: Sequence[str]) -> Path | None:
    """A result at ``path``, where it is about the answers and verdicts that are there now, and
    about no arm that is not ``reported``."""
    if not (finished(path.parent) and path.is_file()):
        return None
    inputs = {Path(name): known for name, known in stage_facts(path.parent)["inputs"].items()}
    verdicts = {run.verdicts(arm) for arm in reported}
    if not verdicts.issuperset(file for file in inputs if file.name == VERDICTS):
        return None
    same = all(file.exists() and sha256(file) == known for file, known in inputs.items())
    return path if same else None
