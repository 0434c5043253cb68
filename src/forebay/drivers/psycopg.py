"""The driver for psycopg 3, for threads and for asyncio."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from operator import attrgetter
from typing import Any, TypeVar

import psycopg
from psycopg.pq import TransactionStatus

from .._entry import Entry
from ..errors import PoolClosedMixin, PoolTimeoutMixin, Refusals, TooManyRequestsMixin

# With Connection[Any] instead, a pool given check=check_connection would be one of Any's rows.
CT = TypeVar("CT", bound=psycopg.Connection[Any])
ACT = TypeVar("ACT", bound=psycopg.AsyncConnection[Any])

IDLE = TransactionStatus.IDLE
USABLE = (TransactionStatus.IDLE, TransactionStatus.INTRANS, TransactionStatus.INERROR)


class PoolClosed(PoolClosedMixin, psycopg.OperationalError):
    """A connection was requested from a pool that is not open."""

    __module__ = "forebay"


class PoolTimeout(PoolTimeoutMixin, psycopg.OperationalError):
    """The pool couldn't provide a connection in time."""

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
        return Refusals(name, PoolClosed, PoolTimeout, TooManyRequests)

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


class SyncPsycopg(PsycopgDriver):
    """psycopg 3 for threads: everything blocks."""

    async def connect(self, connection_class: Any, conninfo: str, kwargs: dict[str, Any]) -> Any:
        """Open a connection."""
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


class AsyncPsycopg(PsycopgDriver):
    """psycopg 3 for asyncio."""

    async def connect(self, connection_class: Any, conninfo: str, kwargs: dict[str, Any]) -> Any:
        """Open a connection."""
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


@cache
def _plain(connection_class: Any) -> bool:
    """Whether a class commits and rolls back as psycopg does: then nothing need be called."""
    return any(
        all(getattr(connection_class, name, None) is getattr(own, name, None) for name in _ENDINGS)
        for own in (psycopg.Connection, psycopg.AsyncConnection)
    )


_ENDINGS = ("__enter__", "__exit__", "__aenter__", "__aexit__", "commit", "rollback")
