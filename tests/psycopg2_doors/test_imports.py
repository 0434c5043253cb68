"""Each driver's pools can be imported, and used, where the other driver cannot be."""

from __future__ import annotations

import subprocess
import sys

import pytest

#: Refuses to import a library, as if it were not installed (or its libpq were missing).
WITHOUT = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {library!r}:
            raise ImportError(name + " is not to be had")

sys.meta_path.insert(0, Refuse())
"""

PSYCOPG3 = ("psycopg", "psycopg_binary", "psycopg_c", "psycopg_pool")
PSYCOPG2 = ("psycopg2", "psycopg2_pool")


def run(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a program in a fresh interpreter."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", program, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def without(library: tuple[str, ...], program: str, *arguments: str) -> None:
    """Run a program where a library cannot be imported; it must succeed."""
    done = run(WITHOUT.format(library=library) + program, *arguments)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("library", "module"),
    [(PSYCOPG3, "psycopg"), (PSYCOPG2, "psycopg2"), (PSYCOPG2, "psycopg2.pool")],
)
def test_the_refusal_refuses(library: tuple[str, ...], module: str) -> None:
    """What the tests below rely on."""
    done = run(WITHOUT.format(library=library) + f"import {module}")
    assert f"ImportError: {module.partition('.')[0]} is not to be had" in done.stderr


def test_psycopg2_pools_work_without_psycopg3(dsn: str) -> None:
    """`forebay.psycopg2` and its pool module need no psycopg 3."""
    without(
        PSYCOPG3,
        """
from forebay.psycopg2 import ConnectionPool
from forebay.psycopg2.pool import ThreadedConnectionPool

with ConnectionPool(sys.argv[1], min_size=1) as pool, pool.connection() as conn:
    conn.cursor().execute("select 1")
pool = ThreadedConnectionPool(1, 1, sys.argv[1])
with pool.connection() as conn:
    conn.cursor().execute("select 1")
pool.closeall()
assert "psycopg" not in sys.modules
""",
        dsn,
    )


def test_psycopg3_pools_work_without_psycopg2(dsn: str) -> None:
    """`forebay` and `forebay.psycopg_pool` need no psycopg2."""
    without(
        PSYCOPG2,
        """
from forebay import AsyncConnectionPool, ConnectionPool
import forebay.psycopg_pool

with ConnectionPool(sys.argv[1], min_size=1) as pool, pool.connection() as conn:
    conn.execute("select 1")
assert "psycopg2" not in sys.modules
""",
        dsn,
    )


def test_without_psycopg2_the_import_says_what_is_missing() -> None:
    """The library's own name is in the error."""
    done = run(WITHOUT.format(library=PSYCOPG2) + "import forebay.psycopg2")
    assert "psycopg2 is not to be had" in done.stderr
