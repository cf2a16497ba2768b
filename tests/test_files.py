"""Files are whole or as they were; stages know when they are done."""

import errno
import fcntl
import json
import multiprocessing
import os
import signal
from importlib.metadata import version
from pathlib import Path

import pytest
from running import refusal_of

from data.common.files import (
    BEGUN,
    MANIFEST,
    Stage,
    read_jsonl,
    sha256,
    stage_facts,
    write_bytes,
    write_folder,
    write_json,
    write_jsonl,
    write_text,
)
from data.common.locks import hold, lock_file

FORK = multiprocessing.get_context("fork")


def full_disk(*_arguments):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def interrupted(*_arguments):
    raise KeyboardInterrupt


# --- lines and whole files -------------------------------------------------------------------


def test_what_is_written_is_read_back_as_the_same_bytes(tmp_path):
    path = tmp_path / "deep" / "down" / "rows.jsonl"
    rows = [
        {"b": "ä\n", "a": [1.5, None]},
        {"name": "café 茶 😀", "line": "one\ntwo\u2028three"},
        {"violations": ["unknown_event: half an emoji \ud83d"]},
        {},
    ]
    write_jsonl(path, rows)
    assert list(read_jsonl(path)) == list(enumerate(rows, start=1))
    assert path.read_bytes().startswith('{"b": "ä\\n", "a": [1.5, null]}\n'.encode())
    assert list(path.parent.iterdir()) == [path]
    path.write_text('\n{"a": 1}\n  \n{"a": 2}')  # blank lines are counted
    assert list(read_jsonl(path)) == [(2, {"a": 1}), (4, {"a": 2})]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_json_cannot_say_is_not_written(tmp_path, bad):
    path = tmp_path / "x.json"
    write_json(path, {"loss": 1.0})
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, {"loss": bad})
    assert path.read_text() == '{\n  "loss": 1.0\n}\n'


@pytest.mark.parametrize("failing", ["os.fsync", "pathlib.Path.replace"])
@pytest.mark.parametrize("fail", [full_disk, interrupted])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, failing, fail):
    path = tmp_path / "rows.jsonl"
    write_jsonl(path, [{"old": True}])
    with monkeypatch.context() as patch:
        patch.setattr(failing, fail)
        with pytest.raises((OSError, KeyboardInterrupt)):
            write_jsonl(path, [{"new": True}] * 1000)
    assert list(read_jsonl(path)) == [(1, {"old": True})]
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "line",
    [
        b'{"a": ', b'{"a": 1} {"a": 2}', b"plain text", b'{"a": "\xff"}', b"\x00\x01",
        b"[" * 100_000, b"[1, 2]", b'"text"', b"null", b"17",
    ],
)  # fmt: skip
def test_a_corrupt_line_is_named_with_its_file_and_number(tmp_path, line):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"a": 1}\n\n' + line + b'\n{"a": 2}\n')
    assert refusal_of(lambda: list(read_jsonl(path))).startswith(f"{path}:3 ")
    refusal_of(lambda: list(read_jsonl(tmp_path / "none.jsonl")), "none.jsonl does not exist")


def test_a_hash_follows_all_contents_and_names_but_not_the_manifest(tmp_path):
    folder = tmp_path / "data"
    write_text(folder / "a.txt", "one")
    write_bytes(folder / "b" / "weights", bytes(3 << 20))
    before = sha256(folder)
    write_json(folder / MANIFEST, {"seconds": 3})
    assert sha256(folder) == before
    write_bytes(folder / "b" / "weights", bytes((3 << 20) - 1) + b"\1")
    changed = sha256(folder)
    (folder / "a.txt").rename(folder / "z.txt")
    assert len({before, changed, sha256(folder)}) == 3


# --- stages ----------------------------------------------------------------------------------


@pytest.fixture
def source(tmp_path) -> Path:
    path = tmp_path / "in" / "train.jsonl"
    write_jsonl(path, [{"a": 1}])
    return path


def stage(source: Path, **settings) -> Stage:
    return Stage(source.parents[1] / "out", "data", settings or {"seed": 1}, [source])


def run_stage(source: Path, **settings) -> Path:
    """Do the whole work of a stage; its folder."""
    work = stage(source, **settings)
    assert work.begin_unless_done()
    write_text(work.folder / "result.txt", "done")
    work.finish(["result.txt"], rows=1)
    return work.folder


def test_a_finished_stage_is_done_and_says_so(source, capsys):
    folder = run_stage(source)
    assert capsys.readouterr().out == ""
    assert stage(source).is_done()
    assert capsys.readouterr().out == ""
    assert not stage(source).begin_unless_done()
    assert capsys.readouterr().out == f"data: up to date ({folder}); FORCE=1 redoes it\n"


def test_the_manifest_says_what_made_the_output(source):
    manifest = json.loads((run_stage(source) / MANIFEST).read_text())
    said = {"stage": "data", "settings": {"seed": 1}, "inputs": {str(source): sha256(source)}}
    assert {**manifest, **said, "outputs": ["result.txt"], "rows": 1} == manifest
    assert manifest["versions"]["numpy"] == version("numpy")
    assert manifest["seconds"] >= 0
    assert "commit" in manifest


@pytest.mark.parametrize(
    "text", ["", "7", "{", "{}", '{"outputs": 3}', '{"settings": {}, "inputs": []}', "[" * 100_000]
)
def test_a_spoilt_manifest_is_one_sentence_and_its_stage_is_done_again(source, text):
    folder = run_stage(source)
    assert stage_facts(folder)["settings"] == {"seed": 1}
    (folder / MANIFEST).write_text(text)
    refusal_of(lambda: stage_facts(folder), "manifest.json cannot be read")
    assert stage(source).begin_unless_done()
    refusal_of(lambda: stage_facts(folder), "manifest.json does not exist")


def test_a_tuple_as_a_list_and_an_input_of_the_same_contents_are_no_change(source):
    run_stage(source, window=("09:00", "17:00"))
    write_jsonl(source, [{"a": 1}])
    os.utime(source, (1, 1))
    assert stage(source, window=("09:00", "17:00")).is_done()
    assert stage(source, window=["09:00", "17:00"]).is_done()


@pytest.mark.parametrize(
    "change",
    [
        lambda source: stage(source, seed=2),
        lambda source: stage(source, seed=1, temperature=1.0),
        lambda source: write_jsonl(source, [{"a": 2}]) or stage(source),
        lambda source: (source.parents[1] / "out/result.txt").unlink() or stage(source),
        lambda source: Stage(source.parents[1] / "out", "sft", {"seed": 1}, [source]),
    ],
    ids=["setting", "further setting", "input", "output", "stage"],
)
def test_what_changed_is_done_again(source, change):
    run_stage(source)
    assert not change(source).is_done()


def test_a_forced_or_interrupted_stage_is_never_taken_for_finished(source):
    folder = run_stage(source)
    assert stage(source).begin_unless_done(force=True)
    write_text(folder / "result.txt", "half")
    assert not stage(source).is_done()
    run_stage(source)
    assert stage(source, seed=2).begin_unless_done()
    assert not stage(source, seed=1).is_done(), "the old manifest must not speak for new files"


def test_a_stage_goes_on_only_with_its_own_work(source):
    for seed, force, goes_on in (
        (1, False, False),  # nothing was begun
        (1, False, True),
        (1, True, False),
        (2, False, False),
        (1, False, False),  # another one wrote here since
    ):
        work = stage(source, seed=seed)
        assert work.begin_unless_done(force)
        assert work.goes_on == goes_on
    work.finish([])
    assert not (work.folder / BEGUN).exists()


def test_what_a_forced_stage_left_half_done_goes_on_without_force_and_is_lost_with_it(source):
    half = run_stage(source) / "half"
    for force, kept in ((True, False), (False, True), (True, False)):
        assert stage(source).begin_unless_done(force, [half])
        assert half.exists() == kept
        half.touch()


def test_what_is_half_done_is_removed_before_other_work_is_noted_as_begun(source, monkeypatch):
    half = source.parents[1] / "out" / "checkpoints"
    stage(source).begin_unless_done()
    write_text(half / "checkpoint-2" / "weights", "of seed 1")
    with monkeypatch.context() as patch:
        patch.setattr("data.common.files.write_json", interrupted)  # killed before it is noted
        with pytest.raises(KeyboardInterrupt):
            stage(source, seed=2).begin_unless_done(partial=[half])
    assert not half.exists()
    assert not half.with_name(BEGUN).exists()
    other = stage(source, seed=2)
    other.begin_unless_done(partial=[half, half.with_name("no such file")])
    assert not other.goes_on


# --- folders ---------------------------------------------------------------------------------


def filled(word):
    def fill(folder):
        write_text(folder / "config.json", word)
        write_text(folder / "deep" / "weights", word)

    return fill


@pytest.mark.parametrize("fails", [1, 2])
def test_between_two_folders_there_is_always_a_whole_one(tmp_path, monkeypatch, fails):
    folder, renamed = tmp_path / "model", []
    write_folder(folder, filled("old"))
    rename = Path.rename

    def killed(self, target):
        renamed.append(target)
        if len(renamed) == fails:
            raise KeyboardInterrupt
        return rename(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", killed)
        with pytest.raises(KeyboardInterrupt):
            write_folder(folder, filled("new"))
    whole = [path for path in tmp_path.iterdir() if (path / "deep" / "weights").is_file()]
    assert len(whole) == 2
    with pytest.raises(OSError, match="No space"):
        write_folder(folder, lambda half: (filled("half")(half), full_disk()))
    assert (folder / "config.json").read_text() == "old"
    assert list(tmp_path.iterdir()) == [folder]  # half a model takes no room that is lacking
    write_folder(folder, filled("newer"))
    assert (folder / "deep" / "weights").read_text() == "newer"
    assert list(tmp_path.iterdir()) == [folder]


# --- one at a time ---------------------------------------------------------------------------


@pytest.fixture
def other():
    """Starts a process that does a work and then waits; all are killed in the end."""
    started = []

    def start(work):
        ready = FORK.Event()

        def run():
            _held = work()
            ready.set()
            signal.pause()

        process = FORK.Process(target=run)
        process.start()
        started.append(process)
        assert ready.wait(30)
        return process

    yield start
    for process in started:
        process.kill()
        process.join(30)


def begun(source):
    work = stage(source)
    work.begin_unless_done()
    return work


def test_two_processes_do_not_do_the_work_of_one_folder(source, other):
    process = other(lambda: begun(source))
    for force, seed in ((False, 1), (True, 1), (False, 2)):
        again = stage(source, seed=seed)
        said = refusal_of(lambda again=again, force=force: again.begin_unless_done(force))
        assert f"out is being written by process {process.pid} on " in said
        assert said.endswith("; let it finish, or stop it")
    assert Stage(source.parents[1] / "elsewhere", "data", {}).begin_unless_done()


def test_a_killed_process_keeps_nobody_from_its_folder(source, other):
    process = other(lambda: begun(source))
    process.kill()
    process.join(30)
    assert begun(source).goes_on


def test_what_another_process_has_just_finished_is_not_done_again(source, monkeypatch):
    def late(folder):
        monkeypatch.setattr("data.common.files.hold", hold)
        run_stage(source)
        return hold(folder)

    monkeypatch.setattr("data.common.files.hold", late)
    work = stage(source)
    assert not work.begin_unless_done()
    assert not lock_file(work.folder).exists()


def test_one_process_may_come_back_to_its_folder(source):
    first, again = begun(source), begun(source)
    again.finish([])
    assert first.is_done()
    assert not lock_file(first.folder).exists()


def test_without_locks_a_stage_runs_all_the_same(source, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    run_stage(source)
    assert stage(source).is_done()
