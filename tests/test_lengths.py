"""``pipeline.model.lengths``: counted as the trainers count, and refused before anything is cut."""

import json
import shutil
from pathlib import Path

import pytest
from running import change_json, refusal_of, rows_in
from tiny import write_recipe
from transformers import AutoTokenizer

from pipeline import sft
from pipeline.check import check_texts, print_lengths
from pipeline.model.decode import answer_limit, render
from pipeline.model.lengths import TEXTS, count_lengths, longest, longest_of, uses

ASKED = {"samples": 4, "max_tokens": 12}


@pytest.fixture
def recipe_of(folder, tmp_path, monkeypatch):
    """A function that writes the recipe with changes; the working folder has its model and data."""
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    plain = {"model": "qwen3", "sft": {}, "grpo": {}, "eval": ASKED}
    return lambda **changes: write_recipe(Path(), **{**plain, **changes})


def rows_of(split):
    return rows_in(Path(f"runs/small/data/{split}.jsonl"))


def refused(recipe):
    return refusal_of(lambda: check_texts(recipe))


def total(recipe, **wanted):
    """The longest text of the one use with these attributes."""
    (use,) = (
        use
        for use in uses(recipe)
        if all(getattr(use, key) == value for key, value in wanted.items())
    )
    return longest_of(count_lengths(recipe), use)


def set_context(tokens):
    change_json(Path("qwen3/config.json"), max_position_embeddings=tokens)


def test_the_title_of_the_table_is_not_broken_to_its_width(capsys):
    model, texts = "models/SmolLM2-135M-Instruct.Q4_1", {key: [7] for key in TEXTS}
    print_lengths({"model": model, "context": 8192, "tiers": {"busy": {"train": texts}}})
    assert model in capsys.readouterr().out


def test_every_text_of_every_split_is_counted_by_the_models_tokenizer(recipe_of):
    check_texts(recipe_of())
    written = json.loads(Path("runs/small/data/lengths.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained("qwen3")
    assert (written["model"], written["context"]) == ("qwen3", 32768)
    assert "val" not in written["tiers"]["blog"]
    for split, tier in (("train", "dense"), ("val", "dense"), ("test", "dense"), ("test", "blog")):
        rows = {row["id"]: row for row in rows_of(split) if row["tier"] == tier}
        prompts = {
            name: len(tokenizer(render(tokenizer, row["prompt"]))["input_ids"])
            for name, row in rows.items()
        }
        tokens, name = written["tiers"][tier][split]["prompt"]
        assert tokens == prompts[name] == max(prompts.values())
        golds = written["tiers"][tier][split]["gold"]
        assert 2 * golds[0] == answer_limit(tokenizer, list(rows.values()))


def test_prompt_and_gold_together_are_what_sft_trains_on(recipe_of):
    counted, rows = count_lengths(recipe_of()), rows_of("train")
    trained = sft.examples(AutoTokenizer.from_pretrained("qwen3"), rows)
    real = {row["id"]: len(one["input_ids"]) for row, one in zip(rows, trained, strict=True)}
    for tier in ("dense", "blog"):
        tokens, name = counted["tiers"][tier]["train"]["both"]
        assert tokens == real[name] == max(n for key, n in real.items() if f"-{tier}-" in key)


def test_a_refusal_names_file_problem_tier_tokens_limit_and_way_out(recipe_of):
    text = total(recipe_of(), arm="grpo", split="train")
    sentence = refused(recipe_of(max_seq_length=text.total - 1))
    for part in (
        f"runs/small/data/train.jsonl: problem {text.id} of tier {text.tier!r}",
        f" {text.prompt} tokens",
        f" {text.answer} (grpo.max_completion_length of arm grpo)",
        f"{text.total}, more than the {text.total - 1} of max_seq_length",
        f"raise that to {text.total}",
    ):
        assert part in sentence
    check_texts(recipe_of(max_seq_length=text.total))


def test_the_models_context_is_a_limit_too(recipe_of):
    set_context(60)
    for longest_allowed in (None, 4096):
        sentence = refused(recipe_of(max_seq_length=longest_allowed))
        assert "more than the 60 of the context of qwen3" in sentence
        assert "take a model with a longer context" in sentence


@pytest.mark.parametrize(
    "changes",
    [
        {"eval": {**ASKED, "shots": 2}},
        {"arms": {"best": {"trainer": "none", "tune": {"shots": [0, 2]}}}},
    ],
)
def test_shots_count_each_as_the_longest_of_its_tier(changes, recipe_of):
    plain = total(recipe_of(), arm="base")
    both, _ = count_lengths(recipe_of())["tiers"][plain.tier]["train"]["both"]
    limit = plain.total + 2 * both - 1
    sentence = refused(recipe_of(max_seq_length=limit, **changes))
    assert f"{plain.prompt + 2 * both} tokens with 2 shots" in sentence
    check_texts(recipe_of(max_seq_length=limit))


def test_an_arm_is_checked_on_its_own_tiers_and_for_what_sft_would_cut(recipe_of):
    tiers = count_lengths(recipe_of())["tiers"]
    short, long = sorted(tiers, key=lambda tier: tiers[tier]["train"]["both"][0])
    limit, most = (tiers[tier]["train"]["both"][0] for tier in (short, long))
    assert limit < most

    def one(tier):
        arm = {"trainer": "sft", "tiers": [tier], "settings": {"max_length": limit}}
        return recipe_of(arms={"one": arm})

    check_texts(one(short))
    sentence = refused(one(long))
    assert f"of tier {long!r} has {most} tokens with its gold answer" in sentence
    assert f"the {limit} of sft.max_length" in sentence
    assert f"raise that to {most}" in sentence


def test_an_arm_is_checked_on_gold_answers_as_it_is_shown_them(recipe_of):
    def shown(share, limit=None):
        quick = {"trainer": "sft", "reasoned": share, "settings": {"max_length": limit}}
        return recipe_of(arms={"quick": quick, "slow": {"trainer": "sft", "reasoned": 1.0}})

    recipe = shown(0.0)
    counted = count_lengths(recipe)
    trained = [use for use in uses(recipe) if use.split == "train"]
    quick, slow = (longest_of(counted, use).total for use in trained)
    assert quick < slow
    check_texts(shown(0.0, quick))
    assert f"has {slow} tokens with its gold answer" in refused(shown(1.0, quick))


def longest_in(recipe):
    return longest(uses(recipe), count_lengths(recipe))


def up(tokens):
    return -(-tokens // 64) * 64


def test_the_length_of_training_holds_prompt_and_answer_of_every_arm(recipe_of):
    text = total(recipe_of(), arm="grpo", split="train")
    assert longest_in(recipe_of()) == longest_in(recipe_of().for_arm("grpo")) == up(text.total)
    # Sampling is not training.
    asked = {**ASKED, "shots": 2, "max_tokens": 500}
    assert longest_in(recipe_of(eval=asked)) == up(text.total)
    wide = recipe_of(grpo={"max_completion_length": 400})
    assert longest_in(wide) == up(text.prompt + 400)
    # On the successes that it drew.
    own = recipe_of(arms={"own": {"trainer": "rejection"}}, eval={"samples": 4, "max_tokens": 300})
    assert longest_in(own) == up(text.prompt + 300)


def test_the_length_of_training_is_not_rounded_beyond_the_models_context(recipe_of):
    text = total(recipe_of(), arm="grpo", split="train")
    set_context(text.total + 1)
    assert longest_in(recipe_of()) == text.total + 1 < up(text.total)


def test_a_model_without_a_tokenizer_to_count_with_is_refused(recipe_of):
    assert "'nobody/no-such-model'" in refused(recipe_of(model="nobody/no-such-model"))
    assert "nowhere does not exist" in refused(recipe_of(model="./nowhere"))


def test_a_model_without_a_chat_template_is_counted_with_the_plain_one(recipe_of, capsys):
    tokenizer = AutoTokenizer.from_pretrained("qwen3")
    tokenizer.chat_template = None
    Path("qwen3/chat_template.jinja").unlink()
    tokenizer.save_pretrained("qwen3")
    assert total(recipe_of(), arm="grpo", split="train").total > 0
    assert "plain text" in capsys.readouterr().out
