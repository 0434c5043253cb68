"""The pool for threads, and the exceptions of the contract."""

from __future__ import annotations

from ..pool import ConnectionPool
from .errors import PoolClosed, PoolTimeout, TooManyRequests

__all__ = ["ConnectionPool", "PoolClosed", "PoolTimeout", "TooManyRequests"]
