"""What all pools are instances of."""

from __future__ import annotations

from .._door import Door as BasePool

__all__ = ["BasePool"]
