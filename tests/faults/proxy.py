"""A TCP proxy in front of a real server: a network that misbehaves on demand."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import ssl
from collections.abc import Callable, Coroutine
from typing import Any, Self

from forebay._embedded import EmbeddedPostgres

from .listener import Client, Listener

__all__ = ["Proxy"]

_PIECE_BYTES = 65536
_RATE_SECONDS = 0.02  # what a limited rate sends at once


class Proxy(Listener):
    """Forwards what clients send to a server and back, and breaks it in between.

    When the server does not accept, a client's connection is accepted and then reset; for
    ``connection refused`` there is `refuse`.

    Args:
        host: the server's address.
        port: its port.
        tls: when given, clients that ask for TLS get it; the server is asked for nothing.
    """

    def __init__(self, host: str, port: int, *, tls: ssl.SSLContext | None = None) -> None:
        super().__init__(tls=tls)
        self._target = host, port
        self._delay = 0.0
        self._rate = 0.0
        self._cuts: dict[Client, tuple[int, Callable[[Client], None]]] = {}

    @classmethod
    def before(cls, server: EmbeddedPostgres) -> Self:
        """Return a proxy in front of `server`."""
        return cls("127.0.0.1", server.port)

    # --- verbs --------------------------------------------------------------------------

    def pause(self) -> None:
        """Forward nothing; connections stay, and new ones are accepted and wait."""
        self._do(self._set_flowing(False))

    def resume(self) -> None:
        """Forward again, first what came meanwhile."""
        self._do(self._set_flowing(True))

    def delay(self, seconds: float) -> None:
        """Hold each piece for `seconds`, each way; 0: do not."""
        self._delay = seconds

    def rate(self, bytes_per_second: float) -> None:
        """Forward no more than that, each way and for each connection; 0: no limit."""
        self._rate = bytes_per_second

    def half_close(self) -> None:
        """Send all existing clients a FIN; what they send is still forwarded."""
        self._do(self._half_close())

    def cut(self, after: int, *, reset: bool = True) -> None:
        """Let `after` more bytes through to each existing client, then end its connection.

        Args:
            after: bytes, at least 1; under TLS before their encryption.
            reset: end it by RST; False: by FIN.
        """
        if after < 1:
            raise ValueError(f"cut(after={after}): give at least 1, or call reset() or hang_up()")
        self._do(self._cut(after, Client.reset if reset else Client.hang_up))

    def retarget(self, host: str, port: int) -> None:
        """Lead new connections to another server; the existing ones stay where they are."""
        self._target = host, port

    async def _heal(self) -> None:
        self._delay = self._rate = 0.0
        self._cuts.clear()
        await super()._heal()
        await self._set_flowing(True)

    async def _darken(self, yes: bool) -> None:
        await super()._darken(yes)
        self._settle()

    async def _set_flowing(self, yes: bool) -> None:
        self._flowing = yes
        self._settle()

    def _settle(self) -> None:
        if self._flowing and not self._dark:
            self._gate.set()
        else:
            self._gate.clear()

    async def _half_close(self) -> None:
        for client in self._clients:
            client.half_close()

    async def _cut(self, after: int, how: Callable[[Client], None]) -> None:
        self._cuts = dict.fromkeys(self._clients, (after, how))

    # --- forwarding ---------------------------------------------------------------------

    def _begin(self) -> None:
        self._flowing = True
        self._gate = asyncio.Event()
        self._gate.set()

    async def _serve(self, client: Client) -> None:
        first = b""
        if self._tls is not None:
            packet = await self._greet(client)
            first = (len(packet) + 4).to_bytes(4, "big") + packet
        try:
            from_server, to_server = await asyncio.open_connection(*self._target)
        except OSError:
            client.reset()
            return
        try:
            to_server.write(first)
            await _until_first(
                self._upstream(client, to_server), self._downstream(from_server, client)
            )
        except asyncio.CancelledError:
            to_server.transport.abort()  # not to wait for a server that reads nothing
            raise
        finally:
            self._cuts.pop(client, None)
            to_server.close()
            with contextlib.suppress(OSError):
                await to_server.wait_closed()

    async def _upstream(self, client: Client, to_server: asyncio.StreamWriter) -> None:
        while data := await client.reader.read(_PIECE_BYTES):
            await self._forward(data, to_server.write, to_server.drain)
        await self._gate.wait()  # the end is forwarded too

    async def _downstream(self, from_server: asyncio.StreamReader, client: Client) -> None:
        deliver = functools.partial(self._deliver, client)
        try:
            while data := await from_server.read(_PIECE_BYTES):
                await self._forward(data, deliver, client.writer.drain)
        except ConnectionResetError:
            await self._gate.wait()
            client.reset()  # the client sees what the server did
        await self._gate.wait()

    async def _forward(
        self,
        data: bytes,
        write: Callable[[bytes], None],
        drain: Callable[[], Coroutine[Any, Any, None]],
    ) -> None:
        if self._delay:
            await asyncio.sleep(self._delay)
        while data:
            rate = self._rate
            size = max(1, int(rate * _RATE_SECONDS)) if rate else len(data)
            await self._gate.wait()
            write(data[:size])
            await drain()
            data = data[size:]
            if rate:
                await asyncio.sleep(size / rate)

    def _deliver(self, client: Client, data: bytes) -> None:
        if client not in self._cuts:
            client.write(data)
            return
        left, end = self._cuts[client]
        client.write(data[:left])
        if len(data) >= left:
            end(client)
        else:
            self._cuts[client] = left - len(data), end


async def _until_first(*works: Coroutine[Any, Any, None]) -> None:
    """Run `works` together until one ends, cancel the rest, and raise what failed."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    for outcome in outcomes:
        if isinstance(outcome, Exception):
            raise outcome
