"""What the doors of threads and asyncio have in common: parameters, attributes and stats."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from itertools import count
from math import inf
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar, overload
from weakref import ref

from ._core import ALL, Core, Phase
from ._flows import Flows
from ._fork import register, renewed_core, renewed_flows

if TYPE_CHECKING:
    from ._asyncio import Asyncio
    from ._threads import Threads
    from .drivers import Driver
    from .errors import PoolTimeoutMixin

T = TypeVar("T")

logger = logging.getLogger("forebay")

_number = count(1)


class Delegated(Generic[T]):
    """An attribute of a pool that lives in one of its parts, where it is read when used."""

    def __init__(self, part: str, doc: str) -> None:
        self._part = part
        self.__doc__ = doc

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    @overload
    def __get__(self, pool: None, owner: type) -> Delegated[T]: ...

    @overload
    def __get__(self, pool: object, owner: type) -> T: ...

    def __get__(self, pool: object | None, owner: type) -> Any:
        if pool is None:
            return self
        return getattr(getattr(pool, self._part), self._name)

    def __set__(self, pool: object, value: T) -> None:
        setattr(getattr(pool, self._part), self._name, value)


def statistics(core: Core) -> dict[str, int]:
    """What `get_stats()` says; the caller holds the lock."""
    return {
        "pool_min": core.min_size,
        "pool_max": bound(core.max_size),
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


class Door:
    """One pool: its parts, and what needs no waiting."""

    _runtime_class: ClassVar[type[Threads | Asyncio]]
    _driver_class: ClassVar[type[Driver]]
    _null: ClassVar[bool] = False

    conninfo: Delegated[Any] = Delegated("_flows", "Connection string, or a callable giving it.")
    kwargs: Delegated[Any] = Delegated("_flows", "Arguments of connect(), or a callable.")
    connection_class: Delegated[Any] = Delegated("_flows", "The class whose connect() is used.")
    max_waiting: Delegated[int] = Delegated("_core", "Clients that may wait; 0: no bound.")
    max_lifetime: Delegated[float] = Delegated("_core", "Seconds a connection may live.")
    max_idle: Delegated[float] = Delegated("_core", "Seconds until an unused one is closed.")
    reconnect_timeout: Delegated[float] = Delegated("_core", "Seconds of attempts to connect.")
    num_workers: Delegated[int] = Delegated("_core", "Bound on each lane of background work.")

    bypass_window: Delegated[float] = Delegated(
        "_core", "Seconds after a use during which a connection is lent without a look at it."
    )
    keepalive_interval: Delegated[float] = Delegated(
        "_core", "Seconds between two queries that keep an idle connection alive; 0: none."
    )
    action_timeout: Delegated[float] = Delegated(
        "_core", "Seconds that a callback, a rollback or closing may take."
    )
    leak_threshold: Delegated[float] = Delegated(
        "_core", "Seconds after which a lent connection is reported; 0: never."
    )

    def __init__(
        self,
        *,
        conninfo: Any,
        connection_class: Any,
        kwargs: Any,
        min_size: int,
        max_size: int | None,
        configure: Callable[..., Any] | None,
        check: Callable[..., Any] | None,
        reset: Callable[..., Any] | None,
        name: str | None,
        close_returns: bool,
        timeout: float,
        max_waiting: int,
        max_lifetime: float,
        max_idle: float,
        reconnect_timeout: float,
        reconnect_failed: Callable[..., Any] | None,
        num_workers: int,
        idle_order: str,
        bypass_window: float,
        keepalive_interval: float,
        max_uses: int,
        action_timeout: float,
        leak_threshold: float,
        record_lines: bool,
    ) -> None:
        if idle_order not in ("lifo", "fifo"):
            raise ValueError(f"idle_order must be 'lifo' or 'fifo', not {idle_order!r}")
        if num_workers < 1:
            raise ValueError(f"num_workers must be at least 1, not {num_workers!r}")
        most = self._bounds(min_size, max_size)
        _expect_seconds(
            timeout=timeout,
            max_lifetime=max_lifetime,
            max_idle=max_idle,
            reconnect_timeout=reconnect_timeout,
        )
        _expect_more_than_0(
            max_lifetime=(max_lifetime, "math.inf keeps connections for ever"),
            action_timeout=(action_timeout, "math.inf sets no bound"),
        )
        _expect_no_less_than_0(
            bypass_window=(bypass_window, "0 looks at a connection each time"),
            keepalive_interval=(keepalive_interval, "0 sends no queries"),
            leak_threshold=(leak_threshold, "0 reports nothing"),
        )
        _expect_uses(max_uses)
        self.name = f"pool-{next(_number)}" if name is None else name
        self.timeout = timeout
        self.close_returns = close_returns
        driver = self._driver_class()
        self._core = Core(
            driver.refusals(self.name),
            min_size=min_size,
            max_size=most,
            keep=0 if self._null else ALL,
            retrying=not self._null,
            lifo=idle_order == "lifo",
            max_waiting=max_waiting,
            max_lifetime=max_lifetime,
            max_idle=max_idle,
            reconnect_timeout=reconnect_timeout,
            num_workers=num_workers,
            bypass_window=bypass_window,
            keepalive_interval=keepalive_interval,
            max_uses=max_uses,
            action_timeout=action_timeout,
            leak_threshold=leak_threshold,
        )
        runtime = self._new_runtime()
        this = ref(self)  # the flows do not keep their pool alive
        self._flows = Flows(
            self._core,
            runtime,
            driver,
            name=self.name,
            connection_class=connection_class,
            conninfo=conninfo,
            kwargs=kwargs,
            configure=configure,
            check=check,
            reset=reset,
            gave_up=reconnect_failed and (lambda: (pool := this()) and reconnect_failed(pool)),
        )
        # Read on the hot path: one attribute instead of two.
        self._lock = runtime.lock
        self._now = runtime.now
        self._unclean = driver.unclean if reset is None else _always
        self._reset = reset
        self._implicitly_open = False
        self._record_lines = bool(record_lines)
        self._plain_getconn = False  # the doors decide, last
        self._guard()
        register(self)

    def _new_runtime(self) -> Any:
        core = self._core
        runtime: Any = self._runtime_class(lambda: core.num_workers)
        if self._null:
            runtime.unbounded_openings()
        return runtime

    def _start_afresh(self) -> None:
        """In a forked child: forget the parent's connections, and make every part anew."""
        self._core = renewed_core(self._core)
        self._flows = renewed_flows(self._flows, self._core, self._new_runtime())
        self._lock = self._flows.runtime.lock

    def _guard(self) -> None:
        """Decide what a checkout must do besides taking an idle connection."""
        # Every connection goes through the flows, not only one that must be waited for.
        self._thorough = self._flows.check is not None or self._core.max_uses > 0
        self._guarded = self._thorough or self._implicitly_open or self._record_lines
        # A lease may take an idle connection by itself: getconn() would do no more.
        self._quick = self._plain_getconn and not self._guarded

    @property
    def max_uses(self) -> int:
        """How often a connection is lent until it is replaced; 0: no bound; assignable."""
        return self._core.max_uses

    @max_uses.setter
    def max_uses(self, value: int) -> None:
        self._core.max_uses = value
        self._guard()

    @property
    def record_lines(self) -> bool:
        """Whether the line that acquires each connection is noted; assignable at any time."""
        return self._record_lines

    @record_lines.setter
    def record_lines(self, value: bool) -> None:
        self._record_lines = bool(value)
        self._guard()
        for entry in [*self._core.entries]:
            entry.line = None  # of a client that is long gone, perhaps

    @property
    def min_size(self) -> int:
        """Connections the pool keeps."""
        return self._core.min_size

    @property
    def max_size(self) -> int:
        """Connections the pool may have at most; 0: no bound (null pools only)."""
        return bound(self._core.max_size)

    @property
    def closed(self) -> bool:
        """Whether the pool is not open: not yet, or no more."""
        return self._core.phase is not Phase.OPEN

    def __repr__(self) -> str:
        core = self._core
        state = core.phase.value
        if core.phase is Phase.OPEN:
            state = (
                f"{len(core.idle)} idle, {core.lent} lent, {core.opening} opening,"
                f" {len(core.waiting)} waiting of {core.min_size}..{core.max_size}"
            )
        return f"<{type(self).__name__} {self.name!r} {state}>"

    def get_stats(self) -> dict[str, int]:
        """What the pool holds now, and what it has counted; times in milliseconds."""
        with self._lock:
            return {**statistics(self._core), **self._given_up}

    def pop_stats(self) -> dict[str, int]:
        """The same as `get_stats()`, and the counters restart at zero."""
        with self._lock:
            stats = {**statistics(self._core), **self._given_up}
            self._core.reset_counters()
        return stats

    @property
    def _given_up(self) -> dict[str, int]:
        return {"workers_abandoned": self._flows.runtime.abandoned}

    def _bounds(self, min_size: int, max_size: int | None) -> float:
        """Check the sizes; returns max_size, which may be infinite."""
        if self._null:
            if min_size != 0:
                raise ValueError(f"null pools must have min_size = 0, not {min_size!r}")
            most = max_size or inf
        else:
            most = min_size if max_size is None else max_size
            if min_size == most == 0:
                raise ValueError("if min_size is 0 max_size must be greater than 0")
        if min_size < 0:
            raise ValueError(f"min_size cannot be negative, not {min_size!r}")
        if most < min_size:
            raise ValueError(
                f"max_size must be greater or equal than min_size, not {max_size!r} < {min_size!r}"
            )
        return most

    def _unfilled(self, timeout: float) -> Exception:
        """What wait() raises, when it has closed the pool."""
        refusals: Any = self._core.refusals
        with self._lock:
            error: Exception = refusals.timeout(self._core, timeout, self._now())
        why = f": {error.__cause__}" if error.__cause__ else ""
        error.args = (f"pool initialization incomplete after {timeout:.2f} sec: {self!r}{why}",)
        return error

    def _report(self, error: PoolTimeoutMixin) -> None:
        """Log a time-out that may be a deadlock: who catches it may not show what it says."""
        if error.suspects:
            logger.warning("%s: %s", self.name, error)

    def _announce_implicit(self, category: type[Warning], text: str, stacklevel: int) -> None:
        """Warn once that the pool was opened by its constructor without having been asked to."""
        self._leave_implicit()
        warnings.warn(text, category, stacklevel=stacklevel + 1)

    def _leave_implicit(self) -> None:
        self._implicitly_open = False
        self._guard()

    def _stranger(self, conn: Any) -> ValueError:
        """The error for the return of a connection that this pool has not lent."""
        pool = getattr(conn, "_pool", None)
        if pool is None:
            origin = "it comes from no pool, or it has been returned already"
        else:
            origin = f"it was lent by pool {pool.name!r}"
        return ValueError(f"can't return connection to pool {self.name!r}: {origin}: {conn}")


def _expect_seconds(**durations: Any) -> None:
    for name, value in durations.items():
        if not isinstance(value, int | float):
            raise TypeError(f"{name} must be a number of seconds, not {value!r}")


def _expect_more_than_0(**durations: tuple[Any, str]) -> None:
    for name, (value, hint) in durations.items():
        _expect_seconds(**{name: value})
        if not value > 0:
            raise ValueError(f"{name} must be more than 0 seconds, not {value!r}; {hint}")


def _expect_no_less_than_0(**durations: tuple[Any, str]) -> None:
    for name, (value, hint) in durations.items():
        _expect_seconds(**{name: value})
        if not value >= 0:
            raise ValueError(f"{name} must be 0 seconds or more, not {value!r}; {hint}")


def _expect_uses(max_uses: Any) -> None:
    if not isinstance(max_uses, int):
        raise TypeError(f"max_uses must be a whole number, not {max_uses!r}; 0 sets no bound")
    if max_uses < 0:
        raise ValueError(f"max_uses must be 0 or more, not {max_uses!r}; 0 sets no bound")


def _always(conn: Any) -> bool:
    """What `unclean` says where a worker must have each connection: `reset=` is set."""
    del conn
    return True
