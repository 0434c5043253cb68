"""Every decision of the pool: its state, and the transitions between its states.

The rules of this file.  Each has a test.

1.  Everything that decides is in this file; nothing in this file waits.
2.  Time comes in as `now` (seconds of a monotonic clock), randomness as `chance` (a number in
    [0, 1)).  It imports nothing but standard data structures and its siblings.
3.  Every transition is total: it returns, or raises before it has changed anything.  A signal
    handler may still raise between any two bytecodes: transitions order their writes so that
    `audit()` can repair every prefix of them.
4.  On the common path (`checkout` with an idle connection, `checkin` with nobody waiting) a
    transition returns the connection or `None` and allocates nothing; otherwise it returns
    `Effects`: whom to wake, which entries a worker must take up.
5.  An entry is in exactly one place.  Sizes are derived from the places, or checked by `audit()`.
6.  User callbacks, logging and metrics are never called from here: they are orders to the shell.
7.  The right to open one connection is a permit, and every permit comes back exactly once: as
    `opened`, as `open_failed`, or by being dropped.
8.  What the core gives out it holds weakly: dropping it gives the slot back.  Weakref callbacks
    never enter the core (they run in any thread, perhaps under our lock): they append to `lost`,
    which the next slow transition drains.

One transition is one atomic step: the thread shell makes it atomic with `with lock`, the asyncio
shell by containing no `await`.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable
from enum import Enum
from math import inf
from typing import Any, Protocol

from ._entry import (
    EVICTED,
    IDLE,
    LENT,
    OPENING,
    RETIRED,
    SERVICE,
    Effects,
    Entry,
    Held,
    Permit,
    Waiter,
)
from ._policy import MAINTENANCE_INTERVAL, PROBE_INTERVAL, Backoff, growth, lifetime


class Phase(Enum):
    """Where the pool is in its life."""

    NEW = "not open"
    OPEN = "open"
    CLOSED = "closed"


class Refusals(Protocol):
    """The exceptions of a pool, by kind; the driver below gives their classes."""

    def closed(self, core: Core) -> Exception:
        """The pool is not open."""
        ...

    def full(self, core: Core) -> Exception:
        """Too many clients wait already."""
        ...

    def timeout(self, core: Core, timeout: float) -> Exception:
        """The client's time, `timeout` seconds, is up."""
        ...


class Core:
    """The state of one pool.  Every method without an underscore is a transition or a reading."""

    __slots__ = (
        "_take",
        "backoff",
        "check_failing",
        "connections_errors",
        "connections_lost",
        "connections_num",
        "connections_time",
        "due",
        "eager",
        "entries",
        "failed_at",
        "failing_since",
        "failures",
        "granted",
        "idle",
        "keep",
        "last_error",
        "lifo",
        "lost",
        "low_water",
        "low_water_since",
        "max_idle",
        "max_lifetime",
        "max_size",
        "max_waiting",
        "min_size",
        "num_workers",
        "opening",
        "phase",
        "reconnect_timeout",
        "refusals",
        "requests_errors",
        "requests_num",
        "requests_queued",
        "requests_time",
        "retiring",
        "retry_at",
        "retrying",
        "returns_bad",
        "target",
        "usage_time",
        "waiting",
        "watching",
    )

    def __init__(
        self,
        refusals: Refusals,
        *,
        min_size: int,
        max_size: float,
        keep: float = inf,
        retrying: bool = True,
        eager: bool = False,
        lifo: bool = True,
        max_waiting: int = 0,
        max_lifetime: float = 3600.0,
        max_idle: float = 600.0,
        reconnect_timeout: float = 300.0,
        num_workers: int = 3,
        backoff: Backoff | None = None,
    ) -> None:
        self.refusals = refusals
        # What the user asked for; durations in seconds.
        self.min_size = min_size
        self.max_size = max_size  # may be infinite
        self.keep = keep  # idle connections to keep at most; 0 makes a null pool.  A bound: the
        # pool comes back to min_size when connections are lost, else to what it had grown to
        self.retrying = retrying  # a failed attempt is repeated; else it fails a waiting client
        self.eager = eager  # a client that will not wait may still have a connection opened
        self.lifo = lifo
        self.max_waiting = max_waiting  # 0: no bound
        self.max_lifetime = max_lifetime
        self.max_idle = max_idle
        self.reconnect_timeout = reconnect_timeout
        self.num_workers = num_workers
        self.backoff = backoff or Backoff()
        # Where everything is.
        self.phase = Phase.NEW
        self.entries: dict[Entry, None] = {}  # all but the retired, in order of age
        self.retiring: dict[Entry, None] = {}
        self.idle: deque[Entry] = deque()  # in order of return, the latest on the right
        self._take: Callable[[], Entry] = self.idle.pop if lifo else self._take_oldest
        self.opening = 0  # how many entries are OPENING
        self.target = min_size  # the size to come back to when a connection is lost
        self.waiting: OrderedDict[Waiter, None] = OrderedDict()  # clients, in order of arrival
        self.watching: dict[Waiter, None] = {}  # callers of wait()
        self.granted: dict[Waiter, None] = {}  # dismissed from the queue, perhaps not yet woken
        self.lost: deque[Held] = deque()  # written by weakref callbacks
        # Failing to connect.
        self.failures = 0  # in a row
        self.check_failing = False  # connecting succeeds, but new connections fail their check
        self.failing_since = inf  # when this series of attempts began to fail
        self.failed_at = 0.0
        self.retry_at = 0.0
        self.last_error: BaseException | None = None
        # Maintenance.
        self.due = inf  # when maintain() is wanted next
        self.low_water = 0  # fewest idle since low_water_since (only idle_order="fifo")
        self.low_water_since = 0.0
        self.reset_counters()

    # Readings ------------------------------------------------------------------------------

    @property
    def size(self) -> int:
        """Connections in the pool, lent, in service and being opened."""
        return len(self.entries)

    @property
    def lent(self) -> int:
        """Connections with clients or in service."""
        return len(self.entries) - len(self.idle) - self.opening

    def reset_counters(self) -> None:
        """Start counting anew; times are in seconds."""
        self.requests_num = 0
        self.requests_queued = 0
        self.requests_time = 0.0
        self.requests_errors = 0
        self.usage_time = 0.0
        self.returns_bad = 0
        self.connections_num = 0
        self.connections_time = 0.0
        self.connections_errors = 0
        self.connections_lost = 0

    # Checkout ------------------------------------------------------------------------------

    def checkout(self, now: float) -> Any:
        """Lend an idle connection; `None` when there is none (then `enqueue`)."""
        self.requests_num += 1
        if not self.idle:
            return None
        entry = self._take()
        conn = entry.conn
        entry.conn = None
        entry.place = LENT
        entry.lent_at = now
        return conn

    def enqueue(self, waiter: Waiter, now: float) -> Effects:
        """Queue a client; it is served at once if a connection has become idle.

        Raises the pool's own errors when it is not open or the queue is full.
        """
        if self.phase is not Phase.OPEN:
            self.requests_errors += 1
            raise self.refusals.closed(self)
        if 0 < self.max_waiting <= len(self.waiting):
            self.requests_errors += 1
            raise self.refusals.full(self)
        effects = Effects()
        self._drain_lost()
        waiter.since = now
        self.waiting[waiter] = None
        self._balance(now, effects)
        if waiter in self.waiting:
            self.requests_queued += 1
        return effects

    def refuse(self) -> None:
        """A client that will not wait has found nothing ready."""
        self.requests_errors += 1
        if self.phase is not Phase.OPEN:
            raise self.refusals.closed(self)

    def expire(self, waiter: Waiter, now: float) -> bool:
        """A client waits no longer; false if it has been served or refused."""
        if waiter not in self.waiting:
            return False
        if waiter.entry is not None or waiter.error is not None:
            self._finish_grant(waiter, now, Effects())  # it was interrupted
            return False
        self.requests_errors += 1
        self.requests_time += now - waiter.since
        del self.waiting[waiter]
        return True

    def promised(self, waiter: Waiter) -> bool:
        """Whether a client still queues, and one of the connections being opened will be its own.

        The connection that was opened for it may have served one that came before it.
        """
        queues = waiter in list(self.waiting)[: self.opening]
        return queues and waiter.entry is None and waiter.error is None

    def cancel(self, waiter: Waiter, now: float) -> Effects:
        """A client has given up, whatever it waits for; what it was granted goes back."""
        effects = Effects()
        self.watching.pop(waiter, None)
        self.granted.pop(waiter, None)
        if self.expire(waiter, now):
            return effects
        if waiter.conn is not None and waiter.entry is not None:
            self.requests_errors += 1
            if waiter.entry.place is LENT:  # else reclaimed
                self._put(waiter.entry, waiter.conn, now, effects)
            waiter.conn = None
        return self._balance(now, effects)

    # Checkin -------------------------------------------------------------------------------

    def checkin(self, entry: Entry, conn: Any, now: float) -> Effects | None:
        """Take a connection back, clean; `None` when there is nothing left to do."""
        if entry.place is not LENT:
            return self._strayed(entry, conn)
        if entry.leased:  # _end_lease(), written out for the hot path
            entry.leased = False
            self.usage_time += now - entry.lent_at
        if (
            self.waiting
            or self.watching
            or self.lost
            or entry.expires_at <= now
            or len(self.idle) >= self.keep
        ):
            effects = Effects()
            self._put(entry, conn, now, effects)
            return self._balance(now, effects)
        entry.idle_since = now
        entry.conn = conn
        entry.place = IDLE
        self.idle.append(entry)
        return None

    def recycle(self, entry: Entry, conn: Any, now: float) -> Effects:
        """Take a connection back that a worker must reset before it is lent again."""
        if entry.place is not LENT or entry.expires_at <= now:
            return self.checkin(entry, conn, now) or Effects()
        effects = Effects()
        self._end_lease(entry, now)
        entry.place = SERVICE
        entry.ordered = True
        entry.conn = conn
        effects.start.append(entry)
        return effects

    def serviced(self, entry: Entry, conn: Any, now: float) -> Effects:
        """A worker has reset or checked the connection: it may be lent again."""
        self._expect(entry, SERVICE)
        effects = Effects()
        self._put(entry, conn, now, effects)
        return self._balance(now, effects)

    def discard(self, entry: Entry, conn: Any, now: float, *, lost: bool = False) -> Effects:
        """The connection is of no more use; `lost` if check() found it so, else a bad return."""
        if entry.place is not LENT and entry.place is not SERVICE:
            return self._strayed(entry, conn)
        effects = Effects()
        if lost:
            self.connections_lost += 1
        else:
            self.returns_bad += 1
        self._end_lease(entry, now)
        self._retire(entry, conn, effects)
        return self._balance(now, effects)

    def check_failed(
        self,
        entry: Entry,
        conn: Any,
        error: BaseException,
        arrived: float,
        now: float,
        chance: float,
    ) -> Effects:
        """A client's check has failed on the connection it was lent.

        When that connection was opened after the client had arrived (at `arrived`), opening more
        of them would fail alike: it backs off as after a failed connect.
        """
        effects = Effects()
        self._retire(entry, conn, effects)
        if entry.opened_at >= arrived and isinstance(error, Exception):
            self.check_failing = True
            self._failed(error, now, chance, effects)
        return self._balance(now, effects)

    def check_passed(self, now: float) -> Effects:
        """A client's check has passed, after failures."""
        self.check_failing = False
        self._recovered()
        return self._balance(now, Effects())

    # Opening -------------------------------------------------------------------------------

    def begin(self, entry: Entry) -> Any:
        """A worker takes up what was ordered for an entry; `None` if another one has.

        Returns what the worker holds from now on: a permit, or the connection.
        """
        if not entry.ordered:
            return None
        if entry.place is OPENING:
            held: Any = Permit()
            entry.ref = Held.watch(held, entry, self.lost)
            self.connections_num += 1
        else:
            held = entry.conn
            entry.conn = None
        if held is not None:
            entry.ordered = False
        return held

    def opened(self, entry: Entry, conn: Any, took: float, now: float, chance: float) -> Effects:
        """A permit has become a connection, in `took` seconds."""
        self._expect(entry, OPENING)
        effects = Effects()
        self.connections_time += took
        if not self.check_failing:
            self._recovered()
        entry.opened_at = now
        if entry.expires_at != EVICTED:
            entry.expires_at = now + lifetime(self.max_lifetime, chance)
        entry.ref = Held.watch(conn, entry, self.lost)
        self._put(entry, conn, now, effects)
        if self.keep == inf:
            self.target = max(self.target, len(self.entries) - self.opening)
        return self._balance(now, effects)

    def open_failed(
        self, entry: Entry, conn: Any, error: BaseException, now: float, chance: float
    ) -> Effects:
        """A permit comes back unused; `conn` is a connection that could not be configured."""
        self._expect(entry, OPENING)
        effects = Effects()
        self.connections_errors += 1
        if conn is None:
            self._forget(entry)
        else:
            entry.ref = Held.watch(conn, entry, self.lost)
            self._retire(entry, conn, effects)
        if self.retrying or not isinstance(error, Exception):
            self._failed(error, now, chance, effects)
        elif self.waiting:
            waiter = next(iter(self.waiting))
            waiter.error = error
            self.requests_errors += 1
            self._dismiss(waiter, now, effects)
        return self._balance(now, effects)

    def retired(self, entry: Entry) -> None:
        """A retired connection has been closed."""
        self.retiring.pop(entry, None)

    # The pool's life -------------------------------------------------------------------------

    def open(self, now: float) -> Effects:
        """Begin to serve, and to fill the pool."""
        if self.phase is Phase.CLOSED:
            raise self.refusals.closed(self)
        effects = Effects()
        self.phase = Phase.OPEN
        self.low_water_since = now
        self._due_by(now + MAINTENANCE_INTERVAL, effects)
        return self._balance(now, effects)

    def close(self, now: float) -> Effects:
        """Refuse all clients and close all connections: the lent ones when they come back."""
        effects = Effects()
        if self.phase is Phase.NEW:
            return effects
        self.phase = Phase.CLOSED
        self.due = inf
        self.audit(now, effects)  # closing again completes a close that was interrupted
        for entry in [e for e in self.entries if e.place is OPENING and e.ordered]:
            self._forget(entry)
        for waiter in [*self.waiting, *self.watching]:
            waiter.error = self.refusals.closed(self)
            self.requests_errors += waiter in self.waiting
            self._dismiss(waiter, now, effects)
        self._evict_all(effects)
        return effects

    def drain(self, now: float) -> Effects:
        """Replace every connection: the idle ones now, the others when they come back."""
        effects = Effects()
        self._evict_all(effects)
        return self._balance(now, effects)

    def resize(self, min_size: int, max_size: float, now: float) -> Effects:
        """Grow or shrink to the new bounds; lent connections in excess go when they come back."""
        effects = Effects()
        self.min_size = min_size
        self.max_size = max_size
        self.target = (
            max(min_size, min(self.target, int(max_size))) if self.keep == inf else min_size
        )
        while self.idle and len(self.entries) > max_size:
            self._retire_oldest(effects)
        excess = len(self.entries) - max_size
        for entry in self.entries:
            if excess > 0:
                entry.expires_at = EVICTED
                excess -= 1
        return self._balance(now, effects)

    def fill(self, size: int, now: float) -> Effects:
        """Open what is missing to `size` connections, once: attempts that fail are not repeated."""
        effects = Effects()
        self._drain_lost()
        if self.phase is Phase.OPEN:
            self._issue(int(min(size, self.max_size)) - len(self.entries), effects)
        return self._balance(now, effects)

    def recall(self, entry: Entry) -> Any:
        """Take an idle connection into service, for check(); `None` if it is idle no more."""
        if entry.place is not IDLE:
            return None
        self.idle.remove(entry)
        conn = entry.conn
        entry.conn = None
        entry.place = SERVICE
        return conn

    def watch(self, waiter: Waiter) -> None:
        """Wake a caller of wait() when min_size connections are idle."""
        if self.phase is not Phase.OPEN:
            raise self.refusals.closed(self)
        if len(self.idle) >= self.min_size:
            waiter.ready = True
        else:
            self.watching[waiter] = None

    # Maintenance -------------------------------------------------------------------------------

    def reclaim(self, entry: Entry, now: float) -> Effects:
        """A lent connection was found closed: its slot need not wait for the client.

        psycopg's close() does nothing on a lost connection, so with `close_returns` such a client
        never returns it, and may hold it in a reference cycle for long.
        """
        if entry.place is LENT:
            self.returns_bad += 1
            self._forget(entry)
            entry.ref = None
        return self._balance(now, Effects())

    def maintain(self, now: float) -> Effects:
        """Do what time alone makes necessary; the caller comes back when it is `due`."""
        effects = Effects()
        self.due = inf if self.phase is Phase.CLOSED else now + MAINTENANCE_INTERVAL
        if self.phase is not Phase.OPEN:
            return effects
        self.audit(now, effects)
        for entry in [e for e in self.idle if e.expires_at <= now]:
            self.idle.remove(entry)
            self._retire(entry, entry.conn, effects)
        self._shrink(now, effects)
        self._balance(now, effects)
        expiries = [entry.expires_at for entry in self.idle]
        self.due = min(self.due, self._shrink_due(), *expiries)
        effects.alarm = False
        return effects

    def audit(self, now: float, effects: Effects) -> None:
        """Restore every invariant after a transition or a door was interrupted (rule 3).

        Does nothing where nothing is amiss, but order again what no worker has begun.
        """
        for waiter in [w for w in self.waiting if w.entry is not None or w.error is not None]:
            self._finish_grant(waiter, now, effects)
        effects.wake.extend(self.granted)
        self._drain_lost()
        present = set(self.idle)
        for entry in list(self.entries):
            if entry.place is RETIRED:
                self._forget(entry)
            elif entry.ordered:
                effects.start.append(entry)
            elif entry.conn is not None and entry not in present:
                entry.place = IDLE
                self.idle.append(entry)
        for entry in self.retiring:
            if entry.place is RETIRED and entry.conn is not None:
                entry.ordered = True
                effects.start.append(entry)
        self.opening = sum(e.place is OPENING for e in self.entries)

    # The steps that transitions share --------------------------------------------------------

    def _balance(self, now: float, effects: Effects) -> Effects:
        """Serve whom we can, keep no more than we should, open what is wanted."""
        while self.waiting and self.idle:
            waiter = next(iter(self.waiting))
            waiter.entry = self._take()
            self._finish_grant(waiter, now, effects)
        while len(self.idle) > self.keep:
            self._retire_oldest(effects)
        if self.watching and len(self.idle) >= self.min_size:
            for watcher in [*self.watching]:
                watcher.ready = True
                self._dismiss(watcher, now, effects)
        self._grow(now, effects)
        return effects

    def _finish_grant(self, waiter: Waiter, now: float, effects: Effects) -> None:
        """Move a granted connection to its client; can be begun again where it was interrupted."""
        entry = waiter.entry
        if entry is not None and entry.conn is not None:
            entry.place = LENT
            entry.lent_at = now
            waiter.conn = entry.conn
            entry.conn = None
        self._dismiss(waiter, now, effects)

    def _dismiss(self, waiter: Waiter, now: float, effects: Effects) -> None:
        """Let a client go that has been served or refused."""
        self.granted[waiter] = None
        if self.waiting.pop(waiter, self) is None:
            self.requests_time += now - waiter.since
        self.watching.pop(waiter, None)
        effects.wake.append(waiter)

    def _strayed(self, entry: Entry, conn: Any) -> Effects:
        """A connection comes back whose slot was given back before: close it."""
        if entry.place is not RETIRED or entry.ref is not None:
            raise ValueError(f"the connection is {entry.place.value} in its pool, not lent")
        effects = Effects()
        entry.ref = Held.watch(conn, entry, self.lost)
        self._retire(entry, conn, effects)
        return effects

    def _end_lease(self, entry: Entry, now: float) -> None:
        """Count the time of a connection() that ends."""
        if entry.leased:
            entry.leased = False
            self.usage_time += now - entry.lent_at

    def _put(self, entry: Entry, conn: Any, now: float, effects: Effects) -> None:
        """Make a connection idle, or retire it if its time is over or it is one too many."""
        if entry.ref is not None and entry.ref() is None:
            # Python drops the weak references to what is in a garbage cycle before it runs the
            # finalizers there, and one of these has returned the connection: its slot is lost.
            entry.expires_at = EVICTED
        if entry.expires_at <= now or (len(self.idle) >= self.keep and not self.waiting):
            self._retire(entry, conn, effects)
            return
        was_opening = entry.place is OPENING
        if entry.lent_at >= entry.idle_since:  # new, or used; to be checked is no use
            entry.idle_since = now
        entry.conn = conn
        entry.place = IDLE
        self.idle.append(entry)
        self.opening -= was_opening

    def _retire(self, entry: Entry, conn: Any, effects: Effects) -> None:
        """Order a connection to be closed; it no longer counts."""
        entry.expires_at = EVICTED  # whatever interrupts us, it is not kept
        self.retiring[entry] = None
        entry.conn = conn
        self._forget(entry)
        entry.ordered = True
        effects.start.append(entry)

    def _retire_oldest(self, effects: Effects) -> None:
        entry = self.idle.popleft()
        self._retire(entry, entry.conn, effects)

    def _forget(self, entry: Entry) -> None:
        """Remove an entry from the registry."""
        was_opening = entry.place is OPENING
        entry.place = RETIRED
        self.entries.pop(entry, None)
        self.opening -= was_opening

    def _evict_all(self, effects: Effects) -> None:
        for entry in self.entries:
            entry.expires_at = EVICTED
        while self.idle:
            self._retire_oldest(effects)

    def _drain_lost(self) -> None:
        """Give back the slots of permits and connections that were dropped (rule 8)."""
        while self.lost:
            held = self.lost[0]
            entry = held.entry
            if entry.ref is held:
                self._forget(entry)
                self.retiring.pop(entry, None)
                entry.ref = None
            self.lost.popleft()

    def _grow(self, now: float, effects: Effects) -> None:
        """Issue the permits that are wanted; while connecting fails, one at a time."""
        if self.phase is not Phase.OPEN:
            return
        if not (self.waiting or self.opening or len(self.entries) < self.target):
            self.failing_since = inf  # nothing more is attempted: the next failure is another story
        wanted = growth(
            target=self.target,
            size=len(self.entries),
            max_size=self.max_size,
            waiting=len(self.waiting),
            opening=self.opening,
            width=self.num_workers if self.retrying else inf,
        )
        if wanted and self.failures:
            wanted = self._probes(now, effects)
        self._issue(wanted, effects)

    def _issue(self, permits: int, effects: Effects) -> None:
        for _ in range(permits):
            entry = Entry()
            self.entries[entry] = None
            self.opening += 1
            effects.start.append(entry)

    def _probes(self, now: float, effects: Effects) -> int:
        """How many attempts to make now, after the last one has failed: one or none."""
        retry_at = self.retry_at
        if self.waiting:
            retry_at = min(retry_at, self.failed_at + PROBE_INTERVAL)
        if now < retry_at:
            self._due_by(retry_at, effects)
            return 0
        return 0 if self.opening else 1

    def _failed(self, error: BaseException, now: float, chance: float, effects: Effects) -> None:
        """Note a failed attempt to get a usable connection, and when to try again."""
        self.failing_since = min(self.failing_since, now)
        self.failures += 1
        self.failed_at = now
        # An interruption is no connection error; keeping it would keep its frames alive.
        if isinstance(error, Exception):
            self.last_error = error
        if now >= self.failing_since + self.reconnect_timeout:
            effects.gave_up = True
            self.target = self.min_size
            self.failing_since = now
        self.retry_at = now + self.backoff.delay(self.failures, chance)

    def _recovered(self) -> None:
        """An attempt to get a usable connection has succeeded."""
        self.failures = 0
        self.failing_since = inf

    def _due_by(self, at: float, effects: Effects) -> None:
        if at < self.due:
            self.due = at
            effects.alarm = True

    def _take_oldest(self) -> Entry:
        entry = self.idle.popleft()
        self.low_water = min(self.low_water, len(self.idle))
        return entry

    def _shrink(self, now: float, effects: Effects) -> None:
        """Retire connections above min_size that nobody needed for max_idle seconds."""
        surplus = min(self._unused(now), len(self.entries) - self.min_size)
        for _ in range(surplus):
            self._retire_oldest(effects)
            self.target = max(self.min_size, self.target - 1)

    def _unused(self, now: float) -> int:
        unused = sum(entry.idle_since + self.max_idle <= now for entry in self.idle)
        if not self.lifo and now >= self.low_water_since + self.max_idle:
            # In turn, every connection is used now and then: count how many never were needed.
            unused = max(unused, min(self.low_water, len(self.idle)))
            self.low_water, self.low_water_since = len(self.idle), now
        return unused

    def _shrink_due(self) -> float:
        if not self.idle or len(self.entries) <= self.min_size:
            return inf
        oldest = self.idle[0].idle_since
        return (oldest if self.lifo else min(oldest, self.low_water_since)) + self.max_idle

    def _expect(self, entry: Entry, place: object) -> None:
        if entry.place is not place:
            raise RuntimeError(
                f"internal error, please report: {entry!r} should be {place!r} in its pool"
            )
