"""The doors for threads keep their promises in every schedule with a few interruptions."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from forebay import NullConnectionPool

from .threads import Cancelled, Client, Scenario, Session, Stage, explore

pytestmark = pytest.mark.prove


def uses(times: int = 1, timeout: float | None = None) -> Client:
    """Take a connection and return it, so many times."""

    def client(stage: Stage) -> None:
        for _ in range(times):
            stage.use(timeout)

    return client


def takes(stage: Stage) -> None:
    """Take a connection before the others come; `returns` returns it."""
    stage.lent = stage.get()


def returns(stage: Stage) -> None:
    """Return what `takes` has taken."""
    conn, stage.lent = stage.lent, None
    stage.put(conn)


def returns_shared(stage: Stage) -> None:
    """Return what `takes` has taken, as another client does too."""
    conn = stage.lent
    stage.held.pop(conn.number, None)
    stage.pool.putconn(conn)


def takes_contended(stage: Stage) -> None:
    """Take a connection at which others may look between any two looks of a thread."""
    takes(stage)

    class Contended(Session):
        @property
        def _pool(self) -> Any:
            pool = vars(self)["_pool"]
            stage.baton.point()
            return pool

        @_pool.setter
        def _pool(self, pool: Any) -> None:
            vars(self)["_pool"] = pool

    stage.lent.__class__ = Contended


def grows_old(stage: Stage) -> None:
    """Use a connection some time after it was opened: it is no new one when it dies."""
    stage.baton.clock.advance(1.0)
    stage.use()
    stage.baton.clock.advance(1.0)


def takes_doomed(stage: Stage) -> None:
    """Take such a connection, which is not new, and lose it."""
    grows_old(stage)
    takes_contended(stage)
    stage.lent.lose()


def outcomes(**allowed: str) -> Any:
    """Expect one of the outcomes named for each client, "done" for those who are not named."""
    return lambda seen: all(
        len(of) == 1 and of[0] in allowed.get(name, "done").split() for name, of in seen.items()
    )


def leases(stage: Stage) -> None:
    """Work in a `with` block."""
    with stage.pool.connection() as conn:
        stage.take(conn)
        stage.baton.point()
        stage.held.pop(conn.number)


def breaks(stage: Stage) -> None:
    """Return a connection that the server has ended meanwhile."""
    conn = stage.get()
    conn.lose()
    stage.put(conn)


def dirties(stage: Stage) -> None:
    """Return a connection in a transaction."""
    conn = stage.get()
    conn.execute("SELECT 1")
    stage.put(conn)


def forgets(stage: Stage) -> None:
    """Drop the connection that `takes` has taken, instead of returning it."""
    stage.held.pop(stage.lent.number)
    stage.baton.point()
    stage.lent = None


def works(timeout: float | None = None) -> Client:
    """Work in a `with` block."""
    return lambda stage: stage.work(timeout)


def dirties_at_once(stage: Stage) -> None:
    """Return a connection in a transaction, if one is ready."""
    conn = stage.get(0.0)
    conn.execute("SELECT 1")
    stage.put(conn)


def hangs(stage: Stage) -> None:
    """Return a connection whose reset blocks."""
    stage.driver.hangs = True
    stage.use()


def waits_with_desk(stage: Stage) -> None:
    """Wait until nobody is blocked, if that is in the middle of handing over a job."""
    parts = stage.pool._forebay
    if parts.flows.runtime.desk._is_owned() and not parts.lock._is_owned():
        stage.baton.wait(lambda: not stage.driver.hangs)


def returns_left(stage: Stage) -> None:
    """Return what `takes` has taken, if nobody has yet."""
    if stage.lent is not None:
        returns(stage)


def uses_and_returns(stage: Stage) -> None:
    """Use a connection, and return what `takes` has taken."""
    stage.use()
    returns_left(stage)


def uses_and_waits(stage: Stage) -> None:
    """Use a connection, and wait until nobody is blocked."""
    stage.use()
    stage.baton.wait(lambda: not stage.driver.hangs)


def closes(stage: Stage) -> None:
    """Close the pool."""
    stage.pool.close()


def fails_once(kind: type[BaseException]) -> Any:
    """Make a callback that fails with the first connection it is given, whoever comes."""

    def before(stage: Stage) -> None:
        failing = [kind("the callback fails")]

        def check(_: Any) -> None:
            stage.baton.point()
            if failing:
                raise failing.pop()

        stage.pool._forebay.flows.check = check
        stage.pool._forebay.guard()

    return before


def refused(stage: Stage) -> None:
    """Have the server refuse the next connection."""
    stage.driver.refuse(psycopg.OperationalError("the server is starting up"))


ONE = {"min_size": 1}
NULL = {"max_size": 1}

SCENARIOS = [
    # Checkout and checkin.
    Scenario("three clients share one connection", {"a": uses(), "b": uses(), "c": uses()}, ONE),
    Scenario(
        "two clients share one connection, twice each", {"a": uses(2), "b": uses(2)}, ONE, bound=3
    ),
    Scenario(
        "three clients share two connections in turn",
        {"a": uses(), "b": uses(), "c": uses()},
        {"min_size": 2, "idle_order": "fifo"},
    ),
    Scenario("two clients in leases", {"a": leases, "b": leases}, ONE, bound=3),
    Scenario("a pool grows while clients wait", {"a": uses(), "b": uses()}, {**ONE, "max_size": 2}),
    Scenario("a pool of none grows", {"a": uses(), "b": uses()}, {"min_size": 0, "max_size": 1}),
    Scenario(
        "the queue is full",
        {"a": uses(), "b": uses(), "c": uses()},
        {**ONE, "max_waiting": 1},
        expected=outcomes(
            a="done TooManyRequests", b="done TooManyRequests", c="done TooManyRequests"
        ),
    ),
    # Clients that go away.
    Scenario(
        "a client times out while it is served",
        {"a": returns, "b": uses(timeout=10.0), "c": uses()},
        ONE,
        before=takes,
        expected=outcomes(b="done PoolTimeout"),
    ),
    Scenario(
        "two clients time out while one is served",
        {"a": returns, "b": uses(timeout=10.0), "c": uses(timeout=20.0)},
        ONE,
        before=takes,
        expected=outcomes(b="done PoolTimeout", c="done PoolTimeout"),
        delays=True,
    ),
    Scenario(
        "a client will not wait",
        {"a": returns, "b": uses(timeout=0.0), "c": uses()},
        ONE,
        before=takes,
        expected=outcomes(b="done PoolTimeout"),
    ),
    Scenario(
        "a client is cancelled while it is served",
        {"a": returns, "b": uses(), "c": uses()},
        ONE,
        before=takes,
        expected=outcomes(b="done Cancelled"),
        cancellable=("b",),
    ),
    Scenario(
        "a client is cancelled while its connection is opened",
        {"a": uses(), "b": uses()},
        {"min_size": 0, "max_size": 1},
        expected=outcomes(a="done Cancelled"),
        cancellable=("a",),
        delays=True,
    ),
    Scenario(
        "a client drops its connection while another waits",
        {"a": forgets, "b": uses()},
        ONE,
        before=takes,
        drops=True,
        ticks=3,
        delays=True,
    ),
    # Returns that are not simple.
    Scenario(
        "a connection is returned twice at once",
        {"a": returns_shared, "b": returns_shared},
        {"min_size": 2},
        before=takes_contended,
        expected=lambda seen: sorted([*seen["a"], *seen["b"]]) == ["ValueError", "done"],
    ),
    Scenario(
        "a broken connection is returned twice at once",
        {"a": returns_shared, "b": returns_shared},
        {"min_size": 2},
        before=takes_doomed,
        expected=lambda seen: sorted([*seen["a"], *seen["b"]]) == ["ValueError", "done"],
        delays=True,
    ),
    Scenario(
        "a broken connection is replaced",
        {"a": breaks, "b": uses()},
        ONE,
        before=grows_old,
        delays=True,
    ),
    Scenario(
        "a connection that ends in its first use is replaced some time later",
        {"a": breaks, "b": uses()},
        ONE,
        ticks=3,
        delays=True,
    ),
    Scenario("a connection is rolled back", {"a": dirties, "b": uses()}, ONE),
    Scenario(
        "connections are reset",
        {"a": dirties, "b": uses()},
        {**ONE, "reset": lambda conn: conn.rollback()},
    ),
    Scenario(
        "an idle worker goes home while a connection is to be reset",
        {"a": uses(2)},
        {**ONE, "reset": lambda conn: conn.rollback(), "num_workers": 1},
        before=lambda stage: stage.use(),
        lingering=True,
        delays=True,
    ),
    # Callbacks and servers that fail.
    Scenario(
        "a check fails",
        {"a": uses(), "b": uses()},
        {"min_size": 2},
        before=fails_once(OSError),
        delays=True,
    ),
    Scenario(
        "a check is cancelled",
        {"a": uses(), "b": uses()},
        ONE,
        before=fails_once(Cancelled),
        expected=lambda seen: sorted([*seen["a"], *seen["b"]]) == ["Cancelled", "done"],
        delays=True,
    ),
    Scenario(
        "the server refuses a connection",
        {"a": uses(2)},
        {"min_size": 0, "max_size": 1},
        before=refused,
        ticks=3,
        delays=True,
    ),
    # Null pools.
    Scenario(
        "a null pool of one", {"a": uses(), "b": uses()}, NULL, NullConnectionPool, delays=True
    ),
    Scenario(
        "a null pool of two",
        {"a": uses(), "b": uses(), "c": uses()},
        {"max_size": 2},
        NullConnectionPool,
        bound=1,
        delays=True,
    ),
    Scenario(
        "a null pool whose server refuses",
        {"a": uses(), "b": uses()},
        NULL,
        NullConnectionPool,
        before=refused,
        expected=lambda seen: sorted([*seen["a"], *seen["b"]]) == ["OperationalError", "done"],
        delays=True,
    ),
    Scenario(
        "a client of a null pool is cancelled",
        {"a": uses(), "b": uses()},
        NULL,
        NullConnectionPool,
        expected=outcomes(a="done Cancelled"),
        cancellable=("a",),
        delays=True,
    ),
    # The pool's life.
    Scenario(
        "a pool is closed",
        {"a": uses(), "b": uses(), "c": closes},
        ONE,
        expected=outcomes(a="done PoolClosed", b="done PoolClosed"),
        closed=True,
        delays=True,
    ),
    Scenario(
        "a pool is closed while it opens",
        {"a": uses(), "c": closes},
        {"min_size": 0, "max_size": 1},
        expected=outcomes(a="done PoolClosed"),
        closed=True,
        delays=True,
    ),
    Scenario(
        "a null pool is closed",
        {"a": uses(), "c": closes},
        NULL,
        NullConnectionPool,
        expected=outcomes(a="done PoolClosed"),
        closed=True,
        delays=True,
        bound=1,
    ),
    Scenario(
        "a pool is closed twice", {"a": closes, "b": closes}, ONE, closed=True, bound=1, delays=True
    ),
    Scenario(
        "a pool is opened twice",
        {"a": lambda stage: stage.pool.open(), "b": lambda stage: stage.pool.open()},
        {**ONE, "open": False},
        delays=True,
    ),
    Scenario(
        "a pool is drained", {"a": uses(), "b": lambda stage: stage.pool.drain()}, ONE, delays=True
    ),
    Scenario(
        "a pool shrinks",
        {"a": uses(), "b": uses(), "c": lambda stage: stage.pool.resize(1, 1)},
        {"min_size": 2},
        delays=True,
    ),
    Scenario(
        "a pool grows by resize",
        {"a": uses(), "b": uses(), "c": lambda stage: stage.pool.resize(1, 2)},
        ONE,
        delays=True,
    ),
    Scenario("a pool is checked", {"a": uses(), "b": lambda stage: stage.pool.check()}, ONE),
    Scenario(
        "a pool is waited for",
        {"a": returns, "b": lambda stage: stage.pool.wait(1e9), "c": uses()},
        {"min_size": 1},
        before=takes,
    ),
    Scenario(
        "maintenance runs in between",
        {"a": uses(), "b": uses()},
        {**ONE, "max_size": 2, "max_idle": 0.0},
        ticks=1,
        delays=True,
    ),
    # A handler, or a finalizer, that interrupts a client's thread at any lock.
    Scenario(
        "a handler uses the pool",
        {"a": uses(), "b": uses()},
        ONE,
        handlers={"a": uses(timeout=0.0)},
        ticks=2,
        delays=True,
    ),
    Scenario(
        "a handler works in a block",
        {"a": works(), "b": works()},
        ONE,
        handlers={"a": works(timeout=0.0)},
        ticks=2,
        delays=True,
    ),
    Scenario(
        "a handler works in a block while the pool grows",
        {"a": works()},
        {"min_size": 0, "max_size": 2},
        handlers={"a": works(timeout=0.0)},
        ticks=2,
        delays=True,
    ),
    Scenario(
        "a handler returns what is to be reset",
        {"a": dirties},
        {"min_size": 2, "reset": lambda conn: conn.rollback()},
        handlers={"a": lambda stage: stage.use(timeout=0.0)},
        ticks=2,
        delays=True,
    ),
    Scenario(
        "a handler returns a connection in a transaction",
        {"a": uses(), "b": uses()},
        {"min_size": 2},
        handlers={"a": dirties_at_once},
        ticks=2,
        delays=True,
    ),
    Scenario(
        "a handler uses a null pool",
        {"a": uses()},
        NULL,
        NullConnectionPool,
        handlers={"a": works(timeout=0.0)},
        ticks=2,
        delays=True,
    ),
    Scenario(
        "a handler returns a connection",
        {"a": uses_and_returns, "b": uses()},
        {"min_size": 2},
        before=takes,
        handlers={"a": returns_left},
        ticks=2,
        delays=True,
    ),
    Scenario(
        "a handler waits for a worker that is blocked",
        {"a": uses_and_waits},
        {
            "min_size": 2,
            "num_workers": 1,
            "action_timeout": 0.5,
            "reset": lambda conn: conn._driver.block(conn),
        },
        before=hangs,
        handlers={"a": waits_with_desk},
        closed=True,  # not by a client: what was cut off may be replaced some time later
        ticks=2,
        bound=1,
        delays=True,
    ),
    Scenario(
        "a handler closes the pool",
        {"a": uses(), "b": uses()},
        ONE,
        expected=outcomes(a="done PoolClosed", b="done PoolClosed"),
        handlers={"a": closes},
        closed=True,
        ticks=2,
        delays=True,
    ),
    Scenario(
        "a handler closes the pool whose connections are reset",
        {"a": works()},
        {**ONE, "reset": lambda conn: conn.rollback()},
        expected=outcomes(a="done PoolClosed"),
        handlers={"a": closes},
        closed=True,
        ticks=2,
        delays=True,
    ),
]


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """Pass over what the pool logs."""
    logging.disable()
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_every_schedule_keeps_the_promises(scenario: Scenario) -> None:
    """No connection is lent twice or lost, and no client is stranded."""
    found = explore(scenario)
    print(f"{found.schedules} schedules, {found.seconds:.1f} s: {scenario.name}")  # noqa: T201
    assert not found.violation, "\n".join([found.violation, *found.trace])
