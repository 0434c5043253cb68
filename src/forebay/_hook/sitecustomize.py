"""Run by Python at its start where `forebay run` has put this directory into PYTHONPATH.

It may be another Python than that of Forebay, so it takes nothing for granted.
"""

import os
import sys
from importlib.machinery import PathFinder
from importlib.util import module_from_spec
from pathlib import Path


def _install() -> None:
    """Install Forebay as FOREBAY_INSTALL says; whatever is wrong, the program goes on without."""
    if not os.environ.get("FOREBAY_INSTALL"):
        return
    try:
        from forebay._migration import install_from_environment

        install_from_environment()
    except (ImportError, RuntimeError, ValueError) as error:
        sys.stderr.write(f"forebay run: not installed in {sys.executable}: {error}\n")


def _go_on() -> None:
    """Run the `sitecustomize` that would have been found without this one."""
    here = Path(__file__).parent
    sys.path[:] = [path for path in sys.path if Path(path) != here]
    spec = PathFinder.find_spec("sitecustomize", sys.path)
    if spec is not None and spec.loader is not None:
        module = sys.modules["sitecustomize"] = module_from_spec(spec)
        spec.loader.exec_module(module)


_install()
_go_on()
