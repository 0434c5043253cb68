"""The driver for psycopg2, for threads."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from copy import copy
from functools import cache, lru_cache
from math import inf
from operator import attrgetter
from typing import Any

import psycopg2
from psycopg2 import errors, extensions

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

logger = logging.getLogger("forebay")

IDLE = extensions.TRANSACTION_STATUS_IDLE
READY = extensions.STATUS_READY
CLOSED = 1  # by close(); a connection that was lost has 2
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

#: How often `look()` reads at most, 8 kB or more each time: a server that never stops must not
#: keep it for good.
READS = 1000
CONNECTION_OK = 0  # of libpq
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


class SyncPsycopg2:
    """psycopg2: everything blocks.

    `connection_class` is what psycopg2 calls the `connection_factory`: a class derived from
    `psycopg2.extensions.connection`, or another callable that makes such a connection; the pool
    connects with a subclass of the class (see `extended()`).
    """

    ProgrammingError: type[Exception] = psycopg2.ProgrammingError

    def __init__(self) -> None:
        self.unclean: Callable[[Any], Any] = unclean
        self.entry: Callable[[Any], Entry] = attrgetter("_forebay_entry")

    def refusals(self, name: str) -> Refusals:
        """The exceptions of the pool `name`."""
        return Refusals(name, PoolClosed, PoolTimeout, TooManyRequests, PoolRejected, PoolDeadlock)

    def adopt(self, conn: Any, entry: Entry) -> None:
        """Attach `entry` to a new connection, which is not lent."""
        try:
            conn._pool = None
            conn._forebay_entry = entry
        except AttributeError:
            raise TypeError(
                f"the connection_factory made {conn!r}, which takes no attributes, as the pool"
                " needs: give a class derived from psycopg2.extensions.connection that can be"
                " derived from, or make connections of a class without __slots__"
            ) from None
        connection_class: Any = type(conn)
        entry.plain = _plain(connection_class)

    def usable(self, conn: Any) -> bool:
        """Whether a connection works and waits for a command."""
        return conn.get_transaction_status() in USABLE

    def closed(self, conn: Any) -> bool:
        """Whether a connection is known to be closed or lost."""
        return bool(conn.closed)

    def describe(self, conn: Any) -> str:
        """The name of the connection's transaction status."""
        status = STATUSES[conn.get_transaction_status()]
        return status if status != "IDLE" or conn.status == READY else f"IDLE/{conn.status}"

    def readable(self, conns: list[Any]) -> list[Any]:
        """Those connections whose socket has something to read or is at its end."""
        return _sockets.readable(conns)

    def look(self, conn: Any) -> Exception | None:
        """Why an idle connection is dead, else None; reads what the server has sent.

        NOTIFYs are in the connection's `notifies` then.
        """
        try:
            return None if _sockets.silent(conn.fileno()) else _drain(conn)
        except psycopg2.Error as error:
            return error.with_traceback(None)  # whose frames refer to the connection

    def lifeline(self, conn: Any) -> Lifeline | None:
        """A second hold on the connection's socket; None if it has none."""
        try:
            return Lifeline(conn.fileno())
        except (psycopg2.Error, OSError):
            return None

    def verdict(self, error: BaseException) -> Verdict:
        """What a failed connect means."""
        if not isinstance(error, psycopg2.Error):
            return Verdict.TRANSIENT
        if error.pgcode:
            return libpq.STATES.get(error.pgcode, Verdict.TRANSIENT)
        return libpq.judge(str(error))

    def patience(self, conninfo: str, kwargs: dict[str, Any]) -> float:
        """Seconds that connecting may take by its own time-outs, `math.inf` if it has none."""
        return libpq.patience(_given(conninfo, kwargs) or {}, inf)

    def standby(self, conn: Any) -> bool | None:
        """Whether the server said last that it is a standby; None if it never did (before 14)."""
        try:
            status = conn.get_parameter_status("in_hot_standby")
        except psycopg2.Error:
            return None
        return None if status is None else status == "on"

    async def in_recovery(self, conn: Any) -> bool:
        """Whether the server of an idle connection is a standby, by asking it."""
        was, conn.autocommit = conn.autocommit, True
        try:
            with extensions.cursor(conn) as cursor:  # whatever the connection's own makes of a row
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

    async def connect(self, connection_class: Any, conninfo: str, kwargs: dict[str, Any]) -> Any:
        """Open a connection; a `connection_factory` among `kwargs` goes before the class."""
        return connect(conninfo, **{"connection_factory": connection_class, **kwargs})

    async def close(self, conn: Any) -> None:
        """Close a connection."""
        conn.close()

    async def rollback(self, conn: Any) -> None:
        """End the transaction."""
        conn.rollback()

    async def ping(self, conn: Any) -> None:
        """Make one round trip."""
        check_connection(conn)


def connect(
    dsn: str | None = None,
    connection_factory: Any = None,
    cursor_factory: Any = None,
    **kwargs: Any,
) -> Any:
    """Connect as `psycopg2.connect()` does, with a class that a pool can use.

    The time-outs of `libpq.DEFAULTS` are added where they are set nowhere.
    """
    factory = extended(connection_factory or extensions.connection)
    return psycopg2.connect(dsn, factory, cursor_factory, **with_defaults(dsn, kwargs))


def with_defaults(dsn: str | None, kwargs: dict[str, Any]) -> dict[str, Any]:
    """The `kwargs` for `psycopg2.connect()`, with what `libpq.DEFAULTS` adds to them."""
    given = _given(dsn, kwargs)
    return kwargs if given is None else {**kwargs, **libpq.missing(given)}


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
        end = _last_word(conn)
        if end is not None:
            return end
        if _sockets.silent(socket):
            break
    if conn.info.status != CONNECTION_OK:  # the server does not speak the protocol
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


def end_transaction(conn: Any, failed: bool) -> None:
    """Commit, or roll back after the exception that ended a block, which goes on unchanged.

    Nothing is left to do where the block has closed the connection; where it was lost, and the
    block has not noticed or not told, `commit()` raises.
    """
    if not failed:
        if conn.closed != CLOSED:
            conn.commit()
        return
    try:
        conn.rollback()
    except psycopg2.Error as error:  # usually the connection is lost: that is why it failed
        logger.info("error rolling back %s: %s", conn, error)


def unclean(conn: Any) -> bool:
    """False only for a working connection that is in no transaction and runs nothing.

    The server's view alone will not do: after `execute("commit")` psycopg2 still believes in a
    transaction, and would begin none for the next client; a prepared one is psycopg2's alone, too.
    """
    return bool(conn.get_transaction_status() or conn.status != READY)


def check_connection(conn: Any) -> None:
    """Make one round trip on a connection; raise the driver's error if it is lost.

    The transaction status is afterwards what it was before.
    """
    if conn.autocommit or unclean(conn):
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


@cache
def extended(factory: Any) -> Any:
    """The class to connect with, for the `connection_factory` that was asked for.

    It derives from that class and has what the pool keeps with each connection, for which
    psycopg2's own has no room; its `close()` knows `close_returns`.  A factory that is no class,
    or cannot be derived from, is called as it is.
    """
    if not isinstance(factory, type):
        return factory
    base: Any = factory

    def close(self: Any) -> None:
        pool = getattr(self, "_pool", None)
        if pool is not None and pool.close_returns:
            pool.putconn(self)
        else:
            base.close(self)

    members = {
        "__slots__": ("_forebay_entry", "_pool"),
        "__module__": factory.__module__,
        "__qualname__": factory.__qualname__,
        "__doc__": factory.__doc__,
        "close": close,
    }
    try:
        return type(factory)(factory.__name__, (factory,), members)
    except TypeError:
        return factory


@cache
def _plain(connection_class: Any) -> bool:
    """Whether a class commits and rolls back as psycopg2 does: then nothing need be called."""
    own = extensions.connection
    return connection_class.commit is own.commit and connection_class.rollback is own.rollback
