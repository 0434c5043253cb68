"""A timer whose signals strike the main thread wherever it is."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Self


class Strokes:
    """Each signal calls `action` with its number; the next is sent when that has been dealt with.

    At the end, the last one may have been sent and not handled yet: it must not send another, which
    would find the handler of before, and by default that ends the process.
    """

    def __init__(self, action: Callable[[int], None], pause: float = 0.0004) -> None:
        self._action, self._pause = action, pause
        self._over = False
        self.number = 0

    def __enter__(self) -> Self:
        self._before = signal.signal(signal.SIGALRM, self._strike)
        self._arm()
        return self

    def __exit__(self, *error: object) -> None:
        self._end()

    def _arm(self) -> None:
        """Have the next signal sent; the pause is never the same, so no two strike alike."""
        self.number += 1
        signal.setitimer(signal.ITIMER_REAL, self._pause * (1 + self.number % 7 / 10))

    def _strike(self, *_signal: object) -> None:
        if self._over:
            return
        try:
            self._action(self.number)
        except BaseException:
            self._end()  # perhaps it is raised in the first line of __exit__
            raise
        self._arm()

    def _end(self) -> None:
        self._over = True
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, self._before)
