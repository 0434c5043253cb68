"""One world: a pool, its clients and its workers, moved one step at a time."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterator
from contextlib import suppress
from functools import partial
from math import inf
from typing import Any, NamedTuple

from forebay._entry import IDLE, LENT, OPENING, Entry
from forebay.options import Settings

from .configurations import Configuration
from .driver import Cancelled, Connection, Failure, ModelDriver, NoAnswer, Refusals, Refused
from .handler import interrupted, run_through
from .runtime import ModelRuntime, ModelWaiter, Request, ask
from .shipped import Code, leave_lock

EXPECTED = (Failure, Cancelled, Refused)


class Move(NamedTuple):
    """One choice of the explorer."""

    actor: str  # "client", "flow", "job", "pool", "server", "clock" or "handler"
    number: int
    action: str
    handler: str = ""  # what a handler does meanwhile
    point: int = 0  # before which line of the core and the flows


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
        return counts and self.request.kind in ("connect", "configure", "ping")

    @property
    def stuck(self) -> bool:
        """Whether nothing will free it yet: no cut, nor that it was given up."""
        subject = self.request.subject
        given_up = isinstance(self.entry, Entry) and self.entry.given_up
        cut = isinstance(subject, Connection) and subject.cut and not self.deaf
        return self.hung and not given_up and not cut


class Client:
    """A client: asks, holds, returns, so many times."""

    __slots__ = ("conn", "late", "leases", "left", "lendings", "number", "outer", "stale", "task")

    def __init__(self, number: int, operations: int, leases: bool) -> None:
        self.number = number
        self.left = operations
        self.leases = leases  # whether the pool knows which of its connections it has
        self.conn: Connection | None = None
        self.outer: Connection | None = None  # which it held before, and still does
        self.lendings: dict[Connection, Lending] = {}  # of these two
        self.late: Lending | None = None  # of a lease it has, whose connection it has returned
        self.stale: tuple[Connection, float] | None = None  # what it will return once more
        self.task: Task | None = None

    def told(self) -> tuple[Any, ...]:
        """What tells it from the others."""
        lendings = [self.lendings.get(conn) for conn in (self.conn, self.outer) if conn]
        return self.left, self.leases, self.conn, self.outer, lendings, self.late, self.stale


class Lending(NamedTuple):
    """What a lease has besides its connection."""

    token: Any
    lent_at: float


class World:
    """Everything there is; deterministic: the same moves lead to the same state."""

    def __init__(self, config: Configuration, code: Code) -> None:
        self.config = config
        self.preempted = code.preempted
        self.runtime = ModelRuntime(config.chance, loop=config.loop)
        self.driver = ModelDriver(
            timed=config.action_timeout < inf, noisy=config.noisy, verdict=config.verdict
        )
        refusals = Refusals()
        self.core = code.core(refusals, _settings(config), config.keep)
        source = code.source(conninfo=_conninfo if config.fresh else "")
        self.flows = code.flows(
            self.core,
            self.runtime,
            self.driver,
            name="model",
            source=lambda: source,
            configure=_configure if config.configure else None,
            check=_check if config.check else None,
            reset=_reset if config.reset else None,
            gave_up=_gave_up if config.reconnect_timeout < inf else None,
        )
        leases = [config.leased] * config.clients
        leases[-1] &= not config.unleased
        self.clients = [Client(i, config.operations, each) for i, each in enumerate(leases)]
        self.handler = Client(config.clients, config.handles, True)
        self.failed = 0  # attempts to connect
        self.forgot = False  # whether jobs were forgotten: maintenance orders them again
        self.handled = False  # whether the last move was long enough to be interrupted
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
        """Everything that may happen next; what a handler may interrupt, it interrupts anywhere."""
        moves = self._plain_moves()
        handling = self._handling()
        interrupted = [move._replace(handler=action) for move in moves for action in handling]
        return [*moves, *(Move("handler", 0, action) for action in handling), *interrupted]

    def _plain_moves(self) -> list[Move]:
        return [
            *self._client_moves(),
            *self._task_moves(),
            *(Move("job", job.number, "begins") for job in self.runtime.jobs.values()),
            *(Move("pool", 0, order) for order in dict.fromkeys(self.orders)),
            *self._server_moves(),
            *self._clock_moves(),
        ]

    def _handling(self) -> list[str]:
        """What a handler may do next."""
        if self.handler.conn is not None:
            return [action for action in self.config.handler if action.startswith("returns")]
        if not self.handler.left:
            return []
        closed = self.core.phase.name == "CLOSED" or self.flows._closing
        actions = [action for action in self.config.handler if not action.startswith("returns")]
        return [action for action in actions if action != "closes" or not closed]

    def _return_through(self, client: Client, action: str, locked: Callable[[], bool]) -> None:
        flow = self._return(client, action)
        if flow is not None:
            run_through(flow, locked)

    def _client_moves(self) -> Iterator[Move]:
        fresh: set[tuple[object, ...]] = set()  # clients that have done the same are alike
        for client in self.clients:
            if client.task is not None:
                continue
            if client.late is not None:
                yield Move("client", client.number, "drops its lease")
            if client.stale is not None:
                yield Move("client", client.number, "returns again")
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
            elif client.left and (alike := client.told()[:2] + client.told()[-2:]) not in fresh:
                fresh.add(alike)
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
        if self.is_due:
            yield Move("clock", 0, "maintains")
        elif self.runtime.time < self.next_deadline() < inf and self._may_tick():
            yield Move("clock", 0, "ticks")

    def _may_tick(self) -> bool:
        """Whether time may pass: a free clock always goes on when nothing else can happen."""
        free = self.config.clock == "free"
        return (free or self.ticks > 0) if not self._busy() else (free and self.ticks > 0)

    def _busy(self) -> bool:
        """Whether something can go on without the clock."""
        asleep = [t for t in self.tasks.values() if t.request.kind == "wait" or t.stuck]
        return (
            bool(self.runtime.jobs)
            or any(
                c.task is None and (c.left or c.conn or c.outer or c.late or c.stale)
                for c in self.clients
            )
            or self.handler.conn is not None
            or len(asleep) < len(self.tasks)
            or any(t.request.subject.woken for t in asleep if t.request.kind == "wait")
        )

    @property
    def is_due(self) -> bool:
        """Whether maintenance runs now."""
        return self.core.due <= self.runtime.time or self.runtime.alarmed

    def next_deadline(self) -> float:
        """When something happens because of time alone."""
        waits = [task.request.deadline for task in self.tasks.values()]
        due: float = self.core.due
        return min([due, *(at for at in waits if at is not None)])

    def apply(self, move: Move) -> None:
        """Make a move."""
        make = partial(getattr(self, f"_move_{move.actor}"), move)
        self.handled = False
        if move.handler:
            handle = partial(self._handle, move.handler)
            self.handled = interrupted(make, move.point, handle)
        else:
            make()

    def _move_handler(self, move: Move) -> None:
        self._handle(move.action)

    def _handle(self, action: str) -> None:
        """Do what a handler does, to its end."""
        handler, asking = self.handler, self.runtime.asking
        locked = partial(self.runtime.inside, self.core)
        self.runtime.lock.interrupted = True
        self.runtime.asking = handler if self.config.nested else None
        try:
            if action == "asks":
                handler.left -= 1
                self._receive(handler)(run_through(self._getconn(0), locked))
            elif action == "block":
                handler.left -= 1
                self._receive(handler)(run_through(self._getconn(0), locked))
                self._return_through(handler, "returns", locked)
            elif action == "closes":
                handler.left -= 1
                run_through(self.flows.close(1), locked)
            else:
                self._return_through(handler, action, locked)
        except EXPECTED:
            pass
        except BaseException as error:
            self.surprise = f"a handler ended with {error!r}"
        finally:
            self.runtime.lock.interrupted = False
            self.runtime.asking = asking

    def _move_client(self, move: Move) -> None:
        number, action = move.number, move.action
        client = self.clients[number]
        if action == "asks":
            client.left -= 1
            client.outer, client.conn = client.conn, None
            self._begin(
                f"client {number}",
                self._getconn(self.config.timeout),
                client,
                self._receive(client),
            )
            return
        if action == "drops its lease":
            client.late = None
        elif action == "returns again":
            assert client.stale is not None
            (conn, lending), client.stale = client.stale, None
            self._begin(f"client {number}", self._return_stale(conn, lending), client)
        else:
            self.mishaps -= action != "returns"
            flow = self._return(client, action)
            if flow is not None:
                self._begin(f"client {number}", flow, client)

    def _return(self, client: Client, action: str) -> Coroutine[Any, Any, None] | None:
        """What a client does to return its connection; `None`: nothing but to forget it."""
        conn = client.conn or client.outer
        assert conn is not None
        if client.conn is not None:
            client.conn = None
        else:
            client.outer = None
        entry = self.driver.entry(conn)
        conn.back = True
        lending = client.lendings.pop(conn, None)
        if action == "returns dropped":
            conn.excused = True
            self.forsaken = [each for each in self.forsaken if each is not conn]
            return None
        if action == "returns forsaken":
            self.forsaken.append(conn)
            return None
        if self.core.phase.name == "CLOSED" and self.runtime.inside(self.core):
            conn.excused = True  # who returns it in the middle of close() has dropped it
        if action == "returns unclean":
            conn.state = "unclean" if conn.state == "clean" else conn.state
        else:
            self._commit(client, conn)
        if action == "returns twice":
            client.stale = conn, entry.lent_at
        if action == "returns late":
            client.late = lending
        elif lending is not None:
            entry.token = lending.token
            entry.kept = None
        return self._putconn(conn, entry.lent_at if lending is None else lending.lent_at)

    def _commit(self, client: Client, conn: Connection) -> None:
        """End a block without an error: what was done in it must be committed by that."""
        if conn.state == "clean":
            if conn.work is not client:
                self.surprise = f"{conn}: a block ended without an error and was not committed"
            conn.work = None

    def _move_job(self, move: Move) -> None:
        job = next(job for job in self.runtime.jobs.values() if job.number == move.number)
        del self.runtime.jobs[job.key]
        self._begin(f"job {job.number}", job.job(), entry=job.key)

    def _move_flow(self, move: Move) -> None:
        number, action = move.number, move.action
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
        self.failed += task.opens
        if isinstance(conn, Connection):
            conn.spoiled = True
            conn.excused = conn.excused or task.request.kind == "close"
        del conn
        # No name for the error: this frame and the error's traceback were a cycle that keeps
        # connections.
        self._step(number, task, task.coro.throw, self._error(action))

    def _error(self, action: str) -> BaseException:
        if action == "is cancelled":
            return Cancelled()
        return NoAnswer() if self.config.unanswered else Failure()

    def _move_pool(self, move: Move) -> None:
        self.orders.remove(move.action)
        verb, *sizes = move.action.split()
        self.runtime.asking = None
        if verb == "resize":
            low, high = map(int, sizes)
            self.largest = max(self.largest, high)
            self.flows.transition("resize", low, high)
        elif verb in ("promote", "demote"):
            self.driver.standby_now = verb == "demote"
            for conn in self.known():
                conn.state = "broken"
                conn.excused = conn.died = True
        elif verb == "forget":  # as a loop does whose tasks are cancelled
            self.runtime.jobs.clear()
            self.forgot = True
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
        conn.excused = conn.died = True  # there is nothing left to close

    def _move_clock(self, move: Move) -> None:
        if move.action == "ticks":
            self.ticks -= self._busy() or self.config.clock != "free"
            self.runtime.time = self.next_deadline()
        else:
            self.runtime.asking = None
            try:
                self.runtime.maintain()
            except Exception as error:
                self.surprise = f"maintenance ended with {error!r}"

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
            conn.work = client
            conn.uses += self.config.max_uses > 0
            if conn.uses > self.config.max_uses:
                self.surprise = f"{conn} is lent {conn.uses} times"
            if client.leases:
                self._lease(client, conn)
            if conn.state == "broken" and self.config.bypass_window < 0 and not self.preempted:
                self.surprise = f"client {client.number} got a dead connection"

        return receive

    def _lease(self, client: Client, conn: Connection) -> None:
        """What a lease does when it has been given its connection."""
        entry = self.driver.entry(conn)
        client.lendings[conn] = Lending(entry.token or self.core.tie(entry), entry.lent_at)
        entry.token = None
        entry.kept = conn
        entry.leased = client if self.config.nested else "a lease"

    async def _getconn(self, timeout: float) -> Any:
        """What the doors do to lend a connection."""
        with self.runtime.lock:
            conn = self.core.checkout(self.runtime.now())
        if self.preempted:
            await leave_lock(self.runtime)
        if conn is None or self.flows.check is not None or self.core.settings.max_uses:
            conn = await self.flows.acquire(conn, timeout)
        return conn

    async def _putconn(self, conn: Connection, lending: float) -> None:
        """What the doors do to take a connection back."""
        entry = self.driver.entry(conn)
        if self.driver.unclean(conn) or self.flows.reset is not None:
            await self.flows.release(entry, conn)
            return
        with self.runtime.lock:
            effects = self.core.checkin(entry, conn, self.runtime.now(), lending)
        if self.preempted:
            await leave_lock(self.runtime)
        if effects is not None:
            await self.flows.conclude(effects)

    async def _return_stale(self, conn: Connection, lending: float) -> None:
        """What a lease does whose connection was returned since it looked whether it was."""
        with self.runtime.lock, suppress(ValueError):
            effects = self.core.checkin(conn.entry, conn, self.runtime.now(), lending)
            conn = None  # type: ignore[assignment]
        if conn is None and effects is not None:
            await self.flows.conclude(effects)

    async def _close(self) -> None:
        await self.flows.close(1)

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
        self.handler.conn = None
        self.handler.lendings.clear()
        self.forsaken.clear()
        self.runtime.jobs.clear()

    # Readings ----------------------------------------------------------------------------------

    @property
    def may_come_again(self) -> bool:
        """Whether a client may find that the connection it was given is no good."""
        return self.config.check or self.config.kills or self.config.cuts

    @property
    def may_distrust(self) -> bool:
        """Whether a new connection may turn out to be no good."""
        return self.may_come_again or bool(self.orders)

    def deadlocked(self) -> bool:
        """Whether all connections there can be are held by clients that wait for another one."""
        core = self.core
        stuck = [client for client in self.clients if client.leases and self._queues(client)]
        held = [client.outer.entry for client in stuck if client.outer is not None]
        full = core.phase.name == "OPEN" and len(core.entries) >= core.settings.max_size
        return full and all(e.place is LENT and e in held for e in core.entries)

    def _doubt_deadlock(self) -> None:
        """Somebody is to be refused for a deadlock: there must be one."""
        waiting = [client for client in self.clients if self._queues(client)]
        held = [client.outer.entry for client in waiting if client.outer is not None]
        entries = self.core.entries
        if len(entries) < self.core.settings.max_size or not all(
            entry in held for entry in entries
        ):
            self.surprise = "a client is refused for a deadlock that is none"

    def _queues(self, client: Client) -> bool:
        return any(waiter.client is client for waiter in self.core.waiting)

    def waiters(self) -> list[ModelWaiter]:
        """All whom a flow waits with, served or not."""
        return [t.request.subject for t in self.tasks.values() if t.request.kind == "wait"]

    def known(self) -> list[Connection]:
        """Every connection that an entry of the pool refers to."""
        entries = [*self.core.entries, *self.core.retiring]
        held = [entry.conn or (entry.ref and entry.ref()) for entry in entries]
        return [thing for thing in held if isinstance(thing, Connection)]


def _settings(config: Configuration) -> Settings:
    own = [name for name in Settings.__slots__ if hasattr(config, name)]
    order = "lifo" if config.lifo else "fifo"
    return Settings.of(idle_order=order, **{name: getattr(config, name) for name in own})


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
