"""Asking an arm, and asking it again: in the same way, with new seeds, and never twice in vain."""

from collections import Counter

import pytest
from running import change_json, refusal_of
from scripted import Scripted, lines, solving

from data.common.files import stage_facts
from data.rows import read_split
from eval.answers.asker import kept
from eval.answers.files import way_of_asking
from eval.answers.sampling import ask_again, sample_arm
from eval.sample import trained_arms


@pytest.fixture
def sampled(world):
    """A recipe whose base was asked, and its test problems."""
    recipe = world.recipe({"grpo": {"trainer": "grpo"}})
    world.train(recipe)
    world.scripts |= {"base": solving(0.5), "grpo": solving(0.5)}
    sample_arm(recipe, "base", force=False)
    return recipe, read_split(recipe.run, "test")


def per_problem(rows):
    return Counter(row["id"] for row in rows)


def test_asked_again_an_arm_gives_so_many_answers_to_these_problems_and_no_others(sampled, world):
    recipe, rows = sampled
    path = ask_again(recipe, "base", rows[3:7], 5, force=False)
    assert path == recipe.run.samples("base").parent / "fresh" / "samples.jsonl"
    fresh, before = lines(recipe, "base", fresh=True), path.read_bytes()
    assert per_problem(fresh) == {row["id"]: 5 for row in rows[3:7]}
    assert [row["sample"] for row in fresh] == [0, 1, 2, 3, 4] * 4
    assert per_problem(lines(recipe, "base")) == {row["id"]: 8 for row in rows}
    # A third time is in vain, unless it is forced, and then gives the same.
    world.asked.clear()
    ask_again(recipe, "base", rows[3:7], 5, force=False)
    assert world.asked == []
    ask_again(recipe, "base", rows[3:7], 5, force=True)
    assert [stream for _, stream, _, _ in world.asked] == ["fresh"]
    assert path.read_bytes() == before


@pytest.mark.parametrize("change", ["problems", "samples", "weights", "data"])
def test_other_problems_more_samples_new_weights_or_new_data_are_asked_anew(sampled, world, change):
    recipe, rows = sampled
    sample_arm(recipe, "grpo", force=False)
    ask_again(recipe, "grpo", rows[:3], 5, force=False)
    world.asked.clear()
    if change == "weights":
        (recipe.run.folder / "grpo/model/model.safetensors").write_text("trained again")
    if change == "data":
        path = recipe.run.data / "test.jsonl"
        path.write_text(path.read_text() + "\n")
    asked, samples = rows[: 4 if change == "problems" else 3], 6 if change == "samples" else 5
    ask_again(recipe, "grpo", asked, samples, force=False)
    assert [(arm, ids) for arm, _, ids, _ in world.asked] == [("grpo", [r["id"] for r in asked])]
    assert per_problem(lines(recipe, "grpo", fresh=True)) == {r["id"]: samples for r in asked}


def test_where_there_is_nothing_to_ask_again_no_model_is_loaded(sampled, monkeypatch):
    recipe, _ = sampled
    monkeypatch.undo()  # the asker itself, whose model nobody has
    monkeypatch.setattr("data.recipe.RUNS", recipe.path.parent / "runs")
    path = ask_again(recipe, "base", [], 5, force=False)
    assert path.read_text() == ""
    assert ask_again(recipe, "base", [], 5, force=False) == path


@pytest.mark.parametrize("torn", [0, 1, 20])
def test_an_interrupted_asking_again_loses_and_doubles_no_answer(sampled, world, monkeypatch, torn):
    recipe, rows = sampled
    path = ask_again(recipe, "base", rows, 5, force=False)
    whole = path.read_text()
    monkeypatch.setattr(Scripted, "patience", 7)
    with pytest.raises(KeyboardInterrupt):
        ask_again(recipe, "base", rows, 5, force=True)
    monkeypatch.setattr(Scripted, "patience", None)
    kept = path.read_text()
    assert kept.count("\n") == 7 * 5
    if torn:  # a kill in the middle of a write: the last problem's last answer is cut
        path.write_text(kept[:-torn])
    world.asked.clear()
    ask_again(recipe, "base", rows, 5, force=False)
    assert path.read_text() == whole
    [(_, _, ids, _)] = world.asked
    assert ids == [row["id"] for row in rows[6 if torn else 7 :]]


@pytest.mark.parametrize("spoilt", [b"{", b"7", b'{"id": []}', b"[" * 9999, b"\xff"])
def test_of_a_problem_with_a_spoilt_answer_none_is_kept(tmp_path, spoilt):
    lines = [b'{"id": "a"}', b'{"id": "a"}', b'{"id": "b"}', spoilt]
    (tmp_path / "samples.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    assert kept(tmp_path / "samples.jsonl", 2).keys() == {"a"}


def test_a_tuned_arm_is_asked_again_in_the_way_that_was_best(world):
    tiers = {"dense": {"train": 4, "val": 2, "test": 3}, "trap": {"val": 2, "test": 1}}
    best = {"trainer": "none", "eval": {"lenient": True, "shots": 1}}
    best["tune"] = {"temperature": [0.5, 1.0, 2.0]}
    recipe = world.recipe({"best": best}, data={"main": "dense", "tiers": tiers})

    def script(row, way, rng):
        return row["gold"] if way.temperature == 0.5 else "no answer"

    world.scripts |= {"best": script}
    sample_arm(recipe, "best", force=False)
    tuned_on = [ids for _, stream, ids, _ in world.asked if stream == "tune"]
    assert tuned_on == [["val-dense-00000", "val-dense-00001"]] * 3
    way = way_of_asking(recipe.run.samples("best").parent)
    assert (way.temperature, way.shots, way.samples, way.max_tokens) == (0.5, 1, 8, 12)
    rows = read_split(recipe.run, "test")[:2]
    world.asked.clear()
    ask_again(recipe, "best", rows, 5, force=False)
    [(arm, stream, _, again)] = world.asked
    assert (arm, stream) == ("best", "fresh")
    assert (again.temperature, again.shots, again.samples) == (0.5, 1, 5)
    tried = stage_facts(recipe.run.samples("best").parent)["tuned"]
    assert [way["optimal"] for way in tried] == [1.0, 0.0, 0.0]


def test_an_arm_is_tuned_with_room_for_the_longest_answer_that_any_arm_is_shown(world):
    tiers = {"dense": {"train": 4, "val": 2, "test": 3}}
    shown = {"main": "dense", "tiers": tiers, "reasoning": "computed", "reasoned": 0.0}
    best = {"trainer": "none", "tune": {"temperature": [0.5, 1.0]}}
    taught = {"trainer": "sft", "reasoned": 1.0}
    recipe = world.recipe({"best": best, "taught": taught}, data=shown)
    golds = []

    def script(row, way, rng):
        if row["split"] == "val":
            golds.append(row["gold"])
        return row["gold"]

    world.scripts |= {"best": script}
    sample_arm(recipe, "best", force=False)
    assert golds
    assert all("<think>" in gold for gold in golds)


def test_an_arm_is_tuned_again_when_its_answers_are_judged_in_another_way(world):
    """Half a schedule is optimal for a lenient eye alone, so another temperature is the best."""

    def script(row, way, rng):
        if way.temperature == 0.5:
            return row["gold"].replace("</schedule>", "")
        return row["gold"] if rng.random() < 0.5 else "no answer"

    world.scripts |= {"best": script}
    best = {"trainer": "none", "tune": {"temperature": [0.5, 1.0]}}
    for lenient, temperature in ((True, 0.5), (False, 1.0)):
        recipe = world.recipe({"best": {**best, "eval": {"lenient": lenient}}})
        sample_arm(recipe, "best", force=False)
        assert way_of_asking(recipe.run.samples("best").parent).temperature == temperature


@pytest.mark.parametrize(
    "spoilt", [None, {"tempreature": 1.0}, {"top_p": "high"}], ids=["none", "key", "type"]
)
def test_a_way_of_asking_of_another_version_is_one_sentence(sampled, spoilt):
    recipe, rows = sampled
    manifest = recipe.run.samples("base").with_name("manifest.json")
    asking = stage_facts(manifest.parent)["asking"]
    change_json(manifest, asking=None if spoilt is None else {**asking, **spoilt})
    said = refusal_of(lambda: ask_again(recipe, "base", rows, 5, force=False))
    assert said.startswith(str(manifest.parent))
    assert said.endswith("`make eval FORCE=1` redoes it")


def test_only_arms_whose_weights_are_there_are_asked(world, capsys):
    arms = {"sft": {"trainer": "sft"}, "own": {"trainer": "grpo", "start": "sft"}}
    recipe = world.recipe({**arms, "cool": {"trainer": "none", "start": "own"}})
    world.train(recipe, "sft")
    assert trained_arms(recipe.run) == ["base", "sft"]
    assert "`make arms`" in capsys.readouterr().out
    world.train(recipe)
    assert trained_arms(recipe.run) == ["base", "sft", "own", "cool"]
