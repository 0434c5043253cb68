"""The door for asyncio, whatever the driver below."""

from __future__ import annotations

import sys
import warnings
from _thread import get_ident
from asyncio import Lock, current_task, get_running_loop, tasks
from collections.abc import Awaitable, Callable
from functools import wraps
from math import inf
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from ._asyncio import Asyncio
from ._door import (
    ENTERED,
    TAKEN,
    Door,
    Made,
    announce_implicit,
    is_hopeless,
    left_early,
    overridden,
    report,
    returned,
    seconds,
    tied,
    unfilled,
)
from ._stacks import acquiring_line
from .errors import PoolClosedMixin, PoolTimeoutMixin
from .options import bounds

if sys.version_info >= (3, 12):
    running_task: Any = current_task
else:  # current_task() is in C only from 3.12 on; this is what it looks into
    running_task: Any = vars(tasks)["_current_tasks"].get

C = TypeVar("C")
R = TypeVar("R")

_CONSTRUCTED = (
    "opening an async pool in its constructor is deprecated: please use `await pool.open()`, or"
    " use the pool as a context manager: `async with AsyncConnectionPool(...) as pool: ...`"
)


class Nobody:
    """Stands for the task where a coroutine is driven by something else."""

    def get_name(self) -> None:
        """No name."""


NOBODY = Nobody()


class AsyncLease(Generic[C]):
    """A connection for the length of an `async with` block; made by `connection()`.

    It may be entered again when it was left, not while it is entered.  As a decorator it runs each
    call of a coroutine function in a block of its own.
    """

    # No __init__: it would take 40 to 80 ns of each block (docs/decisions/0006).
    __slots__ = ("_conn", "_lent_at", "_pool", "_timeout", "_token")

    _pool: AsyncDoor[C]
    _timeout: float | None
    _conn: Any  # while it is lent; TAKEN from the moment the lease is entered
    _lent_at: float
    _token: Any  # of the connection: if the lease is dropped in its block, it dies with it

    @classmethod
    def of(cls, pool: Any, timeout: float | None) -> Self:
        """Make one."""
        lease = cls()
        lease._pool = pool
        lease._timeout = timeout
        lease._conn = None
        return lease

    async def __aenter__(self) -> C:
        """Lend the connection."""
        if self._conn is not None:
            raise RuntimeError(ENTERED)
        pool = self._pool
        parts = pool._forebay
        if parts.checks_out.getconn is GETCONN:
            task = running_task(parts.loop)
            if task is None or get_ident() != parts.thread:
                task = expect_loop(pool)
            conn: Any = parts.core.checkout(parts.now(), task.get_name())
            if conn is None:
                conn = await when_lent(self, acquire(pool, None, self._timeout))
            try:
                conn._pool = pool
            except AttributeError:  # it takes no attributes
                parts.flows.driver.mark(conn, pool)
        else:
            conn = await when_lent(self, pool.getconn(self._timeout))
            task = current_task()
        try:
            entry = conn._forebay_entry
        except AttributeError:
            entry = parts.flows.driver.entry(conn)
        self._lent_at = entry.lent_at
        self._token = entry.token or tied(entry, pool)
        entry.token = None
        entry.kept = self._conn = conn
        entry.leased = id(task)  # names may be many tasks'
        lent: C = conn if entry.plain else await self._begin(conn)
        return lent

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        """Commit or roll back, and return the connection."""
        conn = self._conn
        parts = self._pool._forebay
        try:
            entry = conn._forebay_entry
        except AttributeError:
            if conn is None or conn is TAKEN:
                return None  # left before, or never entered
            entry = parts.flows.driver.entry(conn)
        if (
            exc_type is None
            and entry.plain
            and parts.checks_in.putconn is PUTCONN
            and not parts.unclean(conn)
            # Else returned inside the block; perhaps lent to somebody else by now.
            and entry.leased
            and entry.lent_at is self._lent_at
        ):
            # No call since the last line: whatever a signal handler does, it is ours still.
            conn._pool = None
            effects = parts.core.checkin(entry, conn, parts.now(), self._lent_at, self._token)
            # Not before: what interrupts us leaves the lease its connection.
            self._conn = self._token = None
            if effects is not None:
                await parts.flows.conclude(effects)
            return None
        return await self._end_slowly(conn, exc_type, exc, traceback)

    def __call__(self, function: Callable[..., Awaitable[R]]) -> Callable[..., Awaitable[R]]:
        """Run each call of a coroutine function in a block of its own."""

        @wraps(function)
        async def inside(*args: Any, **kwargs: Any) -> R:
            async with self.of(self._pool, self._timeout):
                return await function(*args, **kwargs)

        return inside

    async def _end_slowly(
        self,
        conn: Any,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        """End a block whose connection cannot come back as it is."""
        parts = self._pool._forebay
        entry = parts.flows.driver.entry(conn)
        if not parts.core.claim(entry, self._lent_at):
            left_early(self, entry, exc_type)
            return None
        if exc_type is GeneratorExit and entry.leased != id(running_task(parts.loop)):
            # The collector ends a block of which nobody can await the end: a worker rolls back.
            parts.flows.driver.mark(conn, None)
            parts.flows.hand_over(entry, conn)
            self._leave()
            return None
        try:
            # Inside a transition of its own thread a worker rolls back; but a commit is made here.
            if exc_type is not None and entry.plain and parts.flows.runtime.inside(parts.core):
                return None
            return await self._end(conn, exc_type, exc, traceback)
        finally:
            if entry.leased and entry.lent_at is self._lent_at:  # else returned meanwhile
                if exc is not None and parts.flows.heed(entry, exc):
                    parts.flows.driver.mark(conn, None)
                    await parts.flows.release(entry, conn)
                else:
                    await self._put_back(conn)
            parts.core.untie(entry, self._token, self._lent_at)
            self._leave()

    def _leave(self) -> None:
        self._conn = self._token = None

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


class AsyncDoor(Door, Generic[C]):
    """A pool to be shared by the tasks of one event loop."""

    _forebay_runtime = Asyncio

    #: For subclasses that lock around what they do, as they could around the original's methods.
    _lock = Made(Lock)

    def connection(self, timeout: float | None = None) -> AsyncLease[C]:
        """Lend a connection for a `async with` block.

        At the end of the block the transaction is committed, or rolled back on an exception, and
        the connection is returned.  `timeout` and errors: see `getconn()`.
        """
        if self._forebay.implicitly_open:
            announce_implicit(self, RuntimeWarning, _CONSTRUCTED, stacklevel=2)
        lease: AsyncLease[C] = AsyncLease()  # AsyncLease.of(), written out
        lease._pool = self
        lease._timeout = timeout
        lease._conn = None
        return lease

    async def getconn(self, timeout: float | None = None) -> C:
        """Lend a connection, to be returned by `putconn()`.

        Waits up to `timeout` seconds (the pool's `timeout` by default); 0: takes a connection
        only if one is ready.

        Raises:
            PoolTimeout: no connection in time; or, at once, the caller is a signal handler or a
                finalizer that runs inside one of the pool's own steps.
            PoolClosed: the pool is not open.
            TooManyRequests: `max_waiting` clients wait already.
        """
        parts = self._forebay
        task = running_task(parts.loop)
        if task is None or get_ident() != parts.thread:
            task = expect_loop(self)
        conn = parts.core.checkout(parts.now(), task.get_name())
        if conn is None or parts.guarded:
            conn = await acquire(self, conn, timeout)
        try:
            conn._pool = self
        except AttributeError:  # it takes no attributes
            parts.flows.driver.mark(conn, self)
        lent: C = conn
        return lent

    async def putconn(self, conn: C) -> None:
        """Return a connection; an open transaction is rolled back, a broken one is replaced.

        Raises:
            ValueError: this pool has not lent the connection, or it was returned already.
        """
        parts = self._forebay
        if get_ident() != parts.thread:
            expect_loop(self)
        lent: Any = conn
        entry: Any
        try:
            entry, lender = lent._forebay_entry, lent._pool
        except AttributeError:
            entry = lender = None
        if lender is self and (entry.plain or entry.ref is None or entry.ref() is lent):
            lending, lent._pool = entry.lent_at, None
        else:
            found = returned(self, lent, lender)
            if found is None:
                return  # the parent process has it
            entry, lent = found
            lending = entry.lent_at
        if parts.unclean(lent):
            await parts.flows.release(entry, lent)
            return
        effects = parts.core.checkin(entry, lent, parts.now(), lending)
        if effects is not None:
            await parts.flows.conclude(effects)

    async def connect(self, timeout: float | None = None) -> C:
        """Open a connection with the pool's parameters that is none of the pool's.

        For what needs a session of its own for long: LISTEN, replication, a lock.  `configure` is
        called with it, as with the pool's own.  Its `close()` ends it.

        Args:
            timeout: seconds to connect (libpq's `connect_timeout`); by default the pool's
                parameters decide.

        Raises:
            The driver's error: it cannot be opened; there is one attempt.
        """
        conn: C = await self._forebay.flows.connect_apart(self, timeout)
        return conn

    async def open(self, wait: bool = False, timeout: float = 30.0) -> None:
        """Open the pool; does nothing if it is open.

        With `wait`, block until it is filled: see `wait()`.

        Raises:
            PoolClosed: the pool was closed; make a new one.
            PoolTimeout: with `wait`, see `wait()`.
        """
        if self.closed or self._forebay.loop is None:
            open_here(self)
        if wait:
            await self.wait(timeout)

    async def close(self, timeout: float | None = 5.0) -> None:
        """Close the pool.

        Clients that wait, and later ones, get `PoolClosed`; idle connections are closed now, lent
        ones when they come back.  Waits up to `timeout` seconds for the background work to end;
        `None`: for as long as that takes.
        """
        if not self.closed:
            expect_loop(self, closing=True)
        await self._forebay.flows.close(inf if timeout is None else timeout)

    async def wait(self, timeout: float = 30.0) -> None:
        """Block until `min_size` connections are ready, at most `timeout` seconds.

        A null pool makes one connection, as a test.

        Raises:
            PoolTimeout: they were not ready in time; the pool is closed.
            PoolRejected: the server refuses connections; the pool is closed only if no waiting
                can help, since the connection string is wrong.
            PoolClosed: the pool is not open.
        """
        expect_loop(self)
        if self._forebay.implicitly_open:
            announce_implicit(self, RuntimeWarning, _CONSTRUCTED, stacklevel=2)
        flows, began = self._forebay.flows, self._forebay.now()
        cause: Exception | None = None
        try:
            null = self._forebay.null
            filled = await (flows.try_one(timeout) if null else flows.wait(timeout))
        except PoolTimeoutMixin:
            if is_hopeless(self):
                await self.close()
            raise
        except PoolClosedMixin:
            raise
        except Exception as error:  # of the one attempt of a null pool
            filled, cause = False, error
            timeout = self._forebay.now() - began
        if not filled:
            refusal = unfilled(self, timeout, cause)
            await self.close()
            raise refusal

    async def resize(self, min_size: int, max_size: int | None = None) -> None:
        """Change the bounds of the pool; `max_size=None`: as many as `min_size`.

        Raises:
            ValueError: for sizes that make no pool; nothing is changed.
        """
        expect_loop(self)
        parts = self._forebay
        parts.flows.transition("resize", min_size, bounds(parts.null, min_size, max_size))

    async def check(self) -> None:
        """Check the idle connections by a round trip each, replace bad and expired ones."""
        expect_loop(self)
        await self._forebay.flows.verify()

    async def drain(self) -> None:
        """Replace all connections: idle ones now, lent ones when they come back."""
        expect_loop(self)
        self._forebay.flows.transition("drain")

    async def __aenter__(self) -> Self:
        """Open the pool."""
        self._forebay.leave_implicit()
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

    # Names of the original's that programs call or override.

    async def _resolve_conninfo(self) -> str:
        """The connection string, as it is now."""
        conninfo: str = await self._forebay.flows.value(self.conninfo)
        return conninfo

    async def _resolve_kwargs(self) -> dict[str, Any]:
        """The other arguments of connecting, as they are now."""
        return dict(await self._forebay.flows.value(self.kwargs) or {})

    async def _connect(self, timeout: float | None = None) -> C:
        """Open a connection; if a subclass overrides it, the pool connects by that."""
        conn: C = await self._forebay.flows.connect_by(self, timeout)
        return conn

    def _forebay_overridden_connect(self) -> Any:
        return overridden(self, "_connect", CONNECT)


GETCONN, PUTCONN = AsyncDoor.getconn, AsyncDoor.putconn
CONNECT = AsyncDoor._connect


def begin(pool: Any, open: bool | None) -> None:
    """What a constructor does last: open the pool, unless `open` is false."""
    if open or open is None:
        if open:
            # To the caller of the constructor; that of a null pool calls another.
            level = 4 if pool._forebay.null else 3
            warnings.warn(_CONSTRUCTED, RuntimeWarning, stacklevel=level)
        pool._forebay.implicitly_open = open is None
        open_here(pool)
    pool._forebay.guard()


def open_here(pool: Any) -> None:
    """Open a pool in the running event loop.

    Whether that loop runs now, in this thread, is asked at each checkout, by asking for its task:
    get_running_loop() would take 160 ns of Python 3.11 (docs/decisions/0005).
    """
    parts = pool._forebay
    try:
        parts.loop = get_running_loop()
    except RuntimeError:
        raise RuntimeError(
            f"the pool {pool.name!r} was opened outside a running event loop: open it in a"
            " coroutine, by `await pool.open()` or `async with pool:`"
        ) from None
    parts.thread = get_ident()
    parts.flows.open()


def expect_loop(pool: Any, *, closing: bool = False) -> Any:
    """Have an open pool work in the running event loop; returns the task that runs.

    Raises:
        RuntimeError: the loop that it works in runs too.
    """
    parts = pool._forebay
    loop = get_running_loop()
    if not pool.closed and loop is not parts.loop:
        if parts.loop is None:
            open_here(pool)  # in a forked child it belongs to the loop that uses it first
        elif parts.loop.is_running():
            raise RuntimeError(
                f"the pool {pool.name!r} works in another event loop that runs now, {parts.loop!r},"
                f" and cannot be used from {loop!r}: use one pool for each event loop"
            )
        else:
            ended, parts.loop, parts.thread = parts.loop, loop, get_ident()
            parts.flows.move(evict=ended.is_closed(), closing=closing)
    return current_task() or NOBODY


async def when_lent(lease: AsyncLease[Any], lending: Awaitable[Any]) -> Any:
    """Wait for a connection; the lease counts as entered meanwhile."""
    lease._conn = TAKEN
    try:
        return await lending
    except BaseException:
        lease._conn = None
        raise


async def acquire(pool: Any, conn: Any, timeout: float | None) -> Any:
    """Do what `getconn()` could not do at once."""
    parts = pool._forebay
    if parts.implicitly_open:
        announce_implicit(pool, RuntimeWarning, _CONSTRUCTED, stacklevel=3)
    if conn is None or parts.thorough:
        patience = seconds(pool.timeout if timeout is None else timeout)
        try:
            conn = await parts.flows.acquire(conn, patience)
        except PoolTimeoutMixin as error:
            report(pool, error)
            raise
    if parts.record_lines:
        parts.flows.driver.entry(conn).line = acquiring_line()
    return conn
