"""What each transition does, to the last number: who is served, what is closed, and what counts.

The other tests of the core try many orders of events; these try one each, and look at everything.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from math import inf
from typing import Any
from unittest import mock

import pytest

from forebay._core import ALL, Core, Phase
from forebay._entry import (
    EVICTED,
    IDLE,
    LENT,
    OPENING,
    RETIRED,
    SERVICE,
    Chore,
    Effects,
    Entry,
    Held,
    Hold,
    Verdict,
)
from forebay._policy import Backoff, growth
from forebay.errors import PoolClosedMixin, PoolRejectedMixin, TooManyRequestsMixin
from forebay.options import OPTIONS

from .cores import core_of
from .returns import checkin, recycle
from .test_random import Client
from .test_rules import NOW, Conn, filled, make

COUNTERS = (
    "requests_num",
    "requests_queued",
    "requests_time",
    "requests_errors",
    "usage_time",
    "returns_bad",
    "connections_num",
    "connections_time",
    "connections_errors",
    "connections_lost",
)


class Gains:
    """Sets the counters of a core, and tells what they have gained since."""

    def __init__(self, core: Core) -> None:
        self.core = core
        for name in COUNTERS:
            setattr(core, name, 100)

    def since(self) -> dict[str, float]:
        """The counters that have changed, and by how much."""
        gained = {name: getattr(self.core, name) - 100 for name in COUNTERS}
        return {name: value for name, value in gained.items() if value}


def queued(core: Core, now: float = NOW) -> Client:
    """Queue a client."""
    client = Client()
    core.enqueue(client, now)
    return client


def lent(core: Core, now: float = NOW) -> tuple[Entry, Any]:
    """Lend the connection that is idle for the shortest time."""
    entry = core.idle[-1]
    return entry, core.checkout(now)


def in_service(core: Core) -> tuple[Entry, Any]:
    """Put a connection into a worker's hands."""
    entry, conn = lent(core)
    recycle(core, entry, conn, NOW)
    return entry, core.begin(entry, NOW)


def permits(core: Core) -> list[Entry]:
    """The permits there are."""
    return [entry for entry in core.entries if entry.place is OPENING]


def permit(core: Core) -> Entry:
    """The only permit there is."""
    (entry,) = permits(core)
    return entry


def opened(core: Core, entry: Entry, now: float = NOW) -> Any:
    """Let a worker open a connection."""
    held, conn = core.begin(entry, NOW), Conn()
    core.opened(entry, conn, 0.0, now, 0.0)
    assert held is not None
    return conn


def places(effects: Effects) -> list[Any]:
    """Where the entries are that workers must take up."""
    return [entry.place for entry in effects.start]


def is_idle(core: Core, entry: Entry, conn: Any, since: float) -> bool:
    """Whether a connection is idle, last in the queue, and has been since that moment."""
    seen = (entry.place, entry.conn, entry.idle_since, entry.ordered)
    return seen == (IDLE, conn, since, False) and core.idle[-1] is entry and entry in core.entries


def is_retired(core: Core, entry: Entry, conn: Any, effects: Effects | None) -> bool:
    """Whether a connection is on its way out, and a worker is told of it first."""
    seen = (entry.place, entry.conn, entry.ordered, entry.expires_at)
    return (
        seen == (RETIRED, conn, True, EVICTED)
        and core.retiring == {entry: None}
        and entry not in core.entries
        and effects is not None
        and effects.start[0] is entry
    )


def is_served(
    core: Core, client: Client, entry: Entry, conn: Any, now: float, *, at_once: bool = False
) -> bool:
    """Whether a client has been given a connection at that moment, and no other client.

    One that was served `at_once` knows of it; nobody else need remember.
    """
    return (
        (client.entry, client.conn, client.error) == (entry, conn, None)
        and (entry.place, entry.conn, entry.lent_at) == (LENT, None, now)
        and client not in core.waiting
        and list(core.granted) == ([] if at_once else [client])
    )


# What is new ---------------------------------------------------------------------------------


def test_a_core_has_the_defaults_that_are_documented() -> None:
    """What a door does not say, and where a new core stands."""
    core = make()
    assert (core.keep, core.lifo, core.fresh) == (ALL, True, False)
    settings = core.settings
    assert (settings.retrying, settings.eager, settings.backoff) == (True, False, Backoff())
    assert settings.max_waiting == OPTIONS["max_waiting"].default == 0
    assert (core.phase, core.target, core.due) == (Phase.NEW, 1, inf)
    assert (core.failures, core.unproven, core.last_error) == (0, None, None)
    assert (core.failing_since, core.failed_at, core.retry_at) == (inf, 0.0, 0.0)
    assert (core.low_water, core.low_water_since) == (0, 0.0)


def test_a_core_has_the_options_it_was_given() -> None:
    """What it keeps apart from its settings is what they say."""
    core = make(min_size=2, max_size=5, keep=4, lifo=False, bypass_window=0.25)
    assert (core.keep, core.lifo, core.target, core.bypass) == (4, False, 2, 0.25)
    assert core.settings.idle_order == "fifo"


def test_the_counters_begin_at_zero_and_can_begin_anew() -> None:
    """All of them."""
    core = make()
    assert {name: getattr(core, name) for name in COUNTERS} == dict.fromkeys(COUNTERS, 0)
    Gains(core)
    core.reset_counters()
    assert {name: getattr(core, name) for name in COUNTERS} == dict.fromkeys(COUNTERS, 0)


def test_a_new_entry_is_a_permit_that_nobody_has_taken_up() -> None:
    """It has no connection, no reference and no moment yet."""
    entry = Entry()
    assert (entry.place, entry.ordered, entry.conn, entry.ref) == (OPENING, True, None, None)
    assert (entry.opened_at, entry.idle_since, entry.lent_at) == (0.0, 0.0, 0.0)
    assert (entry.expires_at, entry.leased, entry.plain) == (inf, None, False)


def test_entries_and_effects_say_what_they_are() -> None:
    """For whoever reads an error message or a trace."""
    entry, effects = Entry(), Effects()
    assert repr(effects) == "<Effects wake=0 start=[] alarm=False gave_up=False>"
    assert repr(entry) == "<Entry opening, ordered>"
    entry.ordered = False
    assert repr(entry) == "<Entry opening>"


def test_what_cannot_be_is_to_be_reported() -> None:
    """The message names the entry and the place where it should be."""
    core = filled()
    message = "internal error, please report: <Entry idle> should be <Place.SERVICE: 'service'>"
    with pytest.raises(RuntimeError, match=re.escape(message)):
        core.serviced(core.idle[0], Conn(), NOW)


# Checkout ------------------------------------------------------------------------------------


def test_a_checkout_lends_an_idle_connection_and_counts_a_request() -> None:
    """The moment is noted, and the core keeps no strong reference."""
    core = filled()
    gains, entry, conn = Gains(core), core.idle[0], core.idle[0].conn
    assert core.checkout(NOW + 3) is conn
    assert (entry.place, entry.conn, entry.lent_at) == (LENT, None, NOW + 3)
    assert core.checkout(NOW + 3) is None
    assert gains.since() == {"requests_num": 2}


def test_the_latest_is_lent_first_or_the_oldest() -> None:
    """As idle_order says; with "fifo" the fewest that were idle are remembered."""
    core = filled(min_size=2)
    assert core.idle[-1].conn is core.checkout(NOW)
    core = filled(min_size=3, max_size=3, lifo=False)
    core.low_water = 1
    assert core.idle[0].conn is core.checkout(NOW)
    assert (core.low_water, len(core.idle)) == (1, 2)
    core.low_water = 7
    assert core.idle[0].conn is core.checkout(NOW)
    assert (core.low_water, len(core.idle)) == (1, 1)


def test_a_client_that_queues_is_counted_and_its_arrival_noted() -> None:
    """It is no error, and its time is counted when it ends."""
    core = filled(max_size=1)
    held = lent(core)
    gains = Gains(core)
    first, second = queued(core, NOW + 1), queued(core, NOW + 2)
    assert list(core.waiting) == [first, second]
    assert (first.since, second.since) == (NOW + 1, NOW + 2)
    assert gains.since() == {"requests_queued": 2}
    assert held


def test_a_client_that_queues_beside_an_idle_connection_is_served_at_once() -> None:
    """The connection came back after its checkout; it has not queued."""
    core = filled()
    gains, entry, conn = Gains(core), core.idle[0], core.idle[0].conn
    client = Client()
    effects = core.enqueue(client, NOW + 2)
    assert is_served(core, client, entry, conn, NOW + 2, at_once=True)
    assert effects.wake == [client]
    assert gains.since() == {}


def test_a_client_that_queues_takes_up_what_was_dropped() -> None:
    """The slot is free at once, not with the next maintenance."""
    core = filled(max_size=1)
    lent(core)  # and drop it
    (entry,) = core.enqueue(Client(), NOW).start
    assert entry.place is OPENING
    assert list(core.entries) == [entry]


def test_a_client_that_is_turned_away_is_counted_as_an_error() -> None:
    """Because the pool is not open, or because too many wait already."""
    new, full = make(), filled(min_size=0, max_waiting=2)
    gains = Gains(new)
    with pytest.raises(PoolClosedMixin, match="not open yet"):
        new.enqueue(Client(), NOW)
    assert gains.since() == {"requests_errors": 1}
    queued(full)
    queued(full)
    gains = Gains(full)
    with pytest.raises(TooManyRequestsMixin):
        queued(full)
    assert gains.since() == {"requests_errors": 1}


def test_a_client_that_will_not_wait_is_counted_as_an_error() -> None:
    """It learns of a closed pool, too."""
    core = filled()
    gains = Gains(core)
    core.refuse()
    assert gains.since() == {"requests_errors": 1}
    core.close(NOW)
    with pytest.raises(PoolClosedMixin):
        core.refuse()
    assert gains.since() == {"requests_errors": 2}


def test_a_client_whose_time_is_over_leaves_the_queue() -> None:
    """Its time counts, and an error; a second time there is nothing to leave."""
    core = filled(min_size=0)
    client = queued(core, NOW)
    gains = Gains(core)
    assert core.expire(client, NOW + 4) is True
    assert not core.waiting
    assert core.expire(client, NOW + 8) is False
    assert gains.since() == {"requests_errors": 1, "requests_time": 4}


def test_a_client_is_promised_a_connection_while_one_is_opened_for_it() -> None:
    """As many of the first in the queue as there are openings, and only while they queue."""
    core = filled(min_size=0, max_size=2)
    first, second, third = queued(core), queued(core), queued(core)
    assert [core.promised(client) for client in (first, second, third)] == [True, True, False]
    core.expire(first, NOW)
    assert [core.promised(client) for client in (first, second, third)] == [False, True, True]
    second.error = OSError()
    third.entry = Entry()
    assert core.promised(second) is core.promised(third) is False


def test_a_client_that_is_cancelled_while_it_queues_leaves() -> None:
    """It counts like one whose time is over, and nobody has anything to do."""
    core = filled(min_size=0, max_size=0)
    client = queued(core, NOW)
    gains = Gains(core)
    effects = core.cancel(client, NOW + 4)
    assert not core.waiting
    assert (effects.wake, effects.start) == ([], [])
    assert gains.since() == {"requests_errors": 1, "requests_time": 4}


def test_a_client_that_is_cancelled_after_it_was_served_gives_back() -> None:
    """The connection is idle again, and nobody need wake the client."""
    core = filled()
    client, entry = Client(), core.idle[0]
    core.enqueue(client, NOW)
    conn, gains = client.conn, Gains(core)
    core.cancel(client, NOW + 4)
    assert is_idle(core, entry, conn, NOW + 4)
    assert client.conn is None
    assert not core.granted
    assert gains.since() == {"requests_errors": 1}


def test_a_client_that_is_cancelled_hands_an_old_connection_to_a_worker() -> None:
    """Its time was over meanwhile, and the pool refills."""
    core = filled(max_lifetime=4.0)
    client, entry = Client(), core.idle[0]
    core.enqueue(client, NOW)
    conn = client.conn
    effects = core.cancel(client, NOW + 4)
    assert is_retired(core, entry, conn, effects)
    assert places(effects) == [RETIRED, OPENING]


def test_a_client_that_is_cancelled_after_it_took_its_connection_gives_nothing_back() -> None:
    """It is for whoever has the connection to return it."""
    core = filled()
    client = Client()
    core.enqueue(client, NOW)
    conn, client.conn = client.conn, None
    gains = Gains(core)
    core.cancel(client, NOW)
    assert not core.idle
    assert gains.since() == {}
    assert conn is not None


def test_a_client_that_is_cancelled_gives_no_reclaimed_connection_back() -> None:
    """Its slot has come back already."""
    core = filled()
    client, entry = Client(), core.idle[0]
    core.enqueue(client, NOW)
    core.reclaim(entry, NOW)
    core.cancel(client, NOW)
    assert client.conn is None
    assert not core.idle
    assert list(core.entries) == permits(core)


# Checkin -------------------------------------------------------------------------------------


def test_a_checkin_makes_a_connection_idle_and_asks_for_nothing() -> None:
    """Only a lease counts as use, and it ends here."""
    core = filled(keep=1)
    entry, conn = lent(core, NOW)
    gains = Gains(core)
    assert checkin(core, entry, conn, NOW + 4) is None
    assert is_idle(core, entry, conn, NOW + 4)
    assert gains.since() == {}
    lent(core, NOW + 5)
    entry.leased = object()
    assert checkin(core, entry, conn, NOW + 8) is None
    assert entry.leased is None
    assert gains.since() == {"requests_num": 1, "usage_time": 3}


def test_what_is_not_lent_cannot_come_back() -> None:
    """The message says where the connection is."""
    core = filled()
    message = r"^the connection is idle in its pool, not lent$"
    with pytest.raises(ValueError, match=message):
        checkin(core, core.idle[0], Conn(), NOW)
    with pytest.raises(ValueError, match=message):
        core.discard(core.idle[0], Conn(), NOW, 0.5)


def test_a_returned_connection_goes_to_the_client_that_waits_first() -> None:
    """It counts how long that client has waited."""
    core = filled(max_size=1)
    entry, conn = lent(core)
    first, second = queued(core, NOW + 1), queued(core, NOW + 2)
    gains = Gains(core)
    effects = checkin(core, entry, conn, NOW + 4)
    assert is_served(core, first, entry, conn, NOW + 4)
    assert list(core.waiting) == [second]
    assert effects is not None
    assert (effects.wake, effects.start) == ([first], [])
    assert gains.since() == {"requests_time": 3}


def test_a_returned_connection_may_be_what_watchers_wait_for() -> None:
    """When min_size connections are idle, all watchers are woken; they are no requests."""
    core = filled(min_size=2)
    one, other = lent(core), lent(core)
    watchers = [Client(), Client()]
    for watcher in watchers:
        core.watch(watcher)
    assert core.watching == dict.fromkeys(watchers)
    gains = Gains(core)
    effects = checkin(core, *one, NOW)
    assert effects is not None
    assert effects.wake == []
    effects = checkin(core, *other, NOW)
    assert effects is not None
    assert effects.wake == watchers
    assert [watcher.ready for watcher in watchers] == [True, True]
    assert not core.watching
    assert gains.since() == {}


def test_wait_returns_at_once_while_min_size_connections_are_idle() -> None:
    """Nobody is remembered then."""
    core, client = filled(), Client()
    core.watch(client)
    assert client.ready is True
    assert not core.watching


def test_a_watcher_that_is_cancelled_leaves() -> None:
    """It is no request."""
    core, client = filled(), Client()
    core.settings.min_size = 2
    core.watch(client)
    gains = Gains(core)
    core.cancel(client, NOW)
    assert not core.watching
    assert gains.since() == {}


def test_a_returned_connection_whose_time_is_over_is_retired_and_replaced() -> None:
    """Its time is over at the very moment at which it expires."""
    core = filled(max_lifetime=4.0)
    entry, conn = lent(core)
    effects = checkin(core, entry, conn, NOW + 4)
    assert is_retired(core, entry, conn, effects)
    assert effects is not None
    assert places(effects) == [RETIRED, OPENING]


def test_a_returned_connection_is_retired_when_enough_are_kept() -> None:
    """A pool keeps so many idle connections and not one more."""
    core = filled(min_size=2)
    core.settings.min_size = core.target = 0
    one, other = lent(core), lent(core)
    core.keep = 1
    assert checkin(core, *one, NOW) is None
    assert is_retired(core, *other, checkin(core, *other, NOW))
    assert list(core.idle) == [one[0]]


def test_a_null_pool_hands_a_returned_connection_to_a_client_that_waits() -> None:
    """It keeps none, but closes none that is wanted."""
    core = filled(min_size=0, max_size=1, keep=0, retrying=False)
    first = queued(core)
    entry = permit(core)
    conn = opened(core, entry)
    assert is_served(core, first, entry, conn, NOW)
    core.granted.clear()
    second = queued(core)
    checkin(core, entry, conn, NOW + 1)
    assert is_served(core, second, entry, conn, NOW + 1)
    assert is_retired(core, entry, conn, checkin(core, entry, conn, NOW + 1))


def test_a_connection_to_be_reset_goes_into_service() -> None:
    """A worker is told, and nothing else happens; its use ends here."""
    core = filled()
    entry, conn = lent(core, NOW)
    entry.leased = object()
    gains = Gains(core)
    effects = recycle(core, entry, conn, NOW + 3)
    assert (entry.place, entry.ordered, entry.conn) == (SERVICE, True, conn)
    assert entry.leased is None
    assert (effects.start, effects.wake) == ([entry], [])
    assert (effects.alarm, effects.gave_up) == (False, False)
    assert gains.since() == {"usage_time": 3}


def test_an_expired_connection_is_not_reset() -> None:
    """It would be closed right after."""
    core = filled(max_lifetime=4.0)
    entry, conn = lent(core)
    assert is_retired(core, entry, conn, recycle(core, entry, conn, NOW + 4))


def test_a_connection_that_was_reset_is_idle_or_goes_to_a_client() -> None:
    """As if it had just been returned."""
    core = filled(max_size=1)
    entry, conn = in_service(core)
    core.serviced(entry, conn, NOW + 1)
    assert is_idle(core, entry, conn, NOW + 1)
    entry, conn = in_service(core)
    client = queued(core)
    effects = core.serviced(entry, conn, NOW + 2)
    assert is_served(core, client, entry, conn, NOW + 2)
    assert effects.wake == [client]


def test_a_connection_that_was_drained_while_it_was_reset_is_retired() -> None:
    """It belongs to what the drain was to replace."""
    core = filled()
    entry, conn = in_service(core)
    core.drain(NOW)
    effects = core.serviced(entry, conn, NOW)
    assert is_retired(core, entry, conn, effects)
    assert places(effects) == [RETIRED, OPENING]


def test_a_discarded_connection_is_a_bad_return_or_a_lost_one() -> None:
    """It is retired and replaced."""
    core = filled()
    entry, conn = lent(core)
    gains = Gains(core)
    effects = core.discard(entry, conn, NOW, 0.5)
    assert is_retired(core, entry, conn, effects)
    assert places(effects) == [RETIRED, OPENING]
    assert gains.since() == {"returns_bad": 1}
    with pytest.raises(ValueError, match="is retired in its pool"):
        core.discard(entry, conn, NOW, 0.5)
    core = filled()
    entry, conn = in_service(core)
    gains = Gains(core)
    assert is_retired(core, entry, conn, core.discard(entry, conn, NOW, 0.5, lost=True))
    assert gains.since() == {"connections_lost": 1}


def test_a_lent_connection_that_was_found_closed_gives_its_slot_back() -> None:
    """It is a bad return, once; its client may still return it, to be closed."""
    core = filled()
    entry, conn = lent(core)
    gains = Gains(core)
    assert places(core.reclaim(entry, NOW)) == [OPENING]
    assert entry not in core.entries
    assert (entry.place, entry.ref, core.retiring) == (RETIRED, None, {})
    assert is_retired(core, entry, conn, core.discard(entry, conn, NOW, 0.5))
    assert gains.since() == {"returns_bad": 1}


def test_a_slot_comes_back_once_though_it_was_reclaimed_and_dropped() -> None:
    """The client held it in a cycle, say, that was collected in between."""
    core = filled()
    entry = core.idle[0]
    core.checkout(NOW)  # and drop it
    assert places(core.reclaim(entry, NOW)) == [OPENING]
    assert core.fill(0, NOW).start == []
    assert (core.size, core.opening, len(core.lost)) == (1, 1, 0)


def test_only_what_is_lent_can_be_reclaimed() -> None:
    """It was returned in the moment in which it was found closed."""
    core = filled()
    gains = Gains(core)
    assert core.reclaim(core.idle[0], NOW).start == []
    assert len(core.idle) == core.size == 1
    assert gains.since() == {}


def test_a_failed_check_of_an_older_connection_replaces_it() -> None:
    """Opening goes on as before."""
    core = filled()
    entry, conn = lent(core)
    effects = core.check_failed(entry, conn, OSError(), NOW + 0.5, NOW + 1, 0.5)
    assert is_retired(core, entry, conn, effects)
    assert places(effects) == [RETIRED, OPENING]
    assert (core.unproven, core.failures, core.last_error) == (None, 0, None)
    assert core.connections_lost == 1


def test_a_failed_check_of_a_new_connection_backs_off() -> None:
    """New is what was opened at the moment at which the client arrived, or later."""
    core = filled(backoff=Backoff(first=2.0, cap=64.0))
    entry, conn = lent(core)
    error = OSError()
    effects = core.check_failed(entry, conn, error, NOW, NOW + 1, 0.75)
    assert is_retired(core, entry, conn, effects)
    assert places(effects) == [RETIRED]
    assert core.unproven == "new connections fail their check"
    assert (core.failures, core.last_error, core.failed_at) == (1, error, NOW + 1)
    assert core.retry_at == NOW + 1 + 1.5


def test_checks_that_fail_for_reconnect_timeout_make_the_pool_give_up() -> None:
    """As attempts to connect do."""
    core = filled(reconnect_timeout=8.0)
    core.failures, core.failing_since = 1, NOW
    effects = core.check_failed(*lent(core), OSError(), NOW, NOW + 8, 0.5)
    assert effects.gave_up is True


def test_only_a_check_that_passes_ends_the_failing_of_checks() -> None:
    """Opening a connection does not; what is wanted is opened as soon as one passes."""
    core = filled(min_size=2, max_size=4)
    core.check_failed(*lent(core), OSError(), NOW, NOW, 0.5)
    core.retry_at = NOW
    (entry,) = core.drain(NOW).start[1:]
    core.retry_at = NOW + 8
    opened(core, entry)
    assert (core.failures, core.unproven) == (1, "new connections fail their check")
    effects = core.check_passed(NOW)
    assert core.failures == 0
    assert core.unproven is None
    assert places(effects) == [OPENING]


# Opening -------------------------------------------------------------------------------------


def test_a_worker_takes_a_permit_up_once() -> None:
    """Every attempt is counted when it begins."""
    core = make()
    gains = Gains(core)
    (entry,) = core.open(NOW).start
    held = core.begin(entry, NOW)
    assert entry.ordered is False
    assert entry.ref is not None
    assert (entry.ref(), entry.ref.entry) == (held, entry)
    assert core.begin(entry, NOW) is None
    assert gains.since() == {"connections_num": 1}


def test_a_worker_takes_a_connection_up_once() -> None:
    """From then on only the worker holds it."""
    core = filled()
    entry, conn = lent(core)
    recycle(core, entry, conn, NOW)
    gains = Gains(core)
    assert core.begin(entry, NOW) is conn
    assert (entry.conn, entry.ordered) == (None, False)
    assert core.begin(entry, NOW) is None
    assert gains.since() == {}


def test_an_opened_connection_is_idle_and_begins_to_age() -> None:
    """What opening took is counted, and that it is dropped would be noticed."""
    core = make(max_lifetime=100.0)
    (entry,) = core.open(NOW).start
    held = core.begin(entry, NOW)
    conn, gains = Conn(), Gains(core)
    effects = core.opened(entry, conn, 3.0, NOW + 3, 1.0)
    assert is_idle(core, entry, conn, NOW + 3)
    assert (entry.opened_at, entry.expires_at) == (NOW + 3, NOW + 98)
    assert entry.ref is not None
    assert entry.ref() is conn
    assert (core.opening, core.size, core.lent, effects.start) == (0, 1, 0, [])
    assert gains.since() == {"connections_time": 3}
    assert held is not None


def test_an_opened_connection_goes_to_the_client_that_waits() -> None:
    """At the moment at which it was opened."""
    core = filled(min_size=0)
    client = queued(core)
    entry = permit(core)
    conn = opened(core, entry, NOW + 2)
    assert is_served(core, client, entry, conn, NOW + 2)
    assert core.opening == 0


def test_a_pool_comes_back_to_the_size_it_had_grown_to() -> None:
    """What is still being opened has not been reached."""
    core = filled(min_size=0, max_size=4)
    for _ in range(3):
        queued(core)
    one, other, third = permits(core)
    opened(core, one)
    assert core.target == 1
    opened(core, other)
    assert (core.target, core.opening) == (2, 1)
    core.target = 4
    opened(core, third)
    assert core.target == 4


def test_a_pool_that_keeps_only_some_comes_back_to_min_size() -> None:
    """How far it had grown says nothing of how many it may keep."""
    core = filled(min_size=0, max_size=4, keep=2)
    queued(core)
    opened(core, permit(core))
    assert core.target == 0


def test_a_success_ends_the_failing() -> None:
    """And all that is wanted is opened at once."""
    core = make(min_size=3, max_size=3)
    one, other, third = core.open(NOW).start
    core.open_failed(one, None, OSError(), NOW, 0.0)
    core.open_failed(other, None, OSError(), NOW, 0.0)
    assert core.failures == 2
    effects = core.opened(third, Conn(), 0.0, NOW, 0.0)
    assert core.failures == 0
    assert places(effects)[-2:] == [OPENING, OPENING]


def test_a_connection_that_was_drained_while_it_was_opened_is_retired() -> None:
    """It was opened with what the drain was to replace."""
    core = make()
    (entry,) = core.open(NOW).start
    held = core.begin(entry, NOW)
    core.drain(NOW)
    conn = Conn()
    effects = core.opened(entry, conn, 0.0, NOW, 0.0)
    assert is_retired(core, entry, conn, effects)
    assert places(effects) == [RETIRED, OPENING]
    assert core.opening == 1
    assert held is not None


def test_a_failed_attempt_gives_the_permit_back_and_is_repeated_later() -> None:
    """Who waits goes on waiting; maintenance is due when it is time."""
    core = make(backoff=Backoff(first=0.5))
    (entry,) = core.open(NOW).start
    client = queued(core)
    gains, error = Gains(core), OSError()
    effects = core.open_failed(entry, None, error, NOW, 0.75)
    assert (core.size, core.opening, core.retiring) == (0, 0, {})
    assert (core.failures, core.last_error, core.failed_at) == (1, error, NOW)
    assert core.retry_at == NOW + 0.375
    assert core.due == NOW + 0.1
    assert (effects.start, effects.wake, effects.alarm) == ([], [], True)
    assert (list(core.waiting), client.error) == ([client], None)
    assert gains.since() == {"connections_errors": 1}


def test_a_connection_that_could_not_be_configured_is_retired() -> None:
    """A worker that takes it up and drops it leaves nothing of it."""
    core = make()
    (entry,) = core.open(NOW).start
    conn: Any = Conn()
    effects = core.open_failed(entry, conn, OSError(), NOW, 0.0)
    assert is_retired(core, entry, conn, effects)
    assert (core.opening, core.failures) == (0, 1)
    assert core.begin(entry, NOW) is conn
    del conn
    assert [held.entry for held in core.lost] == [entry]
    core.maintain(NOW)
    assert not core.retiring


def test_a_null_pool_tells_the_client_that_waits_first_of_a_failed_attempt() -> None:
    """Its time and an error count; the attempt for the next client goes on."""
    core = filled(min_size=0, keep=0, retrying=False)
    first, second = queued(core, NOW), queued(core, NOW)
    gains, error = Gains(core), OSError()
    effects = core.open_failed(permits(core)[0], None, error, NOW + 4, 0.0)
    assert (first.error, first.conn, second.error) == (error, None, None)
    assert list(core.waiting) == [second]
    assert effects.wake == [first]
    assert core.granted == {first: False}
    assert core.failures == 0
    expected = {"connections_errors": 1, "requests_errors": 1, "requests_time": 4}
    assert gains.since() == expected


def test_a_null_pool_forgets_a_failed_attempt_that_nobody_waits_for() -> None:
    """The next client has its own."""
    core = filled(min_size=0, keep=0, retrying=False)
    core.expire(queued(core), NOW)
    effects = core.open_failed(permits(core)[0], None, OSError(), NOW, 0.0)
    assert (effects.wake, core.failures, core.size) == ([], 0, 0)


def test_an_interrupted_attempt_of_a_null_pool_is_no_answer_to_a_client() -> None:
    """A worker was ended; the client waits for the next attempt, and the reason is not kept."""
    core = filled(min_size=0, keep=0, retrying=False)
    client = queued(core)
    core.open_failed(permits(core)[0], None, KeyboardInterrupt(), NOW, 0.0)
    assert (client.error, core.failures, core.last_error) == (None, 1, None)
    assert list(core.waiting) == [client]


def test_a_retired_connection_that_is_closed_is_forgotten() -> None:
    """As often as it is said."""
    core = filled()
    entry, conn = lent(core)
    core.discard(entry, conn, NOW, 0.5)
    core.retired(entry)
    assert not core.retiring
    core.retired(entry)


# Growing and failing -------------------------------------------------------------------------


def test_a_pool_opens_as_many_at_once_as_it_has_workers() -> None:
    """A pool that does not repeat attempts opens one for each client."""
    core = filled(min_size=0, max_size=9)
    for _ in range(5):
        queued(core)
    assert core.opening == core.size == 3
    core = filled(min_size=0, max_size=9, retrying=False)
    for _ in range(5):
        queued(core)
    assert core.opening == core.size == 5


def test_a_pool_that_is_not_open_opens_nothing() -> None:
    """Before it is opened, and after it was closed."""
    core = make()
    assert core.drain(NOW).start == []
    assert core.fill(2, NOW).start == []
    core = filled()
    held = lent(core)
    core.close(NOW)
    assert core.reclaim(held[0], NOW).start == []
    assert core.fill(2, NOW).start == []
    assert core.size == 0


def failing(**options: Any) -> Core:
    """Make a core whose first attempt has failed at NOW and is to be repeated at NOW + 8."""
    defaults: dict[str, Any] = {"backoff": Backoff(first=8.0, cap=64.0), "max_size": 6}
    core = make(**(defaults | options))
    core.open_failed(core.open(NOW).start[0], None, OSError("first"), NOW, 1.0)
    assert core.retry_at == NOW + 8
    return core


def fail_again(core: Core, now: float, chance: float = 1.0) -> Effects:
    """Make the attempt that is due, and let it fail."""
    core.maintain(now)
    return core.open_failed(permit(core), None, OSError("again"), now, chance)


def test_while_connecting_fails_one_attempt_is_made_at_a_time() -> None:
    """When it is time, not a moment before, and not beside another one."""
    core = failing()
    core.target = 3
    core.due = inf
    assert core.drain(NOW + 7.5).start == []
    assert core.due == NOW + 8
    (entry,) = core.drain(NOW + 8).start
    assert entry.place is OPENING
    assert core.drain(NOW + 9).start == []
    assert core.size == core.opening == 1


def test_while_connecting_fails_nothing_is_opened_that_is_not_wanted() -> None:
    """A probe is for somebody."""
    core = failing()
    core.target = 0
    assert core.drain(NOW + 9).start == []
    assert core.size == 0


def test_while_a_client_waits_the_next_attempt_is_at_most_a_tenth_of_a_second_away() -> None:
    """Counted from the last failure; a shorter backoff stays as it is."""
    core = failing()
    effects = core.enqueue(Client(), NOW)
    assert (effects.start, effects.alarm, core.due) == ([], True, NOW + 0.1)
    assert places(core.drain(NOW + 0.1)) == [OPENING]
    core = failing()
    core.retry_at = NOW + 0.0625
    core.enqueue(Client(), NOW)
    assert core.due == NOW + 0.0625


def test_failures_in_a_row_double_the_backoff() -> None:
    """The count goes on, and since when it fails does not change."""
    core = failing()
    fail_again(core, NOW + 9, 0.5)
    assert (core.failures, core.failing_since, core.failed_at) == (2, NOW, NOW + 9)
    assert core.retry_at == NOW + 9 + 8
    fail_again(core, NOW + 18, 0.5)
    assert (core.failures, core.failing_since, core.failed_at) == (3, NOW, NOW + 18)
    assert core.retry_at == NOW + 18 + 16


def test_after_reconnect_timeout_the_pool_gives_up_and_begins_anew() -> None:
    """At that very moment: it says so, aims at min_size, and goes on backing off."""
    core = failing(reconnect_timeout=16.0)
    core.target = 4
    effects = fail_again(core, NOW + 12, 0.0)
    assert (effects.gave_up, core.target, core.failures) == (False, 4, 2)
    assert core.retry_at == NOW + 16
    assert (core.maintain(NOW + 15.75).gave_up, core.due) == (False, NOW + 16)
    effects = core.maintain(NOW + 16)
    assert (effects.gave_up, places(effects)) == (True, [OPENING])
    assert (core.target, core.failures, core.failing_since) == (1, 2, NOW + 16)
    effects = core.open_failed(permit(core), None, OSError("again"), NOW + 17, 0.25)
    assert (effects.gave_up, core.failures) == (False, 3)
    assert core.retry_at == NOW + 17 + core.settings.backoff.delay(3, 0.25)
    core.maintain(NOW + 31.75)
    effects = core.open_failed(permit(core), None, OSError("again"), NOW + 32, 0.5)
    assert (effects.gave_up, core.failing_since) == (True, NOW + 32)


def test_reconnect_timeout_counts_from_the_first_attempt_though_none_has_failed() -> None:
    """A server that answers nobody, while nobody waits and after: the user is told in time."""
    core = make(reconnect_timeout=16.0)
    core.open(NOW)
    entry, gains = permit(core), Gains(core)
    held = core.begin(entry, NOW + 1)
    core.arm(entry, None, NOW + 60)
    assert (core.failing_since, core.failures) == (NOW + 1, 0)
    assert (core.maintain(NOW + 16.5).gave_up, core.due) == (False, NOW + 17)
    core.target = 2
    effects = core.maintain(NOW + 17)
    assert (effects.gave_up, effects.give_up, core.failures, core.target) == (True, [], 0, 1)
    assert core.failing_since == NOW + 17
    conn = Conn()
    core.opened(entry, conn, 1.0, NOW + 18, 0.0)
    assert (core.failing_since, held is None) == (inf, False)
    assert core.maintain(NOW + 99).gave_up is False
    assert gains.since()["connections_num"] == 1


def test_an_alarm_is_set_for_the_moment_at_which_the_pool_gives_up() -> None:
    """That may be long before the action of a worker has to end."""
    core = make(reconnect_timeout=0.5)
    core.open(NOW)
    entry = permit(core)
    held = core.begin(entry, NOW)
    assert core.due == NOW + 1
    assert core.arm(entry, None, NOW + 60) is True
    assert (core.due, entry.deadline, held is None) == (NOW + 0.5, NOW + 60, False)


def test_a_pool_without_patience_gives_up_ten_times_a_second_at_most() -> None:
    """`reconnect_timeout=0` must not make a loop of maintenance."""
    core = failing(reconnect_timeout=0.0)
    assert core.maintain(NOW).gave_up is False
    assert core.due == NOW + 0.1
    assert core.maintain(NOW + 0.1).gave_up is True
    assert core.maintain(NOW + 0.1).gave_up is False
    assert core.due == NOW + 0.2


def test_a_pool_that_repeats_no_attempt_never_gives_up() -> None:
    """Its clients are told, each of its own attempt."""
    core = filled(min_size=0, keep=0, retrying=False, reconnect_timeout=0.5)
    queued(core)
    held = core.begin(permit(core), NOW)
    assert core.maintain(NOW + 1).gave_up is False
    assert held is not None


def test_an_interruption_is_not_kept_as_the_reason() -> None:
    """Its frames would stay alive; the last connection error is still the reason."""
    core = failing()
    assert str(core.last_error) == "first"
    core.maintain(NOW + 8)
    core.open_failed(permit(core), None, KeyboardInterrupt(), NOW + 8, 0.0)
    assert (core.failures, str(core.last_error)) == (2, "first")


def test_the_alarm_rings_only_for_what_is_due_earlier() -> None:
    """Who sleeps until then need not be woken."""
    core = failing()
    core.due = NOW + 8
    assert core.drain(NOW).alarm is False
    core.due = NOW + 8.5
    assert core.drain(NOW).alarm is True
    assert core.due == NOW + 8


def a_checkin(core: Core, now: float) -> Effects | None:
    """Return a connection that is not to be kept."""
    entry, conn = lent(core)
    entry.expires_at = EVICTED
    return checkin(core, entry, conn, now)


def a_service(core: Core, now: float) -> Effects:
    """Have a worker bring a connection back."""
    entry, conn = in_service(core)
    core.due = inf
    return core.serviced(entry, conn, now)


def an_opening(core: Core, now: float) -> Effects:
    """Open a connection while checks fail."""
    core.unproven = "checks fail"
    return core.opened(permit(core), Conn(), 0.0, now, 0.0)


def a_failing(core: Core, now: float) -> Effects:
    """Fail at an attempt that is not repeated."""
    core.settings.retrying = False
    return core.open_failed(permit(core), None, OSError(), now, 0.0)


def a_retaking(core: Core, now: float) -> Effects | None:
    """Take a connection back whose lease was dropped."""
    entry, conn, _ = tied(core)
    tether = entry.tether
    assert (tether is None, conn is None) == (False, False)
    return core.retake(entry, tether, now)  # type: ignore[arg-type]


ENDING_IN_BALANCE: dict[str, Callable[[Core, float], Effects | None]] = {
    "enqueue": lambda core, now: core.enqueue(Client(), now),
    "cancel": lambda core, now: core.cancel(Client(), now),
    "checkin": a_checkin,
    "serviced": a_service,
    "discard": lambda core, now: core.discard(*lent(core), now, 0.5),
    "check_failed": lambda core, now: core.check_failed(*lent(core), OSError(), inf, now, 0.0),
    "demoted": lambda core, now: core.demoted(now, 0.0),
    "opened": an_opening,
    "open_failed": a_failing,
    "open": lambda core, now: core.open(now),
    "drain": lambda core, now: core.drain(now),
    "resize": lambda core, now: core.resize(4, 8, now),
    "fill": lambda core, now: core.fill(0, now),
    "reclaim": lambda core, now: core.reclaim(lent(core)[0], now),
    "retake": a_retaking,
    "resettle": lambda core, now: core.resettle(now, evict=False)[0],
    "maintain": lambda core, now: core.maintain(now),
}


@pytest.mark.parametrize("name", ENDING_IN_BALANCE)
def test_a_transition_sees_to_it_that_a_failed_attempt_is_repeated(name: str) -> None:
    """Each ends with the balance of the pool at its own moment, and gives its effects."""
    core = filled(max_size=8, num_workers=5)
    if name in ("opened", "open_failed"):
        core.fill(2, NOW)
    core.failures, core.target = 1, 6
    core.retry_at, core.failed_at, core.due = NOW + 0.25, NOW + 0.25, inf
    effects = ENDING_IN_BALANCE[name](core, NOW + 0.125)
    assert isinstance(effects, Effects)
    delay = core.settings.backoff.delay(1, 0.0)
    own = {"discard": 0.125, "opened": 0.125 + delay, "resettle": 0.125}
    assert core.due == NOW + own.get(name, 0.25)  # to look at others now; to open no faster
    assert effects.alarm is (name != "maintain")  # which is awake itself


# The pool's life -------------------------------------------------------------------------------


def test_a_pool_that_is_opened_begins_to_fill() -> None:
    """Maintenance is due in a second, and the alarm says so."""
    core = make(min_size=2)
    effects = core.open(NOW)
    assert (core.phase, core.due, core.low_water_since) == (Phase.OPEN, NOW + 1, NOW)
    assert places(effects) == [OPENING, OPENING]
    assert effects.alarm is True


def test_a_pool_that_was_never_opened_is_not_closed() -> None:
    """It can be opened still."""
    core = make()
    effects = core.close(NOW)
    assert (core.phase, effects.start, effects.wake) == (Phase.NEW, [], [])


def test_a_closed_pool_turns_all_away_who_wait() -> None:
    """Clients and watchers; each is an error, and maintenance is due no more."""
    core = filled(max_size=1)
    held, client, other, watcher = lent(core), queued(core, NOW), queued(core, NOW), Client()
    core.watch(watcher)
    gains = Gains(core)
    effects = core.close(NOW + 4)
    for refused in (client, other, watcher):
        assert isinstance(refused.error, PoolClosedMixin)
        assert "already closed" in str(refused.error)
    assert effects.wake == [client, other, watcher]
    assert (list(core.waiting), core.watching) == ([], {})
    assert (core.phase, core.due) == (Phase.CLOSED, inf)
    assert gains.since() == {"requests_errors": 2, "requests_time": 8}  # a watcher requests none
    assert is_retired(core, *held, checkin(core, *held, NOW + 4))


def test_a_closed_pool_closes_what_is_idle_and_forgets_what_was_not_begun() -> None:
    """What others have in hand is closed when they are done with it."""
    core = filled(min_size=2, max_size=4)
    entry, conn = lent(core)
    recycle(core, entry, conn, NOW)
    begun, unbegun = core.fill(4, NOW).start
    held = core.begin(begun, NOW)
    (idle,) = core.idle
    effects = core.close(NOW)
    assert list(core.entries) == [entry, begun]
    assert [e.expires_at for e in core.entries] == [EVICTED, EVICTED]
    assert (entry.place, begun.place, unbegun.place) == (SERVICE, OPENING, RETIRED)
    assert (core.opening, list(core.idle)) == (1, [])
    assert core.retiring == {idle: None}
    assert {entry, idle} <= {*effects.start}
    assert core.begin(unbegun, NOW) is None
    assert held is not None


def test_drain_replaces_what_is_idle_now_and_the_rest_later() -> None:
    """Lent connections, and those being opened, are closed when they come."""
    core = filled(min_size=2, max_size=4)
    idle, (entry, conn) = core.idle[0], lent(core)
    (new,) = core.fill(3, NOW).start
    effects = core.drain(NOW)
    assert effects.start == [idle]
    assert (entry.expires_at, new.expires_at) == (EVICTED, EVICTED)
    assert (core.opening, core.size) == (1, 2)
    assert conn is not None


@pytest.mark.parametrize(
    ("low", "high", "target"), [(1, 2, 2), (1, 3, 3), (1, 9, 3), (4, 9, 4), (4, 4, 4)]
)
def test_resize_sets_the_bounds_and_moves_the_target_between_them(
    low: int, high: int, target: int
) -> None:
    """The pool had grown to three."""
    core = filled(min_size=3, max_size=3)
    effects = core.resize(low, high, NOW)
    assert (core.settings.min_size, core.settings.max_size, core.target) == (low, high, target)
    assert core.size == target
    assert places(effects) == [RETIRED] * (3 - target) + [OPENING] * (target - 3)


def test_resize_of_a_pool_that_keeps_only_some_aims_at_min_size() -> None:
    """As it always does."""
    core = filled(min_size=2, keep=4)
    core.target = 7
    core.resize(1, 9, NOW)
    assert core.target == 1


def test_resize_closes_the_oldest_idle_connections_first() -> None:
    """As many as are too many."""
    core = filled(min_size=3, max_size=3)
    oldest, *others = core.idle
    conn = oldest.conn
    effects = core.resize(1, 2, NOW)
    assert is_retired(core, oldest, conn, effects)
    assert effects.start == [oldest]
    assert list(core.idle) == others


def test_resize_marks_the_oldest_of_what_is_not_idle() -> None:
    """As many as are still too many; they are closed when they come back."""
    core = filled(min_size=4, max_size=4, num_workers=4)
    held = [lent(core) for _ in range(4)]
    effects = core.resize(1, 2, NOW)
    assert [e.expires_at == EVICTED for e in core.entries] == [True, True, False, False]
    assert effects.start == []
    assert held


def test_resize_to_what_there_is_marks_nothing() -> None:
    """There is nothing in excess."""
    core = filled(min_size=2, max_size=2)
    held = lent(core)
    core.resize(1, 2, NOW)
    assert [e.expires_at == EVICTED for e in core.entries] == [False, False]
    assert held


def test_fill_opens_what_is_missing_whatever_the_target() -> None:
    """All at once, up to max_size, and what was dropped counts as missing."""
    core = filled(max_size=9)
    lent(core)  # and drop it
    assert places(core.fill(5, NOW)) == [OPENING] * 5
    assert core.opening == core.size == 5
    core = filled(max_size=3)
    assert places(core.fill(9, NOW)) == [OPENING] * 2
    assert core.fill(2, NOW).start == []


def test_check_takes_an_idle_connection_into_service() -> None:
    """Only if it is still idle."""
    core = filled(min_size=2)
    entry, other = core.idle
    conn = entry.conn
    assert core.recall(entry) is conn
    assert (entry.place, entry.conn) == (SERVICE, None)
    assert list(core.idle) == [other]
    assert core.recall(entry) is None
    assert core.lent == 1


# Maintenance -----------------------------------------------------------------------------------


def test_maintenance_comes_back_in_a_second_until_the_pool_is_closed() -> None:
    """It does nothing to a pool that is not open."""
    core = make()
    effects = core.maintain(NOW)
    assert (core.due, effects.start) == (NOW + 1, [])
    core.open(NOW)
    core.maintain(NOW + 8)
    assert core.due == NOW + 9
    core.close(NOW)
    core.maintain(NOW)
    assert core.due == inf


def test_maintenance_retires_idle_connections_whose_time_is_over() -> None:
    """At that moment, wherever they are in the queue, and it comes back for the next."""
    core = filled(min_size=3, max_size=3)
    one, two, three = core.idle
    one.expires_at, two.expires_at, three.expires_at = NOW + 4.5, NOW + 4, NOW + 6
    conn = two.conn
    effects = core.maintain(NOW + 4)
    assert is_retired(core, two, conn, effects)
    assert places(effects) == [RETIRED, OPENING]
    assert list(core.idle) == [one, three]
    assert core.due == NOW + 4.5


def test_maintenance_leaves_what_was_used_meanwhile() -> None:
    """A connection is unused from its return on."""
    core = filled(min_size=3, max_size=3, max_idle=4.0)
    core.resize(0, 3, NOW)
    held = [lent(core), lent(core)]
    for moment, one in enumerate(held, 1):
        checkin(core, *one, NOW + moment)
    effects = core.maintain(NOW + 5)
    assert places(effects) == [RETIRED, RETIRED]
    assert list(core.idle) == [held[1][0]]
    assert core.target == 1


def test_shrinking_stops_at_min_size() -> None:
    """However many are unused."""
    core = filled(min_size=3, max_size=3, max_idle=4.0)
    core.resize(2, 3, NOW)
    oldest = core.idle[0]
    assert core.maintain(NOW + 3.75).start == []
    assert core.maintain(NOW + 8).start == [oldest]
    assert (core.size, core.target) == (2, 2)


def test_the_target_comes_down_by_one_for_each_that_is_retired() -> None:
    """Never below min_size, and not for what the pool had not reached."""
    core = filled(min_size=2, max_size=9, max_idle=4.0)
    core.settings.min_size, core.target = 0, 7
    core.maintain(NOW + 4)
    assert core.target == 5
    core = filled(min_size=2, max_size=9, max_idle=4.0)
    core.settings.min_size, core.target = 1, 1
    core.maintain(NOW + 4)
    assert core.target == 1


def in_turn() -> Core:
    """Make a pool of three that are all used in turn, and of which one is never needed."""
    core = filled(min_size=3, max_size=3, lifo=False, max_idle=4.0)
    core.resize(0, 3, NOW)
    core.low_water = 3
    for _ in range(3):
        one, other = core.idle[0], core.idle[1]
        first, second = core.checkout(NOW + 3), core.checkout(NOW + 3)
        checkin(core, one, first, NOW + 3)
        checkin(core, other, second, NOW + 3)
    return core


def test_in_turn_maintenance_retires_as_many_as_were_never_needed() -> None:
    """After max_idle seconds, in which one was idle at any time; then the count begins anew."""
    core = in_turn()
    oldest = core.idle[0]
    assert core.maintain(NOW + 3.5).start == []
    assert core.due == NOW + 4
    assert core.maintain(NOW + 4).start == [oldest]
    assert (core.low_water, core.low_water_since) == (3, NOW + 4)
    assert core.due == NOW + 5


def test_in_turn_no_more_are_retired_than_are_idle() -> None:
    """Others are lent now, or were unused themselves."""
    core = in_turn()
    core.low_water = 9
    held = core.checkout(NOW + 4)
    core.low_water = 9
    assert places(core.maintain(NOW + 4)) == [RETIRED, RETIRED]
    core = in_turn()
    core.low_water = 0
    assert places(core.maintain(NOW + 7)) == [RETIRED] * 3
    assert held is not None


def test_maintenance_comes_back_when_a_connection_has_been_idle_for_long() -> None:
    """The oldest counts, and in turn the beginning of the count if that is earlier."""
    core = filled(min_size=2, max_idle=0.5)
    core.settings.min_size = 1
    core.idle[0].idle_since, core.idle[1].idle_since = NOW + 0.25, NOW + 0.375
    core.maintain(NOW + 0.25)
    assert core.due == NOW + 0.75
    core.lifo, core.low_water_since = False, NOW + 0.125
    core.maintain(NOW + 0.25)
    assert core.due == NOW + 0.625
    core.low_water_since = NOW + 0.375
    core.maintain(NOW + 0.25)
    assert core.due == NOW + 0.75


def test_maintenance_need_not_come_back_early_where_nothing_can_shrink() -> None:
    """At min_size, or while all is lent."""
    core = filled(min_size=2, max_idle=0.5)
    core.maintain(NOW)
    assert core.due == NOW + 1
    core.settings.min_size = 0
    held = lent(core), lent(core)
    core.maintain(NOW)
    assert core.due == NOW + 1
    assert held


def test_a_pool_retires_the_oldest_of_what_it_should_not_keep() -> None:
    """Whatever transition finds that there are too many."""
    core = filled(min_size=2, max_size=2)
    oldest, other = core.idle
    core.settings.min_size = core.target = 0
    core.keep = 1
    assert core.fill(0, NOW).start == [oldest]
    assert list(core.idle) == [other]


# Repair ----------------------------------------------------------------------------------------


def granted_half(core: Core) -> tuple[Client, Entry, Any]:
    """Cut a grant short right after the entry was written into the client."""
    client, entry = Client(), core.idle.pop()
    client.since, client.entry = NOW, entry
    core.waiting[client] = None
    return client, entry, entry.conn


def refused_half(core: Core) -> tuple[Client, OSError]:
    """Cut a refusal short right after the error was written into the client."""
    client, error = Client(), OSError()
    client.since, client.error = NOW, error
    core.waiting[client] = None
    return client, error


REPAIRING: dict[str, Callable[[Core, Client], Effects | bool]] = {
    "its time is over": lambda core, client: core.expire(client, NOW + 4),
    "maintenance comes": lambda core, _: core.maintain(NOW + 4),
    "the pool is closed": lambda core, _: core.close(NOW + 4),
    "the workers are gone": lambda core, _: core.resettle(NOW + 4, evict=False)[0],
}


@pytest.mark.parametrize("name", REPAIRING)
def test_a_grant_that_was_cut_short_is_finished_when(name: str) -> None:
    """The client has its connection and has not timed out."""
    core = filled()
    client, entry, conn = granted_half(core)
    gains = Gains(core)
    effects = REPAIRING[name](core, client)
    assert effects is False or client in effects.wake  # type: ignore[union-attr]
    assert list(core.granted) == ([] if effects is False else [client])  # or it knows itself
    core.granted[client] = False
    assert is_served(core, client, entry, conn, NOW + 4)
    assert gains.since() == {"requests_time": 4}


@pytest.mark.parametrize("name", REPAIRING)
def test_a_refusal_that_was_cut_short_is_finished_when(name: str) -> None:
    """The error was counted where it was written."""
    core = filled(min_size=0)
    client, error = refused_half(core)
    gains = Gains(core)
    effects = REPAIRING[name](core, client)
    assert effects is False or client in effects.wake  # type: ignore[union-attr]
    assert (client.error, list(core.waiting)) == (error, [])
    assert gains.since() == {"requests_time": 4}


def test_a_grant_that_was_cut_short_late_does_not_lose_the_connection() -> None:
    """It had been moved to the client already."""
    core = filled()
    client, entry, conn = granted_half(core)
    client.conn, entry.conn, entry.place, entry.lent_at = conn, None, LENT, NOW
    core.maintain(NOW + 4)
    assert is_served(core, client, entry, conn, NOW)


def test_a_client_that_was_left_beside_an_idle_connection_is_served_next() -> None:
    """By whatever transition comes; here by a check that passes."""
    core = filled()
    client, entry = Client(), core.idle[0]
    conn, client.since = entry.conn, NOW
    core.waiting[client] = None
    core.check_passed(NOW + 4)
    assert is_served(core, client, entry, conn, NOW + 4)


def audited(core: Core) -> Effects:
    """What an audit asks for."""
    effects = Effects()
    core.audit(NOW, effects)
    return effects


def test_an_audit_wakes_again_who_was_dismissed_and_orders_again_what_nobody_began() -> None:
    """The effects that said so may be lost."""
    core = filled(min_size=2, max_size=2)
    other, (entry, conn) = lent(core), lent(core)
    client = queued(core)
    checkin(core, *other, NOW)
    recycle(core, entry, conn, NOW)
    core.settings.max_size = 3
    (new,) = core.fill(3, NOW).start
    effects = audited(core)
    assert effects.wake == [client]
    assert effects.start == [entry, new]


def test_an_audit_orders_again_what_is_retired_and_not_begun() -> None:
    """Even if the order had not been written; what a worker has is left to it."""
    core = filled(min_size=2)
    (one, first), (other, second) = lent(core), lent(core)
    core.discard(one, first, NOW, 0.5)
    core.discard(other, second, NOW, 0.5)
    one.ordered = False
    assert core.begin(other, NOW) is second
    core.entries.clear()
    effects = audited(core)
    assert effects.start == [one]
    assert one.ordered is True


def test_an_audit_puts_back_what_was_half_put_back() -> None:
    """A connection that is held and not listed becomes idle, once."""
    core = filled(min_size=2)
    entry, conn = lent(core)
    entry.conn = conn
    assert audited(core).start == []
    assert (entry.place, list(core.idle)[-1], len(core.idle)) == (IDLE, entry, 2)
    assert audited(core).start == []
    assert len(core.idle) == 2


def test_an_audit_puts_back_what_was_not_yet_retired() -> None:
    """It is expired, and the next transition retires it; it is not ordered twice."""
    core = filled(min_size=0, max_size=1)
    core.fill(1, NOW)
    opened(core, permit(core))
    entry = core.idle.pop()
    entry.expires_at = EVICTED
    core.retiring[entry] = None
    assert audited(core).start == []
    assert (list(core.idle), entry.place, entry.ordered) == ([entry], IDLE, False)


def test_an_audit_forgets_what_is_retired_and_counts_the_permits() -> None:
    """Both may have been cut short."""
    core = filled(min_size=2, max_size=3)
    (new,) = core.fill(3, NOW).start
    new.place = RETIRED
    new.ordered = False
    assert core.opening == 1
    audited(core)
    assert new not in core.entries
    assert (core.opening, core.size) == (0, 2)


def test_who_was_woken_twice_more_and_has_not_come_is_gone() -> None:
    """With what it was given: the slot comes back as that of any dropped connection."""
    core = filled(max_size=1)
    entry, conn = lent(core)
    client = queued(core)
    checkin(core, entry, conn, NOW)
    del conn
    assert core.maintain(NOW).wake == [client]
    assert core.maintain(NOW).wake == [client]
    assert core.maintain(NOW).wake == []
    assert (core.granted, entry.place) == ({}, LENT)
    del client
    assert places(core.maintain(NOW)) == [OPENING]
    assert entry not in core.entries


def test_a_worker_that_was_cut_short_at_its_beginning_leaves_a_permit_without_a_deadline() -> None:
    """It is ordered still; no connection of it could be closed."""
    core = make()
    (entry,) = core.open(NOW).start

    class Raising(Exception):
        pass

    def watch(*_: object) -> None:
        raise Raising

    with mock.patch.object(Held, "watch", watch), pytest.raises(Raising):
        core.begin(entry, NOW)
    assert (entry.ordered, entry.place, entry.deadline) == (True, OPENING, inf)
    core.maintain(NOW + 99)
    assert (core.retiring, list(core.entries)) == ({}, [entry])


def test_an_audit_lists_again_whose_lease_was_dropped_and_who_was_not_taken_back() -> None:
    """Whoever had taken the note was cut short."""
    core = filled()
    entry, conn, lease = tied(core)
    assert (audited(core).start, list(core.forsaken)) == ([], [])
    lease.clear()
    audited(core)
    assert list(core.forsaken) == [entry.tether]
    tether = core.forsaken.pop()
    audited(core)
    assert list(core.forsaken) == [tether]
    core.retake(entry, tether, NOW)
    core.forsaken.clear()
    audited(core)
    assert (list(core.forsaken), entry.conn is conn) == ([], True)


# Arithmetic ------------------------------------------------------------------------------------


def test_the_backoff_stops_doubling_before_it_overflows() -> None:
    """After thirty times, whatever the cap is."""
    assert Backoff(first=1.0, cap=inf).delay(30, 0.5) == 2.0**28
    assert Backoff(first=1.0, cap=inf).delay(1_000_000, 0.5) == 2.0**29


def test_growth_leaves_the_workers_that_are_busy_out() -> None:
    """One of two workers opens already."""
    assert growth(target=4, size=1, max_size=9, waiting=0, opening=1, width=2) == 1


# What a finalizer returns ----------------------------------------------------------------------


def resurrected(core: Core) -> tuple[Entry, Any]:
    """A lent connection whose weak reference the collector has dropped, and that lives on."""
    entry, conn = lent(core)
    entry.ref = Held.watch(Conn(), entry, core.lost)
    assert list(core.lost) == [entry.ref]
    return entry, conn


def test_a_connection_that_was_given_up_for_lost_is_closed_when_it_comes_back() -> None:
    """Its slot is as good as given away."""
    core = filled()
    entry, conn = resurrected(core)
    assert is_retired(core, entry, conn, checkin(core, entry, conn, NOW))


def test_a_connection_whose_slot_was_given_away_is_closed_when_it_comes_back() -> None:
    """Once: the second time it is a stranger."""
    core = filled()
    entry, conn = resurrected(core)
    core.fill(0, NOW)
    assert (entry.place, entry.ref, len(core.lost)) == (RETIRED, None, 0)
    assert is_retired(core, entry, conn, checkin(core, entry, conn, NOW))
    assert entry.ref is not None
    assert (entry.ref(), entry.ref.entry) == (conn, entry)
    with pytest.raises(ValueError, match="retired"):
        checkin(core, entry, conn, NOW)


def test_a_finalizers_return_that_was_put_off_does_not_lose_the_connection() -> None:
    """The slot may have been given away by then: it is closed, by a worker."""
    core = filled()
    entry, conn = resurrected(core)
    core.put_off(entry, conn, entry.lent_at)
    effects = core.enqueue(Client(), NOW)
    assert is_retired(core, entry, conn, effects)
    assert places(effects) == [RETIRED, OPENING]


# What errors tell ------------------------------------------------------------------------------


def test_the_stamp_tells_that_somebody_else_may_have_the_lent_connections() -> None:
    """Whatever has happened to them meanwhile; else errors name who had them before."""

    def passed_on(core: Core, entry: Entry, conn: Any) -> None:
        checkin(core, entry, conn, NOW)
        assert core.checkout(NOW) is conn

    def counted_anew(core: Core, entry: Entry, conn: Any) -> None:
        checkin(core, entry, conn, NOW)
        core.reset_counters()
        assert core.checkout(NOW) is conn

    def reclaimed(core: Core, entry: Entry, _conn: Any) -> None:
        assert places(core.reclaim(entry, NOW)) == [OPENING]

    def discarded(core: Core, entry: Entry, conn: Any) -> None:
        core.discard(entry, conn, NOW, 0.5)

    def dropped(core: Core, entry: Entry, _conn: Any) -> None:
        core.lost.append(entry.ref)  # type: ignore[arg-type]
        core.fill(1, NOW)

    def given_to_who_waited(core: Core, entry: Entry, conn: Any) -> None:
        queued(core)
        checkin(core, entry, conn, NOW)

    def reset(core: Core, entry: Entry, conn: Any) -> None:
        recycle(core, entry, conn, NOW)

    for story in (
        passed_on, counted_anew, reclaimed, discarded, dropped, given_to_who_waited, reset
    ):  # fmt: skip
        core = filled(max_size=1)
        entry, conn = lent(core)
        stamp = core.stamp
        assert core.checkout(NOW) is None
        assert core.stamp == stamp
        story(core, entry, conn)
        assert core.stamp != stamp, story


# Stories of failure ------------------------------------------------------------------------------


def test_a_story_of_failure_ends_with_a_success() -> None:
    """The next failure begins another one, though more is wanted still."""
    core = failing(min_size=2)
    assert core.failing_since == NOW
    core.maintain(NOW + 8)
    opened(core, permit(core))
    assert (core.failures, core.failing_since, core.opening) == (0, inf, 1)


def test_a_story_of_failure_goes_on_while_somebody_wants_a_connection() -> None:
    """Whoever it is: a client that waits, or an attempt that has not ended."""
    core = make(min_size=0, max_size=1)
    core.open(NOW)
    client = queued(core, NOW)
    core.open_failed(permit(core), None, OSError("first"), NOW, 0.0)
    assert core.failing_since == NOW
    core.maintain(NOW + 8)
    core.expire(client, NOW + 8)
    core.fill(0, NOW + 8)
    assert (core.opening, core.failing_since) == (1, NOW)
    core.open_failed(permit(core), None, OSError("second"), NOW + 9, 0.0)
    assert (core.failures, core.failing_since) == (2, inf)


def test_the_time_of_a_lease_counts_if_its_connection_is_discarded() -> None:
    """As if it had come back whole."""
    core = filled()
    entry, conn = lent(core)
    entry.leased = object()
    gains = Gains(core)
    core.discard(entry, conn, NOW + 2, 0.5)
    assert gains.since() == {"returns_bad": 1, "usage_time": 2}
    assert entry.leased is None


# Dead connections ----------------------------------------------------------------------------


def test_a_connection_is_lent_unseen_up_to_the_end_of_the_window() -> None:
    """A moment later the client must queue for it, and it must be looked at."""
    core = filled(min_size=1, bypass_window=0.5)
    (entry,) = core.idle
    assert core.checkout(NOW + 0.75) is None
    assert (entry.place, list(core.idle), core.requests_num) == (IDLE, [entry], 1)
    conn = core.checkout(NOW + 0.5, "me")
    assert (conn is not None, entry.holder, entry.lent_at) == (True, "me", NOW + 0.5)
    assert not core.doubtful(entry)
    checkin(core, entry, conn, NOW + 1)
    client: Any = Client()
    client.holder = "you"
    core.enqueue(client, NOW + 2, NOW + 9)
    assert (client.conn, client.since, client.deadline) == (conn, NOW + 2, NOW + 9)
    assert (entry.holder, core.doubtful(entry)) == ("you", True)


def test_a_connection_that_is_not_lent_goes_back_to_its_place() -> None:
    """To the right end where the latest is lent first, else to the left one."""
    for lifo in (True, False):
        core = filled(min_size=3, max_size=3, lifo=lifo, bypass_window=0.5)
        before = list(core.idle)
        assert core.checkout(NOW + 1) is None
        assert list(core.idle) == before


def test_a_connection_found_dead_makes_all_others_suspicious() -> None:
    """Until maintenance, which is due now, has looked at them."""
    core = filled(max_size=2, min_size=2, bypass_window=5.0)
    entry, conn = lent(core)
    gains = Gains(core)
    effects = core.discard(entry, conn, NOW + 0.5, 0.5, lost=True)
    assert gains.since() == {"connections_lost": 1}
    assert (core.suspicious, core.bypass, core.due) == (True, -1.0, NOW + 0.5)
    assert effects.alarm is True
    assert core.checkout(NOW + 1) is None  # whatever the window is
    core.maintain(NOW + 1)
    assert (core.bypass, core.due) == (-1.0, NOW + 1)
    idle = [(each, each.conn) for each in core.idle]
    assert core.snapshot() == idle
    assert (core.suspicious, core.bypass) == (False, -1.0)
    core.maintain(NOW + 1)
    assert (core.bypass, core.due) == (5.0, NOW + 2)
    assert core.checkout(NOW + 1) is not None


def test_a_new_core_suspects_nobody() -> None:
    """Its window is the one it was given; there are no limits that were not asked for."""
    core = make(bypass_window=0.25)
    assert (core.suspicious, core.bypass, core.crowded) == (False, 0.25, False)
    assert (core.verdict, core.rejections, core.rejected_since) == (Verdict.TRANSIENT, 0, inf)
    assert (core.unanswered, core.unproven, core.paced_at) == (0, None, 0.0)
    assert (core.claims, core.witness, list(core.returned)) == ({}, None, [])
    assert (core.ready is core.idle, core.drained_at) == (True, -inf)
    assert (core.probed_at, core.writable, core.demotions) == (0.0, None, 0)
    assert (list(core.forsaken), list(core.leaked), core.reported) == ([], [], {})
    assert core.demoted_until == 0.0
    assert core_of(core.refusals, max_size=1).bypass == 0.05


def test_a_look_is_no_use_of_a_connection() -> None:
    """What is put back unused has been idle since before; but its server has answered."""
    core = filled()
    entry = core.idle[-1]
    conn = core.recall(entry)
    assert entry.place is SERVICE
    core.serviced(entry, conn, NOW + 5)
    assert is_idle(core, entry, conn, NOW)
    assert entry.seen_at == NOW + 5


def test_idle_connections_are_asked_in_turn_when_they_were_silent_for_long() -> None:
    """Each when its interval is over since its last use or its last answer."""
    core = filled(min_size=3, max_size=3, keepalive_interval=30.0)
    used, seen, silent = core.idle
    used.idle_since = NOW + 10
    seen.seen_at = NOW + 20
    conn = silent.conn
    core.maintain(NOW + 29.5)
    assert (len(core.idle), core.due) == (3, NOW + 30)
    effects = core.maintain(NOW + 30)
    assert effects.start == [silent]
    assert (silent.place, silent.chore, silent.conn, silent.ordered) == (
        (SERVICE, Chore.PING, conn, True)
    )
    assert list(core.idle) == [used, seen]
    assert silent.deadline == NOW + 33  # for a worker to take it up
    held = core.begin(silent, NOW + 32)
    core.arm(silent, None, inf)
    core.maintain(NOW + 39.5)
    assert core.due == NOW + 40
    core.serviced(silent, held, NOW + 39.5)
    assert (silent.chore, silent.idle_since) == (Chore.RESET, NOW)


def test_nobody_is_asked_where_no_interval_is_set() -> None:
    """However long it was idle."""
    core = filled()
    assert core.maintain(NOW + 500).start == []


# Uses ------------------------------------------------------------------------------------------


def test_the_last_use_of_a_connection_is_counted() -> None:
    """It is retired when it comes back, not before."""
    core = filled(max_uses=2)
    entry, conn = lent(core)
    core.use(entry)
    assert (entry.uses, entry.expires_at) == (1, NOW + 3600)
    checkin(core, entry, conn, NOW)
    core.checkout(NOW)
    core.use(entry)
    assert (entry.uses, entry.expires_at, entry.place) == (2, EVICTED, LENT)
    assert is_retired(core, entry, conn, checkin(core, entry, conn, NOW))


# Leases that are dropped ---------------------------------------------------------------------


def leased(core: Core) -> tuple[Entry, Any]:
    """Lend a connection to a block."""
    entry, conn = lent(core)
    entry.leased = "me"
    return entry, conn


def tied(core: Core) -> tuple[Entry, Any, list[Any]]:
    """Lend a connection to a lease, which has the token in the list."""
    entry, conn = leased(core)
    lease = [entry.token]
    entry.token, entry.kept = None, conn
    return entry, conn, lease


def test_a_connection_whose_lease_was_dropped_goes_into_service_once() -> None:
    """Whatever a worker was to do with it, it is reset; its use has ended."""
    core = filled()
    entry, conn, lease = tied(core)
    entry.chore = Chore.ROLE
    lease.clear()
    (tether,) = core.forsaken
    assert (tether.entry, tether) == (entry, entry.tether)
    gains = Gains(core)
    effects = core.retake(entry, tether, NOW + 2)
    assert effects is not None
    assert (effects.start, entry.place, entry.chore) == ([entry], SERVICE, Chore.RESET)
    assert (entry.conn, entry.kept, entry.leased) == (conn, None, None)
    assert gains.since() == {"usage_time": 2}
    assert core.retake(entry, tether, NOW + 2) is None


def test_a_connection_whose_lease_was_dropped_goes_to_who_waits_when_it_is_reset() -> None:
    """And is replaced at once if its time is over."""
    core = filled(max_size=1, max_lifetime=4.0)
    entry, conn, _ = tied(core)
    tether = entry.tether
    assert tether is not None
    effects = core.retake(entry, tether, NOW + 4)
    assert effects is not None
    assert is_retired(core, entry, conn, effects)
    assert places(effects) == [RETIRED, OPENING]


def test_a_connection_that_was_returned_is_not_taken_from_its_next_holder() -> None:
    """Neither from one with a lease, nor from one without, nor out of the pool."""
    core = filled(min_size=1)
    entry, conn, lease = tied(core)
    before = entry.tether
    assert before is not None
    checkin(core, entry, conn, NOW + 1)
    assert (core.retake(entry, before, NOW + 1), entry.place) == (None, IDLE)
    core.checkout(NOW + 1)
    entry.leased = "you"  # whose lease has not noted it yet
    assert (core.retake(entry, before, NOW + 1), entry.place) == (None, LENT)
    lease.clear()
    token = core.tie(entry)
    entry.kept, entry.tether = conn, entry.tether
    assert (core.retake(entry, before, NOW + 1), entry.place) == (None, LENT)
    assert token is not None


def test_a_new_token_ends_what_the_one_before_could_tell() -> None:
    """The latest lease alone has a say in what becomes of the connection."""
    core = filled()
    entry, _conn, lease = tied(core)
    first = id(entry.tether)
    token = core.tie(entry)
    assert (entry.token, id(entry.tether) == first) == (token, False)
    lease.clear()  # the tether of this one is gone already: nobody hears of it
    assert list(core.forsaken) == []
    assert entry.tether is not None
    assert (entry.tether(), entry.tether.entry) == (token, entry)
    entry.token = None
    del token
    assert list(core.forsaken) == [entry.tether]


def test_an_opened_connection_has_its_first_token() -> None:
    """So that the first lease makes none."""
    core = filled()
    (entry,) = core.idle
    assert entry.token is not None
    assert entry.tether is not None
    assert (entry.tether(), entry.kept, entry.leased) == (entry.token, None, None)


def test_a_dropped_lease_of_a_reclaimed_connection_does_nothing() -> None:
    """Its slot was given back, and the connection goes with its last holder."""
    core = filled()
    entry, conn, _ = tied(core)
    tether = entry.tether
    assert tether is not None
    core.reclaim(entry, NOW)
    assert (entry.kept, core.retake(entry, tether, NOW), conn is None) == (None, None, False)


def test_what_closes_keeps_no_connection_for_a_lease() -> None:
    """Nobody would take it back: it ends with its lease."""
    core = filled()
    entry, _conn, _ = tied(core)
    core.close(NOW)
    assert (entry.kept, entry.place) == (None, LENT)


def test_what_a_client_drops_is_listed_to_be_reported() -> None:
    """Not what a worker drops."""
    core = filled(min_size=2)
    entry = lent(core)[0]
    worker = in_service(core)[0]
    core.fill(0, NOW)
    assert list(core.leaked) == [entry]
    assert worker not in core.entries


def test_what_is_lent_for_too_long_is_told_once_and_again_when_it_has_ended() -> None:
    """At the threshold, not before; with the holder, the moment and the line."""
    core = filled(min_size=2, max_size=2, leak_threshold=5.0)
    entry, conn = lent(core, NOW + 1)
    entry.holder, entry.line = "me", "here"
    assert core.overheld(NOW + 5) == ([], [])
    hold = Hold("me", NOW + 1, "here")
    assert core.overheld(NOW + 6) == ([hold], [])
    assert core.overheld(NOW + 7) == ([], [])
    checkin(core, entry, conn, NOW + 8)
    assert core.overheld(NOW + 8) == ([], [hold])
    assert core.overheld(NOW + 8) == ([], [])


def test_a_connection_that_was_lent_again_has_come_back_before() -> None:
    """Though it is lent now, and perhaps for too long again."""
    core = filled(min_size=1, leak_threshold=5.0)
    entry, conn = lent(core)
    (first,) = core.overheld(NOW + 5)[0]
    checkin(core, entry, conn, NOW + 6)
    core.checkout(NOW + 6)
    assert core.overheld(NOW + 10) == ([], [first])
    assert [hold.since for hold in core.overheld(NOW + 11)[0]] == [NOW + 6]


def test_nothing_is_told_where_there_is_no_threshold() -> None:
    """A lent connection is lent."""
    core = filled()
    lent(core)
    assert core.overheld(NOW + 9999) == ([], [])


# Deadlines -------------------------------------------------------------------------------------


def test_who_begins_has_the_time_for_one_action() -> None:
    """From the moment at which it begins."""
    core = make(min_size=1, action_timeout=4.0)
    core.open(NOW)
    entry = permit(core)
    held = core.begin(entry, NOW + 1)
    assert (entry.began_at, entry.deadline, held is None) == (NOW + 1, NOW + 5, False)
    assert core.opened(entry, Conn(), 0.0, NOW + 2, 0.0) is not None
    assert entry.deadline == inf


def test_a_failed_attempt_has_no_deadline_any_more() -> None:
    """Nor does what is ordered and not begun."""
    for conn in (None, Conn()):
        core = make(min_size=1)
        core.open(NOW)
        entry = permit(core)
        held = core.begin(entry, NOW)
        core.open_failed(entry, conn, OSError(), NOW, 0.0)
        assert (entry.deadline, held is None) == (inf, False)


def test_what_is_ordered_must_be_taken_up_in_the_time_of_an_action() -> None:
    """Else all workers are blocked: it is closed, counted as a bad return, and replaced."""
    core = filled(action_timeout=4.0)
    entry, conn = lent(core)
    recycle(core, entry, conn, NOW + 1)
    assert (entry.deadline, entry.chore) == (NOW + 5, Chore.RESET)
    assert core.maintain(NOW + 4.5).start == [entry]  # orders are told again
    assert core.due == NOW + 5
    gains = Gains(core)
    effects = core.maintain(NOW + 5)
    assert gains.since() == {"returns_bad": 1}
    assert (entry.place, entry.ordered, entry.conn, entry.deadline) == (RETIRED, True, conn, inf)
    assert (list(core.retiring), entry in core.entries) == ([entry], False)
    assert places(effects) == [RETIRED, RETIRED, OPENING]
    assert (effects.cut, effects.give_up) == ([], [])
    assert core.begin(entry, NOW + 5) is conn


def test_what_is_to_be_closed_may_wait_for_its_worker() -> None:
    """It is out of the pool already; and so may a permit."""
    core = filled(min_size=2)
    entry, conn = lent(core)
    core.discard(entry, conn, NOW, 0.5)
    assert (entry.place, entry.deadline, permit(core).deadline) == (RETIRED, inf, inf)
    effects = core.maintain(NOW + 99)
    assert (effects.start, effects.give_up) == ([permit(core), entry], [])


def test_the_alarm_is_set_for_a_deadline_before_the_next_maintenance() -> None:
    """Not for a later one, nor in a pool that is not open."""
    core = filled()
    entry, line = core.idle[-1], object()
    core.due = NOW + 1
    assert core.arm(entry, line, NOW + 1) is False
    assert core.arm(entry, line, NOW + 0.5) is True
    assert (entry.lifeline, entry.deadline, core.due) == (line, NOW + 0.5, NOW + 0.5)
    core.close(NOW)
    assert core.arm(entry, line, NOW) is False
    assert core.due == inf


def test_an_action_is_in_time_while_nobody_has_cut_it() -> None:
    """Whoever has cut it has taken the lifeline."""
    core = filled()
    entry, line = core.idle[-1], object()
    core.arm(entry, line, NOW + 1)
    assert core.disarm(entry, line) is True
    assert (entry.lifeline, entry.deadline) == (None, inf)
    assert core.disarm(entry, line) is False


def test_an_action_that_is_overdue_is_cut_and_a_second_later_given_up() -> None:
    """The connection is not kept, the worker not waited for, and the slot free."""
    core = filled(min_size=1)
    entry, conn = in_service(core)
    core.arm(entry, line := object(), NOW + 2)
    assert core.maintain(NOW + 1.5).cut == []
    assert core.due == NOW + 2
    effects = core.maintain(NOW + 2)
    assert (effects.cut, effects.give_up, effects.start) == ([line], [], [])
    assert (entry.lifeline, entry.deadline, entry.expires_at) == (None, NOW + 3, EVICTED)
    assert core.disarm(entry, line) is False
    entry.deadline = NOW + 3
    gains = Gains(core)
    effects = core.maintain(NOW + 3)
    assert (effects.cut, effects.give_up) == ([], [entry])
    assert gains.since() == {"returns_bad": 1}
    assert (entry.given_up, entry.place, entry.ref, entry.deadline) == (True, RETIRED, None, inf)
    assert entry not in core.entries
    assert places(effects) == [OPENING]  # another one in its place
    assert is_retired(core, entry, conn, core.serviced(entry, conn, NOW + 4))


def test_an_attempt_that_is_overdue_is_given_up_as_a_failure() -> None:
    """What it brings late is closed; nothing is counted twice."""
    core = make(min_size=1, backoff=Backoff(1.0), reconnect_timeout=0.0)
    core.open(NOW)
    entry = permit(core)
    held = core.begin(entry, NOW)
    gains = Gains(core)
    effects = core.maintain(NOW + 3, 0.75)
    assert (effects.give_up, effects.gave_up) == ([entry], True)
    assert gains.since() == {"connections_errors": 1}
    assert (core.failures, core.failed_at, core.retry_at) == (1, NOW + 3, NOW + 3.75)
    assert str(core.last_error) == "an attempt to connect, or its callback, did not end in time"
    assert (core.opening, len(core.entries), entry.given_up) == (0, 0, True)
    assert core.open_failed(entry, None, OSError(), NOW + 4, 0.0).start == []
    assert (core.failures, gains.since()) == (1, {"connections_errors": 1})
    conn = Conn()
    effects = core.open_failed(entry, conn, OSError(), NOW + 4, 0.0)
    assert is_retired(core, entry, conn, effects)
    assert (core.failures, held is None) == (1, False)


def late(**options: Any) -> tuple[Core, Entry, Any]:
    """Make a core that has given its only attempt to connect up."""
    core = make(**({"min_size": 1, "backoff": Backoff(1.0)} | options))
    core.open(NOW)
    entry = permit(core)
    held = core.begin(entry, NOW)
    core.maintain(NOW + 3)
    return core, entry, held


def test_a_connection_that_is_opened_too_late_is_kept_if_it_is_wanted_still() -> None:
    """It is a success, and nothing more is opened."""
    core, entry, held = late()
    assert (core.retry_at, entry.given_up, core.opening) == (NOW + 3.5, True, 0)
    conn = Conn()
    core.opened(entry, conn, 0.0, NOW + 3.25, 0.0)
    assert is_idle(core, entry, conn, NOW + 3.25)
    assert (entry.given_up, core.opening, core.failures) == (False, 0, 0)
    assert entry.ref is not None
    assert (entry.ref(), held is None) == (conn, False)
    core, entry, held = late()
    core.target = 0
    client = queued(core, NOW + 3)
    core.opened(entry, conn, 0.0, NOW + 3.25, 0.0)
    assert is_served(core, client, entry, conn, NOW + 3.25)


def test_a_connection_that_is_opened_too_late_is_closed_if_it_is_not_wanted() -> None:
    """Or if there is no room, or the pool was closed or drained meanwhile."""

    def unwanted(core: Core) -> None:
        core.target = 0

    def full(core: Core) -> None:
        core.settings.max_size = 0
        queued(core, NOW + 3)

    def closed(core: Core) -> None:
        core.close(NOW + 3)

    def drained(core: Core) -> None:
        core.drain(NOW + 3)

    for spoil in (unwanted, full, closed, drained):
        core, entry, held = late()
        spoil(core)
        conn = Conn()
        assert is_retired(core, entry, conn, core.opened(entry, conn, 0.0, NOW + 4, 0.0)), spoil
        assert (core.failures, entry.given_up, held is None) == (1, True, False)


def test_a_close_that_is_overdue_is_not_waited_for() -> None:
    """The connection was out of the pool before, and is no bad return."""
    core = filled()
    entry, conn = lent(core)
    core.discard(entry, conn, NOW, 0.5)
    held = core.begin(entry, NOW)
    gains = Gains(core)
    effects = core.maintain(NOW + 3)
    assert (effects.give_up, gains.since()) == ([entry], {})
    assert (entry not in core.retiring, held is conn) == (True, True)


def test_a_client_is_freed_but_not_given_up() -> None:
    """Its thread is its own."""
    core = filled()
    entry, _conn = lent(core)
    core.arm(entry, line := object(), NOW + 1)
    assert core.maintain(NOW + 1).cut == [line]
    assert entry.deadline == NOW + 2
    effects = core.maintain(NOW + 2)
    assert (effects.give_up, entry.given_up) == ([], False)
    assert (entry.place, entry.deadline) == (LENT, inf)


# What a failed attempt means -----------------------------------------------------------------


def failed(core: Core, verdict: Verdict, now: float = NOW, error: Any = None) -> Effects:
    """Fail at the only attempt there is."""
    return core.open_failed(permit(core), None, error or OSError("no"), now, 0.0, verdict)


def trying(**options: Any) -> Core:
    """Make a core that has nothing and keeps nothing, and is open."""
    core = make(**({"min_size": 0, "max_size": 3} | options))
    core.open(NOW)
    return core


def test_who_waits_is_told_of_a_rejection() -> None:
    """All who do, with the error; callers of wait(), too."""
    core = trying(max_size=1, rejected_after=0.0)
    clients = [queued(core), queued(core)]
    core.settings.min_size = 1
    watcher = Client()
    core.watch(watcher)
    gains, error = Gains(core), OSError("no such database")
    effects = failed(core, Verdict.REJECTED, error=error)
    assert effects.wake == [*clients, watcher]
    assert [type(client.error) for client in clients] == [PoolRejectedMixin] * 2
    assert [c.error.__cause__ for c in [*clients, watcher] if c.error] == [error] * 3
    assert gains.since() == {"requests_errors": 2, "connections_errors": 1}
    assert not core.waiting


def test_nobody_is_refused_while_there_is_something_to_wait_for() -> None:
    """A connection that is lent, or another attempt, or an attempt that was interrupted."""
    core = filled(min_size=1)
    _kept = lent(core)
    client = queued(core)
    failed(core, Verdict.REJECTED)
    assert client.error is None
    core = trying()
    client = queued(core)
    failed(core, Verdict.TRANSIENT)
    assert client.error is None
    core = trying()
    client = queued(core)
    failed(core, Verdict.REJECTED, error=KeyboardInterrupt())
    assert client.error is None


@pytest.mark.parametrize("verdict", [Verdict.REJECTED, Verdict.CREDENTIALS])
def test_a_rejection_is_believed_when_it_has_stood_for_a_moment(verdict: Verdict) -> None:
    """`rejected_after` seconds after the first; a server that starts may refuse at first."""
    core = trying(rejected_after=3.0, max_size=1, backoff=Backoff(0.0))
    client = queued(core)
    for moment in (0.0, 1.5, 2.75):
        failed(core, verdict, NOW + moment)
        assert (client.error, core.rejected_since, core.verdict) == (None, NOW, verdict)
        core.maintain(NOW + moment + 0.1)
    assert core.rejections == 3
    assert failed(core, verdict, NOW + 3).wake == [client]
    assert isinstance(client.error, PoolRejectedMixin)


def test_another_verdict_begins_the_time_of_a_rejection_anew() -> None:
    """So does a success, and an end of all attempts."""

    def differs(core: Core) -> None:
        failed(core, Verdict.TRANSIENT, NOW + 1)
        core.maintain(NOW + 2)

    def succeeds(core: Core) -> None:
        core.settings.max_size = 2
        queued(core)
        opened(core, permit(core), NOW + 1)

    def ends(core: Core) -> None:
        waiter = next(iter(core.waiting))
        core.expire(waiter, NOW + 1)
        failed(core, Verdict.TRANSIENT, NOW + 1)
        assert core.rejected_since == inf
        queued(core)
        core.maintain(NOW + 2)

    for story in (differs, succeeds, ends):
        core = trying(rejected_after=3.0, max_size=1, backoff=Backoff(0.0))
        queued(core)
        failed(core, Verdict.REJECTED)
        core.maintain(NOW + 1)
        story(core)
        client = queued(core)
        failed(core, Verdict.REJECTED, NOW + 3.5)
        assert (client.error, core.rejected_since) == (None, NOW + 3.5), story
        assert core.rejections == 1


def test_what_is_hopeless_is_told_at_once() -> None:
    """No server was asked: the connection string itself is wrong."""
    core = trying(rejected_after=3.0)
    client = queued(core)
    failed(core, Verdict.HOPELESS)
    assert isinstance(client.error, PoolRejectedMixin)


def test_wrong_credentials_have_a_second_chance_where_they_may_change() -> None:
    """Though no time is asked for, or is over; a success begins the count anew."""
    core = trying(fresh=True, max_size=1, backoff=Backoff(0.0), rejected_after=0.0)
    client = queued(core)
    failed(core, Verdict.CREDENTIALS)
    assert (client.error, core.rejections) == (None, 1)
    core.maintain(NOW + 0.1)
    failed(core, Verdict.CREDENTIALS, NOW + 0.1)
    assert (client.error is None, core.rejections) == (False, 2)
    client = queued(core)
    core.maintain(NOW + 1)
    conn = opened(core, permit(core))
    assert (client.conn is conn, core.rejected_since) == (True, inf)
    core.discard(next(iter(core.entries)), conn, NOW, 0.5)
    client = queued(core)
    core.maintain(NOW + 2)
    failed(core, Verdict.CREDENTIALS, NOW + 2)
    assert (client.error, core.rejections) == (None, 1)


def test_a_hopeless_string_has_a_second_chance_where_it_may_change() -> None:
    """A database that does not exist has none: it is no matter of credentials."""
    for verdict, told in ((Verdict.HOPELESS, False), (Verdict.REJECTED, True)):
        core = trying(fresh=True, rejected_after=0.0)
        client = queued(core)
        failed(core, verdict)
        assert (client.error is not None) is told


def test_a_crowded_server_is_asked_twice_a_second() -> None:
    """Instead of ten times, until an attempt fails otherwise or nobody wants more."""
    core = trying(backoff=Backoff(8.0, cap=8.0))
    client = queued(core)
    core.open_failed(permit(core), None, OSError(), NOW, 0.75, Verdict.CROWDED)
    assert (core.crowded, core.opening, core.due) == (True, 0, NOW + 0.5)
    core.maintain(NOW + 0.25)
    assert core.opening == 0
    core.maintain(NOW + 0.5)
    assert (core.opening, core.probed_at) == (1, NOW + 0.5)
    core.open_failed(permit(core), None, OSError(), NOW + 1, 0.75, Verdict.TRANSIENT)
    assert (core.crowded, core.due) == (False, NOW + 1.1)
    core.crowded = True
    core.expire(client, NOW + 1)
    core.fill(0, NOW + 1)
    assert core.crowded is False


def test_a_crowded_server_is_asked_by_one_at_a_time() -> None:
    """However many wait, after a success too."""
    core = trying(max_size=4)
    for _ in range(3):
        queued(core)
    core.crowded = True
    for entry in permits(core)[1:]:
        core.open_failed(entry, None, OSError(), NOW, 0.0, Verdict.CROWDED)
    assert core.opening == 1
    core.maintain(NOW + 5)
    assert core.opening == 1
    opened(core, permit(core))
    assert core.opening == 1


def test_an_attempt_that_is_not_answered_is_joined_by_one_more() -> None:
    """After a second, if somebody waits and there is room."""
    core = trying(num_workers=1, max_size=3)
    for _ in range(3):
        queued(core)
    failed(core, Verdict.TRANSIENT)
    core.maintain(NOW + 1)
    assert (core.opening, core.probed_at) == (1, NOW + 1)
    core.maintain(NOW + 1.75)
    assert (core.opening, core.due) == (1, NOW + 2)
    core.maintain(NOW + 2)
    assert (core.opening, core.probed_at) == (2, NOW + 2)
    core.maintain(NOW + 9)
    assert core.opening == 2


def test_an_attempt_is_not_joined_where_nobody_waits_or_there_is_no_room() -> None:
    """Nor where the server is crowded."""
    for spoil in ("nobody", "no room", "crowded"):
        core = trying(max_size=2)
        client = queued(core)
        failed(core, Verdict.TRANSIENT)
        core.maintain(NOW + 1)
        if spoil == "nobody":
            core.expire(client, NOW + 1)
        if spoil == "no room":
            core.settings.max_size = 1
        core.crowded = spoil == "crowded"
        core.maintain(NOW + 9)
        assert core.opening == 1


def test_who_waits_does_not_rely_on_an_attempt_that_is_not_answered() -> None:
    """A second later another one is begun, beyond the number of workers if need be."""
    core = trying(num_workers=1)
    client = queued(core)
    entry = permit(core)
    core.maintain(NOW + 9)
    assert core.opening == 1  # which nobody has begun
    held = core.begin(entry, NOW + 10)
    core.maintain(NOW + 10.5)
    assert (core.opening, core.due) == (1, NOW + 11)
    core.maintain(NOW + 11)
    assert (core.opening, core.probed_at, core.due) == (2, NOW + 11, NOW + 12)
    core.maintain(NOW + 12)
    assert (core.opening, held is None, client.conn) == (2, False, None)


# Primary and standby ---------------------------------------------------------------------------


def joined(core: Core, standby: bool | None, now: float = NOW, chance: float = 0.5) -> Entry:
    """Open a connection to a primary or a standby."""
    entry, conn = permits(core)[0], Conn()
    core.opened(entry, conn, 0.0, now, chance, standby)
    return entry


def test_a_connection_to_a_standby_lasts_until_the_next_step() -> None:
    """Where connections should be writable; the steps back off."""
    core = make(min_size=1, backoff=Backoff(4.0))
    core.writable = True
    core.open(NOW)
    entry = joined(core, True)
    assert (entry.standby, entry.expires_at) == (True, NOW + 2)
    assert (core.demotions, core.demoted_until) == (1, NOW + 2)


def test_a_connection_to_a_standby_is_as_good_as_any_where_nobody_wants_to_write() -> None:
    """Or where nobody knows, or the server has not said."""
    for writable, standby in ((None, True), (False, True), (False, False), (True, None)):
        core = make(min_size=1)
        core.writable = writable
        core.open(NOW)
        entry = joined(core, standby, chance=0.0)
        assert (entry.expires_at, core.demotions, core.writable) == (NOW + 3600, 0, writable)
        assert entry.standby is (writable is None)


def test_when_the_primary_is_found_connections_to_standbys_go() -> None:
    """The idle ones now, those that are lent when they come back."""
    core = make(min_size=3, max_size=3)
    core.open(NOW)
    idle, busy = joined(core, True), joined(core, True)
    conn = core.checkout(NOW)
    core.demotions = 5
    primary = joined(core, False)
    assert (core.writable, core.demotions, list(core.idle)) == (True, 0, [primary])
    assert (idle.place, idle.expires_at, busy.place, busy.expires_at) == (
        (RETIRED, EVICTED, LENT, EVICTED)
    )
    assert (list(core.retiring), idle.conn is None) == ([idle], False)
    assert (primary.standby, conn is None) == (False, False)


def test_a_demoted_server_has_all_connections_replaced_once_for_each_step() -> None:
    """A step is as long as the backoff says."""
    core = filled(min_size=2, backoff=Backoff(4.0, factor=1.0, cap=4.0))
    effects = core.demoted(NOW, 0.75)
    assert places(effects) == [RETIRED, RETIRED, OPENING, OPENING]
    assert (core.demotions, core.demoted_until) == (1, NOW + 3)
    for entry in permits(core):
        opened(core, entry)
    core.demoted(NOW + 2, 0.75)
    assert (core.demotions, len(core.idle)) == (1, 2)
    core.demoted(NOW + 3, 0.75)
    assert (core.demotions, len(core.idle)) == (2, 0)


# Deadlock --------------------------------------------------------------------------------------


def holding(core: Core, *holders: Any) -> list[Any]:
    """Lend a connection to each."""
    conns = []
    for holder in holders:
        entry, conn = lent(core)
        entry.leased = holder
        conns.append(conn)
    return conns


def asking(core: Core, holder: Any, deadline: float = inf) -> Client:
    """Queue a client that may hold a connection."""
    client = Client()
    client.claim = holder
    core.enqueue(client, NOW, deadline)
    return client


class Sure:
    """Refusals that find every deadlock certain."""

    def __init__(self, core: Core) -> None:
        self.error: Exception | None = TimeoutError("deadlock")
        self._others = core.refusals

    def __getattr__(self, name: str) -> Any:
        return getattr(self._others, name)

    def deadlock(self, core: Core, now: float, stuck: dict[Any, Any]) -> Exception | None:
        """All wait for all."""
        assert (now, core.requests_queued > 0) == (NOW, True)
        assert set(stuck) == {entry.leased for entry in core.entries}
        assert all(stuck[claim].claim == claim for claim in stuck)
        return self.error


def two(**options: Any) -> tuple[Core, Sure]:
    """Make a core with two connections, and refusals that are sure."""
    core = filled(min_size=2, max_size=2, **options)
    sure = Sure(core)
    core.refusals = sure
    return core, sure


def test_when_all_who_hold_connections_wait_the_first_to_give_up_is_refused() -> None:
    """By maintenance, which is due at once; among equals, who came first."""
    for deadlines, refused in (((NOW + 9, NOW + 5), 1), ((NOW + 5, NOW + 9), 0), ((inf, inf), 0)):
        core, sure = two()
        conns = holding(core, "a", "b")
        bystander = asking(core, "c", NOW + 1)
        core.due = NOW + 1
        gains = Gains(core)
        clients = [asking(core, "a", deadlines[0])]
        assert core.due == NOW + 1
        clients.append(asking(core, "b", deadlines[1]))
        assert core.due == NOW
        assert [client.error for client in clients] == [None, None]
        effects = core.maintain(NOW)
        assert [client.error for client in clients].index(sure.error) == refused
        assert effects.wake == [clients[refused]]
        assert (bystander.error, len(core.waiting), len(conns)) == (None, 2, 2)
        assert gains.since()["requests_errors"] == 1
        assert set(core.claims) == {"c", "b" if refused == 0 else "a"}


def test_nobody_is_refused_for_a_deadlock_that_is_none() -> None:
    """Somebody may return a connection, or there may be another one."""

    def undecided(_core: Core, sure: Sure) -> None:
        sure.error = None

    def larger(core: Core, _: Sure) -> None:
        core.settings.max_size, core.failures, core.retry_at, core.failed_at = 3, 1, inf, NOW

    def opening(core: Core, _: Sure) -> None:
        core.settings.max_size = 3
        core.fill(3, NOW)

    def unknown(core: Core, _: Sure) -> None:
        next(iter(core.entries)).leased = None

    def free(core: Core, _: Sure) -> None:
        next(iter(core.entries)).leased = "c"

    def in_work(core: Core, _: Sure) -> None:
        next(iter(core.entries)).place = SERVICE

    for spoil in (undecided, larger, opening, unknown, free, in_work):
        core, sure = two()
        _kept = holding(core, "a", "b")
        spoil(core, sure)
        clients = [asking(core, "a"), asking(core, "b")]
        if spoil is not undecided:
            assert not core._is_stuck()
        core.maintain(NOW)
        assert [client.error for client in clients] == [None, None], spoil


def test_a_deadlock_that_is_not_certain_yet_is_looked_at_again() -> None:
    """With each round of maintenance."""
    core, sure = two()
    _kept = holding(core, "a", "b")
    error, sure.error = sure.error, None
    clients = [asking(core, "a"), asking(core, "b")]
    core.maintain(NOW)
    assert [client.error for client in clients] == [None, None]
    sure.error = error
    core.maintain(NOW)
    assert [client.error for client in clients] == [error, None]


def test_a_client_that_stands_in_the_queue_twice_waits_until_it_has_left_it_twice() -> None:
    """Counted by who it is, however it leaves: served, too late, or cancelled."""
    core, _sure = two()
    held = holding(core, "a", "b")
    first, second, third = (asking(core, "a") for _ in range(3))
    assert core.claims == {"a": 3}
    core.expire(first, NOW)
    core.cancel(second, NOW)
    assert core.claims == {"a": 1}
    core.cancel(second, NOW)
    core.expire(first, NOW)
    assert core.claims == {"a": 1}
    one = next(iter(core.entries))
    checkin(core, one, held[0], NOW)
    assert (third.conn is None, core.claims) == (False, {})


def test_an_audit_counts_anew_who_waits() -> None:
    """An interruption may have come between the queue and the count."""
    core, _ = two()
    _held = holding(core, "a", "b")
    clients = [asking(core, "a"), asking(core, "a"), asking(core, "c")]
    core.claims = {"x": 9}
    audited(core)
    assert (core.claims, len(clients)) == ({"a": 2, "c": 1}, 3)


def test_one_witness_is_enough_to_know_of_no_deadlock() -> None:
    """Others are asked only when it does not testify any more: a queue costs no more for it."""
    core, _sure = two()
    _held = holding(core, "a", "b")
    first, second = core.entries
    first.leased, second.leased = "a", "b"
    assert core._has_witness()
    assert core.witness is first
    second.leased = None
    assert core._has_witness()
    assert core.witness is first
    asking(core, "a")
    assert core._has_witness()
    assert core.witness is second
    second.leased = "a"
    assert not core._has_witness()
    assert core.witness is None


def test_who_does_not_wait_does_not_mind_an_attempt_that_is_not_answered() -> None:
    """Maintenance comes back for its deadline only."""
    core = make(min_size=1)
    core.open(NOW)
    held = core.begin(permit(core), NOW)
    core.maintain(NOW + 0.25)
    assert (core.opening, core.due, held is None) == (1, NOW + 1.25, False)


def test_a_failed_check_of_a_connection_whose_slot_was_given_back_has_it_closed() -> None:
    """As any other return of it."""
    core = filled()
    entry, conn = lent(core)
    core.reclaim(entry, NOW)
    assert is_retired(core, entry, conn, core.check_failed(entry, conn, OSError(), 0.0, NOW, 0.0))


def test_the_time_of_a_lease_counts_while_somebody_waits() -> None:
    """As on the common path."""
    core = filled(min_size=1, max_size=1)
    entry, conn = leased(core)
    queued(core)
    gains = Gains(core)
    checkin(core, entry, conn, NOW + 2)
    assert gains.since()["usage_time"] == 2


def test_a_new_entry_knows_nothing_of_a_holder_or_a_server() -> None:
    """Nobody has had it, or worked on it."""
    entry = Entry()
    assert (entry.holder, entry.line, entry.leased, entry.lifeline) == (None, None, None, None)
    assert (entry.began_at, entry.seen_at, entry.uses, entry.deadline) == (0.0, 0.0, 0, inf)
    assert (entry.chore, entry.standby, entry.given_up) == (Chore.RESET, False, False)


def test_a_connection_that_was_looked_at_goes_back_to_its_place_among_the_idle() -> None:
    """In order of their last use, whoever came back last."""
    core = filled(min_size=5, max_size=5, num_workers=5)
    for number, entry in enumerate(core.idle):
        entry.idle_since = NOW + number
    before = list(core.idle)
    for entry in before:
        core.serviced(entry, core.recall(entry), NOW + 9)
        assert list(core.idle) == before
    second, third = before[1:3]
    second.idle_since = third.idle_since  # equals: who comes back last is the last of them
    core.serviced(second, core.recall(second), NOW + 9)
    assert list(core.idle) == [before[0], third, second, *before[3:]]


def test_no_more_idle_connections_are_asked_at_a_time_than_there_are_workers() -> None:
    """What is in service already counts; the others are asked a little later."""
    core = filled(min_size=5, max_size=5, num_workers=5, keepalive_interval=30.0)
    core.settings.num_workers = 3
    worker, conn = in_service(core)
    worker.deadline = inf
    first, second, third, fourth = core.idle
    effects = core.maintain(NOW + 30)
    assert effects.start == [first, second]
    assert list(core.idle) == [third, fourth]
    assert (core.due, worker.place, conn is None) == (NOW + 30.1, SERVICE, False)
    core.due, effects = inf, Effects()
    core._keep_alive(NOW + 30, effects)
    assert effects.alarm is True


def test_a_client_that_comes_again_goes_first_unless_the_queue_is_full() -> None:
    """It has waited before; but no more wait than may."""
    core = filled(min_size=1, max_size=1, max_waiting=2)
    _entry, _conn = lent(core)
    first, again = queued(core), Client()
    core.enqueue(again, NOW, again=True)
    assert list(core.waiting) == [again, first]
    with pytest.raises(TooManyRequestsMixin):
        core.enqueue(Client(), NOW, again=True)
    assert list(core.waiting) == [again, first]


def test_a_client_that_waits_has_forsaken_leases_looked_for_at_once() -> None:
    """Maintenance is due now, if there is any."""
    core = filled(min_size=1, max_size=1)
    entry, conn = leased(core)
    core.due = NOW + 1
    assert core.enqueue(Client(), NOW).alarm is False
    entry.token = None  # the last that held it
    assert (list(core.forsaken), conn is None) == ([entry.tether], False)
    effects = core.enqueue(Client(), NOW)
    assert (core.due, effects.alarm) == (NOW, True)


def test_uses_are_not_bounded_where_no_bound_is_set() -> None:
    """And a single use is a bound as any other."""
    for bound, expires_at in ((0, NOW + 3600), (1, EVICTED)):
        core = filled(max_uses=bound)
        entry, _conn = lent(core)
        core.use(entry)
        assert entry.expires_at == expires_at


def test_a_late_connection_counts_as_an_opening_until_it_is_open() -> None:
    """Whatever interrupts its welcome: to drop the connection gives the slot back."""
    core, entry, held = late(max_size=3)
    core.maintain(NOW + 4)
    core.target, before = 2, core.opening
    assert before == 1
    conn = Conn()
    assert core._welcome(entry, conn)
    assert (core.opening, core.entries[entry], entry.place) == (before + 1, None, OPENING)
    assert entry.ref is not None
    assert (entry.ref(), entry.ref.entry, held is None) == (conn, entry, False)
    del conn
    core.fill(0, NOW + 4)
    assert (core.opening, entry in core.entries) == (before, False)


def test_a_late_connection_that_was_begun_at_the_moment_of_a_drain_is_closed() -> None:
    """It may be older than what the drain was for."""
    core, entry, held = late()
    core.drained_at = entry.began_at
    conn = Conn()
    assert is_retired(core, entry, conn, core.opened(entry, conn, 0.0, NOW + 4, 0.0))
    assert held is not None
