"""What the doors of threads and asyncio have in common, but for the waiting."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from itertools import count
from math import inf
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar, overload
from weakref import ref

from ._core import ALL, Core, Phase
from ._entry import Verdict
from ._flows import Flows
from ._fork import Inherited, register, renewed_core, renewed_flows
from ._locks import taking
from .options import OPTIONS, PoolOptions, Settings, complete

if TYPE_CHECKING:
    from ._asyncio import Asyncio
    from ._entry import Entry, Token
    from ._threads import Threads
    from .drivers import Driver
    from .errors import PoolTimeoutMixin

T = TypeVar("T")

_number = count(1)


#: Methods that programs and tests replace on a pool.
PATCHABLE = ("_connect", "getconn", "putconn")

#: Stands for the connection while a lease is being entered.
TAKEN = object()

#: A lease is of one block at a time.
ENTERED = (
    "this lease is entered already: `pool.connection()` makes one for each `with` block, and for"
    " each thread"
)

#: The collector found the lease, and the pool was faster than the finalizer that ends the block.
FORFEITED = "this block was dropped before it ended: its connection was rolled back and is gone"


class Delegated(Generic[T]):
    """An attribute of a pool that is an option of the same name, which the core reads when used."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name
        self.__doc__ = OPTIONS[name].text

    @overload
    def __get__(self, pool: None, owner: type) -> Delegated[T]: ...

    @overload
    def __get__(self, pool: object, owner: type) -> T: ...

    def __get__(self, pool: object | None, owner: type) -> Any:
        if pool is None:
            return self
        parts: Parts = pool._forebay  # type: ignore[attr-defined]
        return getattr(parts.core.settings, self._name)

    def __set__(self, pool: object, value: T) -> None:
        parts: Parts = pool._forebay  # type: ignore[attr-defined]
        setattr(parts.core.settings, self._name, value)
        parts.guard()


class Reading:
    """An attribute that answers unless a subclass puts its own in its place."""

    def __init__(self, read: Callable[[Any], Any]) -> None:
        self._read = read

    def __get__(self, pool: object | None, owner: type) -> Any:
        return self if pool is None else self._read(pool)


def statistics(core: Core) -> dict[str, int]:
    """What `get_stats()` says; the caller holds the lock."""
    return {
        "pool_min": core.settings.min_size,
        "pool_max": bound(core.settings.max_size),
        "pool_size": core.size,
        "pool_available": len(core.idle),
        "requests_waiting": len(core.waiting),
        "usage_ms": int(core.usage_time * 1000),
        "requests_num": core.requests_num,
        "requests_queued": core.requests_queued,
        "requests_wait_ms": int(core.requests_time * 1000),
        "requests_errors": core.requests_errors,
        "returns_bad": core.returns_bad,
        "connections_num": core.connections_num,
        "connections_ms": int(core.connections_time * 1000),
        "connections_errors": core.connections_errors,
        "connections_lost": core.connections_lost,
    }


def bound(max_size: float) -> int:
    """A bound as users give it: 0 is none."""
    return 0 if max_size == inf else int(max_size)


class Made:
    """An attribute that is made when somebody asks for it."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make = make

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, pool: object | None, owner: type) -> Any:
        return self if pool is None else vars(pool).setdefault(self._name, self._make())


class Called:
    """Stands for the class of a pool whose methods are called in any case."""

    getconn = putconn = None


class Parts:
    """What a pool is made of.

    A pool has this one attribute, `_forebay`, and no other that is not public: in a class that
    users derive from every name is theirs.
    """

    __slots__ = (
        "__weakref__",
        "checks_in",
        "checks_out",
        "core",
        "flows",
        "guarded",
        "implicitly_open",
        "kind",
        "lock",
        "loop",
        "now",
        "null",
        "own",
        "patched",
        "record_lines",
        "taking",
        "thorough",
        "thread",
        "unclean",
    )

    flows: Flows
    lock: Any  # this and the next four are read on the hot path: one attribute away
    taking: Any  # takes the lock; pools for asyncio have none
    now: Callable[[], float]
    own: Any
    unclean: Callable[[Any], Any]
    thorough: bool
    guarded: bool
    checks_out: type[Any]  # if its getconn() is ours, a lease may do without the call
    checks_in: type[Any]  # and so may it do without putconn()

    def __init__(
        self, kind: type[Any], core: Core, *, null: bool = False, record_lines: bool = False
    ) -> None:
        self.kind = kind  # the pool's class
        self.core = core
        self.null = null
        self.record_lines = record_lines
        self.implicitly_open = False
        self.patched: set[str] = set()  # methods that were replaced on this very pool
        # Of pools for asyncio: the loop they are used in, and its thread.
        self.loop: Any = None
        self.thread = -1

    def new_runtime(self) -> Any:
        """A world for the core."""
        core = self.core
        runtime = self.kind._forebay_runtime(lambda: core.settings.num_workers)
        if self.null:
            runtime.unbounded_openings()
        return runtime

    def run(self, flows: Flows) -> None:
        """Use these flows; what is read on the hot path is one attribute away."""
        self.flows = flows
        self.use(flows.runtime.lock)
        self.now = flows.runtime.now
        self.own = getattr(flows.runtime, "own", None)
        self.unclean = flows.driver.unclean if flows.reset is None else _always
        self.guard()

    def use(self, lock: Any) -> None:
        """Make transitions one step each by this lock."""
        self.lock = lock
        self.taking = taking(lock) if hasattr(lock, "acquire") else None

    def start_afresh(self) -> None:
        """In a forked child: forget the parent's connections, and make every part anew."""
        self.core = renewed_core(self.core)
        self.loop, self.thread = None, -1  # the next use tells
        self.run(renewed_flows(self.flows, self.core, self.new_runtime()))

    def guard(self) -> None:
        """Decide what a checkout and a return must do besides the transition."""
        settings, flows = self.core.settings, self.flows
        # Every connection goes through the flows, not only one that must be waited for.
        self.thorough = (
            flows.check is not None or settings.max_uses > 0 or not settings.max_lifetime
        )
        self.guarded = self.thorough or self.implicitly_open or self.record_lines
        # A lease may take an idle connection by itself where getconn() would do no more, and return
        # a clean one where putconn() would do no more.  A class may be patched at any time.
        called = "getconn" in self.patched or self.guarded
        self.checks_out = Called if called else self.kind
        called = "putconn" in self.patched or flows.reset is not None
        self.checks_in = Called if called else self.kind

    def leave_implicit(self) -> None:
        """Warn no more of a pool that was opened by its constructor."""
        self.implicitly_open = False
        self.guard()


class Door:
    """One pool: its parts, and what needs no waiting."""

    _forebay: Parts
    _forebay_runtime: ClassVar[type[Threads | Asyncio]]
    _forebay_driver: ClassVar[type[Driver]]
    _forebay_null: ClassVar[bool] = False

    conninfo: Any
    """Connection string, or a callable giving it; read at each attempt to connect."""
    kwargs: Any
    """Arguments of connect(), or a callable giving them; read at each attempt to connect."""
    connection_class: Any
    """The class whose connect() is used; read at each attempt to connect."""
    name: str
    """What logs and threads call the pool."""
    timeout: float
    """Seconds a client waits for a connection, unless it says otherwise."""
    close_returns: bool
    """Whether close() of a lent connection returns it."""

    max_waiting = Delegated[int]()
    max_lifetime = Delegated[float]()
    max_idle = Delegated[float]()
    reconnect_timeout = Delegated[float]()
    num_workers = Delegated[int]()
    bypass_window = Delegated[float]()
    keepalive_interval = Delegated[float]()
    max_uses = Delegated[int]()
    action_timeout = Delegated[float]()
    leak_threshold = Delegated[float]()
    rejected_after = Delegated[float]()

    # Names of the original's that programs look at.
    _closed = Reading(lambda pool: pool.closed)
    _core = Reading(lambda pool: pool._forebay.core)  # for who looks inside
    _opened = Reading(lambda pool: pool._forebay.core.phase is not Phase.NEW)

    def __init__(
        self,
        conninfo: Any,
        connection_class: Any,
        kwargs: Any,
        options: PoolOptions,
        *,
        configure: Callable[..., Any] | None,
        check: Callable[..., Any] | None,
        reset: Callable[..., Any] | None,
        reconnect_failed: Callable[..., Any] | None,
    ) -> None:
        null = self._forebay_null
        chosen = complete(type(self).__name__, options, null=null)
        self.conninfo = conninfo
        self.kwargs = kwargs
        self.connection_class = connection_class
        self.name = f"pool-{next(_number)}" if chosen["name"] is None else chosen["name"]
        self.timeout = chosen["timeout"]
        self.close_returns = chosen["close_returns"]
        driver = self._forebay_driver()
        settings = Settings.of(**chosen, retrying=not null)
        core = Core(driver.refusals(self.name), settings, keep=0 if null else ALL)
        parts = Parts(type(self), core, null=null, record_lines=bool(chosen["record_lines"]))
        this = ref(self)  # the flows do not keep their pool alive
        flows = Flows(
            core,
            parts.new_runtime(),
            driver,
            name=self.name,
            source=this,
            configure=configure,
            check=check,
            reset=reset,
            gave_up=reconnect_failed and partial(_tell, this, reconnect_failed),
        )
        parts.run(flows)
        self._forebay = parts
        register(parts)

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        self._forebay_note(name, patched=True)

    def __delattr__(self, name: str) -> None:
        super().__delattr__(name)
        self._forebay_note(name, patched=False)

    def _forebay_note(self, name: str, *, patched: bool) -> None:
        """A method was replaced on this very pool: from now on it is called by its name.

        That is noted, since to look into the pool's `__dict__` would slow its attributes down.
        """
        if name in PATCHABLE and hasattr(self, "_forebay"):
            parts = self._forebay
            (parts.patched.add if patched else parts.patched.discard)(name)
            parts.guard()

    @property
    def record_lines(self) -> bool:
        """Whether the line that acquires each connection is noted; assignable at any time."""
        return self._forebay.record_lines

    @record_lines.setter
    def record_lines(self, value: bool) -> None:
        parts = self._forebay
        parts.record_lines = bool(value)
        parts.guard()
        for entry in [*parts.core.entries]:
            entry.line = None  # of a client that is long gone, perhaps

    @property
    def min_size(self) -> int:
        """Connections the pool keeps."""
        return self._forebay.core.settings.min_size

    @property
    def max_size(self) -> int:
        """Connections the pool may have at most; 0: no bound (null pools only)."""
        return bound(self._forebay.core.settings.max_size)

    @property
    def closed(self) -> bool:
        """Whether the pool is not open: not yet, or no more."""
        return self._forebay.core.phase is not Phase.OPEN

    def __repr__(self) -> str:
        core, sizes = self._forebay.core, self._forebay.core.settings
        state = core.phase.value
        if core.phase is Phase.OPEN:
            state = (
                f"{len(core.idle)} idle, {core.lent} lent, {core.opening} opening,"
                f" {len(core.waiting)} waiting of {sizes.min_size}..{sizes.max_size}"
            )
        return f"<{type(self).__name__} {self.name!r} {state}>"

    def get_stats(self) -> dict[str, int]:
        """What the pool holds now, and what it has counted; times in milliseconds."""
        parts = self._forebay
        with parts.lock:
            return {**statistics(parts.core), **_given_up(parts)}

    def pop_stats(self) -> dict[str, int]:
        """The same as `get_stats()`, and the counters restart at zero."""
        parts = self._forebay
        with parts.lock:
            stats = {**statistics(parts.core), **_given_up(parts)}
            parts.core.reset_counters()
        return stats


def _tell(this: Callable[[], Any], callback: Callable[..., Any]) -> Any:
    """Call a callback with a pool, which its subclass may have made false."""
    pool = this()
    return None if pool is None else callback(pool)


def _always(conn: Any) -> bool:
    """What `unclean` says where a worker must have each connection: `reset=` is set."""
    del conn
    return True


def _given_up(parts: Parts) -> dict[str, int]:
    return {"workers_abandoned": parts.flows.runtime.abandoned}


# What the doors do, as functions: as methods they would be in the way of their subclasses' names.


def seconds(timeout: float) -> float:
    """A client's timeout; `nan` is none."""
    if timeout != timeout:
        raise ValueError("timeout must be a number of seconds, not nan")
    return timeout


def unfilled(pool: Any, timeout: float, cause: Exception | None = None) -> Exception:
    """What wait() raises when it has closed the pool."""
    parts: Parts = pool._forebay
    refusals: Any = parts.core.refusals
    with parts.lock:
        error: Exception = refusals.timeout(parts.core, timeout, parts.now())
    error.__cause__ = cause or error.__cause__
    why = f": {error.__cause__}" if error.__cause__ else ""
    error.args = (f"pool initialization incomplete after {timeout:.2f} sec: {pool!r}{why}",)
    return error


def is_hopeless(pool: Any) -> bool:
    """Whether connecting fails by what no waiting can heal: wait() closes the pool then."""
    return pool._forebay.core.verdict is Verdict.HOPELESS


def report(pool: Any, error: PoolTimeoutMixin) -> None:
    """Log a time-out that may be a deadlock: who catches it may not show what it says."""
    if error.suspects:
        pool._forebay.flows.warn("%s", error)


def announce_implicit(pool: Any, category: type[Warning], text: str, stacklevel: int) -> None:
    """Warn once that the pool was opened by its constructor without having been asked to."""
    pool._forebay.leave_implicit()
    warnings.warn(text, category, stacklevel=stacklevel + 1)


def stranger(pool: Any, conn: Any) -> ValueError:
    """The error for the return of a connection that this pool has not lent."""
    label = pool._forebay.flows.driver.label(conn)
    lender = getattr(conn, "_pool", None)
    if type(conn).__module__ == "builtins":  # a string or a dict may hold a password
        kind = type(conn).__name__
        shown = f"{conn!r} ({kind})" if conn is None or isinstance(conn, int) else f"a {kind}"
        return ValueError(
            f"can't return {shown} to pool {pool.name!r}: expected the connection that it has lent"
        )
    if lender is None:
        origin = "it comes from no pool, or it has been returned already"
    else:
        origin = f"it was lent by pool {getattr(lender, 'name', lender)!r}"
    return ValueError(f"can't return connection to pool {pool.name!r}: {origin}: {label}")


def tied(entry: Entry, pool: Any) -> Token:
    """A token for a connection whose last one is with a lease that was returned early."""
    core: Core = pool._forebay.core
    return core.tie(entry)


def left_early(lease: Any, entry: Entry, exc_type: type[BaseException] | None) -> None:
    """A block ends whose connection is the pool's already.

    Raises:
        RuntimeError: the pool has taken it back itself: what the block did is not committed.
    """
    lent_at = lease._lent_at
    lease._leave()
    if exc_type is None and entry.forfeited is lent_at:
        raise RuntimeError(FORFEITED)


def returned(pool: Any, conn: Any, lender: Any) -> tuple[Entry, Any] | None:
    """The entry of what a client returns, and what it was lent; `None`: it is the parent's.

    It may be what is behind a proxy, or a stand-in that takes no attributes.  Where it has a
    `lender`, what that was at first counts: a moment later it may be lent to somebody else.
    """
    driver = pool._forebay.flows.driver
    if isinstance(driver.find(conn), Inherited):
        return None
    known = lender is pool or conn in driver.tags
    found: tuple[Entry, Any] | None = driver.lent(conn, pool) if known else None
    if found is None:
        raise stranger(pool, conn)
    driver.mark(found[1], None)
    return found


def overridden(pool: Any, name: str, own: Any) -> Callable[..., Any] | None:
    """The method `name` of a pool, if a subclass or a program has put another in its place."""
    if getattr(type(pool), name) is own and name not in pool._forebay.patched:
        return None
    method: Callable[..., Any] = getattr(pool, name)
    return method
