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
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from ._core import Core, Phase
from ._entry import LENT, OPENING, RETIRED, Effects, Entry, Permit
from .errors import detach

if TYPE_CHECKING:
    from ._runtime import Runtime
    from .drivers import Driver

logger = logging.getLogger("forebay")

Callback = Callable[..., Any]


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
        """A connection for a client: `conn` if it passes the check, else the first that does.

        Raises the pool's timeout error after `timeout` seconds; zero or less: only if one is
        ready now.
        """
        arrived = self.runtime.now()
        while True:
            if conn is None:
                conn = await self._queue(arrived, timeout)
            if self.check is None or await self._passes(conn, arrived):
                return conn
            conn = None

    async def _queue(self, arrived: float, timeout: float) -> Any:
        """Wait in line for a connection, until `timeout` seconds after `arrived`."""
        core, runtime = self.core, self.runtime
        waiter = runtime.waiter()
        timed_out = False
        try:
            with runtime.lock:
                now = runtime.now()
                if now - arrived >= timeout and not (core.idle or core.eager):
                    core.refuse()
                    raise core.refusals.timeout(core, timeout)
                effects = core.enqueue(waiter, now)
            self.carry_out(effects)
            patience: float | None = arrived + timeout - now
            while waiter not in effects.wake:
                await waiter.wait(patience)
                # What it was woken by, or not, tells nothing: only the core knows, under the lock.
                with runtime.lock:
                    if timeout > 0 or not core.promised(waiter):
                        timed_out = core.expire(waiter, runtime.now())
                        break
                patience = None  # it will be served or refused: an opening ends in either
        except BaseException:
            with runtime.lock:
                effects = core.cancel(waiter, runtime.now())
            self.carry_out(effects)
            raise
        if timed_out:
            raise core.refusals.timeout(core, timeout)
        if waiter.error is not None:
            raise waiter.error
        conn, waiter.conn = waiter.conn, None
        return conn

    async def _passes(self, conn: Any, arrived: float) -> bool:
        """Run the user's check on a connection that was lent just now."""
        assert self.check is not None
        entry = self.driver.entry(conn)
        try:
            await self.runtime.call(self.check, conn)
        except BaseException as error:
            runtime = self.runtime
            with runtime.lock:
                effects = self.core.check_failed(
                    entry, conn, error, arrived, runtime.now(), runtime.chance()
                )
            self.carry_out(effects)
            if not isinstance(error, Exception):
                raise
            detach(error)
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
            if usable and self.reset is None:
                await self._roll_back(conn)
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
            elif self.reset is not None:
                effects = core.recycle(entry, conn, now)
            else:
                effects = core.checkin(entry, conn, now) or Effects()
        if not usable:
            self._log("discarding a connection that came back %s", str(conn))
        await self.conclude(effects)

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
        if effects.alarm:
            self.runtime.alarm(self.core.due)
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
            held = self.core.begin(entry)
        if held is None:
            return
        if entry.place is OPENING:
            await self._open(entry, held)
        elif entry.place is RETIRED:
            await self._close(entry, held)
        else:
            await self._reset(entry, held)

    async def _open(self, entry: Entry, permit: Permit) -> None:  # noqa: ARG002
        """Use a permit, which lives here, in this argument, until it has come back."""
        core, runtime = self.core, self.runtime
        started = runtime.now()
        conn = None
        try:
            conn = await self._connect()
            self.driver.adopt(conn, entry)
            if self.configure is not None:
                await runtime.call(self.configure, conn)
                self._expect_clean(conn, "configure", self.configure)
        except BaseException as error:
            with runtime.lock:
                effects = core.open_failed(entry, conn, error, runtime.now(), runtime.chance())
            if isinstance(error, Exception):
                detach(error)  # before a client is woken that may raise it
            self.carry_out(effects)
            if not isinstance(error, Exception):
                raise
            self._log("error connecting: %s", error)
            return
        with runtime.lock:
            now = runtime.now()
            effects = core.opened(entry, conn, now - started, now, runtime.chance())
        self.carry_out(effects)

    async def _connect(self) -> Any:
        """Connect with the user's parameters, which may be callables giving fresh ones."""
        conninfo, kwargs = self.conninfo, self.kwargs
        if callable(conninfo):
            conninfo = await self.runtime.call(conninfo)
        if callable(kwargs):
            kwargs = await self.runtime.call(kwargs)
        return await self.driver.connect(self.connection_class, conninfo, kwargs or {})

    async def _reset(self, entry: Entry, conn: Any) -> None:
        """Make a returned connection ready for the next client."""
        core, runtime = self.core, self.runtime
        try:
            await self._roll_back(conn)
            if self.reset is not None:
                await runtime.call(self.reset, conn)
                self._expect_clean(conn, "reset", self.reset)
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

    async def _close(self, entry: Entry, conn: Any) -> None:
        """Close a retired connection; what goes wrong then is of no more interest."""
        try:
            await self.driver.close(conn)
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
            raise waiter.error
        return waiter.ready

    def transition(self, name: str, *args: Any) -> None:
        """Make the transition `name` of the core now, and carry out what it asks."""
        with self.runtime.lock:
            effects = getattr(self.core, name)(*args, self.runtime.now())
        self.carry_out(effects)

    def maintain(self) -> float:
        """Do what time makes necessary; returns when to come back."""
        for entry in [e for e in [*self.core.entries] if e.place is LENT and self._is_closed(e)]:
            self.transition("reclaim", entry)
        with self.runtime.lock:
            effects = self.core.maintain(self.runtime.now())
        self.carry_out(effects)
        return self.core.due

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
            await self.driver.ping(conn)
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

    async def _roll_back(self, conn: Any) -> None:
        """End the transaction a client left open, with a warning."""
        if self.driver.unclean(conn):
            self._log("rolling back returned connection: %s", str(conn))
            await self.driver.rollback(conn)
            self._expect_clean(conn, "rollback", None)

    def _expect_clean(self, conn: Any, stage: str, callback: Callback | None) -> None:
        """Raise unless the connection is idle and in no transaction."""
        if self.driver.unclean(conn):
            by = f" by {stage} function {callback}" if callback else f" by {stage}"
            raise self.driver.ProgrammingError(
                f"connection left in status {self.driver.describe(conn)}{by}: discarded;"
                " it must commit or roll back what it begins, or use autocommit"
            )

    def _log(self, text: str, *args: object) -> None:
        logger.log(self.level, f"%s: {text}", self.name, *args)
