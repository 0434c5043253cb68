"""What a state is: two worlds with the same fingerprint have the same future.

Nothing is chosen by hand.  Every slot of the core is read, but for its settings, of which only the
sizes change, and for what `reset_counters()` resets, which never decides anything; and from every
suspended flow its position and all that its frames hold, on their stacks too.  Objects are
numbered as they are met.  A type that is not known here is an error.

Moments: what is to come is told by how far away it is, what is past by its age where something
looks back at it (`LOOKED_BACK`), else by its order among the other moments of the past.
"""

from __future__ import annotations

import gc
from collections import OrderedDict, deque
from collections.abc import Iterable
from enum import Enum
from functools import partial
from hashlib import blake2b
from math import inf, isinf
from types import (
    BuiltinMethodType,
    CodeType,
    CoroutineType,
    FrameType,
    FunctionType,
    GeneratorType,
    MethodType,
    ModuleType,
)
from typing import Any

from forebay._core import Core
from forebay._entry import LENT, OPENING, Effects, Entry, Held, Permit, Return, Token
from forebay._policy import CROWDED_INTERVAL, PROBATION, PROBE_PATIENCE

from .driver import Connection, Lifeline
from .runtime import ModelWaiter, Request
from .world import Client, Lending, World

#: Told by its content.
PLAIN = frozenset({type(None), bool, int, str, bytes})
#: Told by its type alone: the same in every world, or read elsewhere.
CONSTANT = (FunctionType, MethodType, BuiltinMethodType, CodeType, FrameType, ModuleType, type)
PARTS = {
    *("Core", "Flows", "Source", "World", "ModelRuntime", "ModelDriver", "Refusals", "Lock"),
    *("Logger", "Settings"),
}
SEQUENCES = frozenset({tuple, list, deque, Request, Return, Lending})
#: Objects with an identity, and what of them is read.
OBJECTS: dict[type, tuple[str, ...]] = {
    Entry: Entry.__slots__,
    ModelWaiter: (
        "claim",
        "client",
        "conn",
        "deadline",
        "entry",
        "error",
        "ready",
        "since",
        "woken",
    ),
    Client: (),
    Effects: Effects.__slots__,
    Connection: (
        *("back", "closed", "cut", "died", "drained", "entry", "excused", "spoiled", "standby"),
        *("state", "uses", "work"),
    ),
    Lifeline: ("conn",),
    Permit: (),
    Token: (),
}

#: Do not change, but for the sizes.
SETTINGS = {"refusals", "settings", "keep", "lifo", "fresh"}
#: Follow from the rest, which invariants say.
DERIVED = {"claims", "ready", "witness", "_put_back", "_take"}


def _read() -> tuple[str, ...]:
    """The slots of the core that tell one state from another."""
    core = Core.__new__(Core)
    core.moves = 0
    core.reset_counters()
    counters = {name for name in Core.__slots__ if hasattr(core, name)}
    return tuple(n for n in Core.__slots__ if n not in counters | SETTINGS | DERIVED)


READ = _read()


class Past(float):
    """A moment of the past, of which only the order matters."""


Told = int | str | bool | float | None


class Teller:
    """Tells a part of a world as a list of tokens."""

    def __init__(self, world: World, names: dict[int, int]) -> None:
        self.world = world
        self.now = world.runtime.time
        self.names = names  # of objects already met, by id
        entries = [*world.core.entries, *world.core.retiring]
        # A moment that names a lending is told from another one of the same time.
        self.lendings = {id(e.lent_at): e for e in entries if e.place is LENT}
        self.tokens: list[Told] = []

    def tell(self, thing: Any) -> None:
        """Add the tokens of `thing`."""
        kind = type(thing)
        if kind in PLAIN:
            self.tokens.append(thing)
        elif kind is float:
            if id(thing) in self.lendings:
                self._known(self.lendings[id(thing)])
            self._moment("", thing)
        elif kind in OBJECTS:
            if not self._known(thing):
                self._slots(thing, OBJECTS[kind])
        elif kind is Held:
            if not self._known(thing):
                self._sequence("held", (thing(), thing.entry))
        elif kind in SEQUENCES:
            self._sequence(kind.__name__, thing)
        elif kind in (dict, OrderedDict):
            self._mapping(thing)
        else:
            self._rare(thing, kind)

    def core(self) -> None:
        """Add every slot of the core that may decide something."""
        core = self.world.core
        self._slots(core, READ)
        self._slots(core.settings, ("min_size", "max_size"))  # resize() changes these
        if self.world.may_distrust:
            for entry in [*core.entries, *core.retiring]:
                unused = entry.idle_since == entry.opened_at
                self.tokens += (unused, bool(core.failures) and entry.opened_at < core.failed_at)

    def _rare(self, thing: Any, kind: type[Any]) -> None:
        if kind in (CoroutineType, GeneratorType):
            self._suspended(thing)
        elif IS_CONSTANT[kind]:
            self.tokens.append(kind.__name__)
        elif isinstance(thing, Enum):
            self.tokens.append(thing.name)
        elif kind is partial:
            self._sequence("partial", (thing.func, *thing.args))
        elif hasattr(thing, "__length_hint__"):  # an iterator, half-way
            self._sequence("iterator", (thing.__length_hint__(), *gc.get_referents(thing)))
        else:
            raise TypeError(f"the fingerprint does not know how to tell a {kind}: teach it")

    def _slots(self, thing: object, slots: tuple[str, ...]) -> None:
        for slot in slots:
            if slot == "began_at" and thing.place is not OPENING:  # type: ignore[attr-defined]
                continue  # of no interest any more
            if slot == "back" and not self.world.may_distrust:
                continue
            if slot == "opened_at" and not self._is_young(thing):
                continue
            value = getattr(thing, slot)
            if type(value) is float:
                self._moment(slot, value)
            else:
                self.tell(value)

    def _is_young(self, entry: Any) -> bool:
        """Whether the age of a connection matters: it may be of the kind that ends at once."""
        core = self.world.core
        unused = entry.idle_since == entry.opened_at or entry.opened_at == self.now
        proves = core.unproven and entry.opened_at >= core.failed_at
        return bool(self.world.may_distrust and (unused or proves))

    def _moment(self, slot: str, at: float) -> None:
        if isinf(at):
            self.tokens.append(at)
        elif at > self.now:
            self.tokens += ("in", round(at - self.now, 4))
        elif slot in LOOKED_BACK:
            self.tokens += ("ago", min(round(self.now - at, 4), self._looked_back(slot)))
        else:
            self.tokens.append(Past(round(at - self.now, 4)))

    def _looked_back(self, slot: str) -> float:
        span = LOOKED_BACK[slot]
        span = getattr(self.world.core.settings, span) if isinstance(span, str) else span
        return 0.0 if span == inf else span  # after an endless time nothing ever happens

    def _sequence(self, name: str, things: Iterable[Any]) -> None:
        self.tokens.append(name)
        for thing in things:
            self.tell(thing)
        self.tokens.append("end")

    def _mapping(self, things: dict[Any, Any]) -> None:
        self._sequence("keys", things)
        if any(value is not None for value in things.values()):
            self._sequence("values", things.values())

    def _known(self, thing: object) -> bool:
        """Add the object's number, which is new if it was not met before."""
        known = id(thing) in self.names
        self.tokens += (type(thing).__name__, self.names.setdefault(id(thing), len(self.names)))
        return known

    def _suspended(self, flow: Any) -> None:
        """Add the position, and every value in locals and on the stack: the inner flow, too."""
        frame: Any = flow.cr_frame if type(flow) is CoroutineType else flow.gi_frame
        if frame is None:  # it has ended, and its caller has not forgotten it
            self.tokens.append("ended")
            return
        self.tokens += (frame.f_code.co_qualname, frame.f_lasti)
        del frame
        self._sequence("frame", [x for x in gc.get_referents(flow) if not IS_CONSTANT[type(x)]])


class _Constant(dict[type, bool]):
    """Whether objects of a type are told by their type alone; remembers the answers."""

    def __missing__(self, kind: type) -> bool:
        is_part = kind.__name__ in PARTS
        self[kind] = issubclass(kind, (*CONSTANT, BaseException)) or is_part
        return self[kind]


IS_CONSTANT = _Constant()

#: How long after a moment its age still matters: seconds, or the setting that says it.
LOOKED_BACK: dict[str, float | str] = {
    "idle_since": "max_idle",
    "low_water_since": "max_idle",
    "failing_since": "reconnect_timeout",
    "rejected_since": "rejected_after",
    "failed_at": CROWDED_INTERVAL,
    "paced_at": CROWDED_INTERVAL,
    "opened_at": PROBATION,
    "probed_at": PROBE_PATIENCE,
    "seen_at": "keepalive_interval",
    "began_at": PROBE_PATIENCE,
    "deadline": 0.0,
    "demoted_until": 0.0,
    "retry_at": 0.0,  # over is over
    "expires_at": 0.0,
    "due": 0.0,
    "lent_at": 0.0,  # only counted
    "since": 0.0,
}


def core_tokens(world: World) -> list[Told]:
    """What fingerprints say of the core."""
    teller = Teller(world, {})
    teller.core()
    return teller.tokens


def fingerprint(world: World) -> bytes:
    """Equal only for worlds with the same future."""
    core = Teller(world, {})
    core.core()

    def told(part: tuple[Any, ...], names: dict[int, int]) -> Teller:
        teller = Teller(world, names)
        teller.tell(part)
        return teller

    # Clients and workers are interchangeable: put them in an order that says nothing of who they
    # are.  What objects they have apart from the core are numbered anew in that order, for two of
    # them may share one.
    alone = [(told(part, core.names.copy()), part) for part in _parts(world)]
    tokens, common = core.tokens, core.names.copy()
    for teller, part in sorted(alone, key=lambda pair: repr(pair[0].tokens)):
        own = len(teller.names) > len(core.names)
        tokens += told(part, common).tokens if own else teller.tokens
    tokens += (world.mishaps, world.ticks, *world.orders, world.driver.standby_now)
    tokens += (world.is_due, world.flows._closing)
    return blake2b(repr(_ranked(tokens, world)).encode(), digest_size=16).digest()


def _parts(world: World) -> list[tuple[Any, ...]]:
    """What there is besides the core, in no particular order."""
    busy = {c.task: c.told() for c in world.clients}
    idle = [("client", *client.told()) for client in world.clients if client.task is None]
    idle.append(("handler", *world.handler.told()))
    tasks = [("flow", t.coro, busy.get(t), t.hung) for t in world.tasks.values()]
    jobs = [("job", job.key, job.place) for job in world.runtime.jobs.values()]
    return [*idle, *tasks, *jobs, ("forsaken", *world.forsaken)]


def _ranked(tokens: list[Told], world: World) -> list[Told]:
    """Replace the moments of the past by their ranks; they are compared by check_failed() only."""
    if world.flows.check is None:
        return ["past" if type(token) is Past else token for token in tokens]
    moments = sorted({0.0, *(token for token in tokens if type(token) is Past)})
    rank = {moment: f"past {number}" for number, moment in enumerate(moments)}
    return [rank[token] if type(token) is Past else token for token in tokens]
