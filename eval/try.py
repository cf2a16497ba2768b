"""``make try``: ask a trained model about a day of your own, and draw its answer.

The day is typed (as arguments, or on standard input) or read from a file (``--day``);
``eval.day.days`` and ``eval.day.ics`` say which forms are read. The model's text is shown, then the
day is drawn with the verdict and the proven optimum.
"""

from __future__ import annotations

import argparse
import os
import sys
from datetime import date
from pathlib import Path

from data.common.console import plain_console
from data.common.errors import UserError, run_main
from data.recipe import recipe_arguments, recipe_from
from data.rows import new_row
from data.run import BASE
from data.sections import SEEDS
from eval.answers.asker import shots_for
from eval.answers.files import SampleRow
from eval.answers.judge import score_rows
from eval.day.days import Day, prove_day, read_day
from eval.day.terminal import draw_day, write
from eval.show.showcase import drawn_answer, drawn_problem
from pipeline.model.load import load_model, quiet

_HOW = "NAME HH:MM-HH:MM, ! for a priority"


def the_day(arguments: argparse.Namespace) -> tuple[Day, str]:
    """The day that the command line names, and what it is called in messages.

    Raises:
        UserError: see ``eval.day.days.read_day``.
    """
    if arguments.events and arguments.day:
        raise UserError("give events or --day, not both")
    if arguments.events:
        source = "the command line"
        content = "\n".join(arguments.events).encode(errors="surrogateescape")
    elif arguments.day:
        source = arguments.day
        # Events in the place of a file may be longer than a file's name: pathlib would raise.
        if not os.path.isfile(source):
            raise UserError(f"--day: {source} is no file")
        content = Path(source).read_bytes()
    else:
        if sys.stdin.isatty():
            print(f"Type your day, one event a line: {_HOW}; Ctrl-D ends it.")
        source, content = "standard input", sys.stdin.buffer.read()
    chosen = arguments.priorities, arguments.date, arguments.timezone
    return read_day(content, source, *chosen), source


def _date(text: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise UserError(f"--date: {text!r} is no date such as 2026-03-02") from None


def _arguments() -> argparse.Namespace:
    parser = recipe_arguments(__doc__.split("\n")[0].partition(": ")[2])
    parser.add_argument("events", nargs="*", metavar="EVENT", help=f"the day, as {_HOW}")
    parser.add_argument("--arm", help="the model to ask, instead of the last one that is trained")
    parser.add_argument("--day", metavar="FILE", help="calendar, JSON or lines")
    parser.add_argument("--date", type=_date, help="day of a calendar, instead of its first one")
    parser.add_argument("--timezone", help="zone to read a calendar in, instead of its own")
    parser.add_argument(
        "--priorities", nargs="+", default=[], metavar="NAME",
        help="events, or categories of a calendar, that count twice",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, help="another one draws another answer")
    arguments = parser.parse_args()
    if arguments.seed is not None and not SEEDS.holds(arguments.seed):
        raise UserError(f"--seed must be {SEEDS.words}, not {arguments.seed}")
    return arguments


def main() -> None:
    arguments = _arguments()
    recipe = recipe_from(arguments, made=True)
    # A model that is named on the command line is the one to ask.
    named = BASE if arguments.model else None
    arm = recipe.run.chosen(arguments.arm or named)
    asking = recipe.for_arm(arm).eval
    console = plain_console()
    shots = shots_for(recipe.run, recipe.seed, {"try": recipe.data.main}, asking.shots)["try"]
    day, source = the_day(arguments)
    problem, _ = prove_day(day.problem, source)
    write(console, "".join(f"{note}\n" for note in day.notes), end="")
    from eval.day.ask import ask, spelled_out  # loads torch and transformers

    name = recipe.run.model(arm)
    write(console, f"Asking {arm} ({name}), {len(problem.events)} events:\n")
    quiet()
    model, tokenizer = load_model(name, recipe.dtype)
    if strange := spelled_out(tokenizer, problem):
        write(console, f"{strange}\n")
    row = new_row("day", "try", "", problem, recipe.data.reasoning)
    seed = recipe.seed if arguments.seed is None else arguments.seed
    sample = ask(model, tokenizer, row, shots, asking, seed)
    given: SampleRow = {
        "id": "day", "arm": arm, "sample": 0, "completion": sample.completion,
        "finish_reason": sample.finish_reason, "tokens": sample.tokens,
    }  # fmt: skip
    write(console, given["completion"])
    (verdict,) = score_rows({"day": problem}, [given], lenient=asking.lenient)
    draw_day(console, drawn_problem(row), drawn_answer(problem, {**given, **verdict}))


if __name__ == "__main__":
    run_main(main)
