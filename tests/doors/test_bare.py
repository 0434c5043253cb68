"""The door for asyncio stands on no library of its own."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

from . import bare

WITHOUT = """
import sys
sys.modules["psycopg"] = sys.modules["psycopg2"] = None
from tests.doors.bare import main
main()
"""


@pytest.mark.parametrize("scenario", bare.SCENARIOS, ids=lambda scenario: scenario.__name__)
def test_another_library_is_a_driver_away(scenario: bare.Scenario) -> None:
    """Its sessions take no attributes, and are no context managers."""
    asyncio.run(bare.play(scenario))


def test_its_pool_needs_neither_psycopg_nor_psycopg2() -> None:
    """The same where these cannot be imported."""
    home = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", WITHOUT], cwd=home, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
