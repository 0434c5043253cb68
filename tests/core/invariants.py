"""What must hold of a core whenever no transition is under way."""

from __future__ import annotations

from collections.abc import Iterator

from forebay._core import Core
from forebay._entry import EVICTED, IDLE, LENT, OPENING, RETIRED, SERVICE


def violations(core: Core) -> list[str]:
    """Say which invariants do not hold; nothing when all do."""
    return [*_of_places(core), *_of_connections(core), *_of_clients(core)]


def _of_places(core: Core) -> Iterator[str]:
    idle = list(core.idle)
    if len(set(idle)) != len(idle):
        yield "an entry is idle twice"
    if {e for e in core.entries if e.place is IDLE} != set(idle):
        yield "the idle entries are not those that say so"
    if core.opening != sum(e.place is OPENING for e in core.entries):
        yield f"{core.opening} are not as many permits as there are"
    if any(e.place is RETIRED for e in core.entries):
        yield "a retired entry still counts"
    if any(e.place is not RETIRED for e in core.retiring):
        yield "an entry is being retired and is somewhere else too"
    if len(idle) > core.keep:
        yield f"{len(idle)} connections are kept, more than {core.keep}"


def _of_connections(core: Core) -> Iterator[str]:
    for entry in core.entries:
        if entry.place is IDLE and entry.conn is None:
            yield f"{entry} has no connection"
        if entry.place is LENT and entry.conn is not None:
            yield f"{entry} is lent and held"
        dropped = entry.ref is None or (entry.ref() is None and entry.ref not in core.lost)
        if dropped and entry.place in (LENT, SERVICE) and not entry.ordered:
            yield f"{entry} was dropped and nobody knows"
        if entry.place in (IDLE, LENT) and entry.ordered:
            yield f"{entry} is ordered, and there is nothing to do"


def _of_clients(core: Core) -> Iterator[str]:
    if core.waiting and core.idle:
        yield "a client waits while a connection is idle"
    if any(w.conn is not None or w.error is not None for w in core.waiting):
        yield "a client waits that has been served"
    keeping = sum(entry.expires_at > EVICTED for entry in core.entries)
    if keeping > core.settings.max_size:
        yield f"{keeping} connections are more than {core.settings.max_size}"
