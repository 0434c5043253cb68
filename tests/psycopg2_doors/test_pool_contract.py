"""REFERENCE 2: `psycopg2.pool`, played on the original and on `forebay.psycopg2.pool` alike."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import psycopg2
import psycopg2.pool
import pytest
from psycopg2.extensions import STATUS_READY, TRANSACTION_STATUS_IDLE
from psycopg2.extras import DictConnection

import forebay.psycopg2.pool

from .harness import Admin, eventually, one, pid

Make = Callable[..., Any]

BOTH = pytest.mark.parametrize(
    "library", [psycopg2.pool, forebay.psycopg2.pool], ids=["original", "forebay"]
)
CLASSES = pytest.mark.parametrize("kind", ["SimpleConnectionPool", "ThreadedConnectionPool"])
pytestmark = [BOTH, CLASSES]


@pytest.fixture
def make(library: ModuleType, kind: str, dsn2: str) -> Iterator[Make]:
    """Give a way to make pools, which are closed at the end."""
    pools: list[Any] = []

    def make(minconn: int, maxconn: int, *args: Any, base: Any = None, **kwargs: Any) -> Any:
        pool_class = base or getattr(library, kind)
        pools.append(pool_class(minconn, maxconn, *(args or (dsn2,)), **kwargs))
        return pools[-1]

    yield make
    for pool in pools:
        if not pool.closed:
            pool.closeall()


def test_minconn_connections_are_opened_by_the_constructor(
    make: Make, admin: Admin, application: str
) -> None:
    """They are there when the constructor returns, and no more."""
    pool = make(3, 5)
    assert len(admin.pids(application)) == 3
    assert (pool.minconn, pool.maxconn, bool(pool.closed)) == (3, 5, False)


def test_errors_of_connecting_leave_the_constructor(make: Make, refusing_dsn: str) -> None:
    """The caller gets psycopg2's own error."""
    with pytest.raises(psycopg2.OperationalError, match="refused"):
        make(1, 2, refusing_dsn)


def test_errors_of_connecting_leave_getconn(make: Make, refusing_dsn: str) -> None:
    """A connection that is opened on demand is opened by the caller, who gets the error."""
    pool = make(0, 2, refusing_dsn)
    for _ in range(3):
        with pytest.raises(psycopg2.OperationalError, match="refused"):
            pool.getconn()


def test_arguments_go_to_connect(make: Make, dsn2: str) -> None:
    """Positional and keyword arguments are those of psycopg2.connect()."""
    pool = make(1, 1, dsn2, connection_factory=DictConnection, options="-c work_mem=77kB")
    conn = pool.getconn()
    assert isinstance(conn, DictConnection)
    assert one(conn, "show work_mem") == "77kB"
    pool.putconn(conn)
    positional = make(1, 1, dsn2, DictConnection)
    conn = positional.getconn()
    assert isinstance(conn, DictConnection)
    positional.putconn(conn)


def test_the_last_returned_connection_is_lent_first(make: Make) -> None:
    """The idle connections are a stack."""
    pool = make(3, 3)
    lent = [pool.getconn() for _ in range(3)]
    for conn in lent:
        pool.putconn(conn)
    assert [pool.getconn() for _ in range(3)] == lent[::-1]


def test_new_connections_are_opened_up_to_maxconn(make: Make) -> None:
    """Then getconn() raises at once, until one comes back."""
    pool = make(1, 2)
    first, second = pool.getconn(), pool.getconn()
    assert pid(first) != pid(second)
    for _ in range(2):
        with pytest.raises(psycopg2.Error, match=r"^connection pool exhausted$") as caught:
            pool.getconn()
        assert type(caught.value).__name__ == "PoolError"
    pool.putconn(second)
    assert pool.getconn() is second


@pytest.mark.parametrize("key", [0, "", 7, ("a", 1)])
def test_a_key_in_use_gives_the_same_connection(make: Make, key: object) -> None:
    """Also key 0, and other keys that are false."""
    pool = make(1, 3)
    conn = pool.getconn(key)
    other = pool.getconn()
    assert pool.getconn(key) is conn
    assert pool.getconn(key=key) is conn
    assert other is not conn
    pool.putconn(conn, key)
    assert pool.getconn() is conn


def test_a_keyed_connection_counts_once(make: Make) -> None:
    """Asking again with a key in use works on an exhausted pool."""
    pool = make(1, 1)
    conn = pool.getconn("mine")
    assert pool.getconn("mine") is conn
    with pytest.raises(psycopg2.Error, match="exhausted"):
        pool.getconn("yours")
    pool.putconn(conn, key="mine")
    assert pool.getconn("yours") is conn


def test_a_keyed_connection_can_be_put_without_its_key(make: Make) -> None:
    """The pool knows the key."""
    pool = make(1, 1)
    conn = pool.getconn("mine")
    pool.putconn(conn)
    assert pool.getconn("yours") is conn


def test_the_pool_keeps_keyed_connections_alive(make: Make) -> None:
    """A program that keeps only the key finds its connection, with its transaction."""
    pool = make(1, 1)
    one(pool.getconn("mine"), "select set_config('a.b', 'kept', true)")
    assert one(pool.getconn("mine"), "select current_setting('a.b')") == "kept"


def test_a_stranger_is_refused(make: Make, dsn2: str) -> None:
    """Neither another library's connection nor one of another pool can be put."""
    pool, other = make(1, 1), make(1, 1)
    stranger = psycopg2.connect(dsn2)
    for conn in (stranger, other.getconn()):
        with pytest.raises(psycopg2.Error, match="trying to put unkeyed connection"):
            pool.putconn(conn)
        assert not conn.closed
    stranger.close()


def test_a_second_put_is_refused(make: Make) -> None:
    """A connection that was put is the pool's."""
    pool = make(1, 1)
    conn = pool.getconn()
    pool.putconn(conn)
    with pytest.raises(psycopg2.Error, match="trying to put unkeyed connection"):
        pool.putconn(conn)
    assert not conn.closed


def test_above_minconn_a_returned_connection_is_closed(
    make: Make, admin: Admin, application: str
) -> None:
    """The first `minconn` that come back are kept, the others closed."""
    pool = make(1, 3)
    first, second, third = (pool.getconn() for _ in range(3))
    for conn in (second, first, third):
        pool.putconn(conn)
    assert [bool(conn.closed) for conn in (first, second, third)] == [True, False, True]
    eventually(lambda: len(admin.pids(application)) == 1)
    assert pool.getconn() is second


def test_minconn_may_be_zero(make: Make) -> None:
    """Nothing is kept then."""
    pool = make(0, 1)
    conn = pool.getconn()
    pool.putconn(conn)
    assert conn.closed


def test_close_discards_the_connection(make: Make) -> None:
    """putconn(close=True) closes it, though it could be kept."""
    pool = make(2, 2)
    conn = pool.getconn()
    pool.putconn(conn, close=True)
    assert conn.closed
    assert pool.getconn() is not conn
    pool.getconn()


@pytest.mark.parametrize("statement", ["select 1", "select 1/0"])
def test_a_transaction_is_rolled_back_on_return(make: Make, statement: str) -> None:
    """An open transaction as well as a failed one: the connection is kept, and clean."""
    pool = make(1, 1)
    conn = pool.getconn()
    with conn.cursor() as cursor:
        cursor.execute("create temp table things (n int)")
        conn.commit()
        cursor.execute("insert into things values (1)")
        if statement == "select 1/0":
            with pytest.raises(psycopg2.DataError):
                cursor.execute(statement)
    pool.putconn(conn)
    assert conn.info.transaction_status == TRANSACTION_STATUS_IDLE
    assert conn.status == STATUS_READY
    assert pool.getconn() is conn
    assert one(conn, "select count(*) from things") == 0


def test_a_lost_connection_is_dropped_on_return(make: Make, admin: Admin) -> None:
    """Its place is free."""
    pool = make(1, 1)
    conn = pool.getconn()
    admin.kill(pid(conn))
    with pytest.raises(psycopg2.OperationalError):
        one(conn, "select 1")
    pool.putconn(conn)
    other = pool.getconn()
    assert other is not conn
    pid(other)


def test_a_connection_closed_by_its_holder_is_dropped_on_return(make: Make) -> None:
    """Its place is free."""
    pool = make(1, 1)
    conn = pool.getconn()
    conn.close()
    pool.putconn(conn)
    pid(pool.getconn())


def test_closeall_closes_all(make: Make, admin: Admin, application: str) -> None:
    """Also the connections in use, with a key or without."""
    pool = make(3, 3)
    lent = [pool.getconn(), pool.getconn("key")]
    pool.closeall()
    assert pool.closed
    assert all(conn.closed for conn in lent)
    eventually(lambda: not admin.pids(application))


def test_a_closed_pool_refuses_everything(make: Make) -> None:
    """getconn, putconn and closeall raise PoolError."""
    pool = make(1, 2)
    conn, keyed = pool.getconn(), pool.getconn(0)
    pool.closeall()
    for call in (
        pool.getconn,
        lambda: pool.getconn(0),
        lambda: pool.putconn(conn),
        lambda: pool.putconn(keyed, 0),
        lambda: pool.putconn(conn, close=True),
        pool.closeall,
    ):
        with pytest.raises(psycopg2.Error, match=r"^connection pool is closed$") as caught:
            call()
        assert type(caught.value).__name__ == "PoolError"


def test_minconn_and_maxconn_are_read_when_used(make: Make) -> None:
    """Programs assign them."""
    pool = make(1, 1)
    pool.maxconn = 3
    lent = [pool.getconn() for _ in range(3)]
    pool.minconn = 2
    for conn in lent:
        pool.putconn(conn)
    assert [bool(conn.closed) for conn in lent] == [False, False, True]


def test_a_subclass_configures_connections_in_connect(
    make: Make, library: ModuleType, kind: str
) -> None:
    """_connect() is where programs prepare new connections."""

    class Prepared(getattr(library, kind)):  # type: ignore[misc]
        def _connect(self, key: Any = None) -> Any:
            conn = super()._connect(key)
            conn.autocommit = True
            return conn

    pool = make(1, 2, base=Prepared)
    assert pool.getconn().autocommit
    assert pool.getconn().autocommit


def test_integers_may_be_given_as_text(make: Make) -> None:
    """Settings come from files."""
    pool = make("1", "2")
    assert (pool.minconn, pool.maxconn) == (1, 2)


def test_nothing_is_written_to_the_log(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    """To return a transaction, or a closed connection, is a habit that tells no news."""
    pool = make(1, 2)
    first, second = pool.getconn(), pool.getconn()
    one(first, "select 1")
    second.close()
    pool.putconn(first)
    pool.putconn(second)
    assert not [record for record in caplog.records if record.levelname != "DEBUG"]
