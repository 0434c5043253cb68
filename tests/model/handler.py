"""A signal handler, or a finalizer, that uses the pool in the middle of everything else.

It runs to its end wherever it is called: between any two lines of the core and the flows, in the
thread that it interrupts.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Coroutine
from types import FrameType
from typing import Any

from forebay import _core, _flows

from .runtime import Request

#: What is interrupted; altered modules keep the file names of their sources.
FILES = frozenset({_core.__file__, _flows.__file__})


class WouldWait(Exception):
    """A handler would wait for what its own thread keeps from happening."""


def interrupted(body: Callable[[], object], point: int, handler: Callable[[], object]) -> bool:
    """Run `body`, and `handler` before its line number `point`; false if there are not so many."""
    lines = -1

    def local(_frame: FrameType, event: str, _arg: object) -> Any:
        nonlocal lines
        if event == "line":
            lines += 1
            if lines == point:
                handler()
        return local if lines < point else None

    def begins(frame: FrameType, _event: str, _arg: object) -> Any:
        return local if frame.f_code.co_filename in FILES and lines < point else None

    before = sys.gettrace()
    sys.settrace(begins)
    try:
        body()
    finally:
        sys.settrace(before)
    return lines >= point


def run_through(flow: Coroutine[Any, Any, Any], locked: Callable[[], bool] = lambda: False) -> Any:
    """Run a flow to its end: whatever it asks for ends well, but for waiting.

    While its thread has the lock it may ask for nothing, but to close what it has returned.
    """
    try:
        while True:
            request: Request = flow.send(None)
            waits = request.kind == "wait" and not request.subject.woken
            if waits or (locked() and request.kind not in ("lock left", "close")):
                flow.close()
                raise WouldWait
    except StopIteration as stop:
        return stop.value
