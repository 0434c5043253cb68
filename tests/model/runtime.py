"""A runtime in which nothing happens by itself: the explorer chooses what comes next."""

from __future__ import annotations

from collections.abc import Callable, Generator
from types import TracebackType, coroutine
from typing import Any, NamedTuple

from forebay._core import Core
from forebay._entry import Entry, Place
from forebay._flows import Flows
from forebay._runtime import Job


class Request(NamedTuple):
    """What a suspended flow waits for."""

    kind: str
    subject: Any = None
    deadline: float | None = None


@coroutine
def ask(kind: str, subject: Any = None, deadline: float | None = None) -> Generator[Any, Any, Any]:
    """Suspend the calling flow until the explorer has decided how the request ends."""
    return (yield Request(kind, subject, deadline))


class Lock:
    """Not a lock but a witness: transitions must not nest, and nobody may wait inside one.

    As the threads' lock it is reentrant, for a handler that interrupts its owner.
    """

    def __init__(self) -> None:
        self.depth = 0
        self.interrupted = False  # a handler runs, perhaps in a thread that has the lock

    @property
    def held(self) -> bool:
        """Whether somebody has it."""
        return self.depth > 0

    def __enter__(self) -> None:
        if self.held and not self.interrupted:
            raise RuntimeError("the lock was taken twice")
        self.depth += 1

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.depth -= 1


class ModelWaiter:
    """A waiter that remembers that it was woken; the explorer lets it go on some time later."""

    __slots__ = (
        "_runtime",
        "arrival",
        "claim",
        "client",
        "conn",
        "deadline",
        "entry",
        "error",
        "holder",
        "ready",
        "since",
        "woken",
    )

    def __init__(self, runtime: ModelRuntime, arrival: int) -> None:
        self._runtime = runtime
        self.arrival = arrival  # read by an invariant only
        self.entry: Entry | None = None
        self.conn: Any = None
        self.error: BaseException | None = None
        self.ready = False
        self.since = self.deadline = 0.0
        self.holder = None
        self.client = runtime.asking
        self.claim = runtime.asking or "somebody"
        self.woken = False

    async def wait(self, timeout: float | None) -> None:
        """Suspend until woken or timed out."""
        deadline = None if timeout is None else self._runtime.now() + timeout
        await ask("wait", self, deadline)

    def wake(self) -> None:
        """Allow the client to go on."""
        self.woken = True


class PendingJob(NamedTuple):
    """A job that was spawned and has not begun."""

    number: int
    key: object
    job: Job
    place: Place | None


class ModelRuntime:
    """Time is a number, chance is fixed, jobs begin when the explorer says so.

    Lanes are not modelled: any number of jobs may run at once and begin in any order, which
    includes every order that lanes of any width allow.
    """

    def __init__(self, chance: float, *, loop: bool = False) -> None:
        self.lock = Lock()
        self._loop = loop  # an event loop: whether a transition is under way is told by the core
        self._flows: Flows | None = None
        self.alarmed = False  # maintenance is to run now, whatever the core says
        self.time = 0.0
        self.jobs: dict[object, PendingJob] = {}
        self.spawned = 0
        self.arrivals = 0
        self.ended = False  # nothing suspends any more
        self.asking: Any = None  # the client whose flow runs, where that matters
        self._chance = chance

    def now(self) -> float:
        """Seconds since the world began; each answer is an object of its own, as a clock's."""
        return self.time + 0.0

    def chance(self) -> float:
        """Always the same number."""
        return self._chance

    def waiter(self) -> ModelWaiter:
        """A new waiter."""
        self.arrivals += 1
        return ModelWaiter(self, self.arrivals)

    def spawn(self, key: object, job: Job, place: Place | None) -> None:
        """Keep the job; the explorer begins it."""
        if key not in self.jobs:
            self.spawned += 1
            self.jobs[key] = PendingJob(self.spawned, key, job, place)

    def give_up(self, key: object) -> None:
        """Nothing to do: any number of jobs may run."""

    abandoned = 0

    def alarm(self, at: float) -> None:
        """Note what is to be done now: for later, the world reads `core.due` itself."""
        self.alarmed = self.alarmed or at <= self.time

    def maintain(self) -> None:
        """Run maintenance, and again at once if it says so, or if it was asked for meanwhile."""
        assert self._flows is not None
        self.alarmed = False
        due = self._flows.maintain()
        # The one timer of a loop is set anew at the end; a thread sees that it was woken again.
        self.alarmed = due <= self.time or (self.alarmed and not self._loop)

    def inside(self, core: Core) -> bool:
        """Whether the caller has interrupted a transition, or who has the lock."""
        return is_inside(core) if self._loop else self.lock.held

    def move(self) -> None:
        """Nothing to do: there is one world."""

    def tell(self, write: Callable[[], object]) -> None:
        """Write a line of the log."""
        write()

    def notify(self, key: object, job: Job) -> None:
        """Call the user some time later."""
        self.spawn((key, "notify"), job, None)

    async def call(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call what the user gave us, and await it."""
        return await function(*args)

    def start(self, flows: Flows, name: str) -> None:
        """Know whose maintenance it is: the world calls maintain() when it is due."""
        del name
        self._flows = flows

    async def stop(self, timeout: float) -> bool:
        """End at a moment the explorer chooses, whether the jobs have ended or not."""
        if timeout > 0:
            await ask("stop")
        return not self.jobs


def is_inside(core: Core) -> bool:
    """Whether a transition of `core` is under way; each altered core has an `INSIDE` of its own."""
    return core.ready is type(core).checkout.__globals__["INSIDE"]
