import json
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import tiny
from conftest import day

from data import make
from data.common.errors import UserError
from data.common.files import read_jsonl
from data.prompts import schedule_xml
from data.sections import RewardSection
from eval import probe
from eval.stats.readiness import (
    LIMITS,
    Outcomes,
    Readiness,
    advise,
    readiness_by_tier,
)


def groups(values, size):
    return list(combinations(values, size))


def share(values, size, test):
    """Of all groups of ``size`` of the values, the share that passes a test, one by one."""
    found = groups(values, size)
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


def measured(outcomes, group=4, resamples=300):
    return Readiness(outcomes, group, np.random.default_rng(0), resamples)


def test_what_groups_look_like_equals_every_group_counted():
    rng = np.random.default_rng(3)
    optimal = rng.random((6, 8)) < [[0], [0.2], [0.5], [0.5], [0.9], [1]]
    rewards = optimal + rng.integers(2, size=(6, 8)) * 0.1
    report = measured(outcomes_of(optimal, rewards)).report()

    def mean(rows, test, size=4):
        return pytest.approx(np.mean([share(row, size, test) for row in rows]))

    assert report["solved"]["value"] == mean(optimal, all)
    assert report["unsolved"]["value"] == mean(optimal, lambda g: not any(g))
    for size in (2, 4, 8):
        found = report["groups"][str(size)]
        assert found["mixed"]["value"] == mean(optimal, lambda g: any(g) and not all(g), size)
        assert found["flat"]["value"] == mean(rewards, lambda g: len(set(g)) == 1, size)
    assert report["pass_at_k"]["1"]["value"] == pytest.approx(optimal.mean())
    assert report["pass_at_k"]["2"]["value"] == mean(optimal, any, 2)
    assert report["reward"]["value"] == pytest.approx(rewards.mean())
    assert report["problems"] == 6
    for found in (report["solved"], report["groups"]["4"]["mixed"], report["reward"]):
        assert found["low"] <= found["value"] <= found["high"]
        assert found["n"] == 6


# --- the advice ------------------------------------------------------------------------------


def seen(group=8, ready=(), flat=0.1, mixed=0.5, at=None, **shares):
    """A model that is ready, with changes; ``at`` gives (flat, mixed) of further group sizes."""
    good = {"readable": 1.0, "truncated": 0.0, "solved": 0.0, "valid": 1.0, "unsolved": 0.0}
    sizes = {group: (flat, mixed), **(at or {})}
    flat_of = {f"flat {size}": pair[0] for size, pair in sizes.items()}
    mixed_of = {f"mixed {size}": pair[1] for size, pair in sizes.items()}
    return good | shares | flat_of | mixed_of, group, sorted(sizes), ready


POOR = {"flat": 0.9, "mixed": 0.1}


@pytest.mark.parametrize(
    ("found", "advice"),
    [
        (seen(), "ready"),
        (seen(**{name: LIMITS[name] for name in LIMITS if name != "valid"}), "ready"),
        (seen(readable=0.4), "more SFT"),
        (seen(truncated=0.3), "longer answers"),
        (seen(solved=0.6, **POOR), "harder tier"),
        (seen(flat=0.6), "bigger base"),
        (seen(mixed=0.2), "bigger base"),
        (seen(**POOR, at={16: (0.6, 0.2), 32: (0.2, 0.3)}), "larger group"),
        (seen(**POOR, at={4: (0.2, 0.3)}), "bigger base"),
        (seen(**POOR, valid=0.4), "more SFT"),
        (seen(**POOR, ready=("blog",)), "easier tier"),
        (seen(**POOR), "bigger base"),
    ],
)
def test_the_first_advice_that_holds_is_given(found, advice):
    assert advise(*found)[0] == advice


def test_the_smallest_group_that_would_do_is_named():
    # One success of 16: a group of g has it with chance g / 16; rewards say no more.
    rows = np.zeros((4, 16))
    rows[:, 0] = 1
    found = measured(outcomes_of(rows, valid=np.ones((4, 16), bool)), group=2).advice(())
    assert (found["advice"], found["group"]) == ("larger group", 8)
    assert found["firmness"] == 1


def test_another_tier_that_is_ready_is_named_and_all_tiers_are_reported_together():
    rng = np.random.default_rng(0)
    optimal = np.concatenate([rng.random((20, 8)) < 0.5, np.zeros((20, 8), bool)])
    outcomes = outcomes_of(optimal, valid=np.ones_like(optimal))
    found = readiness_by_tier(
        outcomes, ["easy"] * 20 + ["hard"] * 20, group=4, seed=1, resamples=300
    )
    assert list(found) == ["easy", "hard", "all"]
    assert found["easy"]["advice"]["advice"] == "ready"
    assert found["hard"]["advice"]["advice"] == "easier tier"
    assert found["hard"]["advice"]["tiers"] == ["easy"]
    assert found["all"]["problems"] == 40
    middle = found["all"]["groups"]["4"]["mixed"]["value"]
    assert middle == pytest.approx(found["easy"]["groups"]["4"]["mixed"]["value"] / 2)
    assert list(readiness_by_tier(outcomes.of(range(20)), ["easy"] * 20, 4, 1, 300)) == ["easy"]


# --- judging and the stage -------------------------------------------------------------------


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
def recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    grpo = {**tiny.RECIPE["grpo"], "max_completion_length": 9}
    found = tiny.write_recipe(tmp_path, tiny.save_model(Path("model"), "llama"), grpo=grpo)
    make.run(found, force=False)
    return found


@pytest.mark.slow
def test_the_stage_asks_training_problems_reports_and_goes_on_where_it_stopped(recipe, capsys):
    probe.run(recipe, "base", 8, 6, force=False)
    folder = recipe.run.probe("base")
    samples, written = folder / "samples.jsonl", folder / "probe.json"
    rows = [row for _, row in read_jsonl(samples)]
    assert len(rows) == 8 * 6
    assert all(row["id"].startswith("train-") and row["tokens"] <= 9 for row in rows)
    report = json.loads(written.read_text())
    assert (report["group"], report["asking"]["samples"]) == (4, 6)
    assert list(report["tiers"]) == ["dense", "blog", "all"]
    assert report["tiers"]["all"]["advice"]["advice"] == "more SFT"
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
@pytest.mark.parametrize(
    ("arm", "problems", "samples", "says"),
    [
        ("rl", 8, 6, "base, sft, grpo"),
        ("sft", 8, 6, "`make sft`"),
        ("base", 8, 3, r"grpo\.num_generations, which is 4"),
        ("base", 0, 6, "--problems"),
    ],
)
def test_what_cannot_be_probed_is_said_in_a_sentence(recipe, arm, problems, samples, says):
    with pytest.raises(UserError, match=says):
        probe.run(recipe, arm, problems, samples, force=False)
