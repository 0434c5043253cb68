"""What the user's connection class is given by psycopg 3's driver, and what may come out of it."""

from __future__ import annotations

import asyncio
import functools
from types import SimpleNamespace
from typing import Any, TypeVar
from unittest.mock import MagicMock, Mock, create_autospec, patch

import psycopg
import pytest
from psycopg.rows import TupleRow

from forebay._entry import Entry
from forebay.drivers import libpq
from forebay.drivers.psycopg import AsyncPsycopg, SyncPsycopg, origin, room

NAMES = set(libpq.DEFAULTS)
ADDED = {name: int(value) for name, value in libpq.DEFAULTS.items()}
R = TypeVar("R")


def connect(connection_class: Any, conninfo: Any = "", **kwargs: Any) -> Any:
    """What the driver for threads gets."""
    with pytest.raises(StopIteration) as done:
        SyncPsycopg().connect(connection_class, conninfo, kwargs).send(None)
    return done.value.value


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine's own settings are not those of the test."""
    for name in libpq.ENVIRONMENT.values():
        monkeypatch.delenv(name, raising=False)


class Open:
    """A class that takes everything."""

    @classmethod
    def connect(cls, conninfo: str = "", **kwargs: Any) -> tuple[str, dict[str, Any]]:
        """Make no connection."""
        return conninfo, kwargs


# The call ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "conninfo",
    ["", "dbname=x", "postgresql://me:p%40w@h:7/x?options=-c%20a%3Db", "  host = h  ", "nonsense"],
)
def test_a_class_is_given_the_connection_string_as_it_is(conninfo: str) -> None:
    """A class may tell by it where to look for the rest: it is the very same object."""
    given, kwargs = connect(Open, conninfo, autocommit=True)
    assert given is conninfo
    assert kwargs.pop("autocommit") is True
    assert kwargs == ({} if conninfo == "nonsense" else ADDED)


def test_a_class_that_finds_an_empty_string_may_fill_it(dsn: str) -> None:
    """With the time-outs all the same."""

    class FromElsewhere(psycopg.Connection[TupleRow]):
        @classmethod
        def connect(cls, conninfo: str = "", **kwargs: Any) -> Any:
            return super().connect(conninfo or dsn, **kwargs)

    with connect(FromElsewhere) as conn:
        assert type(conn) is FromElsewhere
        assert conn.info.get_parameters()["keepalives_idle"] == "15"


def test_the_same_under_asyncio(dsn: str) -> None:
    """A coroutine method of an AsyncConnection."""

    class FromElsewhere(psycopg.AsyncConnection[TupleRow]):
        @classmethod
        async def connect(cls, conninfo: str = "", **kwargs: Any) -> Any:
            return await super().connect(conninfo or dsn, **kwargs)

    async def play() -> dict[str, str]:
        async with await AsyncPsycopg().connect(FromElsewhere, "", {}) as conn:
            parameters: dict[str, str] = conn.info.get_parameters()
            return parameters

    assert asyncio.run(play())["connect_timeout"] == "10"


def narrow(conninfo: str, *, size: int) -> tuple[str, int]:
    """Make no connection, and know nothing of options."""
    return conninfo, size


def choosy(conninfo: str, *, connect_timeout: int = 3) -> tuple[str, int]:
    """Make no connection, and know of one option."""
    return conninfo, connect_timeout


def test_where_there_is_no_room_nothing_is_added() -> None:
    """A connect() that takes no option, or one of them."""
    assert connect(SimpleNamespace(connect=narrow), "dbname=x", size=3) == ("dbname=x", 3)
    assert connect(SimpleNamespace(connect=choosy), "dbname=x") == ("dbname=x", 10)


def positional(conninfo: str, connect_timeout: int = 3, /) -> None:
    """Take no keyword argument."""


class Opaque:
    """A proxy that answers to everything, and cannot be read."""

    def __getattr__(self, name: str) -> Any:
        if name == "__signature__":
            raise RuntimeError(name)
        return self

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        """Take everything."""


@functools.wraps(Open.connect)
def narrowed(conninfo: str) -> Any:
    """A wrapper that takes less than what it wraps."""
    return Open.connect(conninfo)


@functools.wraps(narrow)
def widened(*args: Any, **kwargs: Any) -> Any:
    """A wrapper that takes more than what it wraps."""
    return narrow(*args, **kwargs)


@pytest.mark.parametrize(
    ("connect", "expected"),
    [
        (psycopg.Connection.connect, NAMES),
        (psycopg.AsyncConnection.connect, NAMES),
        (Open.connect, NAMES),
        (narrow, set()),
        (choosy, {"connect_timeout"}),
        (positional, set()),
        (narrowed, set()),
        (widened, set()),
        (functools.partial(Open.connect, size=1), NAMES),
        (dict, NAMES),  # made in C
        (Mock(), NAMES),
        (MagicMock(), NAMES),
        (create_autospec(psycopg.Connection.connect), NAMES),
        (create_autospec(narrow), set()),
        (Opaque(), NAMES),
    ],
    ids=lambda value: getattr(value, "__qualname__", type(value).__name__),
)
def test_room_is_told_by_every_layer_that_can_be_read(connect: Any, expected: set[str]) -> None:
    """And presumed where nothing can be."""
    assert room(connect, NAMES) == expected


def test_a_class_that_sets_a_time_out_itself_is_not_disturbed() -> None:
    """Its signature does not say so, but Python does; asked twice at the first attempt only."""
    calls: list[set[str]] = []

    class Sets(Open):
        @classmethod
        def connect(cls, conninfo: str = "", **kwargs: Any) -> Any:
            calls.append(kwargs.keys() & NAMES)
            return super().connect(conninfo, connect_timeout=5, keepalives_idle=6, **kwargs)

    driver = SyncPsycopg()
    for attempt in range(2):
        with pytest.raises(StopIteration) as done:
            driver.connect(Sets, "", {"size": 3}).send(None)
        _, kwargs = done.value.value
        assert kwargs == {**ADDED, "connect_timeout": 5, "keepalives_idle": 6, "size": 3}
        assert len(calls) == 3 + attempt
    assert driver.patience("", {}, 1, Sets) == 130


def test_a_helper_that_takes_no_option_is_not_disturbed_under_asyncio() -> None:
    """The arguments go on to where there is no room."""

    class Passes:
        @classmethod
        async def connect(cls, conninfo: str = "", **kwargs: Any) -> Any:
            return narrow(conninfo, **kwargs)

    conninfo = "dbname=x"
    assert asyncio.run(AsyncPsycopg().connect(Passes, conninfo, {"size": 3})) == (conninfo, 3)


def test_a_mistake_of_the_users_is_told_as_it_is() -> None:
    """A TypeError that is not about what was added goes on, and the call is not repeated."""
    calls: list[str] = []

    class Broken:
        @classmethod
        def connect(cls, conninfo: str = "", **_: Any) -> None:
            calls.append(conninfo)
            raise TypeError("an integer is required, not 'connect_timeouts'")

    with pytest.raises(TypeError, match="an integer is required"):
        SyncPsycopg().connect(Broken, "dbname=x", {}).send(None)
    assert calls == ["dbname=x"]


def test_connect_is_looked_up_at_each_attempt() -> None:
    """Replaced later, by a mock or a tracer, it is called."""
    driver = SyncPsycopg()
    with patch.object(psycopg.Connection, "connect", autospec=True) as replaced:
        with pytest.raises(StopIteration) as done:
            driver.connect(psycopg.Connection, "dbname=x", {}).send(None)
        assert done.value.value is replaced.return_value
        replaced.assert_called_once_with("dbname=x", **ADDED)
    failing = patch.object(psycopg.Connection, "connect", side_effect=ZeroDivisionError)
    with failing, pytest.raises(ZeroDivisionError):
        driver.connect(psycopg.Connection, "dbname=x", {}).send(None)


class Rows(psycopg.Connection[R]):
    """A class of a user's that is generic."""


def test_a_class_may_be_given_with_its_rows(dsn: str) -> None:
    """`Rows[TupleRow]` connects as `Rows` does; `origin()` is for who asks what it is."""
    with connect(Rows[TupleRow], dsn) as conn:
        assert type(conn) is Rows
    assert origin(Rows[TupleRow]) is origin(Rows) is Rows
    assert origin(psycopg.AsyncConnection[TupleRow]) is psycopg.AsyncConnection
    maker = SimpleNamespace(connect=narrow)
    assert origin(maker) is maker


# What comes out ----------------------------------------------------------------------------------


class Proxy:
    """What an agent puts before a connection: it passes on what it is asked, and what is set."""

    _proxied: Any

    def __init__(self, conn: Any) -> None:
        object.__setattr__(self, "_proxied", conn)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._proxied, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._proxied, name, value)

    @property  # type: ignore[misc]
    def __class__(self) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        return type(self._proxied)


def adopted(conn: Any, driver: Any = None) -> Entry:
    """The entry of a connection that was adopted."""
    entry = Entry()
    (driver or SyncPsycopg()).adopt(conn, entry)
    return entry


class Renamed(psycopg.Connection[TupleRow]):
    """A class that has nothing to do with transactions."""

    answer = 42


class Commits(psycopg.Connection[TupleRow]):
    """A class that has something to say when it commits."""

    def commit(self) -> None:
        """Say nothing."""
        super().commit()


@pytest.mark.parametrize(
    ("connection_class", "plain"),
    [(psycopg.Connection, True), (Renamed, True), (Commits, False)],
)
def test_plain_is_what_ends_transactions_as_psycopg_does(
    dsn: str, connection_class: Any, plain: bool
) -> None:
    """A subclass may be; a proxy never is, whatever it passes itself off as."""
    with connection_class.connect(dsn) as conn:
        assert adopted(conn).plain is plain
        proxy = Proxy(conn)
        assert isinstance(proxy, psycopg.Connection)
        assert not adopted(proxy).plain


def test_an_async_connection_is_plain_too(dsn: str) -> None:
    """By the methods of its own kind."""

    async def play() -> bool:
        async with await psycopg.AsyncConnection.connect(dsn) as conn:
            return adopted(conn, AsyncPsycopg()).plain

    assert asyncio.run(play())


@pytest.mark.parametrize("name", ["commit", "rollback"])
def test_a_method_of_one_connection_makes_it_not_plain(dsn: str, name: str) -> None:
    """As a tracer attaches it."""
    with psycopg.Connection.connect(dsn) as conn:
        setattr(conn, name, lambda: None)
        assert not adopted(conn).plain


@pytest.mark.parametrize("wrapped", [False, True])
def test_methods_that_were_replaced_are_not_plain(dsn: str, wrapped: bool) -> None:
    """Psycopg's own, for everybody, by a mock or by a wrapper that looks like them."""
    real = psycopg.Connection.commit

    @functools.wraps(real)
    def traced(self: Any) -> None:
        real(self)

    with psycopg.Connection.connect(dsn) as conn:
        with patch.object(psycopg.Connection, "commit", traced if wrapped else Mock()):
            assert not adopted(conn).plain
        assert adopted(conn).plain


def test_a_fake_need_not_have_what_only_psycopg_knows() -> None:
    """Its transaction status is enough, and what is set on it besides is of no account."""
    for driver in (SyncPsycopg(), AsyncPsycopg()):
        for fake in (SimpleNamespace(pgconn=SimpleNamespace(transaction_status=0)), MagicMock()):
            fake.pgconn.transaction_status = 0
            assert not adopted(fake, driver).plain
            assert not driver.unclean(fake)
            assert driver.usable(fake)
            fake.pgconn.transaction_status = 2
            assert driver.unclean(fake)
            assert driver.describe(fake) == "INTRANS"
            assert driver.label(fake).startswith("<")
            driver.deliver(fake)
