"""What answers gain when violations come back: of scripted arms it is known; who cannot be told."""

import json
from dataclasses import replace

import pytest
from running import TINY, refusal_of
from scripted import Scripted
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from data.draw import make_problem
from data.prompts import schedule_xml
from data.recipe import load_recipe
from data.rows import new_row
from data.tiers import TIERS
from eval import mend
from eval.answers.asker import Asker, Turn
from pipeline.corpus.tokens import CHAT_TEMPLATE


class Mending(Scripted):
    """``grpo`` answers right once it is told of an overlap, ``sft`` whenever it is asked again."""

    def check_turns(self):
        pass

    def second_turns(self, rows, turns, asking):
        for one in turns:
            row = rows[one.problem]
            right = self.arm == "sft" or "overlap" in one.said
            text = row["gold"] if right else "I do not know."
            yield {
                "id": one.problem, "arm": self.arm, "sample": one.sample,
                "completion": text, "finish_reason": "stop", "tokens": 9,
            }  # fmt: skip


@pytest.fixture
def mended(world, monkeypatch):
    """The recipe of an evaluated run whose arms are right in one try of four, and else choose
    everything, and ``mend.json`` of an arm."""
    monkeypatch.setattr(mend, "Asker", Mending)
    monkeypatch.setattr(mend, "model_inputs", lambda model: [])
    for arm in ("base", "sft", "grpo"):
        world.scripts[arm] = lambda row, way, rng: (
            row["gold"] if rng.random() < 0.25 else schedule_xml(row["problem"].events)
        )
    arms = {"sft": {"trainer": "sft"}, "grpo": {"trainer": "grpo", "start": "sft"}}
    recipe = world.evaluated(arms)

    def found(arm, problems=None, seed=recipe.seed):
        mend.run(replace(recipe, seed=seed), arm, problems, force=False)
        return json.loads((recipe.run.samples(arm).parent / "mend" / "mend.json").read_text())

    return found


def value(found, way, kind="optimal", of="ways"):
    return found[of][way][kind]["value"]


def test_an_arm_that_reads_what_is_wrong_gains_by_being_told_and_not_by_being_asked(mended, capsys):
    found = mended("grpo")
    once = value(found, "first")
    assert found["given back"] == round(40 * 4 * (1 - once))
    assert value(found, "told") == value(found, "told", "valid") == 1
    assert value(found, "again") == once
    assert once < value(found, "apart") < 1, "a second try is right in one of four again"
    assert value(found, "again", of="gain") == pytest.approx(1 - once)
    gain = found["gain"]["apart"]["optimal"]
    assert 0 < gain["low"] < gain["value"] < gain["high"]
    assert gain["n"] == 40
    assert "told what is wrong" in capsys.readouterr().out


def test_an_arm_that_only_needs_a_second_chance_gains_nothing_by_being_told(mended):
    found = mended("sft")
    assert value(found, "told") == value(found, "again") == 1
    assert value(found, "again", of="gain") == 0


def test_a_finished_measurement_stands_until_more_problems_or_another_seed_are_asked(
    mended, capsys
):
    first = mended("grpo", problems=5)
    assert first["problems"] == 5
    capsys.readouterr()
    mended("grpo", problems=5)
    assert "up to date" in capsys.readouterr().out
    assert mended("grpo", problems=5, seed=8) != first
    assert mended("grpo")["problems"] == 40
    assert "up to date" not in capsys.readouterr().out


def test_answers_that_were_never_drawn_are_refused(mended, tmp_path):
    for path in tmp_path.rglob("eval/grpo/samples.jsonl"):
        path.unlink()
    refusal_of(lambda: mended("grpo"), "samples.jsonl does not exist", "`make eval`")


@pytest.fixture
def asker(monkeypatch):
    """Asks the embedded base; nobody else's answers are needed."""
    monkeypatch.chdir(TINY.parents[2])
    return Asker(load_recipe(TINY).run, "base", "float32", seed=1)


def test_a_model_whose_vocabulary_spells_what_the_checker_says_is_refused(asker):
    refusal_of(asker.check_turns, "pipeline/embedded has no words for")


@pytest.mark.parametrize(
    ("template", "refusal"),
    [(CHAT_TEMPLATE, None), ("{{ messages[-1]['content'] }}", "leaves out earlier turns")],
)
def test_a_model_is_told_what_is_wrong_if_its_template_shows_past_turns(asker, template, refusal):
    words = Tokenizer(models.WordLevel({"?": 0}, unk_token="?"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    asker._tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="?")
    asker._tokenizer.chat_template = template
    if refusal is None:
        asker.check_turns()
    else:
        refusal_of(asker.check_turns, refusal)


def test_second_turns_are_drawn_in_their_order_and_only_with_room_for_an_answer(asker):
    problem = make_problem(1, "test", "dense", TIERS["dense"], 0)
    row = new_row("p", "test", "dense", problem, "none")
    turns = [
        Turn("p", number, way, schedule_xml(problem.events), "Answer again.")
        for number in range(2)
        for way in ("told", "again")
    ]
    asking = load_recipe(TINY).eval
    drawn = list(asker.second_turns({"p": row}, turns, replace(asking, max_tokens=12)))
    assert [one["sample"] for one in drawn] == [0, 0, 1, 1]
    assert len({one["completion"] for one in drawn}) > 1, "each turn has a random stream"
    again = asker.second_turns({"p": row}, turns, replace(asking, max_tokens=12))
    assert list(again) == drawn
    too_long = asker.second_turns({"p": row}, turns, replace(asking, max_tokens=1024))
    refusal_of(lambda: list(too_long), "more than the 1024 that pipeline/embedded can hold")
