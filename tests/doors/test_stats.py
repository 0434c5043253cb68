"""REFERENCE 1, "Stats keys": every figure, what makes it move, and what pop_stats() does."""

from __future__ import annotations

import contextlib
import time
from typing import Any

import psycopg
import pytest

from forebay import PoolClosed, PoolTimeout, TooManyRequests

from .door import Admin, Door, eventually, settled, stat

COUNTERS = {
    "usage_ms",
    "requests_num",
    "requests_queued",
    "requests_wait_ms",
    "requests_errors",
    "returns_bad",
    "connections_num",
    "connections_ms",
    "connections_errors",
    "connections_lost",
}
GAUGES = {
    "pool_min",
    "pool_max",
    "pool_size",
    "pool_available",
    "requests_waiting",
    "workers_abandoned",  # beyond the original
}


async def spent(door: Door, conn: Any) -> None:
    """Use the connection for at least 30 ms, as the server sees it."""
    await door(conn.execute, "select pg_sleep(0.03)")


async def test_the_figures_are_numbers_under_the_known_names(any_door: Door) -> None:
    """Gauges are always there, counters may be missing while 0; all are integers."""
    door = any_door
    pool = await door.open(max_size=2, **door.least)
    async with door.using(pool.connection()) as conn:
        await door.pid(conn)
    stats = pool.get_stats()
    assert stats.keys() >= GAUGES
    assert set(stats) <= GAUGES | COUNTERS
    assert all(type(value) is int for value in stats.values())


async def test_the_gauges_tell_the_present(door: Door) -> None:
    """Sizes, idle connections, and who waits."""
    pool = await door.open(min_size=2, max_size=3)
    assert gauges(pool) == (2, 3, 2, 2, 0)
    lent = [await door(pool.getconn) for _ in range(3)]
    assert gauges(pool) == (2, 3, 3, 0, 0)
    waiter = door.client(pool.getconn)
    await settled(pool, requests_waiting=1)
    assert gauges(pool) == (2, 3, 3, 0, 1)
    await door(pool.putconn, lent[0])
    await waiter
    assert gauges(pool) == (2, 3, 3, 0, 0)
    for conn in lent:
        await door(pool.putconn, conn)
    assert gauges(pool) == (2, 3, 3, 3, 0)


def gauges(pool: Any) -> tuple[int, ...]:
    """The five present figures, in the order of the contract."""
    names = ("pool_min", "pool_max", "pool_size", "pool_available", "requests_waiting")
    return tuple(stat(pool, name) for name in names)


async def test_a_connection_being_opened_counts_in_the_size(door: Door) -> None:
    """pool_size has the connections that are on their way."""
    gate = door.gate()
    pool = door.make(connection_class=gate.connection_class, min_size=2)
    await door(pool.open)
    await gate.arrived(2)
    assert gauges(pool) == (2, 2, 2, 0, 0)
    gate.open()
    await settled(pool, pool_available=2)


async def test_requests_are_counted(any_door: Door) -> None:
    """Every getconn() and connection() is a request; those who waited are counted too."""
    door = any_door
    pool = await door.open(max_size=1, **door.least)
    held = await door(pool.getconn)
    queued = stat(pool, "requests_queued")
    waiter = door.client(pool.getconn)
    await settled(pool, requests_waiting=1)
    await spent(door, held)
    await door(pool.putconn, held)
    await door(pool.putconn, await waiter)
    async with door.using(pool.connection()):
        pass
    assert stat(pool, "requests_num") == 3
    assert stat(pool, "requests_queued") >= queued + 1
    assert stat(pool, "requests_wait_ms") >= 25
    assert stat(pool, "requests_errors") == 0


async def test_failed_requests_are_counted(any_door: Door) -> None:
    """Time-outs and refusals are requests_errors."""
    door = any_door
    pool = await door.open(max_size=1, max_waiting=1, **door.least)
    held = await door(pool.getconn)
    with pytest.raises(PoolTimeout):
        await door(pool.getconn, timeout=0.02)
    waiter = door.client(pool.getconn)
    await settled(pool, requests_waiting=1)
    with pytest.raises(TooManyRequests):
        await door(pool.getconn)
    assert stat(pool, "requests_errors") == 2
    assert stat(pool, "requests_num") == 4
    await door(pool.putconn, held)
    await door(pool.putconn, await waiter)


async def test_a_request_on_a_closed_pool_counts(any_door: Door) -> None:
    """requests_num goes on counting after close()."""
    door = any_door
    pool = await door.open(max_size=1, **door.least)
    await door(pool.putconn, await door(pool.getconn))
    await door(pool.close)
    for _ in range(2):
        with pytest.raises(PoolClosed):
            await door(pool.getconn)
    assert stat(pool, "requests_num") == 3


async def test_usage_is_that_of_connection_only(any_door: Door) -> None:
    """usage_ms is the time inside `with connection()`; getconn() is not part of it."""
    door = any_door
    pool = await door.open(max_size=1, **door.least)
    conn = await door(pool.getconn)
    await spent(door, conn)
    await door(pool.putconn, conn)
    assert stat(pool, "usage_ms") == 0
    async with door.using(pool.connection()) as conn:
        await spent(door, conn)
    assert stat(pool, "usage_ms") >= 25


async def test_usage_counts_leases_that_fail(door: Door) -> None:
    """A block that ends with an exception used the connection too."""
    pool = await door.open(min_size=1)
    with contextlib.suppress(KeyError):
        async with door.using(pool.connection()) as conn:
            await spent(door, conn)
            raise KeyError
    assert stat(pool, "usage_ms") >= 25


async def test_connections_are_counted_and_timed(any_door: Door) -> None:
    """connections_num, connections_ms: attempts, and the time they took."""
    door = any_door
    gate = door.gate()
    pool = door.make(max_size=1, connection_class=gate.connection_class, **door.least)
    await door(pool.open)
    client = door.client(pool.getconn)
    await gate.arrived(1)
    since = time.monotonic()
    await eventually(lambda: time.monotonic() > since + 0.03)
    gate.open()
    await door(pool.putconn, await client)
    assert stat(pool, "connections_num") == 1
    assert stat(pool, "connections_ms") >= 25
    assert stat(pool, "connections_errors") == 0


async def test_failed_connects_are_counted(door: Door) -> None:
    """connections_num counts the attempts, connections_errors those that failed."""
    gate = door.gate()
    gate.refuse()
    pool = door.make(connection_class=gate.connection_class, min_size=1)
    await door(pool.open)
    await gate.arrived(2)
    gate.open()
    await settled(pool, pool_available=1)
    errors = stat(pool, "connections_errors")
    assert errors >= 2
    assert stat(pool, "connections_num") == errors + 1 == gate.attempts


async def test_bad_returns_are_counted(any_door: Door, admin: Admin) -> None:
    """returns_bad: connections that came back lost or closed."""
    door = any_door
    pool = await door.open(max_size=1, **door.least)
    with pytest.raises(psycopg.OperationalError):
        await admin.lose(door, pool)
    conn = await door(pool.getconn, timeout=20)
    await door(conn.close)
    await door(pool.putconn, conn)
    assert stat(pool, "returns_bad") == 2


async def test_connections_lost_are_those_that_check_found(door: Door, admin: Admin) -> None:
    """connections_lost: found dead in the pool, not on return."""
    pool = await door.open(min_size=2)
    await admin.kill(min(admin.pids(door.application)))
    await door(pool.check)
    await settled(pool, connections_lost=1)  # a worker may be looking at it already
    assert stat(pool, "returns_bad") == 0


async def test_pop_stats_starts_the_counters_anew(any_door: Door) -> None:
    """pop_stats() gives what get_stats() gives; then the counters are 0, the gauges are not."""
    door = any_door
    pool = await door.open(max_size=1, **door.least)
    async with door.using(pool.connection()) as conn:
        await spent(door, conn)
    await settled(pool, pool_size=1 if door.least else 0)
    before = pool.get_stats()
    assert pool.get_stats() == before
    assert pool.pop_stats() == before
    after = pool.get_stats()
    assert {key: after.get(key, 0) for key in COUNTERS} == dict.fromkeys(COUNTERS, 0)
    assert {key: after[key] for key in GAUGES} == {key: before[key] for key in GAUGES}
    async with door.using(pool.connection()):
        pass
    assert stat(pool, "requests_num") == 1
