"""What a program puts in the place of the pool's own: methods, parameters, the way to connect."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar
from unittest import mock

import pytest
from psycopg.conninfo import make_conninfo

from .both import FLAVOURS, asked, door_of
from .door import Admin, Door, eventually, settled, stat

Row = TypeVar("Row")

APPLICATION = "select current_setting('application_name')"


@pytest.fixture(params=FLAVOURS)
def door(request: pytest.FixtureRequest, dsn: str) -> Door:
    """A pool of each flavour."""
    return door_of(request.param, dsn)


@pytest.fixture(params=("sync", "async"))
def psycopg_door(request: pytest.FixtureRequest, dsn: str) -> Door:
    """The pools whose class has the `connect()` that is called; psycopg2 has a function."""
    return door_of(request.param, dsn)


class Passed:
    """Makes methods that note that they were called, and do what the original does."""

    def __init__(self, door: Door) -> None:
        self.door = door
        self.calls: list[str] = []

    def through(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """A replacement for a method."""
        name = original.__name__

        async def awaited(*args: Any, **kwargs: Any) -> Any:
            self.calls.append(name)
            return await original(*args, **kwargs)

        def called(*args: Any, **kwargs: Any) -> Any:
            self.calls.append(name)
            return original(*args, **kwargs)

        return awaited if self.door.is_async else called


async def use(door: Door, pool: Any) -> Any:
    """Use a connection in a block of its own; returns the connection."""
    async with door.using(pool.connection()) as conn:
        await door.pid(conn)
        return conn


def ignore(_pool: Any, _value: Any) -> None:
    """The setter of a property that knows better."""


def replaced(place: Any, name: str, value: Any) -> Any:
    """Put `value` into `place`, until the block ends."""
    return mock.patch.object(place, name, value)


# getconn() and putconn() -------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["getconn", "putconn"])
async def test_a_method_replaced_on_the_pool_is_used_until_it_is_restored(
    door: Door, name: str
) -> None:
    """connection() goes through what stands on the instance, and through the class's own again."""
    pool = await door.open(**door.least)
    await use(door, pool)
    passed = Passed(door)
    with replaced(pool, name, passed.through(getattr(pool, name))):
        await use(door, pool)
        await use(door, pool)
    assert passed.calls == [name] * 2
    await use(door, pool)
    assert passed.calls == [name] * 2
    assert stat(pool, "pool_available") == 1


@pytest.mark.parametrize("name", ["getconn", "putconn"])
@pytest.mark.parametrize("level", ["class", "definition", "base"])
async def test_a_method_replaced_on_a_class_is_used_by_pools_that_exist(
    door: Door, name: str, level: str
) -> None:
    """A tracer that patches a class, at any level above the pool's own, sees each block."""

    class Middle(door.pool_class):  # type: ignore[misc,name-defined]
        pass

    class Lower(Middle):
        pass

    defining = next(each for each in door.pool_class.__mro__ if name in vars(each))
    place = {"class": Lower, "definition": defining, "base": Middle}[level]
    pool = await door.open(pool_class=Lower, min_size=1)
    await use(door, pool)
    passed = Passed(door)
    with replaced(place, name, passed.through(getattr(place, name))):
        await use(door, pool)
    assert passed.calls == [name]
    await use(door, pool)
    assert passed.calls == [name]


async def test_methods_of_a_mixin_are_used(door: Door) -> None:
    """An override that comes from another base, and calls super(), is as good as any."""
    passed = Passed(door)

    class Counting:
        def getconn(self, *args: Any, **kwargs: Any) -> Any:
            passed.calls.append("getconn")
            return super().getconn(*args, **kwargs)  # type: ignore[misc]

        def putconn(self, *args: Any, **kwargs: Any) -> Any:
            passed.calls.append("putconn")
            return super().putconn(*args, **kwargs)  # type: ignore[misc]

    class Pool(Counting, door.pool_class):  # type: ignore[misc,name-defined]
        pass

    pool = await door.open(pool_class=Pool, min_size=1)
    await use(door, pool)
    assert passed.calls == ["getconn", "putconn"]
    with pytest.raises(ZeroDivisionError):
        async with door.using(pool.connection()):
            raise ZeroDivisionError
    assert passed.calls == ["getconn", "putconn"] * 2


async def test_a_replacement_that_raises_is_heard(door: Door) -> None:
    """An error of a replaced getconn() is the block's; the pool is as it was."""
    pool = await door.open(min_size=1)
    mocked = replaced(pool, "getconn", mock.Mock(side_effect=LookupError("mocked")))
    with mocked, pytest.raises(LookupError, match="mocked"):
        await use(door, pool)
    await use(door, pool)
    assert stat(pool, "pool_available") == 1


async def test_a_decorated_function_goes_through_a_replacement(door: Door) -> None:
    """A lease that was made before, and is used as a decorator, asks anew at each call."""
    pool = await door.open(min_size=1)
    lease = pool.connection()

    async def awaited() -> str:
        return "done"

    function = lease(awaited if door.is_async else lambda: "done")
    passed = Passed(door)
    with replaced(pool, "getconn", passed.through(pool.getconn)):
        assert await door(function) == "done"
    assert passed.calls == ["getconn"]
    assert await door(function) == "done"
    assert passed.calls == ["getconn"]


# The parameters ----------------------------------------------------------------------------------


async def test_a_conninfo_that_a_subclass_computes_is_used(door: Door) -> None:
    """`conninfo` as a property is asked at each attempt, not only when the pool is made."""
    serial = iter(range(100))

    class Pool(door.pool_class):  # type: ignore[misc,name-defined]
        @property
        def conninfo(self) -> str:
            return make_conninfo(door.dsn, application_name=f"computed-{next(serial)}")

        @conninfo.setter
        def conninfo(self, value: str) -> None:
            assert value == "given"

    pool = await door.open("given", pool_class=Pool, min_size=2)
    lent = [await door(pool.getconn) for _ in range(2)]
    names = {await asked(door, conn, APPLICATION) for conn in lent}
    assert len(names) == 2
    assert all(name.startswith("computed-") for name in names)


async def test_kwargs_that_a_subclass_computes_are_used(door: Door) -> None:
    """`kwargs` as a property: fresh arguments for each connection."""

    class Pool(door.pool_class):  # type: ignore[misc,name-defined]
        kwargs = property(lambda self: {"application_name": self.name}, ignore)

    pool = await door.open(pool_class=Pool, min_size=1, name="by-its-name")
    assert await asked(door, await door(pool.getconn), APPLICATION) == "by-its-name"


async def test_a_connection_class_that_a_subclass_computes_is_used(door: Door) -> None:
    """`connection_class` as a property, as one that depends on a setting."""

    class Special(door.connection_class):  # type: ignore[misc,name-defined]
        pass

    class Pool(door.pool_class):  # type: ignore[misc,name-defined]
        connection_class = property(lambda _self: Special, ignore)

    pool = await door.open(pool_class=Pool, min_size=1)
    assert isinstance(await door(pool.getconn), Special)


async def test_parameters_that_are_assigned_count_from_the_next_attempt(door: Door) -> None:
    """conninfo, kwargs and connection_class may be changed; drain() brings them into force."""

    class Special(door.connection_class):  # type: ignore[misc,name-defined]
        pass

    pool = await door.open(min_size=1)
    pool.conninfo = make_conninfo(door.dsn, application_name="")
    pool.kwargs = {"application_name": "assigned"}
    pool.connection_class = Special
    await use(door, pool)
    await door(pool.drain)
    conn = await door(pool.getconn)
    assert isinstance(conn, Special)
    assert await asked(door, conn, APPLICATION) == "assigned"


# The way to connect ------------------------------------------------------------------------------


async def test_a_connect_that_a_subclass_overrides_is_the_pools_way(door: Door) -> None:
    """_connect() with a call of super() opens the pool's connections, and pool.connect()'s."""
    made: list[Any] = []

    class Pool(door.pool_class):  # type: ignore[misc,name-defined]
        def _connect(self, timeout: float | None = None) -> Any:
            if door.is_async:
                return self._note(super()._connect(timeout))
            made.append(super()._connect(timeout))
            return made[-1]

        async def _note(self, opening: Any) -> Any:
            made.append(await opening)
            return made[-1]

    pool = await door.open(pool_class=Pool, min_size=2)
    assert len(made) == 2
    assert await door(pool.getconn) in made
    apart = await door(pool.connect)
    assert apart is made[2]
    await door(apart.close)


async def test_a_connect_that_is_replaced_on_the_pool_is_used(door: Door) -> None:
    """A mock on the instance is called at the next attempt, and no more when it is gone."""
    pool = await door.open(min_size=1)
    passed = Passed(door)
    with replaced(pool, "_connect", passed.through(pool._connect)):
        await door(pool.resize, 2, 2)
        await settled(pool, pool_available=2)
        await door((await door(pool.connect)).close)
    assert passed.calls == ["_connect"] * 2
    await door(pool.resize, 3, 3)
    await settled(pool, pool_available=3)
    assert passed.calls == ["_connect"] * 2


@pytest.mark.parametrize("level", ["class", "definition"])
async def test_a_connect_that_is_replaced_on_the_class_is_used(door: Door, level: str) -> None:
    """The same on the class, be it the one that defines the method."""
    pool = await door.open(min_size=1)
    passed = Passed(door)
    defining = next(each for each in door.pool_class.__mro__ if "_connect" in vars(each))
    place = door.pool_class if level == "class" else defining
    with replaced(place, "_connect", passed.through(door.pool_class._connect)):
        await door(pool.drain)
        await use(door, pool)
    assert passed.calls == ["_connect"]


async def test_an_overridden_connect_that_fails_is_tried_again(door: Door) -> None:
    """What it raises is a failed attempt as any other, and the pool recovers."""
    pool = await door.open(min_size=1)
    with replaced(pool, "_connect", mock.Mock(side_effect=OSError("not now"))):
        await door(pool.drain)
        await eventually(lambda: stat(pool, "connections_errors") >= 2, pool)
    await use(door, pool)


async def test_resolve_methods_give_what_the_next_attempt_uses(door: Door) -> None:
    """A string and a dict as they are; callables (coroutine functions too) are called."""
    pool = door.make("host=given", min_size=1, kwargs={"autocommit": True})
    assert await door(pool._resolve_conninfo) == "host=given"
    given = await door(pool._resolve_kwargs)
    assert given == {"autocommit": True}
    given["autocommit"] = False
    assert await door(pool._resolve_kwargs) == {"autocommit": True}
    pool.kwargs = None
    assert await door(pool._resolve_kwargs) == {}

    async def conninfo() -> str:
        return "host=asked"

    async def kwargs() -> dict[str, Any]:
        return {"autocommit": False}

    pool.conninfo, pool.kwargs = door.callback(conninfo), door.callback(kwargs)
    assert await door(pool._resolve_conninfo) == "host=asked"
    assert await door(pool._resolve_kwargs) == {"autocommit": False}


async def test_resolve_methods_that_are_overridden_count(door: Door) -> None:
    """A subclass that adds to the parameters there is heard, in the pool and in connect()."""

    async def named(value: Any) -> Any:
        return make_conninfo(await value if door.is_async else value, application_name="resolved")

    class Pool(door.pool_class):  # type: ignore[misc,name-defined]
        def _resolve_conninfo(self) -> Any:
            return door.callback(named)(super()._resolve_conninfo())

    pool = await door.open(pool_class=Pool, min_size=1)
    assert await asked(door, await door(pool.getconn), APPLICATION) == "resolved"
    apart = await door(pool.connect)
    assert await asked(door, apart, APPLICATION) == "resolved"
    await door(apart.close)


# pool.connect() ----------------------------------------------------------------------------------


async def test_connect_opens_a_connection_outside_the_pool(door: Door, admin: Admin) -> None:
    """It does not count, is not lent, and close() ends its session, whatever close_returns says."""
    configured: list[Any] = []

    async def configure(conn: Any) -> None:
        configured.append(conn)

    pool = await door.open(min_size=1, configure=door.callback(configure), close_returns=True)
    before = pool.get_stats()
    conn = await door(pool.connect)
    pid = await door.pid(conn)
    assert conn is configured[-1]
    assert getattr(conn, "_pool", None) is None
    assert pool.get_stats() == before
    with pytest.raises(ValueError, match="can't return"):
        await door(pool.putconn, conn)
    await door(conn.close)
    await eventually(lambda: pid not in admin.pids(door.application), pid)
    assert stat(pool, "pool_size") == 1


async def test_connect_outlives_its_pool(door: Door) -> None:
    """A session for LISTEN is its owner's: closing the pool leaves it alone."""
    pool = await door.open(min_size=1)
    conn = await door(pool.connect)
    await door(pool.close)
    await door.pid(conn)
    await door(conn.close)


async def test_connect_takes_its_own_time_out(psycopg_door: Door) -> None:
    """`timeout` is the connect_timeout of this one attempt, over the pool's own."""
    door = psycopg_door
    given: list[dict[str, Any]] = []

    class Noting(door.connection_class):  # type: ignore[misc,name-defined]
        @classmethod
        def connect(cls, conninfo: str = "", **kwargs: Any) -> Any:
            given.append(kwargs)
            return super().connect(conninfo, **kwargs)

    pool = door.make(connection_class=Noting, min_size=1, kwargs={"connect_timeout": 33})
    await door((await door(pool.connect, timeout=7.2)).close)
    await door((await door(pool.connect)).close)
    assert [kwargs["connect_timeout"] for kwargs in given] == [7, 33]


async def test_connect_closes_what_it_cannot_configure(door: Door, admin: Admin) -> None:
    """An error of configure is the caller's, and no session is left."""

    async def configure(_conn: Any) -> None:
        raise LookupError("not so")

    pool = door.make(min_size=0, max_size=1, configure=door.callback(configure))
    with pytest.raises(LookupError, match="not so"):
        await door(pool.connect)
    await eventually(lambda: not admin.pids(door.application), "sessions")


async def test_connect_tries_once(psycopg_door: Door, refusing_dsn: str) -> None:
    """A server that is away is told at once, by the driver's error."""
    door = psycopg_door
    gate = door.gate()
    gate.open()
    pool = door.make(refusing_dsn, min_size=1, connection_class=gate.connection_class)
    with pytest.raises(Exception, match="refused"):
        await door(pool.connect)
    assert gate.attempts == 1


# connection_class --------------------------------------------------------------------------------


async def test_a_generic_alias_is_a_connection_class(door: Door) -> None:
    """`MyConnection[Row]` connects as `MyConnection` does, in the pool and in connect()."""

    class Typed(door.connection_class, Generic[Row]):  # type: ignore[misc,name-defined]
        pass

    pool = await door.open(min_size=1, connection_class=Typed[Any])
    assert isinstance(await door(pool.getconn), Typed)
    apart = await door(pool.connect)
    assert isinstance(apart, Typed)
    await door(apart.close)


async def test_an_object_with_a_connect_is_a_connection_class(psycopg_door: Door) -> None:
    """What has connect() and makes connections need not be a class."""
    door = psycopg_door

    class Factory:
        def __init__(self, kind: Any) -> None:
            self.kind, self.made = kind, 0

        def connect(self, conninfo: str = "", **kwargs: Any) -> Any:
            self.made += 1
            return self.kind.connect(conninfo, **kwargs)

    factory = Factory(door.connection_class)
    pool = await door.open(min_size=1, connection_class=factory)
    await use(door, pool)
    assert factory.made == 1


@pytest.mark.parametrize("hidden", [False, True])
async def test_a_connect_that_takes_nothing_else_is_called_with_nothing_else(
    door: Door, hidden: bool
) -> None:
    """A class whose connect() has no room for further arguments is not given any.

    Nor one that says it has, and passes them on to one that has not.
    """
    parent: Any = door.connection_class

    class Narrow(parent):  # type: ignore[misc]
        @classmethod
        def connect(cls, conninfo: str = "") -> Any:
            return parent.connect(conninfo)

    class Hiding(Narrow):
        @classmethod
        def connect(cls, *args: Any, **kwargs: Any) -> Any:
            return super().connect(*args, **kwargs)

    pool = await door.open(min_size=1, connection_class=Hiding if hidden else Narrow)
    await use(door, pool)
    await door((await door(pool.connect)).close)
