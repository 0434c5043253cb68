"""Prepares a copy of the tree in which mutmut can mutate every function of the core.

mutmut leaves decorated functions alone, and so every transition that is a `step`.  In the copy,
`@step` above a method is an assignment below it: the same to Python, and not to mutmut.  `make
mutants` runs it, and then mutmut in the copy.

    python docs/undecorated.py build/mutants
"""

from __future__ import annotations

import ast
import shutil
import sys
import tomllib
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parents[1]
NEEDED = ("src", "tests", "pyproject.toml")

#: Which decorators become what, for a function `{name}`.
BELOW = {
    "property": "{name} = property({name})",
    # At each call, so that mutants of `step` count: mutmut chooses the mutant after the import.
    "step": "{name} = (lambda it: lambda *args, **kwargs: step(it)(*args, **kwargs))({name})",
    # Of what is inside a `step`: it copies names, which are nothing to a test.
    "wraps(transition)": "",
}

#: mutmut does this one itself.
LEFT = "classmethod"


def undecorated(source: str) -> str:
    """The same program, where what decorates a function stands below it."""
    above: set[int] = set()
    below: dict[int, list[str]] = defaultdict(list)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef) and node.decorator_list:
            (decorator,) = node.decorator_list
            text = ast.unparse(decorator)
            if text != LEFT:
                above.add(decorator.lineno)
                line = " " * node.col_offset + BELOW[text].format(name=node.name)
                below[node.end_lineno or 0].append(line)
    lines = [
        text
        for number, line in enumerate(source.splitlines(), 1)
        for text in ([] if number in above else [line, *below[number]])
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Copy what the tests need, and rewrite what is mutated."""
    target = Path(sys.argv[1])
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for name in NEEDED:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, target / name)
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    for name in settings["tool"]["mutmut"]["only_mutate"]:
        file = target / name
        file.write_text(undecorated(file.read_text("utf-8")), "utf-8")


if __name__ == "__main__":
    main()
