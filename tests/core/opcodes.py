"""Does something at a chosen bytecode of the pool, as a signal handler would: by default, raise."""

from __future__ import annotations

import dis
import gc
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from itertools import pairwise
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import forebay
from forebay import PoolTimeout

HOME = str(Path(forebay.__file__).parent)
#: What only computes, or talks to the server: it has no state that could be left half changed.
NOT_THE_POOL = ("testing.py", "_stacks.py", "errors.py")

#: Loops of the pool's own threads: signal handlers run in the main thread only.
#: What these loops call is interrupted all the same.
LOOPS = frozenset({"Lane._work", "Lane._next", "Lane.run", "Maintenance._run"})


#: Whether to interrupt at each opcode, and not just where the interpreter runs signal handlers.
EVERY_OPCODE = "FOREBAY_EVERY_OPCODE" in os.environ


class Interrupted(BaseException):
    """What the signal handler raises."""


class Interrupter:
    """Runs actions; counts their opcodes, and raises at the one that has the number `at`.

    With a `handler`, that is called there instead, and the action goes on.
    """

    def __init__(self, at: int | None = None, handler: Callable[[], object] | None = None) -> None:
        self.at = at
        self.handler = handler
        self.count = 0
        self.where = ("", 0)  # the last opcode: function, offset
        self.seen: set[tuple[str, int]] = set()
        self.order: list[tuple[str, int]] = []

    def run(self, action: Callable[[], object]) -> None:
        """Run `action`; what it is interrupted by ends here."""
        # A worker that was interrupted goes on with its next job; its client may wait in vain.
        late = (PoolTimeout,) if self.at else ()
        # What interrupts a finalizer is not raised but shown, with all that its frame holds.
        shown, sys.unraisablehook = sys.unraisablehook, lambda _: None
        gc.disable()  # what the run before has left may be collected, but not interrupted
        try:
            with suppress(Interrupted, *late), watched(self._reach, _of_the_pool):
                action()
        finally:
            gc.enable()
            sys.unraisablehook = shown

    def _reach(self, code: CodeType, offset: int) -> None:
        if offset not in _places(code) or self.count == self.at:
            return
        self.count += 1
        self.where = (code.co_qualname, offset)
        if self.at is None:
            self.seen.add(self.where)
            self.order.append(self.where)
        elif self.count == self.at:
            if self.handler is None:
                raise Interrupted
            self.handler()


if sys.version_info >= (3, 12):

    @contextmanager
    def watched(
        reach: Callable[[CodeType, int], None], belongs: Callable[[CodeType], bool]
    ) -> Iterator[None]:
        """Call `reach` before each opcode of the code that `belongs`."""
        monitoring, tool = sys.monitoring, sys.monitoring.PROFILER_ID

        def on_instruction(code: CodeType, offset: int) -> object:
            if not belongs(code):
                return monitoring.DISABLE
            return reach(code, offset)

        monitoring.use_tool_id(tool, "interrupts")
        monitoring.register_callback(tool, monitoring.events.INSTRUCTION, on_instruction)
        monitoring.set_events(tool, monitoring.events.INSTRUCTION)
        try:
            yield
        finally:
            monitoring.set_events(tool, monitoring.events.NO_EVENTS)
            monitoring.free_tool_id(tool)

else:

    @contextmanager
    def watched(
        reach: Callable[[CodeType, int], None], belongs: Callable[[CodeType], bool]
    ) -> Iterator[None]:
        """Call `reach` before each opcode of the code that `belongs`."""

        def on_call(frame: FrameType, _event: str, _arg: Any) -> Callable[..., Any] | None:
            if not belongs(frame.f_code):
                return None
            frame.f_trace_opcodes = True
            frame.f_trace_lines = False
            return on_opcode

        def on_opcode(frame: FrameType, event: str, _arg: Any) -> Callable[..., Any]:
            if event == "opcode":
                reach(frame.f_code, frame.f_lasti)
            return on_opcode

        before = sys.gettrace()
        sys.settrace(on_call)
        try:
            yield
        finally:
            sys.settrace(before)


@cache
def _of_the_pool(code: CodeType) -> bool:
    name = code.co_filename
    return (
        name.startswith(HOME)
        and not name.endswith(NOT_THE_POOL)
        and "drivers" not in Path(name).parts
        and code.co_qualname not in LOOPS
    )


#: How the compiler loads the three times None that `__exit__` is called with.
NONE = ("LOAD_CONST", "LOAD_COMMON_CONSTANT")


#: What stands between a step of a loop and the `try` in it.
BEFORE_TRY = ("STORE_FAST", "NOP")


def _steps(code: CodeType) -> list[dis.Instruction]:
    return [i for i in dis.get_instructions(code) if i.opname not in ("CACHE", "EXTENDED_ARG")]


@cache
def _places(code: CodeType) -> frozenset[int]:
    """The opcodes before which an exception is raised."""
    steps = _steps(code)
    found = {step.offset for step in steps}
    if not EVERY_OPCODE:
        found = {i.offset for before, i in pairwise(steps) if _runs_handlers(before.opname)}
        found |= {i.argval for i in steps if "JUMP_BACKWARD" in i.opname}
    return frozenset(found - _leaving(code))


def _runs_handlers(opname: str) -> bool:
    return opname == "RESUME" or opname.startswith("CALL")


@cache
def _leaving(code: CodeType) -> frozenset[int]:
    """The opcodes that enter or leave a guarded block, where no signal handler can run.

    The interpreter runs handlers at the start of a function, when it jumps back and when a call
    has returned, so never between the end of a `with` block and its `__exit__`, or while it
    forgets the exception that was handled; nor after a step of `taking` before the `try`, or
    before the `release()` at its end.
    """
    steps = _steps(code)
    found: set[int] = set()
    for n, step in enumerate(steps):
        if step.opname == "PUSH_EXC_INFO":
            found.add(step.offset)
        if step.opname == "POP_EXCEPT":
            found.update(
                i.offset for i in steps[n - 1 : n + 1] if i.opname in ("COPY", step.opname)
            )
        if step.opname == "WITH_EXCEPT_START":
            found.update(i.offset for i in steps[n - 1 : n + 1])
        if step.opname == "FOR_ITER" and "taking" in [i.argval for i in steps[n - 2 : n]]:
            found.update(i.offset for i in steps[n + 1 : n + 3] if i.opname in BEFORE_TRY)
        if step.argval == "release" and steps[n - 1].argval == "lock":
            end = next(m for m in range(n, len(steps)) if steps[m].opname == "CALL")
            found.update(i.offset for i in steps[n - 2 : end + 1])
        nones = [i.opname in NONE and i.argval is None for i in steps[n : n + 3]]
        if nones == [True] * 3 and steps[n + 3].opname in ("PRECALL", "CALL"):
            first = n
            while steps[first - 1].opname in ("SWAP", "NOP"):
                first -= 1
            found.update(i.offset for i in steps[first : n + 4])
            if steps[n + 3].opname == "PRECALL":
                found.add(steps[n + 4].offset)
    return frozenset(found)
