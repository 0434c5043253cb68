"""The version of the contract, for programs that ask what they may use."""

from __future__ import annotations

__version__ = "3.3.3"
