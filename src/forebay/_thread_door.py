"""The door for threads, whatever the driver below."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from ._door import Door
from ._fork import Dormant, Inherited
from ._runtime import run_sync
from ._stacks import acquiring_line
from ._threads import Threads, mine
from .errors import PoolTimeoutMixin

if TYPE_CHECKING:
    from typing import Self

C = TypeVar("C")

_IMPLICIT = (
    "the pool was opened by its constructor; the default for the 'open' parameter will become"
    " False: please use open=True or open=False, or use the pool as a context manager:"
    " `with ConnectionPool(...) as pool: ...`"
)


class Lease(Generic[C]):
    """A connection for the length of a `with` block; made by `ConnectionPool.connection()`."""

    # No __init__: it would take 40 to 80 ns of each block (docs/decisions/0006).
    __slots__ = ("_conn", "_lent_at", "_pool", "_timeout")

    _pool: ThreadDoor[C]
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

    def __enter__(self) -> C:
        """Lend the connection."""
        pool = self._pool
        if pool._quick:
            with pool._lock:
                conn = pool._core.checkout(pool._now(), mine.holder)
            if conn is None:
                conn = pool._acquire(conn, self._timeout)
            conn._pool = pool
        else:
            conn = self._take()
        entry = conn._forebay_entry
        self._lent_at = entry.lent_at
        entry.leased = entry.holder or True
        self._conn = conn
        lent: C = conn if entry.plain else self._begin(conn)
        return lent

    def __exit__(
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
            with pool._lock:
                effects = pool._core.checkin(entry, conn, pool._now())
            self._conn = None  # not before: what interrupts us leaves the lease its connection
            if effects is not None:
                run_sync(pool._flows.conclude(effects))
            return None
        if pool._is_inside():
            return None  # see putconn(); to lose the lease returns the connection
        try:
            return self._end(conn, exc_type, exc, traceback)
        finally:
            if exc is not None and pool._flows.heed(entry, exc):
                conn._pool = None
                run_sync(pool._flows.release(entry, conn))
            else:
                self._put_back(conn)
            self._conn = None

    def __del__(self) -> None:
        """Lost in its block: hand the connection to maintenance, and nothing else (rule 8)."""
        try:
            if self._conn is not None and not self._pool.closed:
                self._pool._core.forsaken.append((self._conn, self._lent_at))
        except AttributeError:
            pass  # it was never entered

    def _take(self) -> Any:
        """Have the pool lend a connection."""
        return self._pool.getconn(self._timeout)

    def _begin(self, conn: Any) -> Any:
        """Begin the block of a connection whose class has a say in that."""
        return conn.__enter__()

    def _end(self, conn: Any, *error: Any) -> bool | None:
        """End the transaction."""
        swallowed: bool | None = conn.__exit__(*error)
        return swallowed

    def _put_back(self, conn: Any) -> None:
        """Return the connection to the pool."""
        self._pool.putconn(conn)


class ThreadDoor(Door, Generic[C]):
    """A pool that any number of threads share."""

    _runtime_class = Threads

    def _begin(self, open: bool | None) -> None:
        """What a constructor does last: open the pool, unless `open` is false."""
        self._plain_getconn = type(self).getconn is ThreadDoor.getconn
        lock: Any = self._lock
        self._is_inside: Callable[[], bool] = lock._is_owned
        # A lease may return a clean connection by itself: putconn() would do no more.
        self._swift = self._reset is None and type(self).putconn is ThreadDoor.putconn
        if open or open is None:
            self._implicitly_open = open is None
            self._flows.open()
        self._guard()

    def connection(self, timeout: float | None = None) -> Lease[C]:
        """Lend a connection for a `with` block.

        At the end of the block the transaction is committed, or rolled back on an exception, and
        the connection is returned.  `timeout` and errors: see `getconn()`.
        """
        if self._implicitly_open:
            self._announce_implicit(DeprecationWarning, _IMPLICIT, stacklevel=2)
        lease: Lease[C] = Lease()  # Lease.of(), written out
        lease._pool = self
        lease._timeout = timeout
        return lease

    def getconn(self, timeout: float | None = None) -> C:
        """Lend a connection, to be returned by `putconn()`.

        Waits up to `timeout` seconds (the pool's `timeout` by default); 0: takes a connection
        only if one is ready.

        Raises:
            PoolTimeout: no connection in time.
            PoolClosed: the pool is not open.
            TooManyRequests: `max_waiting` clients wait already.
        """
        with self._lock:
            conn = self._core.checkout(self._now(), mine.holder)
        if conn is None or self._guarded:
            conn = self._acquire(conn, timeout)
        conn._pool = self
        lent: C = conn
        return lent

    def putconn(self, conn: C) -> None:
        """Return a connection; an open transaction is rolled back, a broken one is replaced.

        Raises:
            ValueError: this pool has not lent the connection, or it was returned already.
        """
        lent: Any = conn
        try:
            entry, lender = lent._forebay_entry, lent._pool
        except AttributeError:
            raise self._stranger(conn) from None
        if lender is not self:
            if isinstance(entry, Inherited):
                return  # the parent process has it
            raise self._stranger(conn)
        if self._is_inside():
            return  # a finalizer, inside a transition of its own thread: to drop it is to return it
        lent._pool = None
        if self._unclean(conn):
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
        if self.closed or isinstance(self._flows, Dormant):
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

        A null pool makes one connection, as a test.

        Raises:
            PoolTimeout: they were not ready in time; the pool is closed.
            PoolRejected: connecting fails for good; the pool is closed.
            PoolClosed: the pool is not open.
        """
        if self._implicitly_open:
            self._announce_implicit(DeprecationWarning, _IMPLICIT, stacklevel=2)
        if self._null:
            self._try_one(timeout)
            return
        try:
            filled = run_sync(self._flows.wait(timeout))
        except PoolTimeoutMixin:
            self.close()
            raise
        if not filled:
            error = self._unfilled(timeout)
            self.close()
            raise error

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

    def _start_afresh(self) -> None:
        super()._start_afresh()
        lock: Any = self._lock
        self._is_inside = lock._is_owned

    def _acquire(self, conn: Any, timeout: float | None) -> Any:
        """Do what `getconn()` could not do at once."""
        if self._implicitly_open:
            self._announce_implicit(DeprecationWarning, _IMPLICIT, stacklevel=3)
        if conn is None or self._thorough:
            patience = self.timeout if timeout is None else timeout
            try:
                conn = run_sync(self._flows.acquire(conn, patience))
            except PoolTimeoutMixin as error:
                self._report(error)
                raise
        if self._record_lines:
            conn._forebay_entry.line = acquiring_line()
        return conn

    def _try_one(self, timeout: float) -> None:
        """Make one connection, as a test; close the pool if that fails."""
        started = self._now()
        try:
            self.putconn(self.getconn(timeout))
        except Exception as error:
            if self.closed:
                raise
            unfilled = self._unfilled(self._now() - started)
            self.close()
            raise unfilled from error


def expect_plain_functions(**callbacks: Any) -> None:
    """Refuse a coroutine function among the callbacks of a pool for threads."""
    for name, callback in callbacks.items():
        if inspect.iscoroutinefunction(callback):
            raise TypeError(
                f"{name} must be a plain function in a pool for threads, not the coroutine"
                f" function {callback!r}; the Async pools take those"
            )
