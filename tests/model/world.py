"""One world: a pool, its clients and its workers, moved one step at a time."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterator
from contextlib import suppress
from math import inf
from typing import Any, NamedTuple

from forebay._entry import LENT

from .configurations import Configuration
from .driver import Cancelled, Connection, Failure, ModelDriver, Refusals, Refused
from .runtime import ModelRuntime, ModelWaiter, Request, ask
from .shipped import Code, leave_lock

EXPECTED = (Failure, Cancelled, Refused)


class Move(NamedTuple):
    """One choice of the explorer."""

    actor: str  # "client", "flow", "job", "pool", "server" or "clock"
    number: int
    action: str


class Task:
    """A flow that was begun and has not ended."""

    __slots__ = ("coro", "done", "name", "request")

    def __init__(self, name: str, coro: Coroutine[Any, Any, Any], done: Callable[[Any], None]):
        self.name = name
        self.coro = coro
        self.done = done
        self.request: Request = Request("nothing")


class Client:
    """A client: asks, holds, returns, so many times."""

    __slots__ = ("conn", "left", "number", "task")

    def __init__(self, number: int, operations: int) -> None:
        self.number = number
        self.left = operations
        self.conn: Connection | None = None
        self.task: Task | None = None


class World:
    """Everything there is; deterministic: the same moves lead to the same state."""

    def __init__(self, config: Configuration, code: Code) -> None:
        self.config = config
        self.preempted = code.preempted
        self.runtime = ModelRuntime(config.chance)
        self.driver = ModelDriver()
        self.core = code.core(Refusals(), **_settings(config))
        self.flows = code.flows(
            self.core,
            self.runtime,
            self.driver,
            name="model",
            connection_class=None,
            configure=_configure if config.configure else None,
            check=_check if config.check else None,
            reset=_reset if config.reset else None,
            gave_up=_gave_up if config.reconnect_timeout < inf else None,
        )
        self.clients = [Client(i, config.operations) for i in range(config.clients)]
        self.tasks: dict[int, Task] = {}
        self.begun = 0
        self.mishaps = config.mishaps
        self.ticks = config.ticks
        self.orders = list(config.orders)
        self.largest = config.max_size  # the largest max_size so far
        self.surprise: str | None = None  # an exception that nobody should see
        self.flows.open()

    # Moves -------------------------------------------------------------------------------------

    def moves(self) -> list[Move]:
        """Everything that may happen next."""
        return [
            *self._client_moves(),
            *self._task_moves(),
            *(Move("job", job.number, "begins") for job in self.runtime.jobs.values()),
            *(Move("pool", 0, order) for order in dict.fromkeys(self.orders)),
            *self._server_moves(),
            *self._clock_moves(),
        ]

    def _client_moves(self) -> Iterator[Move]:
        fresh: set[int] = set()  # clients that have done the same are interchangeable
        for client in self.clients:
            if client.task is not None:
                continue
            if client.conn is not None:
                yield Move("client", client.number, "returns")
                if self.mishaps:
                    yield from (
                        Move("client", client.number, f"returns {how}")
                        for how in self.config.returns
                    )
            elif client.left and client.left not in fresh:
                fresh.add(client.left)
                yield Move("client", client.number, "asks")

    def _task_moves(self) -> Iterator[Move]:
        for number, task in self.tasks.items():
            kind, subject, deadline = task.request
            if kind != "wait" or subject.woken:
                yield Move("flow", number, "goes on")
            if deadline is not None and deadline <= self.runtime.time:
                yield Move("flow", number, "times out")
            if self.mishaps and kind in self.config.fails:
                yield Move("flow", number, "fails")
            if self.mishaps and kind in self.config.cancels:
                yield Move("flow", number, "is cancelled")

    def _server_moves(self) -> Iterator[Move]:
        """The server may end the session of a connection that is lent."""
        if self.mishaps and self.config.cuts:
            for conn in self.known():
                if conn.state != "broken" and conn.entry is not None and conn.entry.place is LENT:
                    yield Move("server", conn.number, "cuts connection")

    def _clock_moves(self) -> Iterator[Move]:
        if not self.config.clock:
            return
        if self.core.due <= self.runtime.time:
            yield Move("clock", 0, "maintains")
        elif (
            self.ticks
            and self.runtime.time < self.next_deadline() < inf
            and (self.config.clock == "free" or not self._busy())
        ):
            yield Move("clock", 0, "ticks")

    def _busy(self) -> bool:
        """Whether something can go on without the clock."""
        asleep = [t for t in self.tasks.values() if t.request.kind == "wait"]
        return (
            bool(self.runtime.jobs)
            or any(client.task is None and (client.left or client.conn) for client in self.clients)
            or len(asleep) < len(self.tasks)
            or any(task.request.subject.woken for task in asleep)
        )

    def next_deadline(self) -> float:
        """When something happens because of time alone."""
        waits = [task.request.deadline for task in self.tasks.values()]
        due: float = self.core.due
        return min([due, *(at for at in waits if at is not None)])

    def apply(self, move: Move) -> None:
        """Make a move."""
        getattr(self, f"_move_{move.actor}")(move)

    def _move_client(self, move: Move) -> None:
        _, number, action = move
        client = self.clients[number]
        if action == "asks":
            client.left -= 1
            self._begin(f"client {number}", self._getconn(), client, self._receive(client))
            return
        conn, client.conn = client.conn, None
        assert conn is not None
        if action != "returns":
            self.mishaps -= 1
        if action == "returns dropped":
            conn.excused = True
            return
        if conn.state == "clean" and action != "returns":
            conn.state = action.removeprefix("returns ")
        self._begin(f"client {number}", self._putconn(conn), client)

    def _move_job(self, move: Move) -> None:
        job = next(job for job in self.runtime.jobs.values() if job.number == move.number)
        del self.runtime.jobs[job.key]
        self._begin(f"job {job.number}", job.job())

    def _move_flow(self, move: Move) -> None:
        _, number, action = move
        task = self.tasks[number]
        conn = task.request.subject
        if action in ("goes on", "times out"):
            self._step(number, task, task.coro.send, None)
            return
        self.mishaps -= 1
        if isinstance(conn, Connection):
            conn.spoiled = True
            conn.excused = conn.excused or task.request.kind == "close"
        del conn
        # No name for the error: this frame and the error's traceback were a cycle that keeps
        # connections.
        self._step(number, task, task.coro.throw, Failure() if action == "fails" else Cancelled())

    def _move_pool(self, move: Move) -> None:
        self.orders.remove(move.action)
        verb, *sizes = move.action.split()
        if verb == "resize":
            low, high = map(int, sizes)
            self.largest = max(self.largest, high)
            self.flows.transition("resize", low, high)
        elif verb == "drain":
            self.driver.generation += 1
            self.flows.transition("drain")
        else:
            flow = {"close": self._close, "wait": self._wait, "verify": self.flows.verify}[verb]
            self._begin(verb, flow())

    def _move_server(self, move: Move) -> None:
        self.mishaps -= 1
        conn = next(conn for conn in self.known() if conn.number == move.number)
        conn.state = "broken"
        conn.excused = True  # there is nothing left to close

    def _move_clock(self, move: Move) -> None:
        if move.action == "ticks":
            self.ticks -= 1
            self.runtime.time = self.next_deadline()
        else:
            self.flows.maintain()

    # Flows -------------------------------------------------------------------------------------

    def _begin(
        self,
        name: str,
        coro: Coroutine[Any, Any, Any],
        client: Client | None = None,
        done: Callable[[Any], None] | None = None,
    ) -> None:
        """Begin a flow, for a client or by itself."""
        self.begun += 1
        task = Task(name, coro, done or _ignore)
        self.tasks[self.begun] = task
        if client is not None:
            client.task = task
        self._step(self.begun, task, coro.send, None)

    def _step(
        self, number: int, task: Task, how: Callable[[Any], Request], value: BaseException | None
    ) -> None:
        """Let a flow run to its next request, or to its end."""
        try:
            task.request = how(value)
        except StopIteration as stop:
            self._end(number, task)
            task.done(stop.value)
        except BaseException as error:
            value = None  # for the same reason
            self._end(number, task)
            if not isinstance(error, EXPECTED):
                self.surprise = f"{task.name} ended with {error!r}"

    def _end(self, number: int, task: Task) -> None:
        del self.tasks[number]
        for client in self.clients:
            if client.task is task:
                client.task = None

    def _receive(self, client: Client) -> Callable[[Any], None]:
        def receive(conn: Any) -> None:
            client.conn = conn
            if conn is None:
                self.surprise = f"client {client.number} got nothing"

        return receive

    async def _getconn(self) -> Any:
        """What the doors do to lend a connection."""
        with self.runtime.lock:
            conn = self.core.checkout(self.runtime.now())
        if self.preempted:
            await leave_lock(self.runtime)
        if conn is None or self.flows.check is not None:
            conn = await self.flows.acquire(conn, self.config.timeout)
        return conn

    async def _putconn(self, conn: Connection) -> None:
        """What the doors do to take a connection back."""
        entry = self.driver.entry(conn)
        if self.driver.unclean(conn) or self.flows.reset is not None:
            await self.flows.release(entry, conn)
            return
        with self.runtime.lock:
            effects = self.core.checkin(entry, conn, self.runtime.now())
        if self.preempted:
            await leave_lock(self.runtime)
        if effects is not None:
            await self.flows.conclude(effects)

    async def _close(self) -> None:
        await self.flows.close(0)

    async def _wait(self) -> None:
        await self.flows.wait(self.config.timeout)

    def end(self) -> None:
        """Take everything apart, so that nothing of this world is left for the collector."""
        self.runtime.ended = True
        for task in [*self.tasks.values()]:
            with suppress(Exception):  # where something is wrong, it may show here once more
                task.coro.close()
        self.tasks.clear()
        self.clients.clear()
        self.runtime.jobs.clear()

    # Readings ----------------------------------------------------------------------------------

    def waiters(self) -> list[ModelWaiter]:
        """All whom a flow waits with, served or not."""
        return [t.request.subject for t in self.tasks.values() if t.request.kind == "wait"]

    def known(self) -> list[Connection]:
        """Every connection that an entry of the pool refers to."""
        entries = [*self.core.entries, *self.core.retiring]
        held = [entry.conn or (entry.ref and entry.ref()) for entry in entries]
        return [thing for thing in held if isinstance(thing, Connection)]


def _settings(config: Configuration) -> dict[str, Any]:
    names = (
        "min_size max_size keep retrying eager lifo max_waiting max_lifetime max_idle"
        " reconnect_timeout num_workers"
    )
    return {name: getattr(config, name) for name in names.split()}


def _ignore(_result: Any) -> None:
    """Nobody wants it."""


async def _configure(conn: Connection) -> None:
    await ask("configure", conn)


async def _check(conn: Connection) -> None:
    await ask("check", conn)


async def _reset(conn: Connection) -> None:
    await ask("reset", conn)


async def _gave_up() -> None:
    await ask("gave up")
