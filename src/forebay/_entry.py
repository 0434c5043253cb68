"""What the core works with: entries, waiters, and the effects of a transition."""

from __future__ import annotations

import weakref
from collections import deque
from enum import Enum
from math import inf
from typing import Any, NamedTuple, Protocol


class Place(Enum):
    """Where an entry is; it is in exactly one place."""

    OPENING = "opening"  # a permit: the right to open one connection
    IDLE = "idle"  # ready to be lent; the only place that holds the connection for long
    LENT = "lent"  # a client has it
    SERVICE = "service"  # being reset or checked
    RETIRED = "retired"  # being closed; no longer counts in the pool's size


# The places as module globals: the hot path compares with them.
OPENING, IDLE, LENT, SERVICE, RETIRED = Place


class Chore(Enum):
    """What a worker does with a connection in service."""

    RESET = "roll back and reset"
    PING = "make a round trip"
    LOOK = "read what the server has sent"
    ROLE = "roll back, reset, and ask the server whether it is a standby"


ROLE = Chore.ROLE

#: The expiry of an entry that must not be kept, whatever the time is.
EVICTED = -inf


class Entry:
    """One slot of the pool: first a permit, then a connection, until it is retired.

    What has been given out (a permit to a worker, a connection to a client or a worker)
    is held weakly: whoever drops it without a word gives the slot back (rule 8).
    """

    __slots__ = (
        "began_at",
        "chore",
        "conn",
        "deadline",
        "expires_at",
        "forfeited",
        "given_up",
        "holder",
        "idle_since",
        "kept",
        "leased",
        "lent_at",
        "lifeline",
        "line",
        "opened_at",
        "ordered",
        "place",
        "plain",
        "ref",
        "seen_at",
        "standby",
        "tether",
        "token",
        "uses",
    )

    def __init__(self) -> None:
        self.place = OPENING
        self.ordered = True  # a worker is to take it up and has not yet done so
        self.conn: Any = None  # held strongly only while idle or ordered
        self.ref: Held | None = None  # to what has been given out
        self.opened_at = 0.0
        self.expires_at = inf
        self.idle_since = 0.0
        self.lent_at = 0.0
        self.holder: Any = None  # who has it, or had it last: what has a name, or is one
        self.line: str | None = None  # where it was acquired, if that is recorded
        # Lent through connection(), whose time counts as usage: the identity of the holder.
        self.leased: Any = None
        self.kept: Any = None  # the connection of a lease: here its lease need not be trusted
        # A lease has the token meanwhile, and dies with it: `tether` refers to it weakly.
        self.token: Token | None = None
        self.tether: Held | None = None
        self.forfeited: Any = None  # `lent_at` of the lending that was taken back like that last
        self.uses = 0  # how often it was lent; counted only where they are bounded
        self.seen_at = 0.0  # when its server answered last, while idle
        self.standby = False  # its server was a standby when it opened
        self.chore = Chore.RESET  # what a worker does with it in service
        self.began_at = 0.0  # when a worker took it up
        # While somebody works on it: when the pool stops waiting, and how to free who is blocked.
        self.deadline = inf
        self.lifeline: Any = None
        self.given_up = False  # the pool does without what a worker has, which is blocked
        self.plain = False  # the connection's class commits and rolls back as its driver does

    def __repr__(self) -> str:
        return f"<Entry {self.place.value}{', ordered' if self.ordered else ''}>"


class Permit:
    """What a worker holds while it opens a connection; dropping it returns the permit."""

    __slots__ = ("__weakref__",)


class Token:
    """What a lease holds while it has a connection; if it dies, the lease was dropped."""

    __slots__ = ("__weakref__",)


class Held(weakref.ref[Any]):
    """A weak reference to what was given out for an entry."""

    __slots__ = ("entry",)

    entry: Entry

    @classmethod
    def watch(cls, thing: Any, entry: Entry, lost: deque[Held]) -> Held:
        """Refer to `thing`; when it is dropped the reference is appended to `lost`."""
        held = cls(thing, lost.append)
        held.entry = entry
        return held


class Verdict(Enum):
    """What a failed attempt to connect means; only what is certain is not transient."""

    TRANSIENT = "transient"  # the next attempt may succeed
    REJECTED = "rejected"  # it will not, before somebody changes something
    HOPELESS = "hopeless"  # the connection string itself is wrong: no server was asked
    CREDENTIALS = "credentials"  # as `rejected`, of these credentials; fresh ones may do
    CROWDED = "crowded"  # the server has too many connections: fewer attempts, not more


class Return(NamedTuple):
    """A connection that came back while the core could not take it: it is taken later."""

    entry: Entry
    conn: Any
    lending: float  # `lent_at` of the lending that ends, as an object
    clean: bool  # whether it may be lent again as it is


class Hold(NamedTuple):
    """Who has, or had, a connection."""

    holder: Any
    since: float
    line: str | None


class Waiter(Protocol):
    """A client in the queue.  The core writes to it; only the shell wakes it."""

    holder: Any  # who will hold the connection: what has a name, or is one
    claim: Any  # the identity of the holder, as in `Entry.leased`
    client: Any  # the thread or task that waits: by what `_stacks` finds it
    entry: Entry | None  # granted by the core
    conn: Any  # the granted connection, held here until the client takes it
    error: BaseException | None  # why the client is refused
    ready: bool  # what a watcher waits for has come
    since: float  # when it was queued
    deadline: float  # when it will give up

    def wake(self) -> None:
        """Let the client go on.  May be called more than once."""
        ...

    async def wait(self, timeout: float | None) -> None:
        """Return when woken or when `timeout` seconds are over."""
        ...


class Effects:
    """What a transition asks the shell to do, once the lock is released."""

    __slots__ = ("alarm", "cut", "demoted", "gave_up", "give_up", "start", "wake")

    def __init__(self) -> None:
        self.wake: list[Waiter] = []  # clients to wake
        self.start: list[Entry] = []  # entries a worker must take up: to open, reset or close
        self.cut: list[Any] = []  # lifelines of connections whose time for an action is over
        self.give_up: list[Entry] = []  # entries whose workers are not waited for any more
        self.alarm = False  # maintenance is due earlier than it was
        self.gave_up = False  # call reconnect_failed
        self.demoted = False  # tell that the server is a standby

    def __repr__(self) -> str:
        alarm, gave_up = self.alarm, self.gave_up
        return f"<Effects wake={len(self.wake)} start={self.start} {alarm=} {gave_up=}>"
