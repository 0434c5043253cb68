"""The doors for threads and for asyncio are the same door."""

from __future__ import annotations

import inspect
import re
from typing import Any

import pytest

import forebay
from forebay._async_door import AsyncLease
from forebay._door import Door
from forebay._thread_door import Lease

PAIRS = [
    (forebay.ConnectionPool, forebay.AsyncConnectionPool),
    (forebay.NullConnectionPool, forebay.AsyncNullConnectionPool),
    (Lease, AsyncLease),
]
#: The methods of an event loop's own that the other door has no need of.
ONLY_ASYNC = {"_expect_loop", "_open"}


def plain(name: str) -> str:
    """The name of a method in the door for threads."""
    return name.replace("__aenter__", "__enter__").replace("__aexit__", "__exit__")


def methods(cls: type[Any]) -> dict[str, Any]:
    """What a door adds to what all doors have in common: its functions, by their plain names."""
    return {
        plain(name): value
        for name, value in inspect.getmembers(cls, inspect.isfunction)
        if (name not in ONLY_ASYNC and not hasattr(Door, name)) or name == "__init__"
    }


def sentence(function: Any) -> str:
    """The first line of a docstring, in the words of the door for threads."""
    line = (inspect.getdoc(function) or "").splitlines()[0]
    return re.sub(r"\b(Async|async |await )", "", line).replace(" an `with", " a `with")


@pytest.mark.parametrize(("sync", "aio"), PAIRS)
def test_both_doors_have_the_same_methods(sync: type[Any], aio: type[Any]) -> None:
    """Nothing is in one door only."""
    assert methods(sync).keys() == methods(aio).keys()


@pytest.mark.parametrize(("sync", "aio"), PAIRS)
def test_both_doors_take_the_same_parameters(sync: type[Any], aio: type[Any]) -> None:
    """Names, kinds, order and defaults are equal, but for the class that connects."""

    def parameters(function: Any) -> list[tuple[Any, ...]]:
        return [
            (p.name, p.kind, None if p.name == "connection_class" else p.default)
            for p in inspect.signature(function).parameters.values()
        ]

    theirs = methods(aio)
    for name, function in methods(sync).items():
        assert parameters(function) == parameters(theirs[name]), name


@pytest.mark.parametrize(("sync", "aio"), PAIRS)
def test_both_doors_say_the_same_of_themselves(sync: type[Any], aio: type[Any]) -> None:
    """The first lines of the docstrings are equal, but for `async` and `await`."""
    theirs = methods(aio)
    for name, function in methods(sync).items():
        if function.__doc__ or theirs[name].__doc__:
            assert sentence(function) == sentence(theirs[name]), name


@pytest.mark.parametrize("cls", [cls for pair in PAIRS for cls in pair])
def test_every_public_method_is_documented(cls: type[Any]) -> None:
    """What a user may call says what it does."""
    for name, function in methods(cls).items():
        assert name.startswith("_") or function.__doc__, name
