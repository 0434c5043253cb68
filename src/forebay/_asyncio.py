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

    __slots__ = (
        "__weakref__",
        "_future",
        "claim",
        "conn",
        "deadline",
        "entry",
        "error",
        "holder",
        "ready",
        "since",
    )

    def __init__(self) -> None:
        self.entry: Entry | None = None
        self.conn: Any = None
        self.error: BaseException | None = None
        self.ready = False
        self.since = self.deadline = 0.0
        task = asyncio.current_task()
        self.holder = None if task is None else task.get_name()
        self.claim = self.holder
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

    now = staticmethod(time.monotonic)
    chance = staticmethod(random.random)

    def __init__(self, workers: Callable[[], int]) -> None:
        self.lock = nullcontext()
        self.loop: asyncio.AbstractEventLoop | None = None
        # The core says how many; one more joins those that are not answered.
        self._openings = Lane(lambda: workers() + 1)
        self._service = Lane(workers)
        self._flows: Callable[[], Flows | None] = lambda: None
        self._timer: asyncio.TimerHandle | None = None
        self._context = Context()  # of who opened the pool
        # A worker was cancelled, and not by the pool: the loop is about to end, as in
        # asyncio.run(), and would complain of tasks that begin after that.
        self._resting = False
        self._stopping = False  # it is the pool that cancels its workers

    def unbounded_openings(self) -> None:
        """Open as many connections at once as the core orders (null pools)."""
        self._openings.width = lambda: inf

    def spawn(self, key: object, job: Job, *, opening: bool) -> None:
        """Have a task run `job`; not while resting: it stays ordered, and is asked for again."""
        self._resting = self._resting or self._is_ending()
        if self._resting:
            return
        (self._openings if opening else self._service).put(key, job)

    def waiter(self) -> AsyncWaiter:
        """A new waiter for the calling client, for whom the pool works again."""
        if self._resting:
            self._resting = False
            self.alarm(self.now())
        return AsyncWaiter()

    def _is_ending(self) -> bool:
        if self.loop is None or self.loop.is_closed():
            return True  # or it has ended: the garbage collector closes what was suspended in it
        task = asyncio.current_task(self.loop)
        if self._stopping or task is None or not task.cancelling():
            return False
        return self._is_worker(task)

    def _is_worker(self, task: asyncio.Task[Any]) -> bool:
        return task in self._openings.tasks or task in self._service.tasks

    def give_up(self, key: object) -> None:
        """Wait no more for the task that runs the job of `key`; another takes its place."""
        self._openings.give_up(key)
        self._service.give_up(key)

    @property
    def abandoned(self) -> int:
        """How many tasks were given up and have not ended."""
        return len(self._openings.abandoned) + len(self._service.abandoned)

    def alarm(self, at: float) -> None:
        """Have maintenance run at `at` or earlier."""
        if self._timer is not None:
            self._timer.cancel()
        self._resting = self._resting or self._is_ending()
        if self.loop is None or self._resting:
            return
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
        self._stopping = True
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
        self.tasks: dict[asyncio.Task[None], object] = {}  # and what each of them works on
        self.abandoned: set[asyncio.Task[None]] = set()  # tasks that nobody waits for
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

    def give_up(self, key: object) -> None:
        """Cancel the task that runs the job of `key`, and wait no more for it."""
        for task in [task for task, at in self.tasks.items() if at is key]:
            del self.tasks[task]
            self.abandoned.add(task)
            task.cancel()
        self._fill()

    def _fill(self) -> None:
        while self._jobs and len(self.tasks) < self.width():
            key, job = self._jobs.popitem(last=False)
            self._started += 1
            name = f"{self.name}-worker-{self._started}"
            context = self.context.copy()
            task = asyncio.create_task(job(), name=name, context=context)
            self.tasks[task] = key
            task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        if task.cancelled() and task in self.tasks:
            self._jobs.clear()  # see Asyncio._resting; they stay ordered
        self.tasks.pop(task, None)
        self.abandoned.discard(task)
        self._fill()


def _maintain(ref: Callable[[], Asyncio | None]) -> None:
    runtime = ref()
    if runtime is not None:
        runtime.maintain()
