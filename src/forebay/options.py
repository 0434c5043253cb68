"""The options of a pool: names, types, defaults, documentation and checks, all in one list.

Every pool takes them by keyword.  `PoolOptions` types a dictionary of them, for settings and
adapters, and `OPTIONS` is the list at run time:

    options: PoolOptions = {"max_size": 20, "max_idle": 60.0}
    pool = ConnectionPool("dbname=bank", **options)

A new option is an entry of `PoolOptions`.  If the core reads it, it is also a field of `Settings`,
and if programs may assign it, an attribute of `Door`.  `docs/options.py` writes it into its page.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from math import inf
from typing import Annotated, Any, Literal, NamedTuple, TypeAlias, TypedDict, get_type_hints

from ._policy import Backoff

__all__ = ["OPTIONS", "IdleOrder", "Option", "PoolOptions"]

IdleOrder: TypeAlias = Literal["lifo", "fifo"]

#: Raises TypeError or ValueError for a value that an option, by its name, cannot have.
Check: TypeAlias = Callable[[str, Any], None]


def _anything(name: str, value: Any) -> None:
    """Accept every value."""
    del name, value


def _whole(name: str, value: Any) -> None:
    if not isinstance(value, int):
        raise TypeError(f"{name} must be a whole number, not {value!r}")


def _seconds(name: str, value: Any) -> None:
    if not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number of seconds, not {value!r}")
    if value != value:
        raise ValueError(f"{name} must be a number of seconds, not nan")


def _only(kind: Check, accepts: Callable[[Any], Any], expected: str, hint: str = "") -> Check:
    """A check that accepts only some values of a kind."""

    def check(name: str, value: Any) -> None:
        kind(name, value)
        if not accepts(value):
            raise ValueError(f"{name} must be {expected}, not {value!r}{hint and f'; {hint}'}")

    return check


def _from_0(hint: str) -> Check:
    """A check for seconds of which 0 has a meaning of its own."""
    return _only(_seconds, lambda value: value >= 0, "0 seconds or more", hint)


class Option(NamedTuple):
    """What there is to know about an option besides its type."""

    default: Any
    """The value it has unless another one is given; null pools have `NULL_DEFAULTS`."""
    text: str
    """What it does, with its unit."""
    check: Check = _anything
    """Raises TypeError or ValueError for a value that makes no pool."""


class PoolOptions(TypedDict, total=False):
    """The options that all pools share, as a dictionary.

    Durations are in seconds.  Each option but `idle_order` is also an attribute of the pool.  The
    sizes are changed by `resize()`; the other attributes may be assigned at any time.
    """

    min_size: Annotated[int, Option(4, "Connections to keep open; 0 in a null pool.")]
    max_size: Annotated[
        int | None,
        Option(
            None,
            "Connections at most; `None`: as many as `min_size`.  In a null pool `None` or 0 sets"
            " no bound.",
        ),
    ]
    name: Annotated[
        str | None, Option(None, "Name of the pool in logs, errors and threads; `None`: `pool-N`.")
    ]
    close_returns: Annotated[
        bool,
        Option(False, "`close()` of a connection in use returns it to the pool (for SQLAlchemy)."),
    ]
    timeout: Annotated[
        float,
        Option(
            30.0,
            "Seconds a client waits for a connection at most; 0: it takes one only if it is ready.",
            _seconds,
        ),
    ]
    max_waiting: Annotated[
        int, Option(0, "Clients that may wait for a connection; 0: no bound.", _whole)
    ]
    max_lifetime: Annotated[
        float,
        Option(
            60 * 60.0,
            "Seconds after which a connection is replaced, less up to 5 %; 0: each time it is"
            " returned.",
            _from_0("0 replaces a connection at each return"),
        ),
    ]
    max_idle: Annotated[
        float,
        Option(
            10 * 60.0,
            "Seconds after which an unused connection above `min_size` is closed.",
            _seconds,
        ),
    ]
    reconnect_timeout: Annotated[
        float,
        Option(
            5 * 60.0,
            "Seconds of failed attempts to connect until `reconnect_failed` is called.",
            _seconds,
        ),
    ]
    num_workers: Annotated[
        int,
        Option(
            3,
            "Connections opened at the same time at most; as many workers reset, check and close.",
            _only(_whole, lambda value: value >= 1, "at least 1"),
        ),
    ]
    idle_order: Annotated[
        IdleOrder,
        Option(
            "lifo",
            "Which idle connection is next: `lifo` the one used last, `fifo` all in turn.",
            _only(_anything, lambda value: value in ("lifo", "fifo"), "'lifo' or 'fifo'"),
        ),
    ]
    bypass_window: Annotated[
        float,
        Option(
            0.05,
            "Seconds after its last use during which a connection is handed out without a check of"
            " its socket.  The check costs no round trip and finds what the server has closed; 0:"
            " check each time.",
            _from_0("0 looks at a connection each time"),
        ),
    ]
    keepalive_interval: Annotated[
        float,
        Option(
            0.0,
            "Seconds between two queries that keep an idle connection alive; 0: no queries.",
            _from_0("0 sends no queries"),
        ),
    ]
    max_uses: Annotated[
        int,
        Option(
            0,
            "How often a connection is used until it is replaced; 0: no bound.",
            _only(_whole, lambda value: value >= 0, "0 or more", "0 sets no bound"),
        ),
    ]
    action_timeout: Annotated[
        float,
        Option(
            3.0,
            "Seconds that `configure`, `check`, `reset`, a rollback or closing may take; what takes"
            " longer is abandoned, and the connection with it.",
            _only(
                _seconds,
                lambda value: value > 0,
                "more than 0 seconds",
                "math.inf sets no bound",
            ),
        ),
    ]
    leak_threshold: Annotated[
        float,
        Option(
            0.0,
            "Seconds after which a connection that is still in use is reported by a warning, and"
            " its return by another; 0: never.",
            _from_0("0 reports nothing"),
        ),
    ]
    rejected_after: Annotated[
        float,
        Option(
            3.0,
            "Seconds for which a server must have refused connections by the same verdict (a wrong"
            " password, no such database) until waiting clients get `PoolRejected`; 0: at the"
            " first refusal.",
            _from_0("0 believes the first refusal"),
        ),
    ]
    record_lines: Annotated[
        bool,
        Option(
            False,
            "Note the line of code that acquires each connection, for errors and warnings; costs"
            " less than a microsecond each time.",
        ),
    ]


#: The type of each option, in the order of signatures.
TYPES: Mapping[str, Any] = get_type_hints(PoolOptions)

#: Every option, in the order of signatures.
OPTIONS: Mapping[str, Option] = {
    name: hint.__metadata__[0]
    for name, hint in get_type_hints(PoolOptions, include_extras=True).items()
}

#: What null pools have instead.
NULL_DEFAULTS: Mapping[str, Any] = {"min_size": 0}

#: The other parameters of every pool, whose types depend on its driver, each with the option that
#: it follows in signatures.  The order is that of psycopg_pool.
OTHERS: Mapping[str, str] = {
    "conninfo": "",
    "connection_class": "",
    "kwargs": "",
    "open": "max_size",
    "configure": "max_size",
    "check": "max_size",
    "reset": "max_size",
    "reconnect_failed": "reconnect_timeout",
}


def defaults(*, null: bool = False) -> dict[str, Any]:
    """The default of each option."""
    usual = {name: option.default for name, option in OPTIONS.items()}
    return {**usual, **NULL_DEFAULTS} if null else usual


def complete(pool: str, given: Mapping[str, Any], *, null: bool = False) -> dict[str, Any]:
    """All options of a `pool`: those that are given, and the defaults; `max_size` is a number.

    Raises:
        TypeError: there is no such option, or its value is of another type.
        ValueError: for values that make no pool.
    """
    for name in given:
        if name not in OPTIONS:
            raise TypeError(f"{pool}() has no option {name!r}; {_suggestion(name)}")
    chosen = {**defaults(null=null), **given}
    for name, option in OPTIONS.items():
        option.check(name, chosen[name])
    chosen["max_size"] = bounds(null, chosen["min_size"], chosen["max_size"])
    return chosen


def _suggestion(name: str) -> str:
    """What somebody may have meant who wrote `name`."""
    known = [*OTHERS, *OPTIONS]
    close = get_close_matches(name, known, n=1)
    return f"did you mean {close[0]!r}?" if close else f"its parameters are {', '.join(known)}"


def bounds(null: bool, min_size: int, max_size: int | None) -> float:
    """Check the sizes; returns max_size, which may be infinite."""
    _whole("min_size", min_size)
    _whole("max_size", 0 if max_size is None else max_size)
    if null:
        if min_size != 0:
            raise ValueError(f"null pools must have min_size = 0, not {min_size!r}")
        most = max_size or inf
    else:
        most = min_size if max_size is None else max_size
        if min_size == most == 0:
            raise ValueError("if min_size is 0 max_size must be greater than 0")
    if min_size < 0:
        raise ValueError(f"min_size cannot be negative, not {min_size!r}")
    if most < min_size:
        raise ValueError(
            f"max_size must be greater or equal than min_size, not {max_size!r} < {min_size!r}"
        )
    return most


@dataclass(slots=True, kw_only=True)
class Settings:
    """What a core reads: options of its pool, and what the kind of the pool decides.

    It is read when it is used, so an assigned attribute takes effect.  Transitions change the sizes
    and nothing else.
    """

    # Options, under their names.
    min_size: int
    max_size: float  # may be infinite
    max_waiting: int
    max_lifetime: float
    max_idle: float
    reconnect_timeout: float
    num_workers: int
    idle_order: IdleOrder
    bypass_window: float
    keepalive_interval: float
    max_uses: int
    action_timeout: float
    leak_threshold: float
    rejected_after: float
    # The kind of the pool.
    retrying: bool = True  # a failed attempt is repeated; else it fails a waiting client
    eager: bool = False  # a client that will not wait may still have a connection opened
    backoff: Backoff = field(default_factory=Backoff)  # between failed attempts

    @classmethod
    def of(cls, **given: Any) -> Settings:
        """What is given, unchecked, and the defaults; options that no core reads are left out."""
        values = (defaults() | given).items()
        own = cls.__slots__
        return cls(**{name: value for name, value in values if name in own or name not in OPTIONS})
