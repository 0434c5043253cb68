"""Fixtures of the tests of drivers."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest

from .sides import Side


@pytest.fixture(params=["psycopg", "psycopg2"])
def side(request: pytest.FixtureRequest) -> Iterator[Side]:
    """Give psycopg 3, then psycopg2."""
    side = Side(request.param)
    yield side
    side.close()


@pytest.fixture(scope="session")
def admin(dsn: str) -> Iterator[psycopg.Connection]:
    """Give a session beside those of the test."""
    with psycopg.connect(dsn, autocommit=True) as session:
        yield session
