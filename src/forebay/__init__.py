"""Forebay: a connection pool in front of PostgreSQL."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ._migration import install_as_psycopg2_pool, install_as_psycopg_pool
    from .drivers.psycopg import (
        PoolClosed,
        PoolDeadlock,
        PoolRejected,
        PoolTimeout,
        TooManyRequests,
    )
    from .options import PoolOptions
    from .pool import ConnectionPool, NullConnectionPool
    from .pool_async import AsyncConnectionPool, AsyncNullConnectionPool

__version__ = "0.1.0"

__all__ = [
    "AsyncConnectionPool",
    "AsyncNullConnectionPool",
    "ConnectionPool",
    "NullConnectionPool",
    "PoolClosed",
    "PoolDeadlock",
    "PoolOptions",
    "PoolRejected",
    "PoolTimeout",
    "TooManyRequests",
    "install_as_psycopg2_pool",
    "install_as_psycopg_pool",
]

# Imported on first use: a program that uses one driver does not load the other.
_HOMES = {
    "AsyncConnectionPool": ".pool_async",
    "AsyncNullConnectionPool": ".pool_async",
    "ConnectionPool": ".pool",
    "NullConnectionPool": ".pool",
    "PoolClosed": ".drivers.psycopg",
    "PoolDeadlock": ".drivers.psycopg",
    "PoolOptions": ".options",
    "PoolRejected": ".drivers.psycopg",
    "PoolTimeout": ".drivers.psycopg",
    "TooManyRequests": ".drivers.psycopg",
    "install_as_psycopg2_pool": "._migration",
    "install_as_psycopg_pool": "._migration",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name], __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
