"""Gives the tests of the fault lab its tools."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from forebay._embedded import EmbeddedPostgres

from .proxy import Proxy
from .scripted import ScriptedServer
from .tls import Authority, TlsProxy


@pytest.fixture(scope="session")
def server() -> Iterator[EmbeddedPostgres]:
    """Give a server of our own, with a TCP port: the lab needs one that it may hurt."""
    with EmbeddedPostgres() as server:
        yield server


@pytest.fixture
def proxy(server: EmbeddedPostgres) -> Iterator[Proxy]:
    """Give a proxy in front of the server."""
    with Proxy.before(server) as proxy:
        yield proxy


@pytest.fixture(scope="session")
def authority() -> Iterator[Authority]:
    """Give a certificate authority."""
    with Authority() as authority:
        yield authority


@pytest.fixture
def tls_proxy(server: EmbeddedPostgres, authority: Authority) -> Iterator[TlsProxy]:
    """Give a proxy with TLS in front of the server."""
    with TlsProxy.secure(server, authority) as proxy:
        yield proxy


@pytest.fixture
def scripted() -> Iterator[ScriptedServer]:
    """Give a scripted server."""
    with ScriptedServer() as scripted:
        yield scripted
