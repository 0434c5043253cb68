"""The runtime for asyncio.  It has no lock: no transition of the core contains an `await`."""

from __future__ import annotations

import asyncio
import inspect
import logging
import random
import time
import traceback
import weakref
from collections import OrderedDict
from collections.abc import Callable
from contextlib import nullcontext
from contextvars import Context, copy_context
from math import inf
from typing import TYPE_CHECKING, Any

from ._policy import MAINTENANCE_INTERVAL
from ._runtime import Job

if TYPE_CHECKING:
    from ._entry import Entry
    from ._flows import Flows


logger = logging.getLogger("forebay")


class AsyncWaiter:
    """A client's task, waiting for a future of its own."""

    __slots__ = ("__weakref__", "_future", "conn", "entry", "error", "ready", "since")

    def __init__(self) -> None:
        self.entry: Entry | None = None
        self.conn: Any = None
        self.error: BaseException | None = None
        self.ready = False
        self.since = 0.0
        self._future: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def wait(self, timeout: float | None) -> None:
        """Suspend until woken or until `timeout` seconds are over."""
        timer = None
        if timeout is not None:
            timer = self._future.get_loop().call_later(timeout, self.wake)
        try:
            await self._future
        finally:
            if timer is not None:
                timer.cancel()

    def wake(self) -> None:
        """Let the task go on; again is harmless."""
        if not self._future.done():
            self._future.set_result(None)


class Asyncio:
    """Workers are tasks, maintenance is a timer of the loop."""

    waiter = AsyncWaiter
    now = staticmethod(time.monotonic)
    chance = staticmethod(random.random)

    def __init__(self, workers: Callable[[], int]) -> None:
        self.lock = nullcontext()
        self.loop: asyncio.AbstractEventLoop | None = None
        self._openings = Lane(workers)
        self._service = Lane(workers)
        self._flows: Callable[[], Flows | None] = lambda: None
        self._timer: asyncio.TimerHandle | None = None
        self._context = Context()  # of who opened the pool

    def unbounded_openings(self) -> None:
        """Open as many connections at once as the core orders (null pools)."""
        self._openings.width = lambda: inf

    def spawn(self, key: object, job: Job, *, opening: bool) -> None:
        """Have a task run `job`."""
        (self._openings if opening else self._service).put(key, job)

    def alarm(self, at: float) -> None:
        """Have maintenance run at `at` or earlier."""
        if self.loop is None:
            return
        if self._timer is not None:
            self._timer.cancel()
        this = weakref.ref(self)  # the loop does not keep the pool alive
        pause = max(0.0, at - self.now())
        self._timer = self.loop.call_later(pause, lambda: _maintain(this), context=self._context)

    def maintain(self) -> None:
        """Do what time makes necessary, and come back when there is more."""
        flows = self._flows()
        if flows is None:
            return
        due = self.now() + MAINTENANCE_INTERVAL
        try:
            due = flows.maintain()
        except Exception:
            logger.error("%s: error in maintenance:\n%s", flows.name, traceback.format_exc())
        self.alarm(due)

    async def call(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call what the user gave us, and await what it returns."""
        result = function(*args)
        return await result if inspect.isawaitable(result) else result

    def start(self, flows: Flows, name: str) -> None:
        """Bind to the running loop; the first alarm starts the timer."""
        self.loop = asyncio.get_running_loop()
        # Not that of the request that happens to order a connection: it would outlive its request.
        self._context = self._openings.context = self._service.context = copy_context()
        self._openings.name = self._service.name = name
        self._flows = weakref.ref(flows)

    async def stop(self, timeout: float) -> bool:
        """Cancel what is being opened and wait for the rest, up to `timeout` seconds."""
        self._flows = lambda: None
        if self._timer is not None:
            self._timer.cancel()
        self._openings.cancel()
        deadline = self.now() + timeout
        while tasks := {*self._openings.tasks, *self._service.tasks} - {asyncio.current_task()}:
            if self.now() >= deadline:
                return False
            await asyncio.wait(tasks, timeout=deadline - self.now())
        return True


class Lane:
    """Jobs in order of arrival, run by at most `width()` tasks at a time."""

    def __init__(self, width: Callable[[], float]) -> None:
        self.width = width
        self.name = "pool"
        self.context = Context()
        self.tasks: set[asyncio.Task[None]] = set()
        self._jobs: OrderedDict[object, Job] = OrderedDict()
        self._started = 0

    def put(self, key: object, job: Job) -> None:
        """Queue a job; again for the same key, before it has begun, changes nothing."""
        self._jobs[key] = job
        self._fill()

    def cancel(self) -> None:
        """Cancel what runs and forget what has not begun."""
        self._jobs.clear()
        current = asyncio.current_task()
        for task in self.tasks:
            if task is not current:
                task.cancel()

    def _fill(self) -> None:
        while self._jobs and len(self.tasks) < self.width():
            _, job = self._jobs.popitem(last=False)
            self._started += 1
            name = f"{self.name}-worker-{self._started}"
            context = self.context.copy()
            task = asyncio.create_task(job(), name=name, context=context)
            self.tasks.add(task)
            task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self.tasks.discard(task)
        self._fill()


def _maintain(ref: Callable[[], Asyncio | None]) -> None:
    runtime = ref()
    if runtime is not None:
        runtime.maintain()
