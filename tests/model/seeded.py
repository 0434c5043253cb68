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
        "            self._due_by(retry_at, effects)\n            return 0",
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
        "entry = self._take()\n        conn",
        "entry = self.idle[-1]\n        conn",
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
        "for waiter in [*self.waiting, *self.watching]",
        "for waiter in [*self.watching]",
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
        "            if entry.ref is held:\n                self._forget(entry)",
        "            if entry.ref is held:\n                pass",
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
        "            waiter.error = error\n            self.requests_errors += 1\n",
        "            self.requests_errors += 1\n",
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
        "timed_out = core.expire(waiter, runtime.now())",
        "timed_out = not core.expire(waiter, runtime.now()) or True",
    ),
    _flow_bug(
        "a client whose check is cancelled keeps its slot",
        "check",
        "        except BaseException as error:\n            runtime = self.runtime",
        "        except Exception as error:\n            runtime = self.runtime",
    ),
    _flow_bug(
        "a connection whose check has failed goes back to the pool",
        "check",
        "effects = self.core.check_failed(\n"
        "                    entry, conn, error, arrived, runtime.now(), runtime.chance()\n"
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
        "effects = core.open_failed(entry, conn, error,",
        "effects = core.open_failed(entry, None, error,",
    ),
    _flow_bug(
        "an opening that is cancelled keeps its permit",
        "main",
        "        except BaseException as error:\n"
        "            with runtime.lock:\n"
        "                effects = core.open_failed",
        "        except Exception as error:\n"
        "            with runtime.lock:\n"
        "                effects = core.open_failed",
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
        "            if usable and self.reset is None:\n"
        "                await self._roll_back(conn)",
        "            if usable and self.reset is None:\n"
        "                with runtime.lock:\n"
        "                    await self._roll_back(conn)",
    ),
    _flow_bug(
        "check() looks at an idle connection in one step and takes it in another",
        "verify preempted",
        "                conn = self.core.recall(entry)\n",
        "                conn = entry.conn\n"
        "            with self.runtime.lock:\n"
        "                self.core.recall(entry)\n",
    ),
)
