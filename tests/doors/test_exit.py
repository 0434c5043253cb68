"""Exit: a program that never closes its pool ends silently, and does not wait for it."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent

import pytest

import forebay
from forebay import _async_door, _asyncio, _door, _flows, _thread_door, _threads, pool, pool_async

#: Seconds that no end takes; those of the pool's own time-outs are longer.
LONG = 20.0


@pytest.fixture
def mute_dsn() -> Iterator[str]:
    """A server that takes connections and never says a word: connecting hangs."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(50)
        port = listener.getsockname()[1]
        yield f"host=127.0.0.1 port={port} connect_timeout=60 user=nobody dbname=nowhere"


PREAMBLE = """
import asyncio, atexit, sys, threading, time
import psycopg
from forebay import AsyncConnectionPool, ConnectionPool
dsn = sys.argv[1]
"""


def run(program: str, dsn: str) -> tuple[int, str]:
    """Run a program to its end: its exit code, and what it printed to either stream."""
    code = PREAMBLE + dedent(program)
    command = [sys.executable, "-X", "dev", "-W", "error", "-c", code, dsn]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=LONG)
    return ended.returncode, ended.stdout + ended.stderr


THREADS = {
    "the end of the script": """
        pool = ConnectionPool(dsn, min_size=4, open=True)
        pool.wait()
        with pool.connection() as conn:
            conn.execute("select 1")
        """,
    "the end, with the pool in a local": """
        def main():
            pool = ConnectionPool(dsn, min_size=4, open=True)
            pool.wait()
            with pool.connection() as conn:
                conn.execute("select 1")
        main()
        """,
    "the end, before the pool is filled": """
        pool = ConnectionPool(dsn, min_size=4, open=True)
        """,
    "the end, with a connection lent": """
        pool = ConnectionPool(dsn, min_size=1, open=True)
        conn = pool.getconn()
        conn.execute("select 1")
        """,
    "the end, with a daemon that waits": """
        pool = ConnectionPool(dsn, min_size=1, open=True)
        conn = pool.getconn()
        threading.Thread(target=pool.getconn, daemon=True).start()
        while not pool.get_stats()["requests_waiting"]:
            time.sleep(0.01)
        """,
    "the end, with a thread that waits and is served": """
        pool = ConnectionPool(dsn, min_size=1, open=True)
        conn = pool.getconn()
        def wait():
            with pool.connection() as mine:
                mine.execute("select 1")
        threading.Thread(target=wait).start()
        while not pool.get_stats()["requests_waiting"]:
            time.sleep(0.01)
        pool.putconn(conn)
        """,
    "the end of another thread": """
        pool = ConnectionPool(dsn, min_size=1, max_size=2, open=True)
        def late():
            threading.main_thread().join()
            with pool.connection() as one, pool.connection(timeout=15) as two:
                two.execute("select 1")
        threading.Thread(target=late).start()
        """,
}


@pytest.mark.parametrize("program", THREADS.values(), ids=THREADS)
def test_a_program_with_threads_ends_silently(program: str, dsn: str) -> None:
    """Whatever the pool is doing then."""
    assert run(program, dsn) == (0, "")


ASYNCIO = {
    "the end of the loop": """
        async def main():
            global pool
            pool = AsyncConnectionPool(dsn, min_size=4, open=False)
            await pool.open(wait=True)
            async with pool.connection() as conn:
                await conn.execute("select 1")
        asyncio.run(main())
        """,
    "the end of the loop, with the pool in a local": """
        async def main():
            pool = AsyncConnectionPool(dsn, min_size=4, open=False)
            await pool.open(wait=True)
            async with pool.connection() as conn:
                await conn.execute("select 1")
        asyncio.run(main())
        """,
    "the end of the loop, before the pool is filled": """
        async def main():
            global pool
            pool = AsyncConnectionPool(dsn, min_size=4, open=False)
            await pool.open()
            await asyncio.sleep(0)
        asyncio.run(main())
        """,
    "the end of the loop, with a client that waits": """
        async def main():
            global pool, client, conn
            pool = AsyncConnectionPool(dsn, min_size=1, open=False)
            await pool.open()
            conn = await pool.getconn()
            client = asyncio.create_task(pool.getconn())
            while not pool.get_stats()["requests_waiting"]:
                await asyncio.sleep(0)
        asyncio.run(main())
        assert client.cancelled()
        """,
}


@pytest.mark.parametrize("program", ASYNCIO.values(), ids=ASYNCIO)
def test_a_program_with_a_loop_ends_silently(program: str, dsn: str) -> None:
    """asyncio.run() cancels what is left, and has nothing to complain of."""
    assert run(program, dsn) == (0, "")


@pytest.mark.parametrize(
    "program",
    [
        """
        pool = ConnectionPool(dsn, min_size=2, open=True)
        with pool.connection() as conn:
            conn.execute("select 1")
            sys.exit(3)
        """,
        """
        async def main():
            pool = AsyncConnectionPool(dsn, min_size=2, open=False)
            await pool.open()
            async with pool.connection() as conn:
                await conn.execute("select 1")
                sys.exit(3)
        asyncio.run(main())
        """,
    ],
    ids=["threads", "asyncio"],
)
def test_an_exit_inside_a_block_ends_silently(program: str, dsn: str) -> None:
    """The exit code is the program's."""
    assert run(program, dsn) == (3, "")


def test_an_exception_ends_a_program_with_its_own_traceback_alone(dsn: str) -> None:
    """Nothing is added to what the interpreter prints."""
    program = """
        pool = ConnectionPool(dsn, min_size=2, open=True)
        with pool.connection() as conn:
            conn.execute("select 1")
            raise LookupError("the program's own")
        """
    code, printed = run(program, dsn)
    assert code == 1
    assert printed.count("Traceback") == 1
    assert printed.endswith("LookupError: the program's own\n")


BLOCKED = {
    "threads": """
        pool = ConnectionPool(dsn, min_size=4, open=True)
        threading.Thread(target=pool.getconn, daemon=True).start()
        while not pool.get_stats()["requests_waiting"]:
            time.sleep(0.01)
        """,
    "asyncio": """
        async def main():
            global pool, client
            pool = AsyncConnectionPool(dsn, min_size=4, open=False)
            await pool.open()
            client = asyncio.create_task(pool.getconn())
            while not pool.get_stats()["requests_waiting"]:
                await asyncio.sleep(0.01)
        asyncio.run(main())
        """,
    "asyncio, with a loop that takes its time to end": """
        async def main():
            global pool, client
            pool = AsyncConnectionPool(dsn, min_size=4, open=False)
            await pool.open()
            client = asyncio.create_task(pool.getconn())
            while not pool.get_stats()["requests_waiting"]:
                await asyncio.sleep(0.01)
            asyncio.get_running_loop().run_in_executor(None, time.sleep, 0.5)
        asyncio.run(main())
        """,
}


@pytest.mark.parametrize("program", BLOCKED.values(), ids=BLOCKED)
def test_a_connect_that_hangs_does_not_hold_up_the_end(program: str, mute_dsn: str) -> None:
    """Connects to a server that says nothing end with the program, not after their time-out."""
    assert run(program, mute_dsn) == (0, "")


ATEXIT = {
    "an open pool": """
        pool = ConnectionPool(dsn, min_size=1, max_size=2, open=True)
        pool.wait()
        """,
    "a pool whose workers have gone": """
        import forebay._threads
        forebay._threads.LINGER = 0.0
        pool = ConnectionPool(dsn, min_size=1, max_size=2, open=True)
        pool.wait()
        time.sleep(0.2)
        """,
    "a new pool": "pool = ConnectionPool(dsn, min_size=1, max_size=2, open=False)",
}


@pytest.mark.parametrize("program", ATEXIT.values(), ids=ATEXIT)
def test_an_atexit_handler_may_use_a_pool(program: str, dsn: str) -> None:
    """Where no thread can be started any more, the client opens its connection itself."""
    handler = """
        @atexit.register
        def last_words():
            pool.open()
            with pool.connection(timeout=15) as one, pool.connection(timeout=15) as two:
                two.execute("select 1")
            pool.close()
            print("done")
        """
    assert run(dedent(program) + dedent(handler), dsn) == (0, "done\n")


def test_a_finalizer_at_the_very_end_is_served_or_refused_at_once(dsn: str) -> None:
    """When daemon threads have stopped, what is idle is lent, and nobody waits for the rest."""
    program = """
        import logging
        logging.disable()  # to ask for two connections is reported as what it may be, a deadlock
        class Owner:
            def __init__(self):
                self.itself = self
                self.pool = ConnectionPool(dsn, min_size=1, max_size=2, open=True, timeout=60)
                self.pool.wait()
            def __del__(self):
                with self.pool.connection() as conn:
                    conn.execute("select 1")
                conn = self.pool.getconn()
                try:
                    self.pool.getconn()
                except psycopg.OperationalError:
                    print("refused")
                self.pool.putconn(conn)
                self.pool.close(timeout=60)
        owner = Owner()
        """
    assert run(program, dsn) == (0, "refused\n")


def test_every_thread_of_a_pool_is_a_daemon(dsn: str) -> None:
    """So that no end of a program waits for one."""
    before = set(threading.enumerate())
    with forebay.ConnectionPool(dsn, min_size=4) as opened:
        opened.wait()
        started = set(threading.enumerate()) - before
        assert len(started) >= 2
        assert all(thread.daemon for thread in started)


def test_nothing_is_hooked_to_the_end_of_the_interpreter() -> None:
    """No atexit handler joins threads or closes pools."""
    for module in (
        *(_async_door, _asyncio, _door, _flows, _thread_door, _threads, pool, pool_async),
    ):
        assert not hasattr(module, "atexit")
        assert "_register_atexit" not in Path(module.__file__ or "").read_text()
