"""Reading what ``make eval`` wrote: only whole, unchanged and of the answers that are there now."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from data.common.errors import UserError
from data.common.files import finished, sha256, stage_facts
from data.run import VERDICTS, Run


def read_result(path: Path) -> dict[str, Any]:
    """The object of a JSON file that ``make eval`` wrote. Asking it, or an object within it, for a
    key that it lacks, as that of an older version may, raises a UserError.

    Raises:
        UserError: when the file is missing, is no JSON object, or is not the one that was written,
            by the hash that the manifest beside it may have.
    """
    again = "delete it, and `make eval` writes it again"
    if not path.is_file():
        raise UserError(f"{path} is missing; `make eval` writes it again")
    known = stage_facts(path.parent).get("hashes", {}) if finished(path.parent) else {}
    if path.name in known and known[path.name] != sha256(path):
        raise UserError(f"{path} was changed since `make eval` wrote it; {again}")

    class Object(dict[str, Any]):
        def __missing__(self, key: str) -> NoReturn:
            raise UserError(f'{path} lacks "{key}"; {again}')

    try:
        result = json.loads(path.read_text(encoding="utf-8"), object_hook=Object)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON ({error}); {again}") from None
    if not isinstance(result, dict):
        raise UserError(f"{path} must be a JSON object; {again}")
    return result


def standing_conclusion(run: Run, reported: Sequence[str]) -> Path | None:
    """``elicitation.json``, where it is about the answers and verdicts that are there now, and
    about no arm that is not ``reported``."""
    path = run.elicitation
    if not (finished(path.parent) and path.is_file()):
        return None
    inputs = {Path(name): known for name, known in stage_facts(path.parent)["inputs"].items()}
    verdicts = {run.verdicts(arm) for arm in reported}
    if not verdicts.issuperset(file for file in inputs if file.name == VERDICTS):
        return None
    same = all(file.exists() and sha256(file) == known for file, known in inputs.items())
    return path if same else None
