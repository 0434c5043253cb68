"""How a driver finds the entry of a connection, whatever that is: a proxy, a stand-in, a mock."""

from __future__ import annotations

import weakref
from contextlib import suppress
from typing import Any

from .._entry import LENT, RETIRED, Entry


class Tag(weakref.ref[Any]):
    """A weak reference to a connection, with its entries."""

    __slots__ = ("entries",)

    entries: list[Entry]


class Tags:
    """The entries of one pool's connections.

    The hot path reads an attribute of the connection.  What takes no attributes is known by its
    identity here, and so is what `connect()` gives more than once, as a mock does: it has several
    entries, of which those that are lent tell whether it may be returned.
    """

    def __init__(self) -> None:
        self._tags: dict[int, Tag] = {}

    def __contains__(self, conn: object) -> bool:
        tag = self._tags.get(id(conn))
        return tag is not None and tag() is conn

    def attach(self, conn: Any, entry: Entry) -> None:
        """Give a connection an entry.

        Raises:
            TypeError: it cannot be referred to weakly.
        """
        known = self.find(conn)
        ours = hasattr(type(conn), "_forebay_entry")
        shared = known is not None and known is not entry and _in_use(known) and _in_use(entry)
        if known is not None and shared and ours:
            self._add(conn, known)
        if shared or not ours:
            self._add(conn, entry)
        if shared or not _assign(conn, entry):
            with suppress(Exception):
                del conn._forebay_entry

    def find(self, conn: Any) -> Entry | None:
        """The entry of a connection, which may be another pool's; of several one that is lent."""
        entry = getattr(conn, "_forebay_entry", None)
        if isinstance(entry, Entry):
            return entry
        if conn not in self:
            return None
        entries = self._tags[id(conn)].entries
        return max(entries, key=lambda each: (each.place is LENT, _in_use(each)))

    def _add(self, conn: Any, entry: Entry) -> None:
        """Know an object by one more entry; those that are out of use go."""
        tag = self._tags[id(conn)] if conn in self else self._tag(conn)
        kept = [each for each in tag.entries if each is not entry and _in_use(each)]
        tag.entries = [*kept, entry] if _in_use(entry) else [entry]

    def _tag(self, conn: Any) -> Tag:
        """Make an object known, as long as it lives."""
        tags, key = self._tags, id(conn)

        def forget(dead: object) -> None:
            if tags.get(key) is dead:
                del tags[key]

        try:
            tag = tags[key] = Tag(conn, forget)
        except TypeError:
            raise TypeError(
                f"connect() gave a {type(conn).__name__}, which cannot be referred to weakly, as"
                " the pool needs: add '__weakref__' to the __slots__ of its class"
            ) from None
        tag.entries = []
        return tag


class Finder:
    """The part of a driver that knows whose a connection is, where the hot path does not."""

    def __init__(self) -> None:
        self.tags = Tags()

    def find(self, conn: Any) -> Entry | None:
        """The entry attached to a connection, if there is one; it may be another pool's."""
        return self.tags.find(conn)

    def entry(self, conn: Any) -> Entry:
        """The entry attached to a connection of this pool."""
        entry = self.find(conn)
        if entry is None:
            raise LookupError(f"a {type(conn).__name__} that is not in the pool")
        return entry

    def mark(self, conn: Any, pool: Any) -> None:
        """Write down that `pool` has lent a connection; None: it is with nobody."""
        with suppress(Exception):  # it takes no attributes: the place of its entry tells
            conn._pool = pool

    def lent(self, conn: Any, pool: Any) -> tuple[Entry, Any] | None:
        """The entry of what a client returns to `pool`, whose driver this is, and what was lent.

        None if `pool` has not lent it.  A client may return what is behind a proxy, not the proxy.
        """
        entry = self.find(conn)
        if entry is None or not (entry.place is LENT or _is_reclaimed(entry)):
            return None
        if conn not in self.tags and getattr(conn, "_pool", None) is not pool:
            return None
        return entry, (entry.ref and entry.ref()) or conn


def _is_reclaimed(entry: Entry) -> bool:
    """Whether the slot of a lent connection was given back before the connection."""
    return entry.place is RETIRED and entry.ref is None


def _in_use(entry: Entry) -> bool:
    return entry.place is not RETIRED


def _assign(conn: Any, entry: Entry) -> bool:
    """Attach an entry as an attribute; false if that is not there afterwards."""
    try:
        conn._pool = None
        conn._forebay_entry = entry
        return conn._forebay_entry is entry
    except Exception:  # whatever it refuses with
        return False
