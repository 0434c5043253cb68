"""The types of the pools' parameters."""

from __future__ import annotations

from ..pool import CT, ConnectFailedCB, ConnectionCB, ConninfoParam, KwargsParam
from ..pool_async import (
    ACT,
    AsyncConnectFailedCB,
    AsyncConnectionCB,
    AsyncConninfoParam,
    AsyncKwargsParam,
)

__all__ = [
    "ACT",
    "CT",
    "AsyncConnectFailedCB",
    "AsyncConnectionCB",
    "AsyncConninfoParam",
    "AsyncKwargsParam",
    "ConnectFailedCB",
    "ConnectionCB",
    "ConninfoParam",
    "KwargsParam",
]
