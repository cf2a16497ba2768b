"""``make try``: asks a trained model about a day of your own, and draws its answer.

The day is typed (as arguments, on standard input, or at a prompt where that is a terminal) or read
from a file (``--day``); ``eval.day.days`` and ``eval.day.ics`` say what is read. The model's text is shown
as it is generated, then the day is drawn with the verdict and the proven optimum.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from data.clock import CLOCK
from data.common.console import plain_console
from data.common.errors import UserError, run_main
from data.common.fields import nearest
from data.names import EVENT_NAMES
from data.problem import Problem
from data.recipe import Recipe, recipe_arguments, recipe_from
from data.rows import new_row
from data.sections import SEEDS, EvalSection
from eval.answers.asker import shots_for
from eval.answers.files import SampleRow
from eval.answers.judge import score_rows
from eval.day.days import Day, Wanted, day_of, prove_day, read_day
from eval.day.entry import listed, typed_entry
from eval.day.terminal import draw, write
from eval.show.showcase import drawn_answer, drawn_problem

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from pipeline.model.decode import Decoding, Sample

_HOW = "NAME HH:MM-HH:MM, ! for a priority"


def chosen_arm(recipe: Recipe, arm: str | None, model_given: bool) -> str:
    """The arm to ask: the one named, else the last one that is trained, else the base; with a model
    of its own on the command line (``--model``) that one, which is the base.

    Raises:
        UserError: when the recipe has no such arm, or it is not trained.
    """
    known = recipe.all_arms
    if arm is None:
        trained = [a for a, what in known.items() if what.trainer != "none"]
        trained = [a for a in trained if not model_given and recipe.run.is_trained(a)]
        return ["base", *trained][-1]
    if arm not in ("base", *known):
        raise UserError(
            f"--arm must be one of base, {', '.join(known)}, not {arm!r}{nearest(arm, known)}"
        )
    recipe.run.require_trained(arm)
    return arm


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
        # Events in the place of a file may be no file's name: pathlib would raise.
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
    while True:
        try:
            line = input("event> ")
        except EOFError:
            write(console, "")
            break
        try:
            entry = typed_entry(line, "this line")
        except UserError as error:
            write(console, str(error))
            continue
        if entry:
            entries.append(entry)
        elif not line.strip():
            break
    return day_of(entries, "the day", wanted.priorities)


def shots_of(recipe: Recipe, count: int) -> list[tuple[str, str]]:
    """``count`` solved training problems of the main tier, for an arm that is asked with some."""
    return shots_for(recipe.run, recipe.seed, {"try": recipe.data.main}, count)["try"]


def room_for(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rendered: str, gold: str
) -> int | None:
    """Tokens that the model has left for an answer; None where its config sets no limit.

    Raises:
        UserError: when the prompt, with room for the gold answer, is longer than its context.
    """
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    asked, needed = (
        len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in (rendered, gold)
    )
    if context is None:
        return None
    if asked + needed > context:
        raise UserError(
            f"the prompt has {asked} tokens and its best answer {needed}, more than the {context} "
            "that this model can hold; leave out events, or ask a larger model (MODEL=)"
        )
    return context - asked


def spelled_out(tokenizer: PreTrainedTokenizerBase, problem: Problem) -> str | None:
    """A sentence where the embedded base, or a model trained from it, is asked about names or times
    that it has no tokens for; None of other models, whose tokenizers have none for whole names."""

    def is_token(text: str) -> bool:
        return len(tokenizer(text, add_special_tokens=False)["input_ids"]) == 1

    known = [name for name in EVENT_NAMES if is_token(name)]
    said = [event.name for event in problem.events]
    said += [CLOCK[minute] for e in problem.events for minute in (e.start, e.end)]
    strange = [text for text in dict.fromkeys(said) if not is_token(text)]
    if not known or not strange:
        return None
    return (
        f"Note: this small model knows {len(known)} names of events ({listed(known)}: "
        f"data/names.py) and times on the quarter hour; anything else, here {listed(strange)}, it "
        "spells letter by letter, mostly wrong: expect nonsense, or ask a larger model (MODEL=)."
    )


def stream(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rendered: str,
    decoding: Decoding,
    seed: int,
    show: Callable[[str], None],
) -> Sample:
    """Draw one completion of a rendered prompt and ``show`` its text as it is generated."""
    import torch
    from transformers import GenerationConfig, TextStreamer

    from pipeline.model.decode import Sample, stop_tokens

    class Streamer(TextStreamer):
        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            show(text)

    stops = stop_tokens(model, tokenizer).tolist()
    sampling = {"temperature": decoding.temperature, "top_p": decoding.top_p, "top_k": 0}
    # Set whole: what the call leaves open would come from the model's own, such as a top-k.
    model.generation_config = GenerationConfig(
        do_sample=decoding.temperature > 0,
        max_new_tokens=decoding.max_tokens,
        eos_token_id=stops,
        pad_token_id=tokenizer.pad_token_id,
        **(sampling if decoding.temperature > 0 else {}),
    )
    inputs = tokenizer(rendered, return_tensors="pt", add_special_tokens=False).to(model.device)
    torch.manual_seed(seed)
    streamer = Streamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    out = model.generate(
        input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], streamer=streamer
    )
    new = out[0, inputs["input_ids"].shape[1] :].tolist()
    stopped = new[-1] in stops
    text = tokenizer.decode(new[:-1] if stopped else new, skip_special_tokens=True)
    return Sample(text, "stop" if stopped else "length", len(new))


def ask(
    recipe: Recipe,
    arm: str,
    asking: EvalSection,
    problem: Problem,
    seed: int,
    console: Console,
) -> None:
    """Ask an arm about a proven problem, show its text as it comes, and draw its answer.

    Raises:
        UserError: when the model cannot be loaded, or its context is too short.
    """
    from pipeline.model.decode import Decoding, answer_limit, reasoning_prefix, render
    from pipeline.model.load import load_model, quiet

    quiet()
    model, tokenizer = load_model(recipe.run.model(arm), recipe.dtype)
    row = new_row("day", "try", "", problem, recipe.data.reasoning)
    rendered = render(tokenizer, row["prompt"], shots_of(recipe, asking.shots))
    limit = asking.max_tokens or answer_limit(tokenizer, [row])
    limit = min(limit, room_for(model, tokenizer, rendered, row["gold"]) or limit)
    prefix = reasoning_prefix(tokenizer)
    if note := spelled_out(tokenizer, problem):
        write(console, f"{note}\n")
    write(console, prefix, end="")
    sample = stream(
        model.eval(),
        tokenizer,
        rendered,
        Decoding(limit, asking.temperature, asking.top_p),
        seed,
        lambda text: write(console, text, end=""),
    )
    write(console, "")
    given: SampleRow = {
        "id": "day",
        "arm": arm,
        "sample": 0,
        "completion": prefix + sample.completion,
        "finish_reason": sample.finish_reason,
        "tokens": sample.tokens,
    }
    (verdict,) = score_rows({"day": problem}, [given], lenient=asking.lenient)
    drawn = drawn_answer(problem, {**given, **verdict})
    draw(console, drawn_problem(row), drawn)


def _date(text: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise UserError(f"--date: {text!r} is no date such as 2026-03-02") from None


def _arguments() -> argparse.ArgumentParser:
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
    return parser


def main() -> None:
    arguments = _arguments().parse_args()
    recipe = recipe_from(arguments)
    seed = recipe.seed if arguments.seed is None else arguments.seed
    if not SEEDS.holds(seed):
        raise UserError(f"--seed must be {SEEDS.words}, not {seed}")
    arm = chosen_arm(recipe, arguments.arm, arguments.model is not None)
    asking = recipe.for_arm(arm).eval
    if arguments.temperature is not None:
        if not 0 <= arguments.temperature < float("inf"):
            raise UserError("--temperature must be 0 or more")
        asking = replace(asking, temperature=arguments.temperature)
    console = plain_console()
    day, source = the_day(arguments, console)
    problem, _ = prove_day(day.problem, source)
    for note in day.notes:
        write(console, note)
    write(console, f"Asking {arm} ({recipe.run.model(arm)}), {len(problem.events)} events:\n")
    ask(recipe, arm, asking, problem, seed, console)


if __name__ == "__main__":
    run_main(main)
