"""``make try``: the best plan for a day of your own, and what a trained model answers.

The day is typed (as arguments, or on standard input) or read from a file (``--day``);
``eval.day.days`` and ``eval.day.ics`` say which forms are read. First stands the plan that is
proven best, with what it leaves out and why; ``--out`` saves it. Then several answers of the model
are drawn, and the best one is shown beside the optimum.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections import Counter
from dataclasses import replace
from datetime import date, datetime, time
from pathlib import Path

from rich.console import Console

from data.clock import CLOCK
from data.common.console import plain_console
from data.common.errors import UserError, require, run_main
from data.common.files import write_bytes
from data.event import Event, Schedule
from data.problem import Problem
from data.recipe import Recipe, recipe_arguments, recipe_from
from data.rows import new_row
from data.rules import BASE_RULES
from data.run import BASE
from data.sections import SEEDS
from eval.answers.asker import Asker, shots_for
from eval.answers.files import SampleRow, VerdictRow
from eval.answers.judge import score_rows
from eval.day.ask import known_names, known_words
from eval.day.days import Day, left_out, prove_day, read_day, with_rules
from eval.day.terminal import draw_day, tell, write
from eval.show.showcase import drawn_answer, drawn_problem
from rewards.reward import order_of
from rewards.verify import Status

_HOW = "NAME HH:MM-HH:MM, ! for a priority"


def the_day(arguments: argparse.Namespace) -> tuple[Day, str]:
    """The day that the command line names, and what it is called in messages.

    Raises:
        UserError: see ``eval.day.days.read_day``.
    """
    if arguments.events and arguments.day:
        raise UserError("give events or DAY= (--day), not both")
    if arguments.events:
        source = "the command line"
        content = "\n".join(arguments.events).encode(errors="surrogateescape")
    elif arguments.day:
        source = arguments.day
        # Events in the place of a file may be longer than a file's name: pathlib would raise.
        require(os.path.isfile(source), f"DAY= (--day): {source} is no file")
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
        raise UserError(f"DATE= (--date): {text!r} is no date such as 2026-03-02") from None


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
    parser.add_argument(
        "--rule",
        action="append",
        default=[],
        help="further rules, such as 'at_most 4; gap 15; break 60 12:00-14:00'",
    )
    parser.add_argument("--answers", type=int, default=8, help="answers to draw")
    parser.add_argument("--out", type=Path, metavar="FILE.ics", help="save the best plan")
    parser.add_argument("--seed", type=int, help="another one draws another answer")
    arguments = parser.parse_args()
    if arguments.seed is not None and not SEEDS.holds(arguments.seed):
        raise UserError(f"--seed must be {SEEDS.words}, not {arguments.seed}")
    require(arguments.answers >= 1, "--answers must be 1 or more")
    if arguments.out and arguments.day and arguments.out.resolve() == Path(arguments.day).resolve():
        raise UserError(f"OUT= (--out) {arguments.out} would replace the day; name another file")
    return arguments


def _show_plan(console: Console, problem: Problem, plan: Schedule) -> None:
    """The proven plan, and why the other events are not in it."""

    def line(event: Event) -> str:
        sign = "!" if event.name in problem.priorities else " "
        value = problem.value[event.name]
        return f"  {CLOCK[event.start]}–{CLOCK[event.end]} {value:>4}{sign} {event.name}"

    write(console, f"The best plan, {problem.optimum} weighted minutes, proven:")
    for event in plan:
        write(console, line(event))
    for number, (event, reason) in enumerate(left_out(problem, plan)):
        write(console, ("" if number else "Left out:\n") + f"{line(event)}: {reason}")


def _save_plan(console: Console, plan: Schedule, midnight: datetime | None, out: Path) -> None:
    from eval.day.ics import plan_calendar  # as the calendar that is read, only where there is one

    midnight = midnight or datetime.combine(date.today(), time())
    write_bytes(out, plan_calendar(plan, midnight))
    write(console, f"{out}: the plan, on {midnight:%Y-%m-%d}")


def _best_answer(
    recipe: Recipe, arm: str, problem: Problem, arguments: argparse.Namespace, console: Console
) -> tuple[SampleRow, VerdictRow]:
    """The best of several answers of an arm, put back into the day's own words."""
    asking = recipe.for_arm(arm).eval
    shots = shots_for(recipe.run, recipe.seed, {"try": recipe.data.main}, asking.shots)["try"]
    name = recipe.run.model(arm)
    many = "an answer" if arguments.answers == 1 else f"{arguments.answers} answers"
    write(console, f"\nAsking {arm} ({name}) for {many}, {len(problem.events)} events:\n")
    seed = recipe.seed if arguments.seed is None else arguments.seed
    asker = Asker(recipe.run, arm, recipe.dtype, seed)
    tokenizer = asker.load()
    asked, known = problem, known_names(tokenizer)
    taught = any(use.tier.rules[1] for use in recipe.tier_uses.values())
    if known and not taught and problem.rules != BASE_RULES:
        tell(console, "This small model knows no further rules: asked without, judged by them.\n")
        asked = replace(asked, rules=BASE_RULES)
    words = known_words(tokenizer, asked, known)
    if words:
        tell(console, f"{words.note()}\n")
        asked = words.put(asked)
    asked, _ = prove_day(asked, "the day as it is asked")
    row = new_row("day", "try", "", asked, recipe.data.reasoning)
    given = asker.to_one(row, shots, replace(asking, samples=arguments.answers))
    if words:
        given = [{**one, "completion": words.back(one["completion"])} for one in given]
    verdicts = list(score_rows({"day": problem}, given, lenient=asking.lenient))
    best = max(verdicts, key=lambda one: order_of(one["status"], one["ratio"]))
    if arguments.answers > 1:
        statuses = Counter(Status(one["status"]) for one in verdicts)
        counts = ", ".join(f"{statuses[one]} {one}" for one in Status if statuses[one])
        write(console, f"The best of {counts}:\n")
    return given[best["sample"]], best


def main() -> None:
    arguments = _arguments()
    recipe = recipe_from(arguments)
    # A model that is named on the command line is the one to ask.
    arm = recipe.run.chosen(arguments.arm or (BASE if arguments.model else None))
    console = plain_console()
    day, source = the_day(arguments)
    asked = with_rules(day.problem, (one for text in arguments.rule for one in text.split(";")))
    problem, plan = prove_day(asked, source)
    for note in day.notes:
        tell(console, note)
    _show_plan(console, problem, plan)
    if arguments.out:
        _save_plan(console, plan, day.midnight, arguments.out)
    given, verdict = _best_answer(recipe, arm, problem, arguments, console)
    write(console, given["completion"])
    row = new_row("day", "try", "", problem, recipe.data.reasoning)
    draw_day(console, drawn_problem(row), drawn_answer(problem, {**given, **verdict}))


if __name__ == "__main__":
    run_main(main)
