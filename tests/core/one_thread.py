"""The runtime for threads with all its threads played, one after the other, by a single one.

`forebay._threads` is the shipped one; what it takes from `threading` is replaced, so that a
started thread runs when the test says so, and a lock that would block asks the test what to do.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, Self
from unittest import mock

from forebay import ConnectionPool
from forebay.testing import FakeDriver, ManualClock, fake_pool

Action = Callable[[], object]


class Stage:
    """Plays the threads, moves the clock, and says what happens while a client waits."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.driver = FakeDriver()
        self.meanwhile: list[Action] = []  # what others do while a client waits, in order
        self.started: list[Thread] = []
        self.current: Any = threading.main_thread()
        self.locks: list[RLock] = []
        self.absent: list[Any] = []  # clients in the queue that do not come for what they wait for
        self.handling = False  # a signal handler runs
        self.shared: list[Any] = []  # connections that an action has, for a handler

    @contextmanager
    def set(self) -> Iterator[Stage]:
        """Replace what the runtime takes from `threading`, for pools that are made meanwhile."""
        played = SimpleNamespace(
            TIMEOUT_MAX=threading.TIMEOUT_MAX,
            Condition=Condition,
            Lock=lambda: Lock(self),
            RLock=lambda: RLock(self),
            Thread=lambda **arguments: Thread(self, **arguments),
            current_thread=lambda: self.current,
            main_thread=threading.main_thread,
            get_ident=self._ident,
            local=type("StageLocal", (Local,), {"_stage": self}),
        )
        with (
            mock.patch("forebay._threads.threading", played),
            mock.patch("forebay._locks.threading", played),
        ):
            yield self

    def pool(self, pool_class: type[ConnectionPool[Any]] = ConnectionPool, **options: Any) -> Any:
        """Make a pool over the fake driver, on the manual clock."""
        return fake_pool(pool_class, self.driver, self.clock, **options)

    def _ident(self) -> int:
        main = self.current is threading.main_thread()
        return threading.get_ident() if main else id(self.current)

    def play(self) -> None:
        """Let every started worker do all there is to do."""
        while self.started:
            thread = self.started.pop(0)
            before, self.current = self.current, thread
            try:
                thread.target()
            finally:
                self.current = before
                thread.alive = False

    def settle(self, pool: Any, rounds: int = 4) -> None:
        """Let time pass, maintenance run and workers work until nothing is left to do."""
        for _ in range(rounds):
            self.play()
            self.clock.advance(2.0)
            pool._forebay.flows.maintain()
        self.play()

    def wait(self, timeout: float) -> None:
        """A client waits: let others act, or else let its time pass."""
        if self.handling:
            if any(lock.entered for lock in self.locks):
                raise AssertionError("a signal handler waits while its thread keeps others out")
            self.play() if self.started else self.clock.advance(max(0.0, timeout))
        elif self.meanwhile:
            self.meanwhile.pop(0)()
        elif timeout < 0:
            raise AssertionError("a client waits for ever")
        else:
            self.clock.advance(timeout)


class Lock:
    """A lock that lets the stage go on where a thread would block."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._held = False

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        """Take the lock; while it is held, others act or time passes."""
        deadline = self._stage.clock.now() + timeout
        while self._held:
            left = deadline - self._stage.clock.now()
            if not blocking or (timeout >= 0 and left <= 0):
                return False
            self._stage.wait(left if timeout >= 0 else -1)
        self._held = True
        return True

    def release(self) -> None:
        """Give the lock back."""
        if not self._held:
            raise RuntimeError("release unlocked lock")
        self._held = False

    def locked(self) -> bool:
        """Whether it is held."""
        return self._held


class RLock:
    """A lock that its own thread may take again."""

    reentrant = True

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._owner: Any = None
        self._count = 0
        stage.locks.append(self)

    @property
    def entered(self) -> bool:
        """Whether it is held."""
        return self._count > 0

    def _is_owned(self) -> bool:
        """Whether it is held by the thread that is played."""
        return self.entered and self._owner is self._stage.current

    def acquire(self) -> bool:
        """Take the lock, which is free or the thread's own."""
        if self.entered and not (self.reentrant and self._is_owned()):
            raise AssertionError("the only thread blocks on a lock")
        self._owner = self._stage.current
        self._count += 1
        return True

    def release(self) -> None:
        """Give the lock back."""
        self._count -= 1

    __enter__ = acquire

    def __exit__(self, *exc: object) -> None:
        self.release()


class Local:
    """What each played thread has for itself."""

    _stage: Stage

    def __new__(cls) -> Self:
        self = object.__new__(cls)
        object.__setattr__(self, "_homes", {})
        return self

    def __getattribute__(self, name: str) -> Any:
        return object.__getattribute__(_at_home(self), name)

    def __setattr__(self, name: str, value: object) -> None:
        object.__setattr__(_at_home(self), name, value)


def _at_home(local: Local) -> Local:
    """Let `local` have the attributes that the played thread has given it."""
    homes = object.__getattribute__(local, "_homes") or _homes(local)
    this = type(local)._stage.current
    new = this not in homes
    if new:
        homes[this] = {"_homes": homes}
    object.__setattr__(local, "__dict__", homes[this])
    if new:
        local.__init__()  # type: ignore[misc]
    return local


def _homes(local: Local) -> dict[Any, dict[str, Any]]:
    homes: dict[Any, dict[str, Any]] = {}
    object.__setattr__(local, "_homes", homes)
    return homes


class Condition:
    """A condition on which nobody ever waits: workers without work go home."""

    def __init__(self, lock: RLock) -> None:
        self._lock = lock

    def wait(self, timeout: float | None = None) -> bool:  # noqa: ARG002
        """Return at once, as if the time were over."""
        return False

    def notify(self) -> None:
        """Wake nobody: nobody waits."""

    def notify_all(self) -> None:
        """Wake nobody: nobody waits."""


class Thread:
    """A thread that runs when the stage plays it; maintenance is called by `settle()`."""

    def __init__(self, stage: Stage, *, target: Action, name: str, daemon: bool) -> None:
        assert daemon, "an unclosed pool must not delay the exit of the program"
        self._stage = stage
        self.target = target
        self.name = name
        self.alive = False

    def start(self) -> None:
        """Be played later."""
        self.alive = True
        if not self.name.endswith("-maintenance"):
            self._stage.started.append(self)

    def join(self, timeout: float | None = None) -> None:  # noqa: ARG002
        """Be played now."""
        self._stage.play()
        self.alive = False

    def is_alive(self) -> bool:
        """Whether it was started and has not ended."""
        return self.alive
