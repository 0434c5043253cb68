"""REFERENCE 1, "SQLAlchemy": engines over getconn() with close_returns=True."""

from __future__ import annotations

import asyncio
import gc
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import Engine, NullPool, create_engine, exc, text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from forebay import AsyncConnectionPool, ConnectionPool, NullConnectionPool

from .door import Admin, Door, settled, stat

URL = "postgresql+psycopg://"


def engine_over(pool: ConnectionPool | NullConnectionPool) -> Engine:
    """A SQLAlchemy engine that takes its connections from our pool."""
    return create_engine(URL, poolclass=NullPool, creator=pool.getconn)


def async_engine_over(pool: AsyncConnectionPool) -> AsyncEngine:
    """The same for an async engine."""
    return create_async_engine(URL, poolclass=NullPool, async_creator=pool.getconn)


def test_an_engine_gives_its_connections_back(dsn: str) -> None:
    """More engine connections one after the other than the pool has."""
    with ConnectionPool(dsn, min_size=2, close_returns=True) as pool:
        engine = engine_over(pool)
        for number in range(6):
            with engine.connect() as conn:
                assert conn.execute(text("select :n"), {"n": number}).scalar() == number
        asyncio.run(settled(pool, pool_size=2, pool_available=2))
        assert stat(pool, "requests_num") == 6


def test_an_engine_rolls_back(dsn: str) -> None:
    """What an engine connection did not commit is gone; what begin() did is there."""
    with ConnectionPool(dsn, min_size=1, close_returns=True) as pool:
        engine = engine_over(pool)
        with engine.begin() as conn:
            conn.execute(text("create temp table things (n int)"))
        with engine.connect() as conn:
            conn.execute(text("insert into things values (1)"))
        with engine.connect() as conn:
            assert conn.execute(text("select count(*) from things")).scalar() == 0


def test_an_engine_serves_many_threads(dsn: str) -> None:
    """Twelve threads over three connections."""
    with ConnectionPool(dsn, min_size=3, close_returns=True) as pool:
        engine = engine_over(pool)

        def client(number: int) -> int:
            with engine.connect() as conn:
                return int(conn.execute(text("select :n * 2"), {"n": number}).scalar_one())

        with ThreadPoolExecutor(12) as threads:
            assert list(threads.map(client, range(60))) == [n * 2 for n in range(60)]


def test_an_engine_that_loses_its_connections_does_not_empty_the_pool(
    dsn: str, admin: Admin
) -> None:
    """SQLAlchemy closes a lost connection; the pool opens another."""
    with ConnectionPool(dsn, min_size=1, close_returns=True, timeout=20) as pool:
        engine = engine_over(pool)
        for _ in range(3):
            lose(engine, admin)
        with engine.connect() as conn:
            assert conn.execute(text("select 1")).scalar() == 1
        asyncio.run(settled(pool, pool_size=1, pool_available=1))


def lose(engine: Engine, admin: Admin) -> None:
    """Have the server end the session of an engine connection while it is in use."""
    with engine.connect() as conn:
        pid = conn.execute(text("select pg_backend_pid()")).scalar_one()
        asyncio.run(admin.kill(pid))
        with pytest.raises(exc.OperationalError):
            conn.execute(text("select 1"))
    gc.collect()  # the traceback holds the connection in a cycle


def test_an_engine_over_a_null_pool(dsn: str) -> None:
    """close_returns is honoured by null pools: no place is lost."""
    with NullConnectionPool(dsn, max_size=1, close_returns=True, timeout=20) as pool:
        engine = engine_over(pool)
        for _ in range(3):
            with engine.connect() as conn:
                assert conn.execute(text("select 1")).scalar() == 1
        asyncio.run(settled(pool, pool_size=0))


async def test_an_async_engine_gives_its_connections_back(dsn: str) -> None:
    """Twelve tasks over three connections."""
    async with AsyncConnectionPool(dsn, min_size=3, close_returns=True) as pool:
        engine = async_engine_over(pool)

        async def client(number: int) -> int:
            async with engine.connect() as conn:
                answer = await conn.execute(text("select :n * 2"), {"n": number})
                return int(answer.scalar_one())

        answers = await asyncio.gather(*(client(n) for n in range(12)))
        assert answers == [n * 2 for n in range(12)]
        await settled(pool, pool_size=3, pool_available=3)
        await engine.dispose()


async def test_an_async_engine_that_loses_its_connections(dsn: str, admin: Admin) -> None:
    """The pool of an async engine survives lost sessions too."""
    async with AsyncConnectionPool(dsn, min_size=1, close_returns=True, timeout=20) as pool:
        engine = async_engine_over(pool)
        for _ in range(3):
            await lose_async(engine, admin)
        async with engine.connect() as conn:
            assert (await conn.execute(text("select 1"))).scalar() == 1
        await settled(pool, pool_size=1, pool_available=1)


async def lose_async(engine: AsyncEngine, admin: Admin) -> None:
    """The same as `lose`, for an async engine."""
    async with engine.connect() as conn:
        pid = (await conn.execute(text("select pg_backend_pid()"))).scalar_one()
        await admin.kill(pid)
        with pytest.raises(exc.OperationalError):
            await conn.execute(text("select 1"))
    gc.collect()  # the traceback holds the connection in a cycle


async def test_both_engines_play_with_the_same_door(door: Door) -> None:
    """getconn() as SQLAlchemy calls it, without arguments, gives a plain driver connection."""
    pool = await door.open(min_size=1, close_returns=True)
    conn = await door(pool.getconn)
    assert isinstance(conn, door.connection_class)
    await door(conn.close)
    await settled(pool, pool_available=1)
