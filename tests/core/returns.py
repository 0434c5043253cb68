"""Returns, as a client makes them that has the lending it was given."""

from __future__ import annotations

from typing import Any

from forebay._core import Core
from forebay._entry import Effects, Entry


def checkin(core: Core, entry: Entry, conn: Any, now: float) -> Effects | None:
    """Return a clean connection, and end its present lending."""
    return core.checkin(entry, conn, now, entry.lent_at)


def recycle(core: Core, entry: Entry, conn: Any, now: float) -> Effects:
    """Return a connection that a worker must reset, and end its present lending."""
    return core.give_back(entry, conn, now, entry.lent_at, clean=False)
