"""The lock that makes a transition one step: reentrant, and safe from signal handlers."""

from __future__ import annotations

import _thread
import sys
import threading
from collections.abc import Iterator
from itertools import repeat, starmap
from typing import Any

#: CPython 3.14 looks for signals when `__enter__` has returned, before the block is protected: what
#: a handler raises there leaves the lock taken for ever (python/cpython#148874; in a tight loop 57
#: of 100 times; never in 3.11 to 3.13 and 3.15).
UNSAFE = sys.version_info[:2] == (3, 14)


class SafeLock(_thread.RLock):  # type: ignore[misc] # final for who types it, not at run time
    """An RLock whose `with` takes it by an iterator in C.

    The interpreter looks for signals at the start of a function and after a call, but not when a
    loop asks an iterator for its next value, nor when a function written in Python returns.
    """

    __slots__ = ("_taking",)

    def __init__(self) -> None:
        self._taking = taking(super())

    def __enter__(self) -> bool:  # type: ignore[override]
        for taken in self._taking:
            return taken
        raise AssertionError("the iterator never ends")


def taking(lock: Any) -> Iterator[bool]:
    """An iterator that takes `lock` with each step, for the hot path; any thread may use it.

    At little more than half the price of `with lock`, and as safe: no signal handler runs between
    the step and the `try` (docs/decisions/0015)::

        for _ in taking_the_lock:
            try:
                ...  # one transition
            finally:
                lock.release()
            break
    """
    return starmap(lock.acquire, repeat(()))


def reentrant_lock() -> Any:
    """A lock of the kind that `threading` has now: gevent and eventlet put others in its place."""
    lock = threading.RLock()
    return SafeLock() if UNSAFE and isinstance(lock, _thread.RLock) else lock
