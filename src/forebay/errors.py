"""Why a pool refuses a client: the kinds of refusal, apart from any driver's exception classes."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ._core import Core


def detach(error: BaseException) -> None:
    """Take the tracebacks off an error that is kept: their frames keep connections alive."""
    link: BaseException | None = error
    while link is not None and link.__traceback__ is not None:  # a chain may be a circle
        link.__traceback__ = None
        link = link.__cause__ or link.__context__


class PoolClosedMixin(Exception):
    """The pool is not open yet, or closed already; every driver's `PoolClosed` is one."""


class PoolTimeoutMixin(Exception):
    """No connection came within the client's timeout; every driver's `PoolTimeout` is one."""


class TooManyRequestsMixin(Exception):
    """More than `max_waiting` clients would wait; every driver's `TooManyRequests` is one."""


class Refusals:
    """Makes the exceptions of one pool, of the classes its driver gives."""

    def __init__(
        self,
        name: str,
        closed: type[PoolClosedMixin],
        timeout: type[PoolTimeoutMixin],
        too_many: type[TooManyRequestsMixin],
    ) -> None:
        self._name = name
        self._closed = closed
        self._timeout = timeout
        self._too_many = too_many

    def closed(self, core: Core) -> Exception:
        """The pool is not open."""
        when = "not open yet" if core.phase.value == "not open" else "already closed"
        return self._closed(f"the pool {self._name!r} is {when}")

    def full(self, core: Core) -> Exception:
        """Too many clients wait already."""
        return self._too_many(
            f"the pool {self._name!r} has already {len(core.waiting)} requests waiting"
            f" (max_waiting={core.max_waiting})"
        )

    def timeout(self, core: Core, timeout: float) -> Exception:
        """The client's time is up; the cause is the last connection error, if they fail now."""
        error = self._timeout(
            f"couldn't get a connection after {timeout:.2f} sec: the pool {self._name!r} has"
            f" {core.lent} lent, {core.opening} opening, {len(core.waiting)} waiting"
            f" of {core.min_size}..{core.max_size}"
        )
        if core.failures:
            error.__cause__ = core.last_error
        return error
