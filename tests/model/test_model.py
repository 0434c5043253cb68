"""Every reachable state of the shipped pool, within the bounds, keeps every invariant."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable
from typing import Any

import pytest

from forebay import _core, _flows

from .configurations import TABLE, Configuration, named
from .explore import explore, story
from .shipped import instrumented, load

#: A handler before every line takes minutes: `make model` plays all of those.
QUICK = [config for config in TABLE if not config.handler or config.name in ("handled", "main")]

#: What takes seconds belongs to the proof.
LARGE = """
    bad returns, check, check alone, checks hang, close, close preempted, connects hang, cut off,
    dies at once, dies beside another, drain and reset, expiry alone, forsaken,
    forsaken and reset, handled, killed, killed in turn, killed while trusted, main, nested,
    nested and failures, nested and timeouts, noise, null, null connects hang, plain preempted,
    reset, resize, shrink, timeouts, timeouts preempted, verify, verify and close,
    wait and close, wait and drain
"""
PROOF = {name.strip() for name in LARGE.split(",")}


def _marked(config: Configuration) -> Any:
    marks = [pytest.mark.prove] if config.name in PROOF else []
    return pytest.param(config, id=config.name, marks=marks)


@pytest.mark.parametrize("config", [_marked(config) for config in QUICK])
def test_all_states_keep_all_invariants(
    config: Configuration, record_property: Callable[[str, object], None]
) -> None:
    """Explores one configuration of the table; a failure shows the shortest trace."""
    result = explore(config)
    assert result.sentence is None, story(result)
    record_property("states", result.states)
    record_property("transitions", result.transitions)


@pytest.mark.parametrize("name", ["main", "null", "close", "plain preempted"])
def test_merging_states_forgets_none(name: str) -> None:
    """Without merging, to a small depth, the same states are found."""
    merged: set[bytes] = set()
    every: set[bytes] = set()
    explore(named(name), depth=5, keys=merged)
    result = explore(named(name), merge=False, depth=5, keys=every)
    assert result.sentence is None
    assert every == merged
    assert result.states > len(merged)


def test_without_preemption_the_model_runs_the_very_classes_that_users_import() -> None:
    """Nothing is altered but where a configuration says so."""
    code = load()
    assert code.core is _core.Core
    assert code.flows is _flows.Flows


def test_preemption_adds_a_scheduling_point_after_every_transition_and_nothing_else() -> None:
    """Without these points the instrumented source is the shipped one."""
    source = inspect.getsource(_flows)
    tree = instrumented(source)
    points = [
        n for n in ast.walk(tree) if isinstance(n, ast.Await) and "_leave_lock" in ast.dump(n)
    ]
    inside = [f for f in ast.walk(ast.parse(source)) if isinstance(f, ast.AsyncFunctionDef)]
    locks = {node for f in inside for node in ast.walk(f) if isinstance(node, ast.With)}
    assert len(points) == len(locks) > 10
    lines = [line for line in ast.unparse(tree).splitlines() if "_leave_lock" not in line]
    assert lines == ast.unparse(ast.parse(source)).splitlines()


def test_each_large_configuration_is_there() -> None:
    """A name that is misspelt would leave its configuration in the quick suite."""
    assert {config.name for config in QUICK} >= PROOF
