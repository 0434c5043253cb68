"""A primary and a real standby, and what a failover does with them."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Self

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from forebay._embedded import EmbeddedPostgres, Setting, StopMode

__all__ = ["Cluster", "Member"]

_CATCH_UP_SECONDS = 30.0
_POLL_SECONDS = 0.005

_SETTINGS: Mapping[str, Setting] = {
    # What was committed is what the standby gets.
    "synchronous_commit": "on",
    "wal_retrieve_retry_interval": "100ms",
}


class Member(EmbeddedPostgres):
    """A server of a cluster: on its own it is a primary.

    Args:
        settings: server settings.
        primary: begin as its standby; it must run.
    """

    def __init__(
        self, settings: Mapping[str, Setting], primary: EmbeddedPostgres | None = None
    ) -> None:
        super().__init__(settings)
        self._primary = primary

    def follow(self, primary: EmbeddedPostgres) -> None:
        """Become a standby of `primary`, at the same address, with a fresh copy of its data."""
        self.stop("immediate")
        shutil.rmtree(self.data)
        self._primary = primary
        self._make_data()
        self.start()

    def _make_data(self) -> None:
        if self._primary is None:
            super()._make_data()
            return
        # The copy has the passwords, too.
        self._password = str(conninfo_to_dict(self._primary.tcp_dsn)["password"])
        self._run_program(
            "pg_basebackup",
            *("--pgdata", str(self.data), "--dbname", self._primary.dsn, "--no-password"),
            *("--wal-method", "stream", "--checkpoint", "fast"),
            *("--no-sync", "--write-recovery-conf"),
        )


class Cluster:
    """A primary with one streaming standby; a context manager that runs both.

    Args:
        settings: settings of both servers, over those of every embedded server.
    """

    primary: Member
    """Who takes writes; after `promote` the former standby."""
    standby: Member
    """The other one."""

    def __init__(self, settings: Mapping[str, Setting] | None = None) -> None:
        self._settings = {**_SETTINGS, **(settings or {})}

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self.primary = stack.enter_context(Member(self._settings))
            self.standby = stack.enter_context(Member(self._settings, self.primary))
            self._members = self.primary, self.standby
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stack.close()

    def dsn(self, **parameters: Any) -> str:
        """Return the conninfo over TCP that names both servers, with `parameters` set.

        The order of the two stays, whoever is primary.
        """
        return make_conninfo(
            self.primary.tcp_dsn,
            host=",".join("127.0.0.1" for _ in self._members),
            port=",".join(str(member.port) for member in self._members),
            **parameters,
        )

    def wait_until_caught_up(self) -> None:
        """Wait until the standby has replayed all that the primary has committed.

        Raises:
            TimeoutError: when it does not get there.
        """
        written = _value(self.primary, "select pg_current_wal_flush_lsn()")
        query = f"select pg_last_wal_replay_lsn() >= '{written}'"
        deadline = time.monotonic() + _CATCH_UP_SECONDS
        while not _value(self.standby, query):
            if time.monotonic() > deadline:
                raise TimeoutError(f"the standby did not reach {written} in {_CATCH_UP_SECONDS} s")
            time.sleep(_POLL_SECONDS)

    def stop_primary(self, mode: StopMode = "fast") -> None:
        """Stop the primary; ``fast`` hands the standby all that was committed."""
        self.primary.stop(mode)

    def promote(self) -> None:
        """Make the standby the primary; returns when it takes writes.

        The former primary is left alone: if it runs, there are two.
        """
        if not _value(self.standby, "select pg_promote()"):
            raise TimeoutError(f"the standby was not promoted:\n{self.standby.log_tail()}")
        self.primary, self.standby = self.standby, self.primary

    def demote(self) -> None:
        """Bring the former primary back, at its address, as the standby of the one of now."""
        self.standby.stop("fast")
        self.standby.follow(self.primary)

    def switch_over(self, mode: StopMode = "fast") -> None:
        """Let the two servers change places."""
        self.stop_primary(mode)
        self.promote()
        self.demote()


def _value(server: EmbeddedPostgres, query: str) -> Any:
    with psycopg.connect(server.dsn, autocommit=True) as session:
        row = session.execute(query.encode()).fetchone()
    assert row is not None
    return row[0]
