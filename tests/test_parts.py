"""Sampling in parts: by several processes at once, the same file as by one, and no file by two."""

import json
import multiprocessing
import os
import re

import pytest
import yaml
from scripted import Scripted, World, lines, solving

from data.common.errors import UserError
from data.rows import read_split
from eval import sample
from eval.answers import parts, sampling
from eval.answers.asker import Asker
from eval.answers.files import way_of_asking
from eval.answers.parts import Shard, claimed, kept, read_shard
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
def one(recipe):
    """What one process writes; it is put aside, so that nothing is sampled yet."""
    sample_arm(recipe, "base", force=False)
    path = recipe.run.samples("base")
    found = path.read_bytes(), json.loads(path.with_name("manifest.json").read_text())
    path.unlink()
    path.with_name("manifest.json").unlink()
    return found


def part(recipe, number, of):
    return Shard(number, of).path(recipe.run.samples("base"))


def files(recipe):
    """What lies beside the samples, what is hidden aside."""
    folder = recipe.run.samples("base").parent
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


def interrupt(monkeypatch, recipe, number, of, after):
    """Ctrl-C in a part, once it has answers to so many problems."""
    monkeypatch.setattr(Scripted, "patience", after)
    with pytest.raises(KeyboardInterrupt):
        sample_arm(recipe, "base", False, Shard(number, of))
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


def test_a_part_is_named_by_its_number_and_how_many_there_are(tmp_path):
    assert read_shard("2/4") == Shard(2, 4)
    assert Shard(2, 4).path(tmp_path / "samples.jsonl") == tmp_path / "samples.2-of-4.jsonl"


@pytest.mark.parametrize("text", ["0/4", "5/4", "", "4", "1/0", "-1/4", "1/4/2", "1.0/4", "²/4"])
def test_what_names_no_part_is_refused_in_one_sentence(text):
    with pytest.raises(UserError, match=f"^--shard must be i/n .* not {re.escape(repr(text))}$"):
        read_shard(text)


# --- one file ------------------------------------------------------------------------------


def test_parts_make_the_file_that_one_process_would_have_written(recipe, one, world, capsys):
    world.asked.clear()
    for number in (3, 1):
        sample_arm(recipe, "base", False, Shard(number, 3))
        assert files(recipe)[0] == "begun.json"
    assert "13 of 40 problems" in capsys.readouterr().out
    sample_arm(recipe, "base", False, Shard(2, 3))
    path = recipe.run.samples("base")
    manifest = json.loads(path.with_name("manifest.json").read_text())
    assert path.read_bytes() == one[0]
    assert {**manifest, "seconds": 0} == {**one[1], "seconds": 0}
    assert files(recipe) == ["manifest.json", "samples.jsonl"]
    assert not list(path.parent.glob(".*-of-*"))
    asked = [identity for _, _, ids, _ in world.asked for identity in ids]
    assert sorted(asked) == sorted(row["id"] for row in read_split(recipe.run, "test"))


def test_more_parts_than_problems_leave_some_empty_and_lose_nothing(recipe, one):
    for number in range(1, 51):
        sample_arm(recipe, "base", False, Shard(number, 50))
    assert recipe.run.samples("base").read_bytes() == one[0]


def test_processes_at_the_same_time_make_one_file(recipe, one):
    def work(number):
        return lambda: sample_arm(recipe, "base", False, Shard(number, 5))

    assert in_processes(*map(work, range(1, 6))) == [0] * 5
    assert recipe.run.samples("base").read_bytes() == one[0]
    assert files(recipe) == ["manifest.json", "samples.jsonl"]


def test_of_two_that_finish_at_the_same_moment_one_puts_all_together(recipe, one, monkeypatch):
    meet = FORK.Barrier(2)
    merged = FORK.Value("i", 0)
    write, finish = sampling.write_answers, sampling.Stage.finish

    def write_and_meet(*arguments):
        write(*arguments)
        meet.wait(30)

    def count_and_finish(self, *outputs, **facts):
        with merged.get_lock():
            merged.value += 1
        finish(self, *outputs, **facts)

    monkeypatch.setattr(sampling, "write_answers", write_and_meet)
    monkeypatch.setattr(sampling.Stage, "finish", count_and_finish)
    works = [lambda n=n: sample_arm(recipe, "base", False, Shard(n, 2)) for n in (1, 2)]
    assert in_processes(*works) == [0, 0]
    assert merged.value == 1
    assert recipe.run.samples("base").read_bytes() == one[0]


def test_an_interrupted_part_goes_on_where_it_stopped(recipe, one, world, monkeypatch):
    sample_arm(recipe, "base", False, Shard(1, 2))
    interrupt(monkeypatch, recipe, 2, 2, after=7)
    torn = part(recipe, 2, 2)
    torn.write_bytes(torn.read_bytes()[:-5])
    world.asked.clear()
    sample_arm(recipe, "base", False, Shard(2, 2))
    [(_, _, ids, _)] = world.asked
    assert len(ids) == 20 - 6
    assert recipe.run.samples("base").read_bytes() == one[0]


def test_one_process_puts_whole_parts_together_and_asks_nothing(recipe, one, world, monkeypatch):
    monkeypatch.setattr(sampling, "put_together", lambda *_: {"killed before the end"})
    for number in (1, 2):
        sample_arm(recipe, "base", False, Shard(number, 2))
    monkeypatch.setattr(sampling, "put_together", parts.put_together)
    assert part(recipe, 2, 2).is_file()
    world.asked.clear()
    sample_arm(recipe, "base", force=False)
    assert world.asked == []
    assert recipe.run.samples("base").read_bytes() == one[0]
    assert files(recipe) == ["manifest.json", "samples.jsonl"]


def test_one_process_draws_what_the_parts_lack(recipe, one, world, monkeypatch):
    sample_arm(recipe, "base", False, Shard(1, 4))
    interrupt(monkeypatch, recipe, 3, 4, after=4)
    world.asked.clear()
    sample_arm(recipe, "base", force=False)
    [(_, _, ids, _)] = world.asked
    assert len(ids) == 40 - 10 - 4
    assert recipe.run.samples("base").read_bytes() == one[0]


def test_parts_go_on_with_what_one_process_had_begun(recipe, one, world, monkeypatch):
    monkeypatch.setattr(Scripted, "patience", 25)
    with pytest.raises(KeyboardInterrupt):
        sample_arm(recipe, "base", force=False)
    monkeypatch.setattr(Scripted, "patience", None)
    world.asked.clear()
    for number in (1, 2):
        sample_arm(recipe, "base", False, Shard(number, 2))
    assert sum(len(ids) for _, _, ids, _ in world.asked) == 40 - 25
    assert recipe.run.samples("base").read_bytes() == one[0]


def test_answers_count_whatever_the_number_of_parts_they_were_drawn_in(recipe, one, world):
    sample_arm(recipe, "base", False, Shard(1, 4))
    world.asked.clear()
    for number in (1, 2, 3):
        sample_arm(recipe, "base", False, Shard(number, 3))
    assert sum(len(ids) for _, _, ids, _ in world.asked) == 40 - 10
    assert recipe.run.samples("base").read_bytes() == one[0]


def test_parts_of_another_way_of_asking_are_not_gone_on_with(recipe, world, capsys):
    for number in (1, 2):
        sample_arm(recipe, "base", False, Shard(number, 3))
    warmer = world.recipe({}, eval={"samples": 8, "max_tokens": 12, "temperature": 1.5})
    world.asked.clear()
    sample_arm(warmer, "base", False, Shard(1, 2))
    assert files(recipe) == ["begun.json", "samples.1-of-2.jsonl"]
    assert [(len(ids), way.temperature) for _, _, ids, way in world.asked] == [(20, 1.5)]


def test_forced_parts_redo_all_that_was_finished(recipe, one, world):
    sample_arm(recipe, "base", force=False)
    world.asked.clear()
    for number in (1, 2):
        sample_arm(recipe, "base", True, Shard(number, 2))
    assert sum(len(ids) for _, _, ids, _ in world.asked) == 40
    assert recipe.run.samples("base").read_bytes() == one[0]


def test_a_forced_part_of_what_others_have_begun_redoes_itself_alone(recipe, world):
    for number in (1, 2):
        sample_arm(recipe, "base", False, Shard(number, 3))
    before = part(recipe, 2, 3).read_bytes()
    world.asked.clear()
    sample_arm(recipe, "base", True, Shard(1, 3))
    assert [len(ids) for _, _, ids, _ in world.asked] == [14]
    assert part(recipe, 2, 3).read_bytes() == before


def test_what_is_finished_is_up_to_date_for_a_part_too(recipe, one, world, capsys):
    sample_arm(recipe, "base", force=False)
    world.asked.clear()
    capsys.readouterr()
    sample_arm(recipe, "base", False, Shard(1, 2))
    assert world.asked == []
    assert capsys.readouterr().out.startswith("eval base: up to date")


def test_a_tuned_arm_is_sampled_whole_by_the_first(world, capsys):
    tune = {"temperature": [0.5, 1.0]}
    recipe = world.recipe({"best": {"trainer": "none", "tune": tune}})
    world.scripts |= {"best": solving(0.5)}
    sample_arm(recipe, "best", False, Shard(2, 2))
    assert (world.asked, recipe.run.samples("best").is_file()) == ([], False)
    assert "one process, --shard 1/2" in capsys.readouterr().out
    sample_arm(recipe, "best", False, Shard(1, 2))
    assert len(lines(recipe, "best")) == 40 * 8
    assert way_of_asking(recipe.run.samples("best").parent).temperature in (0.5, 1.0)


# --- no file by two ------------------------------------------------------------------------


def test_no_part_is_written_by_two_processes(recipe):
    path = recipe.run.samples("base")
    me = f"process {os.getpid()} on "
    with claimed(path, Shard(1, 2)):
        with pytest.raises(UserError, match=rf"1-of-2\.jsonl is being written by {me}"):
            sample_arm(recipe, "base", False, Shard(1, 2))
        assert files(recipe) == []
    sample_arm(recipe, "base", False, Shard(1, 2))


def test_the_whole_is_not_written_while_parts_are_nor_they_while_it_is(recipe):
    path = recipe.run.samples("base")
    with (
        claimed(path, Shard(1, 2)),
        pytest.raises(UserError, match="other processes are drawing parts"),
    ):
        sample_arm(recipe, "base", force=False)
    with claimed(path):
        for shard in (None, Shard(1, 2)):
            with pytest.raises(UserError, match=r"is being written by process \d+"):
                sample_arm(recipe, "base", True, shard)
    sample_arm(recipe, "base", force=False)


def test_answers_asked_for_again_are_not_written_by_two_processes(recipe):
    sample_arm(recipe, "base", force=False)
    rows = read_split(recipe.run, "test")[:2]
    path = ask_again(recipe, "base", rows, 5, force=False)
    with claimed(path), pytest.raises(UserError, match="is being written by process"):
        ask_again(recipe, "base", rows, 6, force=False)
    assert kept(path, 5).keys() == {row["id"] for row in rows}


@pytest.mark.parametrize("spoilt", [b"{", b"7", b'{"id": []}', b"[" * 9999, b"\xff"])
def test_of_a_problem_with_a_spoilt_answer_none_is_kept(tmp_path, spoilt):
    lines = [b'{"id": "a"}', b'{"id": "a"}', b'{"id": "b"}', spoilt]
    (tmp_path / "samples.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    assert kept(tmp_path / "samples.jsonl", 2).keys() == {"a"}


@pytest.mark.parametrize("note", [None, "{", "[" * 100_000])
def test_while_others_draw_nobody_begins_with_other_settings(recipe, world, note):
    """Nor where the note of what they do is spoilt."""
    sample_arm(recipe, "base", False, Shard(1, 3))
    mine, begun = part(recipe, 1, 3), recipe.run.samples("base").with_name("begun.json")
    other = recipe
    if note is None:
        other = world.recipe({}, eval={"samples": 8, "max_tokens": 12, "temperature": 1.5})
    else:
        begun.write_text(note)
    before = mine.read_bytes(), begun.read_bytes()
    with (
        claimed(recipe.run.samples("base"), Shard(2, 3)),
        pytest.raises(UserError, match="other settings"),
    ):
        sample_arm(other, "base", False, Shard(3, 3))
    assert (mine.read_bytes(), begun.read_bytes()) == before


# --- the command ---------------------------------------------------------------------------


def run(monkeypatch, recipe, *arguments):
    monkeypatch.setattr("sys.argv", ["sample", "--recipe", str(recipe.path), *arguments])
    sample.main()


def test_the_command_draws_a_part_of_every_arm(world, monkeypatch, capsys):
    recipe = world.recipe({"cool": {"trainer": "none", "eval": {"temperature": 0.5}}})
    world.scripts |= {"base": solving(0.5), "cool": solving(0.5)}
    for number in (2, 1):
        run(monkeypatch, recipe, "--shard", f"{number}/2")
    assert [(arm, len(ids)) for arm, _, ids, _ in world.asked] == [("base", 20), ("cool", 20)] * 2
    for arm in ("base", "cool"):
        assert len(lines(recipe, arm)) == 40 * 8


def test_a_wrong_part_is_refused_before_anything_is_read(world, monkeypatch):
    path = world.folder / "nothing.yaml"
    path.write_text(yaml.safe_dump({}))
    monkeypatch.setattr("sys.argv", ["sample", "--recipe", str(path), "--shard", "5/4"])
    with pytest.raises(UserError, match=r"^--shard must be i/n"):
        sample.main()


# --- with a model --------------------------------------------------------------------------


@pytest.mark.slow
def test_the_parts_of_a_model_are_the_same_bytes_as_one_process_draws(tmp_path, monkeypatch):
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    from pipeline.corpus.tokens import build_tokenizer
    from pipeline.model import decode

    tokenizer = build_tokenizer()
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=96, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=16, initializer_range=0.3,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
    )  # fmt: skip
    Qwen3ForCausalLM(config).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
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
    batches = []
    draw = decode.sample_batch

    def spied(model, tokenizer, prompts, *arguments):
        batches.append(tuple(prompts))
        return draw(model, tokenizer, prompts, *arguments)

    monkeypatch.setattr(decode, "sample_batch", spied)
    sample_arm(recipe, "base", force=False)
    path = recipe.run.samples("base")
    whole, alone = path.read_bytes(), batches.copy()
    assert [len(batch) for batch in alone] == [2] * 6 + [1]
    batches.clear()
    for number in (3, 1, 2):
        sample_arm(recipe, "base", True, Shard(number, 3))
    assert path.read_bytes() == whole
    assert sorted(batches) == sorted(alone)
