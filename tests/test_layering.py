"""Which module may import which: the separation that DESIGN's rules draw, and nothing else."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

import forebay

SOURCE = Path(forebay.__file__).parent

#: What makes a world or reaches out of it; all other modules of the standard library are free.
RESTRICTED = {
    *("_thread", "asyncio", "multiprocessing", "random", "select", "socket", "threading", "time"),
    *("psycopg", "psycopg2"),
}

#: What each module may import of its siblings, and of what is restricted.
ALLOWED = {
    "_policy": set(),
    "_entry": set(),
    "_core": {"_entry", "_policy"},
    "_runtime": set(),
    "_stacks": set(),
    "errors": {"_entry", "_stacks"},
    "_flows": {"_core", "_entry", "_policy", "_runtime", "errors"},
    "_sockets": {"select", "socket"},
    "_locks": {"_thread", "threading"},
    "_threads": {
        *("_thread", "random", "threading", "time"),
        *("_entry", "_locks", "_policy", "_runtime"),
    },
    "_inline": {"random", "threading", "time", "_locks", "_runtime", "_threads"},
    "_asyncio": {
        *("asyncio", "random", "time"),
        *("_core", "_entry", "_policy", "_runtime", "_stacks"),
    },
    "options": {"_policy"},
    "_signature": {"options"},
    "_fork": {"socket", "threading", "_core", "_entry", "_flows", "_runtime", "_sockets"},
    "_door": {"_core", "_entry", "_flows", "_fork", "_locks", "options"},
    "_thread_door": {
        *("threading", "_core", "_door", "_fork"),
        *("_runtime", "_stacks", "_threads", "errors", "options"),
    },
    "pool": {"psycopg", "_signature", "_thread_door", "drivers", "options"},
    "_async_door": {
        *("_thread", "asyncio", "_asyncio", "_door"),
        *("_stacks", "errors", "options"),
    },
    "pool_async": {"psycopg", "_async_door", "_signature", "drivers", "options"},
    "psycopg2/__init__": {
        *("psycopg2", "_signature", "_thread_door", "drivers", "options", "_lease"),
    },
    "psycopg2/_lease": {"_thread_door", "drivers"},
    "psycopg2/pool": {
        *("threading", "psycopg2", "_core", "_door", "_entry", "_flows", "_fork"),
        *("_dropin", "_inline", "_lease", "_runtime", "_thread_door", "drivers", "options"),
    },
    "psycopg2/_dropin": {
        *("abc", "threading", "time", "psycopg2"),
        *("_core", "_door", "_entry", "_flows", "_fork"),
        *("_inline", "_locks", "_runtime", "drivers", "errors"),
    },
    "psycopg2_pool": {
        *("threading", "time", "psycopg2", "_core", "_door", "_entry", "_flows", "_fork"),
        *("_inline", "_runtime", "drivers", "options"),
    },
}
EVERYWHERE = {"__future__", "typing"}


def imports(path: Path) -> set[str]:
    """The top-level modules and the siblings that a file imports when it runs."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):  # what only type checkers see does not count
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names = [node.module] if node.module else [alias.name for alias in node.names]
            found |= {name.split(".")[0] for name in names}
    return found - EVERYWHERE


@pytest.mark.parametrize("module", ALLOWED)
def test_a_module_imports_only_what_its_layer_allows(module: str) -> None:
    """Core and flows know no clock, lock, thread, loop or driver; the doors stand on top."""
    siblings = {path.stem for path in SOURCE.rglob("*.py")} | {"drivers"}
    found = imports(SOURCE / f"{module}.py") & (siblings | RESTRICTED)
    assert found <= ALLOWED[module]


def test_every_module_of_the_pool_has_its_layer() -> None:
    """A new module is put into a layer before it is used."""
    others = {"__init__", "__main__", "_embedded", "_migration", "_watchdog", "testing"}
    files = [*SOURCE.glob("*.py"), *SOURCE.glob("psycopg2/*.py")]
    modules = {str(path.relative_to(SOURCE).with_suffix("")) for path in files}
    assert modules - others == ALLOWED.keys()


def test_only_drivers_and_doors_import_a_driver() -> None:
    """A program that talks through one library need not have the other."""

    def users(driver: str) -> set[str]:
        files = [path for path in SOURCE.rglob("*.py") if "demo" not in path.parts]
        return {str(path.relative_to(SOURCE)) for path in files if driver in imports(path)}

    doors = {"pool.py", "pool_async.py"}
    assert users("psycopg") == doors | {"drivers/psycopg.py", "testing.py", "_embedded.py"}
    doors = {"psycopg2/__init__.py", "psycopg2/pool.py", "psycopg2_pool.py"}
    assert users("psycopg2") == doors | {"drivers/psycopg2.py"}


def test_the_run_time_needs_only_the_standard_library_and_the_driver() -> None:
    """Nothing is installed with the pool but psycopg; psycopg2 is an extra."""
    siblings = {path.stem for path in SOURCE.rglob("*.py")} | {"drivers", "psycopg_pool"}
    allowed = sys.stdlib_module_names | {"psycopg", "psycopg2"} | siblings
    folders = ("*.py", "drivers/*.py", "psycopg2/*.py", "psycopg_pool/*.py")
    files = {path for folder in folders for path in SOURCE.glob(folder)} - {SOURCE / "__main__.py"}
    for path in files:
        assert imports(path) <= allowed, path


def test_nothing_in_the_flows_asks_which_world_it_is_in() -> None:
    """There is one text of all I/O, without a branch for asyncio."""
    text = (SOURCE / "_flows.py").read_text()
    assert "is_async" not in text
    assert "iscoroutine" not in text
