"""What the tests of the doors for psycopg2 share: a session beside the pools, and waiting."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Self

import psycopg2


def eventually(predicate: Callable[[], Any], about: object = None, within: float = 10.0) -> Any:
    """Wait until `predicate()` is true and return its value; fail with `about` after `within`."""
    deadline = time.monotonic() + within
    while not (value := predicate()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not true within {within} s; seen last: {about!r}")
        time.sleep(0.002)
    return value


def one(conn: Any, query: str, *arguments: Any) -> Any:
    """The one value that a query gives."""
    with conn.cursor() as cursor:
        cursor.execute(query, arguments)
        (value,) = cursor.fetchone()
    return value


def pid(conn: Any) -> int:
    """The backend of a connection, asked from the backend itself; leaves no transaction."""
    found = int(one(conn, "select pg_backend_pid()"))
    conn.rollback()
    return found


class Admin:
    """A session beside the pools that looks at the server and ends other sessions."""

    def __init__(self, dsn: str) -> None:
        self._conn = psycopg2.connect(dsn)
        self._conn.autocommit = True

    def pids(self, application: str) -> set[int]:
        """The process ids of the sessions of one application."""
        query = "select coalesce(array_agg(pid), '{}') from pg_stat_activity"
        return set(one(self._conn, f"{query} where application_name = %s", application))

    def end(self, pid: int) -> None:
        """End a session, if it is still there."""
        one(self._conn, "select pg_terminate_backend(%s)", pid)

    def kill(self, *pids: int) -> None:
        """End the sessions, and return when the server has forgotten them."""
        end = "select count(pg_terminate_backend(pid)) from unnest(%s::int[]) pid"
        one(self._conn, end, list(pids))
        left = "select count(*) from pg_stat_activity where pid = any(%s::int[])"
        eventually(lambda: not one(self._conn, left, list(pids)), pids)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._conn.close()
