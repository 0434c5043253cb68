"""The core beside a model made of lists, with more clients than can be explored one by one."""

from __future__ import annotations

from math import inf
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from forebay._core import ALL, Phase
from forebay._entry import OPENING, RETIRED, Effects, Entry
from forebay.errors import PoolClosedMixin, PoolTimeoutMixin, Refusals, TooManyRequestsMixin

from .cores import core_of
from .invariants import violations
from .returns import checkin, recycle

CONNECTIONS, CLIENTS = 10, 20
LIFETIME, CHANCE, IDLE_FOR = 1000.0, 0.5, 60.0

which = st.integers(min_value=0, max_value=CLIENTS)


class Conn:
    """A connection, which knows when it was opened and returned."""

    def __init__(self, entry: Entry, now: float) -> None:
        self.entry = entry
        self.opened_at = now
        self.returned_at = now
        self.doomed = False

    def is_old(self, now: float) -> bool:
        """Whether it must not be kept."""
        return self.doomed or now >= self.opened_at + LIFETIME * 0.975


class Client:
    """Somebody in the queue."""

    def __init__(self) -> None:
        self.entry: Entry | None = None
        self.conn: Conn | None = None
        self.error: BaseException | None = None
        self.ready = False
        self.since = self.deadline = 0.0
        self.holder = self.claim = self.client = None

    def wake(self) -> None:
        """Nobody sleeps here."""

    async def wait(self, timeout: float | None) -> None:
        """Nobody sleeps here."""


class CoreBesideLists(RuleBasedStateMachine):
    """Every transition of the core in any order; the lists say what should have come of it."""

    @initialize(lifo=st.booleans(), min_size=st.integers(0, 4), keep=st.sampled_from([ALL, ALL, 0]))
    def make(self, lifo: bool, min_size: int, keep: int) -> None:
        """Open a pool, most of the time one that keeps its connections."""
        self.now = 1000.0
        self.lifo, self.keep = lifo, keep
        self.core = core_of(
            Refusals("random", PoolClosedMixin, PoolTimeoutMixin, TooManyRequestsMixin),
            min_size=min_size if keep else 0,
            max_size=CONNECTIONS,
            keep=keep,
            retrying=bool(keep),
            lifo=lifo,
            max_lifetime=LIFETIME,
            max_idle=IDLE_FOR if lifo else 1e9,
            action_timeout=inf,
        )
        self.idle: list[Conn] = []
        self.lent: list[Conn] = []
        self.waiting: list[Client] = []
        self.served: list[Client] = []
        self.service: list[Conn] = []
        self.orders: list[Entry] = []
        self.permits: list[tuple[Entry, Any]] = []
        self.carry_out(self.core.open(self.now))
        self.workers_open_all_there_is_to_open()

    # Clients -----------------------------------------------------------------------------

    @rule()
    def a_client_comes(self) -> None:
        """It takes the connection that the order asks for, or queues."""
        self.now += 0.001
        self.core.bypass = inf  # whether a connection must be looked at is not asked here
        expected = (self.idle[-1] if self.lifo else self.idle[0]) if self.idle else None
        conn = self.core.checkout(self.now)
        assert conn is expected
        if conn is not None:
            self.idle.remove(conn)
            self.lent.append(conn)
        elif len(self.waiting) < CLIENTS:
            client = Client()
            self.waiting.append(client)
            self.carry_out(self.core.enqueue(client, self.now))

    @rule(n=st.integers(2, CONNECTIONS))
    def many_clients_come(self, n: int) -> None:
        """Enough to make a pool grow."""
        for _ in range(n):
            self.a_client_comes()
        self.workers_open_all_there_is_to_open()

    @rule()
    def the_served_take_their_connections(self) -> None:
        """All of them."""
        while self.served:
            self.a_client_is_served(0, True)

    @precondition(lambda self: self.lent)
    @rule(n=which)
    def a_client_returns(self, n: int) -> None:
        """The connection goes to the first in the queue, or is idle, or is too old."""
        conn = self.lent.pop(n % len(self.lent))
        self.put(conn)
        self.carry_out(checkin(self.core, conn.entry, conn, self.now) or Effects())

    @rule(n=which)
    def many_clients_return(self, n: int) -> None:
        """In the order in which they came."""
        for _ in range(min(n, len(self.lent))):
            self.a_client_returns(0)

    @precondition(lambda self: self.lent)
    @rule(n=which)
    def a_client_returns_twice(self, n: int) -> None:
        """The second time is refused, and changes nothing."""
        self.a_client_returns(n)
        for conn in self.idle:
            try:
                checkin(self.core, conn.entry, conn, self.now)
            except ValueError:
                continue
            raise AssertionError("an idle connection was checked in")

    @precondition(lambda self: self.lent)
    @rule(n=which)
    def a_client_breaks_a_connection(self, n: int) -> None:
        """It is not seen again."""
        conn = self.lent.pop(n % len(self.lent))
        self.carry_out(self.core.discard(conn.entry, conn, self.now, 0.5))

    @precondition(lambda self: self.lent)
    @rule(n=which)
    def a_client_drops_a_connection(self, n: int) -> None:
        """Its slot comes back with the next maintenance."""
        conn = self.lent.pop(n % len(self.lent))
        del conn
        self.maintain()

    @precondition(lambda self: self.lent)
    @rule(n=which)
    def a_client_returns_a_connection_to_be_reset(self, n: int) -> None:
        """A worker takes it up, unless it would be closed right after."""
        conn = self.lent.pop(n % len(self.lent))
        if not conn.is_old(self.now) and (self.keep or self.waiting):
            self.service.append(conn)
        self.carry_out(recycle(self.core, conn.entry, conn, self.now))

    @precondition(lambda self: self.service)
    @rule(n=which)
    def a_worker_has_reset_a_connection(self, n: int) -> None:
        """It can be lent again."""
        conn = self.service.pop(n % len(self.service))
        if conn.entry in self.orders:
            self.orders.remove(conn.entry)
            assert self.core.begin(conn.entry, self.now) is conn
        self.put(conn)
        self.carry_out(self.core.serviced(conn.entry, conn, self.now))

    @precondition(lambda self: self.waiting)
    @rule(n=which)
    def a_client_times_out(self, n: int) -> None:
        """It leaves the queue at once."""
        client = self.waiting.pop(n % len(self.waiting))
        assert self.core.expire(client, self.now)

    @precondition(lambda self: self.waiting)
    @rule(n=which)
    def a_client_is_cancelled(self, n: int) -> None:
        """It leaves the queue at once."""
        client = self.waiting.pop(n % len(self.waiting))
        self.carry_out(self.core.cancel(client, self.now))

    @precondition(lambda self: self.served)
    @rule(n=which, takes=st.booleans())
    def a_client_is_served(self, n: int, takes: bool) -> None:
        """It takes its connection, or has been cancelled meanwhile."""
        client = self.served.pop(n % len(self.served))
        assert not self.core.expire(client, self.now)
        conn = client.conn
        assert conn is not None
        if takes:
            client.conn = None
            self.lent.append(conn)
        else:
            self.put(conn)
            self.carry_out(self.core.cancel(client, self.now))

    # Workers -----------------------------------------------------------------------------

    @precondition(lambda self: self.orders)
    @rule(n=which)
    def a_worker_begins(self, n: int) -> None:
        """It holds a permit, or a connection to close; or another one was first."""
        entry = self.orders.pop(n % len(self.orders))
        held = self.core.begin(entry, self.now)
        assert self.core.begin(entry, self.now) is None
        if held is None:
            return
        if entry.place is OPENING:
            self.permits.append((entry, held))
        elif entry.place is RETIRED:
            self.core.retired(entry)
        else:
            assert held in self.service

    @precondition(lambda self: self.permits)
    @rule(n=which)
    def a_connection_is_opened(self, n: int) -> None:
        """It goes to the first in the queue, or is idle."""
        entry, _ = self.permits.pop(n % len(self.permits))
        conn = Conn(entry, self.now)
        conn.doomed = entry.expires_at == -inf
        self.put(conn)
        self.carry_out(self.core.opened(entry, conn, 0.0, self.now, CHANCE))

    @rule()
    def workers_open_all_there_is_to_open(self) -> None:
        """They begin all that is ordered, and all connections succeed."""
        while self.orders or self.permits:
            while self.orders:
                self.a_worker_begins(0)
            if self.permits:
                self.a_connection_is_opened(0)

    @precondition(lambda self: self.permits)
    @rule(n=which)
    def a_connection_cannot_be_opened(self, n: int) -> None:
        """A null pool tells the first in the queue, others try again later."""
        entry, _ = self.permits.pop(n % len(self.permits))
        error = OSError("refused")
        if self.waiting and not self.keep:
            assert self.waiting.pop(0).error is None
        self.carry_out(self.core.open_failed(entry, None, error, self.now, CHANCE))

    @precondition(lambda self: self.permits)
    @rule(n=which)
    def a_worker_dies(self, n: int) -> None:
        """Its permit comes back with the next maintenance."""
        self.permits.pop(n % len(self.permits))
        self.maintain()

    # The pool ----------------------------------------------------------------------------

    @rule(seconds=st.sampled_from([0.1, 5.0, 61.0, 500.0]))
    def time_passes(self, seconds: float) -> None:
        """Nothing happens before maintenance."""
        self.now += seconds

    @rule()
    def maintain(self) -> None:
        """Old connections go, then those that nobody needed."""
        effects = self.core.maintain(self.now)
        self.idle = [conn for conn in self.idle if not conn.is_old(self.now)]
        unused = sum(conn.returned_at + IDLE_FOR <= self.now for conn in self.idle)
        # What the effects order now was not part of the size when the surplus was counted.
        new = sum(e.place is OPENING and e not in self.orders for e in effects.start)
        known = len(self.idle) + self.busy() + self.core.opening - new
        surplus = min(unused, known - self.core.settings.min_size) if self.lifo else 0
        del self.idle[: max(0, surplus)]
        self.carry_out(effects)

    @rule()
    def drain(self) -> None:
        """Idle connections go now, the others when they come back."""
        for conn in [*self.lent, *self.service, *(c.conn for c in self.served if c.conn)]:
            conn.doomed = True
        self.idle.clear()
        self.carry_out(self.core.drain(self.now))

    @precondition(lambda self: self.keep)
    @rule(low=st.integers(0, 4), high=st.integers(4, CONNECTIONS))
    def resize(self, low: int, high: int) -> None:
        """The oldest idle connections go, then those that are lent, when they come back."""
        excess = self.core.size - high
        effects = self.core.resize(low, high, self.now)
        del self.idle[: max(0, min(excess, len(self.idle)))]
        self.carry_out(effects)
        busy = [*self.lent, *self.service, *(c.conn for c in self.served if c.conn)]
        for conn in busy:
            conn.doomed = conn.entry.expires_at == -inf
        assert sum(e.expires_at > -inf for e in self.core.entries) <= high

    @precondition(lambda self: self.core.phase is Phase.OPEN and len(self.lent) > CONNECTIONS // 2)
    @rule()
    def turn_nobody_away_while_open(self) -> None:
        """What is lent plus what can still be opened is the whole pool."""
        assert self.core.lent <= CONNECTIONS

    # The lists -----------------------------------------------------------------------------

    def put(self, conn: Conn) -> None:
        """A connection is free: an old one is retired."""
        if not conn.is_old(self.now):
            conn.returned_at = self.now
            self.idle.append(conn)

    def carry_out(self, effects: Effects) -> None:
        """Serve the queue from the lists, and compare whom the core wakes."""
        told: list[Any] = [client for client in effects.wake if client.error is None]
        served: list[Client] = []
        while self.waiting and self.idle:
            client = self.waiting.pop(0)
            conn = self.idle.pop() if self.lifo else self.idle.pop(0)
            assert client.conn is conn
            served.append(client)
        assert told == served
        self.served += served
        if self.core.keep == 0:
            self.idle.clear()
        for woken in effects.wake:
            self.core.granted.pop(woken, None)
        self.orders += [entry for entry in effects.start if entry not in self.orders]

    def busy(self) -> int:
        """How many connections are with clients or in service."""
        return len(self.lent) + len(self.service) + len(self.served)

    @invariant()
    def the_core_agrees_with_the_lists(self) -> None:
        """Who is idle in which order, who waits in which order, and how many are busy."""
        if not hasattr(self, "core"):
            return
        assert not violations(self.core)
        assert [entry.conn for entry in self.core.idle] == self.idle
        assert list(self.core.waiting) == self.waiting
        assert self.core.lent == self.busy()
        if self.waiting and not self.core.opening and not self.core.failures:
            full = self.core.size >= self.core.settings.max_size
            assert full, "nobody opens what a client waits for"


TestCore = CoreBesideLists.TestCase
TestCore.settings = settings(
    max_examples=300,
    stateful_step_count=60,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
