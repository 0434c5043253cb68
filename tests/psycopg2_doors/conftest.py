"""Fixtures of the doors for psycopg2."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from itertools import count

import pytest
from psycopg2.extensions import make_dsn

from .harness import Admin

_serial = count(1)


@pytest.fixture(scope="session")
def admin(dsn: str) -> Iterator[Admin]:
    """Give a session beside the pools, to look at the server and to end sessions."""
    with Admin(dsn) as session:
        yield session


@pytest.fixture
def application() -> str:
    """Give a name by which the server knows the sessions of one test."""
    return f"psycopg2-doors-{next(_serial)}"


@pytest.fixture
def dsn2(dsn: str, application: str) -> str:
    """Give the connection string of the test's own application, as psycopg2 takes it."""
    return str(make_dsn(dsn, application_name=application))


@pytest.fixture(scope="session")
def refusing_dsn() -> Iterator[str]:
    """Give a connection string whose port is taken, and refuses every connection."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"host=127.0.0.1 port={taken.getsockname()[1]} user=nobody dbname=nowhere"
