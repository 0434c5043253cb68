"""What the flows need of a world to run in, and how a world without suspension runs them."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

if TYPE_CHECKING:
    from ._entry import Waiter
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

    def spawn(self, key: object, job: Job, *, opening: bool) -> None:
        """Have a worker run `job`, once for a `key`, however often asked before it begins.

        Openings have a lane of their own: nothing that is reset, checked or closed holds them up.
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

    async def call(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call what the user gave us; in asyncio, await what it returns."""
        ...

    def start(self, flows: Flows, name: str) -> None:
        """Begin to run maintenance for `flows`, which is held weakly."""
        ...

    async def stop(self, timeout: float) -> bool:
        """End maintenance, wait for the workers; false if some still run after `timeout`."""
        ...


def run_sync(flow: Coroutine[Any, Any, T]) -> T:
    """Run a flow in a world where nothing suspends."""
    try:
        flow.send(None)
    except StopIteration as stop:
        result: T = stop.value
        return result
    flow.close()
    raise RuntimeError("internal error, please report: a flow suspended in a thread")
