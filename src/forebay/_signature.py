"""The options of a pool, written out in the signature and the docstring of its constructor.

Constructors take them as `**options`.  What reads a signature at run time, `help()` and
`inspect.signature()` for example, finds a parameter for each.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import wraps
from inspect import Parameter, Signature, cleandoc, formatannotation, signature
from textwrap import fill
from typing import Any, TypeVar

from .options import NULL_DEFAULTS, OPTIONS, OTHERS, TYPES

T = TypeVar("T", bound="type[Any]")

#: The line of a docstring in whose place every option is documented.
MARKER = "    options: See `PoolOptions`."


def takes_options(pool_class: T) -> T:
    """Decorate a pool whose constructor takes `**options`: show and document each of them."""
    init: Any = vars(pool_class)["__init__"]
    own = signature(init)
    init.__signature__ = own.replace(parameters=[*_parameters(own)])
    del init.__annotations__["options"]
    init.__annotations__.update(TYPES)
    if init.__doc__:  # there is none with -OO
        entries = "\n".join(entry(name, option.default) for name, option in OPTIONS.items())
        init.__doc__ = cleandoc(init.__doc__).replace(MARKER, entries)
    return pool_class


def as_null_pool(pool_class: T) -> T:
    """Decorate a null pool: it is made as its base class is, but has other defaults."""
    kind: type[Any] = pool_class

    @wraps(kind.__init__)
    def init(self: Any, conninfo: Any = "", **options: Any) -> None:
        base: Any = super(kind, self)
        base.__init__(conninfo, **options)

    shown: Any = init
    shown.__annotations__ = kind.__init__.__annotations__  # wraps() leaves them out in Python 3.14
    shown.__name__, shown.__qualname__ = "__init__", f"{pool_class.__qualname__}.__init__"
    usual: Signature = shown.__signature__
    shown.__signature__ = usual.replace(
        parameters=[
            each.replace(default=NULL_DEFAULTS.get(name, each.default))
            for name, each in usual.parameters.items()
        ]
    )
    if shown.__doc__:
        shown.__doc__ = shown.__doc__.replace("Make a pool", "Make a null pool", 1)
        for name, default in NULL_DEFAULTS.items():
            old = entry(name, OPTIONS[name].default)
            shown.__doc__ = shown.__doc__.replace(old, entry(name, default))
    kind.__init__ = shown
    return pool_class


def entry(name: str, default: Any) -> str:
    """The documentation of an option, as a docstring has it."""
    head = f"{name} ({formatannotation(TYPES[name])}, default {default!r}): "
    return fill(head + OPTIONS[name].text, 96, initial_indent=" " * 4, subsequent_indent=" " * 8)


def _parameters(own: Signature) -> Iterator[Parameter]:
    """The parameters of a constructor and all options, in the order in which they are shown."""
    yield own.parameters["self"]
    yield from (own.parameters[other] for other, option in OTHERS.items() if not option)
    for name, option in OPTIONS.items():
        yield Parameter(
            name, Parameter.KEYWORD_ONLY, default=option.default, annotation=TYPES[name]
        )
        yield from (own.parameters[other] for other, after in OTHERS.items() if after == name)
