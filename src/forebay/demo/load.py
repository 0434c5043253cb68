"""The crowds at work, watched: draw what happens, cause the outage, wait for the pools."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from time import perf_counter

from .crowd import Crowd
from .meter import Meter
from .outage import Outage
from .screen import SPARKS, Frame, Lane, Screen, seconds_text

FRAME = 0.1
"""Seconds between two looks at the crowds."""
RECOVERY_TIMEOUT = 20.0
"""Seconds the pools have to serve again after the server accepts connections."""
FINISH_TIMEOUT = 20.0
"""Seconds the clients have at the end to complete the transfer they are at."""


class Load:
    """Crowds working for `seconds`, and longer if they have not recovered from the outage by then.

    After `run`, `started` and `ended` are `perf_counter()` seconds, `stuck` is the number of
    clients that did not come to an end, `crashes` has the errors that no client expects.
    """

    def __init__(
        self,
        crowds: Sequence[Crowd],
        screen: Screen,
        seconds: float,
        outage: Outage | None = None,
    ) -> None:
        self.crowds = crowds
        self.outage = outage
        self.started = self.ended = 0.0
        self.stuck = 0
        self._screen = screen
        self._seconds = seconds
        self._meters: list[Meter] = []

    @property
    def crashes(self) -> list[Exception]:
        """Errors that ended a client."""
        return [error for crowd in self.crowds for error in crowd.crashes]

    def run(self) -> None:
        """Open the doors, watch until the time is over, and see everybody out."""
        with ExitStack() as stack:
            self.started = perf_counter()
            bucket = self._seconds / SPARKS
            self._meters = [Meter(crowd.traffic, self.started, bucket) for crowd in self.crowds]
            for crowd in self.crowds:
                stack.enter_context(crowd)
            if self.outage is not None:
                # Nobody may stop the server while the outage starts it.
                stack.callback(self.outage.finish)
            self._watch()
            self.ended = perf_counter()
            for crowd in self.crowds:
                crowd.finish()
            self.stuck = sum(crowd.join(FINISH_TIMEOUT) for crowd in self.crowds)
            self._screen.draw(self._frame(self.ended))
        if self.outage is not None and self.outage.error is not None:
            raise self.outage.error

    def recovery(self, crowd: Crowd) -> float | None:
        """Seconds from the server accepting connections to the crowd's first transfer.

        None while there is none. The server is found to accept a few milliseconds late, so a pool
        that was faster than that counts as 0.0.
        """
        if self.outage is None or self.outage.cut is None or self.outage.accepting is None:
            return None
        success = crowd.traffic.first_success_since(self.outage.cut)
        return None if success is None else max(0.0, success - self.outage.accepting)

    def _watch(self) -> None:
        told: set[str] = set()
        while not self._is_over(perf_counter()):
            time.sleep(FRAME)
            now = perf_counter()
            for meter in self._meters:
                meter.update(now)
            self._screen.draw(self._frame(now))
            self._narrate(told)
        self._narrate(told)

    def _is_over(self, now: float) -> bool:
        if self.crashes or (self.outage is not None and self.outage.error is not None):
            return True
        if now < self.started + self._seconds:
            return False
        if self.outage is None or all(self.recovery(crowd) is not None for crowd in self.crowds):
            return True
        accepting = self.outage.accepting
        return accepting is not None and now > accepting + RECOVERY_TIMEOUT

    def _narrate(self, told: set[str]) -> None:
        """Begin the outage at half-time, and tell each of its steps once."""
        outage = self.outage
        if outage is None or perf_counter() < self.started + self._seconds / 2:
            return
        if outage.began is None:
            self._tell(told, outage.announcement)
            outage.start()
        elif outage.accepting is not None:
            if outage.restarts:
                down = seconds_text(outage.accepting - outage.began)
                self._tell(told, f"the server accepts connections again after {down}")
            for crowd in self.crowds:
                recovery = self.recovery(crowd)
                if recovery is not None:
                    text = f"{crowd.name}: first transfer {seconds_text(recovery)} later"
                    self._tell(told, text)

    def _tell(self, told: set[str], text: str) -> None:
        if text not in told:
            told.add(text)
            self._screen.say(f"{perf_counter() - self.started:5.1f} s  {text}")

    def _frame(self, now: float) -> Frame:
        counts = zip(*(meter.buckets for meter in self._meters), strict=True)
        lanes = [
            Lane(
                name=crowd.name,
                gauge=crowd.gauge(),
                rate=meter.rate(now),
                p50=meter.wait(0.50),
                p99=meter.wait(0.99),
                errors=len(crowd.traffic.failures),
            )
            for crowd, meter in zip(self.crowds, self._meters, strict=True)
        ]
        return Frame(
            elapsed=now - self.started,
            seconds=self._seconds,
            lanes=lanes,
            total=sum(len(crowd.traffic.done) for crowd in self.crowds),
            buckets=[sum(each) for each in counts],
            outage=self._outage_buckets(now),
        )

    def _outage_buckets(self, now: float) -> range:
        if self.outage is None or self.outage.began is None:
            return range(0)
        bucket = self._seconds / SPARKS
        until = self.outage.accepting or now
        first = int((self.outage.began - self.started) / bucket)
        return range(first, int((until - self.started) / bucket) + 1)
