"""The pools for threads, each with the way to use it: what holds for one holds for all."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import psycopg
import psycopg2
from psycopg import conninfo

import forebay

#: What a flavour's connections and its pool raise.
ERRORS = (psycopg.Error, psycopg2.Error)

FLAVOURS = [
    "ConnectionPool",
    "NullConnectionPool",
    "psycopg2.ConnectionPool",
    "psycopg2.NullConnectionPool",
]


class Flavour:
    """One of the pool classes, of two connections at most, and how its programs use it."""

    def __init__(self, name: str, dsn: str, application: str) -> None:
        self.name = name
        self.keeps = "Null" not in name
        self.dsn = conninfo.make_conninfo(dsn, application_name=application)

    def make(self, **options: Any) -> Any:
        """An open pool; it has its two connections, if it is one that keeps any."""
        if self.name.startswith("psycopg2_pool"):
            import forebay.psycopg2_pool as drop_in

            return drop_in.ThreadSafeConnectionPool(2, 2, dsn=self.dsn)
        if self.name.startswith("psycopg2.pool"):
            import forebay.psycopg2.pool as other

            return other.ThreadedConnectionPool(2, 2, self.dsn)
        sizes = {"min_size": 2} if self.keeps else {"max_size": 2}
        pool = self._class()(self.dsn, open=True, timeout=20, **sizes, **options)
        pool.wait()
        return pool

    def block(self, pool: Any) -> AbstractContextManager[Any]:
        """A block that commits at its end, as programs write it."""
        lease = pool.getconn() if self.name.startswith("psycopg2_pool") else pool.connection()
        assert isinstance(lease, AbstractContextManager)
        return lease

    def by_hand(self, pool: Any) -> AbstractContextManager[Any]:
        """The same by `getconn()`, `commit()` and `putconn()`."""
        return ByHand(pool)

    def close(self, pool: Any) -> None:
        """Close a pool, whatever the name of that is."""
        if not self.name.startswith("psycopg2.pool"):
            pool.close()
        elif not pool.closed:
            pool.closeall()

    def _class(self) -> Any:
        module, _, name = self.name.rpartition(".")
        if not module:
            return getattr(forebay, name)
        import forebay.psycopg2 as over_psycopg2

        return getattr(over_psycopg2, name)


class ByHand:
    """Work that is committed at its end; no generator, which the collector would run on."""

    def __init__(self, pool: Any) -> None:
        self._pool = pool

    def __enter__(self) -> Any:
        self._conn = self._pool.getconn()
        return self._conn

    def __exit__(self, kind: object, *_error: object) -> None:
        if kind is None:
            self._conn.commit()
        self._pool.putconn(self._conn)
        del self._conn


def execute(conn: Any, query: str, *arguments: object) -> Any:
    """Run a statement, whatever the driver; returns its cursor."""
    cursor = conn.cursor()
    cursor.execute(query, arguments or None)
    return cursor
