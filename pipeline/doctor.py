"""Stage ``make doctor``: what is wrong with a training, finished or running, ours or another's.

Reads the ``log.jsonl`` of every arm of a run of ours, or any log whose form
``pipeline/health/reading.py`` knows, or a folder with one: of several checkpoints the newest. Its
signals tell SFT from GRPO. Writes nothing; the exit code is 1 where no signal could be read.
"""

from __future__ import annotations

import sys
from pathlib import Path

from data import recipe
from data.common.console import plain_console
from data.common.errors import UserError, require, run_main
from data.common.fields import nearest
from data.common.flags import Parser
from data.run import DEFAULT, LOG
from pipeline.health.logs import examine
from pipeline.health.reading import EVENTS, READERS
from pipeline.health.report import as_json, print_patients
from pipeline.train.checkpoints import STATE, step_of

#: Logs of ms-swift, LLaMA-Factory and a folder of wandb's.
OTHERS = (
    "logging.jsonl", "trainer_log.jsonl", "wandb-history.jsonl", "files/output.log", "output.log",
)  # fmt: skip


def logs_in(path: Path) -> dict[str, Path]:
    """The logs of a file or folder, by arm.

    Raises:
        UserError: when there is none.
    """
    if path.is_file():
        return {path.parent.name if path.name in (LOG, STATE) else path.stem: path}
    require(path.is_dir(), f"{path} does not exist")
    for log in (path / LOG, path / STATE):
        if log.is_file():
            return {path.resolve().name: log}
    states = [state for state in path.glob(f"checkpoint-*/{STATE}") if step_of(state) >= 0]
    if states:
        return {path.resolve().name: max(states, key=step_of)}
    arms = {log.parent.name: log for log in sorted(path.glob(f"*/{LOG}"))}
    if arms:
        return arms
    for name in OTHERS:
        if (path / name).is_file():
            return {path.resolve().name: path / name}
    events = sorted({log.parent for log in path.rglob(f"{EVENTS}*")})
    if len(events) == 1:
        return {path.resolve().name: events[0]}
    if events:
        return {each.relative_to(path.parent).as_posix(): each for each in events}
    files = [
        each.name
        for each in sorted(path.iterdir())
        if each.suffix in (*READERS, ".log", ".out", ".txt")
    ]
    raise UserError(
        f"{path} has no log: no {LOG} or {STATE}, no checkpoint-*/{STATE}, no <arm>/{LOG}, no "
        f"{', '.join(OTHERS)}, nothing of TensorBoard's"
        + (f"; name one of its files: {', '.join(files[:9])}" if files else "")
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
    parser = Parser(description=__doc__.split("\n")[0])
    parser.add_argument("path", nargs="?", type=Path, help="the same as --log")
    parser.add_argument("--run", help="name of a run below runs/ (default: the recipe's)")
    parser.add_argument("--recipe", type=Path, help=f"recipe of the run (default: {DEFAULT}'s)")
    parser.add_argument("--log", type=Path, help="a log or a folder with one, instead of a run")
    parser.add_argument(
        "--truth", help="the reward in the log that pays for right answers (default: a guess)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args()
    given = [value for value in (arguments.path, arguments.log, arguments.run) if value]
    require(len(given) < 2, "a path, LOG= (--log) and RUN= (--run) exclude each other")
    arguments.log = arguments.log or arguments.path
    of_recipe = recipe.load_recipe(arguments.recipe).run_name if arguments.recipe else DEFAULT
    path = arguments.log or run_folder(arguments.run or of_recipe)
    patients = []
    for arm, log in logs_in(path).items():
        try:
            patients.append(examine(arm, log, arguments.truth))
        except UserError as error:
            if arguments.log:
                raise
            print(f"{arm} is left out: {error}", file=sys.stderr)  # the other arms matter no less
    require(patients, f"{path} has no log that can be read")
    if arguments.json:
        print(as_json(patients))
    else:
        print_patients(patients, plain_console())
    if not any(patient.kind for patient in patients):
        sys.exit(1)


def command() -> None:
    """``slotwise-doctor`` of the wheel (``make wheel``)."""
    run_main(main)


if __name__ == "__main__":
    command()
