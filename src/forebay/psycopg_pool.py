"""Drop-in for `psycopg_pool` 3.3: put `forebay.` in front of the import.

The classes are those of `forebay` itself.
"""

from __future__ import annotations

from .drivers.psycopg import PoolClosed, PoolTimeout, TooManyRequests
from .pool import ConnectionPool, NullConnectionPool
from .pool_async import AsyncConnectionPool, AsyncNullConnectionPool

#: The version of the contract, for programs that ask what they may use.
__version__ = "3.3.3"

__all__ = [
    "AsyncConnectionPool",
    "AsyncNullConnectionPool",
    "ConnectionPool",
    "NullConnectionPool",
    "PoolClosed",
    "PoolTimeout",
    "TooManyRequests",
]
