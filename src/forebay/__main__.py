"""The command `forebay`: `forebay demo` shows the pools at work."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable, Sequence
from types import FrameType

from . import __version__

INSTALL = "forebay demo: {missing} is not installed: pip install 'forebay[demo]'"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code.

    `forebay demo` gives 0 when everything is proven, 1 when a proof failed, 2 when it could not
    run, 130 after Ctrl-C.
    """
    options = _parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, _end)
    try:
        return _demo(options)
    except KeyboardInterrupt:
        print("\nforebay demo: interrupted; everything is stopped", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="forebay", description="Connection pools for PostgreSQL.")
    parser.add_argument("--version", action="version", version=f"forebay {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    demo = commands.add_parser(
        "demo",
        help="a bank under load, a server restart in the middle, and the proof",
        description="Hundreds of threads and asyncio tasks move money through a few connections "
        "while the server restarts. At the end: is every coin there, and every connection "
        "closed? It runs its own PostgreSQL, or works on the server that FOREBAY_DSN names.",
    )
    for name, kind, default, text in (
        ("--seconds", _seconds, 20.0, "how long the load lasts; it takes a few seconds more"),
        ("--threads", _count(1, 2_000), 200, "clients that are threads"),
        ("--tasks", _count(1, 10_000), 300, "clients that are asyncio tasks"),
        (
            "--connections",
            _count(2, 100),
            8,
            "connections, half for the threads, half for the tasks",
        ),
    ):
        text += " (default %(default)g)"
        demo.add_argument(name, type=kind, default=default, metavar="N", help=text)
    return parser


def _demo(options: argparse.Namespace) -> int:
    try:
        from .demo.run import DemoError, Options, run_demo
    except ImportError as error:
        # psycopg without a libpq names no module.
        package = (error.name or "psycopg[binary]").partition(".")[0]
        if package == "forebay":
            raise
        print(INSTALL.format(missing=package), file=sys.stderr)
        return 2
    try:
        return run_demo(
            Options(options.seconds, options.threads, options.tasks, options.connections)
        )
    except DemoError as error:
        print(f"forebay demo: {error}", file=sys.stderr)
        return 2


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 1 <= seconds <= 3600:
        raise argparse.ArgumentTypeError(f"expected seconds from 1 to 3600, got {text!r}")
    return seconds


def _count(least: int, most: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not text.isdecimal() or not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(
                f"expected a whole number from {least} to {most}, got {text!r}"
            )
        return int(text)

    return parse


def _end(signum: int, _frame: FrameType | None) -> None:
    """Leave through every `with` block, so that the server is stopped."""
    raise SystemExit(128 + signum)


if __name__ == "__main__":
    sys.exit(main())
