"""A server that speaks PostgreSQL's protocol, version 3, and says what a test tells it to."""

from __future__ import annotations

import socket
import ssl
import struct
import threading
from collections.abc import Callable
from typing import Any, Self

from .sides import Side

SSL_REQUEST = 80877103

#: What psycopg2 wants to see at once, lest it ask.
PARAMETERS = {
    "server_version": "17.0",
    "client_encoding": "UTF8",
    "DateStyle": "ISO, MDY",
    "integer_datetimes": "on",
    "standard_conforming_strings": "on",
}


def message(kind: str, body: bytes) -> bytes:
    """One message of the server."""
    return kind.encode() + struct.pack("!i", len(body) + 4) + body


def notice(kind: str, severity: str, state: str, text: str, local: str = "") -> bytes:
    """An error (kind E) or a notice (N); `local` is the severity in the server's language."""
    fields = {"S": local or severity, "V": severity, "C": state, "M": text}
    return message(kind, b"".join(f"{k}{v}\0".encode() for k, v in fields.items()) + b"\0")


def notification(payload: str) -> bytes:
    """A NOTIFY on the channel x."""
    return message("A", struct.pack("!i", 7) + f"x\0{payload}\0".encode())


def parameter(name: str, value: str) -> bytes:
    """What the server reports of a setting."""
    return message("S", f"{name}\0{value}\0".encode())


class ScriptedServer:
    """Listens on 127.0.0.1; `greets()` lets a client in and gives the test its socket.

    Args:
        tls: with which it answers to a client that asks for TLS; None: it has none.
        parameters: what it reports beyond `PARAMETERS`.
        refusal: what it says instead of letting a client in.
    """

    def __init__(
        self,
        tls: ssl.SSLContext | None = None,
        parameters: dict[str, str] | None = None,
        refusal: bytes | None = None,
    ) -> None:
        self._tls = tls
        self._parameters = PARAMETERS | (parameters or {})
        self._refusal = refusal
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._sockets: list[socket.socket] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for each in (self._listener, *self._sockets):
            each.close()

    @property
    def dsn(self) -> str:
        """How to connect."""
        mode = "require" if self._tls else "disable"
        port = self._listener.getsockname()[1]
        return f"host=127.0.0.1 port={port} user=me dbname=me sslmode={mode} gssencmode=disable"

    def greets(self, side: Side) -> tuple[Any, socket.socket]:
        """A connection of a library, and the server's end of it."""
        return self.meanwhile(lambda: side.connect(self.dsn)), self._sockets[-1]

    def meanwhile(self, client: Callable[[], Any]) -> Any:
        """What `client` gives, to whom the server answers meanwhile."""
        serving = threading.Thread(target=self._serve)
        serving.start()
        try:
            return client()
        finally:
            serving.join(10)

    def _serve(self) -> None:
        peer, _ = self._listener.accept()
        peer.settimeout(10)
        self._sockets.append(peer)
        (code,) = struct.unpack("!i", self._startup(peer)[:4])
        if code == SSL_REQUEST:
            assert self._tls is not None
            peer.sendall(b"S")
            peer = self._tls.wrap_socket(peer, server_side=True)
            self._sockets.append(peer)
            self._startup(peer)
        if self._refusal is not None:
            peer.sendall(self._refusal)
            peer.close()
            return
        reported = b"".join(parameter(*each) for each in self._parameters.items())
        key = message("K", struct.pack("!ii", 7, 7))
        peer.sendall(message("R", bytes(4)) + reported + key + message("Z", b"I"))

    def _startup(self, peer: socket.socket) -> bytes:
        (size,) = struct.unpack("!i", peer.recv(4))
        return peer.recv(size - 4)
