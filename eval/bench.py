"""Speed, side by side in one run (``make bench``): generator, verifier, verdict, sampler, GRPO.

Absolute figures belong to the machine they were taken on; the ratios are what to compare.
"""

from __future__ import annotations

import argparse
import io
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from data.common.console import plain_console
from data.common.errors import UserError, run_main
from data.common.files import write_json, write_jsonl
from data.common.seeds import seed_of
from data.draw import make_problem
from data.prompts import answer, trace
from data.recipe import Recipe, recipe_arguments, recipe_from
from data.rows import gold_answer, new_row
from data.sections import Margins
from data.solver import interval_optimum
from eval.answers.counted import count_solved
from eval.answers.files import read_verdicts
from eval.stats.cases import sharpened
from eval.stats.counts import Counts, by_seed
from eval.stats.evidence import Arms, conclude
from pipeline.model.load import load_model, quiet
from rewards.parse import parse
from rewards.verify import Status, confirm, verify


@dataclass(frozen=True)
class Row:
    """One line of the table: a figure, what it is compared with, and the aim."""

    what: str
    figure: str
    beside: str
    ratio: str
    aim: str


def seconds(work: Callable[[], Any]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def bench_problems(recipe: Recipe, count: int) -> tuple[list[Row], list[Any]]:
    """Problems drawn and proven a second, on one core: by CP-SAT, and by dynamic programming."""
    name, tier = recipe.data.main, recipe.tier_uses[recipe.data.main].tier
    problems: list[Any] = []

    def prove_all() -> None:
        problems.extend(make_problem(recipe.seed, "bench", name, tier, i) for i in range(count))

    def fast_path() -> None:
        for i in range(count):
            interval_optimum(tier.sample(random.Random(seed_of(recipe.seed, "bench", name, i))))

    proven, fast = seconds(prove_all), seconds(fast_path)
    return [
        Row(
            f"problems drawn and proven a second ({name}, CP-SAT)",
            f"{count / proven:,.0f}",
            f"dynamic programme {count / fast:,.0f}",
            f"{proven / fast:.1f}x slower",
            "at least 1,000",
        )
    ], problems


def bench_verdicts(problems: list[Any]) -> list[Row]:
    """Verdicts a second on one core: plain, and confirmed by CP-SAT (each schedule once)."""
    golds = [interval_optimum(p) for p in problems]
    texts = [answer(g, trace(p, g)) for p, g in zip(problems, golds, strict=True)]
    confirm.cache_clear()
    repeats = 20

    def plain() -> None:
        for _ in range(repeats):
            for problem, text in zip(problems, texts, strict=True):
                verify(problem, text)

    def confirmed() -> None:
        for problem, text in zip(problems, texts, strict=True):
            confirm(problem, parse(text))

    fast = seconds(plain) / repeats
    slow = seconds(confirmed)
    return [
        Row(
            "verdicts a second (plain checks)",
            f"{len(texts) / fast:,.0f}",
            f"confirmed by CP-SAT {len(texts) / slow:,.0f}",
            f"{slow / fast:.0f}x faster",
            "at least 20,000",
        )
    ]


#: The training seeds of one simulated arm; how often over each arm is the base sharpened; and the
#: problems that they answer.
_MEMBERS = ("grpo.1", "grpo.2", "grpo.3")
_LIFTS = {"base": 1.0, "sft": 1.2, **dict.fromkeys(_MEMBERS, 6.0)}
_JUDGED = 200


def bench_judging(count: int) -> list[Row]:
    """Rows of verdict files to a conclusion: five simulated arms, three of them one arm's training
    seeds, with about ``count`` rows in all."""
    problems = {f"bench-{i}": "bench" for i in range(_JUDGED)}
    rng = np.random.default_rng(0)
    solving = rng.beta(0.6, 6, _JUDGED)
    samples, fresh = count // (len(_LIFTS) * _JUDGED), 256
    count = samples * len(_LIFTS) * _JUDGED

    def judged(folder: Path) -> None:
        counts = {}
        for arm, lift in _LIFTS.items():
            verdicts = read_verdicts(folder / f"{arm}.jsonl", problems)
            first = count_solved(verdicts, problems)
            again = Counts(fresh, rng.binomial(fresh, sharpened(solving, lift)))
            counts[arm] = first.with_fresh(again)
        grpo = by_seed([counts[arm] for arm in _MEMBERS])
        conclude({"bench": Arms(counts["base"], grpo, sft=counts["sft"])}, Margins())

    with tempfile.TemporaryDirectory() as name:
        for arm, lift in _LIFTS.items():
            right = rng.binomial(samples, sharpened(solving, lift))
            write_jsonl(
                Path(name) / f"{arm}.jsonl",
                (
                    {
                        "id": problem,
                        "arm": arm,
                        "sample": j,
                        "status": Status.OPTIMAL if j < c else Status.INFEASIBLE,
                        "violations": [] if j < c else ["overlap: Standup, Review"],
                        "objective": 100 * int(j < c),
                        "optimum": 100,
                        "ratio": float(j < c),
                    }
                    for problem, c in zip(problems, right, strict=True)
                    for j in range(samples)
                ),
            )
        spent = seconds(lambda: judged(Path(name)))
    return [
        Row(
            f"seconds from {count:,} verdict rows to a conclusion",
            f"{spent:.1f}",
            "",
            f"{count / spent:,.0f} rows a second",
            "a million in 2 minutes",
        )
    ]


def bench_sampler(recipe: Recipe, problems: list[Any], samples: int, repeats: int) -> list[Row]:
    """Samples a second against ``generate(num_return_sequences=k)`` a prompt, alternating."""
    import torch

    from data.prompts import prompt
    from pipeline.model.decode import Decoding, answer_limit, prepare, render, sample

    model, tokenizer = load_model(recipe.model, recipe.dtype)
    stock, _ = load_model(recipe.model, recipe.dtype)
    prepare(model)
    stock.eval()
    rendered = [render(tokenizer, prompt(problem)) for problem in problems]
    golds = [{"gold": gold_answer(problem, recipe.data.reasoning)} for problem in problems]
    tokens = recipe.eval.max_tokens or answer_limit(tokenizer, golds)

    def ours() -> None:
        for _ in sample(
            model, tokenizer, rendered, samples, Decoding(max_tokens=tokens),
            list(range(len(rendered))), recipe.eval.rows,
        ):  # fmt: skip
            pass

    @torch.inference_mode()
    def plain() -> None:
        for text in rendered:
            inputs = tokenizer(text, return_tensors="pt", add_special_tokens=False).to(stock.device)
            inputs.pop("token_type_ids", None)
            stock.generate(
                **inputs, do_sample=True, temperature=1.0, top_p=1.0, top_k=0,
                num_return_sequences=samples, max_new_tokens=tokens,
                pad_token_id=tokenizer.pad_token_id,
            )  # fmt: skip

    times = [(seconds(ours), seconds(plain)) for _ in range(repeats)]
    mine, theirs = (statistics.median(column) for column in zip(*times, strict=True))
    count = samples * len(rendered)
    return [
        Row(
            f"samples a second ({samples} a prompt)",
            f"{count / mine:,.0f}",
            f"plain generate {count / theirs:,.0f}",
            f"{theirs / mine:.1f}x faster",
            "at least 2x",
        )
    ]


@contextmanager
def _temporary_run(recipe: Recipe, steps: int) -> Iterator[tuple[Recipe, Path]]:
    """The recipe cut down to ``steps`` GRPO steps, and a scratch folder."""
    with tempfile.TemporaryDirectory() as folder:
        grpo = {**recipe.grpo, "max_steps": steps, "save_strategy": "no", "logging_steps": 1}
        yield replace(recipe, grpo=grpo), Path(folder)


def grpo_arm(recipe: Recipe) -> str:
    """The first arm that GRPO trains.

    Raises:
        UserError: when there is none.
    """
    for name, arm in recipe.all_arms.items():
        if arm.trainer == "grpo":
            return name
    raise UserError(
        f"{recipe.path}: arms has none with trainer: grpo, which is what make bench times; RECIPE "
        "names another recipe"
    )


def fewest_problems(recipe: Recipe) -> int:
    """That GRPO can be timed on."""
    from pipeline.train.settings import grpo_config, prompts_together

    return prompts_together(grpo_config(recipe, Path("unused")))


def _training_rows(recipe: Recipe, problems: list[Any]) -> list[Any]:
    return [
        new_row(f"bench-{i}", "train", recipe.data.main, p, False) for i, p in enumerate(problems)
    ]


def bench_grpo(recipe: Recipe, problems: list[Any], steps: int, repeats: int) -> list[Row]:
    """Seconds a GRPO step of the stage's trainer against a bare TRL trainer, alternating, and the
    share of a step that the reward takes."""
    from datasets import Dataset
    from transformers import PrinterCallback
    from trl import GRPOTrainer

    from data.prompts import messages
    from pipeline.grpo import trainer_for
    from pipeline.model.decode import answer_limit
    from pipeline.train.settings import grpo_config

    rows = _training_rows(recipe, problems)
    spent = [0.0]

    def timed(reward: Callable[..., list[float]]) -> Callable[..., list[float]]:
        def inner(**columns: Any) -> list[float]:
            start = time.perf_counter()
            result = reward(**columns)
            spent[0] += time.perf_counter() - start
            return result

        inner.__name__ = reward.__name__
        return inner

    def ours(short: Recipe, folder: Path) -> float:
        model, tokenizer = load_model(short.model, short.dtype)
        trainer = trainer_for(short, rows, model, tokenizer, folder)
        trainer.reward_funcs = [timed(f) for f in trainer.reward_funcs]
        trainer.remove_callback(PrinterCallback)
        return seconds(trainer.train)

    def stock(short: Recipe, folder: Path) -> float:
        model, tokenizer = load_model(short.model, short.dtype)
        dataset = Dataset.from_list(
            [{"prompt": messages(r["prompt"]), "gold": r["gold"]} for r in rows]
        )

        def reward(completions: list[Any], gold: list[str], **_: Any) -> list[float]:
            return [float(c[0]["content"] == g) for c, g in zip(completions, gold, strict=True)]

        config = grpo_config(short, folder, answer_limit(tokenizer, rows))
        config.reward_weights = None  # a single function
        trainer = GRPOTrainer(
            model=model, args=config, reward_funcs=reward, train_dataset=dataset,
            processing_class=tokenizer,
        )  # fmt: skip
        trainer.remove_callback(PrinterCallback)
        return seconds(trainer.train)

    with _temporary_run(recipe, steps) as (short, folder):
        times = [(ours(short, folder), stock(short, folder)) for _ in range(repeats)]
    mine, theirs = (statistics.median(column) / steps for column in zip(*times, strict=True))
    share = spent[0] / sum(first for first, _ in times)
    return [
        Row(
            "seconds a GRPO step",
            f"{mine:.2f}",
            f"stock TRL {theirs:.2f}",
            f"{mine / theirs:.2f}x its time",
            "no slower",
        ),
        Row("reward's share of a GRPO step", f"{share:.2%}", "", "", "under 2 %"),
    ]


def bench_monitor(recipe: Recipe, problems: list[Any], steps: int, pairs: int) -> list[Row]:
    """What watching adds to GRPO: the stage's trainer with ``pipeline.watch.monitor`` and without it,
    alternating, from the same weights. Needs the val problems of ``make data``.

    The start is measured too, before the first step; a longer training has that once as well, so
    few steps overstate the share. Odd and even pairs begin with the other one of the two.
    """
    from transformers import PrinterCallback

    from pipeline.grpo import trainer_for
    from pipeline.watch.monitor import monitored

    rows = _training_rows(recipe, problems)
    arm = grpo_arm(recipe)
    spent: list[float] = []

    def timed(short: Recipe, folder: Path, watch: bool) -> float:
        model, tokenizer = load_model(short.model, short.dtype)
        trainer = trainer_for(short, rows, model, tokenizer, folder)
        trainer.remove_callback(PrinterCallback)
        if not watch:
            return seconds(trainer.train)
        with (
            redirect_stdout(io.StringIO()),
            monitored(trainer, tokenizer, short, arm, "grpo", folder, lambda: None),
        ):
            took = seconds(trainer.train)
        parts = sum(row.get("time/monitor", 0.0) for row in trainer.state.log_history)
        spent.append(parts / (took - parts))
        return took

    with _temporary_run(recipe, 1) as (short, folder):
        timed(short, folder, False)  # what is imported or made ready only once is nobody's
    times = []
    with _temporary_run(recipe, steps) as (short, folder):
        for i in range(pairs):
            took = {watch: timed(short, folder, watch) for watch in (i % 2 == 0, i % 2 == 1)}
            times.append((took[True], took[False]))
    with_it, without = (sum(column) / steps / pairs for column in zip(*times, strict=True))
    each = ", ".join(f"{a / b - 1:+.1%}" for a, b in times)
    return [
        Row(
            f"seconds a watched GRPO step, of {steps} (pairs: {each})",
            f"{with_it:.2f}",
            f"unwatched {without:.2f}",
            f"{with_it / without - 1:+.1%}",
            "under +3 %",
        ),
        Row("watching's own share of it", f"{statistics.median(spent):.1%}", "", "", "under 3 %"),
    ]


def check(recipe: Recipe, arguments: argparse.Namespace) -> None:
    """Raise UserError where something could not be measured, which else would be said after
    minutes of work."""
    grpo_arm(recipe)
    least = {
        "problems": fewest_problems(recipe),
        "rows": len(_LIFTS) * _JUDGED,
        **dict.fromkeys(("prompts", "samples", "steps", "watched", "pairs", "repeats"), 1),
    }
    for key, count in least.items():
        if getattr(arguments, key) < count:
            raise UserError(f"--{key} must be {count} or more, not {getattr(arguments, key)}")


def main() -> None:
    parser = recipe_arguments(__doc__.split("\n")[0])
    parser.add_argument("--problems", type=int, default=1000, help="to draw, prove and judge")
    parser.add_argument("--rows", type=int, default=1_000_000, help="verdicts to judge arms by")
    parser.add_argument("--prompts", type=int, default=16, help="to sample from")
    parser.add_argument("--samples", type=int, default=64, help="a prompt")
    parser.add_argument("--steps", type=int, default=5, help="GRPO steps a run")
    parser.add_argument("--watched", type=int, default=100, help="GRPO steps a watched run")
    parser.add_argument("--pairs", type=int, default=2, help="watched and unwatched runs")
    parser.add_argument("--repeats", type=int, default=3, help="alternating runs, median taken")
    parser.add_argument("--out", type=Path, help="write the table here as JSON too")
    arguments = parser.parse_args()
    recipe = recipe_from(arguments)
    check(recipe, arguments)
    quiet()
    print("problems and verdicts", flush=True)
    table, problems = bench_problems(recipe, arguments.problems)
    table += bench_verdicts(problems)
    some = problems[: max(200, fewest_problems(recipe))]
    for what, measure in {
        f"{arguments.rows:,} verdict rows": lambda: bench_judging(arguments.rows),
        "samples": lambda: bench_sampler(
            recipe, problems[: arguments.prompts], arguments.samples, arguments.repeats
        ),
        "GRPO steps": lambda: bench_grpo(recipe, some, arguments.steps, arguments.repeats),
        f"{2 * arguments.pairs * arguments.watched} GRPO steps, half of them watched": lambda: (
            bench_monitor(recipe, some, arguments.watched, arguments.pairs)
        ),
    }.items():
        print(what, flush=True)
        table += measure()
    shown = Table(title=f"speed of {recipe.path}")
    for column in ("what", "here", "beside it", "ratio", "aim"):
        shown.add_column(column)
    for row in table:
        shown.add_row(row.what, row.figure, row.beside, row.ratio, row.aim)
    plain_console(140).print(shown)
    if arguments.out:
        write_json(arguments.out, [vars(row) for row in table])


if __name__ == "__main__":
    run_main(main)
