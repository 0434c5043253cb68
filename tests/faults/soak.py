"""`python -m tests.faults.soak`: pools of every kind under random faults, and nothing is lost.

Threads and tasks move money between accounts, return, drop, nest and kill their connections, are
cancelled and run out of time, while the network, the server and the pools are disturbed by a
schedule that the seed decides.  Again and again everything is healed and the clients pause; then
the pools must be whole within `RECOVERY` seconds.  Whatever is not as it should be is told with the
seed, the last faults and the pool, and makes the exit code 1.
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import faulthandler
import gc
import logging
import os
import random
import statistics
import sys
import threading
import time
import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import psycopg
import psycopg2.extensions
from psycopg.conninfo import conninfo_to_dict

import forebay
import forebay.psycopg2
from forebay._asyncio import AsyncWaiter
from forebay._embedded import EmbeddedPostgres, Setting
from forebay._entry import Entry
from forebay._threads import ThreadWaiter

from . import server_faults
from .soak_clients import ACCOUNTS, MONEY, SETUP, Client, Registry, TaskClient, ThreadClient
from .soak_faults import Network, episode

ACTION_TIMEOUT = 1.0
"""Seconds that the pools give each action in the background."""
SLACK = 2.0
"""Seconds after its timeout in which a client must have its answer, on a machine that is busy."""
RECOVERY = 10.0
"""Seconds after the healing in which every pool must be whole."""
SETTLE = 30.0
"""Seconds after the healing in which every client must have come to an end of what it does."""
PATIENCE = 20.0
"""Seconds for a cancelled task to end: psycopg asks the server to cancel its query, for up to 5."""

# What the server has confirmed outlives its crash, so that every transfer can be counted.
SETTINGS: dict[str, Setting] = {"max_connections": 100, "synchronous_commit": "on"}

WAITERS = ThreadWaiter, AsyncWaiter
CONNECTIONS = psycopg.Connection, psycopg.AsyncConnection, psycopg2.extensions.connection

PARAMETERS = {
    "connect_timeout": 2,
    "tcp_user_timeout": 3000,
    "keepalives_idle": 1,
    "keepalives_interval": 1,
    "keepalives_count": 3,
    "options": "-c statement_timeout=4s -c lock_timeout=1s",
}


@dataclass
class Case:
    """A pool and its clients."""

    name: str
    make: Callable[[Soak, str], Any]
    clients: int
    tasks: bool = False
    pool: Any = None
    crowd: list[Any] = field(default_factory=list)

    def stats(self) -> dict[str, int]:
        """What the pool says of itself."""
        stats: dict[str, int] = self.pool.get_stats()
        return stats


# --- the pools ----------------------------------------------------------------------------------


def restore(conn: Any) -> None:
    """A reset of what clients may have set."""
    with conn.cursor() as cursor:
        cursor.execute("reset all")
    conn.commit()


async def restore_async(conn: psycopg.AsyncConnection[Any]) -> None:
    """The same for asyncio."""
    await conn.execute("reset all")
    await conn.commit()


def listen(conn: psycopg.Connection[Any]) -> None:
    """A configure that listens."""
    conn.execute("listen soak")
    conn.commit()
    conn.add_notify_handler(ignore)


async def listen_async(conn: psycopg.AsyncConnection[Any]) -> None:
    """The same for asyncio."""
    await conn.execute("listen soak")
    await conn.commit()
    conn.add_notify_handler(ignore)


def listen_psycopg2(conn: Any) -> None:
    """The same for psycopg2."""
    with conn.cursor() as cursor:
        cursor.execute("listen soak")
    conn.commit()


def ignore(notification: object) -> None:
    """A handler of notifications."""
    del notification


def plain(soak: Soak, dsn: str) -> Any:
    """Nothing but bounds."""
    del soak
    return forebay.ConnectionPool(
        dsn,
        min_size=4,
        max_size=8,
        open=False,
        leak_threshold=0.8,
        record_lines=True,
        action_timeout=ACTION_TIMEOUT,
    )


def careful(soak: Soak, dsn: str) -> Any:
    """Every callback there is, and fresh parameters for each connection."""
    return forebay.ConnectionPool(
        dsn,
        kwargs=lambda: {"password": soak.password},
        min_size=2,
        max_size=6,
        open=False,
        check=forebay.ConnectionPool.check_connection,
        configure=listen,
        reset=restore,
        max_uses=50,
        max_lifetime=20.0,
        action_timeout=ACTION_TIMEOUT,
    )


def null(soak: Soak, dsn: str) -> Any:
    """A pool that keeps nothing."""
    del soak
    return forebay.NullConnectionPool(
        dsn, max_size=3, open=False, reset=restore, action_timeout=ACTION_TIMEOUT
    )


def async_plain(soak: Soak, dsn: str) -> Any:
    """For asyncio, with keepalive queries and a short queue."""
    del soak
    return forebay.AsyncConnectionPool(
        dsn,
        min_size=4,
        max_size=8,
        open=False,
        max_waiting=6,
        keepalive_interval=0.5,
        configure=listen_async,
        action_timeout=ACTION_TIMEOUT,
    )


def async_careful(soak: Soak, dsn: str) -> Any:
    """For asyncio, every callback there is, in turn."""

    async def password() -> dict[str, Any]:
        await asyncio.sleep(0)
        return {"password": soak.password}

    return forebay.AsyncConnectionPool(
        dsn,
        kwargs=password,
        min_size=1,
        max_size=5,
        open=False,
        check=forebay.AsyncConnectionPool.check_connection,
        reset=restore_async,
        idle_order="fifo",
        max_idle=2.0,
        max_lifetime=15.0,
        leak_threshold=0.5,
        action_timeout=ACTION_TIMEOUT,
    )


def async_null(soak: Soak, dsn: str) -> Any:
    """For asyncio, a pool that keeps nothing."""
    del soak
    return forebay.AsyncNullConnectionPool(
        dsn, max_size=3, open=False, action_timeout=ACTION_TIMEOUT
    )


def psycopg2_plain(soak: Soak, dsn: str) -> Any:
    """For psycopg2, with keepalive queries and bounds on everything."""
    del soak
    return forebay.psycopg2.ConnectionPool(
        dsn,
        min_size=3,
        max_size=6,
        open=False,
        max_uses=100,
        max_waiting=8,
        keepalive_interval=1.0,
        configure=listen_psycopg2,
        action_timeout=ACTION_TIMEOUT,
    )


def psycopg2_careful(soak: Soak, dsn: str) -> Any:
    """For psycopg2, with callbacks."""
    return forebay.psycopg2.ConnectionPool(
        dsn,
        kwargs=lambda: {"password": soak.password},
        min_size=1,
        max_size=4,
        open=False,
        check=forebay.psycopg2.ConnectionPool.check_connection,
        reset=restore,
        idle_order="fifo",
        max_idle=2.0,
        record_lines=True,
        action_timeout=ACTION_TIMEOUT,
    )


def cases() -> list[Case]:
    """The pools of a soak, all at the same time."""
    return [
        Case("plain", plain, clients=10),
        Case("careful", careful, clients=7),
        Case("null", null, clients=4),
        Case("psycopg2-plain", psycopg2_plain, clients=8),
        Case("psycopg2-careful", psycopg2_careful, clients=5),
        Case("async-plain", async_plain, clients=10, tasks=True),
        Case("async-careful", async_careful, clients=7, tasks=True),
        Case("async-null", async_null, clients=4, tasks=True),
    ]


# --- what the pools log, and what nobody catches --------------------------------------------------


class Ear(logging.Handler):
    """Counts what the library warns of; an error of its own is a violation."""

    def __init__(self, soak: Soak) -> None:
        super().__init__()
        self._soak = soak
        self.heard: Counter[str] = Counter()

    def emit(self, record: logging.LogRecord) -> None:
        """Take a record, but of the streams of the proxy: Python 3.11 logs those it cancels."""
        self.heard[f"{record.levelname} {record.msg}"] += 1
        if record.levelno >= logging.ERROR and "StreamReaderProtocol" not in record.getMessage():
            self._soak.violation(f"logged as {record.levelname}: {record.getMessage()}")


# --- the soak -----------------------------------------------------------------------------------


class Soak:
    """One run.

    Args:
        seconds: how long the faults go on; the end comes on top, some 10 s at most.
        seed: of the schedule of faults, and of each client's choices.
        verbose: name each fault on stderr.
    """

    slack = SLACK
    patience = PATIENCE
    pause = 0.05
    """Seconds between two things a client does, at most."""

    def __init__(self, seconds: float, seed: int, *, verbose: bool = False) -> None:
        self.seed = seed
        self.seconds = seconds
        self.verbose = verbose
        self.cases = cases()
        self.registry = Registry(self.violation)
        self.quiet = self.closing = self.ending = False
        self.violations: list[str] = []
        self.started = time.monotonic()
        self.password = ""
        self.faults: Counter[str] = Counter()
        self.recent: deque[str] = deque(maxlen=12)
        self.served: list[float] = []  # seconds after a healing until each pool has served somebody
        self.whole: list[float] = []  # and after the clients have paused, until it is whole
        self.memory: list[tuple[float, int, int]] = []  # when, bytes of the process, blocks
        self.ear = Ear(self)
        self._operations: list[threading.Thread] = []
        self._overdue: set[tuple[str, float]] = set()

    # Telling --------------------------------------------------------------------------------

    def now(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.started

    def tell(self, text: str) -> None:
        """Say what happens."""
        if self.verbose:
            sys.stderr.write(f"{self.now():7.2f} {text}\n")

    def violation(self, what: str, pool: Any = None, error: BaseException | None = None) -> None:
        """Note what must not be, with all that helps to find out why."""
        self.violations.append(what)
        lines = [f"VIOLATION at {self.now():.2f} s of seed {self.seed}: {what}"]
        lines += [f"  pool: {pool!r}"] if pool is not None else []
        lines += [f"  last faults: {'; '.join(self.recent)}"]
        sys.stderr.write("\n".join(lines) + "\n")
        if error is not None and len(self.violations) < 10:
            sys.excepthook(type(error), error, error.__traceback__)

    # The run --------------------------------------------------------------------------------

    def run(self) -> int:
        """Soak; returns the number of violations."""
        with ExitStack() as stack:
            stack.enter_context(self._listening())
            self.server = stack.enter_context(EmbeddedPostgres(SETTINGS))
            self.password = str(conninfo_to_dict(self.server.tcp_dsn)["password"])
            self._set_up()
            self.network = stack.enter_context(Network.before(self.server))
            threads, descriptors = self._held()
            self.started = time.monotonic()
            self._open()
            self._disturb()
            self._close()
            self._expect_nothing_left(threads, descriptors)
        self._expect_flat_memory()
        return len(self.violations)

    @contextmanager
    def _listening(self) -> Iterator[None]:
        """Hear of everything that nobody would catch."""
        loggers = [logging.getLogger(name) for name in ("forebay", "asyncio")]
        before = [logger.propagate for logger in loggers], sys.unraisablehook, threading.excepthook
        for logger in loggers:
            logger.addHandler(self.ear)
            logger.propagate = False
        sys.unraisablehook = lambda hook: self.violation(
            f"unraisable: {hook.err_msg} {hook.exc_value!r} in {hook.object!r}",
            None,
            hook.exc_value,
        )
        threading.excepthook = lambda hook: self.violation(
            f"a thread ends by {hook.exc_value!r}", None, hook.exc_value
        )
        logging.getLogger("psycopg").setLevel(logging.CRITICAL)
        try:
            with warnings.catch_warnings():
                # Connections are dropped on purpose, and psycopg warns of each.
                warnings.simplefilter("ignore", ResourceWarning)
                yield
        finally:
            propagate, sys.unraisablehook, threading.excepthook = before
            logging.getLogger("psycopg").setLevel(logging.NOTSET)
            for logger, value in zip(loggers, propagate, strict=True):
                logger.removeHandler(self.ear)
                logger.propagate = value

    def _open(self) -> None:
        """Open the pools and begin with the clients."""
        dsn = self.network.dsn(self.server.tcp_dsn, **PARAMETERS)
        self._begun = threading.Event()
        for case in self.cases:
            kind = TaskClient if case.tasks else ThreadClient
            case.pool = case.make(self, f"{dsn} application_name=soak-{case.name}")
            case.pool.name = case.name
            names = [f"{case.name}-{number}" for number in range(case.clients)]
            case.crowd = [kind(self, case.pool, name) for name in names]
        self._enter_clients()
        self._loop_thread = threading.Thread(
            target=lambda: asyncio.run(self._run_tasks()), name="soak-loop", daemon=True
        )
        self._loop_thread.start()
        self._threads = []
        for case in self._of_threads():
            case.pool.open()
            self._threads += [client.start() for client in case.crowd]
        self._begun.wait(SETTLE)

    def _set_up(self) -> None:
        with server_faults.admin(self.server) as admin:
            admin.execute(SETUP)

    def _enter_clients(self) -> None:
        names = [client.name for client in self._clients()]
        with server_faults.admin(self.server) as admin:
            admin.execute("insert into tally select unnest(%s::text[]), 0", [names])

    async def _run_tasks(self) -> None:
        """Live in the event loop, from opening the pools there to their end."""
        self.loop = asyncio.get_running_loop()
        self._close_tasks = asyncio.Event()
        tasks = []
        for case in self._of_tasks():
            await case.pool.open()
            tasks += [asyncio.create_task(c.run(), name=c.name) for c in case.crowd]
        self._begun.set()
        await self._close_tasks.wait()
        for case in self._of_tasks():
            await case.pool.close()
        self.ending = True
        _, late = await asyncio.wait(tasks, timeout=SETTLE)
        for task in late:
            self.violation(f"{task} has not come to its end")
        gc.collect()
        await asyncio.sleep(0.1)
        for case in self._of_tasks():
            await case.pool.close()  # what came back late
        left = asyncio.all_tasks() - {asyncio.current_task()}
        if left:
            self.violation(f"tasks are left: {left}")

    def _of_threads(self) -> list[Case]:
        return [case for case in self.cases if not case.tasks]

    def _of_tasks(self) -> list[Case]:
        return [case for case in self.cases if case.tasks]

    def _clients(self) -> list[Client]:
        return [client for case in self.cases for client in case.crowd]

    # Faults ---------------------------------------------------------------------------------

    def _disturb(self) -> None:
        """Alternate between faults and quiet until the time is over."""
        rng = random.Random(f"{self.seed}/schedule")
        number = 0
        self._rest(1.0)
        while not self.memory or self.now() < self.seconds:
            for _ in range(rng.randint(1, 5)):
                number += 1
                self._episode(number)
                self._rest(rng.uniform(0, 1))
            self._heal()

    def _episode(self, number: int) -> None:
        """Let things go wrong together, for a while."""
        faults, rng = episode(self.seed, number)
        with ExitStack() as stack:
            for fault in faults:
                self.faults[fault.__name__] += 1
                self.recent.append(f"{self.now():.2f} s {fault.__name__}")
                self.tell(f"{number}: {fault.__name__}")
                stack.enter_context(fault(self, rng))
                self._rest(rng.uniform(0, 0.3))
            self._rest(rng.uniform(0.1, 2.0))
        self.recent.append(f"{self.now():.2f} s over")

    def operate(self, case: Case, verb: str, *arguments: int) -> None:
        """Have a pool do something, whatever it takes, while the faults go on."""
        self.recent.append(f"{verb}{arguments} of {case.name}")

        def operation() -> None:
            result = getattr(case.pool, verb)(*arguments)
            if case.tasks:
                asyncio.run_coroutine_threadsafe(result, self.loop).result(SETTLE)

        thread = threading.Thread(target=operation, name=f"soak-{verb}", daemon=True)
        thread.start()
        self._operations.append(thread)

    def _rest(self, seconds: float) -> None:
        """Let things go on, and see whether a client waits for too long."""
        until = time.monotonic() + seconds
        while True:
            self._expect_answers()
            left = until - time.monotonic()
            if left <= 0:
                return
            time.sleep(min(0.1, left))

    def _expect_answers(self) -> None:
        for case in self.cases:
            for client in case.crowd:
                asked = client.asked
                if asked is None or (client.name, asked.at) in self._overdue:
                    continue
                late = time.monotonic() - asked.at - asked.timeout
                if late > self.slack:
                    self._overdue.add((client.name, asked.at))
                    self.violation(
                        f"{client.name} asked with a timeout of {asked.timeout} s and still has no"
                        f" answer {late:.2f} s after that",
                        case.pool,
                    )
                    self._show_stack(client)

    def _show_stack(self, client: Client) -> None:
        thread = getattr(client, "thread", None)
        frame = sys._current_frames().get(thread.ident) if thread else None
        while frame is not None:
            sys.stderr.write(f"    {frame.f_code.co_filename}:{frame.f_lineno}\n")
            frame = frame.f_back

    # Quiet ----------------------------------------------------------------------------------

    def _heal(self) -> None:
        """Everything is well again: so must the pools be, soon."""
        self.network.heal()
        healed = time.monotonic()
        self.recent.append(f"{self.now():.2f} s healed")
        late = self._await(RECOVERY, lambda: self._unserved(healed))
        for what, pool in late:
            self.violation(f"{what} {RECOVERY} s after everything was healed", pool)
        self.served.append(time.monotonic() - healed)
        self.quiet = True
        late = self._await(SETTLE, self._restless)
        for what, pool in late:
            self.violation(f"{what} {SETTLE} s after everything was healed", pool)
        if late:
            faulthandler.dump_traceback(all_threads=True)
        rested = time.monotonic()
        for what, pool in self._await(RECOVERY, self._unwhole):
            self.violation(f"{what} {RECOVERY} s after the clients had paused", pool)
            self._show_strays()
        self.whole.append(time.monotonic() - rested)
        self._expect_money()
        self._weigh()
        weight = self.memory[-1][1] / 1e6
        self.tell(
            f"served in {self.served[-1]:.2f} s, whole in {self.whole[-1]:.2f} s, {weight:.1f} MB"
        )
        self.quiet = False

    def _await(
        self, seconds: float, unmet: Callable[[], list[tuple[str, Any]]]
    ) -> list[tuple[str, Any]]:
        """Wait until nothing is unmet; returns what still is after `seconds`."""
        deadline = time.monotonic() + seconds
        while (late := unmet()) and time.monotonic() < deadline:
            self._expect_answers()
            time.sleep(0.02)
        return late

    def _unserved(self, since: float) -> list[tuple[str, Any]]:
        return [
            (f"{case.name} has served nobody", case.pool)
            for case in self.cases
            if max(client.served_at for client in case.crowd) < since
        ]

    def _restless(self) -> list[tuple[str, Any]]:
        busy: list[tuple[str, Any]] = [
            (f"{client.name} has not come to an end", client.pool)
            for client in self._clients()
            if not client.resting
        ]
        self._operations = [thread for thread in self._operations if thread.is_alive()]
        return busy + [(f"{thread.name} has not ended", None) for thread in self._operations]

    def _unwhole(self) -> list[tuple[str, Any]]:
        """What is not as it should be while no client does anything."""
        gc.collect()
        sessions = self._sessions()
        late = []
        for case in self.cases:
            late += [(f"{case.name}: {what}", case.pool) for what in amiss(case, sessions)]
        size = sum(case.stats()["pool_size"] for case in self.cases)
        late += [(what, None) for what in self._kept(size)]
        return late

    def _sessions(self) -> Counter[str]:
        """How many sessions the server has, by application name."""
        with server_faults.admin(self.server) as admin:
            rows = admin.execute(
                "select application_name from pg_stat_activity"
                " where backend_type = 'client backend'"
            )
            return Counter(name for (name,) in rows)

    def _kept(self, size: int) -> list[str]:
        """What the process holds of the pools beyond what they have."""
        late = [f"{len(self.registry)} are registered as lent"] if len(self.registry) else []
        for kinds, number in ((Entry,), size), (CONNECTIONS, size), (WAITERS, 0):
            found = [each for each in gc.get_objects() if isinstance(each, kinds)]
            if len(found) != number:
                names = " or ".join(kind.__name__ for kind in kinds)
                late.append(f"the process holds {len(found)} of {names} and should hold {number}")
        return late

    def _show_strays(self) -> None:
        """Say who refers to connections and entries that no pool knows."""
        known = {entry for case in self.cases for entry in case.pool._forebay.core.entries}
        objects = gc.get_objects()
        strays = [each for each in objects if isinstance(each, Entry) and each not in known]
        sys.stderr.write(f"  entries: {[(each, each.holder, each.lent_at) for each in strays]}\n")
        for conn in objects:
            if isinstance(conn, CONNECTIONS) and getattr(conn, "_forebay_entry", None) not in known:
                entry = getattr(conn, "_forebay_entry", None)
                holder = getattr(entry, "holder", None)
                state = entry and (entry.opened_at, entry.lent_at, entry.began_at, entry.deadline)
                sys.stderr.write(f"  held: {conn} {entry} of {holder}, {state}\n")
                for ident, innermost in sys._current_frames().items():
                    frame: FrameType | None = innermost
                    while frame is not None:
                        if any(value is conn for value in frame.f_locals.values()):
                            sys.stderr.write(f"    by {frame} of {ident}\n")
                        frame = frame.f_back
                for referrer in gc.get_referrers(conn):
                    if not isinstance(referrer, (list, dict)):  # they may be ours, and huge
                        sys.stderr.write(f"    by {str(referrer)[:300]}\n")

    def _expect_money(self) -> None:
        """All the money is there, and each transfer that was confirmed."""
        with server_faults.admin(self.server) as admin:
            row = admin.execute("select sum(balance) from account").fetchone()
            assert row is not None
            rows = admin.execute("select client, transfers from tally").fetchall()
            tally: dict[str, int] = dict(rows)
        if row[0] != ACCOUNTS * MONEY:
            self.violation(f"the accounts have {row[0]} and should have {ACCOUNTS * MONEY}")
        for client in self._clients():
            done = tally[client.name]
            if not client.confirmed <= done <= client.confirmed + client.uncertain:
                self.violation(
                    f"{client.name} knows of {client.confirmed} transfers and of"
                    f" {client.uncertain} unanswered commits; the server, of {done}",
                    client.pool,
                )

    def _weigh(self) -> None:
        trim_memory()
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        size = pages * os.sysconf("SC_PAGE_SIZE")
        self.memory.append((self.now(), size, sys.getallocatedblocks()))

    # The end --------------------------------------------------------------------------------

    def _held(self) -> tuple[set[threading.Thread], int]:
        gc.collect()
        return set(threading.enumerate()), len(_descriptors())

    def _close(self) -> None:
        """Close the pools under their clients, then let these go."""
        self.closing = True
        for case in self._of_threads():
            case.pool.close()
        self.loop.call_soon_threadsafe(self._close_tasks.set)
        self._loop_thread.join(2 * SETTLE)
        self.ending = True
        deadline = time.monotonic() + SETTLE
        for thread in [self._loop_thread, *self._threads]:
            thread.join(max(0.0, deadline - time.monotonic()))
            if thread.is_alive():
                self.violation(f"{thread.name} has not come to its end")
        gc.collect()
        for case in self._of_threads():
            case.pool.close()  # what came back late

    def _expect_nothing_left(self, threads: set[threading.Thread], descriptors: int) -> None:
        """Nothing of the pools is left."""
        deadline = time.monotonic() + RECOVERY
        while (left := self._left(threads, descriptors)) and time.monotonic() < deadline:
            time.sleep(0.05)
        for what in left:
            self.violation(f"{what} after all pools were closed")
            self._show_strays()
        self._expect_money()
        for case in self.cases:
            asked = sum(client.acquires for client in case.crowd)
            if case.stats()["requests_num"] != asked:
                self.violation(
                    f"{case.name} counts {case.stats()['requests_num']} requests, its clients"
                    f" {asked}",
                    case.pool,
                )

    def _left(self, threads: set[threading.Thread], descriptors: int) -> list[str]:
        gc.collect()
        now_threads, now_descriptors = self._held()
        sessions = {n: c for n, c in self._sessions().items() if n.startswith("soak-")}
        left = self._kept(0)
        left += [f"the server has sessions {sessions}"] if sessions else []
        if now_threads - threads:
            left.append(f"threads are left: {now_threads - threads}")
        if now_descriptors > descriptors:
            left.append(f"{now_descriptors} descriptors, {descriptors} before: {_descriptors()}")
        left += [
            f"{case.name} has {value} as {key}"
            for case in self.cases
            for key, value in case.stats().items()
            if value and key in ("pool_size", "requests_waiting", "workers_abandoned")
        ]
        return left

    def thirds(self) -> tuple[float, float, float, float]:
        """Bytes and blocks, in the first and in the last third of the run, as medians."""
        third = max(1, len(self.memory) // 3)
        first, last = self.memory[:third], self.memory[-third:]
        return (
            statistics.median(each[1] for each in first),
            statistics.median(each[1] for each in last),
            statistics.median(each[2] for each in first),
            statistics.median(each[2] for each in last),
        )

    def _expect_flat_memory(self) -> None:
        """The last third of the run needs hardly more memory than the first."""
        before, after, blocks, blocks_after = self.thirds()
        if after - before > MEMORY_GROWTH:
            self.violation(f"memory grows from {before / 1e6:.1f} to {after / 1e6:.1f} MB")
        if blocks_after - blocks > BLOCKS_GROWTH:
            self.violation(f"blocks grow from {blocks:.0f} to {blocks_after:.0f}")

    def report(self) -> str:
        """The figures of the run."""
        before, after, blocks, blocks_after = self.thirds()
        errors: Counter[str] = Counter()
        for client in self._clients():
            errors.update(client.errors)
        served = sum(client.served for client in self._clients())
        asked = sum(client.acquires for client in self._clients())
        transfers = sum(client.confirmed for client in self._clients())
        weight = (
            f"first and last third: {before / 1e6:.1f} and {after / 1e6:.1f} MB"
            f" ({slope(self.memory):+.0f} kB a minute), {blocks:.0f}, {blocks_after:.0f} blocks"
        )
        lines = [
            f"seed {self.seed}, {self.now():.0f} s: {len(self.violations)} violations",
            f"checkouts: {served} of {asked} asked for, {transfers} transfers",
            *(
                f"  {case.name}: {sum(c.served for c in case.crowd)}, latest answer"
                f" {max(c.longest for c in case.crowd):.2f} s after its timeout"
                for case in self.cases
            ),
            f"faults: {sum(self.faults.values())}: {_listed(self.faults)}",
            f"errors seen by clients: {sum(errors.values())}: {_listed(errors)}",
            f"healed until every pool serves: {_spread(self.served)}",
            f"clients pause until all is whole: {_spread(self.whole)}",
            weight,
        ]
        if self.verbose:
            lines.append(f"logged: {_listed(self.ear.heard)}")
        return "\n".join(lines)


MEMORY_GROWTH = 15_000_000
"""Bytes by which the process may be larger in the last third of a run than in the first."""
BLOCKS_GROWTH = 15_000
"""The same for what Python itself has allocated, of some 150 000 blocks."""


def amiss(case: Case, sessions: Counter[str]) -> list[str]:
    """What is wrong with a pool that has nothing to do, by what it says and the server knows."""
    stats = case.stats()
    size, least = stats["pool_size"], stats["pool_min"]
    return [
        what
        for what, wrong in [
            (f"size {size} of at least {least}", size < least),
            (f"size {size} of at most {stats['pool_max']}", size > stats["pool_max"]),
            (f"{stats['pool_available']} of {size} are idle", stats["pool_available"] != size),
            (f"{stats['requests_waiting']} wait", stats["requests_waiting"]),
            (f"{stats['workers_abandoned']} workers abandoned", stats["workers_abandoned"]),
            (
                f"{sessions[f'soak-{case.name}']} sessions of {size}",
                sessions[f"soak-{case.name}"] != size,
            ),
            (f"negative counts: {stats}", min(stats.values()) < 0),
        ]
        if wrong
    ]


def trim_memory() -> None:
    """Give back to the system what is free: short threads leave the heap in pieces."""
    with suppress(AttributeError):  # where there is no glibc
        ctypes.CDLL(None).malloc_trim(0)


def slope(memory: list[tuple[float, int, int]]) -> float:
    """Kilobytes a minute by which the process grew, as a line through all measurements."""
    if len(memory) < 2:
        return 0.0
    fit = statistics.linear_regression([each[0] for each in memory], [each[1] for each in memory])
    return fit.slope * 60 / 1000


def _descriptors() -> list[str]:
    """What is open, one entry for each descriptor but that of the listing."""
    found = []
    for path in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):
            found.append(str(path.readlink()))
    return found


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {number}" for name, number in counts.most_common())


def _spread(seconds: list[float]) -> str:
    if not seconds:
        return "never"
    return (
        f"{statistics.median(seconds):.2f} s in the middle, {max(seconds):.2f} s at most,"
        f" {len(seconds)} times"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Soak and report; 1 if anything was violated."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.soak", description=__doc__)
    parser.add_argument(
        "--seconds", type=float, default=600.0, help="how long the faults go on (%(default)s)"
    )
    parser.add_argument("--seed", type=int, help="repeat the schedule of this one (random)")
    parser.add_argument("--verbose", action="store_true", help="name each fault as it comes")
    chosen = parser.parse_args(arguments)
    seed = random.randrange(1_000_000) if chosen.seed is None else chosen.seed
    sys.stderr.write(f"seed {seed}\n")
    soak = Soak(chosen.seconds, seed, verbose=chosen.verbose)
    violations = soak.run()
    sys.stdout.write(soak.report() + "\n")
    return 1 if violations else 0


if __name__ == "__main__":
    sys.exit(main())
