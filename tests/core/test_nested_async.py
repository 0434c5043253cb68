"""The same in an event loop: a signal handler drives the pool's coroutines by hand.

It cannot wait there: what suspends it is given up.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import suppress
from typing import Any
from unittest import mock

import psycopg
import pytest

from forebay import AsyncConnectionPool, AsyncNullConnectionPool, PoolClosed, PoolTimeout
from forebay._asyncio import Asyncio
from forebay._core import Core, Phase
from forebay.testing import ManualClock, fake_pool

from .invariants import violations
from .opcodes import EVERY_OPCODE, Interrupter
from .test_interrupts import _quiet, failing
from .test_nested import CountingDriver, Handler

pytestmark = pytest.mark.prove

__all__ = ["_quiet"]  # a fixture

Action = Callable[[], Awaitable[object]]
Scenario = Callable[["Loop"], Awaitable[tuple[Any, Action]]]

SCENARIOS: dict[str, Scenario] = {}


def scenario(make: Scenario) -> Scenario:
    """Put a scenario in the table.  It gives a pool, and the action that is interrupted."""
    SCENARIOS[make.__name__] = make
    return make


class Loop:
    """An event loop with a pool on a clock that moves when it is told to."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.driver = CountingDriver()
        self.handling = False
        self.shared: list[Any] = []

    async def pool(self, pool_class: Any = AsyncConnectionPool, **options: Any) -> Any:
        """Make a pool that is open and filled."""
        pool = fake_pool(pool_class, self.driver, self.clock, **options)
        await pool.open()
        await self.work()
        return pool

    async def work(self) -> None:
        """Let all tasks go on."""
        for _ in range(10):
            await asyncio.sleep(0)

    async def settle(self, pool: Any) -> None:
        """Let time pass, maintenance run and workers work until nothing is left to do."""
        for _ in range(4):
            await self.work()
            self.clock.advance(2.0)
            pool._forebay.flows.maintain()
        await self.work()


# What is interrupted -----------------------------------------------------------------------


@scenario
async def a_client_takes_an_idle_connection(loop: Loop) -> tuple[Any, Action]:
    pool = await loop.pool(min_size=2)
    return pool, pool.getconn


@scenario
async def a_client_waits_for_a_new_connection(loop: Loop) -> tuple[Any, Action]:
    pool = await loop.pool(min_size=0, max_size=1)
    return pool, pool.getconn


@scenario
async def a_client_waits_for_a_return(loop: Loop) -> tuple[Any, Action]:
    pool = await loop.pool(min_size=1)
    lent = await pool.getconn()

    async def act() -> object:
        other = asyncio.create_task(pool.putconn(lent))
        conn = await pool.getconn()
        await other
        return conn

    return pool, act


@scenario
async def a_client_is_cancelled_while_it_waits(loop: Loop) -> tuple[Any, Action]:
    pool = await loop.pool(min_size=1)
    lent = await pool.getconn()

    async def act() -> None:
        task = asyncio.create_task(pool.getconn())
        await loop.work()
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        await pool.putconn(lent)

    return pool, act


@scenario
async def a_client_looks_at_a_dead_connection(loop: Loop) -> tuple[Any, Action]:
    pool = await loop.pool(min_size=2)
    loop.clock.advance(10.0)
    pool._forebay.core.idle[-1].conn.lose()
    return pool, pool.getconn


@scenario
async def a_client_checks_its_connection(loop: Loop) -> tuple[Any, Action]:
    async def check(conn: Any) -> None:
        await asyncio.sleep(0)
        conn.execute("SELECT 1").rollback()

    pool = await loop.pool(min_size=2, check=check)
    return pool, pool.getconn


@scenario
async def a_client_returns_a_connection(loop: Loop) -> tuple[Any, Action]:
    pool = await loop.pool(min_size=2)
    lent = [await pool.getconn()]
    return pool, lambda: pool.putconn(lent.pop())


@scenario
async def a_client_returns_an_old_connection(loop: Loop) -> tuple[Any, Action]:
    pool = await loop.pool(min_size=2, max_lifetime=60.0)
    lent = [await pool.getconn()]
    loop.clock.advance(100.0)
    return pool, lambda: pool.putconn(lent.pop())


@scenario
async def a_client_returns_a_connection_in_a_transaction(loop: Loop) -> tuple[Any, Action]:
    pool = await loop.pool(min_size=2)
    lent = [(await pool.getconn()).execute("SELECT 1")]
    return pool, lambda: pool.putconn(lent.pop())


@scenario
async def a_client_returns_a_lost_connection(loop: Loop) -> tuple[Any, Action]:
    pool = await loop.pool(min_size=2)
    lent = [await pool.getconn()]
    lent[0].lose()
    return pool, lambda: pool.putconn(lent.pop())


@scenario
async def a_client_returns_a_connection_to_be_reset(loop: Loop) -> tuple[Any, Action]:
    async def reset(conn: Any) -> None:
        await asyncio.sleep(0)
        conn.execute("DISCARD ALL").rollback()

    pool = await loop.pool(min_size=2, reset=reset)
    lent = [await pool.getconn()]

    async def act() -> None:
        await pool.putconn(lent.pop())
        await loop.work()

    return pool, act


@scenario
async def a_client_works_in_a_lease(loop: Loop) -> tuple[Any, Action]:
    pool = await loop.pool(min_size=2)

    async def act() -> None:
        async with pool.connection():
            pass
        async with pool.connection() as conn:
            conn.execute("SELECT 1")
        with suppress(OSError):
            async with pool.connection():
                failing()

    return pool, act


@scenario
async def a_null_pool_opens_and_closes(loop: Loop) -> tuple[Any, Action]:
    pool = await loop.pool(AsyncNullConnectionPool, max_size=2)

    async def act() -> None:
        await pool.putconn(await pool.getconn())

    return pool, act


@scenario
async def a_worker_cannot_connect(loop: Loop) -> tuple[Any, Action]:
    pool = await loop.pool(min_size=1)
    loop.driver.refuse(psycopg.OperationalError("server is down"))

    async def act() -> None:
        await pool.drain()
        await loop.work()

    return pool, act


@scenario
async def a_pool_is_checked_and_maintained(loop: Loop) -> tuple[Any, Action]:
    pool = await loop.pool(min_size=2, keepalive_interval=30.0)
    loop.clock.advance(31.0)

    async def act() -> None:
        pool._forebay.flows.maintain()
        await loop.work()
        await pool.check()

    return pool, act


@scenario
async def a_lease_is_dropped(loop: Loop) -> tuple[Any, Action]:
    pool = await loop.pool(min_size=2)
    leases = [pool.connection()]
    kept = await leases[0].__aenter__()

    async def act() -> None:
        leases.clear()
        pool._forebay.flows.maintain()
        await loop.work()
        assert kept

    return pool, act


@scenario
async def a_pool_grows_and_shrinks(loop: Loop) -> tuple[Any, Action]:
    pool = await loop.pool(min_size=2, max_size=4)

    async def act() -> None:
        await pool.resize(3, 4)
        await loop.work()
        await pool.resize(1, 1)

    return pool, act


@scenario
async def a_pool_is_waited_for(loop: Loop) -> tuple[Any, Action]:
    pool = await loop.pool(min_size=1)

    async def act() -> None:
        await pool.drain()
        await pool.wait()

    return pool, act


@scenario
async def a_pool_is_closed(loop: Loop) -> tuple[Any, Action]:
    pool = await loop.pool(min_size=2)
    lent = [await pool.getconn()]

    async def act() -> None:
        await pool.close()
        await pool.putconn(lent.pop())

    return pool, act


# Handlers ----------------------------------------------------------------------------------


def drive(handler: Handler, coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine in a signal handler; one that would wait is given up."""
    runtime, core = handler.pool._forebay.flows.runtime, handler.pool._forebay.core
    inside = runtime.inside(core)
    try:
        coroutine.send(None)
    except StopIteration as stop:
        return stop.value
    if inside:
        handler.wrong.append("the handler waits for the step that it interrupts")
    coroutine.close()
    raise Waits


class Waits(Exception):
    """The handler would have had to wait."""


def takes_and_returns(handler: Handler) -> None:
    """Work without a block."""
    with suppress(Waits):
        conn = drive(handler, handler.pool.getconn(1.0))
        if conn.status.name != "IDLE" and conn.reason is None:
            handler.wrong.append(f"the handler was lent {conn!r}")
        drive(handler, handler.pool.putconn(conn))


def takes_and_keeps(handler: Handler) -> None:
    """Return it when the interrupted action is over."""
    with suppress(Waits):
        handler.kept = drive(handler, handler.pool.getconn(1.0))


def runs_a_block(handler: Handler) -> None:
    """Write something, which is committed at the end."""
    lease = handler.pool.connection(1.0)
    with suppress(Waits):
        conn = drive(handler, lease.__aenter__())
        before = conn.commits
        conn.execute("INSERT")
        drive(handler, lease.__aexit__(None, None, None))
        if conn.commits != before + 1:
            handler.wrong.append("a block ended without an error and has not committed")


def returns(handler: Handler) -> None:
    """Return what it held before."""
    drive(handler, handler.pool.putconn(handler.held))


def returns_from_a_transaction(handler: Handler) -> None:
    """Return what it held, which must be rolled back."""
    drive(handler, handler.pool.putconn(handler.held))


def closes(handler: Handler) -> None:
    """It need not see the end of it."""
    with suppress(Waits):
        drive(handler, handler.pool.close())


def passes_on(handler: Handler) -> None:
    """Return what the interrupted block has, and take it for itself."""
    for conn in handler.stage.shared:
        with suppress(ValueError, Waits):  # the block has ended, as good as
            drive(handler, handler.pool.putconn(conn))
            take_again(handler)


def ends_the_block(handler: Handler) -> None:
    """End the block whose connection is being returned, and take that for itself."""
    for lease in handler.stage.shared:
        if lease._conn is None or lease._conn._pool is None:  # else it would be returned after that
            drive(handler, lease.__aexit__(None, None, None))
            with suppress(Waits):
                take_again(handler)


def take_again(handler: Handler) -> None:
    """Take a connection that the interrupted code may have had before."""
    handler.kept = drive(handler, handler.pool.getconn(0))
    handler.lending = handler.kept._forebay_entry.lent_at


HANDLERS = (
    takes_and_returns, takes_and_keeps, runs_a_block, returns, returns_from_a_transaction, closes
)  # fmt: skip


# The tests -----------------------------------------------------------------------------------


def play(make: Scenario, does: Callable[[Handler], None], at: int | None) -> Any:
    """Run a handler at a place of a scenario; returns the places, or what is wrong then."""
    loop = Loop()
    runner = asyncio.new_event_loop()
    pool, *acts = runner.run_until_complete(make(loop))
    try:
        pool.timeout = 0.5
        handler = Handler(loop, pool, does)  # type: ignore[arg-type]
        if does in (returns, returns_from_a_transaction):
            conn = handler.lend_one_more()
            if does is returns_from_a_transaction:
                conn.execute("UPDATE")
            del conn
        results: list[Any] = []

        async def action() -> None:
            try:
                results.append(await acts.pop()())
            except PoolClosed:
                if pool._forebay.core.phase is not Phase.CLOSED:
                    raise
            except Exception as error:
                if not (does is takes_and_keeps and isinstance(error, PoolTimeout)):
                    handler.wrong.append(f"the action was ended by {error!r}")

        interrupter = Interrupter(at, handler)
        interrupter.run(lambda: runner.run_until_complete(action()))
        if at is None:
            return interrupter.order
        try:
            return runner.run_until_complete(afterwards(loop, handler, results, does))
        except Exception as error:
            return [*handler.wrong, f"the pool does not heal: {error!r}"]
    finally:
        with suppress(Exception):
            runner.run_until_complete(pool.close(0))
        runner.close()


async def afterwards(
    loop: Loop, handler: Handler, results: list[Any], does: Callable[[Handler], None]
) -> list[str]:
    """Let all end; returns what is wrong then."""
    pool = handler.pool
    if handler.kept is not None:
        if any(result is handler.kept for result in results):
            handler.wrong.append("a connection is lent twice")
        conn, handler.kept = handler.kept, None
        if handler.lending and conn._forebay_entry.lent_at is not handler.lending:
            handler.wrong.append("what the handler had was returned by somebody else")
        try:
            await pool.putconn(conn)
        except ValueError as error:
            handler.wrong.append(f"what the handler had is not its own: {error}")
        del conn
    results.clear()
    loop.driver.accept()
    await loop.settle(pool)
    wrong = [*handler.wrong]
    if does is closes and handler.phase is Phase.OPEN and not pool.closed:
        wrong.append("the pool is not closed")
    if handler.held is not None and not handler.has_come_back():
        wrong.append("what was returned has not come back")
    if pool.closed:
        await pool.close(0)
    await loop.settle(pool)
    return [*wrong, *ill(loop, pool)]


def ill(loop: Loop, pool: Any) -> Iterator[str]:
    """What is not as it should be when all is over."""
    core = pool._forebay.core
    yield from violations(core)
    for name in ("granted", "retiring", "waiting", "claims", "returned"):
        if getattr(core, name):
            yield f"{name} is not empty"
    kept = {entry.conn.number for entry in core.idle}
    if kept != loop.driver.sessions:
        yield f"sessions {loop.driver.sessions} live, and {kept} are idle"
    if core.phase is Phase.OPEN and len(kept) < core.settings.min_size:
        yield f"{len(kept)} are idle, fewer than {core.settings.min_size}"


def broken(does: Callable[[Handler], None], names: Any = SCENARIOS) -> list[str]:
    """What goes wrong where a handler runs at the places of the scenarios."""
    done: Counter[tuple[str, int]] = Counter()
    found: list[str] = []
    for name in names:
        play(SCENARIOS[name], does, None)  # fills what remembers
        for at, where in enumerate(play(SCENARIOS[name], does, None), 1):
            done[where] += 1
            if done[where] > 1 and not EVERY_OPCODE:
                continue
            wrong = play(SCENARIOS[name], does, at)
            if wrong:
                found.append(f"{name}: {where[0]}, opcode at {where[1]}: {'; '.join(wrong)}")
    return found


@pytest.mark.parametrize("does", HANDLERS, ids=lambda does: does.__name__)
def test_a_handler_may_use_an_async_pool_at_any_opcode(does: Callable[[Handler], None]) -> None:
    """It is served or refused at once, and then all goes on as if it had not been there."""
    found = broken(does)
    assert not found, "\n".join(found)


async def a_block_ends(loop: Loop) -> Any:
    """Set up a block whose connection the handler knows."""
    pool = await loop.pool(min_size=1)

    async def act() -> None:
        async with pool.connection() as conn:
            loop.shared.append(conn)

    return pool, act


async def a_connection_is_returned_inside_its_block(loop: Loop) -> Any:
    """Set up a return, while the handler has the lease."""
    pool = await loop.pool(min_size=1)
    lease = pool.connection()
    loop.shared.append(lease)
    lent = [await lease.__aenter__()]
    return pool, lambda: pool.putconn(lent.pop())


def passed_on(make: Scenario, does: Callable[[Handler], None]) -> list[str]:
    """What goes wrong where a handler returns what is being returned, and takes it again."""
    return [
        f"{where[0]}, opcode at {where[1]}: {'; '.join(wrong)}"
        for at, where in enumerate(play(make, closes, None), 1)
        if (wrong := play(make, does, at))
    ]


@pytest.mark.skipif(EVERY_OPCODE, reason="between a test and a store no handler runs")
def test_what_is_returned_twice_is_not_taken_from_its_next_holder() -> None:
    """By a handler in the midst of it: a return names the lending that it ends."""
    found = passed_on(a_block_ends, passes_on)
    found += passed_on(a_connection_is_returned_inside_its_block, ends_the_block)
    assert not found, "\n".join(found)


# That the old mistakes are found --------------------------------------------------------------


def test_an_async_pool_that_does_not_know_that_it_is_inside_is_found() -> None:
    """It enters transitions that are half done."""
    with mock.patch.object(Asyncio, "inside", return_value=False):
        assert broken(takes_and_returns, ["a_worker_cannot_connect"])
        assert broken(closes, ["a_client_waits_for_a_new_connection"])


def test_a_return_to_an_async_pool_that_is_taken_inside_a_transition_is_found() -> None:
    """It moves what the transition is looking at."""

    def at_once(
        core: Core,
        entry: Any,
        conn: Any,
        now: float,
        lending: float,
        token: Any = None,
        *,
        clean: bool = True,
    ) -> Any:
        return core._give_back(entry, conn, now, lending, token, clean)

    with mock.patch.object(Core, "give_back", at_once):
        assert broken(returns, ["a_client_returns_a_lost_connection"])


def test_a_return_to_an_async_pool_that_names_no_lending_is_found() -> None:
    """It returns what is lent to somebody else by then."""
    checkin = Core.checkin

    def nameless(core: Core, entry: Any, conn: Any, now: float, _: float, *token: Any) -> Any:
        return checkin(core, entry, conn, now, entry.lent_at, *token)

    with mock.patch.object(Core, "checkin", nameless):
        assert passed_on(a_connection_is_returned_inside_its_block, ends_the_block)
