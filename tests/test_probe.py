import json
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
import tiny
from problems import day
from running import refusal_of, rows_in

from data.prompts import schedule_xml
from data.sections import RewardSection
from eval import probe
from eval.stats.readiness import LIMITS, Outcomes, advise, readiness, readiness_by_tier


def share(values, size, test):
    """Of all groups of ``size`` of the values, the share that passes a test, one by one."""
    found = list(combinations(values, size))
    return sum(map(test, found)) / len(found)


def outcomes_of(optimal, rewards=None, **changes):
    optimal = np.array(optimal, dtype=bool)
    given = {
        "optimal": optimal,
        "valid": optimal,
        "readable": np.ones_like(optimal),
        "truncated": np.zeros_like(optimal),
        "reward": np.array(optimal if rewards is None else rewards, dtype=float),
    }
    return Outcomes(**(given | changes))


def test_what_groups_look_like_equals_every_group_counted():
    rng = np.random.default_rng(3)
    optimal = rng.random((6, 8)) < [[0], [0.2], [0.5], [0.5], [0.9], [1]]
    rewards = optimal + rng.integers(2, size=(6, 8)) * 0.1

    def mean(rows, test, size):
        return pytest.approx(np.mean([share(row, size, test) for row in rows]))

    for size in (2, 4, 8):
        rng = np.random.default_rng(0)
        report = readiness(outcomes_of(optimal, rewards), size, rng, resamples=300)
        assert report["solved"]["value"] == mean(optimal, all, size)
        assert report["unsolved"]["value"] == mean(optimal, lambda g: not any(g), size)
        assert report["mixed"]["value"] == mean(optimal, lambda g: any(g) and not all(g), size)
        assert report["flat"]["value"] == mean(rewards, lambda g: len(set(g)) == 1, size)
        assert report["optimal"]["value"] == pytest.approx(optimal.mean())
        assert report["reward"]["value"] == pytest.approx(rewards.mean())
        for found in (report["solved"], report["mixed"], report["reward"]):
            assert found["low"] <= found["value"] <= found["high"]
            assert found["n"] == report["problems"] == 6


READY = {"readable": 1.0, "truncated": 0.0, "solved": 0.0, "valid": 1.0, "flat": 0.1, "mixed": 0.5}


@pytest.mark.parametrize(
    ("changes", "advice"),
    [
        ({}, "ready"),
        ({name: LIMITS[name] for name in LIMITS if name != "valid"}, "ready"),
        ({"readable": 0.4}, "more SFT"),
        ({"truncated": 0.3}, "longer answers"),
        ({"solved": 0.6, "flat": 0.9}, "harder tier"),
        ({"flat": 0.6}, "easier tier"),
        ({"mixed": 0.2}, "easier tier"),
        ({"mixed": 0.2, "valid": 0.4}, "more SFT"),
    ],
)
def test_the_first_advice_that_holds_is_given(changes, advice):
    assert advise(READY | changes)[0] == advice


def test_each_tier_has_its_own_advice_and_all_are_reported_together():
    rng = np.random.default_rng(0)
    optimal = np.concatenate([rng.random((20, 8)) < 0.5, np.zeros((20, 8), bool)])
    outcomes = outcomes_of(optimal, valid=np.ones_like(optimal))
    found = readiness_by_tier(outcomes, ["easy"] * 20 + ["hard"] * 20, 4, seed=1, resamples=300)
    assert list(found) == ["easy", "hard", "all"]
    assert [found[tier]["advice"] for tier in ("easy", "hard")] == ["ready", "easier tier"]
    assert found["all"]["problems"] == 40
    middle = found["all"]["mixed"]["value"]
    assert middle == pytest.approx(found["easy"]["mixed"]["value"] / 2)
    assert list(readiness_by_tier(outcomes.of(range(20)), ["easy"] * 20, 4, 1, 300)) == ["easy"]


def test_answers_are_judged_and_paid_as_in_training():
    problem = day()
    text = problem.text
    best = [problem.by_name[n] for n in ("Art", "Drill", "Echo", "Chess")]
    answers = [
        (schedule_xml(best), "stop"),
        (schedule_xml(best[:1]), "stop"),
        (schedule_xml([*best[:1], problem.by_name["Band"]]), "stop"),
        ("<schedule>", "length"),
    ]
    rows = [{"id": "p", "completion": c, "finish_reason": r} for c, r in answers]
    weights = {"format": 0.1, "optimal": 0.9}
    found = probe.outcomes_of(rows, {"p": text}, RewardSection("graded", weights))
    assert found.optimal.tolist() == [[True, False, False, False]]
    assert found.valid.tolist() == [[True, True, False, False]]
    assert found.readable.tolist() == [[True, True, True, False]]
    assert found.truncated.tolist() == [[False, False, False, True]]
    np.testing.assert_allclose(found.reward, [[1.0, 0.1, 0.1, 0.0]])


@pytest.fixture
def recipe(folder, monkeypatch):
    monkeypatch.chdir(folder)
    grpo = {**tiny.RECIPE["grpo"], "max_completion_length": 9}
    return tiny.write_recipe(folder, folder / "qwen3", grpo=grpo)


@pytest.mark.slow
def test_the_stage_asks_training_problems_reports_and_goes_on_where_it_stopped(recipe, capsys):
    probe.run(recipe, "base", 8, 6, force=False)
    folder = recipe.run.probe("base")
    samples, written = folder / "samples.jsonl", folder / "probe.json"
    rows = rows_in(samples)
    assert len(rows) == 8 * 6
    assert all(row["id"].startswith("train-") and row["tokens"] <= 9 for row in rows)
    report = json.loads(written.read_text())
    assert (report["group"], report["asking"]["samples"]) == (4, 6)
    assert list(report["tiers"]) == ["dense", "blog", "all"]
    assert report["tiers"]["all"]["advice"] == "more SFT"
    for text in (capsys.readouterr().out, (folder / "probe.md").read_text()):
        assert "Probe of base on the training problems: more SFT" in text

    probe.run(recipe, "base", 8, 6, force=False)
    assert "up to date" in capsys.readouterr().out

    (folder / "manifest.json").rename(folder / "begun.json")
    facts = json.loads((folder / "begun.json").read_text())
    begun = {name: facts[name] for name in ("stage", "settings", "inputs")}
    (folder / "begun.json").write_text(json.dumps(begun))
    whole = samples.read_bytes()
    samples.write_bytes(whole[: len(whole) // 2])
    probe.run(recipe, "base", 8, 6, force=False)
    assert samples.read_bytes() == whole
    assert json.loads(written.read_text()) == report


@pytest.mark.slow
def test_what_training_would_draw_in_another_way_is_said(recipe, capsys):
    cut = replace(recipe, grpo={**recipe.grpo, "top_k": 5, "min_p": 0.0})
    for asked, said in ((recipe, []), (cut, ["grpo.top_k"])):
        probe.run(asked, "base", 2, 4, force=False)
        page = (recipe.run.probe("base") / "probe.md").read_text()
        assert [key for key in ("grpo.top_k", "grpo.min_p") if f"without {key}" in page] == said


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arm", "problems", "samples", "says"),
    [
        ("rl", 8, 6, "base, sft, grpo"),
        ("sft", 8, 6, "`make sft`"),
        ("base", 8, 3, "grpo.num_generations, which is 4"),
        ("base", 0, 6, "--problems"),
    ],
)
def test_what_cannot_be_probed_is_said_in_a_sentence(recipe, arm, problems, samples, says):
    refusal_of(lambda: probe.run(recipe, arm, problems, samples, force=False), says)
