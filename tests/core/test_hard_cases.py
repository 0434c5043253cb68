"""What a program may do to a pool that is legal, rare and hard: each was wrong once."""

from __future__ import annotations

import asyncio
import threading
from contextvars import ContextVar
from math import inf
from typing import Any

import psycopg
import pytest

from forebay import AsyncConnectionPool, ConnectionPool, NullConnectionPool, PoolTimeout
from forebay._core import INSIDE, Core
from forebay._entry import Effects
from forebay.errors import detach
from forebay.testing import FakeDriver, ManualClock, fake_pool

from .cores import core_of


def core(**options: Any) -> Core:
    """An open core on its own, whose time is a number."""
    sizes = {"min_size": 1, "max_size": 4, "bypass_window": inf}
    made = core_of(FakeDriver().refusals("hard"), **{**sizes, **options})
    made.open(0.0)
    return made


class Connection:
    """What the core lends: anything that can be referred to weakly."""


def fill(made: Core, effects: Effects, now: float) -> list[Any]:
    """Take up all permits that were issued; returns the connections."""
    conns = []
    for entry in effects.start:
        held = made.begin(entry, 1.0)
        conns.append(Connection())
        made.opened(entry, conns[-1], 0.0, now, 0.0)
        del held
    return conns


def test_an_error_that_is_its_own_cause_is_taken_apart_once() -> None:
    """`raise error from error` is legal: the chain of causes is a circle."""
    odd = ValueError("odd")
    with pytest.raises(ValueError, match="odd"):
        raise odd from odd
    detach(odd)
    assert odd.__cause__ is odd
    assert odd.__traceback__ is None


def test_a_lifetime_before_the_beginning_is_refused() -> None:
    """One of zero seconds is none of these: each connection is replaced when it comes back."""
    with pytest.raises(ValueError, match="max_lifetime must be 0 seconds or more"):
        ConnectionPool("", max_lifetime=-1.0, open=False)
    pool = fake_pool(ConnectionPool, min_size=1, max_size=1, max_lifetime=0)
    pool.wait(10)
    seen = []
    for _ in range(3):
        with pool.connection(10) as conn:
            seen.append(conn.number)
    assert seen == [1, 2, 3]
    pool.close()


@pytest.mark.parametrize("name", ["timeout", "max_lifetime", "max_idle", "reconnect_timeout"])
def test_a_duration_that_is_no_number_is_refused(name: str) -> None:
    """Else it would be noticed at the first checkout that has to wait."""
    options: Any = {name: None}
    with pytest.raises(TypeError, match=f"{name} must be a number of seconds, not None"):
        ConnectionPool("", open=False, **options)


def test_a_connection_class_of_the_other_world_is_refused() -> None:
    """A coroutine is no connection, nor can a connection be awaited."""
    other: Any = psycopg.AsyncConnection
    with pytest.raises(TypeError, match="connection_class"):
        ConnectionPool("", connection_class=other, open=False)
    other = psycopg.Connection
    with pytest.raises(TypeError, match="connection_class"):
        AsyncConnectionPool("", connection_class=other, open=False)


def test_giving_up_does_not_hasten_the_next_attempt() -> None:
    """With no patience at all, attempts still back off."""
    made = core(reconnect_timeout=0.0)
    entry = next(iter(made.entries))
    permit = made.begin(entry, 1.0)
    effects = made.open_failed(entry, None, OSError("refused"), 5.0, 0.0)
    del permit
    assert effects.gave_up
    assert made.retry_at > 5.0
    assert not effects.start


def test_a_connection_that_is_only_checked_counts_as_unused() -> None:
    """A pool that is checked every minute shrinks all the same."""
    made = core(min_size=3)
    kept = fill(made, made.maintain(1.0), 1.0)
    made.resize(1, 4, 1.0)
    for now in (300.0, 600.0):
        for entry in list(made.idle):
            made.serviced(entry, made.recall(entry), now)
    assert len(made.idle) == len(kept) == 3
    made.maintain(601.0)
    assert len(made.idle) == 1


def test_the_time_of_a_lease_counts_also_if_the_connection_broke() -> None:
    """usage_ms is what clients had connections for."""
    made = core()
    fill(made, made.maintain(0.0), 0.0)
    conn = made.checkout(1.0)
    entry = next(iter(made.entries))
    entry.leased = object()
    made.discard(entry, conn, 3.0, 0.5)
    assert made.usage_time == 2.0


def test_a_callback_that_ends_the_thread_leaves_the_others_a_worker() -> None:
    """SystemExit in reset= is logged; what is queued behind it is done."""

    def reset(_: Any) -> None:
        raise SystemExit("from a callback")

    pool = fake_pool(ConnectionPool, min_size=3, num_workers=1, reset=reset)
    pool.wait(10)
    conns: list[Any] = [pool.getconn() for _ in range(3)]
    for conn in conns:
        pool.putconn(conn)
    pool.close(10)
    assert all(conn.closed for conn in conns)


def test_close_waits_for_what_arrives_while_it_waits() -> None:
    """A connection that is being opened when the pool is closed is closed when close() returns."""
    inside, go, late = threading.Event(), threading.Event(), threading.Event()
    seen: list[Any] = []

    class Slow(FakeDriver):
        async def close(self, conn: Any) -> None:
            threading.Timer(0.1, late.set).start()
            assert late.wait(10)
            await super().close(conn)

    def configure(conn: Any) -> None:
        seen.append(conn)
        inside.set()
        assert go.wait(10)

    pool = fake_pool(ConnectionPool, Slow(), min_size=1, configure=configure)
    assert inside.wait(10)
    threading.Timer(0.05, go.set).start()
    pool.close(10)
    assert [conn.closed for conn in seen] == [True]


def test_close_may_wait_for_ever(caplog: pytest.LogCaptureFixture) -> None:
    """An infinite timeout is one; and who does not want to wait is not told that it was short."""
    fake_pool(ConnectionPool, min_size=1).close(float("inf"))
    fake_pool(ConnectionPool, min_size=1).close(0)
    assert "still runs" not in caplog.text


def test_maintenance_sleeps_by_the_clock_of_its_pool() -> None:
    """On a clock that stands still it does not run all the time."""
    rounds = 0
    clock = ManualClock()
    pool = fake_pool(ConnectionPool, clock=clock, min_size=1)
    pool.wait(10)
    maintain = pool._forebay.flows.maintain

    def counted() -> float:
        nonlocal rounds
        rounds += 1
        return maintain()

    pool._forebay.flows.maintain = counted  # type: ignore[method-assign]
    again = threading.Event()
    threading.Timer(0.3, again.set).start()
    assert again.wait(10)
    pool.close()
    assert rounds < 10


def test_a_pool_that_was_not_filled_says_what_it_had() -> None:
    """The error of wait() shows the pool as it was before it was closed, and why."""
    driver = FakeDriver()
    driver.refuse(OSError("no route"), times=1000)
    pool = fake_pool(ConnectionPool, driver, min_size=2)
    with pytest.raises(PoolTimeout, match=r"0 idle, .* of 2\.\.2") as caught:
        pool.wait(0.1)
    assert str(caught.value.__cause__) == "no route"


def test_an_async_pool_that_was_not_filled_says_why_though_it_cancels_an_attempt() -> None:
    """Closing cancels the attempt under way, which is not the reason."""

    async def scenario() -> BaseException | None:
        attempts = 0

        async def conninfo() -> str:
            nonlocal attempts
            attempts += 1
            if attempts == 1:
                raise OSError("no route")
            await asyncio.Event().wait()
            return ""

        pool = fake_pool(AsyncConnectionPool, min_size=1, conninfo=conninfo)
        await pool.open()
        with pytest.raises(PoolTimeout) as caught:
            await pool.wait(0.2)
        assert attempts == 2
        return caught.value.__cause__

    assert str(asyncio.run(scenario())) == "no route"


def test_a_null_pool_that_cannot_connect_says_after_how_long() -> None:
    """It was refused at once, and did not wait for its timeout."""
    driver = FakeDriver()
    driver.refuse(OSError("no route"))
    pool = fake_pool(NullConnectionPool, driver)
    with pytest.raises(PoolTimeout, match=r"after 0\.\d\d sec"):
        pool.wait(30)


def test_two_failures_with_nothing_attempted_between_are_two_stories() -> None:
    """reconnect_failed is for a server that is gone, not for a blip now and one an hour ago."""
    made = core(min_size=0, reconnect_timeout=300.0)
    for now in (1.0, 1000.0):
        waiter: Any = FakeWaiter()
        (entry,) = made.enqueue(waiter, now).start or made.maintain(now + 10).start
        permit = made.begin(entry, now + 10)
        made.expire(waiter, now + 10)
        effects = made.open_failed(entry, None, OSError("blip"), now + 11, 0.0)
        del permit
        assert not effects.gave_up


def test_a_cancelled_check_is_no_evidence_against_new_connections() -> None:
    """The client went away; the next connection is opened without a pause."""
    made = core(min_size=0)
    waiter: Any = FakeWaiter()
    fill(made, made.enqueue(waiter, 1.0), 2.0)
    made.check_failed(waiter.entry, waiter.conn, KeyboardInterrupt(), 1.0, 3.0, 0.0)
    assert (made.unproven, made.failures, made.failing_since) == (None, 0, inf)


class FakeWaiter:
    """A client that nobody wakes."""

    entry = conn = error = None
    ready = False
    since = deadline = 0.0
    holder = claim = client = None


def test_a_connection_is_not_opened_in_the_context_of_a_request() -> None:
    """What a request keeps in context variables ends with the request."""
    request: ContextVar[str] = ContextVar("request", default="none")
    seen: list[str] = []

    async def configure(_: Any) -> None:
        seen.append(request.get())

    async def client(pool: Any) -> None:
        request.set("mine")
        async with pool.connection():
            pass

    async def scenario() -> None:
        pool = fake_pool(AsyncConnectionPool, min_size=0, max_size=2, configure=configure)
        async with pool:
            await asyncio.create_task(client(pool))

    asyncio.run(scenario())
    assert seen == ["none"]


def test_the_warning_about_open_names_the_line_of_the_program() -> None:
    """Python shows a DeprecationWarning only where the program itself is to blame."""
    for use in ("getconn", "connection", "wait"):
        pool = fake_pool(ConnectionPool, min_size=1, open=None)
        with pytest.warns(DeprecationWarning, match="'open'") as caught:
            getattr(pool, use)()
        assert [warning.filename for warning in caught] == [__file__]
        pool.close()


def test_what_a_finalizer_returns_inside_a_transition_is_taken_by_the_next_one() -> None:
    """The collector may run it anywhere; it is asked to wait for nothing, and nothing is lost."""
    pool = fake_pool(ConnectionPool, min_size=1, max_size=1)
    pool.wait(10)
    core = pool._forebay.core
    returned: Any = pool.getconn()
    with pool._forebay.lock:  # as a transition does that the collector interrupts
        core.ready = INSIDE
        pool.putconn(returned)
        with pytest.raises(PoolTimeout, match="a signal handler or a finalizer") as caught:
            pool.getconn(timeout=10)
        assert caught.value.kind == "nested"
        assert repr(pool).endswith("0 idle, 1 lent, 0 opening, 0 waiting of 1..1>")
    assert pool.getconn(timeout=10) is returned
    pool.putconn(returned)
    lease: Any = pool.connection(timeout=10)
    lease.__enter__().execute("UPDATE")
    with pool._forebay.lock:
        core.ready = INSIDE
        lease.__exit__(GeneratorExit, GeneratorExit(), None)
        assert returned.status.name == "INTRANS"  # a rollback would wait for the server
    pool.putconn(pool.getconn(timeout=10))
    assert returned.status.name == "IDLE"
    assert repr(pool).endswith("1 idle, 0 lent, 0 opening, 0 waiting of 1..1>")
    pool.close()


def test_maintenance_outlives_an_error() -> None:
    """A connection class whose `closed` raises does not end the pool's watch over itself."""
    pool = fake_pool(ConnectionPool, min_size=1, max_size=1)
    pool.wait(10)
    again = threading.Event()

    def broken() -> float:
        pool._forebay.flows.maintain = working  # type: ignore[method-assign]
        raise ZeroDivisionError

    def working() -> float:
        again.set()
        return float(pool._forebay.now()) + 60.0

    pool._forebay.flows.maintain = broken  # type: ignore[method-assign]
    pool._forebay.flows.runtime.alarm(0.0)
    assert again.wait(10)
    pool.close()
