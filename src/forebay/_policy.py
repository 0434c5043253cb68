"""Arithmetic of time and number: pure functions and values, no state."""

from __future__ import annotations

from dataclasses import dataclass

#: Connections live up to this part shorter, at random, so that they do not all expire together.
LIFETIME_JITTER = 0.05

#: Seconds between two attempts to connect, at most, while a client waits.
PROBE_INTERVAL = 0.1

#: The same where the server has too many connections: others need the next one as much.
CROWDED_INTERVAL = 0.5

#: Seconds until an attempt to connect that is not answered is joined by another one.
PROBE_PATIENCE = 1.0

#: Seconds for which a new connection that was never returned may be of the kind that ends at once:
#: a server may let clients in and close their sessions (a proxy whose server is gone, say).
PROBATION = 10.0

#: Seconds for whoever is blocked to come back after the socket was shut down.
GRACE = 1.0

#: Seconds until more idle connections are asked, when as many are being asked as there are workers.
KEEPALIVE_PAUSE = 0.1

#: Seconds a callable `conninfo` or `kwargs` may take: it may have to ask somebody for a password.
PARAMETERS_PATIENCE = 30.0

#: Seconds between two rounds of maintenance, at most.
MAINTENANCE_INTERVAL = 1.0

#: Seconds between two rounds that expired connections alone ask for, at least: a `max_lifetime` of
#: next to nothing must not make it a loop.
ROUND_AT_LEAST = 0.1


@dataclass(frozen=True, slots=True)
class Backoff:
    """How long to wait after the n-th failed attempt in a row to connect."""

    first: float = 0.02  # seconds
    factor: float = 2.0
    cap: float = 3.0  # seconds

    def delay(self, failures: int, chance: float) -> float:
        """Seconds until the next attempt; `chance` in [0, 1) spreads the pools of a fleet.

        Full jitter, but never under half of the first delay: that would be no pause at all.
        """
        full = min(self.cap, self.first * self.factor ** min(failures - 1, 30))
        return max(self.first / 2, full * chance)


def lifetime(max_lifetime: float, chance: float) -> float:
    """Seconds a connection may live, up to 5 % less than `max_lifetime` (`chance` in [0, 1))."""
    return max_lifetime * (1.0 - LIFETIME_JITTER * chance)


def growth(
    *, target: int, size: int, max_size: float, waiting: int, opening: int, width: float
) -> int:
    """How many connections to begin opening now (0 when none is wanted)."""
    wanted = max(target - size, waiting - opening)
    return max(0, int(min(wanted, max_size - size, width - opening)))
