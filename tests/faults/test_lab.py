"""The scenarios of the fault lab, for Forebay alone: counts that must be zero, and no more.

How fast it is belongs in the table (`make faults`). A time is asserted only where the scenario is
about not freezing, and generously.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from forebay._embedded import EmbeddedPostgres

from . import __main__ as command
from . import report
from .lab import SETTINGS, Attempt, Crowd, Errand, Lab, Result, Scenario, Trial, now
from .peers import FOREBAY, Peer
from .scenarios import SCENARIOS
from .targets import ALWAYS, NO_ERRORS, in_flight_only

pytestmark = [pytest.mark.embedded, pytest.mark.prove]

NOT_FROZEN = 10.0
"""Seconds: generous for what takes milliseconds, and far from what a frozen pool takes."""

# Threads play everything. The other two differ from them in the driver and the runtime, so that
# they play what these have a part in.
SHARED = {
    "idle-restart",
    "some-killed",
    "reset-into-hole",
    "reset-by-network",
    "notify-storm",
    "cancelled-in-the-dark",
}


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """A server to hurt."""
    with EmbeddedPostgres(SETTINGS) as server:
        yield Lab(server)


PAIRS = [
    pytest.param(scenario, peer, id=f"{scenario.name}-{peer.name}".replace(" ", "-"))
    for scenario in SCENARIOS
    for number, peer in enumerate(FOREBAY)
    if number == 0 or scenario.name in SHARED
]
"""Which scenario is played with which of Forebay's pools."""


@pytest.mark.parametrize(("scenario", "peer"), PAIRS)
def test_the_pool_comes_through(scenario: Scenario, peer: Peer, lab: Lab) -> None:
    """Nothing broken is served, nothing leaks, nobody is stranded, and clients are served again."""
    lab.refresh()
    result = Trial(lab, replace(scenario, cap=NOT_FROZEN), peer.make(), hurry=True).play()
    missed = [each.text for each in scenario.targets if not (each.timed or each.met(result))]
    assert not result.failed
    assert not missed, report.line(scenario, result)
    assert result.first is not None, report.line(scenario, result)
    assert result.through is not None, report.line(scenario, result)


def ended(attempt: Attempt, error: Exception | None = None) -> Attempt:
    """A request that is over."""
    with attempt:
        if error is not None:
            raise error
    return attempt


def test_a_client_asks_until_it_is_served() -> None:
    """A failure is followed by the next request, an answer by none."""
    crowd = Crowd(1, Errand())
    errors = iter([OSError("gone"), None])
    for attempt in crowd.requests():
        ended(attempt, next(errors))
    assert [each.served for each in crowd.attempts] == [False, True]
    assert crowd.join(now())


def test_a_client_leaves_after_the_failures_it_bears() -> None:
    """Who comes for one failure at most does not ask again."""
    crowd = Crowd(1, Errand(failures=1))
    for attempt in crowd.requests():
        ended(attempt, OSError("gone"))
    assert len(crowd.attempts) == 1


def test_who_waits_beyond_its_time_out_is_stranded() -> None:
    """A request is stranded when it has waited for longer than it said, and got nothing."""
    assert Attempt(asked=now() - 10, timeout=5).stranded
    assert not Attempt(asked=now() - 10, timeout=30).stranded
    assert not Attempt(asked=now() - 10, timeout=5, lent=now() - 9).stranded


def test_the_targets_notice_what_they_are_for() -> None:
    """Each count above zero misses the target that is named after it."""
    well = Result("scenario", "pool")
    assert all(each.met(well) for each in (*ALWAYS, NO_ERRORS))
    ill = replace(well, broken=1, leaked=1, stranded=1, abandoned=1, errors={"OSError": 1})
    assert not any(each.met(ill) for each in (*ALWAYS, NO_ERRORS))


def test_a_connection_in_use_may_fail_once_for_each_fault() -> None:
    """Errors beyond those of queries in flight miss the target."""
    target = in_flight_only(8)
    assert target.met(Result("scenario", "pool", faults=2, errors={"OSError": 16}))
    assert not target.met(Result("scenario", "pool", faults=2, errors={"OSError": 17}))


def test_the_tables_go_between_the_markers(tmp_path: Path) -> None:
    """What stands around the tables stays, and a missed target is to be seen."""
    page = tmp_path / "page.md"
    page.write_text(f"before\n{report.BEGIN}old\n{report.END}\nafter\n")
    scenario = SCENARIOS[0]
    result = Result(scenario.name, FOREBAY[0].name, errors={"OSError": 8}, broken=8, first=0.012)
    report.write(page, {"date": "today"}, [scenario], [result])
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    assert "old" not in text
    assert "| forebay | 8 OSError | 8 | 12 ms | > 40 s |" in text
    assert "| **MISSED**: no broken connection served |" in text


def test_a_page_without_markers_is_refused(tmp_path: Path) -> None:
    """Nothing is written to a page that has no place for the tables."""
    page = tmp_path / "page.md"
    page.write_text("text")
    with pytest.raises(ValueError, match="put them in"):
        report.write(page, {}, [], [])
    assert page.read_text() == "text"


def test_the_page_has_its_markers() -> None:
    """docs/reliability.md has the place that `make faults` writes to."""
    text = command.PAGE.read_text()
    assert text.index(report.BEGIN) < text.index(report.END)


def test_every_scenario_says_what_it_does() -> None:
    """Each schedule has a docstring, which the page shows, and a name of its own."""
    for scenario in SCENARIOS:
        run = scenario.run.func if isinstance(scenario.run, partial) else scenario.run
        assert run.__doc__, scenario.name
    assert len({each.name for each in SCENARIOS}) == len(SCENARIOS)


def test_the_command_plays_what_it_is_asked_for(tmp_path: Path) -> None:
    """`--only` and `--pool` choose, and `--json` has the result."""
    file = tmp_path / "result.json"
    chosen = ["--only", "half-closed", "--pool", "forebay", "--json", str(file)]
    assert command.main(chosen) == 0
    (result,) = json.loads(file.read_text())
    assert (result["scenario"], result["pool"]) == ("half-closed", "forebay")
    assert not result["failed"]
