"""How bad input is reported: one clear sentence and an exit code, never a traceback."""

from __future__ import annotations

import atexit
import errno
import os
import reprlib
import shutil
import signal
import sys
import textwrap
import time
from collections.abc import Callable
from typing import Any

#: Seconds that the other processes of a training leave the main one to say what is wrong.
_LEFT_TO_MAIN = 30
#: Words for a full disk in errors of safetensors', tokenizers' and torch's own types.
_FULL_DISK = (
    "No space left on device", "Disk quota exceeded", "inline_container.cc", "PytorchStreamWriter",
)  # fmt: skip
#: Errors of a path that the user gave, or that lies where a file of ours is to be.
_UNUSABLE = (
    errno.EACCES, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ENAMETOOLONG,
    errno.ELOOP,
)  # fmt: skip
#: Characters of a sentence, and of its end, which is kept since it has the way out.
_SENTENCE, _END = 1200, 400


class UserError(Exception):
    """A mistake in what the user gave us; its text names the file, line or key and the way out.

    May quote hostile text: escapes unprintable characters and shortens the middle.
    """

    def __str__(self) -> str:
        text = super().__str__()
        if len(text) > _SENTENCE:
            text = f"{text[: _SENTENCE - _END]} … {text[-_END:]}"
        return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def require(condition: object, message: str) -> None:
    """Raise UserError with ``message`` unless the condition holds."""
    if not condition:
        raise UserError(message)


def reason_of(error: Exception, most: int | None = 200) -> str:
    """The message of a library's error, on one line of at most ``most`` characters."""
    return " ".join(str(error).split())[:most]


class _AsWritten(reprlib.Repr):
    """Values as YAML and JSON spell them, which is where they come from."""

    def repr_NoneType(self, value: None, level: int) -> str:  # noqa: N802
        return "null"

    def repr_bool(self, value: bool, level: int) -> str:
        return str(value).lower()


_REPR = _AsWritten()
_REPR.maxstring = _REPR.maxlong = _REPR.maxother = 100
_REPR.maxlevel, _REPR.maxlist, _REPR.maxdict = 3, 4, 4


def brief(value: Any) -> str:
    """A value as YAML would have it, shortened where it is long."""
    return _REPR.repr(value)


def run_main(main: Callable[[], None]) -> None:
    """Run a command's ``main``; turn a mistake that a user can mend into a sentence and exit code.

    Our own bugs are not caught: they keep their traceback. One of several processes that train
    together ends without tearing itself down: torch's threads abort some that do.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:  # while modules were imported
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        main()
    except UserError as error:
        if is_another():
            # All processes meet the mistake. The main one says it, then the launcher ends all.
            # One that is left met a mistake of its own.
            time.sleep(_LEFT_TO_MAIN)
        sys.exit(_in_terminal(f"error: {error}"))
    except KeyboardInterrupt:
        if not is_another():
            print(f"\ninterrupted; what was finished is kept, {going_on()}", file=sys.stderr)
        sys.exit(130)
    except Exception as error:  # any library may meet a full or broken disk
        if sentence := _of_the_disk(error):
            sys.exit(_in_terminal(f"error: {UserError(sentence)}"))
        raise
    if "RANK" in os.environ:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def _in_terminal(text: str) -> str:
    """Text for standard error, broken at words where that is a terminal."""
    if not sys.stderr.isatty():
        return text
    columns = shutil.get_terminal_size().columns
    return textwrap.fill(text, columns, break_long_words=False, break_on_hyphens=False)


def _of_the_disk(error: Exception) -> str | None:
    """The sentence about a disk that is full or a path that cannot be used; None for a bug."""
    number = error.errno if isinstance(error, OSError) else None
    if number == errno.EFBIG or "File too large" in str(error):
        return (
            "a file would be larger than `ulimit -f` or the file system allows; raise the limit, "
            f"then {going_on()}"
        )
    if number in (errno.ENOSPC, errno.EDQUOT) or any(words in str(error) for words in _FULL_DISK):
        return f"the disk is full; make room, then {going_on()}"
    if isinstance(error, OSError) and number in _UNUSABLE:
        return f"{error.filename or 'a file'} cannot be used ({error.strerror})"
    return None


def going_on() -> str:
    """How to go on with the work of this command, as the end of a sentence.

    FORCE=1 starts a stage from nothing, so that what it left half done is lost.
    """
    if "--force" in sys.argv:
        return "the same command without FORCE=1 goes on, redoing only what was begun"
    return "the same command goes on"


def is_another() -> bool:
    """Whether this process trains beside a main one (``pipeline.model.processes``)."""
    return os.environ.get("RANK", "0") != "0"
