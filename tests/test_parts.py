"""Sampling in parts: by several processes at once, the same file as by one, and no file by two."""

import json
import multiprocessing
import os
import re

import pytest
from scripted import Scripted, World, lines, solving

from data.common.errors import UserError
from data.common.locks import holding
from data.rows import read_split
from eval import sample
from eval.answers import sampling
from eval.answers.asker import Asker
from eval.answers.files import way_of_asking
from eval.answers.parts import Shard, kept, read_shard
from eval.answers.sampling import ask_again, sample_arm

FORK = multiprocessing.get_context("fork")


@pytest.fixture
def world(tmp_path, monkeypatch):
    return World(tmp_path, monkeypatch)


@pytest.fixture
def recipe(world):
    world.scripts |= {"base": solving(0.5)}
    return world.recipe({})


@pytest.fixture
def whole(recipe, world):
    """The bytes that one process writes; they are put aside, so that nothing is sampled yet."""
    sample_arm(recipe, "base", force=False)
    path = recipe.run.samples("base")
    found = path.read_bytes()
    path.unlink()
    path.with_name("manifest.json").unlink()
    world.asked.clear()
    return found


def drawn(recipe):
    return recipe.run.samples("base").read_bytes()


def draw(recipe, *numbers, of, force=False):
    for number in numbers:
        sample_arm(recipe, "base", force, Shard(number, of))


def asked(world):
    return sorted(identity for _, _, ids, _ in world.asked for identity in ids)


def visible(recipe):
    """The names beside the samples that are not hidden."""
    folder = recipe.run.samples("base").parent
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


def interrupt(monkeypatch, recipe, number, of, after):
    """Ctrl-C in a part, once it has answers to so many problems."""
    monkeypatch.setattr(Scripted, "patience", after)
    with pytest.raises(KeyboardInterrupt):
        draw(recipe, number, of=of)
    monkeypatch.setattr(Scripted, "patience", None)


def in_processes(*works):
    """The exit codes of these, each done in a process of its own, all at once."""
    processes = [FORK.Process(target=work) for work in works]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    return [process.exitcode for process in processes]


# --- i/n -----------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["0/4", "5/4", "", "4", "1/0", "-1/4", "1/4/2", "1.0/4", "²/4"])
def test_a_wrong_part_is_refused_in_one_sentence(text):
    with pytest.raises(UserError, match=f"^--shard must be i/n .* not {re.escape(repr(text))}$"):
        read_shard(text)


# --- one file ------------------------------------------------------------------------------


def test_parts_make_the_file_that_one_process_would_have_written(recipe, whole, world, capsys):
    draw(recipe, 3, 1, of=3)
    assert visible(recipe) == ["begun.json", "part-1-of-3", "part-3-of-3"]
    assert "2-of-3" in capsys.readouterr().out.splitlines()[-1]
    draw(recipe, 2, of=3)
    assert drawn(recipe) == whole
    assert visible(recipe) == ["manifest.json", "samples.jsonl"]
    assert asked(world) == sorted(row["id"] for row in read_split(recipe.run, "test"))


def test_the_manifest_of_parts_is_that_of_one_process(recipe):
    manifests = []
    for shards in ([None], [Shard(1, 2), Shard(2, 2)]):
        for shard in shards:
            sample_arm(recipe, "base", True, shard)
        path = recipe.run.samples("base").with_name("manifest.json")
        manifests.append({**json.loads(path.read_text()), "seconds": 0})
    assert manifests[0] == manifests[1]


def test_more_parts_than_problems_leave_some_empty_and_lose_nothing(recipe, whole):
    draw(recipe, *range(1, 51), of=50)
    assert drawn(recipe) == whole


def test_processes_at_the_same_time_make_one_file(recipe, whole):
    works = [lambda n=n: draw(recipe, n, of=5) for n in range(1, 6)]
    assert in_processes(*works) == [0] * 5
    assert drawn(recipe) == whole
    assert visible(recipe) == ["manifest.json", "samples.jsonl"]


def test_of_two_that_finish_at_the_same_moment_one_joins_all(recipe, whole, monkeypatch):
    meet, joined = FORK.Barrier(2), FORK.Value("i", 0)
    write, join = sampling.write_answers, sampling.join

    def write_and_meet(*arguments):
        write(*arguments)
        meet.wait(30)

    def count_and_join(*arguments):
        with joined.get_lock():
            joined.value += 1
        join(*arguments)

    monkeypatch.setattr(sampling, "write_answers", write_and_meet)
    monkeypatch.setattr(sampling, "join", count_and_join)
    assert in_processes(*[lambda n=n: draw(recipe, n, of=2) for n in (1, 2)]) == [0, 0]
    assert joined.value == 1
    assert drawn(recipe) == whole


def test_an_interrupted_part_goes_on_where_it_stopped(recipe, whole, world, monkeypatch):
    draw(recipe, 1, of=2)
    interrupt(monkeypatch, recipe, 2, 2, after=7)
    torn = recipe.run.samples("base").parent / "part-2-of-2" / "samples.jsonl"
    torn.write_bytes(torn.read_bytes()[:-5])
    world.asked.clear()
    draw(recipe, 2, of=2)
    assert len(asked(world)) == 20 - 6
    assert drawn(recipe) == whole


def test_parts_killed_before_they_were_joined_are_joined_without_asking(
    recipe, whole, world, monkeypatch
):
    monkeypatch.setattr(sampling, "join", lambda *_: 1 / 0)
    draw(recipe, 1, of=2)
    with pytest.raises(ZeroDivisionError):
        draw(recipe, 2, of=2)
    monkeypatch.undo()
    world.asked.clear()
    World(world.folder, monkeypatch)
    draw(recipe, 1, of=2)
    assert asked(world) == []
    assert drawn(recipe) == whole


def test_one_process_may_draw_all_though_parts_were_begun(recipe, whole, monkeypatch):
    draw(recipe, 1, of=4)
    sample_arm(recipe, "base", force=False)
    assert drawn(recipe) == whole
    draw(recipe, 2, of=4)  # up to date
    assert drawn(recipe) == whole


def test_parts_of_another_way_of_asking_are_not_joined(recipe, world):
    draw(recipe, 1, 2, of=3)
    warmer = world.recipe({}, eval={"samples": 8, "max_tokens": 12, "temperature": 1.5})
    world.asked.clear()
    draw(warmer, 3, of=3)
    assert not recipe.run.samples("base").exists()
    draw(warmer, 1, 2, of=3)
    assert {way.temperature for *_, way in world.asked} == {1.5}
    assert len(asked(world)) == 40


def test_forced_parts_redo_all_that_was_finished(recipe, whole, world):
    sample_arm(recipe, "base", force=False)
    world.asked.clear()
    draw(recipe, 1, 2, of=2, force=True)
    assert len(asked(world)) == 40
    assert drawn(recipe) == whole


def test_a_forced_part_redoes_itself_alone(recipe, world):
    draw(recipe, 1, 2, of=3)
    world.asked.clear()
    draw(recipe, 1, of=3, force=True)
    assert len(asked(world)) == 14
    assert visible(recipe) == ["begun.json", "part-1-of-3", "part-2-of-3"]


def test_a_finished_arm_is_up_to_date_for_a_part_too(recipe, world, capsys):
    sample_arm(recipe, "base", force=False)
    world.asked.clear()
    capsys.readouterr()
    draw(recipe, 1, of=2)
    assert world.asked == []
    assert capsys.readouterr().out.startswith("eval base: up to date")


def test_a_tuned_arm_is_sampled_whole_by_the_first(world, capsys):
    tune = {"temperature": [0.5, 1.0]}
    recipe = world.recipe({"best": {"trainer": "none", "tune": tune}})
    world.scripts |= {"best": solving(0.5)}
    sample_arm(recipe, "best", False, Shard(2, 2))
    assert (world.asked, recipe.run.samples("best").is_file()) == ([], False)
    assert "--shard 1/2" in capsys.readouterr().out
    sample_arm(recipe, "best", False, Shard(1, 2))
    assert len(lines(recipe, "best")) == 40 * 8
    assert way_of_asking(recipe.run.samples("best").parent).temperature in (0.5, 1.0)


# --- no file by two ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("held", "wanted"),
    [("part-1-of-2", Shard(1, 2)), (".", None), (".", Shard(1, 2))],
    ids=["a part by two", "the whole by two", "a part while the whole is drawn"],
)
def test_no_two_processes_draw_the_same(recipe, held, wanted):
    folder = (recipe.run.samples("base").parent / held).resolve()
    with (
        holding(folder),
        pytest.raises(UserError, match=rf"{folder.name} is being written by process {os.getpid()}"),
    ):
        sample_arm(recipe, "base", False, wanted)
    sample_arm(recipe, "base", False, wanted)


def test_answers_asked_for_again_are_not_written_by_two_processes(recipe):
    sample_arm(recipe, "base", force=False)
    rows = read_split(recipe.run, "test")[:2]
    path = ask_again(recipe, "base", rows, 5, force=False)
    with holding(path.parent), pytest.raises(UserError, match="is being written by process"):
        ask_again(recipe, "base", rows, 6, force=False)
    assert kept(path, 5).keys() == {row["id"] for row in rows}


@pytest.mark.parametrize("spoilt", [b"{", b"7", b'{"id": []}', b"[" * 9999, b"\xff"])
def test_of_a_problem_with_a_spoilt_answer_none_is_kept(tmp_path, spoilt):
    lines = [b'{"id": "a"}', b'{"id": "a"}', b'{"id": "b"}', spoilt]
    (tmp_path / "samples.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    assert kept(tmp_path / "samples.jsonl", 2).keys() == {"a"}


# --- the command ---------------------------------------------------------------------------


def test_the_command_draws_a_part_of_every_arm(world, monkeypatch):
    recipe = world.recipe({"cool": {"trainer": "none", "eval": {"temperature": 0.5}}})
    world.scripts |= {"base": solving(0.5), "cool": solving(0.5)}
    for shard in ("2/2", "1/2"):
        command = ["sample", "--recipe", str(recipe.path), "--shard", shard]
        monkeypatch.setattr("sys.argv", command)
        sample.main()
    assert [(arm, len(ids)) for arm, _, ids, _ in world.asked] == [("base", 20), ("cool", 20)] * 2
    for arm in ("base", "cool"):
        assert len(lines(recipe, arm)) == 40 * 8


# --- with a model --------------------------------------------------------------------------


@pytest.mark.slow
def test_the_parts_of_a_model_are_the_same_bytes_as_one_process_draws(tmp_path, monkeypatch):
    import torch
    from tiny import random_model

    from pipeline.model import decode
    from pipeline.model.load import write_model

    model, tokenizer = random_model("qwen3", hidden=64)
    torch.manual_seed(0)
    for weights in model.parameters():
        torch.nn.init.normal_(weights, std=0.3)
    write_model(model, tokenizer, tmp_path / "model")
    world = World(tmp_path, monkeypatch)
    monkeypatch.setattr(sampling, "Asker", Asker)
    # In half precision a batch of other neighbours rounds otherwise, which soon changes an answer.
    recipe = world.recipe(
        {},
        model=str(tmp_path / "model"),
        dtype="bfloat16",
        data={"main": "dense", "tiers": {"dense": {"train": 1, "val": 1, "test": 13}}},
        eval={"samples": 4, "rows": 8, "max_tokens": 16},
    )
    batches, draw_batch = [], decode.sample_batch

    def spied(model, tokenizer, prompts, *arguments):
        batches.append(tuple(prompts))
        return draw_batch(model, tokenizer, prompts, *arguments)

    monkeypatch.setattr(decode, "sample_batch", spied)
    sample_arm(recipe, "base", force=False)
    whole, alone = drawn(recipe), batches.copy()
    assert [len(batch) for batch in alone] == [2] * 6 + [1]
    batches.clear()
    draw(recipe, 3, 1, 2, of=3, force=True)
    assert drawn(recipe) == whole
    assert sorted(batches) == sorted(alone)
