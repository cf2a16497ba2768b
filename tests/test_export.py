"""Export: the folder works elsewhere, its card says what the run's files say, nothing is lost."""

import errno
import json
import re
import shutil
import sys
from dataclasses import replace
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace

import httpx
import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt
from peft import LoraConfig, PeftModel, get_peft_model
from scripted import World, solving
from tiny import random_model
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from data.common.errors import UserError, run_main
from data.common.files import Stage, read_jsonl, sha256, write_jsonl
from data.common.locks import release
from data.rows import read_split
from eval import export
from eval.show.card import TAG, Link, card, code, evaluation, fenced, lineage, prose
from eval.stats.estimate import cell
from pipeline import sft
from pipeline.model.decode import render
from pipeline.model.load import check_model_folder, write_model

ARMS = {
    "sft": {"trainer": "sft"},
    "grpo": {"trainer": "grpo", "start": "sft"},
    "cold": {"trainer": "none", "start": "sft", "eval": {"temperature": 0.5}},
}
#: What training notes of each arm, beside what every stage does.
TRAINED_WITH = {
    "sft": {"max_steps": 5, "num_train_epochs": 3.0, "learning_rate": 2e-4, "run_name": "None"},
    "grpo": {"max_steps": 7, "num_generations": 4, "epsilon": 0.2, "hub_token": "<HUB_TOKEN>"},
}
NAME = "runs/scripted/export/grpo"


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """The folders of a base and of two models trained from it."""
    folder = tmp_path_factory.mktemp("weights")
    for number, name in enumerate(("base", "sft", "grpo")):
        model, tokenizer = random_model("qwen3")
        with torch.no_grad():
            model.lm_head.weight.add_(0.1 * number)
        write_model(model, tokenizer, folder / name)
    return folder


@pytest.fixture
def world(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    made = World(Path(), monkeypatch)
    made.scripts |= {"base": solving(0.2), "sft": solving(0.3), "grpo": solving(0.8)}
    made.scripts["cold"] = made.scripts["sft"]
    return made


def train(recipe, weights, *names, lora=None):
    """Leave what a training leaves, with weights that can be loaded."""
    for name in names:
        folder = recipe.run.folder / name
        start = export.model_folder(recipe, recipe.all_arms[name].start)
        settings = {
            "model": start,
            "dtype": "float32",
            "lora": lora,
            "tiers": [],
            "backend": "trl",
            name: {"max_steps": TRAINED_WITH[name]["max_steps"], "epsilon": 0.2},
        }
        inputs = [recipe.run.split("train"), *([Path(start)] if Path(start).is_dir() else [])]
        stage = Stage(folder, name, settings, inputs)
        shutil.copytree(weights / name, folder / "model", dirs_exist_ok=True)
        stage.finish(["model"], seed=11, trained_with=TRAINED_WITH[name], trainable_parameters=123)


@pytest.fixture
def recipe(world, weights):
    """A recipe whose arms are trained, from a model of the hub, and not evaluated."""
    found = world.recipe(ARMS)
    train(found, weights, "sft", "grpo")
    return found


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


# --- the folder ------------------------------------------------------------------------------


def test_the_folder_holds_the_weights_as_they_were_evaluated(evaluated):
    folder = export.run(evaluated, "grpo")
    assert folder == Path(NAME)
    model = evaluated.run.folder / "grpo" / "model"
    for name in ("model.safetensors", "config.json", "tokenizer.json", "chat_template.jinja"):
        assert (folder / name).read_bytes() == (model / name).read_bytes()
    check_model_folder(folder)
    assert not list(folder.parent.glob(".*"))


def test_its_decoding_is_that_of_the_evaluation(world, recipe, weights):
    recipe = world.recipe(ARMS, eval={"samples": 8, "max_tokens": 9, "temperature": 0.7,
                                      "top_p": 0.9, "resamples": 100})  # fmt: skip
    # The model's own settings for sampling, which the evaluation does not use.
    model = recipe.run.folder / "grpo" / "model"
    own = GenerationConfig.from_pretrained(model)
    own.update(do_sample=True, top_k=20, repetition_penalty=1.5, eos_token_id=[1])
    own.save_pretrained(model)
    world.evaluate(recipe)
    folder = export.run(recipe, "grpo")
    found = AutoModelForCausalLM.from_pretrained(folder).generation_config
    assert (found.do_sample, found.temperature, found.top_p) == (True, 0.7, 0.9)
    assert (found.max_new_tokens, found.top_k) == (9, 0)
    assert not found.repetition_penalty or found.repetition_penalty == 1.0
    eos = AutoTokenizer.from_pretrained(folder).eos_token_id
    assert found.eos_token_id == sorted({1, eos})
    assert "drawn at T = 0.7, top-p = 0.9, at most 9 tokens" in told(folder)


def test_greedy_decoding_is_written_without_a_temperature(world, recipe):
    recipe = world.recipe(ARMS, eval={"samples": 2, "max_tokens": 9, "temperature": 0})
    found = GenerationConfig.from_pretrained(export.run(recipe, "sft"))
    assert found.do_sample is False
    assert found.temperature is None or found.temperature == 1.0


def test_where_the_recipe_sets_no_limit_that_of_the_evaluation_is_written(world, recipe):
    recipe = world.recipe(ARMS, eval={"samples": 2})
    folder = export.run(recipe, "sft")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    golds = tokenizer([row["gold"] for row in read_split(recipe.run, "test")])["input_ids"]
    longest = max(map(len, golds))
    assert GenerationConfig.from_pretrained(folder).max_new_tokens == 2 * longest


def test_an_export_that_is_up_to_date_is_not_redone(evaluated, capsys):
    folder = export.run(evaluated, "grpo")
    before = (folder / "model.safetensors").stat().st_mtime_ns, folder.stat().st_ino
    assert export.run(evaluated, "grpo") == folder
    assert "up to date" in capsys.readouterr().out
    assert ((folder / "model.safetensors").stat().st_mtime_ns, folder.stat().st_ino) == before
    export.run(evaluated, "grpo", force=True)
    assert folder.stat().st_ino != before[1]


def test_a_licence_that_was_added_is_kept_until_the_user_gives_it_up(world, recipe):
    folder = export.run(recipe, "grpo")
    text = told(folder).replace("---\n", "---\nlicense: mit\n", 1)
    (folder / "README.md").write_text(text)
    export.run(recipe, "grpo")  # up to date
    assert told(folder) == text
    world.evaluate(recipe)
    with pytest.raises(UserError, match=r"README\.md in it is yours; FORCE=1 replaces"):
        export.run(recipe, "grpo")
    assert told(folder) == text
    export.run(recipe, "grpo", force=True)
    assert "license: mit" not in told(folder)


def test_a_file_that_was_added_is_not_deleted_unasked(world, recipe):
    folder = export.run(recipe, "grpo")
    (folder / "notes.txt").write_text("mine")
    world.evaluate(recipe)
    with pytest.raises(UserError, match=r"notes\.txt in it is yours"):
        export.run(recipe, "grpo")
    assert (folder / "notes.txt").read_text() == "mine"


def test_what_fails_in_the_middle_leaves_the_older_export_whole(world, recipe, monkeypatch):
    folder = export.run(recipe, "grpo")
    files = {path.name: path.read_bytes() for path in folder.iterdir() if "json" not in path.name}
    world.evaluate(recipe)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    write_decoding = export.write_decoding
    monkeypatch.setattr(export, "write_decoding", full)
    with pytest.raises(SystemExit, match="the disk is full"):
        run_main(lambda: export.run(recipe, "grpo"))
    monkeypatch.setattr(export, "write_decoding", write_decoding)
    assert {name: (folder / name).read_bytes() for name in files} == files
    assert not list(folder.parent.glob(".*.tmp"))
    assert "**Conclusion:**" in told(export.run(recipe, "grpo"))


def test_no_other_process_may_begin_before_an_export_lies_in_its_place(recipe, monkeypatch):
    seen = []

    def released(lock):
        seen.append({path.name for path in Path(NAME).iterdir()})
        release(lock)

    monkeypatch.setattr("data.common.files.release", released)
    folder = export.run(recipe, "grpo")
    assert {"model.safetensors", "README.md", "manifest.json"} <= seen[-1]
    assert seen[-1] == {path.name for path in folder.iterdir()}


def test_killed_before_its_manifest_an_export_is_taken_up_again(world, recipe, monkeypatch):
    def killed(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Stage, "finish", killed)
        with pytest.raises(KeyboardInterrupt):
            export.run(recipe, "grpo")
    assert (Path(NAME) / "model.safetensors").is_file()
    folder = export.run(recipe, "grpo")
    files = {path.name for path in folder.iterdir()}
    assert "manifest.json" in files
    assert "begun.json" not in files


# --- what is refused -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arm", "said"),
    [
        ("base", "nothing to export: base is nobody/base as it was given"),
        ("cold", "nothing to export: cold is sft asked in another way"),
    ],
)
def test_what_was_not_trained_is_not_exported(recipe, arm, said):
    with pytest.raises(UserError, match=said):
        export.run(recipe, arm)


def command(monkeypatch, recipe, *arguments):
    monkeypatch.setattr("sys.argv", ["export", "--recipe", str(recipe.path), *arguments])
    export.main()


def test_an_arm_without_finished_weights_says_what_trains_it(world, weights, monkeypatch):
    recipe = world.recipe(ARMS)
    with pytest.raises(UserError, match="grpo/model is not finished; `make grpo` trains it"):
        command(monkeypatch, recipe, "--arm", "grpo")
    with pytest.raises(UserError, match="nothing to export"):
        command(monkeypatch, recipe)
    train(recipe, weights, "sft")
    command(monkeypatch, recipe)
    assert Path("runs/scripted/export/sft/model.safetensors").is_file()


@pytest.mark.parametrize(
    ("out", "said"),
    [
        ("full", "full holds something else already"),
        ("file", "file is a file"),
        ("runs/scripted/grpo", "belongs to the run itself"),
        ("runs/scripted/grpo/model/for-others", "belongs to the run itself"),
        ("runs/scripted", "belongs to the run itself"),
    ],
)
@pytest.mark.parametrize("force", [False, True])
def test_a_folder_that_is_no_export_is_never_written_over(recipe, out, said, force):
    Path("full").mkdir()
    Path("full/manifest.json").write_text('{"stage": "grpo"}')
    Path("file").touch()
    before = sha256(recipe.run.folder)
    with pytest.raises(UserError, match=said):
        export.run(recipe, "grpo", Path(out), force=force)
    assert sha256(recipe.run.folder) == before
    assert [path.name for path in Path("full").iterdir()] == ["manifest.json"]


def test_another_empty_folder_will_do(recipe):
    Path("mine").mkdir()
    assert export.run(recipe, "grpo", Path("mine")) == Path("mine")
    assert Path("mine/model.safetensors").is_file()
    assert not Path(NAME).exists()


def test_an_arm_trained_from_another_model_than_the_recipe_names_is_refused(recipe):
    other = replace(recipe, model="nobody/other")
    with pytest.raises(UserError, match=r"trained from nobody/base, and .* from nobody/other now"):
        export.run(other, "grpo")


# --- the card --------------------------------------------------------------------------------


def test_the_metadata_is_what_the_hub_reads(evaluated):
    found = ModelCard.load(export.run(evaluated, "grpo") / "README.md").data
    assert found.base_model == "nobody/base"
    assert found.tags == [TAG, "scheduling", "sft", "grpo", "trl"]
    assert (found.to_dict()["library_name"], found.license, found.datasets) == (
        "transformers",
        None,
        None,
    )
    report = json.loads((evaluated.run.folder / "eval" / "report.json").read_text())
    [result] = found.eval_results
    at_1 = report["tiers"]["dense"]["arms"]["grpo"]["pass_at_k"]["1"]
    assert (result.dataset_config, result.dataset_split) == ("dense", "test")
    assert (result.metric_type, result.metric_value) == ("pass@1", round(at_1["value"], 4))
    assert result.metric_args["interval"] == [round(at_1[end], 4) for end in ("low", "high")]
    assert (result.metric_args["problems"], result.metric_args["samples"]) == (40, 8)


def test_every_tier_has_its_own_result_and_hub_data_sets_are_named(evaluated):
    links = lineage(evaluated, "grpo")
    found = evaluation(evaluated, links)
    tiers = {"dense": found.report["tiers"]["dense"], "more": found.report["tiers"]["dense"]}
    found = replace(found, report={**found.report, "tiers": tiers})
    uses = evaluated.data.tiers | {"hub": {"test": 1, "source": "some/set:test"},
                                   "file": {"test": 1, "source": "my/set.jsonl"}}  # fmt: skip
    recipe = replace(evaluated, data=replace(evaluated.data, tiers=uses))
    data = ModelCard(card(recipe, links, found, found.asking)).data
    assert [result.dataset_config for result in data.eval_results] == ["dense", "more"]
    assert data.datasets == ["some/set"]


def test_unsloth_is_a_tag_where_it_trained(recipe):
    path = recipe.run.folder / "grpo" / "manifest.json"
    facts = json.loads(path.read_text())
    facts["settings"]["backend"] = "unsloth"
    path.write_text(json.dumps(facts))
    assert "unsloth" in ModelCard.load(export.run(recipe, "grpo") / "README.md").data.tags
    assert "unsloth" not in ModelCard.load(export.run(recipe, "sft") / "README.md").data.tags


def test_the_card_has_the_tables_and_the_conclusion_as_they_stand(world, evaluated):
    text = told(export.run(evaluated, "grpo"))
    report = json.loads((evaluated.run.folder / "eval" / "report.json").read_text())
    arms = report["tiers"]["dense"]["arms"]
    for k in report["tiers"]["dense"]["ks"]:
        cells = " | ".join(cell(arms[arm]["pass_at_k"][str(k)]) for arm in ("base", "sft", "grpo"))
        assert f"\n| {k} | {cells} |" in text
    assert "cold" not in text  # no part of its lineage
    assert f"**Conclusion:** {world.found(evaluated)['sentence']}" in text
    statuses = arms["grpo"]["statuses"]
    invalid = (statuses["infeasible"] + statuses["unparsable"]) / arms["grpo"]["answers"]
    assert 0 < invalid < 1
    assert f"On `dense` {100 * invalid:.1f} % of its answers break a rule" in text


def test_the_conclusion_on_another_arm_is_not_told(evaluated):
    text = told(export.run(evaluated, "sft"))
    assert "Conclusion" not in text
    assert "| k | base | SFT | random" in text


def test_the_card_shows_one_training_problem_with_its_gold(recipe):
    prompt, gold, *_ = blocks(told(export.run(recipe, "grpo")))
    row = read_split(recipe.run, "train")[0]
    assert (prompt, gold) == (row["prompt"] + "\n", row["gold"] + "\n")


def test_the_card_shows_what_training_really_used(recipe):
    text = told(export.run(recipe, "grpo"))
    sft, grpo = map(yaml.safe_load, blocks(text, "yaml"))
    assert sft["arguments"] == {"max_steps": 5, "learning_rate": 2e-4}  # so epochs do not count
    assert grpo["arguments"] == {"max_steps": 7, "num_generations": 4, "epsilon": 0.2}
    assert (grpo["trainer"], grpo["backend"], grpo["seed"]) == ("grpo", "trl", 11)
    assert grpo["versions"]["trl"]
    assert "lora" not in grpo
    assert "Training problems: 4 of `dense`." in text
    assert "HUB_TOKEN" not in text


def test_the_lineage_names_every_model_with_its_hash_and_commit(recipe):
    path = recipe.run.folder / "grpo" / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "commit": "abc123"}))
    text = told(export.run(recipe, "grpo"))
    sft, grpo = (sha256(recipe.run.folder / arm / "model") for arm in ("sft", "grpo"))
    assert re.findall("^- (`.*)", text, re.M) == [
        "`base`: `nobody/base` of the Hugging Face hub",
        f"`sft`: from `base` by supervised fine-tuning on gold answers, SHA-256 `{sft}`",
        f"`grpo`: from `sft` by GRPO with verifiable rewards, SHA-256 `{grpo}`, code at commit "
        "`abc123`",
    ]


def test_an_arm_asked_in_another_way_is_no_model_of_the_lineage(world, weights):
    recipe = world.recipe({**ARMS, "late": {"trainer": "grpo", "start": "cold"}})
    train(recipe, weights, "sft")
    folder = recipe.run.folder / "late"
    settings = {"model": "runs/scripted/sft/model", "grpo": {}}
    stage = Stage(folder, "late", settings, [recipe.run.folder / "sft" / "model"])
    shutil.copytree(weights / "grpo", folder / "model")
    stage.finish(["model"])
    assert [link.arm for link in lineage(recipe, "late")] == ["base", "sft", "late"]
    assert "`late`: from `sft`" in told(export.run(recipe, "late"))


def test_a_local_base_is_named_without_the_way_to_it(world, weights):
    recipe = replace(world.recipe(ARMS), model=str(weights / "base"))
    train(recipe, weights, "sft")
    folder = export.run(recipe, "sft")
    assert ModelCard.load(folder / "README.md").data.base_model is None
    hashed = sha256(weights / "base")
    assert f"`base`: the local model `base`, SHA-256 `{hashed}`" in told(folder)
    assert str(weights) not in told(folder)


def test_without_an_evaluation_the_card_says_how_to_make_one(recipe):
    folder = export.run(recipe, "grpo")
    text = told(folder)
    assert (
        "**Not evaluated.** The run has no finished evaluation of this model; `make eval`" in text
    )
    assert "How good its answers are is not known" in text
    assert ModelCard.load(folder / "README.md").data.eval_results is None
    assert "| k |" not in text


def test_an_evaluation_of_other_weights_is_not_shown(evaluated, weights):
    train(evaluated, weights, "grpo")
    assert "**Conclusion:**" in told(export.run(evaluated, "grpo"))  # the same weights again
    shutil.copytree(weights / "sft", evaluated.run.folder / "grpo/model", dirs_exist_ok=True)
    text = told(export.run(evaluated, "grpo"))
    assert "**Not evaluated.** The run's evaluation is of other weights than these" in text
    assert "| k |" not in text


def test_samples_that_were_not_judged_yet_are_no_evaluation(evaluated):
    path = evaluated.run.folder / "eval" / "grpo" / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "sha256": "of other samples"}))
    assert "other weights" in evaluation(evaluated, lineage(evaluated, "grpo"))


def test_a_conclusion_on_other_answers_is_not_told(evaluated):
    rows = [row for _, row in read_jsonl(evaluated.run.folder / "eval/grpo/verdicts.jsonl")]
    write_jsonl(evaluated.run.folder / "eval/grpo/verdicts.jsonl", rows[::-1])
    found = evaluation(evaluated, lineage(evaluated, "grpo"))
    assert found.sentence is None
    assert "grpo" in found.report["arms"]


def test_an_arm_on_the_way_that_was_trained_again_is_not_shown_for_the_old_one(evaluated, weights):
    old = sha256(evaluated.run.folder / "sft" / "model")
    shutil.copytree(weights / "base", evaluated.run.folder / "sft/model", dirs_exist_ok=True)
    text = told(export.run(evaluated, "grpo"))
    line = f"- `sft`: trained again since, so that its own lineage is lost, SHA-256 `{old}`\n"
    assert line in text
    assert len(blocks(text, "yaml")) == 1
    assert "| k | SFT | GRPO |" in text  # what was measured of the old one still holds


# --- names from elsewhere --------------------------------------------------------------------

HOSTILE = (
    "a|b",
    "line\nbreak",
    "# heading",
    "`tick` and ``two``",
    "`",
    "<script>alert(1)</script>",
    "![](http://x/y.png) [link](http://x)",
    "http://x.example",
    "*bold* _it_ ~~no~~",
    "\u202eright to left",
    "---\nlicense: mit\n---",
    "{{ 7 * 7 }} {% raw %}",
    "end\n```\n# out",
)


def inline(markdown):
    """The types of what stands in a Markdown text, and its code spans."""
    tokens = MarkdownIt("gfm-like", {"html": True, "linkify": False}).parse(markdown)
    children = [child for token in tokens for child in token.children or ()]
    kinds = {t.type for t in (*tokens, *children)} - {"paragraph_open", "paragraph_close", "inline"}
    return kinds, [child.content for child in children if child.type == "code_inline"]


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_is_a_code_span_whatever_it_holds(name):
    kinds, [shown] = inline(f"On {code(name)} all is well.")
    assert kinds == {"text", "code_inline"}
    visible = name.replace("\u202e", "")
    assert shown == " ".join(visible.split())


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_in_a_sentence_is_text(name):
    kinds, _ = inline(f"Elicited: {prose(name)} gains +1.0 [0.5, 1.5] points.")
    assert kinds <= {"text", "text_special"}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_text_in_a_fence_ends_where_it_ends(name):
    before, after = blocks(f"{fenced(name)}\n\n{fenced('after')}\n")
    assert before == name + "\n"
    assert after == "after\n"


def test_no_name_of_a_tier_model_or_event_breaks_out_of_the_card(evaluated):
    path = evaluated.run.split("train")
    rows = [row for _, row in read_jsonl(path)]
    asked = rows[0]["prompt"]
    links = lineage(evaluated, "grpo")
    found = evaluation(evaluated, links)
    tier = evaluated.data.tiers["dense"]
    for name in HOSTILE:
        report = {**found.report, "tiers": {name: found.report["tiers"]["dense"]}, "main": name}
        data = replace(evaluated.data, tiers={name: tier | {"source": name}}, main=name)
        rows[0]["prompt"] = f'{asked}\n{name}\n"""\n'
        write_jsonl(path, [{**row, "tier": name} for row in rows])
        facts = {**links[-1].facts, "inputs": {str(path): sha256(path)}}
        shown = [Link("base", name, None, None), links[1], replace(links[2], facts=facts)]
        text = card(
            replace(evaluated, data=data), shown, replace(found, report=report), found.asking
        )
        made = ModelCard(text)
        assert (made.data.license, made.data.base_model, made.data.datasets) == (None, None, None)
        assert len(made.data.eval_results) == 1
        kinds, codes = inline(made.text)
        assert not kinds & {"html_block", "html_inline", "link_open", "image", "s_open", "hr"}
        assert codes.count(" ".join(name.replace("\u202e", "").split())) >= 4, name
        tokens = MarkdownIt("commonmark").parse(made.text)
        assert sum(token.type == "heading_open" for token in tokens) == 7, name
        prompt, _, *_ = blocks(made.text)
        assert prompt == rows[0]["prompt"]
        [snippet] = blocks(made.text, "python")
        compile(snippet, "snippet", "exec")


# --- how to use it ---------------------------------------------------------------------------


def test_the_snippet_of_the_card_runs_and_asks_as_the_evaluation_does(recipe, monkeypatch):
    folder = export.run(recipe, "grpo")
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


# --- adapters --------------------------------------------------------------------------------


@pytest.fixture
def with_adapter(world, weights):
    """A recipe whose grpo was trained with LoRA from sft, and sft with LoRA from the base."""
    recipe = world.recipe(ARMS)
    train(recipe, weights, "sft", "grpo", lora={"r": 2})
    for arm in ("sft", "grpo"):
        model, _ = random_model("qwen3")
        tuned = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"]))
        tuned.save_pretrained(recipe.run.folder / arm / "adapter")
    return recipe


def test_an_adapter_is_exported_alone(with_adapter, weights):
    own_folder = with_adapter.run.folder / "grpo" / "adapter"
    folder = export.run(with_adapter, "grpo", adapter=True)
    assert folder == Path("runs/scripted/export/grpo-adapter")
    names = {path.name for path in folder.iterdir()} - {"manifest.json"}
    weights_of = [path / "adapter_model.safetensors" for path in (folder, own_folder)]
    assert weights_of[0].read_bytes() == weights_of[1].read_bytes()
    own = {path.name for path in own_folder.iterdir()}
    assert names == {*own, "README.md", "generation_config.json"}
    base = AutoModelForCausalLM.from_pretrained(weights / "sft")
    assert PeftModel.from_pretrained(base, folder).peft_config["default"].r == 2
    text = told(folder)
    assert "**This is the LoRA adapter alone**" in text
    assert "trained on: the model `sft` of the same run" in text
    data = ModelCard(text).data
    # The hub would take the base for what the adapter belongs on.
    assert (data.to_dict()["library_name"], data.base_model) == ("peft", None)


def test_the_adapter_of_an_arm_trained_from_the_base_names_it(with_adapter):
    data = ModelCard(told(export.run(with_adapter, "sft", adapter=True))).data
    assert data.base_model == "nobody/base"


def test_the_snippet_of_an_adapter_runs(with_adapter, weights, monkeypatch):
    folder = export.run(with_adapter, "grpo", adapter=True)
    [snippet] = blocks(told(folder), "python")
    monkeypatch.chdir(folder)
    shutil.copytree(weights / "sft", "sft")
    names = {}
    exec(snippet, names)
    assert isinstance(names["model"], PeftModel)
    new = names["output"].shape[1] - names["inputs"]["input_ids"].shape[1]
    assert 0 < new <= with_adapter.eval.max_tokens


def test_without_lora_there_is_no_adapter(recipe):
    with pytest.raises(UserError, match="grpo has no adapter, since it was trained in full"):
        export.run(recipe, "grpo", adapter=True)


def test_an_adapter_that_was_not_kept_says_how_to_get_one(with_adapter):
    (with_adapter.run.folder / "grpo/adapter/adapter_model.safetensors").unlink()
    with pytest.raises(UserError, match=r"lacks .* FORCE=1 with `make grpo` trains the adapter"):
        export.run(with_adapter, "grpo", adapter=True)


def test_what_lora_trained_is_exported_as_an_adapter_and_merged_which_are_the_same(world, weights):
    recipe = world.recipe(
        {"sft": {"trainer": "sft"}},
        model=str(weights / "base"),
        backend="trl",
        lora={"r": 2, "lora_alpha": 4, "target_modules": "all"},
        sft={"max_steps": 3, "warmup_steps": 0, "learning_rate": 0.1},
    )
    sft.run(recipe, force=False)
    folder, adapter = (export.run(recipe, "sft", adapter=only) for only in (False, True))
    base = AutoModelForCausalLM.from_pretrained(weights / "base", dtype=torch.float32)
    merged = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokens = torch.arange(5, 25)[None]
    with torch.no_grad():
        before, after = base(tokens).logits, merged(tokens).logits
        adapted = PeftModel.from_pretrained(base, adapter)(tokens).logits
    assert not torch.allclose(before, after, atol=1e-3)
    assert torch.allclose(adapted, after, atol=1e-4)
    [settings] = map(yaml.safe_load, blocks(told(folder), "yaml"))
    assert (settings["backend"], settings["lora"]["r"]) == ("trl", 2)
    assert settings["arguments"]["learning_rate"] == 0.1
    assert settings["trainable_parameters"] < base.num_parameters() / 5
    # Where the base lies on this machine is nobody else's business.
    assert not [p for p in adapter.iterdir() if p.suffix == ".json" and p.name != "manifest.json"
                and str(weights) in p.read_text()]  # fmt: skip


# --- the hub ---------------------------------------------------------------------------------


@pytest.fixture
def hub(monkeypatch):
    """A hub that notes what it is told; ``private`` is what it says of the repository."""
    found = SimpleNamespace(calls=[], private=True, error=None)

    class Api:
        def create_repo(self, repository, **options):
            found.calls.append(("create", repository, options))

        def repo_info(self, repository):
            return SimpleNamespace(private=found.private)

        def upload_folder(self, **options):
            if found.error:
                raise found.error
            found.calls.append(("upload", options.pop("repo_id"), options))

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    return found


@pytest.mark.parametrize("public", [False, True])
def test_a_folder_is_pushed_on_request_and_private_unless_asked_otherwise(
    recipe, hub, monkeypatch, capsys, public
):
    hub.private = not public
    flags = ["--arm", "grpo", "--push", "me/planner", *(["--public"] if public else [])]
    command(monkeypatch, recipe, *flags)
    create, upload = hub.calls
    assert create == ("create", "me/planner", {"private": not public, "exist_ok": True})
    assert upload[1] == "me/planner"
    assert upload[2]["folder_path"] == Path(NAME)
    # The manifest names local paths.
    assert "manifest.json" in upload[2]["ignore_patterns"]
    assert "https://huggingface.co/me/planner" in capsys.readouterr().out


def test_nothing_is_pushed_unasked(recipe, hub, monkeypatch):
    command(monkeypatch, recipe, "--arm", "grpo")
    assert hub.calls == []


def test_public_without_a_push_is_refused_before_anything_is_written(recipe, hub, monkeypatch):
    with pytest.raises(UserError, match="PUBLIC=1 is of what PUSH=owner/name sends to the hub"):
        command(monkeypatch, recipe, "--arm", "grpo", "--public")
    assert not Path(NAME).exists()


def test_a_private_push_does_not_go_to_a_public_repository(recipe, hub, monkeypatch):
    hub.private = False
    with pytest.raises(UserError, match=r"me/planner is a public repository already; PUBLIC=1"):
        command(monkeypatch, recipe, "--arm", "grpo", "--push", "me/planner")
    assert [call[0] for call in hub.calls] == ["create"]


@pytest.mark.parametrize(
    "error",
    [httpx.ConnectError("no route"), ConnectionError("no route"), OSError("no route: log in")],
)
def test_a_push_that_fails_is_one_sentence_and_loses_nothing(recipe, hub, monkeypatch, error):
    hub.error = error
    with pytest.raises(UserError, match=rf"was not pushed \(no route.*{NAME} is kept"):
        command(monkeypatch, recipe, "--arm", "grpo", "--push", "me/planner")
    assert (Path(NAME) / "model.safetensors").is_file()
    hub.error = None
    command(monkeypatch, recipe, "--arm", "grpo", "--push", "me/planner")
    assert hub.calls[-1][0] == "upload"


@pytest.mark.parametrize("repository", ["planner", "a/b/c", "me/", "me/pl anner", "", "me/a|b"])
def test_what_is_no_repository_is_refused_before_anything_is_written(
    recipe, hub, monkeypatch, repository
):
    with pytest.raises(UserError, match="PUSH must be owner/name"):
        command(monkeypatch, recipe, "--arm", "grpo", "--push", repository)
    assert not Path(NAME).exists()


# --- GGUF ------------------------------------------------------------------------------------


@pytest.fixture
def unsloth(monkeypatch):
    """An Unsloth that writes a file as its own does: beside the folder, named after the model."""
    made = ModuleType("unsloth")
    made.__spec__ = ModuleSpec("unsloth", None)
    made.error = None

    class Model:
        def save_pretrained_gguf(self, folder, tokenizer, quantization_method):
            if made.error:
                raise made.error
            out = Path(f"{folder}_gguf")
            out.mkdir()
            files = [out / "model.BF16.gguf", out / f"model.{quantization_method.upper()}.gguf"]
            for file in files:
                file.write_text(file.name)
            return {"gguf_files": list(map(str, files))}

    made.FastLanguageModel = SimpleNamespace(from_pretrained=lambda *_, **__: (Model(), None))
    monkeypatch.setitem(sys.modules, "unsloth", made)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    return made


def test_gguf_without_a_gpu_or_unsloth_says_what_is_missing_and_what_to_do(recipe, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(export, "find_spec", lambda name: None)
    by_hand = rf"`python convert_hf_to_gguf\.py {NAME} --outtype q8_0`$"
    said = f"Unsloth is not installed and there is no CUDA GPU; .*{by_hand}"
    with pytest.raises(UserError, match=said):
        export.run(recipe, "grpo", gguf="q8_0")
    with pytest.raises(UserError, match=r"--outtype bf16` and then `llama-quantize` to q4_k_m$"):
        export.run(recipe, "grpo", gguf="q4_k_m")
    with pytest.raises(UserError, match=r"convert_hf_to_gguf\.py 'for others' --outtype"):
        export.run(recipe, "grpo", Path("for others"), gguf="q8_0")
    assert not Path(NAME).exists()


@pytest.mark.parametrize("kind", ["q8_0", "q4_k_m"])
def test_unsloths_gguf_lies_beside_the_weights(recipe, unsloth, kind):
    folder = export.run(recipe, "grpo", gguf=kind)
    name = f"scripted-grpo.{kind}.gguf"
    assert (folder / name).read_text() == f"model.{kind.upper()}.gguf"
    assert [path.name for path in folder.glob("*gguf*")] == [name]
    assert f"`{name}` holds the same weights for llama.cpp" in told(folder)


def test_where_unsloth_cannot_have_llama_cpp_its_reason_is_told(recipe, unsloth):
    unsloth.error = RuntimeError("llama.cpp could not be built.\nmore\n")
    by_hand = rf"export without it .*`python convert_hf_to_gguf\.py {NAME} --outtype q8_0`$"
    with pytest.raises(UserError, match=rf"\(llama\.cpp could not be built\); {by_hand}"):
        export.run(recipe, "grpo", gguf="q8_0")
    assert not (Path(NAME) / "model.safetensors").exists()
    unsloth.error = None
    export.run(recipe, "grpo")
    assert (Path(NAME) / "model.safetensors").is_file()


def test_an_adapter_is_not_converted(recipe, monkeypatch):
    with pytest.raises(UserError, match="GGUF converts a whole model"):
        command(monkeypatch, recipe, "--arm", "grpo", "--adapter", "--gguf", "q8_0")
