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

import psycopg_pool

import forebay

CONNECTIONS = 4
"""Connections in every pool that is measured: `min_size` and `max_size`."""


class ThreadPool(Protocol):
    """What the cases for threads call."""

    def connection(self) -> AbstractContextManager[Any]: ...
    def getconn(self) -> Any: ...
    def putconn(self, conn: Any) -> None: ...


class TaskPool(Protocol):
    """What the cases for asyncio call."""

    def connection(self) -> AbstractAsyncContextManager[Any]: ...
    async def getconn(self) -> Any: ...
    async def putconn(self, conn: Any) -> None: ...


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


OURS = psycopg_peer("forebay", "forebay", forebay)
YARDSTICK = psycopg_peer("psycopg_pool", "psycopg-pool", psycopg_pool)
"""The peer that the targets are ratios to."""

PEERS = (OURS, YARDSTICK)
