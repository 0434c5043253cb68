"""The `with` block of the pools for psycopg2."""

from __future__ import annotations

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

    def _begin(self, conn: Any) -> Any:
        return conn

    def _end(self, conn: Any, *error: Any) -> None:
        failed = error[0] is not None
        try:
            entry = conn._forebay_entry
        except AttributeError:
            entry = self._pool._forebay.flows.driver.entry(conn)
        if failed or not entry.plain or unclean(conn):
            end_transaction(conn, failed)
