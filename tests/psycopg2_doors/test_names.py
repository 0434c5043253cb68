"""What programs do with the drop-ins as classes: they derive, override, and name things."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import psycopg2
import psycopg2.pool
import psycopg2_pool
import pytest

import forebay.psycopg2.pool
import forebay.psycopg2_pool

from .harness import one

OLD = pytest.mark.parametrize(
    "module", [psycopg2.pool, forebay.psycopg2.pool], ids=lambda module: module.__name__
)
NEW = pytest.mark.parametrize(
    "module", [psycopg2_pool, forebay.psycopg2_pool], ids=lambda module: module.__name__
)


@pytest.fixture
def closing() -> Iterator[Callable[[Any], Any]]:
    """Give a function that returns what it is given, and has it closed after the test."""
    pools: list[Any] = []

    def keep(pool: Any) -> Any:
        pools.append(pool)
        return pool

    yield keep
    for pool in pools:
        (pool.closeall if hasattr(pool, "closeall") else pool.clear)()


# psycopg2.pool -----------------------------------------------------------------------------------


@OLD
def test_a_subclass_may_have_options_named_as_forebays_own(
    module: Any, dsn2: str, closing: Any
) -> None:
    """`timeout`, for one, which must not make an exhausted pool wait."""

    class Mine(module.ThreadedConnectionPool):  # type: ignore[misc]
        def __init__(self, *args: Any) -> None:
            self.timeout = 30
            self.name = self.check = self.max_waiting = self.max_lifetime = "mine"
            super().__init__(*args)
            assert (self.timeout, self.name, self.check) == (30, "mine", "mine")
            assert (self.max_waiting, self.max_lifetime) == ("mine", "mine")

    pool = closing(Mine(1, 1, dsn2))
    conn = pool.getconn()
    with pytest.raises(psycopg2.Error, match=r"^connection pool exhausted$"):
        pool.getconn()
    pool.putconn(conn)


@OLD
def test_sizes_may_be_set_before_the_pool_is_made(module: Any, dsn2: str, closing: Any) -> None:
    """As plain attributes may."""

    class Mine(module.SimpleConnectionPool):  # type: ignore[misc]
        def __init__(self, dsn: str) -> None:
            self.minconn, self.maxconn = 1, 2
            super().__init__(self.minconn, self.maxconn, dsn)

    pool = closing(Mine(dsn2))
    assert (pool.minconn, pool.maxconn) == (1, 2)
    conns = [pool.getconn(), pool.getconn()]
    with pytest.raises(module.PoolError):
        pool.getconn()
    pool.maxconn, pool.minconn = 3, 0
    pool.getconn()
    pool.putconn(conns.pop())
    assert conns[0].closed == 0


@OLD
def test_a_subclass_may_be_a_dataclass(module: Any, dsn2: str, closing: Any) -> None:
    """Whose fields have no defaults, also those that are named as the pool's attributes."""

    @dataclass(eq=False)
    class Mine(module.ThreadedConnectionPool):  # type: ignore[misc]
        minconn: int
        maxconn: int
        dsn: str
        timeout: float = 30

        def __post_init__(self) -> None:
            super().__init__(self.minconn, self.maxconn, self.dsn)

    pool = closing(Mine(1, 1, dsn2))
    conn = pool.getconn()
    assert one(conn, "select 1") == 1
    with pytest.raises(module.PoolError, match=r"^connection pool exhausted$"):
        pool.getconn()


@OLD
def test_connect_may_be_overridden_and_call_the_original(
    module: Any, dsn2: str, closing: Any
) -> None:
    """With the key that it was given, or none."""
    prepared: list[Any] = []

    class Mine(module.ThreadedConnectionPool):  # type: ignore[misc]
        def _connect(self, key: Any = None) -> Any:
            conn = super()._connect(key)
            prepared.append(conn)
            return conn

    pool = closing(Mine(1, 2, dsn2))
    conns = [pool.getconn(), pool.getconn("a key")]
    assert conns == prepared
    assert pool.getconn("a key") is conns[1]
    for conn, key in zip(conns, (None, "a key"), strict=True):
        pool.putconn(conn, key)


def test_connect_may_be_overridden_and_connect_by_itself(dsn2: str, closing: Any) -> None:
    """Without a class of the pool's: the connections are lent all the same."""

    class Mine(forebay.psycopg2.pool.ThreadedConnectionPool):
        def _connect(self, key: Any = None) -> Any:
            del key
            return psycopg2.connect(dsn2)

    pool = closing(Mine(1, 2))
    for _ in range(3):
        conns = [pool.getconn(), pool.getconn("a key")]
        assert [one(conn, "select 1") for conn in conns] == [1, 1]
        pool.putconn(conns[1], "a key")
        pool.putconn(conns[0])
        with pytest.raises(forebay.psycopg2.pool.PoolError):
            pool.putconn(conns[0])


# psycopg2_pool -----------------------------------------------------------------------------------


@NEW
def test_connect_of_the_other_drop_in_may_be_overridden(
    module: Any, dsn2: str, closing: Any
) -> None:
    """And prepare what the original gives, or connect by itself."""
    prepared: list[Any] = []

    class Preparing(module.ConnectionPool):  # type: ignore[misc]
        def _connect(self, for_immediate_use: bool = False) -> Any:
            conn = super()._connect(for_immediate_use)
            prepared.append(conn)
            return conn

    class Connecting(module.ConnectionPool):  # type: ignore[misc]
        def _connect(self, for_immediate_use: bool = False) -> Any:
            conn = psycopg2.connect(**self.connect_kwargs)
            if for_immediate_use:
                self.connections_in_use.add(conn)
            else:
                self.return_times[conn] = 0
                self.idle_connections.append(conn)
            return conn

    pool = closing(Preparing(minconn=1, maxconn=2, dsn=dsn2))
    assert [pool.getconn(), pool.getconn()] == prepared
    pool = closing(Connecting(minconn=0, maxconn=1, dsn=dsn2))
    conn = pool.getconn()
    assert one(conn, "select 1") == 1
    assert conn in pool.connections_in_use
    pool.putconn(conn)
    assert pool.getconn() is conn


@NEW
def test_a_subclass_of_the_other_drop_in_may_lock(module: Any, dsn2: str, closing: Any) -> None:
    """By the public name; the constructor calls no method that it overrides."""
    calls: list[str] = []

    class Mine(module.ThreadSafeConnectionPool):  # type: ignore[misc]
        def getconn(self) -> Any:
            calls.append("getconn")
            with self.lock, self.lock:
                return super().getconn()

    pool = closing(Mine(minconn=1, maxconn=1, dsn=dsn2))
    assert calls == []
    assert one(pool.getconn(), "select 1") == 1


@NEW
def test_the_attributes_of_the_other_drop_in_may_be_fields(
    module: Any, dsn2: str, closing: Any
) -> None:
    """Of a dataclass, and set before the pool is made."""

    @dataclass(eq=False)
    class Mine(module.ConnectionPool):  # type: ignore[misc]
        minconn: int
        maxconn: float
        dsn: str

        def __post_init__(self) -> None:
            super().__init__(self.minconn, self.maxconn, dsn=self.dsn)

    pool = closing(Mine(0, 1, dsn2))
    conn = pool.getconn()
    with pytest.raises(module.PoolError, match="connection pool exhausted"):
        pool.getconn()
    pool.maxconn = 2
    pool.putconn(pool.getconn())
    pool.putconn(conn)
    pool.connect_kwargs = {"dsn": f"{dsn2} application_name=another"}
    pool.clear()
    assert one(pool.getconn(), "show application_name") == "another"


# Names of the originals that programs look at -----------------------------------------------------


@OLD
def test_monitoring_by_private_names_is_told_the_truth(
    module: Any, dsn2: str, closing: Any
) -> None:
    """How many are lent, with and without a key, and how many are idle."""
    pool = closing(module.ThreadedConnectionPool(2, 4, dsn2))
    assert (len(pool._used), len(pool._rused), len(pool._pool)) == (0, 0, 2)
    plain, keyed = pool.getconn(), pool.getconn("a key")
    assert (len(pool._used), len(pool._rused), len(pool._pool)) == (2, 2, 0)
    assert "a key" in pool._used
    assert pool._used["a key"] is keyed
    assert pool._rused[id(keyed)] == "a key"
    assert pool._used[pool._rused[id(plain)]] is plain
    assert {id(conn) for conn in pool._used.values()} == {id(plain), id(keyed)}
    pool.putconn(plain)
    assert [*pool._pool] == [plain]
    assert plain in pool._pool
    assert [*pool._used] == ["a key"]


@OLD
def test_a_subclass_may_use_the_lock_that_it_inherits(module: Any, dsn2: str, closing: Any) -> None:
    """Around the private methods, as the original's own public ones do; nobody waits for it."""

    class Mine(module.ThreadedConnectionPool):  # type: ignore[misc]
        def getconn(self, key: Any = None) -> Any:
            with self._lock:
                return self._getconn(key)

        def putconn(self, conn: Any = None, key: Any = None, close: bool = False) -> None:
            with self._lock:
                self._putconn(conn, key, close)

        def closeall(self) -> None:
            with self._lock:
                self._closeall()

    pool = closing(Mine(1, 2, dsn2))
    for key in (None, "a key"):
        conn = pool.getconn(key)
        assert one(conn, "select 1") == 1
        pool.putconn(conn, key)
    assert not pool._lock.locked()


@OLD
def test_a_connect_after_the_originals_does_its_own_book_keeping(
    module: Any, dsn2: str, closing: Any
) -> None:
    """In the pool's lists; what it connects by may be assigned."""

    class Mine(module.ThreadedConnectionPool):  # type: ignore[misc]
        def _connect(self, key: Any = None) -> Any:
            self._kwargs = {"application_name": "mine"}
            connect: Any = psycopg2.connect
            conn = connect(*self._args, **self._kwargs)
            if key is None:
                self._pool.append(conn)
            else:
                self._used[key] = conn
                self._rused[id(conn)] = key
            return conn

    pool = closing(Mine(1, 2, dsn2))
    for _ in range(2):
        conns = [pool.getconn(), pool.getconn()]
        assert [one(conn, "show application_name") for conn in conns] == ["mine", "mine"]
        with pytest.raises(module.PoolError, match="exhausted"):
            pool.getconn()
        for conn in conns:
            pool.putconn(conn)


@OLD
def test_a_dataclass_that_can_be_compared_has_no_hash(module: Any, dsn2: str, closing: Any) -> None:
    """And is a pool all the same; two of them may be equal."""

    @dataclass
    class Mine(module.ThreadedConnectionPool):  # type: ignore[misc]
        minconn: int
        maxconn: int
        dsn: str

        def __post_init__(self) -> None:
            super().__init__(self.minconn, self.maxconn, self.dsn)

    one_pool, other = closing(Mine(1, 1, dsn2)), closing(Mine(1, 1, dsn2))
    assert one_pool == other
    conn = one_pool.getconn()
    with pytest.raises(module.PoolError):
        other.putconn(conn)
    one_pool.putconn(conn)
    assert one(one_pool.getconn(), "select 1") == 1


@pytest.mark.parametrize(
    "kind",
    [
        forebay.psycopg2.pool.ThreadedConnectionPool,
        forebay.psycopg2.pool.PersistentConnectionPool,
        forebay.psycopg2_pool.ThreadSafeConnectionPool,
    ],
)
def test_what_is_not_the_originals_has_one_private_name(kind: Any, dsn2: str, closing: Any) -> None:
    """All others are for subclasses: they may stand for anything."""
    names = ("_core", "_flows", "_now", "_offers", "_keys", "_ended", "_guarded", "_maintain")

    class Mine(kind):  # type: ignore[misc]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            for name in (*names, "_acquire", "_fill", "_collect", "_closing", "_settle"):
                setattr(self, name, None)
            super().__init__(*args, **kwargs)

    pool = closing(Mine(minconn=1, maxconn=1, dsn=dsn2))
    for _ in range(3):
        pool.putconn(pool.getconn())
    assert {name: getattr(pool, name) for name in names} == dict.fromkeys(names)


def test_a_lease_that_is_dropped_leaves_its_thread_no_connection(dsn2: str, closing: Any) -> None:
    """Which the pool lends to others by then."""
    pool = closing(forebay.psycopg2.pool.PersistentConnectionPool(1, 1, dsn2))

    def begin() -> Any:
        lease = pool.connection()
        return lease, lease.__enter__()

    lease, conn = begin()
    del lease
    pool._forebay.maintain()
    assert conn in pool._pool
    assert pool.getconn() is conn
    assert len(pool._used) == 1


def test_a_lease_that_borrows_leaves_the_thread_its_connection(dsn2: str, closing: Any) -> None:
    """Also if it is dropped in its block."""
    pool = closing(forebay.psycopg2.pool.PersistentConnectionPool(1, 1, dsn2))
    mine = pool.getconn()
    lease = pool.connection()
    assert lease.__enter__() is mine
    del lease
    pool._forebay.maintain()
    assert pool.getconn() is mine
    assert not pool._pool
