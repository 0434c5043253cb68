"""Forebay under the names of other pools, for programs that import those names themselves.

It is the rule of the documents, applied by the import system: an import of `psycopg_pool` finds
`forebay.psycopg_pool`.  Nothing is loaded until the program imports the name.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from importlib import import_module
from importlib.abc import Loader
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

#: What Forebay can stand for, and the library that each needs.
DRIVERS = {"psycopg_pool": "psycopg", "psycopg2.pool": "psycopg2", "psycopg2_pool": "psycopg2"}

#: The environment variable that says what is installed in programs started by `forebay run`.
VARIABLE = "FOREBAY_INSTALL"

_HOOK = str(Path(__file__).with_name("_hook"))


def install_as_psycopg_pool() -> None:
    """Make `import psycopg_pool` mean Forebay, in this process.

    Call it before anything imports `psycopg_pool`.  Again is harmless.  What the program has
    configured for the logger `psycopg.pool` holds for Forebay's then.

    Raises:
        RuntimeError: the original was imported already; nothing is changed.
    """
    install(["psycopg_pool"])


def install_as_psycopg2_pool(*modules: str) -> None:
    """Make `import psycopg2.pool` and `import psycopg2_pool` mean Forebay, in this process.

    Call it before anything imports them.  Again is harmless.

    Args:
        modules: `"psycopg2.pool"` or `"psycopg2_pool"`, if only one of them is meant.

    Raises:
        RuntimeError: an original was imported already; nothing is changed.
        ValueError: for a name that is neither of the two.
    """
    both = ["psycopg2.pool", "psycopg2_pool"]
    for name in modules:
        if name not in both:
            raise ValueError(f"modules must be of {', '.join(both)}, not {name!r}")
    install(modules or both)


def install_from_environment() -> None:
    """Install what `FOREBAY_INSTALL` names, if it is set; again is harmless.

    Raises:
        RuntimeError: an original was imported already; nothing is changed.
        ValueError: for a name that Forebay cannot stand for.
    """
    install(parse(os.environ.get(VARIABLE, "")))


def install(names: Iterable[str]) -> None:
    """Make imports of some of `DRIVERS` mean Forebay, in this process; errors as above."""
    names = list(names)
    for name in names:
        present = sys.modules.get(name)
        if present is not None and getattr(present, "__name__", None) != f"forebay.{name}":
            raise RuntimeError(
                f"{name} was imported already, from {getattr(present, '__file__', None)}: install"
                " Forebay before the first import of it, or start the program by"
                " python -m forebay run -- COMMAND"
            )
    _finder.names.update(names)
    if _finder.names and _finder not in sys.meta_path:
        sys.meta_path.insert(0, _finder)


def parse(text: str) -> list[str]:
    """Give the names of a list with commas.

    Raises:
        ValueError: for a name that Forebay cannot stand for.
    """
    names = [name for name in (part.strip() for part in text.split(",")) if name]
    for name in names:
        if name not in DRIVERS:
            raise ValueError(f"expected names of {','.join(DRIVERS)}, got {name!r}")
    return names


def environment(names: Iterable[str], present: Mapping[str, str]) -> dict[str, str]:
    """Give the variables by which Python programs start with Forebay installed under `names`.

    They go on to the programs that such a program starts.

    Args:
        names: some of `DRIVERS`.
        present: the environment that they are added to.
    """
    given = present.get("PYTHONPATH")
    paths = [path for path in given.split(os.pathsep) if path != _HOOK] if given else []
    return {VARIABLE: ",".join(names), "PYTHONPATH": os.pathsep.join([_HOOK, *paths])}


class _Finder:
    """Finds what has been installed in Forebay."""

    def __init__(self) -> None:
        self.names: set[str] = set()

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None = None,
        target: ModuleType | None = None,
    ) -> ModuleSpec | None:
        """Find an installed name or a submodule of it; `None`: that is not our matter."""
        del path, target
        root = next((name for name in self.names if f"{fullname}.".startswith(f"{name}.")), None)
        if root is None or not _is_there(DRIVERS[root]):
            return None
        ours = find_spec(f"forebay.{fullname}")
        if ours is None:
            return None
        is_package = ours.submodule_search_locations is not None
        spec = ModuleSpec(fullname, _Loader(), origin=ours.origin, is_package=is_package)
        spec.submodule_search_locations = ours.submodule_search_locations
        return spec


def _is_there(module: str) -> bool:
    """Whether it can be imported, or has been: `find_spec` refuses what a test has made up."""
    return sys.modules.get(module) is not None or find_spec(module) is not None


class _Loader(Loader):
    """Puts Forebay's own module, which it may have already, into the place of the original."""

    def exec_module(self, module: ModuleType) -> None:
        """Register Forebay's module under the original's name, and its submodules."""
        name = module.__name__
        ours = f"forebay.{name}"
        import_module(ours)
        for found, content in list(sys.modules.items()):
            if f"{found}.".startswith(f"{ours}."):
                sys.modules[found.removeprefix("forebay.")] = content
        if name == "psycopg_pool":
            from .psycopg_pool._logger import inherit

            inherit()


_finder = _Finder()
