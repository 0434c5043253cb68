"""REFERENCE 1, `configure`, `check` and `reset`: when, on what, and with what end."""

from __future__ import annotations

import contextlib
from functools import partial
from typing import Any

import psycopg
import pytest
from psycopg.pq import TransactionStatus

from forebay import PoolTimeout

from .door import Admin, Door, Signal, eventually, settled, stat


class Refused(Exception):
    """What a callback of these tests raises."""


async def test_configure_is_called_once_with_each_new_connection(any_door: Door) -> None:
    """configure() sees a connection before any client does, and sees it once."""
    door = any_door
    seen: list[Any] = []

    async def configure(conn: Any) -> None:
        seen.append(conn)
        conn.prepare_threshold = 42

    pool = await door.open(max_size=2, configure=door.callback(configure), **door.least)
    one, two = await door(pool.getconn), await door(pool.getconn)
    assert set(seen) == {one, two}
    assert {one.prepare_threshold, two.prepare_threshold} == {42}
    for conn in (one, two):
        await door(pool.putconn, conn)
    if not door.is_null:
        await door(pool.putconn, await door(pool.getconn))
        assert len(seen) == 2


async def test_configure_may_use_the_connection(door: Door) -> None:
    """A configure() that commits what it did leaves its settings in the session."""

    async def configure(conn: Any) -> None:
        await door(conn.execute, "set statement_timeout to '12345ms'")
        await door(conn.commit)

    pool = await door.open(min_size=1, configure=door.callback(configure))
    async with door.using(pool.connection()) as conn:
        cursor = await door(conn.execute, "show statement_timeout")
        assert await door(cursor.fetchone) == ("12345ms",)


async def test_a_connection_that_configure_refuses_is_discarded(door: Door, admin: Admin) -> None:
    """An exception in configure() closes the connection; the pool makes another."""
    refused: list[Any] = []

    async def configure(conn: Any) -> None:
        if not refused:
            refused.append(conn)
            raise Refused

    pool = await door.open(min_size=1, configure=door.callback(configure))
    async with door.using(pool.connection()) as conn:
        assert conn is not refused[0]
        await door.pid(conn)
    await eventually(lambda: refused[0].closed, pool)
    assert stat(pool, "connections_errors") == 1
    await eventually(lambda: len(admin.pids(door.application)) == 1, pool)


async def test_a_connection_that_configure_leaves_in_a_transaction_is_discarded(
    door: Door, caplog: pytest.LogCaptureFixture
) -> None:
    """configure() must leave the connection idle, else another one is made."""
    seen: list[Any] = []

    async def configure(conn: Any) -> None:
        seen.append(conn)
        await door(conn.execute, "select 1")
        if len(seen) > 1:
            await door(conn.commit)

    pool = await door.open(min_size=1, configure=door.callback(configure), name="tidy")
    async with door.using(pool.connection()) as conn:
        assert conn is seen[1]
    await eventually(lambda: seen[0].closed, pool)
    said = [r.getMessage() for r in caplog.records if "configure" in r.getMessage()]
    assert said
    assert "INTRANS" in said[0]


async def test_check_is_called_at_each_acquire(any_door: Door) -> None:
    """check() sees the connection before the client has it, every time, and it is lent then."""
    door = any_door
    seen: list[Any] = []

    async def check(conn: Any) -> None:
        seen.append(conn)

    pool = await door.open(max_size=1, check=door.callback(check), **door.least)
    lent = []
    for _ in range(3):
        async with door.using(pool.connection()) as conn:
            lent.append(conn)
    assert seen == lent


async def test_a_failed_check_takes_the_next_idle_connection_at_once(door: Door) -> None:
    """No pause and no new connection while idle ones are at hand: five bad ones, then a good."""
    gate = door.gate()
    gate.open()
    bad: set[Any] = set()

    async def check(conn: Any) -> None:
        if conn in bad:
            raise Refused

    options = {"connection_class": gate.connection_class, "check": door.callback(check)}
    pool = await door.open(min_size=6, **options)
    lent = [await door(pool.getconn) for _ in range(6)]
    for conn in lent:
        await door(pool.putconn, conn)
    good = lent[0]  # returned first, so it is looked at last
    bad.update(lent[1:])
    gate.shut()
    assert await door(pool.getconn, timeout=5) is good
    await eventually(lambda: all(conn.closed for conn in bad), pool)
    gate.open()
    await door(pool.putconn, good)
    await settled(pool, pool_size=6, pool_available=6)


async def test_a_check_that_always_fails_ends_in_a_timeout(door: Door) -> None:
    """The client waits for a good connection no longer than its timeout; the pool lives on."""
    failing = [True]

    async def check(_: Any) -> None:
        if failing:
            raise Refused

    pool = await door.open(min_size=1, check=door.callback(check))
    with pytest.raises(PoolTimeout, match=r"^couldn't get a connection after 0\.20 sec"):
        await door(pool.getconn, timeout=0.2)
    failing.clear()
    async with door.using(pool.connection(timeout=20)) as conn:
        await door.pid(conn)
    await settled(pool, pool_size=1, pool_available=1)


async def test_check_finds_a_dead_connection(door: Door, admin: Admin) -> None:
    """With check_connection as check, no client gets a connection whose backend is gone."""
    pool = await door.open(min_size=3, check=door.pool_class.check_connection)
    await admin.kill(*admin.pids(door.application))
    for _ in range(3):
        async with door.using(pool.connection(timeout=20)) as conn:
            await door.pid(conn)


async def test_check_connection_leaves_the_transaction_state_as_it_was(door: Door) -> None:
    """Idle stays idle, an open transaction stays open, autocommit stays as set."""
    check = door.pool_class.check_connection
    pool = await door.open(min_size=1)
    async with door.using(pool.connection()) as conn:
        for autocommit in (False, True):
            await door(conn.set_autocommit, autocommit)
            await door(check, conn)
            assert conn.info.transaction_status == TransactionStatus.IDLE
            assert conn.autocommit is autocommit
        await door(conn.set_autocommit, False)
        await door(conn.execute, "select 1")
        await door(check, conn)
        assert conn.info.transaction_status == TransactionStatus.INTRANS


async def test_check_connection_raises_for_a_dead_connection(door: Door, admin: Admin) -> None:
    """The static method tells a dead connection by an OperationalError."""
    pool = await door.open(min_size=1)
    async with door.using(pool.connection()) as conn:
        await admin.kill(conn.info.backend_pid)
        with pytest.raises(psycopg.OperationalError):
            await door(door.pool_class.check_connection, conn)


async def test_reset_is_called_after_each_return(door: Door) -> None:
    """reset() sees the connection idle, after the client has gone, once for each return."""
    seen: list[tuple[Any, Any]] = []

    async def reset(conn: Any) -> None:
        seen.append((conn, conn.info.transaction_status))

    pool = await door.open(min_size=1, reset=door.callback(reset))
    for returns in range(1, 4):
        async with door.using(pool.connection()) as conn:
            await door(conn.execute, "select 1")
        await eventually(partial(counted, seen, returns), pool)
    assert seen == [(conn, TransactionStatus.IDLE)] * 3


def counted(things: list[Any], number: int) -> bool:
    """Tell whether so many things are there."""
    return len(things) == number


async def test_the_client_does_not_wait_for_reset(door: Door) -> None:
    """putconn() returns while reset() is still at work; the connection is lent after it."""
    begun, go_on = Signal(), Signal()

    async def reset(_: Any) -> None:
        begun.set()
        await go_on.wait()

    pool = await door.open(min_size=1, reset=door.callback(reset))
    conn = await door(pool.getconn)
    await door(pool.putconn, conn)
    await begun.wait()
    waiter = door.client(pool.getconn)
    await settled(pool, requests_waiting=1, pool_available=0)
    go_on.set()
    assert await waiter is conn
    await door(pool.putconn, conn)


async def test_resetting_does_not_hold_up_opening(door: Door) -> None:
    """With every reset stuck, a new connection still opens and serves the client."""
    go_on = Signal()

    async def reset(_: Any) -> None:
        await go_on.wait()

    callback = door.callback(reset)
    pool = await door.open(min_size=3, max_size=4, num_workers=3, reset=callback)
    lent = [await door(pool.getconn) for _ in range(3)]
    for conn in lent:
        await door(pool.putconn, conn)
    try:
        fresh = await door(pool.getconn, timeout=10)
    finally:
        go_on.set()
    assert fresh not in lent
    await door(pool.putconn, fresh)


@pytest.mark.parametrize("fault", ["raises", "leaves a transaction open"])
async def test_a_connection_that_reset_spoils_is_replaced(door: Door, fault: str) -> None:
    """An exception in reset(), or a transaction left open by it, costs the connection."""
    seen: list[Any] = []

    async def reset(conn: Any) -> None:
        seen.append(conn)
        if len(seen) == 1 and fault == "raises":
            raise Refused
        if len(seen) == 1:
            await door(conn.execute, "select 1")

    pool = await door.open(min_size=1, reset=door.callback(reset))
    async with door.using(pool.connection()) as conn:
        await door.pid(conn)
    async with door.using(pool.connection()) as other:
        assert other is not conn
        await door.pid(other)
    await eventually(lambda: conn.closed, pool)


async def test_reset_is_not_called_for_a_broken_connection(door: Door, admin: Admin) -> None:
    """A lost connection is not given to reset(); it is replaced."""
    seen: list[Any] = []

    async def reset(conn: Any) -> None:
        seen.append(conn)

    pool = await door.open(min_size=1, reset=door.callback(reset))
    with contextlib.suppress(psycopg.OperationalError):
        async with door.using(pool.connection()) as lost:
            await admin.kill(lost.info.backend_pid)
            await door(lost.execute, "select 1")
    async with door.using(pool.connection()) as conn:
        await door.pid(conn)
    await eventually(lambda: seen == [conn], pool)


async def test_an_interrupt_inside_check_propagates(door: Door) -> None:
    """KeyboardInterrupt is no failed check: it reaches the caller, and nothing is lost."""
    raised: list[bool] = []

    class Interrupt(KeyboardInterrupt):
        pass

    async def check(_: Any) -> None:
        if not raised:
            raised.append(True)
            raise Interrupt

    pool = await door.open(min_size=1, check=door.callback(check))

    async def client() -> str:
        try:
            await door(pool.getconn)
        except Interrupt:
            return "interrupted"
        return "lent"

    assert await client() == "interrupted"
    async with door.using(pool.connection(timeout=10)) as conn:
        await door.pid(conn)
    await settled(pool, pool_size=1, pool_available=1)


@pytest.mark.parametrize("option", ["configure", "check", "reset"])
async def test_an_async_pool_takes_a_sync_callback_or_says_why_not(dsn: str, option: str) -> None:
    """A plain function is called as it is, or refused with a TypeError that names it."""
    door = Door("async", dsn)
    seen: list[Any] = []
    try:
        pool = await door.open(min_size=1, **{option: seen.append})
    except TypeError as error:
        assert option in str(error)  # noqa: PT017
        return
    async with pool.connection() as conn:
        await door.pid(conn)
    await eventually(lambda: seen == [conn], pool)
    await door.end()
