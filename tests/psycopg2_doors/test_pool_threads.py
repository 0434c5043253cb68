"""REFERENCE 2 for threads: `ThreadedConnectionPool` on both, and `PersistentConnectionPool`."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType
from typing import Any

import psycopg2
import psycopg2.pool
import pytest
from psycopg2.extensions import STATUS_READY

import forebay.psycopg2.pool
from forebay.psycopg2.pool import PersistentConnectionPool, PoolError

from .harness import Admin, eventually, one, pid

BOTH = pytest.mark.parametrize(
    "library", [psycopg2.pool, forebay.psycopg2.pool], ids=["original", "forebay"]
)


def side_by_side(number: int, function: Callable[[], Any]) -> list[Any]:
    """What so many threads get that call a function at the same moment."""
    start = threading.Barrier(number)

    def client(_: int) -> Any:
        start.wait()
        return function()

    with ThreadPoolExecutor(number) as threads:
        return list(threads.map(client, range(number)))


def in_a_thread(function: Callable[[], Any]) -> Any:
    """What another thread gets, which has ended then."""
    with ThreadPoolExecutor(1) as threads:
        return threads.submit(function).result()


@BOTH
@pytest.mark.parametrize("minconn", [0, 1, 4])
def test_as_many_threads_as_connections_get_one_each(
    library: ModuleType, dsn2: str, minconn: int
) -> None:
    """They all open at once, in any order: nobody is told that the pool is exhausted."""
    pool = library.ThreadedConnectionPool(minconn, 12, dsn2)
    for _ in range(5):
        got = side_by_side(12, pool.getconn)
        assert len({pid(conn) for conn in got}) == 12
        side_by_side(12, lambda got=got: pool.putconn(got.pop()))  # type: ignore[misc]
    pool.closeall()


@BOTH
def test_threads_that_ask_with_one_key_get_one_connection(library: ModuleType, dsn2: str) -> None:
    """The first makes it theirs."""
    pool = library.ThreadedConnectionPool(0, 8, dsn2)
    got = side_by_side(8, lambda: pool.getconn("shared"))
    assert len({id(conn) for conn in got}) == 1
    pool.putconn(got[0])
    pool.closeall()


@BOTH
def test_overridden_verbs_are_honoured(library: ModuleType, dsn2: str) -> None:
    """A subclass that overrides _getconn, _putconn and _closeall sees every call."""
    seen: list[Any] = []

    class Watched(library.ThreadedConnectionPool):  # type: ignore[misc, name-defined]
        def _getconn(self, key: Any = None) -> Any:
            seen.append(("get", key))
            return super()._getconn(key)

        def _putconn(self, conn: Any, key: Any = None, close: bool = False) -> None:
            seen.append(("put", key, close))
            super()._putconn(conn, key, close)

        def _closeall(self) -> None:
            seen.append("close")
            super()._closeall()

    pool = Watched(1, 1, dsn2)
    pool.putconn(pool.getconn())
    pool.putconn(pool.getconn(0), 0, True)
    pool.closeall()
    assert seen == [("get", None), ("put", None, False), ("get", 0), ("put", 0, True), "close"]


@BOTH
def test_nothing_to_put_is_refused(library: ModuleType, dsn2: str) -> None:
    """`putconn()` takes no connection where none is named."""
    pool = library.ThreadedConnectionPool(1, 1, dsn2)
    with pytest.raises(library.PoolError, match="trying to put unkeyed connection"):
        pool.putconn()
    pool.closeall()


def test_a_thread_gets_the_same_connection_until_it_puts_it_away(dsn2: str) -> None:
    """Threads have one each; putconn() without arguments puts the thread's own."""
    pool = PersistentConnectionPool(2, 2, dsn2)
    mine = pool.getconn()
    assert pool.getconn() is mine

    def other() -> int:
        conn = pool.getconn()
        assert pool.getconn() is conn
        pool.putconn()
        return id(conn)

    assert in_a_thread(other) != id(mine)
    pool.putconn(mine)
    assert pool.getconn() is mine
    pool.putconn(close=True)
    assert mine.closed
    with pytest.raises(PoolError, match="trying to put unkeyed connection"):
        pool.putconn()
    pool.closeall()


def test_a_pool_of_persistent_connections_can_be_exhausted(dsn2: str) -> None:
    """The bound is on threads."""
    pool = PersistentConnectionPool(1, 1, dsn2)
    pool.getconn()
    with pytest.raises(PoolError, match=r"^connection pool exhausted$"):
        in_a_thread(pool.getconn)
    pool.closeall()
    with pytest.raises(PoolError, match=r"^connection pool is closed$"):
        pool.getconn()


def test_the_connection_of_a_thread_that_ended_comes_back_clean(dsn2: str) -> None:
    """The next thread gets the session, even one with the same thread id, without what was open."""
    pool = PersistentConnectionPool(1, 1, dsn2)
    backends = set()

    def leave_a_transaction() -> int:
        conn = pool.getconn()
        assert conn.status == STATUS_READY
        backends.add(one(conn, "select pg_backend_pid()"))
        return threading.get_ident()

    for _ in range(5):
        in_a_thread(leave_a_transaction)
    assert len(backends) == 1
    pool.closeall()


def test_the_transaction_of_a_thread_that_ended_is_ended_by_the_next_call(dsn2: str) -> None:
    """Though that call needs nothing of it."""
    pool = PersistentConnectionPool(3, 3, dsn2)
    in_a_thread(lambda: pool.getconn().cursor().execute("select 1"))
    pool.getconn()
    assert pool.get_stats()["pool_available"] == 2
    pool.closeall()


def test_a_pool_may_be_made_by_a_thread_that_ends(dsn2: str) -> None:
    """A thread that has made the pool, and never used it, leaves nothing behind."""
    pool = in_a_thread(lambda: PersistentConnectionPool(1, 1, dsn2))
    assert pid(pool.getconn())
    pool.closeall()


def test_a_client_that_waits_gets_the_connection_of_a_thread_that_ended(dsn2: str) -> None:
    """Nobody calls the pool meanwhile: the client looks by itself."""
    pool = PersistentConnectionPool(1, 1, dsn2, timeout=20)
    leave = threading.Event()

    def hold() -> None:
        pool.getconn()
        leave.wait(20)

    thread = threading.Thread(target=hold)
    thread.start()
    eventually(lambda: pool.get_stats()["pool_available"] == 0, pool)
    with ThreadPoolExecutor(1) as client:
        answer = client.submit(lambda: pid(pool.getconn()))
        eventually(lambda: pool.get_stats()["requests_waiting"] == 1, pool)
        leave.set()
        assert answer.result(20)
    thread.join()
    pool.closeall()


def test_a_block_in_a_block_of_the_same_thread_keeps_the_connection(dsn2: str) -> None:
    """connection() puts away what it has got, not what the thread had before."""
    pool = PersistentConnectionPool(1, 1, dsn2)
    with pool.connection() as outer:
        with pool.connection() as inner:
            assert inner is outer
            one(inner, "select 1")
        assert outer.status == STATUS_READY
        assert pool.getconn() is outer
    assert pool.get_stats()["pool_available"] == 1
    pool.closeall()


def test_a_lost_persistent_connection_is_replaced(dsn2: str, admin: Admin) -> None:
    """The thread is not given a connection that is known to be dead."""
    pool = PersistentConnectionPool(1, 1, dsn2)
    conn = pool.getconn()
    admin.kill(pid(conn))
    with pytest.raises(psycopg2.OperationalError):
        one(conn, "select 1")
    assert pool.getconn() is not conn
    pid(pool.getconn())
    pool.closeall()
