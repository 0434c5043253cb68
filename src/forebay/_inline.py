"""The runtime in which callers do all the work: no threads, nothing happens between two calls."""

from __future__ import annotations

import random
import time
import weakref
from collections import deque
from collections.abc import Callable
from functools import partial
from math import inf
from typing import TYPE_CHECKING, Any

from ._locks import reentrant_lock
from ._runtime import Job, run_sync
from ._threads import ThreadWaiter, call_plain, thread_own

if TYPE_CHECKING:
    from ._core import Core
    from ._entry import Place
    from ._flows import Flows

#: Seconds between two rounds of maintenance, which a client that waits makes meanwhile.
ROUND = 1.0


class InlineWaiter(ThreadWaiter):
    """A client's thread, which does the maintenance while it waits."""

    __slots__ = ("_maintain",)

    def __init__(self, holder: Any, maintain: Callable[[], object]) -> None:
        super().__init__(holder)
        self._maintain = maintain

    async def wait(self, timeout: float | None) -> None:
        """Block until woken or until `timeout` seconds are over."""
        deadline = inf if timeout is None else time.monotonic() + timeout
        while not self._gate.acquire(True, max(0.0, min(ROUND, deadline - time.monotonic()))):
            if time.monotonic() >= deadline:
                return
            self._maintain()


class Inline:
    """Connections are opened and closed, and maintenance is done, by whoever calls the pool.

    For pools that fail at once: an error of connecting is the caller's.  A connection that is
    opened or closed for a client that waits costs the time of the client that gave it cause.
    """

    now = staticmethod(time.monotonic)
    chance = staticmethod(random.random)

    def __init__(self, maintain: Callable[[], object] | None = None) -> None:
        """Make one; `maintain` takes the place of the flows' own maintenance.

        It must not keep its pool alive.
        """
        # Held for microseconds, never during I/O; taken by `with` or by `taking`; reentrant for
        # what the interpreter runs inside a transition: all as in _threads.py.
        self.lock: Any = reentrant_lock()
        self.own = thread_own()
        self._maintain = maintain

    def waiter(self) -> InlineWaiter:
        """A new waiter for the calling thread."""
        assert self._maintain is not None, "the pool has not been opened"
        return InlineWaiter(self.own.holder, self._maintain)

    def inside(self, core: Core) -> bool:
        """Whether the calling thread has the pool's lock."""
        del core
        return bool(self.lock._is_owned())

    def spawn(self, key: object, job: Job, place: Place) -> None:
        """Run `job` now; what it spawns itself comes after it, not inside it."""
        del key, place
        jobs: deque[Job] | None = getattr(self.own, "jobs", None)
        if jobs is not None:
            jobs.append(job)
            return
        self.own.jobs = jobs = deque([job])
        try:
            while jobs:
                job = jobs.popleft()
                run_sync(job)
        finally:  # what an interrupt leaves undone stays ordered, and maintenance asks again
            self.own.jobs = None

    def move(self) -> None:
        """Nothing: threads belong to no loop."""

    outdated = False

    def tell(self, write: Callable[[], object]) -> None:
        """Write a line."""
        write()

    def notify(self, key: object, job: Job) -> None:
        """Call what the user wants to be told by."""
        del key
        run_sync(job)

    abandoned = 0

    def give_up(self, key: object) -> None:
        """Nothing: whoever is blocked is the caller itself."""

    def alarm(self, at: float) -> None:
        """Nothing: maintenance is done by the next client that has to wait or to open."""

    async def call(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call what the user gave us."""
        return call_plain(function, *args)

    def start(self, flows: Flows, name: str) -> None:
        """Know whose maintenance to do."""
        del name
        if self._maintain is None:
            self._maintain = partial(_maintain, weakref.ref(flows))

    async def stop(self, timeout: float) -> bool:
        """Nothing is left to end."""
        del timeout
        return True


def _maintain(flows: weakref.ref[Flows]) -> None:
    alive = flows()
    if alive is not None:
        alive.maintain()
