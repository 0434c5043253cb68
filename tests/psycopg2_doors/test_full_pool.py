"""`forebay.psycopg2.ConnectionPool`: the full pool, giving psycopg2 connections."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg2
import pytest
from psycopg2.extensions import STATUS_READY, TRANSACTION_STATUS_INERROR, connection
from psycopg2.extras import DictConnection
from sqlalchemy import NullPool, create_engine, text

import forebay
from forebay.psycopg2 import (
    ConnectionPool,
    NullConnectionPool,
    PoolClosed,
    PoolDeadlock,
    PoolRejected,
    PoolTimeout,
    TooManyRequests,
)

from .harness import Admin, eventually, one, pid

KINDS = pytest.mark.parametrize("kind", [ConnectionPool, NullConnectionPool])


class Trouble(Exception):
    """An application's own error."""


@pytest.fixture
def make(dsn2: str) -> Iterator[Callable[..., Any]]:
    """Give a way to make open pools, which are filled, and closed at the end."""
    pools: list[Any] = []

    def make(kind: Any = ConnectionPool, **options: Any) -> Any:
        if kind is ConnectionPool:
            options.setdefault("min_size", 1)
        options.setdefault("open", True)
        pools.append(kind(options.pop("conninfo", dsn2), **options))
        if options["open"] and kind is ConnectionPool:
            pools[-1].wait(20)
        return pools[-1]

    yield make
    for pool in pools:
        pool.close()


def available(pool: Any, number: int) -> None:
    """Wait until so many connections are idle, and as many are all there are."""
    eventually(
        lambda: (
            (pool.get_stats()["pool_available"], pool.get_stats()["pool_size"]) == (number, number)
        ),
        pool,
    )


@pytest.mark.parametrize("name", ["ConnectionPool", "NullConnectionPool"])
def test_the_parameters_are_those_of_the_other_driver(name: str) -> None:
    """Whoever knows one pool knows the other: names, order, kinds and defaults."""

    def parameters(kind: Any) -> list[Any]:
        found = list(inspect.signature(kind).parameters.values())
        return [
            (each.name, each.kind, each.default if each.name != "connection_class" else None)
            for each in found
        ]

    ours, theirs = getattr(forebay.psycopg2, name), getattr(forebay, name)
    assert parameters(ours) == parameters(theirs)
    assert {each for each in dir(ours) if not each.startswith("_")} == {
        each for each in dir(theirs) if not each.startswith("_")
    }


@pytest.mark.parametrize(
    "error", [PoolClosed, PoolTimeout, PoolRejected, PoolDeadlock, TooManyRequests]
)
def test_errors_are_operational_errors(error: type[Exception]) -> None:
    """Programs that catch psycopg2's errors catch the pool's."""
    assert issubclass(error, psycopg2.OperationalError)
    assert error.__module__ == "forebay.psycopg2"


@KINDS
def test_a_block_commits_and_returns(make: Callable[..., Any], kind: Any) -> None:
    """At the end of the block the transaction is committed and the connection comes back."""
    pool = make(kind)
    with pool.connection() as conn:
        assert conn._pool is pool
        assert isinstance(conn, connection)
        with conn.cursor() as cursor:
            cursor.execute("create table if not exists psycopg2_block (n int)")
    with pool.connection() as conn:
        assert one(conn, "select count(*) from psycopg2_block") == 0
        with conn.cursor() as cursor:
            cursor.execute("drop table psycopg2_block")
    assert conn._pool is None


def test_an_exception_in_a_block_rolls_back_and_propagates_unchanged(
    make: Callable[..., Any],
) -> None:
    """The block's own exception arrives outside; what it did is undone."""
    pool, trouble = make(), Trouble()

    def fail() -> None:
        with pool.connection() as conn:
            one(conn, "select set_config('a.b', 'x', false)")
            raise trouble

    with pytest.raises(Trouble) as caught:
        fail()
    assert caught.value is trouble
    assert (trouble.__cause__, trouble.__context__) == (None, None)
    with pool.connection() as again:
        assert not one(again, "select current_setting('a.b', true)")


def test_the_connection_is_lost_in_a_block_and_the_error_propagates(
    make: Callable[..., Any], admin: Admin
) -> None:
    """It is the query's error, not that of a rollback on a closed connection; it is replaced."""
    pool = make()

    def lose() -> None:
        with pool.connection() as conn:
            admin.kill(pid(conn))
            one(conn, "select 1")

    with pytest.raises(psycopg2.OperationalError, match="terminat"):
        lose()
    available(pool, 1)
    with pool.connection(timeout=10) as other:
        assert pid(other)
    assert pool.get_stats()["returns_bad"] == 1


def test_a_loss_that_the_block_swallowed_is_told(make: Callable[..., Any], admin: Admin) -> None:
    """Nothing was committed: the block must not end as if it were."""
    pool = make()

    def lose() -> None:
        with pool.connection() as conn:
            admin.kill(pid(conn))
            with pytest.raises(psycopg2.OperationalError):
                one(conn, "select 1")

    with pytest.raises(psycopg2.InterfaceError):
        lose()
    available(pool, 1)


def test_a_connection_closed_in_a_block_is_replaced(make: Callable[..., Any]) -> None:
    """The holder knows what it has done: no error."""
    pool = make()
    with pool.connection() as conn:
        conn.close()
    with pool.connection(timeout=10) as other:
        assert other is not conn
        assert pid(other)


def test_psycopg2s_own_with_works_inside_a_block(make: Callable[..., Any]) -> None:
    """`with conn:` ends a transaction, more than once, and does not return the connection."""
    pool = make()
    with pool.connection() as conn:
        for _ in range(2):
            with conn:
                one(conn, "select 1")
            assert conn.status == STATUS_READY
            assert conn._pool is pool


def test_psycopg2s_own_with_does_not_return(make: Callable[..., Any]) -> None:
    """With getconn() it commits, and putconn() is still to be called."""
    pool = make()
    conn = pool.getconn()
    with conn:
        one(conn, "select 1")
    assert pool.get_stats()["pool_available"] == 0
    pool.putconn(conn)
    assert pool.get_stats()["pool_available"] == 1


def test_a_connection_in_autocommit_begins_no_transaction(make: Callable[..., Any]) -> None:
    """Unlike psycopg2's `with conn:`, which begins one even then."""

    def configure(conn: Any) -> None:
        conn.autocommit = True

    pool = make(configure=configure)
    with pool.connection() as conn:
        one(conn, "select 1")
        assert conn.info.transaction_status == 0


@pytest.mark.parametrize("statement", ["select 1", "select 1/0", "commit"])
def test_what_is_returned_in_a_transaction_is_rolled_back(
    make: Callable[..., Any], statement: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Also a failed one, and one that psycopg2 alone believes in; a warning is logged."""
    pool = make()
    conn = pool.getconn()
    with conn.cursor() as cursor:
        cursor.execute("select 1")
        try:
            cursor.execute(statement)
        except psycopg2.DataError:
            assert conn.info.transaction_status == TRANSACTION_STATUS_INERROR
    pool.putconn(conn)
    assert conn.status == STATUS_READY
    assert pool.getconn() is conn
    pool.putconn(conn)
    assert "rolling back returned connection" in caplog.text


def test_strangers_and_second_returns_are_refused(make: Callable[..., Any], dsn2: str) -> None:
    """putconn() takes back what this pool has lent, once."""
    pool = make()
    conn = pool.getconn()
    pool.putconn(conn)
    stranger = psycopg2.connect(dsn2)
    for bad in (conn, stranger):
        with pytest.raises(ValueError, match="it comes from no pool"):
            pool.putconn(bad)
    stranger.close()


def test_clients_wait_in_line_and_run_out_of_time(make: Callable[..., Any]) -> None:
    """The queue, its bound, and the timeout are those of the other pools."""
    pool = make(max_waiting=1)
    conn = pool.getconn()
    with pytest.raises(PoolTimeout, match=r"couldn't get a connection after 0\.05 sec"):
        pool.getconn(timeout=0.05)
    with ThreadPoolExecutor(1) as client:
        answer = client.submit(pool.getconn, 20)
        eventually(lambda: pool.get_stats()["requests_waiting"] == 1, pool)
        with pytest.raises(TooManyRequests):
            pool.getconn(timeout=20)
        pool.putconn(conn)
        assert answer.result(20) is conn
    pool.putconn(conn)


def test_a_timeout_tells_who_has_the_connections(make: Callable[..., Any]) -> None:
    """The facts are those of the other driver's pool."""
    pool = make(record_lines=True)
    with pool.connection():
        conn = None
        with pytest.raises(PoolTimeout) as caught:
            conn = pool.getconn(timeout=0.05)
    assert conn is None
    assert (caught.value.kind, caught.value.lent, caught.value.max_size) == ("exhausted", 1, 1)
    (holding,) = caught.value.holders
    assert (holding.name, holding.leased) == (threading.current_thread().name, True)
    assert "test_full_pool.py" in (holding.line or "")


def test_a_nested_block_that_nobody_could_serve_is_refused(make: Callable[..., Any]) -> None:
    """PoolDeadlock at once, and the block outside goes on."""
    pool = make()
    with pool.connection() as conn:
        with pytest.raises(PoolDeadlock), pool.connection(timeout=1000):
            raise AssertionError("lent twice")
        assert one(conn, "select 1") == 1


def test_a_lost_block_gives_its_session_back(make: Callable[..., Any]) -> None:
    """The connection is still referred to, but nobody will end the block: it is rolled back."""
    pool = make()
    lease = pool.connection()
    conn = lease.__enter__()
    one(conn, "select txid_current()")
    del lease

    def is_back() -> bool:
        pool.check()
        return bool(pool.get_stats()["pool_available"] == 1)

    eventually(is_back, pool)
    with pool.connection(timeout=20) as again:
        assert again is conn


def test_connections_are_opened_by_workers(make: Callable[..., Any]) -> None:
    """Never by the client's thread."""
    threads = []

    def configure(_: object) -> None:
        threads.append(threading.current_thread().name)

    pool = make(min_size=0, max_size=1, configure=configure, name="mine")
    pool.putconn(pool.getconn())
    assert threads == ["mine-worker-1"]


def test_a_server_that_refuses_is_the_cause_of_a_timeout(
    make: Callable[..., Any], refusing_dsn: str
) -> None:
    """psycopg2's own error says why."""
    pool = make(conninfo=refusing_dsn, min_size=0, max_size=1)
    with pytest.raises(PoolTimeout) as caught:
        pool.getconn(timeout=0.5)
    assert isinstance(caught.value.__cause__, psycopg2.OperationalError)
    null = make(NullConnectionPool, conninfo=refusing_dsn)
    with pytest.raises(psycopg2.OperationalError, match="refused"):
        null.getconn(timeout=20)


def test_a_null_pool_keeps_nothing(
    make: Callable[..., Any], admin: Admin, application: str
) -> None:
    """Each client has a session of its own."""
    pool = make(NullConnectionPool, max_size=1)
    pool.wait(20)
    backends = set()
    for _ in range(2):
        with pool.connection() as conn:
            backends.add(pid(conn))
    assert len(backends) == 2
    eventually(lambda: not admin.pids(application))


def test_reset_runs_after_each_return(make: Callable[..., Any]) -> None:
    """psycopg2's own reset() will do as the callback."""
    pool = make(reset=lambda conn: conn.reset())
    with pool.connection() as conn:
        one(conn, "select set_config('work_mem', '77kB', false)")
    with pool.connection(timeout=10) as again:
        assert again is conn
        assert one(again, "show work_mem") != "77kB"


def test_callbacks_that_leave_a_transaction_discard_the_connection(
    make: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    """The log says so, with the status."""
    pool = make(min_size=0, max_size=1, configure=lambda conn: one(conn, "select 1"))
    with pytest.raises(PoolTimeout):
        pool.getconn(timeout=0.2)
    assert "left in status INTRANS by configure" in caplog.text


def test_check_replaces_what_died_while_idle(make: Callable[..., Any], admin: Admin) -> None:
    """As a callback of each checkout, and as a method."""
    pool = make(check=ConnectionPool.check_connection)
    with pool.connection() as conn:
        backend = pid(conn)
    admin.kill(backend)
    with pool.connection(timeout=10) as conn:
        assert pid(conn) != backend
        backend = pid(conn)
    admin.kill(backend)
    pool.check()
    available(pool, 1)
    assert pool.get_stats()["connections_lost"] == 2


@pytest.mark.parametrize("autocommit", [False, True])
def test_a_check_leaves_the_transaction_as_it_was(
    make: Callable[..., Any], autocommit: bool
) -> None:
    """In no transaction, in one, and in a failed one."""
    pool = make()
    conn = pool.getconn()
    conn.autocommit = autocommit

    def checked() -> tuple[int, int]:
        before = conn.info.transaction_status, conn.status
        pool.check_connection(conn)
        assert (conn.info.transaction_status, conn.status, conn.autocommit) == (*before, autocommit)
        return before

    seen = [checked()]
    with conn.cursor() as cursor:
        cursor.execute("begin" if autocommit else "select 1")
        seen.append(checked())
        with pytest.raises(psycopg2.DataError):
            cursor.execute("select 1/0")
        seen.append(checked())
    assert [status for status, _ in seen] == [0, 2, 3]
    conn.rollback() if not autocommit else one_rollback(conn)
    conn.autocommit = False
    pool.putconn(conn)


def one_rollback(conn: Any) -> None:
    """End a transaction that was begun by text."""
    with conn.cursor() as cursor:
        cursor.execute("rollback")


def test_a_check_of_a_dead_connection_raises(make: Callable[..., Any], admin: Admin) -> None:
    """psycopg2's own error."""
    pool = make()
    conn = pool.getconn()
    admin.kill(pid(conn))
    with pytest.raises(psycopg2.OperationalError):
        pool.check_connection(conn)
    pool.putconn(conn)
    available(pool, 1)


def test_the_class_of_connections_is_extended(make: Callable[..., Any]) -> None:
    """Instances are of the class that was asked for, under its name, by either parameter."""
    for options in (
        {"connection_class": DictConnection},
        {"kwargs": {"connection_factory": DictConnection}},
    ):
        with make(**options).connection() as conn:
            assert isinstance(conn, DictConnection)
            assert type(conn).__qualname__ == "DictConnection"
            assert one(conn, "select 1") == 1


def test_an_own_commit_is_called(make: Callable[..., Any]) -> None:
    """A class that overrides commit() has it called, though there is nothing to commit."""
    calls: list[str] = []

    class Noting(connection):
        def commit(self) -> None:
            calls.append("commit")
            super().commit()

    pool = make(connection_class=Noting)
    with pool.connection():
        pass
    with pytest.raises(Trouble), pool.connection():
        raise Trouble
    assert calls == ["commit"]


def test_conninfo_and_kwargs_may_be_callables(make: Callable[..., Any], dsn2: str) -> None:
    """They are called at each attempt."""
    pool = make(conninfo=lambda: dsn2, kwargs=lambda: {"options": "-c work_mem=77kB"})
    with pool.connection() as conn:
        assert one(conn, "show work_mem") == "77kB"


def test_a_coroutine_function_is_refused(dsn2: str) -> None:
    """A pool for threads would never await it."""

    async def configure(conn: Any) -> None:
        raise AssertionError(conn)

    with pytest.raises(TypeError, match="configure must be a plain function"):
        ConnectionPool(dsn2, configure=configure, open=False)  # type: ignore[arg-type]


@KINDS
def test_close_returns(make: Callable[..., Any], kind: Any) -> None:
    """With close_returns=True, close() on a lent connection is putconn()."""
    pool = make(kind, max_size=1, close_returns=True)
    conn = pool.getconn()
    conn.close()
    assert conn._pool is None
    again = pool.getconn(timeout=10)
    assert (again is conn) == (kind is ConnectionPool)
    again.close()


def test_with_sqlalchemy(make: Callable[..., Any]) -> None:
    """An engine without a pool of its own takes connections from this one."""
    pool = make(close_returns=True)
    engine = create_engine("postgresql+psycopg2://", poolclass=NullPool, creator=pool.getconn)
    backends = set()
    for _ in range(3):
        with engine.connect() as session:
            backends.add(session.scalar(text("select pg_backend_pid()")))
    assert len(backends) == 1
    available(pool, 1)


@KINDS
def test_a_closed_pool_refuses(make: Callable[..., Any], kind: Any) -> None:
    """Lent connections are closed when they come back."""
    pool = make(kind)
    conn = pool.getconn()
    pool.close()
    with pytest.raises(PoolClosed, match="is already closed"):
        pool.getconn()
    assert not conn.closed
    pool.putconn(conn)
    assert conn.closed


def test_a_forgotten_connection_gives_its_place_back(make: Callable[..., Any]) -> None:
    """A lent connection that is dropped is replaced."""
    pool = make()
    pid(pool.getconn())
    with pool.connection(timeout=10) as conn:
        assert pid(conn)


def test_drain_and_resize(make: Callable[..., Any]) -> None:
    """All connections are replaced; the pool grows."""
    pool = make()
    with pool.connection() as conn:
        before = pid(conn)
    pool.drain()
    pool.resize(2)
    available(pool, 2)
    with pool.connection() as one_, pool.connection() as two:
        assert before not in (pid(one_), pid(two))
