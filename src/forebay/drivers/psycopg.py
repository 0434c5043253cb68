"""The driver for psycopg 3, for threads and for asyncio."""

from __future__ import annotations

import asyncio
import inspect
import logging
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache, partial
from itertools import islice
from operator import attrgetter
from types import FunctionType, MethodType
from typing import Any, TypeVar, get_origin

import psycopg
from psycopg import errors
from psycopg.conninfo import conninfo_to_dict
from psycopg.pq import ConnStatus, DiagnosticField, PipelineStatus, TransactionStatus

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

# With Connection[Any] instead, a pool given check=check_connection would be one of Any's rows.
CT = TypeVar("CT", bound=psycopg.Connection[Any])
ACT = TypeVar("ACT", bound=psycopg.AsyncConnection[Any])

logger = logging.getLogger("forebay")

IDLE = TransactionStatus.IDLE
USABLE = (TransactionStatus.IDLE, TransactionStatus.INTRANS, TransactionStatus.INERROR)

#: How often `look()` reads at most, 8 kB or more each time: a server that never stops must not
#: keep it for good.
READS = 1000
#: How many NOTIFYs may wait on an idle connection for somebody to take them, 8 kB each at most.
NOTIFIES = 10_000
#: How many notices are kept for an idle connection's next client: the last ones.
NOTICES = 100
#: Why an idle connection is discarded that has more.
OVERFLOW = (
    f"more than {NOTIFIES} notifications have come, and nobody takes them: the session still"
    " LISTENs; UNLISTEN before it is returned"
)
#: How many layers of a wrapped `connect()`, or links of a chain of errors, are read at most.
WRAPPED = 20
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


class PsycopgDriver(Finder):
    """What `psycopg.Connection` and `psycopg.AsyncConnection` have in common."""

    ProgrammingError: type[Exception] = psycopg.ProgrammingError

    def __init__(self) -> None:
        super().__init__()
        self.unclean: Callable[[Any], Any] = unclean
        self.entry: Callable[[Any], Entry] = attrgetter("_forebay_entry")  # type: ignore[assignment]
        self._refused: set[str] = set()  # time-outs that the user's connect() will not take

    def refusals(self, name: str) -> Refusals:
        """The exceptions of the pool `name`."""
        return Refusals(name, PoolClosed, PoolTimeout, TooManyRequests, PoolRejected, PoolDeadlock)

    def adopt(self, conn: Any, entry: Entry) -> None:
        """Attach `entry` to a new connection, which is not lent."""
        conn._pool = None
        conn._forebay_entry = entry
        _complete(conn)
        entry.plain = _plain(conn)

    def usable(self, conn: Any) -> bool:
        """Whether a connection works, waits for a command, and can be rolled back."""
        return conn.pgconn.transaction_status in USABLE and not _entangled(conn)

    def closed(self, conn: Any) -> bool:
        """Whether a connection is known to be closed or lost."""
        return bool(conn.closed)

    def died(self, conn: Any) -> bool:
        """Whether the session of a connection has ended, and not by its `close()`."""
        return bool(getattr(conn, "broken", False))

    def end(self, conn: Any) -> None:
        """Close a connection on the spot, without its class having a say in it."""
        conn.pgconn.finish()

    def describe(self, conn: Any) -> str:
        """The name of the connection's transaction status, and what that does not show."""
        status = TransactionStatus(conn.pgconn.transaction_status).name
        return ", ".join([status, *_entangled(conn)])

    def label(self, conn: Any) -> str:
        """A connection as a log may name it: its class, its state, and where it leads."""
        kind = type(conn)
        try:
            what = f" {_summary(conn, self.describe(conn))}"
        except Exception:  # a class of the user's, or a fake, may lack anything
            what = ""
        return libpq.one_line(f"<{kind.__module__}.{kind.__qualname__}{what} at 0x{id(conn):x}>")

    def readable(self, conns: list[Any]) -> list[Any]:
        """Those connections whose socket has something to read or is at its end."""
        return _sockets.readable(conns)

    def look(self, conn: Any) -> Exception | None:
        """Why an idle connection is dead, else None; reads what the server has sent.

        The user's handlers are not called: what was heard for them is kept for `deliver()`.
        """
        try:
            return None if _sockets.silent(conn.pgconn.socket) else _drain(conn)
        except psycopg.Error as error:
            return error.with_traceback(None)  # whose frames refer to the connection

    def deliver(self, conn: Any) -> None:
        """Give the connection's handlers what `look()` has heard; in the client that is lent it."""
        heard = getattr(conn, "_forebay_heard", None)
        if isinstance(heard, Heard):
            conn._forebay_heard = None
            _tell(conn.pgconn.notice_handler, heard.notices)
            _tell(conn.pgconn.notify_handler, heard.notifies)

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

    def unanswered(self, error: BaseException) -> bool:
        """Whether a connect has failed since nobody answered in time."""
        if isinstance(error, errors.ConnectionTimeout):
            return True
        return isinstance(error, psycopg.Error) and libpq.unanswered(str(error))

    def patience(
        self,
        conninfo: str,
        kwargs: dict[str, Any],
        factor: int = 1,
        connection_class: Any = None,
    ) -> float:
        """Seconds that connecting may take by its own time-outs.

        Those are unbounded where none can be added: the string is read by the `connection_class`
        alone, or that has no room.
        """
        given = _given(conninfo, kwargs)
        if given is None:
            return UNBOUNDED
        if connection_class is None or self._room(connection_class, {"connect_timeout"}):
            return libpq.patience(given, UNBOUNDED, factor)
        return libpq.allowed(libpq.settings(given) or given, UNBOUNDED)

    def standby(self, conn: Any) -> bool | None:
        """Whether the server said last that it is a standby; None if it never did (before 14)."""
        try:
            status = conn.pgconn.parameter_status(b"in_hot_standby")
        except psycopg.Error:
            return None
        return None if status is None else status == b"on"

    def keepable(self, error: BaseException) -> BaseException:
        """An error as it may be kept for long: psycopg's has what libpq knew, also the password."""
        if isinstance(error, psycopg.Error):
            error._pgconn = None
        return error

    def refuses_writes(self, error: BaseException) -> bool:
        """Whether a server has refused to write: a transaction, or all of it, is read-only."""
        return isinstance(error, errors.ReadOnlySqlTransaction)

    def wants_writable(self, conninfo: str, kwargs: dict[str, Any]) -> bool | None:
        """Whether connections must be able to write, by `target_session_attrs`."""
        return libpq.wants_writable(_given(conninfo, kwargs) or {})

    def _added(
        self, connection_class: Any, conninfo: str, kwargs: dict[str, Any], factor: int
    ) -> dict[str, str | int]:
        """The time-outs that are set nowhere, and for which the class's `connect()` has room."""
        given = _given(conninfo, kwargs)
        added = {} if given is None else libpq.missing(given, factor)
        room = self._room(connection_class, set(added))
        return {name: _number(value) for name, value in added.items() if name in room}

    def _room(self, connection_class: Any, names: set[str]) -> set[str]:
        return room(connection_class.connect, names - self._refused)

    def _is_refusal(self, error: TypeError, added: dict[str, str | int]) -> bool:
        """Whether `connect()` has failed since it does not take, or sets itself, what is added.

        That does not show in its signature where it passes on what it is given.
        """
        text = str(error)
        refused = {name for name in added if f"'{name}'" in text}
        self._refused |= refused
        return bool(refused)


class SyncPsycopg(PsycopgDriver):
    """psycopg 3 for threads: everything blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.unclean = unclean_sync

    async def connect(
        self, connection_class: Any, conninfo: str, kwargs: dict[str, Any], factor: int = 1
    ) -> Any:
        """Open a connection, as `factor` times patient as usual."""
        while True:
            added = self._added(connection_class, conninfo, kwargs, factor)
            try:
                return connection_class.connect(conninfo, **{**kwargs, **added})
            except TypeError as error:
                if not self._is_refusal(error, added):
                    raise
            except psycopg.Error as error:
                _hide_secrets(error, connection_class, conninfo, kwargs)
                raise

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

    async def connect(
        self, connection_class: Any, conninfo: str, kwargs: dict[str, Any], factor: int = 1
    ) -> Any:
        """Open a connection, as `factor` times patient as usual."""
        while True:
            added = self._added(connection_class, conninfo, kwargs, factor)
            try:
                return await connection_class.connect(conninfo, **{**kwargs, **added})
            except TypeError as error:
                if not self._is_refusal(error, added):
                    raise
            except psycopg.Error as error:
                _hide_secrets(error, connection_class, conninfo, kwargs)
                raise
            except BaseException as error:
                _close_left(error)
                raise

    async def close(self, conn: Any) -> None:
        """Close a connection."""
        await conn.close()

    def usable(self, conn: Any) -> bool:
        """Whether a connection works, can be rolled back, and is not kept locked.

        A coroutine that the collector ends while it awaits the connection never unlocks it.
        """
        lock = getattr(conn, "lock", None)
        return super().usable(conn) and not (isinstance(lock, asyncio.Lock) and lock.locked())

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


def _close_left(error: BaseException) -> None:
    """Close what a user's `connect()` had opened when it was cancelled, or failed.

    That is in the variables of its frames, and is garbage if nothing but they refers to it.
    """
    references = 3 if sys.version_info >= (3, 13) else 4  # before, `f_locals` is a copy
    # Not in our own frame: before 3.13 it would keep the copy, `error` in it, which is a circle.
    traceback = error.__traceback__ and error.__traceback__.tb_next
    while traceback is not None:
        names = traceback.tb_frame.f_locals
        for name in [*names]:
            conn = names[name]
            if isinstance(conn, psycopg.AsyncConnection) and sys.getrefcount(conn) <= references:
                conn.pgconn.finish()
        traceback = traceback.tb_next


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


# Connecting --------------------------------------------------------------------------------------


def origin(connection_class: Any) -> Any:
    """The class behind a generic alias such as `MyConnection[Row]`; what is none is its own."""
    return get_origin(connection_class) or connection_class


def room(connect: Any, names: set[str]) -> set[str]:
    """Those keyword arguments for which a `connect()` has room.

    It may be wrapped, and each layer that can be read must have room.  What cannot be read, as it
    is made in C, a proxy or a mock, passes things on as a rule.
    """
    for layer in islice(_layers(connect), WRAPPED):
        names = _room(layer, names)
    return names


def _layers(function: Any) -> Iterator[Any]:
    while function is not None:
        yield function
        try:
            function = getattr(function, "__wrapped__", None)
        except Exception:  # a proxy may raise anything
            return


def _room(function: Any, names: set[str]) -> set[str]:
    try:
        parameters = inspect.signature(function, follow_wrapped=False).parameters
    except Exception:  # as above; ValueError is for what is made in C
        return names
    kinds = {name: each.kind for name, each in parameters.items()}
    if inspect.Parameter.VAR_KEYWORD in kinds.values():
        return names
    return {name for name in names if kinds.get(name) in _BY_NAME}


_BY_NAME = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def _number(value: str) -> str | int:
    """An option as a user would write it in Python."""
    return int(value) if value.isdecimal() else value


def _hide_secrets(
    error: psycopg.Error, connection_class: Any, conninfo: str, kwargs: dict[str, Any]
) -> None:
    """Take out of an error, and of those it has come from, what they quote of a secret."""
    alone = _is_own(connection_class, "connect")
    readable = not alone or _given(conninfo, {}) is not None
    harmless = libpq.harmless(kwargs)
    for link in islice(_chain(error), WRAPPED):
        text = str(link)
        shown = libpq.scrub(text, conninfo, harmless, readable=readable, alone=alone)
        if shown != text:
            link.args = (shown,)


def _chain(error: BaseException | None) -> Iterator[psycopg.Error]:
    """An error and those it has come from; it may be a circle."""
    while isinstance(error, psycopg.Error):
        yield error
        error = error.__cause__ or error.__context__


def _given(conninfo: str, kwargs: dict[str, Any]) -> dict[str, Any] | None:
    """The options that are set; None if the string cannot be read, which connecting will tell."""
    try:
        options = _parsed(conninfo)
    except (psycopg.Error, AttributeError, TypeError):  # the latter two when it is no string
        return None
    return {**options, **{name: value for name, value in kwargs.items() if value is not None}}


@lru_cache(maxsize=8)  # a pool asks again and again for the same
def _parsed(conninfo: str) -> Mapping[str, Any]:
    return conninfo_to_dict(conninfo)


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
    heard, ends = _heard(conn), deque[psycopg.Error](maxlen=1)
    pgconn.notice_handler = partial(_overhear, heard.notices, ends, conn.info.encoding)
    try:
        for _ in range(READS):
            pgconn.consume_input()
            pgconn.is_busy()  # that is what takes apart what was read
            if ends:
                return ends[0]
            if _keep_notifies(conn, heard.notifies) > NOTIFIES:
                return psycopg.OperationalError(OVERFLOW)
            if _sockets.silent(socket):
                break
    finally:
        pgconn.notice_handler = handler
    if pgconn.status != ConnStatus.OK:  # the server does not speak the protocol
        raise psycopg.OperationalError(pgconn.get_error_message())
    return None


class Heard:
    """What an idle connection was told while the pool looked at it, for its next client."""

    __slots__ = ("notices", "notifies")

    def __init__(self) -> None:
        self.notices: deque[Notice] = deque(maxlen=NOTICES)
        self.notifies: deque[Any] = deque()


def _heard(conn: Any) -> Heard:
    """What a connection was told that nobody has taken yet, to be added to."""
    heard = getattr(conn, "_forebay_heard", None)
    if not isinstance(heard, Heard):
        conn._forebay_heard = heard = Heard()
    return heard


class Notice:
    """A notice for psycopg's handler, which reads the fields of a result."""

    __slots__ = ("_fields",)

    def __init__(self, fields: dict[int, bytes | None]) -> None:
        self._fields = fields

    def error_field(self, fieldcode: int) -> bytes | None:
        """One of the fields, as `psycopg.pq.DiagnosticField` numbers them."""
        return self._fields.get(fieldcode)


def _tell(handler: Any, queue: deque[Any]) -> None:
    """Call a handler, in which the user's own run, with what was kept for it."""
    while queue and handler is not None:
        try:
            handler(queue.popleft())
        except Exception:
            logger.exception("error in a handler of notices or notifications")


def _overhear(
    notices: deque[Notice],
    ends: deque[psycopg.Error],
    encoding: str,
    result: psycopg.pq.abc.PGresult,
) -> None:
    """Keep a notice, and if it is the session's end the error; the result is freed afterwards."""
    fields: dict[int, bytes | None] = {f: result.error_field(f) for f in DiagnosticField}
    notices.append(Notice(fields))
    state = (fields[DiagnosticField.SQLSTATE] or b"").decode()
    text = (fields[DiagnosticField.MESSAGE_PRIMARY] or b"").decode(encoding, "replace")
    try:
        error_class = psycopg.errors.lookup(state)
    except KeyError:
        error_class = psycopg.OperationalError
    error = error_class(text, info=fields, encoding=encoding)
    if _is_end(error):
        ends.append(error)


def _is_end(notice: psycopg.Error) -> bool:
    """Whether a notice says that the session is over: the socket's end may come a moment later."""
    # A crash of another backend and an immediate shutdown are told as warnings.
    severity = notice.diag.severity_nonlocalized
    return severity in ("FATAL", "PANIC") or notice.sqlstate in ("57P01", "57P02")


def _keep_notifies(conn: Any, kept: deque[Any]) -> int:
    """Keep NOTIFYs that were read where the client gets them; how many wait there now.

    Without handlers that is where its `notifies()` looks: it waits for the socket before it asks
    libpq, which has them already.
    """
    pgconn = conn.pgconn
    keep = kept.append if conn._notify_handlers else pgconn.notify_handler
    while (notify := pgconn.notifies()) is not None:
        keep(notify)
    return len(kept) + len(conn._notifies_backlog or ())


# The state of a connection -----------------------------------------------------------------------


def unclean(conn: Any) -> Any:
    """False only for a working connection in no transaction and no pipeline, that runs nothing."""
    # For the hot path: 2 to 10 ns more than an attrgetter of the status alone, which shows neither
    # a two-phase transaction nor a pipeline.  TransactionStatus.IDLE, 0, is the one that is clean.
    if conn._tpc is None and conn._pipeline is None:
        return conn.pgconn.transaction_status
    return True


def unclean_sync(conn: Any) -> Any:
    """As `unclean()`; nor may a generator of `notifies()` be left suspended.

    It holds the connection's lock, for which the next client would wait for ever.  One of asyncio
    that nobody refers to ends a moment later.
    """
    if conn._tpc is None and conn._pipeline is None and conn._notifies_backlog is not None:
        return conn.pgconn.transaction_status
    return True


def _complete(conn: Any) -> None:
    """Give a fake what is read here of psycopg's own."""
    if not isinstance(getattr(conn, "_tpc", False), tuple | None):
        conn._tpc = None
    if not isinstance(getattr(conn, "_pipeline", False), _PIPELINE):
        conn._pipeline = None
    if not isinstance(getattr(conn, "_num_transactions", None), int):
        conn._num_transactions = 0
    if not isinstance(getattr(conn, "_notifies_backlog", False), deque | None):
        conn._notifies_backlog = deque()


_PIPELINE = psycopg.Pipeline | psycopg.AsyncPipeline | None


def _entangled(conn: Any) -> list[str]:
    """What a connection is in that no rollback ends, and that its status does not show."""
    states = []
    if conn._tpc is not None:
        xid, prepared = conn._tpc
        done = "prepared" if prepared else "begun"
        states.append(f"two-phase transaction {str(xid)!r} {done}")
    mode = getattr(conn.pgconn, "pipeline_status", PipelineStatus.OFF)
    if conn._pipeline is not None or mode in (PipelineStatus.ON, PipelineStatus.ABORTED):
        states.append("in pipeline mode")
    if conn._num_transactions:
        states.append("in a transaction() block")
    if conn._notifies_backlog is None:
        states.append("in notifies()")
    return states


def _summary(conn: Any, status: str) -> str:
    """The state of a connection, and where it leads: nothing of its connection string besides."""
    if conn.closed:
        return "[BAD]"
    info = conn.info
    where = f"host={info.host} port={info.port} database={info.dbname} pid={info.backend_pid}"
    return f"[{status}] ({where})"


def _plain(conn: Any) -> bool:
    """Whether a connection certainly commits and rolls back as psycopg does.

    Then nothing need be called.  Not so of a proxy, of a class that has methods of its own for
    that, or has had its methods replaced, or those of this connection.
    """
    return issubclass(type(conn), _OWN) and all(_is_own(conn, name) for name in _ENDINGS)


def _is_own(thing: Any, name: str) -> bool:
    """Whether a method of a connection, or of a class, is psycopg's own."""
    method = getattr(thing, name, None)
    if method is None:
        return True  # those of the other world
    function = getattr(method, "__func__", None)
    if type(method) is not MethodType or type(function) is not FunctionType:
        return False
    return function.__globals__["__name__"] in _MODULES  # which a wrapper cannot borrow


_OWN = (psycopg.Connection, psycopg.AsyncConnection)
_MODULES = ("psycopg.connection", "psycopg.connection_async")
_ENDINGS = ("__enter__", "__exit__", "__aenter__", "__aexit__", "commit", "rollback")
