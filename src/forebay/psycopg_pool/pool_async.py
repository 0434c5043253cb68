"""The pool for asyncio, and the exceptions of the contract."""

from __future__ import annotations

from ..pool_async import AsyncConnectionPool
from .errors import PoolClosed, PoolTimeout, TooManyRequests

__all__ = ["AsyncConnectionPool", "PoolClosed", "PoolTimeout", "TooManyRequests"]
