"""Pools in a forked child: there they start afresh, and leave the parent's sessions alone."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import suppress
from inspect import signature
from socket import socketpair
from threading import get_ident
from typing import Any, Protocol, TypeVar
from weakref import WeakSet

from ._core import Core, Phase
from ._entry import IDLE, RETIRED, Entry, Permit
from ._flows import Flows
from ._runtime import Runtime, run_sync
from ._sockets import lifelines

logger = logging.getLogger("forebay")

T = TypeVar("T")


class Pool(Protocol):
    """What a fork copies: the parts of a pool."""

    core: Core
    flows: Flows

    def start_afresh(self) -> None:
        """Forget all connections and make every part anew, also locks: they may be held."""
        ...


#: The pools of this process.
_pools: WeakSet[Any] = WeakSet()

#: Have the children of this process start with `pool` afresh; holds it weakly.
register = _pools.add


class Inherited(Entry):
    """The entry, in a child, of a connection that is the parent's: nobody's, and not lent."""

    __slots__ = ()

    def __init__(self) -> None:
        super().__init__()
        self.place = RETIRED
        self.ordered = False


class Dormant(Flows):
    """The flows of a pool that was open when it was forked: it opens at its first use."""

    async def acquire(self, conn: Any, timeout: float) -> Any:
        """See `Flows`."""
        self._awake()
        return await self.acquire(conn, timeout)

    async def wait(self, timeout: float) -> bool:
        """See `Flows`."""
        self._awake()
        return await self.wait(timeout)

    async def verify(self) -> None:
        """See `Flows`."""
        self._awake()
        await self.verify()

    def transition(self, name: str, *args: Any, **options: Any) -> None:
        """See `Flows`."""
        self._awake()
        self.transition(name, *args, **options)

    def open(self) -> None:
        """See `Flows`."""
        self.__class__ = Flows  # type: ignore[assignment]
        self.open()

    def _awake(self) -> None:
        if self.core.phase is Phase.OPEN:
            self.open()
        else:  # closed before it was used
            self.__class__ = Flows  # type: ignore[assignment]


def renewed_core(core: Core) -> Core:
    """A core with the settings of `core`, and no more than these."""
    fresh = Core(core.refusals, core.settings, core.keep)
    fresh.phase, fresh.fresh = core.phase, core.fresh
    return fresh


def renewed_flows(flows: Flows, core: Core, runtime: Runtime) -> Flows:
    """The flows of a new core in a new runtime, with the settings of `flows`."""
    kind = Dormant if core.phase is Phase.OPEN else Flows
    given = {name: getattr(flows, name) for name in signature(Flows).parameters}
    fresh = kind(**{**given, "core": core, "runtime": runtime})
    fresh.level = flows.level
    return fresh


def _start_afresh() -> None:
    """Called in the child, by the only thread there is, before `os.fork()` returns."""
    inherited = [(pool, [*_connections(pool)]) for pool in [*_pools]]
    for lifeline in [*lifelines]:
        lifeline.close()
    silenced = _silence([conn for _, found in inherited for conn, _ in found])
    for pool, found in inherited:
        driver = pool.flows.driver
        pool.start_afresh()
        for conn, is_untouched in found:
            driver.adopt(conn, Inherited())
            if is_untouched and silenced:
                with suppress(Exception):  # a class of the user's may do more than close
                    run_sync(driver.close, conn)


def _connections(pool: Pool) -> Iterator[tuple[Any, bool]]:
    """All connections that are known, wherever they are, and whether they are untouched."""
    for entry in [*pool.core.entries, *pool.core.retiring]:
        conn = entry.conn
        if conn is None and entry.ref is not None:
            conn = entry.ref()
        if conn is not None and not isinstance(conn, Permit):
            yield conn, _is_untouched(pool, entry)


def _silence(conns: list[Any]) -> bool:
    """Have the sockets lead nowhere: whatever is done to these connections stays in the child.

    To close the descriptors would free their numbers, which the connections go on using.  What
    takes their place is a socket at its end: unlike /dev/null it tells libpq that the session is
    over, and event loops take it.

    Returns false if there is none to be had: then they must not even be closed.
    """
    if not conns:
        return True
    try:
        end, other = socketpair()
    except OSError as error:
        logger.error("cannot replace the sockets of the parent process: %s", error)
        return False
    other.close()
    with end:
        for conn in conns:
            with suppress(Exception):  # closed already
                os.dup2(end.fileno(), _descriptor(conn), inheritable=False)
    return True


def _descriptor(conn: Any) -> int:
    """The descriptor of a connection's socket."""
    # The class's own: psycopg2_pool's connections on offer look who asks.  An agent's proxy has
    # none there, and passes on what it is asked.
    fileno = getattr(type(conn), "fileno", None)
    descriptor: int = conn.fileno() if fileno is None else fileno(conn)
    return descriptor


def _is_untouched(pool: Pool, entry: Entry) -> bool:
    """Whether no other thread can have been inside libpq with the connection at the fork.

    Such a connection is in no state to be closed: memory half written, psycopg2's own lock held.
    """
    thread = getattr(pool, "thread", None)  # that of the event loop
    return entry.place is IDLE or get_ident() in (thread, getattr(entry.holder, "ident", None))


if hasattr(os, "register_at_fork"):  # not on Windows, where nothing forks
    os.register_at_fork(after_in_child=_start_afresh)
