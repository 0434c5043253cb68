"""Draws the life of an entry in `mechanisms.md` as the core really lives it.

The script plays small pools through every order of events (up to a depth, each abstract state
once) and notes each write to the place of an entry, with the transition that wrote it.  Nothing is
drawn that did not happen.

    python docs/diagram.py      # writes the diagram into docs/mechanisms.md
"""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import inf
from pathlib import Path
from typing import Any
from unittest import mock

from forebay import _core
from forebay._core import ALL, Core, Phase
from forebay._entry import IDLE, LENT, OPENING, RETIRED, Effects, Entry
from forebay._policy import Backoff
from forebay.options import Settings

PAGE = Path(__file__).parent / "mechanisms.md"
BEGIN = "<!-- diagram: begin (written by docs/diagram.py) -->\n"
END = "<!-- diagram: end -->"

NOWHERE = "[*]"  # how mermaid writes both the beginning and the end

Move = tuple[str, str, str]  # from, to, by

#: Events, that is, transitions: how many in a row are played.
DEPTH = 10
#: A connection's lifetime, and the step of the clock: whatever is older has expired.
HOUR = 3600.0

#: Steps that many transitions share, and that move entries which the caller did not name.
SHARED = ("_balance", "_drain_lost")

NORMAL: dict[str, Any] = {"min_size": 1, "max_size": 2, "num_workers": 2}
NULL: dict[str, Any] = {"min_size": 0, "max_size": 1, "keep": 0, "retrying": False}

#: The transitions that are played.
PLAYED = {
    *("open", "close", "drain", "fill", "maintain", "resize"),
    *("checkout", "enqueue", "cancel", "checkin", "give_back", "retake", "discard", "check_failed"),
    *("begin", "opened", "open_failed", "recall", "inspect", "serviced", "reclaim", "retired"),
    *("demoted", "resettle"),
}
#: The methods of the core that move no entry, unless they repair (`audit`), or balance.
MOVE_NOTHING = {
    *("audit", "check_passed", "expire", "promised", "refuse", "reset_counters", "watch"),
    *("arm", "disarm", "doubtful", "overheld", "snapshot", "use", "put_off"),
    *("claim", "tie", "untie"),
}

#: Where an entry stores its place, below the tracing property.
PLACE: Any = vars(Entry)["place"]

moves: dict[Move, None] = {}


class TracedEntry(Entry):
    """An entry that notes where it goes, and which transition sends it there."""

    __slots__ = ("core",)

    @property
    def place(self) -> Any:
        """Where it is."""
        return PLACE.__get__(self)

    @place.setter
    def place(self, place: Any) -> None:
        core = getattr(self, "core", None)
        if core is None:
            before, after = NOWHERE, place.value
        else:
            before = self.place.value
            after = NOWHERE if place is RETIRED and self not in core.retiring else place.value
        PLACE.__set__(self, place)
        if before != after:
            moves[before, after, _caller()] = None


class TracedEntries(dict[Any, None]):
    """The core's registry; tells each entry to which core it belongs."""

    def __init__(self, core: Core) -> None:
        self.core = core

    def __setitem__(self, entry: Any, value: None) -> None:
        entry.core = self.core
        super().__setitem__(entry, value)


class TracedRetiring(dict[Any, None]):
    """The core's retired entries; notes who lets one go."""

    def pop(self, entry: Any, default: Any = None) -> Any:
        """Let an entry go."""
        if entry in self:
            moves[RETIRED.value, NOWHERE, _caller()] = None
        return super().pop(entry, default)


def _caller() -> str:
    """The transition under way, or the step shared by several that is."""
    name = ""
    frame = inspect.currentframe()
    while frame is not None:
        if frame.f_code.co_filename == _core.__file__ and frame.f_code.co_name != "run":
            name = frame.f_code.co_name
            if name in SHARED:
                return name
        frame = frame.f_back
    return name


class Client:
    """A waiter whose client is played by the script."""

    def __init__(self) -> None:
        self.entry: Entry | None = None
        self.conn: Any = None
        self.error: BaseException | None = None
        self.ready = False
        self.since = self.deadline = 0.0
        self.holder = self.claim = self.client = None

    def wake(self) -> None:
        """Do nothing: the script lets the client act."""

    async def wait(self, timeout: float | None) -> None:
        """Never called."""


class Thing:
    """Stands for a connection."""


class Refusals:
    """Exceptions of no particular class."""

    def closed(self, core: Core) -> Exception:  # noqa: ARG002
        """The pool is not open."""
        return RuntimeError("closed")

    full = closed

    def timeout(self, *_: object) -> Exception:
        """The client's time is up."""
        return RuntimeError("timeout")

    rejected = nested = timeout

    def deadlock(self, *_: object) -> None:
        """It is never certain."""


class Play:
    """A core, and everything that has been given out for its entries."""

    def __init__(self, keep: int = ALL, **sizes: Any) -> None:
        limits: dict[str, Any] = {
            "max_lifetime": HOUR,
            "bypass_window": inf,
            "keepalive_interval": HOUR / 2,
        }
        settings = Settings.of(backoff=Backoff(0.01, 1, 0.01), **limits, **sizes)
        self.core = Core(Refusals(), settings, keep)
        self.core.entries = TracedEntries(self.core)
        self.core.retiring = TracedRetiring()
        self.now = 0.0
        self.held: dict[Any, Any] = {}  # by entry: what a worker or a client holds
        self.client: Client | None = None

    def events(self) -> Iterator[tuple[Any, ...]]:
        """What can happen next."""
        core = self.core
        if core.phase is Phase.NEW:
            yield ("open",)
            return
        yield from (("close",), ("drain",), ("maintain",), ("tick",), ("demoted",), ("resettle",))
        yield from (("resize", 0, 1), ("resize", core.settings.min_size, 2), ("fill", 1))
        if core.phase is Phase.OPEN and self.client is None:
            yield from (("checkout",), ("enqueue",))
        if self.client is not None:
            yield from (("cancel",), ("take",))
        for at, entry in enumerate([*core.entries, *core.retiring]):
            yield from ((event, at) for event in self._events_of(entry))

    def _events_of(self, entry: Any) -> list[str]:
        if entry.ordered:
            return ["begin"]
        if entry.place is IDLE:
            return ["recall", "inspect"]
        if entry not in self.held:
            return []
        if entry.place is OPENING:
            return ["opened", "open_failed", "configure_failed", "drop"]
        if entry.place is LENT:
            returns = ["checkin", "give_back", "retake", "discard", "check_failed"]
            return [*returns, "reclaim", "drop"]
        return ["retired", "drop"] if entry.place is RETIRED else ["serviced", "discard", "drop"]

    def do(self, event: str, *args: int) -> None:
        """Let one thing happen."""
        effects = getattr(self, f"_{event}", self._transition)(event, *args)
        for client in effects.wake if isinstance(effects, Effects) else ():
            self.core.granted.pop(client, None)

    def _transition(self, event: str, *args: int) -> Any:
        return getattr(self.core, event)(*args, self.now)

    def _demoted(self, _: str) -> Any:
        return self.core.demoted(self.now, 0.5)

    def _resettle(self, _: str) -> Any:
        for entry in [e for e in self.held if e.place not in (IDLE, LENT)]:
            del self.held[entry]
        effects, _left = self.core.resettle(self.now, evict=False)
        return effects

    def _tick(self, _: str) -> None:
        self.now += HOUR

    def _checkout(self, _: str) -> None:
        conn = self.core.checkout(self.now)
        if conn is not None:
            self._hold(conn)

    def _enqueue(self, _: str) -> Any:
        self.client = Client()
        return self.core.enqueue(self.client, self.now)

    def _cancel(self, _: str) -> Any:
        client, self.client = self.client, None
        assert client is not None
        return self.core.cancel(client, self.now)

    def _take(self, _: str) -> None:
        """The client goes on, with what it was granted if it was."""
        assert self.client is not None
        if self.client.conn is not None:
            self._hold(self.client.conn)
            self.client = None

    def _hold(self, conn: Any) -> None:
        (entry,) = (e for e in self.core.entries if e.ref is not None and e.ref() is conn)
        self.held[entry] = conn

    def _entry_event(self, event: str, at: int) -> Any:
        core, entry = self.core, [*self.core.entries, *self.core.retiring][at]
        if event == "inspect":
            return core.inspect(entry, self.now)
        if event in ("begin", "recall"):
            held = core.begin(entry, self.now) if event == "begin" else core.recall(entry)
            if held is not None:
                self.held[entry] = held
            return None
        return self._end_of_hold(event, entry, self.held.pop(entry))

    def _end_of_hold(self, event: str, entry: Any, held: Any) -> Any:
        core, error = self.core, OSError()
        ends: dict[str, Callable[[], Any]] = {
            "opened": lambda: core.opened(entry, Thing(), 0.0, self.now, 0.5),
            "open_failed": lambda: core.open_failed(entry, None, error, self.now, 0.5),
            "configure_failed": lambda: core.open_failed(entry, Thing(), error, self.now, 0.5),
            "check_failed": lambda: core.check_failed(entry, held, error, self.now, self.now, 0.5),
            "retired": lambda: core.retired(entry),
            "retake": lambda: self._retake_lease(entry, held),
            "reclaim": lambda: core.reclaim(entry, self.now),
            "drop": lambda: None,  # with this frame ends the last reference
            "checkin": lambda: core.checkin(entry, held, self.now, entry.lent_at),
            "give_back": lambda: core.give_back(entry, held, self.now, entry.lent_at, clean=False),
            "discard": lambda: core.discard(entry, held, self.now, 0.5),
            "serviced": lambda: core.serviced(entry, held, self.now),
        }
        return ends[event]()

    def _retake_lease(self, entry: Any, held: Any) -> Any:
        entry.leased, entry.kept = "a lease", held
        return self.core.retake(entry, entry.tether, self.now)

    _begin = _recall = _inspect = _opened = _open_failed = _configure_failed = _check_failed = (
        _entry_event
    )
    _checkin = _give_back = _retake = _serviced = _discard = _reclaim = _entry_event
    _retired = _drop = _entry_event

    def state(self) -> tuple[Any, ...]:
        """What matters for what may happen next."""
        core, client = self.core, self.client
        return (
            core.phase,
            core.settings.min_size,
            core.settings.max_size,
            core.target,
            core.failures > 0,
            core.retry_at > self.now,
            len(core.lost),
            client and (client in core.waiting, client.conn is not None, client.error is not None),
            *(
                (e.place, e.ordered, e.expires_at <= self.now, e in self.held)
                for e in [*core.entries, *core.retiring]
            ),
        )


def explore(**sizes: Any) -> None:
    """Play all orders of events, going on from each abstract state once."""
    seen: set[tuple[Any, ...]] = set()
    paths: deque[tuple[tuple[Any, ...], ...]] = deque([()])
    while paths:
        path = paths.popleft()
        for event in _replayed(path, sizes).events():
            play = _replayed(path, sizes)
            play.do(*event)
            state = play.state()
            if state not in seen:
                seen.add(state)
                if len(path) + 1 < DEPTH:
                    paths.append((*path, event))


def _replayed(path: tuple[tuple[Any, ...], ...], sizes: dict[str, Any]) -> Play:
    play = Play(**sizes)
    for event in path:
        play.do(*event)
    return play


@contextmanager
def _traced() -> Iterator[None]:
    with mock.patch.object(_core, "Entry", TracedEntry):
        yield


def observed() -> list[Move]:
    """Every move of an entry that was seen: from where, to where, by which transition."""
    moves.clear()
    with _traced():
        explore(**NORMAL)
        explore(**NULL)
    order = [NOWHERE, *(place.value for place in type(IDLE))]
    return sorted(moves, key=lambda move: (order.index(move[0]), order.index(move[1]), move[2]))


def render() -> str:
    """The diagram, as a fenced block."""
    arrows: dict[tuple[str, str], list[str]] = {}
    for before, after, by in observed():
        arrows.setdefault((before, after), []).append(by)
    lines = [f"    {a} --> {b}: {', '.join(by)}" for (a, b), by in arrows.items()]
    return "\n".join(["```mermaid", "stateDiagram-v2", *lines, "```", ""])


def main() -> None:
    """Put the diagram into the page."""
    page = PAGE.read_text()
    head, _, rest = page.partition(BEGIN)
    _, _, tail = rest.partition(END)
    PAGE.write_text(head + BEGIN + render() + END + tail)


if __name__ == "__main__":
    main()
