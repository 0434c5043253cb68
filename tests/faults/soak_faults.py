"""The faults of the soak: what may go wrong with the network, the server and the pools."""

from __future__ import annotations

import os
import random
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Any

import psycopg

from . import server_faults
from .listener import Client
from .proxy import Proxy

Fault = Callable[[Any, random.Random], AbstractContextManager[None]]


class Network(Proxy):
    """A proxy whose side of a connection ends when the client's machine knows of it no more.

    As on a server with TCP keepalive: after a black hole there are connections that one side has
    given up, without a word that could have reached the other.
    """

    async def _serve(self, client: Client) -> None:
        wire = client.writer.get_extra_info("socket")
        wire.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        wire.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 1)
        wire.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 1)
        wire.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 20)
        await super()._serve(client)


def instant(act: Callable[[Any, random.Random], None]) -> Fault:
    """A fault that is over at once."""

    @contextmanager
    def fault(soak: Any, rng: random.Random) -> Iterator[None]:
        act(soak, rng)
        yield

    fault.__name__ = act.__name__
    return fault


# --- the network ------------------------------------------------------------------------------


@contextmanager
def pause(soak: Any, rng: random.Random) -> Iterator[None]:
    """Nothing is forwarded."""
    del rng
    soak.network.pause()
    yield
    soak.network.resume()


@contextmanager
def delay(soak: Any, rng: random.Random) -> Iterator[None]:
    """Everything takes longer."""
    soak.network.delay(rng.uniform(0.01, 0.15))
    yield
    soak.network.delay(0)


@contextmanager
def rate(soak: Any, rng: random.Random) -> Iterator[None]:
    """Little goes through."""
    soak.network.rate(rng.uniform(2_000, 20_000))
    yield
    soak.network.rate(0)


@contextmanager
def blackhole(soak: Any, rng: random.Random) -> Iterator[None]:
    """Packets disappear."""
    soak.network.blackhole()
    time.sleep(rng.uniform(0, 3))
    yield
    soak.network.heal()


@contextmanager
def refuse(soak: Any, rng: random.Random) -> Iterator[None]:
    """Nobody can connect; perhaps those who were connected are cut off."""
    soak.network.refuse()
    if rng.random() < 0.5:
        soak.network.reset()
    yield
    soak.network.accept()


@instant
def reset(soak: Any, rng: random.Random) -> None:
    """All connections are reset."""
    del rng
    soak.network.reset()


@instant
def hang_up(soak: Any, rng: random.Random) -> None:
    """All connections are closed."""
    del rng
    soak.network.hang_up()


@instant
def half_close(soak: Any, rng: random.Random) -> None:
    """All connections are closed one way."""
    del rng
    soak.network.half_close()


@instant
def cut(soak: Any, rng: random.Random) -> None:
    """All connections are cut within a message."""
    soak.network.cut(rng.randint(1, 200), reset=rng.random() < 0.5)


# --- the server -------------------------------------------------------------------------------


def victims(soak: Any, rng: random.Random, most: float) -> list[int]:
    """Some of the sessions of the pools."""
    names = [case.name for case in soak.cases]
    sessions = sorted(
        pid for name in names for pid in server_faults.backends(soak.server, f"soak-{name}")
    )
    number = max(1, round(len(sessions) * rng.uniform(0, most)))
    return rng.sample(sessions, min(number, len(sessions)))


@instant
def terminate(soak: Any, rng: random.Random) -> None:
    """Sessions are ended by their administrator."""
    server_faults.terminate_backends(soak.server, victims(soak, rng, 1.0))


@instant
def kill(soak: Any, rng: random.Random) -> None:
    """A session's process is killed, and the server ends all others."""
    for pid in victims(soak, rng, 0.0):
        with suppress(ProcessLookupError, psycopg.OperationalError):
            server_faults.kill_backend(soak.server, pid)


@contextmanager
def suspend(soak: Any, rng: random.Random) -> Iterator[None]:
    """Sessions are stopped for a while."""
    stopped = []
    for pid in victims(soak, rng, 0.5):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
            stopped.append(pid)
    try:
        yield
    finally:
        for pid in stopped:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


@instant
def restart_fast(soak: Any, rng: random.Random) -> None:
    """The server is restarted."""
    del rng
    soak.server.restart("fast")


@instant
def restart_immediate(soak: Any, rng: random.Random) -> None:
    """The server crashes and starts again."""
    del rng
    soak.server.restart("immediate")


@contextmanager
def outage(soak: Any, rng: random.Random) -> Iterator[None]:
    """The server is not there for a while."""
    soak.server.stop(rng.choice(["fast", "immediate"]))
    yield
    soak.server.start()


@contextmanager
def crowd(soak: Any, rng: random.Random) -> Iterator[None]:
    """Others have taken nearly all connections of the server."""
    with server_faults.exhausted(soak.server.dsn, leave=rng.randint(1, 6)):
        yield


@contextmanager
def idle_timeout(soak: Any, rng: random.Random) -> Iterator[None]:
    """The server ends idle sessions soon."""
    with server_faults.idle_session_timeout(soak.server, rng.uniform(0.05, 0.5)):
        server_faults.terminate_backends(soak.server, victims(soak, rng, 0.5))
        yield


@contextmanager
def password(soak: Any, rng: random.Random) -> Iterator[None]:
    """The password is another one for a while; some of the pools ask for it each time."""
    old = soak.password
    with server_faults.changed_password(soak.server) as soak.password:
        server_faults.terminate_backends(soak.server, victims(soak, rng, 0.7))
        yield
    soak.password = old


@instant
def notify(soak: Any, rng: random.Random) -> None:
    """The sessions that listen are told much."""
    with server_faults.admin(soak.server) as admin:
        times = rng.randint(10, 2000)
        admin.execute(
            "select pg_notify('soak', i::text || repeat('x', 50)) from generate_series(1, %s) i",
            [times],
        )


# --- the pools ----------------------------------------------------------------------------------


@instant
def drain(soak: Any, rng: random.Random) -> None:
    """A pool replaces its connections."""
    soak.operate(rng.choice(soak.cases), "drain")


@instant
def resize(soak: Any, rng: random.Random) -> None:
    """A pool gets other bounds."""
    case = rng.choice([case for case in soak.cases if case.pool.min_size])
    least = rng.randint(1, 5)
    soak.operate(case, "resize", least, least + rng.randint(0, 4))


@instant
def check(soak: Any, rng: random.Random) -> None:
    """A pool checks its connections."""
    soak.operate(rng.choice(soak.cases), "check")


NETWORK: list[tuple[Fault, int]] = [
    (pause, 2),
    (delay, 2),
    (rate, 1),
    (blackhole, 3),
    (refuse, 2),
    (reset, 2),
    (hang_up, 1),
    (half_close, 2),
    (cut, 3),
]
SERVER: list[tuple[Fault, int]] = [
    (terminate, 5),
    (kill, 2),
    (suspend, 3),
    (restart_fast, 2),
    (restart_immediate, 1),
    (outage, 2),
    (crowd, 2),
    (idle_timeout, 2),
    (password, 2),
    (notify, 2),
]
POOL: list[tuple[Fault, int]] = [(drain, 2), (resize, 2), (check, 2)]


def pick(rng: random.Random, faults: list[tuple[Fault, int]], chance: float) -> list[Fault]:
    """One of the faults, by their weights, or none."""
    if rng.random() >= chance:
        return []
    return rng.choices([fault for fault, _ in faults], weights=[weight for _, weight in faults])


def episode(seed: int, number: int) -> tuple[list[Fault], random.Random]:
    """What goes wrong at once: the `number`-th of the schedule, and the randomness of its faults.

    The same for a seed, however long anything took before.
    """
    rng = random.Random(f"{seed}/fault {number}")
    faults = pick(rng, NETWORK, 0.5) + pick(rng, POOL, 0.3)
    return pick(rng, SERVER, 0.6 if faults else 1.0) + faults, rng
