"""The stages end to end, on tiny models of several architectures with random weights."""

import json
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import pandas
import pytest
import torch
from problems import tier_problems
from running import refusal_of, rows_in
from tiny import RECIPE, TIED, save_model, weights_of, write_recipe
from transformers import AutoConfig

from data import make
from data.common.files import stage_facts
from data.rows import gold_answer, read_split
from eval import elicitation, judge
from eval.answers.asker import shots_for
from eval.answers.files import way_of_asking
from eval.answers.sampling import sample_arm
from eval.sample import trained_arms
from pipeline import grpo, rejection, sft
from pipeline.model.lengths import count_lengths
from pipeline.model.load import read_tokenizer
from pipeline.train.settings import grpo_config
from pipeline.train.training import Training, training_of
from pipeline.watch.log import Log
from rewards.verify import verify

pytestmark = pytest.mark.slow
#: GRPO on the base, without SFT.
ALONE = {"arms": {"grpo": {"trainer": "grpo"}}}


@pytest.fixture
def recipe_of(tmp_path, monkeypatch):
    """A function that writes a recipe, with changes, for a model of an architecture, and makes its
    data unless told otherwise."""
    monkeypatch.chdir(tmp_path)

    def write(architecture="qwen3", made=True, **changes):
        model = save_model(tmp_path / architecture, architecture)
        recipe = write_recipe(tmp_path, model, **changes)
        if made:
            make.run(recipe, force=False)
        return recipe

    return write


def differ(one, other):
    return any(not torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("architecture", ["llama", "gemma3_text"])
def test_the_whole_pipeline_runs_on_another_architecture(recipe_of, architecture, capsys):
    recipe = recipe_of(architecture)
    run, names = recipe.run, ["base", "sft", "grpo"]

    def stages():
        sft.run(recipe, force=False)
        grpo.run(recipe, force=False)
        sample_arm(recipe, "base", force=False)
        judge.run(recipe, force=False)

    refusal_of(lambda: grpo.run(recipe, force=False), "sft/model is not finished", "`make sft`")
    stages()
    assert trained_arms(run) == names
    for arm in names[1:]:
        sample_arm(recipe, arm, force=False)
    judge.run(recipe, force=False)
    report = json.loads(run.report.read_text())
    assert (report["arms"], list(report["tiers"])) == (names, ["dense", "blog"])
    assert report["tiers"]["dense"]["problems"] == 3
    for arm in names:
        rows = rows_in(run.verdicts(arm))
        assert len(rows) == 5 * 4
        assert {row["arm"] for row in rows} == {arm}
    elicitation.run(recipe, force=False)
    overall = json.loads(run.elicitation.read_text())["judged"]["grpo"]["overall"]
    # A model that knows nothing gains nothing: every problem is asked again, in vain.
    assert (overall["conclusion"], overall["budget"]["reach"]) == ("inconclusive", 4 + 8)
    base, tuned, final = (weights_of(run.model(arm)) for arm in names)
    assert differ(base, tuned)
    assert base.keys() == tuned.keys() == final.keys()
    kind = AutoConfig.from_pretrained(recipe.model).model_type
    for arm in names:
        config = AutoConfig.from_pretrained(run.model(arm))
        assert (config.model_type, config.tie_word_embeddings) == (kind, architecture in TIED)
    steps = [row for row in rows_in(run.log("grpo")) if "reward" in row]
    assert [row["step"] for row in steps] == [1, 2]
    keys = {"rewards/format/mean", "rewards/optimal/mean", "entropy", "grad_norm"}
    assert keys <= steps[0].keys()
    manifest = stage_facts(recipe.run.stage("grpo"))
    assert manifest["trained_with"]["num_generations"] == 4
    assert manifest["trainable_parameters"] > 0
    capsys.readouterr()
    stages()
    assert capsys.readouterr().out.count("up to date") == 4


# --- arms ------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", [sft, grpo])
def test_an_unknown_arm_is_answered_with_the_nearest(recipe_of, stage):
    recipe = recipe_of(arms={"warm": {"trainer": "sft", "seeds": [1, 2]}}, made=False)
    said = refusal_of(lambda: stage.run(recipe, force=False, arm="warm"))
    assert "'warm' (it has warm.1, warm.2)" in said
    assert said.endswith(("'warm.1'?", "'warm.2'?"))


def test_every_arm_is_trained_each_after_the_one_it_starts_from(recipe_of, run_command, capsys):
    few = {"max_steps": 2}
    recipe = recipe_of(
        arms={
            "warm": {"trainer": "sft", "seeds": [1, 2], "settings": few},
            "blogs": {"trainer": "sft", "tiers": ["blog"], "settings": few},
            "paid": {"trainer": "grpo", "start": "warm.2", "settings": few},
        }
    )
    lacks = ("warm.2/model is not finished", "`make arms`")
    refusal_of(lambda: grpo.run(recipe, force=False, arm="paid"), *lacks)
    assert trained_arms(recipe.run) == ["base"]
    assert "no finished blogs model" in capsys.readouterr().out
    assert run_command("pipeline.arms", "--recipe", recipe.path)[1] == 0
    assert trained_arms(recipe.run) == ["base", "warm.1", "warm.2", "blogs", "paid"]
    ends = {arm: weights_of(recipe.run.model(arm)) for arm in ("base", "warm.1", "warm.2", "blogs")}
    for one, other in combinations(ends, 2):
        assert differ(ends[one], ends[other]), (one, other)
    settings = stage_facts(recipe.run.stage("paid"))["settings"]
    assert settings["model"] == recipe.run.model("warm.2")
    assert settings["grpo"]["max_steps"] == 2
    said, _ = run_command("pipeline.arms", "--recipe", recipe.path)
    assert said.count("up to date") == 4


def test_a_reward_that_fails_its_audit_is_not_trained_on_unless_asked_to(recipe_of, capsys):
    paid = {"arms": {"grpo": {"trainer": "grpo", "settings": {"max_steps": 1}}}}
    recipe = recipe_of(**paid, reward={"shape": "blog"})
    refusal_of(lambda: grpo.run(recipe, force=False), "'blog' fails its audit", "`unsound: true`")
    assert trained_arms(recipe.run) == ["base"]
    allowed = recipe_of(**paid, reward={"shape": "blog", "unsound": True})
    grpo.run(allowed, force=False)
    assert "WARNING" in capsys.readouterr().out
    assert trained_arms(allowed.run) == ["base", "grpo"]


def test_an_arm_without_training_is_its_start_asked_in_another_way(recipe_of):
    tune = {"temperature": [0.5, 1.0], "shots": [0, 1]}
    best = {"trainer": "none", "eval": {"lenient": True}, "tune": tune}
    tiers = {"dense": {"train": 8, "val": 2, "test": 3, "events": [3, 4]}}
    recipe = recipe_of(arms={"base-best": best}, data={"main": "dense", "tiers": tiers})
    assert trained_arms(recipe.run) == ["base", "base-best"]
    sample_arm(recipe, "base-best", force=False)
    samples = recipe.run.samples("base-best")
    assert len(rows_in(samples)) == 3 * 4
    manifest = stage_facts(samples.parent)
    tried = [(way["temperature"], way["shots"]) for way in manifest["tuned"]]
    assert tried == [(0.5, 0), (0.5, 1), (1.0, 0), (1.0, 1)]
    assert manifest["settings"]["model"] == recipe.model


# --- what is trained on, and in which order ---------------------------------------------------


def test_an_arm_trains_on_the_problems_of_its_tiers_alone(recipe_of):
    tiers = {"all": [], "one": ["blog"], "both": ["dense", "blog"]}
    recipe = recipe_of(arms={name: {"trainer": "sft", "tiers": t} for name, t in tiers.items()})
    rows = {name: Training(recipe, name, "sft", "base").rows() for name in tiers}
    assert [row["tier"] for row in rows["one"]] == ["blog"] * 2
    assert rows["all"] == rows["both"] == read_split(recipe.run, "train")
    assert len(rows["all"]) == 10


def test_a_teacher_shows_reasoning_where_the_other_gold_answers_have_none(recipe_of):
    arms = {"sft": {"trainer": "sft"}, "teacher": {"trainer": "sft", "reasoned": 1.0}}
    data = {"main": "dense", "reasoned": 0.0, "tiers": {"dense": {"train": 3, "val": 1, "test": 1}}}
    recipe = recipe_of(arms=arms, data=data, eval={"samples": 1})
    own, shown = (training_of(recipe, name, "sft") for name in arms)
    assert not any("<think>" in row["gold"] for row in own.rows())
    assert [row["gold"] for row in shown.rows()] == [
        gold_answer(row["problem"], "computed") for row in own.rows()
    ]
    # Answers may be as long as the teacher's, in every arm.
    sample_arm(recipe, "base", force=False)
    limit = way_of_asking(recipe.run.samples("base").parent).max_tokens
    assert limit == 2 * count_lengths(recipe)["tiers"]["dense"]["test"]["gold"][0]
    longest = count_lengths(recipe)["tiers"]["dense"]["train"]["gold"][0]
    tokenizer = read_tokenizer(recipe.model)
    assert longest == max(len(tokenizer(row["gold"])["input_ids"]) for row in shown.rows())


def test_shots_are_solved_training_problems_of_the_same_tier(recipe_of):
    recipe = recipe_of()
    asked, train = read_split(recipe.run, "test"), read_split(recipe.run, "train")
    tiers = {row["id"]: row["tier"] for row in asked}
    shots = shots_for(recipe.run, recipe.seed, tiers, 2)
    tier_of = {(row["prompt"], row["gold"]): row["tier"] for row in train}
    for row in asked:
        assert [tier_of[shot] for shot in shots[row["id"]]] == [row["tier"]] * 2
    few = ("9 shots", "train problems of tier 'dense'")
    refusal_of(lambda: shots_for(recipe.run, recipe.seed, tiers, 9), *few)


REJECTION = {"picked": {"trainer": "rejection", "settings": {"max_steps": 2}}}


def test_rejection_trains_on_the_models_own_optimal_answers(recipe_of, monkeypatch, capsys):
    recipe = recipe_of(arms=REJECTION)
    none = ("no optimal answer in 16", "run SFT first")
    refusal_of(lambda: rejection.run(recipe, force=False, arm="picked"), *none)
    [problem] = tier_problems("dense", 1)
    right = verify(problem, gold_answer(problem, "none"))
    monkeypatch.setattr(rejection, "verify", lambda problem, text: right)
    drawn = rejection.sample
    # Random weights end no answer.
    monkeypatch.setattr(
        rejection, "sample",
        lambda *asked: ((i, [replace(one, finish_reason="stop") for one in group])
                        for i, group in drawn(*asked)),
    )  # fmt: skip
    rejection.run(recipe, force=True, arm="picked")
    path = recipe.run.stage("picked") / "successes" / "successes.jsonl"
    kept = rows_in(path)
    assert 0 < len(kept) == len({(row["id"], row["completion"]) for row in kept}) <= 16
    assert differ(weights_of(recipe.model), weights_of(recipe.run.model("picked")))
    capsys.readouterr()
    rejection.run(recipe, force=False, arm="picked")
    assert capsys.readouterr().out.count("up to date") == 2


def test_rejection_draws_as_many_answers_as_grpo_and_needs_to_know_how_many(recipe_of):
    config = grpo_config(recipe_of(made=False), Path("out"))
    assert rejection.budget(config, "r.yaml") == (4, 4)
    config.max_steps = -1  # by epochs
    refusal_of(lambda: rejection.budget(config, "r.yaml"), "r.yaml", "needs grpo.max_steps")


# --- what ends before it begins ---------------------------------------------------------------


#: Sixteen prompts a generation, of ten problems.
TOO_FEW = {**RECIPE["grpo"], "per_device_train_batch_size": 64}


TOO_MANY = (" 16 prompts", " 10 training problems; lower ")
NEVER_FULL = {**RECIPE["sft"], "per_device_train_batch_size": 64, "dataloader_drop_last": True}
CANNOT_BEGIN = {
    "there is no data": (sft, {"made": False}, ["data/train.jsonl does not exist"]),
    "the arm is another trainer's": (
        sft, {"arms": {"sft": REJECTION["picked"]}, "made": False},
        ["by rejection, not by sft", "`make arms`"],
    ),
    "a generation has more prompts than there are problems": (
        grpo, {**ALONE, "grpo": TOO_FEW},
        [*TOO_MANY, "grpo.per_device_train_batch_size (64) or grpo.steps_per_generation (1)"],
    ),
    "so has one whose size was given": (
        grpo, {**ALONE, "grpo": {**RECIPE["grpo"], "generation_batch_size": 64}},
        [*TOO_MANY, "grpo.generation_batch_size (64)"],
    ),
    "a batch is never full": (
        sft, {"sft": NEVER_FULL}, ["a batch takes 64 (sft.dataloader_drop_last)"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CANNOT_BEGIN)
def test_a_training_that_cannot_begin_is_one_sentence(recipe_of, case):
    stage, changes, named = CANNOT_BEGIN[case]
    recipe = recipe_of(**changes)
    refusal_of(lambda: stage.run(recipe, force=False), *named)


def test_a_training_that_took_no_step_is_not_finished(recipe_of, monkeypatch):
    recipe = recipe_of(**ALONE, grpo=TOO_FEW)
    monkeypatch.setattr("pipeline.train.trainer.check_steps", lambda *_: None)
    refusal_of(lambda: grpo.run(recipe, force=False), "grpo took no step")
    assert trained_arms(recipe.run) == ["base"]


def test_a_mistake_that_only_the_trainer_finds_leaves_the_finished_result(recipe_of, capsys):
    recipe = recipe_of()
    sft.run(recipe, force=False)
    manifest = stage_facts(recipe.run.stage("sft"))
    wrong = recipe_of(sft={**RECIPE["sft"], "optim": "lomo"})
    named = ("sft trainer refuses the recipe: ", "`lomo_optim`")
    refusal_of(lambda: sft.run(wrong, force=False), *named)
    assert stage_facts(recipe.run.stage("sft")) == manifest
    capsys.readouterr()
    sft.run(recipe_of(), force=False)
    assert "sft: up to date" in capsys.readouterr().out
    assert not (recipe.run.stage("sft") / "checkpoints").exists()


# --- interrupted, and what is left ------------------------------------------------------------


def test_tables_of_completions_are_kept_and_those_of_others_are_not(recipe_of, monkeypatch, capsys):
    given = {**RECIPE["grpo"], "log_completions": True, "save_steps": 1}
    recipe = recipe_of(**ALONE, grpo=given)

    def stop(self, args, state, control, **_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Log, "on_step_end", stop)
        with pytest.raises(KeyboardInterrupt):
            grpo.run(recipe, force=False)
    folder = recipe.run.stage("grpo") / "checkpoints"

    def steps():
        return sorted(int(path.stem[-5:]) for path in (folder / "completions").iterdir())

    grpo.run(recipe, force=False)
    assert steps() == [1, 2], "none where val was measured before the first answers"
    tables = [pandas.read_parquet(path) for path in (folder / "completions").iterdir()]
    assert {len(table) for table in tables} == {given["per_device_train_batch_size"]}
    assert [path.name for path in folder.iterdir()] == ["completions"]
    assert "Completion" not in capsys.readouterr().out, "the terminal is for the progress"
    grpo.run(recipe_of(**ALONE, grpo={**given, "max_steps": 1}), force=False)
    assert steps() == [1]


def test_completions_are_printed_where_that_is_asked_for_once_there_are_some(recipe_of, capsys):
    given = {**RECIPE["grpo"], "log_completions": True, "num_completions_to_print": 1}
    grpo.run(recipe_of(**ALONE, grpo=given), force=False)
    printed = capsys.readouterr().out
    assert "Step 0" not in printed
    assert "Step 1" in printed
