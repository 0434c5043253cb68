"""A TCP port with a thread behind it, and the faults that need nothing more than that."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import socket
import ssl
import struct
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from types import TracebackType
from typing import Any, Self, TypeVar

from psycopg.conninfo import make_conninfo

from forebay import _embedded

from . import wire

__all__ = ["Client", "Listener"]

T = TypeVar("T")

_VERB_SECONDS = 10.0

# <asm-generic/socket.h>; the module `socket` does not name them.
_SO_ATTACH_FILTER = 26
_SO_DETACH_FILTER = 27

# One instruction of classic BPF, "return 0": of every packet keep nothing.
_DROP_ALL = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, 0))
_DROP_FILTER = struct.pack("HP", 1, ctypes.addressof(_DROP_ALL))

_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class Client:
    """One accepted connection. It belongs to the thread of its listener."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.task = task
        self.reader = reader
        self.writer = writer
        self.half_closed = False
        # The one of TCP: when TLS comes on top, the writer's becomes another.
        self._transport = writer.transport
        self._socket: socket.socket = writer.transport.get_extra_info("socket")

    def write(self, data: bytes) -> None:
        """Send `data` when the client can still receive."""
        if not (self.half_closed or self._transport.is_closing()):
            self.writer.write(data)

    def reset(self) -> None:
        """Close with an RST; what was not yet sent is lost."""
        with contextlib.suppress(OSError):  # closed
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        self._transport.abort()

    def hang_up(self) -> None:
        """Close with a FIN after what was written, without waiting for the farewell of TLS."""
        if not (self.half_closed or self._transport.is_closing()):
            self.writer.close()
        self._transport.close()

    def half_close(self) -> None:
        """Send a FIN after what was written, and go on to receive."""
        if not (self.half_closed or self._transport.is_closing()):
            self._transport.write_eof()
            self.half_closed = True

    async def closed(self) -> None:
        """Wait until the socket is closed."""
        with contextlib.suppress(OSError):
            await self.writer.wait_closed()

    def drop_packets(self, yes: bool) -> None:
        """Let the kernel drop what comes from the client, or take it again."""
        _drop_packets(self._socket, yes)


class Listener(ABC):
    """A port of 127.0.0.1, served by one event loop in one thread; a context manager.

    Its verbs may be called from any thread. When one returns, its fault is in force.

    Args:
        tls: when given, clients that ask for TLS get it.
    """

    def __init__(self, *, tls: ssl.SSLContext | None = None) -> None:
        self.port = 0
        self.accepted = 0
        """Connections accepted since the start."""
        self.true_blackhole = _can_drop_packets()
        """Whether `blackhole` makes the kernel drop packets; if not, it only goes silent."""
        self._tls = tls
        self._clients: set[Client] = set()
        self._defects: list[Exception] = []
        self._dark = False
        self._server: asyncio.Server | None = None
        # Bound but not listening, so that nobody else gets the port while we refuse.
        self._reserved: socket.socket | None = None

    @property
    def open(self) -> int:
        """Connections accepted and not yet ended."""
        return len(self._clients)

    def dsn(self, base: str, **parameters: Any) -> str:
        """Return the conninfo `base` with the address of this port, and `parameters` set."""
        return make_conninfo(base, host="127.0.0.1", port=self.port, **parameters)

    # --- the thread ---------------------------------------------------------------------

    def __enter__(self) -> Self:
        self.port = _embedded._free_port()
        self._reserved = _bound(self.port)
        ready: Future[asyncio.AbstractEventLoop] = Future()
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._live(ready)), name=type(self).__name__, daemon=True
        )
        self._thread.start()
        self._loop = ready.result(_VERB_SECONDS)
        self.accept()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End every connection and the thread; no-op when that is done.

        Raises:
            ExceptionGroup: when serving a connection failed in a way that is our own defect.
            TimeoutError: when the thread does not end.
        """
        if self._reserved is None and self._server is None:
            return
        self._do(self._stop())
        self._thread.join(_VERB_SECONDS)
        if self._thread.is_alive():
            raise TimeoutError(f"{type(self).__name__} did not end within {_VERB_SECONDS:g} s")
        if self._reserved is not None:
            self._reserved.close()
            self._reserved = None
        if self._defects:
            raise ExceptionGroup(f"{type(self).__name__} is defective", self._defects)

    async def _live(self, ready: Future[asyncio.AbstractEventLoop]) -> None:
        self._stopped = asyncio.Event()
        self._begin()
        ready.set_result(asyncio.get_running_loop())
        await self._stopped.wait()

    def _begin(self) -> None:  # noqa: B027 - nothing by default
        """Make what needs the event loop."""

    async def _stop(self) -> None:
        await self._refuse()
        await self._end(Client.reset)
        self._stopped.set()

    def _do(self, work: Coroutine[Any, Any, T]) -> T:
        """Run `work` in the thread and return when it is done."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(_VERB_SECONDS)

    # --- connections --------------------------------------------------------------------

    async def _welcome(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        client = Client(reader, writer)
        client.drop_packets(self._dark)
        self.accepted += 1
        self._clients.add(client)
        try:
            await self._serve(client)
        except (OSError, EOFError, asyncio.CancelledError):
            # The client has left, which TLS says as an OSError too, or was made to leave. To end as
            # cancelled would confuse asyncio.
            pass
        except Exception as defect:
            self._defects.append(defect)
        finally:
            client.hang_up()
            try:
                await client.closed()
            finally:
                self._clients.discard(client)

    @abstractmethod
    async def _serve(self, client: Client) -> None:
        """Serve one connection; it is closed when this ends."""

    async def _greet(self, client: Client) -> bytes:
        """Agree on encryption and return the packet that comes then."""
        while True:
            packet = await wire.read_packet(client.reader)
            if wire.code_of(packet) == wire.SSL_REQUEST and self._tls is not None:
                client.write(b"S")
                await client.writer.start_tls(self._tls)
            elif wire.code_of(packet) in (wire.SSL_REQUEST, wire.GSSENC_REQUEST):
                client.write(b"N")
            else:
                return packet

    async def _end(self, how: Callable[[Client], None]) -> None:
        clients = list(self._clients)
        for client in clients:
            how(client)
            client.task.cancel()
        await asyncio.gather(*(client.task for client in clients), return_exceptions=True)

    # --- verbs --------------------------------------------------------------------------

    def refuse(self) -> None:
        """Refuse new connections (ECONNREFUSED); the existing ones stay."""
        self._do(self._refuse())

    async def _refuse(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
            self._reserved = _bound(self.port)

    def accept(self) -> None:
        """Accept new connections again, on the same port."""
        self._do(self._accept())

    async def _accept(self) -> None:
        if self._server is None and self._reserved is not None:
            _drop_packets(self._reserved, self._dark)
            self._server = await asyncio.start_server(self._welcome, sock=self._reserved)
            self._reserved = None

    def reset(self) -> None:
        """End all existing connections by RST; what is on its way is lost."""
        self._do(self._end(Client.reset))

    def hang_up(self) -> None:
        """End all existing connections by FIN."""
        self._do(self._end(Client.hang_up))

    def blackhole(self) -> None:
        """Become an address that does not answer: no ACK, no data, connects hang.

        Packets of clients are dropped unseen, as by a firewall or a machine without power, and
        nothing is sent to clients. Where the kernel has no such filter (`true_blackhole` is false),
        what clients send and their connects still succeed, and are never answered.
        """
        self._do(self._darken(True))

    def heal(self) -> None:
        """End every lasting fault; connections that live on go on where they were."""
        self._do(self._heal())

    async def _heal(self) -> None:
        await self._darken(False)
        await self._accept()

    async def _darken(self, yes: bool) -> None:
        self._dark = yes
        for listening in self._server.sockets if self._server else ():
            _drop_packets(listening, yes)
        for client in self._clients:
            client.drop_packets(yes)


def _bound(port: int) -> socket.socket:
    # With its protocol named, asyncio turns Nagle's algorithm off for what it accepts.
    reserved = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        reserved.bind(("127.0.0.1", port))
    except BaseException:
        reserved.close()
        raise
    return reserved


def _drop_packets(sock: socket.socket, yes: bool) -> None:
    # OSError: closed, nothing to detach, or not permitted; `_can_drop_packets` tells the last.
    with contextlib.suppress(OSError):
        if yes:
            sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, _DROP_FILTER)
        else:
            sock.setsockopt(socket.SOL_SOCKET, _SO_DETACH_FILTER, 0)


def _can_drop_packets() -> bool:
    """Whether a socket with the filter hears nothing, tried on a socket that sends to itself."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        _drop_packets(probe, True)
        probe.sendto(b"?", probe.getsockname())
        try:
            probe.recv(1, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return True
        return False
