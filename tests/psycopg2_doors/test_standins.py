"""The drop-ins where `psycopg2.connect` is wrapped by an agent, or replaced in a test."""

from __future__ import annotations

import contextlib
import gc
import os
import warnings
from collections.abc import Callable, Iterator
from typing import Any
from unittest.mock import MagicMock

import psycopg2
import pytest
from psycopg2.extensions import connection

import forebay.psycopg2
import forebay.psycopg2.pool
import forebay.psycopg2_pool

from .harness import Admin, eventually, one, pid
from .standins import LEADING, PRETENDING, Fake, OnInstance, Proxy, giving, wrapped


@pytest.fixture(params=["psycopg2.pool", "psycopg2_pool"])
def flavour(request: pytest.FixtureRequest) -> str:
    """Give the names of the drop-ins."""
    return str(request.param)


@pytest.fixture
def make(flavour: str, dsn2: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """Give a way to make pools with something in the place of `psycopg2.connect`."""
    pools: list[Any] = []

    def make(connect: Any, minconn: int = 1, maxconn: int = 3, **options: Any) -> Any:
        monkeypatch.setattr(psycopg2, "connect", connect)
        if flavour == "psycopg2.pool":
            kind: Any = forebay.psycopg2.pool.ThreadedConnectionPool
            pools.append(kind(minconn, maxconn, dsn2, **options))
        else:
            kind = forebay.psycopg2_pool.ThreadSafeConnectionPool
            pools.append(kind(minconn=minconn, maxconn=maxconn, dsn=dsn2, **options))
        return pools[-1]

    yield make
    for pool in pools:
        (pool.closeall if hasattr(pool, "closeall") else pool.close)()


class Counting:
    """Counts how often something that stands for `connect` was called."""

    def __init__(self, connect: Any) -> None:
        self.connect = connect
        self.calls = 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        return self.connect(*args, **kwargs)


# Any of them works -------------------------------------------------------------------------------


@pytest.mark.parametrize("way", LEADING)
def test_connections_that_lead_to_a_server_are_lent_again(
    make: Callable[..., Any], admin: Admin, application: str, way: str
) -> None:
    """With their transactions rolled back, and no more of them than are needed."""
    pool = make(LEADING[way], minconn=2)
    sessions = set()
    for _ in range(4):
        conns = [pool.getconn(), pool.getconn()]
        assert len({id(conn) for conn in conns}) == 2
        sessions |= {one(conn, "select pg_backend_pid()") for conn in conns}
        for conn in conns:
            pool.putconn(conn)
    assert len(sessions) == 2
    assert admin.pids(application) <= sessions
    assert pool.getconn().get_transaction_status() == 0


@pytest.mark.parametrize("minconn", [0, 1, 3])
@pytest.mark.parametrize("way", PRETENDING)
def test_what_leads_nowhere_is_lent_again(make: Callable[..., Any], way: str, minconn: int) -> None:
    """However it is made; a mock gives the same object each time."""
    counting = Counting(PRETENDING[way]())
    pool = make(counting, minconn=minconn)
    for _ in range(6):
        conns = [pool.getconn(), pool.getconn()]
        for conn in conns:
            conn.cursor().execute("select 1")
            pool.putconn(conn)
    held = [pool.getconn() for _ in range(3)]
    with pytest.raises(psycopg2.Error, match="connection pool exhausted"):
        pool.getconn()
    assert counting.calls <= 30  # psycopg2.pool closes what is more than minconn
    for conn in held:
        pool.putconn(conn)
        conn = None
    for conn in [pool.getconn() for _ in range(3)]:
        pool.putconn(conn)


@pytest.mark.parametrize("way", ["fakes without attributes", "a mock that takes no attributes"])
def test_a_return_is_taken_once(make: Callable[..., Any], way: str) -> None:
    """Of what takes no attributes, too."""
    pool = make(PRETENDING[way]())
    conn = pool.getconn()
    pool.putconn(conn)
    with pytest.raises(psycopg2.Error):
        pool.putconn(conn)
    with pytest.raises(psycopg2.Error):
        pool.putconn(Fake())


@pytest.mark.parametrize("way", LEADING)
def test_a_lent_connection_may_be_closed_by_its_client(make: Callable[..., Any], way: str) -> None:
    """It makes room, and may be returned."""
    pool = make(LEADING[way], minconn=0, maxconn=1)
    for _ in range(3):
        conn = pool.getconn()
        conn.close()
        pool.putconn(conn)
    conn = pool.getconn()
    conn.close()
    again = pool.getconn()  # it has made room already
    pool.putconn(conn)
    assert one(again, "select 1") == 1
    pool.putconn(again)


@pytest.mark.parametrize("way", LEADING)
def test_a_dropped_connection_gives_its_slot_back(make: Callable[..., Any], way: str) -> None:
    """A proxy, too."""
    pool = make(LEADING[way], minconn=0, maxconn=1)
    for _ in range(3):
        assert one(pool.getconn(), "select 1") == 1
        gc.collect()
    assert one(pool.getconn(), "select 1") == 1


@pytest.mark.parametrize("way", LEADING)
def test_sessions_that_were_killed_are_replaced(
    make: Callable[..., Any], admin: Admin, way: str
) -> None:
    """Whoever stands before them."""
    pool = make(LEADING[way], minconn=2)
    conns = [pool.getconn(), pool.getconn()]
    killed = [pid(conn) for conn in conns]
    for conn in conns:
        pool.putconn(conn)
    admin.kill(*killed)
    with pool_unhurried(pool):
        assert pid(pool.getconn()) not in killed


class pool_unhurried:  # noqa: N801
    """Have a pool look at connections that were used a moment ago."""

    def __init__(self, pool: Any) -> None:
        self._core = pool._forebay.core

    def __enter__(self) -> None:
        self._core.bypass = self._core.settings.bypass_window = -1.0

    def __exit__(self, *error: object) -> None:
        self._core.bypass = self._core.settings.bypass_window = 0.05


# Proxies -----------------------------------------------------------------------------------------


def test_a_client_may_return_what_is_behind_a_proxy(make: Callable[..., Any]) -> None:
    """As a cursor's `connection` is; the next client gets the proxy again."""
    pool = make(wrapped)
    for _ in range(4):
        conn = pool.getconn()
        assert type(conn) is Proxy
        pool.putconn(conn.cursor().connection)
        with pytest.raises(psycopg2.Error):
            pool.putconn(conn)


def test_a_block_of_psycopg2s_own_ends_a_transaction_of_a_proxy(
    make: Callable[..., Any],
) -> None:
    """And nothing else: a proxy is lent until putconn()."""
    pool = make(wrapped, maxconn=1)
    conn = pool.getconn()
    for number in range(2):
        with conn:
            conn.cursor().execute(f"create temp table t{number} (i int)")
        assert conn.get_transaction_status() == 0
    with pytest.raises(psycopg2.Error, match="connection pool exhausted"):
        pool.getconn()
    assert one(conn, "select count(*) from t0, t1") == 0
    pool.putconn(conn)
    assert pool.getconn() is conn


# The end of a block ------------------------------------------------------------------------------


@pytest.fixture(params=["psycopg2.pool", "psycopg2"])
def blocks(
    request: pytest.FixtureRequest, dsn2: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Any]]:
    """Give a way to make pools that have `connection()`."""
    pools: list[Any] = []

    def make(connect: Any, **kwargs: Any) -> Any:
        monkeypatch.setattr(psycopg2, "connect", connect)
        if request.param == "psycopg2.pool":
            pools.append(forebay.psycopg2.pool.ThreadedConnectionPool(1, 1, dsn2, **kwargs))
        else:
            pools.append(
                forebay.psycopg2.ConnectionPool(dsn2, min_size=1, open=True, kwargs=kwargs)
            )
            pools[-1].wait(20)
        return pools[-1]

    yield make
    for pool in pools:
        (pool.closeall if hasattr(pool, "closeall") else pool.close)()


@pytest.mark.parametrize("kind", [Fake, OnInstance])
def test_a_stand_in_is_committed(blocks: Callable[..., Any], kind: Any) -> None:
    """By the method that it has, wherever that is; or rolled back."""
    pool = blocks(giving(kind))
    with pool.connection() as conn:
        pass
    assert conn.calls == ["commit"]
    conn.calls.clear()
    with pytest.raises(ZeroDivisionError), pool.connection():
        raise ZeroDivisionError
    assert conn.calls == ["rollback"]


@pytest.mark.parametrize("connect", [wrapped, LEADING["an agent's class"], psycopg2.connect])
def test_a_commit_that_is_put_on_a_connection_is_called(
    blocks: Callable[..., Any], connect: Any
) -> None:
    """As a test does that patches an object, at any time, of a class that has room for that."""

    class Roomy(connection):
        pass

    pool = blocks(connect, connection_factory=Roomy)
    calls: list[str] = []
    with pool.connection() as conn:
        conn.commit = lambda: calls.append("commit")
    with pool.connection():
        pass
    assert calls == ["commit", "commit"]


def test_an_agents_proxy_is_committed_on_the_server(blocks: Callable[..., Any]) -> None:
    """What was done in the block is there for others."""
    pool = blocks(wrapped)
    with pool.connection() as conn:
        conn.cursor().execute("create table standins (i int)")
    with pool.connection() as conn:
        assert type(conn) is Proxy
        assert one(conn, "select count(*) from standins") == 0
        conn.cursor().execute("drop table standins")


def test_close_returns_a_proxy(dsn2: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With close_returns=True; the next client gets the proxy again, not what is behind it."""
    monkeypatch.setattr(psycopg2, "connect", wrapped)
    with forebay.psycopg2.ConnectionPool(dsn2, min_size=1, close_returns=True) as pool:
        for _ in range(4):
            conn: Any = pool.getconn()
            assert type(conn) is Proxy
            conn.close()
            eventually(lambda: pool.get_stats()["pool_available"] == 1, pool)
        assert pool.get_stats()["connections_num"] == 1


def test_the_full_pool_works_with_mocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """That are made anew each time."""
    connect = MagicMock(side_effect=lambda *_, **__: MagicMock())
    monkeypatch.setattr(psycopg2, "connect", connect)
    with forebay.psycopg2.ConnectionPool("dbname=x", min_size=2, max_size=2) as pool:
        for _ in range(5):
            with pool.connection() as one_of_them, pool.connection() as other:
                assert one_of_them is not other
                assert isinstance(other, MagicMock)
    assert connect.call_count == 2
    assert all(call.args == ("dbname=x",) for call in connect.call_args_list)


# Fork --------------------------------------------------------------------------------------------


def test_a_child_leaves_the_sessions_of_proxies_alone(make: Callable[..., Any]) -> None:
    """Idle and lent: their sockets are silenced there, whatever stands before them."""
    pool = make(wrapped)
    lent = pool.getconn()
    pids = [pid(lent)]
    source, sink = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of threads of other tests
        child = os.fork()
    if not child:
        try:
            with contextlib.suppress(psycopg2.Error):
                lent.cursor().execute("select 1")
            with contextlib.suppress(psycopg2.Error):
                lent.close()
            conn = pool.getconn()
            os.write(sink, str(pid(conn)).encode())
        finally:
            os._exit(0)
    os.close(sink)
    with os.fdopen(source) as answer:
        assert int(answer.read()) not in pids
    os.waitpid(child, 0)
    assert pid(lent) == pids[0]
    pool.putconn(lent)
    assert pid(pool.getconn()) == pids[0]
