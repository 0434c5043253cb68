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


def _core_bug(name: str, configuration: str, old: str, new: str) -> Seeded:
    return Seeded(name, configuration, Mutation(_core, old, new))


def _flow_bug(name: str, configuration: str, old: str, new: str) -> Seeded:
    return Seeded(name, configuration, Mutation(_flows, old, new))


#: What follows where a reset has failed: the line before it stands elsewhere, too.
RESET_FAILED = (
    "            self.carry_out(effects)\n"
    "            if not isinstance(error, Exception):\n"
    "                raise\n"
    '            logger.warning("%s: error resetting'
)

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
        "            self.waiting\n            or self.watching\n",
        "            self.watching\n",
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
        "if 0 < self.max_waiting <= len(self.waiting)",
        "if 0 < self.max_waiting < len(self.waiting)",
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
        "if entry.expires_at != EVICTED:\n            entry.expires_at = now",
        "if True:\n            entry.expires_at = now",
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
        "        self._evict_all(effects)\n        return effects\n\n    def drain",
        "        return effects\n\n    def drain",
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
        "            or len(self.idle) >= self.keep\n",
        "",
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
        f"effects = core.discard(entry, conn, runtime.now())\n{RESET_FAILED}",
        f"effects = core.serviced(entry, conn, runtime.now())\n{RESET_FAILED}",
    ),
    _flow_bug(
        "a connection that could not be configured is dropped, not closed",
        "configure",
        "                    entry, conn, kept, runtime.now(), runtime.chance(), verdict\n",
        "                    entry, None, kept, runtime.now(), runtime.chance(), verdict\n",
    ),
    _flow_bug(
        "an opening that is cancelled keeps its permit",
        "main",
        "        except BaseException as error:\n            verdict, kept",
        "        except Exception as error:\n            verdict, kept",
    ),
    _flow_bug(
        "in a closed pool a return waits for a worker",
        "close",
        "        for entry in here:\n            await self.work(entry)",
        "        del here",
    ),
    _flow_bug(
        "who has been served without waiting is granted for ever",
        "plain",
        "            self.core.granted.pop(waiter, None)\n",
        "",
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
        "if self.core.doubtful(entry) and not self._is_alive(entry, conn):",
        "if False:",
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
        "if mine and self._is_alive(entry, conn):",
        "if mine:",
    ),
    _flow_bug(
        "a connection that maintenance finds alive is not put back",
        "noise",
        '                    self.transition("serviced", entry, conn)\n',
        "                    pass\n",
    ),
    # Servers that do not answer.
    _core_bug(
        "a connection that opens too late is dropped",
        "connects hang",
        "self._welcome(entry, conn):\n            return self._strayed(entry, conn)\n",
        "self._welcome(entry, conn):\n            return Effects()\n",
    ),
    _core_bug(
        "a permit that was given up comes back twice",
        "connects hang",
        "        if entry.given_up:\n"
        "            return Effects() if conn is None else self._strayed(entry, conn)\n",
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
        "in _taken(self.core.forsaken):",
        "in ():",
    ),
    _core_bug(
        "a lease is taken back from the next client",
        "forsaken late",
        " or entry.leased is None or entry.lent_at is not lent_at:",
        ":",
    ),
    # Clients that ask for another connection while they hold one.
    _core_bug(
        "a deadlock is not noticed",
        "nested alone",
        "            self._break_deadlock(waiter, now, effects)\n",
        "",
    ),
    _core_bug(
        "a deadlock is noticed before all wait",
        "nested",
        "        if holders <= claims and all(",
        "        if all(",
    ),
    _core_bug(
        "a deadlock is noticed though a connection will be opened",
        "nested and failures",
        "        if self.opening or len(self.entries) < self.max_size:\n            return\n",
        "",
    ),
    _core_bug(
        "a lease that has ended still makes a deadlock",
        "nested in part",
        "        if entry.leased:  # _end_lease(), written out for the hot path\n"
        "            entry.leased = None\n",
        "        if entry.leased:\n            pass\n",
    ),
    # What a failed attempt means.
    _core_bug(
        "who waits in vain is not told that connecting fails for good",
        "rejected",
        "        hopeless = verdict is Verdict.REJECTED\n",
        "        hopeless = False\n",
    ),
    _core_bug(
        "clients are refused though a connection is lent",
        "rejected",
        "isinstance(error, Exception) and not self.entries:",
        "isinstance(error, Exception):",
    ),
    _core_bug(
        "credentials have no second chance",
        "credentials",
        "hopeless = self.refused or not self.fresh",
        "hopeless = True",
    ),
    _core_bug(
        "credentials have a chance for ever",
        "credentials",
        "            self.refused = True\n",
        "",
    ),
    _core_bug(
        "an attempt that is not answered is never joined by another",
        "second probe",
        "            if self.opening > 1 or not (self.waiting and room):",
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
        "            if self.opening > 1 or not (self.waiting and room):",
        "            if not (self.waiting and room):",
    ),
    _core_bug(
        "a crowded server is asked by two at once",
        "crowded",
        "room = len(self.entries) < self.max_size and not self.crowded",
        "room = len(self.entries) < self.max_size",
    ),
)
