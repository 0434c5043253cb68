"""Looking at the sockets of connections without reading them, and cutting them off."""

from __future__ import annotations

import _socket
import os
import select
import socket
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import partial
from types import BuiltinFunctionType
from typing import Any
from weakref import WeakSet

#: How many sockets `select()` takes everywhere, Windows included.
SELECTABLE = 500


class Quiet(_socket.socket):
    """A socket that is closed without a word if it is dropped, as a signal handler may have it.

    Of the type in C, which has no moment in which it is half made.
    """

    def __del__(self) -> None:
        self.close()


#: Makes a `Quiet` of a descriptor.  The family is of no account, and to give one saves asking.
_adopt = partial(Quiet, socket.AF_INET, socket.SOCK_STREAM, 0)


class Lifeline:
    """A second hold on a connection's socket, by which another thread can cut the connection off.

    It is a descriptor of its own: whatever becomes of the connection, `cut()` never hits a socket
    that has been given the connection's old descriptor.  The socket is closed in earnest only when
    both are.

    Args:
        descriptor: of the socket of an open connection (int).

    Raises:
        OSError: it is no open descriptor.
    """

    __slots__ = ("__weakref__", "_socket")

    def __init__(self, descriptor: int) -> None:
        # In one step: after a call of its own, a signal handler could lose the new descriptor.
        (self._socket,) = map(_adopt, map(os.dup, (descriptor,)))
        lifelines.add(self)

    def cut(self) -> None:
        """Shut the session's socket down: who waits for it is freed, with an error.

        From any thread; again, or after `close()`, is harmless.
        """
        with suppress(OSError):  # it is cut already, by whichever side
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Let go of the socket; again is harmless."""
        self._socket.close()


#: All there are: a forked child lets go of those it inherits.
lifelines: WeakSet[Lifeline] = WeakSet()


def readable(conns: Iterable[Any]) -> list[Any]:
    """Those connections, in order, whose socket has something to read or is at its end.

    Never blocks, from any thread.  A connection without a socket, since it is closed, is one too.
    """
    descriptors = [(conn, _descriptor(conn)) for conn in conns]
    found = {-1, *_ready([fd for _, fd in descriptors if fd >= 0])}
    return [conn for conn, fd in descriptors if fd in found]


def silent(descriptor: int) -> bool:
    """Whether a socket has nothing to read and is not at its end."""
    return not _ready((descriptor,))


def _descriptor(conn: Any) -> int:
    try:
        descriptor = conn.fileno()
    except Exception:  # each library has its own error, and a class derived from its may have more
        return -1
    return descriptor if isinstance(descriptor, int) else -1  # of a mock it is no number


def _ready(descriptors: Sequence[int]) -> list[int]:
    poll = getattr(select, "poll", None)  # looked up now: gevent and eventlet replace or remove it
    if not isinstance(poll, BuiltinFunctionType):
        green = not isinstance(select.select, BuiltinFunctionType)
        return [fd for fd in descriptors if _stirred(fd)] if green else _select(descriptors)
    poller = poll()
    register, readable = poller.register, select.POLLIN
    for descriptor in descriptors:
        register(descriptor, readable)
    # Whatever is said of a socket, also that it is closed or broken, is worth a look.
    found = poller.poll(0)
    return [descriptor for descriptor, _ in found] if found else []


def _stirred(descriptor: int) -> bool:
    """As `poll()` for one socket, where greenlets must not take turns meanwhile.

    In their `poll()` and `select()` they do, even if there is no time to wait; one may close the
    socket then, and libev ends the process if it is asked for a descriptor that is closed.
    """
    try:
        plain = _socket.socket(fileno=_socket.dup(descriptor))  # of C, which nobody replaces
    except OSError:
        return True
    try:
        plain.settimeout(0.0)  # as libpq has it
        plain.recv(1, _socket.MSG_PEEK)
    except BlockingIOError:
        return False
    except OSError:
        return True
    finally:
        plain.close()
    return True


def _select(descriptors: Sequence[int]) -> list[int]:
    """As `poll()`, where there is none."""
    found: list[int] = []
    for start in range(0, len(descriptors), SELECTABLE):
        part = descriptors[start : start + SELECTABLE]
        try:
            found += select.select(part, (), (), 0)[0]
        except (OSError, ValueError) as error:  # which of them is to blame, it does not say
            if len(part) > 1:
                found += [fd for each in part for fd in _select([each])]
            elif isinstance(error, OSError):  # closed
                found += part
            # Otherwise its number is too high for select(): nothing can be said of it.
    return found
