"""What becomes of a lending: its lease and token, its stamp, and what it proves of the server."""

from __future__ import annotations

from math import inf
from typing import Any

import pytest

from forebay._core import DIED, Core
from forebay._entry import EVICTED, LENT, RETIRED, SERVICE, Effects, Entry, Held, Token
from forebay._policy import PROBATION, PROBE_PATIENCE, ROUND_AT_LEAST, Backoff

from .returns import checkin, recycle
from .test_nesting_rules import cut_short, ended, unproven
from .test_rules import NOW, Conn, filled, make
from .test_transitions import (
    asking,
    holding,
    in_service,
    is_retired,
    joined,
    lent,
    opened,
    permit,
    queued,
    tied,
    two,
)

# Tokens of leases --------------------------------------------------------------------------------


def stated(entry: Entry) -> tuple[Token | None, Held | None]:
    """What an entry has for its leases."""
    return entry.token, entry.tether


@pytest.mark.parametrize("waits", [False, True])
def test_a_lease_returns_its_token_with_its_connection(waits: bool) -> None:
    """The next lease need not make one, whether a client waits for the connection or not."""
    core = filled(min_size=1, max_size=1)
    entry, conn, lease = tied(core)
    if waits:
        queued(core)
    core.checkin(entry, conn, NOW + 1, entry.lent_at, lease[0])
    assert (entry.token, entry.kept) == (lease[0], None)


def test_a_lease_that_outlives_its_connection_gives_its_token_back_to_nobody() -> None:
    """An entry without a slot would make a circle of it."""
    core = filled(min_size=1)
    entry, conn, lease = tied(core)
    entry.expires_at = EVICTED
    core.checkin(entry, conn, NOW + 1, entry.lent_at, lease[0])
    assert (entry.place, stated(entry)) == (RETIRED, (None, None))


def test_a_token_is_taken_back_only_from_the_lease_of_this_lending() -> None:
    """Not from one without, nor from one of before, nor while the connection is not back."""

    def without(core: Core, entry: Entry, _token: Any) -> None:
        entry.kept = None
        core.untie(entry, None, entry.lent_at)

    def of_before(core: Core, entry: Entry, token: Any) -> None:
        entry.kept = None
        core.untie(entry, token, float(str(NOW)))

    def not_back(core: Core, entry: Entry, token: Any) -> None:
        core.untie(entry, token, entry.lent_at)

    for story in (without, of_before, not_back):
        core = filled()
        entry, _conn, lease = tied(core)
        before = stated(entry)
        story(core, entry, lease[0])
        assert stated(entry) == before == (None, entry.tether), story
        assert entry.tether is not None


def test_a_token_does_not_take_the_place_of_another_one() -> None:
    """Nor does it end what the other one tells."""
    core = filled()
    entry, _conn, lease = tied(core)
    entry.kept = None
    other = core.tie(entry)
    tether = entry.tether
    core.untie(entry, lease[0], entry.lent_at)
    assert stated(entry) == (other, tether)


def test_a_token_that_its_tether_does_not_refer_to_is_of_no_more_use() -> None:
    """Nor is the tether; without one, a token stays with its lease."""
    core = filled()
    entry, _conn, lease = tied(core)
    entry.kept = None
    core.untie(entry, Token(), entry.lent_at)
    assert stated(entry) == (None, None)
    core.untie(entry, lease[0], entry.lent_at)
    assert stated(entry) == (None, None)


def test_a_token_that_is_given_back_still_tells_when_it_is_dropped() -> None:
    """It is the next lease's, with the tether it had."""
    core = filled()
    entry, _conn, lease = tied(core)
    tether = entry.tether
    entry.kept = None
    core.untie(entry, lease[0], entry.lent_at)
    assert stated(entry) == (lease[0], tether)
    lease.clear()
    assert not core.forsaken
    entry.token = None
    assert list(core.forsaken) == [tether]


def test_a_lease_may_end_its_block_while_its_lending_goes_on() -> None:
    """Not where it was no lease, has ended, or has become another's."""
    core = filled(min_size=1, max_size=1)
    entry, conn, _lease = tied(core)
    lending, tether = entry.lent_at, entry.tether
    assert core.claim(entry, lending) is True
    assert entry.tether is tether
    assert core.claim(entry, float(str(NOW))) is False
    checkin(core, entry, conn, NOW)
    assert core.claim(entry, lending) is False


def test_a_lease_that_was_taken_for_dropped_may_end_its_block_all_the_same() -> None:
    """What its token has told by dying is taken back: the connection stays with it."""
    core = filled()
    entry, _conn, lease = tied(core)
    lending, tether = entry.lent_at, entry.tether
    assert tether is not None
    lease.clear()
    assert core.claim(entry, float(str(NOW))) is False
    assert entry.tether is tether
    assert core.claim(entry, lending) is True
    assert entry.tether is None
    assert core.retake(entry, tether, NOW) is None
    assert core.claim(entry, lending) is True


def test_a_lease_may_end_its_block_though_its_connection_was_reclaimed() -> None:
    """Its token and its tether have gone with the slot."""
    core = filled()
    entry, _conn, lease = tied(core)
    core.reclaim(entry, NOW)
    assert stated(entry) == (None, None)
    assert (core.claim(entry, entry.lent_at), len(lease)) == (True, 1)


def test_a_new_entry_has_neither_token_nor_tether_and_was_never_forfeited() -> None:
    """They come with its connection."""
    entry = Entry()
    assert (*stated(entry), entry.forfeited) == (None, None, None)


def test_a_transition_tells_of_a_standby_only_where_it_has_found_one() -> None:
    """To open a pool is to know nothing yet."""
    core = make()
    assert core.open(NOW).demoted is False
    assert core.demoted(NOW, 0.5).demoted is True


def test_a_lease_that_was_dropped_learns_which_lending_was_taken_from_it() -> None:
    """By the moment it was given."""
    core = filled()
    entry, _conn, _lease = tied(core)
    tether = entry.tether
    assert tether is not None
    core.retake(entry, tether, NOW + 1)
    assert entry.forfeited is entry.lent_at


def test_what_closes_ends_the_connections_whose_leases_were_dropped() -> None:
    """Nobody else would return them."""
    core = filled()
    entry, conn, lease = tied(core)
    lease.clear()
    assert is_retired(core, entry, conn, core.close(NOW))
    assert entry.kept is None


# Returns -----------------------------------------------------------------------------------------


def test_a_return_that_was_put_off_is_no_return_of_what_is_being_closed() -> None:
    """The connection was discarded meanwhile: a worker has it."""
    core = filled(min_size=1)
    entry, conn = lent(core)
    core.put_off(entry, conn, entry.lent_at)
    effects = core.discard(entry, conn, NOW, 0.5)
    core.maintain(NOW)
    assert is_retired(core, entry, conn, effects)
    assert not core.returned


def test_a_connection_whose_slot_is_lost_is_closed_when_its_worker_is_done() -> None:
    """Its weak reference is dead, and nothing would tell that the next client drops it."""
    core = filled(min_size=1)
    entry, conn = in_service(core)
    entry.ref = Held.watch(Conn(), entry, core.lost)
    core.lost.clear()
    assert is_retired(core, entry, conn, core.serviced(entry, conn, NOW))


def test_a_client_that_learns_of_its_connection_in_time_is_not_woken_again() -> None:
    """Its time was over as it was served."""
    core = filled(min_size=1, max_size=1)
    entry, conn = lent(core)
    client = queued(core)
    checkin(core, entry, conn, NOW)
    assert core.expire(client, NOW) is False
    assert core.maintain(NOW).wake == []


def test_what_is_being_opened_is_not_lent() -> None:
    """Nor is what is idle; but what a worker resets is."""
    core = filled(min_size=3, max_size=6)
    core.fill(5, NOW)
    worker, _conn = in_service(core)
    held = lent(core)
    assert (core.lent, core.opening, worker.place, held[0].place) == (2, 2, SERVICE, LENT)


def test_each_connection_that_fails_its_check_is_counted() -> None:
    """As one that was lost."""
    core = filled(min_size=2)
    for number in (1, 2):
        core.check_failed(*lent(core), OSError(), inf, NOW, 0.0)
        assert core.connections_lost == number


def test_maintenance_for_expired_connections_alone_comes_ten_times_a_second_at_most() -> None:
    """However short their life is."""
    core = filled(min_size=1)
    core.idle[0].expires_at = NOW + 0.05
    core.maintain(NOW)
    assert core.due == NOW + ROUND_AT_LEAST


# Deadlock ----------------------------------------------------------------------------------------


def test_a_connection_that_comes_back_during_maintenance_is_no_deadlock() -> None:
    """Its holder's return was put off; who waits is served."""
    core, _sure = two()
    mine, _others = holding(core, "a", "b")
    (entry,) = (each for each in core.entries if each.leased == "a")
    client, other = asking(core, "a"), asking(core, "b")
    before = core.ready
    cut_short(core)
    checkin(core, entry, mine, NOW)
    core.ready = before
    core.maintain(NOW)
    assert (client.conn, client.error, other.error) == (mine, None, None)


def witnessed() -> tuple[Core, dict[Any, tuple[Entry, Any]]]:
    """Make a core with a connection that "a" holds, who waits, and one of a witness, `None`."""
    core, _sure = two()
    conns = holding(core, "a", None)
    held = {
        entry.leased: (entry, conn) for entry, conn in zip(core.entries, conns[::-1], strict=True)
    }
    asking(core, "a")
    assert core.witness is held[None][0]
    return core, held


def test_a_witness_that_is_gone_is_forgotten() -> None:
    """Whoever queues next does not ask it."""
    core, held = witnessed()
    core.resize(1, 1, NOW)
    core.discard(*held[None], NOW, 0.5)
    assert core.witness is None
    asking(core, "b")
    assert core.witness is None


def test_a_witness_stays_one_when_another_connection_goes() -> None:
    """It is not looked for again."""
    core, held = witnessed()
    core.discard(*held["a"], NOW, 0.5)
    assert core.witness is held[None][0]


# Stamps ------------------------------------------------------------------------------------------


def test_a_stamp_stays_the_same_however_often_nothing_is_found() -> None:
    """Neither while nothing is idle, nor while what is idle must be looked at first."""
    for options in ({"max_size": 1}, {"min_size": 2, "bypass_window": 0.5}):
        core = filled(**options)
        assert core.checkout(NOW) is not None
        stamp = core.stamp
        for _ in range(3):
            assert core.checkout(NOW + 1) is None
            assert core.stamp == stamp


def test_a_stamp_never_comes_again() -> None:
    """Neither after the counters began anew, nor after a connection was lost and replaced."""

    def counted_anew(core: Core, entry: Entry, conn: Any) -> None:
        recycle(core, entry, conn, NOW)
        core.serviced(entry, core.begin(entry, NOW), NOW)
        core.reset_counters()
        core.checkout(NOW)

    def replaced(core: Core, entry: Entry, conn: Any) -> None:
        core.discard(entry, conn, NOW, 0.5)
        client = queued(core)
        opened(core, permit(core))
        assert client.conn is not None

    for story in (counted_anew, replaced):
        core = filled(max_size=1)
        entry, conn = lent(core)
        stamp = core.stamp
        story(core, entry, conn)
        assert core.lent == 1
        assert core.stamp != stamp, story


# What a lending proves ---------------------------------------------------------------------------


@pytest.mark.parametrize("opened_at", [NOW + 1, NOW + 2])
def test_the_next_session_that_ends_in_its_first_use_counts_too(opened_at: float) -> None:
    """Also where it was opened at the very moment of the last failure."""
    core = unproven(max_size=1)
    entry = permit(core)
    conn = opened(core, entry, opened_at)
    queued(core, NOW + 2)
    ended(core, entry, conn, NOW + 3)
    assert core.failures == 2


def test_a_connection_that_was_opened_at_the_moment_of_a_failure_proves_new_ones_good() -> None:
    """It is as new as any."""
    core = unproven(max_size=1)
    entry = permit(core)
    conn = opened(core, entry, NOW + 1)
    queued(core, NOW + 2)
    checkin(core, entry, conn, NOW + 3)
    assert (core.failures, core.unproven) == (0, None)
    core = unproven(max_size=1)
    opened(core, permit(core), NOW + 1)
    core.maintain(NOW + 1 + PROBATION)
    assert (core.failures, core.unproven) == (0, None)


@pytest.mark.parametrize("found", ["returned", "reclaimed"])
def test_sessions_that_end_in_their_first_use_make_a_pool_give_up(found: str) -> None:
    """Whether their client returns them or they are found closed while it has them."""
    core = filled(min_size=1, backoff=Backoff(2.0), reconnect_timeout=0.0)
    core.failing_since = NOW
    entry, conn = lent(core)
    error = ConnectionError("ended")
    if found == "returned":
        effects = core.discard(entry, conn, NOW + 1, 0.5, error=error)
    else:
        effects = core.reclaim(entry, NOW + 1, error=error)
    assert (core.failures, core.unproven, core.last_error) == (1, DIED, error)
    assert (core.retry_at, core.failing_since) == (NOW + 2, NOW + 1)
    assert effects.gave_up is True


def test_a_session_that_was_used_before_may_end_without_a_failure() -> None:
    """Also where it is found closed while a client has it."""
    core = filled(min_size=1)
    entry, conn = lent(core)
    checkin(core, entry, conn, NOW + 1)
    conn = core.checkout(NOW + 2)
    core.reclaim(entry, NOW + 3, error=ConnectionError("ended"))
    assert (core.failures, core.unproven, conn is None) == (0, None, False)


def test_a_primary_ends_the_backoff_when_it_has_been_one_for_long_enough() -> None:
    """A pooler in front of standbys may only say so: ten seconds after the last step."""
    core = make(min_size=2, backoff=Backoff(4.0))
    core.open(NOW)
    core.demoted(NOW, 0.0)
    until = core.demoted_until + PROBATION
    joined(core, False, until - 0.5)
    assert core.demotions == 1
    joined(core, False, until)
    assert core.demotions == 0


def test_attempts_that_are_given_up_are_counted_in_a_row() -> None:
    """Each was not answered."""
    core = make(min_size=1)
    core.open(NOW)
    for number, now in enumerate((NOW, NOW + 4), 1):
        core.maintain(now)
        held = core.begin(permit(core), now)
        core.maintain(now + 3)
        assert (core.unanswered, held is None) == (number, False)


# Growth ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("room", [False, True])
def test_only_a_pool_with_room_is_woken_for_an_attempt_that_lasts(room: bool) -> None:
    """Where nothing more can be opened no second attempt could join it."""
    core = make(min_size=1, max_size=2 if room else 1)
    (entry,) = core.open(NOW).start
    held = core.begin(entry, NOW)
    core.due = inf
    queued(core)
    assert (core.due == NOW + PROBE_PATIENCE) is room
    del held


def test_a_client_that_was_served_and_cancelled_is_not_woken_again() -> None:
    """It has learnt of its grant, which went to nobody."""
    core = filled(min_size=1, max_size=1)
    entry, conn = lent(core)
    client = queued(core)
    checkin(core, entry, conn, NOW + 1)
    assert client.conn is conn
    core.cancel(client, NOW + 2)
    effects = Effects()
    core.audit(NOW + 3, effects)
    assert effects.wake == []
