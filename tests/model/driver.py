"""A driver whose server is the explorer: it decides how each request ends."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from forebay._entry import Entry, Verdict

from .runtime import ask


class Failure(Exception):
    """What a connect, a callback or a round trip may raise."""


class NoAnswer(Failure):
    """What a connect raises whose own time is over."""


class Cancelled(BaseException):
    """A cancellation, as asyncio throws it into a task."""


class Refused(Exception):
    """What a pool raises to a client it does not serve."""


class Refusals:
    """The exceptions of a model pool."""

    def __init__(self) -> None:
        self.deadlocked: Callable[[], None] = lambda: None  # called when a deadlock is refused

    def closed(self, _core: Any) -> Exception:
        """The pool is not open."""
        return Refused("closed")

    def full(self, _core: Any) -> Exception:
        """Too many wait."""
        return Refused("full")

    def timeout(self, *_facts: Any) -> Exception:
        """Time is up."""
        return Refused("timeout")

    def rejected(self, *_facts: Any) -> Exception:
        """Connecting fails for good."""
        return Refused("rejected")

    def nested(self, _core: Any) -> Exception:
        """A handler asks inside a transition."""
        return Refused("nested")

    def deadlock(self, *_facts: Any) -> Exception:
        """Everybody waits for everybody."""
        self.deadlocked()
        return Refused("deadlock")


class Lifeline:
    """The means to free whoever is blocked on a connection."""

    __slots__ = ("conn",)

    def __init__(self, conn: Connection) -> None:
        self.conn = conn

    def cut(self) -> None:
        """End the session."""
        self.conn.state = "broken"
        self.conn.cut = self.conn.spoiled = self.conn.excused = True

    def close(self) -> None:
        """Nothing is held."""


class Connection:
    """A connection, and what the explorer did to it."""

    __slots__ = (
        "__weakref__",
        "_driver",
        "back",
        "closed",
        "cut",
        "died",
        "entry",
        "excused",
        "generation",
        "number",
        "spoiled",
        "standby",
        "state",
        "uses",
        "work",
    )

    def __init__(self, driver: ModelDriver, number: int, generation: int) -> None:
        self._driver = driver
        self.number = number
        self.generation = generation
        self.entry: Entry | None = None
        self.state = "clean"  # or "unclean" (in a transaction), or "broken"
        self.closed = 0  # how often
        self.uses = 0  # how many clients have had it
        self.work: Any = None  # the client that has begun something on it and not committed it
        self.back = False  # it was returned once
        self.died = False  # the server has ended its session
        self.cut = False  # its lifeline was cut
        self.standby = driver.standby_now  # what its server was when it was opened
        self.spoiled = False  # something that was done to it has failed or was cut short
        self.excused = False  # may be dropped without having been closed

    @property
    def drained(self) -> bool:
        """Whether drain() was called after its opening had begun."""
        return self.generation < self._driver.generation

    def __repr__(self) -> str:
        return f"connection {self.number}"

    def __del__(self) -> None:
        if not self.closed and not self.excused:
            self._driver.dropped_open.append(self.number)


class ModelDriver:
    """Connects to nothing."""

    ProgrammingError = Failure

    def __init__(
        self, *, timed: bool = False, noisy: bool = False, verdict: Verdict = Verdict.TRANSIENT
    ) -> None:
        self._timed = timed  # actions have deadlines
        self._noisy = noisy  # sockets have something to read, always
        self._verdict = verdict  # of a failed attempt to connect
        self.standby_now: bool | None = None  # whether the server is one
        self.connections = 0
        self.generation = 0  # how often the pool was drained
        self.dropped_open: list[int] = []  # connections dropped without having been closed

    def refusals(self, _name: str) -> Refusals:
        """The exceptions of the pool."""
        return Refusals()

    def adopt(self, conn: Connection, entry: Entry) -> None:
        """Attach the entry."""
        conn.entry = entry

    def entry(self, conn: Connection) -> Entry:
        """The entry attached."""
        assert conn.entry is not None
        return conn.entry

    def unclean(self, conn: Connection) -> bool:
        """Whether it is anything but clean."""
        return conn.state != "clean"

    def label(self, conn: Connection) -> str:
        """Its name."""
        return repr(conn)

    def died(self, conn: Connection) -> bool:
        """Whether the server has ended its session."""
        return conn.died

    def end(self, conn: Connection) -> None:
        """Close it on the spot."""
        conn.closed += 1
        conn.work = None

    def deliver(self, conn: Connection) -> None:
        """There is nothing to hear."""

    def unanswered(self, error: BaseException) -> bool:
        """Whether it tells that the server did not answer."""
        return isinstance(error, NoAnswer)

    def usable(self, conn: Connection) -> bool:
        """Whether it works."""
        return conn.state != "broken"

    def closed(self, conn: Connection) -> bool:
        """Whether the server has cut it off."""
        return conn.state == "broken"

    def readable(self, conns: list[Connection]) -> list[Connection]:
        """Those that were cut off, or all."""
        return [conn for conn in conns if self._noisy or conn.state == "broken"]

    def look(self, conn: Connection) -> Exception | None:
        """Why it is dead, if it is."""
        return Failure("dead") if conn.state == "broken" else None

    def lifeline(self, conn: Connection) -> Lifeline | None:
        """What frees who is blocked on it."""
        return Lifeline(conn) if self._timed else None

    def verdict(self, _error: BaseException) -> Verdict:
        """Always the same."""
        return self._verdict

    def keepable(self, error: BaseException) -> BaseException:
        """It refers to nothing."""
        return error

    def patience(
        self, _conninfo: Any, _kwargs: Any, factor: int = 1, _connection_class: Any = None
    ) -> float:
        """How long connecting may take by itself."""
        return 1.0 * min(factor, 4)

    def standby(self, conn: Connection) -> bool | None:
        """What its server was when it was opened."""
        return conn.standby

    def wants_writable(self, *_parameters: Any) -> bool | None:
        """Nobody says."""
        return None

    async def in_recovery(self, conn: Connection) -> bool:
        """Ask the server."""
        await ask("role", conn)
        return bool(self.standby_now)

    def describe(self, conn: Connection) -> str:
        """Its state."""
        return conn.state

    async def connect(self, *_parameters: Any) -> Connection:
        """Open a connection."""
        generation = self.generation
        await ask("connect")
        self.connections += 1
        return Connection(self, self.connections, generation)

    async def close(self, conn: Connection) -> None:
        """Close it: even a close that fails or is cut short has closed the socket."""
        self.end(conn)
        await ask("close", conn)

    async def rollback(self, conn: Connection) -> None:
        """End the transaction."""
        await ask("rollback", conn)
        conn.state = "clean"
        conn.work = None

    async def ping(self, conn: Connection) -> None:
        """Make a round trip."""
        await ask("ping", conn)
