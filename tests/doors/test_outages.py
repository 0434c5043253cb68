"""Outages: names that do not resolve yet, refusals that pass, sessions that die, what blocks."""

from __future__ import annotations

import asyncio
import logging
import math
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from itertools import count
from typing import Any

import psycopg
import pytest

from forebay import PoolClosed, PoolRejected, PoolTimeout, TooManyRequests
from forebay.drivers import libpq
from forebay.testing import FakeDriver, ManualClock, fake_pool
from tests.faults import scripted
from tests.faults.listener import Client
from tests.faults.scripted import Script, ScriptedServer

from .door import Door, Signal, eventually, settled, stat

#: Seconds between two steps of a clock: more than a probe's interval, and exact as a float.
STEP = 0.125

NO_DATABASE = psycopg.OperationalError('connection failed: FATAL:  database "x" does not exist')
LOCKED_OUT = psycopg.OperationalError('connection failed: FATAL:  role "x" does not exist')
BAD_PASSWORD = psycopg.OperationalError(
    'connection failed: FATAL:  password authentication failed for user "x"'
)
UNANSWERED = psycopg.errors.ConnectionTimeout("connection timeout expired")
ENDLESS = 100_000


class Fake:
    """A pool over a fake driver, under a clock that is moved in steps."""

    def __init__(self, door: Door, driver: FakeDriver | None = None, **options: Any) -> None:
        self.door, self.clock, self.driver = door, ManualClock(), driver or FakeDriver()

        def made(_: str, **options: Any) -> Any:
            return fake_pool(door.pool_class, self.driver, self.clock, **options)

        self.pool = door.make(pool_class=made, **options)

    async def open(self) -> None:
        """Open the pool, and let its first attempts end."""
        await self.door(self.pool.open)

    async def maintain(self, seconds: float = 0.0) -> None:
        """Move the clock on, and have maintenance look at it now."""
        self.clock.advance(seconds)
        await self.door(self.pool.check)

    async def fail(self, steps: int, seconds: float = STEP) -> None:
        """Let so many attempts to connect fail, one after each step of the clock."""
        for _ in range(steps):
            errors = stat(self.pool, "connections_errors")
            await self.maintain(seconds)
            await settled(self.pool, connections_errors=errors + 1)


async def queued(fake: Fake, clients: int = 1) -> list[asyncio.Task[Any]]:
    """So many clients, each waiting in the queue."""
    tasks = [fake.door.client(fake.pool.getconn, timeout=500) for _ in range(clients)]
    await settled(fake.pool, requests_waiting=clients)
    return tasks


# Names -------------------------------------------------------------------------------------------


class Names:
    """Stands before `getaddrinfo()`: one name does not resolve until it is told to."""

    HOST = "db.forebay.invalid"

    def __init__(self, why: int) -> None:
        self.why, self.known, self.asked = why, False, 0
        self._real = socket.getaddrinfo

    def __call__(self, host: Any, *args: Any, **kwargs: Any) -> Any:
        if host != self.HOST:
            return self._real(host, *args, **kwargs)
        self.asked += 1
        if not self.known:
            raise socket.gaierror(self.why, "not known here")
        return self._real("127.0.0.1", *args, **kwargs)


@pytest.fixture
def tcp() -> Iterator[ScriptedServer]:
    """A server that says what it is told to."""
    with ScriptedServer() as server:
        yield server


@pytest.mark.parametrize("why", ["EAI_NONAME", "EAI_AGAIN"])
async def test_a_name_that_resolves_later_is_waited_for(
    door: Door, tcp: ScriptedServer, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    """open(wait=True) lasts until the name is there, and no client is refused meanwhile."""
    names = Names(getattr(socket, why))
    monkeypatch.setattr(socket, "getaddrinfo", names)
    dsn = f"host={Names.HOST} port={tcp.port} user=postgres dbname=postgres"
    pool = door.make(dsn, min_size=1, rejected_after=0)
    opening = door.client(pool.open, wait=True, timeout=20)
    await eventually(lambda: names.asked >= 3, names)
    client = door.client(pool.getconn, timeout=20)
    await eventually(lambda: names.asked >= 6, names)
    assert not pool.closed
    assert not opening.done()
    assert not client.done()
    names.known = True
    conn = await client
    await door.pid(conn)
    await door(pool.putconn, conn)
    await opening


# Refusals ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [NO_DATABASE, LOCKED_OUT, BAD_PASSWORD])
async def test_a_refusal_is_told_when_it_has_stood_for_three_seconds(
    door: Door, error: Exception
) -> None:
    """PoolRejected comes by the attempt after 3 s of the same verdict, and by none before."""
    fake = Fake(door, min_size=1)
    fake.driver.refuse(error, ENDLESS)
    await fake.open()
    await settled(fake.pool, connections_errors=1)
    (client,) = await queued(fake)
    await fake.fail(23)
    assert not client.done()
    await fake.fail(1)
    with pytest.raises(PoolRejected) as caught:
        await client
    assert caught.value.__cause__ is error
    assert not fake.pool.closed
    fake.driver.accept()
    await fake.maintain(3)
    await settled(fake.pool, pool_available=1)


async def test_how_long_a_refusal_must_stand_is_a_parameter(door: Door) -> None:
    """`rejected_after` is the constructor's and may be assigned; 0 believes the first refusal."""
    assert door.make(min_size=1).rejected_after == 3.0
    fake = Fake(door, min_size=1, rejected_after=10)
    fake.driver.refuse(NO_DATABASE, ENDLESS)
    await fake.open()
    (client,) = await queued(fake)
    await fake.fail(40)
    assert not client.done()
    fake.pool.rejected_after = 0
    await fake.fail(1)
    with pytest.raises(PoolRejected):
        await client


async def test_at_zero_the_first_refusal_is_believed(door: Door) -> None:
    """With rejected_after=0 a client is told by its first attempt."""
    fake = Fake(door, min_size=0, max_size=1, rejected_after=0)
    fake.driver.refuse(NO_DATABASE, ENDLESS)
    await fake.open()
    with pytest.raises(PoolRejected):
        await door(fake.pool.getconn, timeout=500)
    assert fake.driver.attempts == 1


async def test_another_verdict_starts_the_time_anew(door: Door) -> None:
    """A refusal, something that passes, and the refusal again: 3 s from then."""
    fake = Fake(door, min_size=1)
    fake.driver.refuse(NO_DATABASE, 20)
    fake.driver.refuse(OSError("passing"), 1)
    fake.driver.refuse(NO_DATABASE, ENDLESS)
    await fake.open()
    (client,) = await queued(fake)
    await fake.fail(21 + 23)
    assert not client.done()
    await fake.fail(1)
    with pytest.raises(PoolRejected):
        await client


async def test_a_refusal_of_another_kind_starts_the_time_anew(door: Door) -> None:
    """A wrong password, then no such database: each has a time of its own."""
    fake = Fake(door, min_size=1)
    fake.driver.refuse(BAD_PASSWORD, 20)
    fake.driver.refuse(NO_DATABASE, ENDLESS)
    await fake.open()
    (client,) = await queued(fake)
    await fake.fail(20 + 23)
    assert not client.done()
    await fake.fail(1)
    with pytest.raises(PoolRejected):
        await client


async def test_a_role_that_is_locked_out_for_two_seconds_makes_no_error(door: Door) -> None:
    """A running pool whose clients wait turns a short refusal into waiting, and nothing else."""
    fake = Fake(door, min_size=2)
    await fake.open()
    await settled(fake.pool, pool_available=2)
    fake.driver.refuse(LOCKED_OUT, ENDLESS)
    await door(fake.pool.drain)

    async def client() -> None:
        await door(fake.pool.putconn, await door(fake.pool.getconn, timeout=500))

    clients = [asyncio.create_task(client()) for _ in range(6)]
    await settled(fake.pool, requests_waiting=6)
    await fake.fail(16)
    fake.driver.accept()
    await fake.maintain(STEP)
    await asyncio.gather(*clients)
    assert stat(fake.pool, "requests_errors") == 0


@pytest.mark.parametrize("conninfo", ["host='never ends", "postgresql://[::1/x", "nonsense"])
async def test_a_conninfo_that_cannot_be_read_is_told_at_once(door: Door, conninfo: str) -> None:
    """No waiting heals that: wait() raises at its first attempt, and closes the pool."""
    pool = door.make(conninfo, min_size=1, rejected_after=1000)
    with pytest.raises(PoolRejected):
        await door(pool.open, wait=True, timeout=20)
    assert pool.closed
    with pytest.raises(PoolClosed):
        await door(pool.getconn)
    pool = door.make(conninfo, min_size=1, rejected_after=1000)
    await door(pool.open)
    with pytest.raises(PoolRejected):
        await door(pool.getconn, timeout=20)
    assert not pool.closed


async def test_wait_leaves_a_pool_open_that_the_server_refuses(
    door: Door, tcp: ScriptedServer
) -> None:
    """wait() raises PoolRejected after rejected_after; what is changed then heals the pool."""
    tcp.script = Script(failure=scripted.NO_DATABASE)
    pool = door.make(tcp.dsn(), min_size=1, rejected_after=0.3)
    began = time.monotonic()
    with pytest.raises(PoolRejected):
        await door(pool.open, wait=True, timeout=20)
    assert time.monotonic() - began >= 0.3
    assert not pool.closed
    tcp.script = Script()
    await door(pool.wait, timeout=20)
    await door.pid(await door(pool.getconn))


# Servers that are slow to let anybody in ---------------------------------------------------------


class Patient(FakeDriver):
    """Notes how many times as patient as usual each attempt is."""

    def __init__(self) -> None:
        super().__init__()
        self.factors: list[int] = []

    async def connect(self, *args: Any) -> Any:
        """Connect, or not."""
        self.factors.append(args[3])
        return await super().connect(*args)


async def test_attempts_grow_patient_while_nobody_answers(door: Door) -> None:
    """Each time-out doubles the next one's time; an answer of any kind ends that."""
    driver = Patient()
    fake = Fake(door, driver, min_size=1)
    driver.refuse(UNANSWERED, 3)
    driver.refuse(OSError("refused"), 1)
    driver.refuse(UNANSWERED, 1)
    await fake.open()
    await settled(fake.pool, connections_errors=1)
    await fake.fail(4, seconds=3)
    await fake.maintain(3)
    await settled(fake.pool, pool_available=1)
    await door(fake.pool.drain)
    await settled(fake.pool, pool_available=1)
    assert driver.factors == [1, 2, 4, 8, 1, 2, 1]


async def test_a_server_slower_than_the_time_out_is_reached(
    dsn: str, tcp: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a default of 2 s, a server that lets in after 2.3 s is reached, by both doors."""
    monkeypatch.setitem(libpq.DEFAULTS, "connect_timeout", "2")
    tcp.script = Script(delay=2.3)

    async def reach(kind: str) -> None:
        door = Door(kind, dsn)
        try:
            pool = door.make(tcp.dsn(), min_size=1)
            await door(pool.open)
            await door.pid(await door(pool.getconn, timeout=15))
        finally:
            await door.end()

    await asyncio.gather(reach("sync"), reach("async"))


# Sessions that die -------------------------------------------------------------------------------


class Fleeting(ScriptedServer):
    """Lets every client in, answers no query, and closes the session after 20 ms."""

    well = False

    async def _serve(self, client: Client) -> None:
        if self.well:
            await super()._serve(client)
            return
        await self._greet(client)
        session = scripted.Session(self, client, 1)
        client.write(session.welcome(Script()))
        await asyncio.sleep(0.02)


@pytest.fixture
def fleeting() -> Iterator[Fleeting]:
    """A server whose sessions end at once."""
    with Fleeting() as server:
        yield server


async def connects_in(server: Fleeting, seconds: float) -> int:
    """How many connections come in that time, which is what is measured."""
    before = server.accepted
    await asyncio.sleep(seconds)
    return server.accepted - before


async def test_sessions_that_die_idle_are_not_replaced_in_a_loop(
    door: Door, fleeting: Fleeting
) -> None:
    """An idle pool before such a server backs off: some connects a second, not a hundred."""
    pool = door.make(fleeting.dsn(), min_size=3)
    await door(pool.open)
    await eventually(lambda: fleeting.accepted >= 3, fleeting)
    assert await connects_in(fleeting, 1.0) <= 20
    fleeting.well = True
    conn = await door(pool.getconn, timeout=2)
    await door.pid(conn)
    await door(pool.putconn, conn)
    await settled(pool, pool_available=3)


async def test_sessions_that_die_in_use_are_paced(door: Door, fleeting: Fleeting) -> None:
    """Clients are told, the server is asked ten times a second, and a second heals all."""
    pool = door.make(fleeting.dsn(), min_size=1, max_size=2)
    await door(pool.open)
    over = Signal()
    told: list[Exception] = []

    async def client() -> None:
        while not over.is_set():
            try:
                async with door.using(pool.connection(timeout=0.5)) as conn:
                    await door(conn.execute, "select 1")
            except Exception as error:
                told.append(error)

    clients = [asyncio.create_task(client()) for _ in range(3)]
    await eventually(lambda: len(told) >= 3, told)  # the first failures, which pace the rest
    assert await connects_in(fleeting, 1.0) <= 20
    fleeting.well = True
    over.set()
    await asyncio.gather(*clients)
    conn = await door(pool.getconn, timeout=1)
    await door.pid(conn)
    assert {type(error) for error in told} <= {PoolTimeout, psycopg.OperationalError}


async def test_a_client_that_closes_its_connection_is_no_failure(door: Door) -> None:
    """In its first use too: the next one is opened at once, without a backoff."""
    fake = Fake(door, min_size=1)
    await fake.open()
    for opened in range(1, 6):
        conn = await door(fake.pool.getconn, timeout=500)
        conn.close()
        await door(fake.pool.putconn, conn)
        await settled(fake.pool, pool_available=1)
        assert fake.driver.attempts == opened + 1


async def test_a_session_that_dies_in_its_first_use_is_a_failure(door: Door) -> None:
    """Its successor is opened after a pause; one that had been returned in order has none."""
    fake = Fake(door, min_size=1)
    await fake.open()
    conn = await door(fake.pool.getconn, timeout=500)
    conn.lose()
    await door(fake.pool.putconn, conn)
    await fake.maintain()
    assert fake.driver.attempts == 1
    await fake.maintain(STEP)
    await settled(fake.pool, pool_available=1)
    conn = await door(fake.pool.getconn, timeout=500)
    fake.clock.advance(STEP)
    await door(fake.pool.putconn, conn)  # that proves the new ones
    conn = await door(fake.pool.getconn, timeout=500)
    conn.lose()
    await door(fake.pool.putconn, conn)
    await settled(fake.pool, pool_available=1)


# reconnect_failed --------------------------------------------------------------------------------


class Calls:
    """A reconnect_failed, and how often it was called."""

    def __init__(self, door: Door) -> None:
        self.pools: list[Any] = []
        self.callback = door.callback(self._note)

    async def _note(self, pool: Any) -> None:
        self.pools.append(pool)

    async def made(self, times: int) -> None:
        """Wait until it was called so often."""
        await eventually(lambda: len(self.pools) >= times, self.pools)
        assert len(self.pools) == times


@pytest.mark.parametrize("clients", [0, 1])
async def test_reconnect_failed_is_called_at_reconnect_timeout(door: Door, clients: int) -> None:
    """Not with the next failure after that, whether somebody waits or not."""
    calls = Calls(door)
    fake = Fake(door, min_size=1, reconnect_timeout=5, reconnect_failed=calls.callback)
    fake.driver.refuse(OSError("away"), ENDLESS)
    await fake.open()
    await settled(fake.pool, connections_errors=1)
    tasks = await queued(fake, clients)
    await fake.fail(7, seconds=0.7)  # 4.9 s
    fake.pool._forebay.core.retry_at += 100  # whatever the backoff is
    await fake.maintain(0.09)
    assert not calls.pools
    await fake.maintain(0.02)
    await calls.made(1)
    for task in tasks:
        assert not task.done()
    fake.driver.accept()
    await fake.maintain(200)
    for task in tasks:
        await task


class Hanging(FakeDriver):
    """Attempts to connect last until they are let go."""

    def __init__(self, door: Door) -> None:
        super().__init__()
        self._door, self.let_go = door, Signal()

    async def connect(self, *args: Any) -> Any:
        """Hang."""
        self.attempts += 1
        if self._door.is_async:
            await self.let_go.wait()
        else:
            assert threading_wait(self.let_go)
        self.attempts -= 1
        return await super().connect(*args)


def threading_wait(signal: Signal) -> bool:
    """Block a thread until the signal is set."""
    deadline = time.monotonic() + 20
    while not signal.is_set() and time.monotonic() < deadline:
        time.sleep(0.002)
    return signal.is_set()


async def test_reconnect_failed_is_called_while_the_first_attempt_hangs(door: Door) -> None:
    """An attempt without an answer is no success: its time counts from its beginning."""
    calls = Calls(door)
    driver = Hanging(door)
    fake = Fake(door, driver, min_size=1, reconnect_timeout=5, reconnect_failed=calls.callback)
    await fake.open()
    await eventually(lambda: driver.attempts == 1, driver)
    await fake.maintain(4.9)
    assert not calls.pools
    await fake.maintain(0.2)
    await calls.made(1)
    driver.let_go.set()
    await settled(fake.pool, pool_available=1)


# What blocks -------------------------------------------------------------------------------------


class Block:
    """Something of the user's that blocks for as long as the test lasts."""

    def __init__(self, door: Door) -> None:
        self._door = door
        self._event = threading.Event()
        self.entered = Signal()

    async def forever(self, *_: Any) -> None:
        """Block; in asyncio, swallow what would end that."""
        self.entered.set()
        while self._door.is_async and not self._event.is_set():
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(0.01)
        if not self._door.is_async:
            self._event.wait(30)

    @property
    def callback(self) -> Callable[..., Any]:
        """As a callback of the pool."""
        return self._door.callback(self.forever)

    def end(self) -> None:
        """Let go."""
        self._event.set()


@asynccontextmanager
async def blocking(door: Door) -> AsyncIterator[Block]:
    """Something that blocks until the end of the block."""
    block = Block(door)
    try:
        yield block
    finally:
        block.end()


async def serves(door: Door, pool: Any, within: float = 3.0) -> None:
    """A client is served, in whatever state the pool was left."""
    async with door.using(pool.connection(timeout=within)) as conn:
        await door(conn.execute, "select 1")


async def closes(door: Door, pool: Any, within: float = 1.0) -> None:
    """close() does not wait for what blocks."""
    began = time.monotonic()
    await door(pool.close, timeout=5)
    assert time.monotonic() - began < within


async def test_a_reconnect_failed_that_blocks_stops_nothing(
    door: Door, tcp: ScriptedServer
) -> None:
    """Connecting again, serving, deadlines and close() go on behind it."""
    async with blocking(door) as block:
        tcp.refuse()
        pool = door.make(
            tcp.dsn(),
            min_size=1,
            max_size=1,
            reconnect_timeout=0.1,
            reconnect_failed=block.callback,
            action_timeout=0.1,
        )
        await door(pool.open)
        await block.entered.wait()
        tcp.accept()
        await serves(door, pool)
        conn = await door(pool.getconn)
        await door(conn.execute, "select 1")
        tcp.mute()  # to roll back lasts until it is cut
        await door(pool.putconn, conn)
        await settled(pool, returns_bad=1)
        tcp.unmute()
        await serves(door, pool)
        await closes(door, pool)


async def test_a_reset_that_hangs_is_given_up(door: Door, tcp: ScriptedServer) -> None:
    """The slot is free after the deadline and its grace; others are served, and close() ends."""
    async with blocking(door) as block:
        first = count()

        async def reset(_conn: Any) -> None:
            if not next(first):
                await block.forever()

        options = {"reset": door.callback(reset), "action_timeout": 0.05}
        pool = door.make(tcp.dsn(), min_size=1, max_size=1, num_workers=1, **options)
        await door(pool.open)
        await serves(door, pool)
        await block.entered.wait()
        await serves(door, pool)
        assert stat(pool, "workers_abandoned") == 1
        await serves(door, pool)
        await closes(door, pool)


async def test_a_notice_handler_that_blocks_stops_nothing_but_its_client(
    dsn: str, tcp: ScriptedServer
) -> None:
    """What comes while a connection is idle is not told to its handlers by the pool's threads."""
    door = Door("sync", dsn)
    pool = door.make(tcp.dsn(), min_size=2, num_workers=1, idle_order="fifo")
    try:
        async with blocking(door) as block:
            await door(pool.open, wait=True)
            conns = [await door(pool.getconn) for _ in range(2)]
            conns[0].add_notice_handler(lambda _: block._event.wait(30))
            for conn in conns:
                await door(pool.putconn, conn)
            tcp.notice()
            await asyncio.wait_for(door(pool.check), 5)  # as maintenance does
            await settled(pool, pool_available=2)
            blocked = door.client(pool.getconn, timeout=5)
            await settled(pool, pool_available=1)
            await serves(door, pool)
            await door(pool.drain)
            await serves(door, pool)
            await closes(door, pool)
        await blocked
    finally:
        await door.end()


class BlockingLog(logging.Handler):
    """Blocks whoever logs, but for the threads that the test itself uses."""

    def __init__(self, block: Block) -> None:
        super().__init__()
        self.block = block

    def createLock(self) -> None:  # noqa: N802
        """Have none: each thread that logs blocks by itself."""
        self.lock = None

    def emit(self, record: logging.LogRecord) -> None:
        """Block."""
        if any(word in str(record.threadName) for word in ("worker", "maintenance")):
            self.block.entered.set()
            self.block._event.wait(30)


async def test_a_log_handler_that_blocks_stops_nothing(dsn: str, tcp: ScriptedServer) -> None:
    """Lines of the pool's own threads wait; connecting, serving, deadlines and close() do not."""
    door = Door("sync", dsn)
    async with blocking(door) as block:
        handler = BlockingLog(block)
        logging.getLogger("forebay").addHandler(handler)
        try:
            tcp.refuse()
            pool = door.make(tcp.dsn(), min_size=1, max_size=1, num_workers=1, action_timeout=0.1)
            await door(pool.open)
            await block.entered.wait()
            tcp.accept()
            await serves(door, pool)
            tcp.hang_up()
            await serves_again(door, pool)
            await closes(door, pool)
        finally:
            logging.getLogger("forebay").removeHandler(handler)
            block.end()
            await door.end()


async def serves_again(door: Door, pool: Any) -> None:
    """After sessions were ended, a client or two may have seen that."""
    with suppress(psycopg.OperationalError):
        await serves(door, pool)
    await serves(door, pool)


# Lifetimes and numbers ---------------------------------------------------------------------------


async def test_a_lifetime_of_zero_replaces_at_each_return(door: Door) -> None:
    """Each client has a new connection, and no connection is opened but for that."""
    fake = Fake(door, min_size=1, max_lifetime=0)
    await fake.open()
    for used in range(5):
        await settled(fake.pool, pool_available=1)
        async with door.using(fake.pool.connection(timeout=500)) as conn:
            assert conn.number == used + 1
    await settled(fake.pool, pool_available=1)
    for _ in range(5):
        await fake.maintain(1.5)
    assert fake.driver.attempts == 6
    await eventually(lambda: len(fake.driver.sessions) == 1, fake.driver.sessions)
    fake.pool.max_lifetime = 3600
    for _ in range(2):
        async with door.using(fake.pool.connection(timeout=500)) as conn:
            assert conn.number == 6


REFUSED = [
    ("timeout", math.nan, ValueError),
    ("timeout", "5", TypeError),
    ("min_size", 1.5, TypeError),
    ("min_size", "1", TypeError),
    ("max_size", 4.0, TypeError),
    ("num_workers", 2.5, TypeError),
    ("max_waiting", math.inf, TypeError),
    ("max_waiting", math.nan, TypeError),
    ("max_uses", 1.0, TypeError),
    ("max_idle", math.nan, ValueError),
    ("max_idle", None, TypeError),
    ("max_lifetime", math.nan, ValueError),
    ("max_lifetime", -1, ValueError),
    ("reconnect_timeout", math.nan, ValueError),
    ("rejected_after", math.nan, ValueError),
    ("rejected_after", -0.1, ValueError),
    ("action_timeout", math.nan, ValueError),
    ("bypass_window", math.nan, ValueError),
    ("keepalive_interval", math.nan, ValueError),
    ("leak_threshold", math.nan, ValueError),
]


@pytest.mark.parametrize(("name", "value", "error"), REFUSED)
def test_a_number_that_is_none_is_refused(
    door: Door, name: str, value: Any, error: type[Exception]
) -> None:
    """By the constructor, with its name: it would make a pool that waits for ever, or never."""
    with pytest.raises(error, match=name):
        door.pool_class(door.dsn, **{"min_size": 1, "open": False, name: value})


async def test_numbers_that_are_none_are_refused_later_too(door: Door) -> None:
    """In getconn(), connection() and resize() as well; the pool goes on as it was."""
    pool = await door.open(min_size=1)
    held = await door(pool.getconn)
    with pytest.raises(ValueError, match="nan"):
        await door(pool.getconn, timeout=math.nan)
    with pytest.raises(ValueError, match="nan"):
        await door(door.method(pool.connection(timeout=math.nan), "enter"))
    with pytest.raises(TypeError, match="min_size"):
        await door(pool.resize, 1.5)
    with pytest.raises(TypeError, match="max_size"):
        await door(pool.resize, 1, 2.5)
    await door(pool.putconn, held)
    assert (pool.min_size, pool.max_size) == (1, 1)
    assert stat(pool, "pool_available") == 1


async def test_max_waiting_holds_for_clients_that_come_again(door: Door) -> None:
    """Whose connection fails its check stands in line as a newcomer does, or is refused."""
    checking, fail = Signal(), Signal()

    async def check(_conn: Any) -> None:
        checking.set()
        await eventually(fail.is_set)
        raise psycopg.OperationalError("no good")

    fake = Fake(
        door, min_size=1, max_waiting=1, check=door.callback(check), action_timeout=math.inf
    )
    await fake.open()
    await settled(fake.pool, pool_available=1)
    fake.driver.refuse(OSError("away"), ENDLESS)
    first = door.client(fake.pool.getconn, timeout=500)
    await checking.wait()
    second = door.client(fake.pool.getconn, timeout=500)
    await settled(fake.pool, requests_waiting=1)
    fail.set()
    with pytest.raises(TooManyRequests):
        await first
    assert stat(fake.pool, "requests_waiting") == 1
    await door(fake.pool.close)
    with pytest.raises(PoolClosed):
        await second


async def test_a_check_that_fails_counts_as_a_lost_connection(door: Door) -> None:
    """In connections_lost, once for each; the client gets one that passes."""
    failures = iter([True, True, False])

    async def check(_conn: Any) -> None:
        if next(failures):
            raise psycopg.OperationalError("no good")

    fake = Fake(door, min_size=3, check=door.callback(check))
    await fake.open()
    await settled(fake.pool, pool_available=3)
    await door(fake.pool.getconn, timeout=500)
    assert stat(fake.pool, "connections_lost") == 2


# Null pools --------------------------------------------------------------------------------------


async def test_a_null_pool_closes_in_its_client(null_door: Door) -> None:
    """When the block or putconn() has ended, the connection is closed; nothing resets it."""
    door = null_door
    resets: list[Any] = []

    async def reset(conn: Any) -> None:
        resets.append(conn)

    pool = await door.open(reset=door.callback(reset))
    async with door.using(pool.connection()) as conn:
        await door.pid(conn)
    assert conn.closed
    conn = await door(pool.getconn)
    await door(conn.execute, "select 1")  # in a transaction
    await door(pool.putconn, conn)
    assert conn.closed
    with pytest.raises(ZeroDivisionError):
        async with door.using(pool.connection()) as conn:
            raise ZeroDivisionError
    assert conn.closed
    assert not resets
    assert stat(pool, "pool_size") == 0


async def test_a_null_pool_resets_what_it_hands_on(null_door: Door) -> None:
    """A connection that goes to a waiting client at its return is reset as in other pools."""
    door = null_door
    resets: list[Any] = []

    async def reset(conn: Any) -> None:
        resets.append(conn)

    pool = await door.open(reset=door.callback(reset), max_size=1)
    conn = await door(pool.getconn)
    waiting = door.client(pool.getconn, timeout=10)
    await settled(pool, requests_waiting=1)
    await door(pool.putconn, conn)
    assert await waiting is conn
    assert resets == [conn]
    await door(pool.putconn, conn)
    assert conn.closed
    assert resets == [conn]


async def test_wait_of_a_null_pool_is_no_request(null_door: Door) -> None:
    """It opens one connection as a test, which is no client: no request, no check, no reset."""
    door = null_door
    called: list[str] = []

    async def check(_conn: Any) -> None:
        called.append("check")

    async def reset(_conn: Any) -> None:
        called.append("reset")

    pool = await door.open(check=door.callback(check), reset=door.callback(reset))
    await door(pool.wait)
    stats = pool.get_stats()
    assert stats["requests_num"] == 0
    assert stats["connections_num"] == 1
    assert stats["pool_size"] == 0
    assert not called


async def test_a_pool_that_is_not_true_is_told_all_the_same(door: Door) -> None:
    """A subclass with a length of 0 is a pool: its reconnect_failed is called."""
    calls = Calls(door)
    door.pool_class = type("Empty", (door.pool_class,), {"__len__": lambda _: 0})
    fake = Fake(door, min_size=1, reconnect_timeout=5, reconnect_failed=calls.callback)
    fake.driver.refuse(OSError("away"), ENDLESS)
    await fake.open()
    await fake.fail(1)
    await fake.maintain(5)
    await calls.made(1)
