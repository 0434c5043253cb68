"""What the samples say: medians, ratios with their quartiles, targets, and where it was run."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from statistics import median, quantiles

import psycopg

from .cases import NS, Case
from .peers import MATCHES
from .rounds import FLOOR, Samples


@dataclass(frozen=True)
class Ratio:
    """Our value divided by a peer's, round by round: the median and the quartiles around it."""

    peer: str
    median: float
    lower: float
    upper: float


@dataclass(frozen=True)
class Row:
    """One measure of one case: the median of each pool, our ratio to each peer, the target.

    The target is a ratio to the `yardstick`.
    """

    case: str
    title: str
    measure: str
    medians: dict[str, float]
    ratios: list[Ratio]
    target: float | None
    met: bool | None
    yardstick: str


def rows(case: Case, samples: Samples) -> list[Row]:
    """One row for each measure of the case."""
    return [row(case, samples, measure) for measure in samples[case.match.ours.name][0]]


def row(case: Case, samples: Samples, measure: str) -> Row:
    """The row of one measure; a target is met when the median ratio is no higher."""
    values = {name: [sample[measure] for sample in each] for name, each in samples.items()}
    ours, yardstick = values[case.match.ours.name], case.match.yardstick.name
    ratios = [
        ratio(name, ours, theirs)
        for name, theirs in values.items()
        if name not in (case.match.ours.name, FLOOR)
    ]
    target = case.target if measure == NS else None
    reached = next((each.median for each in ratios if each.peer == yardstick), None)
    met = None if target is None or reached is None else reached <= target
    medians = {name: median(each) for name, each in values.items()}
    return Row(case.name, case.title, measure, medians, ratios, target, met, yardstick)


def ratio(peer: str, ours: Sequence[float], theirs: Sequence[float]) -> Ratio:
    """Compare within each round first: what slowed a round down slowed both pools."""
    each_round = [mine / other for mine, other in zip(ours, theirs, strict=True)]
    lower, middle, upper = quantiles(each_round, n=4, method="inclusive")
    return Ratio(peer, middle, lower, upper)


def circumstances(dsn: str) -> dict[str, str]:
    """Versions and machine, as far as they bear on the figures."""
    with psycopg.connect(dsn) as conn:
        server = conn.info.parameter_status("server_version") or "unknown"
    load = f"{os.getloadavg()[0]:.2f}" if hasattr(os, "getloadavg") else "unknown"
    return {
        "python": f"{platform.python_implementation()} {sys.version.split()[0]}",
        "psycopg": f"{psycopg.__version__} ({psycopg.pq.__impl__})",
        **{each.name: version(each.distribution) for match in MATCHES for each in match.peers},
        "server": f"PostgreSQL {server}",
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "load before": load,
    }


def table(found: Sequence[Row]) -> str:
    """The rows as aligned text, one line for each row and peer."""
    names = [*dict.fromkeys(peer.name for match in MATCHES for peer in match.peers), FLOOR]
    head = ["case", "measure", *names, "ratio to", "median", "quartiles", "target", "met"]
    return "\n".join(
        aligned([head, *(cells(each, by, names) for each in found for by in each.ratios)])
    )


def cells(each: Row, by: Ratio, names: Iterable[str]) -> list[str]:
    """One line of the table: a row and our ratio to one peer."""
    aimed = each.target is not None and by.peer == each.yardstick
    return [
        each.title,
        each.measure,
        *(f"{each.medians[name]:,.0f}" if name in each.medians else "" for name in names),
        by.peer,
        f"{by.median:.3f}",
        f"{by.lower:.3f} to {by.upper:.3f}",
        f"<= {each.target}" if aimed else "",
        ("yes" if each.met else "NO") if aimed else "",
    ]


def aligned(lines: Sequence[Sequence[str]]) -> list[str]:
    """Pad every column to its widest cell: the two of words to the left, the rest to the right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if column < 2 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]


def as_json(where: dict[str, str], rounds: int, found: Sequence[Row]) -> dict[str, object]:
    """The whole result, for other programs to read."""
    return {"circumstances": where, "rounds": rounds, "rows": [asdict(each) for each in found]}
