"""``make try``: ask a trained model about a day of your own, and draw its answer.

The day is typed (as arguments, on standard input, or at a prompt where that is a terminal) or read
from a file (``--day``); ``eval.day.days`` and ``eval.day.ics`` say which forms are read. The
model's text is shown as it is generated, then the day is drawn with the verdict and the proven
optimum.
"""

from __future__ import annotations

import argparse
import os
import sys
from contextlib import suppress
from dataclasses import replace
from datetime import date
from pathlib import Path

from rich.console import Console

from data.common.console import plain_console
from data.common.errors import UserError, run_main
from data.recipe import recipe_arguments, recipe_from
from data.rows import new_row
from data.run import BASE
from data.sections import SEEDS
from eval.answers.asker import shots_for
from eval.answers.files import SampleRow
from eval.answers.judge import score_rows
from eval.day.days import Day, Wanted, day_of, prove_day, read_day
from eval.day.entry import typed_entry
from eval.day.terminal import draw_day, write
from eval.show.showcase import drawn_answer, drawn_problem
from pipeline.model.load import load_model, quiet

_HOW = "NAME HH:MM-HH:MM, ! for a priority"


def the_day(arguments: argparse.Namespace, console: Console) -> tuple[Day, str]:
    """The day that the command line names, and what it is called in messages.

    Raises:
        UserError: see ``eval.day.days.read_day``.
    """
    wanted = Wanted(tuple(arguments.priorities), arguments.date, arguments.timezone, arguments.id)
    if arguments.events and arguments.day:
        raise UserError("give events or --day, not both")
    if arguments.events:
        typed = "\n".join(arguments.events).encode(errors="surrogateescape")
        return read_day(typed, "the command line", wanted), "the day"
    if arguments.day and arguments.day != "-":
        path = Path(arguments.day)
        # Events in the place of a file may be longer than a file's name: pathlib would raise.
        if os.path.isdir(path) or not os.path.exists(path):
            what = "is a folder" if os.path.isdir(path) else "does not exist"
            raise UserError(f"--day: {path} {what}")
        return read_day(path.read_bytes(), str(path), wanted), str(path)
    if not arguments.day and sys.stdin.isatty():
        wanted.check("a day that is typed")
        return _typed(wanted, console), "the day"
    return read_day(sys.stdin.buffer.read(), "standard input", wanted), "standard input"


def _typed(wanted: Wanted, console: Console) -> Day:
    """Ask for events one by one; a line that cannot be read is asked for again."""
    write(console, f"Type your day, one event a line: {_HOW}; an empty line ends it.")
    entries = []
    with suppress(EOFError):
        while (line := input("event> ")).strip():
            try:
                entries.append(typed_entry(line, "this line"))
            except UserError as error:
                write(console, str(error))
    return day_of([entry for entry in entries if entry], "the day", wanted.priorities)


def _date(text: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise UserError(f"--date: {text!r} is no date such as 2026-03-02") from None


def _arguments() -> argparse.Namespace:
    parser = recipe_arguments(__doc__.split("\n")[0].partition(": ")[2])
    parser.add_argument("events", nargs="*", metavar="EVENT", help=f"the day, as {_HOW}")
    parser.add_argument("--arm", help="the model to ask, instead of the last one that is trained")
    parser.add_argument("--day", metavar="FILE", help="calendar, JSON or lines; - is stdin")
    parser.add_argument("--date", type=_date, help="day of a calendar, instead of its first one")
    parser.add_argument("--timezone", help="zone to read a calendar in, instead of its own")
    parser.add_argument("--id", help="row of several lines of JSON, instead of the first one")
    parser.add_argument(
        "--priorities", nargs="+", default=[], metavar="NAME",
        help="events, or categories of a calendar, that count twice",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, help="another one draws another answer")
    parser.add_argument("--temperature", type=float, help="of sampling; 0 takes the likeliest text")
    arguments = parser.parse_args()
    if arguments.seed is not None and not SEEDS.holds(arguments.seed):
        raise UserError(f"--seed must be {SEEDS.words}, not {arguments.seed}")
    if arguments.temperature is not None and not 0 <= arguments.temperature < float("inf"):
        raise UserError("--temperature must be 0 or more")
    return arguments


def main() -> None:
    arguments = _arguments()
    recipe = recipe_from(arguments)
    # A model that is named on the command line is the one to ask.
    named = BASE if arguments.model else None
    arm = recipe.run.chosen(arguments.arm or named)
    asking = recipe.for_arm(arm).eval
    if arguments.temperature is not None:
        asking = replace(asking, temperature=arguments.temperature)
    console = plain_console()
    shots = shots_for(recipe.run, recipe.seed, {"try": recipe.data.main}, asking.shots)["try"]
    day, source = the_day(arguments, console)
    problem, _ = prove_day(day.problem, source)
    for note in day.notes:
        write(console, note)
    name = recipe.run.model(arm)
    write(console, f"Asking {arm} ({name}), {len(problem.events)} events:\n")
    from eval.day.ask import ask  # loads torch and transformers

    quiet()
    model, tokenizer = load_model(name, recipe.dtype)
    row = new_row("day", "try", "", problem, recipe.data.reasoning)
    seed = recipe.seed if arguments.seed is None else arguments.seed
    sample = ask(
        model, tokenizer, row, shots, asking, seed, lambda text: write(console, text, end="")
    )
    given: SampleRow = {
        "id": "day",
        "arm": arm,
        "sample": 0,
        "completion": sample.completion,
        "finish_reason": sample.finish_reason,
        "tokens": sample.tokens,
    }
    (verdict,) = score_rows({"day": problem}, [given], lenient=asking.lenient)
    draw_day(console, drawn_problem(row), drawn_answer(problem, {**given, **verdict}))


if __name__ == "__main__":
    run_main(main)
