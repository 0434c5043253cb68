"""REFERENCE 1, "Methods": connection(), getconn(), putconn(), and what is true while lent."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest
from psycopg.pq import TransactionStatus

from forebay import PoolClosed

from .door import Admin, Door, eventually, settled, stat


class Trouble(Exception):
    """An application's own error."""


async def table(door: Door, conn: Any) -> None:
    """Make a temporary table that the session keeps, for what a lease commits or undoes."""
    await door(conn.execute, "create temp table if not exists things (n int)")


async def things(door: Door, conn: Any) -> int:
    """How many rows the session's table has."""
    cursor = await door(conn.execute, "select count(*) from things")
    (number,) = await door(cursor.fetchone)
    return int(number)


async def test_a_lease_commits(door: Door) -> None:
    """At the end of the block the transaction is committed and the connection comes back."""
    pool = await door.open(min_size=1)
    async with door.using(pool.connection()) as conn:
        await table(door, conn)
        await door(conn.execute, "insert into things values (1)")
    async with door.using(pool.connection()) as again:
        assert again is conn
        assert again.info.transaction_status == TransactionStatus.IDLE
        assert await things(door, again) == 1


async def test_an_exception_in_a_lease_rolls_back_and_propagates_unchanged(any_door: Door) -> None:
    """The block's own exception object arrives outside, without a cause or context of ours."""
    door = any_door
    pool = await door.open(max_size=1, **door.least)
    trouble = Trouble("mine")
    undone: list[str] = []

    async def fail() -> None:
        async with door.using(pool.connection()) as conn:
            await spy(conn, "rollback", undone)
            await door(conn.execute, "select 1")
            raise trouble

    with pytest.raises(Trouble) as caught:
        await fail()
    assert caught.value is trouble
    assert (trouble.__cause__, trouble.__context__) == (None, None)
    assert undone == ["rollback"]
    assert stat(pool, "returns_bad") == 0


async def spy(conn: Any, name: str, calls: list[str]) -> None:
    """Note the calls of one method of this connection, and make them."""
    original = getattr(conn, name)

    def called(*args: Any, **kwargs: Any) -> Any:
        calls.append(name)
        return original(*args, **kwargs)

    setattr(conn, name, called)


async def test_an_exception_undoes_what_the_block_did(door: Door) -> None:
    """What was written before the exception is not there afterwards."""
    pool = await door.open(min_size=1)
    async with door.using(pool.connection()) as conn:
        await table(door, conn)

    async def fail() -> None:
        async with door.using(pool.connection()) as conn:
            await door(conn.execute, "insert into things values (1)")
            raise Trouble

    with pytest.raises(Trouble):
        await fail()
    async with door.using(pool.connection()) as conn:
        assert await things(door, conn) == 0


async def test_a_query_error_in_a_lease_leaves_the_connection_usable(door: Door) -> None:
    """A failed statement's transaction is rolled back; the same connection serves again."""
    pool = await door.open(min_size=1)
    with pytest.raises(psycopg.errors.DivisionByZero):
        async with door.using(pool.connection()) as conn:
            await door(conn.execute, "select 1/0")
    async with door.using(pool.connection()) as again:
        assert again is conn
        await door.pid(again)


async def test_a_lent_connection_knows_its_pool(any_door: Door) -> None:
    """`conn._pool` is the pool while the connection is lent, and None afterwards."""
    door = any_door
    pool = await door.open(max_size=1, **door.least)
    async with door.using(pool.connection()) as conn:
        assert conn._pool is pool
    await eventually(lambda: conn._pool is None, pool)
    conn = await door(pool.getconn)
    assert conn._pool is pool
    await door(conn._pool.putconn, conn)
    assert conn._pool is None


async def test_the_lease_honours_overridden_getconn_and_putconn(door: Door) -> None:
    """A subclass that overrides getconn() and putconn() sees every lease."""
    seen: list[tuple[str, Any]] = []
    base = door.pool_class

    class Watching(base):  # type: ignore[misc, valid-type]
        def getconn(self, timeout: float | None = None) -> Any:
            seen.append(("getconn", timeout))
            return super().getconn(timeout)

        def putconn(self, conn: Any) -> Any:
            seen.append(("putconn", conn))
            return super().putconn(conn)

    pool = await door.open(min_size=1, pool_class=Watching)
    async with door.using(pool.connection(timeout=7)) as conn:
        await door.pid(conn)
    assert seen == [("getconn", 7), ("putconn", conn)]


@pytest.mark.parametrize("fails", [False, True])
async def test_the_lease_calls_the_connections_own_commit_and_rollback(
    door: Door, fails: bool
) -> None:
    """A connection class with its own commit() and rollback() has them called on exit."""
    calls: list[str] = []

    def noting(name: str) -> Any:
        def method(self: Any) -> Any:
            calls.append(name)
            return getattr(door.connection_class, name)(self)

        return method

    body = {name: noting(name) for name in ("commit", "rollback")}
    kind = type("Noting", (door.connection_class,), body)
    pool = await door.open(min_size=1, connection_class=kind)
    try:
        async with door.using(pool.connection()):
            if fails:
                raise Trouble
    except Trouble:
        pass
    assert calls == ["rollback" if fails else "commit"]


async def test_the_lease_calls_the_connections_own_exit(door: Door) -> None:
    """A connection class with its own __exit__ has it called, with the exception."""
    seen: list[Any] = []
    name = "__aexit__" if door.is_async else "__exit__"

    def leave(self: Any, kind: Any, error: Any, trace: Any) -> Any:
        seen.append(error)
        return getattr(door.connection_class, name)(self, kind, error, trace)

    kind = type("Leaving", (door.connection_class,), {name: leave})
    pool = await door.open(min_size=1, connection_class=kind)
    async with door.using(pool.connection()):
        pass
    trouble = Trouble()
    with pytest.raises(Trouble):
        async with door.using(pool.connection()):
            raise trouble
    assert seen == [None, trouble]


async def test_a_connection_returned_in_a_transaction_is_rolled_back(
    door: Door, caplog: pytest.LogCaptureFixture
) -> None:
    """putconn() of a connection in a transaction rolls it back and logs a warning."""
    pool = await door.open(min_size=1, name="careless")
    conn = await door(pool.getconn)
    await table(door, conn)
    await door(conn.commit)
    calls: list[str] = []
    await spy(conn, "rollback", calls)
    await door(conn.execute, "insert into things values (1)")
    await door(pool.putconn, conn)
    again = await door(pool.getconn)
    assert again is conn
    assert calls == ["rollback"]
    assert await things(door, again) == 0
    await door(again.rollback)
    await door(pool.putconn, again)
    (record,) = [r for r in caplog.records if r.levelname == "WARNING"]
    assert record.name.split(".")[0] == "forebay"
    assert "INTRANS" in record.getMessage()


async def test_a_failed_transaction_is_rolled_back_on_return(
    door: Door, caplog: pytest.LogCaptureFixture
) -> None:
    """A connection whose transaction failed comes back clean too."""
    pool = await door.open(min_size=1)
    conn = await door(pool.getconn)
    with pytest.raises(psycopg.errors.DivisionByZero):
        await door(conn.execute, "select 1/0")
    await door(pool.putconn, conn)
    async with door.using(pool.connection()) as again:
        assert again is conn
        await door.pid(again)
    assert any("INERROR" in r.getMessage() for r in caplog.records)


async def test_a_busy_connection_is_discarded_on_return(door: Door) -> None:
    """A connection in the middle of a COPY cannot be lent again: it is replaced."""
    pool = await door.open(min_size=1)
    conn = await door(pool.getconn)
    conn.pgconn.exec_(b"copy (select 1) to stdout")
    assert conn.info.transaction_status == TransactionStatus.ACTIVE
    await door(pool.putconn, conn)
    async with door.using(pool.connection()) as other:
        assert other is not conn
        await door.pid(other)
    await eventually(lambda: conn.closed, conn)
    assert stat(pool, "returns_bad") == 1


async def test_a_broken_connection_is_replaced_on_return(door: Door, admin: Admin) -> None:
    """A connection lost while lent does not shrink the pool."""
    pool = await door.open(min_size=2)
    before = admin.pids(door.application)
    with pytest.raises(psycopg.OperationalError):
        await admin.lose(door, pool)
    await settled(pool, pool_available=2, pool_size=2, returns_bad=1)
    one, two = await door(pool.getconn), await door(pool.getconn)
    after = {await door.pid(one), await door.pid(two)}
    assert len(after & before) == 1
    assert len(after - before) == 1
    for conn in (one, two):
        await door(pool.putconn, conn)


async def test_a_connection_closed_by_its_holder_is_replaced(any_door: Door) -> None:
    """conn.close() on a lent connection, then the return: another one takes its place."""
    door = any_door
    pool = await door.open(max_size=1, **door.least)
    async with door.using(pool.connection()) as conn:
        await door(conn.close)
    async with door.using(pool.connection()) as other:
        assert other is not conn
        await door.pid(other)
    assert stat(pool, "returns_bad") == 1


async def test_close_returns_gives_the_connection_back(any_door: Door) -> None:
    """With close_returns=True, conn.close() on a lent connection is putconn()."""
    door = any_door
    pool = await door.open(max_size=1, close_returns=True, **door.least)
    assert pool.close_returns is True
    conn = await door(pool.getconn)
    await door(conn.close)
    assert conn._pool is None
    again = await door(pool.getconn, timeout=5)
    assert door.is_null or again is conn
    await door.pid(again)
    await door(again.close)


async def test_close_without_close_returns_closes(door: Door) -> None:
    """By default conn.close() closes the session; the return replaces it."""
    pool = await door.open(min_size=1)
    assert pool.close_returns is False
    conn = await door(pool.getconn)
    await door(conn.close)
    assert conn.closed
    await door(pool.putconn, conn)
    await settled(pool, pool_available=1)


async def test_close_returns_survives_connections_lost_while_lent(door: Door, admin: Admin) -> None:
    """The driver's close() does nothing on a lost connection; the pool heals all the same."""
    pool = await door.open(min_size=1, close_returns=True)
    for _ in range(3):
        await lose_one(door, pool, admin)
    async with door.using(pool.connection(timeout=10)) as conn:
        await door.pid(conn)
    await settled(pool, pool_size=1, pool_available=1)


async def lose_one(door: Door, pool: Any, admin: Admin) -> None:
    """Lose a lent connection the way a program over close_returns does."""
    conn = await door(pool.getconn, timeout=10)
    await admin.kill(conn.info.backend_pid)
    with pytest.raises(psycopg.OperationalError):
        await door(conn.execute, "select 1")
    await door(conn.close)


async def test_a_lent_connection_that_is_forgotten_gives_its_place_back(door: Door) -> None:
    """A connection that is garbage collected while lent does not shrink the pool."""
    pool = await door.open(min_size=1)
    conn = await door(pool.getconn)
    await door(conn.close)  # so that its own finalizer has nothing to warn of
    del conn
    async with door.using(pool.connection(timeout=10)) as other:
        await door.pid(other)


async def test_leases_nest(door: Door) -> None:
    """One client may hold two connections, each its own."""
    pool = await door.open(min_size=2)
    async with door.using(pool.connection()) as one, door.using(pool.connection()) as two:
        assert await door.pid(one) != await door.pid(two)
    assert stat(pool, "pool_available") == 2


async def test_a_lease_of_a_closed_pool_is_refused(any_door: Door) -> None:
    """connection() raises PoolClosed on entry, not before."""
    pool = await any_door.open(max_size=1, **any_door.least)
    await any_door(pool.close)
    lease = any_door.using(pool.connection())
    with pytest.raises(PoolClosed):
        async with lease:
            raise AssertionError("no connection should have been lent")


async def test_the_last_returned_connection_is_lent_first(door: Door) -> None:
    """By default few connections stay busy: the idle ones are a stack."""
    assert await order_of_idle(door) == [1, 0]
    assert await order_of_idle(door, idle_order="lifo") == [1, 0]


async def test_fifo_order_spreads_the_use(door: Door) -> None:
    """With idle_order='fifo' the connection idle for longest is lent first."""
    assert await order_of_idle(door, idle_order="fifo") == [0, 1]


async def order_of_idle(door: Door, **options: Any) -> list[int]:
    """Return two connections one after the other; in which order are they lent again?"""
    pool = await door.open(min_size=2, **options)
    lent = [await door(pool.getconn) for _ in range(2)]
    for conn in lent:
        await door(pool.putconn, conn)
    order = [await door(pool.getconn) for _ in range(2)]
    for conn in order:
        await door(pool.putconn, conn)
    return [lent.index(conn) for conn in order]
