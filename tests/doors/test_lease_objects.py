"""A lease as an object: entered twice, left twice, left elsewhere, left late, handed on, lost."""

from __future__ import annotations

import asyncio
import gc
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, suppress
from itertools import count
from os import getpid
from typing import Any

import psycopg
import pytest
from psycopg.pq import TransactionStatus

from forebay import AsyncConnectionPool, ConnectionPool, PoolDeadlock, PoolTimeout

from .door import Door, Signal, eventually, run_at_once, stat
from .flavours import FLAVOURS, Flavour, execute

_serial = count(1)

NONE = (None, None, None)


class Trouble(Exception):
    """An application's own error."""


@pytest.fixture
def numbers(dsn: str) -> Iterator[Callable[[], list[int]]]:
    """What was committed to the table `numbers.__name__`, in order."""
    table = f"leased_{getpid()}_{next(_serial)}"
    with psycopg.Connection.connect(dsn, autocommit=True) as conn:
        conn.execute(f"create unlogged table {table} (n int)")

        def read() -> list[int]:
            return [n for (n,) in conn.execute(f"select n from {table} order by n")]

        read.__name__ = table
        yield read
        conn.execute("set lock_timeout = '5s'")
        conn.execute(f"drop table {table}")


async def enter(door: Door, lease: Any) -> Any:
    """Begin the block of a lease."""
    return await door(door.method(lease, "enter"))


async def leave(door: Door, lease: Any, *error: Any) -> Any:
    """End the block of a lease."""
    return await door(door.method(lease, "exit"), *(error or NONE))


async def write(door: Door, conn: Any, numbers: Any, n: int) -> None:
    """Add a number in the connection's transaction."""
    await door(conn.execute, f"insert into {numbers.__name__} values (%s)", [n])


# Entered twice ---------------------------------------------------------------------------------


async def test_a_lease_entered_again_inside_its_block_is_refused(
    any_door: Door, numbers: Callable[[], list[int]]
) -> None:
    """The outer block keeps its connection and its work, and commits."""
    door = any_door
    pool = await door.open(max_size=2, **door.least)
    lease = pool.connection()
    async with door.using(lease) as conn:
        await write(door, conn, numbers, 1)
        with pytest.raises(RuntimeError, match="entered already"):
            await enter(door, lease)
        assert conn.info.transaction_status == TransactionStatus.INTRANS
        await write(door, conn, numbers, 2)
    assert numbers() == [1, 2]
    assert conn._pool is None
    one, two = pool.connection(timeout=20), pool.connection(timeout=20)
    async with door.using(one) as first, door.using(two) as second:
        assert first is not second


async def test_a_lease_that_another_client_has_entered_is_refused(
    door: Door, numbers: Callable[[], list[int]]
) -> None:
    """The first one keeps its connection; the second may enter when the first has left."""
    pool = await door.open(min_size=2)
    lease = pool.connection()
    conn = await enter(door, lease)
    await write(door, conn, numbers, 1)
    with pytest.raises(RuntimeError, match="entered already"):
        await asyncio.create_task(enter(door, lease))
    assert stat(pool, "pool_available") == 1
    await leave(door, lease)
    assert numbers() == [1]
    again = await asyncio.create_task(enter(door, lease))
    assert again._pool is pool
    await leave(door, lease)
    assert stat(pool, "pool_available") == 2


async def test_a_lease_whose_first_client_still_waits_is_refused(door: Door) -> None:
    """It is taken from the moment somebody enters it, with a connection or without."""
    pool = await door.open(min_size=1)
    lease = pool.connection(timeout=20)
    async with door.using(pool.connection()) as conn:
        first = asyncio.create_task(enter(door, lease))
        await eventually(lambda: stat(pool, "requests_waiting") == 1, pool)
        with pytest.raises(RuntimeError, match="entered already"):
            await enter(door, lease)
    assert await first is conn
    await leave(door, lease)
    assert stat(pool, "pool_available") == 1


@pytest.mark.parametrize("name", FLAVOURS)
def test_of_threads_that_enter_a_lease_at_once_one_does(name: str, dsn: str) -> None:
    """The others are refused; none of them shares, or loses, its connection."""
    flavour = Flavour(name, dsn, "lease-objects")
    pool = flavour.make()
    barrier = threading.Barrier(3)

    def compete(lease: Any) -> object:
        barrier.wait(20)
        conn = None
        with suppress(RuntimeError):
            conn = lease.__enter__()
        barrier.wait(20)
        if conn is not None:
            lease.__exit__(None, None, None)
        return conn

    with ThreadPoolExecutor(3) as threads:
        for _ in range(40 if flavour.keeps else 8):
            leases = [flavour.block(pool)] * 3
            winners = [conn for conn in threads.map(compete, leases) if conn is not None]
            assert len(winners) == 1
    if flavour.keeps:
        assert stat(pool, "pool_available") == 2
    flavour.close(pool)


async def test_a_lease_may_be_entered_again_when_it_was_left(any_door: Door) -> None:
    """After a block, after one that failed, and after a time-out at its entry."""
    door = any_door
    pool = await door.open(max_size=1, **door.least)
    lease = pool.connection(timeout=20)
    for error in (None, Trouble()):
        with suppress(Trouble):
            async with door.using(lease) as conn:
                assert await door.pid(conn)
                if error is not None:
                    raise error
    hasty = pool.connection(timeout=0)
    async with door.using(lease):
        with pytest.raises(PoolTimeout):
            await enter(door, hasty)
    async with door.using(lease):
        pass
    if not door.is_null:
        async with door.using(hasty) as conn:
            assert conn._pool is pool


# A decorator -----------------------------------------------------------------------------------


async def test_a_lease_is_a_decorator(door: Door) -> None:
    """Each call runs in a block of its own, also one inside another; names and results stay."""
    pool = await door.open(min_size=2)
    seen: list[int] = []

    async def work(depth: int, *, add: int = 0) -> int:
        """Count."""
        seen.append(stat(pool, "pool_available"))
        return add + (await call(depth - 1) if depth else 40)

    if door.is_async:
        decorated = pool.connection()(work)
        call = decorated
    else:
        decorated = pool.connection()(lambda *args, **names: run_at_once(work(*args, **names)))

        async def call(depth: int, add: int = 0) -> int:
            return int(decorated(depth, add=add))

    assert await door(decorated, 1, add=2) == 42
    assert seen == [1, 0]
    assert stat(pool, "pool_available") == 2
    if door.is_async:
        assert (decorated.__name__, decorated.__doc__) == ("work", "Count.")


@pytest.mark.parametrize("fails", [False, True])
async def test_a_decorated_function_commits_or_rolls_back(
    door: Door, numbers: Callable[[], list[int]], fails: bool
) -> None:
    """As the block does that it stands for."""
    pool = await door.open(min_size=1)
    lent: list[Any] = []
    base = pool.getconn

    def noting(timeout: float | None = None) -> Any:
        lent.append(base(timeout))
        return lent[-1]

    async def noting_async(timeout: float | None = None) -> Any:
        lent.append(await base(timeout))
        return lent[-1]

    pool.getconn = noting_async if door.is_async else noting
    insert = f"insert into {numbers.__name__} values (1)"

    def work() -> None:
        lent[-1].execute(insert)
        if fails:
            raise Trouble

    async def work_async() -> None:
        await lent[-1].execute(insert)
        if fails:
            raise Trouble

    decorated = pool.connection()(work_async if door.is_async else work)
    outcomes: list[object] = []
    for _ in range(2):
        outcomes += await asyncio.gather(door(decorated), return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [Trouble if fails else type(None)] * 2
    assert numbers() == ([] if fails else [1, 1])


# A new holder ----------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["clean", "by an error"])
@pytest.mark.parametrize("holds", ["a lease", "getconn"])
async def test_a_lease_that_was_returned_early_takes_nothing_from_the_next_holder(
    door: Door, numbers: Callable[[], list[int]], holds: str, end: str
) -> None:
    """At its end it neither commits, nor rolls back, nor returns what is another's by then."""
    pool = await door.open(min_size=1)
    lease, next_lease = pool.connection(), pool.connection()
    conn = await enter(door, lease)
    await door(pool.putconn, conn)
    again = await (enter(door, next_lease) if holds == "a lease" else door(pool.getconn))
    assert again is conn
    await write(door, again, numbers, 1)
    trouble = Trouble()
    await leave(door, lease, *(NONE if end == "clean" else (Trouble, trouble, None)))
    assert numbers() == []
    assert again.info.transaction_status == TransactionStatus.INTRANS
    assert (again._pool, stat(pool, "pool_available")) == (pool, 0)
    await leave(door, lease)  # twice is not more
    assert (again._pool, stat(pool, "pool_available")) == (pool, 0)
    await door(again.commit)
    await (leave(door, next_lease) if holds == "a lease" else door(pool.putconn, again))
    assert numbers() == [1]
    assert stat(pool, "pool_available") == 1


@pytest.mark.parametrize("action", ["commit", "rollback"])
async def test_an_end_that_is_delayed_does_not_return_what_has_a_new_holder(
    door: Door, action: str
) -> None:
    """Its commit takes long; meanwhile the connection was returned by hand, and lent again."""
    begun, go_on = Signal(), Signal()

    async def wait() -> None:
        if not begun.is_set():
            begun.set()
            await go_on.wait()

    def blocking(self: Any) -> None:
        run_at_once(wait())
        getattr(door.connection_class, action)(self)

    async def suspended(self: Any) -> None:
        await wait()
        await getattr(door.connection_class, action)(self)

    body = {action: suspended if door.is_async else blocking}
    kind = type("Slow", (door.connection_class,), body)
    pool = await door.open(min_size=1, connection_class=kind)
    lease = pool.connection()
    conn = await enter(door, lease)
    await door(conn.execute, "select 1")
    error = NONE if action == "commit" else (Trouble, Trouble(), None)
    end = asyncio.create_task(leave(door, lease, *error))
    await begun.wait()
    await door(pool.putconn, conn)
    next_lease = pool.connection(timeout=20)
    again = await enter(door, next_lease)
    assert again is conn
    go_on.set()
    await end
    assert (again._pool, stat(pool, "pool_available")) == (pool, 0)
    with pytest.raises(PoolTimeout):
        await door(pool.getconn, timeout=0)
    await door(again.execute, "select 1")
    await leave(door, next_lease)
    assert stat(pool, "pool_available") == 1


async def test_a_lease_that_was_left_is_not_left_again(
    door: Door, numbers: Callable[[], list[int]]
) -> None:
    """A second end does nothing: the connection is the next holder's."""
    pool = await door.open(min_size=1)
    lease = pool.connection()
    await leave(door, lease)  # not entered at all
    await enter(door, lease)
    await leave(door, lease)
    async with door.using(pool.connection()) as conn:
        await write(door, conn, numbers, 1)
        await leave(door, lease)
        await leave(door, lease, Trouble, Trouble(), None)
        assert (conn._pool, stat(pool, "pool_available")) == (pool, 0)
        assert conn.info.transaction_status == TransactionStatus.INTRANS
    assert numbers() == [1]
    assert stat(pool, "pool_available") == 1


@pytest.mark.parametrize("unclean", [False, True], ids=["clean", "in-a-transaction"])
async def test_a_task_that_the_collector_ends_in_its_block_takes_nothing_back(
    dsn: str,
    numbers: Callable[[], list[int]],
    monkeypatch: pytest.MonkeyPatch,
    unclean: bool,
) -> None:
    """Its connection comes back rolled back, once, and stays with the next holder."""
    monkeypatch.setattr(sys, "unraisablehook", lambda _: None)  # what Python says of such tasks
    asyncio.get_running_loop().set_exception_handler(lambda *_: None)
    async with AsyncConnectionPool(dsn, min_size=1) as pool:
        await pool.wait()
        entered = asyncio.Event()

        async def hold_for_ever() -> None:
            async with pool.connection() as conn:
                if unclean:
                    await conn.execute(f"insert into {numbers.__name__} values (1)")
                entered.set()
                await asyncio.get_running_loop().create_future()  # which nobody keeps

        asyncio.create_task(hold_for_ever())  # noqa: RUF006
        await entered.wait()
        gc.collect()
        async with pool.connection(timeout=10) as conn:
            await conn.execute(f"insert into {numbers.__name__} values (2)")
            for _ in range(10):
                await asyncio.sleep(0)
            gc.collect()
            lender: Any = conn._pool
            assert (lender, stat(pool, "pool_available")) == (pool, 0)
            with pytest.raises(PoolTimeout):
                await pool.getconn(timeout=0)
        assert numbers() == [2]
        assert (stat(pool, "pool_available"), stat(pool, "pool_size")) == (1, 1)


async def test_a_connection_that_a_dead_task_keeps_locked_is_not_lent_on(
    dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A task that the collector ends awaits its connection once more: nobody could use it then."""
    monkeypatch.setattr(sys, "unraisablehook", lambda _: None)  # what Python says of such tasks
    asyncio.get_running_loop().set_exception_handler(lambda *_: None)
    async with AsyncConnectionPool(dsn, min_size=1) as pool:
        await pool.wait()
        entered = asyncio.Event()

        async def clean_up_at_last() -> None:
            async with pool.connection() as conn:
                entered.set()
                try:
                    await asyncio.get_running_loop().create_future()
                finally:
                    await conn.commit()

        asyncio.create_task(clean_up_at_last())  # noqa: RUF006
        await entered.wait()
        gc.collect()
        async with asyncio.timeout(10), pool.connection(timeout=10) as conn:
            await conn.execute("select 1")


# Left elsewhere --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FLAVOURS)
def test_a_block_that_is_handed_on_by_pop_all_ends_where_it_was_handed(
    name: str, dsn: str, numbers: Callable[[], list[int]]
) -> None:
    """An `ExitStack` begins it in one thread and gives it to another, which ends it."""
    flavour = Flavour(name, dsn, "lease-objects")
    pool = flavour.make()
    with ExitStack() as stack:
        conn = stack.enter_context(flavour.block(pool))
        execute(conn, f"insert into {numbers.__name__} values (1)")
        handed = stack.pop_all()
    assert numbers() == []
    execute(conn, f"insert into {numbers.__name__} values (2)")
    del conn
    with ThreadPoolExecutor(1) as other:
        other.submit(handed.close).result(20)
    assert numbers() == [1, 2]
    with flavour.block(pool), flavour.block(pool):
        pass
    flavour.close(pool)


async def test_a_block_is_begun_by_one_client_and_ended_by_another(
    door: Door, numbers: Callable[[], list[int]]
) -> None:
    """As frameworks do that run the halves of a generator in threads, or tasks, of their own."""
    pool = await door.open(min_size=1)
    lease = pool.connection()
    conn = await asyncio.create_task(enter(door, lease))
    await asyncio.create_task(write(door, conn, numbers, 1))
    gc.collect()
    await asyncio.create_task(door(pool.check))  # what was dropped would be taken back here
    assert (conn._pool, stat(pool, "pool_available")) == (pool, 0)
    await asyncio.create_task(leave(door, lease))
    assert numbers() == [1]
    assert stat(pool, "pool_available") == 1


# Who waits for whom ----------------------------------------------------------------------------


async def test_queueing_is_cheap_where_all_tasks_have_one_name(
    dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody goes through all tasks of the loop for each client that queues."""
    looks = count()
    all_tasks = asyncio.all_tasks

    def counted(loop: Any = None) -> Any:
        next(looks)
        return all_tasks(loop)

    monkeypatch.setattr(asyncio, "all_tasks", counted)
    async with AsyncConnectionPool(dsn, min_size=2, timeout=20) as pool:
        await pool.wait()

        async def client() -> None:
            async with pool.connection():
                await asyncio.sleep(0)

        tasks = [asyncio.create_task(client(), name="client") for _ in range(200)]
        await asyncio.gather(*tasks)
        assert stat(pool, "requests_queued") > 100
    assert next(looks) <= 3


async def test_a_deadlock_of_tasks_of_one_name_is_found(dsn: str) -> None:
    """One of them is refused, the other is served."""
    async with AsyncConnectionPool(dsn, min_size=2, timeout=20) as pool:
        await pool.wait()
        held = asyncio.Barrier(2)

        async def nested() -> None:
            async with pool.connection() as conn:
                await held.wait()
                async with pool.connection() as other:
                    assert other is not conn

        tasks = [asyncio.create_task(nested(), name="same") for _ in range(2)]
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        assert {type(outcome) for outcome in outcomes} == {PoolDeadlock, type(None)}
        assert stat(pool, "pool_available") == 2


async def test_a_task_that_waits_is_not_taken_for_a_holder_of_its_name(dsn: str) -> None:
    """One holds and works, the other waits: there is no deadlock, though both are named alike."""
    async with AsyncConnectionPool(dsn, min_size=1, timeout=20) as pool:
        await pool.wait()
        done = asyncio.Event()

        async def hold() -> None:
            async with pool.connection() as conn:
                await done.wait()
                await conn.execute("select 1")

        async def ask() -> Any:
            async with pool.connection() as conn:
                return conn

        holder = asyncio.create_task(hold(), name="same")
        await eventually(lambda: stat(pool, "pool_available") == 0, pool)
        asking = [asyncio.create_task(ask(), name="same") for _ in range(3)]
        await eventually(lambda: stat(pool, "requests_waiting") == 3, pool)
        await pool.check()  # maintenance looks for deadlocks
        assert not any(task.done() for task in asking)
        done.set()
        await asyncio.gather(holder, *asking)
        assert stat(pool, "requests_errors") == 0


def test_a_dispatcher_that_hands_its_blocks_to_workers_is_in_no_deadlock(dsn: str) -> None:
    """Its variables still name the connection that a worker has, and will return."""
    with ConnectionPool(dsn, min_size=1, timeout=20) as pool, ThreadPoolExecutor(2) as workers:
        pool.wait()
        waits = threading.Event()

        def job(conn: Any, stack: ExitStack) -> int:
            with stack:
                run_at_once(eventually(lambda: stat(pool, "requests_waiting") or waits.is_set()))
                pool.check()
                return int(conn.execute("select 1").fetchone()[0])

        jobs = []
        for _ in range(3):
            stack = ExitStack()
            conn = stack.enter_context(pool.connection())
            jobs.append(workers.submit(job, conn, stack))
        waits.set()
        assert [job.result(20) for job in jobs] == [1, 1, 1]
        assert stat(pool, "requests_errors") == 0


async def test_a_dispatcher_that_hands_its_blocks_to_tasks_is_in_no_deadlock(dsn: str) -> None:
    """The same with an `AsyncExitStack`."""
    async with AsyncConnectionPool(dsn, min_size=1, timeout=20) as pool:
        await pool.wait()
        waits = asyncio.Event()

        async def job(conn: Any, stack: AsyncExitStack) -> None:
            async with stack:
                await eventually(lambda: stat(pool, "requests_waiting") or waits.is_set())
                await pool.check()
                await conn.execute("select 1")

        async with asyncio.TaskGroup() as jobs:
            for _ in range(3):
                stack = AsyncExitStack()
                conn = await stack.enter_async_context(pool.connection())
                jobs.create_task(job(conn, stack))
            waits.set()
        assert stat(pool, "requests_errors") == 0


@asynccontextmanager
async def in_time(seconds: float) -> AsyncIterator[None]:
    """A framework's own time limit."""
    async with asyncio.timeout(seconds):
        yield


async def by_timeout(pool: Any) -> Any:
    """Ask within `asyncio.timeout()`."""
    async with asyncio.timeout(0.2), pool.connection():
        raise AssertionError("lent twice")


async def by_wait_for(pool: Any) -> Any:
    """Ask within `asyncio.wait_for()`."""
    await asyncio.wait_for(pool.getconn(), 0.2)


async def by_a_manager(pool: Any) -> Any:
    """Ask within a context manager that has a time limit inside."""
    async with in_time(0.2), pool.connection():
        raise AssertionError("lent twice")


@pytest.mark.parametrize("ask", [by_timeout, by_wait_for, by_a_manager])
async def test_a_wait_that_ends_from_outside_is_in_no_deadlock(
    dsn: str, ask: Callable[[Any], Any]
) -> None:
    """Its task goes on at that time, and returns what it holds."""
    async with AsyncConnectionPool(dsn, min_size=1, timeout=20) as pool:
        await pool.wait()
        async with pool.connection() as conn:
            with pytest.raises(TimeoutError) as caught:
                await ask(pool)
            assert not isinstance(caught.value, PoolTimeout)
            await conn.execute("select 1")
        assert stat(pool, "pool_available") == 1


async def test_a_time_limit_around_both_blocks_ends_both(dsn: str) -> None:
    """The holder itself is limited: then nobody is stuck for good."""
    async with AsyncConnectionPool(dsn, min_size=1, timeout=20) as pool:
        await pool.wait()

        async def nest() -> None:
            async with asyncio.timeout(0.2), pool.connection() as conn, pool.connection() as other:
                raise AssertionError(f"lent twice: {conn} {other}")

        with pytest.raises(TimeoutError) as caught:
            await nest()
        assert not isinstance(caught.value, PoolTimeout)
        await eventually(lambda: stat(pool, "pool_available") == 1, pool)
