"""What the flows need of a world to run in, and how a world without suspension runs them."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

if TYPE_CHECKING:
    from ._core import Core
    from ._entry import Place, Waiter
    from ._flows import Flows

T = TypeVar("T")

Job = Callable[[], Coroutine[Any, Any, None]]


class Runtime(Protocol):
    """A world: threads, asyncio, or the model that explores what the other two may do."""

    #: Makes a transition of the core one atomic step.  Nothing may wait while it is held.
    lock: AbstractContextManager[Any]

    def now(self) -> float:
        """Seconds of a monotonic clock."""
        ...

    def chance(self) -> float:
        """A random number in [0, 1)."""
        ...

    def waiter(self) -> Waiter:
        """A new waiter for the calling client."""
        ...

    def spawn(self, key: object, job: Job, place: Place) -> None:
        """Have a worker run `job`, once for a `key`, however often asked before it begins.

        What is OPENING, in SERVICE and RETIRED has a lane each: nothing that is reset or checked
        holds up a new connection, or the end of an old one.
        """
        ...

    def give_up(self, key: object) -> None:
        """Wait no more for the worker that runs the job of `key`; another takes its place."""
        ...

    @property
    def abandoned(self) -> int:
        """How many workers were given up and have not come back."""
        ...

    def alarm(self, at: float) -> None:
        """Have maintenance run at `at` or earlier."""
        ...

    def inside(self, core: Core) -> bool:
        """Whether the caller runs inside a transition of `core`, or keeps others out of one.

        A signal handler or a finalizer may.
        """
        ...

    def move(self) -> None:
        """Go on in the running event loop."""
        ...

    def tell(self, write: Callable[[], object]) -> None:
        """Write a line of the log: a handler that blocks must not stop what runs in the pool."""
        ...

    def notify(self, key: object, job: Job) -> None:
        """Call what the user wants to be told by, once for a `key`, where it may block for ever."""
        ...

    @property
    def outdated(self) -> bool:
        """Whether what its locks were made from has been replaced since (gevent, eventlet)."""
        ...

    async def call(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call what the user gave us; in asyncio, await what it returns."""
        ...

    def start(self, flows: Flows, name: str) -> None:
        """Begin to run maintenance for `flows`, which is held weakly."""
        ...

    async def stop(self, timeout: float) -> bool:
        """End maintenance, wait for the workers; false if some still run after `timeout`."""
        ...


def run_sync(flow: Callable[..., Coroutine[Any, Any, T]], *args: Any) -> T:
    """Run a flow with up to two arguments, in a world where nothing suspends.

    It is made and begun in one line, where no signal handler can run in between: what the handler
    raised would leave a coroutine that was never awaited, of which Python complains.
    """
    try:
        if not args:
            flow().send(None)
        elif len(args) == 1:
            flow(args[0]).send(None)
        else:
            flow(args[0], args[1]).send(None)
    except StopIteration as stop:
        result: T = stop.value
        return result
    raise RuntimeError("internal error, please report: a flow suspended in a thread")
