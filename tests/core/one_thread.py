"""The runtime for threads with all its threads played, one after the other, by a single one.

`forebay._threads` is the shipped one; what it takes from `threading` is replaced, so that a
started thread runs when the test says so, and a lock that would block asks the test what to do.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
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
        self.locks: list[Lock] = []

    @contextmanager
    def set(self) -> Iterator[Stage]:
        """Replace what the runtime takes from `threading`, for pools that are made meanwhile."""
        played = SimpleNamespace(
            TIMEOUT_MAX=threading.TIMEOUT_MAX,
            Condition=lambda lock=None: Condition(lock or Lock(self)),
            Lock=lambda: Lock(self),
            Thread=lambda **arguments: Thread(self, **arguments),
            current_thread=lambda: self.current,
        )
        with (
            mock.patch("forebay._threads.threading", played),
            mock.patch("forebay._threads.allocate_lock", self._lock),
            mock.patch("forebay._threads.RLock", self._lock),
        ):
            yield self

    def pool(self, pool_class: type[ConnectionPool[Any]] = ConnectionPool, **options: Any) -> Any:
        """Make a pool over the fake driver, on the manual clock."""
        return fake_pool(pool_class, self.driver, self.clock, **options)

    def _lock(self) -> Lock:
        return Lock(self)

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
            pool._flows.maintain()
        self.play()

    def wait(self, timeout: float) -> None:
        """A client waits: let others act, or else let its time pass."""
        if self.meanwhile:
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
        self.entered = False  # by `with`
        stage.locks.append(self)

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

    def _is_owned(self) -> bool:
        """Whether it is held by `with`: then it is by the only thread there is."""
        return self.entered

    def __enter__(self) -> bool:
        if self._held:
            raise AssertionError("the only thread blocks on a lock that it holds itself")
        self._held = self.entered = True
        return True

    def __exit__(self, *exc: object) -> None:
        self.entered = False
        self.release()


class Condition:
    """A condition on which nobody ever waits: workers without work go home."""

    def __init__(self, lock: Lock) -> None:
        self._lock = lock

    def __enter__(self) -> bool:
        return self._lock.__enter__()

    def __exit__(self, *exc: object) -> None:
        self._lock.__exit__(*exc)

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
