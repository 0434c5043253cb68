"""REFERENCE 1, "Behaviour users rely on": who waits, in which order, and for how long."""

from __future__ import annotations

import asyncio
import signal
import threading
from typing import Any

import pytest

from forebay import ConnectionPool, PoolTimeout, TooManyRequests

from .door import Door, settled, stat


async def test_waiters_are_served_in_order_of_arrival(any_door: Door) -> None:
    """First come, first served, one by one."""
    door = any_door
    pool = await door.open(max_size=1, **door.least)
    served: list[int] = []

    async def client(number: int) -> None:
        async with door.using(pool.connection()) as conn:
            served.append(number)
            await door.pid(conn)

    held = await door(pool.getconn)
    clients = []
    for number in range(6):
        clients.append(asyncio.create_task(client(number)))
        await settled(pool, requests_waiting=number + 1)
    await door(pool.putconn, held)
    await asyncio.gather(*clients)
    assert served == list(range(6))


async def test_a_returned_connection_serves_the_client_that_waits_for_a_new_one(
    any_door: Door,
) -> None:
    """Whatever comes first serves the waiter; the new connection joins the pool later."""
    door = any_door
    gate = door.gate()
    pool = await door.open(max_size=2, connection_class=gate.connection_class, min_size=0)
    gate.let(1)
    first = await door(pool.getconn)
    waiter = door.client(pool.getconn)
    await gate.arrived(2)
    await door(pool.putconn, first)
    second = await waiter
    assert second is first
    gate.open()
    await door(pool.putconn, second)


async def test_nobody_overtakes_a_waiter(door: Door) -> None:
    """A client that comes when a connection comes back does not get it before the waiter."""
    pool = await door.open(min_size=1)
    held = await door(pool.getconn)
    waiter = door.client(pool.getconn)
    await settled(pool, requests_waiting=1)
    await door(pool.putconn, held)
    with pytest.raises(PoolTimeout):
        await door(pool.getconn, timeout=0)
    await door(pool.putconn, await waiter)


async def test_a_client_waits_no_longer_than_its_timeout(any_door: Door) -> None:
    """PoolTimeout after `timeout`, with the message programs look for."""
    door = any_door
    pool = await door.open(max_size=1, timeout=0.07, **door.least)
    held = await door(pool.getconn)
    with pytest.raises(PoolTimeout, match=r"^couldn't get a connection after 0\.07 sec"):
        await door(pool.getconn)
    with pytest.raises(PoolTimeout, match=r"^couldn't get a connection after 0\.05 sec"):
        await door(pool.getconn, timeout=0.05)
    with pytest.raises(PoolTimeout, match=r"^couldn't get a connection after 0\.03 sec"):
        async with door.using(pool.connection(timeout=0.03)):
            raise AssertionError("nothing should have been lent")
    await door(pool.putconn, held)
    assert stat(pool, "requests_errors") == 3


async def test_a_timed_out_client_has_left_the_queue(any_door: Door) -> None:
    """After its PoolTimeout the client neither waits nor counts against max_waiting."""
    door = any_door
    pool = await door.open(max_size=1, max_waiting=1, **door.least)
    held = await door(pool.getconn)
    for _ in range(3):
        with pytest.raises(PoolTimeout):
            await door(pool.getconn, timeout=0.02)
        assert stat(pool, "requests_waiting") == 0
    waiter = door.client(pool.getconn)
    await settled(pool, requests_waiting=1)
    await door(pool.putconn, held)
    await door(pool.putconn, await waiter)


async def test_a_longer_queue_is_refused(any_door: Door) -> None:
    """With max_waiting clients in the queue, the next one gets TooManyRequests at once."""
    door = any_door
    pool = await door.open(max_size=1, max_waiting=2, name="busy", **door.least)
    held = await door(pool.getconn)
    waiters = [door.client(pool.getconn) for _ in range(2)]
    await settled(pool, requests_waiting=2)
    with pytest.raises(TooManyRequests, match=r"^the pool 'busy' has already 2 requests waiting"):
        await door(pool.getconn)
    assert stat(pool, "requests_errors") == 1
    await door(pool.putconn, held)
    for waiter in asyncio.as_completed(waiters):
        await door(pool.putconn, await waiter)


async def test_timeout_0_takes_what_is_ready(door: Door) -> None:
    """`timeout=0` lends an idle connection, and raises at once when there is none."""
    pool = await door.open(min_size=1)
    held = await door(pool.getconn, timeout=0)
    with pytest.raises(PoolTimeout, match=r"0\.00 sec"):
        await door(pool.getconn, timeout=0)
    assert stat(pool, "requests_waiting") == 0
    await door(pool.putconn, held)
    async with door.using(pool.connection(timeout=0)) as again:
        await door.pid(again)


async def test_a_client_that_timed_out_loses_nothing(door: Door) -> None:
    """The connection that comes back after a client gave up stays in the pool."""
    pool = await door.open(min_size=1)
    held = await door(pool.getconn)
    with pytest.raises(PoolTimeout):
        await door(pool.getconn, timeout=0.02)
    await door(pool.putconn, held)
    assert stat(pool, "pool_available") == 1
    async with door.using(pool.connection(timeout=0)) as conn:
        assert conn is held


async def test_many_clients_share_few_connections(any_door: Door) -> None:
    """Thirty clients on three connections: each has its turn, no connection is lent twice."""
    door = any_door
    pool = await door.open(max_size=3, **door.least)
    lent: set[Any] = set()
    peak: list[int] = []

    async def client() -> None:
        for _ in range(5):
            async with door.using(pool.connection()) as conn:
                assert conn not in lent
                lent.add(conn)
                peak.append(len(lent))
                await door.pid(conn)
                lent.remove(conn)

    await asyncio.gather(*(client() for _ in range(30)))
    assert 1 <= max(peak) <= 3
    assert stat(pool, "requests_num") == 150
    await settled(pool, requests_waiting=0)


async def test_timeouts_in_the_middle_of_the_queue_keep_the_order(door: Door) -> None:
    """Those who give up do not disturb the order of those who stay."""
    pool = await door.open(min_size=1)
    held = await door(pool.getconn)
    served: list[int] = []

    async def client(number: int, timeout: float) -> None:
        async with door.using(pool.connection(timeout=timeout)):
            served.append(number)

    clients = []
    for number, timeout in enumerate([20, 0.03, 20, 0.03, 20]):
        clients.append(asyncio.create_task(client(number, timeout)))
        await settled(pool, requests_queued=number + 1)
    await settled(pool, requests_waiting=3)
    await door(pool.putconn, held)
    outcomes = await asyncio.gather(*clients, return_exceptions=True)
    assert served == [0, 2, 4]
    assert [type(o) for o in outcomes if o] == [PoolTimeout, PoolTimeout]


@pytest.mark.parametrize("kind", ["async", "async-null"])
async def test_a_cancelled_waiter_loses_nothing(dsn: str, kind: str) -> None:
    """A cancelled client leaves the queue; those behind it move up."""
    door = Door(kind, dsn)
    pool = await door.open(max_size=1, **door.least)
    held = await pool.getconn()
    waiters = []
    for number in range(3):
        waiters.append(door.client(pool.getconn))
        await settled(pool, requests_waiting=number + 1)
    waiters[0].cancel()
    waiters[2].cancel()
    await settled(pool, requests_waiting=1)
    await pool.putconn(held)
    await pool.putconn(await waiters[1])
    async with pool.connection(timeout=5) as conn:
        await door.pid(conn)
    await settled(pool, requests_waiting=0)
    await door.end()


@pytest.mark.parametrize("steps", range(6))
@pytest.mark.parametrize("kind", ["async", "async-null"])
async def test_a_client_cancelled_around_its_hand_over_loses_nothing(
    dsn: str, kind: str, steps: int
) -> None:
    """Cancelled so many steps of the loop after the connection came back, it is not lost."""
    door = Door(kind, dsn)
    pool = await door.open(max_size=1, **door.least)
    held = await pool.getconn()
    waiter = door.client(pool.getconn)
    await settled(pool, requests_waiting=1)
    returning = asyncio.create_task(pool.putconn(held))
    for _ in range(steps):
        await asyncio.sleep(0)
    waiter.cancel()
    await returning
    await asyncio.wait([waiter])
    if not waiter.cancelled():
        await pool.putconn(waiter.result())
    async with pool.connection(timeout=5) as conn:
        await door.pid(conn)
    await door.end()


@pytest.mark.parametrize("steps", range(8))
async def test_a_lease_cancelled_anywhere_loses_nothing(dsn: str, steps: int) -> None:
    """A task cancelled so many steps into its lease leaves the pool whole."""
    door = Door("async", dsn)
    pool = await door.open(min_size=1)

    async def client() -> None:
        async with pool.connection() as conn:
            await conn.execute("select 1")

    task = asyncio.create_task(client())
    for _ in range(steps):
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    async with pool.connection(timeout=10) as conn:
        await door.pid(conn)
    await settled(pool, pool_size=1, pool_available=1, requests_waiting=0)
    await door.end()


def test_a_waiter_interrupted_by_a_signal_loses_nothing(dsn: str) -> None:
    """A signal handler that raises in a waiting thread takes it out of the queue."""

    class Interrupted(Exception):
        pass

    def interrupt(*_: object) -> None:
        raise Interrupted

    def strike() -> None:
        asyncio.run(settled(pool, requests_waiting=1))
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, interrupt)
    try:
        with ConnectionPool(dsn, min_size=1, open=True) as pool:
            held = pool.getconn()
            striker = threading.Thread(target=strike)
            striker.start()
            with pytest.raises(Interrupted):
                pool.getconn(timeout=20)
            striker.join()
            assert stat(pool, "requests_waiting") == 0
            pool.putconn(held)
            assert pool.getconn(timeout=0) is held
            pool.putconn(held)
    finally:
        signal.signal(signal.SIGUSR1, before)
