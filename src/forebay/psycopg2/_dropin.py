"""What the two drop-ins for psycopg2 have in common: a world without threads, and their parts."""

from __future__ import annotations

import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from .._core import Core, Phase
from .._door import Called, Parts
from .._entry import EVICTED, LENT, Entry
from .._flows import Flows, Source
from .._fork import register
from .._inline import Inline, InlineWaiter
from .._locks import taking
from .._runtime import Job, run_sync

if TYPE_CHECKING:
    from .._entry import Place

#: What a nested client is told; see rule 9 in _core.py.
NESTED = (
    "asked by a signal handler or a finalizer while it interrupted the pool at work in the same"
    " thread; nothing was lent"
)


class World(Inline):
    """Whoever calls does the work.

    A signal handler or a finalizer may call in the middle of that.  A client would wait for its own
    thread then, so it is refused; what comes back, or is to be closed, is left to the next call.
    """

    def __init__(self, parts: DropInParts) -> None:
        self._parts = weakref.ref(parts)
        super().__init__(partial(_maintain, self._parts))

    def waiter(self) -> InlineWaiter:
        """A new waiter for the calling thread, which is not at work for the pool itself."""
        parts = self._parts()
        if parts is not None and getattr(self.own, "jobs", None) is not None:
            raise parts.core.refusals.nested(parts.core)
        return super().waiter()

    def spawn(self, key: object, job: Job, place: Place) -> None:
        """Run `job` now; not inside a transition, where it stays ordered: maintenance asks again.

        What it spawns itself comes after it, not inside it.
        """
        if self.lock._is_owned():
            self.alarm(self.now())
        else:
            super().spawn(key, job, place)

    def alarm(self, at: float) -> None:
        """Have the next call do what is asked for inside a transition; else maintenance can wait.

        It is done by the next client that has to wait or to open.
        """
        del at
        parts = self._parts()
        if parts is not None and self.lock._is_owned():
            parts.use(Due(parts, self.lock))


class Due:
    """Stands in for the lock of a pool: who takes it does before what was put off."""

    __slots__ = ("__exit__", "_lock", "_parts", "release")

    def __init__(self, parts: DropInParts, lock: Any) -> None:
        self._parts = parts
        self._lock = lock
        # The lock's own, in C: in a function in Python a signal handler could raise first.
        self.release, self.__exit__ = lock.release, lock.__exit__

    def acquire(self) -> bool:
        """Take the lock, when what is due is done; as in `SafeLock`, no call comes after that."""
        if not self._lock._is_owned():
            self._parts.use(self._lock)
            self._parts.maintain()
        for taken in taking(self._lock):
            return taken
        raise AssertionError("the iterator never ends")

    __enter__ = acquire


class DropInParts(Parts, ABC):
    """The parts of a pool that starts no thread, and whose class has public names only."""

    __slots__ = ("closing", "pool", "strict")

    pool: Callable[[], Any]  # a weak reference

    def __init__(self, pool: Any, core: Core, *, strict: bool = False) -> None:
        super().__init__(type(pool), core)
        self.pool = weakref.ref(pool)
        self.strict = strict  # every checkout goes through the flows
        self.closing = False  # to be closed as soon as no transition is under way

    def start(self, driver: Any, name: str, level: int) -> None:
        """Begin to serve; nothing is opened yet."""
        source = partial(_source, weakref.ref(self))
        self.run(Flows(self.core, self.new_runtime(), driver, name=name, source=source))
        self.flows.level = level
        self.flows.open()
        register(self)

    def new_runtime(self) -> Any:
        """A world for the core."""
        return World(self)

    def start_afresh(self) -> None:
        """In a forked child: forget the parent's connections, and make every part anew."""
        super().start_afresh()
        if self.closing:
            self.use(Due(self, self.lock))

    def guard(self) -> None:
        """Decide what a checkout and a return must do besides the transition."""
        self.thorough = self.guarded = self.strict
        self.checks_out = self.checks_in = Called  # leases use the public verbs

    @abstractmethod
    def source(self, pool: Any) -> Source:
        """The parameters of connecting, as they are now."""

    @property
    def closed(self) -> bool:
        """Whether the pool is closed, or will be in a moment."""
        return self.closing or self.core.phase is not Phase.OPEN

    def expect_open(self) -> None:
        """Refuse what is asked of a pool that was closed."""
        if self.closed:
            self.maintain()  # which closes it, if that was put off
            raise self.core.refusals.closed(self.core)

    @property
    def inside(self) -> bool:
        """Whether the caller has interrupted a transition of its own thread (rule 9)."""
        return self.flows.runtime.inside(self.core)

    @staticmethod
    def is_lost(entry: Entry) -> bool:
        """Whether the slot of a connection that comes back is given back, or will be in a moment.

        A finalizer returns it: Python clears the weak references to a garbage cycle before.
        """
        return entry.ref is not None and entry.ref() is None

    def put_off(self, entry: Entry, conn: Any, lending: float, *, evict: bool = False) -> None:
        """Leave a connection that comes back inside a transition to the next call."""
        if evict:
            entry.expires_at = EVICTED
        self.core.put_off(entry, conn, lending)
        self.flows.runtime.alarm(self.now())

    def discard(self, entry: Entry, conn: Any) -> None:
        """Close a connection that is lent, and of no more use."""
        if self.inside:
            self.put_off(entry, conn, entry.lent_at, evict=True)
        else:
            self.flows.transition("discard", entry, conn, chance=self.flows.runtime.chance())

    def maintain(self) -> None:
        """Do what time makes necessary, and what was put off."""
        if self.inside:
            return
        if self.closing:
            self.close()
        else:
            self.flows.maintain()

    def close(self) -> None:
        """Close the pool and all its connections, also those in use."""
        core, driver = self.core, self.flows.driver
        self.closing = True
        if self.inside:
            self.flows.runtime.alarm(self.now())
            return
        with self.flows.runtime.lock:
            lent = [entry.ref() for entry in [*core.entries] if entry.ref and entry.place is LENT]
            effects = core.close(self.now())
        self.closing = False
        self.forget_all()
        self.flows.carry_out(effects)
        for conn in lent:
            if conn is not None:
                run_sync(driver.close, conn)

    def forget_all(self) -> None:
        """Drop what is known of lent connections: the pool is closed, or a child's."""


def _source(this: weakref.ref[DropInParts]) -> Source | None:
    parts = this()
    pool = parts and parts.pool()
    return None if parts is None or pool is None else parts.source(pool)


def _maintain(this: weakref.ref[DropInParts]) -> None:
    """Do the maintenance of a pool for a client that waits."""
    parts = this()
    if parts is not None:
        parts.maintain()
