"""Type-checked, never run: what a type checker makes of a program that uses the pools."""

from __future__ import annotations

from typing import assert_type

from psycopg import AsyncConnection, Connection
from psycopg.rows import DictRow, TupleRow, dict_row

from forebay import AsyncConnectionPool, ConnectionPool, NullConnectionPool, PoolOptions


class Mine(Connection[DictRow]):
    """A program's own connection class."""

    def greet(self) -> str:
        """Something of its own."""
        return "hello"


def plain() -> None:
    """Without a class, connections give tuples."""
    pool = ConnectionPool("")
    assert_type(pool, ConnectionPool[Connection[TupleRow]])
    with pool, pool.connection(timeout=1.0) as conn:
        assert_type(conn, Connection[TupleRow])
    conn = pool.getconn()
    pool.putconn(conn)
    assert_type(pool.get_stats(), dict[str, int])


def own_class() -> None:
    """A connection class goes through the pool to the lease."""

    def configure(conn: Mine) -> None:
        conn.greet()

    pool = ConnectionPool("", connection_class=Mine, configure=configure, kwargs=dict)
    with pool.connection() as conn:
        assert_type(conn, Mine)
        assert_type(conn.greet(), str)


def rows() -> None:
    """The class may be given with its kind of row."""
    pool = NullConnectionPool(
        lambda: "", connection_class=Connection[DictRow], kwargs={"row_factory": dict_row}
    )
    with pool.connection() as conn:
        assert_type(conn, Connection[DictRow])


async def asynchronous() -> None:
    """Coroutine functions are accepted where the pool awaits them."""

    async def fresh() -> str:
        return ""

    async def reset(conn: AsyncConnection) -> None:
        await conn.execute("discard all")

    pool = AsyncConnectionPool(fresh, reset=reset, open=False)
    async with pool, pool.connection() as conn:
        assert_type(conn, AsyncConnection[TupleRow])
    checked = AsyncConnectionPool("", check=AsyncConnectionPool.check_connection, open=False)
    async with checked.connection() as conn:
        assert_type(conn, AsyncConnection[TupleRow])


def from_settings(options: PoolOptions) -> None:
    """Options may come from a dictionary; the class of the connections is inferred all the same."""
    pool = NullConnectionPool("", connection_class=Mine, **options)
    with pool.connection() as conn:
        assert_type(conn, Mine)


def mistakes(pool: ConnectionPool) -> None:
    """A type checker finds these before a run does."""
    NullConnectionPool("", max_uses="1")  # type: ignore[arg-type]
    _: PoolOptions = {"max_size": "4"}  # type: ignore[typeddict-item]
    pool.getconn(timeout="1")  # type: ignore[arg-type]
    ConnectionPool("", idle_order="random")  # type: ignore[arg-type]
    ConnectionPool("", min_sise=1)  # type: ignore[call-arg]
