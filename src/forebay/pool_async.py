"""Pools for asyncio."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, TypeAlias, cast, get_origin

from psycopg import AsyncConnection, Connection

from ._async_door import AsyncDoor, AsyncLease, begin
from .drivers.psycopg import AsyncPsycopg, check_connection_async
from .pool import IdleOrder

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


class AsyncConnectionPool(AsyncDoor[ACT]):
    """A pool of `psycopg.AsyncConnection`, to be shared by the tasks of one event loop."""

    _forebay_driver = AsyncPsycopg

    def __init__(
        self,
        conninfo: AsyncConninfoParam = "",
        *,
        connection_class: type[ACT] = cast("type[ACT]", AsyncConnection),
        kwargs: AsyncKwargsParam | None = None,
        min_size: int = 4,
        max_size: int | None = None,
        open: bool | None = None,
        configure: AsyncConnectionCB[ACT] | None = None,
        check: AsyncConnectionCB[ACT] | None = None,
        reset: AsyncConnectionCB[ACT] | None = None,
        name: str | None = None,
        close_returns: bool = False,
        timeout: float = 30.0,
        max_waiting: int = 0,
        max_lifetime: float = 60 * 60.0,
        max_idle: float = 10 * 60.0,
        reconnect_timeout: float = 5 * 60.0,
        reconnect_failed: AsyncConnectFailedCB | None = None,
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
            conninfo: connection string, or a callable giving it, called at each attempt.
            connection_class: the class whose `connect()` is called at each attempt.
            kwargs: further arguments of `connect()`, or a callable giving them.
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
            action_timeout: seconds that `configure`, `check`, `reset`, a rollback or closing may
                take; what takes longer is given up, and the connection with it.
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
        if _is_for_threads(connection_class):
            raise TypeError(
                f"connection_class must be an AsyncConnection in a pool for asyncio, not"
                f" {connection_class!r}; ConnectionPool takes that"
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

    check_connection = staticmethod(check_connection_async)


class AsyncNullConnectionPool(AsyncConnectionPool[ACT]):
    """A pool that keeps no connection: it bounds and queues the clients of a server."""

    _forebay_null = True

    def __init__(
        self,
        conninfo: AsyncConninfoParam = "",
        *,
        connection_class: type[ACT] = cast("type[ACT]", AsyncConnection),
        kwargs: AsyncKwargsParam | None = None,
        min_size: int = 0,
        max_size: int | None = None,
        open: bool | None = None,
        configure: AsyncConnectionCB[ACT] | None = None,
        check: AsyncConnectionCB[ACT] | None = None,
        reset: AsyncConnectionCB[ACT] | None = None,
        name: str | None = None,
        close_returns: bool = False,
        timeout: float = 30.0,
        max_waiting: int = 0,
        max_lifetime: float = 60 * 60.0,
        max_idle: float = 10 * 60.0,
        reconnect_timeout: float = 5 * 60.0,
        reconnect_failed: AsyncConnectFailedCB | None = None,
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
        """Make a null pool; the parameters are those of `AsyncConnectionPool`, but for two.

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


def _is_for_threads(connection_class: Any) -> bool:
    """Whether a class, which may be a generic alias of one, is of connections that block."""
    plain = get_origin(connection_class) or connection_class
    return isinstance(plain, type) and issubclass(plain, Connection)
