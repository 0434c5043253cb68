"""REFERENCE 1, reconnect_timeout, reconnect_failed, check(), drain(): servers come and go."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest

from forebay import PoolRejected, PoolTimeout

from .door import Admin, Door, eventually, settled, stat


async def pids(door: Door, pool: Any, number: int) -> set[int]:
    """The backends behind so many connections lent at once; each is asked itself."""
    lent = [await door(pool.getconn, timeout=20) for _ in range(number)]
    found = {await door.pid(conn) for conn in lent}
    for conn in lent:
        await door(pool.putconn, conn)
    return found


async def test_failed_connects_are_tried_again(door: Door) -> None:
    """The pool goes on connecting by itself until the server is there."""
    gate = door.gate()
    gate.refuse()
    pool = door.make(connection_class=gate.connection_class, min_size=2)
    await door(pool.open)
    await gate.arrived(3)
    assert stat(pool, "pool_available") == 0
    assert stat(pool, "connections_errors") >= 2
    gate.open()
    await settled(pool, pool_available=2, pool_size=2)


async def test_reconnection_begins_within_milliseconds(door: Door) -> None:
    """Backoff starts at tens of milliseconds: within a client's 2 s there are many attempts."""
    gate = door.gate()
    gate.refuse()
    pool = await door.open(min_size=0, max_size=1, connection_class=gate.connection_class)
    with pytest.raises(PoolTimeout):
        await door(pool.getconn, timeout=2)
    assert gate.attempts > 5


async def test_a_client_is_served_when_the_server_is_back(door: Door) -> None:
    """Who waits while the server is away gets the first connection that succeeds."""
    gate = door.gate()
    gate.refuse()
    pool = door.make(connection_class=gate.connection_class, min_size=1)
    await door(pool.open)
    waiter = door.client(pool.getconn, timeout=30)
    await settled(pool, requests_waiting=1)
    await gate.arrived(2)
    gate.open()
    conn = await waiter
    await door.pid(conn)
    await door(pool.putconn, conn)


async def test_a_timeout_says_why_there_was_no_connection(door: Door, refusing_dsn: str) -> None:
    """PoolTimeout has the last connection error as its cause."""
    pool = door.make(refusing_dsn, min_size=1)
    await door(pool.open)
    with pytest.raises(PoolTimeout) as caught:
        await door(pool.getconn, timeout=0.5)
    assert isinstance(caught.value.__cause__, psycopg.OperationalError)
    assert "connect" in str(caught.value.__cause__)


async def test_a_failed_connect_is_logged(
    door: Door, refusing_dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The log of the pool names the pool and the error."""
    pool = door.make(refusing_dsn, min_size=1, name="lonely")
    await door(pool.open)

    def said() -> list[str]:
        ours = [r for r in caplog.records if r.name.split(".")[0] == "forebay"]
        return [r.getMessage() for r in ours if "lonely" in r.getMessage()]

    assert "refused" in (await eventually(said, pool))[0]


async def test_reconnect_failed_is_called_again_and_again(door: Door) -> None:
    """After reconnect_timeout of failures the callback has the pool; it recurs while they last."""
    gate = door.gate()
    gate.refuse()
    called: list[Any] = []

    async def failed(pool: Any) -> None:
        called.append(pool)

    pool = door.make(
        connection_class=gate.connection_class,
        min_size=1,
        reconnect_timeout=0.1,
        reconnect_failed=door.callback(failed),
    )
    await door(pool.open)
    await eventually(lambda: len(called) >= 3, pool)
    assert set(called) == {pool}
    gate.open()
    await settled(pool, pool_available=1)


async def test_an_async_pool_takes_a_sync_reconnect_failed(dsn: str) -> None:
    """On the async pool reconnect_failed may be a plain function."""
    door = Door("async", dsn)
    gate = door.gate()
    gate.refuse()
    called: list[Any] = []
    options = {"reconnect_timeout": 0.1, "reconnect_failed": called.append}
    pool = door.make(connection_class=gate.connection_class, min_size=1, **options)
    await pool.open()
    await eventually(lambda: called, pool)
    assert called[0] is pool
    await door.end()


async def test_reconnect_timeout_may_be_assigned(door: Door) -> None:
    """A shorter reconnect_timeout counts for the attempts that follow."""
    gate = door.gate()
    called: list[Any] = []

    async def failed(pool: Any) -> None:
        called.append(pool)

    callback = door.callback(failed)
    pool = door.make(connection_class=gate.connection_class, min_size=1, reconnect_failed=callback)
    assert pool.reconnect_timeout == 300
    pool.reconnect_timeout = 0.1
    gate.refuse()
    await door(pool.open)
    await eventually(lambda: called, pool)


async def test_reconnect_failed_may_close_the_pool(door: Door) -> None:
    """The callback may give up: close() from within it does not hang."""
    gate = door.gate()
    gate.refuse()

    async def give_up(pool: Any) -> None:
        await door(pool.close, timeout=0)

    pool = door.make(
        connection_class=gate.connection_class,
        min_size=1,
        reconnect_timeout=0.05,
        reconnect_failed=door.callback(give_up),
    )
    await door(pool.open)
    await eventually(lambda: pool.closed, pool)


async def test_check_replaces_dead_connections(door: Door, admin: Admin) -> None:
    """After check() the clients find living connections only, as many as before."""
    pool = await door.open(min_size=3)
    dead = sorted(admin.pids(door.application))[:2]
    await admin.kill(*dead)
    await door(pool.check)
    await settled(pool, pool_size=3, pool_available=3)
    alive = await pids(door, pool, 3)
    assert len(alive) == 3
    assert not alive & set(dead)
    assert stat(pool, "connections_lost") == 2


async def test_check_keeps_living_connections(door: Door, admin: Admin) -> None:
    """Nothing is lost when all is well; lent connections are left alone."""
    pool = await door.open(min_size=3)
    before = admin.pids(door.application)
    async with door.using(pool.connection()) as lent:
        await door(lent.execute, "select 1")
        await door(pool.check)
    assert await pids(door, pool, 3) == before
    assert stat(pool, "connections_lost") == 0


async def test_check_refills_an_empty_pool(door: Door) -> None:
    """A pool that lost everything while the server was away is filled after check()."""
    gate = door.gate()
    gate.refuse()
    options = {"connection_class": gate.connection_class, "reconnect_timeout": 0.05}
    pool = door.make(min_size=2, **options)
    await door(pool.open)
    await eventually(lambda: stat(pool, "connections_errors") >= 2, pool)
    gate.open()
    await door(pool.check)
    await settled(pool, pool_size=2, pool_available=2)


async def test_drain_replaces_idle_connections_now(door: Door, admin: Admin) -> None:
    """After drain() every idle session is a new one."""
    pool = await door.open(min_size=3)
    before = admin.pids(door.application)
    await door(pool.drain)
    await settled(pool, pool_size=3, pool_available=3)
    assert not await pids(door, pool, 3) & before
    await eventually(lambda: not admin.pids(door.application) & before, pool)


async def test_drain_replaces_lent_connections_when_they_come_back(door: Door) -> None:
    """A lent connection goes on working, and is closed on return."""
    pool = await door.open(min_size=2)
    conn = await door(pool.getconn)
    await door(pool.drain)
    await door.pid(conn)
    await door(pool.putconn, conn)
    await eventually(lambda: conn.closed, pool)
    await settled(pool, pool_size=2, pool_available=2)
    kept = await door(pool.getconn)
    await door(pool.putconn, kept)
    assert not kept.closed


async def test_a_lost_connection_does_not_shrink_the_pool(door: Door, admin: Admin) -> None:
    """Losing connections while lent, again and again, leaves the pool at its size."""
    pool = await door.open(min_size=2)
    for _ in range(4):
        with pytest.raises(psycopg.OperationalError):
            await admin.lose(door, pool)
    await settled(pool, pool_size=2, pool_available=2)
    assert len(await pids(door, pool, 2)) == 2


async def test_who_waits_for_a_pool_that_is_rejected_learns_it_in_time(
    door: Door, dsn: str
) -> None:
    """`wait()` need not run into its timeout; the pool stays open: the database may be created."""
    pool = door.make(f"{dsn} dbname=nowhere", min_size=2, rejected_after=0.2)
    await door(pool.open)
    with pytest.raises(PoolRejected, match="nowhere"):
        await door(pool.wait, timeout=60)
    assert not pool.closed
