"""Primary or standby: as the server reports it, and as it answers."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import psycopg
import psycopg2.extras
import pytest
from psycopg.rows import dict_row

from forebay._embedded import EmbeddedPostgres
from forebay.drivers.psycopg import AsyncPsycopg

from .scripted import ScriptedServer
from .sides import Side


def in_recovery(side: Side, conn: Any) -> bool:
    """What the driver is answered."""
    try:
        side.driver.in_recovery(conn).send(None)
    except StopIteration as done:
        return bool(done.value)
    raise AssertionError("the driver of a library for threads has suspended")


def test_a_primary_is_one(side: Side, dsn: str) -> None:
    """It reports so from the beginning, and says so when it is asked."""
    conn = side.connect(dsn)
    assert side.driver.standby(conn) is False
    assert in_recovery(side, conn) is False


def test_a_server_that_does_not_report_is_unknown(side: Side) -> None:
    """As those before PostgreSQL 14, and what stands between."""
    with ScriptedServer() as server:
        conn, _ = server.greets(side)
        assert side.driver.standby(conn) is None


@pytest.mark.embedded
def test_a_standby_is_one_until_it_is_promoted(side: Side) -> None:
    """After the promotion any query tells, and none is needed to ask by."""
    with EmbeddedPostgres() as server:
        server.stop()
        (server.data / "standby.signal").touch()
        start = threading.Thread(target=server.start)  # which waits for a primary
        start.start()
        conn = _await_connection(side, server.dsn)
        assert side.driver.standby(conn) is True
        assert in_recovery(side, conn) is True
        assert side.value(conn, "select pg_promote()") is True
        start.join(30)
        side.value(conn, "select 1")
        assert side.driver.standby(conn) is False
        assert in_recovery(side, conn) is False
        side.close()


def _await_connection(side: Side, dsn: str) -> Any:
    deadline = time.monotonic() + 30
    while True:
        try:
            return side.connect(dsn)
        except side.library.OperationalError:
            assert time.monotonic() < deadline, "the standby does not accept connections"


@pytest.mark.parametrize("autocommit", [True, False])
def test_asking_leaves_no_transaction(side: Side, dsn: str, autocommit: bool) -> None:
    """The connection is afterwards what it was before."""
    conn = side.connect(dsn)
    conn.autocommit = autocommit
    assert in_recovery(side, conn) is False
    assert not side.driver.unclean(conn)
    assert conn.autocommit is autocommit


def test_asking_does_not_depend_on_the_users_rows(side: Side, dsn: str) -> None:
    """Rows may be dictionaries, or anything."""
    dictionaries: dict[str, Any] = {
        "psycopg": {"row_factory": dict_row},
        "psycopg2": {"cursor_factory": psycopg2.extras.RealDictCursor},
    }
    conn = side.connect(dsn, **dictionaries[side.name])
    assert in_recovery(side, conn) is False


def test_asking_a_lost_connection_raises(side: Side, dsn: str, admin: psycopg.Connection) -> None:
    """With an error of the library."""
    conn = side.connect(dsn)
    conn.autocommit = False
    admin.execute("select pg_terminate_backend(%s)", [conn.info.backend_pid])
    with pytest.raises(side.library.Error):
        in_recovery(side, conn)
    assert conn.closed


@pytest.mark.parametrize("autocommit", [True, False])
def test_asking_under_asyncio(dsn: str, autocommit: bool) -> None:
    """The same of an AsyncConnection."""

    async def play() -> None:
        driver = AsyncPsycopg()
        options: dict[str, Any] = {"autocommit": autocommit, "row_factory": dict_row}
        async with await psycopg.AsyncConnection.connect(dsn, **options) as conn:
            assert driver.standby(conn) is False
            assert await driver.in_recovery(conn) is False
            assert not driver.unclean(conn)
            assert conn.autocommit is autocommit

    asyncio.run(play())
