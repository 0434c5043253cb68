"""Many threads over one forebay.psycopg2_pool, while sessions are killed."""

from __future__ import annotations

import os
import random
import threading
import time
from collections import Counter
from typing import Any

import psycopg2

from forebay.psycopg2_pool import PoolError, ThreadedConnectionPool

from .harness import Admin, eventually, one

#: Seconds of the mixed run; the suite's is short.
SECONDS = float(os.environ.get("FOREBAY_MIXED_SECONDS", "4"))

THREADS = 64


class Crowd:
    """Threads that use a pool in every way its users do, and watch that each is alone."""

    def __init__(self, pool: Any) -> None:
        self.pool = pool
        self.ends = time.monotonic() + SECONDS
        self.done: Counter[str] = Counter()
        self.faults: list[object] = []
        self._holders: Counter[int] = Counter()
        self._lock = threading.Lock()

    def client(self) -> None:
        """Use the pool until the time is over."""
        while time.monotonic() < self.ends:
            way = random.choice(
                (self.put_back, self.leave_to_the_block, self.two_blocks, self.drop)
            )
            try:
                way()
                self.done[way.__name__] += 1
            except PoolError as error:
                self.done["refused"] += 1
                if "no more connections" not in str(error):
                    self.done["withdrawn"] += 1
                time.sleep(random.random() / 100)
            except psycopg2.Error:  # a DatabaseError, if the session ends without a last word
                self.done["broken"] += 1
            except BaseException as error:
                self.faults.append(error)
                raise

    def put_back(self) -> None:
        """Take, use, return."""
        conn = self.pool.getconn()
        try:
            self.work(conn)
        finally:
            self.pool.putconn(conn)

    def leave_to_the_block(self) -> None:
        """Let the block return it; sometimes the name outlives the block."""
        with self.pool.getconn() as conn:
            self.work(conn)
        if random.random() < 0.5:
            time.sleep(random.random() / 200)

    def two_blocks(self) -> None:
        """A released program: two transactions, then a return."""
        conn = self.pool.getconn()
        try:
            with conn:
                self.work(conn)
            time.sleep(random.random() / 500)
            with conn:
                self.work(conn)
        finally:
            self.pool.putconn(conn)

    def drop(self) -> None:
        """Forget a connection, as a careless client does."""
        if random.random() < 0.05:
            self.work(self.pool.getconn())

    def work(self, conn: Any) -> None:
        """Run a transaction in which nobody else has a part."""
        session = conn.info.backend_pid
        self.mark(session, 1)
        try:
            mine = random.random()
            one(conn, "select set_config('crowd.holder', %s, true)", str(mine))
            if random.random() < 0.2:
                time.sleep(random.random() / 500)
            found = one(conn, "select current_setting('crowd.holder')")
            if found != str(mine):
                self.faults.append(f"{session}: {found} in the transaction of {mine}")
        finally:
            self.mark(session, -1)

    def mark(self, session: int, change: int) -> None:
        """Note that a session is used, or no more."""
        with self._lock:
            self._holders[session] += change
            if self._holders[session] > 1:
                self.faults.append(f"{session} is lent twice")


def test_a_crowd_shares_a_pool_whose_sessions_are_killed(
    dsn2: str, application: str, admin: Admin
) -> None:
    """No session has two users, none is leaked, and the pool is whole afterwards."""
    pool = ThreadedConnectionPool(4, 48, dsn=dsn2)
    crowd = Crowd(pool)
    threads = [threading.Thread(target=crowd.client) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    while time.monotonic() < crowd.ends:
        time.sleep(0.05)
        sessions = list(admin.pids(application))
        admin.kill(*random.sample(sessions, min(2, len(sessions))))
    for thread in threads:
        thread.join()
    assert crowd.faults == []
    assert crowd.done["put_back"] > 0 < crowd.done["broken"], crowd.done
    assert len(pool.connections_in_use) == 0
    check_whole(pool, admin, application)
    pool.close()
    eventually(lambda: not admin.pids(application))


def check_whole(pool: Any, admin: Admin, application: str) -> None:
    """All sessions of the pool are idle, none is beside it, and all maxconn can be lent."""
    kept: list[Any] = []
    while len(kept) < pool.maxconn:
        conn = pool.getconn()
        try:
            one(conn, "select 1")
        except psycopg2.Error:  # killed while it was idle
            pool.putconn(conn)
        else:
            kept.append(conn)
    sessions = {conn.info.backend_pid for conn in kept}
    assert len(sessions) == pool.maxconn
    eventually(lambda: admin.pids(application) == sessions)
    for conn in kept:
        pool.putconn(conn)
    assert len(pool.idle_connections) == pool.maxconn
