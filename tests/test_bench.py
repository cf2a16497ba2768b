"""The bench: what it times is what it says."""

from dataclasses import replace
from itertools import count
from types import SimpleNamespace

import pytest
from problems import tier_problems
from running import TINY

from data.recipe import load_recipe
from data.rows import new_row
from data.tiers import TIERS
from eval import bench


def test_two_that_are_compared_take_turns_and_their_first_run_does_not_count():
    order = []

    def work(name, figures):
        figures = iter(figures)
        return lambda: order.append(name) or next(figures)

    ours, theirs = work("a", (100, 3, 1, 2)), work("b", (0, 7, 9, 8))
    assert bench.alternating(ours, theirs) == (2, 8)
    assert "".join(order) == "abbaabba"


@pytest.mark.slow
def test_a_grpo_step_is_timed_beside_that_of_a_bare_trl_trainer(tmp_path, monkeypatch):
    recipe = load_recipe(TINY)
    small = {"per_device_train_batch_size": 8, "num_generations": 4, "max_completion_length": 16}
    recipe = replace(recipe, grpo={**recipe.grpo, **small})
    monkeypatch.setattr(bench, "REPEATS", 1)
    ticks = iter([0.0, 9.0, 9.0, 9.0, 9.0, 13.0, 13.0, 19.0])  # then TRL takes 4 seconds, ours 6
    monkeypatch.setattr(bench, "time", SimpleNamespace(perf_counter=lambda: next(ticks)))
    rows = [
        new_row(f"{i}", "train", "dense", problem, "none")
        for i, problem in enumerate(tier_problems("dense", 8))
    ]
    line = bench.grpo_steps(recipe, rows, tmp_path, steps=2)
    assert line[1:] == ("3.00", "stock TRL 2.00", "1.50x its time")


def test_problems_and_verdicts_are_timed_beside_cp_sat(run_command, mistake_of, monkeypatch):
    looks = count()  # at the clock, each a second after the last
    monkeypatch.setattr(bench, "time", SimpleNamespace(perf_counter=lambda: float(next(looks))))
    proven, problems = bench.proving(TIERS["dense"], "dense", 7, 8)
    lines = [proven, bench.verdicts(problems)]
    assert [line[1] for line in lines] == ["8", "160"]  # 20 verdicts each in a second
    monkeypatch.setattr(bench, "measured", lambda *_: lines)
    refused = mistake_of("eval.bench", "--recipe", TINY, "--steps", "0")
    assert "--steps must be 1 or more" in refused
    said, _ = run_command("eval.bench", "--recipe", TINY)
    assert all(line[1] in said for line in lines)
