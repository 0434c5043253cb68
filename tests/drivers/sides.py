"""The two libraries under one interface, for tests that are told once."""

from __future__ import annotations

import select
import time
from typing import Any

import psycopg
import psycopg2

from forebay.drivers.psycopg import SyncPsycopg
from forebay.drivers.psycopg2 import SyncPsycopg2


class Side:
    """A library, its driver, and the connections a test has opened; these are closed in the end."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.library: Any = {"psycopg": psycopg, "psycopg2": psycopg2}[name]
        self.driver: Any = {"psycopg": SyncPsycopg, "psycopg2": SyncPsycopg2}[name]()
        self._opened: list[Any] = []

    def connect(self, dsn: str, **options: Any) -> Any:
        """Open a connection with the library alone, in autocommit."""
        return self._keep(self.library.connect(dsn, **options))

    def connect_by_driver(self, dsn: str, **options: Any) -> Any:
        """Open a connection with the driver."""
        connection_class = psycopg.Connection if self.name == "psycopg" else None
        try:
            self.driver.connect(connection_class, dsn, options).send(None)
        except StopIteration as done:
            return self._keep(done.value)
        raise AssertionError("the driver of a library for threads has suspended")

    def failure(self, dsn: str, **options: Any) -> Exception:
        """How connecting with the driver fails."""
        try:
            self.connect_by_driver(dsn, **options)
        except Exception as error:
            return error
        raise AssertionError("the connection was expected to fail")

    def close(self) -> None:
        """Close the connections."""
        for conn in self._opened:
            conn.close()

    def value(self, conn: Any, query: str) -> Any:
        """The first value that a query gives, or None."""
        cursor = conn.cursor()
        cursor.execute(query)
        row = cursor.fetchone() if cursor.description else None
        return row[0] if row else None

    def keep_notices(self, conn: Any) -> list[str]:
        """A list that gets the text of each notice that reaches the user."""
        if self.name == "psycopg2":
            kept: list[str] = conn.notices
            return kept
        texts: list[str] = []
        conn.add_notice_handler(lambda diag: texts.append(diag.message_primary))
        return texts

    def notified(self, conn: Any) -> list[str]:
        """The payloads that the user gets, who asks as the library's manual says."""
        if self.name == "psycopg":
            return [notify.payload for notify in conn.notifies(timeout=0)]
        conn.poll()
        return [notify.payload for notify in conn.notifies]

    def kept(self, conn: Any) -> list[str]:
        """The payloads that the library has by now, and reads nothing more."""
        kept = conn._notifies_backlog if self.name == "psycopg" else conn.notifies
        return [notify.payload for notify in kept]

    def _keep(self, conn: Any) -> Any:
        self._opened.append(conn)
        conn.autocommit = True
        return conn


def await_input(conn: Any) -> None:
    """Wait until a connection's socket has something to read, and read nothing."""
    poller = select.poll()
    poller.register(conn.fileno(), select.POLLIN)
    assert poller.poll(10_000), "nothing came within 10 seconds"


def await_idle(dsn: str, *conns: Any) -> None:
    """Wait until the servers of connections wait for a command: one that is busy says no farewell.

    A server answers a moment before it does so.
    """
    pids = [conn.info.backend_pid for conn in conns]
    waiting = "select count(*) from pg_stat_activity where wait_event='ClientRead' and pid=any(%s)"
    deadline = time.monotonic() + 10
    with psycopg.connect(dsn, autocommit=True) as admin:
        while admin.execute(waiting, [pids]).fetchone() != (len(conns),):
            assert time.monotonic() < deadline, "not idle within 10 seconds"
