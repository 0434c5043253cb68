"""The rules at the top of `_core.py`, one by one."""

from __future__ import annotations

import ast
import dis
import inspect
from collections.abc import Callable
from dataclasses import replace
from math import inf
from typing import Any
from unittest import mock

import pytest

from forebay import _core, _entry, _policy
from forebay._core import Core
from forebay._entry import IDLE, LENT, OPENING, RETIRED, SERVICE, Effects, Entry
from forebay.errors import PoolClosedMixin, PoolTimeoutMixin, Refusals, TooManyRequestsMixin

from . import opcodes
from .cores import core_of
from .invariants import violations
from .opcodes import Interrupter
from .returns import checkin, recycle
from .test_random import Client

NOW = 1000.0
CORE = ast.parse(inspect.getsource(_core))


class Conn:
    """A connection that does nothing."""


def make(**options: Any) -> Core:
    """Make a core whose pool is not open yet."""
    refusals = Refusals("rules", PoolClosedMixin, PoolTimeoutMixin, TooManyRequestsMixin)
    return core_of(refusals, **({"min_size": 1, "max_size": 2, "bypass_window": inf} | options))


def filled(**options: Any) -> Core:
    """Make a core whose pool is open and has all its connections idle."""
    core = make(**options)
    for entry in core.open(NOW).start:
        permit = core.begin(entry, NOW)
        core.opened(entry, Conn(), 0.0, NOW, 0.0)
        del permit
    return core


def state(core: Core) -> dict[str, Any]:
    """Everything a core knows, its counters of refusals apart."""
    seen: dict[str, Any] = {name: getattr(core, name) for name in Core.__slots__}
    for name, value in seen.items():
        if isinstance(value, (dict, set)) or hasattr(value, "popleft"):
            seen[name] = list(value)
    del seen["requests_errors"]
    seen["settings"] = replace(core.settings)
    seen["of each entry"] = [
        (e.place, e.ordered, id(e.conn), e.expires_at, e.leased) for e in core.entries
    ]
    return seen


@pytest.mark.parametrize("module", [_core, _entry, _policy])
def test_the_core_imports_only_data_structures_and_its_siblings(module: Any) -> None:
    """Rules 1 and 2: no clock, no lock, no I/O and no randomness is within its reach."""
    allowed = {"__future__", "collections", "collections.abc", "dataclasses", "enum", "math"}
    allowed |= {"functools", "itertools", "typing", "weakref", "_entry", "_policy", "options"}
    for node in ast.walk(ast.parse(inspect.getsource(module))):
        assert not isinstance(node, ast.Import) or {a.name for a in node.names} <= allowed
        assert not isinstance(node, ast.ImportFrom) or node.module in allowed


def test_nothing_in_the_core_waits() -> None:
    """Rule 1: there is no `await`, no `with`, no `yield`."""
    waiting = (ast.Await, ast.AsyncFunctionDef, ast.AsyncWith, ast.With, ast.Yield, ast.YieldFrom)
    assert not [node for node in ast.walk(CORE) if isinstance(node, waiting)]


def test_the_core_calls_nobody_outside() -> None:
    """Rule 6: it wakes no client, calls no callback, logs nothing, touches no connection."""
    calls = {
        node.func.attr
        for node in ast.walk(CORE)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
    }
    outside = {"wake", "wait", "call", "connect", "rollback", "ping", "debug", "info", "warning"}
    assert not calls & outside


def idle_entry(core: Core) -> Entry:
    """Give an entry that is idle."""
    return core.idle[0]


REFUSED: dict[str, tuple[type[BaseException], Callable[[Core], object]]] = {
    "checkin of an idle connection": (
        ValueError,
        lambda core: checkin(core, idle_entry(core), Conn(), NOW),
    ),
    "recycle of an idle connection": (
        ValueError,
        lambda core: recycle(core, idle_entry(core), Conn(), NOW),
    ),
    "discard of an idle connection": (
        ValueError,
        lambda core: core.discard(idle_entry(core), Conn(), NOW, 0.5),
    ),
    "serviced for an idle connection": (
        RuntimeError,
        lambda core: core.serviced(idle_entry(core), Conn(), NOW),
    ),
    "opened for an idle connection": (
        RuntimeError,
        lambda core: core.opened(idle_entry(core), Conn(), 0.0, NOW, 0.0),
    ),
    "open_failed for an idle connection": (
        RuntimeError,
        lambda core: core.open_failed(idle_entry(core), None, OSError(), NOW, 0.0),
    ),
}

REFUSED_WHEN_CLOSED: dict[str, Callable[[Core], object]] = {
    "enqueue": lambda core: core.enqueue(Client(), NOW),
    "refuse": lambda core: core.refuse(),
    "open": lambda core: core.open(NOW),
    "watch": lambda core: core.watch(Client()),
}


@pytest.mark.parametrize("refused", REFUSED)
def test_a_refused_transition_has_changed_nothing(refused: str) -> None:
    """Rule 3: a transition returns, or raises before it has changed anything."""
    core = filled()
    error, transition = REFUSED[refused]
    before = state(core)
    with pytest.raises(error):
        transition(core)
    assert state(core) == before


@pytest.mark.parametrize("refused", REFUSED_WHEN_CLOSED)
def test_a_closed_pool_refuses_and_changes_nothing(refused: str) -> None:
    """Rule 3, for transitions that need an open pool."""
    core = filled()
    core.close(NOW)
    before = state(core)
    with pytest.raises(PoolClosedMixin):
        REFUSED_WHEN_CLOSED[refused](core)
    assert state(core) == before


def test_a_full_queue_refuses_and_changes_nothing() -> None:
    """Rule 3, for a client too many."""
    core = filled(min_size=0, max_waiting=1)
    core.enqueue(Client(), NOW)
    before = state(core)
    with pytest.raises(TooManyRequestsMixin):
        core.enqueue(Client(), NOW)
    assert state(core) == before


def test_the_audit_of_a_sound_core_changes_nothing() -> None:
    """Rule 3: what repairs every prefix of a transition leaves whole ones alone."""
    core = filled(min_size=2)
    conn = core.checkout(NOW)
    before, effects = state(core), Effects()
    core.audit(NOW, effects)
    assert state(core) == before
    assert conn is not None
    assert not effects.wake
    assert not effects.start


def test_the_common_path_builds_no_object() -> None:
    """Rule 4: no opcode that checkout and checkin run there makes a container or an `Effects`."""
    core = filled()
    entry = core.idle[0]
    returned: list[object] = []
    interrupter = Interrupter()
    with (
        mock.patch.object(_core, "Effects", side_effect=AssertionError("an Effects is made")),
        mock.patch.object(
            opcodes, "_places", lambda code: {i.offset for i in dis.get_instructions(code)}
        ),
    ):
        interrupter.run(lambda: returned.append(checkin(core, entry, core.checkout(NOW), NOW)))
    assert returned == [None]
    run = {function for function, _ in interrupter.seen}
    assert run == {"Core.checkout", "Core.checkin"}
    making = ("BUILD_", "MAKE_", "FORMAT_", "LIST_", "MAP_", "SET_", "DICT_")
    for function in (Core.checkout, Core.checkin):
        names = {i.offset: i.opname for i in dis.get_instructions(function)}
        seen = [names[at] for name, at in interrupter.seen if name == function.__qualname__]
        assert len(seen) > 10
        assert not [name for name in seen if name.startswith(making)]


def test_an_entry_is_in_exactly_one_place_all_its_life() -> None:
    """Rule 5: opening, idle, lent, in service, idle, lent, retired, gone."""
    core = make()
    (entry,) = core.open(NOW).start
    places = [entry.place]
    permit = core.begin(entry, NOW)
    core.opened(entry, Conn(), 0.0, NOW, 0.0)
    del permit

    def note() -> None:
        places.append(entry.place)
        assert not violations(core)

    note()
    conn = core.checkout(NOW)
    note()
    recycle(core, entry, conn, NOW)
    note()
    core.serviced(entry, core.begin(entry, NOW), NOW)
    note()
    conn = core.checkout(NOW)
    note()
    core.discard(entry, conn, NOW, 0.5)
    note()
    assert places == [OPENING, IDLE, LENT, SERVICE, IDLE, LENT, RETIRED]
    assert entry not in core.entries
    assert core.begin(entry, NOW) is conn
    core.retired(entry)
    assert not core.retiring


def test_a_permit_comes_back_once_as_a_connection() -> None:
    """Rule 7: `opened` ends it."""
    core = make()
    (entry,) = core.open(NOW).start
    permit = core.begin(entry, NOW)
    assert permit is not None
    assert core.begin(entry, NOW) is None
    core.opened(entry, Conn(), 0.0, NOW, 0.0)
    assert core.opening == 0
    with pytest.raises(RuntimeError, match="please report"):
        core.opened(entry, Conn(), 0.0, NOW, 0.0)


def test_a_permit_comes_back_once_as_a_failure() -> None:
    """Rule 7: `open_failed` ends it."""
    core = make()
    (entry,) = core.open(NOW).start
    permit = core.begin(entry, NOW)
    assert permit is not None
    core.open_failed(entry, None, OSError("refused"), NOW, 0.0)
    assert core.opening == core.size == 0
    with pytest.raises(RuntimeError, match="please report"):
        core.open_failed(entry, None, OSError("refused"), NOW, 0.0)


def test_a_permit_comes_back_when_it_is_dropped() -> None:
    """Rule 7: a worker that dies returns its permit, and another one is issued."""
    core = make()
    (entry,) = core.open(NOW).start
    permit = core.begin(entry, NOW)
    assert core.maintain(NOW).start == []
    del permit
    (again,) = core.maintain(NOW).start
    assert again is not entry
    assert core.opening == core.size == 1


def test_a_dropped_connection_enters_the_core_with_the_next_transition() -> None:
    """Rule 8: the weakref callback only leaves a note."""
    core = filled()
    conn = core.checkout(NOW)
    before = state(core)
    del conn
    after = state(core)
    assert len(after.pop("lost")) == len(before.pop("lost")) + 1
    assert before == after
    assert len(core.maintain(NOW).start) == 1
    assert not core.lost
    assert core.size == core.opening == 1


def test_backoff_grows_to_its_cap_and_never_vanishes() -> None:
    """Delays are between half of the first and the cap, whatever the chance."""
    backoff = _policy.Backoff(first=0.02, factor=2.0, cap=3.0)
    assert backoff.delay(1, 0.0) == 0.01
    assert backoff.delay(1, 0.5) == 0.01
    assert backoff.delay(3, 0.5) == 0.04
    assert backoff.delay(1000, 0.999999) == pytest.approx(3.0)


def test_a_lifetime_is_up_to_five_percent_short() -> None:
    """Connections opened together do not expire together."""
    assert _policy.lifetime(100.0, 0.0) == 100.0
    assert _policy.lifetime(100.0, 1.0) == 95.0


@pytest.mark.parametrize(
    ("target", "size", "max_size", "waiting", "opening", "width", "expected"),
    [
        (4, 0, 10, 0, 0, 3, 3),  # as many at once as there are workers
        (4, 3, 10, 0, 0, 3, 1),  # only what is wanted
        (4, 4, 10, 0, 0, 3, 0),
        (4, 4, 10, 5, 0, 3, 3),  # for clients that wait
        (4, 4, 10, 2, 2, 3, 0),  # what is being opened is for them
        (4, 4, 5, 5, 0, 3, 1),  # never over max_size
        (4, 6, 5, 5, 0, 3, 0),
        (0, 0, inf, 7, 0, inf, 7),  # a null pool: one for each client
    ],
)
def test_growth_opens_what_is_wanted_and_allowed(
    target: int,
    size: int,
    max_size: float,
    waiting: int,
    opening: int,
    width: float,
    expected: int,
) -> None:
    """Openings make up for what is missing, bounded by the workers and by max_size."""
    found = _policy.growth(
        target=target, size=size, max_size=max_size, waiting=waiting, opening=opening, width=width
    )
    assert found == expected
