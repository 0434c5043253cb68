"""The runtime for threads."""

from __future__ import annotations

import inspect
import logging
import random
import sys
import threading
import time
import traceback
import weakref
from _thread import LockType
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from ._entry import OPENING, RETIRED
from ._locks import reentrant_lock
from ._policy import MAINTENANCE_INTERVAL
from ._runtime import Job, run_sync

if TYPE_CHECKING:
    from ._core import Core
    from ._entry import Entry, Place
    from ._flows import Flows

logger = logging.getLogger("forebay")

#: Seconds a worker without work stays, so that the next job needs no new thread.
LINGER = 5.0

#: Workers that were given up, in each lane, in whose place others are started at once.
MOST_ABANDONED = 16

#: Seconds between two replacements beyond that, at most.
LONGEST_PAUSE = 300.0


PATCHED_LATE = (
    "the pool was opened before gevent or eventlet replaced `threading`, and cannot wait in"
    " greenlets: patch first, or open the pool after that"
)


class Holder:
    """A thread, as it holds connections; it keeps nothing alive that could hold one."""

    __slots__ = ("_name", "_thread", "ident")

    def __init__(self) -> None:
        thread = threading.current_thread()
        self.ident = threading.get_ident()
        self._name = thread.name
        self._thread = weakref.ref(thread)

    @property
    def name(self) -> str:
        """The thread's name: the one it has now, or had at its first use of a pool."""
        thread = self._thread()
        return self._name if thread is None else thread.name

    @property
    def alive(self) -> bool:
        """Whether the thread still runs."""
        thread = self._thread()
        return thread is not None and thread.is_alive()


def thread_own() -> Any:
    """What each thread has for itself: `holder`, the one `Holder` it has in a pool.

    Made with its pool, as the locks are, from what `threading` is then: gevent and eventlet
    replace it, perhaps after this module was imported.
    """

    class Own(threading.local):
        works = False  # whether the thread is one of the pool's own
        holder: Holder | None = None  # while it is made: a signal handler may ask meanwhile

        def __init__(self) -> None:
            self.holder = Holder()

    return Own()


class ThreadWaiter:
    """A client's thread, blocked on a lock of its own: waking it races with nobody."""

    __slots__ = (
        "_gate",
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

    def __init__(self, holder: Any) -> None:
        self.entry: Entry | None = None
        self.conn: Any = None
        self.error: BaseException | None = None
        self.ready = False
        self.since = self.deadline = 0.0
        self.holder = self.claim = self.client = holder
        self._gate = threading.Lock()
        self._gate.acquire()

    async def wait(self, timeout: float | None) -> None:
        """Block until woken or until `timeout` seconds are over."""
        if not sys.is_finalizing():  # nobody is left who could wake us
            self._gate.acquire(True, _bounded(timeout))

    def wake(self) -> None:
        """Let the thread go on; again is harmless."""
        _open_gate(self._gate)


class Threads:
    """Workers and maintenance are daemon threads, started when there is something to do."""

    now = staticmethod(time.monotonic)
    chance = staticmethod(random.random)

    def __init__(self, workers: Callable[[], int]) -> None:
        # Makes each transition of the core one step.  Held for microseconds, never during I/O.
        # Taken by `with`, or by `taking` (see _locks.py): a call of acquire() before a `try` leaves
        # it held when a signal handler raises in between.
        # Reentrant, for what the interpreter runs inside a transition: a finalizer or a signal
        # handler must not wait for its own thread.  That they do not enter the core twice is the
        # business of `inside()` and of `Core.ready`.
        self.lock: Any = reentrant_lock()
        # Of the lanes, and of the start: held while jobs are handed over and threads are started.
        self.desk: Any = reentrant_lock()
        self.own = thread_own()
        # The core says how many; one more joins those that are not answered.
        self._openings = Lane(lambda: workers() + 1, self)
        self._service = Lane(workers, self)
        self._closings = Lane(workers, self)
        # What the user has us call may block for ever: a log, and reconnect_failed.
        self._lines = Lane(lambda: 1, self)
        self._calls = Lane(lambda: 1, self)
        self._maintenance: Maintenance | None = None

    @property
    def outdated(self) -> bool:
        """Whether gevent or eventlet have replaced what the locks were made from."""
        return type(reentrant_lock()) is not type(self.desk)

    def waiter(self) -> ThreadWaiter:
        """A new waiter for the calling thread."""
        if self.outdated:
            raise RuntimeError(PATCHED_LATE)
        return ThreadWaiter(self.own.holder)

    def inside(self, core: Core) -> bool:
        """Whether the calling thread has a lock of the pool."""
        del core
        return bool(self.lock._is_owned() or self.desk._is_owned())

    def move(self) -> None:
        """Nothing: threads belong to no loop."""

    def unbounded_openings(self) -> None:
        """Open as many connections at once as the core orders (null pools)."""
        self._openings.width = lambda: threading.TIMEOUT_MAX

    def spawn(self, key: object, job: Job, place: Place) -> None:
        """Have a worker thread run `job`."""
        opening = place is OPENING
        # Daemon threads have stopped, one perhaps with the lanes' lock; or a greenlet would be
        # taken for the owner of that.
        if sys.is_finalizing() or self.outdated:
            if not opening:  # for that half of what is needed has been torn down
                self._service.run(job)
            return
        lane = self._closings if place is RETIRED else self._service
        (self._openings if opening else lane).put(key, job)

    def tell(self, write: Callable[[], object]) -> None:
        """Write a line; not in a thread of the pool, where a handler that blocks would stop it."""
        if not self.own.works or sys.is_finalizing():
            write()
            return

        async def job() -> None:
            write()

        self._lines.put(job, job)

    def notify(self, key: object, job: Job) -> None:
        """Call what the user wants to be told by, in a thread for nothing else."""
        self._calls.put(key, job)

    def give_up(self, key: object) -> None:
        """Wait no more for the worker that runs the job of `key`; another takes its place."""
        for lane in (self._openings, self._service, self._closings):
            lane.give_up(key)

    @property
    def abandoned(self) -> int:
        """How many workers were given up and are still blocked."""
        lanes = (self._openings, self._service, self._closings)
        return sum(len(lane.abandoned) for lane in lanes)

    def alarm(self, at: float) -> None:
        """Have maintenance run at `at` or earlier."""
        del at  # it runs now, and sees by itself when it is due next
        if self._maintenance is not None:
            self._maintenance.kick()

    async def call(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call what the user gave us."""
        return call_plain(function, *args)

    def start(self, flows: Flows, name: str) -> None:
        """Start the maintenance thread, if it does not run."""
        with self.desk:  # two threads may open the pool at once
            if self._maintenance is None:
                for lane in self._lanes:
                    lane.name = name
                self._maintenance = Maintenance(flows, name, self._lanes, self.own)

    async def stop(self, timeout: float) -> bool:
        """End the threads and wait for them, up to `timeout` seconds in all."""
        deadline = time.monotonic() + timeout
        while not sys.is_finalizing() and (threads := self._running()):
            if time.monotonic() >= deadline:
                return False
            threads[0].join(_bounded(deadline - time.monotonic()))
        return True

    @property
    def _lanes(self) -> tuple[Lane, ...]:
        return (self._openings, self._service, self._closings, self._lines, self._calls)

    def _running(self) -> list[threading.Thread]:
        """Tell all threads to end; returns those that have not yet, but for the caller's own.

        What arrives late is closed by a thread that may not have been there a moment ago.  Who
        calls the user, or writes the log, is not waited for: it may never come back.
        """
        for lane in (self._lines, self._calls):
            lane.stop()
        lanes = (self._openings, self._service, self._closings)
        threads = [thread for lane in lanes for thread in lane.stop()]
        if self._maintenance is not None:
            threads.append(self._maintenance.stop())
        return [t for t in threads if t.is_alive() and t is not threading.current_thread()]


class Lane:
    """Jobs in order of arrival, run by at most `width()` threads."""

    def __init__(self, width: Callable[[], float], runtime: Threads) -> None:
        self.width = width
        self.name = "pool"
        self._jobs: OrderedDict[object, Job] = OrderedDict()
        # Taken by `with self._lock`, never by `with self._changed`: that is a Python function,
        # which a signal handler may leave with the lock held.  Reentrant: see Threads.lock.
        self._lock = runtime.desk
        self._own = runtime.own
        self._runtime = weakref.ref(runtime)
        self._changed = threading.Condition(self._lock)
        self._threads: dict[threading.Thread, None] = {}
        self._running: dict[threading.Thread, object] = {}  # what each of them works on
        self.abandoned: set[threading.Thread] = set()  # workers that nobody waits for
        self._trouble: RuntimeError | None = None  # why no thread could be started
        self._replace_at = 0.0  # when one beyond MOST_ABANDONED may be replaced
        self._started = 0
        self._stopping = False

    def put(self, key: object, job: Job) -> None:
        """Queue a job; again for the same key, before it has begun, changes nothing."""
        with self._lock:
            self._jobs[key] = job
            self._changed.notify()
            self._replace_one()
            self._start_missing()
            alone = not self._threads and _is_ending()
            trouble, self._trouble = self._trouble, None
        if trouble is not None:
            self._tell(logging.WARNING, "%s: cannot start a worker: %s", self.name, trouble)
        while alone and self._jobs:  # nobody else will ever do it
            self.run(self._jobs.popitem(last=False)[1])

    def give_up(self, key: object) -> None:
        """Wait no more for the worker that runs the job of `key`; another takes its place."""
        with self._lock:
            for thread in [t for t, at in self._running.items() if at is key]:
                self.abandoned.add(thread)
                if len(self.abandoned) <= MOST_ABANDONED:
                    self._threads.pop(thread, None)
            self._start_missing()

    def _replace_one(self) -> None:
        """Do without a further blocked worker now and then, so that no lane stands still for good.

        Each pause is twice the last, since what blocks may go on to block.
        """
        now, beyond = time.monotonic(), len(self.abandoned) - MOST_ABANDONED
        blocked = next((t for t in self.abandoned if t in self._threads), None)
        if blocked is not None and now >= self._replace_at:
            self._threads.pop(blocked)
            self._replace_at = now + min(LONGEST_PAUSE, 2.0**beyond)

    def stop(self) -> list[threading.Thread]:
        """Let idle workers go; returns those that run."""
        with self._lock:
            self._stopping = True
            self._changed.notify_all()
            return list(self._threads)

    def _start_missing(self) -> None:
        """Start a worker if the jobs are more than the workers that wait, or are on their way."""
        free = len(self._threads.keys() - self._running.keys())
        if free < len(self._jobs) and len(self._threads) < self.width():
            self._start()

    def _start(self) -> None:
        self._started += 1
        thread = threading.Thread(
            target=self._work, name=f"{self.name}-worker-{self._started}", daemon=True
        )
        try:
            self._threads[thread] = None
            thread.start()
        except RuntimeError as error:
            # No thread to be had.  The job stays queued, and maintenance will ask again.
            self._threads.pop(thread, None)
            if not _is_ending():
                self._trouble = error
        except BaseException:
            self._threads.pop(thread, None)
            raise

    def _work(self) -> None:
        this = threading.current_thread()
        try:
            self._own.works = True
            while (job := self._next(this)) is not None:
                self.run(job)
                del job
        finally:
            with self._lock:
                self._end(this)

    def _end(self, thread: threading.Thread) -> None:
        """Forget a worker."""
        self._threads.pop(thread, None)
        self._running.pop(thread, None)
        self.abandoned.discard(thread)

    def run(self, job: Job) -> None:
        """Run a job in this thread; whatever a callback raises, the next job has its worker."""
        try:
            run_sync(job)
        except BaseException:
            # As text: a record that keeps the frames would keep what they hold.
            text, error = "%s: error in a worker:\n%s", traceback.format_exc()
            self._tell(logging.ERROR, text, self.name, error)

    def _tell(self, level: int, *line: object) -> None:
        runtime = self._runtime()
        if runtime is not None:
            runtime.tell(partial(logger.log, level, *line))

    def _next(self, this: threading.Thread) -> Job | None:
        """The next job for a worker; `None` if there is none, or its place was taken."""
        with self._lock:
            self._running.pop(this, None)
            self.abandoned.discard(this)
            if this not in self._threads:
                return None
            while not self._jobs:
                woken = not self._stopping and self._changed.wait(LINGER)
                if not woken and not self._jobs:
                    self._end(this)
                    return None
            self._running[this], job = self._jobs.popitem(last=False)
            return job


class Maintenance:
    """The thread that does what time makes necessary; holds the pool weakly while it sleeps."""

    def __init__(self, flows: Flows, name: str, lanes: tuple[Lane, ...], own: Any) -> None:
        self._gate = threading.Lock()
        self._own = own
        self._stopping = False
        self._lanes = lanes
        self._flows = weakref.ref(flows, partial(_open_gate, self._gate))
        self._thread = threading.Thread(target=self._run, name=f"{name}-maintenance", daemon=True)
        try:
            if not sys.is_finalizing():
                self._thread.start()
        except RuntimeError:
            if not _is_ending():
                raise

    def kick(self) -> None:
        """Run now."""
        _open_gate(self._gate)

    def stop(self) -> threading.Thread:
        """End; returns the thread, for the caller to join."""
        self._stopping = True
        self.kick()
        return self._thread

    def _run(self) -> None:
        self._own.works = True
        pause = 0.0
        while not self._stopping:
            self._gate.acquire(True, _bounded(pause))
            flows = self._flows()
            if flows is None:  # collected while open
                for lane in self._lanes:
                    lane.stop()
                return
            try:
                pause = flows.maintain() - flows.runtime.now()
            except Exception:
                flows.warn("error in maintenance: %s", traceback.format_exc())
                pause = MAINTENANCE_INTERVAL
            del flows


def _is_ending() -> bool:
    """Whether the main thread has ended: from 3.12 on no thread can be started any more.

    A little later, when `sys.is_finalizing()`, daemon threads have stopped for good; before 3.12
    one that is started then waits for itself for ever.
    """
    return sys.is_finalizing() or not threading.main_thread().is_alive()


def call_plain(function: Callable[..., Any], *args: Any) -> Any:
    """Call what the user gave us, which must be no coroutine function."""
    result = function(*args)
    if inspect.iscoroutine(result):
        result.close()
        raise TypeError(
            f"{function} is a coroutine function: a pool for threads needs a plain one"
            " (or use the Async pool)"
        )
    return result


def _open_gate(gate: LockType, _: object = None) -> None:
    """Release a gate that may be open already; also a weakref callback, hence `_`."""
    with suppress(RuntimeError):
        gate.release()


def _bounded(timeout: float | None) -> float:
    """A timeout that `lock.acquire` takes: -1 is none."""
    return -1 if timeout is None else max(0.0, min(timeout, threading.TIMEOUT_MAX))
