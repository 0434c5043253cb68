"""Cutting a connection off from another thread."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psycopg
import pytest

from forebay._sockets import Lifeline
from forebay.drivers.psycopg import AsyncPsycopg
from tests.faults.strokes import Strokes

from .sides import Side

DESCRIPTORS = Path("/proc/self/fd")
STROKES = 500
SLEEP = "select pg_sleep(3600)"


def await_sleep(admin: psycopg.Connection, pid: int) -> None:
    """Wait until a session sleeps in `SLEEP`."""
    asleep = "select wait_event = 'PgSleep' from pg_stat_activity where pid = %s"
    deadline = time.monotonic() + 10
    while admin.execute(asleep, [pid]).fetchone() != (True,):
        assert time.monotonic() < deadline, "not asleep within 10 seconds"


@pytest.mark.parametrize("address", ["dsn", "tcp"])
def test_a_blocked_thread_is_freed(
    side: Side, server: Any, admin: psycopg.Connection, address: str
) -> None:
    """Whoever waits for the server's answer gets an error of the library, at once."""
    dsn = server.dsn if address == "dsn" else getattr(server, "tcp_dsn", server.dsn)
    conn = side.connect(dsn)
    pid = conn.info.backend_pid
    errors: list[BaseException] = []

    def wait() -> None:
        try:
            side.value(conn, SLEEP)
        except BaseException as error:
            errors.append(error)

    lifeline = side.driver.lifeline(conn)
    thread = threading.Thread(target=wait)
    thread.start()
    await_sleep(admin, pid)
    lifeline.cut()
    thread.join(10)
    lifeline.close()
    assert isinstance(errors[0], side.library.OperationalError)
    assert side.driver.closed(conn)
    admin.execute("select pg_terminate_backend(%s)", [pid])  # which sleeps on


def test_a_blocked_task_is_freed(dsn: str, admin: psycopg.Connection) -> None:
    """The same under asyncio, where the loop waits for the socket."""

    async def play() -> None:
        conn = await psycopg.AsyncConnection.connect(dsn, autocommit=True)
        pid = conn.info.backend_pid
        lifeline = AsyncPsycopg().lifeline(conn)
        assert lifeline is not None
        task = asyncio.create_task(conn.execute(SLEEP))
        await asyncio.sleep(0)
        await asyncio.to_thread(await_sleep, admin, pid)
        lifeline.cut()
        with pytest.raises(psycopg.OperationalError):
            async with asyncio.timeout(10):
                await task
        lifeline.close()
        await conn.close()
        admin.execute("select pg_terminate_backend(%s)", [pid])

    asyncio.run(play())


def test_a_reused_descriptor_is_never_hit(side: Side, dsn: str) -> None:
    """A lifeline that comes late cuts nobody: neither it nor the system has the socket's number."""
    conn = side.connect(dsn)
    descriptor = conn.fileno()
    lifeline = side.driver.lifeline(conn)
    ours, theirs = socket.socketpair()
    conn.close()
    os.dup2(ours.fileno(), descriptor)  # somebody else's socket now
    with ours, theirs, socket.socket(fileno=descriptor) as successor:
        lifeline.cut()
        successor.sendall(b"alive")
        assert theirs.recv(5) == b"alive"
    lifeline.close()


def test_a_lifeline_lets_go_without_harm(side: Side, dsn: str) -> None:
    """Closed and never cut, it leaves the connection as it was; it may then be cut in vain."""
    conn = side.connect(dsn)
    lifeline = side.driver.lifeline(conn)
    lifeline.close()
    lifeline.close()
    lifeline.cut()
    assert side.value(conn, "select 1") == 1


def test_a_connection_that_is_cut_shows_it(side: Side, dsn: str) -> None:
    """Whoever looks finds it dead; to cut it again is harmless."""
    conn = side.connect(dsn)
    lifeline = side.driver.lifeline(conn)
    lifeline.cut()
    lifeline.cut()
    lifeline.close()
    assert side.driver.readable([conn]) == [conn]
    assert isinstance(side.driver.look(conn), side.library.OperationalError)


def test_a_lifeline_needs_a_socket() -> None:
    """A descriptor that is not open is refused."""
    with socket.socket() as gone:
        descriptor = gone.fileno()
    with pytest.raises(OSError, match="Bad file descriptor"):
        Lifeline(descriptor)


class Stroke(Exception):
    """What the handler raises."""


def test_a_handler_that_raises_costs_no_descriptor() -> None:
    """Wherever it strikes while lifelines are made: the session would stay open until the end."""
    ours, theirs = socket.socketpair()
    made = type(Lifeline(ours.fileno())._socket)
    before = len(list(DESCRIPTORS.iterdir()))
    raised = 0

    def strike(_number: int) -> None:
        nonlocal raised
        if sys._getframe(2).f_code is Lifeline.__init__.__code__:  # else it may be a finalizer
            raised += 1
            raise Stroke

    deadline = time.monotonic() + 60
    for turn in range(STROKES):
        with suppress(Stroke), Strokes(strike, 0.0002):
            while raised == turn and time.monotonic() < deadline:
                Lifeline(ours.fileno()).close()
    assert raised == STROKES
    assert len(list(DESCRIPTORS.iterdir())) == before
    made.__new__(made)  # half made, and dropped: pytest reports what a finalizer raises
    ours.close()
    theirs.close()
