"""Deadlocks named: a nested acquire that nobody could ever serve is refused at once."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from queue import SimpleQueue
from time import monotonic
from typing import Any

import pytest

from forebay import AsyncConnectionPool, ConnectionPool, PoolDeadlock, PoolTimeout

from .door import eventually, stat

LONG = 1000.0  # seconds; nobody waits for that long
SHORT = 0.3


class Actor:
    """A thread that does one thing after the other, on request."""

    def __init__(self, name: str) -> None:
        self._jobs: SimpleQueue[tuple[Future[Any], Callable[..., Any], tuple[Any, ...]] | None]
        self._jobs = SimpleQueue()
        self.thread = threading.Thread(target=self._run, name=name, daemon=True)
        self.thread.start()

    def begin(self, function: Callable[..., Any], *args: Any) -> Future[Any]:
        """Have it call a function; the future gives the outcome."""
        future: Future[Any] = Future()
        self._jobs.put((future, function, args))
        return future

    def end(self) -> None:
        """Let the thread end."""
        self._jobs.put(None)

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            future, function, args = job
            try:
                future.set_result(function(*args))
            except BaseException as error:
                future.set_exception(error)
            del job, future, function, args


@pytest.fixture
def actors() -> Iterator[Callable[[str], Actor]]:
    """Makes threads; they end with the test."""
    made: list[Actor] = []

    def make(name: str) -> Actor:
        made.append(Actor(name))
        return made[-1]

    yield make
    for actor in made:
        actor.end()
        actor.thread.join(20)


def waiting(pool: Any, clients: int) -> None:
    """Return when so many clients are queued."""
    deadline = monotonic() + 20
    while stat(pool, "requests_waiting") != clients:
        assert monotonic() < deadline, pool


def nested(pool: Any, timeout: float | None = None, held: threading.Barrier | None = None) -> str:
    """Hold a connection and ask for another one; tells what became of that."""
    with pool.connection(timeout=20) as conn:
        if held is not None:
            held.wait(20)
        with pool.connection(timeout=timeout):
            return f"served beside {conn.info.backend_pid}"


def test_a_thread_that_nests_on_one_connection_is_refused_at_once(dsn: str) -> None:
    """PoolDeadlock, a PoolTimeout, names the holder and says what to do; the pool goes on."""
    with ConnectionPool(dsn, min_size=1, name="one", timeout=LONG) as pool:
        pool.wait()
        with pytest.raises(PoolDeadlock) as caught:
            nested(pool)
        error = caught.value
        assert isinstance(error, PoolTimeout)
        assert (error.kind, error.size, error.lent, error.timeout) == ("deadlock", 1, 1, None)
        me = threading.current_thread().name
        assert [h.name for h in error.holders] == [me]
        assert error.suspects == (me,)
        assert str(error).startswith("couldn't get a connection from pool 'one', and nobody ever")
        assert f"held by {me} for 0.0 s" in str(error)
        assert "raise max_size" in str(error)
        with pool.connection(timeout=20):
            assert stat(pool, "requests_waiting") == 0
        assert stat(pool, "requests_errors") == 1


def test_a_helper_made_by_contextmanager_is_seen_through(dsn: str) -> None:
    """The block need not be in the thread's own frame, if the connection is."""
    with ConnectionPool(dsn, min_size=1, timeout=LONG) as pool:
        pool.wait()

        @contextmanager
        def helper() -> Iterator[Any]:
            with pool.connection() as conn:
                yield conn

        with helper() as conn, pytest.raises(PoolDeadlock), pool.connection():
            raise AssertionError(f"lent beside {conn}")


def test_two_threads_that_nest_on_two_connections_are_told(
    dsn: str, actors: Callable[[str], Actor]
) -> None:
    """One of them is refused, so that the other is served."""
    with ConnectionPool(dsn, min_size=2, timeout=LONG) as pool:
        pool.wait()
        held = threading.Barrier(2)
        jobs = [actors(name).begin(nested, pool, None, held) for name in ("left", "right")]
        errors = [job.exception(20) for job in jobs]
        (error,) = [e for e in errors if e is not None]
        assert isinstance(error, PoolDeadlock)
        assert sorted(error.suspects) == ["left", "right"]
        assert stat(pool, "pool_available") == 2


def test_the_one_that_would_give_up_first_is_refused(
    dsn: str, actors: Callable[[str], Actor]
) -> None:
    """Whoever has the earlier deadline: until then nothing could have changed."""
    with ConnectionPool(dsn, min_size=2) as pool:
        pool.wait()
        held = threading.Barrier(2)
        patient = actors("patient").begin(nested, pool, LONG, held)
        hasty = actors("hasty").begin(nested, pool, LONG / 2, held)
        assert isinstance(hasty.exception(20), PoolDeadlock)
        assert patient.result(20).startswith("served")


def test_a_holder_that_works_may_return_its_connection(
    dsn: str, actors: Callable[[str], Actor]
) -> None:
    """While one of the holders does not wait here, nothing is certain."""
    with ConnectionPool(dsn, min_size=2) as pool:
        pool.wait()
        working, worker = threading.Event(), actors("worker")

        def work() -> None:
            with pool.connection():
                working.wait(20)

        job = worker.begin(work)
        nesting = actors("nesting").begin(nested, pool, LONG)
        waiting(pool, 1)
        working.set()
        job.result(20)
        assert nesting.result(20).startswith("served")


def test_bare_getconn_is_only_suspected(dsn: str) -> None:
    """Connections got so may be returned by another thread: the timeout names the holder."""
    with ConnectionPool(dsn, min_size=1) as pool:
        pool.wait()
        conn = pool.getconn()
        with pytest.raises(PoolTimeout, match="perhaps a deadlock") as caught:
            pool.getconn(timeout=SHORT)
        assert caught.value.kind == "exhausted"
        assert caught.value.suspects == (threading.current_thread().name,)
        pool.putconn(conn)


def test_nothing_is_certain_while_a_connection_is_being_opened(dsn: str) -> None:
    """The pool is not at its bound: the second connection comes."""
    with ConnectionPool(dsn, min_size=1, max_size=2) as pool:
        pool.wait()
        assert nested(pool, LONG).startswith("served")


def test_a_lease_that_was_handed_on_is_not_its_first_holders(
    dsn: str, actors: Callable[[str], Actor]
) -> None:
    """Entered in one thread, held in another: that the second one waits proves nothing."""
    with ConnectionPool(dsn, min_size=1) as pool:
        pool.wait()
        lease = pool.connection()
        first, second = actors("first"), actors("second")
        conn = first.begin(lease.__enter__).result(20)
        job = second.begin(pool.getconn, LONG)
        waiting(pool, 1)
        first.begin(lease.__exit__, None, None, None).result(20)
        assert job.result(20) is conn
        pool.putconn(conn)


def test_threads_that_enter_blocks_for_others_do_not_deadlock(
    dsn: str, actors: Callable[[str], Actor]
) -> None:
    """Frameworks run the halves of a generator in threads of their own, each for many requests.

    The thread that has entered the first request's block enters the second's, and waits; the
    first one's end comes from elsewhere.
    """
    with ConnectionPool(dsn, min_size=1) as pool:
        pool.wait()

        @contextmanager
        def dependency() -> Iterator[Any]:
            with pool.connection(timeout=LONG) as conn:
                yield conn

        one, two = actors("one"), actors("two")
        first, second = dependency(), dependency()
        one.begin(first.__enter__).result(20)
        job = one.begin(second.__enter__)
        waiting(pool, 1)
        two.begin(first.__exit__, None, None, None).result(20)
        assert job.result(20).info.backend_pid
        two.begin(second.__exit__, None, None, None).result(20)
        assert stat(pool, "requests_errors") == 0


# asyncio -----------------------------------------------------------------------------------------


async def nested_in_a_task(
    pool: Any, timeout: float | None = None, held: asyncio.Barrier | None = None
) -> str:
    """Hold a connection and ask for another one; tells what became of that."""
    async with pool.connection(timeout=20) as conn:
        if held is not None:
            await held.wait()
        async with pool.connection(timeout=timeout):
            return f"served beside {conn.info.backend_pid}"


async def test_a_task_that_nests_on_one_connection_is_refused_at_once(dsn: str) -> None:
    """As with threads; the holder is the task."""
    async with AsyncConnectionPool(dsn, min_size=1, timeout=LONG) as pool:
        await pool.wait()
        with pytest.raises(PoolDeadlock) as caught:
            await asyncio.create_task(nested_in_a_task(pool), name="nesting")
        assert caught.value.suspects == ("nesting",)
        async with pool.connection(timeout=20):
            pass
        assert stat(pool, "requests_errors") == 1


async def test_two_tasks_that_nest_on_two_connections_are_told(dsn: str) -> None:
    """One of them is refused, so that the other is served."""
    async with AsyncConnectionPool(dsn, min_size=2, timeout=LONG) as pool:
        await pool.wait()
        held = asyncio.Barrier(2)
        jobs = [
            asyncio.create_task(nested_in_a_task(pool, None, held), name=name)
            for name in ("left", "right")
        ]
        outcomes = await asyncio.gather(*jobs, return_exceptions=True)
        (error,) = [e for e in outcomes if isinstance(e, BaseException)]
        assert isinstance(error, PoolDeadlock)
        assert sorted(error.suspects) == ["left", "right"]


async def test_a_task_that_works_may_return_its_connection(dsn: str) -> None:
    """While one of the holders does not wait here, nothing is certain."""
    async with AsyncConnectionPool(dsn, min_size=2) as pool:
        await pool.wait()
        working = asyncio.Event()

        async def work() -> None:
            async with pool.connection():
                await working.wait()

        job = asyncio.create_task(work())
        nesting = asyncio.create_task(nested_in_a_task(pool, LONG))
        await eventually(lambda: stat(pool, "requests_waiting") == 1, pool)
        working.set()
        await job
        assert (await nesting).startswith("served")


async def test_a_bare_getconn_in_a_task_is_only_suspected(dsn: str) -> None:
    """The timeout names the task that holds and waits."""
    async with AsyncConnectionPool(dsn, min_size=1) as pool:
        await pool.wait()

        async def nest() -> None:
            conn = await pool.getconn()
            try:
                await pool.getconn(timeout=SHORT)
            finally:
                await pool.putconn(conn)

        with pytest.raises(PoolTimeout, match="perhaps a deadlock") as caught:
            await asyncio.create_task(nest(), name="nesting")
        assert (caught.value.kind, caught.value.suspects) == ("exhausted", ("nesting",))


async def test_a_task_that_enters_blocks_for_others_does_not_deadlock(dsn: str) -> None:
    """A dispatcher that hands its blocks on holds nothing, whatever it is waiting for."""
    async with AsyncConnectionPool(dsn, min_size=1) as pool:
        await pool.wait()
        leases: asyncio.Queue[Any] = asyncio.Queue()

        async def dispatch() -> None:
            for _ in range(2):
                lease = pool.connection(timeout=LONG)
                await lease.__aenter__()
                leases.put_nowait(lease)
                del lease

        dispatcher = asyncio.create_task(dispatch())
        first = await leases.get()
        await eventually(lambda: stat(pool, "requests_waiting") == 1, pool)
        await first.__aexit__(None, None, None)
        second = await leases.get()
        await second.__aexit__(None, None, None)
        await dispatcher
        assert stat(pool, "requests_errors") == 0
