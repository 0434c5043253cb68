"""Fork: in a child every pool starts afresh, and the parent's sessions do not notice."""

from __future__ import annotations

import asyncio
import contextlib
import io
import logging
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from inspect import signature
from pathlib import Path
from typing import Any

import psycopg
import psycopg2
import pytest
from psycopg import conninfo

import forebay
import forebay.psycopg2
import forebay.psycopg2.pool
import forebay.psycopg2_pool
from forebay._core import Phase
from forebay._flows import Flows
from forebay._fork import renewed_core
from forebay._sockets import Lifeline
from forebay.testing import FakeDriver
from tests.core.cores import core_of

from .door import Admin, Gate, eventually

ERRORS = (psycopg.Error, psycopg2.Error)


def fork() -> int:
    """`os.fork()`; newer Pythons warn of threads, which is what these tests are about."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


class Child:
    """A forked process that calls a function and sends back what it returns."""

    def __init__(self, function: Callable[[], Any]) -> None:
        source, sink = os.pipe()
        self.pid = fork()
        if not self.pid:
            _answer(sink, function)
        os.close(sink)
        self._source = source

    def result(self) -> Any:
        """What the function returned, once; the child ends."""
        try:
            return self.answer()
        finally:
            self.end()

    def answer(self) -> Any:
        """What the function returned, once; fails if it raised, or if it printed or logged."""
        with os.fdopen(self._source, "rb") as source:
            value, noise = pickle.load(source)
        assert not noise, noise
        return value

    def end(self) -> None:
        """End the process."""
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)


def _answer(sink: int, function: Callable[[], Any]) -> None:
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(60)  # whatever becomes of the test, no child is left behind
    noise = io.StringIO()
    sys.stderr = noise
    logging.root.handlers = [logging.StreamHandler(noise)]
    value = None
    try:
        value = function()
    except BaseException:
        noise.write(traceback.format_exc())
    with os.fdopen(sink, "wb") as pipe:
        pickle.dump((value, noise.getvalue()), pipe)
    signal.pause()  # until the parent has had a look


def in_child(function: Callable[[], Any]) -> Any:
    """Call a function in a forked child."""
    return Child(function).result()


def pid(conn: Any) -> int:
    """The process id of the server's backend; begins a transaction."""
    cursor = conn.cursor()
    cursor.execute("select pg_backend_pid()")
    (backend,) = cursor.fetchone()
    return int(backend)


class Kind:
    """One of the pool classes for threads, open, with two connections where it keeps any."""

    def __init__(self, name: str, dsn: str) -> None:
        self.name, self.dsn = name, dsn

    def make(self) -> Any:
        """A pool that may have four connections."""
        if self.name.startswith("psycopg2_pool"):
            return forebay.psycopg2_pool.ConnectionPool(2, 4, dsn=self.dsn)
        if self.name.startswith("psycopg2.pool"):
            pools: Any = forebay.psycopg2.pool
            return getattr(pools, self.name.split(".")[-1])(2, 4, self.dsn)
        module: Any = forebay.psycopg2 if self.name.startswith("psycopg2") else forebay
        if self.name.endswith("null"):
            return module.NullConnectionPool(self.dsn, max_size=4, open=True)
        pool = module.ConnectionPool(self.dsn, min_size=2, max_size=4, open=True)
        pool.wait()
        return pool

    def lease(self, pool: Any) -> Any:
        """A `with` block on a connection, as the pool's users write it."""
        return pool.getconn() if self.name == "psycopg2_pool" else pool.connection()

    def close(self, pool: Any) -> None:
        """Close a pool that may be closed."""
        if not self.name.startswith("psycopg2.pool"):
            pool.close()
        elif not pool.closed:
            pool.closeall()


KINDS = [
    "psycopg",
    "psycopg-null",
    "psycopg2",
    "psycopg2-null",
    "psycopg2.pool.SimpleConnectionPool",
    "psycopg2.pool.ThreadedConnectionPool",
    "psycopg2.pool.PersistentConnectionPool",
    "psycopg2_pool",
]


@pytest.fixture
def application(request: pytest.FixtureRequest) -> str:
    """A name for the sessions of one test."""
    return f"fork-{abs(hash(request.node.name)):x}"


@pytest.fixture
def own_dsn(dsn: str, application: str) -> str:
    """The server's connection string, with the test's own application name."""
    return conninfo.make_conninfo(dsn, application_name=application)


@pytest.fixture
def backends(admin: Admin, application: str) -> Callable[[], set[int]]:
    """Gives the process ids of the backends of the test's own sessions."""
    return lambda: admin.pids(application)


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest, own_dsn: str) -> Kind:
    """Each of the pools for threads."""
    return Kind(request.param, own_dsn)


@pytest.fixture
def pool(kind: Kind) -> Iterator[Any]:
    """An open pool, closed at the end."""
    made = kind.make()
    yield made
    kind.close(made)


@pytest.fixture
def plain(own_dsn: str) -> Iterator[forebay.ConnectionPool]:
    """A `ConnectionPool` with two connections."""
    with forebay.ConnectionPool(own_dsn, min_size=2, max_size=4, timeout=20) as made:
        made.wait()
        yield made


def use(kind: Kind, pool: Any) -> int:
    """Lease a connection for one query."""
    with kind.lease(pool) as conn:
        return pid(conn)


# What holds for every pool -----------------------------------------------------------------------


def test_a_child_has_sessions_of_its_own(
    kind: Kind, pool: Any, admin: Admin, application: str
) -> None:
    """The child's queries run on new sessions, and those of the parent live on."""
    use(kind, pool)
    before = admin.pids(application)

    def work() -> set[int]:
        return {use(kind, pool) for _ in range(3)}

    assert not in_child(work) & before
    assert before <= admin.pids(application) or kind.name.endswith("null")
    assert use(kind, pool) in before or kind.name.endswith("null")


def test_a_connection_lent_at_the_fork_is_no_use_in_the_child(kind: Kind, pool: Any) -> None:
    """It raises the driver's error there; in the parent its transaction goes on."""
    with kind.lease(pool) as conn:
        cursor = conn.cursor()
        cursor.execute("create temp table parents (id int) on commit drop")

        def work() -> bool:
            with pytest.raises(ERRORS):
                pid(conn)
            return bool(conn.closed)

        assert in_child(work)
        cursor.execute("select count(*) from parents")
        assert cursor.fetchone() == (0,)


def test_the_end_of_a_block_around_the_fork_is_quiet_in_the_child(kind: Kind, pool: Any) -> None:
    """The child leaves the parent's block: nothing is raised, logged, or done to the session."""
    children: list[Child] = []
    lease = kind.lease(pool)
    with lease as conn:
        pid(conn)

        def leave() -> str:
            lease.__exit__(None, None, None)
            return repr(pool)

        children.append(Child(leave))
        assert children[0].result() == in_child(lambda: repr(pool))
        pid(conn)


def test_a_connection_of_the_parent_is_returned_quietly_in_the_child(kind: Kind, pool: Any) -> None:
    """putconn() drops it, however often; the child's pool lends another one."""
    conn = pool.getconn()
    parents = pid(conn)

    def work() -> int:
        pool.putconn(conn)
        pool.putconn(conn)
        return use(kind, pool)

    assert in_child(work) != parents
    assert pid(conn) == parents
    pool.putconn(conn)


def test_what_a_child_closes_stays_open_in_the_parent(
    kind: Kind, pool: Any, admin: Admin, application: str
) -> None:
    """To close the pool and the lent connection in a child ends no session of the parent."""
    conn = pool.getconn()
    parents = pid(conn)
    before = admin.pids(application)

    def work() -> None:
        conn.close()
        kind.close(pool)

    in_child(work)
    assert pid(conn) == parents
    assert admin.pids(application) == before
    pool.putconn(conn)


def test_no_socket_of_the_parent_is_left_in_the_child(kind: Kind, pool: Any) -> None:
    """Idle and lent connections alike: their descriptors lead elsewhere or nowhere."""
    lent = [pool.getconn() for _ in range(1 if "Persistent" in kind.name else 2)]
    idle = [entry.conn for entry in pool._forebay.core.idle]
    inodes = {os.fstat(conn.fileno()).st_ino for conn in [*lent, *idle]}
    assert len(inodes) == len(lent) + len(idle)

    def work() -> set[int]:
        found = set()
        for descriptor in range(3, 256):
            with contextlib.suppress(OSError):
                found.add(os.fstat(descriptor).st_ino)
        return found

    assert not in_child(work) & inodes
    for conn in lent:
        pool.putconn(conn)


def test_no_lock_is_inherited(kind: Kind, pool: Any) -> None:
    """Another thread is inside a transition at the fork: the child does not wait for it."""
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with pool._forebay.lock:
            held.set()
            done.wait(20)

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait(20)
    child = Child(lambda: use(kind, pool))
    done.set()
    holder.join()
    assert child.result()


def test_a_child_of_a_child_starts_afresh_too(kind: Kind, pool: Any) -> None:
    """Three generations have three sessions, and none disturbs its elders."""

    def work() -> list[int]:
        with kind.lease(pool) as conn:
            mine = pid(conn)
            grandchild = in_child(lambda: use(kind, pool))
            assert pid(conn) == mine
        return [mine, grandchild]

    with kind.lease(pool) as conn:
        first = pid(conn)
        assert len({first, *in_child(work)}) == 3
        assert pid(conn) == first


def test_workers_forked_in_advance_share_no_session(kind: Kind, pool: Any) -> None:
    """Four children at work at once, as under Celery, with the parent's pool in use."""
    kept = []  # so that each backend lives until all have answered

    def work() -> int:
        kept.append(pool.getconn())
        return pid(kept[0])

    with kind.lease(pool) as conn:
        children = [Child(work) for _ in range(4)]
        answers = [child.answer() for child in children]
        for child in children:
            child.end()
        assert len({*answers, pid(conn)}) == 5


def test_a_thread_may_fork(kind: Kind, pool: Any, backends: Callable[[], set[int]]) -> None:
    """The forking thread is the only one of the child, whichever it was."""
    before = backends()
    results: list[int] = []

    def run() -> None:
        with kind.lease(pool) as conn:
            results.extend([pid(conn), in_child(lambda: use(kind, pool)), pid(conn)])

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert results[0] == results[2]
    assert results[1] not in {*before, results[0]}


# What concerns some of them ----------------------------------------------------------------------


def test_nothing_happens_before_the_pool_is_used(
    plain: forebay.ConnectionPool, admin: Admin, application: str
) -> None:
    """No thread, no connection; the first use opens min_size of them."""
    before = admin.pids(application)

    def idle() -> tuple[int, bool, int]:
        return threading.active_count(), plain.closed, plain.get_stats()["pool_size"]

    child = Child(idle)
    assert child.result() == (1, False, 0)
    assert admin.pids(application) == before

    def work() -> int:
        with plain.connection():
            pass
        plain.wait()
        return plain.get_stats()["pool_available"]

    assert in_child(work) == 2


@pytest.mark.parametrize("first", ["wait", "open", "check", "drain", "resize"])
def test_whatever_the_first_use_is_it_opens_the_pool(
    plain: forebay.ConnectionPool, first: str, backends: Callable[[], set[int]]
) -> None:
    """open(wait=True) in a worker's start-up hook, or any other call, fills the pool."""
    before = backends()

    def work() -> int:
        getattr(plain, first)(*([3] if first == "resize" else []))
        plain.wait()
        return plain.get_stats()["pool_available"]

    size = 3 if first == "resize" else 2
    child = Child(work)
    assert child.answer() == size
    deadline = time.monotonic() + 10
    while len(backends() - before) > size:  # what was drained ends in the background
        assert time.monotonic() < deadline, "more sessions than connections"
    assert len(backends() - before) == size
    child.end()


def test_what_was_assigned_goes_on_to_the_child(plain: forebay.ConnectionPool) -> None:
    """resize() and assigned attributes count there as they do here; counters start at zero."""
    plain.resize(1, 3)
    plain.max_lifetime, plain.max_idle, plain.timeout, plain.max_waiting = 5, 6, 7, 8
    plain.kwargs = {"application_name": "assigned"}
    settings = ("min_size", "max_size", "max_lifetime", "max_idle", "timeout", "max_waiting")

    def work() -> Any:
        with plain.connection() as conn:
            row = conn.execute("show application_name").fetchone()
        return row, [getattr(plain, name) for name in settings], plain.get_stats()["requests_num"]

    assert in_child(work) == (("assigned",), [1, 3, 5, 6, 7, 8], 1)


def test_a_pool_that_was_not_open_is_not_open_in_the_child(dsn: str) -> None:
    """Its first state goes on to the child, where it is opened as usual; so does its last."""
    pool = forebay.ConnectionPool(dsn, min_size=1, open=False)

    def new() -> bool:
        with pytest.raises(forebay.PoolClosed, match="not open yet"):
            pool.getconn()
        with pool, pool.connection() as conn:
            return pid(conn) > 0

    def closed() -> bool:
        with pytest.raises(forebay.PoolClosed, match="already closed"):
            pool.getconn()
        return pool.closed

    assert in_child(new)
    pool.open()
    pool.close()
    assert in_child(closed)


def test_a_pool_closed_in_the_child_before_its_use_stays_closed(
    plain: forebay.ConnectionPool,
) -> None:
    """close() opens nothing, and later clients are told."""

    def work() -> int:
        plain.close()
        with pytest.raises(forebay.PoolClosed):
            plain.getconn()
        return threading.active_count()

    assert in_child(work) == 1


def test_a_fork_while_another_thread_connects(own_dsn: str) -> None:
    """A half-open connect is the parent's; the child makes its own, without waiting for it."""
    gate = Gate(psycopg.Connection)
    with forebay.ConnectionPool(
        own_dsn, connection_class=gate.connection_class, min_size=1, timeout=20
    ) as pool:
        asyncio.run(gate.arrived(1))

        def work() -> int:
            gate.__init__(psycopg.Connection)  # type: ignore[misc]
            gate.open()
            with pool.connection() as conn:
                return pid(conn)

        child = Child(work)
        backend = child.result()
        gate.open()
        with pool.connection() as conn:
            assert pid(conn) != backend


def test_a_fork_while_workers_hold_their_locks(
    plain: forebay.ConnectionPool, backends: Callable[[], set[int]]
) -> None:
    """The locks of the lanes of work are new in the child, like the pool's own."""
    before = backends()
    runtime: Any = plain._forebay.flows.runtime
    with runtime._openings._lock, runtime._service._lock:
        child = Child(lambda: in_thread(plain))
    assert child.result() not in before


def in_thread(pool: forebay.ConnectionPool) -> int:
    """Lease a connection in another thread, for whom a lock held by this one is held."""
    found: list[int] = []

    def run() -> None:
        with pool.connection(timeout=10) as conn:
            found.append(pid(conn))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return found[0]


def test_a_connection_another_thread_works_on_is_left_alone(
    plain: forebay.ConnectionPool, backends: Callable[[], set[int]]
) -> None:
    """A query runs at the fork: the child gets its own session, the query its answer."""
    before = backends()
    answers: list[Any] = []
    started = threading.Event()

    def run() -> None:
        with plain.connection() as conn:
            started.set()
            answers.append(conn.execute("select 1 from pg_sleep(0.5)").fetchone())

    thread = threading.Thread(target=run)
    thread.start()
    started.wait(20)
    assert in_child(lambda: in_thread(plain)) not in before
    thread.join()
    assert answers == [(1,)]


def test_a_lifeline_is_let_go_and_not_cut(plain: forebay.ConnectionPool) -> None:
    """The child closes its copy of the duplicate socket; the parent's session lives on."""
    with plain.connection() as conn:
        parents = pid(conn)
        inode = os.fstat(conn.fileno()).st_ino
        lifeline = Lifeline(conn.fileno())

        def work() -> bool:
            lifeline.cut()
            sockets = [
                os.fstat(fd).st_ino for fd in range(3, 256) if Path(f"/dev/fd/{fd}").exists()
            ]
            return inode in sockets

        assert not in_child(work)
        assert pid(conn) == parents
        lifeline.close()


def test_keyed_connections_are_forgotten(own_dsn: str) -> None:
    """The child gets another session for the key under which the parent holds one."""
    pool = forebay.psycopg2.pool.ThreadedConnectionPool(1, 2, own_dsn)
    conn = pool.getconn("key")
    parents = pid(conn)
    assert in_child(lambda: pid(pool.getconn("key"))) != parents
    assert pool.getconn("key") is conn
    pool.putconn(conn)
    pool.closeall()


def test_a_connection_on_offer_is_the_parents(own_dsn: str) -> None:
    """After its `with` block the holder may go on to use it, but not in the child."""
    pool = forebay.psycopg2_pool.ConnectionPool(1, 1, dsn=own_dsn)
    with pool.getconn() as conn:
        parents = pid(conn)

    def work() -> int:
        with pytest.raises(psycopg2.Error):
            conn.cursor().execute("select 1")
        pool.putconn(conn)
        return pid(pool.getconn())

    assert in_child(work) != parents
    assert pid(conn) == parents
    pool.close()


def test_connections_without_attributes_are_forgotten_too(own_dsn: str) -> None:
    """Those of a factory that is a function are known by a table of the pool's."""
    pool = forebay.psycopg2_pool.ConnectionPool(
        1, 2, dsn=own_dsn, connection_factory=lambda dsn: psycopg2.extensions.connection(dsn)
    )
    conn = pool.getconn()
    parents = pid(conn)

    def work() -> int:
        pool.putconn(conn)
        return pid(pool.getconn())

    assert in_child(work) != parents
    assert pid(conn) == parents
    pool.putconn(conn)
    pool.close()


# asyncio -----------------------------------------------------------------------------------------


async def apid(pool: forebay.AsyncConnectionPool) -> int:
    """The process id of the backend of a leased connection."""
    async with pool.connection() as conn:
        return conn.info.backend_pid


@pytest.mark.parametrize("null", [False, True], ids=["pool", "null"])
@pytest.mark.parametrize("running", [False, True], ids=["loop-at-rest", "loop-running"])
def test_an_async_pool_belongs_to_the_loop_that_uses_it_first(
    own_dsn: str, null: bool, running: bool, backends: Callable[[], set[int]]
) -> None:
    """The child's asyncio.run() opens it; the parent's loop keeps its own."""
    pool_class: Any = forebay.AsyncNullConnectionPool if null else forebay.AsyncConnectionPool
    pool = pool_class(own_dsn, open=False, max_size=2, **({} if null else {"min_size": 2}))

    async def use_twice() -> tuple[int, int]:
        return await apid(pool), await apid(pool)

    def work() -> tuple[int, int]:
        return asyncio.run(use_twice())

    async def main() -> None:
        await pool.open(wait=True)
        async with pool.connection() as conn:
            parents = conn.info.backend_pid
            before = backends()
            child = Child(work) if running else None
            if child is not None:
                assert not before & {*child.result()}
            await conn.execute("select 1")
            assert conn.info.backend_pid == parents

    with asyncio.Runner() as runner:
        runner.run(main())
        if not running:
            assert runner.run(apid(pool)) not in in_child(work)
        runner.run(pool.close())


def test_the_async_block_around_the_fork_is_quiet(own_dsn: str) -> None:
    """The connection is no use in the child, and leaving its block or returning it does nothing."""

    async def child_side(pool: Any, lease: Any, conn: Any, other: Any) -> tuple[bool, int]:
        with pytest.raises(psycopg.Error):
            await conn.execute("select 1")
        await lease.__aexit__(None, None, None)
        await pool.putconn(other)
        return conn.closed, await apid(pool)

    async def main() -> None:
        async with forebay.AsyncConnectionPool(own_dsn, min_size=2, open=False) as pool:
            other = await pool.getconn()
            lease = pool.connection()
            async with lease as conn:
                parents = conn.info.backend_pid
                child = Child(lambda: asyncio.run(child_side(pool, lease, conn, other)))
                closed, backend = child.result()
                assert closed
                assert backend != parents
                await conn.execute("select 1")
            await pool.putconn(other)

    asyncio.run(main())


def test_open_binds_an_async_pool_to_the_loop_of_the_child(own_dsn: str) -> None:
    """`await pool.open(wait=True)` fills it there, for that loop; the next one has its own."""

    async def fill(pool: Any) -> int:
        await pool.open(wait=True)
        return int(pool.get_stats()["pool_available"])

    async def main() -> None:
        async with forebay.AsyncConnectionPool(own_dsn, min_size=2, open=False) as pool:
            await pool.wait()

            def work() -> int:
                available = asyncio.run(fill(pool))
                assert asyncio.run(apid(pool))
                return available

            assert Child(work).result() == 2

    asyncio.run(main())


# Other ways to fork ------------------------------------------------------------------------------


def _report(pool: forebay.ConnectionPool, queue: Any) -> None:
    with pool.connection() as conn:
        queue.put(pid(conn))


def test_multiprocessing_by_fork(
    plain: forebay.ConnectionPool, backends: Callable[[], set[int]]
) -> None:
    """A Process that is given the pool works with sessions of its own, and ends well."""
    before = backends()
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    with plain.connection() as conn:
        parents = pid(conn)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            process = context.Process(target=_report, args=(plain, queue))
            process.start()
        assert queue.get() not in before
        process.join(20)
        assert process.exitcode == 0
        assert pid(conn) == parents


ENDING = """
import os, sys
import forebay
pool = forebay.ConnectionPool(sys.argv[1], min_size=2, open=True)
pool.wait()
conn = pool.getconn()
conn.execute("create temp table parents ()")
before = [conn.info.backend_pid]
before += [entry.conn.info.backend_pid for entry in pool._forebay.core.idle]
child = os.fork()
if not child:
    with pool.connection() as own:
        own.execute("select 1")
        assert own.info.backend_pid not in before
    sys.exit()
assert os.waitpid(child, 0)[1] == 0
conn.execute("select * from parents")
pool.putconn(conn)
with pool.connection() as one, pool.connection() as two:
    one.execute("select 1"), two.execute("select 1")
"""


def test_a_child_that_ends_as_programs_do_ends_silently(dsn: str) -> None:
    """Finalizers run in the child: no warning, and no farewell on a socket of the parent."""
    quiet = ["-X", "dev", "-W", "error", "-W", "ignore::DeprecationWarning"]
    ended = subprocess.run(
        [sys.executable, *quiet, "-c", ENDING, dsn], capture_output=True, text=True, timeout=60
    )
    assert (ended.returncode, ended.stdout) == (0, "")
    assert ended.stderr.count("rolling back returned connection") == 1
    assert len(ended.stderr.splitlines()) == 1  # that of the parent


APPLICATION = """
import os
import forebay
pool = forebay.ConnectionPool(os.environ["DSN"], min_size=2, open=True)
pool.wait()
with pool.connection() as conn:
    master = conn.info.backend_pid

def app(environ, start_response):
    with pool.connection() as conn:
        backend = conn.execute("select pg_backend_pid()").fetchone()[0]
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [f"{os.getpid()} {backend} {master}".encode()]
"""


async def test_gunicorn_with_a_pool_opened_in_the_master(
    own_dsn: str, admin: Admin, application: str, tmp_path: Path
) -> None:
    """--preload: each worker answers on its own sessions, and those of the master live on."""
    (tmp_path / "service.py").write_text(APPLICATION)
    socket, log = tmp_path / "s", tmp_path / "log"
    options = ["--preload", "--workers=2", f"--bind=unix:{socket}", f"--log-file={log}"]
    server = subprocess.Popen(
        [sys.executable, "-m", "gunicorn", *options, "service:app"],
        cwd=tmp_path,
        env={**os.environ, "DSN": own_dsn},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        await eventually(lambda: _listens(socket), server, within=30)
        answers: dict[int, set[int]] = {}
        masters: set[int] = set()

        async def asked() -> bool:
            worker, backend, master = await _get(socket)
            answers.setdefault(worker, set()).add(backend)
            masters.add(master)
            return len(answers) == 2

        await eventually(asked, answers, within=30)
        first, second = answers.values()
        assert not first & second
        assert not masters & (first | second)
        assert masters <= admin.pids(application)
    finally:
        server.terminate()
        _, errors = server.communicate(timeout=30)
    assert errors == ""
    assert "[ERROR]" not in log.read_text()


async def _listens(socket: Path) -> bool:
    try:
        _, writer = await asyncio.open_unix_connection(socket)
    except OSError:
        return False
    writer.close()
    await writer.wait_closed()
    return True


async def _get(socket: Path) -> list[int]:
    reader, writer = await asyncio.open_unix_connection(socket)
    writer.write(b"GET / HTTP/1.0\r\n\r\n")
    body = (await reader.read()).split(b"\r\n\r\n")[-1]
    writer.close()
    await writer.wait_closed()
    return [int(number) for number in body.split()]


# What the handler relies on ----------------------------------------------------------------------


def test_the_core_of_a_child_has_what_was_set_and_nothing_else() -> None:
    """Also what was assigned, or set by `resize()`; no connection and no permit."""
    core = core_of(FakeDriver().refusals("x"), min_size=1, max_size=2, keep=3, fresh=True)
    core.settings.max_idle = 7.0
    core.open(0.0)
    core.resize(2, 5, 0.0)
    child = renewed_core(core)
    assert (child.keep, child.fresh, child.phase, child.refusals) == (
        3,
        True,
        Phase.OPEN,
        core.refusals,
    )
    settings = child.settings
    assert (settings.min_size, settings.max_size, settings.max_idle) == (2, 5, 7.0)
    assert (child.size, child.opening, child.target) == (0, 0, 2)


def test_the_flows_keep_their_settings_under_the_names_of_their_parameters(
    plain: forebay.ConnectionPool,
) -> None:
    """From these their successor in a child is made."""
    flows = plain._forebay.flows
    assert {name for name in signature(Flows).parameters if not hasattr(flows, name)} == set()


def test_where_no_socket_can_be_had_nothing_is_closed(
    plain: forebay.ConnectionPool,
    backends: Callable[[], set[int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """At the limit of open files the child says so, and leaves the parent's sessions alone."""

    def refuse() -> None:
        raise OSError("too many open files")

    before = backends()
    monkeypatch.setattr("forebay._fork.socketpair", refuse)
    monkeypatch.setattr("forebay._fork.logger.error", lambda *_: None)
    with plain.connection() as conn:
        parents = pid(conn)
        assert in_child(lambda: in_thread(plain)) not in before
        assert pid(conn) == parents
    with plain.connection() as one, plain.connection() as two:
        assert pid(one) != pid(two)
