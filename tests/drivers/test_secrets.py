"""What errors, and names of connections, tell of a connection string."""

from __future__ import annotations

import asyncio
import pickle
import socket
import traceback
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest
from psycopg.rows import TupleRow

from forebay._entry import Verdict
from forebay.drivers import libpq
from forebay.drivers.psycopg import AsyncPsycopg, SyncPsycopg
from forebay.testing import FakeConnection, FakeDriver

from .sides import Side

SECRET = "hunter2"

#: Connection strings with a password that is not written as it must be.
UNREADABLE = {
    "a blank": f"host=127.0.0.1 user=u password=my {SECRET}",
    "a blank, and more": f"host=127.0.0.1 user=u password=my {SECRET} dbname=x",
    "a blank and =": f"host=127.0.0.1 password=my {SECRET}=x",
    "a blank, in another": f"host=127.0.0.1 sslmode=require sslpassword=my {SECRET}",
    "a quote": f"host=127.0.0.1 password='my' {SECRET}'",
    "a line end": f"host=127.0.0.1 password=my\n{SECRET}\n",
    "@": f"postgresql://u:pa@{SECRET}/db",
    "two @": f"postgresql://u:pa@{SECRET}@127.0.0.1/db",
    "/": f"postgresql://u:{SECRET}/x@127.0.0.1/db",
    "/ later": f"postgresql://127.0.0.1:pa{SECRET}/x@127.0.0.1/db",
    "%": f"postgresql://u:{SECRET}%zz@127.0.0.1/db",
    "a blank in a URI": f"postgresql://u:my {SECRET}@127.0.0.1/db",
    "[": f"postgresql://u:pa@[{SECRET}/db",
    "] and more": f"postgresql://u:pa@[::1]{SECRET}@127.0.0.1/db",
    "& in a parameter": f"postgresql://127.0.0.1/db?password=my&{SECRET}=1",
    "another scheme": f"postgresql+psycopg://u:{SECRET}@127.0.0.1/db",
    "no scheme": f"u:{SECRET}@127.0.0.1/db",
}


def everything(error: BaseException) -> str:
    """All that an error tells, to whoever looks."""
    shown = "".join(traceback.format_exception(error))
    kept = getattr(error, "pgconn", None)
    context = f"{error.__cause__!r} {error.__context__!r}"
    return f"{error} {error!r} {shown} {context} {pickle.dumps(error)!r} {kept!r}"


@pytest.mark.parametrize("conninfo", UNREADABLE.values(), ids=UNREADABLE)
def test_an_error_quotes_no_part_of_a_password(conninfo: str) -> None:
    """It says what is wrong, and what it is wrong with has a placeholder."""
    driver = SyncPsycopg()
    error = Side("psycopg").failure(conninfo)
    assert SECRET not in everything(error)
    assert libpq.WITHHELD in str(error)
    assert driver.keepable(error) is error
    unknown = "Name or service not known" in str(error)
    assert driver.verdict(error) is (Verdict.TRANSIENT if unknown else Verdict.HOPELESS)


@pytest.mark.parametrize("conninfo", UNREADABLE.values(), ids=UNREADABLE)
def test_an_error_quotes_no_part_of_a_password_under_asyncio(conninfo: str) -> None:
    """The same for AsyncConnection, which resolves names by itself."""
    with pytest.raises(psycopg.Error) as caught:
        asyncio.run(AsyncPsycopg().connect(psycopg.AsyncConnection, conninfo, {}))
    assert SECRET not in everything(caught.value)


@pytest.mark.parametrize(
    ("conninfo", "kwargs", "text"),
    [
        ("nonsense", {}, 'missing "=" after "nonsense"'),
        ("host=h aplication_name=x", {}, 'invalid connection option "aplication_name"'),
        ("hots=h password=x", {}, 'invalid connection option "hots"'),
        ("host=/tmp password=x", {"hots": "h"}, 'invalid connection option "hots"'),
        ("host=no-such.invalid password=x", {}, "failed to resolve host 'no-such.invalid'"),
        ("postgresql://u@no-such.invalid/db", {}, "failed to resolve host 'no-such.invalid'"),
        ("port=first host=/tmp password=x", {}, 'invalid integer value "first"'),
        ("", {"host": "/tmp", "port": "first"}, 'invalid integer value "first"'),
    ],
)
def test_what_stands_before_all_secrets_is_quoted(
    conninfo: str, kwargs: dict[str, Any], text: str
) -> None:
    """And everything of a string that has none: it is what the user has to look for."""
    error = Side("psycopg").failure(conninfo, **kwargs)
    assert text in str(error)


def test_a_text_that_is_not_known_is_withheld_where_the_string_cannot_be_read() -> None:
    """It may be in another language."""
    text = "fehlendes »=« nach »hunter2« in der Zeichenkette der Verbindungsdaten\n"
    shown = libpq.scrub(text, "password=my hunter2", readable=False)
    assert shown == libpq.UNREADABLE
    assert libpq.judge(shown) is Verdict.HOPELESS
    assert libpq.scrub(text, "password=mine", readable=True) == text  # it is about something else
    assert libpq.scrub(text, "hunter2", readable=False) == text  # which has no secret


def test_of_a_string_that_is_not_known_nothing_is_quoted() -> None:
    """As of what a callable gives, where that is no more at hand."""
    text = 'invalid connection option "hunter2"'
    assert libpq.scrub(text) == f'invalid connection option "{libpq.WITHHELD}"'
    assert libpq.scrub(text, 7) == f'invalid connection option "{libpq.WITHHELD}"'


def fails(connection_class: Any, conninfo: str, **kwargs: Any) -> str:
    """The text by which connecting with a class of the user's fails."""
    with pytest.raises(psycopg.Error) as caught:
        SyncPsycopg().connect(connection_class, conninfo, kwargs).send(None)
    assert SECRET not in everything(caught.value)
    return str(caught.value)


class FromElsewhere(psycopg.Connection[TupleRow]):
    """A class that has its connection string from elsewhere, where none is given."""

    found = f"host=127.0.0.1 password=my {SECRET}"

    @classmethod
    def connect(cls, conninfo: str = "", **kwargs: Any) -> Any:
        """Make no connection."""
        return super().connect(conninfo or cls.found, **kwargs)


def test_a_class_may_have_a_string_that_nobody_else_knows() -> None:
    """What it is given is not all that may be quoted; but what is in that, is still shown."""
    assert libpq.WITHHELD in fails(FromElsewhere, "")
    assert "'no-such.invalid'" in fails(FromElsewhere, "host=no-such.invalid")
    assert "'no-such.invalid'" in fails(FromElsewhere, "dbname=x", host="no-such.invalid")
    assert 'option "hots"' in fails(FromElsewhere, "host=/tmp", hots="x")


def test_the_words_of_a_class_of_the_users_are_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Even where its connection string is none that libpq could read."""

    def refuse(*_: Any, **__: Any) -> None:
        raise psycopg.ProgrammingError("this vault is closed")

    monkeypatch.setattr(FromElsewhere, "connect", refuse)
    assert fails(FromElsewhere, "vault://u:secret@tenant") == "this vault is closed"


AT = 'connection to server at "db" (10.0.0.1), port 5432 failed: '


@pytest.mark.parametrize(
    "text",
    [
        f'{AT}FATAL:  password authentication failed for user "u"\n',
        f"{AT}Connection refused\n\tIs the server running on that host?\n",
        f'{AT}FATAL:  database "x" does not exist',
        "connection timeout expired",
        "",
    ],
)
def test_what_a_server_says_stays_as_it_is(text: str) -> None:
    """It knows nothing of the connection string."""
    assert libpq.scrub(text, "host=db user=u password=hunter2") == text
    assert libpq.scrub(text) == text


def test_each_attempt_of_several_is_looked_at() -> None:
    """Those that quote nothing stay, in their lines."""
    quoting = 'connection is bad: invalid integer value "hunter2" for connection option "port"'
    lines = [f"{AT}Connection refused", f"- host: 'h', port: '1', hostaddr: None: {quoting}"]
    shown = libpq.scrub("\n".join(lines), "password=a port=hunter2").splitlines()
    assert shown == [lines[0], lines[1].replace("hunter2", libpq.WITHHELD)]


def test_the_errors_it_came_from_are_cleaned_too() -> None:
    """A chain of them, even if it is a circle."""

    class Wraps:
        @classmethod
        def connect(cls, *_: Any, **__: Any) -> None:
            inner = psycopg.ProgrammingError(f'invalid connection option "{SECRET}"')
            error = psycopg.OperationalError(
                f'missing "=" after "{SECRET}" in connection info string'
            )
            error.__cause__, inner.__cause__ = inner, error
            raise error

    with pytest.raises(psycopg.OperationalError) as caught:
        SyncPsycopg().connect(Wraps, f"password=my {SECRET}", {}).send(None)
    assert SECRET not in everything(caught.value)


def test_what_is_kept_does_not_keep_what_libpq_knew() -> None:
    """Psycopg's error has a connection with all its options, the password among them."""
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    error = Side("psycopg").failure(f"host=127.0.0.1 port={port} password={SECRET}")
    assert isinstance(error, psycopg.OperationalError)
    assert SECRET in repr(error.pgconn)
    kept = SyncPsycopg().keepable(error)
    assert kept is error
    assert SECRET not in everything(kept)
    other = ValueError("the user's own")
    assert SyncPsycopg().keepable(other) is other


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("one\ntwo", "one two"),
        ("one\r\n  two\u2028three\x85four\x0bfive", "one two three four five"),
        ("red \x1b[31malert\x07", "red [31malert"),
        ("  größer \t als  ", "größer als"),
        ("", ""),
    ],
)
def test_a_text_for_a_log_is_one_line(text: str, line: str) -> None:
    """Without what would end it, and what a terminal would obey."""
    assert libpq.one_line(text) == line


# Names of connections ----------------------------------------------------------------------------


def test_a_connection_is_named_by_what_it_is_and_where_it_leads(dsn: str) -> None:
    """Its class, its status, its database and its session on the server."""
    driver = SyncPsycopg()
    with psycopg.connect(dsn) as conn:
        label = driver.label(conn)
        assert label.startswith("<psycopg.Connection [IDLE] (host=")
        assert f"database={conn.info.dbname} pid={conn.info.backend_pid}) at 0x" in label
        conn.execute("select 1")
        assert "[INTRANS]" in driver.label(conn)
        conn.close()
        assert driver.label(conn).startswith("<psycopg.Connection [BAD] at 0x")


class Talkative(psycopg.Connection[TupleRow]):
    """A class that tells everything."""

    def __repr__(self) -> str:
        return f"password={SECRET}\n"

    __str__ = __repr__


class Silent(psycopg.Connection[TupleRow]):
    """A class that cannot tell anything."""

    blind = False

    def __repr__(self) -> str:
        raise ZeroDivisionError

    __str__ = __repr__

    @property
    def closed(self) -> bool:
        """Nobody knows."""
        if self.blind:
            raise ZeroDivisionError
        return super().closed


@pytest.mark.parametrize("connection_class", [Talkative, Silent])
def test_a_class_of_the_users_has_no_say_in_it(dsn: str, connection_class: Any) -> None:
    """What it makes of itself may be a secret, or an error."""
    with connection_class.connect(dsn, password=SECRET) as conn:
        label = SyncPsycopg().label(conn)
        assert f"{connection_class.__name__} [IDLE] (host=" in label
        assert SECRET not in label
        assert "\n" not in label


def test_a_connection_that_cannot_be_asked_has_a_name(dsn: str) -> None:
    """Its class is enough: a line of a log is worth no error."""
    with Silent.connect(dsn) as conn:
        conn.blind = True
        assert SyncPsycopg().label(conn).startswith(f"<{__name__}.Silent at 0x")
        conn.blind = False


def test_a_fake_has_a_name() -> None:
    """Whatever it lacks."""
    assert SyncPsycopg().label(SimpleNamespace()).startswith("<types.SimpleNamespace at 0x")
    driver = FakeDriver()
    assert driver.label(FakeConnection(driver, 3)) == "<FakeConnection 3 IDLE>"
