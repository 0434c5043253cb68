"""Pools for asyncio."""

from __future__ import annotations

import sys
import warnings
from _thread import get_ident
from asyncio import AbstractEventLoop, current_task, get_running_loop, tasks
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, TypeAlias, cast

from psycopg import AsyncConnection, Connection

from ._asyncio import Asyncio
from ._door import Door
from ._fork import Inherited
from ._stacks import acquiring_line
from .drivers.psycopg import AsyncPsycopg, check_connection_async
from .errors import PoolTimeoutMixin
from .pool import IdleOrder

if sys.version_info >= (3, 12):
    running_task: Any = current_task
else:  # current_task() is in C only from 3.12 on; this is what it looks into
    running_task: Any = vars(tasks)["_current_tasks"].get

if TYPE_CHECKING:
    from typing import Self

    from psycopg.rows import TupleRow
    from typing_extensions import TypeVar

    ACT = TypeVar("ACT", bound="AsyncConnection[Any]", default="AsyncConnection[TupleRow]")
else:
    from typing import TypeVar

    ACT = TypeVar("ACT", bound="AsyncConnection[Any]")

AsyncConninfoParam: TypeAlias = str | Callable[[], str] | Callable[[], Awaitable[str]]
AsyncKwargsParam: TypeAlias = (
    dict[str, Any] | Callable[[], dict[str, Any]] | Callable[[], Awaitable[dict[str, Any]]]
)

AsyncConnectionCB: TypeAlias = Callable[[ACT], Awaitable[None] | None]
AsyncConnectFailedCB: TypeAlias = Callable[["AsyncConnectionPool[Any]"], Awaitable[None] | None]

_CONSTRUCTED = (
    "opening an async pool in its constructor is deprecated: please use `await pool.open()`, or"
    " use the pool as a context manager: `async with AsyncConnectionPool(...) as pool: ...`"
)


class Nobody:
    """Stands for the task where a coroutine is driven by something else."""

    def get_name(self) -> None:
        """No name."""


NOBODY = Nobody()
#: No thread's id.
NO_THREAD = -1


class AsyncLease(Generic[ACT]):
    """A connection for the length of an `async with` block; made by `connection()`."""

    # No __init__: it would take 40 to 80 ns of each block (docs/decisions/0006).
    __slots__ = ("_conn", "_lent_at", "_pool", "_timeout")

    _pool: AsyncConnectionPool[ACT]
    _timeout: float | None
    _conn: Any  # while it is lent
    _lent_at: float

    @classmethod
    def of(cls, pool: Any, timeout: float | None) -> Self:
        """Make one."""
        lease = cls()
        lease._pool = pool
        lease._timeout = timeout
        return lease

    async def __aenter__(self) -> ACT:
        """Lend the connection."""
        pool = self._pool
        if pool._quick:
            task = running_task(pool._loop)
            if task is None or get_ident() != pool._thread:
                task = pool._expect_loop()
            conn = pool._core.checkout(pool._now(), task.get_name())
            if conn is None:
                conn = await pool._acquire(conn, self._timeout)
            conn._pool = pool
        else:
            conn = await self._take()
        entry = conn._forebay_entry
        self._lent_at = entry.lent_at
        entry.leased = entry.holder or True
        self._conn = conn
        lent: ACT = conn if entry.plain else await self._begin(conn)
        return lent

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        """Commit or roll back, and return the connection."""
        conn = self._conn
        pool = self._pool
        entry = conn._forebay_entry
        if not entry.leased or entry.lent_at is not self._lent_at:
            self._conn = None
            return None  # returned inside the block; perhaps lent to somebody else by now
        if exc_type is None and entry.plain and pool._swift and not pool._unclean(conn):
            conn._pool = None
            effects = pool._core.checkin(entry, conn, pool._now())
            self._conn = None  # not before: what interrupts us leaves the lease its connection
            if effects is not None:
                await pool._flows.conclude(effects)
            return None
        try:
            return await self._end(conn, exc_type, exc, traceback)
        finally:
            if exc is not None and pool._flows.heed(entry, exc):
                conn._pool = None
                await pool._flows.release(entry, conn)
            else:
                await self._put_back(conn)
            self._conn = None

    def __del__(self) -> None:
        """Lost in its block: hand the connection to maintenance, and nothing else (rule 8)."""
        try:
            if self._conn is not None and not self._pool.closed:
                self._pool._core.forsaken.append((self._conn, self._lent_at))
        except AttributeError:
            pass  # it was never entered

    async def _take(self) -> Any:
        """Have the pool lend a connection."""
        return await self._pool.getconn(self._timeout)

    async def _begin(self, conn: Any) -> Any:
        """Begin the block of a connection whose class has a say in that."""
        return await conn.__aenter__()

    async def _end(self, conn: Any, *error: Any) -> bool | None:
        """End the transaction."""
        swallowed: bool | None = await conn.__aexit__(*error)
        return swallowed

    async def _put_back(self, conn: Any) -> None:
        """Return the connection to the pool."""
        await self._pool.putconn(conn)


class AsyncConnectionPool(Door, Generic[ACT]):
    """A pool of `psycopg.AsyncConnection`, to be shared by the tasks of one event loop."""

    _runtime_class = Asyncio
    _driver_class = AsyncPsycopg

    def __init__(
        self,
        conninfo: AsyncConninfoParam = "",
        *,
        connection_class: type[ACT] = cast("type[ACT]", AsyncConnection),
        kwargs: AsyncKwargsParam | None = None,
        min_size: int = 4,
        max_size: int | None = None,
        open: bool | None = None,
        configure: AsyncConnectionCB[ACT] | None = None,
        check: AsyncConnectionCB[ACT] | None = None,
        reset: AsyncConnectionCB[ACT] | None = None,
        name: str | None = None,
        close_returns: bool = False,
        timeout: float = 30.0,
        max_waiting: int = 0,
        max_lifetime: float = 60 * 60.0,
        max_idle: float = 10 * 60.0,
        reconnect_timeout: float = 5 * 60.0,
        reconnect_failed: AsyncConnectFailedCB | None = None,
        num_workers: int = 3,
        idle_order: IdleOrder = "lifo",
        bypass_window: float = 0.05,
        keepalive_interval: float = 0.0,
        max_uses: int = 0,
        action_timeout: float = 3.0,
        leak_threshold: float = 0.0,
        record_lines: bool = False,
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
            bypass_window: seconds after a use during which a connection is lent without a look at
                its socket, which costs no round trip and finds what the server has closed.
            keepalive_interval: seconds between two queries that keep an idle connection alive;
                0: none are made.
            max_uses: how often a connection is lent until it is replaced; 0: no bound.
            action_timeout: seconds that `configure`, `check`, `reset`, a rollback or closing may
                take; what takes longer is given up, and the connection with it.
            leak_threshold: seconds after which a connection that is still lent is reported by a
                warning, and its return by another; 0: never.
            record_lines: note the line that acquires each connection, for errors and warnings;
                assignable, and costs less than a microsecond each time.

        Raises:
            ValueError: for sizes or numbers that make no pool.
            TypeError: for a callback that is a coroutine function.
        """
        if issubclass(connection_class, Connection):
            raise TypeError(
                f"connection_class must be an AsyncConnection in a pool for asyncio, not"
                f" {connection_class!r}; ConnectionPool takes that"
            )
        super().__init__(
            conninfo=conninfo,
            connection_class=connection_class,
            kwargs=kwargs,
            min_size=min_size,
            max_size=max_size,
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
            bypass_window=bypass_window,
            keepalive_interval=keepalive_interval,
            max_uses=max_uses,
            action_timeout=action_timeout,
            leak_threshold=leak_threshold,
            record_lines=record_lines,
        )
        self._begin(open)

    check_connection = staticmethod(check_connection_async)

    def connection(self, timeout: float | None = None) -> AsyncLease[ACT]:
        """Lend a connection for a `async with` block.

        At the end of the block the transaction is committed, or rolled back on an exception, and
        the connection is returned.  `timeout` and errors: see `getconn()`.
        """
        if self._implicitly_open:
            self._announce_implicit(RuntimeWarning, _CONSTRUCTED, stacklevel=2)
        lease: AsyncLease[ACT] = AsyncLease()  # AsyncLease.of(), written out
        lease._pool = self
        lease._timeout = timeout
        return lease

    async def getconn(self, timeout: float | None = None) -> ACT:
        """Lend a connection, to be returned by `putconn()`.

        Waits up to `timeout` seconds (the pool's `timeout` by default); 0: takes a connection
        only if one is ready.

        Raises:
            PoolTimeout: no connection in time.
            PoolClosed: the pool is not open.
            TooManyRequests: `max_waiting` clients wait already.
        """
        task = running_task(self._loop)
        if task is None or get_ident() != self._thread:
            task = self._expect_loop()
        conn = self._core.checkout(self._now(), task.get_name())
        if conn is None or self._guarded:
            conn = await self._acquire(conn, timeout)
        lent: ACT = conn
        conn._pool = self
        return lent

    async def putconn(self, conn: ACT) -> None:
        """Return a connection; an open transaction is rolled back, a broken one is replaced.

        Raises:
            ValueError: this pool has not lent the connection, or it was returned already.
        """
        if get_ident() != self._thread:
            self._expect_loop()
        lent: Any = conn
        try:
            entry, lender = lent._forebay_entry, lent._pool
        except AttributeError:
            raise self._stranger(conn) from None
        if lender is not self:
            if isinstance(entry, Inherited):
                return  # the parent process has it
            raise self._stranger(conn)
        lent._pool = None
        if self._unclean(conn):
            await self._flows.release(entry, conn)
            return
        effects = self._core.checkin(entry, conn, self._now())
        if effects is not None:
            await self._flows.conclude(effects)

    async def open(self, wait: bool = False, timeout: float = 30.0) -> None:
        """Open the pool; does nothing if it is open.

        With `wait`, block until it is filled: see `wait()`.

        Raises:
            PoolClosed: the pool was closed; make a new one.
            PoolTimeout: with `wait`, see `wait()`.
        """
        if self.closed or self._loop is None:
            self._open()
        if wait:
            await self.wait(timeout)

    async def close(self, timeout: float = 5.0) -> None:
        """Close the pool.

        Clients that wait, and later ones, get `PoolClosed`; idle connections are closed now, lent
        ones when they come back.  Waits up to `timeout` seconds for the background work to end.
        """
        await self._flows.close(timeout)

    async def wait(self, timeout: float = 30.0) -> None:
        """Block until `min_size` connections are ready, at most `timeout` seconds.

        A null pool makes one connection, as a test.

        Raises:
            PoolTimeout: they were not ready in time; the pool is closed.
            PoolRejected: connecting fails for good; the pool is closed.
            PoolClosed: the pool is not open.
        """
        self._expect_loop()
        if self._implicitly_open:
            self._announce_implicit(RuntimeWarning, _CONSTRUCTED, stacklevel=2)
        if self._null:
            await self._try_one(timeout)
            return
        try:
            filled = await self._flows.wait(timeout)
        except PoolTimeoutMixin:
            await self.close()
            raise
        if not filled:
            error = self._unfilled(timeout)
            await self.close()
            raise error

    async def resize(self, min_size: int, max_size: int | None = None) -> None:
        """Change the bounds of the pool; `max_size=None`: as many as `min_size`.

        Raises:
            ValueError: for sizes that make no pool; nothing is changed.
        """
        self._expect_loop()
        self._flows.transition("resize", min_size, self._bounds(min_size, max_size))

    async def check(self) -> None:
        """Check the idle connections by a round trip each, replace bad and expired ones."""
        self._expect_loop()
        await self._flows.verify()

    async def drain(self) -> None:
        """Replace all connections: idle ones now, lent ones when they come back."""
        self._expect_loop()
        self._flows.transition("drain")

    async def __aenter__(self) -> Self:
        """Open the pool."""
        self._leave_implicit()
        await self.open()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the pool."""
        await self.close()

    def _begin(self, open: bool | None) -> None:
        """What a constructor does last: open the pool, unless `open` is false."""
        self._plain_getconn = type(self).getconn is AsyncConnectionPool.getconn
        # Whether the pool's loop runs now, in this thread, is asked at each checkout, by asking for
        # its task: get_running_loop() would take 160 ns of Python 3.11 (docs/decisions/0005).
        self._loop: AbstractEventLoop | None = None
        self._thread = get_ident()
        # A lease may return a clean connection by itself: putconn() would do no more.
        self._swift = self._reset is None and type(self).putconn is AsyncConnectionPool.putconn
        if open or open is None:
            if open:
                warnings.warn(_CONSTRUCTED, RuntimeWarning, stacklevel=3)
            self._implicitly_open = open is None
            self._open()
        self._guard()

    def _open(self) -> None:
        try:
            self._loop = get_running_loop()
        except RuntimeError:
            raise RuntimeError(
                f"the pool {self.name!r} was opened outside a running event loop: open it in a"
                " coroutine, by `await pool.open()` or `async with pool:`"
            ) from None
        self._thread = get_ident()
        self._flows.open()

    def _expect_loop(self) -> Any:
        """Raise if an open pool is used from another event loop than its own.

        Returns the task that uses it.
        """
        if self._loop is None and not self.closed:
            self._open()  # in a forked child it belongs to the loop that uses it first
        if not self.closed and get_running_loop() is not self._loop:
            raise RuntimeError(
                f"the pool {self.name!r} belongs to the event loop it was opened in,"
                f" {self._loop!r}, and cannot be used from {get_running_loop()!r}: use one pool"
                " for each event loop"
            )
        return current_task() or NOBODY

    def _start_afresh(self) -> None:
        super()._start_afresh()
        self._loop, self._thread = None, NO_THREAD  # the next use tells

    async def _acquire(self, conn: Any, timeout: float | None) -> Any:
        """Do what `getconn()` could not do at once."""
        if self._implicitly_open:
            self._announce_implicit(RuntimeWarning, _CONSTRUCTED, stacklevel=3)
        if conn is None or self._thorough:
            patience = self.timeout if timeout is None else timeout
            try:
                conn = await self._flows.acquire(conn, patience)
            except PoolTimeoutMixin as error:
                self._report(error)
                raise
        if self._record_lines:
            conn._forebay_entry.line = acquiring_line()
        return conn

    async def _try_one(self, timeout: float) -> None:
        """Make one connection, as a test; close the pool if that fails."""
        started = self._now()
        try:
            await self.putconn(await self.getconn(timeout))
        except Exception as error:
            if self.closed:
                raise
            unfilled = self._unfilled(self._now() - started)
            await self.close()
            raise unfilled from error


class AsyncNullConnectionPool(AsyncConnectionPool[ACT]):
    """A pool that keeps no connection: it bounds and queues the clients of a server."""

    _null = True

    def __init__(
        self,
        conninfo: AsyncConninfoParam = "",
        *,
        connection_class: type[ACT] = cast("type[ACT]", AsyncConnection),
        kwargs: AsyncKwargsParam | None = None,
        min_size: int = 0,
        max_size: int | None = None,
        open: bool | None = None,
        configure: AsyncConnectionCB[ACT] | None = None,
        check: AsyncConnectionCB[ACT] | None = None,
        reset: AsyncConnectionCB[ACT] | None = None,
        name: str | None = None,
        close_returns: bool = False,
        timeout: float = 30.0,
        max_waiting: int = 0,
        max_lifetime: float = 60 * 60.0,
        max_idle: float = 10 * 60.0,
        reconnect_timeout: float = 5 * 60.0,
        reconnect_failed: AsyncConnectFailedCB | None = None,
        num_workers: int = 3,
        idle_order: IdleOrder = "lifo",
        bypass_window: float = 0.05,
        keepalive_interval: float = 0.0,
        max_uses: int = 0,
        action_timeout: float = 3.0,
        leak_threshold: float = 0.0,
        record_lines: bool = False,
    ) -> None:
        """Make a null pool; the parameters are those of `AsyncConnectionPool`, but for two.

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
            bypass_window=bypass_window,
            keepalive_interval=keepalive_interval,
            max_uses=max_uses,
            action_timeout=action_timeout,
            leak_threshold=leak_threshold,
            record_lines=record_lines,
        )
