"""The null pool for threads, and the exceptions of the contract."""

from __future__ import annotations

from ..pool import NullConnectionPool
from .errors import PoolClosed, PoolTimeout, TooManyRequests

__all__ = ["NullConnectionPool", "PoolClosed", "PoolTimeout", "TooManyRequests"]
