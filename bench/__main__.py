"""`python -m bench`: measure, then print a table."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psycopg

from .cases import CASES
from .report import Row, as_json, circumstances, rows, table
from .rounds import run

ROUNDS = 25
QUICK_ROUNDS = 5
QUICK_SHARE = 5
"""`--quick` does this fraction of the turns of each round."""


def options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """What the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few, short rounds: a rough look")
    parser.add_argument(
        "--case",
        action="append",
        default=[],
        choices=[case.name for case in CASES],
        help="measure only this case (may be repeated)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result there too")
    chosen = parser.parse_args(arguments)
    if chosen.json is not None and not chosen.json.absolute().parent.is_dir():
        parser.error(f"--json {chosen.json}: its directory does not exist; create it first")
    return chosen


@contextmanager
def server() -> Iterator[str]:
    """The DSN of the server that `FOREBAY_DSN` names, or of an embedded one."""
    given = os.environ.get("FOREBAY_DSN")
    if given:
        yield given
        return
    # Only now: with FOREBAY_DSN the packages that the embedded server needs may be absent.
    from forebay._embedded import EmbeddedPostgres

    with EmbeddedPostgres() as embedded:
        yield embedded.dsn


def measure(chosen: argparse.Namespace, dsn: str, rounds: int) -> list[Row]:
    """Run the chosen cases one after the other, naming each on stderr."""
    found: list[Row] = []
    for case in CASES:
        if not chosen.case or case.name in chosen.case:
            print(f"measuring {case.name} ...", file=sys.stderr, flush=True)
            repeats = max(2, case.repeats // QUICK_SHARE) if chosen.quick else case.repeats
            found += rows(case, run(case, dsn, rounds, repeats))
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and report. The exit code says that it ran, never that it was fast."""
    chosen = options(arguments)
    rounds = QUICK_ROUNDS if chosen.quick else ROUNDS
    with server() as dsn:
        try:
            where = circumstances(dsn)
        except psycopg.OperationalError as error:
            sys.exit(f"bench: cannot connect to the server (is FOREBAY_DSN right?): {error}")
        found = measure(chosen, dsn, rounds)
    for name, value in where.items():
        print(f"{name + ':':<15}{value}")
    print(f"\n{table(found)}\n\nMedians of {rounds} rounds. bench/README.md says what is measured.")
    if chosen.json is not None:
        chosen.json.write_text(json.dumps(as_json(where, rounds, found), indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
