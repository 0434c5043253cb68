"""A pool for asyncio over a library that has nothing to do with psycopg: it keeps a dictionary.

Its sessions take no attributes and are no context managers, as those of some libraries are.  What
this file imports is what a driver for another library would need.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from math import inf
from typing import Any, ClassVar
from weakref import WeakSet

import pytest

from forebay._async_door import AsyncDoor, AsyncLease, begin
from forebay._entry import Verdict
from forebay.drivers.tags import Finder
from forebay.errors import PoolClosedMixin, PoolTimeoutMixin, Refusals, TooManyRequestsMixin


class Lost(Exception):
    """The session is gone."""


class Store:
    """A server: what is committed, and how many sessions it has."""

    def __init__(self) -> None:
        self.committed: dict[str, int] = {}
        self.sessions: WeakSet[Session] = WeakSet()
        self.refuses = 0  # how many attempts to connect


class Session:
    """A connection: `put()` begins a transaction."""

    __slots__ = ("__weakref__", "alive", "pending", "store")

    def __init__(self, store: Store) -> None:
        self.store = store
        self.pending: dict[str, int] = {}
        self.alive = True
        store.sessions.add(self)

    async def put(self, key: str, value: int) -> None:
        """Write a value, in a transaction."""
        await asyncio.sleep(0)
        if not self.alive:
            raise Lost("the session is gone")
        self.pending[key] = value

    async def commit(self) -> None:
        """End the transaction."""
        await asyncio.sleep(0)
        self.store.committed.update(self.pending)
        self.pending.clear()

    async def rollback(self) -> None:
        """Forget what was written."""
        self.pending.clear()

    async def close(self) -> None:
        """End the session."""
        self.alive = False
        self.store.sessions.discard(self)


class StoreDriver(Finder):
    """What the pool needs to know of `Store`."""

    ProgrammingError = RuntimeError

    def refusals(self, name: str) -> Refusals:
        """The exceptions of the pool `name`."""
        return Refusals(name, PoolClosedMixin, PoolTimeoutMixin, TooManyRequestsMixin)

    def adopt(self, conn: Any, entry: Any) -> None:
        """Attach `entry` to a new connection, which takes no attribute."""
        self.tags.attach(conn, entry)

    @staticmethod
    def unclean(conn: Any) -> bool:
        """Whether it is in a transaction, or gone."""
        return bool(conn.pending) or not conn.alive

    def usable(self, conn: Any) -> bool:
        """Whether it works."""
        return bool(conn.alive)

    def closed(self, conn: Any) -> bool:
        """Whether it is gone."""
        return not conn.alive

    died = closed

    def describe(self, conn: Any) -> str:
        """Its state."""
        return "in a transaction" if conn.pending else "idle"

    def label(self, conn: Any) -> str:
        """What a log may say."""
        return f"<Session {self.describe(conn)}>"

    def end(self, conn: Any) -> None:
        """Close it on the spot."""
        conn.alive = False
        conn.store.sessions.discard(conn)

    def readable(self, conns: list[Any]) -> list[Any]:
        """Those that are gone."""
        return [conn for conn in conns if not conn.alive]

    def look(self, conn: Any) -> Exception | None:
        """Why it is dead."""
        return None if conn.alive else Lost("the session is gone")

    def deliver(self, conn: Any) -> None:
        """Nothing is heard from a dictionary."""

    def lifeline(self, conn: Any) -> None:
        """It has no socket."""

    def verdict(self, error: BaseException) -> Verdict:
        """The next attempt may succeed."""
        del error
        return Verdict.TRANSIENT

    def unanswered(self, error: BaseException) -> bool:
        """It answers at once."""
        del error
        return False

    def patience(self, *_: Any) -> float:
        """As long as it takes."""
        return inf

    def standby(self, conn: Any) -> bool:
        """It is none."""
        del conn
        return False

    async def in_recovery(self, conn: Any) -> bool:
        """It is not."""
        del conn
        return False

    def keepable(self, error: BaseException) -> BaseException:
        """It refers to no connection."""
        return error

    def refuses_writes(self, error: BaseException) -> bool:
        """Never."""
        del error
        return False

    def wants_writable(self, *_: Any) -> bool:
        """There is one server only."""
        return True

    async def connect(self, store: Store, *_: Any) -> Session:
        """Open a session."""
        await asyncio.sleep(0)
        if store.refuses:
            store.refuses -= 1
            raise Lost("not now")
        return Session(store)

    async def close(self, conn: Any) -> None:
        """Close a session."""
        await conn.close()

    async def rollback(self, conn: Any) -> None:
        """End the transaction."""
        await conn.rollback()

    async def ping(self, conn: Any) -> None:
        """Raise if it is gone."""
        if not conn.alive:
            raise Lost("the session is gone")


class StoreLease(AsyncLease[Session]):
    """A block is a transaction."""

    __slots__ = ()

    async def _begin(self, conn: Any) -> Any:
        return conn

    async def _end(self, conn: Any, *error: Any) -> None:
        await (conn.commit() if error[0] is None else conn.rollback())


class StorePool(AsyncDoor[Session]):
    """A pool of sessions of a store."""

    _forebay_driver: ClassVar[Any] = StoreDriver

    def __init__(self, store: Store, **options: Any) -> None:
        nothing = dict.fromkeys(("configure", "check", "reset", "reconnect_failed"))
        super().__init__("", store, None, options, **nothing)  # type: ignore[arg-type]
        begin(self, open=False)

    def connection(self, timeout: float | None = None) -> AsyncLease[Session]:
        """Lend a session for an `async with` block."""
        return StoreLease.of(self, timeout)


Scenario = Callable[[StorePool, Store], Awaitable[None]]


async def each_block_is_a_transaction(pool: StorePool, store: Store) -> None:
    """Fifty clients share two sessions; what fails is not committed."""

    async def client(number: int) -> None:
        async with pool.connection() as session:
            await session.put(f"of {number}", number)
            if number % 10 == 0:
                raise LookupError

    results = await asyncio.gather(*map(client, range(50)), return_exceptions=True)
    assert [type(each) for each in results if each] == [LookupError] * 5
    assert store.committed == {f"of {n}": n for n in range(50) if n % 10}
    assert len(store.sessions) == 2


async def what_is_returned_is_rolled_back(pool: StorePool, store: Store) -> None:
    """And returned once."""
    session = await pool.getconn()
    await session.put("left open", 1)
    await pool.putconn(session)
    assert (session.pending, store.committed) == ({}, {})
    with pytest.raises(ValueError, match="returned already"):
        await pool.putconn(session)


async def what_is_lost_is_replaced(pool: StorePool, store: Store) -> None:
    """While it is idle, and in the hands of a client that drops it."""
    await pool.wait()
    for session in [*store.sessions]:
        await session.close()
    async with pool.connection() as session:
        await session.put("after all", 1)
    del session
    assert store.committed == {"after all": 1}
    dropped = await pool.getconn()
    del dropped
    held = [await pool.getconn() for _ in range(2)]
    with pytest.raises(PoolTimeoutMixin, match="all 2 connections are lent"):
        await pool.getconn(timeout=0.05)
    for session in held:
        await pool.putconn(session)


SCENARIOS: tuple[Scenario, ...] = (
    each_block_is_a_transaction,
    what_is_returned_is_rolled_back,
    what_is_lost_is_replaced,
)


async def play(scenario: Scenario) -> None:
    """Play a scenario with a pool of its own, which connects at its third attempt.

    Each session is looked at before it is lent.
    """
    store = Store()
    store.refuses = 2
    async with StorePool(store, min_size=2, max_size=2, timeout=5.0, bypass_window=0.0) as pool:
        await scenario(pool, store)
    assert not store.sessions


def main() -> None:
    """Play all."""
    for scenario in SCENARIOS:
        asyncio.run(play(scenario))
