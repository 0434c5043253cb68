"""What forebay.psycopg2_pool adds to the released contract: the seed's reading, and offers."""

from __future__ import annotations

import gc
import logging
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg2
import pytest
from psycopg2.extensions import STATUS_READY, connection

import forebay.psycopg2_pool
from forebay.psycopg2_pool import (
    ConnectionPool,
    PoolError,
    ThreadedConnectionPool,
    ThreadSafeConnectionPool,
)

from .harness import Admin, one


@pytest.fixture
def make(dsn: str) -> Iterator[Callable[..., Any]]:
    """Make pools, which are closed after the test."""
    made: list[ConnectionPool] = []

    def pool(minconn: int = 1, maxconn: float = 10, **options: Any) -> ConnectionPool:
        made.append(ThreadedConnectionPool(minconn, maxconn, **{"dsn": dsn, **options}))
        return made[-1]

    yield pool
    for each in made:
        each.close()


def session(conn: Any) -> int:
    """Which session a connection is; asks nobody, so it is no use of it."""
    number: int = conn.info.backend_pid
    return number


def in_thread(function: Callable[[], Any]) -> Any:
    """What a function gives in another thread."""
    with ThreadPoolExecutor(1) as threads:
        return threads.submit(function).result()


def offer(pool: ConnectionPool) -> Any:
    """Give a connection that is on offer, and still referred to."""
    with pool.getconn() as conn:
        conn.cursor().execute("select 1")
    return conn


# The seed's reading ----------------------------------------------------------------------------


def test_both_readings_have_their_names() -> None:
    """The threaded class has two names; the error is one of psycopg2's."""
    assert ThreadSafeConnectionPool is ThreadedConnectionPool
    assert issubclass(ThreadedConnectionPool, ConnectionPool)
    assert issubclass(PoolError, psycopg2.OperationalError)
    assert {*forebay.psycopg2_pool.__all__} == {
        "ConnectionPool",
        "PoolError",
        "ThreadSafeConnectionPool",
        "ThreadedConnectionPool",
    }


def test_it_needs_no_psycopg_3() -> None:
    """Which is installed with Forebay, but cannot be imported where libpq is missing."""
    program = "import sys; sys.modules['psycopg'] = None; import forebay.psycopg2_pool"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_the_exhausted_pool_says_so(make: Callable[..., Any]) -> None:
    """A connection that is lent again counts, too, which the original forgets.

    The text has the original's words, and those by which programs may have known Forebay.
    """
    pool = make(maxconn=1)
    pool.putconn(pool.getconn())
    kept = pool.getconn()
    with pytest.raises(PoolError, match=r"no more connections in the pool .* 1 of maxconn=1") as e:
        pool.getconn()
    assert "connection pool exhausted" in str(e.value)
    assert [*pool.connections_in_use] == [kept]


def test_a_block_commits_and_gives_back(make: Callable[..., Any]) -> None:
    """`with pool.getconn() as conn:` is all that a client needs."""
    pool = make(maxconn=1)
    with pool.getconn() as conn:
        assert conn in pool.connections_in_use
        conn.cursor().execute("create temp table offers as select 1")
    assert conn in pool.idle_connections
    assert conn not in pool.connections_in_use
    assert len(pool.idle_connections) == 1
    conn.rollback()
    assert one(conn, "select * from offers") == 1


def test_a_block_that_raises_rolls_back_and_gives_back(make: Callable[..., Any]) -> None:
    """The exception goes on unchanged."""
    pool = make()
    conn = pool.getconn()
    with pytest.raises(psycopg2.errors.DivisionByZero), conn:
        one(conn, "create temp table never as select 1; select 1 / 0")
    assert conn in pool.idle_connections
    assert one(conn, "select to_regclass('never')") is None


def test_blocks_in_functions_use_one_session(make: Callable[..., Any]) -> None:
    """When nothing refers to the connection any more, it is lent as it is."""
    pool = make(maxconn=1)

    def work() -> int:
        with pool.getconn() as conn:
            return session(conn)

    assert len({work() for _ in range(20)}) == 1


def test_blocks_in_a_loop_use_two_sessions(make: Callable[..., Any]) -> None:
    """The name of the last block's connection still refers to it when the next one begins."""
    pool = make()
    seen = set()
    for _ in range(20):
        with pool.getconn() as conn:
            seen.add(session(conn))
    assert len(seen) == 2


def test_blocks_in_a_loop_work_with_one_connection(make: Callable[..., Any]) -> None:
    """The last one is closed for the next, which is a new session, and no error."""
    pool = make(maxconn=1)
    seen = []
    for _ in range(3):
        with pool.getconn() as conn:
            seen.append(session(conn))
    assert len(set(seen)) == 3
    for _ in range(3):
        with pool.getconn() as conn:
            seen.append(session(conn))
        del conn
    assert len(set(seen)) == 4


def test_a_closed_pool_gives_nothing(make: Callable[..., Any]) -> None:
    """Closing again is harmless."""
    pool = make()
    pool.close()
    pool.close()
    with pytest.raises(PoolError, match="closed"):
        pool.getconn()


def test_close_closes_everything(make: Callable[..., Any]) -> None:
    """Idle, on offer, lent, in a block; what is returned afterwards is taken."""
    pool = make(minconn=4, maxconn=4)
    offered, lent, idle = offer(pool), pool.getconn(), pool.idle_connections[0]
    with pytest.raises(psycopg2.InterfaceError), pool.getconn() as inside:
        pool.close()
    assert all(conn.closed for conn in (offered, lent, idle, inside))
    for conn in (offered, lent, inside):
        pool.putconn(conn)
    assert len(pool.idle_connections) == len(pool.connections_in_use) == 0


# On offer --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "use",
    [
        lambda conn: conn.cursor(),
        lambda conn: conn.commit(),
        lambda conn: conn.rollback(),
        lambda conn: conn.set_session(readonly=True),
        lambda conn: setattr(conn, "autocommit", True),
    ],
    ids=["cursor", "commit", "rollback", "set_session", "autocommit"],
)
def test_a_use_takes_it_back(make: Callable[..., Any], use: Callable[[Any], Any]) -> None:
    """The holder has it again, until it is returned."""
    pool = make(maxconn=1)
    conn = offer(pool)
    assert conn in pool.idle_connections
    use(conn)
    assert conn in pool.connections_in_use
    assert conn not in pool.idle_connections
    with pytest.raises(PoolError, match="no more connections"):
        pool.getconn()
    pool.putconn(conn)
    assert pool.getconn() is conn


def test_another_block_takes_it_back(make: Callable[..., Any]) -> None:
    """It is on offer again at the end of that block."""
    pool = make(maxconn=1)
    conn = offer(pool)
    with conn as same:
        assert same is conn
        assert conn in pool.connections_in_use
        with pytest.raises(PoolError, match="no more connections"):
            pool.getconn()
    assert conn in pool.idle_connections


def test_a_look_does_not_take_it_back(make: Callable[..., Any]) -> None:
    """What does nothing to the session is no use."""
    pool = make()
    conn = offer(pool)
    assert not conn.closed
    assert not conn.autocommit
    assert conn.info.backend_pid
    assert repr(conn)
    assert isinstance(conn, connection)
    assert conn in pool.idle_connections


def test_a_return_after_the_block_is_harmless(make: Callable[..., Any]) -> None:
    """It ends the offer: the connection is idle, and lent first, whoever refers to it."""
    pool = make()
    conn = offer(pool)
    pool.putconn(conn)
    assert [*pool.idle_connections] == [conn]
    assert pool.getconn() is conn


def test_a_return_within_the_block_waits_for_its_end(make: Callable[..., Any]) -> None:
    """It rolls back; nobody gets the connection while the block still has it."""
    pool = make(maxconn=1)
    with pool.getconn() as conn:
        conn.cursor().execute("create temp table never (number int)")
        pool.putconn(conn)
        with pytest.raises(PoolError):
            pool.getconn()
        assert one(conn, "select to_regclass('never')") is None
    assert conn in pool.idle_connections


def test_others_are_lent_before_it(make: Callable[..., Any]) -> None:
    """First what is idle, then what is new; its holder does not notice."""
    pool = make(minconn=2, maxconn=3)
    conn = offer(pool)
    others = [pool.getconn() for _ in range(2)]
    assert conn not in others
    with conn:
        conn.cursor().execute("select 1")
    assert not conn.closed


def test_the_pool_takes_it_at_maxconn(make: Callable[..., Any]) -> None:
    """The session is closed: the next client's is another one, which the holder cannot touch."""
    pool = make(maxconn=1)
    conn = offer(pool)
    other = pool.getconn()
    assert other is not conn
    assert conn.closed
    for use in ("cursor", "commit", "rollback", "set_session"):
        with pytest.raises(PoolError, match="at the end of its `with` block"):
            getattr(conn, use)()
    with pytest.raises(PoolError, match="at the end of its `with` block"), conn:
        pass
    conn.close()
    pool.putconn(conn)
    other.cursor().execute("select 1")
    assert [*pool.connections_in_use] == [other]


def test_another_thread_gets_another_session(make: Callable[..., Any]) -> None:
    """The rule knows no threads: a connection may be handed from one to another."""
    pool = make(maxconn=1)
    conn = offer(pool)
    other = in_thread(pool.getconn)
    with pytest.raises(PoolError):
        conn.cursor()
    other.cursor().execute("select 1")
    in_thread(lambda: other.cursor().execute("select 1"))


def test_it_may_be_taken_back_in_another_thread(make: Callable[..., Any]) -> None:
    """Whoever refers to it is its holder."""
    pool = make(maxconn=1)
    conn = offer(pool)
    in_thread(lambda: conn.cursor().execute("select 1"))
    assert conn in pool.connections_in_use


def test_the_longest_on_offer_is_taken_first(make: Callable[..., Any]) -> None:
    """At maxconn, with two on offer."""
    pool = make(maxconn=2)
    first = offer(pool)
    second = offer(pool)
    kept = pool.getconn()
    assert (bool(first.closed), bool(second.closed)) == (True, False)
    assert kept not in (first, second)


def test_a_cursor_keeps_it_from_being_lent(make: Callable[..., Any]) -> None:
    """A cursor refers to its connection as well as a name does."""
    pool = make(maxconn=2)
    conn = pool.getconn()
    cursor = conn.cursor()
    with conn:
        pass
    del conn
    other = pool.getconn()
    cursor.execute("select pg_backend_pid()")
    assert cursor.fetchone() != (session(other),)


def test_a_transaction_of_an_old_cursor_is_its_holders(make: Callable[..., Any]) -> None:
    """A cursor uses the session without asking: the pool sees it, and leaves it alone."""
    pool = make(maxconn=1)
    conn = pool.getconn()
    cursor = conn.cursor()
    with conn:
        pass
    cursor.execute("select 1")
    with pytest.raises(PoolError, match="no more connections"):
        pool.getconn()
    assert conn in pool.connections_in_use
    conn.commit()
    pool.putconn(conn)
    assert pool.getconn() is conn


def test_an_old_cursor_of_a_taken_session_fails(make: Callable[..., Any]) -> None:
    """It never reaches the next client's."""
    pool = make(maxconn=1)
    conn = pool.getconn()
    cursor = conn.cursor()
    with conn:
        pass
    other = pool.getconn()
    with pytest.raises(psycopg2.InterfaceError, match="closed"):
        cursor.execute("select 1")
    assert not other.closed


def test_a_transaction_that_was_forgotten_on_offer_is_rolled_back(make: Callable[..., Any]) -> None:
    """A cursor's, whose connection nobody can use any more."""
    pool = make(maxconn=1)
    conn = pool.getconn()
    cursor = conn.cursor()
    with conn:
        pass
    cursor.execute("create temp table never (number int)")
    del conn, cursor
    conn = pool.getconn()
    assert one(conn, "select to_regclass('never')") is None


def test_a_reference_cycle_does_not_strand_it(make: Callable[..., Any]) -> None:
    """Until the cycle is collected the pool takes it as one that is still referred to."""
    pool = make(maxconn=1)
    conn = offer(pool)
    cycle: list[Any] = [conn]
    cycle.append(cycle)
    before = session(conn)
    del conn, cycle
    gc.collect()
    assert session(pool.getconn()) == before


def test_clear_closes_what_is_on_offer(make: Callable[..., Any]) -> None:
    """It is idle; a later use says what has happened."""
    pool = make()
    conn = offer(pool)
    pool.clear()
    assert conn.closed
    with pytest.raises(PoolError, match="at the end of its `with` block"):
        conn.cursor()
    pool.putconn(conn)
    assert not pool.getconn().closed


def test_clear_spares_a_transaction_of_an_old_cursor(make: Callable[..., Any]) -> None:
    """The connection has been taken back by it, although nobody has told the pool."""
    pool = make()
    conn = pool.getconn()
    cursor = conn.cursor()
    with conn:
        pass
    cursor.execute("select 1")
    pool.clear()
    assert cursor.fetchone() == (1,)
    assert conn in pool.connections_in_use


def test_time_does_not_end_an_offer(make: Callable[..., Any]) -> None:
    """While its holder can use it, it is not closed for being idle; afterwards it is."""
    pool = make(minconn=0)
    conn = offer(pool)
    other = pool.getconn()
    pool.return_times[conn] -= 601
    pool.putconn(other)
    assert not conn.closed
    assert pool.idle_connections[0] is conn
    before = session(conn)
    del conn
    pool.putconn(pool.getconn())
    assert [session(idle) for idle in pool.idle_connections] == [session(other)] != [before]


def test_a_broken_connection_is_not_offered(make: Callable[..., Any], admin: Admin) -> None:
    """Its slot is free at the end of the block, and a return is harmless."""
    pool = make(maxconn=1)
    conn = pool.getconn()
    admin.kill(session(conn))
    with pytest.raises(psycopg2.Error), conn:
        one(conn, "select 1")
    assert len(pool.idle_connections) == len(pool.connections_in_use) == 0
    with pytest.raises(PoolError, match="at the end of its `with` block"):
        conn.cursor()
    pool.putconn(conn)
    assert len(pool.idle_connections) == 0
    assert not pool.getconn().closed


# Factories -------------------------------------------------------------------------------------


def test_a_factory_class_keeps_its_own_block(make: Callable[..., Any]) -> None:
    """What the class does at the end of a block is done before the offer."""
    ends = []

    class Connection(connection):
        def __exit__(self, *exc: Any) -> None:  # noqa: PYI036
            super().__exit__(*exc)
            ends.append(self in pool.connections_in_use)

    pool = make(connection_factory=Connection)
    conn = offer(pool)
    assert ends == [True]
    assert isinstance(conn, Connection)
    assert type(conn).__name__ == "Connection"
    assert conn in pool.idle_connections


class Final(connection):
    """A class that refuses to be derived from, and to be given attributes."""

    __slots__ = ()

    def __init_subclass__(cls) -> None:
        raise TypeError("this class is final")


class Roomy(connection):
    """A class that refuses to be derived from, whose connections take attributes."""

    def __init_subclass__(cls) -> None:
        raise TypeError("this class is final")


@pytest.mark.parametrize(
    "factory",
    [Final, Roomy, lambda dsn: connection(dsn), lambda dsn: Roomy(dsn)],
    ids=["final", "final with room", "function", "function of a final class"],
)
def test_a_factory_that_cannot_be_extended_has_the_released_reading(
    make: Callable[..., Any], factory: Any
) -> None:
    """A block ends a transaction only; everything else is as ever."""
    pool = make(maxconn=2, connection_factory=factory)
    conn = pool.getconn()
    assert type(conn) in (Final, Roomy, connection)
    with conn:
        conn.cursor().execute("select 1")
    assert conn in pool.connections_in_use
    other = pool.getconn()
    with pytest.raises(PoolError, match="no more connections"):
        pool.getconn()
    conn.cursor().execute("select 1")
    pool.putconn(conn)
    assert [*pool.idle_connections] == [conn]
    assert pool.getconn() is conn
    other.close()
    pool.putconn(other)
    with pytest.raises(PoolError, match="returned already"):
        pool.putconn(other)
    conn = None
    gc.collect()
    assert not pool.getconn().closed


# Mistakes --------------------------------------------------------------------------------------


def test_a_connection_is_returned_once(make: Callable[..., Any]) -> None:
    """The original would have it twice, and lend it to two clients."""
    pool = make()
    conn = pool.getconn()
    pool.putconn(conn)
    with pytest.raises(PoolError, match="returned already"):
        pool.putconn(conn)
    assert [*pool.idle_connections] == [conn]


@pytest.mark.parametrize("stranger", ["none", "own", "other pool"])
def test_a_stranger_is_refused(make: Callable[..., Any], dsn: str, stranger: str) -> None:
    """The original takes it in."""
    pool = make()
    if stranger == "other pool":
        pool_of_stranger = make()
        conn = pool_of_stranger.getconn()
    else:
        conn = None if stranger == "none" else psycopg2.connect(dsn)
    with pytest.raises(PoolError, match="has not lent it"):
        pool.putconn(conn)
    assert len(pool.idle_connections) == 1


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        ({"minconn": -1}, "minconn must be a number, not negative, not -1"),
        ({"minconn": 3, "maxconn": 2}, "maxconn must be at least minconn, 3, not 2"),
        ({"maxconn": None}, "maxconn must be a number, not negative, not None"),
    ],
)
def test_sizes_that_make_no_pool_are_refused(
    make: Callable[..., Any], sizes: dict[str, Any], said: str
) -> None:
    """The error says what was given."""
    with pytest.raises(ValueError, match=said):
        make(**sizes)


def test_a_time_of_return_needs_an_idle_connection(make: Callable[..., Any]) -> None:
    """Assigning one to a lent connection is a KeyError; all may be assigned at once."""
    pool = make(minconn=2)
    conn = pool.getconn()
    with pytest.raises(KeyError):
        pool.return_times[conn] = 0.0
    (idle,) = pool.idle_connections
    pool.return_times = {idle: 1.0}
    assert dict(pool.return_times) == {idle: 1.0}


def test_an_assigned_time_of_return_counts_for_the_order(make: Callable[..., Any]) -> None:
    """What came back last is lent first, and what is too old is closed, wherever it was."""
    pool = make(minconn=3)
    first, second, third = pool.idle_connections
    pool.return_times[third] = pool.return_times[first] - 1
    assert [*pool.idle_connections] == [third, first, second]
    pool.return_times[first] -= 601
    used = pool.getconn()
    assert used is second
    pool.putconn(used)
    assert (bool(first.closed), bool(third.closed)) == (True, False)


def test_views_are_live(make: Callable[..., Any]) -> None:
    """A view taken before shows what is there now; sets can be combined."""
    pool = make(minconn=2)
    idle, used, times = pool.idle_connections, pool.connections_in_use, pool.return_times
    conn = pool.getconn()
    assert (len(idle), len(used), len(times)) == (1, 1, 1)
    assert used & {conn} == {conn} == used - set(idle)
    assert repr(conn) in repr(used)
    assert repr(idle[0]) in repr(idle)
    assert repr(idle[0]) in repr(times)


# Trouble ---------------------------------------------------------------------------------------


def test_a_refill_that_fails_is_logged_and_tried_again(
    make: Callable[..., Any], dsn: str, refusing_dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The original raises it from putconn(), which has done its work."""
    pool = make()
    conn = pool.getconn()
    conn.close()
    pool.connect_kwargs = {"dsn": refusing_dsn}
    with caplog.at_level(logging.INFO, "forebay"):
        pool.putconn(conn)
    assert "error connecting" in caplog.text
    assert len(pool.idle_connections) == 0
    pool.connect_kwargs = {"dsn": dsn}
    pool.putconn(pool.getconn())
    assert len(pool.idle_connections) == 1


def test_a_transaction_left_on_an_idle_connection_is_not_lent(make: Callable[..., Any]) -> None:
    """By someone who used a connection after its return."""
    pool = make()
    conn = pool.getconn()
    pool.putconn(conn)
    conn.cursor().execute("create temp table never (number int)")
    again = pool.getconn()
    assert again is conn
    assert one(again, "select to_regclass('never')") is None


def test_a_commit_behind_psycopg2s_back_is_cleaned_up(make: Callable[..., Any]) -> None:
    """psycopg2 believes in a transaction still, and would begin none for the next client."""
    pool = make()
    conn = pool.getconn()
    conn.cursor().execute("select 1")
    conn.cursor().execute("commit")
    pool.putconn(conn)
    assert pool.getconn() is conn
    assert conn.status == STATUS_READY


def test_a_lent_connection_that_was_closed_makes_room(make: Callable[..., Any]) -> None:
    """Whether it is returned or not."""
    pool = make(maxconn=1)
    conn = pool.getconn()
    conn.close()
    other = pool.getconn()
    pool.putconn(conn)
    assert [*pool.connections_in_use] == [other]
    assert len(pool.idle_connections) == 0


def test_a_skipped_connection_is_no_more_the_pools(make: Callable[..., Any]) -> None:
    """One that was closed while it was idle, and that somebody returns later."""
    pool = make()
    (conn,) = pool.idle_connections
    conn.close()
    kept = pool.getconn()
    with pytest.raises(PoolError, match="returned already"):
        pool.putconn(conn)
    assert [*pool.connections_in_use] == [kept]


def test_many_broken_idle_connections_are_skipped(make: Callable[..., Any]) -> None:
    """However many they are, one call gets past them."""
    pool = make(minconn=20, maxconn=20)
    for conn in pool.idle_connections:
        conn.close()
    assert not pool.getconn().closed
    assert len(pool.idle_connections) == 0


def test_a_lower_maxconn_closes_what_is_too_much(make: Callable[..., Any]) -> None:
    """Idle connections now, lent ones when they come back."""
    pool = make(minconn=0, maxconn=4)
    conns = [pool.getconn() for _ in range(4)]
    pool.putconn(conns.pop())
    pool.putconn(conns.pop())
    pool.maxconn = 1
    assert len(pool.idle_connections) == 0
    pool.putconn(conns.pop())
    with conns.pop():
        pass
    assert len(pool.idle_connections) == 1
    kept = pool.getconn()
    with pytest.raises(PoolError, match="no more connections"):
        pool.getconn()
    assert not kept.closed


def test_clients_that_open_side_by_side_all_get_a_connection(make: Callable[..., Any]) -> None:
    """Who opens first may serve another that came before; nobody is told that all are in use."""
    pool = make(minconn=0, maxconn=16)
    together = threading.Barrier(16)

    def client(_: int) -> Any:
        together.wait()
        return pool.getconn()

    with ThreadPoolExecutor(16) as threads:
        got = [*threads.map(client, range(16))]
    assert len({session(conn) for conn in got}) == 16
