"""Drop-in for `psycopg_pool` 3.3: put `forebay.` in front of the import.

The classes are those of `forebay` itself; the submodules have the names that other programs import.
"""

from __future__ import annotations

from . import abc as abc
from . import base as base
from . import version as version
from .errors import PoolClosed, PoolTimeout, TooManyRequests
from .null_pool import NullConnectionPool
from .null_pool_async import AsyncNullConnectionPool
from .pool import ConnectionPool
from .pool_async import AsyncConnectionPool
from .version import __version__ as __version__

__all__ = [
    "AsyncConnectionPool",
    "AsyncNullConnectionPool",
    "ConnectionPool",
    "NullConnectionPool",
    "PoolClosed",
    "PoolTimeout",
    "TooManyRequests",
]
