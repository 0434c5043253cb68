"""REFERENCE, "Migration is one rule": forebay.psycopg_pool and install_as_psycopg_pool()."""

from __future__ import annotations

import subprocess
import sys
from textwrap import dedent

import pytest

import forebay
import forebay.psycopg_pool

NAMES = (
    "AsyncConnectionPool",
    "AsyncNullConnectionPool",
    "ConnectionPool",
    "NullConnectionPool",
    "PoolClosed",
    "PoolTimeout",
    "TooManyRequests",
)


@pytest.mark.parametrize("name", NAMES)
def test_the_drop_in_has_the_same_classes(name: str) -> None:
    """`from forebay.psycopg_pool import X` and `from forebay import X` give one class."""
    assert getattr(forebay.psycopg_pool, name) is getattr(forebay, name)
    assert name in forebay.psycopg_pool.__all__


def test_the_drop_in_has_the_version_of_the_contract() -> None:
    """`__version__` is psycopg_pool's, for programs that compare it."""
    assert forebay.psycopg_pool.__version__ == "3.3.3"


def run(program: str, *arguments: str) -> str:
    """Run a program in an interpreter of its own, and give what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", dedent(program), *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.strip()


def test_install_serves_those_who_import_psycopg_pool(dsn: str) -> None:
    """A framework that imports psycopg_pool itself gets ours, and it works."""
    program = """
        import sys, forebay
        forebay.install_as_psycopg_pool()
        import psycopg_pool
        from psycopg_pool import AsyncConnectionPool, ConnectionPool, PoolTimeout
        assert ConnectionPool is forebay.ConnectionPool
        assert AsyncConnectionPool is forebay.AsyncConnectionPool
        assert psycopg_pool.__version__ == "3.3.3"
        with ConnectionPool(sys.argv[1], min_size=1) as pool, pool.connection() as conn:
            print(*conn.execute("select 'served'").fetchone())
        """
    assert run(program, dsn) == "served"


SUBMODULES = {
    "pool": "ConnectionPool",
    "base": "BasePool",
    "abc": "ConnectionCB",
    "errors": "PoolTimeout",
}


@pytest.mark.parametrize("module", ["pool", "base", "abc", "errors"])
@pytest.mark.parametrize("form", ["import", "from"])
def test_install_covers_the_submodules(module: str, form: str) -> None:
    """`import psycopg_pool.pool` and `from psycopg_pool.pool import X` both work."""
    name = SUBMODULES[module]
    statement = {
        "import": f"import psycopg_pool.{module}; found = psycopg_pool.{module}.{name}",
        "from": f"from psycopg_pool.{module} import {name} as found",
    }[form]
    program = f"""
        import forebay
        forebay.install_as_psycopg_pool()
        {statement}
        print(found is getattr(forebay, "{name}", found))
        """
    assert run(program) == "True"


def test_pools_are_instances_of_base_pool(dsn: str) -> None:
    """Libraries ask `isinstance(pool, psycopg_pool.base.BasePool)`."""
    program = """
        import sys, forebay
        forebay.install_as_psycopg_pool()
        from psycopg_pool.base import BasePool
        kinds = [forebay.ConnectionPool, forebay.AsyncConnectionPool,
                 forebay.NullConnectionPool, forebay.AsyncNullConnectionPool]
        print(all(isinstance(kind(sys.argv[1], open=False), BasePool) for kind in kinds))
        """
    assert run(program, dsn) == "True"


def test_null_pools_are_pools() -> None:
    """As in the original, a null pool is an instance of the pool class of its door."""
    assert issubclass(forebay.NullConnectionPool, forebay.ConnectionPool)
    assert issubclass(forebay.AsyncNullConnectionPool, forebay.AsyncConnectionPool)


def test_installing_twice_is_harmless() -> None:
    """A second call changes nothing."""
    program = """
        import forebay
        forebay.install_as_psycopg_pool()
        import psycopg_pool
        forebay.install_as_psycopg_pool()
        import psycopg_pool as again
        print(again is psycopg_pool)
        """
    assert run(program) == "True"


def test_install_comes_too_late_when_the_original_is_imported() -> None:
    """Some of the program would go on using the original, so this is an error that says so."""
    program = """
        import sys, types
        sys.modules["psycopg_pool"] = types.ModuleType("psycopg_pool")
        import forebay
        try:
            forebay.install_as_psycopg_pool()
        except Exception as error:
            print(type(error).__name__, error)
        """
    said = run(program)
    assert said.startswith(("RuntimeError", "ImportError"))
    assert "psycopg_pool" in said
    assert "before" in said
