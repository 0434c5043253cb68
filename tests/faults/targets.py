"""What Forebay is to reach in the scenarios."""

from __future__ import annotations

from math import inf

from .lab import Result, Target

NONE_BROKEN = Target("no broken connection served", lambda each: each.broken == 0)
NO_ERRORS = Target("no client sees an error", lambda each: each.failures == 0)
NONE_LEAKED = Target("no connection leaked", lambda each: each.leaked == 0)
NONE_STRANDED = Target("no waiter stranded", lambda each: each.stranded == each.hung == 0)
NONE_ABANDONED = Target("no worker left abandoned", lambda each: not each.abandoned)

ALWAYS = (NONE_BROKEN, NONE_LEAKED, NONE_STRANDED, NONE_ABANDONED)
"""What every scenario asks for."""


def in_flight_only(connections: int) -> Target:
    """Each connection can fail one request, the one it was used for when the fault came."""
    return Target(
        "no errors but of queries in flight",
        lambda each: each.failures <= connections * each.faults,
    )


def within(seconds: float, text: str = "first success") -> Target:
    """The first success comes soon enough."""
    return Target(
        f"{text} within {seconds * 1000:g} ms",
        lambda each: each.first is not None and each.first <= seconds,
        timed=True,
    )


def full_rate_within(seconds: float) -> Target:
    """The rate from before the fault is back soon enough."""
    return Target(
        f"full rate within {seconds * 1000:g} ms",
        lambda each: each.through is not None and each.through <= seconds,
        timed=True,
    )


def spread_within(seconds: float, number: int) -> Target:
    """All clients are served soon after the first."""
    return Target(
        f"all {number} through within {seconds * 1000:g} ms of the first",
        lambda each: each.spread <= seconds,
        timed=True,
    )


def one_connect_more(each: Result) -> bool:
    """Nobody waited longer than 50 ms and one connect."""
    return each.longest * 1000 <= 50 + float(each.facts.get("one connect, ms", 0))


def none_replaced(each: Result) -> bool:
    """All sessions are the ones from before."""
    return each.facts.get("sessions replaced") == 0


def half_the_rate(each: Result) -> bool:
    """While the fault lasted, at least half as many were served as before."""
    before = float(each.facts.get("served before, per s", inf))
    return float(each.facts.get("served during, per s", 0)) >= before / 2


ONE_CONNECT_MORE = Target(
    "no client waits longer than 50 ms + one connect", one_connect_more, timed=True
)
NONE_REPLACED = Target("no session replaced", none_replaced)
HALF_THE_RATE = Target("half the rate while it lasts", half_the_rate, timed=True)
