"""How bad input is reported: one clear sentence and an exit code, never a traceback."""

from __future__ import annotations

import errno
import os
import reprlib
import signal
import sys
import time
from collections.abc import Callable
from typing import Any, NoReturn

#: Seconds that the other processes of a training leave the main one to say what is wrong.
_PATIENCE = 30
#: What safetensors, tokenizers and torch, in types of their own, say of a write that failed.
_FULL_DISK = (
    "No space left on device",
    "Disk quota exceeded",
    "inline_container.cc",
    "PytorchStreamWriter",
)
_TOO_LARGE = "File too large"
#: What the system says of a path that the user gave, or that lies where a file of ours is to be.
_UNUSABLE = (
    errno.EACCES,
    errno.EROFS,
    errno.ENOTDIR,
    errno.EEXIST,
    errno.EISDIR,
    errno.ENAMETOOLONG,
    errno.ELOOP,
)
#: Characters of a sentence, of which the end is kept too: it has the way out.
_SENTENCE, _END = 1200, 400


class UserError(Exception):
    """A mistake in what the user gave us; its text names the file, line or key and the way out.

    It may quote a hostile file: what is no printable character is escaped, and it is cut in the
    middle where it is long.
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
    """What a library's error says, on one line of at most ``most`` characters."""
    return " ".join(str(error).split())[:most]


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxlong = _SHORT.maxother = 100
_SHORT.maxlevel, _SHORT.maxlist, _SHORT.maxdict = 3, 4, 4


def shown(value: Any) -> str:
    """A value of any size as a sentence names it: its representation, cut where it is long."""
    return _SHORT.repr(value)


def run_main(main: Callable[[], None]) -> None:
    """Run a stage's ``main`` and turn what a user can mend into one sentence and an exit code.

    Our own bugs are not caught: they keep their traceback.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:  # while modules were imported
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        main()
    except UserError as error:
        _leave_to_main()
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        if is_another():
            sys.exit(130)
        print(f"\ninterrupted; what was finished is kept, {going_on()}", file=sys.stderr)
        sys.exit(130)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            _end_without_room(error.errno == errno.EFBIG)
        if error.errno in _UNUSABLE:
            named = "a file" if error.filename is None else error.filename
            sys.exit(f"error: {UserError(f'{named} cannot be used ({error.strerror})')}")
        raise
    except Exception as error:
        if any(sign in str(error) for sign in (*_FULL_DISK, _TOO_LARGE)):
            _end_without_room(_TOO_LARGE in str(error))
        raise


def _end_without_room(too_large: bool) -> NoReturn:
    """End as a write that failed asks for; ``too_large``: a file, not the disk's contents."""
    if too_large:
        sys.exit(
            "error: a file would be larger than `ulimit -f` or the file system allows; raise the "
            f"limit, then {going_on()}"
        )
    sys.exit(f"error: the disk is full; make room, then {going_on()}")


def going_on() -> str:
    """What goes on with the work of this command, to end a sentence with. With FORCE=1 a stage
    begins anew, and what it had left half done is gone; without, that is finished, and what was not
    begun anew stays as it was."""
    if "--force" in sys.argv:
        return "the same command without FORCE=1 goes on, redoing only what was begun"
    return "the same command goes on"


def is_another() -> bool:
    """Whether this process trains beside a main one (``pipeline.model.processes``)."""
    return os.environ.get("RANK", "0") != "0"


def _leave_to_main() -> None:
    """Processes that train together meet a mistake together. The main one says it, and what
    launched them then ends the others. One that is left has met a mistake of its own."""
    if is_another():
        time.sleep(_PATIENCE)
