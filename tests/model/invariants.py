"""What must hold in every reachable state: each invariant one line with its sentence."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Callable, Iterable
from functools import cached_property
from math import inf
from types import CoroutineType, GeneratorType
from typing import Any, NamedTuple

from forebay._core import FRESH_TRIES
from forebay._entry import (
    EVICTED,
    IDLE,
    LENT,
    OPENING,
    RETIRED,
    SERVICE,
    Effects,
    Entry,
    Permit,
    Verdict,
)
from forebay._policy import (
    CROWDED_INTERVAL,
    MAINTENANCE_INTERVAL,
    PROBATION,
    PROBE_INTERVAL,
    PROBE_PATIENCE,
    growth,
)

from .driver import Connection
from .fingerprint import core_tokens
from .runtime import ModelWaiter, is_inside
from .world import Move, World


class View:
    """A state as the invariants read it."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.core = world.core
        self.phase: str = world.core.phase.name
        self.open = self.phase == "OPEN"
        self.entries: list[Entry] = list(world.core.entries)
        self.lost: set[int] = {id(held) for held in world.core.lost}
        self.now = world.runtime.time
        self.everywhere: list[Entry] = [*self.entries, *world.core.retiring]
        self.given_out = [e for e in self.entries if e.place is not IDLE and not e.ordered]
        self.waiters = world.waiters()
        self.queued: list[ModelWaiter] = [*world.core.waiting, *world.core.watching]

    @cached_property
    def in_frames(self) -> list[Any]:
        """Everything that suspended flows hold."""
        flows: list[Any] = [task.coro for task in self.world.tasks.values()]
        found: list[Any] = []
        for flow in flows:
            for thing in gc.get_referents(flow):
                (flows if isinstance(thing, CoroutineType | GeneratorType) else found).append(thing)
        return found

    @property
    def arrivals(self) -> list[int]:
        """When those who wait have come, in the order of the queue."""
        return [waiter.arrival for waiter in self.core.waiting]

    @cached_property
    def effects(self) -> list[Effects]:
        """What transitions have asked for and no flow has carried out yet."""
        return [thing for thing in self.in_frames if type(thing) is Effects]

    @cached_property
    def ready(self) -> list[Connection]:
        """Connections that are idle or with a client, or granted to one."""
        idle = [entry.conn for entry in self.core.idle]
        granted = [waiter.conn for waiter in self.granted_waiters if waiter.conn is not None]
        clients = [*self.world.clients, self.world.handler]
        held = [conn for c in clients for conn in (c.conn, c.outer) if conn is not None]
        return [*idle, *granted, *held]

    @cached_property
    def granted_waiters(self) -> list[ModelWaiter]:
        """Waiters that have been served, wherever they are."""
        everyone = [*self.waiters, *(w for w in self.in_frames if type(w) is ModelWaiter)]
        return [w for w in {id(w): w for w in everyone}.values() if w not in self.core.waiting]

    @cached_property
    def at_work(self) -> list[Connection]:
        """Connections on which a request is under way."""
        subjects = [task.request.subject for task in self.world.tasks.values()]
        return [subject for subject in subjects if isinstance(subject, Connection)]

    @cached_property
    def ordered(self) -> list[Connection]:
        """Connections that wait for a worker."""
        return [e.conn for e in self.everywhere if e.ordered and e.conn is not None]

    @cached_property
    def ended(self) -> bool:
        """Whether all clients have done what they wanted, and all work is done."""
        clients = all(
            c.left == 0 and not (c.conn or c.outer or c.late or c.stale)
            for c in [*self.world.clients, self.world.handler]
        )
        watched = self.open and bool(self.world.config.clock)
        looked = not ((watched and self.core.suspicious) or (self.open and self.core.forsaken))
        forgotten = self.world.forgot and any(entry.ordered for entry in self.everywhere)
        taken = not (self.core.returned or self.world.flows._closing or forgotten)
        return clients and looked and taken and not self.world.tasks and not self.world.runtime.jobs

    def at(self, place: object) -> list[Entry]:
        """The entries at a place."""
        return [entry for entry in self.entries if entry.place is place]

    @property
    def kept(self) -> int:
        """How many connections are to be kept."""
        return sum(entry.expires_at != EVICTED for entry in self.entries)

    @property
    def unbegun(self) -> list[Entry]:
        """Permits that nobody has taken up."""
        return [entry for entry in self.at(OPENING) if entry.ordered]

    @property
    def left(self) -> list[Entry]:
        """Entries that a closed pool leaves to whoever still refers to their connections."""
        return [] if self.open else [conn.entry for conn in self.world.forsaken if conn.entry]

    def idle_is_sound(self) -> bool:
        """Whether the idle queue and the idle entries are the same, and have connections."""
        idle = self.core.idle
        full = all(entry.conn is not None for entry in idle)
        return full and _unique(idle) and set(self.at(IDLE)) == set(idle)

    def in_hands(self, entry: Entry, *, dropped: bool = True) -> bool:
        """Whether what was given out for an entry is with a flow, a waiter or a client.

        With `dropped`, it may also have been dropped without a word, if that has been noted.
        """
        thing = entry.ref() if entry.ref is not None else None
        if thing is None:
            return dropped and id(entry.ref) in self.lost
        held = [*self.in_frames, *self.ready, *self.world.forsaken, *self.put_off, *self.late]
        return any(thing is each for each in held)

    @property
    def put_off(self) -> list[Connection]:
        """Connections that the core knows to have come back, and takes later."""
        forsaken = [t.entry.kept for t in self.core.forsaken if t.entry.tether is t]
        return [*(back.conn for back in self.core.returned), *forsaken]

    @property
    def late(self) -> list[Connection]:
        """What clients hold that have returned it."""
        return [c.stale[0] for c in self.world.clients if c.stale is not None]

    def will_begin(self, entry: Entry) -> bool:
        """Whether a worker will take the entry up."""
        asked = any(entry in effects.start for effects in self.effects)
        again = self.open and self.world.forgot
        return asked or again or entry in self.world.runtime.jobs or self._inline(entry)

    def _inline(self, entry: Entry) -> bool:
        """A closed pool's client does the work itself."""
        return self.phase == "CLOSED" and any(thing is entry for thing in self.in_frames)

    def will_wake(self, waiter: ModelWaiter) -> bool:
        """Whether a waiter that is served will learn of it."""
        return waiter.woken or any(waiter in effects.wake for effects in self.effects)

    def wanted(self) -> int:
        """How many more connections should be opening now."""
        core = self.core
        if not self.open or core.failures or core.lost:
            return 0
        relied = core.waiting and core.settings.retrying and core.due > self.now
        stuck = self.unanswered if relied else 0
        return growth(
            target=core.target,
            size=len(self.entries),
            max_size=core.settings.max_size,
            waiting=len(core.waiting) + stuck,
            opening=core.opening,
            width=core._width + (stuck > 0),
        )

    @property
    def unanswered(self) -> int:
        """How many attempts to connect have lasted for too long to rely on."""
        begun = [entry for entry in self.at(OPENING) if not entry.ordered]
        return sum(entry.began_at + PROBE_PATIENCE <= self.now for entry in begun)

    def all_timed(self) -> bool:
        """Whether all that workers do has a deadline, where there are deadlines."""
        begun = [e for e in self.everywhere if not e.ordered and e.place not in (IDLE, LENT)]
        return self.world.config.action_timeout == inf or all(e.deadline < inf for e in begun)

    @property
    def interval(self) -> float:
        """Between two attempts to connect, while somebody waits."""
        return CROWDED_INTERVAL if self.core.crowded else PROBE_INTERVAL

    @property
    def last_tried(self) -> float:
        """When an attempt has failed last, or has opened a connection that is not trusted."""
        at: float = max(self.core.failed_at, self.core.paced_at)
        return at

    def needs_probe(self) -> bool:
        """Whether somebody waits, connecting has failed, and there is room for an attempt."""
        core = self.core
        room = self.open and not core.opening and len(self.entries) < core.settings.max_size
        return bool(core.waiting and core.failures and room)

    def needs_second(self) -> bool:
        """Whether somebody waits for a single attempt, connecting has failed, and there is room."""
        core = self.core
        room = len(self.entries) < core.settings.max_size and not core.crowded
        begun = 0 < core.opening <= core._width
        return bool(self.open and core.waiting and core.failures and begun and room)

    def is_ready(self) -> bool:
        """Whether the common path may take what is idle, if and only if nobody else wants it."""
        core = self.core
        wanted = core.waiting or core.watching or core.unproven
        return not is_inside(core) and (core.ready is core.idle) == (not wanted)

    def is_counted(self) -> bool:
        """Whether the core counts who waits as they are."""
        claims = Counter(waiter.claim for waiter in self.core.waiting)
        return bool(dict(claims) == self.core.claims)

    def is_witness(self) -> bool:
        """Whether who is remembered as a witness is one, or is of no interest."""
        witness = self.core.witness
        idle = witness is None or not self.core._testifies(witness)
        return idle or witness in self.core.entries

    def will_maintain(self) -> bool:
        """Whether maintenance will do now what was put off."""
        return self.world.is_due or any(effects.alarm for effects in self.effects)

    def something_comes(self) -> bool:
        """Whether those who wait have something to wait for besides their own time-out."""
        core = self.core
        probe = core.failures and core.due <= core.retry_at
        return bool(core.opening or core.lent or core.lost or probe or core.returned)


class Invariant(NamedTuple):
    """A property: the sentence that states it, and the line that checks it."""

    sentence: str
    holds: Callable[[View], bool]


def _unique(things: Iterable[object]) -> bool:
    return max(Counter(map(id, things)).values(), default=0) <= 1


def _audit_changes_nothing(v: View) -> bool:
    """Run audit(), which ends the life of this world."""
    if v.core.lost or v.core.returned or not v.open:
        return True
    before, effects = core_tokens(v.world), Effects()
    granted = {**v.core.granted}
    v.core.audit(v.world.runtime.now(), effects)
    v.core.granted = granted  # how often each was woken is counted there
    return core_tokens(v.world) == before and all(entry.ordered for entry in effects.start)


#: In every state.
STATE = (
    Invariant(
        "No flow ends with an error that is not its own.", lambda v: v.world.surprise is None
    ),
    Invariant("Nobody waits while holding the lock.", lambda v: not v.world.runtime.lock.held),
    Invariant(
        "The common path takes what is idle while nobody else wants it, and only then.",
        lambda v: v.is_ready(),
    ),
    Invariant("The core knows how often each client waits.", lambda v: v.is_counted()),
    Invariant("A witness against a deadlock is in the pool.", lambda v: v.is_witness()),
    Invariant(
        "What was put off in the middle of a transition is done now.",
        lambda v: not (v.core.returned or v.world.flows._closing) or v.will_maintain(),
    ),
    # Entries
    Invariant(
        "An idle entry is in the idle queue, once, with its connection.",
        lambda v: v.idle_is_sound(),
    ),
    # Connections
    Invariant(
        "No connection is in two places.", lambda v: _unique([*v.ready, *v.at_work, *v.ordered])
    ),
    Invariant(
        "A connection that is ready is in no transaction.",
        lambda v: all(c.state != "unclean" for c in v.ready),
    ),
    Invariant(
        "A connection that is ready is not closed.", lambda v: not any(c.closed for c in v.ready)
    ),
    Invariant(
        "A connection on which something failed or was cut short is never ready again.",
        lambda v: not any(c.spoiled for c in v.ready),
    ),
    Invariant("No connection is closed twice.", lambda v: all(c.closed <= 1 for c in v.at_work)),
    Invariant(
        "No connection is dropped without being closed, unless its client drops it.",
        lambda v: not v.world.driver.dropped_open,
    ),
    Invariant(
        "A connection whose time was over when it came back is not kept.",
        lambda v: all(e.expires_at > e.idle_since for e in v.core.idle),
    ),
    Invariant(
        "A drained connection is not idle.", lambda v: not any(e.conn.drained for e in v.core.idle)
    ),
    Invariant(
        "What is lent is not referred to by the pool.",
        lambda v: all(e.conn is None for e in v.at(LENT)),
    ),
    Invariant(
        "What is in service is in a worker's hands.",
        lambda v: all(v.in_hands(e, dropped=False) for e in v.given_out if e.place is SERVICE),
    ),
    Invariant(
        "What is given out is in somebody's hands, or known to be lost.",
        lambda v: all(v.in_hands(e) for e in v.given_out),
    ),
    Invariant(
        "No entry is both in the pool and retired.",
        lambda v: all((e.place is RETIRED) == (e not in v.core.entries) for e in v.everywhere),
    ),
    Invariant(
        "A retired entry is listed until its connection is closed.",
        lambda v: all(
            c.entry in v.core.retiring or c.entry.given_up
            for c in v.at_work
            if c.closed and c.entry
        ),
    ),
    Invariant(
        "What is ordered will be begun.",
        lambda v: all(v.will_begin(e) for e in v.everywhere if e.ordered),
    ),
    # Sizes and permits
    Invariant(
        "The pool is never larger than max_size, but for evicted connections.",
        lambda v: v.kept <= v.core.settings.max_size and len(v.entries) <= v.world.largest,
    ),
    Invariant(
        "The count of openings is the number of permits.",
        lambda v: v.core.opening == len(v.at(OPENING)),
    ),
    Invariant(
        "Every permit that was taken up is held by a worker.",
        lambda v: all(
            isinstance(e.ref and e.ref(), Permit) for e in v.given_out if e.place is OPENING
        ),
    ),
    Invariant("What is wanted is being opened.", lambda v: v.wanted() == 0),
    Invariant(
        "A pool keeps no more idle connections than it should.",
        lambda v: len(v.core.idle) <= v.core.keep,
    ),
    # Clients
    Invariant(
        "Nobody waits beside an idle connection.", lambda v: not (v.core.idle and v.core.waiting)
    ),
    Invariant(
        "Nobody is stranded: something comes to those who wait.",
        lambda v: not v.core.waiting or v.something_comes(),
    ),
    Invariant(
        "Who waits is in the queue, or was served and will be woken.",
        lambda v: all(w in v.queued or v.will_wake(w) for w in v.waiters),
    ),
    Invariant(
        "Who is listed as granted will be woken.",
        lambda v: all(v.will_wake(w) for w in v.core.granted),
    ),
    Invariant(
        "Nobody is in the queue who does not wait.",
        lambda v: all(any(w is x for x in v.in_frames) for w in v.queued),
    ),
    Invariant(
        "The queue is in order of arrival, but for who was given a connection that was no good.",
        lambda v: v.world.may_come_again or v.arrivals == sorted(v.arrivals),
    ),
    Invariant(
        "The queue is never longer than max_waiting.",
        lambda v: (
            not v.core.settings.max_waiting or len(v.core.waiting) <= v.core.settings.max_waiting
        ),
    ),
    Invariant(
        "wait() does not wait while min_size connections are idle.",
        lambda v: not v.core.watching or len(v.core.idle) < v.core.settings.min_size,
    ),
    # The pool's life
    Invariant(
        "While the pool is open, maintenance is due within a second.",
        lambda v: not v.open or v.core.due <= v.now + MAINTENANCE_INTERVAL,
    ),
    Invariant(
        "Who waits while connecting fails is not made to wait for a long backoff.",
        lambda v: not v.needs_probe() or v.core.due <= max(v.now, v.last_tried + v.interval),
    ),
    # Dead connections, and servers that do not answer
    Invariant(
        "While one was found dead and the idle ones were not looked at, none is lent without.",
        lambda v: not v.core.suspicious or v.core.bypass < 0,
    ),
    Invariant(
        "After one was found dead, maintenance looks at the idle ones at once.",
        lambda v: not (v.open and v.core.suspicious) or v.core.due <= v.now,
    ),
    Invariant(
        "An attempt to connect that is not answered is joined by another one.",
        lambda v: (
            not v.needs_second() or v.core.due <= max(v.now, v.core.probed_at + PROBE_PATIENCE)
        ),
    ),
    Invariant(
        "Who would wait for ever, since all who hold connections wait, is told so at once.",
        lambda v: not v.open or not v.world.deadlocked() or v.will_maintain(),
    ),
    Invariant(
        "What a worker does has a deadline, and maintenance is due by then.",
        lambda v: (
            not v.open
            or v.world.preempted
            or (all(e.deadline >= v.core.due for e in v.everywhere) and v.all_timed())
        ),
    ),
    Invariant(
        "A closed pool is empty but for what is lent, and nobody waits for it.",
        lambda v: v.phase != "CLOSED" or not (v.core.idle or v.queued or v.unbegun),
    ),
    # The end
    Invariant(
        "In the end all connections are idle or closed.",
        lambda v: not v.ended or bool(v.lost) or {*v.everywhere} - {*v.left} == {*v.core.idle},
    ),
    Invariant(
        "In the end nobody is left in a list of the pool.",
        lambda v: not (v.ended and (v.queued or v.core.granted)),
    ),
    # Last, because it may change the world:
    Invariant(
        "Where nothing is amiss, audit() only orders again what has not begun.",
        _audit_changes_nothing,
    ),
)


class Step:
    """One move: what was so before it, and whether what is so after it follows."""

    def __init__(self, world: World, move: Move) -> None:
        core = world.core
        self._world = world
        self._waiting: list[ModelWaiter] = list(core.waiting)
        self._opening: int = core.opening
        self._failing = core.failures > 0
        self._others = len(core.entries) - 1
        self._maintains = move.action == "maintains"
        self._attempt = move.action == "fails" and world.tasks[move.number].opens
        self._failed_at: float = core.failed_at
        self._unproven: str | None = core.unproven
        self._final = self._is_final()
        self._idle = [*core.idle]
        self._present = [*core.entries]
        self._works = move.actor == "job"
        self._acts = self._works or move.actor == "client"

    def _is_final(self) -> bool:
        """Whether an attempt that fails now as the others did has failed for good."""
        core, config = self._world.core, self._world.config
        if config.verdict is Verdict.HOPELESS:
            return True
        if config.verdict not in (Verdict.REJECTED, Verdict.CREDENTIALS):
            return False
        now = self._world.runtime.time
        stood = now - core.rejected_since >= config.rejected_after
        again = config.verdict is Verdict.REJECTED or not config.fresh
        if core.rejected_since == inf:
            return not config.rejected_after and again
        return stood and (again or self._world.failed >= FRESH_TRIES - 1)

    def violated(self) -> str | None:
        """What does not follow."""
        if self._overtaken():
            return "Nobody overtakes: clients are served in order of arrival."
        if self._maintains and any(e.conn.state == "broken" for e in self._world.core.idle):
            return "When maintenance has looked at the idle connections, none of them is dead."
        if self._works and any(e.conn.state == "broken" for e in self._returned()):
            return "What a worker has looked at and puts back is not dead."
        if self._acts and self._overlooks():
            return "A session that ends before its first use is over counts as a failed connect."
        if self._crowds():
            return "While connecting fails there are few attempts at a time, or one if crowded."
        if self._trusts():
            return "New connections that were no good are trusted when one has proved to be good."
        if self._rushes():
            return "After an attempt that has failed, the next one begins later."
        if self._attempt and self._final and not self._others and self._left():
            return "When connecting has failed for good, and nothing is open, who waits is told."
        if self._attempt and (self._others or not self._final) and self._told():
            return "Nobody is refused because of an attempt while there is something to wait for."
        return None

    def _overtaken(self) -> bool:
        """Whether somebody was served while one who came earlier still waits."""
        still = [waiter in self._world.core.waiting for waiter in self._waiting]
        first = still.index(True) if True in still else len(still)
        return any(waiter.entry is not None for waiter in self._waiting[first:])

    def _crowds(self) -> bool:
        """Whether an attempt was added to as many as there should be."""
        core = self._world.core
        most = 1 if core.crowded else core.settings.num_workers + 1
        return bool(self._failing and core.failures and core.opening > max(self._opening, most))

    def _returned(self) -> list[Entry]:
        """What has become idle."""
        return [entry for entry in self._world.core.idle if entry not in self._idle]

    def _overlooks(self) -> bool:
        """Whether a new connection was found dead, and connecting counts as good."""
        core = self._world.core
        found = [e.conn for e in core.retiring if e in self._present and e.conn is not None]
        young = [c.entry for c in found if c.died]
        now = self._world.runtime.time
        new = [e for e in young if e.idle_since == e.opened_at and now < e.opened_at + PROBATION]
        return bool(
            core.phase.name == "OPEN" and core.settings.retrying and new and not core.failures
        )

    def _rushes(self) -> bool:
        """Whether an attempt was begun at the moment of a failure."""
        core, now = self._world.core, self._world.runtime.time
        more = core.opening > self._opening == 0 and core.settings.retrying
        return bool(self._failing and core.failures and more and self._failed_at >= now)

    def _trusts(self) -> bool:
        """Whether new connections are trusted again though none of them has proved anything."""
        core, now = self._world.core, self._world.runtime.time
        opened = [(conn, conn.entry.opened_at) for conn in self._world.known() if conn.entry]
        new = [(conn, at) for conn, at in opened if at >= self._failed_at]
        proved = any(conn.back or at + PROBATION <= now for conn, at in new)
        checked = self._world.config.check
        return bool(self._unproven and not core.unproven and not (proved or checked))

    def _left(self) -> bool:
        return any(waiter in self._world.core.waiting for waiter in self._waiting)

    def _told(self) -> bool:
        return self._world.core.settings.retrying and any(waiter.error for waiter in self._waiting)


#: Of the whole graph of states.
LIVENESS = (
    "From every state, without further mishaps, everybody is served or timed out in the end, and"
    " every suspicion ends."
)


def violated(view: View) -> str | None:
    """The first invariant that does not hold."""
    for invariant in STATE:
        if not invariant.holds(view):
            return invariant.sentence
    return None
