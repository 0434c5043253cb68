"""The driver for psycopg2, for threads."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from operator import attrgetter
from typing import Any

import psycopg2
from psycopg2 import errors, extensions

from .._entry import Entry
from ..errors import PoolClosedMixin, PoolTimeoutMixin, Refusals, TooManyRequestsMixin

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


class PoolClosed(PoolClosedMixin, psycopg2.OperationalError):
    """A connection was requested from a pool that is not open."""

    __module__ = "forebay.psycopg2"


class PoolTimeout(PoolTimeoutMixin, psycopg2.OperationalError):
    """The pool couldn't provide a connection in time."""

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
        return Refusals(name, PoolClosed, PoolTimeout, TooManyRequests)

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
    """Connect as `psycopg2.connect()` does, with a class that a pool can use."""
    factory = extended(connection_factory or extensions.connection)
    return psycopg2.connect(dsn, factory, cursor_factory, **kwargs)


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
