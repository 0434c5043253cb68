"""The drawing: a live panel on a terminal, plain lines everywhere else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from .meter import Gauge
from .proof import Finding

BLOCKS = " ▁▂▃▄▅▆▇█"
SPARKS = 40
"""How many columns the curve of the transfer rate has."""


@dataclass(slots=True)
class Lane:
    """One crowd at this moment."""

    name: str
    gauge: Gauge
    rate: float
    p50: float
    p99: float
    errors: int


@dataclass(slots=True)
class Frame:
    """All that is shown at this moment. `outage` names the buckets of the server's restart."""

    elapsed: float
    seconds: float
    lanes: list[Lane]
    total: int
    buckets: list[int]
    outage: range

    @property
    def rate(self) -> float:
        """Transfers per second of all crowds."""
        return sum(lane.rate for lane in self.lanes)


Row = tuple[str, list[str]]
"""A name, and a cell for each column."""


@dataclass(slots=True)
class Report:
    """The end of the story: a table with a column for each crowd, then the findings."""

    columns: list[str]
    sections: list[list[Row]]
    findings: list[Finding]


def seconds_text(seconds: float) -> str:
    """Milliseconds below a second, seconds above."""
    return f"{seconds * 1000:.0f} ms" if seconds < 0.9995 else f"{seconds:.2f} s"


def sparkline(counts: Sequence[int]) -> str:
    """One block a count, as high as the count is to the highest."""
    highest = max(counts, default=0) or 1
    return "".join(BLOCKS[-(-count * (len(BLOCKS) - 1) // highest)] for count in counts)


class PlainScreen:
    """Lines for a pipe or a log: no colours, no cursor, nothing but ASCII."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._next_second = 1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def begin(self, title: str) -> None:
        """Begin a chapter."""
        self._next_second = 1
        self._print(f"--- {title}")

    def say(self, text: str) -> None:
        """Tell what happened."""
        self._print(text)

    def draw(self, frame: Frame) -> None:
        """Print one line a second."""
        if frame.elapsed < self._next_second:
            return
        self._next_second = int(frame.elapsed) + 1
        self._print(f"{int(frame.elapsed):3} s {frame.rate:6,.0f} tx/s, {frame.total:,} so far")
        for lane in frame.lanes:
            self._print(f"      {_plain_lane(lane)}")

    def report(self, report: Report) -> None:
        """Print the table, then the findings."""
        width = max(len(name) for section in report.sections for name, _ in section) + 2
        self._print("")
        self._print(" " * width + "".join(f"{name:>14}" for name in report.columns))
        for section in report.sections:
            for name, cells in section:
                self._print(f"{name:<{width}}" + "".join(f"{cell:>14}" for cell in cells))
        self._print("")
        for finding in report.findings:
            self._print(f"{'ok  ' if finding.holds else 'FAIL'} {finding.text}")

    def _print(self, line: str) -> None:
        print(line, file=self._console.file, flush=True)


def _plain_lane(lane: Lane) -> str:
    gauge = lane.gauge
    return (
        f"{lane.name}: {gauge.lent} lent, {gauge.idle} idle, {gauge.opening} opening of "
        f"{gauge.size}; {gauge.waiting} waiting, p50 {seconds_text(lane.p50)}, "
        f"p99 {seconds_text(lane.p99)}, {lane.errors} errors"
    )


class LiveScreen:
    """A panel for each chapter, redrawn in place, with the story below the numbers."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._title = ""
        self._story: list[str] = []
        self._frame: Frame | None = None
        self._live: Live | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._freeze()

    def begin(self, title: str) -> None:
        """Leave the last panel as it is and begin one below it."""
        self._freeze()
        self._title, self._story, self._frame = title, [], None
        self._live = Live(console=self._console, auto_refresh=False, get_renderable=self._panel)
        self._live.start()

    def say(self, text: str) -> None:
        """Add a line to the story."""
        self._story.append(text)
        self._refresh()

    def draw(self, frame: Frame) -> None:
        """Redraw the panel."""
        self._frame = frame
        self._refresh()

    def report(self, report: Report) -> None:
        """Leave the last panel as it is and print the table below it."""
        self._freeze()
        self._console.print(_table(report))
        for finding in report.findings:
            mark = Text("✔ ", "green") if finding.holds else Text("✘ ", "bold red")
            self._console.print(mark + Text(finding.text, "" if finding.holds else "bold red"))

    def _refresh(self) -> None:
        if self._live is not None:
            self._live.refresh()

    def _freeze(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _panel(self) -> RenderableType:
        parts: list[RenderableType] = []
        if self._frame is not None:
            parts += [_headline(self._frame), Text(), _lanes(self._frame), _legend(), Text()]
        parts += [Text(line, overflow="ellipsis", no_wrap=True) for line in self._story]
        clock = f"{self._frame.elapsed:.1f} of {self._frame.seconds:g} s" if self._frame else None
        return Panel(
            Group(*parts),
            title=f"[bold]{self._title}",
            title_align="left",
            subtitle=clock,
            subtitle_align="right",
            border_style="cyan",
            width=min(self._console.width, 100),
        )


Screen = LiveScreen | PlainScreen


def _headline(frame: Frame) -> Text:
    line = Text(f"{frame.rate:6,.0f} tx/s  ", "bold")
    first = max(0, len(frame.buckets) - SPARKS)
    curve = sparkline(frame.buckets[first:])
    for index, block in enumerate(curve, start=first):
        line.append(block, "red" if index in frame.outage else "green")
    line.append(" " * (SPARKS - len(curve)))
    return line.append(f"  {frame.total:8,} transfers")


def _lanes(frame: Frame) -> Table:
    table = Table(box=None, padding=(0, 1), pad_edge=False)
    table.add_column("")
    table.add_column("connections", no_wrap=True)
    for heading in ("waiting", "p50", "p99", "tx/s", "errors"):
        table.add_column(heading, justify="right", no_wrap=True)
    for lane in frame.lanes:
        table.add_row(
            Text(lane.name, "bold"),
            _bar(lane.gauge),
            f"{lane.gauge.waiting}",
            seconds_text(lane.p50),
            seconds_text(lane.p99),
            f"{lane.rate:,.0f}",
            Text(f"{lane.errors}", "red" if lane.errors else "dim"),
        )
    return table


def _bar(gauge: Gauge) -> Text:
    """Draw each connection as a block; a pool that is short of some shows the gaps."""
    wide = max(1, 16 // gauge.size - 1)
    absent = max(0, gauge.size - gauge.lent - gauge.idle - gauge.opening)
    kinds = (
        ("█", "green", gauge.lent),
        ("░", "green", gauge.idle),
        ("▒", "yellow", gauge.opening),
        ("·", "dim", absent),
    )
    cells = [Text(block * wide, style) for block, style, count in kinds for _ in range(count)]
    return Text(" ").join(cells[: gauge.size])


def _legend() -> Text:
    return Text.assemble(
        ("█", "green"), " lent  ", ("░", "green"), " idle  ",
        ("▒", "yellow"), " opening  ", "· none   (p50, p99: waiting for a connection)",
        style="dim",
    )  # fmt: skip


def _table(report: Report) -> Table:
    table = Table(box=box.ROUNDED, border_style="cyan", header_style="bold")
    table.add_column("")
    for name in report.columns:
        table.add_column(name, justify="right", no_wrap=True)
    for section in report.sections:
        for name, cells in section:
            table.add_row(name, *cells)
        table.add_section()
    return table
