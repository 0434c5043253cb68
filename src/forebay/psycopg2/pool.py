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

# pyright: reportPossiblyUnboundVariable=false
# (a loop over `taking` makes one turn)

from __future__ import annotations

import logging
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from math import inf
from typing import TYPE_CHECKING, Any, NamedTuple

import psycopg2
from psycopg2.extensions import STATUS_READY

from .._core import ALL, Core
from .._door import ENTERED, TAKEN, Reading, statistics, tied
from .._entry import EVICTED, IDLE, LENT, Effects
from .._flows import Source
from .._fork import Inherited
from .._runtime import run_sync
from ..drivers.psycopg2 import DropInDriver, connect, is_fresh, unclean
from ..options import Settings
from ._dropin import NESTED, DropInParts
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
            f" (max_waiting={core.settings.max_waiting})"
        )

    def timeout(self, core: Core, timeout: float, now: float, client: Waiter) -> PoolError:
        """No connection in time; the cause is the last error of a check, if they fail now."""
        del now, client
        waited = f": none came back in {timeout:.2f} sec" if timeout > 0 else ""
        error = PoolError(f"connection pool exhausted{waited}")
        if core.failures:
            error.__cause__ = core.last_error
        return error

    def nested(self, core: Core) -> PoolError:
        """The client asks inside a step of the pool that its own thread makes."""
        del core
        return PoolError(f"connection pool busy: {NESTED}")

    def rejected(self, core: Core, error: Exception, now: float) -> Exception:
        """An error of connecting is the caller's."""
        del core, now
        return error

    def deadlock(self, core: Core, now: float, stuck: dict[Any, Waiter]) -> None:
        """Nothing is certain of connections that may be returned with a key, from any thread."""
        del core, now, stuck


class Loan(NamedTuple):
    """A connection that is lent with a key."""

    conn: Any
    entry: Entry
    lending: float  # `lent_at` of this lending, as an object


class KeyedParts(DropInParts):
    """The parts of a pool, and what its connections are lent with."""

    __slots__ = ("keys_by_id", "loans", "timeout")

    def __init__(self, pool: Any, core: Core, timeout: float, *, strict: bool) -> None:
        super().__init__(pool, core, strict=strict)
        self.timeout = timeout
        self.loans: dict[Any, Loan] = {}  # by key
        self.keys_by_id: dict[int, Any] = {}

    def source(self, pool: Any) -> Source:
        """The parameters of connecting, as they are now."""
        given = (*pool._args, None, None)
        return Source(None, given[0] or "", {"connection_factory": given[1], **pool._kwargs})

    def forget_all(self) -> None:
        """Drop the keys."""
        self.loans.clear()
        self.keys_by_id.clear()

    def start_afresh(self) -> None:
        """In a forked child: forget the parent's connections, and make every part anew."""
        super().start_afresh()
        self.loans, self.keys_by_id = {}, {}

    def acquire(self, conn: Any) -> Any:
        """Do what `_getconn()` could not do at once."""
        core = self.core
        if conn is None and (not core.idle or self.now() >= core.due):
            self.maintain()
        conn = run_sync(self.flows.acquire, conn, self.timeout)
        if not core.settings.max_lifetime:
            core.use(self.flows.driver.entry(conn))
        return conn

    def held(self, key: Any) -> Any:
        """The connection that is lent with a key, whether it works or not."""
        with self.lock:
            loan = self.loans.get(key)
            if loan is None:
                return None
            if loan.entry.place is LENT and loan.entry.lent_at is loan.lending:
                return loan.conn
            self.loans.pop(key, None)  # its lease was dropped, or it was found closed
            self.keys_by_id.pop(id(loan.conn), None)
            return None

    def keyed(self, key: Any) -> Any:
        """The connection that is lent with a key, if there is one and it works."""
        conn = self.held(key)
        if conn is not None and self.flows.driver.closed(conn):
            if not self.closed:
                self.put_away(conn)
            return None
        return conn

    def note(self, key: Any, conn: Any) -> Any:
        """Note the key of a connection; the one that has it, if another thread was faster."""
        entry = self.flows.driver.entry(conn)
        with self.lock:
            first = self.loans.setdefault(key, Loan(conn, entry, entry.lent_at)).conn
            self.keys_by_id[id(first)] = key
        return first

    def put_away(self, conn: Any, key: Any = None, close: bool = False) -> None:
        """Take a connection back that has a key, is not clean, or must be closed."""
        driver = self.flows.driver
        entry: Entry = driver.entry(conn)
        lending = entry.lent_at
        close = close or self.is_lost(entry)
        with self.lock:
            if self.closed:
                raise self.core.refusals.closed(self.core)
            known = self.keys_by_id.get(id(conn))
            if key is not None and key != known:
                raise PoolError(f"the connection was not lent with the key {key!r} but {known!r}")
            self.keys_by_id.pop(id(conn), None)
            self.loans.pop(known, None)
            driver.mark(conn, None)
        if self.inside:
            self.put_off(entry, conn, lending, evict=close)
            return
        tidy = not unclean(conn)
        if driver.closed(conn) or not (close or tidy or self._full):
            run_sync(self.flows.release, entry, conn)
            return
        with self.lock:
            if close or not tidy:  # to be closed, so not rolled back; nor kept if there is room now
                entry.expires_at = EVICTED
            effects = self.core.checkin(entry, conn, self.now(), lending)
        run_sync(self.flows.conclude, effects or Effects())
        if self.core.lost:
            self.maintain()

    def take_otherwise(self, conn: Any, key: Any, close: bool) -> None:
        """Take back what is no connection of psycopg2's, or is behind what was lent."""
        driver = self.flows.driver
        if isinstance(driver.find(conn), Inherited):
            return  # the parent process has it
        lent = driver.lent(conn, self.pool())
        if lent is None:
            self.expect_open()
            raise PoolError("trying to put unkeyed connection")
        self.put_away(lent[1], key, close)

    def fill(self, number: int) -> None:
        """Open the first connections."""
        core = self.core
        try:
            first = [self.acquire(None) for _ in range(number)]
        except BaseException:
            self.close()
            raise
        with self.lock:
            for conn in first:
                entry = self.flows.driver.entry(conn)
                core.checkin(entry, conn, self.now(), entry.lent_at)
            core.requests_queued, core.requests_time = 0, 0.0  # these were no clients

    @property
    def _full(self) -> bool:
        """Whether a connection that comes back would be closed."""
        return len(self.core.idle) >= self.core.keep and not self.core.waiting


class PoolLease(TransactionLease["Connection"]):
    """A connection of these pools for the length of a `with` block."""

    __slots__ = ()

    def __enter__(self) -> Connection:
        """Lend the connection."""
        pool: Any = self._pool
        conn = self._take()
        try:
            entry = conn._forebay_entry
        except AttributeError:
            entry = pool._forebay.flows.driver.entry(conn)
        self._lent_at = entry.lent_at
        self._token = entry.token or tied(entry, pool)
        entry.token = None
        entry.kept = self._conn = conn
        entry.leased = entry.holder or True
        lent: Connection = conn
        return lent

    def _take(self) -> Any:
        """Have the pool lend a connection to this lease, which is not entered twice."""
        if self._conn is not None:
            raise RuntimeError(ENTERED)
        self._conn = TAKEN
        pool: Any = self._pool
        try:
            return pool.getconn()
        except BaseException:
            self._conn = None
            raise


class Used(Mapping[Any, Any]):
    """The connections that a pool has lent, by key; those without one have a number."""

    def __init__(self, parts: KeyedParts) -> None:
        self._parts = parts

    def _now(self) -> dict[Any, Any]:
        parts = self._parts
        lent = [entry.ref and entry.ref() for entry in [*parts.core.entries] if entry.place is LENT]
        keys = parts.keys_by_id
        return {keys.get(id(conn), id(conn)): conn for conn in lent if conn is not None}

    def __getitem__(self, key: Any) -> Any:
        return self._now()[key]

    def __setitem__(self, key: Any, value: Any) -> None:
        """Nothing: a `_connect()` after the original's notes what the pool notes itself."""

    def __iter__(self) -> Iterator[Any]:
        return iter(self._now())

    def __len__(self) -> int:
        return len(self._now())

    def __repr__(self) -> str:
        return repr(self._now())


class Keys(Used):
    """The keys of the connections that a pool has lent, by `id()`."""

    def _now(self) -> dict[Any, Any]:
        return {id(conn): key for key, conn in super()._now().items()}


class Idle(Sequence[Any]):
    """The idle connections of a pool, the one returned last at the end."""

    def __init__(self, parts: KeyedParts) -> None:
        self._parts = parts

    def _now(self) -> list[Any]:
        conns = [entry.conn for entry in [*self._parts.core.idle] if entry.place is IDLE]
        return [conn for conn in conns if conn is not None]

    def append(self, conn: Any) -> None:
        """Nothing: a `_connect()` after the original's notes what the pool notes itself."""

    def __getitem__(self, index: Any) -> Any:
        return self._now()[index]

    def __contains__(self, conn: object) -> bool:
        return conn in self._now()

    def __iter__(self) -> Iterator[Any]:
        return iter(self._now())

    def __len__(self) -> int:
        return len(self._parts.core.idle)

    def __repr__(self) -> str:
        return repr(self._now())


class AbstractConnectionPool:
    """What the pools have in common, all of it safe among threads; without public verbs.

    Subclasses may override `_connect()`, `_getconn()`, `_putconn()` and `_closeall()`.

    Attributes:
        minconn: how many idle connections the pool keeps; assignable.
        maxconn: how many connections there may be; assignable.
    """

    # Not properties: a subclass may set them before this class does, or be a dataclass.
    minconn: int
    maxconn: int

    #: `close()` on a lent connection closes it, as in the original.
    close_returns = False

    _forebay: KeyedParts
    _forebay_parts: type[KeyedParts] = KeyedParts

    # Names of the original's that programs look at; `_args` and `_kwargs` are others.
    _used = Reading(lambda pool: Used(pool._forebay))
    _rused = Reading(lambda pool: Keys(pool._forebay))
    _pool = Reading(lambda pool: Idle(pool._forebay))

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
        self.minconn, self.maxconn = minconn, maxconn
        self._args = args
        self._kwargs = kwargs
        settings = Settings.of(
            min_size=0,
            max_size=maxconn,
            max_waiting=max_waiting,
            max_lifetime=max_lifetime,
            max_idle=inf,
            retrying=False,
            eager=True,
        )
        core = Core(PoolRefusals(), settings, kept(minconn))
        strict = check is not None or not max_lifetime
        parts = self._forebay_parts(self, core, timeout, strict=strict)
        driver = DropInDriver(self)
        # Errors of connecting are the caller's anyway, and to return a transaction is a habit here.
        parts.start(driver, name or type(self).__name__, logging.DEBUG)
        self._forebay = parts
        parts.fill(minconn)
        parts.flows.check = partial(_expect_usable, driver, check)

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        # Not by __dict__: to ask for that makes every attribute of the pool slower.
        if name in ("minconn", "maxconn") and hasattr(self, "_forebay"):
            core = self._forebay.core
            if name == "minconn":
                core.keep = kept(value)
            else:
                core.settings.max_size = value

    @property
    def closed(self) -> bool:
        """Whether `closeall()` was called."""
        return self._forebay.closed

    def __repr__(self) -> str:
        core = self._forebay.core
        state = "closed" if self.closed else f"{len(core.idle)} idle, {core.lent} lent"
        return f"<{type(self).__name__} {state} of {self.minconn}..{self.maxconn}>"

    def connection(self) -> TransactionLease[Connection]:
        """Lend a connection for a `with` block.

        At the end of the block the transaction is committed, or rolled back on an exception, and
        the connection is returned; psycopg2's own `with connection:` only ends a transaction.
        """
        return PoolLease.of(self, None)

    def get_stats(self) -> dict[str, int]:
        """What the pool holds now, and what it has counted; times in milliseconds."""
        parts = self._forebay
        with parts.lock:
            return {**statistics(parts.core), "pool_min": self.minconn}

    def _connect(self, key: Any = None) -> Connection:
        """Open a connection; called without a key, which the pool notes by itself."""
        del key
        conn: Connection = connect(self._args, self._kwargs)
        return conn

    def _getconn(self, key: Any = None) -> Connection:
        """Lend a connection."""
        parts = self._forebay
        if key is not None:
            keyed: Connection = _get_keyed(self, key)
            return keyed
        for _ in parts.taking:
            try:
                conn = parts.core.checkout(parts.now())
            finally:
                parts.lock.release()
            break
        if conn is None or conn.closed or parts.guarded:
            conn = parts.acquire(conn)
        try:
            conn._pool = self
        except AttributeError:
            parts.flows.driver.mark(conn, self)
        lent: Connection = conn
        return lent

    def _putconn(self, conn: Any, key: Any = None, close: bool = False) -> None:
        """Take a connection back."""
        parts = self._forebay
        try:
            entry, lender = conn._forebay_entry, conn._pool
            dirty = conn.get_transaction_status() or conn.status != STATUS_READY
        except AttributeError:
            parts.take_otherwise(conn, key, close)
            return
        if lender is not self or not (entry.plain or entry.ref is None or entry.ref() is conn):
            parts.take_otherwise(conn, key, close)
            return
        if dirty or close or key is not None or parts.loans or parts.core.lost:
            parts.put_away(conn, key, close)
            return
        conn._pool = None
        for _ in parts.taking:
            try:
                effects = parts.core.checkin(entry, conn, parts.now(), entry.lent_at)
            finally:
                parts.lock.release()
            break
        if effects is not None:
            run_sync(parts.flows.conclude, effects)

    def _closeall(self) -> None:
        """Close all connections, also those in use.

        In a signal handler that interrupts one of the pool's own steps: at the next call.
        """
        parts = self._forebay
        if parts.closed and not parts.closing:
            raise parts.core.refusals.closed(parts.core)
        parts.close()


def kept(minconn: int) -> int:
    """How many idle connections a pool keeps; not `ALL`, with which it aims at what it grew to."""
    return min(max(0, minconn), ALL - 1)


def _get_keyed(pool: AbstractConnectionPool, key: Any) -> Any:
    """Lend the connection that is in use with this key, else another one."""
    parts = pool._forebay
    parts.expect_open()
    conn = parts.keyed(key)
    if conn is not None:
        return conn
    conn = AbstractConnectionPool._getconn(pool)
    first = parts.note(key, conn)
    if first is not conn:  # another thread was faster
        parts.put_away(conn)
    return first


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
    """A pool that any number of threads share.

    Its `_lock` is for subclasses that do more than one thing at a time: the pool never takes it.
    """

    def __init__(self, minconn: int, maxconn: int, *args: Any, **kwargs: Any) -> None:
        """The parameters are those of `AbstractConnectionPool`."""
        super().__init__(minconn, maxconn, *args, **kwargs)
        self._lock = threading.Lock()

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
            conn = self._forebay.held(key)
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


def thread_keys(ended: deque[weakref.ref[Life]]) -> Any:
    """What gives each thread its key: thread ids are reused, this is not.

    Made with its pool, from what `threading` is then; see `_threads.thread_own()`.
    """

    class ThreadKeys(threading.local):
        def __init__(self) -> None:
            self._life = Life()
            self.key = weakref.ref(self._life, ended.append)
            hash(self.key)  # while it can be computed: a thread may end and never have used its key

    return ThreadKeys()


class PersistentParts(KeyedParts):
    """The parts of a pool, and the keys of the threads that use it."""

    __slots__ = ("ended", "own_keys")

    def __init__(self, pool: Any, core: Core, timeout: float, *, strict: bool) -> None:
        super().__init__(pool, core, timeout, strict=strict)
        # Appended to by callbacks of weak references, which may run anywhere.
        self.ended: deque[weakref.ref[Life]] = deque()
        self.own_keys = thread_keys(self.ended)

    def maintain(self) -> None:
        """Do what time makes necessary, and what was put off."""
        self.collect()
        super().maintain()

    def collect(self) -> None:
        """Put the connections of threads that have ended away."""
        while self.ended:
            with suppress(IndexError):  # another thread was faster
                conn = self.keyed(self.ended.popleft())
                if conn is not None and not self.closed:
                    self.put_away(conn)

    def mine(self) -> Any:
        """The connection that the calling thread has."""
        return self.held(self.own_keys.key)


class PersistentConnectionPool(AbstractConnectionPool):
    """A pool that gives a thread the same connection until the thread puts it away.

    The connection of a thread that has ended goes back to the pool.
    """

    _forebay_parts = PersistentParts

    def __init__(self, minconn: int, maxconn: int, *args: Any, **kwargs: Any) -> None:
        """The parameters are those of `ThreadedConnectionPool`."""
        super().__init__(minconn, maxconn, *args, **kwargs)
        self._lock = threading.Lock()  # as in ThreadedConnectionPool

    def getconn(self) -> Connection:
        """Lend the thread its connection.

        Raises:
            PoolError: `maxconn` threads have connections, or the pool is closed.
            psycopg2.Error: a new connection could not be opened.
        """
        parts: Any = self._forebay
        if parts.ended:
            parts.collect()
        return self._getconn(parts.own_keys.key)

    def putconn(self, conn: Connection | None = None, close: bool = False) -> None:
        """Put the thread's connection (or another one) away, as `ThreadedConnectionPool` does.

        Raises:
            PoolError: the thread has none, `conn` is none of the pool's, or the pool is closed.
        """
        parts: Any = self._forebay
        self._putconn(parts.mine() if conn is None else conn, None, close)

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
        parts: Any = self._forebay
        kind = PoolLease if parts.mine() is None else BorrowingLease
        return kind.of(self, None)


class BorrowingLease(PoolLease):
    """A block on the connection that the thread has already, and keeps."""

    __slots__ = ()

    def __enter__(self) -> Connection:
        """Lend the connection: the lease has no token, for if it is dropped nothing comes back."""
        conn = self._take()
        self._lent_at = self._pool._forebay.flows.driver.entry(conn).lent_at
        self._token = None
        self._conn = conn
        lent: Connection = conn
        return lent

    def __exit__(self, *error: object) -> None:
        """End the transaction, unless the connection was put away in the block."""
        conn, self._conn = self._conn, None
        if conn is None or conn is TAKEN:
            return
        entry = self._pool._forebay.flows.driver.entry(conn)
        if entry.place is LENT and entry.lent_at is self._lent_at:
            self._end(conn, *error)


def _expect_usable(driver: Any, check: Callable[[Any], object] | None, conn: Any) -> None:
    """Refuse what its last holder closed after all, or what the user's check does not like."""
    if driver.closed(conn) and not is_fresh(driver.entry(conn)):
        raise psycopg2.InterfaceError("connection already closed")
    if check is not None:
        check(conn)
