"""The clients: hundreds of threads, and hundreds of asyncio tasks in one more thread.

A client makes one transfer after the other and never thinks in between. When an attempt is cut
off it sends the same transfer again until the bank has it, and only then begins the next: at the
end each client knows exactly which of its transfers must be in the ledger.
"""

from __future__ import annotations

import asyncio
import re
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    ExitStack,
    asynccontextmanager,
    contextmanager,
)
from random import Random
from threading import BoundedSemaphore, Thread
from time import perf_counter
from typing import Any, Protocol, Self

import psycopg
from psycopg import AsyncConnection, Connection

from .bank import SEQUENCE_BITS, Bank, Transfer
from .meter import Done, Failure, Gauge, Traffic

RETRY_PAUSE = 0.01
"""Seconds a client waits after an error before it sends its transfer again."""


class Source(Protocol):
    """Where a thread gets a connection: a pool, or something that opens one each time."""

    def connection(self) -> AbstractContextManager[Connection[Any]]:
        """Lend a connection for the block, which is one transaction."""
        ...


class AsyncSource(Protocol):
    """Where an asyncio task gets a connection."""

    def connection(self) -> AbstractAsyncContextManager[AsyncConnection[Any]]:
        """Lend a connection for the block, which is one transaction."""
        ...


class ConnectionPerTransaction:
    """Opens a connection for each transaction and closes it after; at most `limit` at once.

    Its `repr` speaks like a pool's.
    """

    def __init__(self, dsn: str, limit: int) -> None:
        self._dsn = dsn
        self._turns = BoundedSemaphore(limit)
        self._census = _Census()

    def __repr__(self) -> str:
        return repr(self._census)

    @contextmanager
    def connection(self) -> Iterator[Connection[Any]]:
        """Wait for a turn, connect, commit or roll back, and close."""
        with (
            _counted(self._census.inside),
            self._turns,
            _counted(self._census.served),
            psycopg.connect(self._dsn) as conn,
            _counted(self._census.lent),
        ):
            yield conn


class AsyncConnectionPerTransaction:
    """`ConnectionPerTransaction` for asyncio."""

    def __init__(self, dsn: str, limit: int) -> None:
        self._dsn = dsn
        self._turns = asyncio.BoundedSemaphore(limit)
        self._census = _Census()

    def __repr__(self) -> str:
        return repr(self._census)

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[AsyncConnection[Any]]:
        """Wait for a turn, connect, commit or roll back, and close."""
        with _counted(self._census.inside):
            async with self._turns:
                with _counted(self._census.served):
                    async with await AsyncConnection.connect(self._dsn) as conn:
                        with _counted(self._census.lent):
                            yield conn


class _Census:
    """Who is how far inside; deques, because appending and popping is atomic."""

    def __init__(self) -> None:
        self.inside: deque[None] = deque()
        self.served: deque[None] = deque()
        self.lent: deque[None] = deque()

    def __repr__(self) -> str:
        lent, served, inside = len(self.lent), len(self.served), len(self.inside)
        opening, waiting = max(0, served - lent), max(0, inside - served)
        return f"<0 idle, {lent} lent, {opening} opening, {waiting} waiting>"


@contextmanager
def _counted(inside: deque[None]) -> Iterator[None]:
    """Keep as many items in `inside` as there are clients in the block."""
    inside.append(None)
    try:
        yield
    finally:
        inside.pop()


_NUMBERS = re.compile(r"(\d+) idle, (\d+) lent, (\d+) opening, (\d+) waiting")


def read_gauge(source: Source | AsyncSource, size: int) -> Gauge:
    """Take the numbers that `repr(pool)` tells everybody."""
    found = _NUMBERS.search(repr(source))
    return Gauge(size, *map(int, found.groups())) if found else Gauge(size)


class Client:
    """One customer of the bank: what it wants next, and what it knows about it."""

    __slots__ = ("_accounts", "_doubtful", "_random", "acknowledged", "number", "traffic")

    def __init__(self, number: int, accounts: int) -> None:
        self.number = number
        self.acknowledged = 0
        self.traffic = Traffic()
        self._accounts = accounts
        self._random = Random(number)
        self._doubtful = False

    def next_order(self) -> Transfer:
        """Draw a transfer between two different accounts."""
        source = self._random.randrange(self._accounts)
        target = (source + self._random.randrange(1, self._accounts)) % self._accounts
        number = (self.number << SEQUENCE_BITS) + self.acknowledged + 1
        return Transfer(number, source, target, self._random.randrange(1, 100))

    def succeeded(self, asked: float, got: float, booked: bool) -> None:
        """Take note of a commit that the server acknowledged."""
        self.acknowledged += 1
        self.traffic.done.append(Done(asked, got, perf_counter()))
        if self._doubtful:
            self._doubtful = False
            self.traffic.settled.append(not booked)

    def failed(self, error: psycopg.Error, committing: bool) -> None:
        """Take note of an error; while committing it leaves the outcome unknown."""
        self._doubtful = self._doubtful or committing
        text = f"{type(error).__name__}: {error}"
        self.traffic.failures.append(Failure(perf_counter(), self.number, committing, text))


class Crowd(ABC):
    """What both crowds share: their clients, and how they are told to stop.

    Leaving the `with` block sends home whoever is still at work and closes the source. `size` is
    how many connections the source has; `crashes` are errors that no client expects.
    """

    def __init__(self, name: str, clients: list[Client], bank: Bank, size: int) -> None:
        self.name = name
        self.clients = clients
        self.traffic = Traffic()
        self.crashes: list[Exception] = []
        for client in clients:
            client.traffic = self.traffic
        self._bank = bank
        self.size = size
        self._over = False
        self._abandoned = False

    def finish(self) -> None:
        """Let every client complete the transfer it is at, then stop."""
        self._over = True

    @abstractmethod
    def gauge(self) -> Gauge:
        """Where the source's connections are, and how many clients wait."""

    @abstractmethod
    def join(self, timeout: float) -> int:
        """Wait up to `timeout` seconds for the clients to end; how many have not."""

    @abstractmethod
    def __enter__(self) -> Self: ...

    @abstractmethod
    def __exit__(self, *error: object) -> None: ...


class ThreadCrowd(Crowd):
    """A thread for each client."""

    def __init__(
        self,
        name: str,
        clients: list[Client],
        bank: Bank,
        size: int,
        open_source: Callable[[], AbstractContextManager[Source]],
    ) -> None:
        super().__init__(name, clients, bank, size)
        self._open_source = open_source
        self._stack = ExitStack()
        self._threads = [
            Thread(target=self._work, args=(client,), name=f"client-{client.number}", daemon=True)
            for client in clients
        ]

    def __enter__(self) -> Self:
        self._source = self._stack.enter_context(self._open_source())
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over = self._abandoned = True
        self._stack.close()
        self.join(5.0)

    def gauge(self) -> Gauge:
        """Where the connections are now."""
        return read_gauge(self._source, self.size)

    def join(self, timeout: float) -> int:
        """Wait for the threads, one after the other."""
        deadline = perf_counter() + timeout
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(max(0.0, deadline - perf_counter()))
        return sum(thread.is_alive() for thread in self._threads)

    def _work(self, client: Client) -> None:
        try:
            while not self._over:
                order = client.next_order()
                while not self._attempt(client, order) and not self._abandoned:
                    time.sleep(RETRY_PAUSE)
        except Exception as error:
            self.crashes.append(error)

    def _attempt(self, client: Client, order: Transfer) -> bool:
        committing = False
        asked = perf_counter()
        try:
            with self._source.connection() as conn:
                got = perf_counter()
                booked = self._bank.transfer(conn, order)
                committing = True
        except psycopg.Error as error:
            client.failed(error, committing)
            return False
        client.succeeded(asked, got, booked)
        return True


class TaskCrowd(Crowd):
    """A task for each client, all in one event loop that has a thread to itself."""

    GAUGE_EVERY = 0.05
    """Seconds between two looks at the pool, taken in the loop that it belongs to."""

    def __init__(
        self,
        name: str,
        clients: list[Client],
        bank: Bank,
        size: int,
        open_source: Callable[[], AbstractAsyncContextManager[AsyncSource]],
    ) -> None:
        super().__init__(name, clients, bank, size)
        self._open_source = open_source
        self._last_gauge = Gauge(size)
        self._loop = asyncio.new_event_loop()
        self._main: asyncio.Task[None] | None = None
        self._thread = Thread(target=self._run, name="event-loop", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over = self._abandoned = True
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._cancel)
        self._thread.join(5.0)

    def gauge(self) -> Gauge:
        """Where the connections were when the event loop last looked."""
        return self._last_gauge

    def join(self, timeout: float) -> int:
        """Wait for the event loop, which ends with its last client."""
        self._thread.join(timeout)
        return len(self.clients) if self._thread.is_alive() else 0

    def _cancel(self) -> None:
        if self._main is not None:
            self._main.cancel()

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            try:
                runner.run(self._work_all())
            except asyncio.CancelledError:
                pass
            except Exception as error:
                self.crashes.append(error)

    async def _work_all(self) -> None:
        self._main = asyncio.current_task()
        async with self._open_source() as source:
            watcher = asyncio.create_task(self._watch(source))
            async with asyncio.TaskGroup() as group:
                for client in self.clients:
                    group.create_task(self._work(client, source))
            watcher.cancel()
            self._last_gauge = read_gauge(source, self.size)

    async def _watch(self, source: AsyncSource) -> None:
        while True:
            self._last_gauge = read_gauge(source, self.size)
            await asyncio.sleep(self.GAUGE_EVERY)

    async def _work(self, client: Client, source: AsyncSource) -> None:
        while not self._over:
            order = client.next_order()
            while not await self._attempt(client, order, source) and not self._abandoned:
                await asyncio.sleep(RETRY_PAUSE)

    async def _attempt(self, client: Client, order: Transfer, source: AsyncSource) -> bool:
        committing = False
        asked = perf_counter()
        try:
            async with source.connection() as conn:
                got = perf_counter()
                booked = await self._bank.transfer_async(conn, order)
                committing = True
        except psycopg.Error as error:
            client.failed(error, committing)
            return False
        client.succeeded(asked, got, booked)
        return True
