"""Speed, side by side in one run (``make bench``): problems, verdicts, samples, GRPO steps.

Absolute figures belong to the machine they were taken on; the ratios are what to compare.
"""

from __future__ import annotations

import io
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, redirect_stdout
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from rich.table import Table

from data.common.console import plain_console
from data.common.errors import UserError, run_main
from data.common.files import write_json, write_jsonl
from data.common.seeds import seed_of
from data.draw import make_problem
from data.problem import Problem
from data.prompts import answer, messages, trace
from data.recipe import Recipe, recipe_arguments, recipe_from
from data.rows import Row, new_row
from data.sections import Arm, Margins
from data.solver import interval_optimum
from eval.answers.counted import count_solved
from eval.answers.files import VerdictRow, read_verdicts
from eval.stats.cases import sharpened
from eval.stats.counts import Counts, by_seed
from eval.stats.evidence import Arms, conclude
from pipeline.grpo import trainer_for
from pipeline.model.decode import Decoding, answer_limit, prepare, render, sample
from pipeline.model.load import load_model, quiet
from pipeline.train.settings import grpo_config, prompts_together
from pipeline.train.training import Training
from rewards.parse import parse
from rewards.verify import Status, confirm, verify

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase
    from transformers.generation.utils import GenerativePreTrainedModel
    from trl import GRPOTrainer

#: Times that every verdict is made, since one takes microseconds.
_VERDICTS = 20
#: Simulated arms: the training seeds of one, how often over each arm is the base sharpened, the
#: problems that they answer, and the tries when asked again.
_MEMBERS = ("grpo.1", "grpo.2", "grpo.3")
_LIFTS = {"base": 1.0, "sft": 1.2, **dict.fromkeys(_MEMBERS, 6.0)}
_JUDGED, _FRESH = 200, 256


@dataclass(frozen=True)
class BenchLine:
    """One line of the table: a figure, what it is compared with, and the aim."""

    what: str
    figure: str
    beside: str
    ratio: str
    aim: str


def seconds(work: Callable[[], object]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def training_seconds(trainer: GRPOTrainer) -> float:
    """Wall time of one training, whose output is kept off the terminal."""
    with redirect_stdout(io.StringIO()):
        return seconds(trainer.train)


def alternating(
    ours: Callable[[], float], theirs: Callable[[], float], repeats: int
) -> tuple[float, float]:
    """Medians of two figures, measured in turn."""
    figures = [(ours(), theirs()) for _ in range(repeats)]
    mine, other = (statistics.median(column) for column in zip(*figures, strict=True))
    return mine, other


def _amount(default: int, words: str) -> Any:
    """A field of Bench and its flag."""
    return field(default=default, metadata={"help": words})


@dataclass(frozen=True)
class Bench:
    """What is measured, on a recipe's main tier and model, and how much of it.

    Every measurement is a method without arguments that yields lines of the table. ``folder`` is
    for files that nobody keeps.
    """

    recipe: Recipe
    folder: Path
    problems: int = _amount(1000, "to draw, prove and judge")
    rows: int = _amount(1_000_000, "verdicts to judge arms by")
    prompts: int = _amount(16, "to sample from")
    samples: int = _amount(64, "a prompt")
    steps: int = _amount(5, "GRPO steps a run")
    watched: int = _amount(100, "GRPO steps a watched run")
    pairs: int = _amount(2, "watched and unwatched runs")
    repeats: int = _amount(3, "alternating runs, median taken")

    def _draw(self, count: int) -> list[Problem]:
        """Proven problems of the main tier."""
        seed, name = self.recipe.seed, self.recipe.data.main
        tier = self.recipe.tier_uses[name].tier
        return [make_problem(seed, "bench", name, tier, i) for i in range(count)]

    @cached_property
    def drawn(self) -> list[Problem]:
        return self._draw(self.problems)

    def proving(self) -> Iterator[BenchLine]:
        """Problems a second on one core: proven by CP-SAT, and by dynamic programming."""
        name, tier = self.recipe.data.main, self.recipe.tier_uses[self.recipe.data.main].tier

        def fast_path() -> None:
            for i in range(self.problems):
                rng = random.Random(seed_of(self.recipe.seed, "bench", name, i))
                interval_optimum(tier.sample(rng))

        proven, fast = seconds(lambda: self.drawn), seconds(fast_path)
        yield BenchLine(
            f"problems drawn and proven a second ({name}, CP-SAT)",
            f"{self.problems / proven:,.0f}",
            f"dynamic programme {self.problems / fast:,.0f}",
            f"{proven / fast:.1f}x slower",
            "at least 1,000",
        )

    def verdicts(self) -> Iterator[BenchLine]:
        """Verdicts a second on one core: plain, and confirmed by CP-SAT (each schedule once)."""
        golds = [interval_optimum(problem) for problem in self.drawn]
        texts = [answer(g, trace(p, g)) for p, g in zip(self.drawn, golds, strict=True)]
        pairs = list(zip(self.drawn, texts, strict=True))
        confirm.cache_clear()
        plain = seconds(lambda: [verify(p, text) for _ in range(_VERDICTS) for p, text in pairs])
        fast, slow = plain / _VERDICTS, seconds(lambda: [confirm(p, parse(t)) for p, t in pairs])
        yield BenchLine(
            "verdicts a second (plain checks)",
            f"{len(texts) / fast:,.0f}",
            f"confirmed by CP-SAT {len(texts) / slow:,.0f}",
            f"{slow / fast:.0f}x faster",
            "at least 20,000",
        )

    def conclusions(self) -> Iterator[BenchLine]:
        """Seconds from files of about ``rows`` verdicts to a conclusion on simulated arms."""
        samples = max(1, self.rows // (len(_LIFTS) * _JUDGED))
        count = samples * len(_LIFTS) * _JUDGED
        rng = np.random.default_rng(0)
        solving = rng.beta(0.6, 6, _JUDGED)
        fresh = {}
        for arm, lift in _LIFTS.items():
            right = rng.binomial(samples, sharpened(solving, lift)).tolist()
            write_jsonl(self.folder / f"{arm}.jsonl", _simulated(arm, right, samples))
            fresh[arm] = Counts(_FRESH, rng.binomial(_FRESH, sharpened(solving, lift)))
        spent = seconds(lambda: _conclude(self.folder, fresh))
        yield BenchLine(
            f"seconds from {count:,} verdict rows to a conclusion",
            f"{spent:.1f}",
            "",
            f"{count / spent:,.0f} rows a second",
            "a million in 2 minutes",
        )

    def sampling(self) -> Iterator[BenchLine]:
        """Samples a second against ``generate(num_return_sequences=k)`` a prompt."""
        import torch

        recipe, rows = self.recipe, self._rows[: self.prompts]
        model, tokenizer = load_model(recipe.model, recipe.dtype)
        stock, _ = load_model(recipe.model, recipe.dtype)
        prepare(model)
        stock.eval()
        prompts = [render(tokenizer, row["prompt"]) for row in rows]
        limit = recipe.eval.max_tokens or answer_limit(tokenizer, rows)

        def ours() -> None:
            how = self.samples, Decoding(limit), range(len(prompts)), recipe.eval.rows
            list(sample(model, tokenizer, prompts, *how))

        @torch.inference_mode()
        def plain() -> None:
            for text in prompts:
                inputs = tokenizer(text, return_tensors="pt", add_special_tokens=False)
                inputs.pop("token_type_ids", None)
                cast("GenerativePreTrainedModel", stock).generate(
                    **inputs.to(stock.device), do_sample=True, temperature=1.0, top_p=1.0, top_k=0,
                    num_return_sequences=self.samples, max_new_tokens=limit,
                    pad_token_id=tokenizer.pad_token_id,
                )  # fmt: skip

        mine, theirs = alternating(lambda: seconds(ours), lambda: seconds(plain), self.repeats)
        count = self.samples * len(prompts)
        yield BenchLine(
            f"samples a second ({self.samples} a prompt)",
            f"{count / mine:,.0f}",
            f"plain generate {count / theirs:,.0f}",
            f"{theirs / mine:.1f}x faster",
            "at least 2x",
        )

    def grpo_steps(self) -> Iterator[BenchLine]:
        """Seconds a GRPO step of the stage's trainer against a bare TRL trainer."""
        mine, stock = alternating(
            lambda: training_seconds(self._trainer(self.steps)),
            lambda: training_seconds(self._stock_trainer()),
            self.repeats,
        )
        yield BenchLine(
            "seconds a GRPO step",
            f"{mine / self.steps:.2f}",
            f"stock TRL {stock / self.steps:.2f}",
            f"{mine / stock:.2f}x its time",
            "no slower",
        )

    def watched_steps(self) -> Iterator[BenchLine]:
        """What watching adds to GRPO, and the reward's share, from the same weights.

        Needs the val problems of ``make data``. The measurement before the first step is included;
        few steps overstate its share. Odd and even pairs begin with the other one of the two.
        """
        times: dict[bool, list[float]] = {True: [], False: []}
        shares: dict[str, list[float]] = {"time/monitor": [], "time/reward": []}
        training_seconds(self._trainer(1))  # work that is done only once is not timed
        for i in range(2 * self.pairs):
            watch = i % 4 in (0, 3)
            trainer = self._trainer(self.watched)
            with self._watching(trainer) if watch else nullcontext():
                times[watch].append(training_seconds(trainer))
            for key in shares if watch else ():
                spent = sum(row.get(key, 0.0) for row in trainer.state.log_history)
                shares[key].append(spent / times[watch][-1])
        watched, unwatched = (sum(times[watch]) / self.watched / self.pairs for watch in times)
        each = ", ".join(f"{a / b - 1:+.1%}" for a, b in zip(*times.values(), strict=True))
        own, reward = map(statistics.median, shares.values())
        yield BenchLine(
            f"seconds a watched GRPO step, of {self.watched} (pairs: {each})",
            f"{watched:.2f}",
            f"unwatched {unwatched:.2f}",
            f"{watched / unwatched - 1:+.1%}",
            "under +3 %",
        )
        yield BenchLine("watching's own share of it", f"{own:.1%}", "", "", "under 3 %")
        yield BenchLine("reward's share of a GRPO step", f"{reward:.2%}", "", "", "under 2 %")

    # --- trainers --------------------------------------------------------------------------

    def _watching(self, trainer: GRPOTrainer) -> AbstractContextManager[None]:
        from pipeline.watch.monitor import monitored

        short, arm = self._short(self.watched), grpo_arm(self.recipe.all_arms)
        tokenizer = cast("PreTrainedTokenizerBase", trainer.processing_class)
        return monitored(trainer, tokenizer, short, arm, "grpo", self.folder, lambda: None)

    @cached_property
    def _rows(self) -> list[Row]:
        """Training problems, as many as GRPO needs or more."""
        fewest = prompts_together(grpo_config(self.recipe, self.folder))
        main, reasoning = self.recipe.data.main, self.recipe.data.reasoning
        return [
            new_row(f"bench-{i}", "train", main, problem, reasoning)
            for i, problem in enumerate(self._draw(max(200, self.prompts, fewest)))
        ]

    def _short(self, steps: int) -> Recipe:
        changes = {"max_steps": steps, "save_strategy": "no", "logging_steps": 1}
        return replace(self.recipe, grpo={**self.recipe.grpo, **changes})

    def _trainer(self, steps: int) -> GRPOTrainer:
        """The stage's trainer."""
        model, tokenizer = load_model(self.recipe.model, self.recipe.dtype)
        training = Training(self._short(steps), "grpo", "grpo", self.recipe.model)
        return trainer_for(training, self._rows, model, tokenizer, self.folder)

    def _stock_trainer(self) -> GRPOTrainer:
        """TRL's trainer as it is, paying for gold answers."""
        from datasets import Dataset
        from trl import GRPOTrainer

        def reward(completions: list[Any], gold: list[str], **_: Any) -> list[float | None]:
            return [float(c[0]["content"] == g) for c, g in zip(completions, gold, strict=True)]

        model, tokenizer = load_model(self.recipe.model, self.recipe.dtype)
        limit = answer_limit(tokenizer, self._rows)
        config = grpo_config(self._short(self.steps), self.folder, limit)
        config.reward_weights = None  # a single function
        rows = [{"prompt": messages(row["prompt"]), "gold": row["gold"]} for row in self._rows]
        return GRPOTrainer(
            model=model,
            args=config,
            reward_funcs=reward,
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
        )


#: By name, the fields that say how much is measured.
SIZES = {field.name: field for field in fields(Bench) if "help" in field.metadata}
#: In the order of the table.
MEASUREMENTS = (
    Bench.proving,
    Bench.verdicts,
    Bench.conclusions,
    Bench.sampling,
    Bench.grpo_steps,
    Bench.watched_steps,
)


def grpo_arm(arms: Mapping[str, Arm]) -> str:
    """The first arm that GRPO trains; empty when none is."""
    return next((name for name, arm in arms.items() if arm.trainer == "grpo"), "")


def _simulated(arm: str, right: Sequence[int], samples: int) -> Iterator[VerdictRow]:
    """Verdicts on an arm's answers, ``right`` of them optimal for each problem."""
    for problem, optimal in enumerate(right):
        for number in range(samples):
            is_right = number < optimal
            yield {
                "id": f"bench-{problem}",
                "arm": arm,
                "sample": number,
                "status": Status.OPTIMAL if is_right else Status.INFEASIBLE,
                "violations": [] if is_right else ["overlap: Standup, Review"],
                "objective": 100 * is_right,
                "optimum": 100,
                "ratio": float(is_right),
            }


def _conclude(folder: Path, fresh: Mapping[str, Counts]) -> None:
    """A conclusion from the verdict files of the simulated arms, as ``eval.elicitation`` does."""
    problems = {f"bench-{i}": "bench" for i in range(_JUDGED)}
    counts = {}
    for arm in _LIFTS:
        verdicts = read_verdicts(folder / f"{arm}.jsonl", problems)
        counts[arm] = count_solved(verdicts, problems).with_fresh(fresh[arm])
    grpo = by_seed([counts[arm] for arm in _MEMBERS])
    conclude({"bench": Arms(counts["base"], grpo, sft=counts["sft"])}, Margins())


def check(bench: Bench) -> None:
    """Refuse, before minutes of work, a measurement that is not possible.

    Raises:
        UserError: when the recipe has no arm for it, or a size leaves nothing to measure.
    """
    if not grpo_arm(bench.recipe.all_arms):
        raise UserError(
            f"{bench.recipe.path}: no arm has trainer: grpo, which make bench times; RECIPE names "
            "another recipe"
        )
    for name in SIZES:
        if getattr(bench, name) < 1:
            raise UserError(f"--{name} must be 1 or more, not {getattr(bench, name)}")


def main() -> None:
    parser = recipe_arguments(__doc__.split("\n")[0])
    for name, size in SIZES.items():
        parser.add_argument(f"--{name}", type=int, default=size.default, help=size.metadata["help"])
    parser.add_argument("--out", type=Path, help="write the table here as JSON too")
    arguments = parser.parse_args()
    sizes = {name: getattr(arguments, name) for name in SIZES}
    lines: list[BenchLine] = []
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(recipe_from(arguments), Path(folder), **sizes)
        check(bench)
        quiet()
        for measure in MEASUREMENTS:
            print(measure.__name__.replace("_", " "), flush=True)
            lines += measure(bench)
    table = Table("what", "here", "beside it", "ratio", "aim", title=f"speed of {arguments.recipe}")
    for line in lines:
        table.add_row(*asdict(line).values())
    plain_console(140).print(table)
    if arguments.out:
        write_json(arguments.out, [asdict(line) for line in lines])


if __name__ == "__main__":
    run_main(main)
