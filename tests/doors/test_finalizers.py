"""What a finalizer returns: Python drops weak references first."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

from forebay import ConnectionPool


def test_a_connection_that_a_finalizer_returns_is_kept(dsn: str) -> None:
    """A generator in a garbage cycle ends its block, which returns its connection."""
    with ConnectionPool(dsn, min_size=1, timeout=20) as pool:
        pool.wait()

        def rows(cycle: list[Any]) -> Iterator[int]:
            with pool.connection() as conn:
                yield conn.info.backend_pid
            del cycle

        cycle: list[Any] = []
        cycle.append(rows(cycle))
        first = next(cycle[0])
        assert repr(pool).endswith("0 idle, 1 lent, 0 opening, 0 waiting of 1..1>")
        del cycle
        gc.collect()
        with pool.connection() as conn:
            assert conn.info.backend_pid == first
            assert repr(pool).endswith("0 idle, 1 lent, 0 opening, 0 waiting of 1..1>")
        assert repr(pool).endswith("1 idle, 0 lent, 0 opening, 0 waiting of 1..1>")
