"""An exception anywhere in every transition, door and effect; then everything heals."""

# ruff: noqa: D103 - the name of a scenario says what it is about

from __future__ import annotations

import gc
import inspect
import logging
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import psycopg
import pytest

from forebay import NullConnectionPool, PoolTimeout
from forebay._core import INSIDE, Core, Phase
from forebay._entry import LENT, Effects

from .invariants import violations
from .one_thread import Stage
from .opcodes import Interrupter

pytestmark = pytest.mark.prove

Action = Callable[[], object]
Scenario = Callable[[Stage], tuple[Any, Action]]
Made = tuple[Any, Action]

SCENARIOS: dict[str, Scenario] = {}


class Cancelled(BaseException):
    """Ends a client while it waits."""


def scenario(make: Scenario) -> Scenario:
    """Put a scenario in the table.  It gives a pool, and the action that is interrupted."""
    SCENARIOS[make.__name__] = make
    return make


def filled(stage: Stage, **options: Any) -> Any:
    """Make a pool whose connections are open."""
    pool = stage.pool(**({"min_size": 2} | options))
    stage.play()
    return pool


def failing(*_: object) -> None:
    """Be a callback that always fails."""
    raise OSError("the callback fails")


def quietly(action: Action) -> Action:
    """Give an action whose ordinary failures are expected."""

    def act() -> None:
        with suppress(Exception, Cancelled):
            action()

    return act


def then(*actions: Action) -> Action:
    """One action after the other."""

    def act() -> None:
        for action in actions:
            action()

    return act


def cancelled() -> None:
    """End the client that waits."""
    raise Cancelled


# Checkout ------------------------------------------------------------------------------------


@scenario
def a_client_takes_an_idle_connection(stage: Stage) -> tuple[Any, Action]:
    pool = filled(stage)
    return pool, pool.getconn


@scenario
def a_client_takes_the_oldest_connection(stage: Stage) -> tuple[Any, Action]:
    pool = filled(stage, idle_order="fifo")
    return pool, pool.getconn


@scenario
def a_client_waits_for_a_new_connection(stage: Stage) -> tuple[Any, Action]:
    pool = filled(stage, min_size=0, max_size=1)
    stage.meanwhile = [stage.play]
    return pool, pool.getconn


@scenario
def a_client_waits_for_a_return(stage: Stage) -> tuple[Any, Action]:
    pool = filled(stage, min_size=1)
    lent = [pool.getconn()]
    stage.meanwhile = [lambda: pool.putconn(lent.pop())]
    return pool, pool.getconn


@scenario
def a_client_waits_in_vain(stage: Stage) -> tuple[Any, Action]:
    pool = filled(stage, min_size=1)
    lent = pool.getconn()
    return pool, quietly(lambda: lent and pool.getconn(1.0))


@scenario
def a_client_will_not_wait(stage: Stage) -> tuple[Any, Action]:
    pool = filled(stage, min_size=1)
    lent = pool.getconn()
    return pool, quietly(lambda: lent and pool.getconn(0))


@scenario
def a_client_is_turned_away_by_a_full_queue(stage: Stage) -> tuple[Any, Action]:
    pool = filled(stage, min_size=1, max_waiting=1)
    lent = pool.getconn()
    stage.meanwhile = [quietly(lambda: pool.getconn(1.0))]
    return pool, quietly(lambda: lent and pool.getconn(1.0))


@scenario
def a_client_is_cancelled_while_it_waits(stage: Stage) -> tuple[Any, Action]:
    pool = filled(stage, min_size=1)
    lent = pool.getconn()
    stage.meanwhile = [cancelled]
    return pool, quietly(lambda: lent and pool.getconn())


@scenario
def a_client_is_cancelled_when_it_is_served(stage: Stage) -> tuple[Any, Action]:
    pool = filled(stage, min_size=1)
    lent = [pool.getconn()]
    stage.meanwhile = [then(lambda: pool.putconn(lent.pop()), cancelled)]
    return pool, quietly(pool.getconn)


@scenario
def a_client_is_served_in_the_place_of_a_lost_connection(stage: Stage) -> tuple[Any, Action]:
    pool = filled(stage, min_size=1)
    pool.getconn()
    stage.meanwhile = [stage.play]
    return pool, pool.getconn


@scenario
def a_client_checks_its_connection(stage: Stage) -> tuple[Any, Action]:
    pool = filled(stage, check=lambda conn: conn.execute("SELECT 1").rollback())
    return pool, pool.getconn


@scenario
def a_client_whose_check_fails_gets_the_next_connection(stage: Stage) -> tuple[Any, Action]:
    checked: list[int] = []

    def check(conn: Any) -> None:
        checked.append(conn.number)
        if len(checked) == 1:
            failing()

    pool = filled(stage, check=check)
    return pool, pool.getconn


@scenario
def a_client_is_cancelled_while_it_checks(stage: Stage) -> tuple[Any, Action]:
    once = [cancelled]
    pool = filled(stage, check=lambda _: once and once.pop()())
    return pool, quietly(pool.getconn)


# Checkin -------------------------------------------------------------------------------------


@scenario
def a_client_returns_a_connection(stage: Stage) -> tuple[Any, Action]:
    pool = filled(stage)
    lent = [pool.getconn()]
    return pool, lambda: pool.putconn(lent.pop())


@scenario
def a_client_returns_an_old_connection(stage: Stage) -> tuple[Any, Action]:
    pool = filled(stage, max_lifetime=60.0)
    lent = [pool.getconn()]
    stage.clock.advance(100.0)
    return pool, then(lambda: pool.putconn(lent.pop()), stage.play)


@scenario
def a_client_returns_a_connection_in_a_transaction(stage: Stage) -> tuple[Any, Action]:
    pool = filled(stage)
    lent = [pool.getconn()]
    lent[0].execute("SELECT 1")
    return pool, lambda: pool.putconn(lent.pop())


@scenario
def a_client_returns_a_lost_connection(stage: Stage) -> tuple[Any, Action]:
    pool = filled(stage)
    lent = [pool.getconn()]
    lent[0].lose()
    return pool, then(lambda: pool.putconn(lent.pop()), stage.play)


@scenario
def a_client_returns_a_connection_that_is_lost_in_the_rollback(
    stage: Stage,
) -> tuple[Any, Action]:
    pool = filled(stage)
    lent = [pool.getconn()]
    lent[0].execute("SELECT 1")
    stage.driver.sessions.discard(lent[0].number)
    return pool, then(lambda: pool.putconn(lent.pop()), stage.play)


@scenario
def a_client_returns_a_connection_to_be_reset(stage: Stage) -> tuple[Any, Action]:
    pool = filled(stage, reset=lambda conn: conn.execute("DISCARD ALL").rollback())
    lent = [pool.getconn()]
    lent[0].execute("SELECT 1")
    return pool, then(lambda: pool.putconn(lent.pop()), stage.play)


@scenario
def a_client_returns_a_connection_whose_reset_fails(stage: Stage) -> tuple[Any, Action]:
    pool = filled(stage, reset=failing)
    lent = [pool.getconn()]
    return pool, then(lambda: pool.putconn(lent.pop()), stage.play)


@scenario
def a_client_returns_a_connection_while_another_waits(stage: Stage) -> tuple[Any, Action]:
    pool = filled(stage, min_size=1)
    lent = [pool.getconn()]
    queue_somebody(stage, pool)
    return pool, lambda: pool.putconn(lent.pop())


@scenario
def a_client_returns_a_connection_that_wait_waits_for(stage: Stage) -> tuple[Any, Action]:
    pool = filled(stage)
    lent = [pool.getconn()]
    stage.meanwhile = [lambda: pool.putconn(lent.pop())]
    return pool, pool.wait


@scenario
def a_client_returns_a_connection_twice(stage: Stage) -> tuple[Any, Action]:
    pool = filled(stage)
    lent = pool.getconn()
    pool.putconn(lent)
    return pool, quietly(lambda: pool.putconn(lent))


@scenario
def a_client_returns_a_connection_to_a_closed_pool(stage: Stage) -> tuple[Any, Action]:
    pool = filled(stage)
    lent = [pool.getconn()]
    pool.close()
    return pool, lambda: pool.putconn(lent.pop())


def queue_somebody(stage: Stage, pool: Any) -> None:
    """Leave a client in the queue who comes for its connection when all is over, and gives up."""
    waiter = pool._forebay.flows.runtime.waiter()
    stage.absent.append(waiter)
    pool._forebay.flows.carry_out(pool._forebay.core.enqueue(waiter, pool._forebay.now()))


# Leases --------------------------------------------------------------------------------------


@scenario
def a_client_leases_a_connection(stage: Stage) -> tuple[Any, Action]:
    pool = filled(stage)

    def act() -> None:
        with pool.connection():
            pass

    return pool, act


@scenario
def a_client_works_in_a_lease(stage: Stage) -> tuple[Any, Action]:
    pool = filled(stage)

    def act() -> None:
        with pool.connection() as conn:
            conn.execute("SELECT 1")

    return pool, act


@scenario
def a_client_fails_in_a_lease(stage: Stage) -> tuple[Any, Action]:
    pool = filled(stage)

    def act() -> None:
        with pool.connection() as conn:
            conn.execute("SELECT 1")
            failing()

    return pool, quietly(act)


# Workers -------------------------------------------------------------------------------------


@scenario
def a_worker_opens_a_connection(stage: Stage) -> tuple[Any, Action]:
    pool = stage.pool(
        min_size=1, conninfo=lambda: "", kwargs=dict, configure=lambda c: c.rollback()
    )
    return pool, stage.play


@scenario
def a_worker_cannot_connect(stage: Stage) -> tuple[Any, Action]:
    stage.driver.refuse(psycopg.OperationalError("server is down"))
    pool = stage.pool(min_size=1)
    return pool, stage.play


@scenario
def a_worker_cannot_connect_for_too_long(stage: Stage) -> tuple[Any, Action]:
    stage.driver.refuse(psycopg.OperationalError("server is down"))
    pool = stage.pool(min_size=1, reconnect_timeout=0.0, reconnect_failed=failing)
    maintain = pool._forebay.flows.maintain
    return pool, then(stage.play, lambda: stage.clock.advance(0.1), maintain, stage.play)


@scenario
def a_worker_cannot_configure(stage: Stage) -> tuple[Any, Action]:
    attempts: list[object] = []

    def configure(conn: Any) -> None:
        attempts.append(conn.number)
        if len(attempts) == 1:
            conn.execute("BEGIN")

    pool = stage.pool(min_size=1, configure=configure)
    return pool, stage.play


@scenario
def a_null_pool_opens_and_closes(stage: Stage) -> tuple[Any, Action]:
    pool = stage.pool(NullConnectionPool, max_size=2)
    stage.meanwhile = [stage.play]
    return pool, then(lambda: pool.putconn(pool.getconn()), stage.play)


@scenario
def a_null_pool_cannot_connect(stage: Stage) -> tuple[Any, Action]:
    stage.driver.refuse(psycopg.OperationalError("server is down"))
    pool = stage.pool(NullConnectionPool, max_size=2)
    stage.meanwhile = [stage.play]
    return pool, quietly(pool.getconn)


# Dead connections, and servers that do not answer ----------------------------------------------


def dies_idle(pool: Any, *which: int) -> None:
    """Have the server end the sessions of idle connections."""
    for at in which:
        pool._forebay.core.idle[at].conn.lose()


@scenario
def a_client_looks_at_a_connection_that_was_idle_for_long(stage: Stage) -> Made:
    pool = filled(stage)
    stage.clock.advance(10.0)
    return pool, pool.getconn


@scenario
def a_client_finds_that_its_connection_is_dead(stage: Stage) -> Made:
    pool = filled(stage)
    stage.clock.advance(10.0)
    dies_idle(pool, -1)
    return pool, then(pool.getconn, stage.play)


@scenario
def a_pool_finds_dead_connections(stage: Stage) -> Made:
    pool = filled(stage, min_size=2)
    dies_idle(pool, 0)
    return pool, then(lambda: pool._forebay.flows.maintain(), stage.play)


@scenario
def a_pool_keeps_connections_alive(stage: Stage) -> Made:
    pool = filled(stage, min_size=2, keepalive_interval=30.0)
    stage.clock.advance(31.0)
    return pool, then(lambda: pool._forebay.flows.maintain(), stage.play)


@scenario
def a_reset_takes_too_long(stage: Stage) -> Made:
    def reset(_: Any) -> None:
        for _ in range(2):
            stage.clock.advance(5.0)
            pool._forebay.flows.maintain()

    pool = filled(stage, min_size=1, reset=reset)
    lent = [pool.getconn()]
    return pool, then(lambda: pool.putconn(lent.pop()), stage.play)


@scenario
def a_connection_opens_too_late(stage: Stage) -> Made:
    def conninfo() -> str:
        if pool:
            stage.clock.advance(40.0)
            pool.pop()._forebay.flows.maintain()
        return ""

    pool: list[Any] = []
    made = stage.pool(min_size=1, conninfo=conninfo)
    pool.append(made)
    return made, stage.play


@scenario
def a_connection_fails_too_late(stage: Stage) -> Made:
    def configure(_: Any) -> None:
        if pool:
            for late in pool.pop():
                stage.clock.advance(5.0)
                late._forebay.flows.maintain()
            failing()

    pool: list[Any] = []
    made = stage.pool(min_size=1, configure=configure)
    pool.append([made] * 2)
    return made, stage.play


@scenario
def a_check_takes_too_long(stage: Stage) -> Made:
    def check(_: Any) -> None:
        if pool:
            stage.clock.advance(3.5)
            pool.pop()._forebay.flows.maintain()

    pool: list[Any] = []
    made = filled(stage, min_size=1, check=check)
    pool.append(made)
    stage.clock.advance(1.0)  # else it would be a new connection that fails
    stage.meanwhile = [stage.play] * 3
    return made, then(made.getconn, stage.play)


# Uses, leases and holders --------------------------------------------------------------------


@scenario
def a_connection_is_used_for_the_last_time(stage: Stage) -> Made:
    pool = filled(stage, max_uses=1)
    return pool, then(lambda: pool.putconn(pool.getconn()), stage.play)


@scenario
def a_lease_is_dropped_and_its_connection_is_not(stage: Stage) -> Made:
    pool = filled(stage)
    leases = [pool.connection()]
    kept = [leases[0].__enter__()]
    return pool, then(lambda: (kept, leases.pop()), pool._forebay.flows.maintain, stage.play)


@scenario
def a_lease_is_dropped_in_a_transaction(stage: Stage) -> Made:
    pool = filled(stage, reset=lambda conn: conn.rollback())
    leases = [pool.connection()]
    kept = [leases[0].__enter__().execute("SELECT 1")]
    return pool, then(lambda: (kept, leases.pop()), pool._forebay.flows.maintain, stage.play)


@scenario
def a_connection_is_returned_inside_its_lease(stage: Stage) -> Made:
    pool = filled(stage)

    def act() -> None:
        with pool.connection() as conn:
            pool.putconn(conn)

    return pool, quietly(act)  # interrupted half-way, it cannot be returned once more


@scenario
def a_client_asks_for_a_connection_while_it_holds_the_only_one(stage: Stage) -> Made:
    pool = filled(stage, min_size=1)

    def act() -> None:
        with pool.connection() as outer, pool.connection() as inner:
            assert outer is not inner

    return pool, quietly(act)


@scenario
def all_who_hold_connections_wait(stage: Stage) -> Made:
    pool = filled(stage, min_size=1)
    stage.meanwhile = [pool._forebay.flows.maintain]

    def act() -> None:
        with pool.connection() as outer, pool.connection() as inner:
            assert outer is not inner

    return pool, quietly(act)


@scenario
def a_connection_comes_back_inside_a_transition(stage: Stage) -> Made:
    pool = filled(stage)
    clean, unclean = [pool.getconn()], [pool.getconn().execute("SELECT 1")]

    def act() -> None:
        with pool._forebay.lock:
            pool._forebay.core.ready = INSIDE
            pool.putconn(unclean.pop())
            pool.putconn(clean.pop())

    return pool, then(act, pool._forebay.flows.maintain, stage.play)


@scenario
def a_connection_is_lent_for_too_long(stage: Stage) -> Made:
    pool = filled(stage, leak_threshold=10.0)
    lent = [pool.getconn()]
    stage.clock.advance(11.0)
    return pool, then(
        lambda: pool._forebay.flows.maintain(),
        lambda: pool.putconn(lent.pop()),
        lambda: pool._forebay.flows.maintain(),
    )


# What a failed attempt means, and standbys ---------------------------------------------------


def refused_by(text: str, times: int) -> Scenario:
    """A client waits while the server answers each attempt by an error."""

    def make(stage: Stage) -> Made:
        stage.driver.refuse(psycopg.OperationalError(text), times)
        pool = filled(stage, min_size=0, max_size=1, conninfo=lambda: "")
        stage.meanwhile = [stage.play] * 3
        return pool, quietly(lambda: pool.getconn(1.0))

    return make


@scenario
def a_client_is_rejected(stage: Stage) -> Made:
    return refused_by('connection failed: FATAL:  database "x" does not exist', 1)(stage)


@scenario
def a_server_is_crowded(stage: Stage) -> Made:
    return refused_by("connection failed: FATAL:  sorry, too many clients already", 1)(stage)


@scenario
def credentials_are_wrong_once(stage: Stage) -> Made:
    text = 'connection failed: FATAL:  password authentication failed for user "x"'
    return refused_by(text, 1)(stage)


@scenario
def a_pool_connects_to_a_standby(stage: Stage) -> Made:
    attempts: list[object] = []

    def configure(conn: Any) -> None:
        attempts.append(conn.number)
        conn.standby = len(attempts) < 2

    pool = stage.pool(min_size=1, conninfo="target_session_attrs=read-write", configure=configure)
    stage.play()

    stage.clock.advance(5.0)
    return pool, then(lambda: pool._forebay.flows.maintain(), stage.play)


@scenario
def a_primary_becomes_a_standby(stage: Stage) -> Made:
    pool = filled(stage)
    error = psycopg.errors.ReadOnlySqlTransaction("a write was refused")
    lease = pool.connection()
    lease.__enter__().in_recovery = True
    return pool, then(lambda: lease.__exit__(type(error), error, None), stage.play)


# The pool ------------------------------------------------------------------------------------


@scenario
def a_pool_opens(stage: Stage) -> tuple[Any, Action]:
    pool = stage.pool(min_size=1, open=False)
    return pool, pool.open


@scenario
def a_pool_is_waited_for(stage: Stage) -> tuple[Any, Action]:
    pool = stage.pool(min_size=2)
    stage.meanwhile = [stage.play]
    return pool, pool.wait


@scenario
def a_pool_is_waited_for_in_vain(stage: Stage) -> tuple[Any, Action]:
    pool = stage.pool(min_size=2)
    return pool, quietly(lambda: pool.wait(1.0))


@scenario
def a_pool_is_drained(stage: Stage) -> tuple[Any, Action]:
    pool = filled(stage, max_size=3)
    lent = pool.getconn()
    return pool, then(lambda: lent and pool.drain(), stage.play)


@scenario
def a_pool_grows(stage: Stage) -> tuple[Any, Action]:
    pool = filled(stage)
    return pool, then(lambda: pool.resize(3, 4), stage.play)


@scenario
def a_pool_shrinks(stage: Stage) -> tuple[Any, Action]:
    pool = filled(stage, min_size=3, max_size=4)
    lent = [pool.getconn(), pool.getconn()]
    return pool, then(lambda: lent and pool.resize(1, 1), stage.play)


@scenario
def a_pool_is_checked(stage: Stage) -> tuple[Any, Action]:
    pool = filled(stage)
    conn = pool.getconn()
    pool.putconn(conn)
    conn.lose()
    del conn
    return pool, then(lambda: pool.check(), stage.play)


@scenario
def a_pool_is_maintained(stage: Stage) -> tuple[Any, Action]:
    pool = filled(stage, min_size=1, max_size=3, max_idle=60.0, max_lifetime=100.0)
    stage.meanwhile = [stage.play]
    young, old = pool.getconn(), pool.getconn()
    pool.putconn(young)
    stage.clock.advance(70.0)
    pool.putconn(old)
    stage.clock.advance(29.0)
    return pool, then(lambda: pool._forebay.flows.maintain(), stage.play)


@scenario
def a_pool_in_turn_is_maintained(stage: Stage) -> tuple[Any, Action]:
    pool = filled(stage, min_size=1, max_size=3, max_idle=60.0, idle_order="fifo")
    pool.putconn(pool.getconn())
    stage.clock.advance(70.0)
    return pool, then(lambda: pool._forebay.flows.maintain(), stage.play)


@scenario
def a_pool_finds_lost_connections(stage: Stage) -> tuple[Any, Action]:
    pool = filled(stage)
    pool.getconn()
    pool.getconn()
    return pool, then(lambda: pool._forebay.flows.maintain(), stage.play)


@scenario
def a_pool_reclaims_a_lent_connection_that_was_closed(stage: Stage) -> tuple[Any, Action]:
    pool = filled(stage)
    lent = pool.getconn()
    lent.close()
    return pool, lambda: lent and pool._forebay.flows.maintain()


@scenario
def a_reclaimed_connection_comes_back_after_all(stage: Stage) -> tuple[Any, Action]:
    pool = filled(stage)
    lent = pool.getconn()
    lent.close()
    pool._forebay.flows.maintain()
    return pool, then(lambda: pool.putconn(lent), stage.play)


@scenario
def a_pool_is_filled_once(stage: Stage) -> tuple[Any, Action]:
    pool = filled(stage, min_size=0, max_size=2)
    return pool, then(lambda: pool._forebay.flows.transition("fill", 2), stage.play)


@scenario
def a_client_that_will_not_wait_has_a_connection_opened(stage: Stage) -> tuple[Any, Action]:
    pool = filled(stage, min_size=0, max_size=2)
    pool._forebay.core.settings.eager = True
    queue_somebody(stage, pool)
    stage.meanwhile = [lambda: None, stage.play]
    return pool, quietly(lambda: pool.getconn(0))


@scenario
def a_pool_does_without_its_workers(stage: Stage) -> tuple[Any, Action]:
    pool = filled(stage, max_size=4)
    core = pool._forebay.core
    lent = [pool.getconn()]
    orders = core.fill(4, pool._forebay.now()).start
    kept = [core.begin(orders[0], pool._forebay.now())]

    def act() -> None:
        with pool._forebay.lock:
            pool._forebay.flows.move(evict=True)
        assert [*kept, *lent]

    return pool, then(act, stage.play)


@scenario
def a_pool_is_audited(stage: Stage) -> tuple[Any, Action]:
    pool = filled(stage)
    lent = [pool.getconn()]
    pool._forebay.core.idle[0].place = LENT
    pool._forebay.core.idle.pop()

    def act() -> None:
        effects = Effects()
        with pool._forebay.lock:
            pool._forebay.core.audit(pool._forebay.now(), effects)
        pool._forebay.flows.carry_out(effects)

    return pool, then(act, lent.clear)


@scenario
def a_pool_tells_its_counters(stage: Stage) -> tuple[Any, Action]:
    pool = filled(stage)
    return pool, lambda: (pool.get_stats(), pool.pop_stats(), repr(pool))


@scenario
def a_pool_is_closed(stage: Stage) -> tuple[Any, Action]:
    pool = filled(stage, max_size=3)
    lent = [pool.getconn()]
    pool.drain()
    return pool, lambda: lent and pool.close()


@scenario
def a_pool_is_closed_while_a_client_waits(stage: Stage) -> tuple[Any, Action]:
    pool = filled(stage, min_size=1)
    lent = pool.getconn()
    stage.meanwhile = [pool.close]
    return pool, quietly(lambda: lent and pool.getconn())


@scenario
def a_pool_is_closed_while_it_is_waited_for(stage: Stage) -> tuple[Any, Action]:
    pool = stage.pool(min_size=1)
    stage.meanwhile = [pool.close]
    return pool, quietly(pool.wait)


# The tests -----------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """Pass over what the pool logs, and over flows that were interrupted before they began."""
    logging.disable()  # a handler may keep records, whose errors keep frames, whose locals count
    gc.collect()
    gc.freeze()  # healing collects often
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        yield
    gc.unfreeze()
    logging.disable(logging.NOTSET)


def interrupt(make: Scenario, at: int | None) -> tuple[Interrupter, list[str]]:
    """Play a scenario, interrupt it, let it heal; returns what is still wrong then."""
    interrupter = Interrupter(at)
    stage = Stage()
    with stage.set():
        pool, act = make(stage)
        pool.timeout = 5.0
        interrupter.run(act)
        del act
        stage.meanwhile = []
        stage.driver.accept()
        wrong = heal(stage, pool)
        if wrong:
            gc.collect()
            wrong = heal(stage, pool)
    return interrupter, wrong


def heal(stage: Stage, pool: Any) -> list[str]:
    """Do what happens by itself in time, then see whether the pool is as good as new."""
    if pool.closed:
        pool.close() if pool._forebay.core.phase is Phase.CLOSED else pool.open()
    core = pool._forebay.core
    for waiter in stage.absent:
        pool._forebay.flows.transition("cancel", waiter)
    stage.absent.clear()
    pool.check()
    stage.settle(pool)
    wrong = violations(core)
    wrong += [f"{name} is not empty" for name in ("granted", "retiring") if getattr(core, name)]
    if any(lock.entered for lock in stage.locks):
        return [*wrong, "a lock is still held"]
    if wrong:
        return wrong
    kept = {entry.conn.number for entry in core.idle}
    if kept != stage.driver.sessions:
        wrong.append(f"sessions {stage.driver.sessions} live, and {kept} are idle")
    if core.phase is not Phase.CLOSED:
        wrong += serve(stage, pool)
    return wrong


def serve(stage: Stage, pool: Any) -> Iterator[str]:
    """See whether as many clients as the pool has room for get a good connection each."""
    stage.meanwhile = [stage.play] * 20
    pool._forebay.flows.check = None
    try:
        conns = [pool.getconn() for _ in range(pool.max_size)]
    except PoolTimeout as error:
        yield f"the pool cannot serve {pool.max_size} clients: {error}"
        return
    if len({conn.number for conn in conns}) < len(conns):
        yield "a connection is lent twice"
    unclean = pool._forebay.flows.driver.unclean
    if any(conn.closed or unclean(conn) for conn in conns):
        yield "a connection is lent that is not good"
    pool._forebay.flows.reset = None
    pool._forebay.run(pool._forebay.flows)
    for conn in conns:
        pool.putconn(conn)
    stage.settle(pool)
    yield from violations(pool._forebay.core)


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_pool_heals_from_an_exception_at_any_opcode(name: str) -> None:
    """Whatever is interrupted wherever, afterwards nothing is lost and everybody is served.

    Interrupted is wherever the interpreter runs signal handlers: at the start of a function, after
    each call and at each jump backwards; with FOREBAY_EVERY_OPCODE set, before each opcode.
    """
    interrupt(SCENARIOS[name], None)  # fills what remembers, for what comes is counted
    counted, wrong = interrupt(SCENARIOS[name], None)
    assert not wrong
    assert counted.count > 0
    broken: list[str] = []
    for at in range(1, counted.count + 1):
        interrupter, wrong = interrupt(SCENARIOS[name], at)
        assert interrupter.count == at, "the scenario is not deterministic"
        if wrong:
            function, offset = interrupter.where
            broken.append(f"{function}, opcode at {offset}: {'; '.join(wrong)}")
    assert not broken, "\n".join(broken)


def test_every_transition_is_interrupted() -> None:
    """No method of the core is left out by the scenarios above."""
    interrupted = {at for make in SCENARIOS.values() for at in interrupt(make, None)[0].seen}
    counts = Counter(function for function, _ in interrupted)
    for function in sorted(counts):
        print(f"{counts[function]:5} opcodes  {function}")  # noqa: T201
    methods = {f"Core.{name}" for name, _ in inspect.getmembers(Core, inspect.isfunction)}
    assert methods - {"Core.__init__"} <= set(counts)
