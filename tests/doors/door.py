"""What a scenario needs to be written once and played through both doors.

Scenarios are coroutines. `await door(function, *args)` calls a method of a pool or a connection:
on the asyncio door it awaits the result; on the thread door the task's own client thread makes
the call, so that one task is one client in both worlds. Everything that returns at once
(`get_stats()`, attributes, constructors) is called without the door.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from itertools import count
from queue import SimpleQueue
from typing import Any, Self
from weakref import WeakKeyDictionary

import psycopg
from psycopg import conninfo

import forebay

Scenario = Callable[..., Coroutine[Any, Any, Any]]

_serial = count(1)


def on_a_loop() -> bool:
    """Tell whether the caller runs inside an event loop (else: in a plain thread)."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def whoami() -> str:
    """The name of the task that runs, or of the thread where there is no loop."""
    task = asyncio.current_task() if on_a_loop() else None
    return task.get_name() if task else threading.current_thread().name


def run_at_once(work: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine that must not suspend, and give its result."""
    try:
        work.send(None)
    except StopIteration as done:
        return done.value
    work.close()
    raise AssertionError(f"{work} suspended where only blocking calls are possible")


async def _outcome(value: Any) -> Any:
    return await value if inspect.isawaitable(value) else value


async def eventually(
    predicate: Callable[[], Any], about: object = None, within: float = 10.0
) -> Any:
    """Wait until `predicate()` is true and return its value; fail with `about` after `within`.

    The predicate may be a coroutine function.
    """
    deadline = time.monotonic() + within
    while not (value := await _outcome(predicate())):
        if time.monotonic() > deadline:
            raise AssertionError(f"not true within {within} s; seen last: {about!r}")
        if on_a_loop():
            await asyncio.sleep(0.002)
        else:
            time.sleep(0.002)
    return value


def stat(pool: Any, key: str) -> int:
    """One figure of the pool's statistics; a missing key is 0."""
    return int(pool.get_stats().get(key, 0))


async def settled(pool: Any, **figures: int) -> None:
    """Wait until each named figure of the pool's statistics has the given value."""
    await eventually(lambda: all(stat(pool, key) == n for key, n in figures.items()), pool)


class Signal:
    """An event that can be awaited by a scenario and by a callback in a worker thread."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self.set, self.is_set = self._event.set, self._event.is_set

    async def wait(self) -> None:
        """Return when the signal is set."""
        await eventually(self._event.is_set, "a signal nobody has set", within=20)


class Gate:
    """Stands before every connect: counts the attempts, holds them, lets them pass or fail.

    `connection_class` is the class to give to the pool. `open()` lets everything pass, `let(n)`
    lets n attempts pass, `shut()` holds the next ones, `refuse(error)` makes them raise.
    """

    def __init__(self, connection_class: type[Any]) -> None:
        self._lock = threading.Lock()
        self._passes = 0.0
        self.error: Exception | None = None
        self.attempts = self.inside = self.peak = 0
        self.arguments: list[tuple[str, dict[str, Any]]] = []
        self.openers: list[str] = []
        self.connection_class = self._guard(connection_class)

    def open(self) -> None:
        """Let this and every later attempt pass."""
        self._passes, self.error = float("inf"), None

    def shut(self) -> None:
        """Hold every later attempt."""
        self._passes = 0

    def let(self, attempts: int) -> None:
        """Let so many more attempts pass."""
        with self._lock:
            self._passes += attempts

    def refuse(self, error: Exception | None = None) -> None:
        """Let every attempt through to an error."""
        self.error = error or psycopg.OperationalError("the gate refuses")
        self._passes = float("inf")

    async def arrived(self, attempts: int) -> None:
        """Wait until so many attempts have come to the gate since it was made."""
        await eventually(lambda: self.attempts >= attempts, self)

    def __repr__(self) -> str:
        return f"<Gate {self.attempts} attempts, {self.inside} inside, {self._passes} passes>"

    def _admitted(self) -> bool:
        with self._lock:
            if self._passes < 1:
                return False
            self._passes -= 1
            return True

    async def _pass(self, conninfo: str, arguments: dict[str, Any]) -> None:
        with self._lock:
            self.attempts += 1
            self.inside += 1
            self.peak = max(self.peak, self.inside)
            self.arguments.append((conninfo, arguments))
            self.openers.append(whoami())
        try:
            await eventually(self._admitted, self, within=20)
            if self.error:
                raise self.error
        finally:
            with self._lock:
                self.inside -= 1

    def _guard(self, connection_class: type[Any]) -> type[Any]:
        gate = self

        class Gated(connection_class):  # type: ignore[misc]
            @classmethod
            def connect(cls, conninfo: str = "", **arguments: Any) -> Any:
                run_at_once(gate._pass(conninfo, arguments))
                return super().connect(conninfo, **arguments)

        class AsyncGated(connection_class):  # type: ignore[misc]
            @classmethod
            async def connect(cls, conninfo: str = "", **arguments: Any) -> Any:
                await gate._pass(conninfo, arguments)
                return await super().connect(conninfo, **arguments)

        return AsyncGated if issubclass(connection_class, psycopg.AsyncConnection) else Gated


class Client:
    """A thread that makes the calls of one task, one after the other."""

    def __init__(self) -> None:
        self._jobs: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = SimpleQueue()
        threading.Thread(target=self._serve, daemon=True, name="scenario-client").start()

    def call(self, function: Callable[[], Any]) -> asyncio.Future[Any]:
        """Have the thread call `function`; the future gives its result or its exception."""
        answer: Future[Any] = Future()
        self._jobs.put((answer, function))
        return asyncio.wrap_future(answer)

    def end(self, _task: object = None) -> None:
        """Let the thread end when its calls are done."""
        self._jobs.put(None)

    def _serve(self) -> None:
        while (job := self._jobs.get()) is not None:
            answer, function = job
            if not answer.set_running_or_notify_cancel():
                continue
            try:
                answer.set_result(function())
            except BaseException as error:
                answer.set_exception(error)
            del job, answer, function  # hold no connection while waiting for the next call


class Using:
    """`async with` over a context manager of either door."""

    def __init__(self, door: Door, manager: Any) -> None:
        self._door, self._manager = door, manager

    async def __aenter__(self) -> Any:
        return await self._door(self._door.method(self._manager, "enter"))

    async def __aexit__(self, *error: object) -> bool | None:
        verdict = await self._door(self._door.method(self._manager, "exit"), *error)
        return bool(verdict)


class Door:
    """One of the pool classes, with the way to call it; closes at the end what it has made."""

    def __init__(self, kind: str, dsn: str) -> None:
        self.is_async, self.is_null = kind.startswith("async"), kind.endswith("null")
        prefix = ("Async" if self.is_async else "") + ("Null" if self.is_null else "")
        self.pool_class: type[Any] = getattr(forebay, prefix + "ConnectionPool")
        self.connection_class: type[Any] = (
            psycopg.AsyncConnection if self.is_async else psycopg.Connection
        )
        self.application = f"doors-{next(_serial)}"
        self.dsn = conninfo.make_conninfo(dsn, application_name=self.application)
        self._clients: WeakKeyDictionary[asyncio.Task[Any], Client] = WeakKeyDictionary()
        self._pools: list[Any] = []
        self._gates: list[Gate] = []

    @property
    def least(self) -> dict[str, int]:
        """The options with which a pool keeps one connection, where it keeps any."""
        return {} if self.is_null else {"min_size": 1}

    async def __call__(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Call a function of the door: awaited, or made by the calling task's client thread."""
        if not self.is_async and on_a_loop():
            return await self._client().call(lambda: function(*args, **kwargs))
        return await _outcome(function(*args, **kwargs))

    def method(self, manager: Any, name: str) -> Any:
        """The `enter` or `exit` method of a context manager."""
        return getattr(manager, f"__a{name}__" if self.is_async else f"__{name}__")

    def using(self, manager: Any) -> Using:
        """`async with door.using(pool.connection()) as conn`, for both doors."""
        return Using(self, manager)

    def make(self, conninfo: Any = None, **options: Any) -> Any:
        """A pool that is not open yet (unless asked for); closed when the scenario ends."""
        kind = options.pop("pool_class", self.pool_class)
        options.setdefault("open", False)
        pool = kind(self.dsn if conninfo is None else conninfo, **options)
        self._pools.append(pool)
        return pool

    async def open(self, conninfo: Any = None, **options: Any) -> Any:
        """An open pool, its `min_size` connections ready; closed when the scenario ends."""
        pool = self.make(conninfo, **options)
        await self(pool.open, wait=not self.is_null)
        return pool

    def gate(self) -> Gate:
        """A gate before the connects of a pool; it opens when the scenario ends."""
        gate = Gate(self.connection_class)
        self._gates.append(gate)
        return gate

    def callback(self, function: Scenario) -> Callable[..., Any]:
        """A callback of the door's own kind (async, or blocking in its thread)."""
        if self.is_async:
            return function
        return lambda *args: run_at_once(function(*args))

    def client(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> asyncio.Task[Any]:
        """Start another client that makes one call."""
        return asyncio.create_task(self(function, *args, **kwargs))

    async def pid(self, conn: Any) -> int:
        """The backend's process id, asked from the backend itself; leaves no transaction."""
        cursor = await self(conn.execute, "select pg_backend_pid()")
        (pid,) = await self(cursor.fetchone)
        await self(conn.rollback)
        return int(pid)

    async def end(self) -> None:
        """Open the gates, close the pools, let the client threads end."""
        for gate in self._gates:
            gate.open()
        for pool in self._pools:
            await self(pool.close)
        for client in list(self._clients.values()):
            client.end()

    def _client(self) -> Client:
        task = asyncio.current_task()
        assert task is not None
        if task not in self._clients:
            self._clients[task] = client = Client()
            task.add_done_callback(client.end)
        return self._clients[task]


class Admin:
    """A session beside the pools that looks at the server and ends other sessions."""

    def __init__(self, dsn: str) -> None:
        self._conn = psycopg.Connection.connect(dsn, autocommit=True)

    def pids(self, application: str) -> set[int]:
        """The process ids of the sessions of one application."""
        query = "select pid from pg_stat_activity where application_name = %s"
        return {row[0] for row in self._conn.execute(query, [application])}

    async def kill(self, *pids: int) -> None:
        """End the sessions, and return when the server has forgotten them."""
        query = "select count(pg_terminate_backend(pid)) from unnest(%s::int[]) pid"
        self._conn.execute(query, [list(pids)])
        left = "select count(*) from pg_stat_activity where pid = any(%s)"
        await eventually(lambda: self._conn.execute(left, [list(pids)]).fetchone() == (0,), pids)

    async def lose(self, door: Door, pool: Any) -> None:
        """Lease a connection, end its session, and use it: raises OperationalError."""
        async with door.using(pool.connection(timeout=20)) as conn:
            await self.kill(conn.info.backend_pid)
            await door(conn.execute, "select 1")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._conn.close()
