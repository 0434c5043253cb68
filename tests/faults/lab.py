"""One scenario, one pool: clients that ask, a fault, and what the clients saw of it.

A scenario is a schedule of clients and faults that knows no pool. It is played to a `Trial`, which
has a pool behind it (`peers`), starts clients, and notes of every request when it asked, when it
was lent a connection and how it ended. The figures are read off those notes and off the server
afterwards. Nothing here knows how any of the pools works.
"""

from __future__ import annotations

import random
import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from math import inf
from statistics import median
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

from forebay._embedded import EmbeddedPostgres, Setting

from .server_faults import backends, terminate_backends

CAP = 40.0
"""Seconds after which a trial that makes no progress is ended; reported as "> 40 s"."""

STRANDED_AFTER = 1.0
"""Seconds beyond its own time-out after which a client that still waits counts as stranded."""

LEND_ALL = 20.0
"""Seconds in which a pool must be able to lend all its connections at once, when all is over."""

LAST_WORDS = 5.0
"""Seconds clients have to end when all is healed; who does not is hung."""

SETTLE = 3.0
"""Seconds the server's list of sessions has to come to agree with the pool's size."""

WINDOW = 0.1
"""Seconds over which a rate is taken."""

WORK = "select pg_sleep(0.005)"
"""What each client does under load: the rate then says how many connections are at work."""

SETTINGS: Mapping[str, Setting] = {"max_connections": 40, "autovacuum": "off"}
READ_ONLY = "25006"
"""What the server says to who wants to write to a standby."""

ROLE = "app"
"""The role the pools log in as; not a superuser, so that there is always room for the lab."""

now = time.monotonic

T = TypeVar("T")


@dataclass(frozen=True)
class Errand:
    """What each client of a crowd does.

    Attributes:
        timeout: seconds it is willing to wait for a connection.
        query: what it executes on the connection.
        hold: it keeps the connection until this is set.
        times: requests it wants served, one after the other; `inf`: it goes on until stopped.
        failures: it leaves after so many requests that failed; `inf`: it is not deterred.
        pause: seconds it lets pass after a failure.
    """

    timeout: float = 30.0
    query: str = "select 1"
    hold: threading.Event | None = None
    times: float = 1
    failures: float = inf
    pause: float = 0.01


@dataclass
class Attempt:
    """One request of one client, as the client saw it; the block in `with` is the request.

    Attributes:
        asked: when it asked.
        timeout: seconds it was willing to wait.
        lent: when it had a connection, else None.
        ended: when it was over, else None.
        error: what it ended with, else None.
    """

    asked: float
    timeout: float
    lent: float | None = None
    ended: float | None = None
    error: BaseException | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        self.error = exc
        self.ended = now()
        return isinstance(exc, Exception)

    @property
    def served(self) -> bool:
        """Whether its query was answered."""
        return self.ended is not None and self.error is None

    @property
    def wait(self) -> float:
        """Seconds until it had a connection, or until now, or until it gave up."""
        return (self.lent or self.ended or now()) - self.asked

    @property
    def stranded(self) -> bool:
        """Whether it was kept waiting for longer than it had said."""
        return self.lent is None and self.wait > self.timeout + STRANDED_AFTER


class Crowd:
    """Clients that do the same errand at the same time."""

    def __init__(self, number: int, errand: Errand) -> None:
        self.number = number
        self.errand = errand
        self.attempts: list[Attempt] = []
        self.stopped = threading.Event()
        self._left = threading.Semaphore(0)
        self._gone = 0

    def requests(self) -> Iterator[Attempt]:
        """The requests of one client, one after the other until it has what it wants."""
        errand = self.errand
        answered = failed = 0
        try:
            while answered < errand.times and failed < errand.failures:
                if self.stopped.is_set():
                    return
                attempt = Attempt(now(), errand.timeout)
                self.attempts.append(attempt)
                yield attempt
                answered += attempt.served
                failed += not attempt.served
        finally:
            self._left.release()

    def join(self, deadline: float) -> bool:
        """Wait until every client has left, or until the deadline; True when all have."""
        while self._gone < self.number:
            if not self._left.acquire(timeout=max(0.0, deadline - now())):
                return False
            self._gone += 1
        return True

    def until_lent(self, number: int, deadline: float) -> int:
        """Wait until so many requests have a connection, or the deadline; returns how many."""
        while (lent := sum(each.lent is not None for each in self.attempts)) < number:
            if now() > deadline:
                break
            time.sleep(0.001)
        return lent


def served(crowd: Crowd) -> list[float]:
    """When the crowd's requests were answered."""
    return [each.ended for each in list(crowd.attempts) if each.served and each.ended]


def sqlstate(error: BaseException | None) -> str | None:
    """The server's code, by whatever name the library has for it."""
    code = getattr(error, "sqlstate", None) or getattr(error, "pgcode", None)
    return code if isinstance(code, str) else None


@dataclass(frozen=True)
class Counts:
    """What a pool says of itself: its connections, how many are idle, workers given up."""

    size: int
    idle: int
    abandoned: int | None = None


class Subject(Protocol):
    """A pool of some library, as the lab uses it."""

    name: str

    def open(self, conninfo: str, min_size: int, max_size: int, **features: bool) -> None:
        """Open the pool, and return when it has `min_size` connections.

        The features: `reset`, a callback that makes one round trip; `listen`, which has every
        connection listen to the channel `storm`; both are off unless asked for.
        """
        ...

    def start(self, crowd: Crowd) -> None:
        """Let the clients loose."""
        ...

    def cancel(self, crowd: Crowd, number: int) -> None:
        """Cancel one client of the crowd, where clients can be cancelled."""
        ...

    def counts(self) -> Counts:
        """What the pool says of itself."""
        ...

    def close(self) -> None:
        """Close the pool; returns after some seconds even when the pool does not."""
        ...


@dataclass(frozen=True)
class Target:
    """What Forebay is to reach in a scenario, and whether a result does.

    One that is `timed` is measured and never asserted in a test.
    """

    text: str
    met: Callable[[Result], bool]
    timed: bool = False


@dataclass(frozen=True)
class Scenario:
    """A schedule, and who is to go through it.

    Attributes:
        name: for the command line.
        title: for the table.
        run: the schedule; its docstring describes it to the reader of the table.
        targets: what Forebay is to reach.
        without: pools for which it makes no sense, by name.
        goal: what is meant by all being well again.
        check: whether `check=` changes the peer's result, so that it is tried with it, too.
        cap: seconds from the moment it counts from after which it is ended.
    """

    name: str
    title: str
    run: Callable[[Trial], None]
    targets: Sequence[Target] = ()
    without: frozenset[str] = frozenset()
    goal: str = "all served"
    check: bool = False
    cap: float = CAP


@dataclass(frozen=True)
class Result:
    """What one scenario did to one pool. Times are in seconds.

    Attributes:
        faults: how many times there was a fault.
        errors: requests that failed, from the first fault on, by the name of their exception.
        broken: requests lent a connection that was dead already.
        first: from the moment the scenario counts from to the first request served; None: never.
        through: until all clients were served, or the rate was back; None: never.
        longest: the longest anybody waited for a connection.
        leaked: sessions on the server that the pool has forgotten, and connections it cannot lend.
        stranded: clients kept waiting beyond their time-out.
        hung: clients still in their query when the trial was over.
        abandoned: workers given up and still blocked; None where the pool does not say.
        facts: what else the scenario measured.
        failed: why the trial could not be played to its end.
    """

    scenario: str
    pool: str
    faults: int = 1
    errors: dict[str, int] = field(default_factory=dict)
    broken: int = 0
    first: float | None = None
    through: float | None = None
    longest: float = 0.0
    leaked: int = 0
    stranded: int = 0
    hung: int = 0
    abandoned: int | None = None
    facts: dict[str, float | str] = field(default_factory=dict)
    failed: str = ""

    @property
    def failures(self) -> int:
        """Requests that failed."""
        return sum(self.errors.values())

    @property
    def spread(self) -> float:
        """Seconds between the first client served and the last; infinite if one never was."""
        if self.first is None or self.through is None:
            return inf
        return self.through - self.first


class Lab:
    """The server that the trials share, put in order before each."""

    def __init__(self, server: EmbeddedPostgres, password: str | None = None) -> None:
        self.server = server
        self.password = password or secrets.token_hex(8)
        self.execute(sql.SQL("create role {} login").format(sql.Identifier(ROLE)))

    def refresh(self) -> None:
        """Undo what the last trial has changed."""
        self.server.start()
        terminate_backends(self.server, backends(self.server))
        self.execute(f"alter role {ROLE} reset all")
        self.set_password(self.password)

    def set_password(self, password: str) -> None:
        """Give the pools' role another password."""
        self.execute(sql.SQL("alter role {} password {}").format(sql.Identifier(ROLE), password))

    def conninfo(self, application: str, **parameters: Any) -> str:
        """How a pool connects: by TCP, with a password, under a name of its own."""
        ours = {"user": ROLE, "password": self.password, "application_name": application}
        return make_conninfo(self.server.tcp_dsn, **{**ours, **parameters})

    def execute(self, query: Any, *values: Any) -> list[tuple[Any, ...]]:
        """Run one statement as superuser, on a connection of its own."""
        with psycopg.connect(self.server.dsn, autocommit=True) as conn:
            cursor = conn.execute(query, values or None)
            return cursor.fetchall() if cursor.description else []

    def start(self) -> float:
        """Start the server; returns the moment in which it accepted a plain connection."""
        prober = threading.Thread(target=self.server.start)
        prober.start()
        accepted = self.accepting()
        prober.join()
        return accepted

    def accepting(self) -> float:
        """Knock until the server accepts a connection; returns that moment."""
        while True:
            with suppress(psycopg.OperationalError):
                psycopg.connect(self.conninfo("probe")).close()
                return now()
            time.sleep(0.002)

    def refusals(self) -> int:
        """How many connections the server has refused for want of room, since it was made."""
        return self.server.log_tail(1_000_000).count("FATAL:  sorry, too many clients")


@dataclass
class Fault:
    """When a fault began, and when the damage was done."""

    began: float
    damaged: float


@dataclass(frozen=True)
class Round:
    """How long after a fault the first client was served, and until all was well; None: never."""

    first: float | None
    through: float | None


def slowest(times: Sequence[float | None]) -> float | None:
    """The longest of these times; None, which is never, if one is."""
    return None if None in times or not times else max(each for each in times if each is not None)


class Trial:
    """One scenario with one pool: what a schedule may do, and what is read off afterwards."""

    def __init__(
        self,
        lab: Lab,
        scenario: Scenario,
        subject: Subject,
        *,
        seed: int = 4,
        hurry: bool = False,
    ) -> None:
        self.lab = lab
        self.scenario = scenario
        self.subject = subject
        self.random = random.Random(f"{seed} {scenario.name}")
        self.hurry = hurry
        self.facts: dict[str, float | str] = {}
        self.application = f"{scenario.name}/{subject.name}"
        self.max_size = 0
        self._crowds: list[Crowd] = []
        self._stack = ExitStack()
        self._deadline = now() + 2 * CAP  # until the scenario says from when to count
        self._faults: list[Fault] = []
        self._mark = inf
        self._load: Crowd | None = None
        self._rate_before = 0.0
        self._rounds: list[Round] = []

    # --- what a schedule does --------------------------------------------------------------

    def enter(self, manager: AbstractContextManager[T]) -> T:
        """Use this until the trial is over and its pool closed."""
        return self._stack.enter_context(manager)

    def open(self, size: int, *, room: int = 0, conninfo: str = "", **features: bool) -> None:
        """Open a pool of `size` connections, with room for more, each of them used once."""
        self.max_size = size + room
        conninfo = conninfo or self.conninfo()
        self.subject.open(conninfo, size, self.max_size, **features)
        self.lend_all(size)

    def conninfo(self, **parameters: Any) -> str:
        """How the pool connects to the lab's server."""
        return self.lab.conninfo(self.application, **parameters)

    def backends(self) -> list[int]:
        """Process ids of the pool's sessions."""
        return backends(self.lab.server, self.application)

    def rounds(self, *each: float) -> Sequence[float]:
        """The rounds to play: all of them, or the first alone when in a hurry."""
        return each[:1] if self.hurry else each

    def terminate(self, pids: Sequence[int]) -> None:
        """Terminate these sessions; returns when they are gone."""
        terminate_backends(self.lab.server, pids)

    def rest(self, seconds: float, *, hurried: float | None = None) -> None:
        """Let time pass, with whatever goes on; another time when in a hurry."""
        time.sleep(hurried if self.hurry and hurried is not None else seconds)

    def clients(self, number: int, **errand: Any) -> Crowd:
        """Start clients that each want one request served."""
        crowd = Crowd(number, Errand(**errand))
        self._crowds.append(crowd)
        self.subject.start(crowd)
        return crowd

    @contextmanager
    def load(self, number: int, **errand: Any) -> Iterator[Crowd]:
        """Clients that ask again and again, for the block; then wait until they have left."""
        crowd = self.clients(number, times=inf, **{"query": WORK, **errand})
        yield crowd
        crowd.stopped.set()
        self.join(crowd)

    @contextmanager
    def holding(self, number: int) -> Iterator[None]:
        """So many clients have a connection each, for the block, and then give it back."""
        hold = threading.Event()
        crowd = self.clients(number, hold=hold)
        crowd.until_lent(number, self._deadline)
        yield
        hold.set()

    def join(self, *crowds: Crowd) -> bool:
        """Wait until all clients have left, at most until the trial's time is up."""
        # A list: all of them are waited for, whatever the first does.
        return all([each.join(self._deadline) for each in crowds])  # noqa: C419

    @contextmanager
    def fault(self) -> Iterator[None]:
        """The block does the damage: what is lent after it and fails was broken when lent."""
        self._faults.append(Fault(now(), inf))
        yield
        self.damaged()

    def damaged(self) -> None:
        """The damage is done now; `fault()` says so at its end."""
        self._faults[-1].damaged = now()

    @property
    def began(self) -> float:
        """When the first fault began; infinite before."""
        return self._faults[0].began if self._faults else inf

    def cancel(self, crowd: Crowd) -> None:
        """Cancel the clients of this crowd, where clients can be."""
        for number in range(crowd.number):
            self.subject.cancel(crowd, number)

    def count_from(self, moment: float | None = None) -> None:
        """Times count from this moment, or from now."""
        self._mark = now() if moment is None else moment
        self._deadline = self._mark + self.scenario.cap

    def await_rate(self, crowd: Crowd, share: float = 0.9) -> None:
        """Wait until the crowd is served at `share` of its rate before the first fault.

        A rate is back when in a window of a tenth of a second as many were served as that makes.
        """
        self._load = crowd
        if not self._rate_before:
            span, began = 0.5, self.began
            rate = sum(began - span < end < began for end in served(crowd)) / span
            self.facts["served before, per s"] = round(rate)
            self._rate_before = share * rate
        while self._rate_is_back() is None and now() < self._deadline:
            time.sleep(WINDOW / 4)

    def _rate_is_back(self) -> float | None:
        """Seconds from the mark to the begin of the first window with enough requests served."""
        assert self._load is not None
        ends = sorted(end for end in served(self._load) if end >= self._mark)
        enough = max(2, int(self._rate_before * WINDOW))
        for first, last in zip(ends, ends[enough - 1 :], strict=False):
            if last - first <= WINDOW:
                return first - self._mark
        return None

    def round_is_over(self) -> None:
        """Note the times of this round; of several, the slowest are reported."""
        ends = [end for crowd in self._crowds for end in served(crowd) if self._counts(end)]
        first = min(ends) - self._mark if ends else None
        self._rounds.append(
            Round(first, self._rate_is_back() if self._load else self._all_served())
        )

    def _counts(self, end: float) -> bool:
        """Whether this moment lies in the time that counts; the cap ends it."""
        return self._mark <= end <= self._deadline

    def lend_all(self, number: int) -> int:
        """Have the pool lend so many connections at the same time; returns how many it could."""
        hold = threading.Event()
        crowd = Crowd(number, Errand(timeout=LEND_ALL, hold=hold))
        self.subject.start(crowd)
        lent = self._served_at_once(crowd, number)
        crowd.stopped.set()
        hold.set()
        crowd.join(now() + LEND_ALL + STRANDED_AFTER)
        return lent

    def _served_at_once(self, crowd: Crowd, number: int) -> int:
        deadline = now() + LEND_ALL
        while True:
            held = [each for each in crowd.attempts if each.lent and each.ended is None]
            if len(held) >= number or now() > deadline:
                return len(held)
            time.sleep(0.001)

    def connect_time(self) -> float:
        """Seconds one plain connect takes now, the median of five; also noted as a fact."""
        times = []
        for _ in range(5):
            began = now()
            psycopg.connect(self.lab.conninfo("probe")).close()
            times.append(now() - began)
        self.facts["one connect, ms"] = round(median(times) * 1000, 1)
        return median(times)

    # --- what is read off afterwards -------------------------------------------------------

    def play(self) -> Result:
        """Play the scenario to its end, whatever the pool does."""
        failed = ""
        try:
            self.scenario.run(self)
        except Exception as error:
            failed = f"{type(error).__name__}: {error}"
        for crowd in self._crowds:
            crowd.stopped.set()
            crowd.join(now() + LAST_WORDS)
        result = self._result(failed)
        self._close()
        return result

    def _close(self) -> None:
        """The pool first, then what it talked to."""
        self.subject.close()
        self._stack.close()

    def _result(self, failed: str) -> Result:
        attempts = [each for crowd in self._crowds for each in list(crowd.attempts)]
        since = [each for each in attempts if (each.ended or now()) >= self.began]
        bad = [each for each in since if isinstance(each.error, Exception)]
        if not self._rounds:
            self.round_is_over()
        stranded = sum(each.stranded for each in attempts)
        hung = sum(each.ended is None and each.lent is not None for each in attempts)
        unlent = 0 if failed else self.max_size - self.lend_all(self.max_size)
        return Result(
            scenario=self.scenario.name,
            pool=self.subject.name,
            faults=len(self._faults),
            errors=dict(Counter(type(each.error).__name__ for each in bad)),
            broken=sum(self._was_broken(each) for each in bad),
            first=slowest([each.first for each in self._rounds]),
            through=slowest([each.through for each in self._rounds]),
            longest=max((each.wait for each in since), default=0.0),
            leaked=0 if failed else unlent + self._forgotten(),
            stranded=stranded,
            hung=hung,
            abandoned=None if failed else self._abandoned(),
            facts=self.facts,
            failed=failed,
        )

    def _was_broken(self, attempt: Attempt) -> bool:
        """Whether a request that failed had been lent a connection that was dead by then.

        Not so when the next fault came before it failed, or when the server did answer, saying
        that it takes no writes.
        """
        if attempt.lent is None or sqlstate(attempt.error) == READ_ONLY:
            return False
        ended = attempt.ended or now()
        nexts = [each.began for each in self._faults[1:]] + [inf]
        return any(
            fault.damaged < attempt.lent and ended < following
            for fault, following in zip(self._faults, nexts, strict=True)
        )

    def _all_served(self) -> float | None:
        """Seconds from the mark until the last client that came for one request had been served."""
        ends = []
        for crowd in self._crowds:
            errand = crowd.errand
            before = crowd.attempts[0].asked < self.began
            if before or errand.times == inf or errand.failures < inf:
                continue
            if len(answers := served(crowd)) < crowd.number * errand.times:
                return None
            ends.append(max(answers))
        if not all(map(self._counts, ends)):
            return None
        return max(ends) - self._mark if ends else None

    def _forgotten(self) -> int:
        """Sessions on the server beyond those the pool knows of, once that has settled."""
        deadline = now() + SETTLE
        while (extra := len(self.backends()) - self.subject.counts().size) > 0:
            if now() > deadline:
                return extra
            time.sleep(0.05)
        return 0

    def _abandoned(self) -> int | None:
        """Workers that stay abandoned, once that has settled."""
        deadline = now() + SETTLE
        while (left := self.subject.counts().abandoned) and now() < deadline:
            time.sleep(0.05)
        return left
