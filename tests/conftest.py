"""What every test may ask for: a real PostgreSQL server."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from forebay._embedded import EmbeddedPostgres, ExistingServer, server_or_dsn

# A suite that runs in the background has Ctrl-C ignored, and so would the programs it starts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


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
