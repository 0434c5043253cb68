"""A core on its own, with the settings that a test asks for."""

from __future__ import annotations

from typing import Any

from forebay._core import ALL, Core
from forebay.options import Settings


def core_of(
    refusals: Any,
    kind: type[Core] = Core,
    *,
    keep: int = ALL,
    lifo: bool = True,
    fresh: bool = False,
    **settings: Any,
) -> Core:
    """A core whose other settings are the defaults."""
    order = "lifo" if lifo else "fifo"
    core = kind(refusals, Settings.of(idle_order=order, **settings), keep)
    if fresh:  # else what a core begins with is what is tested
        core.fresh = True
    return core
