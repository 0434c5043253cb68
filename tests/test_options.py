"""Options: one list, from which signatures, help, defaults, checks and documents come."""

from __future__ import annotations

import inspect
import pydoc
import re
from math import nan
from typing import Any, get_type_hints

import pytest

import forebay
import forebay.psycopg2
from docs import options as page
from forebay._door import Delegated, Door
from forebay.options import NULL_DEFAULTS, OPTIONS, OTHERS, TYPES, PoolOptions, Settings
from forebay.testing import fake_pool

POOLS: list[Any] = [
    forebay.ConnectionPool,
    forebay.NullConnectionPool,
    forebay.AsyncConnectionPool,
    forebay.AsyncNullConnectionPool,
    forebay.psycopg2.ConnectionPool,
    forebay.psycopg2.NullConnectionPool,
]
each_pool = pytest.mark.parametrize("kind", POOLS, ids=lambda kind: kind.__qualname__)

#: The parameters of psycopg_pool 3.3.
ORIGINAL = (
    *("conninfo", "connection_class", "kwargs", "min_size", "max_size", "open", "configure"),
    *("check", "reset", "name", "close_returns", "timeout", "max_waiting", "max_lifetime"),
    *("max_idle", "reconnect_timeout", "reconnect_failed", "num_workers"),
)
ORDER = (*ORIGINAL, *(name for name in OPTIONS if name not in ORIGINAL))

FROM_0, MORE_THAN_0 = "must be 0 seconds or more", "must be more than 0 seconds"

#: Options that the core does not read.
OF_THE_DOOR = {"name", "close_returns", "timeout", "record_lines"}


def default(kind: Any, name: str) -> Any:
    """The default of an option in a kind of pool."""
    usual = OPTIONS[name].default
    return NULL_DEFAULTS.get(name, usual) if kind._forebay_null else usual


def words(text: str) -> str:
    """A text without its lines, and without the rule that `help()` draws on the left."""
    return " ".join(word for word in text.split() if word != "|")


@each_pool
def test_a_signature_shows_every_option(kind: Any) -> None:
    """By keyword, with its default and its type, whatever the constructor's own text is."""
    for shown in (inspect.signature(kind), inspect.signature(kind.__init__)):
        for name in OPTIONS:
            parameter = shown.parameters[name]
            assert parameter.kind is inspect.Parameter.KEYWORD_ONLY
            assert parameter.default == default(kind, name)
            assert parameter.annotation == TYPES[name]
        assert "options" not in shown.parameters


@each_pool
def test_the_order_of_parameters_is_that_of_psycopg_pool(kind: Any) -> None:
    """Forebay's own follow, and only `conninfo` is taken by position."""
    parameters = inspect.signature(kind).parameters
    assert tuple(parameters) == ORDER
    by_position = [n for n, p in parameters.items() if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert by_position == ["conninfo"]
    with pytest.raises(TypeError, match=rf"{kind.__name__}.* takes from 1 to 2 positional"):
        kind("", 4)


@each_pool
def test_help_explains_every_parameter(kind: Any) -> None:
    """With the type, the default and the text of each option."""
    shown = words(pydoc.plain(pydoc.render_doc(kind)))
    for name, option in OPTIONS.items():
        entry = f"{name} ({inspect.formatannotation(TYPES[name])}, default {default(kind, name)!r})"
        assert words(f"{entry}: {option.text}") in shown
    for name in OTHERS:
        assert re.search(rf" {name}: \w", shown), name


@each_pool
def test_the_defaults_that_are_shown_are_those_that_are_used(kind: Any) -> None:
    """A pool that is given nothing has them, and checks them."""
    pool = kind("", open=False)
    parameters = inspect.signature(kind).parameters
    used = {name: getattr(pool, name) for name in OPTIONS if name not in ("name", "idle_order")}
    used["idle_order"] = pool._forebay.core.settings.idle_order
    expected = {name: parameters[name].default for name in used}
    expected["max_size"] = 0 if kind._forebay_null else 4
    assert used == expected
    assert pool.name.startswith("pool-")


@each_pool
def test_type_hints_are_resolved_at_run_time(kind: Any) -> None:
    """Each parameter has its type, whatever reads them: a container, a settings library."""
    hints = get_type_hints(kind.__init__)
    assert hints.keys() - {"return"} == {*ORDER}
    assert {name: hints[name] for name in OPTIONS} == TYPES
    assert get_type_hints(PoolOptions) == TYPES


@each_pool
@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("maxsize", "max_size"),
        ("leak_treshold", "leak_threshold"),
        ("record_line", "record_lines"),
        ("conifgure", "configure"),
        ("con_info", "conninfo"),
    ],
)
def test_a_misspelt_option_is_told_from_the_one_that_was_meant(
    kind: Any, given: str, meant: str
) -> None:
    """Also where the other one is no option but a parameter."""
    text = f"{kind.__name__}() has no option {given!r}; did you mean {meant!r}?"
    with pytest.raises(TypeError, match=f"^{re.escape(text)}$"):
        kind("", open=False, **{given: 1})


def test_an_option_like_no_other_is_answered_by_a_list() -> None:
    """Of all parameters, in a subclass under its name."""

    class Mine(forebay.ConnectionPool):
        pass

    misspelt: dict[str, Any] = {"zzz": 1}
    with pytest.raises(TypeError) as caught:
        Mine("", open=False, **misspelt)
    head = "Mine() has no option 'zzz'; its parameters are "
    assert str(caught.value).startswith(head)
    assert {*str(caught.value).removeprefix(head).split(", ")} == {*ORDER}


def test_a_subclass_passes_options_on_and_shows_its_own_signature() -> None:
    """By keyword, by a dictionary, and under its own constructor's parameters."""
    options: PoolOptions = {"max_size": 7, "max_idle": 60.0}

    class Mine(forebay.NullConnectionPool):
        def __init__(self, dsn: str, **others: Any) -> None:
            super().__init__(dsn, max_waiting=3, **others)

    pool = Mine("", open=False, **options)
    assert (pool.min_size, pool.max_size, pool.max_idle, pool.max_waiting) == (0, 7, 60.0, 3)
    assert [*inspect.signature(Mine).parameters] == ["dsn", "others"]


@pytest.mark.parametrize("kind", [kind for kind in POOLS if not kind._forebay_null])
def test_no_parameter_of_a_constructor_is_left_out(kind: Any) -> None:
    """Those that are no options are known, too: signatures and suggestions are made of them."""
    code = kind.__init__.__code__
    written = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    assert {*written} == {"self", *OTHERS}


def test_a_null_pool_is_made_by_what_a_program_has_put_in_its_base() -> None:
    """Instrumentation replaces a constructor: it is looked up at each call."""
    made = []
    original = forebay.ConnectionPool.__init__

    def instrumented(self: Any, *args: Any, **kwargs: Any) -> None:
        made.append(self)
        original(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(forebay.ConnectionPool, "__init__", instrumented)
        pool = forebay.NullConnectionPool("", open=False)
    assert made == [pool]


REFUSED: list[tuple[str, Any, type[Exception], str]] = [
    ("min_size", "1", TypeError, "must be a whole number, not '1'"),
    ("min_size", -1, ValueError, "cannot be negative, not -1"),
    ("max_size", 1.5, TypeError, "must be a whole number, not 1.5"),
    ("max_size", 2, ValueError, "must be greater or equal than min_size, not 2 < 4"),
    ("timeout", None, TypeError, "must be a number of seconds, not None"),
    ("timeout", nan, ValueError, "must be a number of seconds, not nan"),
    ("max_waiting", 1.0, TypeError, "must be a whole number, not 1.0"),
    ("max_lifetime", -1, ValueError, f"{FROM_0}, not -1; 0 replaces a connection at each return"),
    ("max_lifetime", nan, ValueError, "must be a number of seconds, not nan"),
    ("max_idle", "1", TypeError, "must be a number of seconds, not '1'"),
    ("reconnect_timeout", "1", TypeError, "must be a number of seconds, not '1'"),
    ("num_workers", 0, ValueError, "must be at least 1, not 0"),
    ("num_workers", 1.5, TypeError, "must be a whole number, not 1.5"),
    ("idle_order", "random", ValueError, "must be 'lifo' or 'fifo', not 'random'"),
    ("bypass_window", -1, ValueError, f"{FROM_0}, not -1; 0 looks at a connection each time"),
    ("keepalive_interval", -0.5, ValueError, f"{FROM_0}, not -0.5; 0 sends no queries"),
    ("max_uses", -2, ValueError, "must be 0 or more, not -2; 0 sets no bound"),
    ("max_uses", "2", TypeError, "must be a whole number, not '2'"),
    ("action_timeout", 0, ValueError, f"{MORE_THAN_0}, not 0; math.inf sets no bound"),
    ("action_timeout", None, TypeError, "must be a number of seconds, not None"),
    ("leak_threshold", -1, ValueError, f"{FROM_0}, not -1; 0 reports nothing"),
    ("rejected_after", -1, ValueError, f"{FROM_0}, not -1; 0 believes the first refusal"),
]


@pytest.mark.parametrize(("name", "value", "error", "text"), REFUSED)
def test_a_value_that_makes_no_pool_is_refused(
    name: str, value: Any, error: type[Exception], text: str
) -> None:
    """The error says what was given, what was expected, and what a special value does."""
    with pytest.raises(error, match=f"^{re.escape(f'{name} {text}')}$"):
        forebay.ConnectionPool("", open=False, **{name: value})


@pytest.mark.parametrize("value", [1, -1])
def test_the_smallest_size_of_a_null_pool_is_0(value: int) -> None:
    """Whatever else is given."""
    text = f"null pools must have min_size = 0, not {value}"
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        forebay.NullConnectionPool("", open=False, min_size=value, max_size=2)


@pytest.mark.parametrize("name", OPTIONS)
def test_an_option_is_documented_with_its_unit(name: str) -> None:
    """A sentence of its own; a number says what it counts."""
    text = OPTIONS[name].text
    assert re.fullmatch(r"[A-Z`].+\.", text)
    if TYPES[name] is float:
        assert text.startswith("Seconds ")
    if TYPES[name] is int:
        assert re.match("Connections |Clients |How often ", text)


def test_every_option_is_read_by_somebody() -> None:
    """By the core, from its settings, or by the door."""
    kind = {"retrying", "eager", "backoff"}
    assert {*OPTIONS} == ({*Settings.__slots__} - kind) | OF_THE_DOOR


@pytest.mark.parametrize("name", [n for n, v in vars(Door).items() if isinstance(v, Delegated)])
def test_an_assigned_option_is_the_core_s(name: str) -> None:
    """It reads the new value when it needs it, and the attribute has the option's text."""
    pool = fake_pool(forebay.ConnectionPool, open=False)
    setattr(pool, name, 17)
    assert (getattr(pool, name), getattr(pool._forebay.core.settings, name)) == (17, 17)
    assert getattr(forebay.ConnectionPool, name).__doc__ == OPTIONS[name].text


def test_options_may_be_assigned_but_for_the_sizes_and_the_order() -> None:
    """The sizes have `resize()`; the order is one thing for the life of a pool."""
    delegated = {name for name, value in vars(Door).items() if isinstance(value, Delegated)}
    assert {*OPTIONS} - delegated - OF_THE_DOOR == {"min_size", "max_size", "idle_order"}


def test_the_page_of_options_is_what_the_code_says() -> None:
    """The table is the one that `python docs/options.py` writes now."""
    shown = page.PAGE.read_text("utf-8").partition(page.BEGIN)[2].partition(page.END)[0]
    assert shown == page.render(), "run: python docs/options.py"
