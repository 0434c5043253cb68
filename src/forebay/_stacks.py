"""Where the code stands that holds a connection, or asks for one.

Only looked at: no frame is kept, since a frame keeps alive what it refers to.
"""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from inspect import CO_OPTIMIZED
from itertools import islice
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

_HOME = str(Path(__file__).parent) + os.sep
_LOOKING = (__file__, _HOME + "errors.py")
_REFERENCES = 3  # of the frame, of our variable, of the call that counts
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


def stands_in(holder: Any, conn: Any) -> bool:
    """Whether `conn` is a local variable of what a thread or a task executes now.

    To have entered a `with` block does not mean to be inside: frameworks call the two halves of
    a generator from different threads of theirs.
    """
    return any(_has(frame, conn) for frame in _frames(holder) if not _ours(frame, _HOME))


def _frames(holder: Any) -> list[FrameType]:
    """The frames of a holder, the outermost first; none if it has ended, or is not found."""
    if holder is None:
        return []
    if isinstance(holder, str):
        return _frames_of_task(holder)
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


def _frames_of_task(name: str) -> list[FrameType]:
    """The frames of the task with this name in the running loop; none if there are several."""
    asyncio = sys.modules["asyncio"]
    try:
        tasks = [task for task in asyncio.all_tasks() if task.get_name() == name]
    except RuntimeError:  # no loop runs here
        return []
    if len(tasks) != 1:
        return []
    coro = tasks[0].get_coro()
    if tasks[0] is asyncio.current_task():
        return _back(sys._getframe(1), coro.cr_frame)
    frames = []
    while (frame := getattr(coro, "cr_frame", None) or getattr(coro, "ag_frame", None)) is not None:
        frames.append(frame)
        coro = getattr(coro, "cr_await", None) or getattr(coro, "ag_await", None)
    return frames


def _has(frame: FrameType, thing: Any) -> bool:
    names = frame.f_locals
    found = any(value is thing for value in [*names.values()])
    if sys.version_info < (3, 13) and frame.f_code.co_flags & CO_OPTIMIZED:
        # A copy, which the frame keeps, and what is in it with it; unless locals() gave it away.
        if sys.getrefcount(names) <= _REFERENCES:
            names.clear()
    return found
