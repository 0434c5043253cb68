"""Messages of PostgreSQL's protocol 3, as bytes."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Sequence

__all__ = [
    "AUTHENTICATION_OK",
    "CANCEL_REQUEST",
    "GSSENC_REQUEST",
    "PASSWORD_PLEASE",
    "SSL_REQUEST",
    "Value",
    "code_of",
    "command_complete",
    "data_row",
    "message",
    "notification",
    "parameter_status",
    "read_message",
    "read_packet",
    "read_texts",
    "report",
    "row_description",
    "texts",
]

Value = int | bool | str

SSL_REQUEST = 80877103
GSSENC_REQUEST = 80877104
CANCEL_REQUEST = 80877102

_OIDS = {bool: (16, 1), int: (23, 4), str: (25, -1)}


async def read_packet(reader: asyncio.StreamReader) -> bytes:
    """Read one packet of the start-up, which has no type; return it without its length."""
    (length,) = struct.unpack("!I", await reader.readexactly(4))
    return await reader.readexactly(length - 4)


def code_of(packet: bytes) -> int:
    """Return the protocol version or the request that a packet of the start-up begins with."""
    return int.from_bytes(packet[:4], "big")


async def read_message(reader: asyncio.StreamReader) -> tuple[str, bytes]:
    """Read one message; return its type and its body."""
    kind = await reader.readexactly(1)
    return kind.decode(), await read_packet(reader)


def message(kind: str, body: bytes = b"") -> bytes:
    """Return the message of type `kind`."""
    return kind.encode() + struct.pack("!I", len(body) + 4) + body


def texts(*strings: str) -> bytes:
    """Return `strings`, each with its final zero."""
    return b"".join(string.encode() + b"\0" for string in strings)


AUTHENTICATION_OK = message("R", struct.pack("!I", 0))
PASSWORD_PLEASE = message("R", struct.pack("!I", 3))


def parameter_status(name: str, value: str) -> bytes:
    """Return a ParameterStatus."""
    return message("S", texts(name, value))


def notification(pid: int, channel: str, payload: str) -> bytes:
    """Return a NotificationResponse."""
    return message("A", struct.pack("!I", pid) + texts(channel, payload))


def report(kind: str, severity: str, code: str, text: str) -> bytes:
    """Return an ErrorResponse (kind E) or a NoticeResponse (N).

    `severity` may be translated; clients that want to know go by the field V.
    """
    plain = severity if severity in ("ERROR", "FATAL", "NOTICE") else "FATAL"
    return message(kind, texts("S" + severity, "V" + plain, "C" + code, "M" + text) + b"\0")


def row_description(value: Value, binary: bool) -> bytes:
    """Return the RowDescription of one column that has `value`."""
    oid, size = _OIDS[type(value)]
    column = struct.pack("!IHIhiH", 0, 0, oid, size, -1, binary)
    return message("T", struct.pack("!H", 1) + texts("?column?") + column)


def data_row(value: Value, binary: bool) -> bytes:
    """Return the DataRow of one column with `value`."""
    field = _binary(value) if binary else _text(value)
    return message("D", struct.pack("!HI", 1, len(field)) + field)


def _text(value: Value) -> bytes:
    if isinstance(value, bool):
        return b"t" if value else b"f"
    return str(value).encode()


def _binary(value: Value) -> bytes:
    if isinstance(value, str):
        return value.encode()
    return struct.pack("!?" if isinstance(value, bool) else "!i", value)


def command_complete(tag: str) -> bytes:
    """Return a CommandComplete."""
    return message("C", texts(tag))


def read_texts(body: bytes, count: int) -> tuple[Sequence[str], bytes]:
    """Split `count` strings off the start of `body`; return them and what comes after."""
    *strings, rest = body.split(b"\0", count)
    return [string.decode() for string in strings], rest
