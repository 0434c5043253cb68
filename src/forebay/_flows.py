"""All I/O of the pool, told once, for threads, asyncio and the model.

The rules of this file.

*   An exception at an `await` is a cancellation, whoever threw it.  Undo is a transition of the
    core; then carry out what it asks.
*   Between two awaits the core is entered at most once, and no I/O happens under the lock.
*   What the core has given out lives in the local variables of the flow that works on it: where
    they are dropped, the slot comes back.
*   Nothing here knows which world it runs in.
"""

from __future__ import annotations

import logging
import traceback
from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from functools import partial
from math import inf
from typing import TYPE_CHECKING, Any, TypeVar

from ._core import DIED, Core, Phase
from ._entry import LENT, OPENING, RETIRED, ROLE, Chore, Effects, Entry, Hold, Permit
from ._policy import PARAMETERS_PATIENCE
from ._runtime import run_sync
from .errors import detach

if TYPE_CHECKING:
    from ._entry import Waiter
    from ._runtime import Runtime
    from .drivers import Driver

logger = logging.getLogger("forebay")

Callback = Callable[..., Any]
T = TypeVar("T")


class Source:
    """Where the parameters of connecting come from: a pool, or this, which stands for one."""

    def __init__(
        self, connection_class: Any = None, conninfo: Any = "", kwargs: Any = None
    ) -> None:
        self.connection_class = connection_class
        self.conninfo = conninfo
        self.kwargs = kwargs


class Flows:
    """What a pool does with its connections; `core` decides, `runtime` runs, `driver` connects."""

    #: Of the lines about connects that fail and connections that come back in no good state.
    level = logging.WARNING

    def __init__(
        self,
        core: Core,
        runtime: Runtime,
        driver: Driver,
        *,
        name: str,
        source: Callable[[], Any],
        configure: Callback | None = None,
        check: Callback | None = None,
        reset: Callback | None = None,
        gave_up: Callback | None = None,
    ) -> None:
        self.core = core
        self.runtime = runtime
        self.driver = driver
        self.name = name
        self.source = source  # gives the pool, whose parameters are read at each attempt
        self.configure = configure
        self.check = check
        self.reset = reset
        self.gave_up = gave_up  # called after reconnect_timeout seconds without success
        self._limit = Limit()
        self._closing = False  # close() was called inside a transition

    # Clients ---------------------------------------------------------------------------------

    async def acquire(self, conn: Any, timeout: float) -> Any:
        """A connection for a client: `conn` if it is alive and passes, else the first that does.

        Raises the pool's timeout error after `timeout` seconds; zero or less: only if one is
        ready now.
        """
        arrived, again = self.runtime.now(), conn is not None
        while True:
            if conn is None:
                conn = await self._queue(arrived, timeout, again)
            entry = self.driver.entry(conn)
            if await self._is_good(entry, conn, arrived):
                if self.core.settings.max_uses or not self.core.settings.max_lifetime:
                    self.core.use(entry)
                return conn
            conn, again = None, True

    async def _is_good(self, entry: Entry, conn: Any, arrived: float) -> bool:
        """Whether a connection that was lent just now is alive, and passes the user's check."""
        if self.core.doubtful(entry):
            if not self._is_alive(entry, conn):
                return False
            self.driver.deliver(conn)
        return self.check is None or await self._passes(entry, conn, arrived)

    async def _queue(self, arrived: float, timeout: float, again: bool) -> Any:
        """Wait in line for a connection, until `timeout` seconds after `arrived`.

        A client that comes `again` has been given one that was no good.  It may have the next that
        is idle even if its time is over, unless it has spent more than its time on checks.
        """
        core, runtime = self.core, self.runtime
        waiter = runtime.waiter()
        limit = max(timeout, core.settings.action_timeout) if again else inf
        self._expect_outside()
        try:
            with runtime.lock:
                now = runtime.now()
                ready = (core.idle or core.settings.eager) and now - arrived < limit
                if now - arrived >= timeout and not ready:
                    core.refuse()
                    raise core.refusals.timeout(core, timeout, now, waiter)
                effects = core.enqueue(waiter, now, arrived + timeout, again=again)
            self.carry_out(effects)
            patience: float | None = arrived + timeout - now
            while waiter not in effects.wake:
                await waiter.wait(patience)
                # What it was woken by, or not, tells nothing: only the core knows, under the lock.
                with runtime.lock:
                    if timeout > 0 or not core.promised(waiter):
                        now = runtime.now()
                        if core.expire(waiter, now):
                            waiter.error = core.refusals.timeout(core, timeout, now, waiter)
                        break
                patience = None  # it will be served or refused: an opening ends in either
        except BaseException:
            with runtime.lock:
                effects = core.cancel(waiter, runtime.now())
            self.carry_out(effects)
            raise
        if waiter.error is not None:
            raise _refusal(waiter)
        conn, waiter.conn = waiter.conn, None
        return conn

    def _is_alive(self, entry: Entry, conn: Any) -> bool:
        """Look at the socket of a connection that was lent after it had been idle."""
        error = self.driver.look(conn)
        if error is None:
            return True
        level = logging.DEBUG if self.core.suspicious else self.level  # one tells of them all
        label, chance = self.driver.label(conn), self.runtime.chance()
        self.transition("discard", entry, conn, chance=chance, lost=True, error=error)
        text = "the server has ended an idle session, discarding %s: %s"
        self._log(text, label, error, level=level)
        return False

    async def _passes(self, entry: Entry, conn: Any, arrived: float) -> bool:
        """Run the user's check on a connection that was lent just now."""
        assert self.check is not None
        try:
            await self._timed(entry, conn, "check", self.runtime.call(self.check, conn))
        except BaseException as error:
            runtime, kept = self.runtime, self.driver.keepable(error)
            with runtime.lock:
                effects = self.core.check_failed(
                    entry, conn, kept, arrived, runtime.now(), runtime.chance()
                )
            self.carry_out(effects)
            if not isinstance(error, Exception):
                del kept  # else the frame and the error's traceback are a circle that keeps `conn`
                raise
            detach(kept)
            self._log("check failed on %s: %s", self.driver.label(conn), error, level=logging.INFO)
            return False
        if self.core.unproven:
            self.transition("check_passed")
        return True

    async def release(self, entry: Entry, conn: Any) -> None:
        """Take a connection back that is not clean, or that must be reset before its next use."""
        core, runtime, lending = self.core, self.runtime, entry.lent_at
        if runtime.inside(core):  # no rollback while our own thread keeps others out
            core.put_off(entry, conn, lending)
            runtime.alarm(runtime.now())
            return
        try:
            usable = self.driver.usable(conn)
            worker = self.reset is not None or entry.chore is not Chore.RESET
            # Nobody would free a client of a closed pool; the server rolls back what is closed.
            if usable and not worker and core.phase is not Phase.CLOSED:
                await self._roll_back(entry, conn)
        except BaseException as error:
            self._discard(entry, conn, lending, None)
            if not isinstance(error, Exception):
                raise
            self._log("rollback failed, discarding %s: %s", self.driver.label(conn), error)
            return
        if not usable:
            label = self.driver.label(conn)
            cause = EndedError() if self.driver.died(conn) else None
            effects = self._discarding(entry, conn, lending, cause)
            self._log("discarding a connection that came back %s", label)
        else:
            with runtime.lock:
                effects = core.give_back(entry, conn, runtime.now(), lending, clean=not worker)
        await self.conclude(effects)

    def hand_over(self, entry: Entry, conn: Any) -> None:
        """Take a connection back that a worker must roll back, since its client cannot await."""
        with self.runtime.lock:
            effects = self.core.give_back(
                entry, conn, self.runtime.now(), entry.lent_at, clean=False
            )
        self.carry_out(effects)

    def _discarding(
        self, entry: Entry, conn: Any, lending: float, died: Exception | None
    ) -> Effects:
        """Discard a connection that came back; `died`: the server has ended its session."""
        runtime = self.runtime
        with runtime.lock:
            return self.core.discard(
                entry, conn, runtime.now(), runtime.chance(), lending=lending, error=died
            )

    def _discard(self, entry: Entry, conn: Any, lending: float, died: Exception | None) -> None:
        self.carry_out(self._discarding(entry, conn, lending, died))

    def heed(self, entry: Entry, error: BaseException) -> bool:
        """A lease ends by `error`; true if a write was refused: a worker asks the server why."""
        core = self.core
        if entry.place is not LENT or not core.writable or self.runtime.now() < core.demoted_until:
            return False
        if not self.driver.refuses_writes(error):
            return False
        entry.chore = ROLE
        return True

    async def conclude(self, effects: Effects) -> None:
        """Carry out what a return asks.

        A closed pool has no workers: then it is done here.  So is closing in a pool that keeps no
        connection: for its clients that is what a return is.
        """
        here: list[Entry] = []
        if self.core.phase is Phase.CLOSED:
            here, effects.start = effects.start, here
        elif not self.core.keep:
            here = [entry for entry in effects.start if entry.place is RETIRED]
            effects.start = [entry for entry in effects.start if entry.place is not RETIRED]
        self.carry_out(effects)
        for entry in here:
            await self.work(entry)

    # Workers -----------------------------------------------------------------------------------

    def carry_out(self, effects: Effects) -> None:
        """Wake, start and set the alarm; never suspends, so nobody's cancellation cuts it short.

        First what frees others: to start a worker takes a lock, for which one may have to wait
        until somebody is freed.
        """
        for lifeline in effects.cut:
            lifeline.cut()
        for waiter in effects.wake:
            waiter.wake()
        for entry in effects.start:
            self.runtime.spawn(entry, partial(self.work, entry), entry.place)
        for entry in effects.give_up:
            self.runtime.give_up(entry)
            self._log("gave up a worker whose action did not end in time")
        if effects.alarm:
            self.runtime.alarm(self.runtime.now() if self.core.returned else self.core.due)
        for entry in _taken(self.core.leaked):
            self._report_leak(entry)
        if effects.demoted and _is_rare(self.core.demotions):
            self._log("the server is a standby, looking for the primary", level=logging.WARNING)
        if effects.gave_up:
            text = "no connection in %s seconds of attempts: %s"
            error, seconds = self.core.last_error, self.core.settings.reconnect_timeout
            self._log(text, seconds, error or "no answer", level=logging.WARNING)
            if self.gave_up is not None:
                self.runtime.notify(self, self._report_failure)

    async def work(self, entry: Entry) -> None:
        """Do what the core has ordered for an entry, unless another worker has begun it."""
        with self.runtime.lock:
            held = self.core.begin(entry, self.runtime.now())
        if held is None:
            return
        if entry.place is OPENING:
            await self._open(entry, held)
        elif entry.place is RETIRED:
            await self._close(entry, held)
        elif entry.chore is Chore.PING:
            await self._verify(entry, held)
        elif entry.chore is Chore.LOOK:
            await self._inspect(entry, held)
        else:
            await self._reset(entry, held)

    async def _open(self, entry: Entry, permit: Permit) -> None:  # noqa: ARG002
        """Use a permit, which lives here, in this argument, until it has come back."""
        core, runtime = self.core, self.runtime
        started = runtime.now()
        conn = None
        try:
            conn = await self._connect(entry)
            self.driver.adopt(conn, entry)
            if self.configure is not None:
                await self._timed(entry, conn, "configure", runtime.call(self.configure, conn))
                self._expect_clean(conn, "configure", self.configure)
            if core.unproven == DIED:
                await self._timed(entry, conn, "check", self.driver.ping(conn))
            standby = self.driver.standby(conn)
        except BaseException as error:
            driver = self.driver
            verdict, kept = driver.verdict(error), driver.keepable(error)
            unanswered = driver.unanswered(error)
            with runtime.lock:
                now, chance = runtime.now(), runtime.chance()
                effects = core.open_failed(
                    entry, conn, kept, now, chance, verdict, unanswered=unanswered
                )
                failures = core.failures
            if isinstance(error, Exception):
                detach(kept)  # before a client is woken that may raise it
            self.carry_out(effects)
            if not isinstance(error, Exception):
                del kept  # as in _passes()
                raise
            self._log_failure(error, failures)
            return
        with runtime.lock:
            now, failures = runtime.now(), core.failures
            effects = core.opened(entry, conn, now - started, now, runtime.chance(), standby)
        self.carry_out(effects)
        if failures and not core.failures and core.phase is Phase.OPEN:
            self._log("connecting works again, after %d failed attempts", failures)
        if standby and _is_rare(core.demotions):
            text = "connected to a standby, looking for the primary"
            self._log(text, level=logging.WARNING)

    async def _connect(self, entry: Entry) -> Any:
        """Connect with the user's parameters."""
        core, driver, source = self.core, self.driver, self.source()
        if source is None:
            raise ReferenceError("the pool was collected by the garbage collector")
        if callable(source.conninfo) or callable(source.kwargs):
            core.fresh = True
            self._arm(entry, None, PARAMETERS_PATIENCE)
        conninfo, kwargs = await self.parameters(source)
        if core.writable is None:
            core.writable = driver.wants_writable(conninfo, kwargs)
        factor = 2**core.unanswered
        patience = driver.patience(conninfo, kwargs, factor, source.connection_class)
        self._arm(entry, None, patience + core.settings.action_timeout)
        overridden = getattr(source, "_forebay_overridden_connect", None)
        if overridden is not None and (connect := overridden()) is not None:
            return await self.runtime.call(connect)
        return await driver.connect(source.connection_class, conninfo, kwargs, factor)

    async def connect_by(self, source: Any, timeout: float | None = None) -> Any:
        """Connect once with the parameters of a pool."""
        conninfo, kwargs = await self.parameters(source)
        if timeout is not None:
            kwargs = {**kwargs, "connect_timeout": max(1, round(timeout))}
        return await self.driver.connect(source.connection_class, conninfo, kwargs)

    async def connect_apart(self, source: Any, timeout: float | None = None) -> Any:
        """Open a connection that is none of the pool's."""
        connect = source._forebay_overridden_connect()
        if connect is None:
            conn = await self.connect_by(source, timeout)
        else:
            conn = await self.runtime.call(connect, timeout)
        if self.configure is not None:
            try:
                await self.runtime.call(self.configure, conn)
                self._expect_clean(conn, "configure", self.configure)
            except BaseException:
                await self.driver.close(conn)
                raise
        return conn

    async def try_one(self, timeout: float) -> bool:
        """Open one connection as a test, and close it; false if `timeout` seconds are too few."""
        if self.core.phase is not Phase.OPEN:
            raise self.core.refusals.closed(self.core)
        waiter = self.runtime.waiter()

        async def attempt() -> None:
            with self.runtime.lock:
                self.core.connections_num += 1
            try:
                conn = await self.connect_apart(self.source())
                await self.driver.close(conn)
                waiter.ready = True
            except Exception as error:
                detach(error)
                waiter.error = error
            finally:
                waiter.wake()

        self.runtime.spawn(waiter, attempt, OPENING)
        await waiter.wait(timeout)
        if waiter.error is not None:
            raise _refusal(waiter)
        return waiter.ready

    async def parameters(self, source: Any) -> tuple[Any, dict[str, Any]]:
        """The connection string and the other arguments of connecting, as they are now."""
        if isinstance(source, Source):
            return await self.value(source.conninfo), await self.value(source.kwargs) or {}
        call = self.runtime.call
        return await call(source._resolve_conninfo), await call(source._resolve_kwargs)

    async def value(self, value: Any) -> Any:
        """What the user gave, or what it gives now if it is a callable."""
        return await self.runtime.call(value) if callable(value) else value

    async def _reset(self, entry: Entry, conn: Any) -> None:
        """Make a returned connection ready for the next client."""
        core, runtime = self.core, self.runtime
        try:
            await self._timed(entry, conn, "reset", self._restore(entry, conn))
        except BaseException as error:
            with runtime.lock:
                effects = core.discard(entry, conn, runtime.now(), runtime.chance())
            self.carry_out(effects)
            if not isinstance(error, Exception):
                raise
            text = "error resetting, discarding %s: %s"
            self._log(text, self.driver.label(conn), error, level=logging.WARNING)
            return
        with runtime.lock:
            effects = core.serviced(entry, conn, runtime.now())
        self.carry_out(effects)

    async def _restore(self, entry: Entry, conn: Any) -> None:
        """Roll back, run the user's reset, and find out whether the server is a standby."""
        if not self.driver.usable(conn):  # to roll back would wait for what has not ended
            raise self.driver.ProgrammingError(
                f"connection came back in status {self.driver.describe(conn)}: its last use has"
                " not ended"
            )
        if self.driver.unclean(conn):
            await self._end_transaction(conn)
        if self.reset is not None:
            await self.runtime.call(self.reset, conn)
            self._expect_clean(conn, "reset", self.reset)
        if entry.chore is ROLE and await self.driver.in_recovery(conn):
            self.transition("demoted", chance=self.runtime.chance())

    async def _close(self, entry: Entry, conn: Any) -> None:
        """Close a retired connection; what goes wrong then is of no more interest."""
        try:
            await self._timed(entry, conn, "close", self.driver.close(conn))
        except Exception as error:
            self._log("error closing %s: %s", self.driver.label(conn), error, level=logging.INFO)
        with self.runtime.lock:
            self.core.retired(entry)

    async def _report_failure(self) -> None:
        """Call the user's reconnect_failed."""
        assert self.gave_up is not None
        try:
            await self.runtime.call(self.gave_up)
        except Exception:
            text = "error in reconnect_failed: %s"
            self._log(text, traceback.format_exc(), level=logging.ERROR)

    # The pool ----------------------------------------------------------------------------------

    def open(self) -> None:
        """Start maintenance and begin to fill the pool."""
        self._expect_outside()
        self.runtime.start(self, self.name)
        with self.runtime.lock:
            effects = self.core.open(self.runtime.now())
        self.carry_out(effects)

    async def close(self, timeout: float) -> None:
        """Close the pool and what is idle, and wait up to `timeout` seconds for the workers.

        Inside a transition of its own thread it only says so: maintenance closes in a moment.
        """
        core, runtime = self.core, self.runtime
        if runtime.inside(core):
            self._closing = True
            runtime.alarm(runtime.now())
            return
        self._retake_forsaken()  # before: a closed pool leaves what is lent to its clients
        with runtime.lock:
            effects = core.close(runtime.now())
        self._closing = False
        self.carry_out(effects)
        if not await runtime.stop(timeout) and timeout > 0:
            text = "background work still runs %.1f seconds after close()"
            self._log(text, timeout, level=logging.WARNING)

    def move(self, *, evict: bool, closing: bool = False) -> None:
        """Go on in another event loop, the last one does not run; `evict`: it is closed.

        The sessions of a closed loop are closed on the spot.  If the pool is `closing` nothing
        more is opened.
        """
        core, runtime = self.core, self.runtime
        runtime.move()
        effects, left = core.resettle(runtime.now(), evict=evict)
        if closing:
            effects.start = [entry for entry in effects.start if entry.place is not OPENING]
        if evict:
            retired = [entry for entry in effects.start if entry.place is RETIRED]
            effects.start = [entry for entry in effects.start if entry.place is not RETIRED]
            left += [core.begin(entry, runtime.now()) or entry.conn for entry in retired]
            for entry in retired:
                core.retired(entry)
        for conn in filter(None, left):
            self.driver.end(conn)
        self.carry_out(effects)

    async def wait(self, timeout: float) -> bool:
        """Wait until min_size connections are idle; false if `timeout` seconds were too few."""
        core, runtime = self.core, self.runtime
        self._expect_outside()
        waiter = runtime.waiter()
        try:
            with runtime.lock:
                core.watch(waiter)
            if not waiter.ready:
                await waiter.wait(timeout)
        finally:
            with runtime.lock:
                effects = core.cancel(waiter, runtime.now())
            self.carry_out(effects)
        if waiter.error is not None:
            raise _refusal(waiter)
        return waiter.ready

    def transition(self, name: str, *args: Any, **options: Any) -> None:
        """Make the transition `name` of the core now, and carry out what it asks."""
        self._expect_outside()
        with self.runtime.lock:
            effects = getattr(self.core, name)(*args, now=self.runtime.now(), **options)
        self.carry_out(effects)

    def maintain(self) -> float:
        """Do what time makes necessary; returns when to come back."""
        core, runtime = self.core, self.runtime
        if runtime.inside(core):  # a finalizer that was collected in the middle of it
            return runtime.now()
        if self._closing:
            run_sync(self.close, 0.0)
            return inf
        self._retake_forsaken()
        for entry in [e for e in [*core.entries] if e.place is LENT and self._is_closed(e)]:
            died = EndedError() if self._has_died(entry) else None
            self.transition("reclaim", entry, chance=runtime.chance(), error=died)
        self._sweep()
        with runtime.lock:
            now = runtime.now()
            effects = core.maintain(now, runtime.chance())
            held, ended = core.overheld(now)
        self.carry_out(effects)
        for hold in held:
            self._report_hold("a connection has been lent to %s for %.1f s", hold, now)
        for hold in ended:
            self._report_hold("a connection has come back from %s after %.1f s", hold, now)
        return runtime.now() if core.returned or self._closing else core.due

    def _sweep(self) -> None:
        """Find the idle connections whose servers have something to say; workers look at them.

        What a look reads may call what the user has hung up there, and no deadline would be kept
        meanwhile.
        """
        with self.runtime.lock:
            idle = self.core.snapshot()
        stirred = {id(conn) for conn in self.driver.readable([conn for _, conn in idle])}
        for entry in [entry for entry, conn in idle if id(conn) in stirred]:
            self.transition("inspect", entry)

    async def _inspect(self, entry: Entry, conn: Any) -> None:
        """Look at a connection that was taken out of idle; keep it if it is alive."""
        if self._is_alive(entry, conn):
            self.transition("serviced", entry, conn)

    def _retake_forsaken(self) -> None:
        """Take the connections back whose leases were dropped."""
        core = self.core
        while core.forsaken:
            with self.runtime.lock:  # a return sees those that are left
                tether = next(_taken(core.forsaken), None)
                if tether is None:  # another thread was faster
                    return
                effects = core.retake(tether.entry, tether, self.runtime.now())
            if effects is not None:
                self.carry_out(effects)
                self._report_leak(tether.entry)

    def _is_closed(self, entry: Entry) -> bool:
        """Whether the session of a lent connection is known to have ended."""
        ref = entry.ref  # once: another thread may take it away
        conn = ref and ref()
        return conn is not None and self.driver.closed(conn)

    def _has_died(self, entry: Entry) -> bool:
        """Whether it was the server that has ended the session of a lent connection."""
        ref = entry.ref
        conn = ref and ref()
        return conn is not None and self.driver.died(conn)

    async def verify(self) -> None:
        """Check every idle connection by a round trip, replace the bad ones, refill the pool."""
        self._expect_outside()
        self.runtime.alarm(self.maintain())
        for entry in list(self.core.idle):
            with self.runtime.lock:
                conn = self.core.recall(entry)
            if conn is not None:
                await self._verify(entry, conn)

    async def _verify(self, entry: Entry, conn: Any) -> None:
        """Check one connection that was taken out of idle."""
        core, runtime = self.core, self.runtime
        try:
            await self._timed(entry, conn, "check", self.driver.ping(conn))
        except BaseException as error:
            with runtime.lock:
                effects = core.discard(entry, conn, runtime.now(), runtime.chance(), lost=True)
            self.carry_out(effects)
            if not isinstance(error, Exception):
                raise
            self._log("discarding a broken connection: %s", error, level=logging.WARNING)
            return
        with runtime.lock:
            effects = core.serviced(entry, conn, runtime.now())
        self.carry_out(effects)

    # What both clients and workers do ----------------------------------------------------------

    async def _roll_back(self, entry: Entry, conn: Any) -> None:
        """End the transaction a client left open, if there is one."""
        if self.driver.unclean(conn):
            await self._timed(entry, conn, "rollback", self._end_transaction(conn))

    async def _end_transaction(self, conn: Any) -> None:
        """Roll back what a client left open, with a warning."""
        self._log("rolling back returned connection: %s", self.driver.label(conn))
        await self.driver.rollback(conn)
        self._expect_clean(conn, "rollback", None)

    async def _timed(
        self, entry: Entry, conn: Any, what: str, action: Coroutine[Any, Any, Any]
    ) -> None:
        """Work on a connection; at the deadline its socket is shut down, which ends the work.

        Raises what the action raises, and `TimeoutError` if it ended well after its deadline.
        """
        core = self.core
        try:
            lifeline = self.driver.lifeline(conn)
            self._arm(entry, lifeline, core.settings.action_timeout)
        except BaseException:
            action.close()
            raise
        in_time = True
        try:
            try:
                await action
            finally:
                in_time = self._disarm(entry, lifeline)
        except Exception as error:
            if in_time:
                raise
            raise self._late(what) from error
        if not in_time:
            raise self._late(what)

    def _disarm(self, entry: Entry, lifeline: Any) -> bool:
        """The work on a connection has ended; false if that was after its deadline."""
        with self.runtime.lock:
            in_time = self.core.disarm(entry, lifeline)
        if lifeline is not None:
            lifeline.close()
        return in_time

    def _late(self, what: str) -> TimeoutError:
        seconds = self.core.settings.action_timeout
        return TimeoutError(f"{what} took more than {seconds} s (action_timeout) and was cut off")

    def _arm(self, entry: Entry, lifeline: Any, seconds: float) -> None:
        """Set the deadline for what is done now for an entry."""
        with self.runtime.lock:
            earlier = self.core.arm(entry, lifeline, self.runtime.now() + seconds)
        if earlier:
            self.runtime.alarm(self.core.due)

    def _expect_clean(self, conn: Any, stage: str, callback: Callback | None) -> None:
        """Raise unless the connection is idle and in no transaction."""
        if self.driver.unclean(conn):
            by = f" by {stage} function {callback}" if callback else f" by {stage}"
            raise self.driver.ProgrammingError(
                f"connection left in status {self.driver.describe(conn)}{by}: discarded;"
                " it must commit or roll back what it begins, or use autocommit"
            )

    def _log_failure(self, error: Exception, failures: int) -> None:
        """Tell of a failed attempt to connect, the last of so many in a row."""
        if not self.core.settings.retrying:  # then it is a client that is told
            self._log("error connecting: %s", error, level=min(self.level, logging.INFO))
            return
        # A client that waits has the pool try ten times a second: an outage is a few lines.
        level = self.level if _is_rare(failures) else logging.DEBUG
        self._log("error connecting, %d in a row: %s", failures, error, level=level)

    def _report_leak(self, entry: Entry) -> None:
        """Name who dropped a connection, or its lease, without returning it."""
        text = "a connection lent to %s was dropped without being returned%s"
        self._log(text, name(entry.holder), _at(entry.line))

    def _report_hold(self, text: str, hold: Hold, now: float) -> None:
        """Name who holds, or held, a connection for longer than `leak_threshold`."""
        text = f"{text} (leak_threshold=%s)%s"
        threshold, held = self.core.settings.leak_threshold, now - hold.since
        at = _at(hold.line)
        self._log(text, name(hold.holder), held, threshold, at, level=logging.WARNING)

    def _log(self, text: str, *args: object, level: int | None = None) -> None:
        """Write a line, with what others have worded in one line; not often the same one."""
        level = self.level if level is None else level
        if not logger.isEnabledFor(level) or not self._limit.allows(text, self.runtime.now()):
            return
        words = [_line(a) if isinstance(a, BaseException | str) else a for a in args]
        told = self._limit.suppressed(text)
        more = f" ({told} more of these lines were left out)" if told else ""
        self.runtime.tell(partial(logger.log, level, f"%s: {text}{more}", self.name, *words))

    def warn(self, text: str, *args: object) -> None:
        """Write a warning, as bounded as all lines of the pool."""
        self._log(text, *args, level=logging.WARNING)

    def _expect_outside(self) -> None:
        """Refuse a client that asks inside a transition of its own thread (rule 9)."""
        if self.runtime.inside(self.core):
            raise self.core.refusals.nested(self.core)


class Limit:
    """How often the log may have one and the same line: so many times a minute."""

    TIMES = 5
    SECONDS = 60.0

    def __init__(self) -> None:
        self._lines: dict[str, tuple[float, int]] = {}  # when its minute began, how often since
        self._left_out: dict[str, int] = {}

    def allows(self, text: str, now: float) -> bool:
        """Whether the line may be written now; counts it."""
        since, count = self._lines.get(text, (now, 0))
        if now >= since + self.SECONDS:
            since, count = now, max(0, count - self.TIMES)
            self._left_out[text] = count
            count = 0
        self._lines[text] = since, count + 1
        return count < self.TIMES

    def suppressed(self, text: str) -> int:
        """How many of these lines were left out since the last one."""
        return self._left_out.pop(text, 0)


def _refusal(waiter: Waiter) -> BaseException:
    """Why a client is refused.

    Its waiter lets go of it: a frame that raises what it refers to is a cycle, and until that is
    collected it keeps all that the frames hold from which it was called.
    """
    error, waiter.error = waiter.error, None
    assert error is not None
    return error


def name(holder: Any) -> str:
    """The name of a thread or task that holds a connection."""
    return str(getattr(holder, "name", holder) or "an unknown holder")


def _taken(queue: deque[T]) -> Iterator[T]:
    """What is in a queue; each thing is taken by one thread only."""
    while queue:
        try:
            thing = queue.popleft()
        except IndexError:  # another thread was faster
            return
        yield thing


class EndedError(ConnectionError):
    """A session that ended before its first use was over."""

    def __init__(self) -> None:
        super().__init__("the server has ended a new session in its first use")


def _line(words: BaseException | str) -> str:
    """An error, or what else was worded by others, in one line."""
    line = " ".join(str(words).split())
    return line or ("" if isinstance(words, str) else type(words).__name__)


def _is_rare(count: int) -> bool:
    """Whether the n-th repetition is worth a line: the 1st, 2nd, 4th, 8th and so on."""
    return count > 0 and count & (count - 1) == 0


def _at(line: str | None) -> str:
    return f", acquired at {line}" if line else ""
