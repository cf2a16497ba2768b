"""Files are whole or as they were; stages know when they are done; mistakes are one sentence."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from data.errors import UserError, run_main
from data.files import (
    BEGUN,
    MANIFEST,
    Stage,
    read_jsonl,
    sha256,
    to_line,
    write_json,
    write_jsonl,
    write_text,
)

ROOT = Path(__file__).parents[1]


def full_disk(*_arguments):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def interrupted(*_arguments):
    raise KeyboardInterrupt


# --- writing ---------------------------------------------------------------------------------


def test_what_is_written_is_read_back(tmp_path):
    path = tmp_path / "deep" / "down" / "rows.jsonl"
    rows = [{"a": 1}, {"name": "café 茶 😀", "line": "one\ntwo\u2028three"}, {}]
    write_jsonl(path, rows)
    assert list(read_jsonl(path)) == list(enumerate(rows, start=1))
    assert [p.name for p in path.parent.iterdir()] == ["rows.jsonl"]


def test_a_row_is_one_line_of_the_same_bytes(tmp_path):
    assert to_line({"b": "ä\n", "a": [1.5, None]}) == '{"b": "ä\\n", "a": [1.5, null]}\n'
    write_json(tmp_path / "x.json", {"b": 1, "a": "ä"})
    assert (tmp_path / "x.json").read_bytes() == '{\n  "b": 1,\n  "a": "ä"\n}\n'.encode()


def test_what_json_cannot_say_is_not_written(tmp_path):
    path = tmp_path / "x.json"
    write_json(path, {"loss": 1.0})
    for bad in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="JSON"):
            write_json(path, {"loss": bad})
    assert json.loads(path.read_text()) == {"loss": 1.0}


def test_half_an_emoji_can_be_written_and_read_back(tmp_path):
    path = tmp_path / "v.jsonl"
    row = {"violations": ["unknown_event: Picnic \ud83d"]}
    write_jsonl(path, [row])
    assert list(read_jsonl(path)) == [(1, row)]


@pytest.mark.parametrize("failing", ["os.fsync", "pathlib.Path.replace"])
@pytest.mark.parametrize("fail", [full_disk, interrupted])
def test_a_failed_write_leaves_the_old_file_whole_and_nothing_beside_it(
    tmp_path, monkeypatch, failing, fail
):
    path = tmp_path / "rows.jsonl"
    write_jsonl(path, [{"old": True}])
    with monkeypatch.context() as patch:
        patch.setattr(failing, fail)
        with pytest.raises((OSError, KeyboardInterrupt)):
            write_jsonl(path, [{"new": True}] * 1000)
    assert list(read_jsonl(path)) == [(1, {"old": True})]
    assert list(tmp_path.iterdir()) == [path]


def test_rows_that_fail_half_way_leave_the_old_file_whole(tmp_path):
    path = tmp_path / "rows.jsonl"
    write_jsonl(path, [{"old": True}])

    def rows():
        yield {"new": True}
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_jsonl(path, rows())
    assert list(read_jsonl(path)) == [(1, {"old": True})]


def test_a_reader_never_sees_half_a_file(tmp_path, monkeypatch):
    path = tmp_path / "x.txt"
    write_text(path, "old")
    replace, seen = Path.replace, []

    def look_and_replace(self, target):
        seen.append((target.read_text(), self.read_text()))
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", look_and_replace)
    write_text(path, "new")
    assert seen == [("old", "new")]
    assert path.read_text() == "new"


# --- reading ---------------------------------------------------------------------------------


def test_blank_lines_are_passed_over_but_counted(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text('\n{"a": 1}\n  \n{"a": 2}')
    assert list(read_jsonl(path)) == [(2, {"a": 1}), (4, {"a": 2})]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (b'{"a": ', "is not valid JSON"),
        (b'{"a": 1} {"a": 2}', "is not valid JSON"),
        (b"plain text", "is not valid JSON"),
        (b'{"a": "\xff"}', "is not valid JSON"),
        (b"\x00\x01", "is not valid JSON"),
        (b"[" * 100_000, "is not valid JSON"),
        (b"[1, 2]", "must be a JSON object"),
        (b'"text"', "must be a JSON object"),
        (b"null", "must be a JSON object"),
        (b"17", "must be a JSON object"),
    ],
)
def test_a_corrupt_line_is_named_with_its_file_and_number(tmp_path, line, says):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"a": 1}\n\n' + line + b'\n{"a": 2}\n')
    with pytest.raises(UserError) as error:
        list(read_jsonl(path))
    assert str(error.value).startswith(f"{path}:3 {says}")
    assert "\n" not in str(error.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"none\.jsonl does not exist"):
        list(read_jsonl(tmp_path / "none.jsonl"))


# --- hashes ----------------------------------------------------------------------------------


def test_a_hash_follows_contents_and_names_but_not_the_manifest(tmp_path):
    folder = tmp_path / "data"
    write_text(folder / "a.txt", "one")
    write_text(folder / "b" / "c.txt", "two")
    before = sha256(folder)
    write_json(folder / MANIFEST, {"seconds": 3})
    assert sha256(folder) == before
    write_text(folder / "b" / "c.txt", "three")
    changed = sha256(folder)
    (folder / "a.txt").rename(folder / "z.txt")
    renamed = sha256(folder)
    assert len({before, changed, renamed}) == 3


def test_a_hash_of_a_large_file_reads_all_of_it(tmp_path):
    path = tmp_path / "weights"
    path.write_bytes(b"\0" * (3 << 20))
    before = sha256(path)
    path.write_bytes(b"\0" * ((3 << 20) - 1) + b"\1")
    assert sha256(path) != before


# --- stages ----------------------------------------------------------------------------------


@pytest.fixture
def source(tmp_path) -> Path:
    return write_jsonl(tmp_path / "in" / "train.jsonl", [{"a": 1}]) or tmp_path / "in/train.jsonl"


def stage(source: Path, **settings) -> Stage:
    settings = settings or {"seed": 1}
    return Stage(source.parents[1] / "out", "data", settings, [source])


def run_stage(source: Path, **settings) -> Path:
    """Do the whole work of a stage; its folder."""
    work = stage(source, **settings)
    assert not work.is_current()
    write_text(work.folder / "result.txt", "done")
    work.finish(["result.txt"], rows=1)
    return work.folder


def test_a_finished_stage_is_current_and_says_so(source, capsys):
    folder = run_stage(source)
    assert capsys.readouterr().out == ""
    assert stage(source).is_current()
    assert capsys.readouterr().out == f"data: up to date ({folder}); FORCE=1 redoes it\n"


def test_the_manifest_says_what_made_the_output(source):
    manifest = json.loads((run_stage(source) / MANIFEST).read_text())
    assert manifest["stage"] == "data"
    assert manifest["settings"] == {"seed": 1}
    assert manifest["inputs"] == {str(source): sha256(source)}
    assert manifest["outputs"] == ["result.txt"]
    assert manifest["rows"] == 1
    assert manifest["versions"]["ortools"]
    assert manifest["seconds"] >= 0
    assert "commit" in manifest


def test_tuples_in_the_settings_are_no_change(source):
    run_stage(source, window=("09:00", "17:00"))
    assert stage(source, window=("09:00", "17:00")).is_current()
    assert stage(source, window=["09:00", "17:00"]).is_current()


def test_changed_settings_are_not_current(source):
    run_stage(source)
    assert not stage(source, seed=2).is_current()


def test_a_further_setting_is_not_current(source):
    run_stage(source)
    assert not stage(source, seed=1, temperature=1.0).is_current()


def test_changed_input_contents_are_not_current(source):
    run_stage(source)
    write_jsonl(source, [{"a": 2}])
    assert not stage(source).is_current()


def test_an_input_written_again_with_the_same_contents_is_current(source):
    run_stage(source)
    write_jsonl(source, [{"a": 1}])
    os.utime(source, (1, 1))
    assert stage(source).is_current()


def test_a_missing_output_is_not_current(source):
    (run_stage(source) / "result.txt").unlink()
    assert not stage(source).is_current()


def test_another_stage_in_the_same_folder_is_not_current(source):
    folder = run_stage(source)
    assert not Stage(folder, "sft", {"seed": 1}, [source]).is_current()


def test_force_redoes_what_is_current(source):
    folder = run_stage(source)
    assert not stage(source).is_current(force=True)
    assert not (folder / MANIFEST).exists()


def test_interrupted_work_is_never_taken_for_finished(source):
    folder = run_stage(source)
    assert not stage(source, seed=2).is_current()  # begun with other settings, then interrupted
    write_text(folder / "result.txt", "half")
    assert not stage(source, seed=2).is_current()
    assert not stage(source, seed=1).is_current(), "the old manifest must not speak for new files"


def test_a_stage_goes_on_only_with_its_own_work(source):
    first = stage(source)
    assert not first.is_current()
    assert not first.goes_on, "nothing was begun"
    again = stage(source)
    assert not again.is_current()
    assert again.goes_on
    forced = stage(source)
    assert not forced.is_current(force=True)
    assert not forced.goes_on
    other = stage(source, seed=2)
    assert not other.is_current()
    assert not other.goes_on
    mine = stage(source)
    assert not mine.is_current()
    assert not mine.goes_on, "another one wrote here since"
    mine.finish([])
    assert not (mine.folder / BEGUN).exists()


def test_a_full_disk_at_the_manifest_leaves_the_stage_unfinished(source, monkeypatch):
    work = stage(source)
    work.is_current()
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full_disk)
        with pytest.raises(OSError, match="No space"):
            work.finish([])
    assert not stage(source).is_current()


def test_a_change_is_seen_though_two_inputs_have_one_name(tmp_path):
    inputs = [write_text(tmp_path / arm / "model", arm) or tmp_path / arm / "model" for arm in "ab"]
    work = Stage(tmp_path / "out", "eval", {}, inputs)
    work.is_current()
    work.finish([])
    write_text(inputs[0], "changed")
    assert not Stage(tmp_path / "out", "eval", {}, inputs).is_current()


# --- errors ----------------------------------------------------------------------------------


def raising(error: BaseException):
    def main():
        raise error

    return main


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (UserError("p.jsonl:3 is not valid JSON"), "error: p.jsonl:3 is not valid JSON"),
        (OSError(errno.ENOSPC, "x"), "error: the disk is full; make room, then"),
        (OSError(errno.EDQUOT, "x"), "error: the disk is full; make room, then"),
        (PermissionError(errno.EACCES, "Permission denied", "runs"), "error: runs cannot be"),
        (OSError(errno.EROFS, "Read-only file system", "runs"), "error: runs cannot be used"),
    ],
)
def test_what_the_user_can_mend_is_one_sentence(error, says):
    with pytest.raises(SystemExit) as stop:
        run_main(raising(error))
    assert str(stop.value.code).startswith(says)
    assert "\n" not in str(stop.value.code)


def test_an_interrupt_ends_with_130_and_a_sentence(capsys):
    with pytest.raises(SystemExit) as stop:
        run_main(raising(KeyboardInterrupt()))
    assert stop.value.code == 130
    assert "the same command goes on" in capsys.readouterr().err


@pytest.mark.parametrize("error", [KeyError("x"), AssertionError(), OSError(errno.EIO, "x")])
def test_our_own_bugs_keep_their_traceback(error):
    with pytest.raises(type(error)):
        run_main(raising(error))


def test_data_and_rewards_import_nothing_heavy():
    modules = [
        f"{p.parent.name}.{p.stem}"
        for package in ("data", "rewards")
        for p in sorted((ROOT / package).glob("*.py"))
        if p.stem != "__init__"
    ]
    code = (
        f"import sys, importlib\nfor m in {modules!r}: importlib.import_module(m)\n"
        "heavy = {'torch', 'transformers', 'trl', 'peft', 'datasets', 'unsloth', 'pipeline', "
        "'eval'} & set(sys.modules)\nsys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
