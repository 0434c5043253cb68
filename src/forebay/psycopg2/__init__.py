"""Pools of psycopg2 connections, for threads.

`forebay.psycopg2.pool` is the drop-in for `psycopg2.pool`; the classes here are Forebay's own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias, Unpack, cast

from psycopg2 import extensions

from .._signature import as_null_pool, takes_options
from .._thread_door import ThreadDoor, begin, expect_plain_functions
from ..drivers.psycopg2 import (
    PoolClosed,
    PoolDeadlock,
    PoolRejected,
    PoolTimeout,
    SyncPsycopg2,
    TooManyRequests,
    check_connection,
)
from ..options import PoolOptions
from ._lease import TransactionLease

if TYPE_CHECKING:
    from typing_extensions import TypeVar

    CT = TypeVar("CT", bound=extensions.connection, default=extensions.connection)
else:
    from typing import TypeVar

    CT = TypeVar("CT", bound=extensions.connection)

__all__ = [
    "ConnectionPool",
    "NullConnectionPool",
    "PoolClosed",
    "PoolDeadlock",
    "PoolRejected",
    "PoolTimeout",
    "TooManyRequests",
]

ConninfoParam: TypeAlias = str | Callable[[], str]
KwargsParam: TypeAlias = dict[str, Any] | Callable[[], dict[str, Any]]

ConnectionCB: TypeAlias = Callable[[CT], None]
ConnectFailedCB: TypeAlias = Callable[["ConnectionPool[Any]"], None]


@takes_options
class ConnectionPool(ThreadDoor[CT]):
    """A pool of `psycopg2.extensions.connection`, to be shared by any number of threads."""

    _forebay_driver = SyncPsycopg2

    def __init__(
        self,
        conninfo: ConninfoParam = "",
        *,
        connection_class: type[CT] = cast("type[CT]", extensions.connection),
        kwargs: KwargsParam | None = None,
        open: bool | None = None,
        configure: ConnectionCB[CT] | None = None,
        check: ConnectionCB[CT] | None = None,
        reset: ConnectionCB[CT] | None = None,
        reconnect_failed: ConnectFailedCB | None = None,
        **options: Unpack[PoolOptions],
    ) -> None:
        """Make a pool; never blocks.

        Args:
            conninfo: Connection string (psycopg2's `dsn`), or a callable giving it, called at
                each attempt.
            connection_class: psycopg2's `connection_factory`: a class derived from
                `psycopg2.extensions.connection`.  Connections are of a class that the pool
                derives from it.  Another callable, or a class that cannot be derived from, is
                called as it is, and must make connections that take attributes.
            kwargs: Further arguments of `psycopg2.connect()`, or a callable giving them.
            open: Open the pool now.  `None`: now, and warn on first use, unless the pool is
                used as a context manager.
            configure: Called with each new connection; must leave no transaction open.
            check: Called with a connection before a client gets it; if it raises, the client
                gets another one.
            reset: Called by a worker with each returned connection; must leave no transaction
                open.
            reconnect_failed: Called with the pool when connecting has failed for
                `reconnect_timeout` seconds.
            options: See `PoolOptions`.

        Raises:
            ValueError: For sizes or durations that make no pool.
            TypeError: For an unknown option, a value of the wrong type, or a callback
                that is a coroutine function.
        """
        expect_plain_functions(
            conninfo=conninfo,
            kwargs=kwargs,
            configure=configure,
            check=check,
            reset=reset,
            reconnect_failed=reconnect_failed,
        )
        super().__init__(
            conninfo,
            connection_class,
            kwargs,
            options,
            configure=configure,
            check=check,
            reset=reset,
            reconnect_failed=reconnect_failed,
        )
        begin(self, open)

    def connection(self, timeout: float | None = None) -> TransactionLease[CT]:
        """Lend a connection for a `with` block.

        At the end of the block the transaction is committed, or rolled back on an exception, and
        the connection is returned; psycopg2's own `with connection:` only ends a transaction.
        `timeout` and errors: see `getconn()`.
        """
        return TransactionLease.of(self, timeout)

    @staticmethod
    def check_connection(conn: extensions.connection) -> None:
        """Make one round trip on a connection; raise psycopg2's error if it is lost.

        The transaction status is afterwards what it was before.
        """
        check_connection(conn)


@as_null_pool
class NullConnectionPool(ConnectionPool[CT]):
    """A pool that keeps no connection: it bounds and queues the clients of a server."""

    _forebay_null = True
