"""What a failed connect means: from a server's own refusals, and from texts of other servers."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from forebay._embedded import EmbeddedPostgres
from forebay._entry import Verdict
from forebay.drivers import libpq
from forebay.drivers.psycopg import AsyncPsycopg, SyncPsycopg
from forebay.drivers.psycopg2 import SyncPsycopg2

from .scripted import ScriptedServer, notice
from .sides import Side

REJECTED, HOPELESS, CREDENTIALS = Verdict.REJECTED, Verdict.HOPELESS, Verdict.CREDENTIALS
CROWDED, TRANSIENT = Verdict.CROWDED, Verdict.TRANSIENT

#: What the server has, one statement each.
ROLES = (
    b"create role plain login",
    b"create role locked_out nologin",
    b"create role single login connection limit 1",
    b"create role refused login password 'x'",
    b"create database closed_shop",
    b"revoke connect on database closed_shop from public",
)


@pytest.fixture(scope="module")
def small() -> Iterator[EmbeddedPostgres]:
    """A server with few connections, the last two for superusers, and a rule against a role."""
    settings = {"max_connections": 5, "superuser_reserved_connections": 2, "max_wal_senders": 0}
    with EmbeddedPostgres(settings) as server:
        with psycopg.connect(server.dsn, autocommit=True) as conn:
            for statement in ROLES:
                conn.execute(statement)
        server.stop()
        rules = server.data / "pg_hba.conf"
        only = "host all refused all reject\nhost all postgres all scram-sha-256\n"
        rules.write_text(f"local all all trust\n{only}")
        server.start()
        yield server


#: Parameters that differ from those that work, and what connecting by them means.
WRONG: list[tuple[dict[str, Any], Verdict]] = [
    ({"host": "127.0.0.1", "password": "wrong"}, CREDENTIALS),
    ({"host": "127.0.0.1", "password": ""}, CREDENTIALS),
    ({"dbname": "nowhere"}, REJECTED),
    ({"user": "nobody"}, REJECTED),
    ({"user": "locked_out"}, REJECTED),
    ({"user": "plain", "dbname": "closed_shop"}, REJECTED),
    ({"host": "127.0.0.1", "user": "refused", "password": "x"}, REJECTED),
    ({"host": "127.0.0.1", "user": "plain"}, REJECTED),  # no entry in pg_hba.conf
    ({"host": "no-such-host.invalid"}, TRANSIENT),  # not yet
    ({"host": "127.0.0.1", "sslmode": "require"}, REJECTED),  # this server has no TLS
    ({"sslmode": "sometimes"}, HOPELESS),
    ({"port": "99999"}, HOPELESS),
    ({"port": "first"}, HOPELESS),
    ({"port": "first", "host": "localhost"}, HOPELESS),  # psycopg looks it up with the host
    ({"port": "1,2,3"}, HOPELESS),
    ({"host": "a,b", "hostaddr": "127.0.0.1"}, HOPELESS),
    ({"hostaddr": "here"}, HOPELESS),
    ({"host": "/" + "x" * 200}, HOPELESS),
    ({"connect_timeout": "soon"}, HOPELESS),
    ({"target_session_attrs": "some"}, HOPELESS),
    ({"require_auth": "none,!md5"}, HOPELESS),
    ({"sslmode": "require", "sslrootcert": "system"}, HOPELESS),
    ({"ssl_min_protocol_version": "TLSv9"}, HOPELESS),
    ({"ssl_min_protocol_version": "TLSv1.3", "ssl_max_protocol_version": "TLSv1.2"}, HOPELESS),
    ({"keepalives": "often", "host": "127.0.0.1"}, HOPELESS),
    ({"options": "-c no_such_setting=1"}, REJECTED),
    ({"options": "-c work_mem=much"}, REJECTED),
    ({"no_such_option": "1"}, HOPELESS),
    ({"service": "no_such_service"}, HOPELESS),
    ({"host": "127.0.0.1,127.0.0.1", "dbname": "nowhere", "password": "right"}, REJECTED),
    ({"host": "/no/such/folder"}, TRANSIENT),
]


def wrong_dsn(server: EmbeddedPostgres, wrong: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """A connection string, and options over it."""
    if wrong.get("password") != "right":
        return server.dsn, wrong
    return server.tcp_dsn, {name: value for name, value in wrong.items() if name != "password"}


def name_of(value: object) -> str | None:
    """The id of a parameter."""
    return "+".join(map(str, value.values())) if isinstance(value, dict) else None


@pytest.mark.embedded
@pytest.mark.parametrize(("wrong", "verdict"), WRONG, ids=name_of)
def test_a_refusal_is_understood(
    side: Side, small: EmbeddedPostgres, wrong: dict[str, Any], verdict: Verdict
) -> None:
    """Each as the server, the resolver or libpq words it, through both libraries."""
    dsn, options = wrong_dsn(small, wrong)
    error = side.failure(dsn, **options)
    assert isinstance(error, side.library.Error)
    assert side.driver.verdict(error) is verdict, error


@pytest.mark.embedded
@pytest.mark.parametrize(("wrong", "verdict"), WRONG, ids=name_of)
def test_a_refusal_is_understood_under_asyncio(
    small: EmbeddedPostgres, wrong: dict[str, Any], verdict: Verdict
) -> None:
    """The same for AsyncConnection, which resolves names by itself."""
    dsn, options = wrong_dsn(small, wrong)
    driver = AsyncPsycopg()
    with pytest.raises(psycopg.Error) as caught:
        asyncio.run(driver.connect(psycopg.AsyncConnection, dsn, options))
    assert driver.verdict(caught.value) is verdict, caught.value


@pytest.mark.embedded
def test_a_server_that_is_full_is_crowded(side: Side, small: EmbeddedPostgres) -> None:
    """For a role at its limit, for all but superusers, and for everybody."""
    verdict = side.driver.verdict
    _await_room(small)  # of the test before
    side.connect(small.dsn, user="single")
    error = side.failure(small.dsn, user="single")
    assert (verdict(error), "for role" in str(error)) == (CROWDED, True)
    for _ in range(2):
        side.connect(small.dsn, user="plain")
    error = side.failure(small.dsn, user="plain")
    assert (verdict(error), "are reserved" in str(error)) == (CROWDED, True)
    for _ in range(2):
        side.connect(small.dsn)
    error = side.failure(small.dsn)
    assert (verdict(error), "sorry, too many" in str(error)) == (CROWDED, True)
    side.close()
    _await_room(small)


def _await_room(server: EmbeddedPostgres) -> None:
    """Wait until the server has noticed that the connections are closed, and ours after them."""
    deadline = time.monotonic() + 10
    count = "select count(*) from pg_stat_activity where backend_type = 'client backend'"
    alone = False
    while not alone:
        assert time.monotonic() < deadline, "still crowded after 10 seconds"
        with (
            suppress(psycopg.OperationalError),
            psycopg.connect(server.dsn, autocommit=True) as conn,
        ):
            backend = conn.info.backend_pid
            alone = conn.execute(count).fetchone() == (1,)
    with suppress(ProcessLookupError):
        while True:
            assert time.monotonic() < deadline, "our own backend is not gone after 10 seconds"
            os.kill(backend, 0)


@pytest.mark.embedded
def test_a_server_on_its_way_down_is_transient(side: Side) -> None:
    """It says so while it waits for its sessions to end, and says nothing when it is down."""
    with EmbeddedPostgres() as server:
        side.connect(server.dsn)  # for which it waits
        os.kill(server.pid, signal.SIGTERM)
        deadline = time.monotonic() + 10
        error: Exception | None = None
        while error is None:
            assert time.monotonic() < deadline
            try:
                side.library.connect(server.dsn).close()
            except side.library.Error as refused:
                error = refused
        assert "shutting down" in str(error)
        assert side.driver.verdict(error) is TRANSIENT
        side.close()
        server.stop()
        assert side.driver.verdict(side.failure(server.dsn)) is TRANSIENT
        assert side.driver.verdict(side.failure(server.tcp_dsn)) is TRANSIENT


@pytest.mark.parametrize(
    ("severity", "state", "text", "verdict"),
    [
        ("FATAL", "57P03", "the database system is starting up", TRANSIENT),
        ("FATAL", "57P03", "the database system is in recovery mode", TRANSIENT),
        ("FATAL", "55000", 'database "me" is not currently accepting connections', TRANSIENT),
        ("FATAL", "28000", 'LDAP authentication failed for user "me"', TRANSIENT),
        (
            "FATAL",
            "28P01",
            "Passwort-Authentifizierung für »me« fehlgeschlagen",
            TRANSIENT,
        ),
        ("FATAL", "28000", 'Peer authentication failed for user "me"', REJECTED),
        ("FATAL", "53300", 'too many connections for database "me"', CROWDED),
        ("FATAL", "08P01", "no such database: me", REJECTED),  # PgBouncer
        ("FATAL", "08P01", "no more connections allowed (max_client_conn)", CROWDED),
        ("FATAL", "08P01", "server login has been failing, try again later", TRANSIENT),
        (
            "FATAL",
            "08P01",
            "server login has been failing, cached error: password authentication failed",
            TRANSIENT,
        ),
        ("FATAL", "08P01", "SASL authentication failed", CREDENTIALS),
        ("FATAL", "08P01", "password authentication failed", CREDENTIALS),
        ("FATAL", "08P01", "unsupported startup parameter: options", REJECTED),
        (
            "FATAL",
            "08P01",
            "unsupported startup parameter in options: statement_timeout",
            REJECTED,
        ),
        ("FATAL", "08P01", 'invalid connection option "x"', TRANSIENT),  # a server has been asked
    ],
)
def test_what_another_server_says_is_judged_by_its_text(
    side: Side, severity: str, state: str, text: str, verdict: Verdict
) -> None:
    """Libpq gives no SQLSTATE; what the text does not tell in so many words is transient."""
    with ScriptedServer(refusal=notice("E", severity, state, text)) as server:
        error = server.meanwhile(lambda: side.failure(server.dsn))
    assert text in str(error)
    assert side.driver.verdict(error) is verdict


AT = 'connection to server at "db" (10.0.0.1), port 5432 failed: '
NO_DATABASE = f'{AT}FATAL:  database "x" does not exist'
NO_PASSWORD = f'{AT}FATAL:  password authentication failed for user "x"'
NO_ENTRY = f'{AT}FATAL:  no pg_hba.conf entry for host "10.0.0.2", user "x", database "x", SSL off'
FULL = f"{AT}FATAL:  sorry, too many clients already"
DOWN = f"{AT}Connection refused\n\tIs the server running on that host?"


@pytest.mark.parametrize(
    ("attempts", "verdict"),
    [
        ([NO_DATABASE, NO_ENTRY], REJECTED),
        ([NO_DATABASE, DOWN], TRANSIENT),
        ([DOWN, NO_DATABASE], TRANSIENT),
        ([NO_PASSWORD, NO_ENTRY], CREDENTIALS),  # with TLS, then without
        ([NO_PASSWORD, DOWN], TRANSIENT),
        ([NO_DATABASE, FULL], CROWDED),
        ([DOWN, FULL], CROWDED),
        (["timeout expired"], TRANSIENT),
        ([], TRANSIENT),
        (['FATAL:  database "x" does not exist'], REJECTED),  # libpq before 14
        (['note: FATAL:  database "x" does not exist'], TRANSIENT),
        ([f"{NO_DATABASE}, or so"], TRANSIENT),
    ],
)
def test_of_several_attempts_each_must_be_permanent(attempts: list[str], verdict: Verdict) -> None:
    """Libpq tells of one per line; psycopg repeats the last at the top of a list."""
    assert libpq.judge("\n".join([*attempts, ""])) is verdict
    listed = [
        f"- host: 'db', port: '5432', hostaddr: None: connection failed: {a}" for a in attempts
    ]
    head = ["Multiple connection attempts failed. All failures were:"]
    last = [f"connection failed: {a}" for a in attempts[-1:]]
    assert libpq.judge("\n".join(last + head + listed)) is verdict


@pytest.mark.embedded
def test_one_host_that_may_come_back_is_waited_for(small: EmbeddedPostgres) -> None:
    """Psycopg tries each host, and reports of each."""
    side = Side("psycopg")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    dsn = make_conninfo(small.tcp_dsn, host="127.0.0.1,127.0.0.1", dbname="nowhere")
    error = side.failure(dsn, port=f"{port},{small.port}")
    assert 'database "nowhere" does not exist' in str(error)
    assert side.driver.verdict(error) is TRANSIENT


def test_a_name_that_does_not_resolve_may_do_so_later() -> None:
    """Whatever the resolver says, in whatever language: a container may start before its server."""
    for number in (socket.EAI_AGAIN, socket.EAI_FAIL, socket.EAI_NONAME):
        text = f"failed to resolve host 'db': [Errno {int(number)}] what the system says"
        assert libpq.judge(text) is TRANSIENT
    for reason in ("Temporary failure in name resolution", "Name or service not known"):
        text = f'could not translate host name "db" to address: {reason}'
        assert libpq.judge(text) is TRANSIENT
        assert libpq.judge(f"connection is bad: {text}") is TRANSIENT


@pytest.mark.parametrize("driver", [SyncPsycopg(), AsyncPsycopg(), SyncPsycopg2()])
def test_what_is_no_error_of_the_library_is_transient(driver: Any) -> None:
    """A callable that fetches a password may raise anything."""
    for error in (OSError("down"), TypeError("?"), ValueError(NO_DATABASE), KeyboardInterrupt()):
        assert driver.verdict(error) is TRANSIENT


@pytest.mark.parametrize(
    "conninfo",
    [
        "nonsense",
        "no_such_option=1",
        "host='open",
        "postgresql://[::1/db",
        "postgresql://[]/db",
        "postgresql://[::1]x/db",
        "postgresql://h/db?x",
        "postgresql://h/db?a=b=c",
        "postgresql://h/db?no_such_option=1",
        "postgresql://h%zz/db",
        "postgresql://h%00/db",
        "postgresql://h:x y/db",
    ],
)
def test_a_connection_string_that_cannot_be_read_is_hopeless(side: Side, conninfo: str) -> None:
    """In the words of libpq, or the library's own; whether or not it may have a password."""
    error = side.failure(conninfo)
    assert side.driver.verdict(error) is HOPELESS, error


def test_of_several_verdicts_the_mildest_counts() -> None:
    """One host that can be asked is worth asking again."""
    bad = 'invalid port number: "99999"'
    assert libpq.judge(bad) is HOPELESS
    assert libpq.judge(f"{bad}\n{NO_DATABASE}") is REJECTED
    assert libpq.judge(f"{bad}\n{NO_PASSWORD}\n{NO_DATABASE}") is CREDENTIALS
    assert libpq.judge(f"{bad}\n{DOWN}") is TRANSIENT


# Nobody answers ----------------------------------------------------------------------------------


def test_a_server_that_lets_nobody_in_has_not_answered() -> None:
    """By psycopg's own time-out, of one host and of several."""
    driver = SyncPsycopg()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        dsn = f"host=127.0.0.1 port={port} connect_timeout=2 sslmode=disable gssencmode=disable"
        error = Side("psycopg").failure(dsn)
        assert driver.unanswered(error)
        assert driver.verdict(error) is TRANSIENT
        with socket.create_server(("127.0.0.1", 0)) as closed:
            gone = closed.getsockname()[1]
        error = Side("psycopg").failure(dsn, host="127.0.0.1,127.0.0.1", port=f"{port},{gone}")
        assert "Connection refused" in str(error).splitlines()[0]
        assert driver.unanswered(error)


@pytest.mark.parametrize(
    ("text", "unanswered"),
    [
        ("timeout expired\n", True),
        (f"{AT}timeout expired", True),
        (f"{DOWN}\n{AT}timeout expired", True),
        ("connection timeout expired", True),
        (DOWN, False),
        (f"{AT}FATAL:  canceling authentication due to timeout", False),
        (f'{AT}FATAL:  database "timeout expired" does not exist', False),
    ],
)
def test_libpqs_words_for_it_are_known(text: str, unanswered: bool) -> None:
    """One attempt of several is enough: there more patience may help."""
    assert libpq.unanswered(text) is unanswered
    assert SyncPsycopg().unanswered(psycopg.OperationalError(text)) is unanswered


def test_what_is_no_error_of_psycopgs_has_been_answered() -> None:
    """A class of the user's may have time-outs of its own, which the pool cannot lengthen."""
    assert not AsyncPsycopg().unanswered(TimeoutError("connection timeout expired"))


def test_a_mistake_in_a_callback_is_not_one_in_the_connection_string(side: Side) -> None:
    """Errors of the class that libraries have for both: configure() may do better the next time."""
    error = side.driver.ProgrammingError("connection left in status INTRANS by configure")
    assert side.driver.verdict(error) is TRANSIENT


def test_an_sqlstate_is_believed_before_any_text(side: Side, dsn: str) -> None:
    """A user's own connect() may run queries, whose errors are not those of a connection string."""
    conn = side.connect(dsn)
    with pytest.raises(side.library.ProgrammingError) as caught:
        side.value(conn, "select * from no_such_table")
    assert side.driver.verdict(caught.value) is TRANSIENT
    states = {"28P01": CREDENTIALS, "3D000": REJECTED, "53300": CROWDED, "57P03": TRANSIENT}
    for state, verdict in states.items():
        with pytest.raises(side.library.Error) as caught:
            side.value(conn, f"do $$ begin raise 'so' using errcode = '{state}'; end $$")
        assert side.driver.verdict(caught.value) is verdict
