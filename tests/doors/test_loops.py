"""Event loops that come, stop, go on and go: an async pool works in the one that asks."""

from __future__ import annotations

import asyncio
import gc
import socket
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import count
from time import monotonic, sleep
from typing import Any

import psycopg
import pytest
from psycopg import conninfo

from forebay import AsyncConnectionPool, AsyncNullConnectionPool, PoolClosed, PoolTimeout

from .door import Admin, eventually, run_at_once, stat

_serial = count(1)


@pytest.fixture
def application() -> str:
    """A name for the sessions of one test."""
    return f"loops-{next(_serial)}"


@pytest.fixture
def own_dsn(dsn: str, application: str) -> str:
    """The server's connection string, with the test's own application name."""
    return conninfo.make_conninfo(dsn, application_name=application)


@pytest.fixture
def sessions(admin: Admin, application: str) -> Callable[[], set[int]]:
    """The process ids of the test's own sessions on the server."""
    return lambda: admin.pids(application)


@pytest.fixture
def ignored(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What Python could not raise anywhere: warnings of finalizers, which are errors here."""
    seen: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda args: seen.append(args.exc_value))
    return seen


@pytest.fixture
def loops() -> Iterator[Callable[[], asyncio.AbstractEventLoop]]:
    """Makes event loops, which are closed at the end."""
    made: list[asyncio.AbstractEventLoop] = []

    def make() -> asyncio.AbstractEventLoop:
        made.append(asyncio.new_event_loop())
        return made[-1]

    yield make
    for loop in made:
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()


def gone(sessions: Callable[[], set[int]]) -> None:
    """Wait until the server has none of these sessions any more."""
    run_at_once(eventually(lambda: not sessions(), "sessions that are still open"))


def only(sessions: Callable[[], set[int]], these: set[int]) -> bool:
    """Whether the server has no sessions but these."""
    return sessions() <= these


async def use(pool: Any) -> int:
    """One query in a block of its own; the session it was made in."""
    async with pool.connection(timeout=10) as conn:
        cursor = await conn.execute("select pg_backend_pid()")
        (pid,) = await cursor.fetchone()
        return int(pid)


async def use_both(pool: Any) -> set[int]:
    """The sessions of a pool of two."""
    async with pool.connection(timeout=10) as one, pool.connection(timeout=10) as two:
        return {one.info.backend_pid, two.info.backend_pid}


async def opened(pool: Any) -> set[int]:
    """Open the pool, and use both its connections."""
    await pool.open(wait=True)
    return await use_both(pool)


class Held(psycopg.AsyncConnection[Any]):
    """Its second attempt to connect never ends by itself."""

    attempts: Any
    held: Any

    @classmethod
    async def connect(cls, conninfo: str = "", **arguments: Any) -> Any:
        if next(cls.attempts) == 1:
            cls.held.set()
            await asyncio.Event().wait()
        return await super().connect(conninfo, **arguments)


# One loop after the other ----------------------------------------------------------------------


def test_a_pool_whose_loop_is_closed_works_in_the_next(
    own_dsn: str, sessions: Callable[[], set[int]]
) -> None:
    """By new sessions; of the old ones none stays open on the server."""
    pool = AsyncConnectionPool(own_dsn, min_size=2, open=False)
    before = asyncio.run(opened(pool))
    for _ in range(3):
        after = asyncio.run(use_both(pool))
        assert not before & after
        run_at_once(eventually(partial(only, sessions, after), "old sessions"))
        before = after
    asyncio.run(pool.close())
    gone(sessions)


def test_a_null_pool_works_in_one_loop_after_the_other(
    own_dsn: str, sessions: Callable[[], set[int]]
) -> None:
    """It has nothing to take along, and leaves nothing open."""
    pool = AsyncNullConnectionPool(own_dsn, max_size=2, open=False)
    asyncio.run(pool.open())
    assert len({asyncio.run(use(pool)) for _ in range(3)}) == 3
    gone(sessions)
    asyncio.run(pool.close())


def test_a_pool_goes_back_and_forth_between_loops_that_stop(
    own_dsn: str,
    sessions: Callable[[], set[int]],
    loops: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    """While a loop only stands still its idle sessions are lent on, here and there."""
    pool = AsyncConnectionPool(own_dsn, min_size=2, open=False)
    here, there = loops(), loops()
    both = here.run_until_complete(opened(pool))
    for loop in (there, here, there, there, here):
        assert loop.run_until_complete(use_both(pool)) == both
    assert sessions() == both
    there.run_until_complete(pool.close())
    gone(sessions)


def test_each_thread_may_have_a_loop_of_its_own_in_turn(
    own_dsn: str, sessions: Callable[[], set[int]]
) -> None:
    """As a program without a loop does that calls coroutines from its threads, one by one."""

    def to_sync(function: Callable[..., Coroutine[Any, Any, Any]]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            with ThreadPoolExecutor(1) as thread:
                return thread.submit(lambda: asyncio.run(function(*arguments))).result(20)

        return call

    pool = AsyncConnectionPool(own_dsn, min_size=2, open=False)
    to_sync(opened)(pool)
    for _ in range(4):
        assert to_sync(use)(pool) in sessions()
    run_at_once(eventually(lambda: len(sessions()) <= 2, "old sessions"))
    to_sync(pool.close)()
    gone(sessions)


def test_a_loop_that_ended_before_its_maintenance_was_due_strands_nobody(
    own_dsn: str, sessions: Callable[[], set[int]]
) -> None:
    """That is overdue in the next loop, where the pool may not try to connect at once."""
    kind: Any = type("OwnHeld", (Held,), {"attempts": count(1), "held": asyncio.Event()})
    pool: Any = AsyncConnectionPool(own_dsn, connection_class=kind, min_size=1, open=False)

    async def begin() -> None:
        await pool.open()
        await kind.held.wait()

    asyncio.run(begin())  # which ends by cancelling the attempt
    core = pool._core
    while monotonic() <= core.due:
        sleep(0.01)
    core.retry_at = monotonic() + 0.2  # as after a few failures
    assert asyncio.run(use(pool)) in sessions()
    asyncio.run(pool.close())
    gone(sessions)


@pytest.mark.parametrize("closes", ["before", "after"])
def test_a_connection_comes_back_in_another_loop(
    own_dsn: str, sessions: Callable[[], set[int]], closes: str
) -> None:
    """Lent in a loop that has ended: its session ends, another one takes its place."""
    pool = AsyncConnectionPool(own_dsn, min_size=1, open=False)

    async def lend() -> Any:
        await pool.open(wait=True)
        return await pool.getconn()

    conn = asyncio.run(lend())
    if closes == "before":
        asyncio.run(pool.close())
        asyncio.run(pool.putconn(conn))
    else:
        old = conn.info.backend_pid
        asyncio.run(pool.putconn(conn))
        assert asyncio.run(use(pool)) != old
        asyncio.run(pool.close())
    del conn
    gone(sessions)


def test_a_lease_that_its_loop_has_left_open_gives_its_place_back(
    own_dsn: str, sessions: Callable[[], set[int]], ignored: list[Any]
) -> None:
    """A loop that ends cancels its tasks: their blocks end, and the next loop has them all."""
    pool = AsyncConnectionPool(own_dsn, min_size=2, open=False)

    async def leave_tasks_behind() -> None:
        await pool.open(wait=True)
        entered = asyncio.Barrier(3)

        async def hold() -> None:
            async with pool.connection() as conn:
                await conn.execute("select 1")
                await entered.wait()
                await asyncio.Event().wait()

        tasks = [asyncio.create_task(hold()) for _ in range(2)]
        await entered.wait()
        del tasks

    asyncio.run(leave_tasks_behind())
    assert len(asyncio.run(use_both(pool))) == 2
    asyncio.run(pool.close())
    gc.collect()
    gone(sessions)
    assert ignored == []


@pytest.mark.parametrize("ended", ["closed", "stopped"])
def test_close_in_another_loop_leaves_no_session(
    own_dsn: str,
    sessions: Callable[[], set[int]],
    loops: Callable[[], asyncio.AbstractEventLoop],
    ended: str,
    ignored: list[Any],
) -> None:
    """Whether the loop that had opened them is closed or only stopped."""
    kept: list[Any] = []
    pool = AsyncConnectionPool(own_dsn, min_size=2, configure=kept.append, open=False)
    if ended == "closed":
        asyncio.run(opened(pool))
    else:
        loops().run_until_complete(opened(pool))
    asyncio.run(pool.close())
    gone(sessions)
    assert all(conn.closed for conn in kept)
    kept.clear()
    with pytest.raises(PoolClosed):
        asyncio.run(use(pool))
    del pool
    gc.collect()
    assert ignored == []


# Two loops at once -----------------------------------------------------------------------------


@pytest.fixture
def running() -> Iterator[asyncio.AbstractEventLoop]:
    """A loop that runs, in a thread of its own."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    yield loop
    loop.call_soon_threadsafe(loop.stop)
    thread.join(20)
    loop.close()


async def enter(pool: Any) -> None:
    """Begin a block."""
    async with pool.connection(timeout=5):
        raise AssertionError("lent to two loops")


CALLS: dict[str, Callable[[Any], Any]] = {
    "connection": enter,
    "getconn": lambda pool: pool.getconn(),
    "wait": lambda pool: pool.wait(),
    "check": lambda pool: pool.check(),
    "drain": lambda pool: pool.drain(),
    "resize": lambda pool: pool.resize(3),
    "close": lambda pool: pool.close(),
}


@pytest.mark.parametrize("call", CALLS)
def test_two_loops_that_run_at_once_are_refused(
    own_dsn: str,
    sessions: Callable[[], set[int]],
    running: asyncio.AbstractEventLoop,
    call: str,
) -> None:
    """The second one is told; in its own loop the pool goes on as if nothing had been."""

    def there(work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, running).result(20)

    pool = AsyncConnectionPool(own_dsn, min_size=2, open=False)
    both = there(opened(pool))

    async def intrude() -> None:
        await CALLS[call](pool)

    with pytest.raises(RuntimeError, match="another event loop that runs now"):
        asyncio.run(intrude())
    assert there(use_both(pool)) == both
    assert (stat(pool, "pool_available"), stat(pool, "pool_size")) == (2, 2)
    there(pool.close())
    gone(sessions)


def test_a_connection_that_another_running_loop_returns_stays_with_its_holder(
    own_dsn: str, running: asyncio.AbstractEventLoop
) -> None:
    """The return is refused; in its own loop it is taken."""

    def there(work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, running).result(20)

    pool = AsyncConnectionPool(own_dsn, min_size=1, open=False)
    there(pool.open(wait=True))
    conn = there(pool.getconn())
    with pytest.raises(RuntimeError, match="another event loop that runs now"):
        asyncio.run(pool.putconn(conn))
    assert (conn._pool, stat(pool, "pool_available")) == (pool, 0)
    there(pool.putconn(conn))
    assert stat(pool, "pool_available") == 1
    there(pool.close())


# The end of a pool -----------------------------------------------------------------------------


class Slow(psycopg.AsyncConnection[Any]):
    """Goes on with something when it has connected, as classes do that register types."""

    connected: list[int]

    @classmethod
    async def connect(cls, conninfo: str = "", **arguments: Any) -> Any:
        conn = await super().connect(conninfo, **arguments)
        cls.connected.append(conn.info.backend_pid)
        await asyncio.Event().wait()
        return conn


@pytest.fixture
def slow() -> type[Slow]:
    """A class whose connections never come, though they are open."""
    return type("OwnSlow", (Slow,), {"connected": []})


async def close_in_flight(pool: Any) -> None:
    """Close the pool."""
    await pool.close()


async def wait_in_vain(pool: Any) -> None:
    """Have wait() close it."""
    with pytest.raises(PoolTimeout, match="initialization incomplete"):
        await pool.wait(timeout=0.05)


async def cancel_the_start(pool: Any) -> None:
    """Give the start up, as a framework does whose start-up takes too long, and close."""
    start = asyncio.create_task(pool.wait(timeout=30))
    await asyncio.sleep(0)
    start.cancel()
    await asyncio.gather(start, return_exceptions=True)
    await pool.close()


async def give_up_a_client(pool: Any) -> None:
    """A client's time is up, and the pool is closed."""
    with pytest.raises(PoolTimeout):
        await pool.getconn(timeout=0.05)
    await pool.close()


ENDS = [close_in_flight, wait_in_vain, cancel_the_start, give_up_a_client]


@pytest.mark.parametrize("end", ENDS)
def test_connections_that_are_on_their_way_when_the_pool_closes_are_closed(
    own_dsn: str,
    sessions: Callable[[], set[int]],
    slow: type[Slow],
    end: Callable[[Any], Any],
    ignored: list[Any],
) -> None:
    """Also where the class's own `connect()` has more to do: none is left to the collector."""

    async def main() -> None:
        pool = AsyncConnectionPool(own_dsn, connection_class=slow, min_size=2, open=False)
        await pool.open()
        await eventually(lambda: len(slow.connected) == 2, slow.connected)
        await end(pool)
        assert pool.closed

    asyncio.run(main())
    gc.collect()
    assert ignored == []
    gone(sessions)


def expect_end(server: socket.socket) -> None:
    """The next that has connected to a server has hung up; the collector did not run."""
    server.settimeout(5)
    visitor, _ = server.accept()
    with visitor:
        visitor.settimeout(5)
        while visitor.recv(1024):
            pass


@pytest.mark.parametrize("end", ENDS)
def test_connections_that_are_not_answered_when_the_pool_closes_are_closed(
    end: Callable[[Any], Any], ignored: list[Any]
) -> None:
    """The driver itself is at it still: its sockets are closed at once."""

    async def main(dsn: str) -> None:
        pool = AsyncConnectionPool(dsn, min_size=2, open=False)
        await pool.open()
        await eventually(lambda: stat(pool, "connections_num") == 2, pool)
        async with asyncio.timeout(4):  # nothing is waited for that may never come
            await end(pool)
        assert pool.closed

    gc.disable()
    try:
        with socket.create_server(("127.0.0.1", 0)) as mute:
            asyncio.run(main(f"host=127.0.0.1 port={mute.getsockname()[1]} user=nobody"))
            for _ in range(2):
                expect_end(mute)
    finally:
        gc.enable()
    gc.collect()
    assert ignored == []


def test_a_connection_in_its_configure_when_the_pool_closes_is_closed(
    own_dsn: str, sessions: Callable[[], set[int]], ignored: list[Any]
) -> None:
    """What the user's callback awaits does not come any more."""

    async def main() -> None:
        begun = asyncio.Event()

        async def configure(conn: Any) -> None:
            kept.append(conn)
            begun.set()
            await asyncio.Event().wait()

        pool = AsyncConnectionPool(own_dsn, min_size=1, configure=configure, open=False)
        await pool.open()
        await begun.wait()
        await pool.close()

    kept: list[Any] = []
    asyncio.run(main())
    gone(sessions)
    assert kept[0].closed
    kept.clear()
    gc.collect()
    assert ignored == []


# The end of a loop -----------------------------------------------------------------------------


async def clean_up(pool: Any, outcomes: list[Any]) -> None:
    """A job that is cancelled, and notes so in the database."""
    try:
        await asyncio.Event().wait()
    finally:
        try:
            outcomes.append(await use(pool))
        except Exception as error:
            outcomes.append(error)


async def hold(pool: Any, outcomes: list[Any]) -> None:
    """Keep a connection until the job has been served, cancelled or not."""
    async with pool.connection():
        try:
            await asyncio.Event().wait()
        finally:
            await eventually(lambda: outcomes)


async def two_clients(own_dsn: str, outcomes: list[Any]) -> list[asyncio.Task[Any]]:
    """The job, the holder, and one for whom a second connection is being opened."""
    kind: Any = type("OwnHeld", (Held,), {"attempts": count(), "held": asyncio.Event()})
    pool: Any = AsyncConnectionPool(
        own_dsn, connection_class=kind, min_size=1, max_size=2, open=False, timeout=10
    )
    await pool.open(wait=True)
    holder = asyncio.create_task(hold(pool, outcomes))
    job = asyncio.create_task(clean_up(pool, outcomes))
    await eventually(lambda: stat(pool, "pool_available") == 0, pool)
    other = asyncio.create_task(use(pool))
    await kind.held.wait()
    return [job, holder, other]


@pytest.mark.parametrize("first", [True, False], ids=["job-first", "job-last"])
def test_a_client_that_queues_while_all_tasks_are_cancelled_is_served(
    own_dsn: str, first: bool
) -> None:
    """The worker that opened a connection is cancelled too; another one takes its place."""
    outcomes: list[Any] = []

    async def main() -> None:
        tasks = await two_clients(own_dsn, outcomes)
        rest = asyncio.all_tasks() - {asyncio.current_task(), tasks[0]}
        everyone = [tasks[0], *rest] if first else [*rest, tasks[0]]
        for task in everyone:
            task.cancel()
        await asyncio.gather(*everyone, return_exceptions=True)

    asyncio.run(main())
    (pid,) = outcomes
    assert isinstance(pid, int), pid


def test_a_client_that_queues_at_the_end_of_the_loop_is_served(own_dsn: str) -> None:
    """The same by `asyncio.run()` itself, in what order it may be."""
    outcomes: list[Any] = []
    kept: list[Any] = []

    async def main() -> None:
        kept.extend(await two_clients(own_dsn, outcomes))

    asyncio.run(main())
    (pid,) = outcomes
    assert isinstance(pid, int), pid


@pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks came with 3.12")
def test_eager_tasks_do_not_pile_up_in_a_null_pool(own_dsn: str) -> None:
    """A connect that fails at once has the next one begin; not inside itself, 500 deep."""
    attempts = count()

    class Failing(psycopg.AsyncConnection[Any]):
        @classmethod
        async def connect(cls, conninfo: str = "", **arguments: Any) -> Any:
            del conninfo, arguments
            if next(attempts) == 0:
                await all_wait.wait()
            raise psycopg.OperationalError("no")

    async def main() -> list[Any]:
        loop: Any = asyncio.get_running_loop()
        loop.set_task_factory(vars(asyncio)["eager_task_factory"])
        async with AsyncNullConnectionPool(
            own_dsn, connection_class=Failing, max_size=1, timeout=20
        ) as pool:
            clients = [asyncio.create_task(pool.getconn()) for _ in range(500)]
            assert stat(pool, "requests_waiting") == 500
            all_wait.set()
            return await asyncio.gather(*clients, return_exceptions=True)

    all_wait = asyncio.Event()
    outcomes = asyncio.run(main())
    assert {type(outcome) for outcome in outcomes} == {psycopg.OperationalError}
    assert next(attempts) >= 500
