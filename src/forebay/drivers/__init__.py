"""What a pool needs to know of the library that talks to PostgreSQL."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from .._entry import Entry
    from ..errors import Refusals


class Driver(Protocol):
    """A library that connects to PostgreSQL; connections are opaque to the pool.

    The asynchronous methods of a driver for threads block and never suspend.
    """

    #: Raised for a connection that a callback has left in a transaction.
    ProgrammingError: type[Exception]

    @property
    def unclean(self) -> Callable[[Any], Any]:
        """False only for a working connection that is in no transaction and runs nothing."""
        ...

    @property
    def entry(self) -> Callable[[Any], Entry]:
        """The entry attached to a connection."""
        ...

    def refusals(self, name: str) -> Refusals:
        """The exceptions of the pool `name`, as relatives of the library's own."""
        ...

    def adopt(self, conn: Any, entry: Entry) -> None:
        """Attach `entry` to a new connection."""
        ...

    def usable(self, conn: Any) -> bool:
        """Whether a connection works and waits for a command, in a transaction or not."""
        ...

    def closed(self, conn: Any) -> bool:
        """Whether a connection is known to be closed or lost; never blocks, from any thread."""
        ...

    def describe(self, conn: Any) -> str:
        """The name of the connection's transaction status."""
        ...

    async def connect(self, connection_class: Any, conninfo: str, kwargs: dict[str, Any]) -> Any:
        """Open a connection."""
        ...

    async def close(self, conn: Any) -> None:
        """Close a connection that its pool has given up."""
        ...

    async def rollback(self, conn: Any) -> None:
        """End the transaction."""
        ...

    async def ping(self, conn: Any) -> None:
        """Make one round trip; leave the transaction as it is.  Raises if the session is gone."""
        ...
