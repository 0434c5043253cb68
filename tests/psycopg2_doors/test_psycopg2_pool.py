"""The contract of psycopg2_pool 1.2, played through the original and through Forebay."""

from __future__ import annotations

import gc
from importlib import import_module
from math import inf
from typing import Any

import psycopg2
import pytest
from psycopg2.extensions import TRANSACTION_STATUS_IDLE, connection

Pools = Any  # a module that has the names of psycopg2_pool


@pytest.fixture(params=["psycopg2_pool", "forebay.psycopg2_pool"])
def pools(request: pytest.FixtureRequest) -> Pools:
    """The original, then Forebay."""
    return import_module(request.param)


@pytest.fixture(params=["ConnectionPool", "ThreadSafeConnectionPool"])
def pool_class(request: pytest.FixtureRequest, pools: Pools) -> Any:
    """Both classes of both packages."""
    return getattr(pools, request.param)


def lend(pool: Any, number: int) -> list[Any]:
    """Take so many connections."""
    return [pool.getconn() for _ in range(number)]


def give_back(pool: Any, conns: list[Any]) -> None:
    """Return connections, in order."""
    for conn in conns:
        pool.putconn(conn)


def age(pool: Any, seconds: float) -> None:
    """Let idle connections have been idle for longer."""
    for conn in list(pool.idle_connections):
        pool.return_times[conn] -= seconds


def closed(conns: list[Any]) -> list[bool]:
    """Which connections are closed."""
    return [bool(conn.closed) for conn in conns]


def test_the_defaults_are_those_of_the_documentation(pool_class: Any, dsn: str) -> None:
    """One connection is opened, without a bound, and idle ones stay for ten minutes."""
    pool = pool_class(dsn=dsn)
    assert (pool.minconn, pool.maxconn, pool.idle_timeout) == (1, inf, 600)
    assert pool.connect_kwargs == {"dsn": dsn}
    assert len(pool.idle_connections) == len(pool.return_times) == 1
    assert len(pool.connections_in_use) == 0


def test_the_dsn_is_empty_by_default(pool_class: Any) -> None:
    """psycopg2 then takes the address from the environment."""
    assert pool_class(minconn=0).connect_kwargs == {"dsn": ""}


def test_sizes_may_be_given_by_position(pools: Pools, dsn: str) -> None:
    """ConnectionPool(minconn, maxconn, idle_timeout)."""
    pool = pools.ConnectionPool(2, 5, 7, dsn=dsn)
    assert (pool.minconn, pool.maxconn, pool.idle_timeout) == (2, 5, 7)
    assert len(pool.idle_connections) == 2


def test_a_server_that_refuses_fails_the_constructor(pool_class: Any, refusing_dsn: str) -> None:
    """The first connections are opened in the caller, and psycopg2's error is the caller's."""
    with pytest.raises(psycopg2.OperationalError, match="refused"):
        pool_class(dsn=refusing_dsn)


def test_a_server_that_refuses_fails_getconn(pool_class: Any, dsn: str, refusing_dsn: str) -> None:
    """The error is psycopg2's; the next attempt may succeed."""
    pool = pool_class(minconn=0, dsn=refusing_dsn)
    with pytest.raises(psycopg2.OperationalError, match="refused"):
        pool.getconn()
    pool.connect_kwargs = {"dsn": dsn}
    assert not pool.getconn().closed


def test_a_bad_parameter_is_the_drivers_error(pool_class: Any, dsn: str) -> None:
    """Whatever the pool does not know goes to psycopg2.connect()."""
    with pytest.raises(psycopg2.ProgrammingError, match="bogus"):
        pool_class(dsn=dsn, bogus=1)


def test_connections_are_of_the_class_that_was_asked_for(pool_class: Any, dsn: str) -> None:
    """A connection_factory is honoured."""

    class Connection(connection):
        pass

    pool = pool_class(dsn=dsn, connection_factory=Connection)
    assert isinstance(pool.getconn(), Connection)


def test_the_connection_returned_last_is_lent_first(pool_class: Any, dsn: str) -> None:
    """Idle connections are in order of return, the newest last, and come last in first out."""
    pool = pool_class(dsn=dsn)
    conns = lend(pool, 3)
    give_back(pool, conns)
    assert list(pool.idle_connections) == conns
    assert pool.idle_connections[-1] is conns[-1]
    assert pool.getconn() is conns[-1]
    assert conns[-1] not in pool.idle_connections
    assert conns[0] in pool.idle_connections


def test_at_maxconn_there_is_an_error_at_once(pools: Pools, pool_class: Any, dsn: str) -> None:
    """New connections are counted while they are in use."""
    pool = pool_class(minconn=0, maxconn=2, dsn=dsn)
    kept = lend(pool, 2)
    with pytest.raises(pools.PoolError):
        pool.getconn()
    pool.putconn(kept[0])
    assert pool.getconn() is kept[0]


def test_maxconn_may_be_raised(pools: Pools, pool_class: Any, dsn: str) -> None:
    """The attribute is read when it is used."""
    pool = pool_class(minconn=0, maxconn=1, dsn=dsn)
    kept = lend(pool, 1)
    with pytest.raises(pools.PoolError):
        pool.getconn()
    pool.maxconn = 2
    kept += lend(pool, 1)
    with pytest.raises(pools.PoolError):
        pool.getconn()


def test_a_transaction_is_rolled_back_on_return(pool_class: Any, dsn: str) -> None:
    """Neither an open transaction nor a failed one meets the next client."""
    pool = pool_class(dsn=dsn)
    conn = pool.getconn()
    conn.cursor().execute("select 1")
    pool.putconn(conn)
    assert conn.info.transaction_status == TRANSACTION_STATUS_IDLE
    assert pool.getconn() is conn
    with pytest.raises(psycopg2.Error):
        conn.cursor().execute("nonsense")
    pool.putconn(conn)
    assert conn.info.transaction_status == TRANSACTION_STATUS_IDLE
    assert list(pool.idle_connections) == [conn]


def test_a_closed_connection_is_returned_and_replaced(pool_class: Any, dsn: str) -> None:
    """putconn() takes it, and opens another one to keep minconn."""
    pool = pool_class(dsn=dsn)
    conn = pool.getconn()
    conn.close()
    pool.putconn(conn)
    assert len(pool.idle_connections) == 1
    assert conn not in pool.idle_connections


def test_an_idle_connection_that_was_closed_is_skipped(pool_class: Any, dsn: str) -> None:
    """getconn() never lends a connection that is known to be closed."""
    pool = pool_class(dsn=dsn)
    idle = pool.idle_connections[-1]
    idle.close()
    conn = pool.getconn()
    assert conn is not idle
    assert not conn.closed


def test_old_idle_connections_are_closed_on_return(pool_class: Any, dsn: str) -> None:
    """putconn() closes what was idle for longer than idle_timeout."""
    pool = pool_class(dsn=dsn)
    conns = lend(pool, 4)
    give_back(pool, conns)
    used = pool.getconn()
    age(pool, 601)
    pool.putconn(used)
    assert list(pool.idle_connections) == [used]
    assert closed(conns) == [True, True, True, False]


def test_old_idle_connections_below_minconn_are_replaced(pool_class: Any, dsn: str) -> None:
    """The pool closes them all the same, and opens new ones."""
    pool = pool_class(minconn=3, dsn=dsn)
    conns = list(pool.idle_connections)
    used = pool.getconn()
    age(pool, 601)
    pool.putconn(used)
    assert len(pool.idle_connections) == 3
    assert closed(conns) == [True, True, False]


def test_old_idle_connections_are_not_lent(pool_class: Any, dsn: str) -> None:
    """getconn() closes what was idle for longer than idle_timeout, and opens a new one."""
    pool = pool_class(minconn=3, dsn=dsn)
    conns = list(pool.idle_connections)
    age(pool, 601)
    conn = pool.getconn()
    assert conn not in conns
    assert closed(conns) == [True, True, True]
    pool.putconn(conn)
    assert len(pool.idle_connections) == 3


def test_only_the_connection_that_is_too_old_is_skipped(pool_class: Any, dsn: str) -> None:
    """A time of return may be assigned for each connection."""
    pool = pool_class(minconn=2, dsn=dsn)
    older, newer = pool.idle_connections
    pool.return_times[newer] += 1
    assert pool.getconn() is newer
    assert list(pool.return_times) == [older]


def test_times_of_return_are_of_idle_connections(pool_class: Any, dsn: str) -> None:
    """A lent connection has none, and asking for it is a KeyError."""
    pool = pool_class(dsn=dsn)
    conn = pool.getconn()
    with pytest.raises(KeyError):
        pool.return_times[conn]
    pool.putconn(conn)
    assert list(pool.return_times) == list(pool.idle_connections) == [conn]


def test_with_an_idle_timeout_of_zero_minconn_stay_idle(pool_class: Any, dsn: str) -> None:
    """Those that stay are lent again."""
    pool = pool_class(minconn=1, idle_timeout=0, dsn=dsn)
    conns = lend(pool, 3)
    give_back(pool, conns)
    (kept,) = pool.idle_connections
    assert closed(conns).count(True) == 2
    assert pool.getconn() is kept


def test_minconn_may_be_raised(pool_class: Any, dsn: str) -> None:
    """The next return opens what is missing."""
    pool = pool_class(dsn=dsn)
    pool.minconn = 3
    pool.putconn(pool.getconn())
    assert len(pool.idle_connections) == 3


def test_clear_closes_the_idle_connections_only(pool_class: Any, dsn: str) -> None:
    """It closes all of them, and what is lent stays open and can be returned."""
    pool = pool_class(minconn=3, dsn=dsn)
    conn = pool.getconn()
    idle = list(pool.idle_connections)
    pool.clear()
    assert closed(idle) == [True, True]
    assert len(pool.idle_connections) == len(pool.return_times) == 0
    assert not conn.closed
    pool.putconn(conn)
    assert conn in pool.idle_connections


def test_a_dropped_connection_does_not_count(pools: Pools, pool_class: Any, dsn: str) -> None:
    """The pool holds lent connections weakly."""
    pool = pool_class(minconn=0, maxconn=1, dsn=dsn)
    conn = pool.getconn()
    assert conn in pool.connections_in_use
    with pytest.raises(pools.PoolError):
        pool.getconn()
    del conn
    gc.collect()
    assert len(pool.connections_in_use) == 0
    assert not pool.getconn().closed


def test_settings_of_a_session_stay(pool_class: Any, dsn: str) -> None:
    """Only the transaction is ended: autocommit is as the last client left it."""
    pool = pool_class(dsn=dsn)
    conn = pool.getconn()
    conn.autocommit = True
    pool.putconn(conn)
    assert pool.getconn().autocommit


def test_two_with_blocks_and_a_return(pool_class: Any, dsn: str) -> None:
    """What programs for the released package do: each block is a transaction on one session."""
    pool = pool_class(dsn=dsn)
    conn = pool.getconn()
    with conn:
        conn.cursor().execute("create temp table notes (text text) on commit preserve rows")
    with conn, conn.cursor() as cursor:
        cursor.execute("insert into notes values ('kept')")
    with pytest.raises(psycopg2.Error), conn, conn.cursor() as cursor:
        cursor.execute("insert into notes values ('lost'); select 1 / 0")
    cursor = conn.cursor()
    cursor.execute("select text from notes")
    assert cursor.fetchall() == [("kept",)]
    pool.putconn(conn)
    assert list(pool.idle_connections) == [conn]


def test_a_nested_client_gets_another_session(pool_class: Any, dsn: str) -> None:
    """Between two blocks of a holder, what it calls takes and returns a connection of its own."""
    pool = pool_class(dsn=dsn)
    conn = pool.getconn()
    with conn:
        pass
    inner = pool.getconn()
    assert inner is not conn
    pool.putconn(inner)
    with conn:
        conn.cursor().execute("select 1")
    pool.putconn(conn)
    assert {*pool.idle_connections} == {inner, conn}


def test_a_closed_lent_connection_is_returned_after_its_block(pool_class: Any, dsn: str) -> None:
    """The pool is whole afterwards."""
    pool = pool_class(minconn=1, maxconn=1, dsn=dsn)
    conn = pool.getconn()
    with pytest.raises(psycopg2.InterfaceError), conn:
        conn.close()
    pool.putconn(conn)
    assert not pool.getconn().closed
