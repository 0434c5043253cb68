"""What interrupts a thread in the middle of the pool: signal handlers, finalizers, generators.

Whatever they ask of the pool is done, or put off, or refused by an error: never half of it.
"""

from __future__ import annotations

import gc
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from itertools import count
from os import getpid
from typing import Any

import psycopg
import psycopg2.extensions
import pytest

from forebay import PoolTimeout
from forebay.errors import PoolClosedMixin
from tests.faults.strokes import Strokes

from .door import Admin, eventually, run_at_once, stat
from .flavours import ERRORS, FLAVOURS, Flavour, execute

# The other method uses the timer that is used here.
pytestmark = pytest.mark.timeout(60, method="thread")

_serial = count(1)

#: Seconds that a test may take where it ends when something has happened often enough.
LONG = 20.0


class Stroke(BaseException):
    """Raised by a signal handler, as `KeyboardInterrupt` is."""


@pytest.fixture
def application() -> str:
    """A name for the sessions of one test."""
    return f"signals-{next(_serial)}"


@pytest.fixture(params=FLAVOURS)
def flavour(request: pytest.FixtureRequest, dsn: str, application: str) -> Flavour:
    """Each of the pools for threads."""
    return Flavour(request.param, dsn, application)


@pytest.fixture
def pool(flavour: Flavour) -> Iterator[Any]:
    """An open pool of two connections."""
    made = flavour.make()
    yield made
    flavour.close(made)


@pytest.fixture(params=["block", "by_hand"])
def way(request: pytest.FixtureRequest, flavour: Flavour) -> Callable[[Any], Any]:
    """How a piece of work is put: as a block, or by `getconn()` and `putconn()`."""
    method: Callable[[Any], Any] = getattr(flavour, request.param)
    return method


class Ledger:
    """A table of numbers on the server, and what is in it."""

    def __init__(self, dsn: str) -> None:
        self.insert = f"insert into {(table := f'ledger_{getpid()}_{next(_serial)}')} values (%s)"
        self._table = table
        self._conn = psycopg.Connection.connect(dsn, autocommit=True)
        self._conn.execute(f"create unlogged table {table} (n int)")

    def numbers(self) -> set[int]:
        """What was committed."""
        return {n for (n,) in self._conn.execute(f"select n from {self._table}")}

    def close(self) -> None:
        """Remove the table."""
        self._conn.execute("set lock_timeout = '5s'")
        self._conn.execute(f"drop table {self._table}")
        self._conn.close()


@pytest.fixture
def ledger(dsn: str) -> Iterator[Ledger]:
    """An empty ledger."""
    made = Ledger(dsn)
    yield made
    made.close()


@pytest.fixture
def ignored(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What Python could not raise anywhere, and would have printed."""
    seen: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda args: seen.append((args.object, args)))
    return seen


def of_the_driver(ignored: list[Any]) -> int:
    """Take out what was lost in the finalizer of psycopg's own connections; how much that was."""
    theirs = [this for this in ignored if this[0] is psycopg.Connection.__del__]
    ignored[:] = [this for this in ignored if this not in theirs]
    return len(theirs)


def expect_whole(pool: Any, size: int = 2) -> None:
    """Its connections come back, and another thread is served: no lock is left taken."""
    run_at_once(eventually(lambda: lendable(pool) == size, pool))
    answers: list[object] = []

    def use() -> None:
        with pool.connection(timeout=10) as conn:
            answers.append(execute(conn, "select 1").fetchone())

    other = threading.Thread(target=use, daemon=True)
    other.start()
    other.join(15)
    assert answers == [(1,)]


def lendable(pool: Any) -> int:
    """How many connections are idle; what was dropped is looked for first."""
    pool.check()
    return stat(pool, "pool_available")


# Signal handlers -------------------------------------------------------------------------------


def test_a_block_in_a_signal_handler_that_ends_without_an_error_has_committed(
    flavour: Flavour, pool: Any, way: Callable[[Any], Any], ledger: Ledger
) -> None:
    """Wherever the signal strikes: the row is there, or the handler was told that it is not."""
    ended, refused = set[int](), list[BaseException]()

    def note(number: int) -> None:
        try:
            with way(pool) as conn:
                execute(conn, ledger.insert, number)
        except ERRORS as error:
            refused.append(error)
        else:
            ended.add(number)

    enough = 150 if flavour.keeps else 30
    with Strokes(note, 0.0004 if flavour.keeps else 0.004) as strokes:
        deadline = time.monotonic() + LONG
        while strokes.number <= enough and time.monotonic() < deadline:
            with way(pool):
                pass
    assert ledger.numbers() >= ended
    assert len(ended) > enough / 4
    assert {getattr(error, "kind", error) for error in refused} <= {"nested"}


def test_close_in_a_signal_handler_is_prompt(
    flavour: Flavour, way: Callable[[Any], Any], admin: Admin, application: str
) -> None:
    """It returns at once wherever it strikes; clients are refused, and no session stays open."""
    for _ in range(12 if flavour.keeps else 4):
        pool = flavour.make()
        took: list[float] = []
        refusal = closed_by_a_handler(flavour, pool, way, took)
        assert isinstance(refusal, PoolClosedMixin)
        assert took[0] < 0.9
        run_at_once(eventually(partial(getattr, pool, "closed"), pool))
    run_at_once(eventually(lambda: not admin.pids(application), application))


def closed_by_a_handler(
    flavour: Flavour, pool: Any, way: Callable[[Any], Any], took: list[float]
) -> BaseException | None:
    """Use a pool until a handler has closed it, and for a while; what its client gets."""

    def close(_number: int) -> None:
        if took:
            return
        started = time.monotonic()
        flavour.close(pool)
        took.append(time.monotonic() - started)

    deadline = time.monotonic() + LONG
    with Strokes(close, 0.0003):
        try:
            while time.monotonic() < deadline:
                with way(pool):
                    pass
        except ERRORS as error:
            return error
    return None


@pytest.mark.parametrize("unclean", [False, True], ids=["clean", "in-a-transaction"])
def test_a_connection_that_a_signal_handler_returns_is_idle_again(
    flavour: Flavour, pool: Any, unclean: bool, ledger: Ledger
) -> None:
    """Wherever it strikes: the place comes back, and what was not committed is undone."""
    held: list[Any] = []
    returned = count()

    def give_back(_number: int) -> None:
        if held:
            pool.putconn(held.pop())
            next(returned)

    enough = 100 if flavour.keeps else 20
    with Strokes(give_back):
        for _ in range(enough):
            conn = pool.getconn(timeout=10)
            if unclean:
                execute(conn, ledger.insert, 1)
            held.append(conn)
            del conn
            while held:
                with flavour.block(pool):
                    pass
    assert next(returned) == enough
    assert not ledger.numbers()
    if flavour.keeps:
        expect_whole(pool)
        assert stat(pool, "connections_num") == 2
    assert stat(pool, "requests_errors") == 0


def test_what_a_signal_handler_raises_reaches_the_program(
    flavour: Flavour, pool: Any, way: Callable[[Any], Any], ignored: list[Any]
) -> None:
    """None of it ends as "Exception ignored in"; the pool is whole, its lock is free."""
    raised = arrived = 0

    def strike(_number: int) -> None:
        nonlocal raised
        raised += 1
        raise Stroke

    enough = 120 if flavour.keeps else 20
    deadline = time.monotonic() + LONG
    for _ in range(enough):
        before = raised
        try:
            with Strokes(strike, 0.0003 if flavour.keeps else 0.002):
                while raised == before and time.monotonic() < deadline:
                    with way(pool):
                        pass
        except Stroke:
            arrived += 1
    lost = of_the_driver(ignored)
    assert ignored == []
    assert (raised, arrived) == (enough, enough - lost)
    assert lost < enough / 3
    gc.collect()
    expect_whole(pool, 2 if flavour.keeps else 0)
    assert ignored == []


def test_what_a_handler_raises_undoes_the_work_of_the_block(
    flavour: Flavour, pool: Any, ledger: Ledger
) -> None:
    """A block that was left by an exception has not committed, one that ended has."""
    ended = set[int]()

    def strike(_number: int) -> None:
        raise Stroke

    enough = 60 if flavour.keeps else 15
    for number in range(enough):
        try:
            with Strokes(strike, 0.0004):
                with flavour.block(pool) as conn:
                    execute(conn, ledger.insert, number)
                    while number % 3 == 0:
                        pass
                ended.add(number)
        except Stroke:
            pass
    assert not {number for number in ledger.numbers() if number % 3 == 0}
    assert ledger.numbers() >= ended
    expect_whole(pool, 2 if flavour.keeps else 0)


# Finalizers ------------------------------------------------------------------------------------


class Garbage:
    """A circle of references that does something when the collector finds it."""

    def __init__(self, last_act: Callable[[], None]) -> None:
        self.circle = self
        self._last_act = last_act

    def __del__(self) -> None:
        self._last_act()


@contextmanager
def often_collected() -> Iterator[Callable[[int], None]]:
    """Collect after few allocations; gives the way to say after how many."""
    thresholds = gc.get_threshold()
    gc.collect()
    gc.freeze()  # what is here already need not be looked at each time
    try:
        yield lambda allocations: gc.set_threshold(allocations, 1, 1)
    finally:
        gc.set_threshold(*thresholds)
        gc.unfreeze()
        gc.collect()


def play_garbage(pool: Any, act: Callable[[int], Callable[[], None]], rounds: int) -> None:
    """Use the pool while one piece of garbage after the other is collected, each elsewhere."""
    with often_collected() as collect_after:
        for number in range(rounds):
            last_act, gone = act(number), list[int]()

            def end(last_act: Callable[[], None] = last_act, gone: list[int] = gone) -> None:
                gone.append(1)
                last_act()

            # Some of the collector's strokes come after more than one use.
            collect_after(1 + number % 60)
            Garbage(end)
            del end, last_act
            for _ in range(300):
                with pool.connection(timeout=10):
                    pass
                if gone:
                    break
            else:
                gc.collect()


@pytest.fixture(params=[0.05, 0.0], ids=["at-once", "looked-at"])
def busy(request: pytest.FixtureRequest, dsn: str, application: str) -> Iterator[Any]:
    """A pool of two; one that looks at its connections makes more objects, so more is collected."""
    flavour = Flavour("ConnectionPool", dsn, application)
    made = flavour.make(bypass_window=request.param)
    yield made
    flavour.close(made)


def test_a_block_that_a_finalizer_ends_has_committed(
    busy: Any, ledger: Ledger, ignored: list[Any]
) -> None:
    """The block was begun by the program, its end is the collector's."""

    def begin(number: int) -> Callable[[], None]:
        stack = ExitStack()
        conn = stack.enter_context(busy.connection(timeout=10))
        execute(conn, ledger.insert, number)
        return stack.close

    play_garbage(busy, begin, 120)
    assert ignored == []
    expect_whole(busy)
    assert ledger.numbers() == set(range(120))
    assert stat(busy, "connections_num") == 2


@pytest.mark.parametrize("unclean", [False, True], ids=["clean", "in-a-transaction"])
def test_a_connection_that_a_finalizer_returns_is_idle_again(
    busy: Any, unclean: bool, ledger: Ledger, ignored: list[Any]
) -> None:
    """Its place comes back, and it is rolled back first."""

    def take(number: int) -> Callable[[], None]:
        conn = busy.getconn(timeout=10)
        if unclean:
            execute(conn, ledger.insert, number)
        return lambda: busy.putconn(conn)

    play_garbage(busy, take, 120)
    assert ignored == []
    expect_whole(busy)
    assert not ledger.numbers()
    assert stat(busy, "connections_num") == 2


def test_a_finalizer_that_asks_for_a_connection_is_served_or_refused(
    busy: Any, ledger: Ledger, ignored: list[Any]
) -> None:
    """It is refused at once where it struck in one of the pool's own steps, and told so."""
    ended, refused = set[int](), list[PoolTimeout]()

    def ask(number: int) -> Callable[[], None]:
        def last_act() -> None:
            try:
                with busy.connection() as conn:
                    execute(conn, ledger.insert, number)
            except PoolTimeout as error:
                refused.append(error)
            else:
                ended.add(number)

        return last_act

    started = time.monotonic()
    play_garbage(busy, ask, 120)
    assert ignored == []
    assert ledger.numbers() == ended
    assert len(ended) + len(refused) == 120
    assert {error.kind for error in refused} <= {"nested"}
    assert time.monotonic() - started < LONG
    expect_whole(busy)


def drop_block(
    pool: Any,
    statement: tuple[Any, ...] = (),
    before: Callable[[], None] = lambda: None,
    outcomes: list[BaseException | None] | None = None,
) -> None:
    """Begin a block that is garbage at once; a finalizer does something, then ends it."""
    stack = ExitStack()
    conn = stack.enter_context(pool.connection(timeout=10))
    if statement:
        execute(conn, *statement)

    def last_act() -> None:
        before()
        try:
            stack.close()
        except BaseException as error:
            (outcomes or []).append(error)

    Garbage(last_act)


def collect_block(pool: Any, *arguments: Any) -> None:
    """Begin a block that is garbage at once, and wait for its end; see `drop_block()`."""
    drop_block(pool, *arguments)
    gc.collect()


def elsewhere(function: Callable[[], Any]) -> None:
    """Call a function in another thread, and wait for it."""
    thread = threading.Thread(target=function)
    thread.start()
    thread.join(20)


def test_a_block_whose_end_a_finalizer_delays_is_not_taken_from_it(
    flavour: Flavour, ledger: Ledger, ignored: list[Any]
) -> None:
    """Maintenance takes a lease for dropped while its commit is under way."""
    base: Any = psycopg.Connection
    if flavour.name.startswith("psycopg2"):
        base = psycopg2.extensions.connection

    class Slow(base):  # type: ignore[misc]
        def commit(self) -> None:
            elsewhere(lender.check)
            super().commit()

    lender = flavour.make(connection_class=Slow)
    collect_block(lender, (ledger.insert, 1))
    assert ledger.numbers() == {1}
    expect_whole(lender, 2 if flavour.keeps else 0)
    assert ignored == []
    flavour.close(lender)


def test_a_block_that_a_finalizer_ends_too_late_ends_by_an_error(
    pool: Any, ledger: Ledger, ignored: list[Any]
) -> None:
    """Maintenance was there first, and has rolled back: the block cannot say it has committed."""
    outcomes: list[BaseException | None] = [None]
    collect_block(pool, (ledger.insert, 1), lambda: elsewhere(pool.check), outcomes)
    assert ledger.numbers() == set()
    assert "was dropped before it ended" in str(outcomes[-1])
    assert ignored == []


def test_a_connection_that_a_finalizer_gave_back_stays_with_its_next_holder(
    busy: Any, ledger: Ledger
) -> None:
    """What was said of its last lease does not hold for the next."""
    gc.disable()
    try:
        for _ in range(2):
            collect_block(busy)
    finally:
        gc.enable()
    with busy.connection() as one, busy.connection() as two:
        for conn in (one, two):
            execute(conn, ledger.insert, 1 if conn is one else 2)
        elsewhere(busy.check)
        assert (one._pool, two._pool, stat(busy, "pool_available")) == (busy, busy, 0)
    assert ledger.numbers() == {1, 2}
    busy.connection().__enter__()  # and the next lease that is dropped is noticed again
    expect_whole(busy)


def lose_in_circles(pool: Any, make: Callable[[int, list[Any]], Iterator[None]], n: int) -> None:
    """Begin `n` generators, each in a garbage cycle that is collected while the pool is in use."""
    with often_collected() as collect_after:
        for number in range(n):
            circle: list[Any] = []
            circle.append(make(number, circle))
            next(circle[0])
            collect_after(1 + number % 60)
            del circle
            for _ in range(5):
                with pool.connection(timeout=10):
                    pass
            gc.collect()


def test_a_generator_that_swallows_its_end_has_committed(
    busy: Any, ledger: Ledger, ignored: list[Any]
) -> None:
    """Closed by the collector, it ends its block without an error."""

    def writes(number: int, _circle: list[Any]) -> Iterator[None]:
        with busy.connection(timeout=10) as conn:
            execute(conn, ledger.insert, number)
            with suppress(GeneratorExit):
                yield

    lose_in_circles(busy, writes, 90)
    assert ignored == []
    assert ledger.numbers() == set(range(90))
    expect_whole(busy)


def test_a_generator_that_ends_by_its_close_has_rolled_back(
    busy: Any, ledger: Ledger, ignored: list[Any]
) -> None:
    """One that lets `GeneratorExit` out of its block ends it by an exception."""

    def writes(number: int, _circle: list[Any]) -> Iterator[None]:
        with busy.connection(timeout=10) as conn:
            execute(conn, ledger.insert, number)
            yield

    lose_in_circles(busy, writes, 60)
    assert ignored == []
    assert not ledger.numbers()
    expect_whole(busy)
    assert stat(busy, "connections_num") == 2
