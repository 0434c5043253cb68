"""Counts what a reader of the library meets: lines, functions, parameters, documented names.

    python tools/census.py [SOURCE]      # by default src/forebay of this tree

Without the demo, its server and what installs: as a reader of the pool would count.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import median, quantiles

APART = ("demo", "_embedded.py", "_watchdog.py", "_hook")
#: Counted by the lines that name it: what it takes to carry one option from a user to the core.
AN_OPTION = "leak_threshold"

Function = ast.FunctionDef | ast.AsyncFunctionDef


def files(source: Path) -> list[Path]:
    """The modules of the library."""
    found = sorted(source.rglob("*.py"))
    return [path for path in found if path.relative_to(source).parts[0] not in APART]


def functions(tree: ast.AST) -> Iterator[Function]:
    """Every function and method, however deep."""
    return (node for node in ast.walk(tree) if isinstance(node, Function))


def length(function: Function) -> int:
    """Its lines, from the first decorator to the last line."""
    begin = min([function.lineno, *(each.lineno for each in function.decorator_list)])
    return (function.end_lineno or begin) - begin + 1


def parameters(function: Function) -> int:
    """How many it takes, without `self` and `cls`."""
    given = function.args
    names = [each.arg for each in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
    return len([name for name in names if name not in ("self", "cls")])


def public(tree: ast.Module) -> Iterator[ast.AST]:
    """What a module offers by a name without an underscore, and the methods of its classes."""
    for node in tree.body:
        if isinstance(node, ast.ClassDef | Function) and not node.name.startswith("_"):
            yield node
            if isinstance(node, ast.ClassDef):
                yield from (
                    each
                    for each in node.body
                    if isinstance(each, Function) and not each.name.startswith("_")
                )


def slots(core: ast.Module) -> int:
    """How many slots `Core` has."""
    for node in ast.walk(core):
        if isinstance(node, ast.ClassDef) and node.name == "Core":
            for line in node.body:
                if isinstance(line, ast.Assign) and ast.unparse(line.targets[0]) == "__slots__":
                    return len(ast.literal_eval(line.value))
    return 0


def circles(source: Path) -> list[list[str]]:
    """The circles of imports that are made at run time, by the modules' names."""
    modules = {path.relative_to(source).with_suffix("").parts: path for path in files(source)}
    imports = {name: set(_imported(name, path, modules)) for name, path in modules.items()}
    found: list[list[str]] = []
    for start in imports:
        ways = [[start]]
        while ways:
            way = ways.pop()
            for name in imports[way[-1]]:
                if name == start:
                    found.append([".".join(each) for each in way])
                elif name > start and name not in way:
                    ways.append([*way, name])
    return found


def _imported(
    name: tuple[str, ...], path: Path, modules: dict[tuple[str, ...], Path]
) -> Iterator[tuple[str, ...]]:
    """What a module imports of its siblings when it is imported."""
    tree = ast.parse(path.read_text("utf-8"))
    skipped = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, Function)
        or (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if not isinstance(node, ast.ImportFrom) or not node.level or node in skipped:
            continue
        folder = name[: len(name) - node.level]
        home = (*folder, *(node.module or "").split(".")) if node.module else folder
        for each in [home, *((*home, alias.name) for alias in node.names)]:
            target = each if each in modules else (*each, "__init__")
            if target in modules and target != name:
                yield target


def main() -> None:
    """Print a table of one row for each number."""
    here = Path(__file__).parent.parent / "src" / "forebay"
    source = Path(sys.argv[1]) if len(sys.argv) > 1 else here
    texts = {path: path.read_text("utf-8") for path in files(source)}
    trees = {path: ast.parse(text) for path, text in texts.items()}
    lines = {path: text.count("\n") for path, text in texts.items()}
    every = [each for tree in trees.values() for each in functions(tree)]
    lengths = sorted(map(length, every))
    makers = [each for each in every if each.name == "__init__"]
    names = [each for tree in trees.values() for each in public(tree)]
    told = [each for each in names if ast.get_docstring(each)]  # type: ignore[arg-type]
    longest = max(lines, key=lambda path: lines[path])
    core = next(path for path in texts if path.stem in ("_core", "core"))
    spelled = sum(AN_OPTION in line for text in texts.values() for line in text.splitlines())
    table = {
        "lines": sum(lines.values()),
        "modules": len(lines),
        "longest module": f"{lines[longest]} ({longest.stem})",
        "functions": len(every),
        "length of a function: median, p90, longest": (
            f"{median(lengths):.0f}, {quantiles(lengths, n=10)[-1]:.0f}, {lengths[-1]}"
        ),
        "longest constructor": max(map(length, makers)),
        "most parameters": max(map(parameters, every)),
        "lines that spell one option": f"{spelled} ({AN_OPTION})",
        "slots of Core": slots(trees[core]),
        "lines of Core's module": lines[core],
        "circles of imports": len(circles(source)),
        "public names documented": f"{len(told)} of {len(names)}",
    }
    width = max(map(len, table))
    for label, value in table.items():
        sys.stdout.write(f"{label:{width}}  {value}\n")


if __name__ == "__main__":
    main()
