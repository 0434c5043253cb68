"""Leaks found and healed: what a program forgets to return comes back, and its holder is named."""

from __future__ import annotations

import asyncio
import gc
import re
import threading
from typing import Any

import pytest

from forebay import ConnectionPool

from .door import Door, eventually, settled, stat


def dropped(caplog: pytest.LogCaptureFixture) -> list[str]:
    """The warnings of connections that were dropped."""
    records = [r for r in caplog.records if r.name == "forebay" and r.levelname == "WARNING"]
    return [text for r in records if "without being returned" in (text := r.getMessage())]


def a_name(door: Door) -> str:
    """The name of the client that runs: its task's, or its thread's."""
    task = asyncio.current_task()
    assert task is not None
    return task.get_name() if door.is_async else "scenario-client"


async def enter(door: Door, lease: Any) -> Any:
    """Begin the block of a lease, whose end the caller is to see to."""
    return await door(door.method(lease, "enter"))


async def came_back(door: Door, pool: Any, *, idle: int = 1) -> None:
    """Wait until so many connections are idle; maintenance is told to look at once."""

    async def settled_now() -> bool:
        await door(pool.check)
        return stat(pool, "pool_available") == idle and not stat(pool, "requests_waiting")

    await eventually(settled_now, pool)


# Connections ---------------------------------------------------------------------------------


async def test_a_dropped_connection_is_replaced_and_its_holder_named(
    door: Door, caplog: pytest.LogCaptureFixture
) -> None:
    """Garbage collected while lent: a new session takes its place, one warning says whose."""
    pool = await door.open(min_size=1, name="leaky")
    conn = await door(pool.getconn)
    pid = conn.info.backend_pid
    del conn
    gc.collect()
    again = await door(pool.getconn, timeout=20)
    assert again.info.backend_pid != pid
    await door(pool.putconn, again)
    await came_back(door, pool)
    expected = f"leaky: a connection lent to {a_name(door)} was dropped without being returned"
    assert dropped(caplog) == [expected]
    assert stat(pool, "pool_size") == 1


async def test_the_warning_tells_the_line_where_lines_are_recorded(
    door: Door, caplog: pytest.LogCaptureFixture
) -> None:
    """With record_lines=True it says which line had acquired the connection."""
    pool = await door.open(min_size=1, record_lines=True)

    async def forget() -> None:
        await pool.getconn()

    def forget_in_a_thread() -> None:
        pool.getconn()

    await (forget() if door.is_async else asyncio.to_thread(forget_in_a_thread))
    gc.collect()
    await came_back(door, pool)
    (text,) = dropped(caplog)
    function = "forget" if door.is_async else "forget_in_a_thread"
    assert re.search(rf"returned.*test_leaks\.py:\d+ in {function}\b", text)


def test_a_thread_that_has_ended_is_still_named(dsn: str, caplog: pytest.LogCaptureFixture) -> None:
    """A thread that dies with its connection is the usual leak."""
    with ConnectionPool(dsn, min_size=1, name="leaky") as pool:
        pool.wait()
        thread = threading.Thread(target=pool.getconn, name="nightly-job")
        thread.start()
        thread.join()
        del thread
        gc.collect()
        with pool.connection(timeout=20):
            pass
    expected = "leaky: a connection lent to nightly-job was dropped without being returned"
    assert dropped(caplog) == [expected]


async def test_a_returned_connection_that_is_dropped_is_no_leak(
    door: Door, caplog: pytest.LogCaptureFixture
) -> None:
    """Blocks and putconn() leave nothing to report, whatever the program keeps or drops."""
    pool = await door.open(min_size=1)
    for _ in range(2):
        conn = await door(pool.getconn)
        await door(pool.putconn, conn)
        async with door.using(pool.connection()) as conn:
            await door.pid(conn)
        del conn
        gc.collect()
    await came_back(door, pool)
    assert dropped(caplog) == []
    assert stat(pool, "connections_num") == 1


# Leases --------------------------------------------------------------------------------------


async def test_a_lost_lease_gives_the_session_itself_back(
    door: Door, caplog: pytest.LogCaptureFixture
) -> None:
    """The block never ends, the connection is still referred to: it is rolled back, and lent."""
    pool = await door.open(min_size=1, name="leaky")
    lease = pool.connection()
    conn = await enter(door, lease)
    pid = conn.info.backend_pid
    await door(conn.execute, "create temp table undone ()")
    del lease
    gc.collect()
    await came_back(door, pool)
    again = await door(pool.getconn, timeout=20)
    assert again is conn
    assert again.info.backend_pid == pid
    cursor = await door(again.execute, "select to_regclass('undone') is null")
    assert await door(cursor.fetchone) == (True,)
    await door(again.rollback)
    await door(pool.putconn, again)
    assert len(dropped(caplog)) == 1
    assert f"lent to {a_name(door)} was dropped" in dropped(caplog)[0]


async def test_a_lease_that_is_lost_with_its_connection_gives_its_place_back(door: Door) -> None:
    """Neither is referred to any more: the pool is whole again all the same."""
    pool = await door.open(min_size=1)
    lease = pool.connection()
    await enter(door, lease)
    del lease
    gc.collect()
    await came_back(door, pool)
    async with door.using(pool.connection(timeout=20)) as conn:
        await door.pid(conn)


async def test_a_lease_that_is_lost_in_a_garbage_cycle_gives_its_place_back(door: Door) -> None:
    """Python drops weak references in a cycle first: the session is closed, and replaced."""
    pool = await door.open(min_size=1)
    cycle: list[Any] = []
    lease = pool.connection()
    cycle.extend([cycle, lease, await enter(door, lease)])
    del cycle, lease
    gc.collect()
    async with door.using(pool.connection(timeout=20)) as conn:
        await door.pid(conn)
    await settled(pool, pool_size=1, pool_available=1)


async def test_a_lease_that_was_never_entered_is_nothing(
    door: Door, caplog: pytest.LogCaptureFixture
) -> None:
    """connection() alone takes nothing, and leaves nothing behind."""
    pool = await door.open(min_size=1)
    pool.connection()
    gc.collect()
    await came_back(door, pool)
    assert dropped(caplog) == []
    assert stat(pool, "requests_num") == 0


async def test_a_lease_that_is_lost_after_an_early_return_takes_nothing_back(door: Door) -> None:
    """Its connection is another client's by now."""
    pool = await door.open(min_size=1)
    lease = pool.connection()
    conn = await enter(door, lease)
    await door(pool.putconn, conn)
    again = await door(pool.getconn)
    assert again is conn
    del lease
    gc.collect()
    await came_back(door, pool, idle=0)
    assert again._pool is pool
    await door(pool.putconn, again)


@pytest.mark.parametrize("committing", [False, True])
async def test_an_interrupt_at_the_end_of_a_block_loses_nothing(
    door: Door, committing: bool
) -> None:
    """What a signal handler raises in the lease's exit leaves the connection with the lease."""
    pool = await door.open(min_size=1)
    parts = pool._forebay
    unclean = parts.unclean
    interrupts: list[type[BaseException]] = [KeyboardInterrupt]

    def interrupted(conn: Any) -> Any:
        if interrupts:
            raise interrupts.pop()
        return unclean(conn)

    kept: list[Any] = []  # the variable that `with ... as` leaves behind

    async def in_a_task() -> None:
        async with pool.connection() as conn:
            kept.append(conn)
            if committing:
                await conn.execute("select 1")
            parts.unclean = interrupted

    def in_a_thread() -> None:
        with pool.connection() as conn:
            kept.append(conn)
            if committing:
                conn.execute("select 1")
            parts.unclean = interrupted

    with pytest.raises(KeyboardInterrupt):
        await in_a_task() if door.is_async else in_a_thread()
    gc.collect()
    await came_back(door, pool)
    async with door.using(pool.connection(timeout=20)) as conn:
        assert [conn] == kept
        await door.pid(conn)
    assert stat(pool, "connections_num") == 1


# Held for long -------------------------------------------------------------------------------


async def test_a_connection_that_is_held_for_long_is_reported_twice(
    door: Door, caplog: pytest.LogCaptureFixture
) -> None:
    """After leak_threshold seconds a warning names the holder; another when it comes back."""
    pool = await door.open(min_size=1, name="slow", leak_threshold=0.05)
    conn = await door(pool.getconn)

    def reports() -> list[str]:
        return [r.getMessage() for r in caplog.records if "leak_threshold" in r.getMessage()]

    async def reported(times: int) -> bool:
        await door(pool.check)
        return len(reports()) >= times

    await eventually(lambda: reported(1), caplog)
    await door(pool.check)
    await door(pool.putconn, conn)
    await eventually(lambda: reported(2), caplog)
    first, second = reports()
    name = re.escape(a_name(door))
    expected = rf"slow: a connection has been lent to {name} for \d\.\d s \(leak_threshold=0\.05\)"
    assert re.fullmatch(expected, first)
    assert re.match(rf"slow: a connection has come back from {name} after \d\.\d s", second)


async def test_connections_may_be_held_for_ever_by_default(
    door: Door, caplog: pytest.LogCaptureFixture
) -> None:
    """Without leak_threshold nobody is reported; with one, only who exceeds it."""
    for options in ({}, {"leak_threshold": 1000.0}):
        pool = await door.open(min_size=1, **options)
        conn = await door(pool.getconn)
        await door(pool.check)
        await door(pool.putconn, conn)
        await door(pool.check)
    assert caplog.records == []
