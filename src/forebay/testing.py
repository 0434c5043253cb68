"""Pools without a server: a clock that stands still and a driver that only pretends.

For tests of programs that use a pool, and for the pool's own:

    driver = FakeDriver()
    pool = fake_pool(ConnectionPool, driver, min_size=1, max_size=2)
    with pool.connection() as conn:
        conn.execute("SELECT 1")
    driver.refuse(OSError("server is down"))
"""

from __future__ import annotations

import weakref
from collections import deque
from itertools import count
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar, cast

import psycopg
from psycopg.pq import TransactionStatus

from ._sockets import Lifeline
from .drivers.psycopg import IDLE, USABLE, PsycopgDriver

if TYPE_CHECKING:
    from ._door import Door
    from ._entry import Entry

P = TypeVar("P", bound="Door")


class ManualClock:
    """A monotonic clock that moves when it is told to.

    Args:
        start: seconds it shows at first (float, default 1000.0).
    """

    def __init__(self, start: float = 1000.0) -> None:
        self._time = float(start)

    def now(self) -> float:
        """Seconds (float), as a new object each time, like the clocks of `time`."""
        return self._time + 0.0

    def advance(self, seconds: float) -> float:
        """Move on by `seconds` (float) and return the new time.

        Raises:
            ValueError: `seconds` is negative; a monotonic clock does not go back.
        """
        if not seconds >= 0:
            raise ValueError(f"a monotonic clock advances by 0 seconds or more, not {seconds!r}")
        self._time += seconds
        return self._time


class FakeConnection:
    """A session with no server; made by `FakeDriver`.

    It knows whether it is in a transaction, and raises `psycopg.OperationalError` when it is used
    after `lose()` or `close()`.  Works in `with` and in `async with`.

    Attributes:
        number: its place in the order in which its driver's sessions were opened (int, from 1).
        autocommit: whether `execute()` begins no transaction (bool, default False).
        status: its transaction status (`psycopg.pq.TransactionStatus`).
        closed: whether its client has closed it or found it lost (bool).
        queries: what was executed on it (list of str).
        standby: what the server has reported as `in_hot_standby` (bool, or None if it never did;
            default False).
        in_recovery: whether the server is a standby, which a pool must ask for (bool, default
            False).
        reason: what the server said when it ended the session (Exception or None, see `lose()`).
    """

    def __init__(self, driver: FakeDriver, number: int) -> None:
        self._driver = driver
        self._pool: Any = None
        self.number = number
        self.autocommit = False
        self.status = TransactionStatus.IDLE
        self.closed = False
        self.queries: list[str] = []
        self.standby: bool | None = False
        self.in_recovery = False
        self.reason: Exception | None = None
        driver.sessions.add(number)

    def __repr__(self) -> str:
        state = "closed" if self.closed else self.status.name
        return f"<FakeConnection {self.number} {state}>"

    def __del__(self) -> None:
        self._driver.sessions.discard(self.number)

    def execute(self, query: str) -> FakeConnection:
        """Note a query (str); begins a transaction unless `autocommit`.

        Raises:
            psycopg.OperationalError: the session is closed or lost.
        """
        self._expect_session()
        self.queries.append(query)
        if not self.autocommit:
            self.status = TransactionStatus.INTRANS
        return self

    def commit(self) -> None:
        """End the transaction, if there is one.

        Raises:
            psycopg.OperationalError: the session is closed or lost.
        """
        self._expect_session()
        self.status = TransactionStatus.IDLE

    def rollback(self) -> None:
        """End the transaction, if there is one.

        Raises:
            psycopg.OperationalError: the session is closed or lost.
        """
        self.commit()

    def lose(self, reason: Exception | None = None) -> None:
        """Let the server end the session; the client finds out when it uses it.

        A pool may find out before, as it may with a server, by looking at the idle connection.

        Args:
            reason: what it finds then; by default the `psycopg.errors.AdminShutdown` of
                `pg_terminate_backend()`.
        """
        self._end()
        self.reason = reason or psycopg.errors.AdminShutdown(
            "terminating connection due to administrator command"
        )

    def close(self) -> None:
        """End the session; again is harmless."""
        self._end()
        self.closed = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Commit, or roll back on an exception; close unless a pool has lent it."""
        if self.status in USABLE:
            if exc_type is None:
                self.commit()
            else:
                self.rollback()
        if self._pool is None:
            self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.__exit__(exc_type, exc, traceback)

    def _end(self) -> None:
        self._driver.sessions.discard(self.number)
        self.status = TransactionStatus.UNKNOWN

    def _expect_session(self) -> None:
        if self.number not in self._driver.sessions:
            self.closed = True
            self.status = TransactionStatus.UNKNOWN
            raise psycopg.OperationalError(f"the connection is closed: {self!r}")


class FakeLifeline(Lifeline):
    """The lifeline of a session with no server: `cut()` loses it."""

    __slots__ = ("_conn",)

    def __init__(self, conn: FakeConnection) -> None:
        self._conn = weakref.ref(conn)  # as the real one, it keeps no connection alive

    def cut(self) -> None:
        """End the session."""
        conn = self._conn()
        if conn is not None:
            conn.lose(psycopg.OperationalError("server closed the connection unexpectedly"))

    def close(self) -> None:
        """There is nothing to let go of."""


class FakeDriver(PsycopgDriver):
    """A driver that connects at once and to nothing; for pools for threads and for asyncio.

    It takes the errors that `refuse()` is given for what they would be with psycopg:
    `psycopg.OperationalError('FATAL:  database "x" does not exist')` is permanent, and an `OSError`
    passes.

    Attributes:
        sessions: numbers of the sessions that live: not closed, lost or garbage (set of int).
        attempts: how often a connection was asked for (int).
    """

    def __init__(self) -> None:
        super().__init__()
        self.unclean = _unclean
        self.sessions: set[int] = set()
        self.attempts = 0
        self._numbers = count(1)
        self._refusals: deque[BaseException] = deque()

    def refuse(self, error: BaseException, times: int = 1) -> None:
        """Have the next `times` attempts to connect (int, default 1) raise `error`."""
        self._refusals.extend([error] * times)

    def accept(self) -> None:
        """Have attempts to connect succeed again."""
        self._refusals.clear()

    def adopt(self, conn: Any, entry: Entry) -> None:
        """Attach `entry` to a new connection, which is not lent."""
        conn._pool = None
        conn._forebay_entry = entry
        entry.plain = True

    def usable(self, conn: Any) -> bool:
        """Whether a connection works and waits for a command."""
        return conn.status in USABLE

    def died(self, conn: Any) -> bool:
        """Whether the session was lost, not closed."""
        return conn.number not in self.sessions and conn.reason is not None

    def end(self, conn: Any) -> None:
        """Close a connection."""
        conn.close()

    def describe(self, conn: Any) -> str:
        """The name of the connection's transaction status."""
        name: str = conn.status.name
        return name

    def label(self, conn: Any) -> str:
        """What `repr()` gives."""
        return repr(conn)

    def deliver(self, conn: Any) -> None:
        """Nothing is heard from no server."""

    def readable(self, conns: list[Any]) -> list[Any]:
        """Those connections whose session has ended."""
        return [conn for conn in conns if conn.number not in self.sessions]

    def look(self, conn: Any) -> Exception | None:
        """Why the session has ended, as `lose()` was told; None while it lives."""
        if conn.number in self.sessions:
            return None
        return conn.reason or psycopg.OperationalError(f"the connection is closed: {conn!r}")

    def lifeline(self, conn: Any) -> Lifeline | None:
        """What ends the session; None if it has ended."""
        return FakeLifeline(conn) if conn.number in self.sessions else None

    def standby(self, conn: Any) -> bool | None:
        """The connection's `standby`."""
        reported: bool | None = conn.standby
        return reported

    async def in_recovery(self, conn: Any) -> bool:
        """The connection's `in_recovery`.

        Raises:
            psycopg.OperationalError: the session is closed or lost.
        """
        conn._expect_session()
        return bool(conn.in_recovery)

    async def connect(self, *_: Any) -> Any:
        """Make a connection, or raise what `refuse()` was given."""
        self.attempts += 1
        if self._refusals:
            raise self._refusals.popleft()
        return FakeConnection(self, next(self._numbers))

    async def close(self, conn: Any) -> None:
        """Close a connection."""
        conn.close()

    async def rollback(self, conn: Any) -> None:
        """End the transaction."""
        conn.rollback()

    async def ping(self, conn: Any) -> None:
        """Make one round trip."""
        conn._expect_session()


def _unclean(conn: Any) -> Any:
    return conn.status != IDLE


def fake_pool(
    pool_class: type[P],
    driver: FakeDriver | None = None,
    clock: ManualClock | None = None,
    **options: Any,
) -> P:
    """A pool of `pool_class` over a fake driver.

    Args:
        pool_class: `ConnectionPool`, `AsyncConnectionPool`, or a null pool.
        driver: what connects; a new `FakeDriver` by default.
        clock: what tells the pool the time, which decides about lifetimes, backoff and counters;
            real time by default.  Waiting itself is done by threads and event loops, which know
            only real time.
        options: arguments of `pool_class`; by default `open=True` in a pool for threads and
            `open=False` in a pool for asyncio.

    Raises:
        ValueError, TypeError: what `pool_class` raises.
    """
    from .pool import ConnectionPool

    used = driver or FakeDriver()
    members = {"chance": staticmethod(lambda: 0.5)}
    if clock is not None:
        members["now"] = staticmethod(clock.now)
    world = pool_class._forebay_runtime
    runtime_class = type(f"Fake{world.__name__}", (world,), members)
    places = {"_forebay_runtime": runtime_class, "_forebay_driver": staticmethod(lambda: used)}
    options.setdefault("open", issubclass(pool_class, ConnectionPool))
    return cast(P, type(pool_class.__name__, (pool_class,), places)(**options))
