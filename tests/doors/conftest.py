"""Plays coroutine tests in an event loop of their own, and gives them the doors."""

from __future__ import annotations

import asyncio
import importlib
import inspect
import os
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from .door import Admin, Door, Scenario

#: `asyncio`, or the library that `FOREBAY_LOOP` names: what has a `new_event_loop()`.
LOOPS = importlib.import_module(os.environ.get("FOREBAY_LOOP", "asyncio"))

KINDS = ("sync", "async")
NULL_KINDS = ("sync-null", "async-null")


@pytest.fixture(params=KINDS)
def door(request: pytest.FixtureRequest, dsn: str) -> Door:
    """`ConnectionPool`, then `AsyncConnectionPool`."""
    return Door(request.param, dsn)


@pytest.fixture(params=NULL_KINDS)
def null_door(request: pytest.FixtureRequest, dsn: str) -> Door:
    """`NullConnectionPool`, then `AsyncNullConnectionPool`."""
    return Door(request.param, dsn)


@pytest.fixture(params=KINDS + NULL_KINDS)
def any_door(request: pytest.FixtureRequest, dsn: str) -> Door:
    """Each of the four pools."""
    return Door(request.param, dsn)


@pytest.fixture(scope="session")
def admin(dsn: str) -> Iterator[Admin]:
    """A session beside the pools, to look at the server and to end sessions."""
    with Admin(dsn) as session:
        yield session


@pytest.fixture(scope="session")
def refusing_dsn() -> Iterator[str]:
    """A connection string whose port is taken, and refuses every connection."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"host=127.0.0.1 port={taken.getsockname()[1]} user=nobody dbname=nowhere"


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Play a coroutine test, then close the pools it has made, in one event loop."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    names = inspect.signature(pyfuncitem.obj).parameters
    arguments = {name: pyfuncitem.funcargs[name] for name in names}
    with asyncio.Runner(loop_factory=LOOPS.new_event_loop) as runner:
        runner.run(_play(pyfuncitem.obj, arguments))
    return True


async def _play(scenario: Scenario, arguments: dict[str, Any]) -> None:
    doors = [value for value in arguments.values() if isinstance(value, Door)]
    try:
        async with asyncio.timeout(40):
            await scenario(**arguments)
    finally:
        for used in doors:
            await used.end()
