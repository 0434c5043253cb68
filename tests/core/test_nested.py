"""A signal handler, or a finalizer, uses the pool anywhere in every transition, door and effect.

It ends without waiting for the thread it interrupts; what it was given is its own, a block that
ended without an error has committed, and what it returned has come back.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any
from unittest import mock

import pytest
from psycopg import OperationalError

from forebay import PoolClosed, PoolTimeout, TooManyRequests
from forebay._core import ALL, INSIDE, Core, Phase
from forebay._entry import LENT, Effects, Entry, Held
from forebay._threads import Threads
from forebay.testing import FakeConnection, FakeDriver

from .one_thread import RLock, Stage
from .opcodes import EVERY_OPCODE, Interrupter
from .test_interrupts import SCENARIOS, Scenario, _quiet, filled, heal

pytestmark = pytest.mark.prove

__all__ = ["_quiet"]  # a fixture

#: How often a place is interrupted, in scenarios that differ.
TIMES = 2


class Counted(FakeConnection):
    """Knows how often a transaction was committed on it."""

    commits = 0

    def __exit__(self, exc_type: type[BaseException] | None, *rest: Any) -> None:  # noqa: PYI036
        self.commits += exc_type is None
        super().__exit__(exc_type, *rest)


class CountingDriver(FakeDriver):
    """Makes such connections."""

    async def connect(self, *_: Any) -> Any:
        """Make a connection, or raise what `refuse()` was given."""
        conn = await super().connect()
        conn.__class__ = Counted
        return conn


class Handler:
    """What runs at the place; notes what was wrong there, and what must be true in the end."""

    def __init__(self, stage: Stage, pool: Any, does: Callable[[Handler], None]) -> None:
        self.stage, self.pool, self._does = stage, pool, does
        self.held: Any = None  # a connection that it has had since before
        self.lending = 0.0  # and the lending of it
        self.kept: Any = None  # one that it takes, and keeps
        self.phase = Phase.NEW  # of the pool, when it began
        self.wrong: list[str] = []

    def __call__(self) -> None:
        """Run, as a signal handler that lets nothing out."""
        runtime = self.pool._forebay.flows.runtime
        core = self.pool._forebay.core
        inside, self.phase = runtime.inside(core), core.phase
        self.stage.handling = True
        try:
            self._does(self)
        except PoolTimeout as error:
            if inside and error.kind != "nested":
                self.wrong.append(f"the handler was refused by {error.kind}: {error}")
        except PoolClosed:
            if core.phase is Phase.OPEN:
                self.wrong.append("the handler was refused by an open pool as closed")
        except OperationalError:
            pass  # the session was lost before, and nobody knew
        except BaseException as error:
            if inside or not isinstance(error, TooManyRequests):
                self.wrong.append(f"the handler was ended by {error!r}")
        finally:
            self.stage.handling = False

    def lend_one_more(self) -> Any:
        """Make the pool larger by a connection that the handler holds from the beginning."""
        core, driver = self.pool._forebay.core, self.stage.driver
        entry, conn = Entry(), Counted(driver, next(driver._numbers))
        entry.ordered, entry.place = False, LENT
        entry.opened_at = entry.idle_since = entry.lent_at = self.stage.clock.now()
        entry.ref = Held.watch(conn, entry, core.lost)
        core.tie(entry)
        driver.adopt(conn, entry)
        conn._pool = self.pool
        core.entries[entry] = None
        core.settings.max_size += 1
        core.target += core.keep == ALL
        self.held, self.lending = conn, entry.lent_at
        return conn

    def has_come_back(self) -> bool:
        """Whether what it held is with nobody else, or closed; in a closed pool to drop it ends."""
        conn, self.held = self.held, None
        entry = conn._forebay_entry
        closed = conn.number not in self.stage.driver.sessions
        ended = entry.place is not LENT or entry.lent_at is not self.lending
        return closed or ended or self.pool._forebay.core.phase is Phase.CLOSED


def takes_and_returns(handler: Handler) -> None:
    """Work without a block."""
    conn = handler.pool.getconn(1.0)
    if conn.status.name != "IDLE" and conn.reason is None:
        handler.wrong.append(f"the handler was lent {conn!r}")
    handler.pool.putconn(conn)


def takes_and_keeps(handler: Handler) -> None:
    """Return it when the interrupted action is over."""
    handler.kept = handler.pool.getconn(1.0)


def runs_a_block(handler: Handler) -> None:
    """Write something, which is committed at the end."""
    seen: list[Any] = []
    try:
        with handler.pool.connection(1.0) as conn:
            seen.append((conn, conn.commits))
            conn.execute("INSERT")
    except PoolTimeout:
        if seen:
            handler.wrong.append("a block had begun and was refused")
        raise
    ((conn, before),) = seen
    if conn.commits != before + 1:
        handler.wrong.append("a block ended without an error and has not committed")


def returns(handler: Handler) -> None:
    """Return what it held before."""
    handler.pool.putconn(handler.held)


def returns_from_a_transaction(handler: Handler) -> None:
    """Return what it held, which must be rolled back."""
    handler.pool.putconn(handler.held)


def passes_on(handler: Handler) -> None:
    """Return what the interrupted block has, and take it for itself."""
    for conn in handler.stage.shared:
        with suppress(ValueError):  # the block has ended, as good as
            handler.pool.putconn(conn)
            take_again(handler)


def ends_the_block(handler: Handler) -> None:
    """End the block whose connection is being returned, and take that for itself."""
    for lease in handler.stage.shared:
        if lease._conn is None or lease._conn._pool is None:  # else it would be returned after that
            lease.__exit__(None, None, None)
            take_again(handler)


def take_again(handler: Handler) -> None:
    """Take a connection that the interrupted code may have had before."""
    handler.kept = handler.pool.getconn(0)
    handler.lending = handler.kept._forebay_entry.lent_at


def closes(handler: Handler) -> None:
    """As the handler of SIGTERM may."""
    handler.pool.close()


HANDLERS = [
    takes_and_returns, takes_and_keeps, runs_a_block, returns, returns_from_a_transaction, closes
]  # fmt: skip
RETURNING = (returns, returns_from_a_transaction)


def prepare(
    make: Scenario, does: Callable[[Handler], None]
) -> tuple[Stage, Handler, Callable[[], object]]:
    """Set a scenario up for a handler."""
    stage = Stage()
    stage.driver = CountingDriver()
    with stage.set():
        pool, act = make(stage)
    pool.timeout = 5.0
    handler = Handler(stage, pool, does)
    if does in RETURNING and pool._forebay.core.phase is not Phase.NEW:
        conn = handler.lend_one_more()
        if does is returns_from_a_transaction:
            conn.execute("UPDATE")
    return stage, handler, act


def places(make: Scenario, does: Callable[[Handler], None]) -> list[tuple[str, int]]:
    """Where a scenario can be interrupted, in order."""
    stage, handler, act = prepare(make, does)
    interrupter = Interrupter()
    if does in RETURNING and handler.held is None:
        return []  # the pool is not open yet: nothing was lent
    with stage.set():
        interrupter.run(act)
    return interrupter.order


def nest(make: Scenario, does: Callable[[Handler], None], at: int) -> list[str]:
    """Run a handler at a place of a scenario, let all end; returns what is wrong then."""
    stage, handler, *acts = prepare(make, does)
    results: list[Any] = []

    def action() -> None:
        try:
            results.append(acts.pop()())
        except PoolClosed:
            if handler.pool._forebay.core.phase is not Phase.CLOSED:
                raise
        except Exception as error:
            if not (does is takes_and_keeps and isinstance(error, PoolTimeout)):
                handler.wrong.append(f"the action was ended by {error!r}")

    with stage.set():
        Interrupter(at, handler).run(action)
        if handler.kept is not None:
            if any(result is handler.kept for result in results):
                handler.wrong.append("a connection is lent twice")
            conn, handler.kept = handler.kept, None
            if handler.lending and conn._forebay_entry.lent_at is not handler.lending:
                handler.wrong.append("what the handler had was returned by somebody else")
            try:
                handler.pool.putconn(conn)
            except ValueError as error:
                handler.wrong.append(f"what the handler had is not its own: {error}")
            del conn
        results.clear()
        stage.meanwhile = []
        stage.driver.accept()
        stage.settle(handler.pool)
        return [*handler.wrong, *_afterwards(stage, handler, does)]


def _afterwards(stage: Stage, handler: Handler, does: Callable[[Handler], None]) -> Iterator[str]:
    pool = handler.pool
    if does is closes and handler.phase is Phase.OPEN and not pool.closed:
        yield "the pool is not closed"
    if handler.held is not None and not handler.has_come_back():
        yield "what was returned has not come back"
    yield from heal(stage, pool)


def broken(does: Callable[[Handler], None], names: Any = SCENARIOS) -> list[str]:
    """What goes wrong where a handler runs at the places of the scenarios."""
    done: Counter[tuple[str, int]] = Counter()
    found: list[str] = []
    for name in names:
        make = SCENARIOS[name]
        places(make, does)  # fills what remembers
        for at, where in enumerate(places(make, does), 1):
            done[where] += 1
            if done[where] > TIMES and not EVERY_OPCODE:
                continue
            wrong = nest(make, does, at)
            if wrong:
                found.append(f"{name}: {where[0]}, opcode at {where[1]}: {'; '.join(wrong)}")
    return found


@pytest.mark.parametrize("does", HANDLERS, ids=lambda does: does.__name__)
def test_a_handler_may_use_the_pool_at_any_opcode(does: Callable[[Handler], None]) -> None:
    """It is served or refused at once, and then all goes on as if it had not been there.

    At each place at least in two scenarios; with FOREBAY_EVERY_OPCODE set, at each opcode of all.
    """
    found = broken(does)
    assert not found, "\n".join(found)


def a_block_ends(stage: Stage) -> Any:
    """Set up a block whose connection the handler knows."""
    pool = filled(stage, min_size=1)

    def act() -> None:
        with pool.connection() as conn:
            stage.shared.append(conn)

    return pool, act


def a_connection_is_returned_inside_its_block(stage: Stage) -> Any:
    """Set up a return, while the handler has the lease."""
    pool = filled(stage, min_size=1)
    lease = pool.connection()
    stage.shared.append(lease)
    lent = [lease.__enter__()]
    return pool, lambda: pool.putconn(lent.pop())


def passed_on(make: Scenario, does: Callable[[Handler], None]) -> list[str]:
    """What goes wrong where a handler returns what is being returned, and takes it again."""
    return [
        f"{where[0]}, opcode at {where[1]}: {'; '.join(wrong)}"
        for at, where in enumerate(places(make, closes), 1)
        if (wrong := nest(make, does, at))
    ]


@pytest.mark.skipif(EVERY_OPCODE, reason="between a test and a store no handler runs")
def test_what_is_returned_twice_is_not_taken_from_its_next_holder() -> None:
    """By a handler in the midst of it: a return names the lending that it ends."""
    found = passed_on(a_block_ends, passes_on)
    found += passed_on(a_connection_is_returned_inside_its_block, ends_the_block)
    assert not found, "\n".join(found)


# That the old mistakes are found --------------------------------------------------------------


def test_a_pool_that_does_not_know_that_its_thread_is_inside_is_found() -> None:
    """It enters transitions that are half done, or waits for its own thread."""
    with mock.patch.object(Threads, "inside", return_value=False):
        assert broken(takes_and_returns, ["a_client_waits_for_a_return"])
        assert broken(runs_a_block, ["a_client_waits_for_a_return"])
        assert broken(closes, ["a_client_waits_for_a_new_connection"])


def test_a_return_inside_a_transition_that_is_taken_at_once_is_found() -> None:
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
        assert broken(returns, ["a_pool_is_maintained", "a_client_waits_for_a_return"])


def test_a_return_inside_a_transition_that_is_dropped_is_found() -> None:
    """Silently: as if to drop the connection were to return it."""

    def dropping(core: Core, *args: Any, **options: Any) -> Effects:
        return Effects() if core.ready is INSIDE else give_back(core, *args, **options)

    give_back = Core.give_back
    with mock.patch.object(Core, "give_back", dropping):
        assert broken(returns, ["a_client_waits_for_a_return"])


def test_a_return_that_names_no_lending_is_found() -> None:
    """It returns what is lent to somebody else by then."""
    checkin = Core.checkin

    def nameless(core: Core, entry: Entry, conn: Any, now: float, _: float, *token: Any) -> Any:
        return checkin(core, entry, conn, now, entry.lent_at, *token)

    with mock.patch.object(Core, "checkin", nameless):
        assert passed_on(a_connection_is_returned_inside_its_block, ends_the_block)


def test_a_lock_that_its_own_thread_waits_for_is_found() -> None:
    """A lane's, or the pool's."""
    with mock.patch.object(RLock, "reentrant", False):
        assert broken(returns, ["a_client_takes_an_idle_connection"])
