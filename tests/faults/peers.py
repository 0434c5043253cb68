"""The pools that are tried, each behind the same few methods.

A pool's package is imported when it is asked for, so that Forebay alone can be tried where the
others are not installed. Every pool has its own defaults in whatever the scenario does not ask for.
"""

from __future__ import annotations

import asyncio
import importlib
import threading
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from psycopg.conninfo import conninfo_to_dict

from .lab import Attempt, Counts, Crowd, Errand, Subject, now

OPENED = 10.0
"""Seconds a pool has to open its first connections."""

CLOSED = 8.0
"""Seconds a pool has to close."""

RESET = "reset all"
LISTEN = "listen storm"


def in_thread(name: str, work: Callable[[], None]) -> threading.Thread:
    """Do it in a thread that may be left behind."""
    thread = threading.Thread(target=work, name=name, daemon=True)
    thread.start()
    return thread


def counts(pool: Any) -> Counts:
    """What `get_stats()` says; it is the same in Forebay and `psycopg_pool`."""
    stats = pool.get_stats()
    return Counts(stats["pool_size"], stats["pool_available"], stats.get("workers_abandoned"))


class ThreadSubject(ABC):
    """A pool for threads: every client is a thread."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._pool: Any = None

    @abstractmethod
    def _make(self, conninfo: str, **options: Any) -> Any: ...

    @abstractmethod
    def _query(self, conn: Any, query: str) -> None: ...

    def open(self, conninfo: str, min_size: int, max_size: int, **features: bool) -> None:
        """See `Subject`."""
        options: dict[str, Any] = {"min_size": min_size, "max_size": max_size, "open": False}
        if features.pop("reset", False):
            options["reset"] = lambda conn: self._settle(conn, RESET)
        if features.pop("listen", False):
            options["configure"] = lambda conn: self._settle(conn, LISTEN)
        self._pool = self._make(conninfo, **options, **features)
        self._pool.open()
        if min_size:
            self._pool.wait(OPENED)

    def _settle(self, conn: Any, query: str) -> None:
        self._query(conn, query)
        conn.commit()

    def start(self, crowd: Crowd) -> None:
        """See `Subject`."""
        for _ in range(crowd.number):
            in_thread("client", lambda: self._client(crowd))

    def _client(self, crowd: Crowd) -> None:
        for attempt in crowd.requests():
            with attempt:
                self._request(attempt, crowd.errand)
            if not attempt.served:
                crowd.stopped.wait(crowd.errand.pause)

    def _request(self, attempt: Attempt, errand: Errand) -> None:
        with self._pool.connection(timeout=errand.timeout) as conn:
            attempt.lent = now()
            self._query(conn, errand.query)
            if errand.hold is not None:
                errand.hold.wait()

    def cancel(self, crowd: Crowd, number: int) -> None:  # noqa: B027 - a thread cannot be
        """See `Subject`; a no-op, as threads cannot be cancelled."""

    def counts(self) -> Counts:
        """See `Subject`."""
        return counts(self._pool)

    def close(self) -> None:
        """See `Subject`."""
        if self._pool is not None:
            in_thread("close", self._pool.close).join(CLOSED)


class PsycopgThreads(ThreadSubject):
    """`ConnectionPool` of a package made like `psycopg_pool`."""

    def __init__(self, name: str, package: str, *, check: bool = False) -> None:
        super().__init__(name)
        self._class = importlib.import_module(package).ConnectionPool
        self._options = {"check": self._class.check_connection} if check else {}

    def _make(self, conninfo: str, **options: Any) -> Any:
        return self._class(conninfo, kwargs={"autocommit": True}, **self._options, **options)

    def _query(self, conn: Any, query: str) -> None:
        conn.execute(query)


class Psycopg2Threads(ThreadSubject):
    """`forebay.psycopg2.ConnectionPool`."""

    def _make(self, conninfo: str, **options: Any) -> Any:
        further = options.pop("configure", lambda _: None)

        def configure(conn: Any) -> None:
            conn.autocommit = True
            further(conn)

        package = importlib.import_module("forebay.psycopg2")
        return package.ConnectionPool(conninfo, configure=configure, **options)

    def _query(self, conn: Any, query: str) -> None:
        with conn.cursor() as cursor:
            cursor.execute(query)


class TaskSubject(ABC):
    """A pool for asyncio: every client is a task of one loop, which has a thread of its own."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._pool: Any = None
        self._tasks: dict[Crowd, list[asyncio.Task[None]]] = {}
        self._loop = asyncio.new_event_loop()
        self._loop.set_exception_handler(lambda *_: None)  # the figures say what went wrong
        self._thread = in_thread("loop", self._loop.run_forever)

    @abstractmethod
    async def _open(
        self, conninfo: str, min_size: int, max_size: int, features: dict[str, bool]
    ) -> None: ...

    @abstractmethod
    async def _request(self, attempt: Attempt, errand: Errand) -> None: ...

    @abstractmethod
    async def _shut(self) -> None: ...

    @abstractmethod
    def _counts(self) -> Counts: ...

    def _call(self, coroutine: Coroutine[Any, Any, Any]) -> Future[Any]:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def open(self, conninfo: str, min_size: int, max_size: int, **features: bool) -> None:
        """See `Subject`."""
        self._call(self._open(conninfo, min_size, max_size, features)).result(2 * OPENED)

    def start(self, crowd: Crowd) -> None:
        """See `Subject`."""
        self._loop.call_soon_threadsafe(self._spawn, crowd)

    def _spawn(self, crowd: Crowd) -> None:
        self._tasks[crowd] = [
            self._loop.create_task(self._client(crowd)) for _ in range(crowd.number)
        ]

    async def _client(self, crowd: Crowd) -> None:
        for attempt in crowd.requests():
            with attempt:
                await self._request(attempt, crowd.errand)
            if not attempt.served:
                await asyncio.sleep(crowd.errand.pause)

    async def _use(self, query: Awaitable[Any], errand: Errand) -> None:
        """What a client does with its connection."""
        await query
        while errand.hold is not None and not errand.hold.is_set():
            await asyncio.sleep(0.002)

    def cancel(self, crowd: Crowd, number: int) -> None:
        """See `Subject`."""
        self._loop.call_soon_threadsafe(lambda: self._tasks[crowd][number].cancel())

    def counts(self) -> Counts:
        """See `Subject`."""

        async def ask() -> Counts:
            return self._counts()

        return self._call(ask()).result(OPENED)  # type: ignore[no-any-return]

    def close(self) -> None:
        """See `Subject`."""
        with suppress(Exception):
            self._call(self._finish()).result(CLOSED)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(CLOSED)
        if not self._thread.is_alive():
            self._loop.close()

    async def _finish(self) -> None:
        if self._pool is not None:
            await self._shut()
        left = asyncio.all_tasks() - {asyncio.current_task()}
        for task in left:
            task.cancel()
        if left:
            await asyncio.wait(left, timeout=1)


class PsycopgTasks(TaskSubject):
    """`AsyncConnectionPool` of a package made like `psycopg_pool`."""

    def __init__(self, name: str, package: str, *, check: bool = False) -> None:
        super().__init__(name)
        self._class = importlib.import_module(package).AsyncConnectionPool
        self._options = {"check": self._class.check_connection} if check else {}

    async def _open(
        self, conninfo: str, min_size: int, max_size: int, features: dict[str, bool]
    ) -> None:
        options: dict[str, Any] = {"min_size": min_size, "max_size": max_size, "open": False}

        async def reset(conn: Any) -> None:
            await conn.execute(RESET)

        async def configure(conn: Any) -> None:
            await conn.execute(LISTEN)

        if features.get("reset"):
            options["reset"] = reset
        if features.get("listen"):
            options["configure"] = configure
        self._pool = self._class(conninfo, kwargs={"autocommit": True}, **self._options, **options)
        await self._pool.open()
        if min_size:
            await self._pool.wait(OPENED)

    async def _request(self, attempt: Attempt, errand: Errand) -> None:
        async with self._pool.connection(timeout=errand.timeout) as conn:
            attempt.lent = now()
            await self._use(conn.execute(errand.query), errand)

    async def _shut(self) -> None:
        await self._pool.close()

    def _counts(self) -> Counts:
        return counts(self._pool)


class AsyncpgTasks(TaskSubject):
    """`asyncpg.create_pool()`, whose own reset is one round trip with every return."""

    async def _open(
        self, conninfo: str, min_size: int, max_size: int, features: dict[str, bool]
    ) -> None:
        assert not features.get("listen"), "asyncpg takes its listeners away on return"
        package = importlib.import_module("asyncpg")
        self._pool = await package.create_pool(
            **self._parameters(conninfo), min_size=min_size, max_size=max_size
        )

    def _parameters(self, conninfo: str) -> dict[str, Any]:
        """The connection string as asyncpg's arguments."""
        given: dict[str, Any] = dict(conninfo_to_dict(conninfo))
        hosts, ports = str(given["host"]).split(","), str(given["port"]).split(",")
        parameters = {
            "host": hosts if len(hosts) > 1 else hosts[0],
            "port": [int(each) for each in ports] if len(hosts) > 1 else int(ports[0]),
            "user": given["user"],
            "password": given["password"],
            "database": given["dbname"],
            "server_settings": {"application_name": given["application_name"]},
            "ssl": given.get("sslmode", "disable"),
        }
        if "target_session_attrs" in given:
            parameters["target_session_attrs"] = given["target_session_attrs"]
        return parameters

    async def _request(self, attempt: Attempt, errand: Errand) -> None:
        async with self._pool.acquire(timeout=errand.timeout) as conn:
            attempt.lent = now()
            await self._use(conn.execute(errand.query), errand)

    async def _shut(self) -> None:
        try:
            await asyncio.wait_for(self._pool.close(), 2)
        finally:
            self._pool.terminate()

    def _counts(self) -> Counts:
        return Counts(self._pool.get_size(), self._pool.get_idle_size())


@dataclass(frozen=True)
class Peer:
    """A pool that can be tried.

    Attributes:
        name: for the command line and the table.
        distribution: the package it comes in.
        make: gives a fresh pool, not open.
    """

    name: str
    distribution: str
    make: Callable[[], Subject]

    @property
    def version(self) -> str:
        """Of the installed distribution."""
        return version(self.distribution)


FOREBAY = (
    Peer("forebay", "forebay", lambda: PsycopgThreads("forebay", "forebay")),
    Peer("forebay async", "forebay", lambda: PsycopgTasks("forebay async", "forebay")),
    Peer("forebay psycopg2", "forebay", lambda: Psycopg2Threads("forebay psycopg2")),
)

CHECKED = (
    Peer(
        "psycopg_pool check=",
        "psycopg-pool",
        lambda: PsycopgThreads("psycopg_pool check=", "psycopg_pool", check=True),
    ),
)

PEERS: tuple[Peer, ...] = (
    *FOREBAY,
    Peer(
        "psycopg_pool",
        "psycopg-pool",
        lambda: PsycopgThreads("psycopg_pool", "psycopg_pool"),
    ),
    Peer(
        "psycopg_pool async",
        "psycopg-pool",
        lambda: PsycopgTasks("psycopg_pool async", "psycopg_pool"),
    ),
    *CHECKED,
    Peer("asyncpg", "asyncpg", lambda: AsyncpgTasks("asyncpg")),
)


def checked(peer: Peer) -> bool:
    """Whether it is the variant of a pool that checks every connection before it lends it."""
    return peer in CHECKED
