"""The log is bounded: a few lines a minute, each of them one line, and none with a secret in it."""

from __future__ import annotations

import logging
import re
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import psycopg
import pytest

from forebay import PoolTimeout
from forebay.testing import FakeDriver, ManualClock, fake_pool
from tests.faults import scripted
from tests.faults.scripted import Failure, Script, ScriptedServer

from .door import Door, eventually, settled, stat

#: Lines that one situation may write in a minute.
FEW = 12
#: How often a situation is repeated in that time.
OFTEN = 40

PASSWORD = "canary-7Qx"
ENDS = ("\n", "\r", "\v", "\f", "\x1c", "\x85", "\u2028")


class Lines(logging.Handler):
    """What is logged, as a handler with the usual format would write it."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
        self.all: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a line."""
        self.all.append(self.format(record))

    @property
    def loud(self) -> list[str]:
        """The lines of a usual log: from INFO on."""
        return [line for line in self.all if not line.startswith("DEBUG")]


@pytest.fixture
def lines() -> Iterator[Lines]:
    """What the pools log."""
    logger, handler = logging.getLogger("forebay"), Lines()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    yield handler
    logger.removeHandler(handler)
    logger.setLevel(level)


@pytest.fixture
def tcp() -> Iterator[ScriptedServer]:
    """A server that says what it is told to."""
    with ScriptedServer() as server:
        yield server


def expect_few(lines: Lines) -> None:
    """The log has been told, and not often."""
    kinds = Counter(re.sub(r"\d+", "N", line)[:60] for line in lines.loud)
    assert 0 < len(lines.loud) <= FEW, kinds
    expect_whole(lines)


def expect_whole(lines: Lines) -> None:
    """Each record is one line, whatever breaks lines where it is read."""
    for line in lines.all:
        assert not any(end in line for end in ENDS), line


# How many -----------------------------------------------------------------------------------------


async def test_writes_that_are_refused_are_a_few_lines(
    door: Door, tcp: ScriptedServer, lines: Lines
) -> None:
    """A primary that became a standby behind a pooler: each client hears of it, the log does not.

    The server says that it is none, so that the pool goes on to use it.
    """
    tcp.answers["insert"] = scripted.READ_ONLY
    pool = await door.open(tcp.dsn(target_session_attrs="read-write"), min_size=2)
    for _ in range(OFTEN):
        with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
            await write(door, pool)
    assert lines.all
    expect_few(lines)


async def write(door: Door, pool: Any, timeout: float = 5) -> None:
    """Try to write."""
    async with door.using(pool.connection(timeout=timeout)) as conn:
        await door(conn.execute, "insert")


async def test_a_standby_that_takes_the_place_of_the_primary_is_a_few_lines(
    door: Door, tcp: ScriptedServer, lines: Lines
) -> None:
    """A failover that lasts: connections are looked for again and again, and told rarely."""
    pool = await door.open(tcp.dsn(target_session_attrs="read-write"), min_size=2)
    tcp.answers["insert"] = scripted.READ_ONLY
    tcp.standby(True)
    for _ in range(OFTEN):
        with suppress(psycopg.Error):
            await write(door, pool, timeout=0.02)
    expect_few(lines)


async def test_returns_in_a_transaction_are_a_few_lines(any_door: Door, lines: Lines) -> None:
    """A program that never commits what it reads is told so, not for each request."""
    door = any_door
    pool = await door.open(**door.least)
    for _ in range(OFTEN):
        conn = await door(pool.getconn)
        await door(conn.execute, "select 1")
        await door(pool.putconn, conn)
    expect_few(lines)


async def test_returns_of_closed_connections_are_a_few_lines(door: Door, lines: Lines) -> None:
    """Nor one that closes each connection before it returns it."""
    pool = await door.open(min_size=1)
    for _ in range(OFTEN):
        conn = await door(pool.getconn)
        await door(conn.close)
        await door(pool.putconn, conn)
    expect_few(lines)


async def test_connections_that_are_dropped_are_a_few_lines(door: Door, lines: Lines) -> None:
    """Nor one that forgets to return them."""
    made = fakes(door, min_size=1)
    await door(made.open)
    for _ in range(OFTEN):
        await door(made.getconn, timeout=20)
        await door(made.check)  # as maintenance does, within a second
    expect_few(lines)


def fakes(door: Door, driver: FakeDriver | None = None, **options: Any) -> Any:
    """A pool over a fake driver, in real time or in that of a `clock`."""

    def made(_: str, **options: Any) -> Any:
        return fake_pool(door.pool_class, driver, **options)

    return door.make(pool_class=made, **options)


async def test_checks_that_fail_are_a_few_lines(door: Door, lines: Lines) -> None:
    """A check= that always fails on pooled connections."""
    fails = iter([True, False] * OFTEN)

    async def check(_conn: Any) -> None:
        if next(fails):
            raise psycopg.OperationalError("no good")

    pool = fakes(door, min_size=2, check=door.callback(check))
    await door(pool.open)
    for _ in range(OFTEN):
        await settled(pool, pool_available=2)
        await door(pool.putconn, await door(pool.getconn, timeout=5))
    expect_few(lines)


async def test_resets_that_fail_are_a_few_lines(door: Door, lines: Lines) -> None:
    """A reset= that always fails."""

    async def reset(_conn: Any) -> None:
        raise ValueError("no good")

    pool = fakes(door, min_size=1, reset=door.callback(reset))
    await door(pool.open)
    for _ in range(OFTEN):
        await door(pool.putconn, await door(pool.getconn, timeout=5))
    expect_few(lines)


@pytest.mark.parametrize("clients", [0, 3])
async def test_connects_that_fail_are_a_few_lines(door: Door, lines: Lines, clients: int) -> None:
    """A minute of an outage, with clients whose time is up again and again."""
    driver, clock = FakeDriver(), ManualClock()
    driver.refuse(psycopg.OperationalError("connection failed: nobody is here"), 100_000)
    pool = fakes(door, driver, min_size=1, clock=clock)
    await door(pool.open)
    await settled(pool, connections_errors=1)
    for failed in range(2, 22):
        for each in [door.client(pool.getconn, timeout=0.001) for _ in range(clients)]:
            with pytest.raises(PoolTimeout):
                await each
        clock.advance(3)
        await door(pool.check)
        await eventually(lambda: stat(pool, "connections_errors") >= failed, pool)  # noqa: B023
    expect_few(lines)


async def test_an_idle_session_that_ends_again_and_again_is_a_few_lines(
    door: Door, tcp: ScriptedServer, lines: Lines
) -> None:
    """A server, or what is before it, that ends idle sessions all the time."""
    pool = await door.open(tcp.dsn(), min_size=1, max_size=1)
    for ended in range(1, OFTEN + 1):
        conn = await door(pool.getconn, timeout=5)
        await door(conn.execute, "")
        await door(conn.rollback)
        await door(pool.putconn, conn)
        tcp.hang_up()
        await door(pool.check)  # as maintenance does, within a second
        await settled(pool, connections_lost=ended)
    expect_few(lines)


async def test_what_was_left_out_is_counted(door: Door, lines: Lines) -> None:
    """The first line of the next minute says how many there were."""
    clock = ManualClock()
    pool = fakes(door, min_size=1, clock=clock)
    await door(pool.open)

    async def return_in_transaction() -> None:
        conn = await door(pool.getconn, timeout=500)
        conn.execute("select 1")
        await door(pool.putconn, conn)

    for _ in range(12):
        await return_in_transaction()
    assert len(lines.loud) < 12
    written = len(lines.loud)
    clock.advance(60)
    await return_in_transaction()
    assert len(lines.loud) == written + 1
    assert f"({12 - written} more" in lines.loud[-1]


# Others' words ------------------------------------------------------------------------------------

FORGED = "all is well" + "".join(f"{end}CRITICAL forged" for end in ENDS)


async def test_line_ends_in_an_error_forge_no_line(
    door: Door, tcp: ScriptedServer, lines: Lines
) -> None:
    """What a server says while it refuses connections is one line."""
    tcp.script = Script(failure=Failure("XX000", FORGED))
    pool = door.make(tcp.dsn(), min_size=1)
    await door(pool.open)
    with pytest.raises(PoolTimeout):
        await door(pool.getconn, timeout=0.2)
    tcp.script = Script()
    await door(pool.wait, timeout=10)
    assert any("forged" in line for line in lines.all)
    expect_whole(lines)


async def test_line_ends_in_the_errors_of_callbacks_forge_no_line(door: Door, lines: Lines) -> None:
    """In those of configure, check and reset."""
    failing = {"configure", "check", "reset"}

    def fail(what: str) -> Any:
        async def callback(_conn: Any) -> None:
            if what in failing:
                failing.discard(what)
                raise ValueError(FORGED)

        return door.callback(callback)

    options = {name: fail(name) for name in sorted(failing)}
    pool = fakes(door, min_size=1, **options)
    await door(pool.open)
    for _ in range(3):
        await door(pool.putconn, await door(pool.getconn, timeout=5))
    await settled(pool, pool_available=1)
    assert not failing
    assert sum("forged" in line for line in lines.all) >= 3
    expect_whole(lines)


async def test_what_ends_an_idle_session_forges_no_line(
    door: Door, tcp: ScriptedServer, lines: Lines
) -> None:
    """The server's last words."""
    pool = await door.open(tcp.dsn(), min_size=1)
    tcp.terminate(Failure("57P01", FORGED))
    await door(pool.check)  # as maintenance does, within a second
    await eventually(lambda: any("forged" in line for line in lines.all), lines.all)
    expect_whole(lines)


# Secrets ------------------------------------------------------------------------------------------

#: A password, in whole or in part, where libpq takes it for something else, and quotes it.
MALFORMED = [
    f"host=nowhere password=a {PASSWORD}",
    f"host=nowhere password=a {PASSWORD}=b",
    f"postgresql://user:{PASSWORD}@[::1/name",
    f"postgresql://user:%zz{PASSWORD}@nowhere/name",
    f"postgresql://user:a@{PASSWORD}/name",
    f"postgresql://user:a@nowhere/name?{PASSWORD}",
]


def words_of(error: BaseException | None) -> str:
    """All that an error shows: texts, arguments, causes, contexts, attributes."""
    words: list[str] = []
    seen: list[BaseException] = []
    while error is not None and error not in seen:
        seen.append(error)
        words += [str(error), repr(error), repr(error.args), repr(getattr(error, "last_error", ""))]
        words += traceback.format_exception_only(error)
        error = error.__cause__ or error.__context__
    return "\n".join(words)


@pytest.mark.parametrize("conninfo", MALFORMED)
async def test_a_malformed_conninfo_shows_no_secret(
    door: Door, lines: Lines, conninfo: str
) -> None:
    """Neither in the log nor in the errors of wait(), getconn() and connect(), nor in repr()."""
    pool = door.make(conninfo, min_size=1, rejected_after=0)
    for attempt in (pool.getconn, pool.connect):
        await door(pool.open)
        with pytest.raises((PoolTimeout, psycopg.Error)) as caught:
            await door(attempt, timeout=1)
        assert PASSWORD not in words_of(caught.value)
    with pytest.raises(PoolTimeout) as refused:
        await door(pool.wait, timeout=0.3)
    assert PASSWORD not in words_of(refused.value)
    assert PASSWORD not in repr(pool)
    assert not [line for line in lines.all if PASSWORD in line]


@pytest.mark.parametrize("in_kwargs", [False, True])
async def test_a_refused_password_is_not_shown(
    door: Door, tcp: ScriptedServer, lines: Lines, in_kwargs: bool
) -> None:
    """A server that refuses it, and one that ends the session later: the pool's words are clean."""
    tcp.script = Script(password="another")
    options: dict[str, Any] = {"kwargs": {"password": PASSWORD}} if in_kwargs else {}
    dsn = tcp.dsn() if in_kwargs else tcp.dsn(password=PASSWORD)
    pool = door.make(dsn, min_size=1, rejected_after=0, **options)
    await door(pool.open)
    with pytest.raises(PoolTimeout) as caught:
        await door(pool.getconn, timeout=3)
    assert PASSWORD not in words_of(caught.value)
    tcp.script = Script(password=PASSWORD)
    await door(pool.wait, timeout=5)
    conn = await door(pool.getconn)
    await door(conn.execute, "select 1")
    await door(pool.putconn, conn)
    tcp.hang_up()
    await door(pool.check)  # as maintenance does, within a second
    await settled(pool, connections_lost=1)
    assert lines.all
    assert not [line for line in lines.all if PASSWORD in line]
