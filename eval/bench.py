"""Speed, side by side in one run (``make bench``): problems, verdicts, samples, GRPO steps.

Absolute figures belong to the machine they were taken on; the ratios are what to compare.
"""

from __future__ import annotations

import io
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from data.common.console import plain_console, plain_table, say
from data.common.errors import require, run_main
from data.common.seeds import seed_of
from data.draw import make_problem
from data.problem import Problem
from data.prompts import messages
from data.recipe import Recipe, recipe_arguments, recipe_from
from data.rows import Row, gold_answer, new_row
from data.sections import ARMS, EvalSection
from data.solver import interval_optimum
from data.tiers import Tier
from pipeline.gpu_check import pay_unlike
from pipeline.grpo import trainer_for
from pipeline.model.decode import answer_limit, prepare, render, sample
from pipeline.model.decoding import Decoding
from pipeline.model.load import load_model, quiet
from pipeline.train.loading import load_for_training
from pipeline.train.settings import grpo_config
from pipeline.train.training import Training
from rewards.parse import parse
from rewards.verify import confirm, verify

if TYPE_CHECKING:
    from transformers.generation.utils import GenerativePreTrainedModel
    from trl import GRPOTrainer

#: Timed runs of each of two that alternate; their median counts.
REPEATS = 3
#: Times that every verdict is made, since one takes microseconds.
_VERDICTS = 20
#: One line of the table: a figure, what it is compared with, and their ratio.
Line = tuple[str, str, str, str]


def seconds(work: Callable[[], object]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def alternating(ours: Callable[[], float], theirs: Callable[[], float]) -> tuple[float, float]:
    """Medians of what both return. They take turns, each time in the other order, and what the
    first turn returns does not count."""
    mine: list[float] = []
    others: list[float] = []
    turn = [(ours, mine), (theirs, others)]
    for _ in range(1 + REPEATS):
        for work, figures in turn:
            figures.append(work())
        turn.reverse()
    return statistics.median(mine[1:]), statistics.median(others[1:])


def proving(tier: Tier, name: str, seed: int, count: int) -> tuple[Line, list[Problem]]:
    """Problems a second on one core: proven by CP-SAT, which are returned too, and by dynamic
    programming."""
    problems: list[Problem] = []

    def slow() -> None:
        problems.extend(make_problem(seed, "bench", name, tier, i) for i in range(count))

    def fast() -> None:
        for i in range(count):
            interval_optimum(tier.sample(random.Random(seed_of(seed, "bench", name, i))))

    cp_sat, programme = seconds(slow), seconds(fast)
    line = (
        f"problems drawn and proven a second ({name}, CP-SAT)",
        f"{count / cp_sat:,.0f}",
        f"dynamic programme {count / programme:,.0f}",
        f"{cp_sat / programme:.1f}x slower",
    )
    return line, problems


def verdicts(problems: Sequence[Problem]) -> Line:
    """Verdicts a second on one core: plain, and confirmed by CP-SAT (each schedule once)."""
    pairs = [(problem, gold_answer(problem, "computed")) for problem in problems]
    confirm.cache_clear()
    plain = seconds(lambda: [verify(*pair) for _ in range(_VERDICTS) for pair in pairs]) / _VERDICTS
    slow = seconds(lambda: [confirm(problem, parse(text)) for problem, text in pairs])
    return (
        "verdicts a second (plain checks)",
        f"{len(pairs) / plain:,.0f}",
        f"confirmed by CP-SAT {len(pairs) / slow:,.0f}",
        f"{slow / plain:.0f}x faster",
    )


def sampling(name: str, dtype: str, asking: EvalSection, rows: Sequence[Row], samples: int) -> Line:
    """Samples a second against ``generate(num_return_sequences=k)`` a prompt."""
    model, tokenizer = load_model(name, dtype)
    stock, _ = load_model(name, dtype)
    prepare(model)
    stock.eval()
    prompts = [render(tokenizer, row["prompt"]) for row in rows]
    limit = asking.max_tokens or answer_limit(tokenizer, rows)

    def ours() -> None:
        how = samples, Decoding(limit), range(len(prompts)), asking.rows
        list(sample(model, tokenizer, prompts, *how))

    def plain() -> None:
        for text in prompts:
            inputs = tokenizer(text, return_tensors="pt", add_special_tokens=False)
            inputs.pop("token_type_ids", None)
            cast("GenerativePreTrainedModel", stock).generate(
                **inputs.to(stock.device), do_sample=True, temperature=1.0, top_p=1.0, top_k=0,
                num_return_sequences=samples, max_new_tokens=limit,
                pad_token_id=tokenizer.pad_token_id,
            )  # fmt: skip

    mine, theirs = alternating(lambda: seconds(ours), lambda: seconds(plain))
    count = samples * len(prompts)
    return (
        f"samples a second ({samples} a prompt)",
        f"{count / mine:,.1f}",
        f"plain generate {count / theirs:,.1f}",
        f"{theirs / mine:.1f}x faster",
    )


def grpo_steps(recipe: Recipe, rows: Sequence[Row], folder: Path, steps: int) -> Line:
    """Seconds a GRPO step of the stage's trainer against a bare TRL trainer, on equal weights. Ours
    is paid for every other answer, or it would compute no gradient where groups are alike."""
    short = {"max_steps": steps, "save_strategy": "no", "logging_steps": 1}
    recipe = replace(recipe, arms=dict(ARMS), grpo={**recipe.grpo, **short}, backend="trl")

    training = Training(recipe, "grpo", "grpo", recipe.model)
    length = 0  # which plain TRL does not ask for

    def ours() -> float:
        model, tokenizer = load_for_training(training, length)
        trainer = trainer_for(training, rows, model, tokenizer, folder)
        pay_unlike(trainer)
        return _train(trainer)

    def theirs() -> float:
        model, tokenizer = load_for_training(training, length)
        config = grpo_config(recipe, folder, answer_limit(tokenizer, rows))
        return _train(_stock_trainer(config, rows, model, tokenizer))

    mine, others = alternating(ours, theirs)
    return (
        "seconds a GRPO step",
        f"{mine / steps:.2f}",
        f"stock TRL {others / steps:.2f}",
        f"{mine / others:.2f}x its time",
    )


def _train(trainer: GRPOTrainer) -> float:
    """Wall time of one training, whose output is kept off the terminal."""
    with redirect_stdout(io.StringIO()):
        return seconds(trainer.train)


def _stock_trainer(config: Any, rows: Sequence[Row], model: Any, tokenizer: Any) -> GRPOTrainer:
    """TRL's trainer as it is, paying for gold answers."""
    from datasets import Dataset
    from trl import GRPOTrainer

    def reward(completions: list[Any], gold: list[str], **_: Any) -> list[float | None]:
        return [float(c[0]["content"] == g) for c, g in zip(completions, gold, strict=True)]

    config.reward_weights = None  # a single function
    examples = [{"prompt": messages(row["prompt"]), "gold": row["gold"]} for row in rows]
    return GRPOTrainer(
        model=model,
        args=config,
        reward_funcs=reward,
        train_dataset=Dataset.from_list(examples),
        processing_class=tokenizer,
    )


def measured(recipe: Recipe, folder: Path, samples: int, steps: int) -> Iterator[Line]:
    """Every line of the table; ``folder`` is for files that nobody keeps."""
    name, trace = recipe.data.main, recipe.data.reasoning
    line, problems = proving(recipe.tier_uses[name].tier, name, recipe.seed, 1000)
    yield line
    yield verdicts(problems)
    rows = [new_row(f"bench-{i}", "train", name, p, trace) for i, p in enumerate(problems)]
    yield sampling(recipe.model, recipe.dtype, recipe.eval, rows[:4], samples)
    yield grpo_steps(recipe, rows, folder, steps)


def main() -> None:
    parser = recipe_arguments(__doc__.split("\n")[0])
    parser.add_argument("--samples", type=int, default=64, help="answers to each of four prompts")
    parser.add_argument("--steps", type=int, default=3, help="GRPO steps that are timed together")
    arguments = parser.parse_args()
    for name in ("samples", "steps"):
        require(getattr(arguments, name) > 0, f"--{name} must be 1 or more")
    recipe = recipe_from(arguments, begins=True)
    quiet()
    table = plain_table("what", "here", "beside it", "ratio")
    with tempfile.TemporaryDirectory() as folder:
        for line in measured(recipe, Path(folder), arguments.samples, arguments.steps):
            print(line[0], flush=True)
            table.add_row(*line)
    console = plain_console(140)
    say(console, f"speed of {recipe.path}", "bold")
    console.print(table, markup=False)


if __name__ == "__main__":
    run_main(main)
