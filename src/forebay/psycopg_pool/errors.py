"""The exceptions of the contract."""

from __future__ import annotations

from ..drivers.psycopg import PoolClosed, PoolTimeout, TooManyRequests

__all__ = ["PoolClosed", "PoolTimeout", "TooManyRequests"]
