"""Pools for threads."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias, Unpack, cast

from psycopg import Connection

from ._signature import as_null_pool, takes_options
from ._thread_door import ThreadDoor, begin, expect_plain_functions
from .drivers.psycopg import SyncPsycopg, check_connection
from .options import PoolOptions

if TYPE_CHECKING:
    from psycopg.rows import TupleRow
    from typing_extensions import TypeVar

    CT = TypeVar("CT", bound="Connection[Any]", default="Connection[TupleRow]")
else:
    from typing import TypeVar

    CT = TypeVar("CT", bound="Connection[Any]")

ConninfoParam: TypeAlias = str | Callable[[], str]
KwargsParam: TypeAlias = dict[str, Any] | Callable[[], dict[str, Any]]

ConnectionCB: TypeAlias = Callable[[CT], None]
ConnectFailedCB: TypeAlias = Callable[["ConnectionPool[Any]"], None]


@takes_options
class ConnectionPool(ThreadDoor[CT]):
    """A pool of `psycopg.Connection`, to be shared by any number of threads."""

    _forebay_driver = SyncPsycopg

    def __init__(
        self,
        conninfo: ConninfoParam = "",
        *,
        connection_class: type[CT] = cast("type[CT]", Connection),
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
            conninfo: Connection string, or a callable giving it, called at each attempt.
            connection_class: The class whose `connect()` is called at each attempt.
            kwargs: Further arguments of `connect()`, or a callable giving them.
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
            connection_class=getattr(connection_class, "connect", None),
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

    check_connection = staticmethod(check_connection)


@as_null_pool
class NullConnectionPool(ConnectionPool[CT]):
    """A pool that keeps no connection: it bounds and queues the clients of a server."""

    _forebay_null = True
