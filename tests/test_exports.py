"""The public names: what they are, where they live, and what importing them costs."""

from __future__ import annotations

import inspect
import subprocess
import sys

import psycopg
import pytest

import forebay
import forebay.psycopg_pool


def test_the_public_names_are_these() -> None:
    """Adding or removing one is a decision, not an accident."""
    assert set(forebay.__all__) == {
        "AsyncConnectionPool",
        "AsyncNullConnectionPool",
        "ConnectionPool",
        "NullConnectionPool",
        "PoolClosed",
        "PoolTimeout",
        "TooManyRequests",
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


@pytest.mark.parametrize("name", ["PoolClosed", "PoolTimeout", "TooManyRequests"])
def test_errors_are_operational_errors(name: str) -> None:
    """Programs that catch psycopg's errors catch the pool's."""
    assert issubclass(getattr(forebay, name), psycopg.OperationalError)


def test_importing_forebay_loads_no_driver() -> None:
    """The names are imported lazily: the other driver's users need no libpq for this one."""
    program = "import forebay, sys; sys.exit('psycopg' in sys.modules or 'asyncio' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
