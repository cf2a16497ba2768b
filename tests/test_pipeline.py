"""The stages end to end, on tiny models of several architectures with random weights."""

import json
import shutil
from itertools import combinations
from pathlib import Path

import pytest
import torch
from conftest import tier_problems
from tiny import RECIPE, TIED, save_model, training_for, write_recipe
from transformers import AutoConfig, AutoModelForCausalLM

from data import make
from data.common.errors import UserError
from data.common.files import read_jsonl
from data.policies import random_maximal_success
from data.rows import gold_answer, read_split
from eval import elicitation
from eval import judge as report
from eval.answers.asker import shots_for
from eval.answers.sampling import sample_arm
from eval.sample import trained_arms
from pipeline import arms, grpo, rejection, sft
from pipeline.model.load import load_model
from pipeline.train.settings import grpo_config
from pipeline.train.training import Training
from pipeline.watch.log import Log
from rewards.verify import verify


@pytest.fixture
def recipe_of(tmp_path, monkeypatch):
    """A function that writes a recipe, with changes, for a model of an architecture."""
    monkeypatch.chdir(tmp_path)

    def write(architecture="qwen3", **changes):
        return write_recipe(tmp_path, save_model(tmp_path / architecture, architecture), **changes)

    return write


def _weights(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).state_dict()


def _differ(one, other):
    return any(not torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("architecture", ["qwen3", "llama", "gemma3", "smollm3"])
def test_the_whole_pipeline_runs_on_a_model_of_another_architecture(
    recipe_of, architecture, capsys
):
    recipe = recipe_of(architecture)
    kind = AutoConfig.from_pretrained(recipe.model).model_type
    make.run(recipe, force=False, workers=1)
    sft.run(recipe, force=False)
    grpo.run(recipe, force=False)
    assert trained_arms(recipe.run) == ["base", "sft", "grpo"]
    for arm in trained_arms(recipe.run):
        sample_arm(recipe, arm, force=False)
    report.run(recipe, force=False)
    found = json.loads((recipe.run.eval / "report.json").read_text())
    assert found["arms"] == ["base", "sft", "grpo"]
    assert list(found["tiers"]) == ["dense", "blog"]
    assert found["tiers"]["dense"]["problems"] == 3
    for arm in ("base", "sft", "grpo"):
        rows = [row for _, row in read_jsonl(recipe.run.eval / arm / "verdicts.jsonl")]
        assert len(rows) == 5 * 4
        assert {row["arm"] for row in rows} == {arm}
    assert (recipe.run.eval / "passk.png").stat().st_size > 10_000
    elicitation.run(recipe, force=False)
    found = json.loads((recipe.run.eval / "elicitation" / "elicitation.json").read_text())
    # A model that knows nothing gains nothing: every problem is asked again, in vain.
    assert found["judged"]["grpo"]["overall"]["conclusion"] == "inconclusive"
    assert found["judged"]["grpo"]["overall"]["budget"]["reach"] == 4 + 8
    base, tuned, final = (
        _weights(folder)
        for folder in (
            recipe.model,
            recipe.run.folder / "sft/model",
            recipe.run.folder / "grpo/model",
        )
    )
    assert _differ(base, tuned)
    assert base.keys() == tuned.keys() == final.keys()
    for folder in (recipe.model, recipe.run.folder / "sft/model", recipe.run.folder / "grpo/model"):
        config = AutoConfig.from_pretrained(folder)
        assert (config.model_type, config.tie_word_embeddings) == (kind, TIED[architecture])
    steps = [
        row for _, row in read_jsonl(recipe.run.folder / "grpo" / "log.jsonl") if "reward" in row
    ]
    assert [row["step"] for row in steps] == [1, 2]
    assert {"rewards/format/mean", "rewards/optimal/mean", "entropy", "grad_norm"} <= steps[
        0
    ].keys()
    manifest = json.loads((recipe.run.folder / "grpo" / "manifest.json").read_text())
    assert manifest["trained_with"]["num_generations"] == 4
    assert manifest["trainable_parameters"] > 0

    capsys.readouterr()
    sft.run(recipe, force=False)
    grpo.run(recipe, force=False)
    sample_arm(recipe, "base", force=False)
    report.run(recipe, force=False)
    said = capsys.readouterr().out
    assert said.count("up to date") == 4


def test_lora_trains_and_is_merged_into_a_model_that_differs_from_its_base(recipe_of):
    lora = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj", "down_proj"]}
    recipe = recipe_of(lora=lora)
    make.run(recipe, force=False, workers=1)
    sft.run(recipe, force=False)
    folder = recipe.run.folder / "sft" / "model"
    assert not (folder / "adapter_config.json").exists()
    base, tuned = _weights(recipe.model), _weights(folder)
    changed = {name for name in base if not torch.equal(base[name], tuned[name])}
    assert changed
    assert all(any(t in name for t in lora["target_modules"]) for name in changed)


def test_grpo_can_start_from_the_base_without_sft(recipe_of):
    recipe = recipe_of(arms={"grpo": {"trainer": "grpo"}})
    make.run(recipe, force=False, workers=1)
    grpo.run(recipe, force=False)
    assert trained_arms(recipe.run) == ["base", "grpo"]


def test_grpo_without_its_sft_model_says_what_to_run(recipe_of):
    recipe = recipe_of()
    make.run(recipe, force=False, workers=1)
    with pytest.raises(UserError, match="sft/model is not finished; `make sft` trains it"):
        grpo.run(recipe, force=False)


@pytest.mark.parametrize("stage", [sft, grpo])
def test_an_unknown_arm_is_answered_with_the_nearest(recipe_of, stage):
    recipe = recipe_of(arms={"warm": {"trainer": "sft", "seeds": [1, 2]}})
    says = r"arms has no 'warm' \(it has warm\.1, warm\.2\); did you mean 'warm\.\d'\?$"
    with pytest.raises(UserError, match=says):
        stage.run(recipe, force=False, arm="warm")


def test_every_arm_is_trained_each_after_the_one_it_starts_from(recipe_of, monkeypatch, capsys):
    few = {"max_steps": 2}
    recipe = recipe_of(
        arms={
            "warm": {"trainer": "sft", "seeds": [1, 2], "settings": few},
            "blogs": {"trainer": "sft", "tiers": ["blog"], "settings": few},
            "paid": {"trainer": "grpo", "start": "warm.2", "settings": few},
        }
    )
    with pytest.raises(UserError, match=r"warm\.2/model is not finished; `make arms` trains it"):
        grpo.run(recipe, force=False, arm="paid")
    make.run(recipe, force=False, workers=1)
    assert trained_arms(recipe.run) == ["base"]
    assert "no finished blogs model, so it is left out; `make arms`" in capsys.readouterr().out
    monkeypatch.setattr("sys.argv", ["arms", "--recipe", str(recipe.path)])
    arms.main()
    assert trained_arms(recipe.run) == ["base", "warm.1", "warm.2", "blogs", "paid"]
    tuned = ("base", "warm.1", "warm.2", "blogs")
    weights = {arm: _weights(recipe.run.model(arm)) for arm in tuned}
    for one, other in combinations(weights, 2):
        assert _differ(weights[one], weights[other]), (one, other)
    manifest = json.loads((recipe.run.folder / "paid" / "manifest.json").read_text())
    assert manifest["settings"]["model"] == recipe.run.model("warm.2")
    assert manifest["settings"]["grpo"]["max_steps"] == 2
    capsys.readouterr()
    arms.main()
    assert capsys.readouterr().out.count("up to date") == 4


def test_a_reward_that_fails_its_audit_is_not_trained_on_unless_asked_to(recipe_of, capsys):
    paid = {"trainer": "grpo", "settings": {"max_steps": 1}}
    recipe = recipe_of(arms={"grpo": paid}, reward={"shape": "blog"})
    make.run(recipe, force=False, workers=1)
    with pytest.raises(UserError, match=r"the reward 'blog' fails its audit.*UNSOUND=1 make grpo"):
        grpo.run(recipe, force=False)
    assert trained_arms(recipe.run) == ["base"]
    capsys.readouterr()
    grpo.run(recipe, force=False, unsound=True)
    assert "WARNING: training under a reward that the audit fails" in capsys.readouterr().out
    # What is trained already needs no second audit.
    grpo.run(recipe, force=False)
    assert "up to date" in capsys.readouterr().out
    allowed = recipe_of(arms={"grpo": paid}, reward={"shape": "blog", "unsound": True}, name="two")
    make.run(allowed, force=False, workers=1)
    grpo.run(allowed, force=False)
    assert trained_arms(allowed.run) == ["base", "grpo"]


# --- what is trained on, and in which order ---------------------------------------------------


def test_an_arm_trains_on_the_problems_of_its_tiers_alone(recipe_of):
    tiers = {"all": [], "one": ["blog"], "both": ["dense", "blog"]}
    recipe = recipe_of(arms={name: {"trainer": "sft", "tiers": t} for name, t in tiers.items()})
    make.run(recipe, force=False, workers=1)
    rows = {name: Training(recipe, name, "sft", "base").rows() for name in tiers}
    assert [row["tier"] for row in rows["one"]] == ["blog"] * 2
    assert rows["all"] == rows["both"] == read_split(recipe.run, "train")
    assert len(rows["all"]) == 10


def test_a_curriculum_from_easy_to_hard_orders_the_problems_by_the_floor(recipe_of):
    mixed = recipe_of()
    make.run(mixed, force=False, workers=1)
    rising = recipe_of(data={**RECIPE["data"], "curriculum": "easy_to_hard"})
    rows, ordered = training_for(mixed).rows(), training_for(rising).rows()
    assert [row["id"] for row in rows] == [row["id"] for row in read_split(mixed.run, "train")]
    chances = [random_maximal_success(row["problem"]) for row in ordered]
    assert chances == sorted(chances, reverse=True)
    assert len(set(chances)) > 3
    assert sorted(row["id"] for row in ordered) == sorted(row["id"] for row in rows)
    assert ordered != rows


@pytest.mark.parametrize("stage", [sft, grpo])
def test_the_trainers_take_a_curriculum_in_its_order_and_a_mixture_shuffled(
    recipe_of, stage, tmp_path
):
    orders = {}
    for curriculum in ("mixture", "easy_to_hard"):
        recipe = recipe_of(data={**RECIPE["data"], "curriculum": curriculum})
        make.run(recipe, force=False, workers=1)
        training = training_for(recipe)
        loaded = load_model(recipe.model, "float32")
        trainer = stage.trainer_for(training, training.rows(), *loaded, tmp_path)
        sampler = trainer._get_train_sampler(trainer.train_dataset)
        orders[curriculum] = list(dict.fromkeys(sampler))
    assert orders["easy_to_hard"] == list(range(10))
    assert sorted(orders["mixture"]) == list(range(10)) != orders["mixture"]


def test_training_without_data_says_what_is_missing(recipe_of):
    with pytest.raises(UserError, match="does not exist"):
        sft.run(recipe_of(), force=False)


def test_sampling_goes_on_where_it_was_interrupted_and_ends_with_the_same_samples(recipe_of):
    recipe = recipe_of()
    make.run(recipe, force=False, workers=1)
    sample_arm(recipe, "base", force=False)
    path = recipe.run.samples("base")
    whole = path.read_text()
    manifest = json.loads(path.with_name("manifest.json").read_text())

    # As a kill in the middle of a write leaves it: rows of two problems, then half a line.
    lines = whole.splitlines(keepends=True)
    path.write_text("".join(lines[:9]) + lines[9][:20])
    path.with_name("manifest.json").unlink()
    key = {name: manifest[name] for name in ("stage", "settings", "inputs")}
    path.with_name("begun.json").write_text(json.dumps(key))
    sample_arm(recipe, "base", force=False)
    assert sorted(path.read_text().splitlines()) == sorted(whole.splitlines())


def _stopped_after(step, run, monkeypatch):
    """Interrupt what is run at the end of a step, before that is saved."""

    def stop(self, args, state, control, **_):
        if state.global_step == step:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Log, "on_step_end", stop)
        with pytest.raises(KeyboardInterrupt):
            run()


def test_training_goes_on_from_its_checkpoint_and_ends_with_the_same_weights(
    recipe_of, monkeypatch, capsys
):
    recipe = recipe_of(sft={**RECIPE["sft"], "max_steps": 4, "save_steps": 2})
    make.run(recipe, force=False, workers=1)
    sft.run(recipe, force=False)
    whole = _weights(recipe.run.folder / "sft" / "model")
    shutil.rmtree(recipe.run.folder / "sft")

    _stopped_after(3, lambda: sft.run(recipe, force=False), monkeypatch)
    capsys.readouterr()
    sft.run(recipe, force=False)
    assert "going on from" in capsys.readouterr().out
    assert not _differ(whole, _weights(recipe.run.folder / "sft" / "model"))


# --- what ends before it begins ---------------------------------------------------------------


#: Sixteen prompts a generation, of ten problems.
TOO_FEW = {**RECIPE["grpo"], "per_device_train_batch_size": 64}
LOWER = r"grpo\.per_device_train_batch_size \(64\) or grpo\.steps_per_generation \(1\)"


@pytest.mark.parametrize(
    ("given", "lower"),
    [
        (TOO_FEW, LOWER),
        ({**TOO_FEW, "max_steps": -1, "num_train_epochs": 1}, LOWER),
        (
            {**RECIPE["grpo"], "generation_batch_size": 64},
            r"grpo\.generation_batch_size \(64\)",
        ),
    ],
)
def test_a_generation_of_more_prompts_than_there_are_problems_is_refused(recipe_of, given, lower):
    base = {"arms": {"grpo": {"trainer": "grpo"}}}
    recipe = recipe_of(**base)
    make.run(recipe, force=False, workers=1)
    grpo.run(recipe, force=False)
    manifest = (recipe.run.folder / "grpo" / "manifest.json").read_bytes()
    says = (
        r"small\.yaml: grpo would take no step: a generation takes 16 prompts, and there are 10 "
        rf"training problems; lower {lower}, or make more problems$"
    )
    with pytest.raises(UserError, match=says):
        grpo.run(recipe_of(**base, grpo=given), force=False)
    assert (recipe.run.folder / "grpo" / "manifest.json").read_bytes() == manifest


def test_a_batch_that_is_never_full_is_refused(recipe_of):
    given = {"per_device_train_batch_size": 64, "dataloader_drop_last": True}
    recipe = recipe_of(sft={**RECIPE["sft"], **given})
    make.run(recipe, force=False, workers=1)
    with pytest.raises(UserError, match=r"a batch takes 64 \(sft\.dataloader_drop_last\), and"):
        sft.run(recipe, force=False)


def test_a_training_that_took_no_step_is_not_finished(recipe_of, monkeypatch):
    recipe = recipe_of(arms={"grpo": {"trainer": "grpo"}}, grpo=TOO_FEW)
    make.run(recipe, force=False, workers=1)
    monkeypatch.setattr("pipeline.train.trainer.check_steps", lambda *_: None)
    with pytest.raises(UserError, match="grpo took no step, so there is nothing to save"):
        grpo.run(recipe, force=False)
    assert trained_arms(recipe.run) == ["base"]


def test_a_mistake_that_only_the_trainer_finds_leaves_what_was_finished(recipe_of, capsys):
    recipe = recipe_of()
    make.run(recipe, force=False, workers=1)
    sft.run(recipe, force=False)
    manifest = (recipe.run.folder / "sft" / "manifest.json").read_bytes()
    with pytest.raises(UserError, match=r"the sft trainer refuses the recipe: .*`lomo_optim`"):
        sft.run(recipe_of(sft={**RECIPE["sft"], "optim": "lomo"}), force=False)
    assert (recipe.run.folder / "sft" / "manifest.json").read_bytes() == manifest
    capsys.readouterr()
    sft.run(recipe_of(), force=False)
    assert "sft: up to date" in capsys.readouterr().out
    assert not (recipe.run.folder / "sft" / "checkpoints").exists()


# --- what is left after it ends ---------------------------------------------------------------


def test_a_copy_of_a_checkpoint_outlives_the_training(recipe_of):
    recipe = recipe_of(sft={**RECIPE["sft"], "max_steps": 3, "save_steps": 1})
    make.run(recipe, force=False, workers=1)
    kept = recipe.run.folder / "sft" / "checkpoints" / "checkpoint-1-kept"
    kept.mkdir(parents=True)
    sft.run(recipe, force=False)
    assert list(kept.parent.iterdir()) == [kept]
    manifest = json.loads((recipe.run.folder / "sft" / "manifest.json").read_text())
    assert manifest["trained_with"]["save_total_limit"] == 1


def test_tables_of_completions_outlive_the_checkpoints_those_of_a_resumed_training_too(
    recipe_of, monkeypatch
):
    given = {**RECIPE["grpo"], "log_completions": True, "max_steps": 4, "save_steps": 2}
    recipe = recipe_of(arms={"grpo": {"trainer": "grpo"}}, grpo=given)
    make.run(recipe, force=False, workers=1)
    _stopped_after(3, lambda: grpo.run(recipe, force=False), monkeypatch)
    grpo.run(recipe, force=False)
    folder = recipe.run.folder / "grpo"

    def steps():
        return sorted(int(path.stem[-5:]) for path in (folder / "completions").iterdir())

    assert steps() == [0, 1, 2, 3, 4]  # 0 is empty: val was measured before the first answers
    assert not (folder / "checkpoints").exists()
    # Another training's are not among them, be it finished or not.
    other = recipe_of(arms={"grpo": {"trainer": "grpo"}}, grpo={**given, "max_steps": 3})
    _stopped_after(3, lambda: grpo.run(other, force=False), monkeypatch)
    last = recipe_of(arms={"grpo": {"trainer": "grpo"}}, grpo={**given, "max_steps": 1})
    grpo.run(last, force=False)
    assert steps() == [0, 1]


REJECTION = {"picked": {"trainer": "rejection", "settings": {"max_steps": 2}}}


def test_rejection_trains_on_the_models_own_optimal_answers(recipe_of, monkeypatch, capsys):
    recipe = recipe_of(arms=REJECTION)
    make.run(recipe, force=False, workers=1)
    with pytest.raises(UserError, match="gave no optimal answer in 16; run SFT first"):
        rejection.run(recipe, force=False, arm="picked")

    [problem] = tier_problems("dense", 1)
    right = verify(problem, gold_answer(problem, reasoning=False))
    monkeypatch.setattr(rejection, "verify", lambda problem, text: right)
    rejection.run(recipe, force=True, arm="picked")
    kept = [row for _, row in read_jsonl(recipe.run.folder / "picked/successes/successes.jsonl")]
    assert 0 < len(kept) == len({(row["id"], row["completion"]) for row in kept}) <= 16
    assert _differ(_weights(recipe.model), _weights(recipe.run.folder / "picked" / "model"))
    capsys.readouterr()
    rejection.run(recipe, force=False, arm="picked")
    assert capsys.readouterr().out.count("up to date") == 2

    path = recipe.run.folder / "picked/successes/successes.jsonl"
    whole = path.read_text()
    for line in ('{"id": "train-x-0", "completion": ""}', '{"id": [], "completion": ""}', "{"):
        path.write_text(f"{whole}{line}\n")
        says = rf"successes\.jsonl:{len(kept) + 1} is .*; delete successes\.jsonl, and `make arms`"
        with pytest.raises(UserError, match=says):
            rejection.run(recipe, force=False, arm="picked")


def test_rejection_draws_as_many_answers_as_grpo_and_needs_to_know_how_many(recipe_of):
    assert rejection.budget(grpo_config(recipe_of(), Path("out")), "r.yaml") == (4, 4)
    by_epochs = {key: value for key, value in RECIPE["grpo"].items() if key != "max_steps"}
    with pytest.raises(UserError, match=r"needs grpo\.max_steps"):
        rejection.budget(grpo_config(recipe_of(grpo=by_epochs), Path("out")), "r.yaml")


def test_an_arm_without_training_is_its_start_asked_in_another_way(recipe_of):
    tune = {"temperature": [0.5, 1.0], "shots": [0, 1]}
    best = {"trainer": "none", "eval": {"lenient": True}, "tune": tune}
    tiers = {"dense": {"train": 8, "val": 2, "test": 3, "events": [3, 4]}}
    recipe = recipe_of(arms={"base-best": best}, data={"main": "dense", "tiers": tiers})
    make.run(recipe, force=False, workers=1)
    assert trained_arms(recipe.run) == ["base", "base-best"]
    sample_arm(recipe, "base-best", force=False)
    rows = [row for _, row in read_jsonl(recipe.run.samples("base-best"))]
    assert len(rows) == 3 * 4
    manifest = json.loads((recipe.run.samples("base-best").parent / "manifest.json").read_text())
    tried = [(way["temperature"], way["shots"]) for way in manifest["tuned"]]
    assert tried == [(0.5, 0), (0.5, 1), (1.0, 0), (1.0, 1)]
    assert manifest["settings"]["model"] == recipe.model


@pytest.mark.parametrize(
    ("arm", "said"),
    [
        ({"tune": {"samples": [4, 8]}}, r"tune takes temperature, top_p, shots, .* not samples"),
        ({"tune": {"shots": []}}, r"each with a list of values to try, not shots: \[\]"),
        ({"eval": {"samples": 8}}, r"eval\.samples cannot differ: arms are compared"),
        ({"eval": {"temperature": -1.0}}, r"arms\.other\.eval\.temperature .* 0 or more"),
    ],
)
def test_what_an_arm_may_not_change_is_refused(recipe_of, arm, said):
    with pytest.raises(UserError, match=said):
        recipe_of(arms={"other": {"trainer": "none", **arm}})


def test_an_arm_is_trained_by_its_own_trainer_alone(recipe_of):
    recipe = recipe_of(arms={"sft": REJECTION["picked"]})
    with pytest.raises(UserError, match="trained by rejection, not by sft; `make arms` trains it"):
        sft.run(recipe, force=False)


def test_shots_are_solved_training_problems_of_the_same_tier(recipe_of):
    recipe = recipe_of()
    make.run(recipe, force=False, workers=1)
    asked, train = read_split(recipe.run, "test"), read_split(recipe.run, "train")
    tiers = {row["id"]: row["tier"] for row in asked}
    shots = shots_for(recipe.run, recipe.seed, tiers, 2)
    tier_of = {(row["prompt"], row["gold"]): row["tier"] for row in train}
    for row in asked:
        assert [tier_of[shot] for shot in shots[row["id"]]] == [row["tier"]] * 2
    with pytest.raises(UserError, match="9 shots need as many train problems of tier 'dense'"):
        shots_for(recipe.run, recipe.seed, tiers, 9)
