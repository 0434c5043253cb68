"""What `forebay.psycopg2.pool` does beyond the original."""

from __future__ import annotations

import gc
import inspect
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg2
import psycopg2.pool
import pytest
from psycopg2.extensions import STATUS_READY
from psycopg2.extensions import connection as plain_connection

from forebay.psycopg2.pool import (
    AbstractConnectionPool,
    PersistentConnectionPool,
    PoolError,
    SimpleConnectionPool,
    ThreadedConnectionPool,
)

from .harness import Admin, eventually, one, pid

EACH = pytest.mark.parametrize(
    "kind",
    [SimpleConnectionPool, ThreadedConnectionPool, PersistentConnectionPool],
    ids=lambda kind: kind.__name__,
)


class Trouble(Exception):
    """An application's own error."""


def test_the_classes_are_related_as_in_the_original() -> None:
    """Programs catch psycopg2.Error, and test for the base class."""
    assert issubclass(PoolError, psycopg2.Error)
    for kind in (SimpleConnectionPool, ThreadedConnectionPool, PersistentConnectionPool):
        assert issubclass(kind, AbstractConnectionPool)


@pytest.mark.parametrize("name", ["getconn", "putconn", "closeall"])
def test_signatures_are_those_of_the_original(name: str) -> None:
    """Names and order of the parameters, and their defaults."""

    def parameters(kind: type) -> list[Any]:
        found = inspect.signature(getattr(kind, name)).parameters.values()
        return [(each.name, each.kind, each.default) for each in found]

    for kind in (SimpleConnectionPool, ThreadedConnectionPool):
        assert parameters(kind) == parameters(getattr(psycopg2.pool, kind.__name__))


def test_more_at_the_start_than_at_most_is_refused(dsn2: str) -> None:
    """The original would open connections without any bound."""
    with pytest.raises(ValueError, match="minconn must not be greater than maxconn, not 3 > 2"):
        ThreadedConnectionPool(3, 2, dsn2)


def test_what_was_opened_is_closed_when_the_constructor_fails(
    dsn2: str, admin: Admin, application: str
) -> None:
    """A pool that could not be filled leaves no session, whoever still refers to one."""
    made: list[Any] = []

    class Third(ThreadedConnectionPool):
        def _connect(self, key: Any = None) -> Any:
            if len(made) == 2:
                raise Trouble
            made.append(super()._connect(key))
            return made[-1]

    with pytest.raises(Trouble):
        Third(4, 4, dsn2)
    assert [bool(conn.closed) for conn in made] == [True, True]
    eventually(lambda: not admin.pids(application))


@EACH
def test_a_connection_known_to_be_closed_is_never_lent(dsn2: str, kind: Any) -> None:
    """A connection that its holder closes after the return is dropped, with or without a key."""
    pool = kind(2, 2, dsn2)
    conn = pool.getconn()
    pool.putconn(conn)
    conn.close()
    other = pool.getconn()
    assert other is not conn
    pid(other)
    pool.closeall()


def test_a_keyed_connection_known_to_be_closed_is_replaced(dsn2: str) -> None:
    """The key gets another one; the old one's place is free."""
    pool = ThreadedConnectionPool(1, 1, dsn2)
    conn = pool.getconn("key")
    conn.close()
    other = pool.getconn("key")
    assert other is not conn
    assert pool.getconn("key") is other
    pool.putconn(other, "key")
    pool.closeall()


def test_a_loss_that_nobody_noticed_is_found_on_return(dsn2: str, admin: Admin) -> None:
    """The rollback fails: the connection is dropped, and its place is free."""
    pool = ThreadedConnectionPool(1, 1, dsn2)
    conn = pool.getconn()
    admin.kill(one(conn, "select pg_backend_pid()"))
    pool.putconn(conn)
    assert conn.closed
    pid(pool.getconn())
    pool.closeall()


def test_whoever_connects_holds_up_nobody(dsn2: str) -> None:
    """While a client opens a connection, others open theirs, return and get what is idle."""
    inside, go_on = threading.Semaphore(0), threading.Event()

    class Slow(ThreadedConnectionPool):
        def _connect(self, key: Any = None) -> Any:
            if self.minconn == 2:  # no more the constructor
                inside.release()
                assert go_on.wait(20)
            return super()._connect(key)

    pool = Slow(1, 4, dsn2)
    conn = pool.getconn()
    pool.minconn = 2
    with ThreadPoolExecutor(3) as clients:
        answers = [clients.submit(pool.getconn) for _ in range(2)]
        for _ in answers:
            assert inside.acquire(timeout=20)
        clients.submit(pool.putconn, conn).result(20)
        go_on.set()
        got = [answer.result(20) for answer in answers]
    assert len({pid(each) for each in got}) == 2
    pool.closeall()


def test_a_wrong_key_is_refused_and_changes_nothing(dsn2: str) -> None:
    """The connection stays with its key."""
    pool = ThreadedConnectionPool(1, 2, dsn2)
    conn, unkeyed = pool.getconn("right"), pool.getconn()
    with pytest.raises(PoolError, match="not lent with the key 'wrong' but 'right'"):
        pool.putconn(conn, "wrong")
    with pytest.raises(PoolError, match="not lent with the key 'wrong'"):
        pool.putconn(unkeyed, "wrong")
    assert pool.getconn("right") is conn
    pool.closeall()


def test_a_key_is_enough_to_put(dsn2: str) -> None:
    """`putconn(key=...)` puts the connection that is in use with the key."""
    pool = ThreadedConnectionPool(1, 1, dsn2)
    conn = pool.getconn(0)
    pool.putconn(key=0)
    assert pool.getconn() is conn
    pool.closeall()


def test_a_commit_sent_as_text_leaves_no_trap_for_the_next(dsn2: str) -> None:
    """psycopg2 still believes in a transaction, and would not begin one for the next client."""
    pool = ThreadedConnectionPool(1, 1, dsn2)
    conn = pool.getconn()
    with conn.cursor() as cursor:
        cursor.execute("create temp table things (n int)")
        cursor.execute("commit")
    pool.putconn(conn)
    assert pool.getconn() is conn
    with conn.cursor() as cursor:
        cursor.execute("insert into things values (1)")
    conn.rollback()
    assert one(conn, "select count(*) from things") == 0
    pool.closeall()


@EACH
def test_a_block_commits_and_returns(dsn2: str, kind: Any) -> None:
    """connection() ends the transaction and puts the connection back."""
    pool = kind(1, 1, dsn2)
    with pool.connection() as conn:
        one(conn, "select set_config('a.b', 'committed', false)")
    assert conn.status == STATUS_READY
    assert pool.get_stats()["pool_available"] == 1

    def fail() -> None:
        with pool.connection() as again:
            one(again, "select set_config('a.b', 'undone', false)")
            raise Trouble

    with pytest.raises(Trouble):
        fail()
    with pool.connection() as again:
        assert again is conn
        assert one(again, "select current_setting('a.b')") == "committed"
    pool.closeall()


def test_with_a_timeout_an_exhausted_pool_waits(dsn2: str) -> None:
    """The client is served by what comes back, in its turn."""
    pool = ThreadedConnectionPool(1, 1, dsn2, timeout=20)
    conn = pool.getconn()
    with ThreadPoolExecutor(1) as client:
        answer = client.submit(pool.getconn)
        eventually(lambda: pool.get_stats()["requests_waiting"] == 1, pool)
        pool.putconn(conn)
        assert answer.result(20) is conn
    pool.closeall()


def test_a_client_that_waits_is_served_though_its_connection_was_closed(dsn2: str) -> None:
    """Whoever closes a connection while somebody waits opens another one."""
    pool = ThreadedConnectionPool(1, 1, dsn2, timeout=20)
    conn = pool.getconn()
    with ThreadPoolExecutor(1) as client:
        answer = client.submit(pool.getconn)
        eventually(lambda: pool.get_stats()["requests_waiting"] == 1, pool)
        pool.putconn(conn, close=True)
        assert answer.result(20) is not conn
    pool.closeall()


def test_whoever_returns_opens_for_all_that_wait_but_never_deeper_and_deeper(dsn2: str) -> None:
    """Each client that waits gets its own error of connecting; the one that returns gets none."""
    clients, refuse = 250, threading.Event()

    class Refused(ThreadedConnectionPool):
        def _connect(self, key: Any = None) -> Any:
            if refuse.is_set():
                raise Trouble
            return super()._connect(key)

    pool = Refused(1, 1, dsn2, timeout=60)
    conn = pool.getconn()
    with ThreadPoolExecutor(clients) as threads:
        answers = [threads.submit(pool.getconn) for _ in range(clients)]
        eventually(lambda: pool.get_stats()["requests_waiting"] == clients, pool)
        refuse.set()
        pool.putconn(conn, close=True)
        errors = [answer.exception(20) for answer in answers]
    assert {type(error) for error in errors} == {Trouble}
    pool.closeall()


def test_the_timeout_ends(dsn2: str) -> None:
    """The error begins as the original's does, and says how long."""
    pool = ThreadedConnectionPool(1, 1, dsn2, timeout=0.05)
    conn = pool.getconn()
    with pytest.raises(PoolError, match=r"^connection pool exhausted: .* 0\.05 sec"):
        pool.getconn()
    pool.putconn(conn)
    pool = ThreadedConnectionPool(1, 1, dsn2)
    conn = pool.getconn()
    with pytest.raises(PoolError, match=r"^connection pool exhausted$"):
        pool.getconn()
    pool.putconn(conn)
    pool.closeall()


def test_the_queue_can_be_bounded(dsn2: str) -> None:
    """With `max_waiting` clients in the queue, the next one fails at once."""
    pool = ThreadedConnectionPool(1, 1, dsn2, timeout=20, max_waiting=1)
    conn = pool.getconn()
    with ThreadPoolExecutor(1) as client:
        answer = client.submit(pool.getconn)
        eventually(lambda: pool.get_stats()["requests_waiting"] == 1, pool)
        with pytest.raises(PoolError, match=r"exhausted: 1 clients wait .*max_waiting=1"):
            pool.getconn()
        pool.putconn(conn)
        answer.result(20)
    pool.closeall()


def test_closeall_refuses_clients_that_wait(dsn2: str) -> None:
    """They need not wait for their time."""
    pool = ThreadedConnectionPool(1, 1, dsn2, timeout=20)
    conn = pool.getconn()
    with ThreadPoolExecutor(1) as client:
        answer = client.submit(pool.getconn)
        eventually(lambda: pool.get_stats()["requests_waiting"] == 1, pool)
        pool.closeall()
        with pytest.raises(PoolError, match="connection pool is closed"):
            answer.result(20)
    assert conn.closed


def test_a_check_that_fails_brings_the_next_connection(dsn2: str, admin: Admin) -> None:
    """A connection that died while idle is found by one round trip, when that is asked for."""
    pool = ThreadedConnectionPool(2, 2, dsn2, check=lambda conn: one(conn, "select 1"))
    first, second = pool.getconn(), pool.getconn()
    keep = pid(first)
    lost = pid(second)
    pool.putconn(first)
    pool.putconn(second)
    admin.kill(lost)
    assert pid(pool.getconn()) == keep
    pool.closeall()


def test_a_connection_past_its_lifetime_is_closed_on_return(dsn2: str) -> None:
    """`max_lifetime`, in seconds."""
    pool = ThreadedConnectionPool(1, 1, dsn2, max_lifetime=1e-6)
    conn = pool.getconn()
    pool.putconn(conn)
    assert conn.closed
    pool.closeall()


@EACH
def test_a_forgotten_connection_gives_its_place_back(dsn2: str, kind: Any) -> None:
    """A program that drops a connection without putting it does not exhaust the pool."""
    pool = kind(1, 1, dsn2)
    if kind is PersistentConnectionPool:
        with ThreadPoolExecutor(1) as thread:  # it is the thread that forgets
            thread.submit(lambda: pid(pool.getconn())).result()
    else:
        pid(pool.getconn())
    pid(pool.getconn())
    pool.closeall()


def test_a_forgotten_pool_closes_its_connections(dsn2: str, admin: Admin, application: str) -> None:
    """Nothing outside keeps it alive: it goes when it is collected."""
    pool = ThreadedConnectionPool(2, 2, dsn2)
    pool.putconn(pool.getconn())
    assert len(admin.pids(application)) == 2
    del pool
    gc.collect()
    eventually(lambda: not admin.pids(application))


def test_a_pool_starts_no_thread(dsn2: str) -> None:
    """All is done by the callers."""
    before = threading.active_count()
    pool = ThreadedConnectionPool(1, 2, dsn2)
    pool.putconn(pool.getconn(), close=True)
    assert threading.active_count() == before
    pool.closeall()


def test_statistics_count(dsn2: str) -> None:
    """The keys are those of the other pools."""
    pool = ThreadedConnectionPool(1, 2, dsn2)
    first, second = pool.getconn(), pool.getconn()
    with pytest.raises(PoolError):
        pool.getconn()
    pool.putconn(first)
    stats = pool.get_stats()
    assert (stats["pool_min"], stats["pool_max"], stats["pool_size"]) == (1, 2, 2)
    assert (stats["pool_available"], stats["requests_num"]) == (1, 3)
    assert (stats["connections_num"], stats["requests_errors"]) == (2, 1)
    assert repr(pool) == "<ThreadedConnectionPool 1 idle, 1 lent of 1..2>"
    pool.putconn(second)
    pool.closeall()
    assert repr(pool) == "<ThreadedConnectionPool closed of 1..2>"


def test_a_factory_may_make_plain_connections(dsn2: str) -> None:
    """psycopg2's own take no attributes: they are known by their identity."""
    pool = ThreadedConnectionPool(1, 2, dsn2, connection_factory=lambda dsn: plain_connection(dsn))
    conn = pool.getconn()
    assert type(conn) is plain_connection
    pool.putconn(conn)
    assert pool.getconn() is conn
    pool.closeall()
    assert conn.closed


def test_a_factory_may_make_connections_of_a_class_of_its_own(dsn2: str) -> None:
    """A callable that is no class is called as it is."""

    class Mine(plain_connection):
        pass

    def factory(dsn: str) -> Mine:
        return Mine(dsn)

    pool = ThreadedConnectionPool(1, 1, dsn2, connection_factory=factory)
    assert type(pool.getconn()) is Mine
    pool.closeall()
