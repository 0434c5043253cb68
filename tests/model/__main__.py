"""Explore all configurations and print what was visited: `python -m tests.model`."""

from __future__ import annotations

import argparse
import sys

from .configurations import DEEP, TABLE
from .explore import Result, explore, story

HEAD = f"{'configuration':26} {'bounds':58} {'states':>8} {'transitions':>12} {'seconds':>8}"


def main() -> int:
    """Explore, print a table; 1 if something is violated."""
    parser = argparse.ArgumentParser(prog="python -m tests.model", description=__doc__)
    parser.add_argument("--deep", action="store_true", help="larger bounds (minutes)")
    parser.add_argument("names", nargs="*", help="only these configurations")
    options = parser.parse_args()
    configurations = DEEP if options.deep else TABLE
    _print(HEAD)
    results = []
    for config in configurations:
        if not options.names or config.name in options.names:
            results.append(explore(config))
            _print(_row(results[-1]))
    states, transitions = sum(r.states for r in results), sum(r.transitions for r in results)
    seconds = sum(r.seconds for r in results)
    _print(f"{'total':26} {'':58} {states:8} {transitions:12} {seconds:8.1f}")
    return int(any(r.sentence for r in results))


def _print(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _row(result: Result) -> str:
    config = result.config
    row = (
        f"{config.name:26} {config.bounds():58} {result.states:8} {result.transitions:12}"
        f" {result.seconds:8.1f}"
    )
    return row if result.sentence is None else f"{row}\n{story(result)}"


if __name__ == "__main__":
    sys.exit(main())
