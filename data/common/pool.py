"""A pool of processes that Ctrl-C ends in good order, and that ends with its main process."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

Result = TypeVar("Result")


@contextmanager
def worker_pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """Processes that start with Ctrl-C blocked, which they inherit.

    Ctrl-C reaches every process of a terminal, and a worker that died of it would leave the pool
    broken, or waiting for ever.
    """
    pool = ProcessPoolExecutor(workers, initializer=_end_with, initargs=(os.getpid(),))
    try:
        with _interrupts_held_back():
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
            pool.map(abs, range(workers))
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        yield pool
    finally:
        with _interrupts_held_back():
            pool.shutdown(cancel_futures=True)


def map_numbers(
    pool: ProcessPoolExecutor, make: Callable[[int], Result], count: int
) -> list[Result]:
    """``make`` of every number below ``count``; Ctrl-C comes between two results."""
    results = []
    with _interrupts_held_back() as check:
        for result in pool.map(make, range(count), chunksize=64):
            results.append(result)
            check()
    return results


@contextmanager
def _interrupts_held_back() -> Iterator[Callable[[], None]]:
    """Note Ctrl-C, and raise it at the end, or where the function that is given is called.

    Amid the pool's own work it would leave a lock locked, or a worker that nobody knows of.
    Masking the signal is not enough: another thread takes it then, and the libraries have some.
    """
    noted: list[int] = []

    def check() -> None:
        if noted:
            raise KeyboardInterrupt

    before = signal.getsignal(signal.SIGINT)
    if callable(before):  # it is not ignored
        signal.signal(signal.SIGINT, lambda number, _: noted.append(number))
    try:
        yield check
    finally:
        signal.signal(signal.SIGINT, before)
    check()


def _end_with(parent: int) -> None:
    """End this worker when the process that started it has ended.

    A killed one tells it nothing, and it would wait for work for ever, with the terminal's output
    still open.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
