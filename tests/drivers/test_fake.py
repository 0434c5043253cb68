"""The fake driver tells of its sessions what the others tell of theirs."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest

from forebay._entry import Verdict
from forebay.testing import FakeConnection, FakeDriver


def run(coroutine: Any) -> Any:
    """What a coroutine returns that never suspends."""
    with pytest.raises(StopIteration) as done:
        coroutine.send(None)
    return done.value.value


@pytest.fixture
def driver() -> FakeDriver:
    """A driver."""
    return FakeDriver()


@pytest.fixture
def conn(driver: FakeDriver) -> FakeConnection:
    """A connection of the driver."""
    made: FakeConnection = run(driver.connect())
    return made


def test_a_session_that_lives_is_silent(driver: FakeDriver, conn: FakeConnection) -> None:
    """As with a server."""
    assert driver.look(conn) is None
    assert driver.readable([conn]) == []


def test_a_lost_session_tells_why(driver: FakeDriver, conn: FakeConnection) -> None:
    """57P01, as after pg_terminate_backend(); the client has not found out."""
    conn.lose()
    assert driver.readable([conn]) == [conn]
    assert isinstance(driver.look(conn), psycopg.errors.AdminShutdown)
    assert not conn.closed


def test_the_reason_may_be_given(driver: FakeDriver, conn: FakeConnection) -> None:
    """Whatever a test is about."""
    reason = psycopg.OperationalError("server closed the connection unexpectedly")
    conn.lose(reason)
    assert driver.look(conn) is reason


def test_a_closed_session_is_dead(driver: FakeDriver, conn: FakeConnection) -> None:
    """Without a reason of the server."""
    conn.close()
    assert driver.readable([conn]) == [conn]
    assert isinstance(driver.look(conn), psycopg.OperationalError)
    assert driver.lifeline(conn) is None


def test_its_lifeline_cuts_it(driver: FakeDriver, conn: FakeConnection) -> None:
    """And lets go of nothing."""
    lifeline = driver.lifeline(conn)
    assert lifeline is not None
    lifeline.close()
    assert driver.look(conn) is None
    lifeline.cut()
    assert driver.look(conn) is not None


def test_it_may_pretend_to_be_a_standby(driver: FakeDriver, conn: FakeConnection) -> None:
    """As it reports, and as it answers."""
    assert (driver.standby(conn), run(driver.in_recovery(conn))) == (False, False)
    conn.standby, conn.in_recovery = None, True
    assert (driver.standby(conn), run(driver.in_recovery(conn))) == (None, True)
    conn.lose()
    with pytest.raises(psycopg.OperationalError):
        driver.in_recovery(conn).send(None)


def test_refusals_mean_what_they_mean_with_psycopg(driver: FakeDriver) -> None:
    """By their text."""
    error = psycopg.OperationalError('FATAL:  database "x" does not exist')
    assert driver.verdict(error) is Verdict.REJECTED
    assert driver.verdict(OSError("down")) is Verdict.TRANSIENT
