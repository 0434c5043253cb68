"""Errors that explain themselves: PoolTimeout and its relatives carry the facts."""

from __future__ import annotations

import asyncio
import copy
import gc
import logging
import pickle
import re
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import psycopg2
import pytest

import forebay
import forebay.psycopg2
from forebay import ConnectionPool, PoolDeadlock, PoolRejected, PoolTimeout
from forebay.errors import Holding, PoolTimeoutMixin

from .door import Door, Signal, eventually, settled


async def refused(door: Door, pool: Any, timeout: float = 0.05) -> PoolTimeout:
    """The error of a client that gets no connection."""
    with pytest.raises(PoolTimeout) as caught:
        await door(pool.getconn, timeout=timeout)
    return caught.value


def a_name(door: Door) -> str:
    """The name of the client that runs: its task's, or its thread's."""
    task = asyncio.current_task()
    assert task is not None
    return task.get_name() if door.is_async else "scenario-client"


# Exhausted -----------------------------------------------------------------------------------


async def test_an_exhausted_pool_tells_its_sizes_and_its_queue(door: Door) -> None:
    """Everything is lent, and others wait: kind, sizes, queue and timeout are attributes."""
    pool = await door.open(min_size=1, max_size=2, name="busy")
    lent = [await door(pool.getconn) for _ in range(2)]

    async def come_and_go() -> None:
        await door(pool.putconn, await door(pool.getconn, timeout=30))

    others = [asyncio.create_task(come_and_go()) for _ in range(3)]
    await settled(pool, requests_waiting=3)
    error = await refused(door, pool)
    assert (error.kind, error.pool_name, error.timeout) == ("exhausted", "busy", 0.05)
    assert (error.size, error.max_size, error.idle, error.lent) == (2, 2, 0, 2)
    assert (error.opening, error.waiting) == (0, 3)
    assert (error.last_error, error.last_error_age, error.__cause__) == (None, None, None)
    for conn in lent:
        await door(pool.putconn, conn)
    await asyncio.gather(*others)


async def test_the_holders_are_named_the_longest_first(door: Door) -> None:
    """Each with the name of its thread or task, its seconds, and by which verb it took."""
    pool = await door.open(min_size=2)
    first = await door(pool.getconn)

    async def second() -> tuple[str, PoolTimeout]:
        async with door.using(pool.connection()):
            return a_name(door), await refused(door, pool)

    name, error = await asyncio.create_task(second(), name="the second")
    one, two = error.holders
    assert (one.name, one.leased, one.line) == (a_name(door), False, None)
    assert (two.name, two.leased, two.line) == (name, True, None)
    assert one.since_seconds > two.since_seconds >= 0.05
    await door(pool.putconn, first)


async def test_the_message_is_one_short_paragraph(door: Door) -> None:
    """What happened, to which pool, how full it is, who has it, and what would tell more."""
    pool = await door.open(min_size=5, name="x")
    lent = [await door(pool.getconn) for _ in range(5)]
    other = door.client(pool.getconn, timeout=30)
    await settled(pool, requests_waiting=1)

    async def ask() -> PoolTimeout:
        return await refused(door, pool)

    name = a_name(door)
    held = rf"{name} for 0\.\d s"
    assert re.fullmatch(
        r"couldn't get a connection after 0\.05 sec from pool 'x': all 5 connections are lent,"
        rf" one more client waits \(max_size=5\); held by {held}, {held}, {held} and 2 more"
        r" \(record_lines=True would tell where\)",
        str(await asyncio.create_task(ask())),
    )
    for conn in lent:
        await door(pool.putconn, conn)
    await door(pool.putconn, await other)


async def test_a_holder_that_waits_is_suspected_and_logged(
    door: Door, caplog: pytest.LogCaptureFixture
) -> None:
    """With getconn() a nested acquire is no certain deadlock; the timeout and the log name it."""
    pool = await door.open(min_size=1, name="nested")
    held = await door(pool.getconn)
    error = await refused(door, pool)
    assert error.kind == "exhausted"
    assert error.suspects == (a_name(door),)
    assert f"perhaps a deadlock: a holder waits for one more connection ({error.suspects[0]})" in (
        str(error)
    )
    (record,) = [r for r in caplog.records if r.levelno == logging.WARNING]
    assert record.getMessage() == f"nested: {error}"
    await door(pool.putconn, held)


async def test_a_client_that_holds_nothing_is_no_suspect(
    door: Door, caplog: pytest.LogCaptureFixture
) -> None:
    """Waiting alone is no reason to suspect anybody, nor to log."""
    pool = await door.open(min_size=1)
    held = await door(pool.getconn)

    async def ask() -> PoolTimeout:
        if not door.is_async:
            await door(lambda: setattr(threading.current_thread(), "name", "another"))
        return await refused(door, pool)

    error = await asyncio.create_task(ask())
    assert error.suspects == ()
    assert "deadlock" not in str(error)
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]
    await door(pool.putconn, held)


# Unreachable and rejected --------------------------------------------------------------------


async def test_connects_that_fail_make_a_pool_unreachable(door: Door) -> None:
    """The last error of connecting is an attribute, with its age, and the cause."""
    gate = door.gate()
    gate.refuse(psycopg.OperationalError("no route\nto   host"))
    pool = door.make(connection_class=gate.connection_class, min_size=1, max_size=2, name="far")
    await door(pool.open)
    await gate.arrived(1)
    error = await refused(door, pool, timeout=0.2)
    assert error.kind == "unreachable"
    assert error.__cause__ is error.last_error is gate.error
    assert error.last_error_age is not None
    assert 0 <= error.last_error_age < 5
    assert re.search(
        r"^couldn't get a connection after 0\.20 sec from pool 'far': connecting fails,"
        r" \d\.\d\d s ago with OperationalError: no route to host; 0 of at most 2 ",
        str(error),
    )


async def test_an_unanswered_connect_makes_a_pool_unreachable(door: Door) -> None:
    """A server that says nothing for a second is named, even if nothing has failed yet."""
    gate = door.gate()
    pool = door.make(connection_class=gate.connection_class, min_size=1, name="mute")
    await door(pool.open)
    await gate.arrived(1)
    error = await refused(door, pool, timeout=1.1)
    assert (error.kind, error.opening, error.last_error) == ("unreachable", 1, None)
    assert re.search(r"has not answered an attempt to connect for 1\.\d s", str(error))


async def test_a_pool_that_is_being_filled_is_not_unreachable(door: Door) -> None:
    """A connect that began a moment ago is no bad news."""
    gate = door.gate()
    pool = door.make(connection_class=gate.connection_class, min_size=1, max_size=2)
    await door(pool.open)
    await gate.arrived(1)
    error = await refused(door, pool)
    assert (error.kind, error.opening, error.size) == ("exhausted", 1, 1)
    assert "0 of at most 2 connections are lent, 1 being opened" in str(error)


async def test_an_exhausted_pool_is_exhausted_even_if_connects_have_failed(door: Door) -> None:
    """An error of long ago is told with its age, but is no cause."""
    gate = door.gate()
    gate.refuse()
    pool = door.make(connection_class=gate.connection_class, min_size=1)
    await door(pool.open)
    await gate.arrived(1)
    gate.open()
    conn = await door(pool.getconn, timeout=20)
    error = await refused(door, pool)
    assert (error.kind, error.__cause__) == ("exhausted", None)
    assert isinstance(error.last_error, psycopg.OperationalError)
    await door(pool.putconn, conn)


async def test_a_database_that_does_not_exist_is_told_at_once(door: Door) -> None:
    """Waiting clients are refused by PoolRejected, long before their time is up."""
    pool = door.make(f"{door.dsn} dbname=nowhere", min_size=1, name="lost")
    await door(pool.open)
    with pytest.raises(PoolRejected) as caught:
        await door(pool.getconn, timeout=1000)
    error = caught.value
    assert isinstance(error, PoolTimeout)
    assert (error.kind, error.timeout) == ("rejected", None)
    assert isinstance(error.__cause__, psycopg.OperationalError)
    assert error.last_error is error.__cause__
    assert str(error).startswith("couldn't get a connection from pool 'lost': connecting fails")
    assert '"nowhere" does not exist' in str(error)


# What an error keeps -------------------------------------------------------------------------


async def test_an_error_that_is_kept_keeps_no_connection_and_no_task(door: Door) -> None:
    """Who logs errors by the thousand does not hold on to sessions."""
    pool = await door.open(min_size=1)
    alive: list[weakref.ref[Any]] = []

    async def hold() -> PoolTimeout:
        async with door.using(pool.connection()) as conn:
            alive.extend([weakref.ref(conn), weakref.ref(asyncio.current_task())])
            return await refused(door, pool)

    error = (await asyncio.create_task(hold())).with_traceback(None)
    await door(pool.close)
    gc.collect()
    assert error.holders
    assert [ref() for ref in alive] == [None, None]


FAMILIES = [
    (forebay.PoolTimeout, psycopg.OperationalError),
    (forebay.PoolRejected, psycopg.OperationalError),
    (forebay.PoolDeadlock, psycopg.OperationalError),
    (forebay.psycopg2.PoolTimeout, psycopg2.OperationalError),
    (forebay.psycopg2.PoolRejected, psycopg2.OperationalError),
    (forebay.psycopg2.PoolDeadlock, psycopg2.OperationalError),
]


def with_facts(cls: type[Any], last_error: BaseException) -> Any:
    """An error with all facts."""
    error = cls("couldn't get a connection")
    holding = Holding("Thread-3", 1.5, "app.py:12 in handler", True, threading.current_thread())
    error.__dict__.update(kind="rejected", lent=3, holders=(holding,), last_error=last_error)
    return error


@pytest.mark.parametrize("way", [lambda e: pickle.loads(pickle.dumps(e)), copy.copy, copy.deepcopy])
@pytest.mark.parametrize(("cls", "base"), FAMILIES)
def test_errors_go_to_other_processes(cls: type[Any], base: type[Any], way: Any) -> None:
    """Copied or pickled, they keep class, text and facts; a stack is found at home only."""
    error = way(with_facts(cls, base("refused")))
    assert type(error) is cls
    assert isinstance(error, base)
    assert str(error) == "couldn't get a connection"
    assert (error.kind, error.lent, error.waiting) == ("rejected", 3, 0)
    assert (type(error.last_error), str(error.last_error)) == (base, "refused")
    (holding,) = error.holders
    assert str(holding) == "Thread-3 for 1.5 s (app.py:12 in handler)"
    assert holding.leased
    assert pickle.loads(pickle.dumps(holding)).stack() is None


class Demanding(Exception):
    """An error that cannot be made again from its text."""

    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} and {two}")


def test_an_error_that_cannot_travel_is_left_behind() -> None:
    """What a user's callable raised may not be picklable; the rest goes all the same."""
    error = pickle.loads(pickle.dumps(with_facts(PoolTimeout, Demanding(1, 2))))
    assert error.last_error is None
    assert error.lent == 3


@pytest.mark.parametrize(("cls", "base"), FAMILIES)
def test_an_error_that_a_program_makes_has_the_same_attributes(
    cls: type[Any], base: type[Any]
) -> None:
    """Tests of programs raise PoolTimeout("..."); handlers that read its facts work."""
    error = cls("made up")
    documented = PoolTimeoutMixin.__annotations__
    assert len(documented) == 14
    assert {name: getattr(error, name) for name in documented} == {
        name: getattr(PoolTimeoutMixin, name) for name in documented
    }
    assert issubclass(cls, base)


# Stacks ----------------------------------------------------------------------------------------


async def test_a_holder_shows_its_present_stack(door: Door) -> None:
    """`stack()` is what the holder does when asked, not when it acquired; None when it has gone."""
    pool = await door.open(min_size=1)
    working, done = Signal(), Signal()

    async def a_long_job() -> None:
        if door.is_async:
            async with pool.connection():
                working.set()
                await the_step_it_is_at()
        else:
            await asyncio.to_thread(in_a_thread)

    def in_a_thread() -> None:
        with pool.connection():
            working.set()
            the_step_the_thread_is_at()

    async def the_step_it_is_at() -> None:
        await done.wait()

    def the_step_the_thread_is_at() -> None:
        done._event.wait(20)

    job = asyncio.create_task(a_long_job(), name="job")
    await working.wait()
    (holding,) = (await refused(door, pool)).holders
    step = "the_step_it_is_at" if door.is_async else "the_step_the_thread_is_at"
    assert f"in {step}\n" in (holding.stack() or "")
    if door.is_async:
        assert await asyncio.to_thread(holding.stack) is None  # another thread has no such loop
    done.set()
    await job
    assert not door.is_async or holding.stack() is None


def test_a_thread_that_has_ended_has_no_stack(dsn: str) -> None:
    """Its id may be another thread's by now."""
    with ConnectionPool(dsn, min_size=1) as pool:
        taken: list[Any] = []
        thread = threading.Thread(target=lambda: taken.append(pool.getconn()), name="gone")
        thread.start()
        thread.join()
        with pytest.raises(PoolTimeout) as caught:
            pool.getconn(timeout=0.05)
        (holding,) = caught.value.holders
        assert (holding.name, holding.stack()) == ("gone", None)
        pool.putconn(taken.pop())


# Lines -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["getconn", "connection"])
async def test_the_acquiring_line_is_recorded_on_request(door: Door, verb: str) -> None:
    """With record_lines=True holders have the line of the program that acquired."""
    pool = await door.open(min_size=1, record_lines=True)
    assert pool.record_lines is True

    async def in_tasks() -> PoolTimeout:
        if verb == "getconn":
            conn = await pool.getconn()  # the line
            error = await refused(door, pool)
            await pool.putconn(conn)
            return error
        async with pool.connection():  # the line
            return await refused(door, pool)

    def in_threads() -> PoolTimeout:
        if verb == "getconn":
            conn = pool.getconn()  # the line
            with pytest.raises(PoolTimeout) as caught:
                pool.getconn(timeout=0.05)
            pool.putconn(conn)
            return caught.value
        with pool.connection(), pytest.raises(PoolTimeout) as caught:  # the line
            pool.getconn(timeout=0.05)
        return caught.value

    error = await (in_tasks() if door.is_async else asyncio.to_thread(in_threads))
    (holding,) = error.holders
    function = in_tasks if door.is_async else in_threads
    assert re.fullmatch(rf"test_errors\.py:\d+ in {function.__name__}", holding.line or "")
    assert f"({holding.line})" in str(error)
    assert "record_lines" not in str(error)


def test_the_line_is_that_of_the_program_behind_contextlib(dsn: str) -> None:
    """A helper made by @contextmanager is the program's; contextlib is not."""
    with ConnectionPool(dsn, min_size=1, record_lines=True) as pool:

        @contextmanager
        def helper() -> Iterator[Any]:
            with pool.connection() as conn:
                yield conn

        with helper(), pytest.raises(PoolTimeout) as caught:
            pool.getconn(timeout=0.05)
        assert re.fullmatch(r"test_errors\.py:\d+ in helper", caught.value.holders[0].line or "")


async def test_lines_are_recorded_from_the_moment_it_is_assigned(door: Door) -> None:
    """`record_lines` may be switched on in a running program, and off again."""
    pool = await door.open(min_size=1)
    for wanted in (True, False):
        pool.record_lines = wanted
        conn = await door(pool.getconn)
        error = await refused(door, pool)
        assert (error.holders[0].line is not None) == wanted
        await door(pool.putconn, conn)


async def test_a_client_that_had_to_wait_has_its_line_too(door: Door) -> None:
    """The line is recorded when a connection is handed over, not only when one is idle."""
    pool = await door.open(min_size=1, record_lines=True)
    held = await door(pool.getconn)
    waiter = door.client(pool.getconn, timeout=30)
    await settled(pool, requests_waiting=1)
    await door(pool.putconn, held)
    conn = await waiter
    error = await refused(door, pool)
    assert error.holders[0].line is not None
    await door(pool.putconn, conn)


# Beside the timeouts -----------------------------------------------------------------------------


def test_the_relatives_are_timeouts() -> None:
    """Who catches PoolTimeout catches them."""
    for family in (forebay, forebay.psycopg2):
        assert issubclass(family.PoolRejected, family.PoolTimeout)
        assert issubclass(family.PoolDeadlock, family.PoolTimeout)
    assert issubclass(PoolDeadlock, psycopg.OperationalError)


async def test_wait_says_why_the_pool_is_not_filled(door: Door) -> None:
    """The error of wait() has the last connection error in its text and as its cause."""
    gate = door.gate()
    gate.refuse(psycopg.OperationalError("no such host"))
    pool = door.make(connection_class=gate.connection_class, min_size=1, name="empty")
    await door(pool.open)
    await eventually(lambda: gate.attempts, gate)
    with pytest.raises(PoolTimeout, match=r"^pool initialization incomplete .*no such host$") as it:
        await door(pool.wait, timeout=0.3)
    assert it.value.__cause__ is gate.error
    assert it.value.kind == "unreachable"
