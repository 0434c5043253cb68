"""REFERENCE 1, open(), wait(), close(), closed, `with pool`, and a pool that is forgotten."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import threading
import weakref
from functools import partial
from typing import Any

import psycopg
import pytest

from forebay import ConnectionPool, PoolClosed, PoolTimeout

from .door import Admin, Door, eventually, settled, stat


async def test_open_and_close(any_door: Door, admin: Admin) -> None:
    """`closed` tells the state; after close() no session of the pool is left."""
    door = any_door
    pool = door.make(max_size=2, **door.least)
    assert pool.closed
    await door(pool.open)
    assert not pool.closed
    async with door.using(pool.connection()) as conn:
        await door.pid(conn)
    await door(pool.close)
    assert pool.closed
    await eventually(lambda: not admin.pids(door.application), pool)


async def test_the_context_manager_opens_and_closes(any_door: Door) -> None:
    """`with pool` gives the pool itself, open, and closes it at the end."""
    door = any_door
    pool = door.make(max_size=1, **door.least)
    async with door.using(pool) as entered:
        assert entered is pool
        assert not pool.closed
        async with door.using(pool.connection()) as conn:
            await door.pid(conn)
    assert pool.closed


async def test_opening_an_open_pool_does_nothing(any_door: Door) -> None:
    """open() again is harmless, also with wait=True."""
    door = any_door
    pool = await door.open(max_size=1, **door.least)
    await door(pool.open)
    await door(pool.open, wait=True)
    async with door.using(pool) as entered:
        assert entered is pool


async def test_a_pool_is_not_used_again_after_close(any_door: Door) -> None:
    """open(), the context manager, wait(), getconn(): all PoolClosed; close() again is quiet."""
    door = any_door
    pool = await door.open(max_size=1, name="gone", **door.least)
    await door(pool.close)
    await door(pool.close)
    with pytest.raises(PoolClosed):
        await door(pool.open)
    with pytest.raises(PoolClosed):
        await door(door.method(pool, "enter"))
    with pytest.raises(PoolClosed):
        await door(pool.wait)
    with pytest.raises(PoolClosed, match=r"^the pool 'gone' is already closed"):
        await door(pool.getconn)


async def test_a_pool_that_is_not_open_lends_nothing(any_door: Door) -> None:
    """Before open(), getconn() and wait() say that the pool is not open yet."""
    door = any_door
    pool = door.make(max_size=1, name="new", **door.least)
    with pytest.raises(PoolClosed, match=r"^the pool 'new' is not open yet"):
        await door(pool.getconn)
    with pytest.raises(PoolClosed, match=r"^the pool 'new' is not open yet"):
        await door(pool.wait)
    await door(pool.open)
    await door(pool.putconn, await door(pool.getconn))


async def test_open_with_wait_fills_the_pool(door: Door) -> None:
    """open(wait=True) returns when min_size connections are ready."""
    pool = door.make(min_size=3)
    await door(pool.open, wait=True, timeout=20)
    assert stat(pool, "pool_available") == 3


async def test_wait_returns_when_min_size_connections_are_ready(door: Door) -> None:
    """wait() does not return before the last of them; two waits at once both return."""
    gate = door.gate()
    pool = door.make(connection_class=gate.connection_class, min_size=2)
    await door(pool.open)
    waits = [door.client(pool.wait, timeout=20) for _ in range(2)]
    gate.let(1)
    await settled(pool, pool_available=1)
    assert not any(wait.done() for wait in waits)
    gate.open()
    await asyncio.gather(*waits)
    assert stat(pool, "pool_available") == 2


async def test_wait_counts_idle_connections(door: Door) -> None:
    """A lent connection is not ready: wait() does not return before it comes back."""
    pool = await door.open(min_size=1)
    conn = await door(pool.getconn)
    waits = [door.client(pool.wait, timeout=20) for _ in range(2)]
    await door(pool.putconn, conn)
    await asyncio.gather(*waits)
    conn = await door(pool.getconn)
    with pytest.raises(PoolTimeout):
        await door(pool.wait, timeout=0.1)
    await door(pool.putconn, conn)


@pytest.mark.parametrize("way", ["wait", "open"])
async def test_a_wait_that_fails_closes_the_pool(door: Door, refusing_dsn: str, way: str) -> None:
    """When the pool is not ready in time: PoolTimeout, and the pool is closed."""
    pool = door.make(refusing_dsn, min_size=1)
    if way == "wait":
        await door(pool.open)
    method = {"open": partial(pool.open, wait=True), "wait": pool.wait}[way]
    with pytest.raises(PoolTimeout, match=r"after 0\.30? sec"):
        await door(method, timeout=0.3)
    assert pool.closed


async def test_close_fails_the_waiting_clients(any_door: Door) -> None:
    """Who waits when the pool is closed gets PoolClosed at once."""
    door = any_door
    pool = await door.open(max_size=1, name="ending", **door.least)
    held = await door(pool.getconn)
    waiters = [door.client(pool.getconn, timeout=30) for _ in range(3)]
    await settled(pool, requests_waiting=3)
    await door(pool.close)
    outcomes = await asyncio.gather(*waiters, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [PoolClosed] * 3
    assert "the pool 'ending' is" in str(outcomes[0])
    await door(pool.putconn, held)


async def test_lent_connections_are_closed_when_they_come_back(any_door: Door) -> None:
    """close() leaves lent connections to their holders; putconn() then closes them, quietly."""
    door = any_door
    pool = await door.open(max_size=2, **door.least)
    async with door.using(pool.connection()) as leased:
        conn = await door(pool.getconn)
        await door(pool.close)
        assert not conn.closed
        await door.pid(conn)
        await door(pool.putconn, conn)
        assert conn.closed
        assert conn._pool is None
        await door.pid(leased)
    assert leased.closed


async def test_close_takes_a_timeout(any_door: Door) -> None:
    """close(timeout=0) does not wait for workers, and still closes."""
    pool = await any_door.open(max_size=1, **any_door.least)
    await any_door(pool.close, timeout=0)
    assert pool.closed


async def test_a_connection_that_arrives_after_close_is_closed(door: Door, admin: Admin) -> None:
    """A connect under way when the pool is closed leaves no session behind."""
    gate = door.gate()
    pool = door.make(connection_class=gate.connection_class, min_size=1)
    await door(pool.open)
    await gate.arrived(1)
    await door(pool.close, timeout=0.05)
    gate.open()
    await eventually(lambda: not gate.inside, gate)
    await eventually(lambda: not admin.pids(door.application), pool)


async def test_close_returns_when_all_is_closed(door: Door) -> None:
    """More idle connections than workers: none is left open behind the caller's back."""
    pool = await door.open(min_size=10, num_workers=1)
    conns = [await door(pool.getconn) for _ in range(10)]
    for conn in conns:
        await door(pool.putconn, conn)
    await door(pool.close)
    assert all(conn.closed for conn in conns)


async def test_closing_ends_the_workers(door: Door) -> None:
    """Threads and tasks of the pool carry its name; after close() none is left."""
    gate = door.gate()
    pool = door.make(min_size=1, name="workshop", connection_class=gate.connection_class)
    await door(pool.open)
    await gate.arrived(1)
    assert "workshop" in gate.openers[0]
    gate.open()
    await settled(pool, pool_available=1)
    await door(pool.close)
    await eventually(lambda: not workers_of("workshop"), pool)


def workers_of(name: str) -> list[str]:
    """The threads and the tasks that carry a pool's name."""
    threads, tasks = threading.enumerate(), asyncio.all_tasks()
    names = [t.name for t in threads] + [t.get_name() for t in tasks]
    return [n for n in names if name in n]


async def test_a_pool_that_is_forgotten_stops_its_workers(door: Door, admin: Admin) -> None:
    """An open pool that is garbage collected leaves no thread, no task and no session."""
    name = f"forgotten-{door.application}"
    pool = door.pool_class(door.dsn, min_size=2, open=False, name=name)
    await door(pool.open, wait=True)
    gone = weakref.ref(pool)
    del pool

    def collected() -> bool:
        gc.collect()
        return gone() is None and not admin.pids(door.application)

    await eventually(collected, gone)
    await eventually(lambda: not workers_of(name), name)


PROGRAMS = {
    "sync": """
        import forebay
        pool = forebay.ConnectionPool({dsn!r}, min_size=2, open=True)
        with pool.connection() as conn:
            conn.execute("select 1")
        """,
    "sync, not ready": """
        import forebay
        pool = forebay.ConnectionPool({dsn!r}, min_size=4, open=True)
        """,
    "sync, lent": """
        import forebay
        pool = forebay.ConnectionPool({dsn!r}, min_size=1, open=True)
        conn = pool.getconn()
        """,
    "null": """
        import forebay
        pool = forebay.NullConnectionPool({dsn!r}, open=True)
        with pool.connection() as conn:
            conn.execute("select 1")
        """,
    "async": """
        import asyncio, forebay
        async def main():
            global pool
            pool = forebay.AsyncConnectionPool({dsn!r}, min_size=2, open=False)
            await pool.open()
            async with pool.connection() as conn:
                await conn.execute("select 1")
        asyncio.run(main())
        """,
    "with an exception": """
        import forebay
        pool = forebay.ConnectionPool({dsn!r}, min_size=2, open=True)
        with pool.connection() as conn:
            conn.execute("select 1")
        raise SystemExit(3)
        """,
}


@pytest.mark.parametrize("kind", PROGRAMS)
def test_a_process_that_forgets_close_exits(dsn: str, kind: str) -> None:
    """Exit code and standard error are those of the program: the pool adds nothing."""
    lines = PROGRAMS[kind].format(dsn=dsn).strip().splitlines()
    program = "\n".join([lines[0], *(line[8:] for line in lines[1:])])
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (3 if "exception" in kind else 0, "")


def test_a_pool_outlives_the_thread_that_made_it(dsn: str) -> None:
    """A pool opened in one thread serves others after that thread's end."""
    pools: list[ConnectionPool[psycopg.Connection[Any]]] = []
    maker = threading.Thread(target=lambda: pools.append(ConnectionPool(dsn, open=True)))
    maker.start()
    maker.join()
    with pools[0] as pool, pool.connection() as conn:
        assert conn.execute("select 1").fetchone() == (1,)
