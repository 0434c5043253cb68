"""Drop-in for `psycopg2_pool` 1.2: put `forebay.` in front of the import.

Pools of psycopg2 connections that never wait and start no thread: when all connections are in use,
`getconn()` raises `PoolError` at once, and whoever calls the pool opens, closes and maintains.

**What the end of a `with` block does.**  psycopg2's `with conn:` ends a transaction.  Here it also
puts a connection that was lent by a pool *on offer*: it stays its holder's, who may use it again,
return it by `putconn()` or forget it, and the pool may have it when it is needed.  The rules:

*   The pool lends a connection on offer only when nothing in the program refers to it any more: no
    name, no cursor, no traceback.  So nobody who used it before can touch the next one's session.
*   While something still refers to it, other idle connections are lent first, then new ones are
    opened.  At `maxconn` the one longest on offer is closed, and a new one opened in its place.
*   Its holder's next use (a cursor, a transaction, another `with conn:`) takes it back.  If the
    pool has closed it by then, that use raises `PoolError`.

So `with pool.getconn() as conn:` is all that a block needs.  In a loop, the name `conn` still
refers to the last connection when the next one is asked for: such a loop uses two in turn, and with
no more than one to be had it reconnects each time, unless it says `del conn`.

A `connection_factory` that is a function, or a class that cannot be derived from, gives connections
that know nothing of this: they are lent until `putconn()`, as in the original.  So are the proxies
and stand-ins that a wrapped or replaced `psycopg2.connect()` gives.
"""

# pyright: reportPossiblyUnboundVariable=false
# (a loop over `taking` makes one turn)

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from functools import cache
from itertools import count
from logging import INFO
from math import inf
from sys import getrefcount
from time import monotonic
from typing import TYPE_CHECKING, Any, cast

import psycopg2
from psycopg2.extensions import STATUS_READY, connection

from ._core import ALL, Core
from ._entry import EVICTED, IDLE, LENT, Entry
from ._flows import Source
from ._fork import Inherited
from ._runtime import run_sync
from .drivers.psycopg2 import (
    DropInDriver,
    connect,
    derived,
    is_fresh,
    label,
    transaction_status,
    unclean,
)
from .options import Settings
from .psycopg2._dropin import NESTED, DropInParts

if TYPE_CHECKING:
    from types import TracebackType

    from ._entry import Waiter

__all__ = ["ConnectionPool", "PoolError", "ThreadSafeConnectionPool", "ThreadedConnectionPool"]

_number = count(1)


class PoolError(psycopg2.OperationalError):
    """The pool has no connection to give, or is given one that it has not lent."""


class ConnectionPool:
    """A pool of `psycopg2.extensions.connection`; any number of threads may share it.

    Attributes:
        minconn: connections to keep, lent ones included.
        maxconn: connections at most.
        idle_timeout: seconds after which an idle connection is closed, by a later call of
            `getconn()` or `putconn()`; 0: at most `minconn` connections stay idle.
        connect_kwargs: the arguments of `psycopg2.connect()`, read at each attempt.

    All four may be assigned.  Subclasses may override `_connect()`.
    """

    # Not properties: a subclass may set them before this class does, or be a dataclass.
    minconn: int
    maxconn: float
    idle_timeout: float
    connect_kwargs: dict[str, Any]

    _forebay: _Parts

    def __init__(
        self,
        minconn: int = 1,
        maxconn: float = inf,
        idle_timeout: float = 600,
        **connect_kwargs: Any,
    ) -> None:
        """Make a pool and open `minconn` connections; `connect_kwargs` go to `connect()`.

        Raises:
            ValueError: for sizes that make no pool.
            psycopg2.Error: a connection cannot be opened.
        """
        if _size("maxconn", maxconn) < _size("minconn", minconn):
            raise ValueError(f"maxconn must be at least minconn, {minconn!r}, not {maxconn!r}")
        self.minconn, self.maxconn, self.idle_timeout = minconn, maxconn, idle_timeout
        self.connect_kwargs = {"dsn": "", **connect_kwargs}
        # The core aims at no size: connections are missing or in excess only where `putconn()`
        # looks, and a server that refuses is asked again by the next client, not by the pool.
        settings = Settings.of(
            min_size=0, max_size=maxconn, max_lifetime=inf, retrying=False, eager=True
        )
        parts = _Parts(self, Core(_Refusals(), settings))
        # What comes back in a transaction is not worth a warning here.
        parts.start(_Driver(self, True), f"psycopg2_pool-{next(_number)}", INFO)
        self._forebay = parts
        parts.apply(self)
        parts.fill(minconn)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ("minconn", "maxconn"):
            _size(name, value)
        super().__setattr__(name, value)
        # Not by __dict__: to ask for that makes every attribute of the pool slower.
        if name in ("minconn", "maxconn", "idle_timeout") and hasattr(self, "_forebay"):
            self._forebay.apply(self)

    # Lending -------------------------------------------------------------------------------

    def getconn(self) -> connection:
        """Lend a connection: the one returned last, or a new one.

        Idle connections that are broken, or were idle for more than `idle_timeout`, are closed.

        Raises:
            PoolError: all `maxconn` connections are in use, or the pool is closed.
            psycopg2.Error: a new connection cannot be opened.
        """
        parts = self._forebay
        if parts.offers:
            parts.settle()
        while True:
            for _ in parts.taking:
                try:
                    now = monotonic()
                    conn = parts.core.checkout(now)
                finally:
                    parts.lock.release()
                break
            if conn is None:
                conn = parts.acquire()
            try:
                entry = conn._forebay_entry
                conn._pool = self
                stale = now - entry.idle_since > parts.core.settings.max_idle
                if not (stale or conn.get_transaction_status()):
                    lent: connection = conn
                    return lent
            except AttributeError:
                entry = parts.flows.driver.entry(conn)
                parts.flows.driver.mark(conn, self)
            if parts.is_good(entry, conn, now):
                return conn  # type: ignore[no-any-return]
            parts.sort_out(entry, conn)

    def putconn(self, conn: Any) -> None:
        """Return a connection, which may be closed, or in a transaction: that is rolled back.

        Also closes what was idle for too long, and opens what is missing to `minconn`; if that
        fails, a later call tries again.

        Raises:
            PoolError: this pool has not lent the connection, or it was returned already.
        """
        parts = self._forebay
        try:
            entry, lender = conn._forebay_entry, conn._pool
            dirty = conn.get_transaction_status() or conn.status != STATUS_READY
        except AttributeError:
            parts.take_otherwise(conn)
            return
        if lender is not self or not (entry.plain or entry.ref is None or entry.ref() is conn):
            parts.take_otherwise(conn)
            return
        conn._pool = None
        if dirty or parts.core.lost:
            parts.take_unclean(entry, conn)
            return
        for _ in parts.taking:
            try:
                now = monotonic()
                effects = parts.core.checkin(entry, conn, now, entry.lent_at)
            finally:
                parts.lock.release()
            break
        if effects is not None:
            run_sync(parts.flows.conclude, effects)
        if now >= parts.core.due:
            parts.maintain()

    def clear(self) -> None:
        """Close all idle connections, whatever `minconn` and `idle_timeout` say.

        Raises:
            PoolError: in a signal handler or a finalizer that interrupts a step of the pool's own.
        """
        parts = self._forebay
        parts.settle()
        while parts.withdraw_oldest():
            pass
        for entry in list(parts.core.idle):
            parts.expect_outside()
            with parts.lock:
                conn = parts.core.recall(entry)
            if conn is not None:
                parts.discard(entry, conn)

    def close(self) -> None:
        """Close the pool and all its connections, also those in use; again is harmless.

        In a signal handler that interrupts one of the pool's own steps: at the next call.
        """
        self._forebay.close()

    # What the pool holds ---------------------------------------------------------------------

    @property
    def connections_in_use(self) -> AbstractSet[connection]:
        """The lent connections, as a live set; the pool holds them weakly."""
        return _InUse(self._forebay)

    @property
    def idle_connections(self) -> Sequence[connection]:
        """The idle connections and those on offer, as a live sequence, the newest last."""
        return _Idle(self._forebay)

    @property
    def return_times(self) -> _ReturnTimes:
        """When each idle connection came back, in seconds of `time.monotonic()`; assignable."""
        return _ReturnTimes(self._forebay)

    @return_times.setter
    def return_times(self, times: Mapping[Any, float]) -> None:
        for conn, at in times.items():
            self.return_times[conn] = at

    def _connect(self, for_immediate_use: bool = False) -> connection:
        """Open a connection; the pool takes up what is returned, and may be overridden here."""
        del for_immediate_use
        conn: connection = connect((), self.connect_kwargs, _lendable)
        return conn


class ThreadSafeConnectionPool(ConnectionPool):
    """The same; every pool here may be shared by threads.

    Its `lock` is for subclasses that do several things in one step.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """The parameters are those of `ConnectionPool`."""
        super().__init__(*args, **kwargs)
        self.lock = threading.RLock()


ThreadedConnectionPool = ThreadSafeConnectionPool


# Parts ----------------------------------------------------------------------------------------


class _Parts(DropInParts):
    """The parts of a pool, and what has been put on offer."""

    __slots__ = ("offers",)

    def __init__(self, pool: ConnectionPool, core: Core) -> None:
        super().__init__(pool, core)
        # For the core it is lent; here it is not forgotten.
        self.offers: dict[Entry, Any] = {}

    def source(self, pool: Any) -> Source:
        """The parameters of connecting, as they are now."""
        return Source(None, "", pool.connect_kwargs)

    def start_afresh(self) -> None:
        """In a forked child: forget the parent's connections, and make every part anew."""
        super().start_afresh()
        self.offers = {}

    def fill(self, number: int) -> None:
        """Open the first connections, which are not used by that."""
        first = [self.acquire() for _ in range(number)]
        for conn in first:
            entry = self.flows.driver.entry(conn)
            with self.lock:
                self.core.checkin(entry, conn, monotonic(), entry.lent_at)
                entry.idle_since = entry.opened_at

    def apply(self, pool: ConnectionPool) -> None:
        """Tell the core what was assigned."""
        core = self.core
        core.settings.max_idle = pool.idle_timeout or inf
        # Not `ALL`, for then the core would come back to the size it had grown to.
        core.keep = ALL - 1 if pool.idle_timeout else min(pool.minconn, ALL - 1)
        core.due = 0.0
        if core.settings.max_size != pool.maxconn:
            self.flows.transition("resize", 0, pool.maxconn)

    def acquire(self) -> Any:
        """Open a connection; at `maxconn`, in the place of one that its holder has put on offer."""
        while True:
            try:
                return run_sync(self.flows.acquire, None, 0.0)
            except PoolError:
                if self.inside or self.closed or not self._makes_room():
                    raise

    def _makes_room(self) -> bool:
        size = self.core.size
        self.flows.maintain()  # a lent connection that was closed makes room, too
        return self.core.size < size or self.withdraw_oldest()

    def is_good(self, entry: Entry, conn: Any, now: float) -> bool:
        """Whether a connection may be lent; a fresh one may as it is, whatever its factory does."""
        stale = now - entry.idle_since > self.core.settings.max_idle
        return is_fresh(entry) or not (stale or transaction_status(conn))

    def sort_out(self, entry: Entry, conn: Any) -> None:
        """Deal with an idle connection that cannot be lent: it is broken, too old, or was used."""
        self.core.due = 0.0
        driver = self.flows.driver
        driver.mark(conn, None)
        unused = entry.idle_since == entry.opened_at  # who opened it began the transaction
        if transaction_status(conn) and driver.usable(conn) and not unused:
            run_sync(self.flows.release, entry, conn)
        else:
            self.discard(entry, conn)

    def take_unclean(self, entry: Entry, conn: Any) -> None:
        """Take back a connection that is in a transaction, broken, or perhaps lost."""
        if self.is_lost(entry):
            self.discard(entry, conn)
        else:
            run_sync(self.flows.release, entry, conn)
        self.maintain()

    def take_otherwise(self, conn: Any) -> None:
        """Take back a connection that is not simply lent."""
        driver = self.flows.driver
        pool: Any = self.pool()
        if isinstance(driver.find(conn), Inherited):
            return  # the parent process has it
        lent = driver.lent(conn, pool)
        if lent is not None:
            driver.mark(lent[1], None)
            self.take_unclean(*lent)
        elif cast("Any", getattr(conn, "_giver", None)) is not pool:
            raise PoolError(
                f"cannot take {label(conn)} back: this pool has not lent it, or it was returned"
                " already"
            )
        elif isinstance(conn, _OnOffer):
            if pool is not None and self.take_back(conn):
                pool.putconn(conn)
        elif not isinstance(conn, _Withdrawn) and driver.usable(conn):
            conn.rollback()  # inside its `with` block, at whose end it is put on offer

    def entry(self, conn: Any) -> Entry | None:
        """The entry of a connection of this pool."""
        entry: Entry | None = self.flows.driver.find(conn)
        return entry if entry in self.core.entries else None

    def maintain(self) -> None:
        """Close what was idle for too long, open what is missing to `minconn`."""
        super().maintain()
        pool = self.pool()
        if not (self.inside or self.closed or pool is None) and self.core.size < pool.minconn:
            self.flows.transition("fill", pool.minconn)

    def close(self) -> None:
        """Close the pool and all its connections, also those in use and on offer."""
        while not self.inside and self.withdraw_oldest():
            pass
        super().close()

    def expect_outside(self) -> None:
        """Refuse what cannot be done inside a transition, nor put off."""
        if self.inside:
            raise self.core.refusals.nested(self.core)

    # Connections on offer --------------------------------------------------------------------

    def offer(self, conn: Any) -> None:
        """The holder's `with` block is over: the pool may have the connection when it needs it."""
        entry = conn._forebay_entry
        usable = not unclean(conn)
        with self.lock:
            if usable and entry.expires_at != EVICTED:
                entry.idle_since = monotonic()
                self.offers[entry] = conn
                _become(conn, conn._on_offer)
                return
            _become(conn, conn._withdrawn)
        self.discard(entry, conn)
        self.core.due = 0.0

    def take_back(self, conn: Any) -> bool:
        """The holder uses a connection that is on offer; false if the pool has closed it."""
        with self.lock:
            if isinstance(conn, _OnOffer):
                self._end_offer(conn._forebay_entry, conn)
            return not isinstance(conn, _Withdrawn)

    def _end_offer(self, entry: Entry, conn: Any) -> None:
        """Make a connection on offer simply lent."""
        _become(conn, conn._lent)
        conn._giver, conn._pool = None, self.pool()
        self.offers.pop(entry, None)

    def settle(self) -> None:
        """Make idle what is on offer and nobody can use any more."""
        for entry in [] if self.inside else list(self.offers):
            with self.lock:
                conn = self._abandoned(entry)
            if conn is not None:
                since = entry.idle_since
                conn._pool = None
                run_sync(self.flows.release, entry, conn)
                entry.idle_since = since
                del conn

    def _abandoned(self, entry: Entry) -> Any:
        """The connection of an offer, no more on offer, if nothing else refers to it."""
        try:
            alone = _references(self.offers, entry) == _ALONE
            conn = self.offers[entry]
        except KeyError:  # taken back, perhaps by a signal handler a moment ago
            return None
        # One that is in a transaction has been taken back through a cursor made before the offer.
        if alone or unclean(conn) or not isinstance(conn, _OnOffer):
            self._end_offer(entry, conn)
        return conn if alone else None

    def withdraw_oldest(self) -> bool:
        """Close the connection that is on offer longest; false if there is none."""
        self.expect_outside()
        with self.lock:
            if not self.offers:
                return False
            entry, conn = next(iter(self.offers.items()))
            _become(conn, conn._withdrawn)
            del self.offers[entry]
        self.discard(entry, conn)
        return True


# Live views ----------------------------------------------------------------------------------


class _InUse(AbstractSet[Any]):
    """What a pool has lent, but for what was put on offer."""

    def __init__(self, parts: _Parts) -> None:
        self._parts = parts

    @classmethod
    def _from_iterable(cls, it: Iterable[Any]) -> AbstractSet[Any]:
        return set(it)

    def _lent(self, entry: Entry | None) -> bool:
        return entry is not None and entry.place is LENT and entry not in self._parts.offers

    def add(self, conn: Any) -> None:
        """Nothing: a `_connect()` after the original's counts what the pool counts itself."""

    def __contains__(self, conn: object) -> bool:
        return self._lent(self._parts.entry(conn))

    def __iter__(self) -> Iterator[Any]:
        for entry in list(self._parts.core.entries):
            conn = entry.ref and entry.ref()
            if conn is not None and self._lent(entry):
                yield conn

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __repr__(self) -> str:
        return repr(set(self))


class _Idle(Sequence[Any]):
    """What is idle in a pool or on offer, in order of return."""

    def __init__(self, parts: _Parts) -> None:
        self._parts = parts

    def _all(self) -> list[Any]:
        parts = self._parts
        with parts.lock:
            entries = [*parts.core.idle, *parts.offers]
            if parts.offers:
                entries.sort(key=lambda entry: entry.idle_since)
            return [parts.offers.get(entry) or entry.conn for entry in entries]

    def __contains__(self, conn: object) -> bool:
        entry = self._parts.entry(conn)
        return entry is not None and (entry.place is IDLE or entry in self._parts.offers)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._all())

    def __getitem__(self, index: Any) -> Any:
        return self._all()[index]

    def __len__(self) -> int:
        return len(self._parts.core.idle) + len(self._parts.offers)

    def __repr__(self) -> str:
        return repr(self._all())


class _ReturnTimes(Mapping[Any, float]):
    """When each idle connection of a pool came back."""

    def __init__(self, parts: _Parts) -> None:
        self._parts = parts

    def _idle(self, conn: Any) -> Entry:
        entry = self._parts.entry(conn)
        if entry is None or conn not in _Idle(self._parts):
            raise KeyError(conn)
        return entry

    def __getitem__(self, conn: Any) -> float:
        return self._idle(conn).idle_since

    def __setitem__(self, conn: Any, at: float) -> None:
        core = self._parts.core
        with self._parts.lock:
            self._idle(conn).idle_since = at
            ordered = sorted(core.idle, key=lambda entry: entry.idle_since)
            core.idle.clear()
            core.idle.extend(ordered)
            core.due = 0.0

    def __iter__(self) -> Iterator[Any]:
        return iter(_Idle(self._parts))

    def __len__(self) -> int:
        return len(_Idle(self._parts))

    def __repr__(self) -> str:
        return repr(dict(self))


# Connections ---------------------------------------------------------------------------------


class _Lent:
    """What a pool adds to a connection; psycopg2's class comes after it in the order of classes.

    `_pool` is the pool that has lent it; in a `with` block, and after it, `_giver` is.
    """

    __slots__ = ()

    def __enter__(self: Any) -> Any:
        connection: Any = super()
        lent = connection.__enter__()
        if _is_lent(self):
            self._giver, self._pool = self._pool, None
        return lent

    def __exit__(
        self: Any,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> Any:
        if isinstance(getattr(self, "_forebay_entry", None), Inherited):
            return None  # the block began in the parent process
        connection: Any = super()
        try:
            return connection.__exit__(exc_type, exc, traceback)
        finally:
            giver = getattr(self, "_giver", None)
            if giver is not None:
                giver._forebay.offer(self)


class _OnOffer:
    """A connection on offer: whatever uses its session takes it back before."""

    __slots__ = ()

    def __getattribute__(self: Any, name: str) -> Any:
        if name in _USES:
            _use(self)
        return object.__getattribute__(self, name)

    def __setattr__(self: Any, name: str, value: Any) -> None:
        _use(self)
        setattr(self, name, value)

    def __enter__(self: Any) -> Any:
        _use(self)
        return self.__enter__()


class _Withdrawn:
    """A connection that the pool has closed while it was on offer."""

    __slots__ = ()

    def __getattribute__(self: Any, name: str) -> Any:
        if name in _USES and name != "close":
            _use(self)
        return object.__getattribute__(self, name)

    def __enter__(self: Any) -> Any:
        return _use(self)


#: The attributes of a connection that do something to its session; the others only look.
_USES = {
    "cancel",
    "close",
    "commit",
    "cursor",
    "fileno",
    "lobject",
    "poll",
    "reset",
    "rollback",
    "set_client_encoding",
    "set_isolation_level",
    "set_session",
    "tpc_begin",
    "tpc_commit",
    "tpc_prepare",
    "tpc_recover",
    "tpc_rollback",
}


def _use(conn: Any) -> None:
    """Take a connection back from its offer."""
    if not conn._giver._forebay.take_back(conn):
        raise PoolError(
            "this connection went back to its pool at the end of its `with` block, and the pool"
            " has closed it since: get another one by getconn()"
        )


def _is_lent(conn: Any) -> bool:
    """Whether it is this object that a pool has lent, and not a proxy before it."""
    entry = getattr(conn, "_forebay_entry", None)
    return entry is not None and entry.ref is not None and entry.ref() is conn


def _become(conn: Any, connection_class: type) -> None:
    object.__setattr__(conn, "__class__", connection_class)


def _references(offers: dict[Any, Any], entry: Any) -> int:
    return getrefcount(offers[entry])


#: What `_references` gives for an object that nothing but the offer refers to.
_ALONE = _references({None: object()}, None)


def _lendable(factory: Any) -> Any:
    """The class to connect with, for a `connection_factory`: its connections can be put on offer.

    A factory that is no class, or cannot be derived from, is called as it is.
    """
    return _lent_class(factory) if isinstance(factory, type) else factory


@cache
def _lent_class(factory: type) -> Any:
    try:
        lent: Any = derived(factory, _Lent, slots=("_forebay_entry", "_giver", "_pool"))
        lent._lent = lent
        lent._on_offer = derived(lent, _OnOffer)
        lent._withdrawn = derived(lent, _Withdrawn)
    except Exception:  # whatever it refuses with
        return factory
    return lent


class _Driver(DropInDriver):
    """psycopg2 for a pool whose connections can be put on offer."""

    def adopt(self, conn: Any, entry: Entry) -> None:
        """Attach `entry` to a new connection."""
        super().adopt(conn, entry)
        entry.plain = issubclass(type(conn), _Lent)  # it is the connection itself, not a proxy
        if entry.plain:
            conn._giver = None


class _Refusals:
    """The errors of a pool."""

    def closed(self, core: Core) -> Exception:
        """The pool is closed."""
        del core
        return PoolError("the connection pool is closed")

    def full(self, core: Core) -> Exception:
        """Nobody waits, so nobody is refused for that."""
        return self.timeout(core, 0.0)

    def timeout(
        self, core: Core, timeout: float, now: float = 0.0, client: Waiter | None = None
    ) -> Exception:
        """All connections are in use."""
        del timeout, now, client
        return PoolError(
            f"no more connections in the pool (connection pool exhausted): {core.lent} of"
            f" maxconn={core.settings.max_size} are in use; return each by putconn(), or raise"
            " maxconn"
        )

    def nested(self, core: Core) -> Exception:
        """The client asks inside a step of the pool that its own thread makes."""
        del core
        return PoolError(f"the connection pool is busy: {NESTED}")

    def rejected(self, core: Core, error: Exception, now: float) -> Exception:
        """An error of connecting is the caller's."""
        del core, now
        return error

    def deadlock(self, core: Core, now: float, stuck: dict[Any, Waiter]) -> None:
        """Nobody waits, so nobody waits for himself."""
        del core, now, stuck


def _size(name: str, value: Any) -> Any:
    if not isinstance(value, int | float) or not value >= 0:
        raise ValueError(f"{name} must be a number, not negative, not {value!r}")
    return value
