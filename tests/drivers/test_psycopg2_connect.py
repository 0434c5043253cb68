"""How psycopg2's `connect` is called, whatever stands in its place, and what it is given."""

from __future__ import annotations

import functools
import socket
import traceback
from collections.abc import Callable, Iterator
from math import inf
from typing import Any
from unittest import mock
from urllib.parse import urlencode

import psycopg2
import pytest
from psycopg2.extensions import connection, cursor, parse_dsn
from psycopg2.extras import DictConnection, DictCursor

from forebay.drivers import libpq
from forebay.drivers.psycopg2 import DropInDriver, SyncPsycopg2, extended
from forebay.drivers.psycopg2 import connect as connect2

real = psycopg2.connect
SECRET = "hunter2"


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine's own settings are not those of the test."""
    for name in libpq.ENVIRONMENT.values():
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def replace(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], None]:
    """Give a way to put something in the place of `psycopg2.connect`."""
    return functools.partial(monkeypatch.setattr, psycopg2, "connect")


@pytest.fixture
def uri(dsn: str) -> str:
    """Give the server's connection string as a URI."""
    return f"postgresql://?{urlencode(parse_dsn(dsn))}"


@pytest.fixture
def opened() -> Iterator[list[Any]]:
    """Give a list for connections, which are closed after the test."""
    conns: list[Any] = []
    yield conns
    for conn in conns:
        conn.close()


def connect(dsn: str = "", factory: Any = connection, patience: int = 1, **kwargs: Any) -> Any:
    """Connect by the driver, which does not suspend."""
    try:
        SyncPsycopg2().connect(factory, dsn, kwargs, patience).send(None)
    except StopIteration as done:
        return done.value
    raise AssertionError("the driver of a library for threads has suspended")


def time_outs(conn: Any) -> dict[str, str]:
    """The time-outs that a connection was opened with."""
    known = conn.info.dsn_parameters
    return {name: known[name] for name in libpq.DEFAULTS if name in known}


class Recording(connection):
    """A user's class, which keeps what it is given."""

    def __init__(self, dsn: str, *args: Any, **kwargs: Any) -> None:
        self.given = dsn, args, kwargs
        super().__init__(dsn, *args, **kwargs)


# What passes through -----------------------------------------------------------------------------


@pytest.mark.parametrize("dsn", ["", "dbname=x user='a b'", "postgresql://me:p%3Fw@db:7/name"])
def test_connect_is_called_as_users_call_it(replace: Callable[[Any], None], dsn: str) -> None:
    """With the string that the user gave, and all else by keyword; a wrapper may add to that."""
    stand_in = mock.MagicMock(return_value=mock.MagicMock(closed=0))
    replace(stand_in)
    connect(dsn, cursor_factory=DictCursor, application_name="a")
    (given,), kwargs = stand_in.call_args
    assert given == dsn
    assert issubclass(kwargs.pop("connection_factory"), connection)
    assert kwargs == {"cursor_factory": DictCursor, "application_name": "a"}


def test_what_is_given_by_position_is_passed_by_keyword(replace: Callable[[Any], None]) -> None:
    """As psycopg2.pool takes it: the factories after the string."""
    stand_in = mock.MagicMock(return_value=mock.MagicMock(closed=0))
    replace(stand_in)
    connect2(("dbname=x", DictConnection, DictCursor), {"user": "me"})
    assert stand_in.call_args.args == ("dbname=x",)
    kwargs = {**stand_in.call_args.kwargs}
    assert issubclass(kwargs.pop("connection_factory"), DictConnection)
    assert kwargs == {"cursor_factory": DictCursor, "user": "me"}


def test_without_a_string_none_is_passed(replace: Callable[[Any], None]) -> None:
    """An address may be among the keywords, `dsn` too."""
    stand_in = mock.MagicMock(return_value=mock.MagicMock(closed=0))
    replace(stand_in)
    connect2((), {"host": "db"})
    connect2((), {"dsn": "dbname=x"})
    connect("", host="db")
    assert [call.args for call in stand_in.call_args_list] == [(), (), ("",)]


@pytest.mark.parametrize("by", ["URI", "string", "keywords"])
def test_the_users_class_sees_what_it_would_see_without_a_pool(
    dsn: str, uri: str, opened: list[Any], by: str
) -> None:
    """And the time-outs are set all the same."""
    args, kwargs = {"URI": ((uri,), {}), "string": ((dsn,), {}), "keywords": ((), parse_dsn(dsn))}[
        by
    ]
    opened += [
        real(*args, connection_factory=Recording, **kwargs),
        connect2(args, {"connection_factory": Recording, **kwargs}),
    ]
    alone, pooled = opened
    assert pooled.given == alone.given
    assert time_outs(pooled) == libpq.DEFAULTS


def test_an_empty_string_stays_empty(
    dsn: str, opened: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where to connect is in the environment then."""
    names = {"host": "PGHOST", "port": "PGPORT", "user": "PGUSER", "dbname": "PGDATABASE"}
    for name, value in parse_dsn(dsn).items():
        monkeypatch.setenv(names.get(name, "PGPASSWORD"), value)
    opened.append(connect("", Recording))
    assert opened[0].given == ("", (), {})
    assert time_outs(opened[0]) == libpq.DEFAULTS


def test_a_function_as_factory_is_called_with_nothing_added(uri: str, opened: list[Any]) -> None:
    """It has no room for time-outs; so the attempt has the patience that it has without."""
    seen: list[Any] = []

    def factory(dsn: str) -> connection:
        seen.append(dsn)
        return connection(dsn)

    opened.append(connect(uri, factory))
    assert seen == [uri]
    assert time_outs(opened[0]) == {}
    driver = SyncPsycopg2()
    assert driver.patience("", {"connection_factory": factory}) == inf
    assert driver.patience("", {}, 1, factory) == inf
    assert driver.patience("connect_timeout=7", {}, 8, factory) == 7
    assert driver.patience("", {}, 2, Recording) == 20


def test_a_class_may_change_the_string(dsn: str, opened: list[Any]) -> None:
    """What it passes on is completed."""

    class Impatient(connection):
        def __init__(self, dsn: str) -> None:
            super().__init__(f"{dsn} connect_timeout=3")

    opened.append(connect(dsn, Impatient))
    assert time_outs(opened[0]) == {**libpq.DEFAULTS, "connect_timeout": "3"}


def test_a_patient_attempt_is_so_through_classes_and_wrappers(
    dsn: str, opened: list[Any], replace: Callable[[Any], None]
) -> None:
    """Which know nothing of patience; the next attempt is an ordinary one."""
    replace(lambda *args, **kwargs: real(*args, **kwargs))
    opened += [connect(dsn, Recording, patience=4), connect(dsn, Recording)]
    assert [time_outs(conn)["connect_timeout"] for conn in opened] == ["40", "10"]


def test_a_wrapper_may_set_time_outs_itself(
    dsn: str, opened: list[Any], replace: Callable[[Any], None]
) -> None:
    """As one does that fetches the parameters of a database in a cloud."""
    replace(lambda dsn, **kwargs: real(dsn, connect_timeout=3, **kwargs))
    opened.append(connect(dsn))
    assert time_outs(opened[0])["connect_timeout"] == "3"


def test_an_agent_may_pass_factories_of_its_own(
    dsn: str, opened: list[Any], replace: Callable[[Any], None]
) -> None:
    """A cursor class, and a connection class derived from what it was given."""

    class Traced(cursor):
        pass

    def instrumented(*args: Any, **kwargs: Any) -> Any:
        base = kwargs.get("connection_factory") or connection
        kwargs["connection_factory"] = type("TracedConnection", (base,), {})
        kwargs["cursor_factory"] = Traced
        return real(*args, **kwargs)

    replace(instrumented)
    opened.append(connect(dsn, DictConnection))
    assert type(opened[0]).__name__ == "TracedConnection"
    assert isinstance(opened[0], DictConnection)
    assert time_outs(opened[0]) == libpq.DEFAULTS
    assert opened[0].cursor_factory is Traced


# Where there is no room --------------------------------------------------------------------------


def narrow(dsn: str) -> Any:
    """A function that knows nothing of factories."""
    return real(dsn)


@functools.wraps(real)
def disguised(dsn: str) -> Any:
    """One that looks as if it did."""
    return real(dsn)


@functools.wraps(narrow)
def wide(*args: Any, **kwargs: Any) -> Any:
    """One that passes things on to one that does not."""
    return narrow(*args, **kwargs)


def blind(*args: Any, **kwargs: Any) -> Any:
    """The same, and it does not tell."""
    return narrow(*args, **kwargs)


@pytest.mark.parametrize("stand_in", [narrow, disguised, wide, blind], ids=lambda f: f.__name__)
def test_a_factory_that_nobody_has_asked_for_is_not_forced_on_anybody(
    dsn: str, opened: list[Any], replace: Callable[[Any], None], stand_in: Any
) -> None:
    """Where `connect` has no room for it, it gives what it gives."""
    replace(stand_in)
    opened.append(connect(dsn))
    assert type(opened[0]) is connection


def test_a_mock_may_stand_before_a_narrow_function(replace: Callable[[Any], None]) -> None:
    """Whose signature does not show through it."""
    stand_in = mock.MagicMock(side_effect=lambda dsn: mock.MagicMock(closed=0, dsn=dsn))
    replace(stand_in)
    assert connect("dbname=x").dsn == "dbname=x"


def test_a_factory_that_was_asked_for_is_passed_all_the_same(
    replace: Callable[[Any], None],
) -> None:
    """So the caller is told, by whoever refuses it."""
    replace(narrow)
    with pytest.raises(TypeError, match="connection_factory"):
        connect("", DictConnection)


def test_an_error_of_another_kind_is_raised_at_once(replace: Callable[[Any], None]) -> None:
    """Nothing is tried twice."""
    stand_in = mock.MagicMock(side_effect=TypeError("missing dsn and no parameters"))
    replace(stand_in)
    with pytest.raises(TypeError, match="missing dsn"):
        connect("")
    assert stand_in.call_count == 1


def test_layers_without_end_are_not_read_for_ever(replace: Callable[[Any], None]) -> None:
    """Something that says it wraps itself, or a proxy that answers everything."""

    def endless(*args: Any, **kwargs: Any) -> Any:
        return mock.MagicMock(closed=0, args=args, kwargs=kwargs)

    endless.__wrapped__ = endless  # type: ignore[attr-defined]
    replace(endless)
    assert "connection_factory" in connect("dbname=x").kwargs


# Factories ---------------------------------------------------------------------------------------


def test_a_factory_need_not_be_hashable(dsn: str, opened: list[Any]) -> None:
    """An object with __eq__, say a dataclass, with __call__."""

    class Factory:
        def __call__(self, dsn: str) -> connection:
            return connection(dsn)

        def __eq__(self, other: object) -> bool:
            return True

    opened.append(connect(dsn, Factory()))
    assert type(opened[0]) is connection


@pytest.mark.parametrize("error", [TypeError, ValueError, RuntimeError])
def test_a_class_that_refuses_to_be_derived_from_is_called_as_it_is(error: type[Exception]) -> None:
    """Whatever it refuses with."""

    class Final(connection):
        def __init_subclass__(cls) -> None:
            raise error("this class is final")

    assert extended(Final) is Final


def test_a_factory_may_find_itself_at_the_wrong_server(dsn: str) -> None:
    """A connection that it has closed is a failed connect."""

    class Choosy(connection):
        def __init__(self, dsn: str) -> None:
            super().__init__(dsn)
            self.close()

    with pytest.raises(psycopg2.OperationalError, match="closed by its connection_factory"):
        connect(dsn, Choosy)


# Secrets -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "dsn",
    [
        f"host=127.0.0.1 user=u password=my {SECRET}",
        f"host=127.0.0.1 sslmode=require sslpassword=my {SECRET}",
        f"host=127.0.0.1 password='my' {SECRET}'",
        f"postgresql://u:pa@{SECRET}/db",
        f"postgresql://u:{SECRET}/x@127.0.0.1/db",
        f"postgresql://u:my {SECRET}@127.0.0.1/db",
    ],
    ids=["a blank", "another", "a quote", "@", "/", "a blank in a URI"],
)
@pytest.mark.parametrize("by", ["position", "keyword"])
def test_an_error_quotes_no_part_of_a_password(dsn: str, by: str) -> None:
    """It says what is wrong, and what it is wrong with has a placeholder."""
    args, kwargs = ((dsn,), {}) if by == "position" else ((), {"dsn": dsn})
    with pytest.raises(psycopg2.Error) as caught:
        connect2(args, kwargs)
    shown = "".join(traceback.format_exception(caught.value))
    assert SECRET not in f"{caught.value} {caught.value!r} {caught.value.args} {shown}"


def test_an_error_of_a_function_of_the_users_quotes_none(replace: Callable[[Any], None]) -> None:
    """Which connects by what nobody else knows, a token of its own, say."""
    replace(lambda _, **kwargs: real(f"host=127.0.0.1 password=my {SECRET}", **kwargs))
    with pytest.raises(psycopg2.Error) as caught:
        connect("dbname=x")
    assert SECRET not in f"{caught.value!r}"


def test_an_error_that_quotes_no_secret_is_as_it_was(unused_port: int) -> None:
    """Word for word."""
    dsn = f"host=127.0.0.1 port={unused_port} user=me password=secret dbname=x"
    errors = []
    for attempt in (lambda: real(dsn), lambda: connect(dsn)):
        with pytest.raises(psycopg2.OperationalError) as caught:
            attempt()
        errors.append(str(caught.value))
    assert errors[0] == errors[1]


@pytest.fixture
def unused_port() -> Iterator[int]:
    """Give a port at which nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield int(taken.getsockname()[1])


# The drop-ins ------------------------------------------------------------------------------------


class Pool:
    """What the driver of the drop-ins asks of a pool."""

    def __init__(self, dsn: str, kwargs: dict[str, Any] | None = None) -> None:
        self.calls: list[Any] = []
        self.given = dsn, kwargs or {}

    def _connect(self, *args: Any) -> Any:
        self.calls.append(args)
        return connect2((self.given[0],), self.given[1])


def test_the_drop_ins_connect_by_a_method_of_their_pool(dsn: str, opened: list[Any]) -> None:
    """With the patience of the attempt."""
    pool = Pool(dsn)
    driver = DropInDriver(pool, True)
    with pytest.raises(StopIteration) as done:
        driver.connect(None, "", {}, 2).send(None)
    opened.append(done.value.value)
    assert pool.calls == [(True,)]
    assert time_outs(opened[0])["connect_timeout"] == "20"
