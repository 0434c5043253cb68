"""What the trials say: a line for the terminal, and the tables of docs/reliability.md."""

from __future__ import annotations

import inspect
import os
import platform
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path

import psycopg

from forebay._embedded import EmbeddedPostgres

from .lab import Result, Scenario, Target
from .peers import FOREBAY, PEERS
from .targets import ALWAYS

BEGIN = "<!-- fault lab: begin (written by make faults) -->\n"
END = "<!-- fault lab: end -->"

Lines = Iterator[str]


def line(scenario: Scenario, result: Result) -> str:
    """One trial on one line, and what Forebay missed in it."""
    missed = [each.text for each in scenario.targets if not each.met(result)]
    ours = result.pool in {each.name for each in FOREBAY}
    parts = [
        f"{result.scenario:22}{result.pool:20}",
        f"errors {errors(result)};",
        *(f"{name} {value}," for name, value in figures(scenario, result).items()),
        also(result),
        f"FAILED: {result.failed}" if result.failed else "",
        f"MISSED: {'; '.join(missed)}" if missed and ours else "",
    ]
    return " ".join(part for part in parts if part)


def figures(scenario: Scenario, result: Result) -> dict[str, str]:
    """The figures of a trial by the names of their columns, all but the errors."""
    return {
        "broken": str(result.broken),
        "first success": duration(result.first, scenario.cap),
        scenario.goal: duration(result.through, scenario.cap),
        "longest wait": duration(result.longest, scenario.cap),
        "leaked": str(result.leaked),
        "stranded": str(result.stranded) + (f", {result.hung} hung" if result.hung else ""),
        "abandoned": "" if result.abandoned is None else str(result.abandoned),
    }


def duration(seconds: float | None, cap: float) -> str:
    """Milliseconds below a second, seconds above; None is "never, as long as we watched"."""
    if seconds is None:
        return f"> {cap:g} s"
    # A pool may be quicker than the plain connection that tells the moment.
    return f"{max(0.0, seconds) * 1000:.0f} ms" if seconds < 0.9995 else f"{seconds:.1f} s"


def errors(result: Result) -> str:
    """How many, and which."""
    if not result.errors:
        return "0"
    kinds = sorted(result.errors.items(), key=lambda each: -each[1])
    if len(kinds) == 1:
        return f"{result.failures:,} {kinds[0][0]}"
    return f"{result.failures:,}: " + ", ".join(f"{number:,} {name}" for name, number in kinds)


def also(result: Result) -> str:
    """What else was measured."""
    return "; ".join(f"{name}: {value}" for name, value in result.facts.items())


def circumstances() -> dict[str, str]:
    """When and where: versions and machine, as far as they bear on the figures."""
    with EmbeddedPostgres() as server, psycopg.connect(server.dsn) as conn:
        postgres = conn.info.parameter_status("server_version") or "unknown"
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "command": "make faults",
        **{each.distribution: each.version for each in PEERS},
        "psycopg2": version("psycopg2-binary"),
        "psycopg": f"{psycopg.__version__} ({psycopg.pq.__impl__})",
        "Python": sys.version.split()[0],
        "server": f"PostgreSQL {postgres}",
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
    }


def write(
    page: Path,
    where: Mapping[str, str],
    scenarios: Sequence[Scenario],
    results: Sequence[Result],
) -> None:
    """Put the tables between the page's markers.

    Raises:
        ValueError: the page has no such markers.
    """
    before, begin, rest = page.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"{page} has no two lines {BEGIN.strip()!r} and {END!r}: put them in")
    page.write_text(before + begin + tables(where, scenarios, results) + end + after)


def tables(
    where: Mapping[str, str], scenarios: Sequence[Scenario], results: Sequence[Result]
) -> str:
    """Everything between the markers."""
    lines = [
        "",
        ", ".join(f"{name} {value}" for name, value in where.items()) + ".",
        "",
        *overview(scenarios, results),
        "",
        *goals(scenarios, results),
        "",
        "## Each scenario",
    ]
    for scenario in scenarios:
        lines += [
            "",
            *chapter(scenario, [each for each in results if each.scenario == scenario.name]),
        ]
    return "\n".join([*lines, "", ""])


def overview(scenarios: Sequence[Scenario], results: Sequence[Result]) -> Lines:
    """Errors and the time to the first success, of every pool in every scenario."""
    names = [peer.name for peer in PEERS if any(each.pool == peer.name for each in results)]
    by = {(each.scenario, each.pool): each for each in results}
    yield "## Errors seen by clients, and time to the first success"
    yield ""
    yield from head(["", *names])
    for scenario in scenarios:
        found = [by.get((scenario.name, name)) for name in names]
        yield row([link(scenario), *(brief(scenario, each) for each in found)])


def brief(scenario: Scenario, result: Result | None) -> str:
    """One cell of the overview."""
    if result is None:
        return ""
    if result.failed:
        return "failed"
    return f"{result.failures:,}, {duration(result.first, scenario.cap)}"


def goals(scenarios: Sequence[Scenario], results: Sequence[Result]) -> Lines:
    """What Forebay is to reach, and whether each of its pools does."""
    names = [peer.name for peer in FOREBAY]
    by = {(each.scenario, each.pool): each for each in results}
    yield "## Targets"
    yield ""
    yield from head(["", "target", *names])
    for scenario in scenarios:
        found = [by.get((scenario.name, name)) for name in names]
        further = [(each,) for each in scenario.targets if each not in ALWAYS]
        for number, targets in enumerate([ALWAYS, *further]):
            text = "; ".join(each.text for each in targets)
            answers = [verdict(targets, each) for each in found]
            yield row(["" if number else link(scenario), text, *answers])


def verdict(targets: Sequence[Target], result: Result | None) -> str:
    """Whether all these targets were met; what was not is to be seen."""
    if result is None:
        return ""
    missed = [each.text for each in targets if result.failed or not each.met(result)]
    if len(targets) == 1 or not missed:
        return "**MISSED**" if missed else "met"
    return f"**MISSED**: {'; '.join(missed)}"


def chapter(scenario: Scenario, results: Sequence[Result]) -> Lines:
    """One scenario: what is done, and a table of all pools."""
    yield f"### {scenario.title}"
    yield ""
    run = scenario.run.func if isinstance(scenario.run, partial) else scenario.run
    yield inspect.cleandoc(run.__doc__ or "")
    yield ""
    if results:
        yield from head(["pool", "errors", *figures(scenario, results[0]), "also"])
    for each in results:
        notes = f"failed: {each.failed}" if each.failed else also(each)
        yield row([each.pool, errors(each), *figures(scenario, each).values(), notes])


def link(scenario: Scenario) -> str:
    """The scenario's title, leading to its table."""
    anchor = re.sub(r"[^\w\- ]", "", scenario.title.lower()).replace(" ", "-")
    return f"[{scenario.title}](#{anchor})"


def head(cells: Sequence[str]) -> Lines:
    """The first two lines of a table."""
    yield row(cells)
    yield row(["---"] * len(cells))


def row(cells: Iterable[str]) -> str:
    """One line of a table."""
    return f"| {' | '.join(' '.join(cell.replace('|', '/').split()) for cell in cells)} |"
