"""All scenarios, in the table's order."""

from __future__ import annotations

from .scenarios_failover import FAILOVER
from .scenarios_network import NETWORK
from .scenarios_server import SERVER

SCENARIOS = (*SERVER, *NETWORK, *FAILOVER)
