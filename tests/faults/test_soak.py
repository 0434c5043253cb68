from __future__ import annotations

import subprocess
import sys

import pytest

from . import soak_faults

pytestmark = [pytest.mark.embedded, pytest.mark.prove]

SOAK = "import sys; from tests.faults import soak; sys.exit(soak.main(sys.argv[1:]))"

# Small bounds: what these break is seen at once.
HURRY = "from tests.faults import soak; soak.RECOVERY, soak.SETTLE = 1.0, 3.0\n"

# psycopg2 does not survive it for long: two threads in one connection.
LENDS_TWICE = """
from forebay._core import Core
original = Core.checkout
def checkout(core, now, holder=None):
    conn = original(core, now, holder)
    if conn is not None:
        conn._forebay_entry.conn = conn
        core.idle.append(conn._forebay_entry)
    return conn
Core.checkout = checkout
"""

KEEPS_DISCARDED = """
from forebay._core import Core
from forebay._entry import Effects
kept = []
def discard(core, entry, conn, now, *chance, **options):
    kept.append(conn)
    return Effects()
Core.discard = discard
"""

STRANDS_WAITERS = """
from forebay import _threads
_threads.ThreadWaiter.wake = lambda waiter: None
_threads._bounded = lambda timeout: -1
"""

FORGETS_TO_COMMIT = """
from forebay._thread_door import Lease
Lease._end = lambda lease, conn, *error: conn.rollback()
"""

KEEPS_WAITERS = """
from forebay._core import Core
kept = []
original = Core.expire
def expire(core, waiter, now):
    kept.append(waiter)
    return original(core, waiter, now)
Core.expire = expire
"""


def soak(*arguments: str, before: str = "") -> subprocess.CompletedProcess[str]:
    """Run the soak in a process of its own, after the statements `before`."""
    return subprocess.run(
        [sys.executable, "-c", before + SOAK, *arguments],
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.timeout(300)
def test_nothing_is_lost_in_a_minute_of_random_faults() -> None:
    """Pools of every kind survive a minute of the schedule of a seed, and end as they began."""
    done = soak("--seconds", "60", "--seed", "4", "--verbose")
    assert done.returncode == 0, done.stderr + done.stdout


@pytest.mark.parametrize(
    ("defect", "noticed"),
    [
        pytest.param(LENDS_TWICE, "is lent twice", id="lent-twice"),
        pytest.param(KEEPS_DISCARDED, "sessions of", id="session-kept"),
        pytest.param(STRANDS_WAITERS, "still has no answer", id="waiter-stranded"),
        pytest.param(FORGETS_TO_COMMIT, "transfers and of", id="commit-forgotten"),
        pytest.param(KEEPS_WAITERS, "of ThreadWaiter or AsyncWaiter", id="memory-kept"),
    ],
)
def test_the_soak_notices_a_defect_of_the_pool(defect: str, noticed: str) -> None:
    """A pool that is broken on purpose is a violation, told with the seed and the last faults."""
    done = soak("--seconds", "3", "--seed", "1", before=defect + HURRY)
    assert done.returncode != 0
    assert noticed in done.stderr
    assert "of seed 1:" in done.stderr
    assert "last faults:" in done.stderr


def test_a_seed_repeats_its_schedule() -> None:
    """The faults of an episode follow from the seed and its number alone."""

    def schedule(seed: int) -> list[tuple[list[str], float]]:
        episodes = [soak_faults.episode(seed, number) for number in range(50)]
        return [([fault.__name__ for fault in faults], rng.random()) for faults, rng in episodes]

    assert schedule(7) == schedule(7)
    assert schedule(7) != schedule(8)


def test_every_fault_has_its_turn() -> None:
    """No fault is missing in the schedule of a long run."""
    known = [*soak_faults.NETWORK, *soak_faults.SERVER, *soak_faults.POOL]
    seen = {fault.__name__ for number in range(1000) for fault in soak_faults.episode(4, number)[0]}
    assert seen == {fault.__name__ for fault, _ in known}
