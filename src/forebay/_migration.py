"""Forebay under the name of `psycopg_pool`, for frameworks that import that name themselves."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

from . import _door, pool, pool_async, psycopg_pool
from .drivers import psycopg as driver

#: The public names of the original's submodules that other libraries import.
_SUBMODULES: dict[str, dict[str, Any]] = {
    "pool": {"ConnectionPool": pool.ConnectionPool},
    "pool_async": {"AsyncConnectionPool": pool_async.AsyncConnectionPool},
    "null_pool": {"NullConnectionPool": pool.NullConnectionPool},
    "null_pool_async": {"AsyncNullConnectionPool": pool_async.AsyncNullConnectionPool},
    "base": {"BasePool": _door.Door},
    "errors": {
        "PoolClosed": driver.PoolClosed,
        "PoolTimeout": driver.PoolTimeout,
        "TooManyRequests": driver.TooManyRequests,
    },
    "abc": {
        "CT": pool.CT,
        "ACT": pool_async.ACT,
        "ConninfoParam": pool.ConninfoParam,
        "AsyncConninfoParam": pool_async.AsyncConninfoParam,
        "KwargsParam": pool.KwargsParam,
        "AsyncKwargsParam": pool_async.AsyncKwargsParam,
        "ConnectionCB": pool.ConnectionCB,
        "AsyncConnectionCB": pool_async.AsyncConnectionCB,
        "ConnectFailedCB": pool.ConnectFailedCB,
        "AsyncConnectFailedCB": pool_async.AsyncConnectFailedCB,
    },
    "version": {"__version__": psycopg_pool.__version__},
}


def install_as_psycopg_pool() -> None:
    """Make `import psycopg_pool` mean Forebay, in this process.

    Call it before anything imports `psycopg_pool`.  Again is harmless.

    Raises:
        RuntimeError: the original was imported already; nothing is changed.
    """
    present = sys.modules.get("psycopg_pool")
    if present is psycopg_pool:
        return
    if present is not None:
        raise RuntimeError(
            f"psycopg_pool was imported already, from {getattr(present, '__file__', None)}: call"
            " forebay.install_as_psycopg_pool() before the first import of it"
        )
    for name, content in _SUBMODULES.items():
        module = ModuleType(f"psycopg_pool.{name}", f"Forebay's part of psycopg_pool.{name}.")
        vars(module).update(content)
        sys.modules[module.__name__] = module
        setattr(psycopg_pool, name, module)
    sys.modules["psycopg_pool"] = psycopg_pool
