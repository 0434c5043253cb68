"""The driver for psycopg 3, for threads and for asyncio."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache, lru_cache, partial
from operator import attrgetter
from typing import Any, TypeVar

import psycopg
from psycopg import errors
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.pq import ConnStatus, DiagnosticField, TransactionStatus

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

# With Connection[Any] instead, a pool given check=check_connection would be one of Any's rows.
CT = TypeVar("CT", bound=psycopg.Connection[Any])
ACT = TypeVar("ACT", bound=psycopg.AsyncConnection[Any])

IDLE = TransactionStatus.IDLE
USABLE = (TransactionStatus.IDLE, TransactionStatus.INTRANS, TransactionStatus.INERROR)

#: How often `look()` reads at most, 8 kB or more each time: a server that never stops must not
#: keep it for good.
READS = 1000
#: Seconds in which psycopg ends a connect that has no time-out.
UNBOUNDED = 130.0
IN_RECOVERY = "select pg_catalog.pg_is_in_recovery()"


class PoolClosed(PoolClosedMixin, psycopg.OperationalError):
    """A connection was requested from a pool that is not open."""

    __module__ = "forebay"


class PoolTimeout(PoolTimeoutMixin, psycopg.OperationalError):
    """The pool couldn't provide a connection in time.

    Its attributes say why: `kind`, the sizes of the pool, the `holders` of its connections, the
    `last_error` of connecting.
    """

    __module__ = "forebay"


class PoolRejected(PoolRejectedMixin, PoolTimeout):
    """The server rejects the pool's connections, and would if one waited: a wrong password, say.

    The driver's error is the `__cause__`.
    """

    __module__ = "forebay"


class PoolDeadlock(PoolDeadlockMixin, PoolTimeout):
    """Every connection is held by who waits here for a further one, so nobody would get any."""

    __module__ = "forebay"


class TooManyRequests(TooManyRequestsMixin, psycopg.OperationalError):
    """Too many clients wait for a connection already."""

    __module__ = "forebay"


class PsycopgDriver:
    """What `psycopg.Connection` and `psycopg.AsyncConnection` have in common."""

    ProgrammingError: type[Exception] = psycopg.ProgrammingError

    def __init__(self) -> None:
        # In C, for the hot path.  TransactionStatus.IDLE, 0, is the one that is clean.
        self.unclean: Callable[[Any], Any] = attrgetter("pgconn.transaction_status")
        self.entry: Callable[[Any], Entry] = attrgetter("_forebay_entry")

    def refusals(self, name: str) -> Refusals:
        """The exceptions of the pool `name`."""
        return Refusals(name, PoolClosed, PoolTimeout, TooManyRequests, PoolRejected, PoolDeadlock)

    def adopt(self, conn: Any, entry: Entry) -> None:
        """Attach `entry` to a new connection, which is not lent."""
        conn._pool = None
        conn._forebay_entry = entry
        connection_class: Any = type(conn)
        entry.plain = _plain(connection_class)

    def usable(self, conn: Any) -> bool:
        """Whether a connection works and waits for a command."""
        return conn.pgconn.transaction_status in USABLE

    def closed(self, conn: Any) -> bool:
        """Whether a connection is known to be closed or lost."""
        return bool(conn.closed)

    def describe(self, conn: Any) -> str:
        """The name of the connection's transaction status."""
        return TransactionStatus(conn.pgconn.transaction_status).name

    def readable(self, conns: list[Any]) -> list[Any]:
        """Those connections whose socket has something to read or is at its end."""
        return _sockets.readable(conns)

    def look(self, conn: Any) -> Exception | None:
        """Why an idle connection is dead, else None; reads what the server has sent.

        NOTIFYs reach the connection's handlers with the client's next query, or `notifies()`.
        """
        try:
            return None if _sockets.silent(conn.pgconn.socket) else _drain(conn)
        except psycopg.Error as error:
            return error.with_traceback(None)  # whose frames refer to the connection

    def lifeline(self, conn: Any) -> Lifeline | None:
        """A second hold on the connection's socket; None if it has none."""
        try:
            return Lifeline(conn.pgconn.socket)
        except (psycopg.Error, OSError):
            return None

    def verdict(self, error: BaseException) -> Verdict:
        """What a failed connect means."""
        if not isinstance(error, psycopg.Error):
            return Verdict.TRANSIENT
        if error.sqlstate:
            return libpq.STATES.get(error.sqlstate, Verdict.TRANSIENT)
        return libpq.judge(str(error))

    def patience(self, conninfo: str, kwargs: dict[str, Any]) -> float:
        """Seconds that connecting may take by its own time-outs."""
        return libpq.patience(_given(conninfo, kwargs) or {}, UNBOUNDED)

    def standby(self, conn: Any) -> bool | None:
        """Whether the server said last that it is a standby; None if it never did (before 14)."""
        try:
            status = conn.pgconn.parameter_status(b"in_hot_standby")
        except psycopg.Error:
            return None
        return None if status is None else status == b"on"

    def keepable(self, error: BaseException) -> BaseException:
        """An error as it may be kept for long: psycopg's do not refer to their connection."""
        return error

    def refuses_writes(self, error: BaseException) -> bool:
        """Whether a server has refused to write: a transaction, or all of it, is read-only."""
        return isinstance(error, errors.ReadOnlySqlTransaction)

    def wants_writable(self, conninfo: str, kwargs: dict[str, Any]) -> bool | None:
        """Whether connections must be able to write, by `target_session_attrs`."""
        return libpq.wants_writable(_given(conninfo, kwargs) or {})


class SyncPsycopg(PsycopgDriver):
    """psycopg 3 for threads: everything blocks."""

    async def connect(self, connection_class: Any, conninfo: str, kwargs: dict[str, Any]) -> Any:
        """Open a connection."""
        conninfo = with_defaults(conninfo, kwargs)
        return connection_class.connect(conninfo, **kwargs)

    async def close(self, conn: Any) -> None:
        """Close a connection."""
        conn.close()

    async def rollback(self, conn: Any) -> None:
        """End the transaction."""
        conn.rollback()

    async def ping(self, conn: Any) -> None:
        """Make one round trip."""
        check_connection(conn)

    async def in_recovery(self, conn: Any) -> bool:
        """Whether the server of an idle connection is a standby, by asking it."""
        was, conn.autocommit = conn.autocommit, True
        try:
            cursor = psycopg.Cursor(conn)  # whatever the connection's own makes of a row
            cursor.execute(IN_RECOVERY, prepare=False, binary=False)
            return _first_value(cursor) == b"t"
        finally:
            if not conn.closed:
                conn.autocommit = was


class AsyncPsycopg(PsycopgDriver):
    """psycopg 3 for asyncio."""

    async def connect(self, connection_class: Any, conninfo: str, kwargs: dict[str, Any]) -> Any:
        """Open a connection."""
        conninfo = with_defaults(conninfo, kwargs)
        return await connection_class.connect(conninfo, **kwargs)

    async def close(self, conn: Any) -> None:
        """Close a connection."""
        await conn.close()

    async def rollback(self, conn: Any) -> None:
        """End the transaction."""
        await conn.rollback()

    async def ping(self, conn: Any) -> None:
        """Make one round trip."""
        await check_connection_async(conn)

    async def in_recovery(self, conn: Any) -> bool:
        """Whether the server of an idle connection is a standby, by asking it."""
        was = conn.autocommit
        await conn.set_autocommit(True)
        try:
            cursor = psycopg.AsyncCursor(conn)
            await cursor.execute(IN_RECOVERY, prepare=False, binary=False)
            return _first_value(cursor) == b"t"
        finally:
            if not conn.closed:
                await conn.set_autocommit(was)


def check_connection(conn: CT) -> None:  # pyright: ignore[reportInvalidTypeVarUse]
    """Make one round trip on a connection; raise the driver's error if it is lost.

    The transaction status is afterwards what it was before.
    """
    if conn.autocommit or conn.pgconn.transaction_status != IDLE:
        conn.execute("")
        return
    conn.autocommit = True
    try:
        conn.execute("")
    finally:
        if not conn.closed:
            conn.autocommit = False


async def check_connection_async(conn: ACT) -> None:  # pyright: ignore[reportInvalidTypeVarUse]
    """Make one round trip on a connection; raise the driver's error if it is lost.

    The transaction status is afterwards what it was before.
    """
    if conn.autocommit or conn.pgconn.transaction_status != IDLE:
        await conn.execute("")
        return
    await conn.set_autocommit(True)
    try:
        await conn.execute("")
    finally:
        if not conn.closed:
            await conn.set_autocommit(False)


def with_defaults(conninfo: str, kwargs: dict[str, Any]) -> str:
    """A connection string with the time-outs of `libpq.DEFAULTS` that are set nowhere.

    They are put in here, and not among `kwargs`, for which the user's class may have no room.
    """
    given = _given(conninfo, kwargs)
    added = {} if given is None else libpq.missing(given)
    return _joined(conninfo, *added.items()) if added else conninfo


def _given(conninfo: str, kwargs: dict[str, Any]) -> dict[str, Any] | None:
    """The options that are set; None if the string cannot be read, which connecting will tell."""
    try:
        options = _parsed(conninfo)
    except (psycopg.Error, AttributeError, TypeError):  # the latter two when it is no string
        return None
    return {**options, **{name: value for name, value in kwargs.items() if value is not None}}


# They take 0.1 ms together, and a pool asks again and again for the same.


@lru_cache(maxsize=8)
def _parsed(conninfo: str) -> Mapping[str, Any]:
    return conninfo_to_dict(conninfo)


@lru_cache(maxsize=8)
def _joined(conninfo: str, *added: tuple[str, str]) -> str:
    return make_conninfo(conninfo, **dict(added))


def _first_value(cursor: psycopg.Cursor[Any] | psycopg.AsyncCursor[Any]) -> bytes | None:
    """As the server sent it, past the loaders that the user may have registered."""
    assert cursor.pgresult is not None
    return cursor.pgresult.get_value(0, 0)


def _drain(conn: Any) -> Exception | None:
    """Read what the server has sent; why the session has ended, if it says so.

    Raises:
        psycopg.Error: the session has ended without a word.
    """
    pgconn = conn.pgconn
    socket, handler = pgconn.socket, pgconn.notice_handler
    notices: list[psycopg.Error] = []
    pgconn.notice_handler = partial(_overhear, notices, handler, conn.info.encoding)
    try:
        for _ in range(READS):
            pgconn.consume_input()
            pgconn.is_busy()  # that is what takes apart what was read
            end = next(filter(_is_end, notices), None)
            if end is not None:
                return end
            if _sockets.silent(socket):
                break
    finally:
        pgconn.notice_handler = handler
    if pgconn.status != ConnStatus.OK:  # the server does not speak the protocol
        raise psycopg.OperationalError(pgconn.get_error_message())
    _keep_notifies(conn)
    return None


def _overhear(
    notices: list[psycopg.Error], handler: Any, encoding: str, result: psycopg.pq.abc.PGresult
) -> None:
    """Keep a notice as the error it may turn out to be; the result itself is freed afterwards."""
    fields: dict[int, bytes | None] = {f: result.error_field(f) for f in DiagnosticField}
    state = (fields[DiagnosticField.SQLSTATE] or b"").decode()
    text = (fields[DiagnosticField.MESSAGE_PRIMARY] or b"").decode(encoding, "replace")
    try:
        error_class = psycopg.errors.lookup(state)
    except KeyError:
        error_class = psycopg.OperationalError
    notices.append(error_class(text, info=fields, encoding=encoding))
    if handler is not None:
        handler(result)


def _is_end(notice: psycopg.Error) -> bool:
    """Whether a notice says that the session is over: the socket's end may come a moment later."""
    # A crash of another backend and an immediate shutdown are told as warnings.
    severity = notice.diag.severity_nonlocalized
    return severity in ("FATAL", "PANIC") or notice.sqlstate in ("57P01", "57P02")


def _keep_notifies(conn: Any) -> None:
    """Put NOTIFYs that were read where the client's `notifies()` looks for them.

    It waits for the socket before it asks libpq, which has them already.  With handlers there is
    nothing to do: they are called, in the client, with its next query.
    """
    pgconn = conn.pgconn
    if not conn._notify_handlers:
        while (notify := pgconn.notifies()) is not None:
            pgconn.notify_handler(notify)


@cache
def _plain(connection_class: Any) -> bool:
    """Whether a class commits and rolls back as psycopg does: then nothing need be called."""
    return any(
        all(getattr(connection_class, name, None) is getattr(own, name, None) for name in _ENDINGS)
        for own in (psycopg.Connection, psycopg.AsyncConnection)
    )


_ENDINGS = ("__enter__", "__exit__", "__aenter__", "__aexit__", "commit", "rollback")
