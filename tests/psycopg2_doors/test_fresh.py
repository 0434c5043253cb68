"""Fresh connections that are not idle: they are handed out, or the client is told; no loops."""

from __future__ import annotations

import select
from collections.abc import Callable, Iterator
from typing import Any

import psycopg2
import psycopg2.pool
import psycopg2_pool
import pytest
from psycopg2.extensions import POLL_OK, POLL_READ, connection

import forebay.psycopg2
import forebay.psycopg2.pool
import forebay.psycopg2_pool

from .harness import one


class Beginning(connection):
    """Begins a transaction."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.cursor().execute("set search_path to elsewhere")


class Busy(connection):
    """Is always in a transaction, by its own account."""

    def get_transaction_status(self) -> int:
        return 2


class Closed(connection):
    """Closes itself, as one does that finds itself at the wrong server."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.close()


class Making:
    """Makes pools, counts their connects, and closes them."""

    def __init__(self, name: str, dsn: str) -> None:
        self.name = name
        self.dsn = dsn
        self.connects = 0
        self.pools: list[Any] = []

    def count(self, *args: Any, **kwargs: Any) -> Any:
        """Connect."""
        self.connects += 1
        return real(*args, **kwargs)

    def __call__(self, minconn: int, **kwargs: Any) -> Any:
        if self.name.endswith("psycopg2_pool"):
            module: Any = forebay.psycopg2_pool if "forebay" in self.name else psycopg2_pool
            kwargs = {"minconn": minconn, "maxconn": 3, "dsn": self.dsn, **kwargs}
            pool = module.ThreadSafeConnectionPool(**kwargs)
        else:
            module = forebay.psycopg2.pool if "forebay" in self.name else psycopg2.pool
            pool = module.ThreadedConnectionPool(minconn, 3, self.dsn, **kwargs)
        self.pools.append(pool)
        return pool

    def close(self) -> None:
        """Close the pools."""
        for pool in self.pools:
            (pool.closeall if hasattr(pool, "closeall") else pool.clear)()


real = psycopg2.connect


@pytest.fixture(
    params=["forebay.psycopg2.pool", "forebay.psycopg2_pool", "psycopg2.pool", "psycopg2_pool"]
)
def make(
    request: pytest.FixtureRequest, dsn2: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Making]:
    """Give a way to make pools of the drop-ins, and of the originals."""
    making = Making(request.param, dsn2)
    monkeypatch.setattr(psycopg2, "connect", making.count)
    yield making
    making.close()


@pytest.mark.parametrize("minconn", [0, 1])
def test_a_transaction_that_the_factory_began_is_the_clients(make: Making, minconn: int) -> None:
    """It is handed out as it is; once it was returned, it is as any other."""
    pool = make(minconn, connection_factory=Beginning)
    conn = pool.getconn()
    assert one(conn, "show search_path") == "elsewhere"
    pool.putconn(conn)
    conn = pool.getconn()
    assert make.connects <= 3
    pool.putconn(conn)


@pytest.mark.parametrize("minconn", [0, 1])
def test_what_never_says_that_it_is_idle_is_handed_out(make: Making, minconn: int) -> None:
    """A new one each time, at worst."""
    pool = make(minconn, connection_factory=Busy)
    for _ in range(3):
        conn = pool.getconn()
        assert one(conn, "select 1") == 1
        pool.putconn(conn)
    assert make.connects <= 8


@pytest.mark.parametrize("minconn", [0, 1])
def test_what_its_factory_has_closed_is_handed_out(make: Making, minconn: int) -> None:
    """The client sees it; also when the pool has come upon dead connections before."""
    pool = make(minconn, connection_factory=Closed)
    for _ in range(3):
        conn = pool.getconn()
        assert conn.closed
        pool.putconn(conn)
    assert make.connects <= 8


@pytest.mark.parametrize("minconn", [0, 1])
def test_an_asynchronous_connection_is_handed_out(make: Making, minconn: int) -> None:
    """Its client waits until it is connected, and it is lent again if it was used to the end."""
    pool = make(minconn, async_=1)
    for _ in range(3):
        conn = pool.getconn()
        while (state := conn.poll()) != POLL_OK:
            reading = state == POLL_READ
            fds = [conn.fileno()]
            select.select(fds if reading else [], [] if reading else fds, [], 10)
        assert not conn.get_transaction_status()
        pool.putconn(conn)
    assert make.connects <= 3


def test_an_asynchronous_connection_in_use_is_not_lent_on(dsn2: str) -> None:
    """It cannot be rolled back: it is closed."""
    pools: list[tuple[Any, Callable[[], None]]] = []
    threaded = forebay.psycopg2.pool.ThreadedConnectionPool(1, 1, dsn2)
    pools.append((threaded, threaded.closeall))
    other = forebay.psycopg2_pool.ConnectionPool(1, 1, dsn=dsn2)
    pools.append((other, other.close))
    for pool, close in pools:
        if isinstance(pool, forebay.psycopg2_pool.ConnectionPool):
            pool.connect_kwargs["async_"] = 1
        else:
            pool._kwargs["async_"] = 1
        pool.getconn().close()
        conn = pool.getconn()
        wait(conn)
        cursor = conn.cursor()
        cursor.execute("begin")
        wait(conn)
        pool.putconn(conn)
        assert conn.closed
        del cursor
        close()


def wait(conn: Any) -> None:
    """Wait until an asynchronous connection has done what it does."""
    while (state := conn.poll()) != POLL_OK:
        fds = [conn.fileno()]
        select.select(fds if state == POLL_READ else [], [] if state == POLL_READ else fds, [], 10)


def test_the_full_pool_does_not_lend_what_its_factory_has_closed(
    dsn2: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is a failed connect, with a backoff and a reason."""
    making = Making("forebay.psycopg2", dsn2)
    monkeypatch.setattr(psycopg2, "connect", making.count)
    pool = forebay.psycopg2.ConnectionPool(
        dsn2, min_size=1, open=True, connection_class=Closed, timeout=0.5
    )
    with pytest.raises(forebay.psycopg2.PoolTimeout, match="closed by its connection_factory"):
        pool.getconn()
    assert making.connects < 20
    pool.close()
