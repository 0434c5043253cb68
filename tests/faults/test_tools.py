from __future__ import annotations

import asyncio
import fcntl
import math
import os
import select
import socket
import struct
import termios
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import psycopg
import psycopg2
import pytest
from psycopg.conninfo import make_conninfo

from forebay._embedded import EmbeddedPostgres

from . import listener
from . import scripted as scripts
from .cluster import Cluster
from .proxy import Proxy
from .scripted import Failure, Script, ScriptedServer
from .server_faults import (
    backends,
    changed_password,
    changed_setting,
    exhausted,
    idle_session_timeout,
    kill_backend,
    suspended,
    suspended_server,
    terminate_backends,
)
from .tls import Authority, TlsProxy

pytestmark = pytest.mark.embedded

Session = psycopg.Connection[tuple[Any, ...]]

# Long enough for what does come, on a slow machine; and a moment in which nothing may come.
PLENTY = 10.0
MOMENT = 0.1

LINUX_TCP = pytest.mark.skipif(
    not Path("/proc/net/tcp").exists(), reason="the queue of unacknowledged bytes is Linux's"
)


def connect(dsn: str) -> Session:
    """Connect, to be closed by the caller."""
    return psycopg.connect(dsn, autocommit=True)


def session(dsn: str) -> closing[Session]:
    """Connect for a block; what it left unfinished does not matter."""
    return closing(connect(dsn))


def ask(connection: Session) -> None:
    """Send a query, and do not wait for its answer."""
    connection.pgconn.send_query(b"select 1")


def answers(connection: Session, seconds: float) -> bool:
    """Tell whether something arrives within `seconds`."""
    return bool(select.select([connection.fileno()], [], [], seconds)[0])


def take(connection: Session) -> bytes:
    """Read from the connection's socket as far as it goes; raise what the socket raises."""
    taken = b""
    with socket.socket(fileno=os.dup(connection.fileno())) as wire:
        wire.settimeout(PLENTY)
        while piece := wire.recv(65536):
            taken += piece
    return taken


def unacknowledged(connection: Session) -> int:
    """Return the bytes that were sent and that the other side has not acknowledged."""
    answer = fcntl.ioctl(connection.fileno(), termios.TIOCOUTQ, struct.pack("i", 0))
    return int(struct.unpack("i", answer)[0])


def until(condition: Callable[[], bool]) -> None:
    """Wait for what another process or thread is about to do."""
    deadline = time.monotonic() + PLENTY
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.005)


def open_files() -> int:
    """Return how many files this process has open."""
    return sum(1 for _ in Path("/dev/fd").iterdir())


def value(connection: Session, query: str) -> Any:
    """Return the one value that the query gives."""
    row = connection.execute(query.encode()).fetchone()
    assert row is not None
    return row[0]


# --- the proxy --------------------------------------------------------------------------


@pytest.fixture
def through(server: EmbeddedPostgres, proxy: Proxy) -> Iterator[Session]:
    """Give a session with the real server through the proxy."""
    with session(proxy.dsn(server.tcp_dsn)) as through:
        yield through


def test_a_proxy_forwards_both_ways_and_counts(server: EmbeddedPostgres, proxy: Proxy) -> None:
    """Large things arrive whole each way, and connections are counted while open."""
    with session(proxy.dsn(server.tcp_dsn)) as one, session(proxy.dsn(server.tcp_dsn)):
        row = one.execute("select length(%s), repeat('y', 3000000)", ["x" * 1_000_000]).fetchone()
        assert row == (1_000_000, "y" * 3_000_000)
        assert (proxy.accepted, proxy.open) == (2, 2)
    until(lambda: proxy.open == 0)
    assert proxy.accepted == 2


def test_a_client_that_leaves_leaves_the_server_too(server: EmbeddedPostgres, proxy: Proxy) -> None:
    """The end of a connection is forwarded."""
    name = "leaves"
    with session(proxy.dsn(server.tcp_dsn, application_name=name)):
        assert len(backends(server, name)) == 1
    until(lambda: backends(server, name) == [])


def test_a_paused_proxy_forwards_nothing_until_it_resumes(proxy: Proxy, through: Session) -> None:
    """The answer waits for the resumption, and comes then."""
    proxy.pause()
    ask(through)
    assert not answers(through, MOMENT)
    proxy.resume()
    assert answers(through, PLENTY)


def test_a_delay_holds_each_way(proxy: Proxy, through: Session) -> None:
    """A question and its answer are each held."""
    proxy.delay(0.05)
    began = time.monotonic()
    through.execute("select 1")
    assert time.monotonic() - began >= 0.1


def test_a_rate_bounds_what_is_forwarded(proxy: Proxy, through: Session) -> None:
    """20 kB at 200 kB per second take 0.1 s, and arrive whole."""
    proxy.rate(200_000)
    began = time.monotonic()
    assert value(through, "select repeat('y', 20000)") == "y" * 20_000
    assert time.monotonic() - began >= 0.1


def test_a_half_closed_connection_ends_for_the_client_only(
    server: EmbeddedPostgres, proxy: Proxy, through: Session
) -> None:
    """The client reads the end; what it sends still reaches the server."""
    pid = through.info.backend_pid
    proxy.half_close()
    assert take(through) == b""
    assert pid in backends(server)
    through.pgconn.send_query(b"select pg_terminate_backend(pg_backend_pid())")
    until(lambda: pid not in backends(server))


def test_a_reset_is_there_when_the_verb_returns(proxy: Proxy, through: Session) -> None:
    """The client's socket has the RST at once, and the proxy no connection."""
    proxy.reset()
    assert proxy.open == 0
    assert answers(through, 0)
    with pytest.raises(ConnectionResetError):
        take(through)


def test_hanging_up_is_there_when_the_verb_returns(proxy: Proxy, through: Session) -> None:
    """The client's socket is at its end at once, without an error."""
    proxy.hang_up()
    assert proxy.open == 0
    assert answers(through, 0)
    assert take(through) == b""


@pytest.mark.parametrize("reset", [True, False])
def test_a_cut_lets_so_many_bytes_through(proxy: Proxy, through: Session, reset: bool) -> None:
    """An answer ends in the middle of a message, as the caller chose."""
    proxy.cut(after=7, reset=reset)
    ask(through)
    until(lambda: proxy.open == 0)
    with socket.socket(fileno=os.dup(through.fileno())) as wire:
        wire.settimeout(PLENTY)
        assert len(wire.recv(100)) == 7
        if reset:
            with pytest.raises(ConnectionResetError):
                wire.recv(100)
        else:
            assert wire.recv(100) == b""


def test_a_cut_goes_by_the_bytes_of_several_pieces(
    server: EmbeddedPostgres, proxy: Proxy, through: Session
) -> None:
    """What was let through before counts, and connections made later are not cut."""
    proxy.cut(after=100)
    with (
        session(proxy.dsn(server.tcp_dsn)) as later,
        socket.socket(fileno=os.dup(through.fileno())) as wire,
    ):
        wire.settimeout(PLENTY)
        through.pgconn.send_query(b"select 1")
        first = len(wire.recv(1000))
        wire.sendall(b"Q\0\0\0\x0dselect 1\0" * 3)
        rest = b""
        with suppress(ConnectionResetError):
            while piece := wire.recv(1000):
                rest += piece
        assert 0 < first < 100
        assert first + len(rest) == 100
        assert value(later, "select repeat('y', 1000)") == "y" * 1000
    with pytest.raises(ValueError, match="at least 1"):
        proxy.cut(after=0)


def test_a_refusing_proxy_keeps_its_port_and_its_connections(
    server: EmbeddedPostgres, proxy: Proxy, through: Session
) -> None:
    """New connections are refused until it accepts; the existing one works throughout."""
    for _ in range(2):
        proxy.refuse()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", proxy.port))
        through.execute("select 1")
    proxy.accept()
    connect(proxy.dsn(server.tcp_dsn)).close()


@LINUX_TCP
def test_a_black_hole_acknowledges_nothing(proxy: Proxy, through: Session) -> None:
    """What is sent stays unacknowledged and connects hang; healed, the answer comes."""
    if not proxy.true_blackhole:
        pytest.skip("this machine does not let us filter packets")
    proxy.blackhole()
    ask(through)
    assert not answers(through, MOMENT)
    assert unacknowledged(through) > 0
    with pytest.raises(TimeoutError):
        socket.create_connection(("127.0.0.1", proxy.port), timeout=MOMENT)
    proxy.heal()
    assert answers(through, PLENTY)
    assert unacknowledged(through) == 0


def test_without_the_filter_a_black_hole_is_silence(
    proxy: Proxy, through: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where packets cannot be dropped, nothing is forwarded all the same."""
    monkeypatch.setattr(listener, "_drop_packets", lambda *_: None)
    proxy.blackhole()
    ask(through)
    assert not answers(through, MOMENT)
    proxy.heal()
    assert answers(through, PLENTY)


def test_healing_ends_every_lasting_fault(
    server: EmbeddedPostgres, proxy: Proxy, through: Session
) -> None:
    """After all of them at once, one call lets old and new connections work."""
    proxy.delay(60)
    proxy.rate(1)
    proxy.cut(after=1)
    proxy.pause()
    proxy.blackhole()
    proxy.refuse()
    proxy.heal()
    through.execute("select 1")
    connect(proxy.dsn(server.tcp_dsn)).close()


def test_a_retargeted_proxy_leads_new_connections_elsewhere(
    proxy: Proxy, through: Session, scripted: ScriptedServer
) -> None:
    """An address moves: the old session stays, the new one is with the other server."""
    proxy.retarget("127.0.0.1", scripted.port)
    with session(proxy.dsn(scripted.dsn())) as other:
        other.execute("select 1")
        through.execute("select 2")
    assert scripted.queries == ["select 1"]


def test_a_server_that_is_down_is_a_connection_reset(
    proxy: Proxy, scripted: ScriptedServer
) -> None:
    """The client is told at once."""
    scripted.refuse()
    proxy.retarget("127.0.0.1", scripted.port)
    with pytest.raises(psycopg.OperationalError, match=r"closed the connection|reset by peer"):
        connect(proxy.dsn(scripted.dsn()))


def test_a_closed_proxy_leaves_no_thread_and_no_socket(server: EmbeddedPostgres) -> None:
    """Whatever its state and that of its connections, all is gone when the block ends."""
    files, threads = open_files(), threading.active_count()
    with Proxy.before(server) as proxy:
        dsn = proxy.dsn(server.tcp_dsn)
        with session(dsn):
            proxy.half_close()
        with session(dsn) as first, session(dsn) as second, session(dsn):
            ask(first)
            proxy.pause()
            ask(second)
            waiting = socket.create_connection(("127.0.0.1", proxy.port))
            proxy.blackhole()
            proxy.close()
            proxy.close()
            waiting.close()
    assert open_files() == files
    assert threading.active_count() == threads


def test_a_client_that_reads_nothing_does_not_keep_a_proxy_open(
    proxy: Proxy, through: Session
) -> None:
    """What cannot be delivered is dropped when the proxy closes."""
    through.pgconn.send_query(b"select repeat('x', 30000000)")
    [client] = proxy._clients
    until(lambda: client.writer.transport.get_write_buffer_size() > 0)
    proxy.close()
    with pytest.raises(ConnectionResetError):
        take(through)


# --- TLS --------------------------------------------------------------------------------


def test_tls_is_verified_in_full_and_forwards(
    server: EmbeddedPostgres, tls_proxy: TlsProxy
) -> None:
    """Both drivers get an encrypted, verified connection, also for large things."""
    dsn = tls_proxy.dsn(server.tcp_dsn)
    assert "verify-full" in dsn
    with session(dsn) as connection:
        assert connection.pgconn.ssl_in_use
        assert value(connection, "select repeat('y', 300000)") == "y" * 300_000
    second = psycopg2.connect(dsn)
    assert second.info.ssl_in_use
    second.close()


def test_tls_of_another_authority_is_refused(server: EmbeddedPostgres, tls_proxy: TlsProxy) -> None:
    """The verification is real: another root does not vouch for the proxy."""
    with (
        Authority() as other,
        pytest.raises(psycopg.OperationalError, match="certificate verify failed"),
    ):
        connect(tls_proxy.dsn(server.tcp_dsn, sslrootcert=str(other.root_file)))


def test_what_the_server_says_unasked_arrives_over_tls(
    server: EmbeddedPostgres, tls_proxy: TlsProxy
) -> None:
    """Notices, a notification while idle, and the reason of a termination."""
    notices: list[str | None] = []
    with session(tls_proxy.dsn(server.tcp_dsn)) as connection, session(server.dsn) as other:
        connection.add_notice_handler(lambda said: notices.append(said.message_primary))
        connection.execute("do $$ begin raise notice 'hear'; end $$")
        assert notices == ["hear"]
        connection.execute("listen news")
        other.execute("notify news, 'now'")
        [news] = connection.notifies(timeout=PLENTY, stop_after=1)
        assert news.payload == "now"
        terminate_backends(server, [connection.info.backend_pid])
        with pytest.raises(psycopg.errors.AdminShutdown):
            connection.execute("select 1")


def test_the_faults_of_the_proxy_work_over_tls(
    server: EmbeddedPostgres, tls_proxy: TlsProxy
) -> None:
    """Half-close, cut, hang up and reset reach the client's socket."""
    dsn = tls_proxy.dsn(server.tcp_dsn)
    with session(dsn) as half, session(dsn) as cut, session(dsn) as hung:
        tls_proxy.cut(after=7)
        ask(cut)
        until(lambda: tls_proxy.open == 2)
        tls_proxy.half_close()
        assert answers(half, 0)
        tls_proxy.hang_up()
        for broken in (half, cut, hung):
            with pytest.raises(psycopg.OperationalError):
                broken.execute("select 1")
    with session(dsn) as reset:
        tls_proxy.reset()
        with pytest.raises(ConnectionResetError):
            take(reset)


def test_a_scripted_server_speaks_tls_too(authority: Authority) -> None:
    """Whether a client asks for TLS decides it."""
    with ScriptedServer(tls=authority.server_context) as scripted:
        for mode, encrypted in (("require", True), ("disable", False)):
            with session(scripted.dsn(sslmode=mode)) as connection:
                assert connection.pgconn.ssl_in_use is encrypted
                assert value(connection, "select 1") == 1


# --- the scripted server ----------------------------------------------------------------


def test_psycopg_works_with_the_scripted_server(scripted: ScriptedServer) -> None:
    """Transactions, rows in text and binary, failed transactions, parameters."""
    with psycopg.connect(scripted.dsn()) as connection:
        for binary in (False, True):
            cursor = connection.cursor(binary=binary)
            assert cursor.execute("select 1").fetchone() == (1,)
            assert cursor.pgresult is not None
            assert cursor.pgresult.fformat(0) == binary
            assert cursor.execute("select pg_is_in_recovery()").fetchone() == (False,)
            assert cursor.execute("show TimeZone").fetchone() == ("UTC",)
        connection.execute("")
        with pytest.raises(psycopg.errors.FeatureNotSupported, match="select what"):
            connection.execute("select what")
        with pytest.raises(psycopg.errors.InFailedSqlTransaction):
            connection.execute("select 1")
        connection.rollback()
        with connection.transaction(), connection.pipeline():
            connection.execute("select 2", prepare=True)
        assert value(connection, "select pg_backend_pid()") == connection.info.backend_pid
    until(lambda: scripted.sessions == 0)
    assert (scripted.queries[0], scripted.queries[-1]) == ("BEGIN", "COMMIT")


def test_asyncio_psycopg_works_with_the_scripted_server(scripted: ScriptedServer) -> None:
    """The connection for asyncio too."""

    async def play() -> Any:
        async with await psycopg.AsyncConnection.connect(scripted.dsn()) as connection:
            return await (await connection.execute("select 3")).fetchone()

    assert asyncio.run(play()) == (3,)


def test_psycopg2_works_with_the_scripted_server(scripted: ScriptedServer) -> None:
    """Transactions, failed ones, and the parameters it asks for."""
    connection = psycopg2.connect(scripted.dsn())
    try:
        with connection.cursor() as cursor:
            cursor.execute("select 1")
            assert cursor.fetchone() == (1,)
            with pytest.raises(psycopg2.errors.FeatureNotSupported):
                cursor.execute("select what")
            with pytest.raises(psycopg2.errors.InFailedSqlTransaction):
                cursor.execute("select 1")
            connection.rollback()
            cursor.execute("select 2; select 3")
            assert cursor.fetchone() == (3,)
        connection.commit()
    finally:
        connection.close()
    assert scripted.queries[-1] == "COMMIT"


REFUSALS = [failure for failure in scripts.GERMAN if failure.severity == "FATAL"]


@pytest.mark.parametrize("failure", [*REFUSALS, *(scripts.GERMAN[each] for each in REFUSALS)])
def test_a_start_up_is_refused_as_scripted(scripted: ScriptedServer, failure: Failure) -> None:
    """Both drivers report the server's words, translated ones too."""
    scripted.script = Script(failure=failure)
    with pytest.raises(psycopg.OperationalError) as refused:
        connect(scripted.dsn())
    assert failure.message in str(refused.value)
    with pytest.raises(psycopg2.OperationalError) as refused2:
        psycopg2.connect(scripted.dsn())
    assert failure.message in str(refused2.value)


def test_scripts_are_played_in_turn(scripted: ScriptedServer) -> None:
    """The next connections play what `then` says, those after them the server's script."""
    scripted.then(Script(failure=scripts.STARTING_UP), Script(failure=scripts.TOO_MANY))
    for said in ("starting up", "too many"):
        with pytest.raises(psycopg.OperationalError, match=said):
            connect(scripted.dsn())
    connect(scripted.dsn()).close()


def test_a_password_is_asked_for(scripted: ScriptedServer) -> None:
    """The right one is let in, another is told what PostgreSQL says."""
    scripted.script = Script(password="right")
    connect(scripted.dsn(password="right")).close()
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        connect(scripted.dsn(password="wrong"))


def test_a_start_up_is_answered_late_or_never(scripted: ScriptedServer) -> None:
    """A delay delays; for ever, the client waits until it leaves, which is noticed."""
    scripted.script = Script(delay=0.05)
    began = time.monotonic()
    connect(scripted.dsn()).close()
    assert time.monotonic() - began >= 0.05
    scripted.script = Script(delay=math.inf)
    pending = psycopg.pq.PGconn.connect_start(scripted.dsn(sslmode="disable").encode())
    while pending.connect_poll() == psycopg.pq.PollingStatus.WRITING:
        select.select([], [pending.socket], [], PLENTY)
    until(lambda: scripted.accepted == 2)
    assert not select.select([pending.socket], [], [], MOMENT)[0]
    pending.finish()
    until(lambda: scripted.open == 0)


def test_half_a_message_is_readable_and_says_nothing(scripted: ScriptedServer) -> None:
    """The driver reads it and goes on to wait: the session is neither dead nor of use."""
    with session(scripted.dsn()) as connection:
        scripted.half_message()
        assert answers(connection, 0)
        connection.pgconn.consume_input()
        assert connection.pgconn.notifies() is None
        assert connection.pgconn.status == psycopg.pq.ConnStatus.OK
        assert not answers(connection, 0)


def test_a_termination_while_idle_gives_its_reason(scripted: ScriptedServer) -> None:
    """The message and the end are in the socket when the verb returns."""
    with session(scripted.dsn()) as connection:
        scripted.terminate()
        assert scripted.sessions == 0
        with pytest.raises(psycopg.errors.AdminShutdown, match="administrator command"):
            connection.execute("select 1")


def test_storms_of_what_nobody_asked_for_arrive(scripted: ScriptedServer) -> None:
    """Notifications, notices and parameters, thousands at once, at start-up and while idle."""
    notices: list[str | None] = []
    scripted.script = Script(storm=3000, parameters={"TimeZone": "CET"})
    with session(scripted.dsn()) as connection:
        connection.add_notice_handler(lambda said: notices.append(said.message_primary))
        assert connection.info.parameter_status("application_name") == "storm 2999"
        assert connection.info.parameter_status("TimeZone") == "CET"
        scripted.notice("careful", times=2000)
        scripted.parameter_storm(5000)
        scripted.notify("news", "now", times=2000)
        received = list(connection.notifies(timeout=PLENTY, stop_after=2000))
        assert {each.payload for each in received} == {"now"}
        connection.execute("select 1")
        assert connection.info.parameter_status("application_name") == "storm 4999"
    assert notices == ["careful"] * 2000


def test_a_change_of_role_is_told_and_kept(scripted: ScriptedServer) -> None:
    """Live sessions are told, new ones learn it, and so does who asks for a primary."""
    writable = scripted.dsn(target_session_attrs="read-write")
    with session(writable) as connection:
        scripted.standby(True)
        assert value(connection, "select pg_is_in_recovery()") is True
        assert connection.info.parameter_status("in_hot_standby") == "on"
        with pytest.raises(
            psycopg.OperationalError, match=r"session is (read-only|in hot standby)"
        ):
            connect(writable)
        scripted.standby(False)
        assert value(connection, "select pg_is_in_recovery()") is False
        assert connection.info.parameter_status("in_hot_standby") == "off"


def test_a_muted_server_answers_when_it_is_unmuted(scripted: ScriptedServer) -> None:
    """Queries wait, cancelling does not help, and leaving is noticed meanwhile."""
    with session(scripted.dsn()) as connection:
        scripted.mute()
        ask(connection)
        connection.cancel_safe()
        until(lambda: scripted.cancels == 1)
        assert not answers(connection, MOMENT)
        scripted.unmute()
        assert answers(connection, PLENTY)
    with session(scripted.dsn()) as connection:
        scripted.mute()
        ask(connection)
    until(lambda: scripted.sessions == 0)


def test_answers_can_be_given(scripted: ScriptedServer) -> None:
    """A query may have a value, an error, or be the session's end."""
    insert = "insert into t values (1)"
    scripted.answers |= {"select name": "Forebay", insert: scripts.READ_ONLY}
    with session(scripted.dsn()) as connection:
        assert value(connection, "SELECT  name;") == "Forebay"
        with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
            connection.execute(insert)
        scripted.answers["select name"] = scripts.SHUTTING_DOWN
        with pytest.raises(psycopg.OperationalError, match="shutting down"):
            connection.execute("select name")
        assert connection.closed


def test_a_scripted_server_in_a_black_hole_keeps_its_words(scripted: ScriptedServer) -> None:
    """What it says meanwhile arrives when it is healed."""
    with session(scripted.dsn()) as connection:
        scripted.blackhole()
        scripted.notify("news", "late")
        assert not answers(connection, MOMENT)
        scripted.heal()
        [news] = connection.notifies(timeout=PLENTY, stop_after=1)
        assert news.payload == "late"


# --- faults of the real server ----------------------------------------------------------


def test_sessions_are_found_and_ended(server: EmbeddedPostgres) -> None:
    """By the name of their application; when it returns their processes are gone."""
    dsn = make_conninfo(server.dsn, application_name="ended")
    with session(dsn) as one, session(dsn) as other, session(server.dsn) as bystander:
        pids = [one.info.backend_pid, other.info.backend_pid]
        assert backends(server, "ended") == pids
        terminate_backends(server, pids)
        assert backends(server, "ended") == []
        with pytest.raises(psycopg.errors.AdminShutdown):
            one.execute("select 1")
        bystander.execute("select 1")


def test_a_killed_backend_takes_all_sessions_with_it(server: EmbeddedPostgres) -> None:
    """The others are told of a crash, and the server accepts when the call returns."""
    with session(server.dsn) as killed, session(server.dsn) as bystander:
        kill_backend(server, killed.info.backend_pid)
        with pytest.raises(psycopg.OperationalError):
            killed.execute("select 1")
        with pytest.raises(psycopg.OperationalError):
            bystander.execute("select 1")
    connect(server.dsn).close()


def test_a_suspended_backend_goes_on_afterwards(server: EmbeddedPostgres) -> None:
    """It answers nothing in the block, and is let go also by a failure."""
    with session(server.dsn) as connection:
        with suppress(LookupError), suspended(connection.info.backend_pid):
            ask(connection)
            assert not answers(connection, MOMENT)
            raise LookupError
        assert answers(connection, PLENTY)


def test_a_suspended_server_answers_nobody(server: EmbeddedPostgres) -> None:
    """Old sessions and new connections hang, and both come through afterwards."""
    with session(server.dsn) as connection:
        with suspended_server(server):
            ask(connection)
            pending = psycopg.pq.PGconn.connect_start(server.dsn.encode())
            while pending.connect_poll() == psycopg.pq.PollingStatus.WRITING:
                select.select([], [pending.socket], [], PLENTY)
            assert not select.select([connection.fileno(), pending.socket], [], [], MOMENT)[0]
        assert answers(connection, PLENTY)
        assert select.select([pending.socket], [], [], PLENTY)[0]
        pending.finish()


def test_an_exhausted_server_has_no_session_left_but_those_it_leaves() -> None:
    """Also none of those reserved for superusers; afterwards all are free."""
    with EmbeddedPostgres({"max_connections": 6}) as small:
        with exhausted(small.dsn) as taken:
            assert len(taken) == 6
            with pytest.raises(psycopg.OperationalError, match="too many clients"):
                connect(small.dsn)
        with exhausted(small.dsn, leave=2) as taken:
            assert len(taken) == 4
            with session(small.dsn), session(small.dsn):
                pass
        with exhausted(small.dsn) as taken:
            assert len(taken) == 6


def test_a_changed_password_is_changed_back(server: EmbeddedPostgres) -> None:
    """The old one is refused in the block, the new one after it."""
    with changed_password(server) as new:
        connect(make_conninfo(server.tcp_dsn, password=new)).close()
        with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
            connect(server.tcp_dsn)
    connect(server.tcp_dsn).close()
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        connect(make_conninfo(server.tcp_dsn, password=new))


def test_a_changed_setting_holds_for_sessions_of_the_block(server: EmbeddedPostgres) -> None:
    """Those that begin inside have it, those after it do not."""
    with changed_setting(server, "work_mem", "1234kB"), session(server.dsn) as inside:
        assert value(inside, "show work_mem") == "1234kB"
    with session(server.dsn) as after:
        assert value(after, "show work_mem") != "1234kB"


def test_an_idle_session_is_ended_by_its_timeout(server: EmbeddedPostgres) -> None:
    """The server ends the session, which says why."""
    with idle_session_timeout(server, 0.05), session(server.dsn) as connection:
        assert answers(connection, PLENTY)
        with pytest.raises(psycopg.errors.IdleSessionTimeout):
            connection.execute("select 1")


# --- primary and standby ----------------------------------------------------------------


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Give a primary and its standby; a test leaves it with one of each."""
    with Cluster() as cluster:
        yield cluster


def test_a_standby_has_what_its_primary_committed(cluster: Cluster) -> None:
    """Rows arrive, and the standby says that it is one and takes no writes."""
    with session(cluster.primary.dsn) as primary, session(cluster.standby.dsn) as standby:
        primary.execute("drop table if exists kept")
        primary.execute("create table kept as select 7 as seven")
        cluster.wait_until_caught_up()
        assert value(standby, "select seven from kept") == 7
        assert standby.info.parameter_status("in_hot_standby") == "on"
        assert primary.info.parameter_status("in_hot_standby") == "off"
        with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
            standby.execute("insert into kept values (8)")


@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_primary_and_standby_change_places(cluster: Cluster, mode: Any) -> None:
    """The addresses stay, the roles change, sessions of the promoted one live on and are told."""
    former, promoted = cluster.primary, cluster.standby
    addresses = former.tcp_dsn, promoted.tcp_dsn
    with session(former.dsn) as writer:
        writer.execute("create table if not exists moves (n int)")
        before = value(
            writer, "with i as (insert into moves values (1)) select count(*) from moves"
        )
    cluster.wait_until_caught_up()
    with session(promoted.dsn) as live:
        cluster.switch_over(mode)
        assert (cluster.primary, cluster.standby) == (promoted, former)
        live.execute("insert into moves values (2)")
        assert live.info.parameter_status("in_hot_standby") == "off"
        assert value(live, "select count(*) from moves") == before + 2
    assert (former.tcp_dsn, promoted.tcp_dsn) == addresses
    cluster.wait_until_caught_up()
    for attribute, port in (("read-write", promoted.port), ("standby", former.port)):
        with session(cluster.dsn(target_session_attrs=attribute)) as connection:
            assert connection.info.port == port
            assert value(connection, "select count(*) from moves") == before + 2


def test_a_promotion_beside_a_running_primary_splits_the_cluster(cluster: Cluster) -> None:
    """Both take writes until the former primary is demoted."""
    former = cluster.primary
    cluster.promote()
    with session(former.dsn) as one, session(cluster.primary.dsn) as other:
        one.execute("create table split ()")
        other.execute("create table split (n int)")
    cluster.demote()
    cluster.wait_until_caught_up()
    with session(former.dsn) as demoted:
        assert value(demoted, "select pg_is_in_recovery()") is True
        assert value(demoted, "select count(*) from split") == 0
