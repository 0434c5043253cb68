"""`python -m tests.faults.sigint`: Ctrl-C at random moments of loops that use a pool.

In each round a thread sends this process SIGINT at a moment that the seed decides, while the main
thread lends and returns connections.  Then the pool must be whole: every connection that it has is
idle, the server has as many sessions, at most one was replaced, and `max_size` clients are served
at once.  Prints as JSON what happened and where the interrupts landed; the exit code is 1 if a pool
was not whole.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import logging
import os
import random
import signal
import sys
import threading
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AsyncExitStack, ExitStack, contextmanager, nullcontext
from pathlib import Path
from types import TracebackType
from typing import Any

import psycopg

import forebay
import forebay.psycopg2
from forebay._embedded import EmbeddedPostgres

NAME = "sigint"
MAX_SIZE = 3
SECONDS = 5.0
"""In which a pool must be whole after an interrupt."""
LATEST = 0.03
"""Seconds from the beginning of a round to its interrupt, at most."""
STALE = 2.0
"""Seconds after which an interrupt that ended no loop counts as swallowed by a finalizer."""


class Round:
    """One interrupt: a thread that sends it, and when it did."""

    def __init__(self, delay: float) -> None:
        self.sent_at = float("inf")
        self._delay = delay
        threading.Thread(target=self._send, daemon=True).start()

    def _send(self) -> None:
        time.sleep(self._delay)
        self.sent_at = time.monotonic()
        os.kill(os.getpid(), signal.SIGINT)

    @property
    def over(self) -> bool:
        """Whether the interrupt has come to nothing."""
        return time.monotonic() > self.sent_at + STALE


# --- loops for threads ------------------------------------------------------------------------


def leases(pool: Any, this: Round) -> None:
    """Blocks without a query."""
    while not this.over:
        with pool.connection():
            pass


def queries(pool: Any, this: Round) -> None:
    """Blocks with a query."""
    while not this.over:
        with pool.connection() as conn, conn.cursor() as cursor:
            cursor.execute("select 1")


def bare(pool: Any, this: Round) -> None:
    """getconn() and putconn()."""
    while not this.over:
        conn = pool.getconn()
        try:
            pass
        finally:
            pool.putconn(conn)


def bare_queries(pool: Any, this: Round) -> None:
    """getconn(), a query in a transaction that is left open, and putconn()."""
    while not this.over:
        conn = pool.getconn()
        try:
            with conn.cursor() as cursor:
                cursor.execute("select 1")
        finally:
            pool.putconn(conn)


def crowded(pool: Any, this: Round) -> None:
    """Blocks while other threads have every connection most of the time."""
    leases(pool, this)


@contextmanager
def company(pool: Any) -> Iterator[None]:
    """Other threads, which have every connection most of the time."""
    leaving = threading.Event()

    def other() -> None:
        while not leaving.is_set():
            with pool.connection():
                time.sleep(0.001)

    crowd = [threading.Thread(target=other) for _ in range(MAX_SIZE + 1)]
    for thread in crowd:
        thread.start()
    try:
        yield
    finally:
        leaving.set()
        for thread in crowd:
            thread.join()


# --- loops for asyncio ------------------------------------------------------------------------


async def async_leases(pool: Any) -> None:
    """Blocks without a query."""
    while True:
        async with pool.connection():
            await asyncio.sleep(0)


async def async_queries(pool: Any) -> None:
    """Blocks with a query."""
    while True:
        async with pool.connection() as conn:
            await conn.execute("select 1")


async def async_bare(pool: Any) -> None:
    """getconn(), a query in a transaction that is left open, and putconn()."""
    while True:
        conn = await pool.getconn()
        try:
            await conn.execute("select 1")
        finally:
            await pool.putconn(conn)


async def async_crowded(pool: Any) -> None:
    """More tasks than connections."""
    async with asyncio.TaskGroup() as group:
        for _ in range(2 * MAX_SIZE):
            group.create_task(async_queries(pool))


THREADS: dict[str, Callable[[Any, Round], None]] = {
    each.__name__: each for each in (leases, queries, bare, bare_queries, crowded)
}
TASKS: dict[str, Callable[[Any], Any]] = {
    each.__name__: each for each in (async_leases, async_queries, async_bare, async_crowded)
}
POOLS: dict[str, Any] = {
    "psycopg": forebay.ConnectionPool,
    "psycopg2": forebay.psycopg2.ConnectionPool,
}


# --- what must be -------------------------------------------------------------------------------


class Ear(logging.Handler):
    """Counts what the library says."""

    def __init__(self) -> None:
        super().__init__()
        self.heard: Counter[str] = Counter()

    def emit(self, record: logging.LogRecord) -> None:
        """Take a record, but of what the loops do themselves."""
        if "rolling back returned connection" not in record.msg:
            self.heard[f"{record.levelname} {record.msg}"] += 1


class Rounds:
    """All rounds of one loop.

    Args:
        dsn: conninfo of the server.
        seed: of the moments.
    """

    def __init__(self, dsn: str, seed: str) -> None:
        self.dsn = f"{dsn} application_name={NAME}"
        self.rng = random.Random(seed)
        self.landed: Counter[str] = Counter()
        self.replaced = 0
        self.wrong: list[str] = []
        self._admin = psycopg.connect(dsn, autocommit=True)

    def close(self) -> None:
        """Leave the server."""
        self._admin.close()

    def sessions(self) -> set[int]:
        """The process ids of the pool's sessions."""
        query = "select pid from pg_stat_activity where application_name = %s"
        return {pid for (pid,) in self._admin.execute(query, [NAME])}

    def in_threads(self, kind: Any, loop: Callable[[Any, Round], None], rounds: int) -> None:
        """Interrupt a loop of the main thread again and again; the pool is the same."""
        with kind(self.dsn, min_size=MAX_SIZE, max_size=MAX_SIZE, open=False, name=NAME) as pool:
            pool.wait()
            before = self.sessions()
            for _ in range(rounds):
                self._interrupt(pool, loop)
                self._expect_all(pool)
                before = self._expect_whole(pool, before)

    def _interrupt(self, pool: Any, loop: Callable[[Any, Round], None]) -> None:
        with company(pool) if loop is crowded else nullcontext():
            try:
                this = Round(self.rng.uniform(0, LATEST))
                loop(pool, this)
            except KeyboardInterrupt as error:
                self.landed[_place(error.__traceback__)] += 1
            else:
                self.landed["a finalizer, which cannot raise"] += 1

    def in_asyncio(self, loop: Callable[[Any], Any], rounds: int) -> None:
        """Interrupt `asyncio.run()` again and again; each round has its pool."""
        for _ in range(rounds):
            try:
                asyncio.run(self._round(loop))
            except KeyboardInterrupt:
                pass
            else:
                self.wrong.append("asyncio.run() has not raised KeyboardInterrupt")

    async def _round(self, loop: Callable[[Any], Any]) -> None:
        pool: Any = forebay.AsyncConnectionPool(
            self.dsn, min_size=MAX_SIZE, max_size=MAX_SIZE, open=False, name=NAME
        )
        async with pool:
            await self._await_whole(pool)  # the sessions of the round before are gone
            before = self.sessions()
            Round(self.rng.uniform(0, LATEST))
            try:
                await loop(pool)
            except asyncio.CancelledError as error:
                self.landed[_place(error.__traceback__)] += 1
                # The pool first: then the interrupt may go on.
                await self._check_async(pool, before)
                raise

    async def _check_async(self, pool: Any, before: set[int]) -> None:
        await self._await_whole(pool)
        self._expect_whole(pool, before)
        async with AsyncExitStack() as stack:
            for _ in range(MAX_SIZE):
                conn = await stack.enter_async_context(pool.connection(SECONDS))
                await conn.execute("select 1")

    async def _await_whole(self, pool: Any) -> None:
        deadline = time.monotonic() + SECONDS
        while self._amiss(pool) and time.monotonic() < deadline:
            await asyncio.sleep(0.01)

    def _expect_whole(self, pool: Any, before: set[int]) -> set[int]:
        """Wait until the pool is whole; returns its sessions."""
        deadline = time.monotonic() + SECONDS
        while (wrong := self._amiss(pool)) and time.monotonic() < deadline:
            time.sleep(0.01)
        self.wrong += wrong
        after = self.sessions()
        self.replaced += len(before - after)
        if len(before - after) > 1:
            self.wrong.append(f"one interrupt has cost {len(before - after)} sessions")
        return after

    def _amiss(self, pool: Any) -> list[str]:
        gc.collect()
        stats = pool.get_stats()
        number = len(self.sessions())
        whole = stats["pool_size"] == stats["pool_available"] == MAX_SIZE == number
        quiet = not stats["requests_waiting"] and not stats["workers_abandoned"]
        return [] if whole and quiet else [f"{pool!r}, {number} sessions, {stats}"]

    def _expect_all(self, pool: Any) -> None:
        """As many clients as there may be connections are served at once."""
        with ExitStack() as stack:
            for _ in range(MAX_SIZE):
                conn = stack.enter_context(pool.connection(SECONDS))
                with conn.cursor() as cursor:
                    cursor.execute("select 1")


def _place(trace: TracebackType | None) -> str:
    """Where an interrupt landed: the innermost function of this package, and whose code it ran."""
    frames = traceback.extract_tb(trace)
    ours = [frame for frame in frames if "forebay" in Path(frame.filename).parts]
    last = frames[-1]
    inner = f"{Path(last.filename).name} {last.name}"
    if not ours:
        return inner if "psycopg" not in last.filename else "the driver"
    name = f"forebay {Path(ours[-1].filename).name} {ours[-1].name}"
    return name if ours[-1] is last else f"{name}, in {inner}"


def play(dsn: str, loop: str, driver: str, rounds: int, seed: int) -> dict[str, Any]:
    """Play the rounds of one loop; returns what is printed."""
    ear = Ear()
    logging.getLogger("forebay").addHandler(ear)
    tests = Rounds(dsn, f"{seed}/{loop}/{driver}")
    try:
        if loop in TASKS:
            tests.in_asyncio(TASKS[loop], rounds)
        else:
            tests.in_threads(POOLS[driver], THREADS[loop], rounds)
    finally:
        tests.close()
        logging.getLogger("forebay").removeHandler(ear)
    said = sum(ear.heard.values())
    if said > 2 * rounds or any(text.startswith("ERROR") for text in ear.heard):
        tests.wrong.append(f"the library has said {dict(ear.heard)}")
    return {
        "loop": loop,
        "driver": driver,
        "seed": seed,
        "interrupts": sum(tests.landed.values()),
        "landed": dict(tests.landed.most_common()),
        "replaced": tests.replaced,
        "said": dict(ear.heard),
        "wrong": tests.wrong,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Play and print; 1 if a pool was not whole."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.sigint", description=__doc__)
    parser.add_argument("--loop", action="append", choices=[*THREADS, *TASKS], help="all of them")
    parser.add_argument("--driver", action="append", choices=[*POOLS], help="all of them")
    parser.add_argument("--rounds", type=int, default=30, help="of each loop (%(default)s)")
    parser.add_argument("--seed", type=int, default=4, help="of the moments (%(default)s)")
    parser.add_argument("--dsn", help="a server that runs (an embedded one)")
    chosen = parser.parse_args(arguments)
    warnings.simplefilter("ignore", ResourceWarning)  # psycopg's, of the one that is replaced
    # A handler that is not Python's own would keep asyncio.run() from having its own.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    wrong = 0
    with ExitStack() as stack:
        dsn = chosen.dsn or stack.enter_context(EmbeddedPostgres()).dsn
        for loop in chosen.loop or [*THREADS, *TASKS]:
            drivers = ["psycopg"] if loop in TASKS else chosen.driver or [*POOLS]
            for driver in drivers:
                result = play(dsn, loop, driver, chosen.rounds, chosen.seed)
                sys.stdout.write(json.dumps(result) + "\n")
                wrong += len(result["wrong"])
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
