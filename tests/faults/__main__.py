"""`python -m tests.faults`: the fault lab, for Forebay and the pools it is compared with."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from forebay._embedded import EmbeddedPostgres

from .lab import SETTINGS, Lab, Result, Scenario, Trial
from .peers import PEERS, Peer, checked
from .report import circumstances, line, write
from .scenarios import SCENARIOS

PAGE = Path(__file__).parents[2] / "docs" / "reliability.md"


def options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """What the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="SCENARIO",
        choices=[each.name for each in SCENARIOS],
        help="play only this one (may be repeated): %(choices)s",
    )
    parser.add_argument(
        "--pool",
        action="append",
        default=[],
        choices=[each.name for each in PEERS],
        help="try only this pool (may be repeated)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there too")
    parser.add_argument("--write", action="store_true", help=f"put the table into {PAGE.name}")
    parser.add_argument("--seed", type=int, default=4, help="of what is random (default: 4)")
    chosen = parser.parse_args(arguments)
    if chosen.json is not None and not chosen.json.absolute().parent.is_dir():
        parser.error(f"--json {chosen.json}: its directory does not exist; create it first")
    if chosen.write and (chosen.only or chosen.pool):
        parser.error("--write is for the whole table: leave out --only and --pool")
    return chosen


def pairs(chosen: argparse.Namespace) -> Iterator[tuple[Scenario, Peer]]:
    """Which scenario is played with which pool, in the table's order."""
    for scenario in SCENARIOS:
        for peer in PEERS:
            asked = (not chosen.only or scenario.name in chosen.only) and (
                not chosen.pool or peer.name in chosen.pool
            )
            apt = peer.name not in scenario.without and (scenario.check or not checked(peer))
            if asked and apt:
                yield scenario, peer


def play(chosen: argparse.Namespace) -> list[Result]:
    """Play everything that was chosen, naming each result on stderr."""
    results = []
    with EmbeddedPostgres(SETTINGS) as server:
        lab = Lab(server)
        for scenario, peer in pairs(chosen):
            lab.refresh()
            results.append(Trial(lab, scenario, peer.make(), seed=chosen.seed).play())
            sys.stderr.write(f"{line(scenario, results[-1])}\n")
    return results


def main(arguments: Sequence[str] | None = None) -> int:
    """Play and report. The exit code says that it ran, never that a target was met."""
    chosen = options(arguments)
    logging.getLogger().addHandler(
        logging.NullHandler()
    )  # what the pools warn of is what we do to them
    results = play(chosen)
    if chosen.json is not None:
        chosen.json.write_text(json.dumps([asdict(each) for each in results], indent=2) + "\n")
    if chosen.write:
        write(PAGE, circumstances(), SCENARIOS, results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
