"""Locks of files and folders that two processes must not write at the same time.

A lock is ``flock`` on a hidden file beside what it keeps. It ends with the process that holds it,
however that ends, so a crash keeps nobody out.
"""

from __future__ import annotations

import atexit
import errno
import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TextIO

from data.common.errors import UserError

EXCLUSIVE, SHARED, AT_ONCE = fcntl.LOCK_EX, fcntl.LOCK_SH, fcntl.LOCK_NB
#: What a file system without locks says.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
#: What this process holds by ``hold``.
_held: dict[Path, TextIO] = {}


def lock_of(path: Path) -> Path:
    """The lock file of ``path``, which itself may be replaced or removed."""
    return path.with_name(f".{path.name}.lock")


@contextmanager
def opened(path: Path) -> Iterator[TextIO]:
    """A lock file, unlocked in the end. It stays: were it removed, another process might lock a
    file that nobody else sees."""
    with path.open("a+", encoding="utf-8") as file:
        try:
            yield file
        finally:
            take(file, fcntl.LOCK_UN)  # closing alone leaves it to a child that was forked


def take(file: TextIO, kind: int) -> bool:
    """Take a lock, or say that it cannot be had. Where there are no locks, all may be had."""
    try:
        fcntl.flock(file, kind)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        _say_no_locks(Path(file.name).parent)
    return True


@cache
def _say_no_locks(folder: Path) -> None:
    print(
        f"the file system of {folder} has no locks, so nothing keeps two processes from writing "
        "one file",
        flush=True,
    )


def sign(file: TextIO) -> None:
    """Leave word of who holds a lock."""
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}")
    file.flush()


def holder(file: TextIO) -> str:
    file.seek(0)
    return file.read() or "another process"


def hold(folder: Path) -> None:
    """Keep other processes from writing ``folder`` until ``release``, or the end of this one; which
    may hold it already.

    Raises:
        UserError: naming the process that holds it.
    """
    named, folder = folder, folder.absolute()
    folder.parent.mkdir(parents=True, exist_ok=True)
    path = lock_of(folder)
    while folder not in _held:
        file = path.open("a+", encoding="utf-8")
        try:
            if not take(file, EXCLUSIVE | AT_ONCE):
                raise UserError(
                    f"{named} is being written by {holder(file)}; let it finish, or stop it"
                )
            if _lies_at(path, file):
                sign(file)
                _held[folder] = file
        finally:
            if folder not in _held:
                file.close()


def _lies_at(path: Path, file: TextIO) -> bool:
    """Whether ``path`` still is this file: its last holder may have removed it after it was opened
    here, and then nobody else would see the lock."""
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def release(folder: Path) -> None:
    """Let others write ``folder``, if this process held it."""
    file = _held.pop(folder.absolute(), None)
    if file is not None:
        Path(file.name).unlink(missing_ok=True)
        take(file, fcntl.LOCK_UN)
        file.close()


def _forget() -> None:
    """In a child that was forked: it holds nothing, and must not keep what its parent holds when
    that is killed."""
    for file in _held.values():
        file.close()
    _held.clear()


def _release_all() -> None:
    for folder in list(_held):
        release(folder)


os.register_at_fork(after_in_child=_forget)
atexit.register(_release_all)
