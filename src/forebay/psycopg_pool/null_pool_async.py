"""The null pool for asyncio, and the exceptions of the contract."""

from __future__ import annotations

from ..pool_async import AsyncNullConnectionPool
from .errors import PoolClosed, PoolTimeout, TooManyRequests

__all__ = ["AsyncNullConnectionPool", "PoolClosed", "PoolTimeout", "TooManyRequests"]
