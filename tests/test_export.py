"""Export: the folder works elsewhere, its card says what the run's files say, nothing is lost."""

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
import yaml
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt
from scripted import World, solving
from transformers import AutoTokenizer, GenerationConfig

from data.common.errors import UserError, run_main
from data.common.files import Stage, read_jsonl, sha256, write_jsonl
from data.rows import read_split
from eval import export
from eval.show.card import TAG, card_text, code, fenced, prose
from eval.show.lineage import Link, evaluation, lineage
from eval.stats.estimate import cell
from pipeline.model.decode import render
from pipeline.model.load import check_model_folder

EMBEDDED = Path(__file__).parents[1] / "pipeline" / "embedded"
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
        (folder / "README.md").unlink(missing_ok=True)
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


def command(monkeypatch, recipe, *arguments):
    monkeypatch.setattr("sys.argv", ["export", "--recipe", str(recipe.path), *arguments])
    export.main()


# --- the folder ----------------------------------------------------------------------------------


def test_the_folder_holds_the_weights_as_they_were_evaluated(evaluated):
    folder = export.run(evaluated, "grpo")
    assert folder == Path(NAME)
    model = evaluated.run.folder / "grpo" / "model"
    for name in ("model.safetensors", "config.json", "tokenizer.json", "chat_template.jinja"):
        assert (folder / name).read_bytes() == (model / name).read_bytes()
    check_model_folder(folder)
    assert not [p for p in folder.iterdir() if p.suffix in (".bin", ".pt", ".pth", ".pkl")]
    assert not list(folder.parent.glob(".*"))


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


def test_where_the_recipe_sets_no_limit_that_of_the_evaluation_is_written(world, recipe):
    recipe = world.recipe(ARMS, eval={"samples": 2})
    folder = export.run(recipe, "sft")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    golds = tokenizer([row["gold"] for row in read_split(recipe.run, "test")])["input_ids"]
    written = GenerationConfig.from_pretrained(folder)
    assert written.max_new_tokens == 2 * max(map(len, golds))


def test_an_export_that_is_up_to_date_is_not_redone(evaluated, capsys):
    folder = export.run(evaluated, "grpo")
    before = (folder / "model.safetensors").stat().st_mtime_ns, folder.stat().st_ino
    assert export.run(evaluated, "grpo") == folder
    assert "up to date" in capsys.readouterr().out
    assert ((folder / "model.safetensors").stat().st_mtime_ns, folder.stat().st_ino) == before
    export.run(evaluated, "grpo", force=True)
    assert folder.stat().st_ino != before[1]


def test_an_older_export_and_what_a_user_wrote_into_it_is_kept_until_they_give_it_up(world, recipe):
    folder = export.run(recipe, "grpo")
    (folder / "README.md").write_text("license: mit")
    export.run(recipe, "grpo")  # up to date
    world.evaluate(recipe)
    with pytest.raises(UserError, match="older export; FORCE=1 replaces it"):
        export.run(recipe, "grpo")
    assert told(folder) == "license: mit"
    assert "| k |" in told(export.run(recipe, "grpo", force=True))


@pytest.mark.parametrize("at", ["decoding", "finish"])
def test_what_fails_in_the_middle_loses_nothing_and_is_taken_up_again(recipe, monkeypatch, at):
    folder = export.run(recipe, "grpo")
    files = {path.name: path.read_bytes() for path in folder.iterdir() if "json" not in path.name}

    def fails(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(*((Stage, "finish") if at == "finish" else (export, "decoding")), fails)
        with pytest.raises(SystemExit, match="the disk is full"):
            run_main(lambda: export.run(recipe, "grpo", force=True))
    assert {name: (folder / name).read_bytes() for name in files} == files
    assert not list(folder.parent.glob(".*.tmp"))
    names = {path.name for path in export.run(recipe, "grpo").iterdir()}
    assert "manifest.json" in names
    assert "begun.json" not in names


# --- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize("arm", ["base", "cold"])
def test_what_was_not_trained_is_not_exported(recipe, arm):
    with pytest.raises(UserError, match=f"nothing to export: {arm}"):
        export.run(recipe, arm)


def test_without_a_name_the_last_arm_that_is_trained_is_exported(world, monkeypatch):
    recipe = world.recipe(ARMS)
    with pytest.raises(UserError, match="grpo/model is not finished; `make grpo` trains it"):
        command(monkeypatch, recipe, "--arm", "grpo")
    with pytest.raises(UserError, match="nothing to export"):
        command(monkeypatch, recipe)
    train(recipe, "sft")
    command(monkeypatch, recipe)
    assert Path("runs/scripted/export/sft/model.safetensors").is_file()


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize(
    "out",
    ["full", "file", "link", "runs/scripted/grpo", "runs/scripted/grpo/model/new", "runs/scripted"],
)
def test_a_folder_that_is_no_export_is_never_written_over(recipe, out, force):
    Path("full").mkdir()
    Path("full/manifest.json").write_text('{"stage": "grpo"}')
    Path("file").touch()
    Path("link").symlink_to("empty")
    before = sha256(recipe.run.folder)
    with pytest.raises(UserError, match=rf"^{out} .*give OUT"):
        export.run(recipe, "grpo", Path(out), force=force)
    assert sha256(recipe.run.folder) == before
    assert [path.name for path in Path("full").iterdir()] == ["manifest.json"]


def test_another_empty_folder_will_do(recipe):
    Path("mine").mkdir()
    assert export.run(recipe, "grpo", Path("mine")) == Path("mine")
    assert not Path(NAME).exists()


def test_an_arm_trained_from_another_model_than_the_recipe_names_is_refused(recipe):
    other = replace(recipe, model="nobody/other")
    with pytest.raises(UserError, match=r"trained from nobody/base, and .* from nobody/other now"):
        export.run(other, "grpo")


# --- the card ------------------------------------------------------------------------------------


def card_of(recipe, arm="grpo", links=None, report=None):
    links = links or lineage(recipe.run, arm)
    result = evaluation(recipe.run, lineage(recipe.run, arm))
    result = replace(result, report=report) if report else result
    return ModelCard(card_text(recipe.run, recipe.data, links, result, result.asking))


def test_the_metadata_is_what_the_hub_reads(evaluated):
    report = json.loads(evaluated.run.report.read_text())
    counted = report["tiers"]["dense"]
    report["tiers"]["more"] = counted
    uses = evaluated.data.tiers | {"hub": {"test": 1, "source": "some/set:test"},
                                   "file": {"test": 1, "source": "my/set.jsonl"}}  # fmt: skip
    recipe = replace(evaluated, data=replace(evaluated.data, tiers=uses))
    found = card_of(recipe, report=report).data
    assert (found.base_model, found.library_name) == ("nobody/base", "transformers")
    assert found.tags == [TAG, "scheduling", "sft", "grpo", "trl"]
    assert (found.license, found.datasets) == (None, ["some/set"])
    result, other = found.eval_results
    at_1 = counted["arms"]["grpo"]["pass_at_k"]["1"]
    assert (result.dataset_config, other.dataset_config) == ("dense", "more")
    assert (result.dataset_split, result.metric_type) == ("test", "pass@1")
    assert result.metric_value == round(at_1["value"], 4)
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
    write_jsonl(path, [row for _, row in read_jsonl(path)][::-1])
    text = told(export.run(evaluated, "grpo", force=True))
    assert "Conclusion" not in text, "that is on other answers"
    assert "| k |" in text


def test_the_card_shows_a_training_problem_and_what_training_really_used(recipe):
    text = told(export.run(recipe, "grpo"))
    row = read_split(recipe.run, "train")[0]
    assert blocks(text)[:2] == [row["prompt"] + "\n", row["gold"] + "\n"]
    sft, grpo = map(yaml.safe_load, blocks(text, "yaml"))
    assert sft["arguments"] == {"max_steps": 5, "learning_rate": 2e-4}, "epochs do not count then"
    assert grpo["arguments"] == {"max_steps": 7, "num_generations": 4, "epsilon": 0.2}
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
    path = recipe.run.stage("late") / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "commit": "abc123"}))
    sft, late = (sha256(recipe.run.stage(arm) / "model") for arm in ("sft", "late"))
    assert lines_of_lineage(told(export.run(recipe, "late"))) == [
        "`base`: `nobody/base` of the Hugging Face hub",
        f"`sft`: from `base` by supervised fine-tuning on gold answers, SHA-256 `{sft}`",
        f"`late`: from `sft` by GRPO with verifiable rewards, SHA-256 `{late}`, code at commit "
        "`abc123`",
    ], "cold is sft, asked in another way"


def test_a_local_base_is_named_without_the_way_to_it(world, tmp_path):
    local = tmp_path / "somewhere" / "local"
    shutil.copytree(EMBEDDED, local)
    recipe = replace(world.recipe(ARMS), model=str(local))
    train(recipe, "sft")
    text = told(export.run(recipe, "sft"))
    assert ModelCard(text).data.base_model is None
    assert (
        lines_of_lineage(text)[0] == f"`base`: the local model `local`, SHA-256 `{sha256(local)}`"
    )
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
        path = recipe.run.samples("grpo").with_name("manifest.json")
        path.write_text(json.dumps({**json.loads(path.read_text()), "sha256": "of others"}))
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


# --- names from elsewhere ------------------------------------------------------------------------

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
def test_a_hostile_name_is_text_in_code_in_a_sentence_and_in_a_fence(name):
    kinds, [shown] = inline(f"On {code(name)} all is well.")
    assert kinds == {"text", "code_inline"}
    assert shown == " ".join(name.replace("\u202e", "").split())
    kinds, _ = inline(f"Elicited: {prose(name)} gains +1.0 [0.5, 1.5] points.")
    assert kinds <= {"text", "text_special"}
    assert blocks(f"{fenced(name)}\n\n{fenced('after')}\n") == [name + "\n", "after\n"]


def test_no_name_of_a_tier_model_or_event_breaks_out_of_the_card(evaluated):
    path = evaluated.run.split("train")
    rows = [row for _, row in read_jsonl(path)]
    asked = rows[0]["prompt"]
    _, sft, grpo = lineage(evaluated.run, "grpo")
    report = json.loads(evaluated.run.report.read_text())
    counted, tier = report["tiers"]["dense"], evaluated.data.tiers["dense"]
    for name in HOSTILE:
        data = replace(evaluated.data, tiers={name: tier | {"source": name}}, main=name)
        rows[0]["prompt"] = f'{asked}\n{name}\n"""\n'
        write_jsonl(path, [{**row, "tier": name} for row in rows])
        facts = {**grpo.facts, "inputs": {str(path): sha256(path)}}
        made = card_of(
            replace(evaluated, data=data),
            links=[Link("base", name, None, {}), sft, replace(grpo, facts=facts)],
            report={**report, "tiers": {name: counted}, "main": name},
        )
        assert (made.data.license, made.data.base_model, made.data.datasets) == (None, None, None)
        assert len(made.data.eval_results) == 1
        kinds, codes = inline(made.text)
        assert not kinds & {"html_block", "html_inline", "link_open", "image", "s_open", "hr"}
        assert codes.count(" ".join(name.replace("\u202e", "").split())) >= 4, name
        tokens = MarkdownIt("commonmark").parse(made.text)
        assert sum(token.type == "heading_open" for token in tokens) == 7, name
        assert blocks(made.text)[0] == rows[0]["prompt"]
        [snippet] = blocks(made.text, "python")
        compile(snippet, "snippet", "exec")


# --- adapters, and models that are loaded --------------------------------------------------------


@pytest.fixture(scope="module")
def loadable(tmp_path_factory):
    """A folder of a random model that transformers loads."""
    from tiny import save_model

    return save_model(tmp_path_factory.mktemp("loadable") / "base", "qwen3")


@pytest.fixture
def with_adapter(world, loadable):
    """A run whose sft was trained with LoRA from a model that loads."""
    from pipeline import sft

    recipe = world.recipe(
        {"sft": {"trainer": "sft"}},
        model=str(loadable),
        backend="trl",
        lora={"r": 2, "lora_alpha": 4, "target_modules": "all"},
        sft={"max_steps": 3, "warmup_steps": 0, "learning_rate": 0.1},
    )
    sft.run(recipe, force=False)
    return recipe


@pytest.mark.slow
def test_lora_is_exported_alone_and_merged_which_are_the_same(with_adapter, loadable):
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    merged_folder, adapter = (export.run(with_adapter, "sft", adapter=a) for a in (False, True))
    assert adapter == Path("runs/scripted/export/sft-adapter")
    own = {path.name for path in with_adapter.run.adapter("sft").iterdir()}
    written = {path.name for path in adapter.iterdir()}
    assert written == {*own, "README.md", "generation_config.json", "manifest.json"}
    base = AutoModelForCausalLM.from_pretrained(loadable, dtype=torch.float32)
    merged = AutoModelForCausalLM.from_pretrained(merged_folder, dtype=torch.float32)
    tokens = torch.arange(5, 25)[None]
    with torch.no_grad():
        before, after = base(tokens).logits, merged(tokens).logits
        adapted = PeftModel.from_pretrained(base, adapter)(tokens).logits
    assert not torch.allclose(before, after, atol=1e-3)
    assert torch.allclose(adapted, after, atol=1e-4)
    [settings] = map(yaml.safe_load, blocks(told(merged_folder), "yaml"))
    assert (settings["backend"], settings["lora"]["r"]) == ("trl", 2)
    assert settings["arguments"]["learning_rate"] == 0.1
    data = ModelCard(told(adapter)).data
    assert (data.library_name, data.base_model) == ("peft", None), "a folder is no id of the hub"
    # Where the base lies on this machine is nobody else's business.
    texts = [p.read_text() for p in adapter.iterdir() if p.suffix in (".json", ".md")]
    assert not any(str(loadable.parent) in text for text in texts)


@pytest.mark.slow
@pytest.mark.parametrize("adapter", [False, True])
def test_the_snippet_of_the_card_runs_and_asks_as_the_evaluation_does(
    with_adapter, loadable, monkeypatch, adapter
):
    folder = export.run(with_adapter, "sft", adapter=adapter)
    [snippet] = blocks(told(folder), "python")
    row = read_split(with_adapter.run, "train")[0]
    tokenizer = AutoTokenizer.from_pretrained(loadable)
    monkeypatch.chdir(folder)
    shutil.copytree(loadable, "base", dirs_exist_ok=True)
    names = {}
    exec(snippet, names)
    asked = tokenizer(render(tokenizer, row["prompt"]), add_special_tokens=False)["input_ids"]
    assert names["inputs"]["input_ids"].tolist() == [asked]
    assert 0 < names["output"].shape[1] - len(asked) <= with_adapter.eval.max_tokens
    assert isinstance(names["answer"], str)


def test_without_an_adapter_the_way_to_one_is_said(recipe):
    with pytest.raises(UserError, match=r"adapter_config\.json .* FORCE=1 with `make grpo`"):
        export.run(recipe, "grpo", adapter=True)


# --- the hub -------------------------------------------------------------------------------------


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

    monkeypatch.setattr(export, "HfApi", Api)
    return found


@pytest.mark.parametrize("public", [False, True])
def test_a_folder_is_pushed_on_request_and_private_unless_asked_otherwise(
    recipe, hub, monkeypatch, public
):
    command(monkeypatch, recipe, "--arm", "grpo")
    assert hub.calls == [], "not unasked"
    hub.private = not public
    flags = ["--arm", "grpo", "--push", "me/planner", *(["--public"] if public else [])]
    command(monkeypatch, recipe, *flags)
    create, upload = hub.calls
    assert create == ("create", "me/planner", {"private": not public, "exist_ok": True})
    assert upload[1] == "me/planner"
    assert upload[2]["folder_path"] == Path(NAME)
    assert "manifest.json" in upload[2]["ignore_patterns"], "it names local paths"


def test_a_private_push_does_not_go_to_a_public_repository(recipe, hub, monkeypatch):
    hub.private = False
    with pytest.raises(UserError, match=r"me/planner is a public repository already; PUBLIC=1"):
        command(monkeypatch, recipe, "--arm", "grpo", "--push", "me/planner")
    assert [call[0] for call in hub.calls] == ["create"]


@pytest.mark.parametrize("error", [httpx.ConnectError("no route"), OSError("no route: log in")])
def test_a_push_that_fails_is_one_sentence_and_loses_nothing(recipe, hub, monkeypatch, error):
    hub.error = error
    with pytest.raises(UserError, match=rf"was not pushed \(no route.*{NAME} is kept"):
        command(monkeypatch, recipe, "--arm", "grpo", "--push", "me/planner")
    assert (Path(NAME) / "model.safetensors").is_file()
    hub.error = None
    command(monkeypatch, recipe, "--arm", "grpo", "--push", "me/planner")
    assert hub.calls[-1][0] == "upload"


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        *((["--push", name], "PUSH") for name in ("planner", "a/b/c", "me/", "me/pl anner", "")),
        (["--public"], "PUBLIC=1 needs PUSH"),
        (["--adapter", "--gguf", "q8_0"], "GGUF"),
    ],
)
def test_flags_without_sense_are_refused_before_anything_is_written(
    recipe, hub, monkeypatch, flags, said
):
    with pytest.raises(UserError, match=said):
        command(monkeypatch, recipe, "--arm", "grpo", *flags)
    assert not Path(NAME).exists()


# --- GGUF ----------------------------------------------------------------------------------------


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
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    return made


def test_gguf_without_a_gpu_or_unsloth_says_what_to_do_instead(recipe, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(UserError, match=r"GGUF needs .*convert_hf_to_gguf"):
        export.run(recipe, "grpo", gguf="q8_0")
    assert not Path(NAME).exists()


def test_unsloths_gguf_lies_beside_the_weights_or_its_reason_is_told(recipe, unsloth):
    unsloth.error = RuntimeError("llama.cpp could not be built.\nmore\n")
    with pytest.raises(UserError, match=r"\(llama\.cpp could not be built\); .*convert_hf_to_gguf"):
        export.run(recipe, "grpo", gguf="q4_k_m")
    assert not (Path(NAME) / "model.safetensors").exists()
    unsloth.error = None
    folder = export.run(recipe, "grpo", gguf="q4_k_m")
    name = "scripted-grpo.q4_k_m.gguf"
    assert (folder / name).read_text() == "model.Q4_K_M.gguf"
    assert [path.name for path in folder.glob("*gguf*")] == [name]
    assert f"`{name}`" in told(folder)
