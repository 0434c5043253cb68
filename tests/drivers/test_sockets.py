"""The poll under the drivers, also where there is none."""

from __future__ import annotations

import os
import resource
import select
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from forebay import _sockets

from .sides import Side


@pytest.fixture(params=["poll", "select"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Look with poll(), then with select(), as where poll() was taken away after the import."""
    if request.param == "select":
        monkeypatch.delattr(select, "poll")
    return str(request.param)


@pytest.fixture
def pairs() -> Iterator[list[tuple[socket.socket, socket.socket]]]:
    """Four sockets with another end."""
    pairs = [socket.socketpair() for _ in range(4)]
    yield pairs
    for pair in pairs:
        for end in pair:
            end.close()


@pytest.mark.usefixtures("way")
def test_what_can_be_read_is_told(pairs: list[tuple[socket.socket, socket.socket]]) -> None:
    """Bytes, the end, and no socket at all; the others are silent."""
    ours = [pair[0] for pair in pairs]
    assert _sockets.readable(ours) == []
    pairs[3][1].sendall(b"x")
    pairs[1][1].close()
    pairs[0][0].close()
    assert _sockets.readable(ours) == [ours[0], ours[1], ours[3]]
    assert [_sockets.silent(end.fileno()) for end in ours[1:]] == [False, True, False]


@pytest.mark.usefixtures("way")
def test_a_descriptor_that_was_closed_behind_our_back_is_told(
    pairs: list[tuple[socket.socket, socket.socket]],
) -> None:
    """It hides none of the others."""
    ours = [pair[0] for pair in pairs]
    os.close(ours[2].detach())

    class Gone:
        def fileno(self) -> int:
            return gone

    gone = os.dup(ours[0].fileno())
    os.close(gone)
    everybody: list[Any] = [ours[0], Gone(), ours[1]]
    assert _sockets.readable(everybody) == everybody[1:2]


def test_select_is_asked_in_parts(
    monkeypatch: pytest.MonkeyPatch, pairs: list[tuple[socket.socket, socket.socket]]
) -> None:
    """It takes no more than so many everywhere."""
    monkeypatch.delattr(select, "poll")
    monkeypatch.setattr(_sockets, "SELECTABLE", 3)
    for _, theirs in pairs:
        theirs.sendall(b"x")
    ours = [pair[0] for pair in pairs]
    assert _sockets.readable(ours) == ours


def test_a_number_too_high_for_select_is_silent(
    monkeypatch: pytest.MonkeyPatch, pairs: list[tuple[socket.socket, socket.socket]]
) -> None:
    """Nothing can be said of it, and the others are told all the same."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if limit <= 2000:
        pytest.skip("this machine allows no such number")
    monkeypatch.delattr(select, "poll")
    os.dup2(pairs[0][0].fileno(), 2000)
    with socket.socket(fileno=2000) as high:
        for _, theirs in pairs[:2]:
            theirs.sendall(b"x")
        assert _sockets.readable([high, pairs[1][0]]) == [pairs[1][0]]


def test_connections_that_take_no_attributes_are_looked_at_too(dsn: str) -> None:
    """Psycopg2's own class, which a factory may make."""
    side = Side("psycopg2")
    conn = side.connect(dsn)
    driver = side.driver
    assert not hasattr(conn, "__dict__")
    assert driver.look(conn) is None
    assert driver.readable([conn]) == []
    lifeline = driver.lifeline(conn)
    assert lifeline is not None
    lifeline.cut()
    lifeline.close()
    assert driver.readable([conn]) == [conn]
    assert driver.look(conn) is not None
    side.close()
