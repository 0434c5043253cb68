"""What a client may leave on a connection that its transaction status does not show."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import psycopg
import pytest
from psycopg.rows import TupleRow

from forebay._embedded import EmbeddedPostgres
from forebay.drivers.psycopg import AsyncPsycopg, SyncPsycopg

GID = "left by a test"
Conn: TypeAlias = psycopg.Connection[TupleRow]


@pytest.fixture(scope="module")
def patient() -> Iterator[EmbeddedPostgres]:
    """A server that prepares transactions."""
    with EmbeddedPostgres({"max_prepared_transactions": 10}) as server:
        yield server


@pytest.fixture
def conn(patient: EmbeddedPostgres) -> Iterator[Conn]:
    """A connection, after which no prepared transaction is left."""
    with psycopg.connect(patient.dsn) as conn:
        yield conn
        conn.close()
    with psycopg.connect(patient.dsn, autocommit=True) as admin:
        for xid in admin.tpc_recover():
            admin.tpc_rollback(xid)


def prepared(conn: Conn) -> Any:
    """Leave a two-phase transaction prepared."""
    conn.tpc_begin(GID)
    conn.execute("select 1")
    conn.tpc_prepare()


def begun(conn: Conn) -> Any:
    """Leave a two-phase transaction begun."""
    conn.tpc_begin(GID)


def piped(conn: Conn) -> Any:
    """Leave a pipeline open, in which nothing was done."""
    pipeline = conn.pipeline()
    pipeline.__enter__()
    return pipeline


def busy(conn: Conn) -> Any:
    """Leave a pipeline open, with something in it."""
    pipeline = piped(conn)
    conn.execute("select 1")
    return pipeline


def nested(conn: Conn) -> Any:
    """Leave a transaction() block open, whose transaction was ended behind its back."""
    block = conn.transaction()
    block.__enter__()
    conn.execute("commit")
    return block


def listening(conn: Conn) -> Any:
    """Leave a generator suspended, which holds the lock of the connection."""
    conn.autocommit = True
    conn.execute("listen state")
    conn.execute("notify state")
    notifies = conn.notifies()
    next(notifies)
    return notifies


@pytest.mark.embedded
@pytest.mark.parametrize(
    ("leave", "description"),
    [
        (prepared, f"IDLE, two-phase transaction '{GID}' prepared"),
        (begun, f"INTRANS, two-phase transaction '{GID}' begun"),
        (piped, "IDLE, in pipeline mode"),
        (busy, "ACTIVE, in pipeline mode"),
        (nested, "IDLE, in a transaction() block"),
        (listening, "IDLE, in notifies()"),
    ],
)
def test_what_no_rollback_ends_makes_a_connection_useless(
    conn: Conn, leave: Callable[[Conn], Any], description: str
) -> None:
    """The next client could not commit, or would wait for ever; the description names it."""
    driver = SyncPsycopg()
    kept = leave(conn)
    assert not driver.usable(conn)
    assert driver.describe(conn) == description
    assert description in driver.label(conn)
    if leave is not nested:  # which is looked for only where there is a transaction besides
        assert driver.unclean(conn)
    del kept


@pytest.mark.embedded
def test_what_has_been_ended_leaves_nothing(conn: Conn) -> None:
    """Each of them, once it is over, is no state of the connection any more."""
    driver = SyncPsycopg()
    prepared(conn)
    conn.tpc_rollback()
    begun(conn)
    conn.tpc_rollback()
    with conn.pipeline():
        conn.execute("select 1")
    conn.commit()
    with conn.transaction():
        conn.execute("select 1")
    assert not driver.unclean(conn)
    listening(conn)  # nobody keeps the generator
    assert not driver.unclean(conn)
    assert driver.usable(conn)
    assert driver.describe(conn) == "IDLE"


@pytest.mark.embedded
def test_a_pipeline_shows_under_asyncio_too(patient: EmbeddedPostgres) -> None:
    """An AsyncConnection has the same states."""
    driver = AsyncPsycopg()

    async def play() -> None:
        async with await psycopg.AsyncConnection.connect(patient.dsn) as conn:
            assert not driver.unclean(conn)
            async with conn.pipeline():
                assert driver.unclean(conn)
                assert not driver.usable(conn)
                assert driver.describe(conn) == "IDLE, in pipeline mode"
            assert not driver.unclean(conn)

    asyncio.run(play())


@pytest.mark.embedded
def test_a_two_phase_transaction_shows_under_asyncio_too(patient: EmbeddedPostgres) -> None:
    """The same of a prepared one."""
    driver = AsyncPsycopg()

    async def play() -> None:
        async with await psycopg.AsyncConnection.connect(patient.dsn) as conn:
            await conn.tpc_begin(GID)
            await conn.tpc_prepare()
            assert driver.unclean(conn)
            assert not driver.usable(conn)
            assert driver.describe(conn) == f"IDLE, two-phase transaction '{GID}' prepared"
            await conn.tpc_rollback()
            assert not driver.unclean(conn)

    asyncio.run(play())


@pytest.mark.embedded
def test_a_generator_of_asyncio_ends_a_moment_later(patient: EmbeddedPostgres) -> None:
    """It is closed by its loop, and the next client waits for that: its connection is fine."""
    driver = AsyncPsycopg()

    async def play() -> int:
        async with await psycopg.AsyncConnection.connect(patient.dsn, autocommit=True) as conn:
            await conn.execute("listen state")
            await conn.execute("notify state")
            async for _ in conn.notifies():
                break
            assert not driver.unclean(conn)
            cursor = await conn.execute("select 42")
            row = await cursor.fetchone()
            assert row is not None
            answer: int = row[0]
            return answer

    assert asyncio.run(asyncio.wait_for(play(), 10)) == 42


def copying(conn: Conn) -> Any:
    """Leave a COPY open."""
    copy = conn.cursor().copy("copy (select generate_series(1, 100000)) to stdout")
    copy.__enter__()
    return copy


def streaming(conn: Conn) -> Any:
    """Leave a stream open."""
    rows = conn.cursor().stream("select generate_series(1, 100000)")
    next(rows)
    return rows


def scrolling(conn: Conn) -> Any:
    """Leave a cursor on the server open."""
    cursor = conn.cursor("scrolling")
    cursor.execute("select 1")
    return cursor


def blocked(conn: Conn) -> Any:
    """Leave a transaction() block open."""
    block = conn.transaction()
    block.__enter__()
    return block


@pytest.mark.embedded
@pytest.mark.parametrize(
    ("leave", "status", "usable"),
    [
        (copying, "ACTIVE", False),
        (streaming, "ACTIVE", False),
        (scrolling, "INTRANS", True),
        (blocked, "INTRANS, in a transaction() block", False),
    ],
)
def test_what_the_status_shows_is_believed(
    conn: Conn, leave: Callable[[Conn], Any], status: str, usable: bool
) -> None:
    """A command that runs cannot be rolled back, a transaction can, outside of its block."""
    driver = SyncPsycopg()
    kept = leave(conn)
    assert driver.unclean(conn)
    assert driver.usable(conn) is usable
    assert driver.describe(conn) == status
    if leave is scrolling:
        kept.close()
