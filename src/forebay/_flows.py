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
from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from functools import partial
from math import inf
from typing import TYPE_CHECKING, Any, TypeVar

from ._core import Core, Phase
from ._entry import LENT, OPENING, RETIRED, ROLE, Chore, Effects, Entry, Hold, Permit
from ._policy import PARAMETERS_PATIENCE
from .errors import detach

if TYPE_CHECKING:
    from ._entry import Waiter
    from ._runtime import Runtime
    from .drivers import Driver

logger = logging.getLogger("forebay")

Callback = Callable[..., Any]
T = TypeVar("T")


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
        connection_class: Any,
        conninfo: Any = "",
        kwargs: Any = None,
        configure: Callback | None = None,
        check: Callback | None = None,
        reset: Callback | None = None,
        gave_up: Callback | None = None,
    ) -> None:
        self.core = core
        self.runtime = runtime
        self.driver = driver
        self.name = name
        self.connection_class = connection_class  # read at each attempt, as are the next two
        self.conninfo = conninfo
        self.kwargs = kwargs
        self.configure = configure
        self.check = check
        self.reset = reset
        self.gave_up = gave_up  # called after reconnect_timeout seconds without success

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
                if self.core.max_uses:
                    self.core.use(entry)
                return conn
            conn, again = None, True

    async def _is_good(self, entry: Entry, conn: Any, arrived: float) -> bool:
        """Whether a connection that was lent just now is alive, and passes the user's check."""
        if self.core.doubtful(entry) and not self._is_alive(entry, conn):
            return False
        return self.check is None or await self._passes(entry, conn, arrived)

    async def _queue(self, arrived: float, timeout: float, again: bool) -> Any:
        """Wait in line for a connection, until `timeout` seconds after `arrived`.

        A client that comes `again` has been given one that was no good.  It may have the next that
        is idle even if its time is over, unless it has spent more than its time on checks.
        """
        core, runtime = self.core, self.runtime
        waiter = runtime.waiter()
        limit = max(timeout, core.action_timeout) if again else inf
        try:
            with runtime.lock:
                now = runtime.now()
                ready = (core.idle or core.eager) and now - arrived < limit
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
        self.transition("discard", entry, conn, lost=True)
        text = "the server has ended an idle session, discarding %s: %s"
        self._log(text, str(conn), _line(error), level=level)
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
            logger.info("%s: check failed on %s: %s", self.name, str(conn), error)
            return False
        if self.core.check_failing:
            self.transition("check_passed")
        return True

    async def release(self, entry: Entry, conn: Any) -> None:
        """Take a connection back that is not clean, or that must be reset before its next use."""
        core, runtime = self.core, self.runtime
        try:
            usable = self.driver.usable(conn)
            worker = self.reset is not None or entry.chore is not Chore.RESET
            # Nobody would free a client of a closed pool; the server rolls back what is closed.
            if usable and not worker and core.phase is not Phase.CLOSED:
                await self._roll_back(entry, conn)
        except BaseException as error:
            with runtime.lock:
                effects = core.discard(entry, conn, runtime.now())
            self.carry_out(effects)
            if not isinstance(error, Exception):
                raise
            self._log("rollback failed, discarding %s: %s", str(conn), error)
            return
        with runtime.lock:
            now = runtime.now()
            if not usable:
                effects = core.discard(entry, conn, now)
            elif worker:
                effects = core.recycle(entry, conn, now)
            else:
                effects = core.checkin(entry, conn, now) or Effects()
        if not usable:
            self._log("discarding a connection that came back %s", str(conn))
        await self.conclude(effects)

    def heed(self, entry: Entry, error: BaseException) -> bool:
        """A lease ends by `error`; true if a write was refused: a worker asks the server why."""
        if entry.place is not LENT or not self.core.writable:
            return False
        if not self.driver.refuses_writes(error):
            return False
        entry.chore = ROLE
        return True

    async def conclude(self, effects: Effects) -> None:
        """Carry out what a return asks; a closed pool has no workers: then it is done here."""
        here: list[Entry] = []
        if self.core.phase is Phase.CLOSED:
            here, effects.start = effects.start, here
        self.carry_out(effects)
        for entry in here:
            await self.work(entry)

    # Workers -----------------------------------------------------------------------------------

    def carry_out(self, effects: Effects) -> None:
        """Wake, start and set the alarm; never suspends, so nobody's cancellation cuts it short."""
        for waiter in effects.wake:
            waiter.wake()
            self.core.granted.pop(waiter, None)
        for entry in effects.start:
            self.runtime.spawn(entry, partial(self.work, entry), opening=entry.place is OPENING)
        for lifeline in effects.cut:
            lifeline.cut()
        for entry in effects.give_up:
            self.runtime.give_up(entry)
            self._log("gave up a worker whose action did not end in time")
        if effects.alarm:
            self.runtime.alarm(self.core.due)
        for entry in _taken(self.core.leaked):
            self._report_leak(entry)
        if effects.gave_up:
            logger.warning(
                "%s: no connection in %s seconds of attempts: %s",
                self.name,
                self.core.reconnect_timeout,
                self.core.last_error,
            )
            if self.gave_up is not None:
                self.runtime.spawn(self, self._report_failure, opening=False)

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
            standby = self.driver.standby(conn)
        except BaseException as error:
            verdict, kept = self.driver.verdict(error), self.driver.keepable(error)
            with runtime.lock:
                effects = core.open_failed(
                    entry, conn, kept, runtime.now(), runtime.chance(), verdict
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
            logger.warning("%s: connected to a standby, looking for the primary", self.name)

    async def _connect(self, entry: Entry) -> Any:
        """Connect with the user's parameters."""
        core, driver = self.core, self.driver
        core.fresh = callable(self.conninfo) or callable(self.kwargs)
        if core.fresh:
            self._arm(entry, None, PARAMETERS_PATIENCE)
        conninfo = await self._parameter(self.conninfo)
        kwargs = await self._parameter(self.kwargs) or {}
        if core.writable is None:
            core.writable = driver.wants_writable(conninfo, kwargs)
        self._arm(entry, None, driver.patience(conninfo, kwargs) + core.action_timeout)
        return await driver.connect(self.connection_class, conninfo, kwargs)

    async def _parameter(self, value: Any) -> Any:
        """What the user gave, or what it gives now if it is a callable."""
        return await self.runtime.call(value) if callable(value) else value

    async def _reset(self, entry: Entry, conn: Any) -> None:
        """Make a returned connection ready for the next client."""
        core, runtime = self.core, self.runtime
        try:
            await self._timed(entry, conn, "reset", self._restore(entry, conn))
        except BaseException as error:
            with runtime.lock:
                effects = core.discard(entry, conn, runtime.now())
            self.carry_out(effects)
            if not isinstance(error, Exception):
                raise
            logger.warning("%s: error resetting, discarding %s: %s", self.name, str(conn), error)
            return
        with runtime.lock:
            effects = core.serviced(entry, conn, runtime.now())
        self.carry_out(effects)

    async def _restore(self, entry: Entry, conn: Any) -> None:
        """Roll back, run the user's reset, and find out whether the server is a standby."""
        if self.driver.unclean(conn):
            await self._end_transaction(conn)
        if self.reset is not None:
            await self.runtime.call(self.reset, conn)
            self._expect_clean(conn, "reset", self.reset)
        if entry.chore is ROLE and await self.driver.in_recovery(conn):
            logger.warning("%s: the server is a standby, looking for the primary", self.name)
            self.transition("demoted", chance=self.runtime.chance())

    async def _close(self, entry: Entry, conn: Any) -> None:
        """Close a retired connection; what goes wrong then is of no more interest."""
        try:
            await self._timed(entry, conn, "close", self.driver.close(conn))
        except Exception as error:
            logger.info("%s: error closing %s: %s", self.name, str(conn), error)
        with self.runtime.lock:
            self.core.retired(entry)

    async def _report_failure(self) -> None:
        """Call the user's reconnect_failed."""
        assert self.gave_up is not None
        try:
            await self.runtime.call(self.gave_up)
        except Exception:
            logger.exception("%s: error in reconnect_failed", self.name)

    # The pool ----------------------------------------------------------------------------------

    def open(self) -> None:
        """Start maintenance and begin to fill the pool."""
        self.runtime.start(self, self.name)
        with self.runtime.lock:
            effects = self.core.open(self.runtime.now())
        self.carry_out(effects)

    async def close(self, timeout: float) -> None:
        """Close the pool and what is idle, and wait up to `timeout` seconds for the workers."""
        with self.runtime.lock:
            effects = self.core.close(self.runtime.now())
        self.carry_out(effects)
        self._retake_forsaken()
        if not await self.runtime.stop(timeout) and timeout > 0:
            logger.warning(
                "%s: background work still runs %.1f seconds after close()", self.name, timeout
            )

    async def wait(self, timeout: float) -> bool:
        """Wait until min_size connections are idle; false if `timeout` seconds were too few."""
        core, runtime = self.core, self.runtime
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
        with self.runtime.lock:
            effects = getattr(self.core, name)(*args, now=self.runtime.now(), **options)
        self.carry_out(effects)

    def maintain(self) -> float:
        """Do what time makes necessary; returns when to come back."""
        core, runtime = self.core, self.runtime
        self._retake_forsaken()
        for entry in [e for e in [*core.entries] if e.place is LENT and self._is_closed(e)]:
            self.transition("reclaim", entry)
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
        return core.due

    def _sweep(self) -> None:
        """Look at all idle connections at once, and replace those whose servers have gone."""
        with self.runtime.lock:
            idle = self.core.snapshot()
        stirred = self.driver.readable([conn for _, conn in idle])
        if not stirred:
            return
        for entry, conn in idle:
            if any(conn is other for other in stirred):
                with self.runtime.lock:
                    mine = self.core.recall(entry) is not None
                if mine and self._is_alive(entry, conn):
                    self.transition("serviced", entry, conn)

    def _retake_forsaken(self) -> None:
        """Take the connections back whose leases were dropped, though something refers to them."""
        for conn, lent_at in _taken(self.core.forsaken):
            entry = self.driver.entry(conn)
            with self.runtime.lock:
                effects = self.core.retake(entry, conn, lent_at, self.runtime.now())
            if effects is not None:
                self.driver.adopt(conn, entry)
                self.carry_out(effects)
                self._report_leak(entry)

    def _is_closed(self, entry: Entry) -> bool:
        """Whether the session of a lent connection is known to have ended."""
        ref = entry.ref  # once: another thread may take it away
        conn = ref and ref()
        return conn is not None and self.driver.closed(conn)

    async def verify(self) -> None:
        """Check every idle connection by a round trip, replace the bad ones, refill the pool."""
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
                effects = core.discard(entry, conn, runtime.now(), lost=True)
            self.carry_out(effects)
            if not isinstance(error, Exception):
                raise
            logger.warning("%s: discarding a broken connection: %s", self.name, error)
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
        self._log("rolling back returned connection: %s", str(conn))
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
            self._arm(entry, lifeline, core.action_timeout)
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
        seconds = self.core.action_timeout
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
        if not self.core.retrying:  # then it is a client that is told
            self._log("error connecting: %s", _line(error), level=min(self.level, logging.INFO))
            return
        # A client that waits has the pool try ten times a second: an outage is a few lines.
        level = self.level if _is_rare(failures) else logging.DEBUG
        self._log("error connecting, %d in a row: %s", failures, _line(error), level=level)

    def _report_leak(self, entry: Entry) -> None:
        """Name who dropped a connection, or its lease, without returning it."""
        text = "a connection lent to %s was dropped without being returned%s"
        self._log(text, name(entry.holder), _at(entry.line))

    def _report_hold(self, text: str, hold: Hold, now: float) -> None:
        """Name who holds, or held, a connection for longer than `leak_threshold`."""
        text = f"%s: {text} (leak_threshold=%s)%s"
        threshold = self.core.leak_threshold
        held = now - hold.since
        logger.warning(text, self.name, name(hold.holder), held, threshold, _at(hold.line))

    def _log(self, text: str, *args: object, level: int | None = None) -> None:
        logger.log(self.level if level is None else level, f"%s: {text}", self.name, *args)


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


def _line(error: BaseException) -> str:
    """An error in one line."""
    return " ".join(str(error).split()) or type(error).__name__


def _is_rare(count: int) -> bool:
    """Whether the n-th repetition is worth a line: the 1st, 2nd, 4th, 8th and so on."""
    return count > 0 and count & (count - 1) == 0


def _at(line: str | None) -> str:
    return f", acquired at {line}" if line else ""
