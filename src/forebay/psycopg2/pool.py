"""The pools of `psycopg2.pool`: keys, no waiting, everything done by the caller.

Beyond the original's parameters, all of which go to `psycopg2.connect()`, the constructors take
these by keyword; by default they change nothing:

*   `timeout`: seconds to wait when the pool is exhausted; 0, the default, fails at once.
*   `max_waiting`: clients that may wait; 0: no bound.
*   `max_lifetime`: seconds after which a connection is closed when it comes back; none by default.
*   `check`: called with a connection before a client gets it; if it raises, the client gets
    another one.
*   `name`: for logs; the name of the class by default.
"""

from __future__ import annotations

import logging
import threading
import weakref
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from math import inf
from typing import TYPE_CHECKING, Any

import psycopg2
from psycopg2.extensions import STATUS_READY

from .._core import Core, Phase
from .._door import statistics
from .._entry import EVICTED, LENT, Effects
from .._flows import Flows
from .._fork import Inherited, register, renewed_core, renewed_flows
from .._inline import Inline
from .._runtime import run_sync
from ..drivers.psycopg2 import SyncPsycopg2, connect, unclean
from ._lease import TransactionLease

if TYPE_CHECKING:
    from psycopg2 import extensions

    from .._entry import Entry, Waiter

    Connection = extensions.connection

__all__ = [
    "AbstractConnectionPool",
    "PersistentConnectionPool",
    "PoolError",
    "SimpleConnectionPool",
    "ThreadedConnectionPool",
]


class PoolError(psycopg2.Error):
    """The pool is exhausted or closed, or was given a connection that it has not lent."""


class PoolRefusals:
    """Every refusal is a `PoolError`."""

    def closed(self, core: Core) -> PoolError:
        """The pool was closed."""
        del core
        return PoolError("connection pool is closed")

    def full(self, core: Core) -> PoolError:
        """Too many clients wait already."""
        return PoolError(
            f"connection pool exhausted: {len(core.waiting)} clients wait already"
            f" (max_waiting={core.max_waiting})"
        )

    def timeout(self, core: Core, timeout: float, now: float, client: Waiter) -> PoolError:
        """No connection in time; the cause is the last error of a check, if they fail now."""
        del now, client
        waited = f": none came back in {timeout:.2f} sec" if timeout > 0 else ""
        error = PoolError(f"connection pool exhausted{waited}")
        if core.failures:
            error.__cause__ = core.last_error
        return error

    def rejected(self, core: Core, error: Exception, now: float) -> Exception:
        """An error of connecting is the caller's."""
        del core, now
        return error

    def deadlock(self, core: Core, now: float) -> None:
        """Nothing is certain of connections that may be returned with a key, from any thread."""
        del core, now


class PoolDriver(SyncPsycopg2):
    """psycopg2, which connects by the `_connect()` of its pool."""

    def __init__(self, pool: AbstractConnectionPool) -> None:
        super().__init__()
        self._pool = weakref.ref(pool)  # which a reference cycle would keep

    async def connect(self, connection_class: Any, conninfo: str, kwargs: dict[str, Any]) -> Any:
        """Open a connection."""
        del connection_class, conninfo, kwargs
        return self._caller()._connect()

    def patience(self, conninfo: str, kwargs: dict[str, Any]) -> float:
        """Seconds connect() may take by its own time-outs."""
        del conninfo, kwargs
        return super().patience(*self._caller()._given())

    def wants_writable(self, conninfo: str, kwargs: dict[str, Any]) -> bool | None:
        """Whether connections must be able to write."""
        del conninfo, kwargs
        return super().wants_writable(*self._caller()._given())

    def _caller(self) -> AbstractConnectionPool:
        pool = self._pool()
        assert pool is not None  # it is its caller that connects
        return pool


class PoolLease(TransactionLease["Connection"]):
    """A connection of these pools for the length of a `with` block."""

    __slots__ = ()

    def _take(self) -> Any:
        pool: Any = self._pool
        return pool.getconn()


class AbstractConnectionPool:
    """What the pools have in common, all of it safe among threads; without public verbs.

    Subclasses may override `_connect()`, `_getconn()`, `_putconn()` and `_closeall()`.
    """

    #: `close()` on a lent connection closes it, as in the original.
    close_returns = False
    # What a lease asks of its pool: these lend and take back by their own verbs only.
    _quick = _swift = False
    _is_inside = staticmethod(bool)

    def __init__(
        self,
        minconn: int,
        maxconn: int,
        *args: Any,
        timeout: float = 0.0,
        max_waiting: int = 0,
        max_lifetime: float = inf,
        check: Callable[[Connection], object] | None = None,
        name: str | None = None,
        **kwargs: Any,
    ) -> None:
        """Open `minconn` connections, which is also how many idle ones the pool keeps.

        `args` and `kwargs` are those of `psycopg2.connect()`; for the others see the module.

        Raises:
            psycopg2.Error: a connection could not be opened; those that were are closed.
            ValueError: `minconn` is greater than `maxconn`.
        """
        minconn, maxconn = int(minconn), int(maxconn)
        if minconn > maxconn:
            raise ValueError(f"minconn must not be greater than maxconn, not {minconn} > {maxconn}")
        self.timeout = timeout
        self._args = args
        self._kwargs = kwargs
        self._used: dict[Any, Any] = {}  # the connections that are lent with a key
        self._rused: dict[int, Any] = {}  # their keys, by id
        self._core = core = Core(
            PoolRefusals(),
            min_size=0,
            max_size=maxconn,
            keep=max(0, minconn),
            retrying=False,
            eager=True,
            max_waiting=max_waiting,
            max_lifetime=max_lifetime,
            max_idle=inf,
        )
        runtime = self._new_runtime()
        self._lock = runtime.lock
        self._now = runtime.now
        self._flows = Flows(
            core,
            runtime,
            PoolDriver(self),
            name=name or type(self).__name__,
            connection_class=None,
        )
        # Errors of connecting are the caller's anyway, and to return a transaction is a habit here.
        self._flows.level = logging.DEBUG
        self._guarded = check is not None
        self._flows.open()
        register(self)
        self._fill(minconn)
        self._flows.check = partial(_expect_usable, check)

    def _new_runtime(self) -> Any:
        return Inline(partial(_maintain, weakref.ref(self)))

    def _start_afresh(self) -> None:
        """In a forked child: forget the parent's connections, and make every part anew."""
        self._core = renewed_core(self._core)
        self._flows = renewed_flows(self._flows, self._core, self._new_runtime())
        self._lock = self._flows.runtime.lock
        self._used, self._rused = {}, {}

    @property
    def minconn(self) -> int:
        """How many idle connections the pool keeps; assignable."""
        return int(self._core.keep)

    @minconn.setter
    def minconn(self, value: int) -> None:
        self._core.keep = value

    @property
    def maxconn(self) -> int:
        """How many connections there may be; assignable."""
        return int(self._core.max_size)

    @maxconn.setter
    def maxconn(self, value: int) -> None:
        self._core.max_size = value

    @property
    def closed(self) -> bool:
        """Whether `closeall()` was called."""
        return self._core.phase is not Phase.OPEN

    def __repr__(self) -> str:
        core = self._core
        state = "closed" if self.closed else f"{len(core.idle)} idle, {core.lent} lent"
        return f"<{type(self).__name__} {state} of {core.keep}..{core.max_size}>"

    def connection(self) -> TransactionLease[Connection]:
        """Lend a connection for a `with` block.

        At the end of the block the transaction is committed, or rolled back on an exception, and
        the connection is returned; psycopg2's own `with connection:` only ends a transaction.
        """
        pool: Any = self
        return PoolLease.of(pool, None)

    def get_stats(self) -> dict[str, int]:
        """What the pool holds now, and what it has counted; times in milliseconds."""
        with self._lock:
            return {**statistics(self._core), "pool_min": self.minconn}

    def _connect(self, key: Any = None) -> Connection:
        """Open a connection; called without a key, which the pool notes by itself."""
        del key
        conn: Connection = connect(*self._args, **self._kwargs)
        return conn

    def _given(self) -> tuple[str, dict[str, Any]]:
        """The connection string and the other arguments of `psycopg2.connect()`."""
        return (self._args[0] if self._args else "") or "", self._kwargs

    def _getconn(self, key: Any = None) -> Connection:
        """Lend a connection."""
        if key is not None:
            return self._get_keyed(key)
        with self._lock:
            conn = self._core.checkout(self._now())
        if conn is None or conn.closed or self._guarded:
            conn = self._acquire(conn)
        conn._pool = self
        lent: Connection = conn
        return lent

    def _get_keyed(self, key: Any) -> Connection:
        """Lend the connection that is in use with this key, else another one."""
        if self.closed:
            raise self._core.refusals.closed(self._core)
        with self._lock:
            conn: Any = self._used.get(key)
            stale = conn is not None and conn.closed
            if stale:
                del self._used[key], self._rused[id(conn)]
        if stale:
            self._put_away(conn)
        elif conn is not None:
            lent: Connection = conn
            return lent
        conn = AbstractConnectionPool._getconn(self)
        with self._lock:
            first: Connection = self._used.setdefault(key, conn)
            self._rused[id(first)] = key
        if first is not conn:  # another thread was faster
            self._put_away(conn)
        return first

    def _putconn(self, conn: Any, key: Any = None, close: bool = False) -> None:
        """Take a connection back."""
        try:
            entry, lender = conn._forebay_entry, conn._pool
        except AttributeError:
            raise self._stranger() from None
        if lender is not self:
            if isinstance(entry, Inherited):
                return  # the parent process has it
            raise self._stranger()
        if (
            close
            or key is not None
            or self._used
            or conn.get_transaction_status()
            or conn.status != STATUS_READY
        ):
            self._put_away(conn, key, close)
            return
        conn._pool = None
        with self._lock:
            effects = self._core.checkin(entry, conn, self._now())
        if effects is not None:
            run_sync(self._flows.conclude(effects))

    def _put_away(self, conn: Any, key: Any = None, close: bool = False) -> None:
        """Take a connection back that has a key, is not clean, or must be closed."""
        entry: Entry = conn._forebay_entry
        with self._lock:
            if self.closed:
                raise self._core.refusals.closed(self._core)
            known = self._rused.get(id(conn))
            if key is not None and key != known:
                raise PoolError(f"the connection was not lent with the key {key!r} but {known!r}")
            self._rused.pop(id(conn), None)
            self._used.pop(known, None)
            conn._pool = None
        tidy = not unclean(conn)
        if conn.closed or not (close or tidy or self._full):
            run_sync(self._flows.release(entry, conn))
            return
        with self._lock:
            if close or not tidy:  # to be closed, so not rolled back; nor kept if there is room now
                entry.expires_at = EVICTED
            effects = self._core.checkin(entry, conn, self._now())
        run_sync(self._flows.conclude(effects or Effects()))

    def _closeall(self) -> None:
        """Close all connections, also those in use."""
        core = self._core
        with self._lock:
            if self.closed:
                raise core.refusals.closed(core)
            lent = [entry.ref() for entry in core.entries if entry.ref and entry.place is LENT]
            effects = core.close(self._now())
            self._used.clear()
            self._rused.clear()
        self._flows.carry_out(effects)
        for conn in lent:
            if conn is not None:
                run_sync(self._flows.driver.close(conn))

    @property
    def _full(self) -> bool:
        """Whether a connection that comes back would be closed."""
        return len(self._core.idle) >= self._core.keep and not self._core.waiting

    def _fill(self, number: int) -> None:
        """Open the first connections."""
        core = self._core
        try:
            first = [self._acquire(None) for _ in range(number)]
        except BaseException:
            AbstractConnectionPool._closeall(self)
            raise
        with self._lock:
            for conn in first:
                core.checkin(conn._forebay_entry, conn, self._now())
            core.requests_queued, core.requests_time = 0, 0.0  # these were no clients

    def _acquire(self, conn: Any) -> Any:
        """Do what `_getconn()` could not do at once."""
        if conn is None and (not self._core.idle or self._now() >= self._core.due):
            self._maintain()
        return run_sync(self._flows.acquire(conn, self.timeout))

    def _maintain(self) -> None:
        self._flows.maintain()

    def _stranger(self) -> Exception:
        if self.closed:
            return self._core.refusals.closed(self._core)
        return PoolError("trying to put unkeyed connection")


class SimpleConnectionPool(AbstractConnectionPool):
    """A pool meant for one thread."""

    def getconn(self, key: Any = None) -> Connection:
        """Lend a connection: the one in use with `key`, else the one returned last, else a new one.

        Raises:
            PoolError: `maxconn` connections are in use, or the pool is closed.
            psycopg2.Error: a new connection could not be opened.
        """
        return self._getconn(key)

    def putconn(self, conn: Connection, key: Any = None, close: bool = False) -> None:
        """Take a connection back.

        It is rolled back if it is in a transaction, and kept if fewer than `minconn` are idle;
        else, or if it was lost, or with `close`, it is closed.

        Raises:
            PoolError: this pool has not lent the connection (with this key), or is closed.
        """
        self._putconn(conn, key, close)

    def closeall(self) -> None:
        """Close all connections, also those in use.

        Raises:
            PoolError: the pool is closed.
        """
        self._closeall()


class ThreadedConnectionPool(AbstractConnectionPool):
    """A pool that any number of threads share."""

    def getconn(self, key: Any = None) -> Connection:
        """Lend a connection: the one in use with `key`, else the one returned last, else a new one.

        Raises:
            PoolError: `maxconn` connections are in use, or the pool is closed.
            psycopg2.Error: a new connection could not be opened.
        """
        return self._getconn(key)

    def putconn(self, conn: Connection | None = None, key: Any = None, close: bool = False) -> None:
        """Take a connection back; without `conn`, the one in use with `key`.

        It is rolled back if it is in a transaction, and kept if fewer than `minconn` are idle;
        else, or if it was lost, or with `close`, it is closed.

        Raises:
            PoolError: this pool has not lent the connection (with this key), or is closed.
        """
        if conn is None and key is not None:
            conn = self._used.get(key)
        self._putconn(conn, key, close)

    def closeall(self) -> None:
        """Close all connections, also those in use.

        Raises:
            PoolError: the pool is closed.
        """
        self._closeall()


class Life:
    """Lives in a thread's own storage, and ends with the thread."""

    __slots__ = ("__weakref__",)


class ThreadKeys(threading.local):
    """The key of each thread: thread ids are reused, this is not."""

    def __init__(self, ended: deque[weakref.ref[Life]]) -> None:
        self._life = Life()
        self.key = weakref.ref(self._life, ended.append)
        hash(self.key)  # while it can be computed: a thread may end and never have used its key


class PersistentConnectionPool(AbstractConnectionPool):
    """A pool that gives a thread the same connection until the thread puts it away.

    The connection of a thread that has ended goes back to the pool.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """The parameters are those of `ThreadedConnectionPool`."""
        # Appended to by callbacks of weak references, which may run anywhere.
        self._ended: deque[weakref.ref[Life]] = deque()
        self._keys = ThreadKeys(self._ended)
        super().__init__(*args, **kwargs)

    def getconn(self) -> Connection:
        """Lend the thread its connection.

        Raises:
            PoolError: `maxconn` threads have connections, or the pool is closed.
            psycopg2.Error: a new connection could not be opened.
        """
        if self._ended:
            self._collect()
        return self._getconn(self._keys.key)

    def putconn(self, conn: Connection | None = None, close: bool = False) -> None:
        """Put the thread's connection (or another one) away, as `ThreadedConnectionPool` does.

        Raises:
            PoolError: the thread has none, `conn` is none of the pool's, or the pool is closed.
        """
        self._putconn(self._used.get(self._keys.key) if conn is None else conn, None, close)

    def closeall(self) -> None:
        """Close all connections, also those in use.

        Raises:
            PoolError: the pool is closed.
        """
        self._closeall()

    def connection(self) -> TransactionLease[Connection]:
        """Lend the thread its connection for a `with` block.

        At the end of the block the transaction is committed, or rolled back on an exception.  The
        connection is put away, unless the thread had it before the block.
        """
        pool: Any = self
        return (
            BorrowingLease.of(pool, None)
            if self._keys.key in self._used
            else PoolLease.of(pool, None)
        )

    def _maintain(self) -> None:
        self._collect()
        super()._maintain()

    def _collect(self) -> None:
        """Put the connections of threads that have ended away."""
        while self._ended:
            with suppress(IndexError):  # another thread was faster
                conn = self._used.get(self._ended.popleft())
                if conn is not None and not self.closed:
                    self._putconn(conn)


class BorrowingLease(PoolLease):
    """A block on the connection that the thread has already, and keeps."""

    __slots__ = ()

    def __del__(self) -> None:
        """Nothing: the thread keeps the connection."""

    def _put_back(self, conn: Any) -> None:
        pass


def _expect_usable(check: Callable[[Any], object] | None, conn: Any) -> None:
    """Refuse what its last holder closed after all, or what the user's check does not like."""
    if conn.closed:
        raise psycopg2.InterfaceError("connection already closed")
    if check is not None:
        check(conn)


def _maintain(this: weakref.ref[Any]) -> None:
    """Do the maintenance of a pool for a client that waits."""
    pool = this()
    if pool is not None:
        pool._maintain()
