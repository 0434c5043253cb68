"""Time-outs that are set where nobody has set them, and what connecting may take."""

from __future__ import annotations

import socket
import sys
from math import inf
from pathlib import Path
from typing import Any

import psycopg
import psycopg2
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from forebay.drivers import libpq
from forebay.drivers.psycopg import AsyncPsycopg, SyncPsycopg
from forebay.drivers.psycopg2 import SyncPsycopg2
from forebay.drivers.psycopg2 import with_defaults as with_defaults2

from .scripted import ScriptedServer
from .sides import Side

ALL = libpq.DEFAULTS


def parameters(side: Side, conn: Any) -> dict[str, str]:
    """The time-outs that a connection was opened with."""
    info = conn.info
    known = info.get_parameters() if side.name == "psycopg" else info.dsn_parameters
    return {name: known[name] for name in ALL if name in known}


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The machine's own settings are not those of the test."""
    for name in (*libpq.ENVIRONMENT.values(), "PGSYSCONFDIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


class Recorder:
    """A user's connection class, which keeps what it is given."""

    @classmethod
    def connect(cls, conninfo: Any, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        """Make no connection."""
        return conninfo, kwargs


def passed(conninfo: Any, connection_class: Any = Recorder, factor: int = 1, **kwargs: Any) -> Any:
    """What psycopg 3's driver gives to a class that makes no connection."""
    with pytest.raises(StopIteration) as done:
        SyncPsycopg().connect(connection_class, conninfo, kwargs, factor).send(None)
    return done.value.value


def service_file(path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """Let libpq find services in a file."""
    path.write_text(text)
    monkeypatch.setenv("PGSERVICEFILE", str(path))


def test_what_nobody_has_set_is_set(side: Side, dsn: str) -> None:
    """On a connection that the driver has opened, and only there."""
    assert parameters(side, side.connect_by_driver(dsn)) == ALL
    assert parameters(side, side.connect(dsn)) != ALL


@pytest.mark.skipif(sys.platform != "linux", reason="the names of these options are Linux's")
def test_they_reach_the_socket(side: Side) -> None:
    """A server that has vanished is noticed in 30 seconds."""
    with ScriptedServer() as server:
        conn = server.meanwhile(lambda: side.connect_by_driver(server.dsn))
    with socket.fromfd(conn.fileno(), socket.AF_INET, socket.SOCK_STREAM) as same:
        names = ("TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT", "TCP_USER_TIMEOUT")
        options = [same.getsockopt(socket.IPPROTO_TCP, getattr(socket, name)) for name in names]
        assert same.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    idle, interval, count, unacknowledged = options
    assert idle + interval * count == 30
    assert unacknowledged == 30_000


@pytest.mark.parametrize("name", ALL)
def test_the_connection_string_goes_before(side: Side, dsn: str, name: str) -> None:
    """What is in it stays, and the others are added."""
    conn = side.connect_by_driver(make_conninfo(dsn, **{name: "7"}))
    assert parameters(side, conn) == {**ALL, name: "7"}


@pytest.mark.parametrize("name", ALL)
def test_keyword_arguments_go_before(side: Side, dsn: str, name: str) -> None:
    """What is among them stays; None is nothing, as for the libraries."""
    assert parameters(side, side.connect_by_driver(dsn, **{name: 7})) == {**ALL, name: "7"}
    assert parameters(side, side.connect_by_driver(dsn, **{name: None}))[name] in (ALL[name], None)


def test_the_environment_goes_before(side: Side, dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """PGCONNECT_TIMEOUT is what libpq knows of them."""
    monkeypatch.setenv("PGCONNECT_TIMEOUT", "7")
    assert parameters(side, side.connect_by_driver(dsn)) == {**ALL, "connect_timeout": "7"}


def test_a_service_goes_before_the_environment(
    side: Side, dsn: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Asked for in the string or in the environment; what it has twice counts once."""
    text = "# ours\n[other]\nkeepalives_idle=1\n[ours]\nconnect_timeout=7\nconnect_timeout=8\n"
    text += "keepalives_count=2\n\n[last]\nkeepalives_interval=1\n"
    service_file(tmp_path / "services", monkeypatch, text)
    monkeypatch.setenv("PGCONNECT_TIMEOUT", "9")
    expected = {**ALL, "connect_timeout": "7", "keepalives_count": "2"}
    assert parameters(side, side.connect_by_driver(f"{dsn} service=ours")) == expected
    monkeypatch.setenv("PGSERVICE", "ours")
    assert parameters(side, side.connect_by_driver(dsn)) == expected
    assert side.driver.patience(dsn, {}) == 7


@pytest.mark.parametrize("folder", ["home", "system"])
def test_services_are_where_libpq_looks_for_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, folder: str
) -> None:
    """In the user's file, then in the system's."""
    if folder == "home":
        file = tmp_path / ".pg_service.conf"
    else:
        monkeypatch.setenv("PGSYSCONFDIR", str(tmp_path))
        file = tmp_path / "pg_service.conf"
    file.write_text("[ours]\ntarget_session_attrs=primary\n")
    assert SyncPsycopg().wants_writable("service=ours", {})
    assert SyncPsycopg2().wants_writable("service=ours", {})


@pytest.mark.parametrize("text", ["[other]\n", "[ours]\nldap://host/base\n"], ids=["none", "ldap"])
def test_of_an_unknown_service_nothing_is_presumed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str
) -> None:
    """Libpq may find it where we do not look, and what it sets goes before."""
    service_file(tmp_path / "services", monkeypatch, text)
    assert passed("service=ours") == ("service=ours", {})
    assert with_defaults2("service=ours user=me") == "service=ours user=me"
    assert SyncPsycopg().patience("service=ours", {}) == 130
    assert SyncPsycopg2().patience("service=ours", {}) == inf


def test_an_address_may_be_a_uri() -> None:
    """Which is read as libpq does, with its own parameters and escapes."""
    uri = "postgresql://me:p%3Fw@db:7/name?keepalives_idle=1&application_name=a%20b"
    given = conninfo_to_dict(uri)
    conninfo, kwargs = passed(uri)
    assert conninfo_to_dict(conninfo, **kwargs).keys() == ALL.keys() | given.keys()
    assert "keepalives_idle" not in kwargs
    assert psycopg2.extensions.parse_dsn(with_defaults2(uri)) == {**ALL, **given}


@pytest.mark.parametrize("conninfo", ["nonsense", "a = b", "host='open", 7, None])
def test_what_cannot_be_read_goes_on_as_it_is(conninfo: Any) -> None:
    """So that the library says what is wrong with it."""
    assert passed(conninfo) == (conninfo, {})
    assert SyncPsycopg().patience(conninfo, {}) == 130  # a class of the user's may read it
    for driver in (SyncPsycopg(), SyncPsycopg2()):
        assert not driver.wants_writable(conninfo, {})
    if conninfo is not None:  # psycopg2 does without
        assert with_defaults2(conninfo) is conninfo


def test_the_libraries_say_what_is_wrong(side: Side) -> None:
    """The text is theirs."""
    error = side.failure("nonsense")
    assert 'missing "=" after "nonsense"' in str(error)


def test_psycopg2_may_be_given_nothing_at_all() -> None:
    """Then the environment tells where to connect, and the time-outs are added as ever."""
    for nothing in ("", None):
        assert psycopg2.extensions.parse_dsn(with_defaults2(nothing)) == ALL


@pytest.mark.parametrize("driver", [SyncPsycopg(), AsyncPsycopg(), SyncPsycopg2()])
@pytest.mark.parametrize(
    ("options", "patience"),
    [
        ("", 10),
        ("connect_timeout=30", 30),
        ("connect_timeout=1", 2),  # libpq's least
        ("connect_timeout=5 host=a,b,c", 15),
        ("connect_timeout=5 hostaddr=10.0.0.1,10.0.0.2", 10),
        ("connect_timeout=5 host=a,b target_session_attrs=prefer-standby", 20),
        ("connect_timeout=0", None),
        ("connect_timeout=-1", None),
        ("connect_timeout=soon", None),
    ],
)
def test_patience_is_that_of_the_time_outs(
    driver: Any, options: str, patience: float | None
) -> None:
    """Each host has its own; psycopg ends after 130 seconds what has none, psycopg2 never."""
    never = inf if isinstance(driver, SyncPsycopg2) else 130
    assert driver.patience(options, {}) == (patience or never)


def test_patience_knows_every_source(side: Side, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keyword arguments, the connection string, the environment, in this order."""
    patience = side.driver.patience
    monkeypatch.setenv("PGCONNECT_TIMEOUT", "3")
    monkeypatch.setenv("PGHOST", "a,b")
    assert patience("", {}) == 6
    assert patience("connect_timeout=4", {}) == 8
    assert patience("connect_timeout=4", {"connect_timeout": 5, "host": "a"}) == 5
    assert patience("connect_timeout=4", {"connect_timeout": None, "host": "a"}) == 4


@pytest.mark.parametrize(
    ("attrs", "writable"),
    [
        ("read-write", True),
        ("primary", True),
        ("any", False),
        ("read-only", False),
        ("standby", False),
        ("prefer-standby", False),
        (None, None),
    ],
)
def test_who_wants_to_write_says_so(
    side: Side, monkeypatch: pytest.MonkeyPatch, attrs: str | None, writable: bool | None
) -> None:
    """By target_session_attrs, wherever it stands."""
    wants = side.driver.wants_writable
    assert wants(f"target_session_attrs={attrs}" if attrs else "", {}) is writable
    assert wants("", {"target_session_attrs": attrs}) is writable
    if attrs:
        monkeypatch.setenv("PGTARGETSESSIONATTRS", attrs)
        assert wants("", {}) is writable


def test_psycopg2_pool_has_its_address_among_the_keyword_arguments() -> None:
    """As its drop-in's driver passes it on."""
    kwargs = {"dsn": "connect_timeout=7 target_session_attrs=primary"}
    assert SyncPsycopg2().patience("", kwargs) == 7
    assert SyncPsycopg2().wants_writable("", kwargs)


def test_the_drop_ins_have_them_too(dsn: str) -> None:
    """psycopg2.pool and psycopg2_pool connect with the time-outs as well, unless they are set."""
    import forebay.psycopg2.pool
    import forebay.psycopg2_pool

    old = forebay.psycopg2.pool.SimpleConnectionPool(0, 1, dsn, keepalives_idle=7)
    new = forebay.psycopg2_pool.ConnectionPool(0, 1, dsn=dsn, keepalives_idle=7)
    for pool, close in ((old, old.closeall), (new, new.clear)):
        conn = pool.getconn()
        assert parameters(Side("psycopg2"), conn) == {**ALL, "keepalives_idle": "7"}
        pool.putconn(conn)
        close()


def test_the_libraries_of_the_machine_know_the_options() -> None:
    """A libpq that did not would refuse every connection."""
    assert conninfo_to_dict(make_conninfo("", **ALL)) == ALL
    assert psycopg2.extensions.parse_dsn(psycopg2.extensions.make_dsn(**ALL)) == ALL
    assert psycopg.__version__


def test_several_hosts_are_taken_as_they_come(side: Side) -> None:
    """Without target_session_attrs a standby among them is no primary that was demoted."""
    assert side.driver.wants_writable("host=a,b", {}) is False
    assert side.driver.wants_writable("hostaddr=::1,127.0.0.1", {}) is False
    assert side.driver.wants_writable("host=a,b target_session_attrs=primary", {}) is True


# What an attempt may take ------------------------------------------------------------------------


def test_a_patient_attempt_has_more_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    """The added connect_timeout is that many times as long, two minutes at most."""
    for factor, seconds in ((1, 10), (2, 20), (8, 80), (64, 120)):
        assert libpq.missing({}, factor) == {**ALL, "connect_timeout": str(seconds)}
        assert libpq.patience({}, inf, factor) == seconds
    assert passed("", factor=4)[1]["connect_timeout"] == 40
    monkeypatch.setenv("PGHOST", "a,b")
    assert libpq.patience({}, inf, 2) == 40
    assert SyncPsycopg().patience("", {}, 2) == AsyncPsycopg().patience("", {}, 2) == 40


@pytest.mark.parametrize("source", ["string", "keyword", "environment", "service"])
def test_no_attempt_is_more_patient_than_somebody_has_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, source: str
) -> None:
    """A connect_timeout that is set anywhere is never multiplied."""
    conninfo = {"string": "connect_timeout=7", "service": "service=ours"}.get(source, "")
    kwargs: dict[str, Any] = {"connect_timeout": 7} if source == "keyword" else {}
    if source == "environment":
        monkeypatch.setenv("PGCONNECT_TIMEOUT", "7")
    service_file(tmp_path / "services", monkeypatch, "[ours]\nconnect_timeout=7\n")
    assert passed(conninfo, factor=8, **kwargs)[1].get("connect_timeout", 7) == 7
    assert SyncPsycopg().patience(conninfo, kwargs, 8) == 7


def test_what_cannot_be_added_gives_no_patience() -> None:
    """A class without room for connect_timeout has what it has without."""

    class Narrow:
        @classmethod
        def connect(cls, conninfo: str) -> None: ...

    driver = SyncPsycopg()
    assert driver.patience("", {}, 1, Narrow) == 130
    assert driver.patience("connect_timeout=7", {}, 1, Narrow) == 7
    assert driver.patience("", {}, 2, Recorder) == 20
