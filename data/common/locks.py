"""Locks of files and folders that two processes must not write at the same time.

A lock is a hidden file beside what it keeps, locked by the system (``filelock``). It ends with the
process that holds it, however that ends, so a crash keeps nobody out.
"""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path

from filelock import BaseFileLock, FileLock, Timeout

from data.common.errors import UserError

#: Errors of a file system without locks.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


def lock_file(path: Path) -> Path:
    """The lock file of ``path``, which itself may be replaced or removed."""
    return path.absolute().with_name(f".{path.name}.lock")


def hold(path: Path) -> BaseFileLock:
    """Keep other processes from writing ``path``, until ``release`` or the end of this one.

    Returns:
        The lock; it is released, too, when nothing refers to it any more.

    Raises:
        UserError: naming the process that holds it.
    """
    file = lock_file(path)
    lock = FileLock(file, thread_local=False, is_singleton=True, fallback_to_soft=False)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        holder = (file.read_text(encoding="utf-8") if file.exists() else "") or "another process"
        raise UserError(f"{path} is being written by {holder}; let it finish, or stop it") from None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        print(
            f"the file system of {path.parent} has no locks, so nothing keeps two processes from "
            "writing one file",
            flush=True,
        )
    file.write_text(f"process {os.getpid()} on {socket.gethostname()}", encoding="utf-8")
    return lock


def release(lock: BaseFileLock) -> None:
    """Let others write again, if this process holds the lock."""
    if lock.is_locked:
        Path(lock.lock_file).unlink(missing_ok=True)  # who waits for it notices, and takes another
        lock.release(force=True)
