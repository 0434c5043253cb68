"""Visit every reachable state, breadth first, so that the first violation has the shortest trace.

A coroutine cannot be copied: each step is made in a new world that is moved along the path to its
state.  States with the same fingerprint are merged.
"""

from __future__ import annotations

import gc
import logging
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count

from .configurations import Configuration
from .fingerprint import fingerprint
from .invariants import LIVENESS, Step, View, violated
from .shipped import Code, load
from .world import Move, World

Path = tuple[Move, ...]


@dataclass
class Result:
    """What an exploration has found."""

    config: Configuration
    states: int = 0
    transitions: int = 0
    depth: int = 0
    seconds: float = 0.0
    sentence: str | None = None  # the invariant that is violated
    trace: Path = ()


@dataclass
class Graph:
    """The states found so far."""

    numbers: dict[bytes, int] = field(default_factory=dict)
    parents: list[tuple[int, Move | None]] = field(default_factory=list)
    before: defaultdict[int, list[int]] = field(default_factory=lambda: defaultdict(list))
    ends: list[int] = field(default_factory=list)

    def add(self, key: bytes, parent: int, move: Move | None) -> int:
        """Number a new state."""
        number = self.numbers[key] = len(self.parents)
        self.parents.append((parent, move))
        return number

    def path(self, number: int) -> Path:
        """The shortest way to a state."""
        moves: list[Move] = []
        while True:
            number, move = self.parents[number]
            if move is None:
                return tuple(reversed(moves))
            moves.append(move)

    def stranded(self) -> int | None:
        """The first state from which no end can be reached."""
        reached = set(self.ends)
        stack = list(self.ends)
        while stack:
            for number in self.before[stack.pop()]:
                if number not in reached:
                    reached.add(number)
                    stack.append(number)
        return next((n for n in range(len(self.parents)) if n not in reached), None)


def replay(config: Configuration, code: Code, path: Path) -> World:
    """A world that has made these moves."""
    world = World(config, code)
    for move in path:
        world.apply(move)
    return world


def explore(
    config: Configuration,
    code: Code | None = None,
    *,
    merge: bool = True,
    depth: int = 10_000,
    keys: set[bytes] | None = None,
) -> Result:
    """Visit every state within the bounds; stop at the first violation."""
    code = code or load(preempted=config.preempted)
    with _quiet():
        return Explorer(config, code, merge, keys).run(depth)


class Explorer:
    """One exploration."""

    def __init__(
        self, config: Configuration, code: Code, merge: bool, keys: set[bytes] | None
    ) -> None:
        self.config = config
        self.code = code
        self.merge = merge
        self.keys = keys
        self.graph = Graph()
        self.result = Result(config)
        self._reached = True  # whether the last move was long enough for its handler

    def run(self, depth: int) -> Result:
        """Explore to a depth."""
        started = time.perf_counter()
        result = self.result
        self._levels(depth)
        if result.sentence is None and self.merge and result.depth < depth:
            lost = self.graph.stranded()
            if lost is not None:
                result.sentence, result.trace = LIVENESS, self.graph.path(lost)
        result.states = len(self.graph.parents)
        result.seconds = time.perf_counter() - started
        return result

    def _levels(self, depth: int) -> None:
        world = World(self.config, self.code)
        level = [(0, world.moves())]
        self._enter(world, -1, None, fingerprint(world))
        world.end()
        while level and self.result.depth < depth and self.result.sentence is None:
            level = [found for number, moves in level for found in self._expand(number, moves)]
            self.result.depth += 1

    def _expand(self, number: int, moves: list[Move]) -> Iterator[tuple[int, list[Move]]]:
        """Make every move from a state; gives the new states and their moves."""
        path = self.graph.path(number)
        for move in moves:
            for point in count() if move.handler else (0,):
                if self.result.sentence is not None:
                    return
                found = self._step(number, path, move._replace(point=point))
                if not self._reached:
                    break
                if found is not None:
                    yield found

    def _step(self, number: int, path: Path, move: Move) -> tuple[int, list[Move]] | None:
        """Make one move; gives the state and its moves if it is new."""
        world = replay(self.config, self.code, path)
        step, mishaps = Step(world, move), world.mishaps
        world.apply(move)
        self._reached = world.handled or not move.handler
        if not self._reached:  # it is over before that point
            world.end()
            return None
        self.result.transitions += 1
        sentence = step.violated()
        if sentence is not None:
            self._violation(sentence, (*path, move))
        key = fingerprint(world)
        target = self.graph.numbers.get(key) if self.merge else None
        found = None
        if target is None:
            following = world.moves()  # before the invariants, the last of which is destructive
            target = self._enter(world, number, move, key)
            found = (target, following)
        if world.mishaps == mishaps:
            self.graph.before[target].append(number)
        world.end()
        return found

    def _enter(self, world: World, parent: int, move: Move | None, key: bytes) -> int:
        """Add a new state, and check it."""
        number = self.graph.add(key, parent, move)
        if self.keys is not None:
            self.keys.add(key)
        view = View(world)
        if view.ended:
            self.graph.ends.append(number)
        sentence = violated(view)
        if sentence is not None:
            self._violation(sentence, self.graph.path(number))
        return number

    def _violation(self, sentence: str, trace: Path) -> None:
        if self.result.sentence is None:
            self.result.sentence, self.result.trace = sentence, trace


@contextmanager
def _quiet() -> Iterator[None]:
    """No log, and no garbage collection: it would drop connections at moments of its own."""
    logging.disable(logging.CRITICAL)
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        logging.disable(logging.NOTSET)


def story(result: Result, code: Code | None = None) -> str:
    """A trace for people: each move, and the pool after it."""
    code = code or load(preempted=result.config.preempted)
    lines = [f"{result.config.name}: {result.sentence}"]
    with _quiet():
        world = World(result.config, code)
        for step, move in enumerate(result.trace, 1):
            words = _describe(world, move)
            world.apply(move)
            lines.append(f"  {step:3}. {words:44} {_state(world)}")
        if world.surprise:
            lines.append(f"       {world.surprise}")
        world.end()
    return "\n".join(lines)


def _describe(world: World, move: Move) -> str:
    handler = f" (handler {move.handler} at line {move.point})" if move.handler else ""
    return _describe_move(world, move) + handler


def _describe_move(world: World, move: Move) -> str:
    if move.actor == "flow":
        task = world.tasks[move.number]
        kind, subject, _ = task.request
        about = f" on {subject}" if kind not in ("wait", "connect", "stop", "lock left") else ""
        return f"{task.name}: {kind}{about} {move.action}"
    number = f" {move.number}" if move.actor in ("client", "job") else ""
    return f"{move.actor}{number}: {move.action}"


def _state(world: World) -> str:
    core = world.core
    return (
        f"t={world.runtime.time:g} {core.phase.value}: {len(core.idle)} idle, {core.lent} lent,"
        f" {core.opening} opening, {len(core.waiting)} waiting, {len(core.retiring)} retiring,"
        f" {len(core.lost)} lost"
    )
