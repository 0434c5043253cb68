"""Seeded bugs are found."""

from __future__ import annotations

import sys

import pytest

from forebay import _core

from .configurations import named
from .explore import explore
from .seeded import SEEDED, Seeded
from .shipped import Mutation, load

pytestmark = pytest.mark.prove


@pytest.mark.parametrize("bug", SEEDED, ids=lambda bug: bug.name)
def test_a_seeded_bug_is_found(bug: Seeded) -> None:
    """The exploration ends with a violated invariant and the trace that leads to it."""
    config = named(bug.configuration)
    result = explore(config, load(preempted=config.preempted, mutation=bug.mutation))
    assert result.sentence is not None, f"{result.states} states, and nothing was found"
    assert result.trace or "without further mishaps" in result.sentence  # from the first state on
    sys.stdout.write(f"{bug.name}: {result.sentence} ({len(result.trace)} moves)\n")


def test_a_mutation_whose_text_is_gone_is_an_error() -> None:
    """A seeded bug that no longer applies does not pass silently."""
    with pytest.raises(ValueError, match=r"stands 0 times in forebay\._core, not once"):
        Mutation(_core, "no such text", "").apply("some source")
