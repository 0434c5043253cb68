"""The runtime for threads."""

from __future__ import annotations

import inspect
import logging
import random
import threading
import time
import traceback
import weakref
from _thread import LockType, RLock, allocate_lock
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from ._policy import MAINTENANCE_INTERVAL
from ._runtime import Job, run_sync

if TYPE_CHECKING:
    from ._entry import Entry
    from ._flows import Flows

logger = logging.getLogger("forebay")

#: Seconds a worker without work stays, so that the next job needs no new thread.
LINGER = 5.0


class ThreadWaiter:
    """A client's thread, blocked on a lock of its own: waking it races with nobody."""

    __slots__ = ("_gate", "conn", "entry", "error", "ready", "since")

    def __init__(self) -> None:
        self.entry: Entry | None = None
        self.conn: Any = None
        self.error: BaseException | None = None
        self.ready = False
        self.since = 0.0
        self._gate = allocate_lock()
        self._gate.acquire()

    async def wait(self, timeout: float | None) -> None:
        """Block until woken or until `timeout` seconds are over."""
        self._gate.acquire(True, _bounded(timeout))

    def wake(self) -> None:
        """Let the thread go on; again is harmless."""
        _open_gate(self._gate)


class Threads:
    """Workers and maintenance are daemon threads, started when there is something to do."""

    waiter = ThreadWaiter
    now = staticmethod(time.monotonic)
    chance = staticmethod(random.random)

    def __init__(self, workers: Callable[[], int]) -> None:
        # Makes each transition of the core one step.  Held for microseconds, never during I/O.
        # Always taken by `with`: acquire/try/finally leaves it held when a signal handler raises.
        # Reentrant, for a finalizer that the collector runs inside a transition and that returns
        # its connection: it must neither wait for its own thread nor enter the core (rule 8).
        self.lock = RLock()
        self._starting = allocate_lock()  # two threads may open the pool at once
        self._openings = Lane(workers)
        self._service = Lane(workers)
        self._maintenance: Maintenance | None = None

    def unbounded_openings(self) -> None:
        """Open as many connections at once as the core orders (null pools)."""
        self._openings.width = lambda: threading.TIMEOUT_MAX

    def spawn(self, key: object, job: Job, *, opening: bool) -> None:
        """Have a worker thread run `job`."""
        (self._openings if opening else self._service).put(key, job)

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
        with self._starting:
            if self._maintenance is None:
                self._openings.name = self._service.name = name
                self._maintenance = Maintenance(flows, name, (self._openings, self._service))

    async def stop(self, timeout: float) -> bool:
        """End the threads and wait for them, up to `timeout` seconds in all."""
        deadline = time.monotonic() + timeout
        while threads := self._running():
            if time.monotonic() >= deadline:
                return False
            threads[0].join(_bounded(deadline - time.monotonic()))
        return True

    def _running(self) -> list[threading.Thread]:
        """Tell all threads to end; returns those that have not yet, but for the caller's own.

        What arrives late is closed by a thread that may not have been there a moment ago.
        """
        threads = [*self._openings.stop(), *self._service.stop()]
        if self._maintenance is not None:
            threads.append(self._maintenance.stop())
        return [t for t in threads if t.is_alive() and t is not threading.current_thread()]


class Lane:
    """Jobs in order of arrival, run by at most `width()` threads."""

    def __init__(self, width: Callable[[], float]) -> None:
        self.width = width
        self.name = "pool"
        self._jobs: OrderedDict[object, Job] = OrderedDict()
        # Taken by `with self._lock`, never by `with self._changed`: that is a Python function,
        # which a signal handler may leave with the lock held.  Reentrant: see Threads.lock.
        self._lock: Any = RLock()
        self._changed = threading.Condition(self._lock)
        self._threads: dict[threading.Thread, None] = {}
        self._waiting = 0
        self._started = 0
        self._stopping = False

    def put(self, key: object, job: Job) -> None:
        """Queue a job; again for the same key, before it has begun, changes nothing."""
        with self._lock:
            self._jobs[key] = job
            if self._waiting >= len(self._jobs):
                self._changed.notify()
            elif len(self._threads) < self.width():
                self._start()

    def stop(self) -> list[threading.Thread]:
        """Let idle workers go; returns those that run."""
        with self._lock:
            self._stopping = True
            self._changed.notify_all()
            return list(self._threads)

    def _start(self) -> None:
        self._started += 1
        thread = threading.Thread(
            target=self._work, name=f"{self.name}-worker-{self._started}", daemon=True
        )
        self._threads[thread] = None
        try:
            thread.start()
        except RuntimeError as error:
            # No thread to be had.  The job stays queued, and maintenance will ask again.
            self._threads.pop(thread, None)
            logger.warning("%s: cannot start a worker: %s", self.name, error)
        except BaseException:
            self._threads.pop(thread, None)
            raise

    def _work(self) -> None:
        try:
            while (job := self._next()) is not None:
                self._run(job)
                del job
        finally:
            with self._lock:
                self._threads.pop(threading.current_thread(), None)

    def _run(self, job: Job) -> None:
        """Run a job; whatever a callback raises, the next job has its worker."""
        try:
            run_sync(job())
        except BaseException:
            # As text: a record that keeps the frames would keep what they hold.
            logger.error("%s: error in a worker:\n%s", self.name, traceback.format_exc())

    def _next(self) -> Job | None:
        with self._lock:
            while not self._jobs:
                self._waiting += 1
                try:
                    woken = not self._stopping and self._changed.wait(LINGER)
                finally:
                    self._waiting -= 1
                if not woken and not self._jobs:
                    self._threads.pop(threading.current_thread(), None)
                    return None
            return self._jobs.popitem(last=False)[1]


class Maintenance:
    """The thread that does what time makes necessary; holds the pool weakly while it sleeps."""

    def __init__(self, flows: Flows, name: str, lanes: tuple[Lane, ...]) -> None:
        self._gate = allocate_lock()
        self._stopping = False
        self._lanes = lanes
        self._flows = weakref.ref(flows, partial(_open_gate, self._gate))
        self._thread = threading.Thread(target=self._run, name=f"{name}-maintenance", daemon=True)
        self._thread.start()

    def kick(self) -> None:
        """Run now."""
        _open_gate(self._gate)

    def stop(self) -> threading.Thread:
        """End; returns the thread, for the caller to join."""
        self._stopping = True
        self.kick()
        return self._thread

    def _run(self) -> None:
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
                logger.error("%s: error in maintenance:\n%s", flows.name, traceback.format_exc())
                pause = MAINTENANCE_INTERVAL
            del flows


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
