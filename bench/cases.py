"""What is measured: each case is a loop over one pool, timed from inside.

The loops are written out by hand, once per case: a call per turn would cost as much as some of
the pools do. Nothing is subtracted for the loop itself (about 10 ns a turn).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from statistics import quantiles
from threading import Barrier, Lock
from time import perf_counter_ns

from .peers import PSYCOPG, PSYCOPG2, PSYCOPG2_POOL, Match, TaskPool, ThreadPool

Sample = dict[str, float]
"""One timed stretch: the value of each of the case's measures."""

NS = "ns"
RATE = "per second"
WAIT_P50 = "wait p50, µs"
WAIT_P99 = "wait p99, µs"

LOAD_THREADS = 16
LOAD_TASKS = 100


@dataclass(frozen=True)
class Case:
    """What every case has.

    `repeats` is the number of turns in one timed stretch (for each client, under load).
    `target` is the ratio to the yardstick of `match` to reach, or `None` where none is set.
    """

    name: str
    title: str
    repeats: int
    target: float | None = None
    load: bool = False
    match: Match = PSYCOPG


@dataclass(frozen=True, kw_only=True)
class ThreadCase(Case):
    """A case for pools for threads."""

    measure: Callable[[ThreadPool, int], Sample]


@dataclass(frozen=True, kw_only=True)
class TaskCase(Case):
    """A case for pools for asyncio."""

    measure: Callable[[TaskPool, int], Awaitable[Sample]]


def per_turn(began: int, ended: int, repeats: int) -> Sample:
    """Nanoseconds per turn of a loop."""
    return {NS: (ended - began) / repeats}


def floor(repeats: int) -> Sample:
    """The least a locked pool can do: take from a deque and give back, a lock around each."""
    lock = Lock()
    idle = deque([object()])
    began = perf_counter_ns()
    for _ in range(repeats):
        with lock:
            entry = idle.pop()
        with lock:
            idle.append(entry)
    return per_turn(began, perf_counter_ns(), repeats)


def thread_lease(pool: ThreadPool, repeats: int) -> Sample:
    """`with pool.connection()` around nothing."""
    began = perf_counter_ns()
    for _ in range(repeats):
        with pool.connection():
            pass
    return per_turn(began, perf_counter_ns(), repeats)


def thread_pair(pool: ThreadPool, repeats: int) -> Sample:
    """`getconn()` and `putconn()` in turn."""
    began = perf_counter_ns()
    for _ in range(repeats):
        conn = pool.getconn()
        pool.putconn(conn)
    return per_turn(began, perf_counter_ns(), repeats)


async def task_lease(pool: TaskPool, repeats: int) -> Sample:
    """`async with pool.connection()` around nothing."""
    began = perf_counter_ns()
    for _ in range(repeats):
        async with pool.connection():
            pass
    return per_turn(began, perf_counter_ns(), repeats)


async def task_pair(pool: TaskPool, repeats: int) -> Sample:
    """`await getconn()` and `await putconn()` in turn."""
    began = perf_counter_ns()
    for _ in range(repeats):
        conn = await pool.getconn()
        await pool.putconn(conn)
    return per_turn(began, perf_counter_ns(), repeats)


def under_load(took: int, waits: list[int]) -> Sample:
    """Requests per second over `took` ns, and how long each waited for its connection."""
    percentiles = quantiles(waits, n=100, method="inclusive")
    return {
        RATE: len(waits) / took * 1e9,
        WAIT_P50: percentiles[49] / 1e3,
        WAIT_P99: percentiles[98] / 1e3,
    }


def thread_load(pool: ThreadPool, repeats: int) -> Sample:
    """Many threads on few connections, each asking for `select 1` again and again."""
    start = Barrier(LOAD_THREADS + 1)

    def client() -> list[int]:
        waits = []
        start.wait()
        for _ in range(repeats):
            asked = perf_counter_ns()
            with pool.connection() as conn:
                waits.append(perf_counter_ns() - asked)
                conn.execute("select 1")
        return waits

    with ThreadPoolExecutor(LOAD_THREADS) as threads:
        clients = [threads.submit(client) for _ in range(LOAD_THREADS)]
        start.wait()
        began = perf_counter_ns()
        waits = [wait for each in clients for wait in each.result()]
        took = perf_counter_ns() - began
    return under_load(took, waits)


async def task_load(pool: TaskPool, repeats: int) -> Sample:
    """Many tasks on few connections, each asking for `select 1` again and again."""

    async def client() -> list[int]:
        waits = []
        for _ in range(repeats):
            asked = perf_counter_ns()
            async with pool.connection() as conn:
                waits.append(perf_counter_ns() - asked)
                await conn.execute("select 1")
        return waits

    began = perf_counter_ns()
    async with asyncio.TaskGroup() as tasks:
        clients = [tasks.create_task(client()) for _ in range(LOAD_TASKS)]
    took = perf_counter_ns() - began
    return under_load(took, [wait for each in clients for wait in each.result()])


CASES: tuple[ThreadCase | TaskCase, ...] = (
    ThreadCase(
        "threads-connection", "with pool.connection(): pass", 5000, 0.32, measure=thread_lease
    ),
    ThreadCase("threads-getconn", "getconn() + putconn()", 5000, 0.45, measure=thread_pair),
    TaskCase(
        "asyncio-connection", "async with pool.connection(): pass", 5000, 0.18, measure=task_lease
    ),
    TaskCase("asyncio-getconn", "await getconn() + putconn()", 5000, 0.22, measure=task_pair),
    ThreadCase(
        "threads-load", f"{LOAD_THREADS} threads, select 1", 100, load=True, measure=thread_load
    ),
    ThreadCase(
        "psycopg2.pool-getconn",
        "psycopg2.pool: getconn() + putconn()",
        5000,
        1.3,
        match=PSYCOPG2,
        measure=thread_pair,
    ),
    ThreadCase(
        "psycopg2_pool-getconn",
        "psycopg2_pool: getconn() + putconn()",
        5000,
        0.75,
        match=PSYCOPG2_POOL,
        measure=thread_pair,
    ),
    TaskCase("asyncio-load", f"{LOAD_TASKS} tasks, select 1", 20, load=True, measure=task_load),
)
