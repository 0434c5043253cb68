"""One world: a pool, its clients and its workers, moved one step at a time."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterator
from contextlib import suppress
from math import inf
from typing import Any, NamedTuple

from forebay._entry import IDLE, LENT, OPENING, Entry

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

    __slots__ = ("coro", "deaf", "done", "entry", "hung", "name", "request")

    def __init__(
        self,
        name: str,
        coro: Coroutine[Any, Any, Any],
        done: Callable[[Any], None],
        entry: Any = None,
    ):
        self.name = name
        self.coro = coro
        self.done = done
        self.entry = entry  # whose job it is
        self.hung = False  # its request never ends
        self.deaf = False  # not even when its socket is shut down
        self.request: Request = Request("nothing")

    @property
    def opens(self) -> bool:
        """Whether it connects for an entry that still counts."""
        counts = isinstance(self.entry, Entry) and self.entry.place is OPENING
        return counts and self.request.kind in ("connect", "configure")

    @property
    def stuck(self) -> bool:
        """Whether nothing will free it yet: no cut, nor that it was given up."""
        subject = self.request.subject
        given_up = isinstance(self.entry, Entry) and self.entry.given_up
        cut = isinstance(subject, Connection) and subject.cut and not self.deaf
        return self.hung and not given_up and not cut


class Client:
    """A client: asks, holds, returns, so many times."""

    __slots__ = ("conn", "leases", "left", "number", "outer", "task")

    def __init__(self, number: int, operations: int, leases: bool) -> None:
        self.number = number
        self.left = operations
        self.leases = leases  # whether the pool knows which of its connections it has
        self.conn: Connection | None = None
        self.outer: Connection | None = None  # which it held before, and still does
        self.task: Task | None = None


class World:
    """Everything there is; deterministic: the same moves lead to the same state."""

    def __init__(self, config: Configuration, code: Code) -> None:
        self.config = config
        self.preempted = code.preempted
        self.runtime = ModelRuntime(config.chance)
        self.driver = ModelDriver(
            timed=config.action_timeout < inf, noisy=config.noisy, verdict=config.verdict
        )
        refusals = Refusals()
        self.core = code.core(refusals, **_settings(config))
        self.flows = code.flows(
            self.core,
            self.runtime,
            self.driver,
            name="model",
            connection_class=None,
            conninfo=_conninfo if config.fresh else "",
            configure=_configure if config.configure else None,
            check=_check if config.check else None,
            reset=_reset if config.reset else None,
            gave_up=_gave_up if config.reconnect_timeout < inf else None,
        )
        leases = [config.nested or "forsaken" in "".join(config.returns)] * config.clients
        leases[-1] &= not config.unleased
        self.clients = [Client(i, config.operations, each) for i, each in enumerate(leases)]
        self.tasks: dict[int, Task] = {}
        self.begun = 0
        self.mishaps = config.mishaps
        self.ticks = config.ticks
        self.orders = list(config.orders)
        self.largest = config.max_size  # the largest max_size so far
        self.forsaken: list[Connection] = []  # whose leases were dropped, but not they themselves
        self.surprise: str | None = None  # an exception that nobody should see
        self.refusals = refusals
        refusals.deadlocked = self._doubt_deadlock
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
        fresh: set[tuple[int, bool]] = set()  # clients that have done the same are alike
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
                nested = self.config.nested and client.leases
                if nested and client.left and client.outer is None:
                    yield Move("client", client.number, "asks")
            elif client.outer is not None:
                yield Move("client", client.number, "returns")
            elif client.left and (client.left, client.leases) not in fresh:
                fresh.add((client.left, client.leases))
                yield Move("client", client.number, "asks")

    def _task_moves(self) -> Iterator[Move]:
        for number, task in self.tasks.items():
            kind, subject, deadline = task.request
            if task.stuck:
                continue
            if task.hung and isinstance(subject, Connection):
                yield Move("flow", number, "is freed")
            if self.mishaps and kind in self.config.hangs and not task.hung:
                yield Move("flow", number, "hangs")
            if kind != "wait" or subject.woken:
                yield Move("flow", number, "goes on")
            if deadline is not None and deadline <= self.runtime.time:
                yield Move("flow", number, "times out")
            if self.mishaps and kind in self.config.fails:
                yield Move("flow", number, "fails")
            if self.mishaps and kind in self.config.cancels:
                yield Move("flow", number, "is cancelled")

    def _server_moves(self) -> Iterator[Move]:
        """The server may end the session of a connection that is lent, or idle."""
        places = [LENT] * self.config.cuts + [IDLE] * self.config.kills
        if self.mishaps and places:
            for conn in self.known():
                if conn.state != "broken" and conn.entry and conn.entry.place in places:
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
        asleep = [t for t in self.tasks.values() if t.request.kind == "wait" or t.stuck]
        return (
            bool(self.runtime.jobs)
            or any(c.task is None and (c.left or c.conn or c.outer) for c in self.clients)
            or len(asleep) < len(self.tasks)
            or any(t.request.subject.woken for t in asleep if t.request.kind == "wait")
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
            client.outer, client.conn = client.conn, None
            self._begin(f"client {number}", self._getconn(), client, self._receive(client))
            return
        conn = client.conn or client.outer
        assert conn is not None
        if client.conn is not None:
            client.conn = None
        else:
            client.outer = None
        if action != "returns":
            self.mishaps -= 1
        if action == "returns dropped":
            conn.excused = True
            self.forsaken = [each for each in self.forsaken if each is not conn]
            return
        if action.startswith("returns forsaken"):
            self.core.forsaken.append((conn, self.driver.entry(conn).lent_at))
            if action == "returns forsaken":
                self.forsaken.append(conn)
                return
        elif conn.state == "clean" and action != "returns":
            conn.state = action.removeprefix("returns ")
        self._begin(f"client {number}", self._putconn(conn), client)

    def _move_job(self, move: Move) -> None:
        job = next(job for job in self.runtime.jobs.values() if job.number == move.number)
        del self.runtime.jobs[job.key]
        self._begin(f"job {job.number}", job.job(), entry=job.key)

    def _move_flow(self, move: Move) -> None:
        _, number, action = move
        task = self.tasks[number]
        conn = task.request.subject
        if action == "hangs":
            self.mishaps -= 1
            task.hung = True
            task.deaf = self.config.deaf
            return
        task.hung = False
        if action == "is freed":
            self._step(number, task, task.coro.throw, Failure())
            return
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
        elif verb in ("promote", "demote"):
            self.driver.standby_now = verb == "demote"
            for conn in self.known():
                conn.state = "broken"
                conn.excused = True
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
        entry: Any = None,
    ) -> None:
        """Begin a flow, for a client or by itself."""
        self.begun += 1
        task = Task(name, coro, done or _ignore, entry)
        self.tasks[self.begun] = task
        if client is not None:
            client.task = task
        self._step(self.begun, task, coro.send, None)

    def _step(
        self, number: int, task: Task, how: Callable[[Any], Request], value: BaseException | None
    ) -> None:
        """Let a flow run to its next request, or to its end."""
        if self.config.nested:
            self.runtime.asking = next((c for c in self.clients if c.task is task), None)
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
                return
            conn.uses += self.config.max_uses > 0
            if conn.uses > self.config.max_uses:
                self.surprise = f"{conn} is lent {conn.uses} times"
            if client.leases:
                self.driver.entry(conn).leased = client if self.config.nested else "a lease"
            if conn.state == "broken" and self.config.bypass_window < 0 and not self.preempted:
                self.surprise = f"client {client.number} got a dead connection"

        return receive

    async def _getconn(self) -> Any:
        """What the doors do to lend a connection."""
        with self.runtime.lock:
            conn = self.core.checkout(self.runtime.now())
        if self.preempted:
            await leave_lock(self.runtime)
        if conn is None or self.flows.check is not None or self.core.max_uses:
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
        self.runtime.asking = None
        self.refusals.deadlocked = _nobody_cares
        for task in [*self.tasks.values()]:
            with suppress(Exception):  # where something is wrong, it may show here once more
                task.coro.close()
        self.tasks.clear()
        self.clients.clear()
        self.forsaken.clear()
        self.runtime.jobs.clear()

    # Readings ----------------------------------------------------------------------------------

    @property
    def may_come_again(self) -> bool:
        """Whether a client may find that the connection it was given is no good."""
        return self.config.check or self.config.kills or self.config.cuts

    def deadlocked(self) -> bool:
        """Whether all connections there can be are held by clients that wait for another one."""
        core = self.core
        stuck = [client for client in self.clients if client.leases and self._queues(client)]
        held = [client.outer.entry for client in stuck if client.outer is not None]
        full = core.phase.name == "OPEN" and len(core.entries) >= core.max_size
        return full and all(e.place is LENT and e in held for e in core.entries)

    def _doubt_deadlock(self) -> None:
        """Somebody is to be refused for a deadlock: there must be one."""
        asking = self.runtime.asking  # who has just begun to wait
        waiting = [c for c in self.clients if c is asking or self._queues(c)]
        held = [client.outer.entry for client in waiting if client.outer is not None]
        entries = self.core.entries
        if len(entries) < self.core.max_size or not all(entry in held for entry in entries):
            self.surprise = "a client is refused for a deadlock that is none"

    def _queues(self, client: Client) -> bool:
        return client.task is not None and client.task.request.subject in self.core.waiting

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
        " reconnect_timeout num_workers bypass_window keepalive_interval max_uses action_timeout"
    )
    return {name: getattr(config, name) for name in names.split()}


def _ignore(_result: Any) -> None:
    """Nobody wants it."""


def _nobody_cares() -> None:
    """The world has ended."""


async def _conninfo() -> str:
    return ""


async def _configure(conn: Connection) -> None:
    await ask("configure", conn)


async def _check(conn: Connection) -> None:
    await ask("check", conn)


async def _reset(conn: Connection) -> None:
    await ask("reset", conn)


async def _gave_up() -> None:
    await ask("gave up")
