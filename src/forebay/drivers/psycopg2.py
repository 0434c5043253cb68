"""The driver for psycopg2, for threads."""

from __future__ import annotations

import inspect
import logging
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from copy import copy
from functools import cache, lru_cache
from math import inf
from typing import Any

import psycopg2
from psycopg2 import errors, extensions
from psycopg2.extensions import connection
from psycopg2.extras import wait_select

from .. import _sockets
from .._entry import Entry, Verdict
from .._sockets import Lifeline
from ..errors import (
    PoolClosedMixin,
    PoolDeadlockMixin,
    PoolRejectedMixin,
    PoolTimeoutMixin,
    Refusals,
    TooManyRequestsMixin,
)
from . import libpq
from .tags import Finder

logger = logging.getLogger("forebay")

IDLE = extensions.TRANSACTION_STATUS_IDLE
READY = extensions.STATUS_READY
CLOSED, LOST = 1, 2  # by close(), and otherwise
#: What psycopg2 knows of a session, and the server's view does not show.
OWN = {
    extensions.STATUS_BEGIN: "psycopg2 believes in a transaction",
    extensions.STATUS_PREPARED: "two-phase transaction prepared",
}
STATUSES = {
    extensions.TRANSACTION_STATUS_IDLE: "IDLE",
    extensions.TRANSACTION_STATUS_ACTIVE: "ACTIVE",
    extensions.TRANSACTION_STATUS_INTRANS: "INTRANS",
    extensions.TRANSACTION_STATUS_INERROR: "INERROR",
    extensions.TRANSACTION_STATUS_UNKNOWN: "UNKNOWN",
}
USABLE = (
    extensions.TRANSACTION_STATUS_IDLE,
    extensions.TRANSACTION_STATUS_INTRANS,
    extensions.TRANSACTION_STATUS_INERROR,
)

#: How many NOTIFYs may wait on an idle connection for somebody to take them, 8 kB each at most.
NOTIFIES = 10_000
#: Why an idle connection is discarded that has more.
OVERFLOW = (
    f"more than {NOTIFIES} notifications have come, and nobody takes them: the session still"
    " LISTENs; UNLISTEN before it is returned"
)

#: How often `look()` reads at most, 8 kB or more each time: a server that never stops must not
#: keep it for good.
READS = 1000
#: How many layers of a wrapped `connect()` are read at most.
WRAPPED = 20
CONNECTION_BAD = 1  # of libpq
CONNECT = psycopg2.connect  # as it is while nobody has replaced it
IN_RECOVERY = "select pg_catalog.pg_is_in_recovery()"

#: What the last notice of a session begins with, in the languages of PostgreSQL's servers:
#: psycopg2 has of a notice only the text.
ENDS = (
    *("FATAL", "PANIC", "FATALE", "PANICO", "FATALT", "PANIK", "PANIKA", "PÂNICO"),
    *("KATASTROFALNY", "ÖLÜMCÜL (FATAL)", "KRİTİK"),
    *("ВАЖНО", "ПАНИКА"),
    *("ФАТАЛЬНО", "ПАНІКА"),
    *("치명적오류", "손상", "致命错误"),
    "比致命错误还过分的错误",
)
#: The errors that notices tell of, where they are known by their English text.
REASONS: dict[str, type[psycopg2.Error]] = {
    "terminating connection due to administrator command": errors.AdminShutdown,
    "terminating connection due to immediate shutdown command": errors.AdminShutdown,
    "terminating connection due to unexpected postmaster exit": errors.AdminShutdown,
    "terminating connection because of crash of another server process": errors.CrashShutdown,
    "terminating connection due to idle-session timeout": errors.lookup("57P05"),
}


class PoolClosed(PoolClosedMixin, psycopg2.OperationalError):
    """A connection was requested from a pool that is not open."""

    __module__ = "forebay.psycopg2"


class PoolTimeout(PoolTimeoutMixin, psycopg2.OperationalError):
    """The pool couldn't provide a connection in time.

    Its attributes say why: `kind`, the sizes of the pool, the `holders` of its connections, the
    `last_error` of connecting.
    """

    __module__ = "forebay.psycopg2"


class PoolRejected(PoolRejectedMixin, PoolTimeout):
    """The server rejects the pool's connections, and would if one waited: a wrong password, say.

    The driver's error is the `__cause__`.
    """

    __module__ = "forebay.psycopg2"


class PoolDeadlock(PoolDeadlockMixin, PoolTimeout):
    """Every connection is held by who waits here for a further one, so nobody would get any."""

    __module__ = "forebay.psycopg2"


class TooManyRequests(TooManyRequestsMixin, psycopg2.OperationalError):
    """Too many clients wait for a connection already."""

    __module__ = "forebay.psycopg2"


class SyncPsycopg2(Finder):
    """psycopg2: everything blocks.

    `connection_class` is what psycopg2 calls the `connection_factory`: a class derived from
    `psycopg2.extensions.connection`, or another callable that makes connections; the pool
    connects with a subclass of the class (see `extended()`).

    What comes of that may be anything: `psycopg2.connect` may be wrapped by an agent, whose proxies
    stand for connections, or replaced by a mock.  So no more is asked of a connection than what
    the work at hand needs, and its entry is found even where it takes no attributes.
    """

    ProgrammingError: type[Exception] = psycopg2.ProgrammingError

    def __init__(self) -> None:
        super().__init__()
        self.unclean: Callable[[Any], Any] = unclean

    def refusals(self, name: str) -> Refusals:
        """The exceptions of the pool `name`."""
        return Refusals(name, PoolClosed, PoolTimeout, TooManyRequests, PoolRejected, PoolDeadlock)

    def adopt(self, conn: Any, entry: Entry) -> None:
        """Attach `entry` to a new connection, which is not lent."""
        connection_class: Any = type(conn)
        entry.plain = _plain(connection_class)
        self.tags.attach(conn, entry)

    def label(self, conn: Any) -> str:
        """A connection as a log may name it: its class, its state, and where it leads."""
        return label(conn)

    def usable(self, conn: Any) -> bool:
        """Whether a connection works, waits for a command, and can be rolled back."""
        prepared = _number(conn, "status", READY) == extensions.STATUS_PREPARED
        return transaction_status(conn) in USABLE and not prepared

    def closed(self, conn: Any) -> bool:
        """Whether a connection is known to be closed or lost."""
        return bool(_number(conn, "closed", 0))

    def died(self, conn: Any) -> bool:
        """Whether the session of a connection has ended, and not by its `close()`."""
        return _number(conn, "closed", 0) == LOST

    def end(self, conn: Any) -> None:
        """Close a connection on the spot, without its class having a say in it."""
        if issubclass(type(conn), connection):
            connection.close(conn)
        else:
            conn.close()

    def describe(self, conn: Any) -> str:
        """The name of the connection's transaction status, and what that does not show."""
        return describe(conn)

    def readable(self, conns: list[Any]) -> list[Any]:
        """Those connections whose socket has something to read or is at its end."""
        return _sockets.readable(conns)

    def look(self, conn: Any) -> Exception | None:
        """Why an idle connection is dead, else None; reads what the server has sent.

        NOTIFYs are in the connection's `notifies` then; one that has too many is given up.
        """
        try:
            descriptor = _descriptor(conn)
            return None if descriptor is None or _sockets.silent(descriptor) else _drain(conn)
        except psycopg2.Error as error:
            return error.with_traceback(None)  # whose frames refer to the connection

    def deliver(self, conn: Any) -> None:
        """Nothing: psycopg2 has no handlers, and keeps what comes in `notices` and `notifies`."""

    def lifeline(self, conn: Any) -> Lifeline | None:
        """A second hold on the connection's socket; None if it has none."""
        try:
            descriptor = _descriptor(conn)
            return None if descriptor is None else Lifeline(descriptor)
        except (psycopg2.Error, OSError):
            return None

    def descriptor(self, conn: Any) -> int | None:
        """The descriptor of the connection's socket, None if it has none; from any thread."""
        try:
            return _descriptor(conn)
        except psycopg2.Error:
            return None

    def verdict(self, error: BaseException) -> Verdict:
        """What a failed connect means."""
        if not isinstance(error, psycopg2.Error):
            return Verdict.TRANSIENT
        if error.pgcode:
            return libpq.STATES.get(error.pgcode, Verdict.TRANSIENT)
        return libpq.judge(str(error))

    def unanswered(self, error: BaseException) -> bool:
        """Whether a connect has failed since nobody answered in time."""
        return isinstance(error, psycopg2.Error) and libpq.unanswered(str(error))

    def patience(
        self,
        conninfo: str,
        kwargs: dict[str, Any],
        factor: int = 1,
        connection_class: Any = None,
    ) -> float:
        """Seconds that connecting may take by its own time-outs, `math.inf` if it has none.

        Those are not added where a factory makes connections of which the pool knows nothing.
        """
        given = _given(conninfo, kwargs) or {}
        factory = extended(kwargs.get("connection_factory") or connection_class or connection)
        if isinstance(factory, type) and issubclass(factory, Timed):
            return libpq.patience(given, inf, factor)
        return libpq.allowed(libpq.settings(given) or given, inf)

    def standby(self, conn: Any) -> bool | None:
        """Whether the server said last that it is a standby; None if it never did (before 14)."""
        try:
            status = conn.get_parameter_status("in_hot_standby")
        except (psycopg2.Error, AttributeError):
            return None
        return status == "on" if isinstance(status, str) else None

    async def in_recovery(self, conn: Any) -> bool:
        """Whether the server of an idle connection is a standby, by asking it."""
        was, conn.autocommit = conn.autocommit, True
        try:
            with _own_cursor(conn) as cursor:
                cursor.execute(IN_RECOVERY)
                row = cursor.fetchone()
            return bool(row and row[0])
        finally:
            if not conn.closed:
                conn.autocommit = was

    def keepable(self, error: BaseException) -> BaseException:
        """An error as it may be kept for long; psycopg2's refer to their connection by a cursor.

        A copy does not, and the attribute cannot be assigned.
        """
        if getattr(error, "cursor", None) is None:
            return error
        kept = copy(error)
        kept.__cause__ = error.__cause__
        return kept

    def refuses_writes(self, error: BaseException) -> bool:
        """Whether a server has refused to write: a transaction, or all of it, is read-only."""
        return isinstance(error, errors.ReadOnlySqlTransaction)

    def wants_writable(self, conninfo: str, kwargs: dict[str, Any]) -> bool | None:
        """Whether connections must be able to write, by `target_session_attrs`."""
        return libpq.wants_writable(_given(conninfo, kwargs) or {})

    async def connect(
        self, connection_class: Any, conninfo: str, kwargs: dict[str, Any], factor: int = 1
    ) -> Any:
        """Open a connection; a `connection_factory` among `kwargs` goes before the class."""
        args = () if "dsn" in kwargs and not conninfo else (conninfo,)
        asked = None if connection_class is connection else connection_class
        with _as_patient(factor):
            conn = connect(args, {"connection_factory": asked, **kwargs})
        if self.closed(conn):  # as a factory does that finds itself at the wrong server
            raise psycopg2.OperationalError("the connection was closed by its connection_factory")
        return conn

    async def close(self, conn: Any) -> None:
        """Close a connection."""
        conn.close()

    async def rollback(self, conn: Any) -> None:
        """End the transaction."""
        conn.rollback()

    async def ping(self, conn: Any) -> None:
        """Make one round trip."""
        check_connection(conn)


class DropInDriver(SyncPsycopg2):
    """psycopg2 for the drop-ins, whose pools connect by a method of their own, `_connect()`.

    What was opened for a client is lent as it is, as the originals do: a connection that is in a
    transaction, still connecting, or closed by its factory.
    """

    def __init__(self, pool: Any, *args: Any) -> None:
        super().__init__()
        self._pool = weakref.ref(pool)  # which a reference cycle would keep
        self._args = args  # of `_connect()`

    async def connect(
        self, connection_class: Any, conninfo: str, kwargs: dict[str, Any], factor: int = 1
    ) -> Any:
        """Open a connection."""
        del connection_class, conninfo, kwargs
        with _as_patient(factor):
            return self._caller()._connect(*self._args)

    def look(self, conn: Any) -> Exception | None:
        """Why an idle connection is dead, else None; one that was never idle is not looked at."""
        entry = self.find(conn)
        return None if entry is not None and is_fresh(entry) else super().look(conn)

    def _caller(self) -> Any:
        pool = self._pool()
        assert pool is not None  # it is its caller that connects
        return pool


def is_fresh(entry: Entry) -> bool:
    """Whether a connection was opened for the client that has it."""
    return entry.lent_at == entry.opened_at


# Connecting --------------------------------------------------------------------------------------


def connect(
    args: Sequence[Any], kwargs: Mapping[str, Any], derive: Callable[[Any], Any] | None = None
) -> Any:
    """Connect as `psycopg2.connect(*args, **kwargs)` does, but with a class that a pool can use.

    `derive` makes that class of the `connection_factory`; `extended()` by default.  `connect` is
    called as users call it, whatever stands in its place now, an agent's wrapper or a mock.
    """
    names = ("connection_factory", "cursor_factory")
    given = {**dict(zip(names, args[1:], strict=False)), **kwargs}
    args = (*args[:1], *args[3:])
    try:
        return _connect(args, dict(given), derive or extended)
    except psycopg2.Error as error:
        _hide_secrets(error, args[0] if args else given.get("dsn"), given)
        raise


def _connect(args: Sequence[Any], given: dict[str, Any], derive: Callable[[Any], Any]) -> Any:
    """Connect with a class, unless nobody has asked for any and there is no room for one."""
    asked, function = given.pop("connection_factory", None), psycopg2.connect
    factory = derive(connection if asked is None else asked)
    if asked is not None:
        return function(*args, connection_factory=factory, **given)
    if _has_room(function, "connection_factory"):
        try:
            return function(*args, connection_factory=factory, **given)
        except TypeError as error:
            if "'connection_factory'" not in str(error):
                raise
    return function(*args, **given)


def _has_room(function: Any, name: str) -> bool:
    """Whether a function takes a keyword argument, and so does every function that it wraps.

    What cannot be read, as it is made in C, a proxy or a mock, passes things on as a rule.
    """
    for _ in range(WRAPPED):
        try:
            parameters = inspect.signature(function, follow_wrapped=False).parameters
        except Exception:  # a proxy may raise anything
            return True
        kinds = {each.kind for each in parameters.values()}
        if name not in parameters and inspect.Parameter.VAR_KEYWORD not in kinds:
            return False
        function = getattr(function, "__wrapped__", None)
        if function is None:
            break
    return True


def _hide_secrets(error: psycopg2.Error, dsn: Any, kwargs: Mapping[str, Any]) -> None:
    """Take out of an error what it quotes of a secret."""
    # What the user's own factory or `connect` connects by, nobody knows.
    alone = kwargs.get("connection_factory") is None and psycopg2.connect is CONNECT
    readable = not alone or _given(dsn, {}) is not None
    text = str(error)
    shown = libpq.scrub(text, dsn, libpq.harmless(kwargs), readable=readable, alone=alone)
    if shown != text:
        error.args = (shown,)


#: How many times as patient as usual the attempt to connect is that is being made.
_factor: ContextVar[int] = ContextVar("_factor", default=1)


@contextmanager
def _as_patient(factor: int) -> Iterator[None]:
    """Connect with more patience, however the user's classes and functions pass that on."""
    token = _factor.set(factor)
    try:
        yield
    finally:
        _factor.reset(token)


class Timed(connection):
    """A connection with the time-outs of `libpq.DEFAULTS`, where they are set nowhere.

    It stands below the user's class, which is given the `dsn` that it would have without a pool.
    """

    __slots__ = ()

    def __init__(self, dsn: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(with_defaults(dsn), *args, **kwargs)


def with_defaults(dsn: Any) -> Any:
    """The `dsn`, with what `libpq.DEFAULTS` adds to it; as it is, if it cannot be read."""
    given = _given(dsn, {})
    added = libpq.missing(given, _factor.get()) if given is not None else {}
    return extensions.make_dsn(dsn, **added) if added else dsn


def _given(dsn: str | None, kwargs: dict[str, Any]) -> dict[str, Any] | None:
    """The options that are set; None if the string cannot be read, which connecting will tell."""
    try:
        options = _parsed(kwargs.get("dsn") or dsn or "")
    except (psycopg2.Error, TypeError):  # the latter when it is no string
        return None
    return {**options, **{name: value for name, value in kwargs.items() if value is not None}}


@lru_cache(maxsize=8)
def _parsed(dsn: str) -> Mapping[str, Any]:
    options: Mapping[str, Any] = extensions.parse_dsn(dsn)
    return options


def _drain(conn: Any) -> Exception | None:
    """Read what the server has sent; why the session has ended, if it says so.

    Raises:
        psycopg2.Error: the session has ended without a word.
    """
    socket = conn.fileno()
    for _ in range(READS):
        conn.poll()
        end = _last_word(conn) or _flood(conn)
        if end is not None:
            return end
        if _sockets.silent(socket):
            break
    if conn.info.status == CONNECTION_BAD:  # the server does not speak the protocol
        raise psycopg2.OperationalError(conn.info.error_message)
    return None


def _last_word(conn: Any) -> Exception | None:
    """The server's reason for ending the session, if that was its last notice."""
    notices = conn.notices
    if not notices or not isinstance(notices, Sequence):  # the user may have put anything there
        return None
    severity, _, text = str(notices[-1]).partition(":")
    text = text.strip()
    reason = REASONS.get(text.partition("\n")[0])
    # A crash of another backend and an immediate shutdown are told as warnings.
    if severity in ENDS or (severity == "WARNING" and reason):
        return (reason or psycopg2.OperationalError)(text)
    return None


def _flood(conn: Any) -> Exception | None:
    """An error if nobody fetches the NOTIFYs that an idle connection is sent without end."""
    with suppress(TypeError):  # the user may have put anything there
        if len(conn.notifies) > NOTIFIES:
            return psycopg2.OperationalError(OVERFLOW)
    return None


# What connections are asked ----------------------------------------------------------------------


def end_transaction(conn: Any, failed: bool) -> None:
    """Commit, or roll back after the exception that ended a block, which goes on unchanged.

    Nothing is left to do where the block has closed the connection; where it was lost, and the
    block has not noticed or not told, `commit()` raises.  An asynchronous connection commits by
    itself, and has no `commit()` to call.
    """
    if not failed:
        if _number(conn, "closed", 0) != CLOSED and (not _asynchronous(conn) or unclean(conn)):
            conn.commit()
        return
    try:
        conn.rollback()
    except psycopg2.Error as error:  # usually the connection is lost: that is why it failed
        logger.info("error rolling back %s: %s", label(conn), error)


def unclean(conn: Any) -> bool:
    """False only for a working connection that is in no transaction and runs nothing.

    The server's view alone will not do: after `execute("commit")` psycopg2 still believes in a
    transaction, and would begin none for the next client; a prepared one is psycopg2's alone, too.
    """
    try:
        if not (conn.get_transaction_status() or conn.status != READY):
            return False
    except AttributeError:  # no connection of psycopg2's
        pass
    return bool(transaction_status(conn) or _number(conn, "status", READY) != READY)


def transaction_status(conn: Any) -> int:
    """The server's view; of a stand-in that has none, IDLE."""
    status = None
    with suppress(AttributeError):
        status = conn.get_transaction_status()
    if isinstance(status, int):
        return status
    return _number(getattr(conn, "info", None), "transaction_status", IDLE)


def _number(owner: Any, name: str, default: int) -> int:
    """An attribute that is a number; mocks have others."""
    value = getattr(owner, name, default)
    return value if isinstance(value, int) else default


def _asynchronous(conn: Any) -> bool:
    return bool(_number(conn, "async_", 0))


def _descriptor(conn: Any) -> int | None:
    """The descriptor of a connection's socket; None of a stand-in that has no socket.

    Raises:
        psycopg2.Error: the connection is closed.
    """
    # The class's own, if it has one: psycopg2_pool's connections on offer look who asks.
    fileno = getattr(type(conn), "fileno", None)
    try:
        descriptor = conn.fileno() if fileno is None else fileno(conn)
    except AttributeError:
        return None
    return descriptor if isinstance(descriptor, int) else None


def _own_cursor(conn: Any) -> Any:
    """A cursor that gives tuples, whatever the connection's own makes of a row."""
    if issubclass(type(conn), connection):
        return extensions.cursor(conn)
    return conn.cursor(cursor_factory=extensions.cursor)


def check_connection(conn: Any) -> None:
    """Make one round trip on a connection; raise the driver's error if it is lost.

    The transaction status is afterwards what it was before.
    """
    if getattr(conn, "autocommit", True) or unclean(conn):
        _round_trip(conn)
        return
    conn.autocommit = True
    try:
        _round_trip(conn)
    finally:
        if not conn.closed:
            conn.autocommit = False


def _round_trip(conn: Any) -> None:
    # That the transaction has failed is an answer, all the same.
    with conn.cursor() as cursor, suppress(errors.InFailedSqlTransaction):
        cursor.execute("select 1")
        if _asynchronous(conn):
            wait_select(conn)


def describe(conn: Any) -> str:
    """The name of a connection's transaction status, and what that does not show."""
    known, own = transaction_status(conn), _number(conn, "status", READY)
    status = STATUSES.get(known, str(known))
    return f"{status}, {OWN.get(own, own)}" if status == "IDLE" and own != READY else status


def label(conn: Any) -> str:
    """A connection without anything secret: psycopg2's own text quotes the `dsn`."""
    facts = []
    with suppress(Exception):  # a class of the user's, or a fake, may lack anything
        facts.append(f" [{describe(conn)}]")
        info = conn.info
        named = ("host", info.host), ("database", info.dbname), ("pid", info.backend_pid)
        known = [f"{name}={fact}" for name, fact in named if fact and isinstance(fact, int | str)]
        facts += [f" ({' '.join(known)})"] if known else []
    kind = type(conn)
    name = f"{kind.__module__}.{kind.__qualname__}"
    return libpq.one_line(f"<{name}{''.join(facts)} at 0x{id(conn):x}>")


@cache
def _extended(factory: type) -> Any:
    base: Any = factory

    def close(self: Any) -> None:
        pool = getattr(self, "_pool", None)
        if pool is not None and pool.close_returns:
            entry = getattr(self, "_forebay_entry", None)
            pool.putconn((entry and entry.ref and entry.ref()) or self)  # perhaps its proxy
        else:
            base.close(self)

    try:
        return derived(factory, slots=("_forebay_entry", "_pool"), close=close)
    except Exception:  # whatever it refuses with
        return factory


def extended(factory: Any) -> Any:
    """The class to connect with, for the `connection_factory` that was asked for.

    It derives from that class and has what the pool keeps with each connection, for which
    psycopg2's own has no room; its `close()` knows `close_returns`.  A factory that is no class,
    or cannot be derived from, is called as it is.
    """
    return _extended(factory) if isinstance(factory, type) else factory


def derived(factory: type, *before: type, slots: Sequence[str] = (), **members: Any) -> Any:
    """A class derived from a factory, under its name; its connections are `Timed`.

    The classes `before` it come first in the order of classes.
    """
    if factory is connection:
        bases: tuple[type, ...] = (*before, Timed)
    elif issubclass(factory, connection) and not issubclass(factory, Timed):
        bases = (*before, factory, Timed)
    else:
        bases = (*before, factory)
    names = {name: getattr(factory, name) for name in ("__module__", "__qualname__", "__doc__")}
    kind: Any = type(factory)
    return kind(factory.__name__, bases, {**names, "__slots__": slots, **members})


@cache
def _plain(connection_class: Any) -> bool:
    """Whether connections certainly commit and roll back as psycopg2's do.

    Those of any other class may have an attribute `commit` of their own, or get one some day.
    """
    if connection_class is not extended(connection):
        return False
    own: Any = connection
    return connection_class.commit is own.commit and connection_class.rollback is own.rollback
