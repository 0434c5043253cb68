"""What every test may ask for: a real PostgreSQL server."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from forebay._embedded import EmbeddedPostgres, ExistingServer, server_or_dsn


@pytest.fixture(scope="session")
def server() -> Iterator[EmbeddedPostgres | ExistingServer]:
    """Give the server that all tests share: embedded, or the one that FOREBAY_DSN names.

    A test that stops or restarts its server makes an `EmbeddedPostgres` of its own.
    """
    with server_or_dsn() as server:
        yield server


@pytest.fixture(scope="session")
def dsn(server: EmbeddedPostgres | ExistingServer) -> str:
    """Give the connection string of the shared server."""
    return server.dsn
