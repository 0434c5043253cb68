"""A user's mistakes: each is told at once, in words that say what to do."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import psycopg
import pytest

import forebay
from forebay import PoolClosed, PoolTimeout, TooManyRequests

from .door import Door, settled, stat


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"min_size": -1}, "min_size"),
        ({"min_size": 4, "max_size": 2}, "max_size"),
        ({"min_size": 0, "max_size": 0}, "max_size"),
        ({"min_size": 0}, "max_size"),
        ({"min_size": 1, "max_size": -1}, "max_size"),
        ({"num_workers": 0}, "num_workers"),
        ({"num_workers": -3}, "num_workers"),
        ({"idle_order": "random"}, "idle_order"),
        ({"bypass_window": -0.1}, "bypass_window must be 0 seconds or more"),
        ({"keepalive_interval": -1}, "keepalive_interval must be 0 seconds or more"),
        ({"max_uses": -2}, "max_uses must be 0 or more"),
        ({"action_timeout": 0}, "action_timeout must be more than 0 seconds"),
        ({"leak_threshold": -5}, "leak_threshold must be 0 seconds or more"),
        ({"max_lifetime": -1}, "max_lifetime must be 0 seconds or more"),
    ],
)
async def test_bad_options_are_refused(door: Door, options: dict[str, Any], words: str) -> None:
    """A ValueError from the constructor that names the option and what was given."""
    with pytest.raises(ValueError, match=words) as caught:
        door.make(**options)
    assert str(next(iter(options.values()))) in str(caught.value)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("timeout", "30"),
        ("bypass_window", None),
        ("keepalive_interval", "1"),
        ("max_uses", 1.5),
        ("action_timeout", "3s"),
        ("leak_threshold", [1]),
    ],
)
async def test_options_of_the_wrong_type_are_refused(
    any_door: Door, option: str, value: object
) -> None:
    """A TypeError from the constructor that names the option and what was given."""
    with pytest.raises(TypeError, match=f"^{option} must be a ") as caught:
        any_door.make(**{option: value})
    assert repr(value) in str(caught.value)


@pytest.mark.parametrize("error", [PoolClosed, PoolTimeout, TooManyRequests])
def test_the_pools_errors_are_operational_errors(error: type[Exception]) -> None:
    """Programs that catch psycopg.OperationalError catch the pool's errors too."""
    assert issubclass(error, psycopg.OperationalError)
    assert error.__name__ in ("PoolClosed", "PoolTimeout", "TooManyRequests")


async def test_a_connection_of_no_pool_is_refused(any_door: Door) -> None:
    """putconn() of a stranger: ValueError with the pool's name; the stranger is left alone."""
    door = any_door
    pool = await door.open(max_size=1, name="home", **door.least)
    stranger = await door(door.connection_class.connect, door.dsn)
    try:
        with pytest.raises(ValueError, match="pool 'home'"):
            await door(pool.putconn, stranger)
        assert not stranger.closed
    finally:
        await door(stranger.close)


async def test_a_connection_of_another_pool_is_refused(any_door: Door) -> None:
    """putconn() to the wrong pool: ValueError with both names, and nothing changes."""
    door = any_door
    home = await door.open(max_size=1, name="home", **door.least)
    abroad = await door.open(max_size=1, name="abroad", **door.least)
    conn = await door(abroad.getconn)
    with pytest.raises(ValueError, match=r"pool 'home'.*pool 'abroad'"):
        await door(home.putconn, conn)
    await door.pid(conn)
    await door(abroad.putconn, conn)
    await settled(home, pool_size=len(door.least))
    await settled(abroad, pool_size=len(door.least))


async def test_returning_a_connection_twice_is_refused(any_door: Door) -> None:
    """The second putconn() is a ValueError, and the connection is not lent twice."""
    door = any_door
    pool = await door.open(max_size=2, **door.least)
    conn = await door(pool.getconn)
    await door(pool.putconn, conn)
    with pytest.raises(ValueError, match="pool"):
        await door(pool.putconn, conn)
    one, two = await door(pool.getconn), await door(pool.getconn)
    assert one is not two
    for lent in (one, two):
        await door(pool.putconn, lent)


async def test_a_lease_does_not_return_what_was_returned_early(door: Door) -> None:
    """After putconn() inside the block the connection is lent to others; its end leaves them be."""
    pool = await door.open(min_size=1)
    async with door.using(pool.connection()) as conn:
        await door(pool.putconn, conn)
        others = await door(pool.getconn)
        assert others is conn
    assert others._pool is pool
    assert stat(pool, "pool_available") == 0
    await door(pool.putconn, others)
    await settled(pool, pool_size=1, pool_available=1)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        pytest.param(3, "3 (int)", id="number"),
        pytest.param(None, "None (NoneType)", id="none"),
        pytest.param("password=geheim", "a str", id="string"),
        pytest.param({"password": "geheim"}, "a dict", id="dict"),
    ],
)
async def test_what_is_no_connection_is_refused(door: Door, value: object, shown: str) -> None:
    """putconn() of something else is a ValueError that says what was given, and no password."""
    pool = await door.open(min_size=1, name="home")
    with pytest.raises(ValueError, match="expected the connection that it has lent") as caught:
        await door(pool.putconn, value)
    assert f"can't return {shown} to pool 'home'" in str(caught.value)
    assert "geheim" not in str(caught.value)


async def call_me() -> None:
    """A coroutine function, which a sync pool cannot call."""


@pytest.mark.parametrize(
    "option", ["configure", "check", "reset", "reconnect_failed", "conninfo", "kwargs"]
)
@pytest.mark.parametrize("kind", ["ConnectionPool", "NullConnectionPool"])
def test_a_sync_pool_refuses_async_callbacks(dsn: str, kind: str, option: str) -> None:
    """A TypeError from the constructor that names the option and the pool to use instead."""
    options = {"conninfo": dsn, "open": False} | {option: call_me}
    with pytest.raises(TypeError, match=option) as caught:
        getattr(forebay, kind)(**options)
    assert "async" in str(caught.value).lower()


class Secret(Exception):
    """An error of the application's own code."""


@pytest.mark.parametrize("option", ["conninfo", "kwargs"])
async def test_a_conninfo_that_raises_is_named(door: Door, option: str) -> None:
    """The timeout of a waiting client has the callable's own error as its cause."""

    def broken() -> Any:
        raise Secret("no credentials today")

    pool = door.make(**{option: broken}, min_size=1)
    await door(pool.open)
    with pytest.raises(psycopg.OperationalError) as caught:
        await door(pool.getconn, timeout=0.3)
    assert isinstance(caught.value.__cause__, Secret)
    assert stat(pool, "requests_waiting") == 0


@pytest.mark.parametrize("option", ["conninfo", "kwargs"])
async def test_a_conninfo_that_raises_reaches_the_client_of_a_null_pool(
    null_door: Door, option: str
) -> None:
    """On a null pool the client gets the callable's own error."""

    def broken() -> Any:
        raise Secret("no credentials today")

    pool = await null_door.open(**{option: broken})
    with pytest.raises(Secret, match="no credentials today"):
        await null_door(pool.getconn)


async def test_a_configure_that_leaves_a_transaction_is_named(door: Door) -> None:
    """The timeout of a waiting client says that configure() is to blame."""

    async def configure(conn: Any) -> None:
        await door(conn.execute, "select 1")

    pool = door.make(min_size=1, configure=door.callback(configure), name="tidy")
    await door(pool.open)
    with pytest.raises(PoolTimeout) as caught:
        await door(pool.getconn, timeout=0.3)
    assert "configure" in str(caught.value.__cause__)
    assert "INTRANS" in str(caught.value.__cause__)


async def test_a_configure_that_leaves_a_transaction_on_a_null_pool(null_door: Door) -> None:
    """On a null pool the client is told at once."""

    async def configure(conn: Any) -> None:
        await null_door(conn.execute, "select 1")

    pool = await null_door.open(configure=null_door.callback(configure))
    with pytest.raises(psycopg.Error, match="configure"):
        await null_door(pool.getconn, timeout=20)


@pytest.mark.parametrize("call", ["getconn", "connection", "open", "check", "wait"])
async def test_a_pool_used_from_another_event_loop_says_so(dsn: str, call: str) -> None:
    """An async pool belongs to the loop that opened it; another loop gets a clear error."""
    door = Door("async", dsn)
    pool = await door.open(min_size=1, max_size=2, name="mine")

    async def use() -> None:
        if call == "connection":
            async with pool.connection():
                raise AssertionError("lent to another loop")
        await getattr(pool, call)()

    if call == "open":  # a no-op when open, so another loop may call it
        await in_another_loop(use)
    else:
        with pytest.raises(RuntimeError, match=r"(?i)loop") as caught:
            await in_another_loop(use)
        assert "mine" in str(caught.value)
    async with pool.connection() as conn:
        await door.pid(conn)
    await door.end()


async def test_a_connection_returned_from_another_event_loop_says_so(dsn: str) -> None:
    """putconn() in another loop is refused; the connection can still be returned in its own."""
    door = Door("async", dsn)
    pool = await door.open(min_size=1)
    conn = await pool.getconn()

    async def give_back() -> None:
        await pool.putconn(conn)

    with pytest.raises(RuntimeError, match=r"(?i)loop"):
        await in_another_loop(give_back)
    await pool.putconn(conn)
    await door.end()


async def in_another_loop(function: Any) -> Any:
    """Run a coroutine function in an event loop of another thread, and give its outcome."""
    outcome: list[BaseException | None] = []

    def run() -> None:
        try:
            asyncio.run(function())
        except BaseException as error:
            outcome.append(error)
        else:
            outcome.append(None)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    await asyncio.to_thread(thread.join, 30)
    if not outcome:
        raise AssertionError("the call from another loop hangs")
    if outcome[0]:
        raise outcome[0]


@pytest.mark.parametrize("timeout", [-1, -0.001])
async def test_a_negative_timeout_is_over_at_once(door: Door, timeout: float) -> None:
    """A deadline that has passed already: PoolTimeout, no waiting."""
    pool = await door.open(min_size=1)
    held = await door(pool.getconn)
    with pytest.raises(PoolTimeout):
        await door(pool.getconn, timeout=timeout)
    await door(pool.putconn, held)
    assert stat(pool, "requests_waiting") == 0


async def test_unknown_options_are_refused(any_door: Door) -> None:
    """A misspelt option is a TypeError, as with any function."""
    with pytest.raises(TypeError, match="max_szie"):
        any_door.make(max_szie=3)


class Proxy:
    """What an agent gives in the place of a connection; attributes are those of what is behind."""

    def __init__(self, conn: Any) -> None:
        object.__setattr__(self, "__wrapped__", conn)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__wrapped__, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.__wrapped__, name, value)


async def test_a_client_may_return_what_is_behind_a_proxy(door: Door) -> None:
    """It is the same session; the next client gets the proxy again."""

    class Watched(door.connection_class):  # type: ignore[misc, name-defined]
        if door.is_async:

            @classmethod
            async def connect(cls, *args: Any, **kwargs: Any) -> Any:
                return Proxy(await super().connect(*args, **kwargs))

        else:

            @classmethod
            def connect(cls, *args: Any, **kwargs: Any) -> Any:
                return Proxy(super().connect(*args, **kwargs))

    pool = await door.open(connection_class=Watched, min_size=1, max_size=1, timeout=5.0)
    pids = set()
    for _ in range(3):
        conn = await door(pool.getconn)
        assert type(conn) is Proxy
        pids.add(conn.info.backend_pid)
        await door(pool.putconn, conn.__wrapped__)
    assert len(pids) == 1
