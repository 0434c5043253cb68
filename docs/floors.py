"""Draws the floors of the library in `architecture.md`, from the imports that the modules make.

The floors are listed here, from the top down; the arrows are what was found.  An import that leads
up, or a module without a floor, is an error.

    python docs/floors.py      # writes the picture into docs/architecture.md
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import forebay

PAGE = Path(__file__).parent / "architecture.md"
BEGIN = "<!-- floors: begin (written by docs/floors.py) -->\n"
END = "<!-- floors: end -->"

SOURCE = Path(forebay.__file__).parent

#: From the top down: the modules, or packages, of each floor.
FLOORS = {
    "doors": (
        *("pool", "pool_async", "psycopg2", "psycopg2_pool", "psycopg_pool"),
        *("_thread_door", "_async_door", "_door", "_fork", "_signature"),
    ),
    "worlds": ("_threads", "_asyncio", "_inline", "_locks"),
    "flows": ("_flows", "_runtime"),
    "drivers": ("drivers", "_sockets"),
    "errors": ("errors", "_stacks"),
    "core": ("_core", "_entry", "_policy", "options"),
}

#: No part of the pool: the demo, its server, the installers, what is for tests.
APART = {
    *("__init__", "__main__", "_migration", "_hook"),
    *("_embedded", "_watchdog", "demo", "testing"),
}

#: The floor of each module, by its first name below `forebay`.
FLOOR_OF = {module: floor for floor, modules in FLOORS.items() for module in modules}


def modules() -> Iterator[tuple[str, Path]]:
    """Every module of the pool: its first name, and its file."""
    for path in sorted(SOURCE.rglob("*.py")):
        first = path.relative_to(SOURCE).with_suffix("").parts[0]
        if first in APART:
            continue
        if first not in FLOOR_OF:
            raise ValueError(f"{first} has no floor: put it on one in docs/floors.py")
        yield first, path


def imported(path: Path) -> set[str]:
    """The first names below `forebay` of what a file imports when it runs."""
    found: set[str] = set()
    folder = path.relative_to(SOURCE).parent.parts
    for node in _run(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = folder[: len(folder) - node.level + 1]
            names = [node.module] if node.module else [alias.name for alias in node.names]
            found |= {(*base, *name.split("."))[0] for name in names}
    return found


def _run(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes that are executed: not what only type checkers see."""
    if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
        return
    yield node
    for child in ast.iter_child_nodes(node):
        yield from _run(child)


def arrows() -> list[tuple[str, str]]:
    """From which floor to which imports lead."""
    order = list(FLOORS)
    found: set[tuple[str, str]] = set()
    for first, path in modules():
        here = FLOOR_OF[first]
        for other in imported(path) & FLOOR_OF.keys():
            there = FLOOR_OF[other]
            if order.index(there) < order.index(here):
                raise ValueError(f"{path.relative_to(SOURCE)} imports {other}, a floor above it")
            if there != here:
                found.add((here, there))
    return sorted(found, key=lambda pair: (order.index(pair[0]), order.index(pair[1])))


def render() -> str:
    """The picture, as a fenced block."""
    rooms = [f'    {floor}["{floor}: {", ".join(names)}"]' for floor, names in FLOORS.items()]
    lines = [f"    {above} --> {below}" for above, below in arrows()]
    return "\n".join(["```mermaid", "flowchart TD", *rooms, *lines, "```", ""])


def main() -> None:
    """Put the picture into the page."""
    page = PAGE.read_text()
    head, _, rest = page.partition(BEGIN)
    _, _, tail = rest.partition(END)
    PAGE.write_text(head + BEGIN + render() + END + tail)


if __name__ == "__main__":
    main()
