"""The public names: what they are, where they live, and what importing them costs."""

from __future__ import annotations

import inspect
import subprocess
import sys
from types import ModuleType

import psycopg
import pytest

import forebay
import forebay.psycopg2
import forebay.psycopg2.pool
import forebay.psycopg_pool


def test_the_public_names_are_these() -> None:
    """Adding or removing one is a decision, not an accident."""
    assert set(forebay.__all__) == {
        "AsyncConnectionPool",
        "AsyncNullConnectionPool",
        "ConnectionPool",
        "NullConnectionPool",
        "PoolClosed",
        "PoolDeadlock",
        "PoolOptions",
        "PoolRejected",
        "PoolTimeout",
        "TooManyRequests",
        "install_as_psycopg2_pool",
        "install_as_psycopg_pool",
    }


@pytest.mark.parametrize("name", forebay.__all__)
def test_a_public_name_is_there_and_documented(name: str) -> None:
    """Each is imported on first use, shown by dir(), and says what it is."""
    assert inspect.getdoc(getattr(forebay, name))
    assert name in dir(forebay)


def test_an_unknown_name_is_an_attribute_error() -> None:
    """Lazy imports do not change what a misspelt name gives."""
    with pytest.raises(AttributeError, match="'forebay' has no attribute 'ConectionPool'"):
        _ = forebay.ConectionPool


def test_the_drop_in_has_the_very_same_classes() -> None:
    """`forebay.psycopg_pool` is no second implementation."""
    for name in forebay.psycopg_pool.__all__:
        assert getattr(forebay.psycopg_pool, name) is getattr(forebay, name)


@pytest.mark.parametrize(
    "name", ["PoolClosed", "PoolTimeout", "PoolRejected", "PoolDeadlock", "TooManyRequests"]
)
def test_errors_are_operational_errors(name: str) -> None:
    """Programs that catch psycopg's errors catch the pool's."""
    assert issubclass(getattr(forebay, name), psycopg.OperationalError)


@pytest.mark.parametrize("module", [forebay.psycopg2, forebay.psycopg2.pool])
def test_the_names_for_psycopg2_are_there_and_documented(module: ModuleType) -> None:
    """Each says what it is, and calls its public module its home."""
    for name in module.__all__:
        assert inspect.getdoc(getattr(module, name))
        assert getattr(module, name).__module__ == module.__name__


def test_importing_forebay_loads_no_driver() -> None:
    """The names are imported lazily: the other driver's users need no libpq for this one."""
    loaded = "{'psycopg', 'psycopg2', 'asyncio'} & {*sys.modules}"
    program = f"import forebay, sys; sys.exit(bool({loaded}))"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
