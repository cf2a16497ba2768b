"""Export: the folder works elsewhere, its card says what the run's files say, nothing is lost."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt
from running import EMBEDDED, change_json, refusal_of, rows_in
from scripted import CONTENT, World, solving
from transformers import AutoTokenizer, GenerationConfig

from data.common.files import Stage, sha256, write_jsonl
from data.rows import read_split
from eval import export
from eval.stats.estimate import cell
from pipeline.model.decode import render
from pipeline.model.load import check_model_folder

ARMS = {
    "sft": {"trainer": "sft"},
    "grpo": {"trainer": "grpo", "start": "sft"},
    "cold": {"trainer": "none", "start": "sft", "eval": {"temperature": 0.5}},
}
#: The facts that a training notes of its arm, beside those of every stage.
TRAINED_WITH = {
    "sft": {"max_steps": 5, "num_train_epochs": 3.0},
    "grpo": {"max_steps": 7, "epsilon": 0.2, "hub_token": "<HUB_TOKEN>"},
}


@pytest.fixture
def world(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    made = World(Path(), monkeypatch)
    made.scripts |= {"base": solving(0.2), "sft": solving(0.3), "grpo": solving(0.8)}
    made.scripts["cold"] = made.scripts["sft"]
    return made


def train(recipe, *names, start=None, weights=None):
    """Leave what a training leaves: a folder with everything but weights that can be loaded, or
    with the ``weights`` given."""
    for name in names:
        run = recipe.run
        start_model = run.model(start or recipe.all_arms[name].start)
        settings = {
            "model": start_model,
            "dtype": "float32",
            "lora": None,
            "backend": "trl",
            name: {"max_steps": 7, "epsilon": 0.2},
        }
        inputs = [run.split("train"), *(p for p in [Path(start_model)] if p.is_dir())]
        stage = Stage(run.stage(name), name, settings, inputs)
        folder = run.stage(name) / "model"
        shutil.copytree(EMBEDDED, folder, dirs_exist_ok=True)
        (folder / "model.safetensors").write_text(weights or f"weights of {name}")
        stage.finish(
            ["model"], seed=11, trained_with=TRAINED_WITH.get(name, {}), trainable_parameters=123
        )


@pytest.fixture
def recipe(world):
    """A recipe whose arms are trained, from a model of the hub, and not evaluated."""
    made = world.recipe(ARMS)
    train(made, "sft", "grpo")
    return made


@pytest.fixture
def evaluated(world, recipe):
    world.evaluate(recipe)
    return recipe


def told(folder):
    """The text of a card."""
    return (Path(folder) / "README.md").read_text()


def blocks(text, language=""):
    """The contents of the code blocks of a Markdown text."""
    tokens = MarkdownIt("commonmark").enable("table").parse(text)
    return [t.content for t in tokens if t.type == "fence" and t.info == language]


# --- the folder ----------------------------------------------------------------------------------


def test_the_folder_holds_the_weights_and_the_results_as_they_were_evaluated(evaluated):
    model = evaluated.run.folder / "grpo" / "model"
    (model / "model.safetensors").chmod(0o600)
    folder = export.run(evaluated, "grpo")
    assert folder == Path("runs/scripted/export/grpo")
    assert (folder / "model.safetensors").stat().st_mode & 0o777 != 0o600, "others may read it"
    for name in ("model.safetensors", "config.json", "tokenizer.json", "chat_template.jinja"):
        assert (folder / name).read_bytes() == (model / name).read_bytes()
    check_model_folder(folder)
    results, report = (
        json.loads(path.read_text())["tiers"]["dense"]["arms"]
        for path in (folder / "report.json", evaluated.run.report)
    )
    assert results == {arm: report[arm] for arm in ("base", "sft", "grpo")}, "not cold"


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        (
            {"max_tokens": 9, "temperature": 0.7, "top_p": 0.9},
            {"do_sample": True, "temperature": 0.7, "top_p": 0.9, "top_k": 0, "max_new_tokens": 9},
        ),
        ({"max_tokens": 9, "temperature": 0}, {"do_sample": False, "max_new_tokens": 9}),
    ],
)
def test_its_decoding_is_that_of_the_evaluation(world, recipe, asked, expected):
    recipe = world.recipe(ARMS, eval={"samples": 2, "resamples": 100, **asked})
    # The model's own settings for sampling, which the evaluation does not use.
    model = recipe.run.model("grpo")
    own = GenerationConfig(do_sample=True, top_k=20, repetition_penalty=1.5, eos_token_id=[1])
    own.save_pretrained(model)
    world.evaluate(recipe)
    folder = export.run(recipe, "grpo")
    written = json.loads((folder / "generation_config.json").read_text())
    written.setdefault("do_sample", False)
    assert {key: written.get(key) for key in expected} == expected
    assert "repetition_penalty" not in written
    assert written["eos_token_id"] == sorted({1, AutoTokenizer.from_pretrained(model).eos_token_id})
    assert f"drawn at T = {asked['temperature']:g}" in told(folder)


def test_a_card_says_how_the_answers_were_read_when_they_were_last_judged(world, evaluated):
    assert "read leniently" not in told(export.run(evaluated, "grpo"))
    lenient = {**ARMS["grpo"], "eval": {"lenient": True}}
    recipe = world.recipe({**ARMS, "grpo": lenient})
    world.evaluate(recipe)
    assert ", and read leniently." in told(export.run(recipe, "grpo"))


def test_an_export_with_new_results_or_interrupted_is_redone(world, recipe, monkeypatch, capsys):
    folder = export.run(recipe, "grpo")
    assert export.run(recipe, "grpo") == folder
    assert "up to date" in capsys.readouterr().out
    world.evaluate(recipe)
    with monkeypatch.context() as patched:
        patched.setattr(export, "decoding", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            export.run(recipe, "grpo")
    assert not (folder / "manifest.json").exists()
    assert "| k |" in told(export.run(recipe, "grpo"))
    assert (folder / "manifest.json").is_file()
    assert not (folder / "begun.json").exists()


@pytest.mark.parametrize("arm", ["base", "cold"])
def test_what_was_not_trained_is_not_exported(recipe, arm):
    refusal_of(lambda: export.run(recipe, arm), f"nothing to export: {arm}")


def test_an_arm_trained_from_another_model_than_the_recipe_names_is_refused(recipe):
    other = replace(recipe, model="nobody/other")
    refusal_of(lambda: export.run(other, "grpo"), "from nobody/base", "from nobody/other now")


# --- the card ------------------------------------------------------------------------------------


def test_the_metadata_is_what_the_hub_reads(evaluated):
    found = ModelCard(told(export.run(evaluated, "grpo"))).data
    told_to_hub = found.to_dict()
    assert told_to_hub["base_model"] == CONTENT["model"]
    assert told_to_hub["library_name"] == "transformers"
    assert found.tags == ["slotwise", "scheduling", "trl", "sft", "grpo"]
    assert found.license is None
    [result] = found.eval_results
    counted = json.loads(evaluated.run.report.read_text())["tiers"]["dense"]
    at_1 = counted["arms"]["grpo"]["pass_at_k"]["1"]
    assert (result.dataset_config, result.dataset_split) == ("dense", "test")
    assert (result.metric_type, result.metric_value) == ("pass@1", round(at_1["value"], 4))
    assert result.metric_args["interval"] == [round(at_1[end], 4) for end in ("low", "high")]
    assert (result.metric_args["problems"], result.metric_args["samples"]) == (40, 8)


def test_the_card_has_the_tables_and_the_conclusion_as_they_stand(world, evaluated):
    text = told(export.run(evaluated, "grpo"))
    counted = json.loads(evaluated.run.report.read_text())["tiers"]["dense"]
    for k in counted["ks"]:
        arms = (counted["arms"][arm]["pass_at_k"][str(k)] for arm in ("base", "sft", "grpo"))
        assert f"\n| {k} | {' | '.join(map(cell, arms))} |" in text
    assert "cold" not in text, "no part of its lineage"
    assert world.found(evaluated)["sentence"] in text
    statuses, answers = (counted["arms"]["grpo"][key] for key in ("statuses", "answers"))
    invalid = (statuses["infeasible"] + statuses["unparsable"]) / answers
    assert 0 < invalid < 1
    assert f"On `dense` {100 * invalid:.1f} %" in text
    assert "Conclusion" not in told(export.run(evaluated, "sft")), "that is on another arm"
    path = evaluated.run.verdicts("grpo")
    write_jsonl(path, rows_in(path)[::-1])
    text = told(export.run(evaluated, "grpo", force=True))
    assert "Conclusion" not in text, "that is on other answers"
    assert "| k |" in text


def test_the_card_shows_a_training_problem_and_what_training_really_used(recipe):
    text = told(export.run(recipe, "grpo"))
    row = read_split(recipe.run, "train")[0]
    assert blocks(text)[:2] == [row["prompt"] + "\n", row["gold"] + "\n"]
    sft, grpo = map(yaml.safe_load, blocks(text, "yaml"))
    assert sft["arguments"] == {"max_steps": 5}
    assert grpo["arguments"] == {"max_steps": 7, "epsilon": 0.2}
    assert (grpo["trainer"], grpo["backend"], grpo["seed"]) == ("grpo", "trl", 11)
    assert grpo["versions"]["trl"]
    assert "lora" not in grpo
    assert "4 of `dense`" in text
    assert "HUB_TOKEN" not in text


def lines_of_lineage(text):
    return re.findall("^- (`.*)", text, re.M)


def test_the_lineage_names_every_model_with_its_hash_and_commit(world):
    recipe = world.recipe({**ARMS, "late": {"trainer": "grpo", "start": "cold"}})
    train(recipe, "sft", "late")
    change_json(recipe.run.stage("late") / "manifest.json", commit="abc123")
    sft, late = (sha256(recipe.run.stage(arm) / "model") for arm in ("sft", "late"))
    assert lines_of_lineage(told(export.run(recipe, "late"))) == [
        "`base`: `nobody/base` of the Hugging Face hub",
        f"`sft`: from `base` by supervised fine-tuning on gold answers, SHA-256 `{sft}`",
        f"`late`: from `sft` by GRPO with verifiable rewards, SHA-256 `{late}`, code at commit "
        "`abc123`",
    ], "cold is sft, asked in another way"


def test_a_local_base_is_named_without_the_way_to_it_and_with_its_licence(world, tmp_path):
    local = tmp_path / "somewhere" / "local"
    shutil.copytree(EMBEDDED, local)
    recipe = replace(world.recipe(ARMS), model=str(local))
    train(recipe, "sft")
    text = told(export.run(recipe, "sft"))
    data = ModelCard(text).data
    assert (data.base_model, data.license) == (None, "apache-2.0")
    [base, _] = lines_of_lineage(text)
    assert base == f"`base`: the local model `local`, SHA-256 `{sha256(local)}`"
    assert "somewhere" not in text


@pytest.mark.parametrize("lack", ["never", "other weights", "other samples"])
def test_an_evaluation_of_other_weights_is_not_shown(world, recipe, lack):
    if lack != "never":
        world.evaluate(recipe)
        train(recipe, "grpo")
        assert "| k |" in told(export.run(recipe, "grpo")), "these are the same weights again"
    if lack == "other weights":
        train(recipe, "grpo", weights="others")
    if lack == "other samples":
        change_json(recipe.run.samples("grpo").with_name("manifest.json"), sha256="of others")
    text = told(export.run(recipe, "grpo", force=True))
    assert ModelCard(text).data.eval_results is None
    assert "`make eval`" in text
    assert "| k |" not in text


def test_an_arm_on_the_way_that_was_trained_again_is_not_shown_for_the_old_one(evaluated):
    old = sha256(evaluated.run.folder / "sft" / "model")
    train(evaluated, "sft", weights="others")
    text = told(export.run(evaluated, "grpo"))
    first, second = lines_of_lineage(text)
    assert first.endswith(f"lost, SHA-256 `{old}`")
    assert second.startswith("`grpo`: from `sft`")
    assert len(blocks(text, "yaml")) == 1
    assert "| k | SFT | GRPO |" in text, "what was measured of the old one still holds"


# --- models that are loaded ----------------------------------------------------------------------


@pytest.mark.slow
def test_a_merged_model_is_asked_by_its_card_as_by_the_evaluation(world, tmp_path, monkeypatch):
    from tiny import save_model

    from pipeline import sft

    recipe = world.recipe(
        {"sft": {"trainer": "sft"}},
        model=str(save_model(tmp_path / "base", "qwen3")),
        backend="trl",
        lora={"r": 2, "lora_alpha": 4, "target_modules": "all"},
        sft={"max_steps": 3, "warmup_steps": 0, "learning_rate": 0.1},
    )
    sft.run(recipe, force=False)
    folder = export.run(recipe, "sft")
    [settings] = map(yaml.safe_load, blocks(told(folder), "yaml"))
    assert (settings["backend"], settings["lora"]["r"]) == ("trl", 2)
    assert settings["arguments"]["learning_rate"] == 0.1
    [snippet] = blocks(told(folder), "python")
    row = read_split(recipe.run, "train")[0]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    monkeypatch.chdir(folder)
    names = {}
    exec(snippet, names)
    asked = tokenizer(render(tokenizer, row["prompt"]), add_special_tokens=False)["input_ids"]
    assert names["inputs"]["input_ids"].tolist() == [asked]
    assert 0 < names["output"].shape[1] - len(asked) <= recipe.eval.max_tokens
    assert isinstance(names["answer"], str)
