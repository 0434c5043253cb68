"""What a pool needs to know of the library that talks to PostgreSQL."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from .._entry import Entry, Verdict
    from .._sockets import Lifeline
    from ..errors import Refusals


class Driver(Protocol):
    """A library that connects to PostgreSQL; connections are opaque to the pool.

    The asynchronous methods of a driver for threads block and never suspend.
    """

    #: Raised for a connection that a callback has left in a transaction.
    ProgrammingError: type[Exception]

    @property
    def unclean(self) -> Callable[[Any], Any]:
        """False only for a working connection that is in no transaction and runs nothing.

        Nor is it in a state that its transaction status does not show, and that would be lent on:
        a prepared two-phase transaction, pipeline mode.
        """
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

    def find(self, conn: Any) -> Entry | None:
        """The entry attached to a connection, if there is one; it may be another pool's."""
        ...

    def mark(self, conn: Any, pool: Any) -> None:
        """Write down that `pool` has lent a connection; None: it is with nobody."""
        ...

    def lent(self, conn: Any, pool: Any) -> tuple[Entry, Any] | None:
        """The entry of what a client returns to `pool`, and what was lent; None if it was not."""
        ...

    def usable(self, conn: Any) -> bool:
        """Whether a connection works and waits for a command, in a transaction or not.

        Not one that a rollback does not make clean.
        """
        ...

    def closed(self, conn: Any) -> bool:
        """Whether a connection is known to be closed or lost; never blocks, from any thread."""
        ...

    def died(self, conn: Any) -> bool:
        """Whether the session of a connection has ended, and not by its client's `close()`."""
        ...

    def end(self, conn: Any) -> None:
        """Close a connection on the spot: nobody has it, and its event loop is gone."""
        ...

    def describe(self, conn: Any) -> str:
        """The name of the connection's transaction status, and what that does not show."""
        ...

    def label(self, conn: Any) -> str:
        """A connection as a log may name it, in one line, without its connection string.

        Never raises.
        """
        ...

    def readable(self, conns: list[Any]) -> list[Any]:
        """Those connections, in order, whose socket has something to read or is at its end.

        A closed connection is one of them.  Never blocks, from any thread, also while another
        uses the connections; one poll for all.
        """
        ...

    def look(self, conn: Any) -> Exception | None:
        """Why an idle connection is dead, as an error of the library, else None.

        For its only holder.  Reads what the server has sent, without waiting; a notice, a
        parameter or a NOTIFY is not death.  Calls nothing of the user's: what is for his handlers
        is kept for `deliver()`.  Too many NOTIFYs that nobody takes are an error, too.  A silent
        socket costs one poll.
        """
        ...

    def deliver(self, conn: Any) -> None:
        """Give the connection's handlers what was kept by `look()`; they are the user's.

        For the client that is lent the connection.  Raises nothing that they raise.
        """
        ...

    def lifeline(self, conn: Any) -> Lifeline | None:
        """A second hold on the connection's socket, to be closed; None if it has no socket.

        For its only holder.
        """
        ...

    def verdict(self, error: BaseException) -> Verdict:
        """What a failed connect means; what is not recognised with certainty is transient."""
        ...

    def unanswered(self, error: BaseException) -> bool:
        """Whether a connect has failed since nobody answered in time: more patience may do."""
        ...

    def patience(
        self,
        conninfo: str,
        kwargs: dict[str, Any],
        factor: int = 1,
        connection_class: Any = None,
    ) -> float:
        """Seconds that `connect()` may take by its own time-outs; `math.inf` if it has none.

        `factor` and `connection_class` as for `connect()`; without a class it is the library's.
        Looking up names, and further addresses of one name, come on top.
        """
        ...

    def standby(self, conn: Any) -> bool | None:
        """Whether the server said last that it is a standby; None if it never did.

        It says so when that changes, with the answer to the next query.
        """
        ...

    async def in_recovery(self, conn: Any) -> bool:
        """Whether the server of an idle connection is a standby, asked; leaves no transaction."""
        ...

    def keepable(self, error: BaseException) -> BaseException:
        """An error as it may be kept for long: one that does not refer to its connection."""
        ...

    def refuses_writes(self, error: BaseException) -> bool:
        """Whether a server has refused to write: a transaction, or all of it, is read-only."""
        ...

    def wants_writable(self, conninfo: str, kwargs: dict[str, Any]) -> bool | None:
        """Whether connections must be able to write, as `target_session_attrs` says.

        None if it says nothing: then they are if the first one can.
        """
        ...

    async def connect(
        self, connection_class: Any, conninfo: str, kwargs: dict[str, Any], factor: int = 1
    ) -> Any:
        """Open a connection, with time-outs where neither the user nor the environment set any.

        The `connect_timeout` that is added is `factor` (1 or more) times as long as usual.  An
        error of the library's quotes no secret.
        """
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
