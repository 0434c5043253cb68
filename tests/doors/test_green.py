"""gevent and eventlet: programs whose threads are greenlets use the pools for threads."""

from __future__ import annotations

import subprocess
import sys
from textwrap import dedent

import pytest

#: Seconds that no program takes, and one that hangs does.
LONG = 25.0

GEVENT = "import gevent\nfrom gevent import monkey, spawn\nmonkey.patch_all()\n"
EVENTLET = "import eventlet\neventlet.monkey_patch()\nfrom eventlet import spawn\n"
FOREBAY = "import forebay\nfrom forebay import *\n"
PSYCOPG = "import psycopg\n"

#: What a program begins with: who patches, and when.
BEGINNINGS = {
    "gevent": GEVENT + FOREBAY,
    "eventlet": EVENTLET + FOREBAY,
    "gevent after forebay": FOREBAY + GEVENT,
    "gevent before psycopg": GEVENT + PSYCOPG + FOREBAY,
}

PROGRAM = """
import sys, threading, time
import psycopg
dsn = sys.argv[1]

def ask(pool):
    with pool.connection(timeout=5) as conn:
        return conn.execute("select pg_backend_pid()").fetchone()[0]

def until(true):
    end = time.monotonic() + 5
    while not true():
        assert time.monotonic() < end, "not in time"
        time.sleep(0.01)

def with_reset():
    resets = []
    options = {"min_size": 1, "max_size": 2, "reset": resets.append}
    with ConnectionPool(dsn, **options) as pool:
        for _ in range(6):
            ask(pool)
        until(lambda: len(resets) == 6)

def with_close():
    pool = ConnectionPool(dsn, min_size=2, open=True)
    pool.wait(5)
    waiting = []
    held = [pool.getconn(), pool.getconn()]

    def wait():
        try:
            pool.getconn(timeout=20)
        except PoolClosed:
            waiting.append("closed")

    spawn(wait)
    until(lambda: pool.get_stats()["requests_waiting"] == 1)
    begun = time.monotonic()
    pool.close()
    assert time.monotonic() - begun < 3
    for conn in held:
        pool.putconn(conn)
        assert conn.closed
    until(lambda: waiting)

def with_drain():
    with ConnectionPool(dsn, min_size=2, max_size=4) as pool:
        pool.wait(5)
        old = ask(pool)
        pool.drain()
        pool.wait(5)
        assert ask(pool) != old
        pool.resize(1, 2)
        pool.check()
        ask(pool)

def with_killed_connections():
    with ConnectionPool(dsn, min_size=2, max_size=2, bypass_window=0) as pool:
        pool.wait(5)
        with pool.connection() as conn:
            try:
                conn.execute("select pg_terminate_backend(pg_backend_pid())")
            except psycopg.OperationalError:
                pass
        for _ in range(4):
            ask(pool)
        with psycopg.connect(dsn, autocommit=True) as admin:
            idle = ask(pool)
            admin.execute("select pg_terminate_backend(%s, 5000)", [idle])
        for _ in range(4):
            ask(pool)
        until(lambda: pool.get_stats()["pool_available"] == 2)

def with_growth():
    with ConnectionPool(dsn, min_size=1, max_size=10) as pool:
        served = []

        def client():
            with pool.connection(timeout=10) as conn:
                conn.execute("select pg_sleep(0.01)")
                time.sleep(0.02)
                served.append(threading.get_ident())

        for _ in range(30):
            spawn(client)
        until(lambda: len(served) == 30)
        assert len(set(served)) == 30
        assert pool.get_stats()["pool_size"] > 1

def with_a_time_out():
    with ConnectionPool(dsn, min_size=1) as pool, pool.connection():
        ticks = []

        def tick():
            while True:
                ticks.append(1)
                time.sleep(0.01)

        spawn(tick)
        try:
            pool.getconn(timeout=0.3)
        except PoolTimeout:
            pass
        assert len(ticks) > 5, "nobody else ran meanwhile"

for part in (with_reset, with_close, with_drain, with_killed_connections, with_growth,
             with_a_time_out):
    part()
    print(part.__name__, flush=True)
"""

DONE = [line[4:-3] for line in PROGRAM.splitlines() if line.startswith("def with_")]


def run(program: str, dsn: str) -> list[str]:
    """Run a program to its end; returns the lines that it printed."""
    command = [sys.executable, "-c", program, dsn]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=LONG)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout.split()


@pytest.mark.parametrize("beginning", BEGINNINGS)
def test_greenlets_use_a_pool_as_threads_do(beginning: str, dsn: str) -> None:
    """Reset, close, drain, lost connections, growth under thirty greenlets, and time-outs."""
    pytest.importorskip(beginning.split()[0])
    assert run(BEGINNINGS[beginning] + PROGRAM, dsn) == DONE


MADE_BEFORE = """
    import sys
    from forebay import ConnectionPool
    pool = ConnectionPool(sys.argv[1], min_size=1, max_size=2, open=False, reset=lambda conn: None)
    pool.max_idle = 123.0
    {opened}
    {patched}
    import time
"""

USED_LATE = """
    def ask():
        with pool.connection(timeout=5) as conn:
            conn.execute("select 1")

    pool.open()
    pool.wait(5)
    greenlets = [spawn(ask) for _ in range(10)]
    ask()
    pool.drain()
    ask()
    print(pool.max_idle)
    began = time.monotonic()
    pool.close()
    print("prompt" if time.monotonic() - began < 3 else "late")
"""

REFUSED_LATE = """
    time.sleep(0.1)  # longer than an idle connection is lent without a look
    try:
        pool.getconn(timeout=5)
    except RuntimeError as error:
        print("patch first" in str(error))
    began = time.monotonic()
    pool.close()
    print("prompt" if time.monotonic() - began < 3 else "late")
"""

LATE = {
    "gevent": "from gevent import monkey, spawn; monkey.patch_all()",
    "eventlet": "import eventlet; eventlet.monkey_patch(); from eventlet import spawn",
}


@pytest.mark.parametrize("library", LATE)
def test_a_pool_that_is_made_before_and_opened_after_the_patch_works(
    library: str, dsn: str
) -> None:
    """A module's pool, in a program whose server patches later: its locks are made anew."""
    pytest.importorskip(library)
    program = dedent(MADE_BEFORE).format(opened="", patched=LATE[library]) + dedent(USED_LATE)
    assert run(program, dsn) == ["123.0", "prompt"]


@pytest.mark.parametrize("library", LATE)
def test_a_pool_that_was_opened_before_the_patch_says_so(library: str, dsn: str) -> None:
    """It cannot wait in greenlets: the first client is told, and close() is prompt."""
    pytest.importorskip(library)
    opened = "pool.open(wait=True)"
    program = dedent(MADE_BEFORE).format(opened=opened, patched=LATE[library])
    assert run(program + dedent(REFUSED_LATE), dsn) == ["True", "prompt"]
