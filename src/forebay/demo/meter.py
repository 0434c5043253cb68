"""What is measured while the crowd works: plain numbers, no drawing, no database.

Clients append to lists, which is atomic; one reader looks at what has been added since it last
looked. Times are `time.perf_counter()` seconds throughout.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from typing import NamedTuple


class Done(NamedTuple):
    """One acknowledged transfer: when its client asked, got a connection, and had committed."""

    asked: float
    got: float
    finished: float


class Failure(NamedTuple):
    """One attempt cut short; `unknown` when the cut came during the commit."""

    at: float
    client: int
    unknown: bool
    text: str


@dataclass(slots=True)
class Gauge:
    """Where a pool's connections are, and how many clients wait for one."""

    size: int
    idle: int = 0
    lent: int = 0
    opening: int = 0
    waiting: int = 0


@dataclass(slots=True)
class Traffic:
    """Everything the clients of one pool have reported.

    `settled` has one entry for each commit of unknown outcome, once it is known: True if the
    transfer had been committed after all.
    """

    done: list[Done] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    settled: list[bool] = field(default_factory=list)

    def rate(self, start: float, stop: float) -> float:
        """Transfers per second that finished between the two times; 0.0 for an empty span."""
        count = sum(start <= done.finished < stop for done in self.done)
        return count / (stop - start) if stop > start else 0.0

    def waits(self, start: float, stop: float) -> list[float]:
        """Seconds from request to connection, for transfers finished between the two times."""
        return [done.got - done.asked for done in self.done if start <= done.finished < stop]

    def first_success_since(self, moment: float) -> float | None:
        """When the first transfer finished whose connection was had after `moment`."""
        return min((done.finished for done in self.done if done.got >= moment), default=None)


def quantile(values: list[float], fraction: float) -> float:
    """The smallest value that `fraction` of all values do not exceed; 0.0 if there are none."""
    if not values:
        return 0.0
    return sorted(values)[math.ceil(fraction * len(values)) - 1]


class Meter:
    """The recent past of one `Traffic`, kept up to date at little cost."""

    WINDOW = 1.0
    """Seconds over which the live rate and waits are taken."""

    def __init__(self, traffic: Traffic, started: float, bucket: float) -> None:
        self.buckets: list[int] = []
        self._seen = 0
        self._traffic = traffic
        self._started = started
        self._bucket = bucket
        self._recent: deque[Done] = deque()

    def update(self, now: float) -> None:
        """Take in what was reported since the last update."""
        fresh = self._traffic.done[self._seen :]
        self._seen += len(fresh)
        self._recent.extend(fresh)
        while self._recent and self._recent[0].finished < now - self.WINDOW:
            self._recent.popleft()
        newest = int((now - self._started) / self._bucket)
        self.buckets.extend([0] * (newest + 1 - len(self.buckets)))
        for done in fresh:
            bucket = int((done.finished - self._started) / self._bucket)
            self.buckets[min(bucket, newest)] += 1

    def rate(self, now: float) -> float:
        """Transfers per second over the window that ends now."""
        return len(self._recent) / max(min(self.WINDOW, now - self._started), 1e-9)

    def wait(self, fraction: float) -> float:
        """The given quantile of the recent waits, in seconds."""
        return quantile([done.got - done.asked for done in self._recent], fraction)
