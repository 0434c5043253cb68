"""Clients that will not wait, while connections are being opened: who is promised one?"""

from __future__ import annotations

from forebay._core import Core
from forebay._entry import Effects
from forebay._threads import ThreadWaiter
from forebay.options import Settings
from forebay.psycopg2.pool import PoolRefusals


class Session:
    """What stands for a connection."""


def test_a_client_is_promised_one_of_as_many_as_are_being_opened() -> None:
    """The first two of three are served by two openings, whichever ends first; the third fails."""
    settings = Settings.of(min_size=0, max_size=2, retrying=False, eager=True)
    core = Core(PoolRefusals(), settings, keep=0)
    core.open(0.0)
    first, second, third = waiters = [ThreadWaiter(None) for _ in range(3)]
    orders = Effects()
    for waiter in waiters:
        orders.start += core.enqueue(waiter, 0.0).start
    one, two = orders.start
    permits = [core.begin(one, 0.0), core.begin(two, 0.0)]
    assert [core.promised(waiter) for waiter in waiters] == [True, True, False]
    core.opened(two, Session(), 0.1, 0.1, 0.5)
    assert first.conn is not None
    assert [core.promised(waiter) for waiter in waiters] == [False, True, False]
    assert core.expire(third, 0.2)
    core.opened(one, Session(), 0.1, 0.1, 0.5)
    assert second.conn is not None
    assert not core.promised(second)
    del permits
