"""The runtime for threads and its doors, with real threads of which one runs at a time.

A thread passes the baton on only where it enters or leaves a lock, waits for something or starts
a thread.  What happens next there is a choice, and a schedule is a list of such choices: the
explorer runs a scenario again and again until it has tried every schedule in which the running
thread is interrupted at most `bound` times, where a time-out or a cancellation counts as one too
(Musuvathi and Qadeer, "Iterative context bounding", PLDI 2007).
"""

from __future__ import annotations

import inspect
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from math import inf
from types import SimpleNamespace
from typing import Any, ClassVar, Self, TypeAlias
from unittest import mock

from forebay import ConnectionPool, PoolClosed, PoolTimeout
from forebay._core import Core
from forebay._entry import LENT, Effects
from forebay._flows import Flows
from forebay.testing import FakeConnection, FakeDriver, ManualClock, fake_pool
from tests.core.invariants import violations

Body: TypeAlias = Callable[[], object]

#: Waiting longer than this (seconds) is waiting for ever.
FOREVER = 1e8

#: Seconds of real time after which the exploration itself must be at fault.
STUCK = 60.0


class Violation(AssertionError):
    """A schedule has broken an invariant."""


class Cancelled(BaseException):
    """Thrown into a client that waits."""


class Abandoned(BaseException):
    """Ends the threads of a schedule that has failed."""


class Carrier:
    """A real thread that plays one thread after another, since starting one takes long."""

    free: ClassVar[list[Carrier]] = []

    def __init__(self) -> None:
        self.turn = threading.Lock()
        self.turn.acquire()
        self.body: Body = lambda: None
        threading.Thread(target=self._run, daemon=True, name="carrier").start()

    def _run(self) -> None:
        while True:
            self.turn.acquire()
            self.body()


class Local:
    """Stands in for `threading.local`: each thread has attributes of its own."""

    _baton: ClassVar[Baton]

    def __new__(cls) -> Self:
        made = super().__new__(cls)
        object.__setattr__(made, "_each", {})
        return made

    def _mine(self) -> dict[str, Any]:
        each, current = object.__getattribute__(self, "_each"), type(self)._baton.current
        if current not in each:
            each[current] = {}
            type(self).__init__(self)
        mine: dict[str, Any] = each[current]
        return mine

    def __getattribute__(self, name: str) -> Any:
        kind = object.__getattribute__(self, "__class__")
        if name in ("__class__", "_mine") or name.startswith("__"):
            return object.__getattribute__(self, name)
        mine = object.__getattribute__(self, "_mine")()
        return mine[name] if name in mine else getattr(kind, name)

    def __setattr__(self, name: str, value: Any) -> None:
        object.__getattribute__(self, "_mine")()[name] = value


class Thread:
    """Stands in for `threading.Thread`."""

    def __init__(
        self,
        baton: Baton,
        target: Body | None,
        name: str,
        daemon: bool = True,
        client: bool = False,
    ) -> None:
        self._baton = baton
        self._target = target
        self.name = name
        self.daemon = daemon
        self.client = client
        self.cancellable = False
        self.handler: Body | None = None  # what interrupts it once, where it may
        self.handles = False  # whether that runs just now
        self.turn = threading.Lock()
        self.alive = False
        self.error: BaseException | None = None
        # While it waits:
        self.ready: Callable[[], bool] | None = None  # whether it could go on
        self.deadline = inf
        self.verdict = ""  # why it does: "" (it is ready), "times out", "is cancelled"

    def __repr__(self) -> str:
        return self.name

    def start(self) -> None:
        """Begin to take part; any other thread may run first."""
        self.launch()
        self._baton.point()

    def launch(self) -> None:
        """Begin to take part."""
        carrier = Carrier.free.pop() if Carrier.free else Carrier()
        self.turn = carrier.turn
        carrier.body = lambda: self._play(carrier)
        self.alive = True
        self._baton.threads.append(self)

    def join(self, timeout: float | None = None) -> None:
        """Wait until it has ended."""
        if any(lock._is_owned() for lock in self._baton.locks):
            self._baton.wrong.append(f"{self._baton.current} joins with a lock in its hands")
        self._baton.wait(lambda: not self.alive, timeout)

    def is_alive(self) -> bool:
        """Whether it was started and has not ended."""
        return self.alive

    def able(self) -> bool:
        """Whether it could go on."""
        return self.ready is None or self.ready()

    @property
    def ident(self) -> int:
        """A number that no other thread has."""
        return id(self)

    def _play(self, carrier: Carrier) -> None:
        assert self._target is not None
        try:
            self._target()
        except BaseException as error:
            self.error = error
        self._target = None
        self.alive = False
        Carrier.free.append(carrier)
        self._baton.leave(self)


class Baton:
    """Says whose turn it is, by a schedule, and notes the choices there were."""

    def __init__(self, schedule: list[int]) -> None:
        self.clock = ManualClock()
        self.main = Thread(self, None, "main")
        self.main.turn.acquire()
        self.main.alive = True
        self.current = self.main
        self.threads = [self.main]
        self.exploring = False  # else the first possible thing happens
        self.abandoned = False
        self.ticks = 0  # how often maintenance may run because it is due
        self.lingering = False  # whether idle workers may go home
        self.delay = 0  # what it costs that not the first of those who may goes on
        self.choices: list[Choice] = []
        self.log: list[str] = []
        self.locks: list[Lock] = []  # of the pool, but for the clients' gates
        self.wrong: list[str] = []
        self._schedule = schedule
        self._spent = 0

    def point(self) -> None:
        """Let another thread run first, perhaps, or a handler of this one."""
        self.interrupt()
        if self.exploring and not self.abandoned:
            self._pass_to(self._choose())

    def wait(self, ready: Callable[[], bool], timeout: float | None = None) -> bool:
        """Wait until `ready()`; false when `timeout` seconds are chosen to be over."""
        me = self.current
        self.point()
        while not self.abandoned and not ready():
            forever = timeout is None or timeout < 0 or timeout > FOREVER
            me.deadline = inf if forever or timeout is None else self.clock.now() + timeout
            me.ready = ready
            self._pass_to(self._choose())
            me.ready = None
            if me.verdict:
                verdict, me.verdict = me.verdict, ""
                if verdict == "is interrupted":
                    self._handle(me)
                    continue
                if verdict == "times out":
                    return False
                raise Cancelled if me.client else Violation(verdict)
        if self.abandoned:
            raise Abandoned
        return True

    def interrupt(self) -> None:
        """Let a handler of the running thread run first, perhaps: that is one of its choices."""
        me = self.current
        if not self.exploring or self.abandoned or me.handler is None or me.handles:
            return
        at = len(self.choices)
        chosen = self._schedule[at] if at < len(self._schedule) else 0
        self.choices.append(Choice(chosen, [0, 1], self._spent))
        if chosen:
            self._spent += 1
            self.log.append(f"{me.name} is interrupted")
            self._handle(me)

    def _handle(self, thread: Thread) -> None:
        """Run the handler of the running thread, which has one."""
        handler, thread.handler = thread.handler, None
        assert handler is not None
        thread.handles = True
        try:
            handler()
        finally:
            thread.handles = False

    def settle(self) -> None:
        """Let all others run until each of them waits; no time passes."""
        main = self.main
        self.wait(lambda: not any(t.able() for t in self.threads if t is not main))

    def leave(self, thread: Thread) -> None:
        """Pass the baton on, never to get it back."""
        self.threads.remove(thread)
        self.current = self.main if self.abandoned else self._choose()
        self.current.turn.release()

    def abandon(self) -> None:
        """End every thread where it is."""
        self.abandoned = True
        for thread in self.threads[1:]:
            self._pass_to(thread)

    def _pass_to(self, to: Thread) -> None:
        me = self.current
        if to is not me:
            self.current = to
            to.turn.release()
            if not me.turn.acquire(timeout=STUCK):
                raise RuntimeError(f"the exploration itself hangs: {self.log}")

    def _choose(self) -> Thread:
        """Choose who goes on, and why."""
        options = self._options()
        chosen = 0
        if self.exploring and len(options) > 1:
            at = len(self.choices)
            chosen = self._schedule[at] if at < len(self._schedule) else 0
            self.choices.append(Choice(chosen, [cost for _, _, cost in options], self._spent))
        thread, verdict, cost = options[chosen]
        self._spent += cost
        thread.verdict = verdict
        if verdict == "times out":
            self.clock.advance(max(0.0, thread.deadline - self.clock.now()))
            self.ticks -= thread.name.endswith("-maintenance")
        if self.exploring and (verdict or thread is not self.current):
            self.log.append(f"{thread.name} {verdict or 'goes on'}")
        return thread

    def _options(self) -> list[tuple[Thread, str, int]]:
        """Who may go on, why, and what that costs; the first is what happens without a choice."""
        if self.exploring and self.main.able():
            return [(self.main, "", 0)]  # all clients have gone: nothing is left to explore
        able = [t for t in self.threads if t.alive and t.able()]
        if self.current in able:
            able.remove(self.current)
            options = [(self.current, "", 0), *((t, "", 1) for t in able)]
        else:
            options = [(t, "", self.delay if n else 0) for n, t in enumerate(able)]
        unable = [t for t in self.threads if t.ready is not None and not t.ready()]
        patient = sorted(filter(self._may_time_out, unable), key=lambda t: t.deadline)
        if self.exploring:
            options += [(t, "times out", 1 if options else 0) for t in patient]
            options += [(t, "is cancelled", 1) for t in unable if t.cancellable]
            options += [(t, "is interrupted", 1) for t in unable if t.handler and not t.handles]
        else:
            options += [(t, "times out", 0) for t in patient if not t.client]
        clients = [t.name for t in unable if t.client]
        return options or [(self.main, f"stranded: {clients}", 0)]

    def _may_time_out(self, thread: Thread) -> bool:
        if thread.deadline == inf:
            return False
        if thread.name.endswith("-maintenance"):
            return self.ticks > 0
        return thread.client or thread is self.main or self.lingering


@dataclass
class Choice:
    """One decision of a schedule."""

    chosen: int
    costs: list[int]
    spent: int  # before it

    def next(self, bound: int) -> int | None:
        """The next possibility that the bound allows."""
        for other in range(self.chosen + 1, len(self.costs)):
            if self.spent + self.costs[other] <= bound:
                return other
        return None


class Lock:
    """Stands in for `threading.Lock` and `RLock`: the pool's locks and the clients' gates."""

    def __init__(self, baton: Baton, reentrant: bool = False, interruptible: bool = False) -> None:
        self._baton = baton
        self._reentrant = reentrant
        self._interruptible = interruptible  # a handler may run while it is held
        if interruptible:
            baton.locks.append(self)
        self._used = False
        self._depth = 0
        self.owner: Thread | None = None

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        """Take the lock, now or later."""
        if self._reentrant and self._is_owned():
            self._depth += 1
            return True
        if self._used:  # else nobody else knows it
            if not blocking:
                self._baton.point()
                if self.owner is not None:
                    return False
            elif not self._baton.wait(lambda: self.owner is None, timeout):
                return False
        self._used = True
        self.owner = self._baton.current
        self._depth = 1
        if self._interruptible:
            self._baton.interrupt()  # with the lock in its hands
        return True

    def release(self) -> None:
        """Give the lock back; whoever waits for it may run first."""
        if self.owner is None:
            raise RuntimeError("release unlocked lock")
        if self._interruptible and self._depth == 1:
            self._baton.interrupt()
        self._depth -= 1
        if self._depth == 0 or not self._reentrant:
            self.owner = None
            self._baton.point()

    def locked(self) -> bool:
        """Whether somebody has it."""
        return self.owner is not None

    def _is_owned(self) -> bool:
        """Whether the running thread has it."""
        return self.owner is self._baton.current

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *exc: object) -> None:
        self.release()


class Condition:
    """Stands in for `threading.Condition`."""

    def __init__(self, baton: Baton, lock: Lock) -> None:
        self._baton = baton
        self._lock = lock
        self._waiters: list[list[bool]] = []

    def wait(self, timeout: float | None = None) -> bool:
        """Wait to be notified; takes the lock again in any case."""
        notified = [False]
        self._waiters.append(notified)
        self._lock.release()
        try:
            return self._baton.wait(lambda: notified[0], timeout)
        finally:
            self._lock.acquire()
            if notified in self._waiters:
                self._waiters.remove(notified)

    def notify(self, n: int = 1) -> None:
        """Let the first `n` of those who wait go on."""
        assert self._lock.owner is self._baton.current
        for notified in self._waiters[:n]:
            notified[0] = True
        del self._waiters[:n]

    def notify_all(self) -> None:
        """Let all who wait go on."""
        self.notify(len(self._waiters))


class Session(FakeConnection):
    """A connection that knows what was committed on it."""

    _driver: Server
    pending: list[str]

    def execute(self, query: str) -> FakeConnection:
        """Begin something."""
        self.pending.append(query)
        return super().execute(query)

    def commit(self) -> None:
        """Make it last."""
        super().commit()
        self._driver.committed.update(self.pending)
        self.pending.clear()

    def rollback(self) -> None:
        """Undo it."""
        super().commit()
        self.pending.clear()


class Server(FakeDriver):
    """Gives such connections."""

    def __init__(self) -> None:
        super().__init__()
        self.committed: set[str] = set()
        self.hangs = False  # the next reset blocks, until its session is cut
        self.baton: Any = None

    def block(self, conn: FakeConnection) -> None:
        """Reset a connection, perhaps not for a long time."""
        if self.hangs:
            self.baton.wait(lambda: conn.number not in self.sessions)
            self.hangs = False
        conn.rollback()

    async def connect(self, *parameters: Any) -> Any:
        """Make a connection."""
        conn = await super().connect(*parameters)
        conn.__class__ = Session
        conn.pending = []
        return conn


class Stage:
    """One run of a scenario: the pool, its fake server, and what the clients do with both."""

    def __init__(self, baton: Baton) -> None:
        self.baton = baton
        self.driver = Server()
        self.driver.baton = baton
        self.pool: Any = None
        self.lent: Any = None  # what was taken before the clients came
        self.held: dict[int, str] = {}  # who uses which session
        self.outcomes: dict[str, list[str]] = {}
        self.wrong = baton.wrong
        self.refused = 0  # handlers
        self.leaks = 0  # connections that were dropped
        self.begun = 0  # blocks
        self.ended: set[str] = set()  # what was done in those that ended without an error

    def get(self, timeout: float | None = None) -> FakeConnection:
        """Take a connection, and see that nobody else has it."""
        conn: FakeConnection = self.pool.getconn(timeout)
        self.take(conn)
        return conn

    def take(self, conn: FakeConnection) -> None:
        """Note that the running client uses a connection."""
        me = self.baton.current.name
        if conn.number in self.held:
            self.wrong.append(f"{conn} is lent to {me} and to {self.held[conn.number]}")
        if conn.closed or conn._driver.unclean(conn):
            self.wrong.append(f"{conn} is lent to {me} and is not good")
        self.held[conn.number] = me

    def put(self, conn: FakeConnection) -> None:
        """Return a connection."""
        self.held.pop(conn.number, None)
        self.pool.putconn(conn)

    def use(self, timeout: float | None = None) -> None:
        """Take a connection, let others run, and return it."""
        conn = self.get(timeout)
        self.baton.point()
        self.put(conn)

    def handle(self, handler: Client) -> None:
        """Run a handler, which may be refused."""
        try:
            handler(self)
        except (PoolTimeout, PoolClosed):
            self.refused += 1

    def work(self, timeout: float | None = None) -> None:
        """Work in a `with` block, which has committed that if it ends without an error."""
        self.begun += 1
        done = f"{self.baton.current.name}, block {self.begun}"
        with self.pool.connection(timeout) as conn:
            self.take(conn)
            conn.execute(done)
            self.baton.point()
            self.held.pop(conn.number)
        self.ended.add(done)

    def client(self, name: str, body: Callable[[Stage], object]) -> Thread:
        """A thread that plays a client and notes how it went."""
        outcomes = self.outcomes.setdefault(name, [])

        def play() -> None:
            try:
                body(self)
                outcomes.append("done")
            except (Exception, Cancelled) as error:
                outcomes.append(type(error).__name__)

        return Thread(self.baton, play, name, client=True)


Client: TypeAlias = Callable[[Stage], object]


@dataclass
class Scenario:
    """What clients do at the same time."""

    name: str
    clients: dict[str, Client]
    options: dict[str, Any] = field(default_factory=dict)
    pool_class: type[ConnectionPool[Any]] = ConnectionPool
    before: Client = lambda _: None  # when the pool is filled, before the clients come
    expected: Callable[[dict[str, list[str]]], bool] = lambda outcomes: all(
        outcome == ["done"] for outcome in outcomes.values()
    )
    bound: int = 2
    #: Whether, when a thread waits, it counts as an interruption too that another one goes on than
    #: the one that has waited longest (Emmi, Qadeer and Rakamaric, "Delay-bounded scheduling",
    #: POPL 2011): for scenarios with so many threads that the choices among them are too many.
    delays: bool = False
    ticks: int = 0
    lingering: bool = False
    cancellable: tuple[str, ...] = ()
    #: What interrupts a client's thread once, wherever that enters or leaves a lock or waits.
    handlers: dict[str, Client] = field(default_factory=dict)
    drops: bool = False  # whether a client drops its connection
    closed: bool = False  # whether a client closes the pool


@dataclass
class Explored:
    """What an exploration has found."""

    schedules: int = 0
    seconds: float = 0.0
    violation: str = ""
    trace: list[str] = field(default_factory=list)


def explore(scenario: Scenario) -> Explored:
    """Try every schedule within the scenario's bound; stop at the first violation.

    Schedules with fewer interruptions come first, so the trace of a violation is short.
    """
    found = Explored()
    started = time.perf_counter()
    for bound in range(scenario.bound + 1):
        schedule: list[int] | None = []
        while schedule is not None and not found.violation:
            baton = Baton(schedule)
            found.violation = play(scenario, baton)
            found.trace = baton.log
            found.schedules += 1
            schedule = _next_schedule(baton.choices, bound)
    found.seconds = time.perf_counter() - started
    return found


def _next_schedule(choices: list[Choice], bound: int) -> list[int] | None:
    for at in reversed(range(len(choices))):
        other = choices[at].next(bound)
        if other is not None:
            return [*(choice.chosen for choice in choices[:at]), other]
    return None


def play(scenario: Scenario, baton: Baton) -> str:
    """Run one schedule; returns what is wrong, or nothing."""
    stage = Stage(baton)
    try:
        with _instrumented(stage):
            _run(scenario, stage)
    except Violation as violation:
        baton.exploring = False
        baton.abandon()
        return str(violation)
    return ""


def _run(scenario: Scenario, stage: Stage) -> None:
    baton = stage.baton
    pool = stage.pool = fake_pool(
        scenario.pool_class, stage.driver, baton.clock, **{"timeout": 1e9, **scenario.options}
    )
    baton.settle()
    scenario.before(stage)
    baton.settle()
    baton.clock.advance(1.0)
    clients = [stage.client(name, body) for name, body in scenario.clients.items()]
    for client in clients:
        if client.name in scenario.handlers:
            client.handler = partial(stage.handle, scenario.handlers[client.name])
    for client in clients:
        client.cancellable = client.name in scenario.cancellable
        client.launch()
    baton.ticks, baton.lingering = scenario.ticks, scenario.lingering
    baton.delay = int(scenario.delays)
    baton.exploring = True
    baton.wait(lambda: not any(client.alive for client in clients))
    baton.exploring = False
    baton.settle()
    _check(scenario, stage)
    pool.close()
    baton.settle()
    _expect(not stage.driver.sessions, f"open after close(): {stage.driver.sessions}")
    _expect(len(baton.threads) == 1, f"alive after close(): {baton.threads[1:]}")


def _check(scenario: Scenario, stage: Stage) -> None:
    """Every invariant that must hold when the clients have gone and the workers rest."""
    core: Core = stage.pool._forebay.core
    _expect(not stage.wrong, "; ".join(stage.wrong))
    _expect(scenario.drops or not stage.leaks, "a connection was dropped")
    lost = stage.ended - stage.driver.committed
    _expect(not lost, f"ended without an error, and not committed: {lost}")
    _expect(scenario.expected(stage.outcomes), f"the clients end as {stage.outcomes}")
    _expect(not core.returned, "returned is not empty")
    forsaken = [held for held in core.forsaken if held.entry.place is LENT]
    _expect(not forsaken, f"nobody has taken {forsaken} back")  # of others nothing is to be taken
    _expect(not violations(core), "; ".join(violations(core)))
    dropped = [held.entry for held in core.lost if held.entry in core.entries]
    _expect(not dropped, f"nobody has noticed that {dropped} were dropped")
    for name in ("waiting", "watching", "granted", "retiring"):
        _expect(not getattr(core, name), f"{name} is not empty")
    sessions = {entry.conn.number for entry in core.idle} | set(stage.held)
    _expect(sessions == stage.driver.sessions, f"{stage.driver.sessions} live, {sessions} known")
    _expect(len(core.idle) + len(stage.held) == core.size, "a connection is lost")
    if not scenario.closed:
        _expect(core.size >= core.settings.min_size, f"{core.size} connections are left")
    before, effects = _fingerprint(core), Effects()
    core.audit(stage.baton.clock.now(), effects)
    untouched = before == _fingerprint(core) and not effects.wake and not effects.start
    _expect(untouched, f"the audit has something to do: {effects}")


def _expect(condition: bool, violation: str) -> None:
    if not condition:
        raise Violation(violation)


def _fingerprint(core: Core) -> object:
    entries = [(id(e), e.place, e.ordered, id(e.conn), e.expires_at) for e in core.entries]
    return (core.phase, entries, list(core.idle), core.opening, list(core.waiting), core.target)


@contextmanager
def _instrumented(stage: Stage) -> Iterator[None]:
    """Give the pool locks and threads that pass the baton, and watch its transitions."""
    baton = stage.baton
    played = SimpleNamespace(
        TIMEOUT_MAX=threading.TIMEOUT_MAX,
        Lock=lambda: Lock(baton),
        RLock=lambda reentrant=True: Lock(baton, reentrant, interruptible=True),
        Condition=lambda lock: Condition(baton, lock),
        Thread=lambda **arguments: Thread(baton, **arguments),
        current_thread=lambda: baton.current,
        main_thread=lambda: baton.main,
        get_ident=lambda: baton.current.ident,
        local=type("local", (Local,), {"_baton": baton}),
    )
    with ExitStack() as stack:
        enter = stack.enter_context
        enter(mock.patch("forebay._threads.threading", played))
        enter(mock.patch("forebay._locks.threading", played))
        enter(mock.patch("forebay._threads.time", SimpleNamespace(monotonic=baton.clock.now)))
        enter(mock.patch.object(Flows, "_report_leak", _leaks(stage)))
        for name in TRANSITIONS:
            enter(mock.patch.object(Core, name, _locked(stage, getattr(Core, name))))
        enter(mock.patch.object(Core, "_balance", _interruptible(baton, Core._balance)))
        yield


#: Called with the lock held already, with no pool about, or about an entry that nobody else has.
UNLOCKED = ("audit", "reset_counters", "doubtful", "use", "tie", "put_off")

TRANSITIONS = tuple(
    name
    for name, _ in inspect.getmembers(Core, inspect.isfunction)
    if not name.startswith("_") and name not in UNLOCKED
)


def _locked(stage: Stage, transition: Callable[..., Any]) -> Callable[..., Any]:
    """A transition that knows whether the thread that makes it holds the pool's lock."""

    def watched(core: Core, *args: Any, **kwargs: Any) -> Any:
        pool = stage.pool
        if pool is not None and pool._forebay.lock.owner is not stage.baton.current:
            stage.wrong.append(f"{transition.__name__}() without the lock")
        return transition(core, *args, **kwargs)

    return watched


def _leaks(stage: Stage) -> Callable[..., None]:
    def report(*_: object) -> None:
        stage.leaks += 1

    return report


def _interruptible(baton: Baton, step: Callable[..., Any]) -> Callable[..., Any]:
    """A part of a transition before and after which a handler may run."""

    def interrupted(*args: Any) -> Any:
        baton.interrupt()
        result = step(*args)
        baton.interrupt()
        return result

    return interrupted
