"""Many threads over few connections, while sessions are ended at random: what must always hold.

Short by default; `FOREBAY_STRESS_SECONDS=30` for the long run.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg2
import pytest

from forebay.psycopg2 import ConnectionPool, NullConnectionPool
from forebay.psycopg2.pool import PersistentConnectionPool, PoolError, ThreadedConnectionPool

from .harness import Admin, eventually, pid

SECONDS = float(os.environ.get("FOREBAY_STRESS_SECONDS", "1"))
THREADS = 64
CONNECTIONS = 8

pytestmark = pytest.mark.timeout(SECONDS + 120)


def full(dsn: str) -> Any:
    """The full pool, whose clients wait."""
    return ConnectionPool(dsn, min_size=4, max_size=CONNECTIONS, open=True, timeout=60)


def null(dsn: str) -> Any:
    """The null pool, whose clients wait."""
    return NullConnectionPool(dsn, max_size=CONNECTIONS, open=True, timeout=60)


def threaded(dsn: str) -> Any:
    """The drop-in as it is: clients that find it exhausted try again."""
    return ThreadedConnectionPool(4, CONNECTIONS, dsn)


def threaded_waiting(dsn: str) -> Any:
    """The drop-in whose clients wait."""
    return ThreadedConnectionPool(4, CONNECTIONS, dsn, timeout=60)


def persistent(dsn: str) -> Any:
    """One connection for each thread that has one."""
    return PersistentConnectionPool(4, CONNECTIONS, dsn)


class Crowd:
    """The threads, what each does, and what they have seen go wrong."""

    def __init__(self, pool: Any) -> None:
        self.pool = pool
        self.faults: list[str] = []
        self.turns = 0
        self.losses = 0
        self._holders: dict[int, int] = {}
        self._lock = threading.Lock()
        self._end = time.monotonic() + SECONDS

    def run(self, end_sessions: Callable[[], None]) -> None:
        """Let all threads work until the time is over, and end sessions meanwhile."""
        threads = [threading.Thread(target=self._client, args=(n,)) for n in range(THREADS)]
        for thread in threads:
            thread.start()
        while time.monotonic() < self._end:
            end_sessions()
            time.sleep(0.05)
        for thread in threads:
            thread.join(90)
            if thread.is_alive():
                self.faults.append(f"{thread.name} hangs")

    def _client(self, number: int) -> None:
        chance = random.Random(number)
        while time.monotonic() < self._end and not self.faults:
            try:
                self._turn(chance)
            except PoolError as error:
                if str(error) != "connection pool exhausted":
                    self.faults.append(repr(error))
                time.sleep(chance.random() / 100)
            except psycopg2.Error:
                with self._lock:
                    self.losses += 1
            except BaseException as error:
                self.faults.append(repr(error))
                raise

    def _turn(self, chance: random.Random) -> None:
        way = chance.random()
        if way < 0.1:
            self.pool.getconn()  # and forgets it
        elif way < 0.5:
            with self.pool.connection() as conn, self._holding(conn):
                self._work(conn, chance)
        else:
            conn = self.pool.getconn()
            try:
                with self._holding(conn):
                    self._work(conn, chance)
            finally:
                self._put(conn, chance)
        with self._lock:
            self.turns += 1

    def _put(self, conn: Any, chance: random.Random) -> None:
        way = chance.random()
        if way < 0.05:
            conn.close()
        if way > 0.95 and not isinstance(self.pool, ConnectionPool):
            self.pool.putconn(conn, close=True)
        else:
            self.pool.putconn(conn)

    def _work(self, conn: Any, chance: random.Random) -> None:
        with conn.cursor() as cursor:
            cursor.execute("select pg_backend_pid(), pg_sleep(%s)", [chance.random() / 200])
        way = chance.random()
        if way < 0.3:
            conn.commit()
        elif way < 0.4:
            with conn.cursor() as cursor:
                cursor.execute("select 1/0")

    @contextmanager
    def _holding(self, conn: Any) -> Iterator[None]:
        """Note who has the connection; it must be nobody else."""
        me, key = threading.get_ident(), id(conn)
        holder = self._holders.setdefault(key, me)
        if holder != me:
            self.faults.append(f"{conn} is lent twice")
        try:
            yield
        finally:
            self._holders.pop(key, None)


@pytest.mark.parametrize("make", [full, null, threaded, threaded_waiting, persistent])
def test_no_connection_is_lent_twice_or_leaked(
    make: Callable[[str], Any], dsn2: str, admin: Admin, application: str
) -> None:
    """64 threads for a while; afterwards the pool lends all its connections, and closes them."""
    pool = make(dsn2)
    crowd = Crowd(pool)
    chance = random.Random(7)

    def end_sessions() -> None:
        sessions = admin.pids(application)
        assert len(sessions) <= 3 * CONNECTIONS  # some are being opened or closed
        if sessions:
            admin.end(chance.choice(sorted(sessions)))

    crowd.run(end_sessions)
    assert not crowd.faults
    assert crowd.turns > THREADS
    assert crowd.losses
    whole(pool)
    eventually(lambda: len(admin.pids(application)) == pool.get_stats()["pool_size"], pool)
    (pool.close if isinstance(pool, ConnectionPool) else pool.closeall)()
    eventually(lambda: not admin.pids(application))


def whole(pool: Any) -> None:
    """Fail unless as many threads as connections can have one each; put them back."""
    if isinstance(pool, ConnectionPool):
        pool.check()
    backends: set[int] = set()
    failed: list[BaseException] = []
    everybody = threading.Barrier(CONNECTIONS)

    def client() -> None:
        try:
            conn = usable(pool)
            backends.add(pid(conn))
            everybody.wait(30)
            pool.putconn(conn)
        except BaseException as error:
            failed.append(error)
            raise

    threads = [threading.Thread(target=client) for _ in range(CONNECTIONS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert len(backends) == CONNECTIONS


def usable(pool: Any) -> Any:
    """A connection that works: those that died while idle are put back and dropped."""
    while True:
        conn = pool.getconn()
        try:
            pid(conn)
        except psycopg2.Error:
            pool.putconn(conn)
        else:
            return conn
