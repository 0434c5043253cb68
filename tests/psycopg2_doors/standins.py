"""What may stand in the place of `psycopg2.connect`, and of the connections it gives."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import psycopg2
from psycopg2.extensions import connection

real = psycopg2.connect


class Proxy:
    """Stands for a connection as an agent's proxy does: what it is asked and told, it passes on."""

    def __init__(self, wrapped: Any) -> None:
        object.__setattr__(self, "__wrapped__", wrapped)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__wrapped__, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.__wrapped__, name, value)

    def __delattr__(self, name: str) -> None:
        delattr(self.__wrapped__, name)

    def __enter__(self) -> Any:
        return self.__wrapped__.__enter__()

    def __exit__(self, *error: object) -> Any:
        return self.__wrapped__.__exit__(*error)

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        return type(self.__wrapped__)

    def __eq__(self, other: object) -> bool:
        return bool(self.__wrapped__ == other)

    def __hash__(self) -> int:
        return hash(self.__wrapped__)


class Fake:
    """A connection as one writes it for a test of a program that uses psycopg2.pool."""

    def __init__(self, dsn: str = "") -> None:
        self.dsn = dsn
        self.closed = 0
        self.info = SimpleNamespace(transaction_status=0)
        self.calls: list[str] = []

    def cursor(self) -> Any:
        """A cursor."""
        return MagicMock()

    def commit(self) -> None:
        """Commit."""
        self.calls.append("commit")

    def rollback(self) -> None:
        """Roll back."""
        self.calls.append("rollback")

    def close(self) -> None:
        """Close."""
        self.closed = 1


class Alike(Fake):
    """Equal to any other, so without a hash."""

    def __eq__(self, other: object) -> bool:
        return True


class Tight:
    """Takes no attributes."""

    __slots__ = ("__weakref__", "calls", "closed", "dsn", "info")

    __init__ = Fake.__init__
    cursor = Fake.cursor
    commit = Fake.commit
    rollback = Fake.rollback
    close = Fake.close


class OnInstance(Fake):
    """Has its methods on the instance alone, as what is built at run time has."""

    def __init__(self, dsn: str = "") -> None:
        super().__init__(dsn)
        self.commit = lambda: self.calls.append("commit")  # type: ignore[method-assign]
        self.rollback = lambda: self.calls.append("rollback")  # type: ignore[method-assign]


def wrapped(*args: Any, **kwargs: Any) -> Any:
    """An agent's `connect`."""
    return Proxy(real(*args, **kwargs))


def wrapped_bare(dsn: str = "", **kwargs: Any) -> Any:
    """An agent's, over connections that take no attributes."""
    del kwargs
    return Proxy(real(dsn))


def bare(dsn: str = "", connection_factory: Any = None, cursor_factory: Any = None) -> Any:
    """One that makes connections of psycopg2's own class, whatever it is asked for."""
    del connection_factory, cursor_factory
    return real(dsn)


def narrow(dsn: str) -> Any:
    """One that takes a string, and nothing else."""
    return real(dsn)


def derived(*args: Any, **kwargs: Any) -> Any:
    """An agent's, with a class derived from the one that it is given."""
    base = kwargs.get("connection_factory") or connection
    return real(*args, **{**kwargs, "connection_factory": type("Traced", (base,), {})})


def giving(make: Callable[[], Any]) -> Callable[..., Any]:
    """One that makes something, whatever it is given."""

    def connect(*args: Any, **kwargs: Any) -> Any:
        del args, kwargs
        return make()

    return connect


#: Those that lead to a server.
LEADING = {
    "an agent's proxies": wrapped,
    "proxies of bare connections": wrapped_bare,
    "bare connections": bare,
    "a narrow function": narrow,
    "an agent's class": derived,
}
#: Those that lead nowhere.
PRETENDING: dict[str, Callable[[], Any]] = {
    "fakes": lambda: giving(Fake),
    "fakes that are all equal": lambda: giving(Alike),
    "fakes without attributes": lambda: giving(Tight),
    "fakes with methods on the instance": lambda: giving(OnInstance),
    "a mock": MagicMock,
    "a mock that is open": lambda: MagicMock(return_value=MagicMock(closed=0)),
    "a mock that takes no attributes": lambda: MagicMock(
        return_value=MagicMock(spec_set=connection, closed=0)
    ),
    "a mock of a narrow function": lambda: MagicMock(side_effect=lambda dsn: Fake(dsn)),
}
