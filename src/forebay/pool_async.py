"""Pools for asyncio."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, TypeAlias, Unpack, cast, get_origin

from psycopg import AsyncConnection, Connection

from ._async_door import AsyncDoor, AsyncLease, begin
from ._signature import as_null_pool, takes_options
from .drivers.psycopg import AsyncPsycopg, check_connection_async
from .options import PoolOptions

__all__ = ["AsyncConnectionPool", "AsyncLease", "AsyncNullConnectionPool"]

if TYPE_CHECKING:
    from psycopg.rows import TupleRow
    from typing_extensions import TypeVar

    ACT = TypeVar("ACT", bound="AsyncConnection[Any]", default="AsyncConnection[TupleRow]")
else:
    from typing import TypeVar

    ACT = TypeVar("ACT", bound="AsyncConnection[Any]")

AsyncConninfoParam: TypeAlias = str | Callable[[], str] | Callable[[], Awaitable[str]]
AsyncKwargsParam: TypeAlias = (
    dict[str, Any] | Callable[[], dict[str, Any]] | Callable[[], Awaitable[dict[str, Any]]]
)

AsyncConnectionCB: TypeAlias = Callable[[ACT], Awaitable[None] | None]
AsyncConnectFailedCB: TypeAlias = Callable[["AsyncConnectionPool[Any]"], Awaitable[None] | None]


@takes_options
class AsyncConnectionPool(AsyncDoor[ACT]):
    """A pool of `psycopg.AsyncConnection`, to be shared by the tasks of one event loop."""

    _forebay_driver = AsyncPsycopg

    def __init__(
        self,
        conninfo: AsyncConninfoParam = "",
        *,
        connection_class: type[ACT] = cast("type[ACT]", AsyncConnection),
        kwargs: AsyncKwargsParam | None = None,
        open: bool | None = None,
        configure: AsyncConnectionCB[ACT] | None = None,
        check: AsyncConnectionCB[ACT] | None = None,
        reset: AsyncConnectionCB[ACT] | None = None,
        reconnect_failed: AsyncConnectFailedCB | None = None,
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
            TypeError: For an unknown option, a value of the wrong type, or a
                `connection_class` for threads.
        """
        if _is_for_threads(connection_class):
            raise TypeError(
                f"connection_class must be an AsyncConnection in a pool for asyncio, not"
                f" {connection_class!r}; ConnectionPool takes that"
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

    check_connection = staticmethod(check_connection_async)


@as_null_pool
class AsyncNullConnectionPool(AsyncConnectionPool[ACT]):
    """A pool that keeps no connection: it bounds and queues the clients of a server."""

    _forebay_null = True


def _is_for_threads(connection_class: Any) -> bool:
    """Whether a class, which may be a generic alias of one, is of connections that block."""
    plain = get_origin(connection_class) or connection_class
    return isinstance(plain, type) and issubclass(plain, Connection)
