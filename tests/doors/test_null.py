"""REFERENCE 1, null pools: a connection for each client, and the rules that differ."""

from __future__ import annotations

import asyncio
from typing import Any

import psycopg
import pytest

from forebay import PoolClosed, PoolTimeout

from .door import Admin, Door, eventually, settled, stat


async def test_a_null_pool_keeps_nothing(null_door: Door, admin: Admin) -> None:
    """Nothing is open before a client comes, and nothing after it has gone."""
    door = null_door
    pool = await door.open()
    assert (pool.min_size, stat(pool, "pool_size")) == (0, 0)
    async with door.using(pool.connection()) as conn:
        await door.pid(conn)
        assert stat(pool, "pool_size") == 1
        assert len(admin.pids(door.application)) == 1
    await eventually(lambda: conn.closed, pool)
    await eventually(lambda: not admin.pids(door.application), pool)
    await settled(pool, pool_size=0, pool_available=0)


@pytest.mark.parametrize("max_size", [0, None])
async def test_without_max_size_a_null_pool_has_no_bound(
    null_door: Door, max_size: int | None
) -> None:
    """max_size of 0 or None: as many connections as clients."""
    door = null_door
    pool = await door.open(max_size=max_size)
    assert pool.max_size == 0
    lent = [await door(pool.getconn) for _ in range(7)]
    assert len({await door.pid(conn) for conn in lent}) == 7
    for conn in lent:
        await door(pool.putconn, conn)


async def test_a_null_pool_has_at_most_max_size_connections(null_door: Door) -> None:
    """At max_size clients wait for a connection to come back."""
    door = null_door
    pool = await door.open(max_size=2)
    lent = [await door(pool.getconn) for _ in range(2)]
    waiter = door.client(pool.getconn, timeout=20)
    await settled(pool, requests_waiting=1)
    await door(pool.putconn, lent[0])
    third = await waiter
    await door.pid(third)
    for conn in (lent[1], third):
        await door(pool.putconn, conn)
    await settled(pool, pool_size=0)


async def test_a_null_pool_has_min_size_0(null_door: Door) -> None:
    """Any other min_size is refused, by the constructor and by resize()."""
    with pytest.raises(ValueError, match="min_size"):
        null_door.make(min_size=1)
    pool = await null_door.open(max_size=1)
    with pytest.raises(ValueError, match="min_size"):
        await null_door(pool.resize, 1, 2)
    with pytest.raises(ValueError, match="max_size"):
        null_door.make(max_size=-1)


async def test_resize_of_a_null_pool_serves_those_who_wait(null_door: Door) -> None:
    """resize(0, more) lets more connections be opened."""
    door = null_door
    pool = await door.open(max_size=1)
    held = await door(pool.getconn)
    waiter = door.client(pool.getconn, timeout=20)
    await settled(pool, requests_waiting=1)
    await door(pool.resize, 0, 2)
    assert (pool.min_size, pool.max_size) == (0, 2)
    for conn in (held, await waiter):
        await door(pool.putconn, conn)


async def test_a_connect_error_reaches_the_client(null_door: Door, refusing_dsn: str) -> None:
    """At once, and as the driver's own error: it is no PoolTimeout."""
    door = null_door
    pool = await door.open(refusing_dsn)
    with pytest.raises(psycopg.OperationalError, match="refused") as caught:
        await door(pool.getconn, timeout=20)
    assert not isinstance(caught.value, PoolTimeout)
    assert stat(pool, "connections_errors") == 1


async def test_a_connect_error_costs_no_place(null_door: Door) -> None:
    """After a failed connect the place is free for the next client."""
    door = null_door
    gate = door.gate()
    gate.refuse()
    pool = await door.open(max_size=1, connection_class=gate.connection_class)
    for _ in range(3):
        with pytest.raises(psycopg.OperationalError, match="the gate refuses"):
            await door(pool.getconn, timeout=20)
    gate.open()
    async with door.using(pool.connection()) as conn:
        await door.pid(conn)


async def test_a_connect_error_reaches_one_client_and_not_its_neighbours(null_door: Door) -> None:
    """Each client has its own attempt; one that fails does not fail the others."""
    door = null_door
    gate = door.gate()
    pool = await door.open(max_size=2, connection_class=gate.connection_class)
    first = door.client(pool.getconn, timeout=20)
    await gate.arrived(1)
    gate.error = psycopg.OperationalError("the gate refuses")
    gate.let(1)
    with pytest.raises(psycopg.OperationalError, match="the gate refuses"):
        await first
    second = door.client(pool.getconn, timeout=20)
    await gate.arrived(2)
    gate.open()
    await door(pool.putconn, await second)


async def test_running_out_of_time_is_a_pool_timeout(null_door: Door, admin: Admin) -> None:
    """A connect that takes longer than the client's timeout; what arrives late is closed."""
    door = null_door
    gate = door.gate()
    pool = await door.open(max_size=1, connection_class=gate.connection_class)
    with pytest.raises(PoolTimeout, match=r"^couldn't get a connection after 0\.10 sec"):
        await door(pool.getconn, timeout=0.1)
    gate.open()
    await eventually(lambda: not gate.inside, gate)
    async with door.using(pool.connection(timeout=20)) as conn:
        await door.pid(conn)
    await eventually(lambda: not admin.pids(door.application), pool)


async def test_timeout_0_opens_nothing(null_door: Door) -> None:
    """A null pool never has a connection ready, so timeout=0 raises and does not connect."""
    door = null_door
    gate = door.gate()
    gate.open()
    pool = await door.open(connection_class=gate.connection_class)
    with pytest.raises(PoolTimeout):
        await door(pool.getconn, timeout=0)
    assert gate.attempts == 0
    assert stat(pool, "requests_waiting") == 0


async def test_clients_connect_side_by_side(null_door: Door) -> None:
    """No client's connect waits for another's."""
    door = null_door
    gate = door.gate()
    pool = await door.open(max_size=3, connection_class=gate.connection_class)
    clients = [door.client(pool.getconn, timeout=20) for _ in range(3)]
    await eventually(lambda: gate.inside == 3, gate)
    gate.open()
    for client in clients:
        await door(pool.putconn, await client)


async def test_other_calls_do_not_wait_for_a_connect(null_door: Door) -> None:
    """While a client connects, statistics, returns and close() go on."""
    door = null_door
    gate = door.gate()
    gate.let(1)
    pool = await door.open(max_size=2, connection_class=gate.connection_class)
    held = await door(pool.getconn)
    slow = door.client(pool.getconn, timeout=20)
    await gate.arrived(2)
    assert stat(pool, "pool_size") == 2
    await door(pool.putconn, held)
    await door(pool.close, timeout=0)
    gate.open()
    outcome = (await asyncio.gather(slow, return_exceptions=True))[0]
    if not isinstance(outcome, PoolClosed):
        await door(pool.putconn, outcome)


async def test_wait_makes_a_test_connection(null_door: Door, refusing_dsn: str) -> None:
    """wait() tells whether the server can be reached; if not it closes the pool."""
    door = null_door
    pool = await door.open()
    await door(pool.wait, timeout=20)
    assert stat(pool, "connections_num") == 1
    await settled(pool, pool_size=0)
    pool = await door.open(refusing_dsn)
    with pytest.raises(psycopg.OperationalError):
        await door(pool.wait, timeout=0.5)
    assert pool.closed


async def test_check_and_drain_have_nothing_to_do(null_door: Door) -> None:
    """check() is a no-op; drain() leaves lent connections to their return."""
    door = null_door
    pool = await door.open()
    await door(pool.check)
    conn = await door(pool.getconn)
    await door(pool.drain)
    await door.pid(conn)
    await door(pool.putconn, conn)
    assert stat(pool, "connections_num") == 1


async def test_reconnect_failed_is_not_called(null_door: Door) -> None:
    """Nothing is retried, so there is nothing to give up."""
    door = null_door
    gate = door.gate()
    gate.refuse()
    called: list[Any] = []

    async def failed(pool: Any) -> None:
        called.append(pool)

    callback = door.callback(failed)
    options = {"reconnect_timeout": 0.01, "reconnect_failed": callback}
    pool = await door.open(connection_class=gate.connection_class, **options)
    for _ in range(3):
        with pytest.raises(psycopg.OperationalError, match="the gate refuses"):
            await door(pool.getconn)
    assert (called, gate.attempts) == ([], 3)


async def test_a_refused_configure_reaches_the_client(null_door: Door, admin: Admin) -> None:
    """An exception in configure() is part of connecting: no session is left, no place is lost."""
    door = null_door
    refusing = [True]

    async def configure(_: Any) -> None:
        if refusing:
            raise RuntimeError("not this one")

    pool = await door.open(max_size=1, configure=door.callback(configure))
    with pytest.raises(RuntimeError, match="not this one"):
        await door(pool.getconn, timeout=20)
    refusing.clear()
    async with door.using(pool.connection()) as conn:
        await door.pid(conn)
    await eventually(lambda: not admin.pids(door.application), pool)


async def test_reset_comes_between_two_clients(null_door: Door) -> None:
    """A connection handed from one client to the next is reset before."""
    door = null_door
    seen: list[Any] = []

    async def reset(conn: Any) -> None:
        seen.append(conn)

    pool = await door.open(max_size=1, reset=door.callback(reset))
    first = await door(pool.getconn)
    waiter = door.client(pool.getconn, timeout=20)
    await settled(pool, requests_waiting=1)
    await door(pool.putconn, first)
    second = await waiter
    assert second is not first or seen == [first]
    await door(pool.putconn, second)


async def test_a_broken_connection_costs_no_place(null_door: Door, admin: Admin) -> None:
    """A connection lost while lent is dropped on return; the next client has a new one."""
    door = null_door
    pool = await door.open(max_size=1)
    with pytest.raises(psycopg.OperationalError):
        await admin.lose(door, pool)
    async with door.using(pool.connection(timeout=20)) as other:
        await door.pid(other)
    assert stat(pool, "returns_bad") == 1
