"""The bench: what it times is what it says, and what cannot be measured is said at once."""

from contextlib import contextmanager
from dataclasses import replace
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from conftest import tier_problems
from tiny import save_model, write_recipe

from data import make
from data.common.errors import UserError
from data.recipe import load_recipe
from eval import bench
from eval.bench import bench_grpo, bench_judging, bench_monitor
from pipeline.watch import monitor

TINY = Path(__file__).parents[1] / "pipeline" / "recipes" / "tiny.yaml"


@pytest.fixture
def clock(monkeypatch):
    """A clock that is a second on whenever the bench looks at it: figures are counts of looks."""
    looks = count()
    monkeypatch.setattr(bench, "time", SimpleNamespace(perf_counter=lambda: float(next(looks))))


def test_a_grpo_step_is_timed_beside_that_of_a_bare_trl_trainer(clock):
    recipe = load_recipe(TINY)
    small = {"per_device_train_batch_size": 8, "num_generations": 4, "max_completion_length": 16}
    recipe = replace(recipe, grpo={**recipe.grpo, **small})
    step, share = bench_grpo(recipe, list(tier_problems("dense", 8)), steps=1, repeats=1)
    # A second between two looks; ours looks twice in every call of a reward, which lasts one.
    ours = float(step.figure)
    calls = (ours - 1) / 2
    assert calls >= 1
    assert calls == int(calls)
    assert (step.beside, step.ratio) == ("stock TRL 1.00", f"{ours:.2f}x its time")
    assert share.figure == f"{calls / ours:.2%}"


def test_a_watched_training_is_timed_beside_one_that_nobody_watches(tmp_path, monkeypatch):
    """Trainings of 4 seconds unwatched and 6 watched, with half a one for every logged part."""
    monkeypatch.chdir(tmp_path)
    recipe = write_recipe(tmp_path, save_model(tmp_path / "qwen3", "qwen3"))
    make.run(recipe, force=False, workers=1)
    watching, order, parts = [], [], []
    monitored = monitor.monitored

    @contextmanager
    def noted(trainer, *arguments):
        watching.append(True)
        with monitored(trainer, *arguments):
            yield
        watching.pop()
        rows = [row for row in trainer.state.log_history if "time/monitor" in row]
        for row in rows:
            row["time/monitor"] = 0.5
        parts.append(len(rows))

    def seconds(work):
        work()
        order.append(bool(watching))
        return 6.0 if watching else 4.0

    monkeypatch.setattr(monitor, "monitored", noted)
    monkeypatch.setattr(bench, "seconds", seconds)
    step, share = bench_monitor(recipe, list(tier_problems("dense", 8)), steps=2, pairs=2)
    # The first makes ready; then each of the two comes first as often as the other.
    assert order == [False, True, False, False, True]
    assert (step.figure, step.beside, step.ratio) == ("3.00", "unwatched 2.00", "+50.0%")
    assert parts[0] == parts[1] >= 1
    assert share.figure == f"{0.5 * parts[0] / (6 - 0.5 * parts[0]):.1%}"


def test_verdict_rows_are_timed_to_a_conclusion(clock, monkeypatch):
    """Of 2,500 asked for: five arms answer 200 problems equally often."""
    read = []
    read_verdicts = bench.read_verdicts

    def noted(path, ids):
        read.extend(path.read_text().splitlines())
        return read_verdicts(path, ids)

    monkeypatch.setattr(bench, "read_verdicts", noted)
    [row] = bench_judging(2_500)
    assert len(read) == 2_000
    assert row.what == "seconds from 2,000 verdict rows to a conclusion"
    assert (row.figure, row.ratio) == ("1.0", "2,000 rows a second")


def test_a_single_sample_an_arm_is_judged():
    [row] = bench_judging(1_000)
    assert "1,000 verdict rows" in row.what


# --- mistakes ------------------------------------------------------------------------------


def refusal(monkeypatch, recipe: Path, *arguments: str) -> str:
    """What is said before any work is done."""
    monkeypatch.setattr(bench, "bench_problems", lambda *_: pytest.fail("work was done"))
    monkeypatch.setattr("sys.argv", ["bench", "--recipe", str(recipe), *arguments])
    with pytest.raises(UserError) as refused:
        bench.main()
    return str(refused.value)


@pytest.mark.parametrize(
    ("flag", "value", "least"),
    [
        ("problems", 7, 8),
        ("rows", 999, 1000),
        ("prompts", 0, 1),
        ("samples", 0, 1),
        ("steps", 0, 1),
        ("watched", 0, 1),
        ("pairs", 0, 1),
        ("repeats", -1, 1),
    ],
)
def test_what_leaves_nothing_to_measure_is_refused_beforehand(flag, value, least, monkeypatch):
    says = refusal(monkeypatch, TINY, f"--{flag}", str(value))
    assert says == f"--{flag} must be {least} or more, not {value}"


def test_a_recipe_without_a_grpo_arm_is_refused_beforehand(tmp_path, monkeypatch):
    path = tmp_path / "sft.yaml"
    content = {**yaml.safe_load(TINY.read_text()), "arms": {"sft": {"trainer": "sft"}}}
    path.write_text(yaml.safe_dump(content))
    assert refusal(monkeypatch, path).startswith(f"{path}: arms has none with trainer: grpo")
