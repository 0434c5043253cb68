"""Pools for threads."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeAlias, cast

from psycopg import Connection

from ._door import Door
from ._runtime import run_sync
from ._threads import Threads
from .drivers.psycopg import PoolClosed, SyncPsycopg, check_connection

if TYPE_CHECKING:
    from typing import Self

    from psycopg.rows import TupleRow
    from typing_extensions import TypeVar

    CT = TypeVar("CT", bound="Connection[Any]", default="Connection[TupleRow]")
else:
    from typing import TypeVar

    CT = TypeVar("CT", bound="Connection[Any]")

IdleOrder: TypeAlias = Literal["lifo", "fifo"]
ConninfoParam: TypeAlias = str | Callable[[], str]
KwargsParam: TypeAlias = dict[str, Any] | Callable[[], dict[str, Any]]

ConnectionCB: TypeAlias = Callable[[CT], None]
ConnectFailedCB: TypeAlias = Callable[["ConnectionPool[Any]"], None]

_IMPLICIT = (
    "the pool was opened by its constructor; the default for the 'open' parameter will become"
    " False: please use open=True or open=False, or use the pool as a context manager:"
    " `with ConnectionPool(...) as pool: ...`"
)


class Lease(Generic[CT]):
    """A connection for the length of a `with` block; made by `ConnectionPool.connection()`."""

    __slots__ = ("_conn", "_lent_at", "_pool", "_timeout")

    def __init__(self, pool: ConnectionPool[CT], timeout: float | None) -> None:
        self._pool = pool
        self._timeout = timeout

    def __enter__(self) -> CT:
        """Lend the connection."""
        conn: Any = self._pool.getconn(self._timeout)
        self._conn: Any = conn
        entry = conn._forebay_entry
        entry.leased = True
        self._lent_at = entry.lent_at
        lent: CT = conn if entry.plain else conn.__enter__()
        return lent

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        """Commit or roll back, and return the connection."""
        conn = self._conn
        self._conn = None
        pool = self._pool
        entry = conn._forebay_entry
        if not entry.leased or entry.lent_at is not self._lent_at:
            return None  # returned inside the block; perhaps lent to somebody else by now
        if exc_type is None and entry.plain and pool._swift and not pool._unclean(conn):
            conn._pool = None
            with pool._lock:
                effects = pool._core.checkin(entry, conn, pool._now())
            if effects is not None:
                run_sync(pool._flows.conclude(effects))
            return None
        try:
            swallowed: bool | None = conn.__exit__(exc_type, exc, traceback)
            return swallowed
        finally:
            pool.putconn(conn)


class ConnectionPool(Door, Generic[CT]):
    """A pool of `psycopg.Connection`, to be shared by any number of threads."""

    _runtime_class = Threads
    _driver_class = SyncPsycopg

    def __init__(
        self,
        conninfo: ConninfoParam = "",
        *,
        connection_class: type[CT] = cast("type[CT]", Connection),
        kwargs: KwargsParam | None = None,
        min_size: int = 4,
        max_size: int | None = None,
        open: bool | None = None,
        configure: ConnectionCB[CT] | None = None,
        check: ConnectionCB[CT] | None = None,
        reset: ConnectionCB[CT] | None = None,
        name: str | None = None,
        close_returns: bool = False,
        timeout: float = 30.0,
        max_waiting: int = 0,
        max_lifetime: float = 60 * 60.0,
        max_idle: float = 10 * 60.0,
        reconnect_timeout: float = 5 * 60.0,
        reconnect_failed: ConnectFailedCB | None = None,
        num_workers: int = 3,
        idle_order: IdleOrder = "lifo",
    ) -> None:
        """Make a pool; never blocks.

        Args:
            conninfo: connection string, or a callable giving it, called at each attempt.
            connection_class: the class whose `connect()` is called at each attempt.
            kwargs: further arguments of `connect()`, or a callable giving them.
            min_size: connections to keep open.
            max_size: connections at most; `None`: as many as `min_size`.
            open: open the pool now.  `None`: now, and warn on first use, unless the pool is
                used as a context manager.
            configure: called with each new connection; must leave no transaction open.
            check: called with a connection before a client gets it; if it raises, the client
                gets another one.
            reset: called by a worker with each returned connection; must leave no transaction
                open.
            name: for logs and threads; `pool-N` by default.
            close_returns: `close()` of a lent connection returns it (for SQLAlchemy).
            timeout: seconds a client waits at most; 0: only for a connection that is ready.
            max_waiting: clients that may wait; 0: no bound.
            max_lifetime: seconds after which a connection is replaced, less up to 5 %.
            max_idle: seconds after which an unused connection above `min_size` is closed.
            reconnect_timeout: seconds of failed attempts until `reconnect_failed` is called.
            reconnect_failed: called with the pool when connecting has failed for that long.
            num_workers: connections opened side by side at most; as many workers reset, check
                and close.
            idle_order: `lifo` lends the connection used last; `fifo` all in turn.

        Raises:
            ValueError: for sizes or numbers that make no pool.
            TypeError: for a callback that is a coroutine function.
        """
        _expect_plain_functions(
            conninfo=conninfo,
            kwargs=kwargs,
            configure=configure,
            check=check,
            reset=reset,
            reconnect_failed=reconnect_failed,
        )
        super().__init__(
            conninfo,
            connection_class,
            kwargs,
            min_size,
            max_size,
            configure,
            check,
            reset,
            name,
            close_returns,
            timeout,
            max_waiting,
            max_lifetime,
            max_idle,
            reconnect_timeout,
            reconnect_failed,
            num_workers,
            idle_order,
        )
        # A lease may return a clean connection by itself: putconn() would do no more.
        self._swift = reset is None and type(self).putconn is ConnectionPool.putconn
        if open or open is None:
            self._implicitly_open = open is None
            self._guarded = self._guarded or self._implicitly_open
            self._flows.open()

    check_connection = staticmethod(check_connection)

    def connection(self, timeout: float | None = None) -> Lease[CT]:
        """Lend a connection for a `with` block.

        At the end of the block the transaction is committed, or rolled back on an exception, and
        the connection is returned.  `timeout` and errors: see `getconn()`.
        """
        return Lease(self, timeout)

    def getconn(self, timeout: float | None = None) -> CT:
        """Lend a connection, to be returned by `putconn()`.

        Waits up to `timeout` seconds (the pool's `timeout` by default); 0: takes a connection
        only if one is ready.

        Raises:
            PoolTimeout: no connection in time.
            PoolClosed: the pool is not open.
            TooManyRequests: `max_waiting` clients wait already.
        """
        with self._lock:
            conn = self._core.checkout(self._now())
        if conn is None or self._guarded:
            conn = self._acquire(conn, timeout)
        lent: CT = conn
        conn._pool = self
        return lent

    def putconn(self, conn: CT) -> None:
        """Return a connection; an open transaction is rolled back, a broken one is replaced.

        Raises:
            ValueError: this pool has not lent the connection, or it was returned already.
        """
        try:
            lent: Any = conn
            entry, lender = lent._forebay_entry, lent._pool
        except AttributeError:
            raise self._stranger(conn) from None
        if lender is not self:
            raise self._stranger(conn)
        conn._pool = None
        if self._unclean(conn) or self._reset is not None:
            run_sync(self._flows.release(entry, conn))
            return
        with self._lock:
            effects = self._core.checkin(entry, conn, self._now())
        if effects is not None:
            run_sync(self._flows.conclude(effects))

    def open(self, wait: bool = False, timeout: float = 30.0) -> None:
        """Open the pool; does nothing if it is open.

        With `wait`, block until it is filled: see `wait()`.

        Raises:
            PoolClosed: the pool was closed; make a new one.
            PoolTimeout: with `wait`, see `wait()`.
        """
        if self.closed:
            self._flows.open()
        if wait:
            self.wait(timeout)

    def close(self, timeout: float = 5.0) -> None:
        """Close the pool.

        Clients that wait, and later ones, get `PoolClosed`; idle connections are closed now, lent
        ones when they come back.  Waits up to `timeout` seconds for the background work to end.
        """
        run_sync(self._flows.close(timeout))

    def wait(self, timeout: float = 30.0) -> None:
        """Block until `min_size` connections are ready, at most `timeout` seconds.

        Raises:
            PoolTimeout: they were not ready in time; the pool is closed.
            PoolClosed: the pool is not open.
        """
        if not run_sync(self._flows.wait(timeout)):
            self.close()
            raise self._unfilled(timeout)

    def resize(self, min_size: int, max_size: int | None = None) -> None:
        """Change the bounds of the pool; `max_size=None`: as many as `min_size`.

        Raises:
            ValueError: for sizes that make no pool; nothing is changed.
        """
        self._flows.transition("resize", min_size, self._bounds(min_size, max_size))

    def check(self) -> None:
        """Check the idle connections by a round trip each, replace bad and expired ones."""
        run_sync(self._flows.verify())

    def drain(self) -> None:
        """Replace all connections: idle ones now, lent ones when they come back."""
        self._flows.transition("drain")

    def __enter__(self) -> Self:
        """Open the pool."""
        self._leave_implicit()
        self.open()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the pool."""
        self.close()

    def _acquire(self, conn: Any, timeout: float | None) -> Any:
        """Do what `getconn()` could not do at once."""
        if self._implicitly_open:
            self._announce_implicit(DeprecationWarning, _IMPLICIT, stacklevel=3)
        return run_sync(self._flows.acquire(conn, self.timeout if timeout is None else timeout))


class NullConnectionPool(ConnectionPool[CT]):
    """A pool that keeps no connection: it bounds and queues the clients of a server."""

    _null = True

    def __init__(
        self,
        conninfo: ConninfoParam = "",
        *,
        connection_class: type[CT] = cast("type[CT]", Connection),
        kwargs: KwargsParam | None = None,
        min_size: int = 0,
        max_size: int | None = None,
        open: bool | None = None,
        configure: ConnectionCB[CT] | None = None,
        check: ConnectionCB[CT] | None = None,
        reset: ConnectionCB[CT] | None = None,
        name: str | None = None,
        close_returns: bool = False,
        timeout: float = 30.0,
        max_waiting: int = 0,
        max_lifetime: float = 60 * 60.0,
        max_idle: float = 10 * 60.0,
        reconnect_timeout: float = 5 * 60.0,
        reconnect_failed: ConnectFailedCB | None = None,
        num_workers: int = 3,
        idle_order: IdleOrder = "lifo",
    ) -> None:
        """Make a null pool; the parameters are those of `ConnectionPool`, but for two.

        `min_size` must be 0; `max_size` of `None` or 0 sets no bound.
        """
        super().__init__(
            conninfo,
            connection_class=connection_class,
            kwargs=kwargs,
            min_size=min_size,
            max_size=max_size,
            open=open,
            configure=configure,
            check=check,
            reset=reset,
            name=name,
            close_returns=close_returns,
            timeout=timeout,
            max_waiting=max_waiting,
            max_lifetime=max_lifetime,
            max_idle=max_idle,
            reconnect_timeout=reconnect_timeout,
            reconnect_failed=reconnect_failed,
            num_workers=num_workers,
            idle_order=idle_order,
        )

    def wait(self, timeout: float = 30.0) -> None:
        """Make one connection, as a test, in at most `timeout` seconds.

        Raises:
            PoolTimeout: it could not be made; the pool is closed.
            PoolClosed: the pool is not open.
        """
        try:
            self.putconn(self.getconn(timeout))
        except PoolClosed:
            raise
        except Exception as error:
            self.close()
            raise self._unfilled(timeout) from error

    def check(self) -> None:
        """Do nothing: there are no idle connections."""


def _expect_plain_functions(**callbacks: Any) -> None:
    for name, callback in callbacks.items():
        if inspect.iscoroutinefunction(callback):
            raise TypeError(
                f"{name} must be a plain function in a pool for threads, not the coroutine"
                f" function {callback!r}; the Async pools take those"
            )
