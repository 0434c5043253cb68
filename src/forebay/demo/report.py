"""The end of the story: what was measured, in the rows of one table."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from .crowd import Crowd
from .load import RECOVERY_TIMEOUT, Load
from .meter import Traffic, quantile
from .proof import Finding
from .screen import Row, seconds_text


def check_load(load: Load) -> list[Finding]:
    """What went wrong with the clients themselves; nothing is said of what went right."""
    findings = [Finding(False, f"CLIENT CRASHED: {error!r}") for error in load.crashes]
    if load.stuck:
        findings.append(Finding(False, f"CLIENTS STUCK: {load.stuck} never came to an end"))
    if load.outage is not None:
        findings += _check_recovery(load)
    return findings


def _check_recovery(load: Load) -> list[Finding]:
    return [
        Finding(
            False,
            f"POOL NOT BACK {RECOVERY_TIMEOUT:g} s after the server: {crowd.name}; "
            f"the last error was {crowd.traffic.failures[-1:]}",
        )
        for crowd in load.crowds
        if load.recovery(crowd) is None
    ]


def pooled_rows(load: Load) -> list[Row]:
    """The work through the pools, up to the outage."""
    began = load.outage.began if load.outage is not None else None
    span = (load.started, began or load.ended)

    def wait(fraction: float) -> Callable[[Sequence[Traffic]], str]:
        return lambda traffics: seconds_text(
            quantile([wait for traffic in traffics for wait in traffic.waits(*span)], fraction)
        )

    return [
        _sum_row("connections", load.crowds, lambda crowd: crowd.size),
        _sum_row("transfers", load.crowds, lambda crowd: len(crowd.traffic.done)),
        _rate_row("transfers per second, before the cut", load.crowds, span),
        _row("wait for a connection, p50", load.crowds, wait(0.50)),
        _row("wait for a connection, p99", load.crowds, wait(0.99)),
    ]


def outage_rows(load: Load) -> list[Row]:
    """How the clients lived through the outage."""
    recoveries = [load.recovery(crowd) for crowd in load.crowds]
    back = [seconds_text(each) if each is not None else "never" for each in recoveries]
    first = min((each for each in recoveries if each is not None), default=None)
    return [
        _sum_row("clients that saw an error", load.crowds, _clients_with_errors),
        _sum_row("commits of unknown outcome", load.crowds, _unknown_commits),
        _sum_row("  found booked on retry", load.crowds, lambda crowd: sum(crowd.traffic.settled)),
        ("first transfer after the server is back", [*back, seconds_text(first or 0.0)]),
    ]


def comparison_rows(load: Load, comparison: Load) -> list[Row]:
    """The same work with a connection per transaction, and how many times faster the pools are."""
    began = load.outage.began if load.outage is not None else None
    pooled = _rates(load.crowds, (load.started, began or load.ended))
    plain = _rates(comparison.crowds, (comparison.started, comparison.ended))
    ratios = [f"{a / b:.1f} x" if b else "-" for a, b in zip(pooled, plain, strict=True)]
    return [
        ("connection per transaction, per second", [f"{rate:,.0f}" for rate in plain]),
        ("the pool is faster by", ratios),
    ]


def _clients_with_errors(crowd: Crowd) -> int:
    return len({failure.client for failure in crowd.traffic.failures})


def _unknown_commits(crowd: Crowd) -> int:
    return sum(failure.unknown for failure in crowd.traffic.failures)


def _row(name: str, crowds: Sequence[Crowd], cell: Callable[[Sequence[Traffic]], str]) -> Row:
    traffics = [crowd.traffic for crowd in crowds]
    return name, [*(cell([traffic]) for traffic in traffics), cell(traffics)]


def _sum_row(name: str, crowds: Sequence[Crowd], count: Callable[[Crowd], int]) -> Row:
    counts = [count(crowd) for crowd in crowds]
    return name, [f"{number:,}" for number in (*counts, sum(counts))]


def _rate_row(name: str, crowds: Sequence[Crowd], span: tuple[float, float]) -> Row:
    return name, [f"{rate:,.0f}" for rate in _rates(crowds, span)]


def _rates(crowds: Sequence[Crowd], span: tuple[float, float]) -> list[float]:
    rates = [crowd.traffic.rate(*span) for crowd in crowds]
    return [*rates, sum(rates)]
