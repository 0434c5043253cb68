"""The pool's lock, which no signal handler may leave taken."""

from __future__ import annotations

import ast
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import pytest

import forebay
from forebay._locks import SafeLock, reentrant_lock, taking
from forebay.psycopg2._dropin import Due
from tests.faults.strokes import Strokes

SOURCES = sorted(Path(forebay.__file__).parent.rglob("*.py"))
STROKES = 1000
WHOLE_RUN = 60.0


class Stroke(Exception):
    """What the handler raises."""


def is_owned(lock: Any) -> bool:
    """Whether this thread has the lock, or what it stands in for."""
    owned: bool = getattr(lock, "_lock", lock)._is_owned()
    return owned


def by_taking(lock: Any) -> Callable[[], None]:
    """Take the lock as the hot path does."""
    turns = taking(lock)

    def take() -> None:
        for _ in turns:
            try:
                is_owned(lock)
            finally:
                lock.release()
            break

    return take


def by_with(lock: Any) -> Callable[[], None]:
    """Take the lock as all others do."""

    def take() -> None:
        with lock:
            is_owned(lock)

    return take


class Parts:
    """The parts of a pool with nothing to do; what stands in for the lock stays in its place."""

    def use(self, lock: Any) -> None:
        """Have no use for the lock itself."""

    def maintain(self) -> None:
        """Do nothing."""


def due() -> Any:
    """What stands in for the lock of a pool for psycopg2 that has put something off."""
    return Due(cast("Any", Parts()), reentrant_lock())


@pytest.mark.parametrize("make", [reentrant_lock, SafeLock, due])
@pytest.mark.parametrize("way", [by_taking, by_with])
def test_what_a_handler_raises_leaves_the_lock_free(
    make: Callable[[], Any], way: Callable[[Any], Callable[[], None]]
) -> None:
    """Wherever it strikes in a tight loop."""
    lock = make()
    take = way(lock)
    left = raised = 0

    def strike(_number: int) -> None:
        nonlocal raised
        raised += 1
        raise Stroke

    def until(number: int) -> None:
        while raised < number and time.monotonic() < deadline:
            take()

    deadline = time.monotonic() + WHOLE_RUN
    for number in range(1, STROKES + 1):
        with suppress(Stroke), Strokes(strike, 0.0002):
            until(number)
        if is_owned(lock):
            left += 1
            lock.release()
    assert raised >= STROKES
    assert left == 0


def test_the_hot_path_lets_go_of_what_it_takes() -> None:
    """Each loop over `taking` is one turn: a `try` that releases the lock, and a `break`."""
    loops = [
        node
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.For) and ast.unparse(node.iter).endswith(".taking")
    ]
    assert len(loops) == 7
    for loop in loops:
        block, end = loop.body
        assert isinstance(block, ast.Try)
        assert isinstance(end, ast.Break)
        assert not block.handlers
        assert [ast.unparse(line) for line in block.finalbody] == ["parts.lock.release()"]


def test_nothing_else_takes_the_lock_by_a_call() -> None:
    """After the call a handler may run, before whatever would release the lock."""
    calls = [
        f"{path.name}:{node.lineno}"
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("lock.acquire")
    ]
    assert calls == []
