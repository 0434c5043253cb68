"""The door for threads, whatever the driver below."""

# pyright: reportPossiblyUnboundVariable=false
# (a loop over `taking` makes one turn)

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable
from functools import wraps
from math import inf
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from ._core import Phase
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
from ._fork import Dormant
from ._runtime import run_sync
from ._stacks import acquiring_line
from ._threads import Threads, call_plain
from .errors import PoolClosedMixin, PoolTimeoutMixin
from .options import bounds

C = TypeVar("C")
R = TypeVar("R")

_IMPLICIT = (
    "the pool was opened by its constructor; the default for the 'open' parameter will become"
    " False: please use open=True or open=False, or use the pool as a context manager:"
    " `with ConnectionPool(...) as pool: ...`"
)


class Lease(Generic[C]):
    """A connection for the length of a `with` block; made by `ConnectionPool.connection()`.

    It may be entered again when it was left, not while it is entered.  As a decorator it runs each
    call of a function in a block of its own.
    """

    # No __init__: it would take 40 to 80 ns of each block (docs/decisions/0006).
    __slots__ = ("_conn", "_lent_at", "_pool", "_timeout", "_token")

    _pool: ThreadDoor[C]
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

    def __enter__(self) -> C:
        """Lend the connection."""
        if self._conn is not None:
            raise RuntimeError(ENTERED)
        self._conn = TAKEN  # no thread can come between: see docs/decisions/0013
        try:
            conn: Any = self._pool.getconn(self._timeout)
        except BaseException:
            self._conn = None
            raise
        try:
            entry = conn._forebay_entry
        except AttributeError:  # an agent's proxy, say, that takes no attributes
            entry = self._pool._forebay.flows.driver.entry(conn)
        self._lent_at = entry.lent_at
        self._token = entry.token or tied(entry, self._pool)
        entry.token = None
        entry.kept = self._conn = conn
        entry.leased = entry.holder or True
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
            for _ in parts.taking:
                try:
                    now = parts.now()
                    effects = parts.core.checkin(entry, conn, now, self._lent_at, self._token)
                finally:
                    parts.lock.release()
                break
            # Not before: what interrupts us leaves the lease its connection.
            self._conn = self._token = None
            if effects is not None:
                run_sync(parts.flows.conclude, effects)
            return None
        return self._end_slowly(conn, exc_type, exc, traceback)

    def __call__(self, function: Callable[..., R]) -> Callable[..., R]:
        """Run each call of `function` in a block of its own."""

        @wraps(function)
        def inside(*args: Any, **kwargs: Any) -> R:
            with self.of(self._pool, self._timeout):
                return function(*args, **kwargs)

        return inside

    def _end_slowly(
        self,
        conn: Any,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        """End a block whose connection cannot come back as it is."""
        parts = self._pool._forebay
        entry = parts.flows.driver.entry(conn)
        with parts.lock:
            ours = parts.core.claim(entry, self._lent_at)
        if not ours:
            left_early(self, entry, exc_type)
            return None
        try:
            # Inside a transition of its own thread a worker rolls back; but a commit is made here.
            if exc_type is not None and entry.plain and parts.flows.runtime.inside(parts.core):
                return None
            return self._end(conn, exc_type, exc, traceback)
        finally:
            if entry.leased and entry.lent_at is self._lent_at:  # else returned meanwhile
                if exc is not None and parts.flows.heed(entry, exc):
                    parts.flows.driver.mark(conn, None)
                    run_sync(parts.flows.release, entry, conn)
                else:
                    self._put_back(conn)
            with parts.lock:
                parts.core.untie(entry, self._token, self._lent_at)
            self._leave()

    def _leave(self) -> None:
        self._conn = self._token = None

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

    _forebay_runtime = Threads

    #: For subclasses that lock around what they do, as they could around the original's methods.
    _lock = Made(threading.RLock)

    def connection(self, timeout: float | None = None) -> Lease[C]:
        """Lend a connection for a `with` block.

        At the end of the block the transaction is committed, or rolled back on an exception, and
        the connection is returned.  `timeout` and errors: see `getconn()`.
        """
        if self._forebay.implicitly_open:
            announce_implicit(self, DeprecationWarning, _IMPLICIT, stacklevel=2)
        lease: Lease[C] = Lease()  # Lease.of(), written out
        lease._pool = self
        lease._timeout = timeout
        lease._conn = None
        return lease

    def getconn(self, timeout: float | None = None) -> C:
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
        for _ in parts.taking:
            try:
                conn = parts.core.checkout(parts.now(), parts.own.holder)
            finally:
                parts.lock.release()
            break
        if conn is None or parts.guarded:
            conn = acquire(self, conn, timeout)
        try:
            conn._pool = self
        except AttributeError:  # it takes no attributes
            parts.flows.driver.mark(conn, self)
        lent: C = conn
        return lent

    def putconn(self, conn: C) -> None:
        """Return a connection; an open transaction is rolled back, a broken one is replaced.

        Raises:
            ValueError: this pool has not lent the connection, or it was returned already.
        """
        lent: Any = conn
        parts = self._forebay
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
            run_sync(parts.flows.release, entry, lent)
            return
        for _ in parts.taking:
            try:
                effects = parts.core.checkin(entry, lent, parts.now(), lending)
            finally:
                parts.lock.release()
            break
        if effects is not None:
            run_sync(parts.flows.conclude, effects)

    def connect(self, timeout: float | None = None) -> C:
        """Open a connection with the pool's parameters that is none of the pool's.

        For what needs a session of its own for long: LISTEN, replication, a lock.  `configure` is
        called with it, as with the pool's own.  Its `close()` ends it.

        Args:
            timeout: seconds to connect (libpq's `connect_timeout`); by default the pool's
                parameters decide.

        Raises:
            The driver's error: it cannot be opened; there is one attempt.
        """
        conn: C = run_sync(self._forebay.flows.connect_apart, self, timeout)
        return conn

    def open(self, wait: bool = False, timeout: float = 30.0) -> None:
        """Open the pool; does nothing if it is open.

        With `wait`, block until it is filled: see `wait()`.

        Raises:
            PoolClosed: the pool was closed; make a new one.
            PoolTimeout: with `wait`, see `wait()`.
        """
        parts = self._forebay
        if parts.core.phase is Phase.NEW and parts.flows.runtime.outdated:
            parts.start_afresh()
        if self.closed or isinstance(parts.flows, Dormant):
            parts.flows.open()
        if wait:
            self.wait(timeout)

    def close(self, timeout: float | None = 5.0) -> None:
        """Close the pool.

        Clients that wait, and later ones, get `PoolClosed`; idle connections are closed now, lent
        ones when they come back.  Waits up to `timeout` seconds for the background work to end;
        `None`: for as long as that takes.  In a signal handler that interrupts one of the pool's
        own steps it does not wait: the pool is closed when the handler has returned.
        """
        run_sync(self._forebay.flows.close, inf if timeout is None else timeout)

    def wait(self, timeout: float = 30.0) -> None:
        """Block until `min_size` connections are ready, at most `timeout` seconds.

        A null pool makes one connection, as a test.

        Raises:
            PoolTimeout: they were not ready in time; the pool is closed.
            PoolRejected: the server refuses connections; the pool is closed only if no waiting
                can help, since the connection string is wrong.
            PoolClosed: the pool is not open.
        """
        if self._forebay.implicitly_open:
            announce_implicit(self, DeprecationWarning, _IMPLICIT, stacklevel=2)
        flows, began = self._forebay.flows, self._forebay.now()
        cause: Exception | None = None
        try:
            null = self._forebay.null
            filled = run_sync(flows.try_one if null else flows.wait, timeout)
        except PoolTimeoutMixin:
            if is_hopeless(self):
                self.close()
            raise
        except PoolClosedMixin:
            raise
        except Exception as error:  # of the one attempt of a null pool
            filled, cause = False, error
            timeout = self._forebay.now() - began
        if not filled:
            refusal = unfilled(self, timeout, cause)
            self.close()
            raise refusal

    def resize(self, min_size: int, max_size: int | None = None) -> None:
        """Change the bounds of the pool; `max_size=None`: as many as `min_size`.

        Raises:
            ValueError: for sizes that make no pool; nothing is changed.
        """
        parts = self._forebay
        parts.flows.transition("resize", min_size, bounds(parts.null, min_size, max_size))

    def check(self) -> None:
        """Check the idle connections by a round trip each, replace bad and expired ones."""
        run_sync(self._forebay.flows.verify)

    def drain(self) -> None:
        """Replace all connections: idle ones now, lent ones when they come back."""
        self._forebay.flows.transition("drain")

    def __enter__(self) -> Self:
        """Open the pool."""
        self._forebay.leave_implicit()
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

    # Names of the original's that programs call or override.

    def _resolve_conninfo(self) -> str:
        """The connection string, as it is now."""
        value: Any = self.conninfo
        conninfo: str = call_plain(value) if callable(value) else value
        return conninfo

    def _resolve_kwargs(self) -> dict[str, Any]:
        """The other arguments of connecting, as they are now."""
        value: Any = self.kwargs
        return dict((call_plain(value) if callable(value) else value) or {})

    def _connect(self, timeout: float | None = None) -> C:
        """Open a connection; if a subclass overrides it, the pool connects by that."""
        conn: C = run_sync(self._forebay.flows.connect_by, self, timeout)
        return conn

    def _forebay_overridden_connect(self) -> Any:
        return overridden(self, "_connect", CONNECT)


PUTCONN, CONNECT = ThreadDoor.putconn, ThreadDoor._connect


def begin(pool: Any, open: bool | None) -> None:
    """What a constructor does last: open the pool, unless `open` is false."""
    if open or open is None:
        pool._forebay.implicitly_open = open is None
        pool._forebay.flows.open()
    pool._forebay.guard()


def acquire(pool: Any, conn: Any, timeout: float | None) -> Any:
    """Do what `getconn()` could not do at once."""
    parts = pool._forebay
    if parts.implicitly_open:
        announce_implicit(pool, DeprecationWarning, _IMPLICIT, stacklevel=3)
    if conn is None or parts.thorough:
        patience = seconds(pool.timeout if timeout is None else timeout)
        try:
            conn = run_sync(parts.flows.acquire, conn, patience)
        except PoolTimeoutMixin as error:
            report(pool, error)
            raise
    if parts.record_lines:
        parts.flows.driver.entry(conn).line = acquiring_line()
    return conn


def expect_plain_functions(**callbacks: Any) -> None:
    """Refuse a coroutine function among the callbacks of a pool for threads."""
    for name, callback in callbacks.items():
        if inspect.iscoroutinefunction(callback):
            raise TypeError(
                f"{name} must be a plain function in a pool for threads, not the coroutine"
                f" function {callback!r}; the Async pools take those"
            )
