"""Primaries that were demoted: the pool looks for the new one, and for nothing else."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from psycopg import errors

from forebay import AsyncConnectionPool, ConnectionPool
from forebay.testing import FakeDriver, ManualClock, fake_pool

READ_ONLY = errors.ReadOnlySqlTransaction("cannot execute INSERT in a read-only transaction")


def settled(pool: Any, clock: ManualClock, *, seconds: float) -> None:
    """Let time pass, then let maintenance and the workers do what they have to."""
    clock.advance(seconds)
    pool._forebay.flows.maintain()
    pool.wait()


class Server:
    """Tells each new session what it is."""

    def __init__(self, *, standby: bool) -> None:
        self.standby = standby

    def greet(self, conn: Any) -> None:
        """Be the `configure` of a pool."""
        conn.standby = self.standby


def test_a_connection_to_a_standby_lasts_until_the_next_step() -> None:
    """The pool was writable, so it connects again and again until it finds a primary."""
    driver, clock, server = FakeDriver(), ManualClock(), Server(standby=False)
    with fake_pool(ConnectionPool, driver, clock, min_size=1, configure=server.greet) as pool:
        pool.wait()
        server.standby = True
        pool.drain()
        pool.wait()
        assert driver.attempts == 2
        settled(pool, clock, seconds=4)
        assert driver.attempts == 3
        server.standby = False
        settled(pool, clock, seconds=4)
        assert driver.attempts == 4
        settled(pool, clock, seconds=4)
        assert driver.attempts == 4


def test_when_the_primary_is_found_the_connections_to_the_standby_go() -> None:
    """Those that are lent, too, when they come back."""
    driver, clock, server = FakeDriver(), ManualClock(), Server(standby=False)
    options = {"min_size": 1, "max_size": 2, "configure": server.greet}
    with fake_pool(ConnectionPool, driver, clock, **options) as pool:
        pool.wait()
        server.standby = True
        pool.drain()
        pool.wait()
        with pool.connection() as old:
            server.standby = False
            with pool.connection() as new:
                assert (old.standby, new.standby) == (True, False)
        while old.number in driver.sessions:
            pool.wait()
        assert new.number in driver.sessions


def test_a_pool_of_standbys_stays_as_it_is() -> None:
    """No connection of it ever could write, so none need to."""
    driver, clock, server = FakeDriver(), ManualClock(), Server(standby=True)
    with fake_pool(ConnectionPool, driver, clock, min_size=2, configure=server.greet) as pool:
        pool.wait()
        settled(pool, clock, seconds=60)
        assert driver.attempts == 2


def test_a_write_that_is_refused_has_the_server_asked(caplog: pytest.LogCaptureFixture) -> None:
    """It is a standby, so every connection is replaced: the others have not noticed yet."""
    driver = FakeDriver()
    with fake_pool(ConnectionPool, driver, min_size=2) as pool:
        pool.wait()
        for entry in pool._forebay.core.idle:
            entry.conn.in_recovery = True
        with pytest.raises(errors.ReadOnlySqlTransaction), pool.connection():
            raise READ_ONLY
        while driver.sessions != {3, 4}:
            pool.wait()
    assert [r for r in caplog.records if "is a standby" in r.message]


def test_a_read_only_transaction_of_the_application_changes_nothing() -> None:
    """The server says that it is a primary: the connection is kept."""
    driver = FakeDriver()
    with fake_pool(ConnectionPool, driver, min_size=1) as pool:
        pool.wait()
        with pytest.raises(errors.ReadOnlySqlTransaction), pool.connection():
            raise READ_ONLY
        pool.wait()
        assert driver.sessions == {1}


def test_an_asyncio_pool_asks_alike() -> None:
    """The same in asyncio."""

    async def scenario() -> None:
        driver = FakeDriver()
        async with fake_pool(AsyncConnectionPool, driver, min_size=2) as pool:
            await pool.wait()
            for entry in pool._forebay.core.idle:
                entry.conn.in_recovery = True
            with pytest.raises(errors.ReadOnlySqlTransaction):
                async with pool.connection():
                    raise READ_ONLY
            while driver.sessions != {3, 4}:
                await asyncio.sleep(0)

    asyncio.run(scenario())
