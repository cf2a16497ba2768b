"""Arms over training seeds: what is counted, and how reward and truth are correlated."""

import json

import numpy as np
import pytest
from conftest import tier_problems

from data.errors import UserError
from data.files import write_jsonl
from data.policies import random_maximal
from data.prompts import answer
from data.recipe import load_recipe
from data.sections import RewardSection
from eval import compare
from eval.compare import COLUMNS, RATES, arm_table, compare_tier, correlation, sheets
from eval.passk import bootstrap_indices
from eval.sample import samples_path
from eval.score import score_rows
from rewards.reward import totals

GRADED, BLOG = RewardSection(), RewardSection("blog")
ANSWERS = 6
RECIPE = """
name: r
model: some/model
data: {main: dense, tiers: {dense: {train: 1, val: 1, test: 20}}}
sft: {}
grpo: {}
"""


@pytest.fixture(scope="module")
def answered():
    """Problems, and for each six answers: random ones, everything, and text that is no answer."""
    import random

    rng = random.Random(5)
    asked, samples = [], []
    for i, problem in enumerate(tier_problems("dense", 20)):
        asked.append({"id": f"p{i}", "problem": problem})
        texts = [answer(random_maximal(problem, rng), None) for _ in range(ANSWERS - 2)]
        texts += [answer(problem.events, "Take everything."), "no answer"]
        samples += [
            {"id": f"p{i}", "completion": text, "tokens": len(text) // 40} for text in texts
        ]
    verdicts = list(score_rows({row["id"]: row["problem"] for row in asked}, samples))
    return asked, samples, verdicts


def test_an_arms_table_holds_the_shares_of_its_answers(answered):
    asked, samples, verdicts = answered
    table = arm_table(asked, samples, verdicts, GRADED)
    statuses = [row["status"] for row in verdicts]
    rates = dict(zip(RATES, table[:, : len(RATES)].mean(axis=0), strict=True))
    assert rates["optimal"] == pytest.approx(statuses.count("optimal") / len(statuses))
    assert rates["feasible"] == pytest.approx((ANSWERS - 2) / ANSWERS)
    assert rates["overlaps"] == pytest.approx(1 / ANSWERS)
    alone = np.mean([row["completion"].count("<event>") == 1 for row in samples])
    assert rates["single"] == pytest.approx(alone)
    assert rates["tokens"] == pytest.approx(np.mean([row["tokens"] for row in samples]))
    solved = {row["id"] for row in verdicts if row["status"] == "optimal"}
    assert rates["solved"] == pytest.approx(len(solved) / len(asked))


@pytest.mark.parametrize("reward", [GRADED, BLOG], ids=lambda section: section.shape)
def test_the_correlation_of_reward_and_truth_is_that_over_all_answers(answered, reward):
    asked, samples, verdicts = answered
    problems = {row["id"]: json.dumps(row["problem"].to_json()) for row in asked}
    texts = [row["completion"] for row in samples]
    paid = totals(reward, [problems[row["id"]] for row in samples], texts)
    expected = np.corrcoef(paid, [row["ratio"] for row in verdicts])[0, 1]
    table = arm_table(asked, samples, verdicts, reward)
    assert correlation(table.mean(axis=0)) == pytest.approx(expected, abs=1e-9)


def test_a_reward_that_never_varies_has_no_correlation():
    table = np.zeros((4, COLUMNS))
    table[:, len(RATES)], table[:, len(RATES) + 2] = 0.5, 0.25  # x and xx
    assert np.isnan(correlation(table.mean(axis=0)))


def spoilt(content, number, **changes):
    """The text of a JSONL file with a row that has other values, or lacks those that are None."""
    lines = content.splitlines(keepends=True)
    row = {**json.loads(lines[number]), **changes}
    row = {key: value for key, value in row.items() if value is not None}
    return "".join([*lines[:number], json.dumps(row) + "\n", *lines[number + 1 :]])


@pytest.mark.parametrize(
    ("name", "changed", "says"),
    [
        ("samples", lambda t: spoilt(t, 3, completion=7), 'samples.jsonl:4: "completion" must be'),
        ("samples", lambda t: spoilt(t, 3, id="p999"), "samples.jsonl:4: \"id\" is 'p999', no"),
        ("samples", lambda t: spoilt(t, 3, tokens=None), '"tokens" of answer 4 must be a whole'),
        ("samples", lambda t: t[: len(t) // 2], "samples.jsonl:"),
        ("verdicts", lambda t: spoilt(t, 3, ratio=2), 'verdicts.jsonl:4: "ratio" must be a number'),
        ("verdicts", lambda t: spoilt(t, 3, status=None), 'verdicts.jsonl:4: "status" must be one'),
        ("verdicts", lambda t: "", "verdicts.jsonl is not of the answers beside it; delete it"),
        ("both", lambda t: t[: t.index('{"id": "p1"')], "samples.jsonl lacks problems; delete it"),
    ],
)
def test_spoilt_answers_and_verdicts_are_one_sentence(name, changed, says, answered, tmp_path):
    asked, samples, verdicts = answered
    (tmp_path / "r.yaml").write_text(RECIPE)
    recipe = load_recipe(tmp_path / "r.yaml")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        path = samples_path(recipe, "base")
        for rows, target in ((samples, path), (verdicts, path.with_name("verdicts.jsonl"))):
            write_jsonl(target, [{**row, "sample": i % ANSWERS} for i, row in enumerate(rows)])
        assert compare._answered(recipe, "base", asked)[0][0]["id"] == "p0"
        for target in (path, path.with_name("verdicts.jsonl")):
            if name in (target.stem, "both"):
                target.write_text(changed(target.read_text()))
        with pytest.raises(UserError) as raised:
            compare._answered(recipe, "base", asked)
    assert says in str(raised.value)
    assert "`make eval`" in str(raised.value)


def tables(*optimal):
    """One table [seeds, problems, COLUMNS] whose optimal shares are given by seed."""
    found = np.zeros((len(optimal), 40, COLUMNS))
    rng = np.random.default_rng(3)
    for seed, share in enumerate(optimal):
        found[seed, :, 0] = np.clip(share + rng.normal(0, 0.02, 40), 0, 1)
    return found


def compared():
    arms = {"base": tables(0.1), "a": tables(0.30, 0.32, 0.31), "b": tables(0.1, 0.5, 0.3)}
    indices = bootstrap_indices(40, 1_000, np.random.default_rng(1))
    start = {"a": tables(0.1), "b": tables(0.1)}
    return compare_tier(arms, start, [("a", "base"), ("b", "base"), ("a", "b")], indices)


def test_seeds_that_disagree_widen_the_interval():
    found = compared()["arms"]
    width = {name: arm["optimal"]["high"] - arm["optimal"]["low"] for name, arm in found.items()}
    assert width["b"] > 5 * width["a"]
    assert [arm["seeds"] for arm in found.values()] == [1, 3, 3]


def test_a_difference_is_taken_seed_by_seed_and_problem_by_problem():
    a, b, between = compared()["differences"]
    assert a["optimal"]["value"] == pytest.approx(0.21, abs=0.01)
    assert a["optimal"]["low"] > 0
    assert b["optimal"]["low"] < 0 < b["optimal"]["high"]
    assert (between["arm"], between["reference"]) == ("a", "b")


def test_the_tables_name_every_arm_and_leave_a_missing_correlation_blank():
    summary = {"level": 0.95, "resamples": 1_000, "samples": 8, "tiers": {"dense": compared()}}
    arms, differences = sheets(summary)
    assert [row[0] for row in arms.rows] == ["base", "a", "b"]
    assert all(row[-1] == "" for row in arms.rows)
    assert [row[0] for row in differences.rows] == ["a - base", "b - base", "a - b"]
    assert "solved in 8" in arms.columns
