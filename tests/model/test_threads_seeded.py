"""Small mistakes that only threads suffer from: the exploration finds each."""

from __future__ import annotations

import inspect
import logging
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any
from unittest import mock

import pytest

from forebay._core import Core
from forebay._flows import Flows
from forebay._thread_door import Lease, ThreadDoor
from forebay._threads import Lane, Maintenance, Threads, ThreadWaiter

from .test_threads import SCENARIOS
from .threads import explore

pytestmark = pytest.mark.prove


@dataclass
class Mutation:
    """A method, and what is wrong in its text: what stands there, and what should not."""

    owner: type
    name: str
    changes: dict[str, str]

    def apply(self) -> Any:
        """Patch the method; what is changed must stand in it once."""
        function: Callable[..., Any] = getattr(self.owner, self.name)
        source = textwrap.dedent(inspect.getsource(function))
        for right, wrong in self.changes.items():
            assert source.count(right) == 1, f"{right!r} is not in {self.name} once"
            source = source.replace(right, wrong)
        scope: dict[str, Any] = {}
        code = compile(source, f"<mutated {self.name}>", "exec")
        exec(code, vars(sys.modules[function.__module__]), scope)
        return mock.patch.object(self.owner, self.name, scope[self.name])


DECIDES = "if core.expire(waiter, now):"

#: A lock that its own thread waits for.
PLAIN = "self.lock: Any = threading.RLock(reentrant=False)"

#: The order in which effects were carried out once.
FREED_LAST = {
    "for lifeline in effects.cut:\n        lifeline.cut()\n    for waiter": "for waiter",
    "for entry in effects.give_up:": (
        "for lifeline in effects.cut:\n        lifeline.cut()\n    for entry in effects.give_up:"
    ),
}

SEEDS: dict[str, tuple[str, list[Mutation]]] = {
    "a client decides without the core that its time is up": (
        "a client times out while it is served",
        [Mutation(Flows, "_queue", {DECIDES: "if waiter.conn is None:"})],
    ),
    "a client decides by whether it was woken": (
        "a client times out while it is served",
        [
            Mutation(ThreadWaiter, "wait", {"self._gate.acq": "return self._gate.acq"}),
            Mutation(
                Flows,
                "_queue",
                {
                    "await waiter.wait(": "woken = await waiter.wait(",
                    DECIDES: "if core.expire(waiter, now) or not woken:",
                },
            ),
        ],
    ),
    "a client that times out stays in the queue": (
        "two clients time out while one is served",
        [Mutation(Flows, "_queue", {DECIDES: "if waiter in core.waiting:"})],
    ),
    "a connection is checked in without the lock": (
        "three clients share one connection",
        [
            Mutation(
                ThreadDoor,
                "putconn",
                {"in parts.taking": "in (1,)", "parts.lock.release()": "pass"},
            )
        ],
    ),
    "a client that is woken before it waits sleeps on": (
        "three clients share one connection",
        [
            Mutation(ThreadWaiter, "wait", {"self._gate": "self.ready = True; self._gate"}),
            Mutation(ThreadWaiter, "wake", {"_open_gate": "self.ready and _open_gate"}),
        ],
    ),
    "a worker goes home without a last look": (
        "an idle worker goes home while a connection is to be reset",
        [Mutation(Lane, "_next", {"if not woken and not self._jobs:": "if not woken:"})],
    ),
    "a worker looks for jobs before it has the lock": (
        "an idle worker goes home while a connection is to be reset",
        [
            Mutation(
                Lane,
                "_next",
                {
                    "with self._lock:": "empty = not self._jobs\n    with self._lock:",
                    "while not self._jobs:": "while empty or not self._jobs:",
                    "woken = not": "empty = False; woken = not",
                },
            )
        ],
    ),
    "two threads start maintenance": (
        "a pool is opened twice",
        [Mutation(Threads, "start", {"with self.desk:": "if True:"})],
    ),
    "closing does not wake maintenance": (
        "a pool is closed",
        [Mutation(Maintenance, "stop", {"self.kick()": "pass"})],
    ),
    "a connection is returned twice": (
        "a connection is returned twice at once",
        [
            Mutation(Core, "checkin", {"or entry.place is not LENT": ""}),
            Mutation(Core, "_take_back", {"if entry.place is not LENT:": "if False:"}),
        ],
    ),
    "a broken connection is discarded twice": (
        "a broken connection is returned twice at once",
        [
            Mutation(
                Core,
                "discard",
                {
                    "if lending is not None and": "if False and",
                    "if entry.place is not LENT and": "if False and",
                },
            )
        ],
    ),
    # What a handler does in the middle of everything.
    "a thread waits for a lock that it has": (
        "a handler uses the pool",
        [Mutation(Threads, "__init__", {"self.lock: Any = reentrant_lock()": PLAIN})],
    ),
    "a handler closes the pool in the middle of a transition": (
        "a handler closes the pool",
        [Mutation(Threads, "inside", {"return bool(": "return bool(0 and "})],
    ),
    "the lane's lock is not asked for": (
        "a handler closes the pool whose connections are reset",
        [Mutation(Threads, "inside", {" or self.desk._is_owned()": ""})],
    ),
    "a return that is put off is forgotten": (
        "a handler returns a connection",
        [Mutation(Core, "give_back", {"self.returned.append": "str"})],
    ),
    "a block ends in a handler and is rolled back": (
        "a handler works in a block",
        [
            Mutation(
                Lease, "_end_slowly", {"if exc_type is not None and entry.plain": "if entry.plain"}
            )
        ],
    ),
    "workers are started before those who are blocked are freed": (
        "a handler waits for a worker that is blocked",
        [Mutation(Flows, "carry_out", FREED_LAST)],
    ),
}


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """Pass over what the pool logs."""
    logging.disable()
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_seeded_mistake_is_found(seed: str) -> None:
    """The scenario that is meant for the mistake ends in a violation."""
    name, mutations = SEEDS[seed]
    (scenario,) = [s for s in SCENARIOS if s.name == name]
    with ExitStack() as stack:
        for mutation in mutations:
            stack.enter_context(mutation.apply())
        found = explore(scenario)
    print(f"{found.schedules} schedules: {seed}: {found.violation}")  # noqa: T201
    assert found.violation
