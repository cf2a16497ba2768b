"""A mistake that a user can mend is one sentence, our own bugs keep their traceback."""

import errno
import sys

import pytest
from running import raising

from data.common.errors import UserError, reason_of, run_main


@pytest.mark.parametrize(
    ("error", "names"),
    [
        (UserError("p.jsonl:3 is not valid JSON"), "p.jsonl:3 is not valid JSON"),
        (OSError(errno.ENOSPC, "x"), "disk is full"),
        (OSError(errno.EDQUOT, "x"), "disk is full"),
        (OSError(errno.EFBIG, "x"), "`ulimit -f`"),
        (RuntimeError("I/O error: Disk quota exceeded (os error 122)"), "disk is full"),
        (PermissionError(errno.EACCES, "Permission denied", "runs"), "runs cannot be used"),
        (
            OSError(errno.ENAMETOOLONG, "File name too long", "Art\n" + "09:00-10:00, " * 900),
            "Art\\n09:00-10:00, 09:00",
        ),
    ],
)
def test_what_the_user_can_mend_is_one_sentence(error, names):
    with pytest.raises(SystemExit) as stop:
        run_main(raising(error))
    text = str(stop.value.code)
    assert text.startswith("error: ")
    assert names in text
    assert "\n" not in text
    assert len(text) < 1_250


@pytest.mark.parametrize("flags", [[], ["--force"]])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.ENOSPC, "x")])
def test_what_forces_a_stage_is_to_be_left_out_to_go_on(error, flags, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["pipeline.sft", "--recipe", "r.yaml", *flags])
    with pytest.raises(SystemExit) as stop:
        run_main(raising(error))
    said = f"{stop.value.code}{capsys.readouterr().err}"
    assert ("without FORCE=1" in said) == bool(flags)
    assert stop.value.code == 130 or not isinstance(error, KeyboardInterrupt)


@pytest.mark.parametrize("error", [KeyError("x"), AssertionError(), OSError(errno.EIO, "x")])
def test_our_own_bugs_keep_their_traceback(error):
    with pytest.raises(type(error)):
        run_main(raising(error))


def test_a_sentence_is_short_and_printable_whatever_it_quotes():
    said = str(UserError("a\x1b[31m\n\u202e" + "b" * 10_000 + "; the way out"))
    assert said.startswith("a\\x1b[31m\\n\\u202ebbb")
    assert said.endswith("bbb; the way out")
    assert said.isprintable()
    assert len(said) < 1_250


def test_a_librarys_reason_is_one_line_and_not_longer_than_wanted():
    assert reason_of(ValueError("no\n  such   layer")) == "no such layer"
    assert len(reason_of(ValueError("x" * 300))) == 200
    assert len(reason_of(ValueError("x" * 300), None)) == 300
