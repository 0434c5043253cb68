from __future__ import annotations

import json
import subprocess
import sys

import pytest

from forebay._embedded import EmbeddedPostgres

from .sigint import TASKS, THREADS

pytestmark = pytest.mark.prove

ROUNDS = 30


def interrupt(server: EmbeddedPostgres, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Play the rounds in a process of its own."""
    command = [sys.executable, "-m", "tests.faults.sigint", "--dsn", server.dsn]
    return subprocess.run(
        [*command, "--rounds", str(ROUNDS), *arguments],
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.embedded
@pytest.mark.parametrize("loop", [*THREADS, *TASKS])
def test_the_pool_is_whole_after_each_of_30_interrupts(loop: str, server: EmbeddedPostgres) -> None:
    """SIGINT at any moment costs one session at most, and no slot of the pool."""
    done = interrupt(server, "--loop", loop)
    results = [json.loads(line) for line in done.stdout.splitlines()]
    assert [result["wrong"] for result in results] == [[] for _ in results], done.stderr
    assert done.returncode == 0, done.stderr
    assert [result["interrupts"] for result in results] == [ROUNDS for _ in results]


@pytest.mark.embedded
def test_interrupts_land_inside_the_pool(server: EmbeddedPostgres) -> None:
    """The rounds would prove little if every interrupt fell between two uses of the pool."""
    done = interrupt(server, "--loop", "bare", "--driver", "psycopg")
    landed = json.loads(done.stdout)["landed"]
    inside = sum(number for place, number in landed.items() if place.startswith("forebay"))
    assert inside >= ROUNDS // 3, landed
