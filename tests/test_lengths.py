"""``pipeline.model.lengths``: counted as the trainers count, and refused before anything is cut."""

import io
import json
import re
import shutil
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from transformers import AutoTokenizer

from data import make
from data.common.errors import UserError
from data.common.files import read_jsonl, write_jsonl
from data.prompts import messages
from data.recipe import load_recipe
from data.sections import SPLITS
from pipeline import check
from pipeline.check import check_texts
from pipeline.model import lengths
from pipeline.model.decode import answer_limit, render

EMBEDDED = Path(__file__).parents[1] / "pipeline" / "embedded"
CONTENT = {
    "name": "lengths",
    "seed": 5,
    "model": "model",
    "data": {
        "main": "dense",
        "tiers": {
            "dense": {"train": 12, "val": 3, "test": 6, "events": [3, 9]},
            "trap": {"train": 5, "test": 4},
        },
    },
    "sft": {},
    "grpo": {},
    "eval": {"samples": 4},
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with a model's config and tokenizer, and a run whose data stage is finished."""
    folder = tmp_path_factory.mktemp("lengths")
    (folder / "model").mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        if (EMBEDDED / name).is_file():
            shutil.copy(EMBEDDED / name, folder / "model")
    (folder / "r.yaml").write_text(yaml.safe_dump(CONTENT))
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(io.StringIO()):
        patch.chdir(folder)
        make.run(load_recipe(Path("r.yaml")), force=False, workers=1)
    return folder


@pytest.fixture
def recipe_of(made, tmp_path, monkeypatch):
    """A function that writes the recipe with changes; the working folder has its model and data."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)

    def write(**changes):
        Path("r.yaml").write_text(yaml.safe_dump({**CONTENT, **changes}))
        return load_recipe(Path("r.yaml"))

    return write


def rows_of(*splits):
    return [
        row for split in splits for _, row in read_jsonl(Path(f"runs/lengths/data/{split}.jsonl"))
    ]


def longest(recipe):
    return lengths.longest(recipe, lengths.lengths_now(recipe))


def refused(recipe):
    with pytest.raises(UserError) as error:
        check_texts(recipe, force=False)
    sentence = str(error.value)
    assert "\n" not in sentence
    return sentence


def prompt_tokens(tokenizer, row):
    turns = messages(row["prompt"])
    found = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=True)
    return len(found["input_ids"])


# --- counting --------------------------------------------------------------------------------


def test_every_text_of_every_split_is_counted_by_the_models_tokenizer(recipe_of):
    check_texts(recipe_of(), force=False)
    facts = json.loads(Path("runs/lengths/data/lengths.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained("model")
    assert (facts["model"], facts["context"]) == ("model", 1024)
    parts = [(tier, split) for tier in ("dense", "trap") for split in (*SPLITS, "all")]
    parts.remove(("trap", "val"))
    for tier, split in parts:
        rows = rows_of(*(SPLITS if split == "all" else [split]))
        rows = {row["id"]: row for row in rows if row["tier"] == tier}
        found = facts["tiers"][tier][split]
        assert found["problems"] == len(rows)
        prompts = {name: prompt_tokens(tokenizer, row) for name, row in rows.items()}
        assert found["prompt"]["longest"] == max(prompts.values())
        assert prompts[found["prompt"]["id"]] == max(prompts.values())
        assert 2 * found["gold"]["longest"] == answer_limit(tokenizer, list(rows.values()))
    assert "val" not in facts["tiers"]["trap"]


def test_prompt_and_gold_together_are_what_trl_trains_on(recipe_of):
    from datasets import Dataset
    from transformers import AutoConfig, AutoModelForCausalLM
    from trl import SFTConfig, SFTTrainer

    facts = lengths.count_lengths(recipe_of())
    rows = rows_of("train")
    trainer = SFTTrainer(
        model=AutoModelForCausalLM.from_config(AutoConfig.from_pretrained("model")),
        args=SFTConfig(output_dir="out", max_length=None, use_cpu=True, bf16=False),
        train_dataset=Dataset.from_list(
            [
                {"prompt": asked[:1], "completion": asked[1:]}
                for asked in (messages(row["prompt"], row["gold"]) for row in rows)
            ]
        ),
        processing_class=AutoTokenizer.from_pretrained("model"),
    )
    real = {
        row["id"]: len(ids)
        for row, ids in zip(rows, trainer.train_dataset["input_ids"], strict=True)
    }
    for tier in ("dense", "trap"):
        found = facts["tiers"][tier]["train"]["both"]
        most = max(n for name, n in real.items() if f"-{tier}-" in name)
        assert (found["longest"], real[found["id"]]) == (most, most)


def test_the_99th_percentile_is_that_of_the_nearest_rank():
    found = {str(n): (n, 2 * n, 3 * n) for n in range(1, 201)}
    summary = lengths._summary(found)
    assert summary["prompt"] == {"longest": 200, "id": "200", "p99": 198}
    assert summary["both"] == {"longest": 600, "id": "200", "p99": 594}
    assert lengths._summary({"one": (7, 8, 9)})["gold"] == {"longest": 8, "id": "one", "p99": 8}


def test_a_batch_is_counted_like_its_texts_alone(recipe_of, monkeypatch):
    recipe_of()
    tokenizer = AutoTokenizer.from_pretrained("model")
    pairs = [(row["prompt"], row["gold"]) for row in rows_of("train")]
    alone = [size for pair in pairs for size in lengths.sizes(tokenizer, [pair])]
    monkeypatch.setattr(lengths, "_BATCH", 5)
    assert list(lengths.sizes(tokenizer, pairs)) == alone
    assert alone[0][0] == len(tokenizer(render(tokenizer, pairs[0][0]))["input_ids"])


def test_a_tokenizer_that_cuts_or_pads_is_kept_from_it_and_a_slow_one_counts_alike(recipe_of):
    recipe_of()
    pairs = [(row["prompt"], row["gold"]) for row in rows_of("train")]
    tokenizer = AutoTokenizer.from_pretrained("model")
    expected = list(lengths.sizes(tokenizer, pairs))
    tokenizer.backend_tokenizer.enable_truncation(7)
    tokenizer.backend_tokenizer.enable_padding(length=200)
    assert list(lengths.sizes(tokenizer, pairs)) == expected

    class Slow:
        chat_template = tokenizer.chat_template
        apply_chat_template = tokenizer.apply_chat_template

        def __call__(self, texts, add_special_tokens):
            return tokenizer(texts, add_special_tokens=add_special_tokens)

    assert list(lengths.sizes(Slow(), pairs)) == expected


# --- once ------------------------------------------------------------------------------------


def test_what_is_done_is_not_counted_again_but_checked_again(recipe_of, monkeypatch, capsys):
    check_texts(recipe_of(), force=False)
    assert "dense" in capsys.readouterr().out
    before = Path("runs/lengths/data/lengths.json").read_bytes()
    monkeypatch.setattr(check, "count_lengths", lambda recipe: pytest.fail("counted again"))
    check_texts(recipe_of(), force=False)
    assert capsys.readouterr().out.startswith("lengths: up to date")
    assert "max_seq_length" in refused(recipe_of(max_seq_length=8))
    assert Path("runs/lengths/data/lengths.json").read_bytes() == before


@pytest.mark.parametrize("changed", ["data", "tokenizer", "model", "force"])
def test_other_data_or_another_model_is_counted_again(changed, recipe_of):
    recipe = recipe_of()
    check_texts(recipe, force=False)
    assert lengths.known_lengths(recipe)
    if changed == "data":
        rows = rows_of("test")
        rows[0]["prompt"] += " And " * 40
        write_jsonl(Path("runs/lengths/data/test.jsonl"), rows)
    elif changed == "tokenizer":
        template = AutoTokenizer.from_pretrained("model").chat_template
        path = Path("model/chat_template.jinja")
        path.write_text("Hello! " + template)
    elif changed == "model":
        shutil.copytree("model", "other")
        recipe = recipe_of(model="other")
    if changed != "force":
        assert lengths.known_lengths(recipe) is None
    before = recipe.run.lengths.read_bytes()
    recipe.run.lengths.write_text("{}")
    check_texts(recipe, force=changed == "force")
    again = recipe.run.lengths.read_bytes()
    assert json.loads(again) == lengths.known_lengths(recipe) == lengths.count_lengths(recipe)
    assert (again == before) == (changed == "force")


def test_the_datas_own_manifest_is_left_alone(recipe_of, capsys):
    recipe = recipe_of()
    check_texts(recipe, force=False)
    capsys.readouterr()
    make.run(recipe, force=False, workers=1)
    assert "data: up to date" in capsys.readouterr().out


# --- what does not fit -----------------------------------------------------------------------


def total(recipe, **wanted):
    """Tokens of the longest texts of the one use with these attributes."""
    facts = lengths.count_lengths(recipe)
    (use,) = (
        use
        for use in lengths.uses(recipe)
        if all(getattr(use, key) == value for key, value in wanted.items())
    )
    return lengths.longest_of(facts, use)


def test_what_fits_to_the_token_is_taken_and_one_more_is_not(recipe_of):
    most = max(
        lengths.longest_of(lengths.count_lengths(recipe_of()), use).total
        for use in lengths.uses(recipe_of())
    )
    check_texts(recipe_of(max_seq_length=most), force=False)
    refused(recipe_of(max_seq_length=most - 1))


def test_a_refusal_names_file_problem_tier_tokens_limit_and_way_out(recipe_of):
    found = total(recipe_of(), arm="grpo", training=True)
    sentence = refused(recipe_of(max_seq_length=found.total - 1))
    for part in (
        "runs/lengths/data/train.jsonl: ",
        f"problem {found.id} of tier {found.tier!r}",
        f"a prompt of {found.prompt} tokens",
        f"up to {found.answer} (grpo.max_completion_length of arm grpo)",
        f"that is {found.total}, more than the {found.total - 1} of max_seq_length of r.yaml",
        f"raise max_seq_length to {found.total} or more",
        f"set grpo.max_completion_length to {found.answer - 1} or less",
        f"ask for fewer events in data.tiers.{found.tier}",
    ):
        assert part in sentence
    row = next(row for row in rows_of("train") if row["id"] == found.id)
    assert prompt_tokens(AutoTokenizer.from_pretrained("model"), row) == found.prompt


def test_the_way_out_is_one(recipe_of):
    found = total(recipe_of(), arm="grpo", training=True)
    tight = {"max_seq_length": found.prompt + found.gold + 3}
    asking = {"eval": {**CONTENT["eval"], "max_tokens": found.gold}}
    ways = re.findall(r"(?:raise|set) (\S+) to (\d+)", refused(recipe_of(**tight, **asking)))
    assert [key for key, _ in ways] == ["max_seq_length", "grpo.max_completion_length"]
    grpo = {"max_completion_length": int(ways[1][1])}
    check_texts(recipe_of(**tight, **asking, grpo=grpo), force=False)
    check_texts(recipe_of(**asking, max_seq_length=int(ways[0][1])), force=False)


def test_without_max_seq_length_the_models_context_is_the_limit(recipe_of):
    recipe = recipe_of()
    config = json.loads(Path("model/config.json").read_text())
    Path("model/config.json").write_text(json.dumps({**config, "max_position_embeddings": 60}))
    sentence = refused(recipe)
    assert "more than the 60 of the context of model" in sentence
    assert "take a model with a longer context" in sentence
    assert "raise max_seq_length" not in sentence
    assert "the 60 of the context" in refused(recipe_of(max_seq_length=4096))


@pytest.mark.parametrize("arm", [None, "base-best"])
def test_shots_count_each_as_the_longest_of_its_tier(arm, recipe_of):
    plain = total(recipe_of(), arm="base")
    both = lengths.count_lengths(recipe_of())["tiers"][plain.tier]["train"]["both"]["longest"]
    limit = plain.total + 2 * both - 1
    if arm:
        trying = {"trainer": "none", "tune": {"shots": [0, 2]}}
        changes = {"arms": {arm: trying}}
    else:
        changes = {"eval": {"samples": 4, "shots": 2}}
    sentence = refused(recipe_of(max_seq_length=limit, **changes))
    assert f"{plain.prompt + 2 * both} tokens with 2 shots" in sentence
    assert "show fewer shots" in sentence
    check_texts(recipe_of(max_seq_length=limit), force=False)


def test_what_sft_would_cut_is_refused_where_the_recipe_sets_a_length(recipe_of):
    found = total(recipe_of(), arm="sft", training=True)
    check_texts(recipe_of(sft={"max_length": found.total}), force=False)
    sentence = refused(recipe_of(sft={"max_length": found.total - 1}))
    for part in (
        "runs/lengths/data/train.jsonl: ",
        f"problem {found.id} of tier {found.tier!r} has {found.total} tokens with its gold answer",
        f"the {found.total - 1} of sft.max_length in r.yaml",
        f"set it to {found.total} or leave it out",
    ):
        assert part in sentence


def test_an_arm_is_checked_on_its_own_tiers_and_with_its_own_settings(recipe_of):
    facts = lengths.count_lengths(recipe_of())
    short, long = sorted(
        ("dense", "trap"), key=lambda t: facts["tiers"][t]["train"]["both"]["longest"]
    )
    limit = facts["tiers"][short]["train"]["both"]["longest"]
    assert limit < facts["tiers"][long]["train"]["both"]["longest"]

    def one(tier):
        settings = {"max_length": limit}
        return recipe_of(arms={"one": {"trainer": "sft", "tiers": [tier], "settings": settings}})

    check_texts(one(short), force=False)
    assert f"of tier {long!r}" in refused(one(long))


def test_an_imported_tier_has_no_events_to_ask_for(recipe_of):
    facts = lengths.count_lengths(recipe_of())
    facts["tiers"].pop("trap")
    tiers = {"dense": {**CONTENT["data"]["tiers"]["dense"], "source": "days.jsonl"}}
    tiers["dense"].pop("events")
    recipe = recipe_of(max_seq_length=20, data={"main": "dense", "tiers": tiers})
    with pytest.raises(UserError, match=r"leave the problem out of days\.jsonl"):
        lengths.check_lengths(recipe, facts)


# --- the length of training ------------------------------------------------------------------


def test_the_length_of_training_holds_prompt_and_answer_of_every_arm(recipe_of, capsys):
    found = total(recipe_of(), arm="grpo", training=True)
    expected = -(-found.total // 64) * 64
    assert longest(recipe_of()) == expected
    assert not recipe_of().run.lengths.exists()
    check_texts(recipe_of(), force=False)
    capsys.readouterr()
    assert longest(recipe_of()) == expected
    assert longest(recipe_of().for_arm("grpo")) == expected
    assert capsys.readouterr().out == ""
    # Sampling is not training.
    assert longest(recipe_of(eval={"samples": 4, "shots": 2, "max_tokens": 500})) == expected
    wide = recipe_of(grpo={"max_completion_length": 400})
    assert longest(wide) == -(-(found.prompt + 400) // 64) * 64
    # On the successes that it drew.
    arms = {"own": {"trainer": "rejection"}}
    own = recipe_of(arms=arms, eval={"samples": 4, "max_tokens": 300})
    assert longest(own) == -(-(found.prompt + 300) // 64) * 64


def test_the_length_of_training_is_not_rounded_beyond_the_models_context(recipe_of):
    found = total(recipe_of(), arm="grpo", training=True)
    config = json.loads(Path("model/config.json").read_text())
    config["max_position_embeddings"] = found.total + 1
    Path("model/config.json").write_text(json.dumps(config))
    assert found.total % 64 < 63
    assert longest(recipe_of()) == found.total + 1


# --- what is not to be had -------------------------------------------------------------------


def test_a_model_that_is_not_to_be_had_is_one_sentence(recipe_of):
    assert "nor to be had from the hub just now" in refused(recipe_of(model="nobody/no-such-model"))
    assert "model folder ./nowhere has no tokenizer" in refused(recipe_of(model="./nowhere"))


@pytest.mark.parametrize("content", ["{", "{}"])
def test_a_tokenizer_that_cannot_be_read_is_one_sentence(content, recipe_of):
    Path("model/tokenizer.json").write_text(content)
    assert "tokenizer.json of " in refused(recipe_of())


def test_a_tokenizer_without_a_chat_template_is_refused(recipe_of):
    tokenizer = AutoTokenizer.from_pretrained("model")
    tokenizer.chat_template = None
    shutil.rmtree("model")
    tokenizer.save_pretrained("model")
    shutil.copy(EMBEDDED / "config.json", "model")
    assert "no chat template; use an instruct model" in refused(recipe_of())


def test_data_that_are_not_finished_are_refused_and_a_spoilt_result_is_made_anew(recipe_of):
    recipe = recipe_of()
    check_texts(recipe, force=False)
    recipe.run.lengths.write_text("{")
    assert "FORCE=1 make data" in refused(recipe)
    check_texts(recipe, force=True)
    Path("runs/lengths/data/manifest.json").unlink()
    assert lengths.known_lengths(recipe) is None
    with pytest.raises(UserError, match="`make data` writes it"):
        longest(recipe)
    with pytest.raises(UserError, match=r"train\.jsonl does not exist"):
        check_texts(replace(recipe, run_name="nothing"), force=False)
