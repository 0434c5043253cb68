"""What psycopg2's connections are asked, and what stands in for them."""

from __future__ import annotations

import socket
from collections import deque
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import psycopg
import psycopg2
import pytest
from psycopg2.extensions import (
    POLL_WRITE,
    STATUS_BEGIN,
    STATUS_PREPARED,
    TRANSACTION_STATUS_INTRANS,
    connection,
    make_dsn,
)
from psycopg2.extras import wait_select

from forebay import _sockets
from forebay.drivers.psycopg2 import SyncPsycopg2, check_connection, end_transaction

from .sides import await_input

SECRET = "hunter2"
driver = SyncPsycopg2()


@pytest.fixture
def conn(dsn: str) -> Iterator[connection]:
    """A connection of psycopg2's."""
    made = psycopg2.connect(dsn)
    yield made
    made.close()


@pytest.fixture
def asynchronous(dsn: str) -> Iterator[connection]:
    """An asynchronous connection, which still connects."""
    made = psycopg2.connect(dsn, async_=1)
    yield made
    made.close()


# States ------------------------------------------------------------------------------------------


def test_a_connection_that_still_connects_is_neither_idle_nor_dead() -> None:
    """It is not usable, and looking at it gets it on: here by the first byte of an answer."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        conn = psycopg2.connect(
            f"host=127.0.0.1 port={port} user=me sslmode=disable gssencmode=disable", async_=1
        )
        peer, _ = server.accept()
        with peer:
            assert driver.look(conn) is None
            while conn.poll() == POLL_WRITE:
                pass
            assert peer.recv(1000)
            peer.sendall(b"R")
            await_input(conn)
            assert driver.look(conn) is None
            assert driver.unclean(conn)
            assert not driver.usable(conn)
            assert not driver.closed(conn)
    conn.close()


def test_an_asynchronous_connection_is_used_without_commit(asynchronous: connection) -> None:
    """It has none, nor a rollback; what the program has begun by itself is not lost in silence."""
    wait_select(asynchronous)
    assert not driver.unclean(asynchronous)
    end_transaction(asynchronous, failed=False)
    check_connection(asynchronous)
    assert not driver.unclean(asynchronous)
    cursor = asynchronous.cursor()
    cursor.execute("begin")
    wait_select(asynchronous)
    assert driver.unclean(asynchronous)
    with pytest.raises(psycopg2.ProgrammingError, match="asynchronous"):
        end_transaction(asynchronous, failed=False)


@pytest.mark.parametrize("autocommit", [False, True])
def test_what_is_left_in_copy_is_not_lent_on(conn: connection, autocommit: bool) -> None:
    """An execute() of COPY fails, and leaves the connection to send what it has to send."""
    conn.autocommit = autocommit
    with pytest.raises(psycopg2.ProgrammingError, match="copy_to"):
        conn.cursor().execute("copy (select 1) to stdout")
    assert driver.unclean(conn)
    assert not driver.usable(conn)
    assert driver.describe(conn) == "ACTIVE"


def test_an_open_cursor_of_the_server_is_a_transaction(conn: connection) -> None:
    """It ends with that."""
    cursor = conn.cursor("named")
    cursor.execute("select generate_series(1, 10000)")
    assert driver.unclean(conn)
    assert driver.usable(conn)
    conn.rollback()
    assert not driver.unclean(conn)


def test_a_prepared_transaction_cannot_be_rolled_back() -> None:
    """Psycopg2 alone knows of it: the server's view is idle."""
    prepared: Any = SimpleNamespace(get_transaction_status=lambda: 0, status=STATUS_PREPARED)
    assert driver.unclean(prepared)
    assert not driver.usable(prepared)
    assert driver.describe(prepared) == "IDLE, two-phase transaction prepared"
    begun: Any = SimpleNamespace(get_transaction_status=lambda: 0, status=STATUS_BEGIN)
    assert driver.unclean(begun)
    assert driver.usable(begun)
    assert driver.describe(begun) == "IDLE, psycopg2 believes in a transaction"


def test_the_end_of_a_session_is_told_from_its_close(
    conn: connection, admin: psycopg.Connection
) -> None:
    """By the server, or by its client."""
    assert not driver.died(conn)
    admin.execute("select pg_terminate_backend(%s)", [conn.info.backend_pid])
    with pytest.raises(psycopg2.OperationalError):
        conn.cursor().execute("select 1")
    assert driver.died(conn)
    driver.end(conn)
    assert not driver.died(conn)
    assert driver.closed(conn)
    assert driver.descriptor(conn) is None


# Notifications -----------------------------------------------------------------------------------


def test_an_idle_connection_does_not_gather_notifies_without_end(
    conn: connection, admin: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that still LISTENs, and of which nobody takes them, is given up, which is said."""
    monkeypatch.setattr("forebay.drivers.psycopg2.NOTIFIES", 5)
    conn.autocommit = True
    conn.cursor().execute("listen gathering")
    for number in range(5):
        admin.execute(f"notify gathering, '{number}'")
    while len(conn.notifies) < 5:
        await_input(conn)
        assert driver.look(conn) is None
    admin.execute("notify gathering, 'one too many'")
    await_input(conn)
    error = driver.look(conn)
    assert isinstance(error, psycopg2.OperationalError)
    assert "UNLISTEN" in str(error)


def test_what_is_taken_in_time_is_no_trouble(
    conn: connection, admin: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many there are in all; nor is what the user bounds, or keeps elsewhere."""
    monkeypatch.setattr("forebay.drivers.psycopg2.NOTIFIES", 5)
    conn.autocommit = True
    conn.cursor().execute("listen taken")
    taken: list[str] = []
    for number in range(12):
        admin.execute(f"notify taken, '{number}'")
        await_input(conn)
        assert driver.look(conn) is None
        taken += [conn.notifies.pop().payload]
    assert taken == [str(number) for number in range(12)]
    for keeper in (deque[Any](maxlen=3), SimpleNamespace(append=taken.append)):
        conn.notifies = keeper  # type: ignore[assignment]
        for number in range(9):
            admin.execute(f"notify taken, '{number}'")
        await_input(conn)
        assert driver.look(conn) is None


# Names -------------------------------------------------------------------------------------------


def test_a_label_tells_where_a_connection_leads_and_no_secret(dsn: str) -> None:
    """In one line; psycopg2's own text quotes the whole string, but for the password."""
    conn = psycopg2.connect(make_dsn(dsn, sslpassword=SECRET, application_name="a\nb"))
    info = conn.info
    label = driver.label(conn)
    assert SECRET in str(conn)
    assert SECRET not in label
    assert label.isprintable()
    assert f"[IDLE] (host={info.host} database={info.dbname} pid={info.backend_pid})" in label
    conn.close()
    assert "psycopg2.extensions.connection [UNKNOWN] at 0x" in driver.label(conn)


class Broken:
    """Raises whatever is asked."""

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(name)


@pytest.mark.parametrize("thing", [None, object(), MagicMock(), Broken()], ids=lambda t: type(t))
def test_anything_has_a_label(thing: Any) -> None:
    """It never raises."""
    assert type(thing).__name__ in driver.label(thing)


# What stands in for connections ------------------------------------------------------------------


class Bare:
    """Has what a user of psycopg2.pool needs in a test, and no more."""

    def __init__(self) -> None:
        self.closed = 0

    def cursor(self) -> Any:
        """A cursor."""
        return MagicMock()

    def commit(self) -> None:
        """Commit."""

    def rollback(self) -> None:
        """Roll back."""

    def close(self) -> None:
        """Close."""
        self.closed = 1


@pytest.mark.parametrize("make", [Bare, MagicMock], ids=lambda make: make.__name__)
def test_a_stand_in_is_a_working_connection(make: Any) -> None:
    """What it does not have, or has as a mock has anything, is not held against it."""
    conn = make()
    assert not driver.unclean(conn)
    assert driver.usable(conn)
    assert not driver.closed(conn)
    assert not driver.died(conn)
    assert driver.describe(conn) == "IDLE"
    assert driver.look(conn) is None
    assert driver.lifeline(conn) is None
    assert driver.descriptor(conn) is None
    assert driver.standby(conn) is None
    assert driver.readable([conn]) == [conn] == _sockets.readable([conn])
    end_transaction(conn, failed=False)
    end_transaction(conn, failed=True)
    check_connection(conn)
    driver.end(conn)


def test_a_stand_in_may_tell_its_state_as_the_original_asks() -> None:
    """psycopg2.pool looks at `info.transaction_status`."""
    conn: Any = Bare()
    conn.info = SimpleNamespace(transaction_status=TRANSACTION_STATUS_INTRANS)
    assert driver.unclean(conn)
    assert driver.describe(conn) == "INTRANS"
    conn.close()
    assert driver.closed(conn)


class Proxy:
    """Stands for a connection, as an agent's proxy does."""

    def __init__(self, wrapped: Any) -> None:
        self.__dict__["wrapped"] = wrapped

    def __getattr__(self, name: str) -> Any:
        return getattr(self.wrapped, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.wrapped, name, value)


def test_what_is_behind_a_proxy_is_asked_through_it(conn: connection) -> None:
    """Its socket, its state, its server."""
    proxy = Proxy(conn)
    assert driver.look(proxy) is None
    assert driver.readable([proxy]) == []
    assert driver.descriptor(proxy) == conn.fileno()
    assert driver.standby(proxy) is False
    with pytest.raises(StopIteration) as done:
        driver.in_recovery(proxy).send(None)
    assert done.value.value is False
    check_connection(proxy)
    assert not driver.unclean(proxy)
    lifeline = driver.lifeline(proxy)
    assert lifeline is not None
    lifeline.cut()
    lifeline.close()
    assert isinstance(driver.look(proxy), psycopg2.OperationalError)
