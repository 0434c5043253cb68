"""TLS in front of a server that was built without it."""

from __future__ import annotations

import ssl
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import trustme

from forebay._embedded import EmbeddedPostgres

from .proxy import Proxy

__all__ = ["Authority", "TlsProxy"]


class Authority:
    """A certificate authority made up for the moment; a context manager.

    `server_context` is that of a server on 127.0.0.1 which clients trust with ``sslmode=verify-full
    sslrootcert=<root_file>``.
    """

    root_file: Path
    server_context: ssl.SSLContext

    def __enter__(self) -> Self:
        self._directory = tempfile.TemporaryDirectory(prefix="forebay-tls-")
        authority = trustme.CA()
        self.root_file = Path(self._directory.name, "root.pem")
        authority.cert_pem.write_to_path(str(self.root_file))
        self.server_context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("localhost", "127.0.0.1").configure_cert(self.server_context)
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._directory.cleanup()


class TlsProxy(Proxy):
    """A `Proxy` that answers the request for TLS itself, and ends the encryption here.

    Args:
        host: the server's address.
        port: its port.
        authority: who vouches for us.
    """

    def __init__(self, host: str, port: int, authority: Authority) -> None:
        super().__init__(host, port, tls=authority.server_context)
        self._authority = authority

    @classmethod
    def secure(cls, server: EmbeddedPostgres, authority: Authority) -> Self:
        """Return a proxy with TLS in front of `server`."""
        return cls("127.0.0.1", server.port, authority)

    def dsn(self, base: str, **parameters: Any) -> str:
        """Return `base` with the address of this port, TLS verified in full, and `parameters`."""
        verified = {"sslmode": "verify-full", "sslrootcert": str(self._authority.root_file)}
        return super().dsn(base, **{**verified, **parameters})
