"""In a class that users derive from every name is theirs: a pool takes none but public ones."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import dataclass, field
from typing import Any

import pytest

from forebay import _core, _door, _flows, _thread_door, _threads, psycopg2_pool
from forebay.errors import PoolTimeoutMixin

from .both import FLAVOURS, door_of
from .door import Door, eventually, settled, stat

#: What a pool and its parts have been known to call their own, and what the originals do.
USED_TO_BE_TAKEN = (
    *("_acquire", "_begin", "_bounds", "_core", "_flows", "_guard", "_guarded", "_lock", "_loop"),
    *("_name", "_now", "_null", "_open", "_parts", "_pool", "_quick", "_report", "_reset", "_run"),
    *("_runtime", "_driver", "_stats", "_stranger", "_swift", "_thread", "_timeout", "_unclean"),
    *("_used", "_waiting", "_sched", "_tasks", "_workers", "_nconns", "_growing", "_conninfo"),
    *("_configure", "_check", "_reconnect_failed", "_return_connection", "_add_connection"),
    *("_pool_full_event", "_max_size", "_min_size", "_kwargs", "_source", "_implicitly_open"),
    *("_getconn", "_putconn", "_closeall", "_rused", "_keys", "_patched", "_own", "_kind"),
)


def private_names() -> list[str]:
    """The names above, and all that the modules below the doors use of `self`."""
    names = set(USED_TO_BE_TAKEN)
    for module in (_core, _door, _flows, _thread_door, _threads):
        for thing in vars(module).values():
            if isinstance(thing, type) and thing.__module__.startswith("forebay"):
                names |= {name for name in vars(thing) if name.startswith("_")}
                names |= set(getattr(thing, "__slots__", ()))
    return sorted(
        name
        for name in names
        if name.startswith("_")
        and not name.startswith(("__", "_forebay"))
        and name not in HAVE_A_MEANING
    )


#: Names of the originals' that a subclass may override, since they mean something.
HAVE_A_MEANING = ("_connect", "_resolve_conninfo", "_resolve_kwargs")

NAMES = private_names()


@pytest.fixture(params=FLAVOURS)
def door(request: pytest.FixtureRequest, dsn: str) -> Door:
    """A pool of each flavour."""
    return door_of(request.param, dsn)


async def works(door: Door, pool: Any) -> None:
    """Do with a pool all that one can do, from `open()` to `close()`."""
    await door(pool.open)
    await door(pool.wait)
    async with door.using(pool.connection()) as conn:
        await door.pid(conn)
        with pytest.raises(PoolTimeoutMixin):
            await door(pool.getconn, timeout=0.01)
    with pytest.raises(ZeroDivisionError):
        await fail_inside(door, pool)
    conn = await door(pool.getconn)
    await door(conn.cursor().execute, "select 1")  # comes back in a transaction
    await door(pool.putconn, conn)
    conn = await door(pool.getconn)
    await door(conn.close)
    await door(pool.putconn, conn)
    await settled(pool, pool_available=1)
    await door(pool.check)
    await door(pool.drain)
    await settled(pool, pool_available=1)
    await door(pool.resize, 2, 3)
    await settled(pool, pool_available=2)
    assert stat(pool, "returns_bad") == 1
    assert repr(pool)
    pool.pop_stats()
    pool.max_idle = 20.0
    pool.record_lines = True
    await door((await door(pool.connect)).close)
    await door(pool.close)
    assert pool.closed


async def fail_inside(door: Door, pool: Any) -> None:
    """Raise in a block that has begun a transaction."""
    async with door.using(pool.connection()) as conn:
        await door(conn.cursor().execute, "select 1")
        raise ZeroDivisionError


def with_callbacks(door: Door) -> dict[str, Any]:
    """The options by which a pool has most to do."""

    async def nothing(*_: Any) -> None:
        pass

    callback = door.callback(nothing)
    return {"configure": callback, "reset": callback, "min_size": 1, "max_size": 1}


class Mine:
    """What a subclass uses for itself; to touch it is an error."""

    def __init__(self, name: str) -> None:
        self.name = name

    def refuse(self, *_: object, **__: object) -> Any:
        raise AssertionError(f"the pool has used {self.name!r}, which is its subclass's")

    __call__ = __enter__ = __exit__ = __getattr__ = __bool__ = __len__ = refuse


@pytest.mark.parametrize("options", [{}, None], ids=["plain", "callbacks"])
async def test_attributes_set_after_the_constructor_are_the_subclasss(
    door: Door, options: dict[str, Any] | None
) -> None:
    """Any private name may be assigned when the pool has been made; it works, and keeps them."""
    mine = {name: Mine(name) for name in NAMES}

    class Pool(door.pool_class):  # type: ignore[misc,name-defined]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            for name in NAMES:
                setattr(self, name, mine[name])

    options = {"min_size": 1, "max_size": 1} if options is not None else with_callbacks(door)
    pool = door.make(pool_class=Pool, **options)
    await works(door, pool)
    assert {name: getattr(pool, name) for name in NAMES} == mine


async def test_attributes_set_before_the_constructor_are_the_subclasss(door: Door) -> None:
    """They may be there before `super().__init__()`, which leaves them alone."""
    mine = {name: Mine(name) for name in NAMES}

    class Pool(door.pool_class):  # type: ignore[misc,name-defined]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            for name in NAMES:
                setattr(self, name, mine[name])
            super().__init__(*args, **kwargs)

    pool = door.make(pool_class=Pool, min_size=1, max_size=1)
    await works(door, pool)
    assert {name: getattr(pool, name) for name in NAMES} == mine


@pytest.mark.parametrize("options", [{}, None], ids=["plain", "callbacks"])
async def test_attributes_of_the_class_are_the_subclasss(
    door: Door, options: dict[str, Any] | None
) -> None:
    """Nor is one looked up that the class has: data, and what can be called."""
    members = {name: Mine(name) for name in NAMES}
    pool_class = type("Pool", (door.pool_class,), dict(members))
    options = {"min_size": 1, "max_size": 1} if options is not None else with_callbacks(door)
    await works(door, door.make(pool_class=pool_class, **options))


async def test_methods_and_properties_of_the_class_are_the_subclasss(door: Door) -> None:
    """Methods and read-only properties by any private name are neither called nor assigned."""

    def method(name: str) -> Any:
        def refuse(*_: Any, **__: Any) -> Any:
            raise AssertionError(f"the pool has called {name!r}, which is its subclass's")

        return refuse

    for kind in (method, lambda name: property(method(name))):
        pool_class = type("Pool", (door.pool_class,), {name: kind(name) for name in NAMES})
        await works(door, door.make(pool_class=pool_class, min_size=1, max_size=1))


async def test_a_pool_has_one_private_attribute(door: Door) -> None:
    """All of its own is behind one name, whatever it was used for, and what users add stays."""
    pool = door.make(min_size=1, max_size=1)
    await works(door, pool)
    pool._mine = 1
    own = {name for name in vars(pool) if name.startswith("_")}
    assert own == {"_forebay", "_mine"}


async def test_a_dataclass_may_be_a_pool(door: Door) -> None:
    """@dataclass takes away the hash and compares by value: the pool does not rely on either."""

    @dataclass
    class Pool(door.pool_class):  # type: ignore[misc,name-defined]
        dsn: str
        labels: list[str] = field(default_factory=list)

        def __post_init__(self) -> None:
            super().__init__(self.dsn, min_size=1, max_size=1, open=False)

    first, second = Pool(door.dsn), Pool(door.dsn)
    assert first == second
    with pytest.raises(TypeError, match="unhashable"):
        hash(first)
    for pool in (first, second):
        await works(door, pool)


async def test_pools_that_are_equal_are_not_taken_for_each_other(door: Door) -> None:
    """Without a hash, and equal to anything: a connection still goes back to its own pool."""

    class Pool(door.pool_class):  # type: ignore[misc,name-defined]
        def __eq__(self, _other: object) -> bool:
            return True

        __hash__ = None  # type: ignore[assignment]

    first, second = [await door.open(pool_class=Pool, min_size=1) for _ in range(2)]
    conn = await door(first.getconn)
    with pytest.raises(ValueError, match="was lent by pool"):
        await door(second.putconn, conn)
    await door(first.putconn, conn)
    await settled(first, pool_available=1)


async def test_an_eq_that_raises_is_not_asked(door: Door) -> None:
    """Nor is a comparison made that a subclass forbids."""

    class Pool(door.pool_class):  # type: ignore[misc,name-defined]
        def __eq__(self, _other: object) -> bool:
            raise AssertionError("compared")

        def __hash__(self) -> int:
            raise AssertionError("hashed")

    await works(door, door.make(pool_class=Pool, min_size=1, max_size=1))


async def test_a_subclass_may_lock_around_the_pools_methods(door: Door) -> None:
    """`with self._lock:` around getconn(), as the originals' subclasses do, blocks nobody."""
    if door.is_async:

        class Pool(door.pool_class):  # type: ignore[misc,name-defined]
            async def getconn(self, timeout: float | None = None) -> Any:
                async with self._lock:
                    return await super().getconn(timeout)

            async def putconn(self, conn: Any) -> None:
                async with self._lock:
                    await super().putconn(conn)

    else:

        class Pool(door.pool_class):  # type: ignore[misc,name-defined,no-redef]
            def getconn(self, timeout: float | None = None) -> Any:
                with self._lock:
                    return super().getconn(timeout)

            def putconn(self, conn: Any) -> None:
                with self._lock:
                    super().putconn(conn)

    # As many as there are clients: who waits for a connection keeps the lock.
    pool = await door.open(pool_class=Pool, min_size=1, max_size=4)

    async def client() -> None:
        for _ in range(5):
            async with door.using(pool.connection(timeout=5)) as conn:
                await door.pid(conn)

    await asyncio.gather(*(client() for _ in range(4)))


async def test_a_lock_of_the_users_keeps_no_worker_out(dsn: str) -> None:
    """Who holds `pool._lock` for long stops neither the growth of the pool nor maintenance."""
    door = Door("sync", dsn)
    pool = await door.open(min_size=1)
    held, go_on = threading.Event(), threading.Event()

    def hold() -> None:
        with pool._lock:
            held.set()
            go_on.wait(20)

    holder = threading.Thread(target=hold)
    holder.start()
    try:
        assert held.wait(5)
        await door(pool.resize, 3, 3)
        await settled(pool, pool_available=3)
        await door(pool.drain)
        async with door.using(pool.connection(timeout=5)) as conn:
            await door.pid(conn)
    finally:
        go_on.set()
        holder.join()
        await door.end()


async def test_opened_and_closed_answer(door: Door) -> None:
    """`_opened` and `_closed` say what they say in the original, through the pool's life."""
    pool = door.make(min_size=1)
    assert (pool._opened, pool._closed) == (False, True)
    await door(pool.open)
    assert (pool._opened, pool._closed) == (True, False)
    await door(pool.close)
    assert (pool._opened, pool._closed) == (True, True)


def test_a_psycopg2_pool_leaves_a_subclass_its_names(dsn: str) -> None:
    """The drop-in for `psycopg2_pool` takes no private name either."""
    pool = psycopg2_pool.ConnectionPool(minconn=1, maxconn=2, dsn=dsn)
    try:
        names = {name for name in vars(pool) if name.startswith("_")} - {"_forebay"}
    finally:
        pool.clear()
    assert not names


async def test_a_pool_with_names_of_its_own_closes_by_its_finalizer(door: Door) -> None:
    """Dropped without close(), it is found to be gone: nothing of the user's is in the way."""
    threads = set(threading.enumerate())
    mine = {name: Mine(name) for name in NAMES}

    async def scope() -> None:
        pool = door.pool_class(door.dsn, min_size=1, max_size=1, open=False)
        vars(pool).update(mine)
        await door(pool.open)
        await door(pool.wait)
        if door.is_async:
            await door(pool.close)

    await scope()
    await eventually(
        lambda: not {t for t in set(threading.enumerate()) - threads if "pool-" in t.name}
    )
