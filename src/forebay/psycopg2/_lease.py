"""The `with` block of the pools for psycopg2."""

from __future__ import annotations

from types import TracebackType
from typing import Any, TypeVar

from .._thread_door import Lease
from ..drivers.psycopg2 import end_transaction, unclean

C = TypeVar("C")


class TransactionLease(Lease[C]):
    """A connection for the length of a `with` block; made by `connection()`.

    It ends the transaction by the connection's `commit()` or `rollback()`, and leaves psycopg2's
    own `with connection:`, which cannot be nested, to the program.
    """

    __slots__ = ()

    def __enter__(self) -> C:
        """Lend the connection."""
        conn = self._take()
        self._conn = conn
        entry = conn._forebay_entry
        entry.leased = True
        self._lent_at = entry.lent_at
        lent: C = conn
        return lent

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Commit or roll back, and return the connection."""
        conn, self._conn = self._conn, None
        entry = conn._forebay_entry
        if not entry.leased or entry.lent_at is not self._lent_at:
            return  # returned inside the block; perhaps lent to somebody else by now
        try:
            if exc_type is not None or not entry.plain or unclean(conn):
                end_transaction(conn, exc_type is not None)
        finally:
            self._put_back(conn)

    def _take(self) -> Any:
        return self._pool.getconn(self._timeout)

    def _put_back(self, conn: Any) -> None:
        self._pool.putconn(conn)
