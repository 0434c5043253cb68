"""Whether an idle connection lives, told by its socket."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import ssl
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import psycopg
import psycopg2
import pytest
import trustme

from forebay._embedded import EmbeddedPostgres
from forebay.drivers.psycopg import AsyncPsycopg

from .scripted import ScriptedServer, message, notice, notification, parameter
from .sides import Side, await_idle, await_input

ADMIN_SHUTDOWN = "terminating connection due to administrator command"


def in_another_thread(action: Callable[[], Any]) -> Any:
    """What `action` gives in a thread that is not the client's."""
    given: list[Any] = []
    thread = threading.Thread(target=lambda: given.append(action()))
    thread.start()
    thread.join(10)
    return given[0]


def test_a_silent_socket_is_alive(side: Side, dsn: str) -> None:
    """Nothing to read: nothing is wrong, in a transaction or not, and nothing has changed."""
    conn = side.connect(dsn)
    status = side.driver.describe(conn)
    assert side.driver.look(conn) is None
    assert side.driver.readable([conn]) == []
    assert side.driver.describe(conn) == status
    assert side.value(conn, "select 1") == 1


def test_a_terminated_session_tells_why(side: Side, dsn: str, admin: psycopg.Connection) -> None:
    """The error is the server's own, with its SQLSTATE where the library has a place for it."""
    conn = side.connect(dsn)
    admin.execute("select pg_terminate_backend(%s)", [conn.info.backend_pid])
    await_input(conn)
    assert side.driver.readable([conn]) == [conn]
    error = side.driver.look(conn)
    assert str(error) == ADMIN_SHUTDOWN
    assert isinstance(error, side.library.errors.AdminShutdown)
    if side.name == "psycopg":
        assert error.sqlstate == "57P01"
        assert error.diag.severity == "FATAL"
    assert error.__traceback__ is None


@pytest.mark.embedded
def test_a_killed_backend_and_those_it_takes_along_are_dead(side: Side) -> None:
    """After kill -9 one session ends without a word, and the others with 57P02, a mere warning."""
    with EmbeddedPostgres() as server:
        killed, taken_along = side.connect(server.dsn), side.connect(server.dsn)
        await_idle(server.dsn, killed, taken_along)
        os.kill(killed.info.backend_pid, signal.SIGKILL)
        for conn in (killed, taken_along):
            await_input(conn)
        assert "server closed the connection" in str(side.driver.look(killed))
        error = side.driver.look(taken_along)
        assert isinstance(error, side.library.errors.CrashShutdown)


@pytest.mark.embedded
@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_a_stopped_server_leaves_no_connection_alive(side: Side, mode: Any) -> None:
    """A fast stop and an immediate one, which is told as a warning, have the same SQLSTATE."""
    with EmbeddedPostgres() as server:
        conns = [side.connect(server.dsn) for _ in range(3)]
        await_idle(server.dsn, *conns)
        server.stop(mode)
        assert side.driver.readable(conns) == conns
        for conn in conns:
            assert isinstance(side.driver.look(conn), side.library.errors.AdminShutdown)


def test_a_closed_connection_is_dead(side: Side, dsn: str) -> None:
    """It has no socket: it is told at once, by an error of the library."""
    conn, other = side.connect(dsn), side.connect(dsn)
    conn.close()
    assert side.driver.readable([other, conn]) == [conn]
    assert isinstance(side.driver.look(conn), side.library.Error)
    assert side.driver.lifeline(conn) is None
    assert side.driver.standby(conn) is None


def test_those_that_are_readable_are_told_in_order(
    side: Side, dsn: str, admin: psycopg.Connection
) -> None:
    """One poll tells them all apart, whatever their number."""
    conns = [side.connect(dsn) for _ in range(12)]
    for conn in conns[1::3]:
        side.value(conn, "listen told")
    admin.execute("notify told")
    for conn in conns[1::3]:
        await_input(conn)
    assert side.driver.readable(conns) == conns[1::3]
    assert side.driver.readable([]) == []


def test_notices_and_parameters_are_not_death(side: Side) -> None:
    """They are taken in, in any number, and reach the user as ever."""
    with ScriptedServer(parameters={"in_hot_standby": "on"}) as server:
        conn, peer = server.greets(side)
        notices = side.keep_notices(conn)
        peer.sendall(notice("N", "WARNING", "01000", "mind the gap"))
        peer.sendall(parameter("in_hot_standby", "off") * 500)
        await_input(conn)
        assert side.driver.standby(conn) is True
        assert side.driver.look(conn) is None
        assert side.driver.readable([conn]) == []
        assert side.driver.standby(conn) is False
        if side.name == "psycopg":
            side.driver.deliver(conn)
        assert "mind the gap" in notices[0]


def test_the_last_word_is_enough_while_the_socket_is_open(side: Side) -> None:
    """Between a FATAL and the end of the stream there is a moment, in which nobody gets it."""
    with ScriptedServer() as server:
        conn, peer = server.greets(side)
        peer.sendall(notice("E", "FATAL", "57P01", ADMIN_SHUTDOWN))
        await_input(conn)
        assert isinstance(side.driver.look(conn), side.library.errors.AdminShutdown)


def test_a_reason_in_another_language_is_a_reason(side: Side) -> None:
    """Psycopg knows it by its SQLSTATE, psycopg2 by the word for FATAL; the text is kept."""
    text = "завершение подключения по команде администратора"
    with ScriptedServer() as server:
        conn, peer = server.greets(side)
        peer.sendall(notice("E", "FATAL", "57P01", text, local="ВАЖНО"))
        await_input(conn)
        error = side.driver.look(conn)
        assert str(error) == text
        assert isinstance(error, side.library.OperationalError)


def test_an_unknown_state_has_an_operational_error(side: Side) -> None:
    """A server, or what stands before it, may have states of its own."""
    with ScriptedServer() as server:
        conn, peer = server.greets(side)
        peer.sendall(notice("E", "FATAL", "XX999", "the bouncer is tired"))
        await_input(conn)
        error = side.driver.look(conn)
        assert type(error) is side.library.OperationalError
        assert str(error) == "the bouncer is tired"


@pytest.mark.parametrize("abruptly", [False, True], ids=["FIN", "RST"])
def test_an_end_without_a_word_is_death(side: Side, abruptly: bool) -> None:
    """The stream ends, or is reset, perhaps amid a message."""
    with ScriptedServer() as server:
        conn, peer = server.greets(side)
        peer.sendall(notification("half")[:-3])
        if abruptly:
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        peer.close()
        await_input(conn)
        assert isinstance(side.driver.look(conn), side.library.OperationalError)
        assert side.driver.closed(conn)


def test_half_a_message_is_not_death(side: Side) -> None:
    """It stays in libpq until the rest is there."""
    whole = notification("whole")
    with ScriptedServer() as server:
        conn, peer = server.greets(side)
        for part in (whole[:3], whole[3:9]):
            peer.sendall(part)
            await_input(conn)
            assert side.driver.look(conn) is None
        peer.sendall(whole[9:])
        await_input(conn)
        assert side.driver.look(conn) is None
        assert side.notified(conn) == ["whole"]


def test_a_server_that_has_lost_the_thread_is_dead(side: Side) -> None:
    """What is no message of the protocol cannot be skipped."""
    with ScriptedServer() as server:
        conn, peer = server.greets(side)
        peer.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await_input(conn)
        assert isinstance(side.driver.look(conn), side.library.Error)


def test_a_descriptor_that_is_given_away_at_once_does_not_hide_it(
    side: Side, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Libpq closes the socket of such a server, and another thread may have its number by now."""
    with ScriptedServer() as server:
        conn, peer = server.greets(side)
        peer.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await_input(conn)
        answers = [False, True]
        monkeypatch.setattr("forebay._sockets.silent", lambda _: answers.pop(0))
        assert isinstance(side.driver.look(conn), side.library.OperationalError)
        assert answers == []


def test_a_storm_of_notifies_is_taken_in_whole(side: Side) -> None:
    """However much has come: it is read, nothing is lost, and the connection lives."""
    payloads = [f"{number:01000d}" for number in range(5_000)]
    with ScriptedServer() as server:
        conn, peer = server.greets(side)
        storm = b"".join(map(notification, payloads))
        sender = threading.Thread(target=peer.sendall, args=(storm,))
        sender.start()
        while sender.is_alive() or side.driver.readable([conn]):
            assert side.driver.look(conn) is None
        sender.join()
        assert side.notified(conn) == payloads


def test_a_server_that_never_stops_does_not_keep_the_pool(
    side: Side, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After so many reads it is taken for alive, which it is."""
    monkeypatch.setattr(f"forebay.drivers.{side.name}.READS", 3)
    with ScriptedServer() as server:
        conn, peer = server.greets(side)
        peer.setblocking(False)
        with suppress(BlockingIOError):  # until no more goes in
            while True:
                peer.send(notification("x" * 1000) * 100)
        assert side.driver.look(conn) is None
        assert side.driver.readable([conn]) == [conn]


@pytest.fixture(scope="module")
def tls() -> ssl.SSLContext:
    """A server's side of TLS."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(context)
    return context


def test_what_tls_has_read_ahead_is_taken_in(side: Side, tls: ssl.SSLContext) -> None:
    """A record holds more than libpq asks for, and then the socket is silent too soon."""
    payloads = ["a" * 7000, "b" * 7900, "c" * 7900]
    with ScriptedServer(tls) as server:
        conn, peer = server.greets(side)
        said = b"".join(map(notification, payloads))
        for part in (said[:7000], said[7000:]):  # a message not yet whole halves libpq's buffer
            peer.sendall(part)
            await_input(conn)
            assert side.driver.look(conn) is None
        assert side.kept(conn) == payloads


def test_death_shows_through_tls(side: Side, tls: ssl.SSLContext) -> None:
    """With a reason, and with none."""
    with ScriptedServer(tls) as server:
        conn, peer = server.greets(side)
        assert side.driver.look(conn) is None
        peer.sendall(notice("E", "FATAL", "57P01", ADMIN_SHUTDOWN))
        await_input(conn)
        assert isinstance(side.driver.look(conn), side.library.errors.AdminShutdown)
        conn, peer = server.greets(side)
        peer.close()
        await_input(conn)
        assert isinstance(side.driver.look(conn), side.library.OperationalError)


def test_a_row_that_nobody_has_asked_for_is_not_death(side: Side) -> None:
    """Libpq skips it and gives a notice."""
    with ScriptedServer() as server:
        conn, peer = server.greets(side)
        peer.sendall(message("C", b"SELECT 1\0"))
        await_input(conn)
        assert side.driver.look(conn) is None


# NOTIFY ------------------------------------------------------------------------------------------


def test_a_handler_gets_what_another_thread_has_read(dsn: str, admin: psycopg.Connection) -> None:
    """Psycopg's handlers are called in the client that is lent the connection, before later ones.

    Not where it is read: they are the user's, and may block.
    """
    side = Side("psycopg")
    conn = side.connect(dsn)
    conn.execute("listen handled")
    calls: list[Any] = []
    conn.add_notify_handler(lambda n: calls.append((n.payload, threading.current_thread())))
    for payload in ("one", "two"):
        admin.execute(f"notify handled, '{payload}'")
        await_input(conn)
        assert in_another_thread(lambda: side.driver.look(conn)) is None
    assert calls == []
    admin.execute("notify handled, 'three'")
    await_input(conn)
    side.driver.deliver(conn)
    conn.execute("select 1")
    assert calls == [(each, threading.current_thread()) for each in ("one", "two", "three")]
    side.driver.deliver(conn)  # has nothing more
    assert len(calls) == 3
    side.close()


def test_the_generator_gets_what_another_thread_has_read(
    dsn: str, admin: psycopg.Connection
) -> None:
    """Psycopg's notifies() gives it at once, without waiting for the next."""
    side = Side("psycopg")
    conn = side.connect(dsn)
    conn.execute("listen generated")
    side.driver.deliver(conn)  # has nothing yet
    for payload in ("one", "two"):
        admin.execute(f"notify generated, '{payload}'")
        await_input(conn)
        assert in_another_thread(lambda: side.driver.look(conn)) is None
    assert [n.payload for n in conn.notifies(timeout=0)] == ["one", "two"]
    side.close()


def test_the_asynchronous_generator_gets_it_too(dsn: str, admin: psycopg.Connection) -> None:
    """The same, of an AsyncConnection."""

    async def play() -> list[str]:
        async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as conn:
            await conn.execute("listen gathered")
            admin.execute("notify gathered, 'one'")
            await_input(conn)
            assert AsyncPsycopg().look(conn) is None
            return [n.payload async for n in conn.notifies(timeout=0)]

    assert asyncio.run(play()) == ["one"]


@pytest.mark.parametrize("by", ["poll", "query"])
def test_psycopg2_keeps_what_another_thread_has_read(
    dsn: str, admin: psycopg.Connection, by: str
) -> None:
    """It is in conn.notifies after the client's own poll() or query."""
    side = Side("psycopg2")
    conn = side.connect(dsn)
    side.value(conn, "listen kept")
    admin.execute("notify kept, 'one'")
    await_input(conn)
    assert in_another_thread(lambda: side.driver.look(conn)) is None
    if by == "poll":
        conn.poll()
    else:
        side.value(conn, "select 1")
    assert [n.payload for n in conn.notifies] == ["one"]
    side.close()


# What is kept for the user's handlers ------------------------------------------------------------


def test_no_handler_of_notices_is_called_by_a_look() -> None:
    """They are called in the client that is lent the connection, each with its notice, in order."""
    side = Side("psycopg")
    with ScriptedServer() as server:
        conn, peer = server.greets(side)
        heard: list[Any] = []

        def hear(diag: psycopg.errors.Diagnostic) -> None:
            heard.append((diag.message_primary, diag.severity, diag.sqlstate, diag.source_line))

        conn.add_notice_handler(hear)
        for text in ("one", "two"):
            peer.sendall(notice("N", "WARNING", "01000", text))
            await_input(conn)
            assert side.driver.look(conn) is None
        assert heard == []
        side.driver.deliver(conn)
        assert heard == [(text, "WARNING", "01000", None) for text in ("one", "two")]
    side.close()


def test_of_a_storm_of_notices_the_last_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing grows without a bound on a connection that nobody uses."""
    monkeypatch.setattr("forebay.drivers.psycopg.NOTICES", 3)
    side = Side("psycopg")
    with ScriptedServer() as server:
        conn, peer = server.greets(side)
        texts = side.keep_notices(conn)
        peer.sendall(b"".join(notice("N", "WARNING", "01000", str(n)) for n in range(9)))
        await_input(conn)
        assert side.driver.look(conn) is None
        side.driver.deliver(conn)
        assert texts == ["6", "7", "8"]
    side.close()


def test_a_handler_that_fails_fails_alone(
    dsn: str, admin: psycopg.Connection, caplog: pytest.LogCaptureFixture
) -> None:
    """The client gets its connection, the others are called, and the log tells."""
    side = Side("psycopg")
    conn = side.connect(dsn)
    conn.execute("listen failing")
    calls: list[str] = []

    def fail(notify: psycopg.Notify) -> None:
        calls.append(notify.payload)
        raise ValueError("the user's own")

    conn.add_notify_handler(fail)
    admin.execute("select pg_notify('failing', 'one'), pg_notify('failing', 'two')")  # in one go
    await_input(conn)
    assert side.driver.look(conn) is None
    side.driver.deliver(conn)
    assert calls == ["one", "two"]
    assert "the user's own" in caplog.text
    side.close()


@pytest.mark.parametrize("handled", [False, True], ids=["backlog", "handler"])
def test_an_idle_connection_does_not_gather_notifies_without_end(
    dsn: str, admin: psycopg.Connection, monkeypatch: pytest.MonkeyPatch, handled: bool
) -> None:
    """One that still LISTENs, and nobody takes what comes, is given up; the error says so."""
    monkeypatch.setattr("forebay.drivers.psycopg.NOTIFIES", 5)
    side = Side("psycopg")
    conn = side.connect(dsn)
    conn.execute("listen gathering")
    if handled:
        conn.add_notify_handler(lambda _: None)
    in_one_go = "select pg_notify('gathering', n::text) from generate_series(1, 5) n"
    admin.execute(in_one_go)
    await_input(conn)
    assert side.driver.look(conn) is None
    admin.execute("notify gathering, 'one too many'")
    await_input(conn)
    error = side.driver.look(conn)
    assert isinstance(error, psycopg.OperationalError)
    assert "UNLISTEN" in str(error)
    side.close()


def test_what_is_taken_in_time_is_no_trouble(
    dsn: str, admin: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many there are in all."""
    monkeypatch.setattr("forebay.drivers.psycopg.NOTIFIES", 5)
    side = Side("psycopg")
    conn = side.connect(dsn)
    conn.execute("listen taken")
    for handled in (False, True):
        taken: list[str] = []
        if handled:
            conn.add_notify_handler(lambda n, taken=taken: taken.append(n.payload))
        for number in range(12):
            admin.execute("select pg_notify('taken', %s)", [str(number)])
            await_input(conn)
            assert side.driver.look(conn) is None
            side.driver.deliver(conn)
            if not handled:
                taken += [n.payload for n in conn.notifies(timeout=0)]
        assert taken == [str(number) for number in range(12)]
    side.close()


# psycopg2's own ----------------------------------------------------------------------------------


def test_looking_leaves_psycopg2_as_it_was(dsn: str, admin: psycopg.Connection) -> None:
    """Its poll() on an idle connection changes neither its status nor its transaction."""
    side = Side("psycopg2")
    conn = side.connect(dsn)
    side.value(conn, "listen undisturbed")
    conn.autocommit = False
    before = (conn.status, conn.get_transaction_status(), conn.closed)
    admin.execute("notify undisturbed")
    await_input(conn)
    assert side.driver.look(conn) is None
    assert (conn.status, conn.get_transaction_status(), conn.closed) == before
    assert not side.driver.unclean(conn)
    side.close()


@pytest.mark.parametrize("notices", [None, object(), {"one"}], ids=["None", "object", "set"])
def test_psycopg2_may_keep_its_notices_anywhere(notices: Any) -> None:
    """Then the reason is not to be had, and death shows all the same."""
    side = Side("psycopg2")
    with ScriptedServer() as server:
        conn, peer = server.greets(side)
        conn.notices = notices
        peer.sendall(notice("E", "FATAL", "57P01", ADMIN_SHUTDOWN))
        peer.close()
        await_input(conn)
        assert type(side.driver.look(conn)) is psycopg2.OperationalError
    side.close()


def test_a_notice_that_quotes_a_reason_is_none() -> None:
    """A NOTICE with the words of a FATAL: the session goes on."""
    side = Side("psycopg2")
    with ScriptedServer() as server:
        conn, peer = server.greets(side)
        peer.sendall(notice("N", "NOTICE", "00000", f"FATAL:  {ADMIN_SHUTDOWN}"))
        await_input(conn)
        assert side.driver.look(conn) is None
    side.close()
