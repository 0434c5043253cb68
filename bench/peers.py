"""The pools that are compared, and how each is opened."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    asynccontextmanager,
    contextmanager,
)
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Protocol

import psycopg2.pool
import psycopg2_pool
import psycopg_pool

import forebay
import forebay.psycopg2.pool
import forebay.psycopg2_pool

CONNECTIONS = 4
"""Connections in every pool that is measured: `min_size` and `max_size`."""


class ThreadPool(Protocol):
    """What the cases for threads call."""

    def connection(self) -> AbstractContextManager[Any]:
        """Lend a connection for a block."""
        ...

    def getconn(self) -> Any:
        """Lend a connection."""
        ...

    def putconn(self, conn: Any) -> None:
        """Take it back."""
        ...


class TaskPool(Protocol):
    """What the cases for asyncio call."""

    def connection(self) -> AbstractAsyncContextManager[Any]:
        """Lend a connection for a block."""
        ...

    async def getconn(self) -> Any:
        """Lend a connection."""
        ...

    async def putconn(self, conn: Any) -> None:
        """Take it back."""
        ...


@dataclass(frozen=True)
class Peer:
    """One pool library: its name, its distribution, and a way to open each kind of pool.

    `threads` and `tasks` take a DSN and whether connections are in autocommit mode, and give
    a full pool. `None` means that the library has no such pool: it is left out of those cases.
    """

    name: str
    distribution: str
    threads: Callable[[str, bool], AbstractContextManager[ThreadPool]] | None
    tasks: Callable[[str, bool], AbstractAsyncContextManager[TaskPool]] | None


def psycopg_peer(name: str, distribution: str, package: ModuleType) -> Peer:
    """A peer whose `package` has the classes and parameters of `psycopg_pool`."""

    def options(autocommit: bool) -> dict[str, Any]:
        return {
            "min_size": CONNECTIONS,
            "max_size": CONNECTIONS,
            "open": False,  # the `with` opens it
            "kwargs": {"autocommit": autocommit},
        }

    @contextmanager
    def threads(dsn: str, autocommit: bool) -> Iterator[ThreadPool]:
        with package.ConnectionPool(dsn, **options(autocommit)) as pool:
            pool.wait()
            yield pool

    @asynccontextmanager
    async def tasks(dsn: str, autocommit: bool) -> AsyncIterator[TaskPool]:
        async with package.AsyncConnectionPool(dsn, **options(autocommit)) as pool:
            await pool.wait()
            yield pool

    return Peer(name, distribution, threads, tasks)


def psycopg2_peer(
    name: str, distribution: str, pool_class: Callable[..., Any], *, close: str
) -> Peer:
    """A peer that gives psycopg2 connections, opens them itself, and is closed by `close`."""

    @contextmanager
    def threads(dsn: str, autocommit: bool) -> Iterator[Any]:
        assert not autocommit, "these pools are measured without load"
        pool = pool_class(minconn=CONNECTIONS, maxconn=CONNECTIONS, dsn=dsn)
        try:
            yield pool
        finally:
            getattr(pool, close)()

    return Peer(name, distribution, threads, None)


@dataclass(frozen=True)
class Match:
    """Who is compared in a case: our pool, and the peer that the target is a ratio to."""

    ours: Peer
    yardstick: Peer

    @property
    def peers(self) -> tuple[Peer, Peer]:
        """Both."""
        return self.ours, self.yardstick


PSYCOPG = Match(
    psycopg_peer("forebay", "forebay", forebay),
    psycopg_peer("psycopg_pool", "psycopg-pool", psycopg_pool),
)
PSYCOPG2 = Match(
    psycopg2_peer(
        "forebay", "forebay", forebay.psycopg2.pool.ThreadedConnectionPool, close="closeall"
    ),
    psycopg2_peer(
        "psycopg2.pool",
        "psycopg2-binary",
        psycopg2.pool.ThreadedConnectionPool,
        close="closeall",
    ),
)
PSYCOPG2_POOL = Match(
    psycopg2_peer(
        "forebay", "forebay", forebay.psycopg2_pool.ThreadSafeConnectionPool, close="close"
    ),
    psycopg2_peer(
        "psycopg2_pool", "psycopg2-pool", psycopg2_pool.ThreadSafeConnectionPool, close="clear"
    ),
)

MATCHES = (PSYCOPG, PSYCOPG2, PSYCOPG2_POOL)
