"""Compares the mutants that nobody noticed with those that `mutants.md` explains.

`make mutants` runs it after `mutmut run`.  It prints every survivor, and fails if one has no row in
the table of the page, or a row no survivor: the page says neither less nor more than what is so.

    python docs/mutants.py
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

PAGE = Path(__file__).parent / "mutants.md"

#: Where mutmut has run, see `undecorated.py`.
COPY = Path(__file__).parents[1] / "build" / "mutants"

#: Noticed: a test failed, or ran for ever.
NOTICED = ("killed", "timeout")

#: The function and the changed line: mutmut's own numbers change with the code around.
Survivor = tuple[str, str]


def survivors() -> set[Survivor]:
    """What the last run left."""
    rows = re.findall(r"(\S+): (.+)", _mutmut("results", "--all", "true"))
    if not rows:
        sys.exit("there are no results: run `make mutants`")
    noticed = sum(status in NOTICED for _, status in rows)
    sys.stdout.write(f"{len(rows)} mutants, {noticed} noticed\n")
    return {_described(name) for name, status in rows if status not in NOTICED}


def _described(name: str) -> Survivor:
    """The function that was mutated, and the line as the mutant has it, without its comment."""
    function = re.sub(r"^.*\.x(_|ǁ)|__mutmut_\d+$", "", name).replace("ǁ", ".")
    changed = re.findall(r"^\+(?!\+\+)(.*)", _mutmut("show", name), re.MULTILINE)
    return function, " ".join(line.partition("  # ")[0].strip() for line in changed)


def _mutmut(*arguments: str) -> str:
    command = [sys.executable, "-m", "mutmut", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, cwd=COPY).stdout


def explained() -> set[Survivor]:
    """What the table of the page lists: in its first two columns, the function and the line."""
    rows = re.findall(r"^\| `(.+?)` \| `(.+?)` \| .+ \|$", PAGE.read_text("utf-8"), re.MULTILINE)
    return {(function, line) for function, line in rows}


def main() -> int:
    """Print every survivor, and what the page says too little or too much."""
    found, known = survivors(), explained()
    for function, line in sorted(found):
        verdict = "explained" if (function, line) in known else "NOT EXPLAINED in docs/mutants.md"
        sys.stdout.write(f"survived, {verdict}: {function}: {line}\n")
    for function, line in sorted(known - found):
        sys.stdout.write(f"in docs/mutants.md, but no survivor: {function}: {line}\n")
    return int(found != known)


if __name__ == "__main__":
    sys.exit(main())
