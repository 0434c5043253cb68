"""Doors of every flavour, for what must hold whatever library is below: `door_of(flavour, dsn)`."""

from __future__ import annotations

import importlib
from typing import Any

from .door import Door

#: A flavour is one line: what is not here is not played.
FLAVOURS = (
    "sync",
    "async",
    "psycopg2",
)
#: The same without pools for asyncio.
BLOCKING = tuple(flavour for flavour in FLAVOURS if flavour != "async")


class Psycopg2Door(Door):
    """`forebay.psycopg2.ConnectionPool`, played as a door for threads."""

    def __init__(self, kind: str, dsn: str) -> None:
        super().__init__("sync", dsn)
        self.pool_class = importlib.import_module(f"forebay.{kind}").ConnectionPool
        self.connection_class = importlib.import_module("psycopg2.extensions").connection

    async def pid(self, conn: Any) -> int:
        """The backend's process id, asked from the backend itself; leaves no transaction."""
        return int(await asked(self, conn, "select pg_backend_pid()"))


def door_of(flavour: str, dsn: str) -> Door:
    """A door of this flavour."""
    return (Psycopg2Door if flavour.startswith("psycopg2") else Door)(flavour, dsn)


async def asked(door: Door, conn: Any, query: str) -> Any:
    """The one value that a query gives; leaves no transaction."""
    cursor = conn.cursor()
    await door(cursor.execute, query)
    (value,) = await door(cursor.fetchone)
    await door(conn.rollback)
    return value
