"""The configurations that are explored, each with its bounds."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import inf
from typing import Any

from forebay._core import ALL
from forebay._entry import Verdict

IO = frozenset({"connect", "configure", "check", "reset", "rollback", "ping", "close"})
ANY = IO | {"wait"}


@dataclass(frozen=True)
class Configuration:
    """A pool, its clients, and what may happen to them."""

    name: str
    # The pool.  Durations are whole numbers: the fingerprint takes every float for a moment.
    min_size: int = 1
    max_size: float = 2
    keep: int = ALL
    retrying: bool = True
    eager: bool = False
    lifo: bool = True
    max_waiting: int = 0
    max_lifetime: float = inf
    max_idle: float = inf
    reconnect_timeout: float = inf
    num_workers: int = 2
    bypass_window: float = inf  # or -1: idle connections are looked at, always
    keepalive_interval: float = 0
    max_uses: int = 0
    action_timeout: float = inf
    rejected_after: float = 0
    configure: bool = False
    check: bool = False
    reset: bool = False
    # Its clients.
    clients: int = 2
    operations: int = 1  # checkouts of each client
    nested: bool = False  # whether it may ask for another connection while it holds one
    unleased: bool = False  # whether the last of them takes connections without a lease
    timeout: float = inf
    handler: tuple[str, ...] = ()  # what a handler does, in the middle of everything else
    handles: int = 0  # how often
    loop: bool = False  # whether all run in one event loop
    # What may happen.
    orders: tuple[str, ...] = ()  # what is done to the pool: each once, at any moment
    fails: frozenset[str] = frozenset()  # requests that may fail
    cancels: frozenset[str] = frozenset()  # requests that may be cancelled
    returns: tuple[str, ...] = ()  # "unclean", "dropped": besides clean
    cuts: bool = False  # whether the server ends sessions of lent connections
    kills: bool = False  # whether it ends sessions of idle ones
    hangs: frozenset[str] = frozenset()  # requests that may never end
    deaf: bool = False  # whether shutting down the socket does not end them either
    noisy: bool = False  # whether sockets always have something to read
    unanswered: bool = False  # whether an attempt that fails had no answer
    verdict: Verdict = Verdict.TRANSIENT  # what a failed attempt to connect means
    fresh: bool = False  # whether each attempt may have other credentials
    mishaps: int = 0  # failures, cancellations and bad returns in all
    ticks: float = inf  # how often time passes at most; a free clock: while others could go on
    clock: str = ""  # "free": time passes at any moment, "quiet": when nothing else can happen
    preempted: bool = False  # whether others may run after each transition, as threads do
    chance: float = 0.5

    @property
    def leased(self) -> bool:
        """Whether clients have leases."""
        leased = {"returns forsaken", "returns late", "returns twice"}
        return self.nested or bool(leased & {f"returns {how}" for how in self.returns})

    def bounds(self) -> str:
        """The bounds of the exploration, in a few words."""
        parts = [f"{self.min_size}..{self.max_size} conn", f"{self.clients}x{self.operations} ops"]
        if self.mishaps:
            parts.append(f"{self.mishaps} mishaps")
        parts.extend(["nested"] * self.nested)
        if self.handler:
            parts.append(f"{self.handles} handlers")
        parts.extend(self.orders)
        parts.extend(n for n in ("configure", "check", "reset") if getattr(self, n))
        if self.clock and self.ticks < inf:
            parts.append(f"{self.ticks} ticks")
        elif self.clock:
            parts.append(f"{self.clock} clock")
        if self.preempted:
            parts.append("preempted")
        return ", ".join(parts)


NULL: Any = {"min_size": 0, "keep": 0, "retrying": False}


def _some(*kinds: str) -> frozenset[str]:
    return frozenset(kinds)


TABLE: tuple[Configuration, ...] = (
    # The hot path and the queue.
    Configuration("plain", clients=3, operations=2),
    Configuration(
        "main",
        clients=3,
        operations=2,
        cuts=True,
        fails=_some("connect"),
        cancels=_some("wait", "connect"),
        mishaps=1,
        clock="quiet",
    ),
    Configuration(
        "cancelled",
        clients=3,
        fails=_some("connect"),
        cancels=ANY,
        mishaps=2,
        clock="quiet",
    ),
    Configuration(
        "timeouts",
        clients=3,
        max_size=1,
        timeout=1,
        fails=_some("connect"),
        mishaps=1,
        clock="free",
    ),
    Configuration("no waiting", max_size=1, operations=2, timeout=0),
    Configuration(
        "max_waiting",
        max_size=1,
        max_waiting=1,
        clients=3,
        operations=2,
        cancels=_some("wait"),
        mishaps=1,
    ),
    Configuration("plain preempted", clients=3, preempted=True),
    Configuration(
        "timeouts preempted",
        max_size=1,
        timeout=1,
        clock="free",
        ticks=2,
        preempted=True,
    ),
    # What comes back, and what is lost.
    Configuration(
        "bad returns",
        operations=2,
        returns=("unclean", "dropped"),
        fails=_some("rollback"),
        cancels=_some("rollback"),
        mishaps=2,
        clock="quiet",
    ),
    Configuration(
        "cut off",
        max_size=1,
        cuts=True,
        returns=("unclean",),
        cancels=_some("wait", "rollback"),
        mishaps=2,
        ticks=2,
        clock="free",
    ),
    # Callbacks.
    Configuration(
        "configure",
        configure=True,
        fails=_some("configure", "connect"),
        cancels=_some("configure", "close"),
        mishaps=2,
        clock="quiet",
    ),
    Configuration(
        "check",
        check=True,
        cuts=True,
        fails=_some("check"),
        cancels=_some("check", "close"),
        mishaps=2,
        clock="quiet",
    ),
    Configuration(
        "check alone",
        check=True,
        max_size=1,
        operations=2,
        fails=_some("check"),
        cancels=_some("check"),
        mishaps=2,
        clock="quiet",
    ),
    Configuration(
        "reset",
        reset=True,
        operations=2,
        returns=("unclean",),
        fails=_some("reset", "rollback"),
        cancels=_some("reset"),
        mishaps=1,
    ),
    Configuration(
        "reset preempted",
        reset=True,
        max_size=1,
        fails=_some("reset"),
        mishaps=1,
        preempted=True,
    ),
    # Null pools.
    Configuration(
        "null",
        **NULL,
        operations=2,
        fails=_some("connect"),
        cancels=_some("wait", "connect"),
        mishaps=1,
        clock="quiet",
    ),
    Configuration(
        "null and reset",
        **NULL,
        reset=True,
        fails=_some("reset", "connect"),
        cancels=_some("reset"),
        mishaps=2,
        clock="quiet",
    ),
    Configuration(
        "at once or never",
        min_size=0,
        keep=1,
        retrying=False,
        eager=True,
        timeout=0,
        fails=_some("connect"),
        cancels=_some("wait", "connect"),
        mishaps=1,
        clock="quiet",
    ),
    Configuration(
        "at once, and drain",
        min_size=0,
        max_size=1,
        keep=1,
        retrying=False,
        eager=True,
        timeout=0,
        orders=("drain",),
        fails=_some("connect"),
        cancels=_some("wait", "connect"),
        mishaps=1,
        clock="quiet",
    ),
    # What is done to the pool.
    Configuration("drain", orders=("drain",), max_size=1, operations=2),
    Configuration(
        "drain and failures",
        orders=("drain",),
        max_size=1,
        fails=_some("connect"),
        cancels=_some("connect", "wait"),
        mishaps=1,
        clock="quiet",
    ),
    Configuration("drain and reset", orders=("drain",), reset=True),
    Configuration("resize", orders=("resize 0 1", "resize 2 3"), clients=3),
    Configuration("wait and drain", orders=("wait", "drain"), min_size=2, clients=1),
    Configuration(
        "wait and close",
        orders=("wait", "close"),
        min_size=2,
        clients=1,
        cancels=_some("wait"),
        mishaps=1,
    ),
    Configuration(
        "verify",
        orders=("verify",),
        operations=2,
        fails=_some("ping"),
        cancels=_some("ping"),
        mishaps=1,
    ),
    Configuration("verify preempted", orders=("verify",), max_size=1, preempted=True),
    Configuration(
        "verify and close",
        orders=("verify", "close"),
        min_size=2,
        clients=1,
        fails=_some("ping"),
        mishaps=1,
    ),
    Configuration(
        "close",
        orders=("close",),
        cuts=True,
        reset=True,
        returns=("unclean",),
        fails=_some("connect"),
        cancels=_some("connect", "close", "wait", "reset"),
        mishaps=1,
    ),
    Configuration(
        "forgotten",
        orders=("forget",),
        max_size=1,
        clients=1,
        returns=("unclean",),
        mishaps=1,
        reset=True,
        clock="quiet",
    ),
    Configuration("close preempted", orders=("close",), max_size=1, preempted=True),
    # Time.
    Configuration("expiry", max_lifetime=2, operations=2, clock="quiet", chance=0.0),
    Configuration("expiry alone", max_size=1, max_lifetime=2, clock="free", ticks=4),
    Configuration("shrink", min_size=0, max_idle=1, clock="free"),
    Configuration("shrink in turn", lifo=False, min_size=0, max_idle=2, clock="quiet"),
    # Dead connections, and servers that do not answer.
    Configuration(
        "killed",
        kills=True,
        bypass_window=-1,
        cancels=_some("wait"),
        mishaps=2,
        clock="quiet",
    ),
    Configuration(
        "killed twice",
        clients=1,
        operations=3,
        kills=True,
        bypass_window=-1,
        mishaps=2,
        clock="quiet",
    ),
    Configuration(
        "dies beside another",
        min_size=2,
        clients=1,
        operations=0,
        kills=True,
        mishaps=2,
        clock="quiet",
    ),
    Configuration(
        "dies at once",
        clients=1,
        operations=2,
        cuts=True,
        kills=True,
        fails=_some("ping"),
        mishaps=3,
        clock="quiet",
    ),
    Configuration("killed while trusted", kills=True, mishaps=1, ticks=1, clock="free"),
    Configuration("killed and trusted again", kills=True, clients=1, mishaps=1, clock="quiet"),
    Configuration(
        "killed in turn", kills=True, bypass_window=-1, lifo=False, mishaps=2, clock="quiet"
    ),
    Configuration(
        "killed preempted",
        kills=True,
        bypass_window=-1,
        max_size=1,
        mishaps=1,
        clock="quiet",
        preempted=True,
    ),
    Configuration(
        "noise",
        noisy=True,
        kills=True,
        clients=1,
        operations=2,
        mishaps=1,
        ticks=1,
        clock="free",
    ),
    Configuration(
        "connects hang",
        configure=True,
        action_timeout=1,
        hangs=_some("connect", "configure"),
        fails=_some("connect"),
        mishaps=2,
        clock="quiet",
    ),
    Configuration(
        "null connects hang",
        **NULL,
        action_timeout=1,
        hangs=_some("connect"),
        mishaps=2,
        clock="quiet",
    ),
    Configuration(
        "resets hang",
        reset=True,
        action_timeout=1,
        returns=("unclean",),
        hangs=_some("reset", "rollback", "close"),
        mishaps=2,
        clock="quiet",
    ),
    Configuration(
        "rollbacks hang",
        max_size=1,
        action_timeout=1,
        returns=("unclean",),
        hangs=_some("rollback", "close"),
        mishaps=2,
        clock="quiet",
    ),
    Configuration(
        "checks hang",
        check=True,
        action_timeout=1,
        hangs=_some("check"),
        fails=_some("check"),
        mishaps=2,
        clock="quiet",
    ),
    Configuration(
        "hangs preempted",
        reset=True,
        max_size=1,
        action_timeout=1,
        hangs=_some("reset", "connect"),
        mishaps=1,
        clock="quiet",
        preempted=True,
    ),
    Configuration(
        "cuts in vain",
        reset=True,
        max_size=1,
        clients=1,
        operations=2,
        action_timeout=1,
        returns=("unclean",),
        hangs=_some("reset", "rollback", "close"),
        deaf=True,
        mishaps=2,
        clock="quiet",
    ),
    Configuration(
        "second probe",
        min_size=0,
        max_size=3,
        num_workers=1,
        action_timeout=3,
        hangs=_some("connect"),
        fails=_some("connect"),
        mishaps=3,
        clock="quiet",
    ),
    Configuration(
        "kept alive",
        keepalive_interval=2,
        action_timeout=1,
        clients=1,
        fails=_some("ping"),
        hangs=_some("ping"),
        mishaps=2,
        clock="quiet",
    ),
    Configuration("used up", max_size=1, operations=2, max_uses=1),
    Configuration(
        "forsaken",
        operations=2,
        returns=("forsaken", "dropped"),
        mishaps=2,
        clock="quiet",
    ),
    Configuration("forsaken late", max_size=1, returns=("late",), mishaps=1, clock="free"),
    Configuration(
        "returned twice",
        max_size=1,
        returns=("twice", "forsaken"),
        mishaps=2,
        ticks=1,
        clock="free",
    ),
    Configuration(
        "forsaken and reset",
        reset=True,
        max_size=1,
        orders=("drain",),
        returns=("forsaken",),
        fails=_some("reset"),
        mishaps=2,
        clock="quiet",
    ),
    # Clients that ask for another connection while they hold one.
    Configuration("nested alone", max_size=1, nested=True, operations=2, clock="quiet"),
    Configuration(
        "nested",
        clients=3,
        nested=True,
        operations=2,
        cancels=_some("wait"),
        mishaps=1,
        clock="quiet",
    ),
    Configuration(
        "nested in part", max_size=1, nested=True, unleased=True, operations=2, clock="quiet"
    ),
    Configuration(
        "nested and failures",
        nested=True,
        operations=2,
        fails=_some("connect"),
        mishaps=2,
        clock="quiet",
    ),
    Configuration(
        "nested preempted", max_size=1, nested=True, operations=2, clock="quiet", preempted=True
    ),
    Configuration(
        "nested and timeouts",
        nested=True,
        operations=2,
        timeout=1,
        returns=("dropped",),
        mishaps=1,
        clock="quiet",
    ),
    # What a failed attempt means.
    Configuration(
        "rejected",
        verdict=Verdict.REJECTED,
        rejected_after=0.01,
        fails=_some("connect"),
        cuts=True,
        mishaps=2,
        clock="quiet",
    ),
    Configuration(
        "rejected at once",
        verdict=Verdict.REJECTED,
        fails=_some("connect"),
        mishaps=2,
        clock="quiet",
    ),
    Configuration(
        "hopeless",
        verdict=Verdict.HOPELESS,
        rejected_after=1,
        fails=_some("connect"),
        mishaps=1,
        clock="quiet",
    ),
    Configuration(
        "credentials",
        verdict=Verdict.CREDENTIALS,
        fresh=True,
        fails=_some("connect"),
        mishaps=3,
        clock="quiet",
    ),
    Configuration(
        "crowded",
        verdict=Verdict.CROWDED,
        action_timeout=3,
        fails=_some("connect"),
        hangs=_some("connect"),
        mishaps=2,
        clock="quiet",
    ),
    Configuration(
        "demoted",
        orders=("promote", "demote", "promote"),
        max_size=1,
        clients=1,
        clock="quiet",
        ticks=2,
        chance=1.0,
    ),
    Configuration(
        "gave up",
        reconnect_timeout=1,
        fails=_some("connect"),
        mishaps=3,
        clock="quiet",
    ),
)

#: What a handler does: it has a connection for a while, or a block, or ends the pool.
HANDLES = ("asks", "returns", "returns unclean", "block", "closes")

TABLE += (
    # A handler that runs in the middle of everything.
    Configuration("handled", max_size=1, handler=HANDLES, handles=1, clock="quiet"),
    Configuration(
        "handled twice", max_size=1, clients=1, handler=HANDLES, handles=2, clock="quiet"
    ),
    Configuration(
        "handled in turn",
        lifo=False,
        min_size=2,
        clients=1,
        handler=HANDLES,
        handles=1,
        clock="quiet",
    ),
    Configuration(
        "handled loop",
        max_size=1,
        cancels=_some("wait"),
        mishaps=1,
        handler=HANDLES,
        handles=1,
        loop=True,
        clock="quiet",
    ),
    Configuration(
        "handled null",
        **(NULL | {"max_size": 1}),
        fails=_some("connect"),
        mishaps=1,
        handler=HANDLES,
        handles=1,
        clock="quiet",
    ),
    Configuration(
        "handled reset",
        reset=True,
        max_size=1,
        returns=("unclean",),
        mishaps=1,
        handler=HANDLES,
        handles=1,
        clock="quiet",
    ),
    Configuration(
        "handled mishaps",
        max_size=1,
        clients=1,
        returns=("unclean", "forsaken"),
        mishaps=1,
        handler=HANDLES,
        handles=1,
        clock="quiet",
    ),
    Configuration(
        "handled timeouts", max_size=1, timeout=1, handler=HANDLES, handles=1, clock="quiet"
    ),
    Configuration(
        "handled verify",
        max_size=1,
        clients=1,
        orders=("verify",),
        handler=("block",),
        handles=1,
        clock="quiet",
    ),
    Configuration(
        "handled drain",
        max_size=1,
        operations=0,
        clients=1,
        orders=("drain",),
        handler=("block", "closes"),
        handles=1,
        clock="quiet",
    ),
    Configuration(
        "handled nested",
        max_size=1,
        nested=True,
        operations=2,
        handler=HANDLES,
        handles=1,
        clock="quiet",
    ),
    Configuration(
        "handled preempted",
        max_size=1,
        handler=HANDLES,
        handles=1,
        clock="quiet",
        preempted=True,
    ),
)

#: Larger bounds: one more mishap, or one more operation where there are none.
DEEP = tuple(
    replace(c, mishaps=c.mishaps + 1) if c.mishaps else replace(c, operations=c.operations + 1)
    for c in TABLE
)


def named(name: str) -> Configuration:
    """The configuration of that name."""
    return next(config for config in TABLE if config.name == name)
