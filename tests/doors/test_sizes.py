"""REFERENCE 1, min_size, max_size, max_idle, max_lifetime, resize(): how many, and how old."""

from __future__ import annotations

import time
from typing import Any

import pytest

from .door import Admin, Door, eventually, settled, stat, whoami


async def lend(door: Door, pool: Any, number: int) -> list[Any]:
    """Take so many connections from the pool."""
    return [await door(pool.getconn) for _ in range(number)]


async def give_back(door: Door, pool: Any, conns: list[Any]) -> None:
    """Return the connections one by one."""
    for conn in conns:
        await door(pool.putconn, conn)


async def test_the_pool_keeps_min_size_connections(door: Door, admin: Admin) -> None:
    """min_size sessions are there from the start, and no more until they are needed."""
    pool = await door.open(min_size=3, max_size=6)
    assert len(admin.pids(door.application)) == 3
    await give_back(door, pool, await lend(door, pool, 3))
    assert stat(pool, "pool_size") == 3


async def test_the_pool_grows_to_max_size_and_no_further(door: Door, admin: Admin) -> None:
    """More clients than connections: new ones are opened up to max_size, then clients wait."""
    pool = await door.open(min_size=1, max_size=3)
    lent = await lend(door, pool, 3)
    waiter = door.client(pool.getconn)
    await settled(pool, requests_waiting=1)
    assert stat(pool, "pool_size") == 3
    assert len(admin.pids(door.application)) == 3
    await give_back(door, pool, lent)
    await give_back(door, pool, [await waiter])


async def test_a_pool_may_start_empty(door: Door, admin: Admin) -> None:
    """With min_size=0 nothing is opened until a client asks."""
    pool = await door.open(min_size=0, max_size=2)
    assert stat(pool, "pool_size") == 0
    assert not admin.pids(door.application)
    async with door.using(pool.connection()) as conn:
        await door.pid(conn)
    assert stat(pool, "pool_size") == 1


async def test_a_spike_opens_connections_side_by_side(door: Door) -> None:
    """Clients at an empty pool have their connections opened num_workers at a time."""
    gate = door.gate()
    options = {"connection_class": gate.connection_class, "num_workers": 3}
    pool = await door.open(min_size=0, max_size=8, **options)
    waiters = [door.client(pool.getconn) for _ in range(5)]
    await eventually(lambda: gate.inside == 3, gate)
    gate.open()
    lent = [await waiter for waiter in waiters]
    assert len(set(lent)) == 5
    assert gate.peak == 3
    await give_back(door, pool, lent)


async def test_connections_are_opened_in_the_background(door: Door) -> None:
    """Neither the opener of the pool nor a client connects: a worker of the pool does."""
    gate = door.gate()
    gate.open()
    pool = await door.open(min_size=1, max_size=2, connection_class=gate.connection_class)
    clients = {await door(whoami)}
    await give_back(door, pool, await lend(door, pool, 2))
    assert len(gate.openers) == 2
    assert not clients & set(gate.openers)


async def test_no_more_connections_are_opened_than_are_wanted(door: Door) -> None:
    """One waiting client has one connection opened for it, whatever the workers."""
    gate = door.gate()
    pool = await door.open(min_size=0, max_size=8, connection_class=gate.connection_class)
    waiter = door.client(pool.getconn)
    await gate.arrived(1)
    gate.let(1)
    await give_back(door, pool, [await waiter])
    await door(pool.close)
    assert gate.attempts == 1


async def test_connections_above_min_size_are_closed_when_unused(door: Door, admin: Admin) -> None:
    """After max_idle without use the pool shrinks to min_size, in steps."""
    pool = await door.open(min_size=1, max_size=4, max_idle=0.2)
    await give_back(door, pool, await lend(door, pool, 4))
    assert stat(pool, "pool_size") == 4
    await settled(pool, pool_size=1, pool_available=1)
    await eventually(lambda: len(admin.pids(door.application)) == 1, pool)


async def test_max_idle_may_be_assigned(door: Door) -> None:
    """An open pool with nothing to shrink for takes a new max_idle into account."""
    pool = await door.open(min_size=1, max_size=3, max_idle=0.1)
    pool.max_idle = 3600
    await give_back(door, pool, await lend(door, pool, 3))
    pool.max_idle = 0.1
    await settled(pool, pool_size=1)


async def test_connections_in_use_are_not_closed(door: Door) -> None:
    """Shrinking never touches a lent connection."""
    pool = await door.open(min_size=0, max_size=3, max_idle=0.1)
    lent = await lend(door, pool, 3)
    await give_back(door, pool, lent[1:])
    await settled(pool, pool_size=1)
    await door.pid(lent[0])
    await give_back(door, pool, lent[:1])
    await settled(pool, pool_size=0)


async def test_an_expired_connection_is_replaced_on_return(door: Door) -> None:
    """A lent connection older than max_lifetime is closed when it comes back."""
    pool = await door.open(min_size=1, max_lifetime=0.2)
    conn = await door(pool.getconn)
    lent_since = time.monotonic()
    await eventually(lambda: time.monotonic() > lent_since + 0.2)
    assert not conn.closed
    await door(pool.putconn, conn)
    other = await door(pool.getconn)
    assert other is not conn
    await door(pool.putconn, other)
    await eventually(lambda: conn.closed, pool)
    assert stat(pool, "pool_size") == 1


async def test_an_idle_connection_expires_too(door: Door, admin: Admin) -> None:
    """Maintenance, or check(), replaces idle connections older than max_lifetime."""
    pool = await door.open(min_size=1, max_lifetime=0.2)
    first = admin.pids(door.application)

    async def replaced() -> bool:
        await door(pool.check)
        return bool(admin.pids(door.application) - first)

    await eventually(replaced, pool)
    assert stat(pool, "returns_bad") == 0


async def test_a_young_connection_does_not_expire(door: Door) -> None:
    """Neither a return nor check() replaces connections before their time."""
    pool = await door.open(min_size=4, max_lifetime=3600)
    lent = await lend(door, pool, 4)
    await give_back(door, pool, lent)
    await door(pool.check)
    assert set(await lend(door, pool, 4)) == set(lent)
    await give_back(door, pool, lent)


async def test_resize_grows_the_pool(door: Door) -> None:
    """A larger min_size is filled in the background."""
    pool = await door.open(min_size=1)
    await door(pool.resize, 3)
    assert (pool.min_size, pool.max_size) == (3, 3)
    await settled(pool, pool_size=3, pool_available=3)
    await door(pool.resize, 2, 5)
    assert (pool.min_size, pool.max_size) == (2, 5)
    assert (stat(pool, "pool_min"), stat(pool, "pool_max")) == (2, 5)


async def test_resize_before_open_counts_when_the_pool_opens(door: Door) -> None:
    """The sizes of a pool that is not open yet may be changed."""
    pool = door.make(min_size=1)
    await door(pool.resize, 2, 3)
    await door(pool.open, wait=True)
    assert (stat(pool, "pool_size"), pool.max_size) == (2, 3)


async def test_resize_serves_those_who_wait(door: Door) -> None:
    """A client that waits at the old max_size gets a connection when max_size rises."""
    pool = await door.open(min_size=1)
    held = await door(pool.getconn)
    waiter = door.client(pool.getconn)
    await settled(pool, requests_waiting=1)
    await door(pool.resize, 2)
    await give_back(door, pool, [held, await waiter])


async def test_resize_shrinks_the_pool(door: Door) -> None:
    """A smaller pool: what is above max_size goes, at the latest when it is unused or returned."""
    pool = await door.open(min_size=4, max_idle=0.1)
    lent = await lend(door, pool, 4)
    await door(pool.resize, 1)
    assert (pool.min_size, pool.max_size) == (1, 1)
    await give_back(door, pool, lent)
    await settled(pool, pool_size=1)


@pytest.mark.parametrize(("min_size", "max_size"), [(-1, None), (4, 2), (0, 0), (0, None)])
async def test_resize_refuses_bad_sizes(door: Door, min_size: int, max_size: int | None) -> None:
    """The rules are those of the constructor, and a refused resize changes nothing."""
    pool = await door.open(min_size=1, max_size=2)
    with pytest.raises(ValueError, match="size"):
        await door(pool.resize, min_size, max_size)
    assert (pool.min_size, pool.max_size) == (1, 2)
