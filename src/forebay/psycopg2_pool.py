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
that know nothing of this: they are lent until `putconn()`, as in the original.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from functools import cache
from itertools import count
from logging import INFO
from math import inf
from sys import getrefcount, maxsize
from time import monotonic
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import psycopg2
from psycopg2.extensions import STATUS_READY, connection

from ._core import Core
from ._entry import EVICTED, IDLE, LENT, Entry
from ._flows import Flows
from ._fork import Inherited, register, renewed_core, renewed_flows
from ._inline import Inline
from ._runtime import run_sync
from .drivers.psycopg2 import SyncPsycopg2, unclean, with_defaults

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

    All four may be assigned.
    """

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
        self._minconn = minconn
        self._idle_timeout = idle_timeout
        # What has been put on offer.  For the core it is lent; here it is not forgotten.
        self._offers: dict[Entry, Any] = {}
        runtime: Any = Inline()
        driver = _Driver()
        # The core aims at no size: connections are missing or in excess only where `putconn()`
        # looks, and a server that refuses is asked again by the next client, not by the pool.
        self._core = Core(
            _Refusals(),
            min_size=0,
            max_size=maxconn,
            retrying=False,
            eager=True,
            max_lifetime=inf,
        )
        self._foreign = driver.foreign
        self._lock = runtime.lock
        self._flows = Flows(
            self._core,
            runtime,
            driver,
            name=f"psycopg2_pool-{next(_number)}",
            connection_class=connection,
            kwargs={"dsn": "", **connect_kwargs},
        )
        self._flows.level = INFO  # what comes back in a transaction is not worth a warning here
        self._apply_timeout()
        self._flows.open()
        register(self)
        first = [self.getconn() for _ in range(minconn)]
        for conn in first:
            self.putconn(conn)

    def _start_afresh(self) -> None:
        """In a forked child: forget the parent's connections, and make every part anew."""
        runtime: Any = Inline()
        self._core = renewed_core(self._core)
        self._flows = renewed_flows(self._flows, self._core, runtime)
        self._lock = runtime.lock
        self._offers = {}

    # Lending -------------------------------------------------------------------------------

    def getconn(self) -> connection:
        """Lend a connection: the one returned last, or a new one.

        Idle connections that are broken, or were idle for more than `idle_timeout`, are closed.

        Raises:
            PoolError: all `maxconn` connections are in use, or the pool is closed.
            psycopg2.Error: a new connection cannot be opened.
        """
        if self._offers:
            self._settle()
        while True:
            with self._lock:
                now = monotonic()
                conn = self._core.checkout(now)
            if conn is None:
                conn = self._acquire()
            try:
                entry = conn._forebay_entry
                conn._pool = self
            except AttributeError:
                entry = self._foreign[conn]
            if not (conn.get_transaction_status() or now - entry.idle_since > self._core.max_idle):
                lent: connection = conn
                return lent
            self._sort_out(entry, conn)

    def putconn(self, conn: Any) -> None:
        """Return a connection, which may be closed, or in a transaction: that is rolled back.

        Also closes what was idle for too long, and opens what is missing to `minconn`; if that
        fails, a later call tries again.

        Raises:
            PoolError: this pool has not lent the connection, or it was returned already.
        """
        if getattr(conn, "_pool", None) is not self:
            self._take_otherwise(conn)
            return
        conn._pool = None
        entry = conn._forebay_entry
        if conn.get_transaction_status() or conn.status != STATUS_READY:
            self._take_unclean(entry, conn)
            return
        with self._lock:
            now = monotonic()
            effects = self._core.checkin(entry, conn, now)
        if effects is not None:
            run_sync(self._flows.conclude(effects))
        if now >= self._core.due:
            self._maintain()

    def clear(self) -> None:
        """Close all idle connections, whatever `minconn` and `idle_timeout` say."""
        self._settle()
        while self._withdraw_oldest():
            pass
        for entry in list(self._core.idle):
            with self._lock:
                conn = self._core.recall(entry)
            if conn is not None:
                self._flows.transition("discard", entry, conn)

    def close(self) -> None:
        """Close the pool and all its connections, also those in use; again is harmless."""
        run_sync(self._flows.close(0.0))
        while self._withdraw_oldest():
            pass
        for conn in self.connections_in_use:
            conn.close()

    # What the pool holds ---------------------------------------------------------------------

    @property
    def minconn(self) -> int:
        """Connections to keep, lent ones included."""
        return self._minconn

    @minconn.setter
    def minconn(self, minconn: int) -> None:
        self._minconn = _size("minconn", minconn)
        self._apply_timeout()

    @property
    def maxconn(self) -> float:
        """Connections at most."""
        return self._core.max_size

    @maxconn.setter
    def maxconn(self, maxconn: float) -> None:
        self._flows.transition("resize", 0, _size("maxconn", maxconn))

    @property
    def idle_timeout(self) -> float:
        """Seconds after which an idle connection is closed."""
        return self._idle_timeout

    @idle_timeout.setter
    def idle_timeout(self, idle_timeout: float) -> None:
        self._idle_timeout = idle_timeout
        self._apply_timeout()

    @property
    def connect_kwargs(self) -> dict[str, Any]:
        """The arguments of `psycopg2.connect()`."""
        kwargs: dict[str, Any] = self._flows.kwargs
        return kwargs

    @connect_kwargs.setter
    def connect_kwargs(self, connect_kwargs: dict[str, Any]) -> None:
        self._flows.kwargs = connect_kwargs

    @property
    def connections_in_use(self) -> AbstractSet[connection]:
        """The lent connections, as a live set; the pool holds them weakly."""
        return _InUse(self)

    @property
    def idle_connections(self) -> Sequence[connection]:
        """The idle connections and those on offer, as a live sequence, the newest last."""
        return _Idle(self)

    @property
    def return_times(self) -> _ReturnTimes:
        """When each idle connection came back, in seconds of `time.monotonic()`; assignable."""
        return _ReturnTimes(self)

    @return_times.setter
    def return_times(self, times: Mapping[Any, float]) -> None:
        for conn, at in times.items():
            self.return_times[conn] = at

    # What a call seldom needs ----------------------------------------------------------------

    def _acquire(self) -> Any:
        """Open a connection; at `maxconn`, in the place of one that its holder has put on offer."""
        while True:
            try:
                return run_sync(self._flows.acquire(None, 0.0))
            except PoolError:
                size = self._core.size
                self._flows.maintain()  # a lent connection that was closed makes room, too
                if self._core.size >= size and not self._withdraw_oldest():
                    raise

    def _sort_out(self, entry: Entry, conn: Any) -> None:
        """Deal with an idle connection that cannot be lent: it is broken, too old, or was used."""
        self._core.due = 0.0
        if conn not in self._foreign:
            conn._pool = None
        if conn.get_transaction_status() and self._flows.driver.usable(conn):
            run_sync(self._flows.release(entry, conn))
        else:
            self._flows.transition("discard", entry, conn)

    def _take_unclean(self, entry: Entry, conn: Any) -> None:
        """Take back a connection that is in a transaction, or broken."""
        run_sync(self._flows.release(entry, conn))
        self._maintain()

    def _take_otherwise(self, conn: Any) -> None:
        """Take back a connection that is not simply lent."""
        entry = self._entry(conn)
        if isinstance(entry, Inherited):
            return  # the parent process has it
        if entry is not None and entry.place is LENT and conn in self._foreign:
            self._take_unclean(entry, conn)
        elif getattr(conn, "_giver", None) is not self:
            raise PoolError(
                f"cannot take {conn!r} back: this pool has not lent it, or it was returned already"
            )
        elif isinstance(conn, _OnOffer):
            if self._take_back(conn):
                self.putconn(conn)
        elif not isinstance(conn, _Withdrawn) and self._flows.driver.usable(conn):
            conn.rollback()  # inside its `with` block, at whose end it is put on offer

    def _entry(self, conn: Any) -> Entry | None:
        """The entry of a connection of this pool."""
        entry: Entry | None = getattr(conn, "_forebay_entry", None)
        if entry is None and isinstance(conn, connection):
            entry = self._foreign.get(conn)
        known = entry in self._core.entries or isinstance(entry, Inherited)
        return entry if known else None

    def _maintain(self) -> None:
        """Close what was idle for too long, open what is missing to `minconn`."""
        self._flows.maintain()
        if self._core.size < self._minconn:
            self._flows.transition("fill", self._minconn)

    def _apply_timeout(self) -> None:
        core = self._core
        core.max_idle = self._idle_timeout or inf
        # Not infinite, for then the core would come back to the size it had grown to.
        core.keep = maxsize if self._idle_timeout else self._minconn
        core.due = 0.0

    # Connections on offer --------------------------------------------------------------------

    def _offer(self, conn: Any) -> None:
        """The holder's `with` block is over: the pool may have the connection when it needs it."""
        entry = conn._forebay_entry
        usable = not unclean(conn)
        with self._lock:
            if usable and entry.expires_at != EVICTED:
                entry.idle_since = monotonic()
                self._offers[entry] = conn
                _become(conn, conn._on_offer)
                return
            _become(conn, conn._withdrawn)
        self._flows.transition("discard", entry, conn)
        self._core.due = 0.0

    def _take_back(self, conn: Any) -> bool:
        """The holder uses a connection that is on offer; false if the pool has closed it."""
        with self._lock:
            if isinstance(conn, _OnOffer):
                self._end_offer(conn._forebay_entry, conn)
            return not isinstance(conn, _Withdrawn)

    def _end_offer(self, entry: Entry, conn: Any) -> None:
        """Make a connection on offer simply lent."""
        _become(conn, conn._lent)
        conn._giver, conn._pool = None, self
        self._offers.pop(entry, None)

    def _settle(self) -> None:
        """Make idle what is on offer and nobody can use any more."""
        for entry in list(self._offers):
            with self._lock:
                conn = self._abandoned(entry)
            if conn is not None:
                since = entry.idle_since
                conn._pool = None
                run_sync(self._flows.release(entry, conn))
                entry.idle_since = since
                del conn

    def _abandoned(self, entry: Entry) -> Any:
        """The connection of an offer, no more on offer, if nothing else refers to it."""
        if entry not in self._offers:
            return None
        alone = _references(self._offers, entry) == _ALONE
        conn = self._offers[entry]
        # One that is in a transaction has been taken back through a cursor made before the offer.
        if alone or unclean(conn) or not isinstance(conn, _OnOffer):
            self._end_offer(entry, conn)
        return conn if alone else None

    def _withdraw_oldest(self) -> bool:
        """Close the connection that is on offer longest; false if there is none."""
        with self._lock:
            if not self._offers:
                return False
            entry, conn = next(iter(self._offers.items()))
            _become(conn, conn._withdrawn)
            del self._offers[entry]
        self._flows.transition("discard", entry, conn)
        return True


class ThreadSafeConnectionPool(ConnectionPool):
    """The same; every pool here may be shared by threads."""


ThreadedConnectionPool = ThreadSafeConnectionPool


# Live views ----------------------------------------------------------------------------------


class _InUse(AbstractSet[Any]):
    """What a pool has lent, but for what was put on offer."""

    def __init__(self, pool: ConnectionPool) -> None:
        self._pool = pool

    @classmethod
    def _from_iterable(cls, it: Iterable[Any]) -> AbstractSet[Any]:
        return set(it)

    def _lent(self, entry: Entry | None) -> bool:
        return entry is not None and entry.place is LENT and entry not in self._pool._offers

    def __contains__(self, conn: object) -> bool:
        return self._lent(self._pool._entry(conn))

    def __iter__(self) -> Iterator[Any]:
        for entry in list(self._pool._core.entries):
            conn = entry.ref and entry.ref()
            if conn is not None and self._lent(entry):
                yield conn

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __repr__(self) -> str:
        return repr(set(self))


class _Idle(Sequence[Any]):
    """What is idle in a pool or on offer, in order of return."""

    def __init__(self, pool: ConnectionPool) -> None:
        self._pool = pool

    def _all(self) -> list[Any]:
        pool = self._pool
        with pool._lock:
            entries = [*pool._core.idle, *pool._offers]
            if pool._offers:
                entries.sort(key=lambda entry: entry.idle_since)
            return [pool._offers.get(entry) or entry.conn for entry in entries]

    def __contains__(self, conn: object) -> bool:
        entry = self._pool._entry(conn)
        return entry is not None and (entry.place is IDLE or entry in self._pool._offers)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._all())

    def __getitem__(self, index: Any) -> Any:
        return self._all()[index]

    def __len__(self) -> int:
        return len(self._pool._core.idle) + len(self._pool._offers)

    def __repr__(self) -> str:
        return repr(self._all())


class _ReturnTimes(Mapping[Any, float]):
    """When each idle connection of a pool came back."""

    def __init__(self, pool: ConnectionPool) -> None:
        self._pool = pool

    def _idle(self, conn: Any) -> Entry:
        entry = self._pool._entry(conn)
        if entry is None or conn not in self._pool.idle_connections:
            raise KeyError(conn)
        return entry

    def __getitem__(self, conn: Any) -> float:
        return self._idle(conn).idle_since

    def __setitem__(self, conn: Any, at: float) -> None:
        core = self._pool._core
        with self._pool._lock:
            self._idle(conn).idle_since = at
            ordered = sorted(core.idle, key=lambda entry: entry.idle_since)
            core.idle.clear()
            core.idle.extend(ordered)
            core.due = 0.0

    def __iter__(self) -> Iterator[Any]:
        return iter(self._pool.idle_connections)

    def __len__(self) -> int:
        return len(self._pool.idle_connections)

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
        self._giver, self._pool = self._pool, None
        return lent

    def __exit__(
        self: Any,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> Any:
        if isinstance(self._forebay_entry, Inherited):
            return None  # the block began in the parent process
        connection: Any = super()
        try:
            return connection.__exit__(exc_type, exc, traceback)
        finally:
            if self._giver is not None:
                self._giver._offer(self)


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
    if not conn._giver._take_back(conn):
        raise PoolError(
            "this connection went back to its pool at the end of its `with` block, and the pool"
            " has closed it since: get another one by getconn()"
        )


def _become(conn: Any, connection_class: type) -> None:
    object.__setattr__(conn, "__class__", connection_class)


def _references(offers: dict[Any, Any], entry: Any) -> int:
    return getrefcount(offers[entry])


#: What `_references` gives for an object that nothing but the offer refers to.
_ALONE = _references({None: object()}, None)


@cache
def _lendable(factory: type) -> Any:
    """A class derived from the `connection_factory`, whose connections can be put on offer."""
    try:
        lent: Any = _derive(factory, _Lent, "_forebay_entry", "_giver", "_pool")
        lent._lent = lent
        lent._on_offer = _derive(lent, _OnOffer)
        lent._withdrawn = _derive(lent, _Withdrawn)
    except Exception:  # whatever it refuses with
        return factory
    return lent


def _derive(factory: type, addition: type, *slots: str) -> type:
    names = ("__module__", "__qualname__", "__doc__")
    members = {name: getattr(factory, name) for name in names}
    return type(factory)(factory.__name__, (addition, factory), {**members, "__slots__": slots})


class _Driver(SyncPsycopg2):
    """psycopg2 for a pool whose connections can be put on offer."""

    def __init__(self) -> None:
        super().__init__()
        #: The entries of connections that take no attributes.
        self.foreign: WeakKeyDictionary[Any, Entry] = WeakKeyDictionary()
        self.entry = lambda conn: getattr(conn, "_forebay_entry", None) or self.foreign[conn]

    async def connect(self, connection_class: Any, conninfo: str, kwargs: dict[str, Any]) -> Any:
        """Open a connection; its address is among `kwargs`."""
        del conninfo
        factory = kwargs.get("connection_factory") or connection_class
        if isinstance(factory, type):
            factory = _lendable(factory)
        return psycopg2.connect(**with_defaults(None, {**kwargs, "connection_factory": factory}))

    def adopt(self, conn: Any, entry: Entry) -> None:
        """Attach `entry` to a new connection."""
        if isinstance(conn, _Lent):
            any_conn: Any = conn
            any_conn._forebay_entry, any_conn._giver, any_conn._pool = entry, None, None
        else:
            self.foreign[conn] = entry


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
            f"no more connections in the pool: {core.lent} of maxconn={core.max_size} are in use;"
            " return each by putconn(), or raise maxconn"
        )

    def rejected(self, core: Core, error: Exception, now: float) -> Exception:
        """An error of connecting is the caller's."""
        del core, now
        return error

    def deadlock(self, core: Core, now: float) -> None:
        """Nobody waits, so nobody waits for himself."""
        del core, now


def _size(name: str, value: Any) -> Any:
    if not isinstance(value, int | float) or not value >= 0:
        raise ValueError(f"{name} must be a number, not negative, not {value!r}")
    return value
