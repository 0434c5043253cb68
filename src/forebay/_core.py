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

9.  No transition runs inside another one of its own thread.  A signal handler or a finalizer may
    try: `ready` tells.  The common path then finds nothing idle, and a return is put off
    (`returned`).  For all others the shell asks `Runtime.inside()` before it enters.

One transition is one atomic step: the thread shell makes it atomic with `with lock`, the asyncio
shell by containing no `await`.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from enum import Enum
from functools import wraps
from itertools import islice
from math import inf
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, Protocol, TypeVar

from ._entry import (
    EVICTED,
    IDLE,
    LENT,
    OPENING,
    RETIRED,
    SERVICE,
    Chore,
    Effects,
    Entry,
    Held,
    Hold,
    Permit,
    Return,
    Token,
    Verdict,
    Waiter,
)
from ._policy import (
    CROWDED_INTERVAL,
    GRACE,
    KEEPALIVE_PAUSE,
    MAINTENANCE_INTERVAL,
    PROBATION,
    PROBE_INTERVAL,
    PROBE_PATIENCE,
    ROUND_AT_LEAST,
    growth,
    lifetime,
)

if TYPE_CHECKING:
    from .options import Settings

#: `keep` of a pool that keeps all; an int of one digit, which is compared at each return.
ALL = 2**30 - 1

#: `Core.unproven`: new sessions end before they were used once.
DIED = "new connections end before they are used"

#: How many verdicts in a row make credentials wrong that may be others each time.
FRESH_TRIES = 2

P = ParamSpec("P")
T = TypeVar("T")


class KeepOff:
    """Stands in `Core.ready` for the idle connections while the common path must not take them.

    It looks empty to `checkout`, and full to `checkin`.
    """

    def __bool__(self) -> bool:
        return False

    def __len__(self) -> int:
        return ALL


#: A transition is under way, or was cut short.
INSIDE = KeepOff()
#: Somebody waits, or new connections are on probation: each return has more to do.
WANTED = KeepOff()


def step(
    transition: Callable[Concatenate[Core, P], T],
) -> Callable[Concatenate[Core, P], T]:
    """Make a method a transition off the common path (rule 9)."""

    @wraps(transition)
    def run(self: Core, /, *args: P.args, **kwargs: P.kwargs) -> T:
        self.ready = INSIDE
        try:
            return transition(self, *args, **kwargs)
        finally:
            wanted = self.waiting or self.watching or self.unproven
            self.ready = WANTED if wanted else self.idle

    return run


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

    def timeout(self, core: Core, timeout: float, now: float, client: Waiter) -> Exception:
        """The client's time, `timeout` seconds, is up."""
        ...

    def nested(self, core: Core) -> Exception:
        """The client asks inside a transition of its own thread (rule 9)."""
        ...

    def rejected(self, core: Core, error: Exception, now: float) -> Exception:
        """Connecting has failed by `error`, and will until somebody changes something."""
        ...

    def deadlock(self, core: Core, now: float, stuck: dict[Any, Waiter]) -> Exception | None:
        """Every connection is held by a client that waits for another one; `None`: perhaps not."""
        ...


class Core:
    """The state of one pool.  Every method without an underscore is a transition or a reading."""

    __slots__ = (
        "_put_back",
        "_take",
        "bypass",
        "claims",
        "connections_errors",
        "connections_lost",
        "connections_num",
        "connections_time",
        "crowded",
        "demoted_until",
        "demotions",
        "drained_at",
        "due",
        "entries",
        "failed_at",
        "failing_since",
        "failures",
        "forsaken",
        "fresh",
        "granted",
        "idle",
        "keep",
        "last_error",
        "leaked",
        "lifo",
        "lost",
        "low_water",
        "low_water_since",
        "misses",
        "moves",
        "opening",
        "paced_at",
        "phase",
        "probed_at",
        "ready",
        "refusals",
        "rejected_since",
        "rejections",
        "reported",
        "requests_errors",
        "requests_num",
        "requests_queued",
        "requests_time",
        "retiring",
        "retry_at",
        "returned",
        "returns_bad",
        "settings",
        "suspicious",
        "target",
        "unanswered",
        "unproven",
        "usage_time",
        "verdict",
        "waiting",
        "watching",
        "witness",
        "writable",
    )

    def __init__(self, refusals: Refusals, settings: Settings, keep: int = ALL) -> None:
        self.refusals = refusals
        self.settings = settings
        self.keep = keep  # idle connections to keep at most; 0 makes a null pool.  A bound: the
        # pool comes back to min_size when connections are lost, else to what it had grown to
        self.lifo = settings.idle_order == "lifo"
        self.fresh = False  # each attempt to connect may have other credentials
        # Where everything is.
        self.phase = Phase.NEW
        self.entries: dict[Entry, None] = {}  # all but the retired, in order of age
        self.retiring: dict[Entry, None] = {}
        self.idle: deque[Entry] = deque()  # in order of return, the latest on the right
        self.ready: Any = self.idle  # what the common path may take from and add to; see `step`
        self._take: Callable[[], Entry] = self.idle.pop if self.lifo else self._take_oldest
        self._put_back = self.idle.append if self.lifo else self.idle.appendleft
        self.opening = 0  # how many entries are OPENING
        self.target = settings.min_size  # the size to come back to when a connection is lost
        self.waiting: OrderedDict[Waiter, None] = OrderedDict()  # clients, in order of arrival
        self.watching: dict[Waiter, None] = {}  # callers of wait()
        # Dismissed from the queue, perhaps not yet woken; and whether it was woken again since.
        self.granted: dict[Waiter, bool] = {}
        self.claims: dict[Any, int] = {}  # how often each client that waits stands in the queue
        self.witness: Entry | None = None  # lent to one that does not wait: no deadlock
        self.lost: deque[Held] = deque()  # written by weakref callbacks
        self.returned: deque[Return] = deque()  # put off, see `step`
        self.forsaken: deque[Held] = deque()  # the tethers of leases that were dropped
        self.leaked: deque[Entry] = deque()  # whose connections were dropped, to be reported
        self.reported: dict[Entry, Hold] = {}  # lent for too long
        # Dead connections.
        self.suspicious = False  # one was found since the idle ones were looked at
        self.bypass = settings.bypass_window  # the window in force
        # Failing to connect.
        self.failures = 0  # in a row
        # Why new connections are no good though connecting succeeds, if that is so.  None of them
        # is trusted until one has come back from its client in order.
        self.unproven: str | None = None
        self.failing_since = inf  # when this series of attempts without success began
        self.failed_at = 0.0
        self.retry_at = 0.0
        self.probed_at = 0.0  # when the last attempt after a failure began
        self.paced_at = 0.0  # when a new connection that is not trusted yet was opened last
        self.crowded = False  # the server had too many connections
        self.unanswered = 0  # attempts in a row that ended by their time-out
        self.verdict = Verdict.TRANSIENT  # of the last failure
        self.rejections = 0  # how often in a row it was the same
        self.rejected_since = inf  # and since when
        self.last_error: Exception | None = None
        # Primary and standby.
        self.writable: bool | None = None  # connections are meant to be; None: nobody knows yet
        self.demotions = 0  # steps of looking for the primary, in a row
        self.demoted_until = 0.0
        self.drained_at = -inf  # what began to be opened before that is not kept
        # Maintenance.
        self.due = inf  # when maintain() is wanted next
        self.low_water = 0  # fewest idle since low_water_since (only idle_order="fifo")
        self.low_water_since = 0.0
        self.moves = 0  # connections lent, come back or gone off the common path, see `stamp`
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

    @property
    def stamp(self) -> tuple[int, ...]:
        """The same as before: no connection was lent or has come back since."""
        lent = self.requests_num - self.misses
        return lent, self.moves, len(self.idle), len(self.entries)

    def reset_counters(self) -> None:
        """Start counting anew; times are in seconds."""
        self.misses = 0  # requests for which the common path had nothing
        self.moves += 1  # no stamp is like one from before
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

    def checkout(self, now: float, holder: Any = None) -> Any:
        """Lend an idle connection; `None` when there is none, or the next must be looked at.

        Then `enqueue`: a connection that was not used for `bypass_window` seconds may be dead.
        """
        self.requests_num += 1
        ready, self.ready = self.ready, INSIDE  # before the look: what it tells stays true
        if not ready:
            self.misses += 1
            self.ready = ready
            return None
        entry = self._take()
        if now - entry.idle_since > self.bypass:
            self._put_back(entry)
            self.misses += 1
            self.ready = ready
            return None
        conn = entry.conn
        entry.conn = None
        entry.place = LENT
        entry.lent_at = now
        entry.holder = holder
        self.ready = ready
        return conn

    @step
    def enqueue(
        self, waiter: Waiter, now: float, deadline: float = inf, *, again: bool = False
    ) -> Effects:
        """Queue a client until `deadline`; it is served at once if a connection is idle.

        One that comes `again`, since the connection it was given was no good, goes first.

        Raises the pool's own errors when it is not open or the queue is full.
        """
        if self.phase is not Phase.OPEN:
            self.requests_errors += 1
            raise self.refusals.closed(self)
        if 0 < self.settings.max_waiting <= len(self.waiting):
            self.requests_errors += 1
            raise self.refusals.full(self)
        effects = Effects()
        self._drain_lost()
        self._take_returned(now, effects)
        waiter.since = now
        waiter.deadline = deadline
        self.claims[waiter.claim] = self.claims.get(waiter.claim, 0) + 1
        self.waiting[waiter] = None
        if again:
            self.waiting.move_to_end(waiter, last=False)
        self._balance(now, effects)
        if waiter in self.waiting:
            self.requests_queued += 1
            if self._is_stuck() or self.forsaken:
                self._due_by(now, effects)
        else:
            del self.granted[waiter]  # it asks just now: nobody need wake it
        return effects

    def doubtful(self, entry: Entry) -> bool:
        """Whether a connection that was just lent must be looked at before its client has it."""
        return entry.lent_at - entry.idle_since > self.bypass

    def use(self, entry: Entry) -> None:
        """A connection goes to its client; the one of its last use will not be kept."""
        entry.uses += 1
        if 0 < self.settings.max_uses <= entry.uses or not self.settings.max_lifetime:
            entry.expires_at = EVICTED

    def refuse(self) -> None:
        """A client that will not wait has found nothing ready."""
        self.requests_errors += 1
        if self.phase is not Phase.OPEN:
            raise self.refusals.closed(self)

    def expire(self, waiter: Waiter, now: float) -> bool:
        """A client waits no longer; false if it has been served or refused."""
        self.granted.pop(waiter, None)  # it has learnt of it: no step
        return waiter in self.waiting and self._leave_queue(waiter, now)

    @step
    def _leave_queue(self, waiter: Waiter, now: float) -> bool:
        return self._expire(waiter, now)

    def promised(self, waiter: Waiter) -> bool:
        """Whether a client still queues, and one of the connections being opened will be its own.

        The connection that was opened for it may have served one that came before it.
        """
        queues = waiter in islice(self.waiting, self.opening)
        return queues and waiter.entry is None and waiter.error is None

    @step
    def cancel(self, waiter: Waiter, now: float) -> Effects:
        """A client has given up, whatever it waits for; what it was granted goes back."""
        effects = Effects()
        self.watching.pop(waiter, None)
        self.granted.pop(waiter, None)
        if waiter in self.waiting and self._expire(waiter, now):
            return effects
        if waiter.conn is not None and waiter.entry is not None:
            self.requests_errors += 1
            if waiter.entry.place is LENT:  # else reclaimed
                self._put(waiter.entry, waiter.conn, now, effects)
            waiter.conn = None
        return self._balance(now, effects)

    # Checkin -------------------------------------------------------------------------------

    def checkin(
        self, entry: Entry, conn: Any, now: float, lending: float, token: Token | None = None
    ) -> Effects | None:
        """Take a connection back, clean, with the `token` of its lease; `None`: nothing is left.

        The return ends one `lending`, the `lent_at` that its client was given: if that has ended
        already, the connection is somebody else's by now.
        """
        ready, self.ready = self.ready, INSIDE
        if (
            len(ready) >= self.keep
            or self.lost  # perhaps this one: a finalizer may return what the collector gave up
            or entry.expires_at <= now
            or self.forsaken
            or entry.lent_at is not lending
            or entry.place is not LENT
        ):
            self.ready = ready
            return self.give_back(entry, conn, now, lending, token)
        entry.idle_since = now
        entry.conn = conn
        if entry.leased:  # _end_lease(), written out for the hot path
            entry.token = token
            entry.leased = entry.kept = None
            self.usage_time += now - entry.lent_at
        entry.place = IDLE
        self.idle.append(entry)
        self.ready = ready
        return None

    def give_back(
        self,
        entry: Entry,
        conn: Any,
        now: float,
        lending: float,
        token: Token | None = None,
        *,
        clean: bool = True,
    ) -> Effects:
        """Take a connection back in any case, at once or later (rule 9).

        One that is not `clean` must be rolled back, and reset, by a worker before its next use.
        """
        if self.ready is not INSIDE:
            return self._give_back(entry, conn, now, lending, token, clean)
        if self.phase is not Phase.CLOSED:  # else to drop it ends it
            self.returned.append(Return(entry, conn, lending, clean))
        effects = Effects()
        effects.alarm = True
        return effects

    def put_off(self, entry: Entry, conn: Any, lending: float) -> None:
        """Note the return of a connection that is not clean, for the next transition to take."""
        if self.phase is not Phase.CLOSED:  # else to drop it ends it
            self.returned.append(Return(entry, conn, lending, clean=False))

    @step
    def _give_back(
        self,
        entry: Entry,
        conn: Any,
        now: float,
        lending: float,
        token: Token | None,
        clean: bool,
    ) -> Effects:
        effects = Effects()
        self._drain_lost()  # before it is looked at: it may be this one
        place = entry.place
        self._take_returned(now, effects)  # perhaps this one: a handler may have returned it too
        if entry.place is place and (entry.lent_at is lending or place is RETIRED):
            self._take_back(entry, conn, now, clean, effects)
        self.untie(entry, token, lending)  # not before: if we are cut short, it dies
        return self._balance(now, effects)

    @step
    def retake(self, entry: Entry, tether: Held, now: float) -> Effects | None:
        """Take a connection back whose lease was dropped; `None` if it was returned before."""
        if entry.tether is not tether or entry.place is not LENT or entry.kept is None:
            return None
        effects = Effects()
        entry.chore = Chore.RESET
        entry.forfeited = entry.lent_at
        self._take_back(entry, entry.kept, now, clean=False, effects=effects)
        return self._balance(now, effects)

    def tie(self, entry: Entry) -> Token:
        """A new token for the leases of a connection; nothing comes of the one it had."""
        entry.token = token = Token()
        entry.tether = Held.watch(token, entry, self.forsaken)
        return token

    def untie(self, entry: Entry, token: Token | None, lending: float) -> None:
        """A lease gives its token back; one that it has outlived is of no more use.

        Nor is it where the connection is lent again: the next lease has one of its own.  And where
        it has not come back, the token must go on to tell of it.
        """
        if token is None or entry.token is not None or entry.lent_at is not lending:
            return
        if entry.kept is not None:
            return
        tether = entry.tether
        if tether is not None and tether() is token:
            entry.token = token
        else:
            entry.tether = None

    def claim(self, entry: Entry, lending: float) -> bool:
        """A lease begins to end its block; false if its lending has ended already.

        Python drops the weak references to what is in a garbage cycle before it runs the
        finalizers there, so a lease that was taken for dropped may end its block all the same.
        """
        if not entry.leased or entry.lent_at is not lending:
            return False
        if entry.tether is not None and entry.tether() is None:
            entry.tether = None
        return True

    @step
    def serviced(self, entry: Entry, conn: Any, now: float) -> Effects:
        """A worker has reset or checked the connection: it may be lent again."""
        effects = Effects()
        if entry.given_up:
            return self._strayed(entry, conn, effects)
        self._expect(entry, SERVICE)
        entry.seen_at = now
        self._put(entry, conn, now, effects)
        return self._balance(now, effects)

    @step
    def discard(
        self,
        entry: Entry,
        conn: Any,
        now: float,
        chance: float,
        *,
        lending: float | None = None,
        lost: bool = False,
        error: Exception | None = None,
    ) -> Effects:
        """The connection is of no more use; `lost` if it was idle, else a bad return.

        With a `lending`, nothing happens if that has ended already; with an `error`, it is the
        server that has ended the session.
        """
        effects = Effects()
        if lending is not None and entry.place is LENT and entry.lent_at is not lending:
            return effects
        if entry.place is not LENT and entry.place is not SERVICE:
            return self._strayed(entry, conn, effects)
        if lost:
            self.connections_lost += 1
        else:
            self.returns_bad += 1
        self._end_lease(entry, now)
        if error is not None and self._is_on_probation(entry, now):
            self._distrust(DIED, error, now, chance, effects)
        self._retire(entry, conn, effects)
        self._suspect(now, effects)
        return self._balance(now, effects)

    @step
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
        if entry.place is not LENT:
            return self._strayed(entry, conn, effects)
        self.connections_lost += 1
        self._retire(entry, conn, effects)
        if entry.opened_at >= arrived and isinstance(error, Exception):
            self._distrust("new connections fail their check", error, now, chance, effects)
        return self._balance(now, effects)

    @step
    def check_passed(self, now: float) -> Effects:
        """A client's check has passed, after failures."""
        self._recovered()
        return self._balance(now, Effects())

    # Opening -------------------------------------------------------------------------------

    @step
    def begin(self, entry: Entry, now: float) -> Any:
        """A worker takes up what was ordered for an entry; `None` if another one has.

        Returns what the worker holds from now on: a permit, or the connection.
        """
        if not entry.ordered:
            return None
        entry.began_at = now
        if entry.place is OPENING:
            held: Any = Permit()
            entry.ref = Held.watch(held, entry, self.lost)
            self.connections_num += 1
            self.failing_since = min(self.failing_since, now)
        else:
            held = entry.conn
            entry.conn = None
        if held is not None:
            entry.ordered = False
            # Not before: what is ordered has another.
            entry.deadline = now + self.settings.action_timeout
        return held

    def arm(self, entry: Entry, lifeline: Any, deadline: float) -> bool:
        """Somebody begins to work on an entry, and is freed at `deadline`; true: set the alarm."""
        entry.lifeline = lifeline
        entry.deadline = deadline
        wanted = min(deadline, self._give_up_at())
        if self.phase is not Phase.OPEN or wanted >= self.due:
            return False
        self.due = wanted
        return True

    def disarm(self, entry: Entry, lifeline: Any) -> bool:
        """The work is done; false if its time was over before."""
        in_time = entry.lifeline is lifeline
        entry.lifeline = None
        entry.deadline = inf
        return in_time

    @step
    def opened(
        self,
        entry: Entry,
        conn: Any,
        took: float,
        now: float,
        chance: float,
        standby: bool | None = None,
    ) -> Effects:
        """A permit has become a connection, in `took` seconds, to a primary or a `standby`."""
        effects = Effects()
        if entry.given_up and not self._welcome(entry, conn):
            return self._strayed(entry, conn, effects)
        self._expect(entry, OPENING)
        entry.deadline = inf
        self.connections_time += took
        if self.unproven:
            self.paced_at = now
            self.retry_at = now + self.settings.backoff.delay(self.failures, chance)
        else:
            self._recovered()
        entry.opened_at = now
        # A lifetime of 0 ends at the first return, see use().
        if entry.expires_at != EVICTED and self.settings.max_lifetime:
            entry.expires_at = now + lifetime(self.settings.max_lifetime, chance)
        self._note_role(entry, standby, now, chance, effects)
        entry.ref = Held.watch(conn, entry, self.lost)
        self.tie(entry)
        self._put(entry, conn, now, effects)
        if self.keep == ALL:
            self.target = max(self.target, len(self.entries) - self.opening)
        return self._balance(now, effects)

    @step
    def open_failed(
        self,
        entry: Entry,
        conn: Any,
        error: BaseException,
        now: float,
        chance: float,
        verdict: Verdict = Verdict.TRANSIENT,
        *,
        unanswered: bool = False,
    ) -> Effects:
        """A permit comes back unused; `conn` is a connection that could not be configured.

        The next attempt is given more time after one that was `unanswered`.
        """
        effects = Effects()
        if entry.given_up:
            return effects if conn is None else self._strayed(entry, conn, effects)
        self._expect(entry, OPENING)
        entry.deadline = inf
        self.unanswered = self.unanswered + 1 if unanswered else 0
        self.connections_errors += 1
        if conn is None:
            self._forget(entry)
        else:
            entry.ref = Held.watch(conn, entry, self.lost)
            self._retire(entry, conn, effects)
        if self.settings.retrying or not isinstance(error, Exception):
            self._failed(error, now, chance, effects)
            self._judge(error, verdict, now, effects)
        elif self.waiting:
            self._fail(next(iter(self.waiting)), error, now, effects)
        return self._balance(now, effects)

    def retired(self, entry: Entry) -> None:
        """A retired connection has been closed."""
        self.retiring.pop(entry, None)

    # The pool's life -------------------------------------------------------------------------

    @step
    def open(self, now: float) -> Effects:
        """Begin to serve, and to fill the pool."""
        if self.phase is Phase.CLOSED:
            raise self.refusals.closed(self)
        effects = Effects()
        self.phase = Phase.OPEN
        self.low_water_since = now
        self._due_by(now + MAINTENANCE_INTERVAL, effects)
        return self._balance(now, effects)

    @step
    def close(self, now: float) -> Effects:
        """Refuse all clients and close all connections: the lent ones when they come back."""
        effects = Effects()
        if self.phase is Phase.NEW:
            return effects
        self.phase = Phase.CLOSED
        self.due = inf
        self.reported.clear()
        self._repair(now, effects)  # closing again completes a close that was interrupted
        for entry in [e for e in self.entries if e.place is OPENING and e.ordered]:
            self._forget(entry)
        for waiter in [*self.waiting, *self.watching]:
            self._fail(waiter, self.refusals.closed(self), now, effects)
        self._evict_all(effects)
        for entry in [e for e in self.entries if e.kept is not None]:
            if entry.tether is not None and entry.tether() is None:  # its lease was dropped
                self._retire(entry, entry.kept, effects)
            entry.kept = None  # nobody would take it back: it ends with its lease
        return effects

    @step
    def resettle(self, now: float, *, evict: bool) -> tuple[Effects, list[Any]]:
        """The workers are gone for good: do without what they had in hand.

        With `evict`, no connection that there is is kept either.  Returns what is to be closed
        besides, since nobody else has it.
        """
        effects = Effects()
        left = []
        for entry in [e for e in [*self.entries, *self.retiring] if self._is_in_hand(e)]:
            held = entry.ref and entry.ref()
            if held is not None and not isinstance(held, Permit):
                left.append(held)
            entry.given_up = True
            self._forget(entry)
            self.retiring.pop(entry, None)
            entry.ref = None
        self._repair(now, effects)
        if evict:
            self._evict_all(effects)
        self.due = inf  # what was to tell of that has gone with the workers
        self._due_by(now, effects)
        return self._balance(now, effects), left

    def _is_in_hand(self, entry: Entry) -> bool:
        """Whether a worker has taken up an entry."""
        return entry.place not in (IDLE, LENT) and not entry.ordered

    @step
    def drain(self, now: float) -> Effects:
        """Replace every connection: the idle ones now, the others when they come back."""
        effects = Effects()
        self.drained_at = now
        self._evict_all(effects)
        return self._balance(now, effects)

    @step
    def resize(self, min_size: int, max_size: float, now: float) -> Effects:
        """Grow or shrink to the new bounds; lent connections in excess go when they come back."""
        effects = Effects()
        self.settings.min_size = min_size
        self.settings.max_size = max_size
        self.target = (
            max(min_size, min(self.target, int(max_size))) if self.keep == ALL else min_size
        )
        while self.idle and len(self.entries) > max_size:
            self._retire_oldest(effects)
        excess = len(self.entries) - max_size
        for entry in self.entries:
            if excess > 0:
                entry.expires_at = EVICTED
                excess -= 1
        return self._balance(now, effects)

    @step
    def fill(self, size: int, now: float) -> Effects:
        """Open what is missing to `size` connections, once: attempts that fail are not repeated."""
        effects = Effects()
        self._drain_lost()
        if self.phase is Phase.OPEN:
            self._issue(int(min(size, self.settings.max_size)) - len(self.entries), effects)
        return self._balance(now, effects)

    @step
    def recall(self, entry: Entry) -> Any:
        """Take an idle connection into service, for check(); `None` if it is idle no more."""
        return self._recall(entry)

    def _recall(self, entry: Entry) -> Any:
        if entry.place is not IDLE:
            return None
        self.idle.remove(entry)
        conn = entry.conn
        entry.conn = None
        entry.place = SERVICE
        return conn

    @step
    def inspect(self, entry: Entry, now: float) -> Effects:
        """Have a worker look at an idle connection, on whose socket something has come."""
        effects = Effects()
        conn = self._recall(entry)
        if conn is not None:
            entry.chore = Chore.LOOK
            self._order(entry, conn, effects, now + self.settings.action_timeout)
        return effects

    @step
    def watch(self, waiter: Waiter) -> None:
        """Wake a caller of wait() when min_size connections are idle."""
        if self.phase is not Phase.OPEN:
            raise self.refusals.closed(self)
        if len(self.idle) >= self.settings.min_size:
            waiter.ready = True
        else:
            self.watching[waiter] = None

    @step
    def demoted(self, now: float, chance: float) -> Effects:
        """A server that connections were writable on is a standby: look for the primary.

        All connections are replaced, at most once for each step of the backoff.
        """
        effects = Effects()
        if now >= self.demoted_until:
            self._next_step(now, chance)
            self._evict_all(effects)
            effects.demoted = True
        return self._balance(now, effects)

    # Maintenance -------------------------------------------------------------------------------

    @step
    def snapshot(self) -> list[tuple[Entry, Any]]:
        """What is idle, for one look at all of it; `recall` each before it is touched."""
        self.suspicious = False
        return [(entry, entry.conn) for entry in self.idle]

    @step
    def reclaim(
        self, entry: Entry, now: float, chance: float = 0.5, *, error: Exception | None = None
    ) -> Effects:
        """A lent connection was found closed: its slot need not wait for the client.

        With an `error` it is the server that has ended the session.

        psycopg's close() does nothing on a lost connection, so with `close_returns` such a client
        never returns it, and may hold it in a reference cycle for long.
        """
        effects = Effects()
        if entry.place is LENT:
            self.returns_bad += 1
            if error is not None and self._is_on_probation(entry, now):
                self._distrust(DIED, error, now, chance, effects)
            self._forget(entry)
            entry.ref = entry.kept = None
        return self._balance(now, effects)

    @step
    def maintain(self, now: float, chance: float = 0.5) -> Effects:
        """Do what time alone makes necessary; the caller comes back when it is `due`."""
        effects = Effects()
        self.due = inf if self.phase is Phase.CLOSED else now + MAINTENANCE_INTERVAL
        if self.phase is not Phase.OPEN:
            return effects
        if not self.suspicious:
            self.bypass = self.settings.bypass_window
        self._repair(now, effects)
        self._end_overdue(now, chance, effects)
        if now >= self._give_up_at():
            self._give_up_trying(now, effects)
        new = (entry for entry in self.idle if entry.opened_at >= self.failed_at)
        if self.unproven and any(entry.opened_at + PROBATION <= now for entry in new):
            self._recovered()  # one of them has lived for long enough
        for entry in [e for e in self.idle if e.expires_at <= now]:
            self.idle.remove(entry)
            self._retire(entry, entry.conn, effects)
        self._shrink(now, effects)
        if self.waiting and self._is_stuck():
            self._break_deadlock(now, effects)
        if self.settings.keepalive_interval:
            self._keep_alive(now, effects)
        self._balance(now, effects)
        times = [max(entry.expires_at, now + ROUND_AT_LEAST) for entry in self.idle]
        times += [entry.deadline for entry in [*self.entries, *self.retiring]]
        soon = now if self.suspicious else self._give_up_at()
        self.due = min(self.due, self._shrink_due(), soon, *times)
        effects.alarm = False
        return effects

    @step
    def overheld(self, now: float) -> tuple[list[Hold], list[Hold]]:
        """What has been lent for longer than `leak_threshold`, and what of that came back since."""
        ended = [
            entry
            for entry, hold in self.reported.items()
            if entry.place is not LENT or entry.lent_at is not hold.since
        ]
        returned = [self.reported.pop(entry) for entry in ended]
        held = {
            entry: Hold(entry.holder, entry.lent_at, entry.line)
            for entry in ([*self.entries] if self.settings.leak_threshold else ())
            if entry.place is LENT
            and entry.lent_at + self.settings.leak_threshold <= now
            and entry not in self.reported
        }
        self.reported.update(held)
        return [*held.values()], returned

    @step
    def audit(self, now: float, effects: Effects) -> None:
        """Restore every invariant after a transition or a door was interrupted (rule 3).

        Does nothing where nothing is amiss, but order again what no worker has begun.
        """
        self._repair(now, effects)

    def _repair(self, now: float, effects: Effects) -> None:
        for waiter in [w for w in self.waiting if w.entry is not None or w.error is not None]:
            self._finish_grant(waiter, now, effects)
        effects.wake.extend(self.granted)
        # Twice, in case that is cut short, too.  Who does not come then is gone: what it was given
        # must go with it.
        self.granted = {waiter: True for waiter, again in self.granted.items() if not again}
        self.claims = dict(Counter(waiter.claim for waiter in self.waiting))
        self._drain_lost()
        self._take_returned(now, effects)
        present = set(self.idle)
        for entry in list(self.entries):
            if entry.place is RETIRED:
                self._forget(entry)
            elif entry.ordered:
                effects.start.append(entry)
            elif entry.conn is not None and entry not in present:
                entry.place = IDLE
                self.idle.append(entry)
            elif (tether := self._forsaken_by(entry)) and tether not in self.forsaken:
                self.forsaken.append(tether)  # taken there, and not back
        for entry in self.retiring:
            if entry.place is RETIRED and entry.conn is not None:
                entry.ordered = True
                effects.start.append(entry)
        self.opening = sum(e.place is OPENING for e in self.entries)

    def _forsaken_by(self, entry: Entry) -> Held | None:
        """The tether of a lease that was dropped, its connection not taken back; else `None`."""
        tether = entry.tether
        dropped = entry.kept is not None and tether is not None and tether() is None
        return tether if dropped else None

    # The steps that transitions share --------------------------------------------------------

    def _balance(self, now: float, effects: Effects) -> Effects:
        """Serve whom we can, keep no more than we should, open what is wanted."""
        while self.waiting and self.idle:
            waiter = next(iter(self.waiting))
            waiter.entry = self._take()
            self._finish_grant(waiter, now, effects)
        while len(self.idle) > self.keep:
            self._retire_oldest(effects)
        if self.watching and len(self.idle) >= self.settings.min_size:
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
            entry.holder = waiter.holder
            self.moves += 1
            waiter.conn = entry.conn
            entry.conn = None
        self._dismiss(waiter, now, effects)

    def _dismiss(self, waiter: Waiter, now: float, effects: Effects) -> None:
        """Let a client go that has been served or refused."""
        self.granted[waiter] = False
        if self.waiting.pop(waiter, self) is None:
            self._unclaim(waiter)
            self.requests_time += now - waiter.since
        self.watching.pop(waiter, None)
        effects.wake.append(waiter)

    def _expire(self, waiter: Waiter, now: float) -> bool:
        if waiter.entry is not None or waiter.error is not None:
            self._finish_grant(waiter, now, Effects())  # it was interrupted
            del self.granted[waiter]
            return False
        self.requests_errors += 1
        self.requests_time += now - waiter.since
        del self.waiting[waiter]
        self._unclaim(waiter)
        return True

    def _unclaim(self, waiter: Waiter) -> None:
        """A client has left the queue."""
        left = self.claims.get(waiter.claim, 0) - 1
        if left > 0:
            self.claims[waiter.claim] = left
        else:
            self.claims.pop(waiter.claim, None)

    def _fail(self, waiter: Waiter, error: Exception, now: float, effects: Effects) -> None:
        """Refuse a client that waits."""
        self.requests_errors += waiter in self.waiting
        waiter.error = error
        self._dismiss(waiter, now, effects)

    def _is_stuck(self) -> bool:
        """Whether all connections seem to be held by clients that wait for another one here."""
        full = len(self.entries) >= self.settings.max_size
        return self.opening == 0 and full and not self._has_witness()

    def _break_deadlock(self, now: float, effects: Effects) -> None:
        """Refuse one client if all connections are held by clients that wait for another.

        Only where that is certain.  The one that would give up first is refused: until then,
        nothing could have changed.
        """
        holders = {entry.leased for entry in self.entries}
        stuck = {waiter.claim: waiter for waiter in self.waiting if waiter.claim in holders}
        if len(stuck) == len(holders):
            error = self.refusals.deadlock(self, now, stuck)
            if error is not None:
                first = min(stuck.values(), key=lambda each: each.deadline)
                self._fail(first, error, now, effects)

    def _has_witness(self) -> bool:
        """Whether some connection is with a client that does not wait for another.

        The last one that was found is asked first, so that a long queue costs no more than a
        short one.
        """
        if self.witness is None or not self._testifies(self.witness):
            self.witness = next(filter(self._testifies, self.entries), None)
        return self.witness is not None

    def _testifies(self, entry: Entry) -> bool:
        if entry.place is LENT:
            return not entry.leased or entry.leased not in self.claims
        return entry.place is SERVICE

    def _strayed(self, entry: Entry, conn: Any, effects: Effects) -> Effects:
        """A connection comes back whose slot was given back before: close it."""
        if entry.place is not RETIRED or entry.ref is not None:
            raise ValueError(f"the connection is {entry.place.value} in its pool, not lent")
        entry.ref = Held.watch(conn, entry, self.lost)
        self._retire(entry, conn, effects)
        return effects

    def _take_back(
        self, entry: Entry, conn: Any, now: float, clean: bool, effects: Effects
    ) -> None:
        """Make a connection that comes back idle, or have a worker reset it first."""
        if entry.place is not LENT:
            self._strayed(entry, conn, effects)
            return
        self.moves += 1
        self._end_lease(entry, now)
        if not clean and entry.expires_at > now and (self.keep or self.waiting):
            entry.place = SERVICE
            self._order(entry, conn, effects, now + self.settings.action_timeout)
            return
        self._put(entry, conn, now, effects)
        self._prove(entry)

    def _take_returned(self, now: float, effects: Effects) -> None:
        """Take what came back while a transition of the same thread was under way (rule 9)."""
        while self.returned:
            entry, conn, lending, clean = self.returned[0]
            if entry.place is LENT and entry.lent_at is lending:
                self._take_back(entry, conn, now, clean, effects)
            elif entry.place is RETIRED and entry.ref is None:  # its slot was given back before
                self._strayed(entry, conn, effects)
            self.returned.popleft()

    def _end_lease(self, entry: Entry, now: float) -> None:
        """Count the time of a connection() that ends."""
        if entry.leased:
            entry.leased = entry.kept = None
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
        entry.chore = Chore.RESET
        entry.conn = conn
        entry.place = IDLE
        at = len(self.idle)
        while at and self.idle[at - 1].idle_since > entry.idle_since:
            at -= 1
        self.idle.insert(at, entry)
        self.opening -= was_opening

    def _retire(self, entry: Entry, conn: Any, effects: Effects) -> None:
        """Order a connection to be closed; it no longer counts."""
        entry.expires_at = EVICTED  # whatever interrupts us, it is not kept
        self.retiring[entry] = None
        entry.conn = conn
        self._forget(entry)
        self._order(entry, conn, effects)

    def _order(self, entry: Entry, conn: Any, effects: Effects, deadline: float = inf) -> None:
        """Have a worker take up a connection, by `deadline`."""
        entry.deadline = deadline
        entry.ordered = True
        entry.conn = conn
        effects.start.append(entry)

    def _retire_oldest(self, effects: Effects) -> None:
        entry = self.idle.popleft()
        self._retire(entry, entry.conn, effects)

    def _forget(self, entry: Entry) -> None:
        """Remove an entry from the registry."""
        was_opening = entry.place is OPENING
        self.moves += 1
        entry.place = RETIRED
        self.entries.pop(entry, None)
        self.opening -= was_opening
        entry.tether = entry.token = None  # else a circle
        if self.witness is entry:
            self.witness = None

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
                if entry.place is LENT:
                    self.leaked.append(entry)
                self._forget(entry)
                self.retiring.pop(entry, None)
                entry.ref = None
            self.lost.popleft()

    def _grow(self, now: float, effects: Effects) -> None:
        """Issue the permits that are wanted; while connecting fails, one at a time."""
        if self.phase is not Phase.OPEN:
            return
        if self.waiting and len(self.entries) >= self.settings.max_size:
            return  # clients queue at a full pool: nothing can be opened, nor joined by another one
        if not (self.waiting or self.opening or len(self.entries) < self.target):
            # Nothing more is attempted: the next failure is another story.
            self.failing_since = self.rejected_since = inf
            self.crowded = False
        relied_on = self.settings.retrying and self.waiting and self.opening
        stuck = self._unanswered(now, effects) if relied_on else 0
        wanted = growth(
            target=self.target,
            size=len(self.entries),
            max_size=self.settings.max_size,
            waiting=len(self.waiting) + stuck,  # what does not come serves nobody
            opening=self.opening,
            width=self._width + bool(stuck),
        )
        if self.failures:
            wanted = self._probes(bool(wanted), now, effects)
        if wanted:
            self.probed_at = now
            self._issue(wanted, effects)

    def _issue(self, permits: int, effects: Effects) -> None:
        for _ in range(permits):
            entry = Entry()
            self.entries[entry] = None
            self.opening += 1
            effects.start.append(entry)

    def _unanswered(self, now: float, effects: Effects) -> int:
        """How many attempts to connect have lasted for too long for somebody to rely on them."""
        newest = (e for e in reversed(self.entries) if e.place is OPENING)
        begun = [e.began_at for e in islice(newest, self.opening) if not e.ordered]
        for began_at in begun:
            if now < began_at + PROBE_PATIENCE:
                self._due_by(began_at + PROBE_PATIENCE, effects)
        return sum(began_at + PROBE_PATIENCE <= now for began_at in begun)

    @property
    def _width(self) -> float:
        """How many connections may be opening side by side."""
        if not self.settings.retrying:
            return inf
        return 1 if self.crowded else self.settings.num_workers

    def _probes(self, wanted: bool, now: float, effects: Effects) -> int:
        """How many attempts to make now, after the last one has failed: one or none.

        One at a time; where somebody waits, those that are not answered are joined by another one
        each second.
        """
        if self.opening:
            room = len(self.entries) < self.settings.max_size and not self.crowded
            if self.opening > self._width or not (self.waiting and room):
                return 0
            at = self.probed_at + PROBE_PATIENCE
        elif not wanted:
            return 0
        else:
            at = self.retry_at
            if self.waiting or self.watching:
                interval = CROWDED_INTERVAL if self.crowded else PROBE_INTERVAL
                at = min(at, max(self.failed_at, self.paced_at) + interval)
        if now < at:
            self._due_by(at, effects)
            return 0
        return 1

    def _judge(self, error: BaseException, verdict: Verdict, now: float, effects: Effects) -> None:
        """Draw the consequences of a failed attempt, besides trying again later.

        A refusal is believed when it has stood for `rejected_after` seconds; credentials that may
        be others each time, when `FRESH_TRIES` of them were refused.
        """
        self.crowded = verdict is Verdict.CROWDED
        if verdict is not self.verdict or self.rejected_since == inf:
            self.verdict, self.rejected_since, self.rejections = verdict, now, 0
        self.rejections += 1
        if verdict is Verdict.HOPELESS:
            final = True
        elif verdict is Verdict.REJECTED or verdict is Verdict.CREDENTIALS:
            final = now >= self.rejected_since + self.settings.rejected_after
        else:
            return
        if self.fresh and verdict is not Verdict.REJECTED:
            final = final and self.rejections >= FRESH_TRIES
        if final and isinstance(error, Exception) and not self.entries:
            for waiter in [*self.waiting, *self.watching]:
                self._fail(waiter, self.refusals.rejected(self, error, now), now, effects)

    def _failed(self, error: BaseException, now: float, chance: float, effects: Effects) -> None:
        """Note a failed attempt to get a usable connection, and when to try again."""
        self.failing_since = min(self.failing_since, now)
        self.failures += 1
        self.failed_at = now
        # An interruption is no connection error; keeping it would keep its frames alive.
        if isinstance(error, Exception):
            self.last_error = error
        self.retry_at = now + self.settings.backoff.delay(self.failures, chance)
        if now >= self._give_up_at():
            self._give_up_trying(now, effects)
        else:
            self._due_by(self._give_up_at(), effects)

    def _distrust(
        self, why: str, error: Exception, now: float, chance: float, effects: Effects
    ) -> None:
        """New connections are no good though connecting succeeds: that counts as a failure."""
        self.unproven = why
        self._failed(error, now, chance, effects)

    def _is_on_probation(self, entry: Entry, now: float) -> bool:
        """Whether a connection that has ended is young, and was never returned.

        And was opened after the last failure: those that end together count once.
        """
        young = entry.idle_since == entry.opened_at and now < entry.opened_at + PROBATION
        counted = self.failures and entry.opened_at < self.failed_at
        return self.settings.retrying and young and not counted

    def _prove(self, entry: Entry) -> None:
        """A connection has come back in order: new ones are good again, if it is one of them."""
        if self.unproven and entry.opened_at >= self.failed_at:
            self._recovered()

    def _give_up_at(self) -> float:
        """When attempts will have been in vain for `reconnect_timeout` seconds."""
        patience = max(self.settings.reconnect_timeout, ROUND_AT_LEAST)
        return self.failing_since + patience if self.settings.retrying else inf

    def _give_up_trying(self, now: float, effects: Effects) -> None:
        """Attempts have been in vain for long enough to tell the user; they go on."""
        effects.gave_up = True
        self.target = self.settings.min_size
        self.failing_since = now

    def _recovered(self) -> None:
        """An attempt to get a usable connection has succeeded."""
        self.failures = self.unanswered = 0
        self.failing_since = self.rejected_since = inf
        self.unproven = None

    def _suspect(self, now: float, effects: Effects) -> None:
        """A connection was found dead: trust none until the idle ones have been looked at."""
        self.suspicious = True
        self.bypass = -1.0
        self._due_by(now, effects)

    def _note_role(
        self, entry: Entry, standby: bool | None, now: float, chance: float, effects: Effects
    ) -> None:
        """A connection to a standby, where it should be writable, lasts until the next step."""
        if standby is None or self.writable is False:
            return
        entry.standby = standby
        if standby and self.writable:
            entry.expires_at = min(entry.expires_at, self._next_step(now, chance))
        elif not standby:
            self.writable = True
            if now >= self.demoted_until + PROBATION:  # a pooler may only say so
                self.demotions = 0
            for other in [other for other in self.entries if other.standby]:
                other.expires_at = EVICTED
                if other.place is IDLE:
                    self.idle.remove(other)
                    self._retire(other, other.conn, effects)

    def _next_step(self, now: float, chance: float) -> float:
        """When to look for the primary next."""
        if now >= self.demoted_until:
            self.demotions += 1
            self.demoted_until = now + self.settings.backoff.delay(self.demotions, chance)
        return self.demoted_until

    def _end_overdue(self, now: float, chance: float, effects: Effects) -> None:
        """Free who is blocked on a connection; wait no more for a worker that still is."""
        overdue = [e for e in [*self.entries, *self.retiring] if e.deadline <= now]
        for entry in overdue:
            if entry.ordered:  # all workers are blocked: it is closed, and replaced
                self.returns_bad += 1
                self._retire(entry, entry.conn, effects)
            elif entry.lifeline is not None:
                entry.expires_at = EVICTED  # however the action ends now
                effects.cut.append(entry.lifeline)
                entry.lifeline = None
                entry.deadline = now + GRACE
            else:
                entry.deadline = inf
                self._give_up(entry, now, chance, effects)

    def _give_up(self, entry: Entry, now: float, chance: float, effects: Effects) -> None:
        """Do without what a worker has; what it brings late is closed."""
        if entry.place is LENT or entry.place is IDLE:
            return  # a client's own thread is not ours to replace
        entry.given_up = True
        effects.give_up.append(entry)
        if entry.place is OPENING:
            self.connections_errors += 1
            if self.settings.retrying:
                late = TimeoutError("an attempt to connect, or its callback, did not end in time")
                self.unanswered += 1
                self._failed(late, now, chance, effects)
        elif entry.place is SERVICE:
            self.returns_bad += 1
        self._forget(entry)
        self.retiring.pop(entry, None)
        entry.ref = None

    def _welcome(self, entry: Entry, conn: Any) -> bool:
        """Whether a connection that comes late, its worker given up, is wanted all the same.

        Connecting may need longer than its own time-outs say, where a name has many addresses.
        """
        wanted = self.waiting or len(self.entries) < self.target
        room = self.phase is Phase.OPEN and len(self.entries) < self.settings.max_size
        if not (wanted and room) or entry.began_at <= self.drained_at:
            return False
        entry.ref = Held.watch(conn, entry, self.lost)  # first: it may be dropped at any moment
        entry.given_up = False
        entry.place = OPENING
        self.opening += 1
        self.entries[entry] = None
        return True

    def _keep_alive(self, now: float, effects: Effects) -> None:
        """Have a query made on connections that were idle and unasked for long.

        As many at a time as there are workers: the others stay ready for clients.
        """
        busy = sum(entry.place is SERVICE for entry in self.entries)
        for entry in list(self.idle):
            ask_at = max(entry.idle_since, entry.seen_at) + self.settings.keepalive_interval
            if ask_at > now:
                self._due_by(ask_at, effects)
            elif busy < self.settings.num_workers:
                busy += 1
                conn = self._recall(entry)
                entry.chore = Chore.PING
                self._order(entry, conn, effects, now + self.settings.action_timeout)
            else:
                self._due_by(now + KEEPALIVE_PAUSE, effects)

    def _due_by(self, at: float, effects: Effects) -> None:
        if at < self.due and self.phase is not Phase.CLOSED:
            self.due = at
            effects.alarm = True

    def _take_oldest(self) -> Entry:
        entry = self.idle.popleft()
        self.low_water = min(self.low_water, len(self.idle))
        return entry

    def _shrink(self, now: float, effects: Effects) -> None:
        """Retire connections above min_size that nobody needed for max_idle seconds."""
        surplus = min(self._unused(now), len(self.entries) - self.settings.min_size)
        for _ in range(surplus):
            self._retire_oldest(effects)
            self.target = max(self.settings.min_size, self.target - 1)

    def _unused(self, now: float) -> int:
        max_idle = self.settings.max_idle
        unused = sum(entry.idle_since + max_idle <= now for entry in self.idle)
        if not self.lifo and now >= self.low_water_since + max_idle:
            # In turn, every connection is used now and then: count how many never were needed.
            unused = max(unused, min(self.low_water, len(self.idle)))
            self.low_water, self.low_water_since = len(self.idle), now
        return unused

    def _shrink_due(self) -> float:
        if not self.idle or len(self.entries) <= self.settings.min_size:
            return inf
        oldest = self.idle[0].idle_since
        return (oldest if self.lifo else min(oldest, self.low_water_since)) + self.settings.max_idle

    def _expect(self, entry: Entry, place: object) -> None:
        if entry.place is not place:
            raise RuntimeError(
                f"internal error, please report: {entry!r} should be {place!r} in its pool"
            )
