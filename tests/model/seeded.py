"""Seeded bugs: small mutations of the shipped core and flows that the model must find."""

from __future__ import annotations

from typing import NamedTuple

from forebay import _core, _flows

from .shipped import Mutation


class Seeded(NamedTuple):
    """A bug, and the smallest configuration that shows it."""

    name: str
    configuration: str
    mutation: Mutation


def _core_bug(name: str, configuration: str, old: str, new: str, *more: tuple[str, str]) -> Seeded:
    return Seeded(name, configuration, Mutation(_core, old, new, more))


def _flow_bug(name: str, configuration: str, old: str, new: str) -> Seeded:
    return Seeded(name, configuration, Mutation(_flows, old, new))


SEEDED = (
    _core_bug(
        "a cancelled client keeps what it was granted",
        "cancelled",
        "self._put(waiter.entry, waiter.conn, now, effects)",
        "pass",
    ),
    _core_bug(
        "a failed connect keeps its permit",
        "main",
        "            self._forget(entry)\n        else:\n            entry.ref",
        "            pass\n        else:\n            entry.ref",
    ),
    _core_bug(
        "after a failed connect nobody sets the alarm",
        "main",
        "            self._due_by(at, effects)\n            return 0",
        "            return 0",
    ),
    _core_bug(
        "a returned connection goes idle although somebody waits",
        "plain",
        "wanted = self.waiting or self.watching or",
        "wanted = self.watching or",
    ),
    _core_bug(
        "the last in the queue is served first",
        "plain",
        "waiter = next(iter(self.waiting))\n            waiter.entry",
        "waiter = next(reversed(self.waiting))\n            waiter.entry",
    ),
    _core_bug(
        "who comes last stands first in the queue",
        "plain",
        "        self.waiting[waiter] = None\n",
        "        self.waiting[waiter] = None\n"
        "        self.waiting.move_to_end(waiter, last=False)\n",
    ),
    _core_bug(
        "an idle connection is lent and stays idle",
        "plain",
        "entry = self._take()\n        if now",
        "entry = self.idle[-1]\n        if now",
    ),
    _core_bug(
        "who times out stays in the queue",
        "timeouts",
        "        del self.waiting[waiter]\n",
        "",
    ),
    _core_bug(
        "who is served is not woken",
        "plain",
        "        effects.wake.append(waiter)\n",
        "",
    ),
    _core_bug(
        "the bound on the queue is off by one",
        "max_waiting",
        "if 0 < self.settings.max_waiting <= len(self.waiting)",
        "if 0 < self.settings.max_waiting < len(self.waiting)",
    ),
    _core_bug(
        "an opened connection is still counted as opening",
        "plain",
        "        self.opening -= was_opening\n\n    def _retire(",
        "\n    def _retire(",
    ),
    _core_bug(
        "drain forgets the connections that are lent",
        "drain",
        "        for entry in self.entries:\n            entry.expires_at = EVICTED\n        while",
        "        while",
    ),
    _core_bug(
        "an evicted connection is revived when it has opened",
        "drain",
        "if entry.expires_at != EVICTED and self.settings.max_lifetime:",
        "if self.settings.max_lifetime:",
    ),
    _core_bug(
        "resize leaves what is lent in excess",
        "resize",
        "if excess > 0:",
        "if excess > 1:",
    ),
    _core_bug(
        "close forgets those who wait",
        "close",
        "for waiter in [*self.waiting, *self.watching]:\n"
        "            self._fail(waiter, self.refusals.closed",
        "for waiter in [*self.watching]:\n            self._fail(waiter, self.refusals.closed",
    ),
    _core_bug(
        "close leaves permits that nobody has begun",
        "close",
        "        for entry in [e for e in self.entries if e.place is OPENING and e.ordered]:\n"
        "            self._forget(entry)\n",
        "",
    ),
    _core_bug(
        "a closed pool keeps what comes back",
        "close",
        "        self._evict_all(effects)\n        for entry in [e for e",
        "        for entry in [e for e",
    ),
    _core_bug(
        "callers of wait() sleep on when the pool is filled",
        "wait and drain",
        "watcher.ready = True\n                self._dismiss(watcher, now, effects)",
        "watcher.ready = True",
    ),
    _core_bug(
        "a connection is taken to be checked and stays idle",
        "verify",
        "        self.idle.remove(entry)\n        conn = entry.conn",
        "        conn = entry.conn",
    ),
    _core_bug(
        "two workers may begin the same entry",
        "close",
        "        if held is not None:\n            entry.ordered = False\n",
        "",
    ),
    _core_bug(
        "what was dropped is never noticed",
        "bad returns",
        "                    self.leaked.append(entry)\n                self._forget(entry)\n",
        "                    self.leaked.append(entry)\n",
    ),
    _core_bug(
        "a reclaimed connection goes back to idle",
        "cut off",
        "if waiter.entry.place is LENT:  # else reclaimed",
        "if True:",
    ),
    _core_bug(
        "a null pool keeps one connection",
        "null",
        "            len(ready) >= self.keep\n            or self.lost",
        "            self.lost",
    ),
    _core_bug(
        "a null pool's client is not told that connecting has failed",
        "null",
        "self._fail(next(iter(self.waiting)), error, now, effects)",
        "self._dismiss(next(iter(self.waiting)), now, effects)",
    ),
    _core_bug(
        "an expired connection is lent again",
        "expiry alone",
        "        if entry.expires_at <= now",
        "        if entry.expires_at == EVICTED",
    ),
    _flow_bug(
        "a client that is cancelled says nothing",
        "cancelled",
        "                effects = core.cancel(waiter, runtime.now())\n"
        "            self.carry_out(effects)\n"
        "            raise",
        "                pass\n            raise",
    ),
    _flow_bug(
        "who times out leaves even if it has been served",
        "timeouts",
        "if core.expire(waiter, now):",
        "if not core.expire(waiter, now) or True:",
    ),
    _flow_bug(
        "a client whose check is cancelled keeps its slot",
        "check",
        "        except BaseException as error:\n            runtime, kept",
        "        except Exception as error:\n            runtime, kept",
    ),
    _flow_bug(
        "a connection whose check has failed goes back to the pool",
        "check",
        "effects = self.core.check_failed(\n"
        "                    entry, conn, kept, arrived, runtime.now(), runtime.chance()\n"
        "                )",
        "effects = self.core.checkin(entry, conn, runtime.now()) or Effects()",
    ),
    _flow_bug(
        "a connection whose reset has failed goes back to the pool",
        "reset",
        "effects = core.discard(entry, conn, runtime.now(), runtime.chance())\n",
        "effects = core.serviced(entry, conn, runtime.now())\n",
    ),
    _flow_bug(
        "a connection that could not be configured is dropped, not closed",
        "configure",
        "                    entry, conn, kept, now, chance, verdict,",
        "                    entry, None, kept, now, chance, verdict,",
    ),
    _flow_bug(
        "an opening that is cancelled keeps its permit",
        "main",
        "        except BaseException as error:\n            driver = self.driver",
        "        except Exception as error:\n            driver = self.driver",
    ),
    _flow_bug(
        "in a closed pool a return waits for a worker",
        "close",
        "        for entry in here:\n            await self.work(entry)",
        "        del here",
    ),
    _core_bug(
        "who has been served without waiting is granted for ever",
        "killed",
        "            del self.granted[waiter]  # it asks just now: nobody need wake it\n",
        "            pass\n",
    ),
    _flow_bug(
        "a rollback in the client's hands holds the lock",
        "bad returns",
        "                await action\n",
        "                with self.runtime.lock:\n                    await action\n",
    ),
    _flow_bug(
        "check() looks at an idle connection in one step and takes it in another",
        "verify preempted",
        "                conn = self.core.recall(entry)\n",
        "                conn = entry.conn\n"
        "            with self.runtime.lock:\n"
        "                self.core.recall(entry)\n",
    ),
    # Dead connections.
    _flow_bug(
        "nobody looks at a connection that was idle",
        "killed",
        "        if self.core.doubtful(entry):",
        "        if False:",
    ),
    _core_bug(
        "after a death the others are trusted",
        "killed while trusted",
        "        self.bypass = -1.0\n",
        "",
    ),
    _core_bug(
        "after a death nobody looks at the others",
        "killed while trusted",
        "        self.bypass = -1.0\n        self._due_by(now, effects)\n",
        "        self.bypass = -1.0\n",
    ),
    _core_bug(
        "a suspicion never ends",
        "killed and trusted again",
        "        self.suspicious = False\n        return [",
        "        return [",
    ),
    _flow_bug(
        "a connection that maintenance has found dead stays idle",
        "killed and trusted again",
        "        if self._is_alive(entry, conn):\n            self.transition",
        "        if True:\n            self.transition",
    ),
    _flow_bug(
        "a connection that maintenance finds alive is not put back",
        "noise",
        '            self.transition("serviced", entry, conn)\n',
        "            pass\n",
    ),
    # Servers that do not answer.
    _core_bug(
        "a connection that opens too late is dropped",
        "connects hang",
        "self._welcome(entry, conn):\n            return self._strayed(entry, conn, effects)\n",
        "self._welcome(entry, conn):\n            return effects\n",
    ),
    _core_bug(
        "a permit that was given up comes back twice",
        "connects hang",
        "        if entry.given_up:\n"
        "            return effects if conn is None else self._strayed(entry, conn, effects)\n",
        "",
    ),
    _core_bug(
        "a permit that is given up is kept",
        "connects hang",
        "        self._forget(entry)\n"
        "        self.retiring.pop(entry, None)\n"
        "        entry.ref = None\n\n    def _welcome",
        "        self.retiring.pop(entry, None)\n        entry.ref = None\n\n    def _welcome",
    ),
    _core_bug(
        "nobody looks at deadlines",
        "rollbacks hang",
        "        self._end_overdue(now, chance, effects)\n",
        "",
    ),
    _core_bug(
        "who works for a client has no deadline",
        "rollbacks hang",
        "        entry.lifeline = lifeline\n        entry.deadline = deadline\n",
        "        entry.lifeline = lifeline\n",
    ),
    _core_bug(
        "after a cut nobody waits for the end of the grace",
        "cuts in vain",
        "                entry.deadline = now + GRACE\n",
        "                entry.deadline = inf\n",
    ),
    _flow_bug(
        "a connection that was cut off is kept",
        "checks hang",
        "        if not in_time:\n            raise self._late(what)\n",
        "",
    ),
    # Use, and what becomes of leases that are dropped.
    _flow_bug(
        "the last use is not noticed",
        "used up",
        "                    self.core.use(entry)\n",
        "                    pass\n",
    ),
    _flow_bug(
        "a lease that was dropped is never taken back",
        "forsaken",
        "while core.forsaken:",
        "while False:",
    ),
    _core_bug(
        "a lease is taken back from the next client",
        "forsaken late",
        "if entry.tether is not tether or entry.place is not LENT",
        "if entry.place is not LENT",
    ),
    # Clients that ask for another connection while they hold one.
    _core_bug(
        "a deadlock is not noticed",
        "nested alone",
        "            self._break_deadlock(now, effects)\n",
        "            pass\n",
    ),
    _core_bug(
        "a deadlock is noticed before all wait",
        "nested",
        "return not entry.leased or entry.leased not in self.claims",
        "return not entry.leased",
        ("if len(stuck) == len(holders)", "if stuck"),
    ),
    _core_bug(
        "a deadlock is noticed though a connection will be opened",
        "nested and failures",
        "return self.opening == 0 and full and not",
        "return self.entries and not",
    ),
    _core_bug(
        "a lease that has ended still makes a deadlock",
        "nested in part",
        "            entry.leased = entry.kept = None\n"
        "            self.usage_time += now - entry.lent_at\n"
        "        entry.place = IDLE",
        "            entry.kept = None\n        entry.place = IDLE",
    ),
    # What a failed attempt means.
    _core_bug(
        "who waits in vain is not told that connecting fails for good",
        "rejected",
        "            final = now >= self.rejected_since + self.settings.rejected_after\n",
        "            final = False\n",
    ),
    _core_bug(
        "clients are refused though a connection is lent",
        "rejected at once",
        "isinstance(error, Exception) and not self.entries:",
        "isinstance(error, Exception):",
    ),
    _core_bug(
        "credentials have no second chance",
        "credentials",
        "if self.fresh and verdict is not Verdict.REJECTED:",
        "if False:",
    ),
    _core_bug(
        "credentials have a chance for ever",
        "credentials",
        "        self.rejections += 1\n",
        "",
    ),
    _core_bug(
        "an attempt that is not answered is never joined by another",
        "second probe",
        "            if self.opening > self._width or not (self.waiting and room):",
        "            if True:",
    ),
    _core_bug(
        "who waits relies on an attempt that is not answered",
        "second probe",
        "        return sum(began_at + PROBE_PATIENCE <= now for began_at in begun)",
        "        return 0",
    ),
    _core_bug(
        "attempts that are not answered are joined by ever more",
        "second probe",
        "            if self.opening > self._width or not (self.waiting and room):",
        "            if not (self.waiting and room):",
    ),
    _core_bug(
        "a crowded server is asked by two at once",
        "crowded",
        "room = len(self.entries) < self.settings.max_size and not self.crowded",
        "room = len(self.entries) < self.settings.max_size",
    ),
    _core_bug(
        "who has waited is granted for ever",
        "plain",
        "        self.granted.pop(waiter, None)  # it has learnt of it: no step\n",
        "",
    ),
    _core_bug(
        "a deadlock is noticed late",
        "nested alone",
        "if self._is_stuck() or self.forsaken:",
        "if self.forsaken:",
    ),
    _core_bug(
        "clients are known by their names",
        "nested",
        "return not entry.leased or entry.leased not in self.claims",
        "return not entry.leased or not self.claims",
        (
            "holders = {entry.leased for entry in self.entries}",
            "holders = {type(entry.leased).__name__ for entry in self.entries}",
        ),
        (
            "stuck = {waiter.claim: waiter for waiter in self.waiting if waiter.claim in holders}",
            "stuck = {type(waiter.claim).__name__: waiter for waiter in self.waiting}",
        ),
    ),
    _core_bug(
        "who waits in vain is not told that the connection string is wrong",
        "hopeless",
        "            final = True\n",
        "            final = False\n",
    ),
    _core_bug(
        "a refusal is believed at once",
        "rejected",
        "            final = now >= self.rejected_since + self.settings.rejected_after\n",
        "            final = True\n",
    ),
    # Sessions that end in their first use.
    _core_bug(
        "a session that ends at once is no failure",
        "dies at once",
        "        self._end_lease(entry, now)\n"
        "        if error is not None and self._is_on_probation(entry, now):",
        "        self._end_lease(entry, now)\n        if False:",
    ),
    _core_bug(
        "after a session that ended at once the next one is opened at once",
        "dies at once",
        "        if self.unproven:\n"
        "            self.paced_at = now\n"
        "            self.retry_at = now + self.settings.backoff.delay(self.failures, chance)\n"
        "        else:\n"
        "            self._recovered()\n",
        "        self._recovered()\n",
    ),
    _core_bug(
        "an old connection proves that new ones are good",
        "dies beside another",
        "if entry.opened_at >= self.failed_at)\n        if self.unproven",
        "if True)\n        if self.unproven",
    ),
    # What comes back twice, and what a handler does in the middle of everything.
    _core_bug(
        "a return does not name the lending it ends",
        "returned twice",
        "(entry.lent_at is lending or place is RETIRED)",
        "True",
    ),
    _core_bug(
        "the common path does not ask which lending a return ends",
        "returned twice",
        "            or entry.lent_at is not lending\n",
        "",
    ),
    _core_bug(
        "a transition does not keep the common path off",
        "handled",
        "        self.ready = INSIDE\n        try:",
        "        try:",
    ),
    _core_bug(
        "checkout looks before it keeps others off",
        "handled",
        "        ready, self.ready = self.ready, INSIDE"
        "  # before the look: what it tells stays true\n"
        "        if not ready:\n"
        "            self.misses += 1\n"
        "            self.ready = ready\n"
        "            return None\n",
        "        ready = self.ready\n"
        "        if not ready:\n"
        "            self.misses += 1\n"
        "            return None\n"
        "        self.ready = INSIDE\n",
    ),
    _core_bug(
        "a return in the middle of a transition is taken at once",
        "handled in turn",
        "        if self.ready is not INSIDE:\n",
        "        if True:\n",
    ),
    _core_bug(
        "a return in the middle of a transition is forgotten",
        "handled",
        "            self.returned.append(Return(entry, conn, lending, clean))\n",
        "            pass\n",
    ),
    _core_bug(
        "maintenance lists what a handler may change",
        "handled reset",
        "    @step\n    def snapshot",
        "    def snapshot",
    ),
    _flow_bug(
        "a connection is rolled back in the middle of a transition",
        "handled",
        "        if runtime.inside(core):  # no rollback while our own thread keeps others out",
        "        if False:",
    ),
    _flow_bug(
        "a handler queues in the middle of a transition",
        "handled",
        "        if self.runtime.inside(self.core):\n            raise",
        "        if False:\n            raise",
    ),
    _flow_bug(
        "a handler closes the pool in the middle of a transition",
        "handled",
        "        if runtime.inside(core):\n            self._closing = True",
        "        if False:\n            self._closing = True",
    ),
    _flow_bug(
        "a close that was put off is forgotten",
        "handled",
        "        if self._closing:\n            run_sync(self.close, 0.0)",
        "        if False:\n            run_sync(self.close, 0.0)",
    ),
    _flow_bug(
        "an alarm in the middle of maintenance is overridden",
        "handled loop",
        "        return runtime.now() if core.returned or self._closing else core.due\n",
        "        return core.due\n",
    ),
    _core_bug(
        "what no worker has begun is never ordered again",
        "forgotten",
        "            elif entry.ordered:\n                effects.start.append(entry)\n",
        "            elif entry.ordered:\n                pass\n",
    ),
)
