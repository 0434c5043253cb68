"""What the core does while a transition is under way, and what it leaves for the next one."""

from __future__ import annotations

from typing import Any
from unittest import mock

import pytest

from forebay._core import ALL, INSIDE, WANTED, Core, Phase
from forebay._entry import EVICTED, IDLE, LENT, RETIRED, SERVICE, Effects, Entry, Return
from forebay.errors import PoolClosedMixin

from .invariants import violations
from .returns import checkin, recycle
from .test_random import Client
from .test_rules import NOW, Conn, filled, make, state
from .test_transitions import Gains, is_idle, is_retired, lent, opened, permit, places, queued


def ready(core: Core) -> Any:
    """What the common path may take from."""
    return core.ready


def is_open(core: Core) -> bool:
    """Whether the common path may take what is idle."""
    return core.ready is core.idle


def cut_short(core: Core) -> None:
    """Leave a core as a transition does that a signal handler interrupts."""
    core.ready = INSIDE


# What the common path may take from --------------------------------------------------------------


def test_the_common_path_takes_from_the_idle_connections_themselves() -> None:
    """While nobody waits or watches, and new connections are trusted."""
    core = make()
    assert is_open(core)
    core = filled()
    assert is_open(core)
    queued(core)
    assert is_open(core)  # it was served at once


def test_the_common_path_is_closed_while_a_return_has_more_to_do() -> None:
    """Somebody waits, or watches, or new connections are on probation."""
    core = filled(max_size=1)
    entry, conn = lent(core)
    client = queued(core)
    assert ready(core) is WANTED
    core.expire(client, NOW)
    assert is_open(core)
    watcher = Client()
    core.watch(watcher)
    assert ready(core) is WANTED
    core.cancel(watcher, NOW)
    assert is_open(core)
    core.unproven = "why"
    core.fill(0, NOW)
    assert ready(core) is WANTED
    core.check_passed(NOW)
    assert is_open(core)
    assert (entry.place, conn is None) == (LENT, False)


def test_what_keeps_the_common_path_off_looks_empty_and_full() -> None:
    """Empty to who would take, full to who would add."""
    for keep_off in (INSIDE, WANTED):
        assert not keep_off
        assert len(keep_off) == ALL
    assert INSIDE is not WANTED


def test_the_common_path_is_closed_during_a_transition_and_open_after_it_however_it_ends() -> None:
    """Served, refused or interrupted; only what cuts short the very end leaves it closed."""
    core = filled()
    seen: list[Any] = []

    def note(*_: object) -> Any:
        seen.append((core.ready, core.checkout(NOW), core.misses))
        raise ZeroDivisionError

    with mock.patch.object(Core, "_balance", note), pytest.raises(ZeroDivisionError):
        core.drain(NOW)
    assert seen == [(INSIDE, None, 1)]
    assert is_open(core)
    core.close(NOW)
    with pytest.raises(PoolClosedMixin):
        core.enqueue(Client(), NOW)
    assert is_open(core)


def test_a_checkout_that_must_look_at_its_connection_leaves_the_common_path_open() -> None:
    """It put the connection back where it was."""
    core = filled(bypass_window=0.5)
    assert core.checkout(NOW + 1) is None
    assert (is_open(core), core.misses, core.requests_num) == (True, 1, 1)


def test_a_core_that_was_cut_short_heals_with_the_next_transition() -> None:
    """Until then clients queue for what is idle, and returns are put off."""
    core = filled()
    cut_short(core)
    assert core.checkout(NOW) is None
    client = queued(core)
    assert (client.conn is None, is_open(core)) == (False, True)


def test_a_connection_that_is_idle_is_not_lent_inside_a_transition() -> None:
    """Nor is the request forgotten."""
    core = filled()
    cut_short(core)
    gains = Gains(core)
    assert core.checkout(NOW) is None
    assert (gains.since(), core.misses, len(core.idle)) == ({"requests_num": 1}, 1, 1)


# Returns that are put off ------------------------------------------------------------------------


@pytest.mark.parametrize("clean", [True, False])
def test_a_return_inside_a_transition_is_put_off_as_it_is(clean: bool) -> None:
    """Nothing is changed, and maintenance is asked for."""
    core = filled(min_size=2)
    entry, conn = lent(core)
    cut_short(core)
    before = state(core)
    come_back: Any = checkin if clean else recycle
    effects = come_back(core, entry, conn, NOW + 1)
    assert effects is not None
    assert (effects.alarm, effects.start, effects.wake) == (True, [], [])
    assert list(core.returned) == [Return(entry, conn, entry.lent_at, clean)]
    core.returned.clear()
    assert state(core) == before


def test_what_was_put_off_is_taken_by_the_next_transition_that_serves() -> None:
    """Who queues has it; another return takes it along; maintenance and closing find it."""

    def enqueue(core: Core) -> None:
        assert queued(core, NOW + 2).conn is not None

    def give_back(core: Core) -> None:
        other, conn = lent(core)
        core.keep = 0  # whatever asks for more than the common path
        core.give_back(other, conn, NOW + 2, other.lent_at)

    def maintain(core: Core) -> None:
        core.maintain(NOW + 2)

    def audit(core: Core) -> None:
        core.audit(NOW + 2, Effects())

    def close(core: Core) -> None:
        core.close(NOW + 2)

    for take in (enqueue, give_back, maintain, audit, close):
        core = filled(min_size=2, max_size=2)
        entry, conn = lent(core)
        entry.leased = "me"
        if take is enqueue:
            _held = lent(core)
        before = core.ready
        cut_short(core)
        checkin(core, entry, conn, NOW + 1)
        core.ready = before
        gains = Gains(core)
        take(core)
        assert not core.returned, take
        assert entry.leased is None
        assert gains.since()["usage_time"] == 2
        assert not violations(core)


def test_an_unclean_return_that_was_put_off_goes_to_a_worker() -> None:
    """It is rolled back, and reset, there."""
    core = filled()
    entry, conn = lent(core)
    core.put_off(entry, conn, entry.lent_at)
    assert list(core.returned) == [Return(entry, conn, entry.lent_at, False)]
    effects = core.maintain(NOW + 1)
    assert {*effects.start} == {entry}
    assert (entry.place, entry.conn, entry.deadline) == (SERVICE, conn, NOW + 4)


def test_a_return_that_was_put_off_and_came_back_otherwise_changes_nothing() -> None:
    """Its lending has ended, perhaps with another one begun."""
    core = filled()
    entry, conn = lent(core)
    core.put_off(entry, conn, entry.lent_at)
    checkin(core, entry, conn, NOW + 1)
    assert core.checkout(NOW + 1) is conn
    core.maintain(NOW + 2)
    assert (entry.place, list(core.returned), list(core.idle)) == (LENT, [], [])


def test_a_closed_pool_puts_nothing_off() -> None:
    """There, to drop a connection ends it."""
    core = filled()
    entry, conn = lent(core)
    core.close(NOW)
    cut_short(core)
    effects = checkin(core, entry, conn, NOW)
    assert effects is not None
    assert (effects.alarm, list(core.returned)) == (True, [])
    core.put_off(entry, conn, entry.lent_at)
    assert list(core.returned) == []


# A return names the lending it ends --------------------------------------------------------------


def lent_again() -> tuple[Core, Entry, Any, float]:
    """A connection that was returned, and lent to somebody else at the same moment."""
    core = filled(min_size=1, max_size=1)
    entry, conn = lent(core, NOW)
    lending = entry.lent_at
    checkin(core, entry, conn, NOW)
    core.checkout(float(str(NOW)))
    assert (entry.lent_at == lending, entry.lent_at is lending) == (True, False)
    return core, entry, conn, lending


def test_a_stale_return_takes_nothing_from_the_next_holder() -> None:
    """Whatever kind of return it is."""
    core, entry, conn, lending = lent_again()
    gains = Gains(core)
    entry.leased = "somebody else"
    for effects in (
        core.checkin(entry, conn, NOW, lending),
        core.give_back(entry, conn, NOW, lending),
        core.give_back(entry, conn, NOW, lending, clean=False),
        core.discard(entry, conn, NOW, 0.5, lending=lending),
        core.discard(entry, conn, NOW, 0.5, lending=lending, error=OSError()),
    ):
        assert effects is not None
        assert (effects.start, effects.wake) == ([], [])
    assert (entry.place, entry.conn, entry.leased) == (LENT, None, "somebody else")
    assert (gains.since(), core.failures, list(core.entries)) == ({}, 0, [entry])
    effects = core.discard(entry, conn, NOW, 0.5, lending=entry.lent_at)
    assert is_retired(core, entry, conn, effects)


def test_a_stale_return_of_a_connection_that_is_idle_makes_nothing_of_it() -> None:
    """It is idle once."""
    core = filled()
    entry, conn = lent(core)
    lending = entry.lent_at
    checkin(core, entry, conn, NOW)
    other_moment = float(str(NOW))
    core.checkin(entry, conn, NOW, other_moment)
    assert (list(core.idle), entry.place) == ([entry], IDLE)
    assert lending is entry.lent_at


def test_a_grant_names_its_lending_too() -> None:
    """The return of the last holder ends at the next one's."""
    core = filled(min_size=1, max_size=1)
    entry, conn = lent(core)
    lending, client = entry.lent_at, queued(core)
    checkin(core, entry, conn, NOW + 1)
    core.give_back(entry, conn, NOW + 2, lending)
    assert (entry.place, client.conn) == (LENT, conn)


# Service without maintenance ---------------------------------------------------------------------


def test_a_worker_looks_at_a_connection_on_whose_socket_something_has_come() -> None:
    """It must be taken up in the time of an action; that it was looked at is no use of it."""
    core = filled()
    (entry,) = core.idle
    conn = entry.conn
    effects = core.inspect(entry, NOW + 1)
    assert effects.start == [entry]
    assert (entry.place, entry.chore.name, entry.deadline) == (SERVICE, "LOOK", NOW + 4)
    assert core.begin(entry, NOW + 1) is conn
    core.serviced(entry, conn, NOW + 1)
    assert is_idle(core, entry, conn, NOW)
    assert entry.chore.name == "RESET"


def test_nobody_looks_at_what_was_lent_meanwhile() -> None:
    """Its client will see."""
    core = filled()
    entry, conn = lent(core)
    assert core.inspect(entry, NOW).start == []
    assert (entry.place, conn is None) == (LENT, False)


def test_a_connection_that_a_null_pool_would_close_is_not_reset() -> None:
    """Unless somebody waits for it."""
    core = filled(min_size=0, max_size=1, keep=0, retrying=False)
    client = queued(core)
    entry = permit(core)
    conn = opened(core, entry)
    client.conn = None
    assert is_retired(core, entry, conn, recycle(core, entry, conn, NOW))
    core = filled(min_size=0, max_size=1, keep=0, retrying=False)
    queued(core)
    entry = permit(core)
    conn = opened(core, entry)
    queued(core)
    assert recycle(core, entry, conn, NOW).start == [entry]
    assert entry.place is SERVICE


# Without lifetime ----------------------------------------------------------------------------


def test_a_connection_without_lifetime_is_good_for_one_use() -> None:
    """It may wait for that for as long as it takes."""
    core = filled(max_lifetime=0.0)
    (entry,) = core.idle
    assert entry.expires_at > NOW + 1e9
    assert core.maintain(NOW + 500).start == []
    conn = core.checkout(NOW + 500)
    core.use(entry)
    assert (entry.expires_at, entry.place) == (EVICTED, LENT)
    effects = checkin(core, entry, conn, NOW + 501)
    assert is_retired(core, entry, conn, effects)


# Without workers -----------------------------------------------------------------------------


def test_a_pool_does_without_what_its_workers_had_in_hand() -> None:
    """Permits, connections in service and such that were to be closed; what they bring is closed.

    What nobody has begun stays ordered, and what is idle or lent stays.
    """
    core = filled(min_size=3, max_size=6)
    (one, first), (two, second) = lent(core), lent(core)
    (idle,) = core.idle
    recycle(core, one, first, NOW)
    held = core.begin(one, NOW)
    core.discard(two, second, NOW, 0.5)
    closing = core.begin(two, NOW)
    (begun,) = (e for e in core.entries if e not in (one, idle))
    worker = core.begin(begun, NOW)
    (unbegun,) = core.fill(4, NOW).start
    core.due = NOW + 1
    effects, left = core.resettle(NOW + 0.5, evict=False)
    assert {id(conn) for conn in left} == {id(held), id(closing)}
    assert (one.given_up, two.given_up, begun.given_up) == (True, True, True)
    assert (one.place, two.place, begun.place) == (RETIRED, RETIRED, RETIRED)
    assert (idle.place, list(core.retiring), core.due) == (IDLE, [], NOW + 0.5)
    assert unbegun in effects.start
    assert len(core.entries) == core.target == 3
    assert effects.alarm is True
    assert not violations(core)
    assert is_retired(core, one, held, core.serviced(one, held, NOW + 1))
    assert worker is not None


def test_a_pool_whose_loop_is_closed_keeps_no_connection() -> None:
    """The idle ones go, the lent ones when they come back."""
    core = filled(min_size=2, max_size=2)
    entry, conn = lent(core)
    (idle,) = core.idle
    effects, left = core.resettle(NOW, evict=True)
    assert (places(effects)[:1], left) == ([RETIRED], [])
    assert (idle.place, entry.expires_at, list(core.idle)) == (RETIRED, EVICTED, [])
    assert conn is not None


# New connections that end at once ------------------------------------------------------------


def ended(core: Core, entry: Entry, conn: Any, now: float, chance: float = 0.5) -> Effects:
    """Return a connection whose session the server has ended."""
    error = ConnectionError("ended")
    return core.discard(entry, conn, now, chance, lending=entry.lent_at, error=error)


def test_a_session_that_ends_in_its_first_use_counts_as_a_failed_attempt() -> None:
    """So that the pool backs off instead of opening the next at once."""
    core = filled(min_size=1)
    entry, conn = lent(core, NOW + 1)
    core.settings.backoff = type(core.settings.backoff)(first=8.0, cap=64.0)
    gains = Gains(core)
    effects = ended(core, entry, conn, NOW + 9.5)
    assert places(effects) == [RETIRED]
    assert (core.failures, core.unproven) == (1, "new connections end before they are used")
    assert (core.retry_at, core.failing_since) == (NOW + 13.5, NOW + 9.5)
    assert str(core.last_error) == "ended"
    assert ready(core) is WANTED
    assert gains.since() == {"returns_bad": 1}


def test_a_session_that_ends_later_or_without_the_server_is_no_failed_attempt() -> None:
    """It was returned before, or lived for ten seconds, or the client closed it."""

    def returned_before(core: Core, entry: Entry, conn: Any) -> Effects:
        checkin(core, entry, conn, NOW + 1)
        core.checkout(NOW + 1)
        return ended(core, entry, conn, NOW + 2)

    def grown_old(core: Core, entry: Entry, conn: Any) -> Effects:
        return ended(core, entry, conn, NOW + 10)

    def closed_by_its_client(core: Core, entry: Entry, conn: Any) -> Effects:
        return core.discard(entry, conn, NOW + 1, 0.5, lending=entry.lent_at)

    def of_a_null_pool(core: Core, entry: Entry, conn: Any) -> Effects:
        core.settings.retrying = False
        return ended(core, entry, conn, NOW + 1)

    for story in (returned_before, grown_old, closed_by_its_client, of_a_null_pool):
        core = filled(min_size=1)
        entry, conn = lent(core)
        effects = story(core, entry, conn)
        assert (core.failures, core.unproven) == (0, None), story
        assert places(effects) == [RETIRED, *places(effects)[1:]]
        assert len(places(effects)) == 2


def test_sessions_that_end_together_count_once() -> None:
    """Those that were opened before the failure say nothing new."""
    core = filled(min_size=3, max_size=3)
    held = [lent(core) for _ in range(3)]
    for one in held:
        ended(core, *one, NOW + 1)
    assert core.failures == 1


def unproven(**options: Any) -> Core:
    """Make a core whose only connection has ended in its first use, at NOW + 1."""
    core = filled(min_size=1, **options)
    core.settings.backoff = type(core.settings.backoff)(first=2.0, cap=64.0)
    ended(core, *lent(core, NOW + 1), NOW + 1)
    core.maintain(NOW + 2)
    return core


def test_a_new_connection_proves_nothing_by_being_opened() -> None:
    """The next is opened later still, at the pace of the backoff; it proves all by its return."""
    core = unproven(max_size=2)
    entry = permit(core)
    core.opened(entry, conn := Conn(), 0.0, NOW + 2, 0.75)
    assert (core.failures, core.unproven is None) == (1, False)
    assert (core.paced_at, core.retry_at) == (NOW + 2, NOW + 3.5)
    core.target, core.due = 2, NOW + 99
    assert core.fill(0, NOW + 3).start == []
    assert core.due == NOW + 3.5
    assert places(core.fill(0, NOW + 3.5)) == [permit(core).place]
    assert core.checkout(NOW + 4) is None  # WANTED: its client queues
    client: Any = queued(core, NOW + 4)
    assert client.conn is conn
    client.conn = None
    checkin(core, entry, conn, NOW + 5)
    assert (core.failures, core.unproven, is_open(core)) == (0, None, True)


def test_who_waits_gets_ten_unproven_connections_a_second_at_most() -> None:
    """Counted from the last one, or the last failure."""
    core = unproven(max_size=4)
    for _ in range(3):
        queued(core, NOW + 2)
    core.settings.backoff = type(core.settings.backoff)(first=8.0, cap=64.0)
    core.opened(permit(core), Conn(), 0.0, NOW + 2.5, 1.0)
    core.due = NOW + 99
    core.fill(0, NOW + 2.5)
    assert (core.opening, core.due) == (0, NOW + 2.6)
    core.fill(0, NOW + 2.6)
    assert core.opening == 1


def test_only_a_connection_that_was_opened_after_the_failure_proves_anything() -> None:
    """An older one is of better times."""
    core = filled(min_size=2, max_size=2)
    (old, conn), (entry, other) = lent(core), lent(core)
    ended(core, entry, other, NOW + 1)
    checkin(core, old, conn, NOW + 2)
    assert core.unproven is not None
    assert is_idle(core, old, conn, NOW + 2)


def test_a_connection_that_has_lived_for_long_is_proof_enough() -> None:
    """Ten seconds, idle."""
    core = unproven(max_size=1)
    opened(core, permit(core), NOW + 2)
    core.maintain(NOW + 11.75)
    assert core.unproven is not None
    core.maintain(NOW + 12)
    assert (core.failures, core.unproven is None) == (0, True)


# Attempts that are not answered --------------------------------------------------------------


def test_attempts_that_were_not_answered_are_counted_in_a_row() -> None:
    """Each is given twice the time of the last; any other end begins anew."""
    core = make(min_size=3, max_size=3, num_workers=3)
    one, two, three = core.open(NOW).start
    for number, entry in enumerate((one, two), 1):
        core.open_failed(entry, None, OSError(), NOW, 0.0, unanswered=True)
        assert core.unanswered == number
    core.open_failed(three, None, OSError(), NOW, 0.0)
    assert core.unanswered == 0
    core.unanswered = 2
    core.maintain(NOW + 1)
    opened(core, permit(core))
    assert core.unanswered == 0


def test_an_attempt_that_is_given_up_was_not_answered() -> None:
    """Its worker is blocked."""
    core = make(min_size=1)
    core.open(NOW)
    held = core.begin(permit(core), NOW)
    core.maintain(NOW + 3)
    assert (core.unanswered, core.phase, held is None) == (1, Phase.OPEN, False)
