"""The story of the demo, from the boot of the server to the exit code."""

from __future__ import annotations

import logging
import os
import secrets
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import Connection
from rich.console import Console

from forebay import AsyncConnectionPool, ConnectionPool
from forebay._embedded import EmbeddedPostgres, EmbeddedPostgresError, ExistingServer, server_or_dsn

from .bank import Bank
from .crowd import (
    AsyncConnectionPerTransaction,
    AsyncSource,
    Client,
    ConnectionPerTransaction,
    Crowd,
    Source,
    TaskCrowd,
    ThreadCrowd,
)
from .load import Load
from .outage import Outage
from .proof import Finding, check_ledger, check_money, check_sessions, check_transfers
from .report import check_load, comparison_rows, outage_rows, pooled_rows
from .screen import LiveScreen, PlainScreen, Report, Screen

REAP_TIMEOUT = 5.0
"""Seconds the server has to forget the sessions of the closed pools."""


@dataclass(frozen=True, slots=True)
class Options:
    """What `forebay demo` was asked for; `connections` are shared by threads and tasks."""

    seconds: float
    threads: int
    tasks: int
    connections: int


class DemoError(Exception):
    """The demo could not run, for a reason outside the pools; the text says which."""


def run_demo(options: Options) -> int:
    """Run the demo on standard output; return the exit code, 0 only if everything is proven."""
    console = Console(highlight=False)
    drawable = console.is_terminal and not console.is_dumb_terminal
    screen: Screen = PlainScreen(console)
    if drawable and console.encoding.startswith("utf"):
        screen = LiveScreen(console)
    # Under way the pools warn of every connection they lose; here the screen tells it.
    logging.getLogger("forebay").addHandler(logging.NullHandler())
    try:
        with screen:
            screen.begin("forebay demo")
            screen.say("starting PostgreSQL ...")
            with server_or_dsn() as server:
                return Demo(options, server, screen).run()
    except (EmbeddedPostgresError, psycopg.Error) as error:
        raise DemoError(str(error)) from error


class Demo:
    """One run: the bank, its clients, and what has become of them."""

    def __init__(
        self, options: Options, server: EmbeddedPostgres | ExistingServer, screen: Screen
    ) -> None:
        # The same for the bank's schema and the pools' sessions: of this run alone.
        name = f"forebay-demo-{os.getpid()}-{secrets.token_hex(3)}"
        self._options = options
        self._server = server
        self._screen = screen
        self._application_name = name
        self._bank = Bank(name)
        numbers = range(1, options.threads + options.tasks + 1)
        clients = [Client(number, self._bank.accounts) for number in numbers]
        self._thread_clients = clients[: options.threads]
        self._task_clients = clients[options.threads :]

    def run(self) -> int:
        """Open the bank, let the crowds work, prove, compare, report; return the exit code."""
        self._open_bank()
        try:
            load = Load(
                self._pooled(),
                self._screen,
                self._options.seconds,
                Outage(self._server, self._application_name),
            )
            load.run()
            findings = check_load(load) + self._check_server()
            comparison = self._compare()
            findings += check_load(comparison)
        finally:
            self._leave()
        sections = [pooled_rows(load), outage_rows(load), comparison_rows(load, comparison)]
        self._screen.report(Report(self._columns(), sections, findings))
        return 0 if all(finding.holds for finding in findings) else 1

    # --- the server -----------------------------------------------------------------------

    def _connect(self) -> Connection[Any]:
        return psycopg.connect(self._server.dsn, autocommit=True)

    def _open_bank(self) -> None:
        with self._connect() as conn:
            self._bank.create(conn)
            version = conn.info.parameter_status("server_version") or "of unknown version"
        self._screen.say(
            f"... PostgreSQL {version.split()[0]}; the bank opens: {self._bank.accounts:,} "
            f"accounts, {self._bank.coins:,} coins"
        )

    def _leave(self) -> None:
        """Leave nothing behind on a server that is not ours."""
        if not self._server.restartable:
            with self._connect() as conn:
                self._bank.drop(conn)

    def _check_server(self) -> list[Finding]:
        with self._connect() as conn:
            sessions = check_sessions(conn, self._application_name, REAP_TIMEOUT)
            books = self._bank.read_books(conn)
        clients = self._thread_clients + self._task_clients
        return [
            check_money(books, self._bank.coins),
            check_ledger(books),
            check_transfers(books, clients),
            sessions,
        ]

    # --- the crowds -----------------------------------------------------------------------

    def _sizes(self) -> tuple[int, int]:
        """How many connections the threads and the tasks have."""
        for_tasks = self._options.connections // 2
        return self._options.connections - for_tasks, for_tasks

    def _pooled(self) -> list[Crowd]:
        settings = {"application_name": self._application_name}
        for_threads, for_tasks = self._sizes()

        def threads_pool() -> ConnectionPool:
            return ConnectionPool(
                self._server.dsn, kwargs=settings, min_size=for_threads, open=False, name="threads"
            )

        def tasks_pool() -> AsyncConnectionPool:
            return AsyncConnectionPool(
                self._server.dsn, kwargs=settings, min_size=for_tasks, open=False, name="tasks"
            )

        return self._crowds(threads_pool, tasks_pool)

    def _compare(self) -> Load:
        """Let the same clients do the same work, each transaction on a connection of its own."""
        seconds = min(5.0, max(1.0, self._options.seconds / 4))
        self._screen.begin("the same without a pool")
        self._screen.say(
            "the same clients, a connection per transaction, at most "
            f"{self._options.connections} at once"
        )
        dsn = self._server.dsn
        for_threads, for_tasks = self._sizes()
        crowds = self._crowds(
            lambda: nullcontext(ConnectionPerTransaction(dsn, for_threads)),
            lambda: nullcontext(AsyncConnectionPerTransaction(dsn, for_tasks)),
        )
        load = Load(crowds, self._screen, seconds)
        load.run()
        return load

    def _crowds(
        self,
        threads_source: Callable[[], AbstractContextManager[Source]],
        tasks_source: Callable[[], AbstractAsyncContextManager[AsyncSource]],
    ) -> list[Crowd]:
        for_threads, for_tasks = self._sizes()
        names = self._columns()
        return [
            ThreadCrowd(names[0], self._thread_clients, self._bank, for_threads, threads_source),
            TaskCrowd(names[1], self._task_clients, self._bank, for_tasks, tasks_source),
        ]

    def _columns(self) -> list[str]:
        return [f"{self._options.threads} threads", f"{self._options.tasks} tasks", "together"]
