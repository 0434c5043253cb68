"""The command `forebay`: `demo` shows the pools at work, `run` puts them into a program."""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import signal
import sys
from collections.abc import Callable, Sequence
from types import FrameType

from . import __version__, _migration

INSTALL = "forebay demo: {missing} is not installed: pip install 'forebay[demo]'"


RUN = """\
Start a program in which imports of other pools find Forebay: for programs that are
started by a command of their own, and import their pool before anything else can be said.
COMMAND may be any program; it takes the place of this one, and what Python programs it
starts have Forebay installed too.  Where the program never imports those pools, nothing
is changed and nothing is loaded.  Python's options -I, -E and -S switch it off.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code.

    `forebay demo` gives 0 when everything is proven, 1 when a proof failed, 2 when it could not
    run, 130 after Ctrl-C.  `forebay run` ends as its command does; 127: there is no such command,
    126: it cannot be run.
    """
    options = _parser().parse_args(arguments)
    action: Callable[[argparse.Namespace], int] = options.action
    return action(options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="forebay", description="Connection pools for PostgreSQL.")
    parser.add_argument("--version", action="version", version=f"forebay {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    _add_demo(commands.add_parser)
    _add_run(commands.add_parser)
    _add_env(commands.add_parser)
    return parser


def _add_demo(add_parser: Callable[..., argparse.ArgumentParser]) -> None:
    demo = add_parser(
        "demo",
        help="a bank under load, a server restart in the middle, and the proof",
        description="Hundreds of threads and asyncio tasks move money through a few connections "
        "while the server restarts. At the end: is every coin there, and every connection "
        "closed? It runs its own PostgreSQL, or works on the server that FOREBAY_DSN names.",
    )
    demo.set_defaults(action=_demo)
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


def _add_run(add_parser: Callable[..., argparse.ArgumentParser]) -> None:
    run = add_parser(
        "run",
        help="start a program in which imports of other pools find Forebay",
        usage="forebay run [--only NAMES] [--] COMMAND ...",
        description=RUN,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_only(run)
    run.add_argument("program", nargs=argparse.REMAINDER, metavar="COMMAND ...", help="the program")
    run.set_defaults(action=_run, usage_error=run.error)


def _add_env(add_parser: Callable[..., argparse.ArgumentParser]) -> None:
    env = add_parser(
        "env",
        help="print the environment variables by which `run` does that",
        description="Print the environment variables that `forebay run` sets, for a place where "
        "the command cannot be changed, as in `env $(forebay env) COMMAND`.",
    )
    _add_only(env)
    env.set_defaults(action=_env)


def _add_only(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--only",
        type=_names,
        default=os.environ.get(_migration.VARIABLE) or ",".join(_migration.DRIVERS),
        metavar="NAMES",
        help="which pools, with commas (default: %(default)s; FOREBAY_INSTALL sets another)",
    )


def _run(options: argparse.Namespace) -> int:
    program: list[str] = options.program
    if program[:1] == ["--"]:
        del program[0]
    if not program:
        options.usage_error("a command is expected, as in: forebay run -- procrastinate worker")
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)  # Python ignores them; the program shall not inherit
    variables = _migration.environment(options.only, os.environ)
    try:
        os.execvpe(program[0], program, {**os.environ, **variables})
    except (FileNotFoundError, NotADirectoryError):
        print(f"forebay run: {program[0]}: {_missing(program[0])}", file=sys.stderr)
        return 127
    except OSError as error:
        print(f"forebay run: {program[0]} cannot be run: {error.strerror}", file=sys.stderr)
        return 126


def _missing(program: str) -> str:
    found = shutil.which(program)
    if found is None:
        return "command not found: give a path, or a name that is on the PATH"
    return f"the interpreter that the first line of {found} names is not there"


def _env(options: argparse.Namespace) -> int:
    for name, value in _migration.environment(options.only, os.environ).items():
        print(f"{name}={shlex.quote(value)}")
    return 0


def _demo(options: argparse.Namespace) -> int:
    signal.signal(signal.SIGTERM, _end)
    try:
        return _play(options)
    except KeyboardInterrupt:
        print("\nforebay demo: interrupted; everything is stopped", file=sys.stderr)
        return 130


def _play(options: argparse.Namespace) -> int:
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


def _names(text: str) -> list[str]:
    try:
        return _migration.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


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
