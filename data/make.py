"""Stage ``make data``: problems with proven optimum, prompt and gold answer, and a dataset card.

Writes ``runs/<run>/data/{train,val,test}.jsonl``, ``README.md`` (the card) and ``floors.json``.
"""

from __future__ import annotations

import hashlib
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from data.common.errors import UserError, run_main
from data.common.files import Stage, write_json, write_jsonl, write_text
from data.common.seeds import seed_of
from data.policies import FLOOR_KS, GUESSABLE, floor
from data.problem import Problem
from data.published import read_published
from data.recipe import SPLITS, Recipe, recipe_arguments, recipe_from
from data.rows import record
from data.sections import TierUse
from data.solver import (
    UnprovenError,
    prove,
)
from data.tiers import EFFORT, Tier

#: Test problems are drawn first, so they are the same however many train problems are asked for.
_DRAWING_ORDER = ("test", "val", "train")


def make_problem(
    seed: int, split: str, name: str, tier: Tier, index: int, draw: int = 0
) -> Problem:
    """Problem ``index`` of one split of a tier, its optimum proven by CP-SAT.

    Depends on nothing but its arguments: ``draw`` above 0 replaces a problem that a split has
    already.

    Raises:
        UserError: when the tier yields no feasible problem.
    """
    return _make_problem(seed, split, name, tier, index, draw)[0]


def _make_problem(
    seed: int, split: str, name: str, tier: Tier, index: int, draw: int = 0
) -> tuple[Problem, int]:
    """``make_problem``, and how many draws were dropped because CP-SAT did not prove an optimum
    within its limit (``data.tiers.EFFORT``)."""
    dropped = 0
    for attempt in range(100):
        rng = random.Random(seed_of(seed, split, name, index, draw, attempt))
        try:
            problem = tier.sample(rng)
            best = prove(problem, EFFORT)
        except UserError as error:
            raise UserError(f"tier {name!r}: {error}") from None
        except UnprovenError:
            dropped += 1
            continue
        if best is not None:
            return problem.proven(problem.objective(best)), dropped
    raise UserError(
        f"tier {name!r}: no feasible problem with a proof in 100 draws; relax its rules"
    )


def generate(
    recipe: Recipe, workers: int, say: Console
) -> Iterator[tuple[str, str, list[Problem]]]:
    """Yield (split, tier, problems), no two problems with the same fingerprint."""
    seen: set[str] = set()
    imported = {
        name: _imported(use, name, say) for name, use in recipe.tier_uses().items() if use.source
    }
    with _pool(workers) as pool:
        for split in _DRAWING_ORDER:
            for name, use in recipe.tier_uses().items():
                count = getattr(use, split)
                if name in imported:
                    yield split, name, _take(imported[name][split], count, seen, use, split)
                    continue
                make = partial(make_problem, recipe.seed, split, name, use.tier)
                counted = partial(_make_problem, recipe.seed, split, name, use.tier)
                drawn = _map(pool, counted, count)
                problems = [problem for problem, _ in drawn]
                if dropped := sum(count for _, count in drawn):
                    say.print(
                        f"{split} {name}: {dropped} of {dropped + count} draws dropped, their "
                        "optimum not proven within the limit"
                    )
                for index in range(count):
                    for draw in range(1, 100):
                        if problems[index].fingerprint not in seen:
                            break
                        problems[index] = make(index, draw)
                    else:
                        raise UserError(f"tier {name!r} has fewer than {count} different problems")
                    seen.add(problems[index].fingerprint)
                yield split, name, problems


@contextmanager
def _interrupts_held_back() -> Iterator[Callable[[], None]]:
    """Ctrl-C is noted, and raised at the end, or where the function that is given is called.

    Amid the pool's own work it would leave a lock locked, or a worker that nobody knows of. To mask
    the signal would not do here: another thread takes it then, and the libraries have some.
    """
    noted: list[int] = []

    def check() -> None:
        if noted:
            raise KeyboardInterrupt

    before = signal.getsignal(signal.SIGINT)
    if callable(before):  # it is not ignored
        signal.signal(signal.SIGINT, lambda number, _: noted.append(number))
    try:
        yield check
    finally:
        signal.signal(signal.SIGINT, before)
    check()


def _end_with(parent: int) -> None:
    """End this worker when the process that started it has ended, however it did. A killed one
    tells it nothing, and it would wait for work for ever, with the terminal's output still open."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def _pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """Processes that start with Ctrl-C blocked, which they inherit. It reaches every process of a
    terminal, and a worker that died of it would leave the pool broken, or waiting for ever."""
    pool = ProcessPoolExecutor(workers, initializer=_end_with, initargs=(os.getpid(),))
    try:
        with _interrupts_held_back():
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
            pool.map(abs, range(workers))
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        yield pool
    finally:
        with _interrupts_held_back():
            pool.shutdown(cancel_futures=True)


def _map(pool: ProcessPoolExecutor, make: Callable[[int], Any], count: int) -> list[Any]:
    """``make`` of every number below ``count``; Ctrl-C comes between two results."""
    found = []
    with _interrupts_held_back() as check:
        for result in pool.map(make, range(count), chunksize=64):
            found.append(result)
            check()
    return found


def _imported(use: TierUse, name: str, say: Console) -> dict[str, list[Problem]]:
    """The sound problems of a published data set by split; what is left out is named.

    A source with ``{split}`` in it names a train and a test file, val being the end of train; any
    other source is cut into test, val and train in the order of its rows.
    """
    assert use.source is not None

    def read(source: str) -> list[Problem]:
        found, rejected = read_published(source)
        for reason in rejected:
            say.print(f"left out: {reason}", markup=False, highlight=False, soft_wrap=True)
        return [problem for _, problem, _ in found]

    if "{split}" in use.source:
        train = read(use.source.replace("{split}", "train"))
        return {
            "test": read(use.source.replace("{split}", "test")),
            "val": train[::-1],
            "train": train,
        }
    rows = read(use.source)
    return {"test": rows, "val": rows[use.test :], "train": rows[use.test + use.val :]}


def _take(
    rows: list[Problem], count: int, seen: set[str], use: TierUse, split: str
) -> list[Problem]:
    """The first ``count`` problems not used before."""
    taken = []
    for problem in rows:
        if len(taken) == count:
            break
        if problem.fingerprint not in seen:
            seen.add(problem.fingerprint)
            taken.append(problem)
    if len(taken) < count:
        raise UserError(f"{use.source} has {len(taken)} sound {split} problems, not {count}")
    return taken


def assert_disjoint(splits: dict[str, list[str]]) -> None:
    """Raise AssertionError when a fingerprint stands in two splits, or twice in one."""
    every = list(chain.from_iterable(splits.values()))
    assert len(every) == len(set(every)), "a problem stands in the data twice"


def card(recipe: Recipe, counts: dict[str, dict[str, int]], digests: dict[str, str],
         floors: dict[str, dict[str, dict[int, float]]]) -> str:  # fmt: skip
    """The dataset card, in the Hugging Face layout."""
    tiers = recipe.tier_uses()
    lines = [
        "---",
        "license: apache-2.0",
        "task_categories: [text-generation]",
        "tags: [scheduling, reinforcement-learning, verifiable-rewards]",
        "configs:",
        "- config_name: default",
        "  data_files:",
        *(f"  - {{split: {split}, path: {split}.jsonl}}" for split in SPLITS),
        "---",
        f"# Scheduling problems of `{recipe.run_name}`",
        "",
        "Choose events of one day, none overlapping, for the greatest weighted duration (priority",
        "events count twice). Every optimum is proven by OR-Tools CP-SAT. Master seed "
        f"{recipe.seed}.",
        "",
        "| tier | " + " | ".join(SPLITS) + " | what |",
        "|---|" + "--:|" * len(SPLITS) + "---|",
    ]
    for name, use in tiers.items():
        what = use.source or ", ".join(f"{k} {v}" for k, v in asdict(use.tier).items() if v)
        cells = " | ".join(str(counts[split][name]) for split in SPLITS)
        lines.append(f"| {name} | {cells} | {what} |")
    lines += [
        "",
        "## Fields",
        "",
        "`id, split, tier, problem` (events as name, start, end; priorities; rules; optimum), "
        "`optimum` in weighted minutes, `gold` (an optimal answer"
        + (" with its reasoning trace)" if recipe.data.reasoning else ")")
        + ", `prompt`.",
        "",
        "## What blind guessing scores",
        "",
        "Share of test problems solved optimally within k tries, computed exactly on these very",
        "problems. *Random feasible* is any feasible schedule with equal chance; *random maximal*",
        "takes events in random order while they fit.",
        "",
        "| tier | policy | " + " | ".join(f"k = {k}" for k in FLOOR_KS) + " |",
        "|---|---|" + "--:|" * len(FLOOR_KS),
    ]
    for name, policies in floors.items():
        for policy, values in policies.items():
            cells = " | ".join(f"{values[k]:.1%}" for k in FLOOR_KS)
            lines.append(f"| {name} | {policy.replace('_', ' ')} | {cells} |")
    k = recipe.eval.samples
    guessable = [
        f"{name} ({policies['random_maximal'][k]:.1%})"
        for name, policies in floors.items()
        if policies["random_maximal"][k] > GUESSABLE
    ]
    lines += [
        "",
        f"*Guessable*, more than half solved by random maximal within {k} tries (the evaluation's "
        f"largest k), so that pass@{k} says little about a model there: "
        + (", ".join(guessable) or "none")
        + ".",
        "",
        "## Fingerprints",
        "",
        "A fingerprint is a hash of a problem without its names. No two problems share one, within",
        "a split or across splits. SHA-256 of each split's sorted fingerprints:",
        "",
        *(f"- {split}: `{digest}`" for split, digest in digests.items()),
    ]
    return "\n".join(lines) + "\n"


def _floors(
    problems: dict[str, list[Problem]], largest_k: int
) -> dict[str, dict[str, dict[int, float]]]:
    ks = sorted({*FLOOR_KS, largest_k})
    return {tier: floor(found, ks) for tier, found in problems.items() if found}


def run(recipe: Recipe, force: bool, workers: int) -> None:
    """Generate, prove and write everything, unless it is there already."""
    say = Console()
    folder = recipe.run.data
    settings = {
        "seed": recipe.seed,
        "reasoning": recipe.data.reasoning,
        "largest_k": recipe.eval.samples,
        "tiers": {name: asdict(use) for name, use in recipe.tier_uses().items()},
    }
    stage = Stage(folder, "data", settings, _local_sources(recipe.tier_uses().values()))
    if not stage.begin_unless_done(force):
        return
    rows: dict[str, list[dict[str, Any]]] = {split: [] for split in SPLITS}
    counts: dict[str, dict[str, int]] = {split: {} for split in SPLITS}
    prints: dict[str, list[str]] = {split: [] for split in SPLITS}
    tests: dict[str, list[Problem]] = {}
    for split, tier, problems in generate(recipe, workers, say):
        counts[split][tier] = len(problems)
        prints[split] += [problem.fingerprint for problem in problems]
        if split == "test":
            tests[tier] = problems
        rows[split] += [
            record(f"{split}-{tier}-{index:05d}", split, tier, problem, recipe.data.reasoning)
            for index, problem in enumerate(problems)
        ]
    assert_disjoint(prints)
    floors = _floors(tests, recipe.eval.samples)
    for split in SPLITS:
        write_jsonl(folder / f"{split}.jsonl", rows[split])
    digests = {
        split: hashlib.sha256("".join(sorted(found)).encode()).hexdigest()
        for split, found in prints.items()
    }
    write_json(folder / "floors.json", floors)
    write_text(folder / "README.md", card(recipe, counts, digests, floors))
    stage.finish(
        [*(f"{split}.jsonl" for split in SPLITS), "floors.json", "README.md"],
        seed=recipe.seed,
        counts=counts,
    )
    _print(say, folder, counts, floors)


def _local_sources(uses: Iterable[TierUse]) -> list[Path]:
    """Files that tiers are imported from."""
    names = [u.source.replace("{split}", s) for u in uses if u.source for s in ("train", "test")]
    return [path for path in map(Path, dict.fromkeys(names)) if path.is_file()]


def _print(
    say: Console,
    folder: Path,
    counts: dict[str, dict[str, int]],
    floors: dict[str, dict[str, dict[int, float]]],
) -> None:
    table = Table(title=f"problems in {folder}, and what a random maximal schedule scores")
    for column in ("tier", *SPLITS, *(f"floor @{k}" for k in FLOOR_KS)):
        table.add_column(column, justify="left" if column == "tier" else "right")
    for tier in counts["test"]:
        floor_cells = (
            [f"{floors[tier]['random_maximal'][k]:.1%}" for k in FLOOR_KS]
            if tier in floors
            else ["" for _ in FLOOR_KS]
        )
        table.add_row(tier, *(str(counts[split][tier]) for split in SPLITS), *floor_cells)
    say.print(table)


def main() -> None:
    parser = recipe_arguments(__doc__.split("\n")[0])
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count(), help="processes; any number, same bytes"
    )
    arguments = parser.parse_args()
    if arguments.workers < 1:
        raise UserError("--workers must be 1 or more")
    recipe = recipe_from(arguments)
    run(recipe, arguments.force, arguments.workers)


if __name__ == "__main__":
    run_main(main)
