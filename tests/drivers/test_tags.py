"""How the entry of a connection is found, whatever that is."""

from __future__ import annotations

import gc
from typing import Any
from unittest.mock import MagicMock

import psycopg2
import pytest

from forebay._entry import IDLE, LENT, RETIRED, Entry, Place
from forebay._fork import Inherited
from forebay.drivers.tags import Tags


def entry(place: Place = IDLE) -> Entry:
    """An entry in a place."""
    made = Entry()
    made.place = place
    return made


class Roomy:
    """Takes attributes."""


class Closed:
    """Takes none."""

    __slots__ = ("__weakref__",)


class Deaf:
    """Pretends to take attributes, and to have any."""

    def __setattr__(self, name: str, value: Any) -> None:
        """Do nothing."""

    def __getattr__(self, name: str) -> Any:
        return f"the {name}"


class Alike(Roomy):
    """Equal to any other, so without a hash."""

    def __eq__(self, other: object) -> bool:
        return True


ANYTHING = [Roomy, Closed, Deaf, Alike, MagicMock, lambda: MagicMock(spec_set=["cursor"])]


@pytest.mark.parametrize("make", ANYTHING)
def test_anything_has_an_entry_of_its_own(make: Any) -> None:
    """By an attribute where it takes one, else by its identity."""
    tags, one, other = Tags(), make(), make()
    first, second = entry(), entry()
    tags.attach(one, first)
    tags.attach(other, second)
    assert tags.find(one) is first
    assert tags.find(other) is second
    assert tags.find(make()) is None


def test_a_connection_of_psycopg2_itself_has_one(dsn: str) -> None:
    """It has no room for attributes."""
    tags, conn, known = Tags(), psycopg2.connect(dsn), entry()
    tags.attach(conn, known)
    assert tags.find(conn) is known
    conn.close()


@pytest.mark.parametrize("make", ANYTHING)
def test_what_has_gone_is_forgotten(make: Any) -> None:
    """So that another object, which may have its number, is not taken for it."""
    tags, known = Tags(), entry()
    conn = make()
    tags.attach(conn, known)
    del conn
    gc.collect()
    assert not tags._tags


@pytest.mark.parametrize("make", ANYTHING)
def test_an_object_that_comes_again_has_several(make: Any) -> None:
    """As a mock does, which gives the same each time: what is lent is returned first."""
    tags, conn = Tags(), make()
    first, second, third = entry(), entry(LENT), entry()
    for each in (first, second, third):
        tags.attach(conn, each)
    assert tags.find(conn) is second
    second.place, first.place = IDLE, LENT
    assert tags.find(conn) is first
    first.place = RETIRED
    found = tags.find(conn)
    assert found is second or found is third
    assert not isinstance(getattr(conn, "_forebay_entry", None), Entry)  # no hot path finds one


@pytest.mark.parametrize("make", ANYTHING)
def test_an_object_that_comes_again_after_its_time_has_one(make: Any) -> None:
    """What is out of use is not remembered."""
    tags, conn = Tags(), make()
    for _ in range(3):
        known = entry()
        tags.attach(conn, known)
        tags.attach(conn, known)  # again changes nothing
        assert tags.find(conn) is known
        known.place = RETIRED
    assert tags.find(conn) is known


@pytest.mark.parametrize("make", ANYTHING)
def test_in_a_forked_child_it_is_the_parents(make: Any) -> None:
    """Whatever it was before, and however often."""
    tags, conn = Tags(), make()
    tags.attach(conn, entry(LENT))
    tags.attach(conn, entry(LENT))
    inherited = Inherited()
    tags.attach(conn, inherited)
    assert tags.find(conn) is inherited
    if make is Roomy:
        assert conn._forebay_entry is inherited


def test_two_pools_may_be_given_the_same_object() -> None:
    """Each finds its own entry."""
    pools, conn = (Tags(), Tags()), MagicMock()
    entries = entry(LENT), entry(LENT)
    for tags, each in zip(pools, entries, strict=True):
        tags.attach(conn, each)
    assert [tags.find(conn) for tags in pools] == [*entries]


def test_what_cannot_be_held_weakly_is_refused_with_the_reason() -> None:
    """The pool would hold what its clients have dropped."""

    class Heavy:
        __slots__ = ()

    with pytest.raises(TypeError, match="'__weakref__' to the __slots__"):
        Tags().attach(Heavy(), entry())
