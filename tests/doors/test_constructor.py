"""REFERENCE 1, "Constructor": names, defaults, warnings, and attributes that can be assigned."""

from __future__ import annotations

import asyncio
import inspect
import warnings
from typing import Any

import psycopg
import pytest
from psycopg.rows import dict_row

import forebay

from .door import Door, eventually, settled, stat

POOLS = ("ConnectionPool", "AsyncConnectionPool", "NullConnectionPool", "AsyncNullConnectionPool")

# The parameters of psycopg_pool 3.3, with their defaults. `...` differs from class to class.
PARAMETERS = {
    "conninfo": "",
    "connection_class": ...,
    "kwargs": None,
    "min_size": ...,
    "max_size": None,
    "open": None,
    "configure": None,
    "check": None,
    "reset": None,
    "name": None,
    "close_returns": False,
    "timeout": 30.0,
    "max_waiting": 0,
    "max_lifetime": 3600.0,
    "max_idle": 600.0,
    "reconnect_timeout": 300.0,
    "reconnect_failed": None,
    "num_workers": 3,
}
# What Forebay takes beyond the original.
ADDED = {
    "idle_order": "lifo",
    "bypass_window": 0.05,
    "keepalive_interval": 0.0,
    "max_uses": 0,
    "action_timeout": 3.0,
    "leak_threshold": 0.0,
    "record_lines": False,
}

METHODS = {
    "connection": {"timeout": None},
    "getconn": {"timeout": None},
    "putconn": {"conn": inspect.Parameter.empty},
    "open": {"wait": False, "timeout": 30.0},
    "close": {"timeout": 5.0},
    "wait": {"timeout": 30.0},
    "resize": {"min_size": inspect.Parameter.empty, "max_size": None},
    "check": {},
    "drain": {},
    "get_stats": {},
    "pop_stats": {},
    "check_connection": {"conn": inspect.Parameter.empty},
}


def defaults_of(function: Any) -> dict[str, Any]:
    """The parameters of a function with their defaults, without `self`."""
    parameters = inspect.signature(function).parameters.values()
    return {p.name: p.default for p in parameters if p.name != "self"}


@pytest.mark.parametrize("name", POOLS)
def test_the_constructor_takes_the_parameters_of_psycopg_pool(name: str) -> None:
    """Every parameter of the original is there with its default, keyword-only after conninfo."""
    kind = getattr(forebay, name)
    expected = PARAMETERS | ADDED
    expected["connection_class"] = (
        psycopg.AsyncConnection if "Async" in name else psycopg.Connection
    )
    expected["min_size"] = 0 if "Null" in name else 4
    given = defaults_of(kind)
    assert {key: given[key] for key in expected if key in given} == expected
    positional = [
        p.name
        for p in inspect.signature(kind).parameters.values()
        if p.kind is not inspect.Parameter.KEYWORD_ONLY
    ]
    assert positional == ["conninfo"]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", POOLS)
def test_methods_take_the_parameters_of_psycopg_pool(name: str, method: str) -> None:
    """Every public method has the original's parameters and defaults."""
    assert defaults_of(getattr(getattr(forebay, name), method)) == METHODS[method]


async def test_a_pool_has_the_documented_attributes(any_door: Door) -> None:
    """The options are readable under their own names, with the default values."""
    pool = any_door.make()
    for name in ("timeout", "max_waiting", "max_lifetime", "max_idle", "reconnect_timeout"):
        assert getattr(pool, name) == PARAMETERS[name]
    assert pool.num_workers == 3
    assert pool.conninfo == any_door.dsn
    assert pool.kwargs is None or pool.kwargs == {}
    assert pool.connection_class is any_door.connection_class
    assert pool.close_returns is False
    assert pool.closed is True


async def test_max_size_defaults_to_min_size(door: Door) -> None:
    """Without max_size the pool has a fixed size."""
    pool = door.make(min_size=3)
    assert (pool.min_size, pool.max_size) == (3, 3)
    pool = door.make(min_size=0, max_size=7)
    assert (pool.min_size, pool.max_size) == (0, 7)


async def test_a_pool_without_a_name_is_numbered(any_door: Door) -> None:
    """Unnamed pools are called pool-N, each N once; a given name is kept."""
    first, second = any_door.make(), any_door.make()
    numbers = [int(pool.name.removeprefix("pool-")) for pool in (first, second)]
    assert numbers[0] < numbers[1]
    assert any_door.make(name="ours").name == "ours"


async def test_repr_names_the_class_the_pool_and_its_state(door: Door) -> None:
    """repr() tells how many connections are where, and whether the pool is open."""
    pool = door.make(min_size=1, max_size=8, name="x")
    name = door.pool_class.__name__
    assert repr(pool) == f"<{name} 'x' not open>"
    await door(pool.open, wait=True)
    assert repr(pool) == f"<{name} 'x' 1 idle, 0 lent, 0 opening, 0 waiting of 1..8>"
    async with door.using(pool.connection()):
        assert repr(pool) == f"<{name} 'x' 0 idle, 1 lent, 0 opening, 0 waiting of 1..8>"
        gate = door.gate()
        pool.connection_class = gate.connection_class
        waiter = door.client(pool.getconn)
        await gate.arrived(1)
        assert repr(pool) == f"<{name} 'x' 0 idle, 1 lent, 1 opening, 1 waiting of 1..8>"
        gate.open()
        await door(pool.putconn, await waiter)
    await door(pool.close)
    assert repr(pool) == f"<{name} 'x' closed>"


async def test_the_constructor_does_not_wait_for_the_server(door: Door) -> None:
    """Opening returns at once while every connect is held up, and workers go on connecting."""
    gate = door.gate()
    pool = door.make(connection_class=gate.connection_class, min_size=2)
    await door(pool.open)
    assert stat(pool, "pool_available") == 0
    await gate.arrived(1)
    gate.open()
    await settled(pool, pool_available=2)


async def test_open_true_opens_in_the_constructor(door: Door) -> None:
    """open=True gives an open pool; the async pool warns that this should not be done."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        pool = door.make(min_size=1, open=True)
    assert pool.closed is False
    assert [w.category for w in seen] == ([RuntimeWarning] if door.is_async else [])
    async with door.using(pool.connection()) as conn:
        await door.pid(conn)


@pytest.mark.parametrize(
    "pool_class", [forebay.AsyncConnectionPool, forebay.AsyncNullConnectionPool]
)
def test_the_warning_of_a_constructor_points_to_its_caller(dsn: str, pool_class: Any) -> None:
    """Not into the pool, nor to whoever called the caller."""

    async def construct() -> Any:
        return pool_class(dsn, open=True)

    async def play() -> None:
        pool = await construct()
        await pool.close()

    with pytest.warns(RuntimeWarning) as seen:
        asyncio.run(play())
    (warning,) = seen
    assert warning.filename == __file__
    assert warning.lineno == inspect.getsourcelines(construct)[1] + 1


async def test_open_none_warns_on_first_use(door: Door) -> None:
    """Without open= the pool opens by itself and says, once, that this will change."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        pool = door.make(min_size=1, open=None)
        for _ in range(3):
            await door(pool.putconn, await door(pool.getconn))
    (warning,) = seen
    assert warning.category in (DeprecationWarning, RuntimeWarning)
    assert "open" in str(warning.message)


async def test_open_none_is_silent_in_a_context_manager(door: Door) -> None:
    """`with ConnectionPool(...)` needs no open= and warns of nothing."""
    async with door.using(door.make(min_size=1, open=None)) as pool:
        await door(pool.putconn, await door(pool.getconn))
    assert pool.closed


@pytest.mark.parametrize("value", [True, None])
def test_an_async_pool_opened_outside_a_loop_is_refused(dsn: str, value: bool | None) -> None:
    """Opening in the constructor needs a running event loop."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(RuntimeError, match="loop"):
            forebay.AsyncConnectionPool(dsn, open=value)


def test_an_async_pool_can_be_made_outside_a_loop(dsn: str) -> None:
    """A pool made at import time, without opening, works in the loop that opens it."""
    pool = forebay.AsyncConnectionPool(dsn, open=False, min_size=1)

    async def use() -> None:
        async with pool, pool.connection() as conn:
            await conn.execute("select 1")

    asyncio.run(use())


@pytest.mark.parametrize("name", POOLS)
def test_pools_are_generic(name: str) -> None:
    """The classes take the connection type as a type argument, at run time too."""
    kind: Any = getattr(forebay, name)
    assert kind[psycopg.Connection[dict[str, Any]]]("", open=False).name


async def test_kwargs_are_given_to_connect(any_door: Door) -> None:
    """`kwargs` reaches connect() at each attempt."""
    options = {"autocommit": True, "row_factory": dict_row}
    pool = await any_door.open(kwargs=options, max_size=1, **any_door.least)
    async with any_door.using(pool.connection()) as conn:
        assert conn.autocommit
        cursor = await any_door(conn.execute, "select 1 as one")
        assert await any_door(cursor.fetchone) == {"one": 1}


async def test_conninfo_and_kwargs_may_be_callables(any_door: Door) -> None:
    """Callables are asked anew at each connection attempt."""
    asked: list[str] = []
    name = any_door.application + "-called"

    def conninfo() -> str:
        asked.append("conninfo")
        return any_door.dsn

    def kwargs() -> dict[str, str]:
        asked.append("kwargs")
        return {"application_name": name}

    pool = await any_door.open(conninfo, kwargs=kwargs, max_size=2, **any_door.least)
    one = await any_door(pool.getconn)
    two = await any_door(pool.getconn)
    cursor = await any_door(two.execute, "show application_name")
    assert await any_door(cursor.fetchone) == (name,)
    for conn in (one, two):
        await any_door(pool.putconn, conn)
    assert sorted(asked) == ["conninfo", "conninfo", "kwargs", "kwargs"]


@pytest.mark.parametrize("kind", ["async", "async-null"])
async def test_async_pools_take_async_conninfo_and_kwargs(dsn: str, kind: str) -> None:
    """On async pools the callables may be coroutine functions."""
    door = Door(kind, dsn)

    async def conninfo() -> str:
        return door.dsn

    async def kwargs() -> dict[str, bool]:
        return {"autocommit": True}

    pool = await door.open(conninfo, kwargs=kwargs, max_size=1, **door.least)
    async with pool.connection() as conn:
        assert conn.autocommit
    await door.end()


async def test_connection_class_is_looked_up_at_each_attempt(door: Door) -> None:
    """Assigned conninfo, kwargs and connection_class count from the next attempt on."""
    pool = await door.open(min_size=1, max_size=2)
    gate = door.gate()
    gate.open()
    pool.connection_class = gate.connection_class
    pool.conninfo = door.dsn + "-assigned"
    pool.kwargs = {"autocommit": True}
    one = await door(pool.getconn)
    two = await door(pool.getconn)
    assert not isinstance(one, gate.connection_class)
    assert isinstance(two, gate.connection_class)
    assert f"application_name={door.application}-assigned" in gate.arguments[0][0]
    assert two.autocommit
    for conn in (one, two):
        await door(pool.putconn, conn)


async def test_a_patched_connect_is_called(any_door: Door) -> None:
    """Instrumentation that patches `connect` on the class in use is honoured."""
    kind: Any = type("Patched", (any_door.connection_class,), {})
    pool = await any_door.open(connection_class=kind, max_size=2, **any_door.least)
    one = await any_door(pool.getconn)
    calls: list[str] = []
    original = kind.connect

    def connect(*args: Any, **kwargs: Any) -> Any:
        calls.append("connect")
        return original(*args, **kwargs)

    kind.connect = connect
    two = await any_door(pool.getconn)
    assert calls == ["connect"]
    for conn in (one, two):
        await any_door(pool.putconn, conn)


async def test_an_assigned_timeout_counts_at_once(door: Door) -> None:
    """`timeout` and `max_waiting` are read when a client asks."""
    pool = await door.open(min_size=1)
    held = await door(pool.getconn)
    pool.timeout = 0.05
    with pytest.raises(forebay.PoolTimeout, match=r"0\.05 sec"):
        await door(pool.getconn)
    pool.timeout, pool.max_waiting = 30.0, 1
    waiter = door.client(pool.getconn)
    await settled(pool, requests_waiting=1)
    with pytest.raises(forebay.TooManyRequests):
        await door(pool.getconn)
    await door(pool.putconn, held)
    await door(pool.putconn, await waiter)


async def test_an_assigned_max_lifetime_counts_for_new_connections(door: Door) -> None:
    """`max_lifetime` may be assigned; connections made from then on live that long."""
    pool = await door.open(min_size=1)
    pool.max_lifetime = 0.1
    await door(pool.drain)
    first = await next_pid(door, pool)

    async def replaced() -> bool:
        return await next_pid(door, pool) != first

    await eventually(replaced, pool)


async def test_num_workers_bounds_the_connects_at_one_time(door: Door) -> None:
    """No more than num_workers connections are opened side by side."""
    gate = door.gate()
    pool = door.make(connection_class=gate.connection_class, min_size=5, num_workers=2)
    await door(pool.open)
    for attempt in range(1, 6):
        await gate.arrived(min(attempt + 1, 5))
        gate.let(1)
    await settled(pool, pool_available=5)
    assert gate.peak == 2


async def test_num_workers_may_be_assigned(door: Door) -> None:
    """`num_workers` is readable and assignable before the pool opens."""
    gate = door.gate()
    pool = door.make(connection_class=gate.connection_class, min_size=4, num_workers=1)
    pool.num_workers = 4
    await door(pool.open)
    await eventually(lambda: gate.inside == 4, gate)
    gate.open()
    await settled(pool, pool_available=4)


async def next_pid(door: Door, pool: Any) -> int:
    """The process id behind the next connection the pool lends."""
    async with door.using(pool.connection()) as conn:
        return int(conn.info.backend_pid)
