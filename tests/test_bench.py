"""The bench: what it times is what it says, and mistakes are said before any work."""

import json
from contextlib import contextmanager
from dataclasses import replace
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from tiny import save_model, write_recipe

from data import make
from data.common.errors import UserError
from data.recipe import load_recipe
from eval import bench
from eval.bench import Bench
from pipeline.watch import monitor

TINY = Path(__file__).parents[1] / "pipeline" / "recipes" / "tiny.yaml"


@pytest.mark.slow
def test_a_grpo_step_is_timed_beside_that_of_a_bare_trl_trainer(tmp_path, monkeypatch):
    recipe = load_recipe(TINY)
    small = {"per_device_train_batch_size": 8, "num_generations": 4, "max_completion_length": 16}
    recipe = replace(recipe, grpo={**recipe.grpo, **small})
    ticks = iter([0.0, 6.0, 6.0, 10.0])  # ours takes 6 seconds, TRL's 4
    monkeypatch.setattr(bench, "time", SimpleNamespace(perf_counter=lambda: next(ticks)))
    [line] = Bench(recipe, tmp_path, problems=8, steps=2, repeats=1).grpo_steps()
    assert (line.figure, line.beside, line.ratio) == ("3.00", "stock TRL 2.00", "1.50x its time")


@pytest.mark.slow
def test_a_watched_training_is_timed_beside_an_unwatched_one(tmp_path, monkeypatch):
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
    sizes = {"problems": 8, "watched": 2, "pairs": 2}
    step, own, reward = Bench(recipe, tmp_path / "out", **sizes).watched_steps()
    # The first makes ready; then each of the two comes first as often as the other.
    assert order == [False, True, False, False, True]
    assert (step.figure, step.beside, step.ratio) == ("3.00", "unwatched 2.00", "+50.0%")
    assert parts[0] == parts[1] >= 1
    assert own.figure == f"{0.5 * parts[0] / 6:.1%}"
    assert 0 < float(reward.figure.rstrip("%")) < 100


def test_verdict_rows_are_timed_to_a_conclusion(tmp_path, monkeypatch):
    """Of 2,500 asked for: five arms answer 200 problems equally often."""
    looks = count()
    monkeypatch.setattr(bench, "time", SimpleNamespace(perf_counter=lambda: float(next(looks))))
    [line] = Bench(load_recipe(TINY), tmp_path, rows=2_500).conclusions()
    assert sum(len(path.read_text().splitlines()) for path in tmp_path.iterdir()) == 2_000
    assert "2,000" in line.what
    assert (line.figure, line.ratio) == ("1.0", "2,000 rows a second")


def test_every_line_is_printed_and_written(tmp_path, monkeypatch, capsys):
    quick = (Bench.proving, Bench.verdicts, Bench.conclusions)
    monkeypatch.setattr(bench, "MEASUREMENTS", quick)
    out = tmp_path / "bench.json"
    sizes = ["--problems", "8", "--rows", "1000", "--out", str(out)]
    monkeypatch.setattr("sys.argv", ["bench", "--recipe", str(TINY), *sizes])
    bench.main()
    lines, printed = json.loads(out.read_text()), capsys.readouterr().out
    assert len(lines) == 3
    assert all(line["figure"] in printed for line in lines)


# --- mistakes ------------------------------------------------------------------------------


def refusal(monkeypatch, recipe: Path, *arguments: str) -> str:
    """The sentence that ends the command before any work is done."""
    monkeypatch.setattr(bench, "MEASUREMENTS", [lambda _: pytest.fail("work was done")])
    monkeypatch.setattr("sys.argv", ["bench", "--recipe", str(recipe), *arguments])
    with pytest.raises(UserError) as refused:
        bench.main()
    return str(refused.value)


@pytest.mark.parametrize(("flag", "value"), [("problems", 0), ("watched", 0), ("repeats", -1)])
def test_a_size_that_leaves_nothing_to_measure_is_refused(flag, value, monkeypatch):
    said = refusal(monkeypatch, TINY, f"--{flag}", str(value))
    assert said == f"--{flag} must be 1 or more, not {value}"


def test_a_recipe_without_a_grpo_arm_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "sft.yaml"
    content = {**yaml.safe_load(TINY.read_text()), "arms": {"sft": {"trainer": "sft"}}}
    path.write_text(yaml.safe_dump(content))
    assert refusal(monkeypatch, path).startswith(f"{path}: ")
