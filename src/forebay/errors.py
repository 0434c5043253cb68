"""Why a pool refuses a client: the kinds of refusal, apart from any driver's exception classes."""

from __future__ import annotations

import pickle
from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from heapq import nsmallest
from itertools import islice
from math import inf
from typing import TYPE_CHECKING, Any, TypeAlias

from ._entry import LENT, OPENING
from ._stacks import stack, stands_in

if TYPE_CHECKING:
    from ._core import Core
    from ._entry import Entry, Waiter

#: Seconds after which an attempt to connect counts as unanswered.
UNANSWERED = 1.0
#: How many holders a message names; the attribute `holders` has them all.
NAMED = 3
#: Characters of an error that a message quotes.
QUOTED = 300
#: Waiting clients among whom holders are looked for.
QUEUED = 100

#: A lent connection: its holder, since when, the line that took it, whether as a lease.
Lent: TypeAlias = tuple[Any, float, Any, bool]


def detach(error: BaseException) -> None:
    """Take the tracebacks off an error that is kept: their frames keep connections alive."""
    link: BaseException | None = error
    while link is not None and link.__traceback__ is not None:  # a chain may be a circle
        link.__traceback__ = None
        link = link.__cause__ or link.__context__


@dataclass(frozen=True)
class Holding:
    """A lent connection: who has it.  It keeps neither the connection nor its holder alive."""

    name: str
    """The name of the thread or the task that took it."""
    since_seconds: float
    """For how many seconds it had been lent."""
    line: str | None
    """The line that took it, as `file.py:12 in handler`, if the pool has `record_lines=True`."""
    leased: bool
    """Whether it was taken by `connection()`, not by `getconn()`."""
    _holder: Any = field(default=None, repr=False, compare=False)

    def stack(self) -> str | None:
        """What the thread or the task executes at this moment, as text.

        `None` if it has ended, or if the error comes from another process; of a task also if this
        is not called in its event loop, or if another task has the same name.
        """
        return stack(self._holder)

    def __reduce__(self) -> Any:
        return Holding, (self.name, self.since_seconds, self.line, self.leased)

    def __str__(self) -> str:
        at = f" ({self.line})" if self.line else ""
        return f"{self.name} for {self.since_seconds:.1f} s{at}"


class PoolClosedMixin(Exception):
    """The pool is not open yet, or closed already; every driver's `PoolClosed` is one."""


class PoolTimeoutMixin(Exception):
    """No connection came within the client's timeout; every driver's `PoolTimeout` is one.

    The attributes are the facts at that moment.  If connecting fails, the last error is the
    `__cause__`.
    """

    kind: str = "exhausted"
    """`exhausted`: every connection is in use; `unreachable`: connecting fails, or is not
    answered; `rejected`: see `PoolRejected`; `deadlock`: see `PoolDeadlock`; `nested`: a signal
    handler or a finalizer asked while it interrupted one of the pool's own steps."""
    pool_name: str = ""
    """The name of the pool."""
    size: int = 0
    """Connections in the pool: idle, lent, in service and being opened."""
    max_size: int = 0
    """The bound on `size`; 0: none (null pools only)."""
    idle: int = 0
    """Connections that were ready to be lent."""
    lent: int = 0
    """Connections with clients."""
    opening: int = 0
    """Connections being opened."""
    waiting: int = 0
    """Other clients in the queue."""
    timeout: float | None = None
    """Seconds the client waited at most; `None` if it was refused before that."""
    _lent: tuple[Lent, ...] = ()
    _now: float = 0.0

    @cached_property
    def holders(self) -> tuple[Holding, ...]:
        """Who has the lent connections, the longest first."""
        return tuple(_holding(lent, self._now) for lent in sorted(self._lent, key=_since))

    suspects: tuple[str, ...] = ()
    """The names among the holders that wait for a further connection themselves."""
    last_error: BaseException | None = None
    """The last error of connecting, even if connecting has succeeded since."""
    last_error_age: float | None = None
    """How many seconds ago that was."""

    def __reduce__(self) -> Any:
        state = {**self.__dict__, "holders": self.holders, "_lent": ()}
        state["last_error"] = _portable(self.last_error)
        return _restored, (type(self), self.args, state)


class PoolRejectedMixin(PoolTimeoutMixin):
    """Connecting fails for good; every driver's `PoolRejected` is one."""


class PoolDeadlockMixin(PoolTimeoutMixin):
    """Every holder of a connection waits for a further one; every `PoolDeadlock` is one."""


class TooManyRequestsMixin(Exception):
    """More than `max_waiting` clients would wait; every driver's `TooManyRequests` is one."""


class Refusals:
    """Makes the exceptions of one pool, of the classes its driver gives."""

    def __init__(
        self,
        name: str,
        closed: type[PoolClosedMixin],
        timeout: type[PoolTimeoutMixin],
        too_many: type[TooManyRequestsMixin],
        rejected: type[PoolRejectedMixin] = PoolRejectedMixin,
        deadlock: type[PoolDeadlockMixin] = PoolDeadlockMixin,
    ) -> None:
        self._name = name
        self._closed = closed
        self._timeout = timeout
        self._too_many = too_many
        self._rejected = rejected
        self._deadlock = deadlock
        # What was seen last of the lent connections: where many clients run out of time together,
        # only the first looks at every one of them.
        self._stamp: tuple[int, ...] = ()
        self._seen: tuple[Lent, ...] = ()
        self._seen_holders: Counter[Any] = Counter()

    def closed(self, core: Core) -> Exception:
        """The pool is not open."""
        when = "not open yet: open it by open(), or use it as a context manager"
        if core.phase.value == "closed":
            when = "already closed: a pool cannot be opened again, make a new one"
        return self._closed(f"the pool {self._name!r} is {when}")

    def full(self, core: Core) -> Exception:
        """Too many clients wait already."""
        return self._too_many(
            f"the pool {self._name!r} has already {len(core.waiting)} requests waiting"
            f" (max_waiting={core.settings.max_waiting})"
        )

    def timeout(
        self, core: Core, timeout: float, now: float, client: Waiter | None = None
    ) -> PoolTimeoutMixin:
        """The time of `client`, `timeout` seconds, is up."""
        facts = self._facts(core, now)
        facts["timeout"] = timeout
        facts["suspects"] = _suspects(core, client, self._seen_holders)
        trouble = None if core.lent >= core.settings.max_size else _trouble(core, now)
        if trouble is not None:
            facts["kind"] = "unreachable"
        reasons = [trouble, _use(facts), _held(facts["_lent"], now), _suspicion(facts["suspects"])]
        head = f"couldn't get a connection after {timeout:.2f} sec from pool {self._name!r}: "
        error = self._timeout(head + "; ".join(filter(None, reasons)))
        return _complete(error, facts, core.last_error if core.failures else None)

    def nested(self, core: Core) -> PoolTimeoutMixin:
        """The client asks inside a transition of its own thread, which it would wait for."""
        del core
        error = self._timeout(
            f"couldn't get a connection from pool {self._name!r}: a signal handler or a finalizer"
            " asked for it while it interrupted the pool at work in the same thread; have it set a"
            " flag, or start a thread, and use the pool there"
        )
        return _complete(error, {"kind": "nested", "pool_name": self._name, "timeout": 0.0}, None)

    def rejected(self, core: Core, error: Exception, now: float) -> PoolTimeoutMixin:
        """Connecting has failed by `error`, and will until somebody changes something."""
        facts = self._facts(core, now)
        facts["kind"] = "rejected"
        facts["waiting"] = max(0, facts["waiting"] - 1)  # the others
        refusal = self._rejected(
            f"couldn't get a connection from pool {self._name!r}: connecting fails, and will until"
            f" something is changed: {_quoted(error)}"
        )
        return _complete(refusal, facts, error)

    def deadlock(self, core: Core, now: float, stuck: dict[Any, Waiter]) -> PoolTimeoutMixin | None:
        """Each holder waits for one more connection; `None` if that is not certain.

        It is when they are found inside their blocks: see `stands_in()`.  `stuck` are those who
        wait, by their claims.
        """
        if not all(_inside(entry, stuck[entry.leased]) for entry in core.entries):
            return None
        facts = self._facts(core, now)
        facts["kind"] = "deadlock"
        facts["waiting"] -= 1  # the others
        facts["suspects"] = tuple(dict.fromkeys(_name(lent[0]) for lent in facts["_lent"]))
        error = self._deadlock(
            f"couldn't get a connection from pool {self._name!r}, and nobody ever would: "
            f"{_use(facts)}, and each of their holders waits for one more"
            f"; {_held(facts['_lent'], now)}; use one connection for both purposes, return the"
            " first before asking for the second, or raise max_size"
        )
        return _complete(error, facts, None)

    def _facts(self, core: Core, now: float) -> dict[str, Any]:
        """What errors tell; made under the pool's lock, so nothing here is turned into text."""
        if self._stamp != core.stamp:
            self._seen = tuple(
                (entry.holder, entry.lent_at, entry.line, bool(entry.leased))
                for entry in [*core.entries]
                if entry.place is LENT
            )
            self._seen_holders = Counter(lent[0] for lent in self._seen)
            self._stamp = core.stamp
        lent = self._seen
        age = None if core.last_error is None else max(0.0, now - core.failed_at)
        return {
            "kind": "exhausted",
            "pool_name": self._name,
            "size": core.size,
            "max_size": 0 if core.settings.max_size == inf else int(core.settings.max_size),
            "idle": len(core.idle),
            "lent": len(lent),
            "opening": core.opening,
            "waiting": len(core.waiting),
            "_lent": lent,
            "_now": now,
            "last_error": core.last_error,
            "last_error_age": age,
        }


def _complete(
    error: PoolTimeoutMixin, facts: dict[str, Any], cause: BaseException | None
) -> PoolTimeoutMixin:
    error.__dict__.update(facts)
    error.__cause__ = cause
    return error


def _holding(lent: Lent, now: float) -> Holding:
    holder, since, line, leased = lent
    at = str(line) if line else None
    return Holding(_name(holder), max(0.0, now - since), at, leased, holder)


def _since(lent: Lent) -> float:
    return lent[1]


def _name(holder: Any) -> str:
    """The name of a thread's `Holder`; a task is known by its name alone."""
    return str(getattr(holder, "name", holder) or "an unknown holder")


def _inside(entry: Entry, waiter: Waiter) -> bool:
    conn: Any = entry.ref and entry.ref()
    if conn is None or conn.closed:
        return False  # its slot comes back with the next maintenance
    return stands_in(waiter.client, conn)


def _suspects(core: Core, client: Waiter | None, holders: Counter[Any]) -> tuple[str, ...]:
    """Who holds a connection and waits, or has waited, for a further one.

    Of a long queue its head is looked at: who is in a deadlock waits for the longest.
    """
    clients = Counter(waiter.holder for waiter in islice(core.waiting, QUEUED))
    clients[client and client.holder] += 1
    found = [h for h in clients if h is not None and h in holders]
    # A task is known by its name, and tasks of one name may be many.
    certain = [h for h in found if not isinstance(h, str) or holders[h] == clients[h] == 1]
    return tuple(dict.fromkeys(map(_name, certain)))


def _trouble(core: Core, now: float) -> str | None:
    """Why no connection can be opened, if that is so."""
    if core.failures and core.last_error is not None:
        age = max(0.0, now - core.failed_at)
        what = core.unproven or "connecting fails"
        return f"{what}, {age:.2f} s ago with {_quoted(core.last_error)}"
    begun = [
        entry.began_at for entry in [*core.entries] if entry.place is OPENING and not entry.ordered
    ]
    if begun and now - min(begun) >= UNANSWERED:
        return f"the server has not answered an attempt to connect for {now - min(begun):.1f} s"
    return None


def _use(facts: dict[str, Any]) -> str:
    """How much of the pool is in use, as words."""
    lent, most, waiting = facts["lent"], facts["max_size"], facts["waiting"]
    service = facts["size"] - facts["idle"] - lent - facts["opening"]
    if lent == most:
        words = [f"all {most} connections are lent" if most > 1 else "its only connection is lent"]
    else:
        words = [f"{lent} of at most {most} connections are lent" if most else f"{lent} are lent"]
    words += [f"{service} being reset or checked"] if service else []
    words += [f"{facts['opening']} being opened"] if facts["opening"] else []
    words += [f"{waiting} more clients wait" if waiting > 1 else "one more client waits"] * bool(
        waiting
    )
    return ", ".join(words) + (f" (max_size={most})" if lent == most else "")


def _held(lent: tuple[Lent, ...], now: float) -> str | None:
    """Who has had connections for the longest, as words."""
    if not lent:
        return None
    longest = [_holding(each, now) for each in nsmallest(NAMED, lent, key=_since)]
    more = f" and {len(lent) - NAMED} more" if len(lent) > NAMED else ""
    hint = (
        "" if any(holding.line for holding in longest) else " (record_lines=True would tell where)"
    )
    return f"held by {', '.join(map(str, longest))}{more}{hint}"


def _suspicion(suspects: tuple[str, ...]) -> str | None:
    if not suspects:
        return None
    who = "a holder waits" if len(suspects) == 1 else f"{len(suspects)} holders wait"
    return (
        f"perhaps a deadlock: {who} for one more connection ({', '.join(suspects[:NAMED])}),"
        " and may keep the first meanwhile"
    )


def _quoted(error: BaseException) -> str:
    """An error in one line."""
    text = " ".join(str(error).split())
    short = text if len(text) <= QUOTED else text[:QUOTED] + "..."
    return f"{type(error).__name__}: {short}"


def _portable(error: BaseException | None) -> BaseException | None:
    """An error that goes to another process; one that cannot is left out: the text tells of it."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return None
    return error


def _restored(
    cls: type[PoolTimeoutMixin], args: tuple[Any, ...], state: dict[str, Any]
) -> PoolTimeoutMixin:
    """Make an error again; psycopg2's own way forgets the attributes."""
    error = cls(*args)
    error.__dict__.update(state)
    return error
