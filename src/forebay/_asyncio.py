"""The runtime for asyncio.  It has no lock: no transition of the core contains an `await`."""

from __future__ import annotations

import asyncio
import inspect
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

from ._core import INSIDE
from ._entry import OPENING, RETIRED
from ._policy import MAINTENANCE_INTERVAL
from ._runtime import Job
from ._stacks import called_from

if TYPE_CHECKING:
    from ._core import Core
    from ._entry import Entry, Place
    from ._flows import Flows


class AsyncWaiter:
    """A client's task, waiting for a future of its own."""

    __slots__ = (
        "__weakref__",
        "_future",
        "claim",
        "client",
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
        self.claim = None if task is None else id(task)  # names may be many tasks'
        self.client = None if task is None else weakref.ref(task)
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
        self._closings = Lane(workers)
        self._calls = Lane(lambda: 1)  # what the user wants to be told by
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

    def spawn(self, key: object, job: Job, place: Place) -> None:
        """Have a task run `job`; not while resting: it stays ordered, and is asked for again."""
        if self._rests():
            return
        lane = self._closings if place is RETIRED else self._service
        (self._openings if place is OPENING else lane).put(key, job)

    def inside(self, core: Core) -> bool:
        """Whether a transition of `core` is under way further up in the stack."""
        return core.ready is INSIDE and called_from(core)

    outdated = False

    def tell(self, write: Callable[[], object]) -> None:
        """Write a line."""
        write()

    def notify(self, key: object, job: Job) -> None:
        """Call what the user wants to be told by, in a task for nothing else."""
        if not self._rests():
            self._calls.put(key, job)

    def _rests(self) -> bool:
        self._resting = self._resting or self._is_ending()
        return self._resting

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
        return any(task in lane.tasks for lane in self._lanes)

    @property
    def _lanes(self) -> tuple[Lane, ...]:
        return (self._openings, self._service, self._closings, self._calls)

    def give_up(self, key: object) -> None:
        """Wait no more for the task that runs the job of `key`; another takes its place."""
        for lane in self._lanes:
            lane.give_up(key)

    @property
    def abandoned(self) -> int:
        """How many tasks were given up and have not ended."""
        return sum(len(lane.abandoned) for lane in self._lanes)

    def alarm(self, at: float) -> None:
        """Have maintenance run at `at` or earlier."""
        if self._timer is not None:
            self._timer.cancel()
        if self._rests() or self.loop is None:
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
            flows.warn("error in maintenance: %s", traceback.format_exc())
        self.alarm(due)

    async def call(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call what the user gave us, and await what it returns."""
        result = function(*args)
        return await result if inspect.isawaitable(result) else result

    def start(self, flows: Flows, name: str) -> None:
        """Bind to the running loop; the first alarm starts the timer."""
        self.loop = asyncio.get_running_loop()
        # Not that of the request that happens to order a connection: it would outlive its request.
        self._context = copy_context()
        for lane in self._lanes:
            lane.context, lane.name, lane.cut_short = self._context, name, self._go_on
        self._flows = weakref.ref(flows)

    def move(self) -> None:
        """Go on in the running loop: the one that the pool was opened in does not run any more.

        Its tasks may never go on; the core is told to do without them.
        """
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for lane in self._lanes:
            lane.leave()
        self.loop = asyncio.get_running_loop()
        self._resting = False

    def _go_on(self) -> None:
        """A worker was cancelled; those who wait are served all the same."""
        flows = self._flows()
        if flows is not None and flows.core.waiting:
            self._resting = False
            self.alarm(self.now())

    async def stop(self, timeout: float) -> bool:
        """Cancel what is being opened and wait for the rest, up to `timeout` seconds."""
        self._flows = lambda: None
        self._stopping = True
        if self._timer is not None:
            self._timer.cancel()
        self._openings.cancel()
        deadline = self.now() + timeout
        lanes = (self._openings, self._service, self._closings)
        while tasks := {t for lane in lanes for t in lane.tasks} - {asyncio.current_task()}:
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
        self.cut_short: Callable[[], None] = lambda: None  # called when a task was cancelled
        self._jobs: OrderedDict[object, Job] = OrderedDict()
        self._started = 0
        self._filling = False

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

    def leave(self) -> None:
        """Forget all tasks and jobs: they belong to a loop that does not run."""
        self._jobs.clear()
        tasks = [*self.tasks]
        self.tasks.clear()
        for task in tasks:
            if not task.get_loop().is_closed():
                task.cancel()  # when that loop goes on, it ends

    def _fill(self) -> None:
        if self._filling:  # in a task that has begun at once (eager tasks): the loop below goes on
            return
        self._filling = True
        try:
            while len(self.tasks) < self.width() and (job := self._next()):
                self._start(*job)
        finally:
            self._filling = False

    def _next(self) -> tuple[object, Job] | None:
        """The next job, if there is one: a signal handler that closes the pool takes them away."""
        try:
            return self._jobs.popitem(last=False)
        except KeyError:
            return None

    def _start(self, key: object, job: Job) -> None:
        self._started += 1
        name = f"{self.name}-worker-{self._started}"
        task = asyncio.create_task(job(), name=name, context=self.context.copy())
        if not task.done():
            self.tasks[task] = key
            task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        cut_short = task.cancelled() and task in self.tasks
        self.tasks.pop(task, None)
        self.abandoned.discard(task)
        if cut_short:
            self._jobs.clear()  # see Asyncio._resting; they stay ordered
            self.cut_short()
        self._fill()


def _maintain(ref: Callable[[], Asyncio | None]) -> None:
    runtime = ref()
    if runtime is not None:
        runtime.maintain()
