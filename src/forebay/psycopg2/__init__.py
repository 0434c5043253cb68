"""Pools of psycopg2 connections, for threads.

`forebay.psycopg2.pool` is the drop-in for `psycopg2.pool`; the classes here are Forebay's own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, cast

from psycopg2 import extensions

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

IdleOrder: TypeAlias = Literal["lifo", "fifo"]
ConninfoParam: TypeAlias = str | Callable[[], str]
KwargsParam: TypeAlias = dict[str, Any] | Callable[[], dict[str, Any]]

ConnectionCB: TypeAlias = Callable[[CT], None]
ConnectFailedCB: TypeAlias = Callable[["ConnectionPool[Any]"], None]


class ConnectionPool(ThreadDoor[CT]):
    """A pool of `psycopg2.extensions.connection`, to be shared by any number of threads."""

    _forebay_driver = SyncPsycopg2

    def __init__(
        self,
        conninfo: ConninfoParam = "",
        *,
        connection_class: type[CT] = cast("type[CT]", extensions.connection),
        kwargs: KwargsParam | None = None,
        min_size: int = 4,
        max_size: int | None = None,
        open: bool | None = None,
        configure: ConnectionCB[CT] | None = None,
        check: ConnectionCB[CT] | None = None,
        reset: ConnectionCB[CT] | None = None,
        name: str | None = None,
        close_returns: bool = False,
        timeout: float = 30.0,
        max_waiting: int = 0,
        max_lifetime: float = 60 * 60.0,
        max_idle: float = 10 * 60.0,
        reconnect_timeout: float = 5 * 60.0,
        reconnect_failed: ConnectFailedCB | None = None,
        num_workers: int = 3,
        idle_order: IdleOrder = "lifo",
        bypass_window: float = 0.05,
        keepalive_interval: float = 0.0,
        max_uses: int = 0,
        action_timeout: float = 3.0,
        leak_threshold: float = 0.0,
        rejected_after: float = 3.0,
        record_lines: bool = False,
    ) -> None:
        """Make a pool; never blocks.

        Args:
            conninfo: connection string (psycopg2's `dsn`), or a callable giving it, called at
                each attempt.
            connection_class: psycopg2's `connection_factory`: a class derived from
                `psycopg2.extensions.connection`.  Connections are of a class that the pool
                derives from it.  Another callable, or a class that cannot be derived from, is
                called as it is, and must make connections that take attributes.
            kwargs: further arguments of `psycopg2.connect()`, or a callable giving them.
            min_size: connections to keep open.
            max_size: connections at most; `None`: as many as `min_size`.
            open: open the pool now.  `None`: now, and warn on first use, unless the pool is
                used as a context manager.
            configure: called with each new connection; must leave no transaction open.
            check: called with a connection before a client gets it; if it raises, the client
                gets another one.
            reset: called by a worker with each returned connection; must leave no transaction
                open.
            name: for logs and threads; `pool-N` by default.
            close_returns: `close()` of a lent connection returns it (for SQLAlchemy).
            timeout: seconds a client waits at most; 0: only for a connection that is ready.
            max_waiting: clients that may wait; 0: no bound.
            max_lifetime: seconds after which a connection is replaced, less up to 5 %; 0: each
                time it is returned.
            max_idle: seconds after which an unused connection above `min_size` is closed.
            reconnect_timeout: seconds of failed attempts until `reconnect_failed` is called.
            reconnect_failed: called with the pool when connecting has failed for that long.
            num_workers: connections opened side by side at most; as many workers reset, check
                and close.
            idle_order: `lifo` lends the connection used last; `fifo` all in turn.
            bypass_window: seconds after a use during which a connection is lent without a look at
                its socket, which costs no round trip and finds what the server has closed.
            keepalive_interval: seconds between two queries that keep an idle connection alive;
                0: none are made.
            max_uses: how often a connection is lent until it is replaced; 0: no bound.
            action_timeout: seconds that `configure`, `reset`, a rollback or closing may take in the
                background; one that takes longer is given up, and the connection with it.
            leak_threshold: seconds after which a connection that is still lent is reported by a
                warning, and its return by another; 0: never.
            rejected_after: seconds for which a server must have refused connections by the same
                verdict (a wrong password, no such database) until waiting clients get
                `PoolRejected`; 0: at the first refusal.
            record_lines: note the line that acquires each connection, for errors and warnings;
                assignable, and costs less than a microsecond each time.

        Raises:
            ValueError: for sizes or numbers that make no pool.
            TypeError: for a callback that is a coroutine function.
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
            conninfo=conninfo,
            connection_class=connection_class,
            kwargs=kwargs,
            min_size=min_size,
            max_size=max_size,
            configure=configure,
            check=check,
            reset=reset,
            name=name,
            close_returns=close_returns,
            timeout=timeout,
            max_waiting=max_waiting,
            max_lifetime=max_lifetime,
            max_idle=max_idle,
            reconnect_timeout=reconnect_timeout,
            reconnect_failed=reconnect_failed,
            num_workers=num_workers,
            idle_order=idle_order,
            bypass_window=bypass_window,
            keepalive_interval=keepalive_interval,
            max_uses=max_uses,
            action_timeout=action_timeout,
            leak_threshold=leak_threshold,
            rejected_after=rejected_after,
            record_lines=record_lines,
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


class NullConnectionPool(ConnectionPool[CT]):
    """A pool that keeps no connection: it bounds and queues the clients of a server."""

    _forebay_null = True

    def __init__(
        self,
        conninfo: ConninfoParam = "",
        *,
        connection_class: type[CT] = cast("type[CT]", extensions.connection),
        kwargs: KwargsParam | None = None,
        min_size: int = 0,
        max_size: int | None = None,
        open: bool | None = None,
        configure: ConnectionCB[CT] | None = None,
        check: ConnectionCB[CT] | None = None,
        reset: ConnectionCB[CT] | None = None,
        name: str | None = None,
        close_returns: bool = False,
        timeout: float = 30.0,
        max_waiting: int = 0,
        max_lifetime: float = 60 * 60.0,
        max_idle: float = 10 * 60.0,
        reconnect_timeout: float = 5 * 60.0,
        reconnect_failed: ConnectFailedCB | None = None,
        num_workers: int = 3,
        idle_order: IdleOrder = "lifo",
        bypass_window: float = 0.05,
        keepalive_interval: float = 0.0,
        max_uses: int = 0,
        action_timeout: float = 3.0,
        leak_threshold: float = 0.0,
        rejected_after: float = 3.0,
        record_lines: bool = False,
    ) -> None:
        """Make a null pool; the parameters are those of `ConnectionPool`, but for two.

        `min_size` must be 0; `max_size` of `None` or 0 sets no bound.
        """
        super().__init__(
            conninfo,
            connection_class=connection_class,
            kwargs=kwargs,
            min_size=min_size,
            max_size=max_size,
            open=open,
            configure=configure,
            check=check,
            reset=reset,
            name=name,
            close_returns=close_returns,
            timeout=timeout,
            max_waiting=max_waiting,
            max_lifetime=max_lifetime,
            max_idle=max_idle,
            reconnect_timeout=reconnect_timeout,
            reconnect_failed=reconnect_failed,
            num_workers=num_workers,
            idle_order=idle_order,
            bypass_window=bypass_window,
            keepalive_interval=keepalive_interval,
            max_uses=max_uses,
            action_timeout=action_timeout,
            leak_threshold=leak_threshold,
            rejected_after=rejected_after,
            record_lines=record_lines,
        )
