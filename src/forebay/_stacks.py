"""Where the code stands that holds a connection, or asks for one.

Only looked at: no frame is kept, since a frame keeps alive what it refers to.
"""

from __future__ import annotations

import contextlib
import dis
import gc
import os
import sys
import traceback
import weakref
from functools import lru_cache
from inspect import CO_OPTIMIZED
from itertools import islice, pairwise
from pathlib import Path
from types import CodeType, FrameType, MethodType
from typing import Any

_HOME = str(Path(__file__).parent) + os.sep
_LOOKING = (__file__, _HOME + "errors.py")
_REFERENCES = 3  # of the frame, of our variable, of the call that counts
#: Whose context managers cancel the task that is in them, at their time.
_CANCELLERS = ("asyncio", "anyio", "async_timeout")
_SCOPES = ("Timeout", "Scope")
_NOT_THE_PROGRAM = (_HOME, str(contextlib.__file__))


class Line:
    """A line of a program; what to call it is found out only if somebody asks."""

    __slots__ = ("_code", "_offset")

    _code: CodeType
    _offset: int

    def __str__(self) -> str:
        """As `file.py:12 in handler`."""
        number = next(islice(self._code.co_positions(), self._offset // 2, None))[0]
        return f"{Path(self._code.co_filename).name}:{number} in {self._code.co_name}"


def acquiring_line() -> Line | None:
    """The line that asks for a connection now; for the method that `getconn()` calls.

    It is the innermost one that is neither in this package nor in `contextlib`.
    """
    frame: FrameType | None = sys._getframe(3)
    while frame is not None:
        code = frame.f_code
        if not code.co_filename.startswith(_NOT_THE_PROGRAM):
            line = Line()
            line._code, line._offset = code, frame.f_lasti
            return line
        frame = frame.f_back
    return None


def stack(holder: Any) -> str | None:
    """What a thread or a task executes now, as text; `None` if it has ended, or is not found."""
    frames = [(frame, frame.f_lineno) for frame in _frames(holder)]
    return "".join(traceback.StackSummary.extract(iter(frames)).format()) or None


def stands_in(client: Any, conn: Any) -> bool:
    """Whether a thread or a task that waits stands in the `with` block of `conn`, for certain.

    That `conn` is a variable of its does not tell: it may have handed the block to somebody else
    (an `ExitStack`), who will end it.  So it must be the variable of a `with` statement that is
    executed now.  And nothing may be there that could end the wait of a task from outside.
    """
    frames = _frames(client)
    if isinstance(client, weakref.ref) and any(map(_may_cancel, _coroutines(client()))):
        return False
    return any(_binds(frame, conn) for frame in frames if not _ours(frame, _HOME))


def _binds(frame: FrameType, thing: Any) -> bool:
    """Whether `thing` is the variable of a `with` statement that a frame executes now."""
    code, offset = frame.f_code, frame.f_lasti
    ranges, names = _with_blocks(code)
    found = set()
    while (handler := _handler(ranges, offset)) is not None and handler != offset:
        found.add(names.get(handler))
        offset = handler
    return any(_value(frame, name) is thing for name in found if name is not None)


def _handler(ranges: list[tuple[int, int, int]], offset: int) -> int | None:
    """Where the interpreter goes on when something is raised at an offset."""
    return next((target for start, end, target in ranges if start <= offset < end), None)


@lru_cache(maxsize=256)
def _with_blocks(code: CodeType) -> tuple[list[tuple[int, int, int]], dict[int, str]]:
    """The exception table of a function, and the variables of its `with` statements by handler.

    The first thing done in such a block is to store what was entered.
    """
    ranges = _exception_table(code.co_exceptiontable)
    steps = [step for step in dis.get_instructions(code) if step.opname != "CACHE"]
    names = {}
    for step, after in pairwise(steps):
        if step.opname == "PUSH_EXC_INFO" and after.opname == "WITH_EXCEPT_START":
            first = min((r[0] for r in ranges if r[2] == step.offset), default=None)
            body = [s for s in steps if first is not None and s.offset >= first][:2]
            store = next((s for s in body if s.opname.startswith("STORE_")), None)
            if store is not None:
                name = store.argval
                names[step.offset] = str(name[0] if isinstance(name, tuple) else name)
    return ranges, names


def _exception_table(table: bytes) -> list[tuple[int, int, int]]:
    """Decode the table: from where to where, and the handler (docs: Objects/exception_handling)."""
    numbers, number = [], 0
    for byte in table:
        if byte & 0x80:  # the first of an entry
            number = 0
        number = number << 6 | byte & 0x3F
        if not byte & 0x40:
            numbers.append(number)
            number = 0
    entries = zip(numbers[::4], numbers[1::4], numbers[2::4], strict=False)
    return [(2 * start, 2 * (start + length), 2 * to) for start, length, to in entries]


def _may_cancel(coroutine: Any) -> bool:
    """Whether a suspended coroutine is in a block that cancels its task at some time.

    What it has entered is on the stack of its frame, which only the garbage collector can read.
    """
    for thing in gc.get_referents(coroutine):
        if isinstance(thing, MethodType) and thing.__name__ in ("__exit__", "__aexit__"):
            manager = thing.__self__
        elif sys.version_info >= (3, 14):  # there it is not bound
            manager = thing
        else:
            continue
        kind = type(manager)
        package = kind.__module__.partition(".")[0]
        if package in _CANCELLERS and kind.__name__.endswith(_SCOPES):
            return True
        if package == "contextlib" and _may_cancel(getattr(manager, "gen", None)):
            return True
    return False


def called_from(core: Any) -> bool:
    """Whether a method of `core` is under way further up in the calling thread's stack."""
    frame: FrameType | None = sys._getframe(1)
    home = _HOME + "_core.py"
    while frame is not None:
        if frame.f_code.co_filename == home and frame.f_locals.get("self") is core:
            return True
        frame = frame.f_back
    return False


def _frames(holder: Any) -> list[FrameType]:
    """The frames of a holder, the outermost first; none if it has ended, or is not found.

    A task is known by its name, or by a weak reference.
    """
    if holder is None:
        return []
    if isinstance(holder, weakref.ref):
        return _frames_of_task(holder())
    if isinstance(holder, str):
        return _frames_of_task(_task(holder))
    return _back(sys._current_frames().get(holder.ident)) if holder.alive else []


def _back(frame: FrameType | None, to: FrameType | None = None) -> list[FrameType]:
    """A frame and those that have called it, up to one of them, the outermost first."""
    frames = []
    while frame is not None:
        if not _ours(frame, _LOOKING):  # else it would be in a list of its own
            frames.append(frame)
        frame = None if frame is to else frame.f_back
    return frames[::-1]


def _ours(frame: FrameType, where: str | tuple[str, ...]) -> bool:
    return frame.f_code.co_filename.startswith(where)


def _task(name: str) -> Any:
    """The task with this name in the running loop; `None` if there is none, or several."""
    asyncio = sys.modules["asyncio"]
    try:
        tasks = [task for task in asyncio.all_tasks() if task.get_name() == name]
    except RuntimeError:  # no loop runs here
        return None
    return tasks[0] if len(tasks) == 1 else None


def _frames_of_task(task: Any) -> list[FrameType]:
    """The frames of a task, the outermost first."""
    if task is None:
        return []
    if task is sys.modules["asyncio"].current_task():
        return _back(sys._getframe(1), task.get_coro().cr_frame)
    return [getattr(c, "cr_frame", None) or c.ag_frame for c in _coroutines(task)]


def _coroutines(task: Any) -> list[Any]:
    """The coroutines and generators that a task executes, the outermost first."""
    coro, found = task and task.get_coro(), []
    while (getattr(coro, "cr_frame", None) or getattr(coro, "ag_frame", None)) is not None:
        found.append(coro)
        coro = getattr(coro, "cr_await", None) or getattr(coro, "ag_await", None)
    return found


def _value(frame: FrameType, name: str) -> Any:
    """A variable of a frame."""
    names = frame.f_locals
    value = names.get(name, frame.f_globals.get(name))
    if sys.version_info < (3, 13) and frame.f_code.co_flags & CO_OPTIMIZED:
        # A copy, which the frame keeps, and what is in it with it; unless locals() gave it away.
        if sys.getrefcount(names) <= _REFERENCES:
            names.clear()
    return value
