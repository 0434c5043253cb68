"""Real faults of a running embedded server; every process is named by its id."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import socket
import time
from collections.abc import Iterable, Iterator
from typing import Any

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

from forebay._embedded import EmbeddedPostgres

__all__ = [
    "backends",
    "changed_password",
    "changed_setting",
    "exhausted",
    "idle_session_timeout",
    "kill_backend",
    "suspended",
    "suspended_server",
    "terminate_backends",
]

Session = psycopg.Connection[tuple[Any, ...]]

_SECONDS = 30.0
_POLL_SECONDS = 0.002


def admin(server: EmbeddedPostgres) -> Session:
    """A session of the one who makes the faults, which survives them."""
    # The socket asks for no password, so this works whatever became of it.
    return psycopg.connect(server.dsn, autocommit=True, options="-c idle_session_timeout=0")


def backends(server: EmbeddedPostgres, application_name: str | None = None) -> list[int]:
    """Return the process ids of the clients' sessions, oldest first.

    Args:
        server: the server.
        application_name: only those of this application; None: all.
    """
    query = """
        select pid from pg_stat_activity
        where backend_type = 'client backend' and pid <> pg_backend_pid()
        and application_name = coalesce(%s::text, application_name) order by backend_start
    """
    with admin(server) as session:
        return [pid for (pid,) in session.execute(query, [application_name])]


def terminate_backends(server: EmbeddedPostgres, pids: Iterable[int]) -> None:
    """End sessions by ``pg_terminate_backend``; returns when their processes are gone."""
    pids = list(pids)
    with admin(server) as session:
        session.execute("select pg_terminate_backend(pid) from unnest(%s::int[]) pid", [pids])
    _wait_until_gone(pids)


def kill_backend(server: EmbeddedPostgres, pid: int) -> None:
    """Kill a session's process by SIGKILL; returns when the server accepts connections again.

    The server takes it for a crash and ends all its sessions, not only this one.
    """
    with admin(server) as witness:
        os.kill(pid, signal.SIGKILL)
        _wait_for_end(witness)
    deadline = time.monotonic() + _SECONDS
    while True:
        try:
            admin(server).close()
        except psycopg.OperationalError:
            if time.monotonic() > deadline:
                raise
            time.sleep(_POLL_SECONDS)
        else:
            return


@contextlib.contextmanager
def suspended(*pids: int) -> Iterator[None]:
    """Stop processes by SIGSTOP, and let them go on when the block ends.

    Of sessions, or `EmbeddedPostgres.pid`: then connects succeed and are never answered.
    """
    try:
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        yield
    finally:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


@contextlib.contextmanager
def suspended_server(server: EmbeddedPostgres) -> Iterator[None]:
    """Stop every process of the server, as a machine that hangs, until the block ends."""
    with admin(server) as session, suspended(server.pid):  # nothing is started any more
        rows = session.execute("select pid from pg_stat_activity").fetchall()
        with suspended(*(pid for (pid,) in rows)):
            yield


@contextlib.contextmanager
def exhausted(dsn: str, leave: int = 0) -> Iterator[list[Session]]:
    """Take all the sessions that the server has, until the block ends.

    Args:
        dsn: a superuser's, so that the slots reserved for those are taken too.
        leave: so many are given back at once.

    Yields:
        The sessions that were taken.
    """
    taken: list[Session] = []
    try:
        while len(taken) < 10_000:
            try:
                taken.append(psycopg.connect(dsn, autocommit=True))
            except psycopg.OperationalError as error:
                if "too many clients" not in str(error):
                    raise
                break
        _end_sessions([taken.pop() for _ in range(leave)])
        yield taken
    finally:
        _end_sessions(taken)


@contextlib.contextmanager
def changed_password(server: EmbeddedPostgres) -> Iterator[str]:
    """Change the superuser's password until the block ends.

    Sessions live on; `EmbeddedPostgres.tcp_dsn`, which has the old one, is refused.

    Yields:
        The new password.
    """
    new = secrets.token_hex(8)
    _set_password(server, new)
    try:
        yield new
    finally:
        _set_password(server, str(conninfo_to_dict(server.tcp_dsn)["password"]))


@contextlib.contextmanager
def changed_setting(server: EmbeddedPostgres, name: str, value: str) -> Iterator[None]:
    """Change a setting of the server until the block ends.

    Sessions that begin afterwards have it; one that is idle hears of it at its next query.
    """
    setting = sql.Identifier(name)
    try:
        _reload_with(
            server, sql.SQL("alter system set {} = {}").format(setting, sql.Literal(value))
        )
        yield
    finally:
        _reload_with(server, sql.SQL("alter system reset {}").format(setting))


def idle_session_timeout(
    server: EmbeddedPostgres, seconds: float
) -> contextlib.AbstractContextManager[None]:
    """Let the server end sessions that are idle for `seconds`, until the block ends.

    It goes for sessions that begin inside the block, as `changed_setting` says.
    """
    return changed_setting(server, "idle_session_timeout", f"{round(seconds * 1000)}ms")


def _set_password(server: EmbeddedPostgres, password: str) -> None:
    change = sql.SQL("alter role postgres password {}").format(sql.Literal(password))
    with admin(server) as session:
        session.execute(change)


def _reload_with(server: EmbeddedPostgres, change: sql.Composed) -> None:
    """Change the configuration; returns when new sessions see it."""
    with admin(server) as session:
        before = session.execute("select pg_conf_load_time()").fetchone()
        session.execute(change)
        session.execute("select pg_reload_conf()")
    deadline = time.monotonic() + _SECONDS
    loaded = before
    while loaded == before:
        if time.monotonic() > deadline:
            raise TimeoutError(f"the server did not reload its settings in {_SECONDS:g} s")
        time.sleep(_POLL_SECONDS)
        with admin(server) as session:
            loaded = session.execute("select pg_conf_load_time()").fetchone()


def _end_sessions(sessions: list[Session]) -> None:
    """Close sessions; returns when the server may give their slots to others."""
    pids = [session.info.backend_pid for session in sessions if not session.closed]
    for session in sessions:
        session.close()
    _wait_until_gone(pids)


def _wait_until_gone(pids: Iterable[int]) -> None:
    deadline = time.monotonic() + _SECONDS
    for pid in pids:
        while _exists(pid):
            if time.monotonic() > deadline:
                raise TimeoutError(f"process {pid} is still there after {_SECONDS:g} s")
            time.sleep(_POLL_SECONDS)


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def _wait_for_end(session: Session) -> None:
    """Wait until the server has closed this session's connection."""
    with socket.socket(fileno=os.dup(session.fileno())) as wire:
        wire.settimeout(_SECONDS)
        while wire.recv(4096):
            pass
