"""Signal handlers and finalizers that use the drop-ins in the middle of what these do."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from types import CodeType
from typing import Any

import psycopg2
import pytest

import forebay.psycopg2.pool
import forebay.psycopg2_pool
from tests.core.opcodes import watched
from tests.faults.strokes import Strokes

from .harness import Admin, eventually, one

Make = Callable[..., Any]

KINDS = (
    "SimpleConnectionPool",
    "ThreadedConnectionPool",
    "PersistentConnectionPool",
    "psycopg2_pool",
)


@pytest.fixture(params=KINDS)
def make(request: pytest.FixtureRequest, dsn2: str) -> Make:
    """Give a function that makes a pool of one kind: `make(minconn, maxconn)`."""
    if request.param == "psycopg2_pool":
        return lambda *sizes: forebay.psycopg2_pool.ConnectionPool(*sizes, dsn=dsn2)
    kind = getattr(forebay.psycopg2.pool, request.param)
    return lambda *sizes: kind(*sizes, dsn2)


@pytest.fixture
def table(dsn2: str) -> Iterator[Any]:
    """A session beside the pools, and a table `ended` that is empty."""
    conn = psycopg2.connect(dsn2)
    conn.autocommit = True
    with conn.cursor() as cursor:
        cursor.execute("create table ended (number int)")
    yield conn
    with conn.cursor() as cursor:
        cursor.execute("drop table ended")
    conn.close()


class Interruption:
    """Calls a handler before one opcode of the library, as the interpreter may call a signal's."""

    def __init__(self, at: int, handler: Callable[[], object]) -> None:
        self.left = at
        self.handler = handler

    def during(self, action: Callable[[], object]) -> bool:
        """Whether the handler was called; false if the action has too few opcodes."""
        with watched(self._reach, lambda code: "/forebay/" in code.co_filename):
            action()
        return self.left < 0

    def _reach(self, _code: CodeType, _offset: int) -> None:
        self.left -= 1
        if self.left == -1:
            self.handler()


def everywhere(action: Callable[[], object], handler: Callable[[], object], stride: int = 1) -> int:
    """Do something again and again, interrupted at each opcode in turn; how often that was."""
    times = 0
    action()
    while Interruption(times * stride, handler).during(action):
        times += 1
        action()  # so that each begins with what an undisturbed one leaves
    return times


def block(pool: Any) -> Any:
    """A `with` block that ends its transaction and returns its connection."""
    return pool.connection() if hasattr(pool, "connection") else pool.getconn()


def use(pool: Any) -> None:
    """Lend a connection and return it."""
    pool.putconn(pool.getconn())


def leave_open(pool: Any) -> None:
    """Return a connection in a transaction."""
    conn = pool.getconn()
    with conn.cursor() as cursor:
        cursor.execute("select 1")
    pool.putconn(conn)


def expect_whole(pool: Any, maxconn: int) -> None:
    """All connections can be lent, no more than these, and come back."""
    if isinstance(pool, forebay.psycopg2.pool.PersistentConnectionPool):
        use(pool)
        return
    lent = [pool.getconn() for _ in range(maxconn)]
    assert len({id(conn) for conn in lent}) == maxconn
    with pytest.raises(psycopg2.Error, match="connection pool exhausted"):
        pool.getconn()
    for conn in lent:
        pool.putconn(conn)


@pytest.mark.parametrize(("action", "stride"), [(use, 1), (leave_open, 11)])
def test_a_block_in_a_handler_ends_with_an_error_or_has_committed(
    make: Make, table: Any, action: Callable[[Any], None], stride: int
) -> None:
    """At each opcode of lending and returning; and nothing is lost to the pool."""
    pool = make(2, 3)
    ended: list[int] = []
    refused: list[psycopg2.Error] = []

    def handle() -> None:
        number = len(ended)
        try:
            with block(pool) as conn, conn.cursor() as cursor:
                cursor.execute("insert into ended values (%s)", [number])
        except psycopg2.Error as error:
            refused.append(error.with_traceback(None))  # whose frames hold connections
        else:
            ended.append(number)

    times = everywhere(lambda: action(pool), handle, stride)
    assert times == len(ended) + len(refused)
    assert min(len(ended), len(refused)) > 3
    assert all("nothing was lent" in str(error) for error in refused)
    assert one(table, "select count(*) from ended") == len(ended)
    expect_whole(pool, 3)


def test_what_a_handler_returns_comes_back(make: Make) -> None:
    """At each opcode; at the latest the next call takes it."""
    pool = make(2, 2)
    if isinstance(pool, forebay.psycopg2.pool.PersistentConnectionPool):
        return  # a thread has one connection there
    held: list[Any] = []

    def action() -> None:
        held.append(pool.getconn())
        use(pool)
        use(pool)

    def handle() -> None:
        if held:
            pool.putconn(held.pop())

    at, handled = 0, True
    while handled:
        handled = Interruption(at, handle).during(action)
        use(pool)
        assert len(idle(pool)) == 2 - len(held)
        handle()
        at += 1
    expect_whole(pool, 2)


def test_what_a_handler_closes_is_closed_with_the_next_call(make: Make, admin: Admin) -> None:
    """Wherever it interrupts the pool; it does not wait, and nothing is left open."""
    at, closed = 0, True
    while closed:
        pool = make(1, 2)
        pids = {conn.info.backend_pid for conn in idle(pool)}
        end = pool.close if hasattr(pool, "close") else pool.closeall

        def action(pool: Any = pool) -> None:
            with suppress(psycopg2.Error):
                use(pool)

        closed = Interruption(at, end).during(action)
        at += 7
        if not closed:
            end()
        with pytest.raises(psycopg2.Error, match="closed"):
            pool.getconn()
        assert not idle(pool)
        if at % 5 == 0:
            eventually(lambda pids=pids: not gone(admin, pids))  # type: ignore[misc]
    assert at > 100


def idle(pool: Any) -> list[Any]:
    """The idle connections of a pool."""
    return [*(pool._pool if hasattr(pool, "_pool") else pool.idle_connections)]


def gone(admin: Admin, pids: set[int]) -> int:
    """How many of the sessions are still there."""
    left = "select count(*) from pg_stat_activity where pid = any(%s::int[])"
    return int(one(admin._conn, left, [*pids]))


@pytest.mark.timeout(60, method="thread")  # the other method uses the timer that is used here
def test_real_signals_find_no_lock_that_they_wait_for(make: Make, table: Any) -> None:
    """A timer's handler, again and again, while the pool works without a pause."""
    pool = make(3, 3)
    ended, calls = [0], [0]

    def handle(_number: int) -> None:
        calls[0] += 1
        with suppress(psycopg2.Error):
            with block(pool) as conn, conn.cursor() as cursor:
                cursor.execute("insert into ended values (1)")
            ended[0] += 1

    with Strokes(handle):
        deadline = time.monotonic() + 20
        while calls[0] < 200 and time.monotonic() < deadline:
            use(pool)
    assert calls[0] >= 200
    assert one(table, "select count(*) from ended") == ended[0]
    expect_whole(pool, 3)


def test_a_finalizer_in_a_garbage_cycle_returns_what_is_lost_already(
    make: Make, admin: Admin, dsn2: str
) -> None:
    """Its weak reference was cleared before: the session is closed, not lent beside another."""
    del admin
    pool = make(2, 2)
    if isinstance(pool, forebay.psycopg2.pool.PersistentConnectionPool):
        return  # keeps what it has lent

    class Repository:
        def __init__(self) -> None:
            self.conn = pool.getconn()
            self.itself = self

        def __del__(self) -> None:
            pool.putconn(self.conn)

    for _ in range(3):
        Repository()
        gc.collect()
        expect_whole(pool, 2)
    del dsn2


def test_a_client_in_a_callback_of_connecting_is_refused(dsn2: str) -> None:
    """It would wait for the connection that its own thread opens; now it is told."""
    errors: list[Exception] = []

    class Mine(forebay.psycopg2.pool.ThreadedConnectionPool):
        def _connect(self, key: Any = None) -> Any:
            if hasattr(self, "_forebay"):
                try:
                    self.getconn()
                except psycopg2.Error as error:
                    errors.append(error)
            return super()._connect(key)

    pool = Mine(0, 2, dsn2)
    assert one(pool.getconn(), "select 1") == 1
    assert "nothing was lent" in str(errors[0])


def test_a_nested_clear_is_refused(dsn2: str) -> None:
    """Aloud, for it cannot be put off: who asks wants them gone when it returns."""
    pool = forebay.psycopg2_pool.ConnectionPool(2, 3, dsn=dsn2)
    with (
        pool._forebay.lock,
        pytest.raises(forebay.psycopg2_pool.PoolError, match="nothing was lent"),
    ):
        pool.clear()
    assert len(pool.idle_connections) == 2
    pool.clear()
    assert len(pool.idle_connections) == 0
