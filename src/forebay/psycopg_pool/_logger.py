"""The logger of Forebay where it stands in the place of `psycopg_pool`."""

from __future__ import annotations

import logging
from typing import Any


class _Heir(logging.Logger):
    """The logger `forebay` as a child of `psycopg.pool`, whose configuration holds for it too.

    Level, handlers and propagation go by way of the parent.  The rest is here, since that asks a
    parent for nothing else.
    """

    _elder: logging.Logger

    @property
    def disabled(self) -> bool:
        """Whether both are: `disable_existing_loggers` spares only what the program has named."""
        return bool(self.__dict__["disabled"]) and self._elder.disabled

    @disabled.setter
    def disabled(  # pyright: ignore[reportIncompatibleVariableOverride]
        self, value: bool
    ) -> None:
        self.__dict__["disabled"] = value

    def makeRecord(self, name: str, *args: Any, **kwargs: Any) -> logging.LogRecord:  # noqa: N802
        """Make a record of the name that the program's filters and formats know."""
        del name
        return super().makeRecord(self._elder.name, *args, **kwargs)

    def filter(self, record: logging.LogRecord) -> Any:
        """Ask the filters of both; since Python 3.12 a filter may give another record."""
        kept: Any = super().filter(record)
        if not kept:
            return kept
        return self._elder.filter(kept if isinstance(kept, logging.LogRecord) else record)


def inherit() -> None:
    """Let the logger `forebay` go by what is configured for `psycopg.pool`."""
    logger = logging.getLogger("forebay")
    if not isinstance(logger, _Heir):
        # Forebay's modules have the object, so it is the object that changes.
        elder = logging.getLogger("psycopg.pool")
        logger.__dict__["_elder"] = logger.parent = elder
        logger.__class__ = type("Heir", (_Heir, type(logger)), {})
