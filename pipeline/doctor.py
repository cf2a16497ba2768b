"""Stage ``make doctor``: what is wrong with a training, finished or running, ours or another's.

Reads the ``log.jsonl`` of every arm of a run of ours, or any log: a ``.jsonl`` with one logging
step a line, a ``trainer_state.json`` of transformers, or a folder with either (of several
checkpoints the newest). Its signals tell SFT from GRPO. Nothing is written.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from data import recipe
from data.common.console import plain_console
from data.common.errors import UserError, run_main
from data.common.fields import nearest
from data.run import LOG
from pipeline.health.logs import examine
from pipeline.health.report import as_json, print_patients
from pipeline.train.checkpoints import STATE, step_of


def logs_in(path: Path) -> dict[str, Path]:
    """The logs of a file or folder, by arm.

    Raises:
        UserError: when there is none.
    """
    if path.is_file():
        return {path.parent.name if path.name in (LOG, STATE) else path.stem: path}
    if not path.is_dir():
        raise UserError(f"{path} does not exist")
    for log in (path / LOG, path / STATE):
        if log.is_file():
            return {path.resolve().name: log}
    states = [state for state in path.glob(f"checkpoint-*/{STATE}") if step_of(state) >= 0]
    if states:
        return {path.resolve().name: max(states, key=step_of)}
    arms = {log.parent.name: log for log in sorted(path.glob(f"*/{LOG}"))}
    if arms:
        return arms
    raise UserError(
        f"{path} has no log: no {LOG} or {STATE}, no checkpoint-*/{STATE}, no <arm>/{LOG}"
    )


def run_folder(name: str) -> Path:
    """The folder of a run of ours.

    Raises:
        UserError: when there is none, naming those that are.
    """
    folder = recipe.RUNS / name
    if folder.is_dir():
        return folder
    known = sorted({path.parent.parent.name for path in recipe.RUNS.glob(f"*/*/{LOG}")})
    there = f"runs with a log are {', '.join(known)}" if known else "no run has a log yet"
    raise UserError(f"{folder} does not exist; {there}{nearest(name, known)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--run", help="name of a run below runs/ (default: the recipe's)")
    parser.add_argument("--recipe", type=Path, help="recipe of the run (default: tiny's)")
    parser.add_argument("--log", type=Path, help="a log or a folder with one, instead of a run")
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args()
    if arguments.run and arguments.log:
        raise UserError("--run and --log exclude each other")
    of_recipe = recipe.load_recipe(arguments.recipe).run_name if arguments.recipe else "tiny"
    path = arguments.log or run_folder(arguments.run or of_recipe)
    patients = []
    for arm, log in logs_in(path).items():
        try:
            patients.append(examine(arm, log))
        except UserError as error:
            if arguments.log:
                raise
            print(f"{arm} is left out: {error}", file=sys.stderr)  # the other arms matter no less
    if not patients:
        raise UserError(f"{path} has no log that can be read")
    if arguments.json:
        print(as_json(patients))
    else:
        print_patients(patients, plain_console())


if __name__ == "__main__":
    run_main(main)
