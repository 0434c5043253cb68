"""REFERENCE, "Migration is one rule": the drop-in names, and who gets them without an edit."""

from __future__ import annotations

import importlib
import os
import shlex
import signal
import subprocess
import sys
import tomllib
import venv
from pathlib import Path
from textwrap import dedent

import pytest

import forebay
import forebay.psycopg_pool

NAMES = (
    "AsyncConnectionPool",
    "AsyncNullConnectionPool",
    "ConnectionPool",
    "NullConnectionPool",
    "PoolClosed",
    "PoolTimeout",
    "TooManyRequests",
)


@pytest.mark.parametrize("name", NAMES)
def test_the_drop_in_has_the_same_classes(name: str) -> None:
    """`from forebay.psycopg_pool import X` and `from forebay import X` give one class."""
    assert getattr(forebay.psycopg_pool, name) is getattr(forebay, name)
    assert name in forebay.psycopg_pool.__all__


def test_the_drop_in_has_the_version_of_the_contract() -> None:
    """`__version__` is psycopg_pool's, for programs that compare it."""
    assert forebay.psycopg_pool.__version__ == "3.3.3"


#: The public names of the original's submodules.
SUBMODULES = {
    "pool": ("ConnectionPool", "PoolTimeout", "PoolClosed", "TooManyRequests"),
    "pool_async": ("AsyncConnectionPool", "PoolTimeout", "PoolClosed", "TooManyRequests"),
    "null_pool": ("NullConnectionPool", "PoolTimeout", "TooManyRequests"),
    "null_pool_async": ("AsyncNullConnectionPool", "PoolTimeout", "TooManyRequests"),
    "base": ("BasePool",),
    "errors": ("PoolTimeout", "PoolClosed", "TooManyRequests"),
    "abc": ("CT", "ACT", "ConnectionCB", "AsyncConnectFailedCB", "ConninfoParam", "KwargsParam"),
    "version": ("__version__",),
}


@pytest.mark.parametrize("module", SUBMODULES)
def test_the_rule_holds_for_the_submodules(module: str) -> None:
    """`from psycopg_pool.pool import X` becomes `from forebay.psycopg_pool.pool import X`."""
    found = importlib.import_module(f"forebay.psycopg_pool.{module}")
    for name in SUBMODULES[module]:
        expected = getattr(forebay, name, None) if name in forebay.__all__ else None
        assert getattr(found, name) is (expected or getattr(found, name))


def test_the_submodules_are_attributes_after_one_import() -> None:
    """As in the original, whose package imports them all."""
    program = f"""
        import forebay.psycopg_pool
        print(all(hasattr(forebay.psycopg_pool, name) for name in {list(SUBMODULES)}))
        """
    assert run(program) == "True"


def run(program: str, *arguments: str) -> str:
    """Run a program in an interpreter of its own, and give what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", dedent(program), *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.strip()


def test_install_serves_those_who_import_psycopg_pool(dsn: str) -> None:
    """A framework that imports psycopg_pool itself gets ours, and it works."""
    program = """
        import sys, forebay
        forebay.install_as_psycopg_pool()
        import psycopg_pool
        from psycopg_pool import AsyncConnectionPool, ConnectionPool, PoolTimeout
        assert ConnectionPool is forebay.ConnectionPool
        assert AsyncConnectionPool is forebay.AsyncConnectionPool
        assert psycopg_pool.__version__ == "3.3.3"
        with ConnectionPool(sys.argv[1], min_size=1) as pool, pool.connection() as conn:
            print(*conn.execute("select 'served'").fetchone())
        """
    assert run(program, dsn) == "served"


@pytest.mark.parametrize("module", SUBMODULES)
@pytest.mark.parametrize("form", ["import", "as", "from", "attribute"])
def test_install_covers_the_submodules(module: str, form: str) -> None:
    """Whatever way a program comes to the names of a submodule, they are Forebay's."""
    name = SUBMODULES[module][0]
    statement = {
        "import": f"import psycopg_pool.{module}; found = psycopg_pool.{module}.{name}",
        "as": f"import psycopg_pool.{module} as it; found = it.{name}",
        "from": f"from psycopg_pool.{module} import {name} as found",
        "attribute": f"import psycopg_pool; found = psycopg_pool.{module}.{name}",
    }[form]
    program = f"""
        import forebay
        forebay.install_as_psycopg_pool()
        {statement}
        import forebay.psycopg_pool.{module}
        print(found is forebay.psycopg_pool.{module}.{name})
        """
    assert run(program) == "True"


INSTALLED = ["psycopg_pool", *(f"psycopg_pool.{name}" for name in SUBMODULES)]
INSTALLED += ["psycopg2.pool", "psycopg2_pool"]


@pytest.mark.parametrize("when", ["", "import psycopg_pool, psycopg2.pool, psycopg2_pool"])
def test_every_installed_module_can_be_looked_up(when: str) -> None:
    """Libraries ask `importlib.util.find_spec()` whether a pool is there."""
    program = f"""
        import importlib.util, forebay
        forebay.install_as_psycopg_pool()
        forebay.install_as_psycopg2_pool()
        {when}
        for name in {INSTALLED}:
            print(importlib.util.find_spec(name).origin)
        """
    origins = [origin.partition("/forebay/")[2] for origin in run(program).splitlines()]
    assert origins[0] == "psycopg_pool/__init__.py"
    assert origins[1:] == [f"{name.replace('.', '/')}.py" for name in INSTALLED[1:]]


def test_a_walk_through_the_package_comes_to_its_submodules() -> None:
    """What `pkgutil` names can be imported, and is what is there already."""
    program = """
        import importlib, pkgutil, forebay
        forebay.install_as_psycopg_pool()
        import psycopg_pool
        for found in pkgutil.walk_packages(psycopg_pool.__path__, "psycopg_pool."):
            module = importlib.import_module(found.name)
            assert module is getattr(psycopg_pool, found.name.partition(".")[2])
            print(found.name)
        """
    found = {name.partition(".")[2] for name in run(program).split()}
    assert {name for name in found if not name.startswith("_")} == SUBMODULES.keys()


@pytest.mark.parametrize("name", ["psycopg_pool", "psycopg_pool.pool", "psycopg2_pool"])
def test_an_installed_module_can_be_reloaded(name: str) -> None:
    """`importlib.reload()` gives the same module, and it is Forebay's still."""
    program = f"""
        import importlib, forebay
        forebay.install_as_psycopg_pool()
        forebay.install_as_psycopg2_pool()
        module = importlib.import_module("{name}")
        assert importlib.reload(module) is module is importlib.import_module("{name}")
        print(module.ConnectionPool.__module__)
        """
    assert run(program).startswith("forebay.")


def test_a_module_that_is_forgotten_is_found_again() -> None:
    """Tests take modules out of `sys.modules`; the next import must not find the original."""
    program = """
        import sys, forebay
        forebay.install_as_psycopg2_pool()
        import psycopg2.pool, psycopg2_pool
        del sys.modules["psycopg2.pool"], sys.modules["psycopg2_pool"]
        import psycopg2.pool, psycopg2_pool
        print(psycopg2.pool.__name__, psycopg2_pool.__name__)
        """
    assert run(program) == "forebay.psycopg2.pool forebay.psycopg2_pool"


def test_what_the_original_has_for_itself_is_not_there() -> None:
    """A module without a public meaning is missing, and the error says which."""
    program = """
        import forebay
        forebay.install_as_psycopg_pool()
        try:
            import psycopg_pool.sched
        except ModuleNotFoundError as error:
            print(error)
        """
    assert run(program) == "No module named 'psycopg_pool.sched'"


def test_to_install_loads_nothing() -> None:
    """No driver, no asyncio: gevent may patch after it, and who needs no pool pays nothing."""
    program = """
        import sys, forebay
        forebay.install_as_psycopg_pool()
        forebay.install_as_psycopg2_pool()
        print({"psycopg", "psycopg2", "asyncio", "ssl"} & {*sys.modules})
        """
    assert run(program) == "set()"


def test_pools_are_instances_of_base_pool(dsn: str) -> None:
    """Libraries ask `isinstance(pool, psycopg_pool.base.BasePool)`."""
    program = """
        import sys, forebay
        forebay.install_as_psycopg_pool()
        from psycopg_pool.base import BasePool
        kinds = [forebay.ConnectionPool, forebay.AsyncConnectionPool,
                 forebay.NullConnectionPool, forebay.AsyncNullConnectionPool]
        print(all(isinstance(kind(sys.argv[1], open=False), BasePool) for kind in kinds))
        """
    assert run(program, dsn) == "True"


def test_null_pools_are_pools() -> None:
    """As in the original, a null pool is an instance of the pool class of its door."""
    assert issubclass(forebay.NullConnectionPool, forebay.ConnectionPool)
    assert issubclass(forebay.AsyncNullConnectionPool, forebay.AsyncConnectionPool)


def test_installing_twice_is_harmless() -> None:
    """A second call changes nothing."""
    program = """
        import forebay
        forebay.install_as_psycopg_pool()
        import psycopg_pool
        forebay.install_as_psycopg_pool()
        import psycopg_pool as again
        print(again is psycopg_pool)
        """
    assert run(program) == "True"


@pytest.mark.parametrize(
    ("original", "call"),
    [
        ("psycopg_pool", "install_as_psycopg_pool()"),
        ("psycopg2.pool", "install_as_psycopg2_pool()"),
        ("psycopg2_pool", "install_as_psycopg2_pool()"),
        ("psycopg2_pool", "install_as_psycopg2_pool('psycopg2_pool')"),
    ],
)
def test_install_comes_too_late_when_the_original_is_imported(original: str, call: str) -> None:
    """Some of the program would go on using the original, so this is an error that says so."""
    program = f"""
        import sys, types
        sys.modules["{original}"] = present = types.ModuleType("{original}")
        import forebay
        try:
            forebay.{call}
        except RuntimeError as error:
            print(error)
        assert sys.modules["{original}"] is present
        assert not [finder for finder in sys.meta_path if "forebay" in type(finder).__module__]
        """
    said = run(program)
    assert said.startswith(f"{original} was imported already, from None: ")
    assert "before the first import of it" in said
    assert "python -m forebay run -- COMMAND" in said


# psycopg2 --------------------------------------------------------------------------------------


def test_install_serves_those_who_import_psycopg2_pools(dsn: str) -> None:
    """Both modules, however they are imported, are Forebay's, and they work."""
    program = """
        import sys, forebay
        forebay.install_as_psycopg2_pool()
        forebay.install_as_psycopg2_pool()
        import psycopg2.pool, psycopg2_pool
        from psycopg2 import pool
        import forebay.psycopg2.pool, forebay.psycopg2_pool
        assert psycopg2.pool is pool is forebay.psycopg2.pool
        assert psycopg2_pool is forebay.psycopg2_pool
        assert "psycopg" not in sys.modules
        for one in pool.ThreadedConnectionPool(1, 1, sys.argv[1]), psycopg2_pool.ConnectionPool(
            1, 1, dsn=sys.argv[1]
        ):
            conn = one.getconn()
            with conn.cursor() as cursor:
                cursor.execute("select 'served'")
                print(*cursor.fetchone())
            one.putconn(conn)
        """
    assert run(program, dsn).split() == ["served", "served"]


@pytest.mark.parametrize(
    ("only", "other"), [("psycopg2.pool", "psycopg2_pool"), ("psycopg2_pool", "psycopg2.pool")]
)
def test_one_of_the_two_can_be_left_alone(only: str, other: str) -> None:
    """Also where the original of the other one is in use already."""
    program = f"""
        import importlib, {other}, forebay
        forebay.install_as_psycopg2_pool("{only}")
        for name in "{only}", "{other}":
            print(importlib.import_module(name).__name__)
        """
    assert run(program).split() == [f"forebay.{only}", other]


def test_a_name_that_is_neither_of_the_two_is_refused() -> None:
    """The error says what was given and what was expected."""
    with pytest.raises(ValueError, match=r"of psycopg2\.pool, psycopg2_pool, not 'psycopg_pool'"):
        forebay.install_as_psycopg2_pool("psycopg_pool")


def test_where_the_driver_is_missing_its_pool_is_not_pretended() -> None:
    """A library that looks for `psycopg2_pool` is told what is so."""
    program = """
        import sys
        sys.modules["psycopg2"] = None
        import importlib.util, forebay
        sys.path[:] = [path for path in sys.path if not path.endswith("site-packages")]
        forebay.install_as_psycopg2_pool()
        print(importlib.util.find_spec("psycopg2_pool"))
        """
    assert run(program) == "None"


def test_a_driver_that_a_test_has_made_up_is_there() -> None:
    """A module that stands in for the driver may have no spec, which `find_spec()` refuses."""
    program = """
        import sys, types
        sys.modules["psycopg2"] = types.ModuleType("psycopg2")
        import importlib.util, forebay
        forebay.install_as_psycopg2_pool()
        print(importlib.util.find_spec("psycopg2_pool").name)
        """
    assert run(program) == "psycopg2_pool"


# The logger ------------------------------------------------------------------------------------

#: A program under Forebay's other name; `log()` is what a pool logs that cannot connect.
LOGGING = """
import logging, logging.config
import forebay
forebay.install_as_psycopg_pool()

class Ear(logging.Handler):
    def __init__(self, name):
        super().__init__()
        self.records = []
        logging.getLogger(name).addHandler(self)

    def emit(self, record):
        self.records.append(record)

def log():
    import psycopg_pool
    with psycopg_pool.ConnectionPool("host=127.0.0.1 port=1", min_size=1, name="it") as pool:
        try:
            pool.getconn(timeout=0.1)
        except psycopg_pool.PoolTimeout:
            pass

logging.raiseExceptions = False
root = Ear(None)
original = logging.getLogger("psycopg.pool")
"""


def logged(program: str) -> str:
    """Run a program after `LOGGING`."""
    return run(LOGGING + dedent(program))


def test_a_level_set_for_the_original_silences_forebay() -> None:
    """Also one that is set when the pool is in use already."""
    program = """
        log()
        print(len(root.records) > 0)
        root.records.clear()
        original.setLevel(logging.CRITICAL)
        log()
        print(len(root.records))
        logging.getLogger("psycopg").setLevel(logging.CRITICAL)
        original.setLevel(logging.NOTSET)
        log()
        print(len(root.records))
        """
    assert logged(program).split() == ["True", "0", "0"]


def test_handlers_of_both_loggers_and_the_root_get_each_record_once() -> None:
    """A record goes from `forebay` by `psycopg.pool` to the root, under the original's name."""
    program = """
        ears = root, Ear("psycopg.pool"), Ear("forebay")
        log()
        for ear in ears:
            assert [*map(id, ear.records)] == [*map(id, root.records)] != []
            assert len({*map(id, ear.records)}) == len(ear.records)
            print({record.name for record in ear.records})
        """
    assert logged(program).splitlines() == ["{'psycopg.pool'}"] * 3


def test_propagation_ends_where_it_ends_for_the_original() -> None:
    """`propagate = False` of `psycopg.pool` keeps the lines from the root."""
    program = """
        own = Ear("psycopg.pool")
        original.propagate = False
        log()
        print(len(own.records) > 0, len(root.records))
        """
    assert logged(program) == "True 0"


def test_a_filter_of_the_original_decides() -> None:
    """Filters of a logger hold for what is logged on it alone, so they are asked too."""
    program = """
        own = Ear("forebay")
        original.addFilter(lambda record: "connecting" not in record.getMessage())
        log()
        print([record.getMessage() for record in own.records + root.records])
        """
    assert "connecting" not in logged(program)


def test_a_level_of_forebays_own_wins() -> None:
    """A program that configures `forebay` means Forebay."""
    program = """
        own = Ear("forebay")
        logging.getLogger("forebay").setLevel(logging.CRITICAL)
        log()
        print(len(own.records), len(root.records))
        """
    assert logged(program) == "0 0"


@pytest.mark.parametrize(
    ("first", "named", "heard"),
    [
        ("log()", "psycopg.pool", True),
        ("log()", "psycopg", True),
        ("log()", "forebay", True),
        ("log()", "other", False),
        ("", "psycopg.pool", True),
        ("", "other", True),  # the original's logger does not exist yet
    ],
)
def test_a_configuration_that_disables_loggers_disables_what_it_would_have(
    first: str, named: str, heard: bool
) -> None:
    """`disable_existing_loggers` spares what it names, and the loggers of later imports."""
    program = f"""
        {first}
        logging.config.dictConfig(
            {{"version": 1, "disable_existing_loggers": True, "loggers": {{"{named}": {{}}}}}}
        )
        root.records.clear()
        logging.getLogger().addHandler(root)
        log()
        print(len(root.records) > 0)
        """
    assert logged(program) == str(heard)


def test_a_logger_class_of_the_programs_own_stays() -> None:
    """What `logging.setLoggerClass()` has given to every logger, Forebay's has still."""
    program = """
        class Mine(logging.Logger):
            def notice(self):
                return "still mine"

        logging.setLoggerClass(Mine)
        log()
        print(logging.getLogger("forebay").notice())
        """
    assert logged(program) == "still mine"


def test_captured_logs_are_there_in_tests(tmp_path: Path) -> None:
    """`caplog` and `assertLogs` of a program's own tests work by the original's name."""
    test = tmp_path / "test_it.py"
    test.write_text(
        LOGGING
        + dedent(
            """
            import unittest

            def test_caplog(caplog):
                with caplog.at_level(logging.WARNING, "psycopg.pool"):
                    log()
                assert {name for name, _, _ in caplog.record_tuples} == {"psycopg.pool"}
                caplog.clear()
                with caplog.at_level(logging.CRITICAL, "psycopg.pool"):
                    log()
                assert not caplog.records

            class Test(unittest.TestCase):
                def test_logs(self):
                    with self.assertLogs("psycopg.pool", "WARNING"):
                        log()
            """
        )
    )
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(test)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout


def test_by_its_own_name_forebay_logs_to_its_own_logger() -> None:
    """Nothing changes for a program that imports `forebay.psycopg_pool`."""
    program = """
        import sys, forebay.psycopg_pool
        sys.modules["psycopg_pool"] = forebay.psycopg_pool  # what `log` imports
        own = Ear("psycopg.pool")
        log()
        print(len(own.records), {record.name for record in root.records})
        """
    assert logged(program) == "0 {'forebay'}"


# forebay run -----------------------------------------------------------------------------------

#: Says what three imports mean.
WHOSE = """
import sys
import psycopg2.pool, psycopg2_pool, psycopg_pool
print(*(m.__name__.startswith("forebay.") for m in (psycopg_pool, psycopg2.pool, psycopg2_pool)))
print(*sys.argv[1:])
"""
ALL = "True True True"


def forebay_run(
    *arguments: str, cwd: Path | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Call `python -m forebay run`."""
    paths = [*sys.path[1:], environment.pop("PYTHONPATH", "")]
    return subprocess.run(
        [sys.executable, "-m", "forebay", "run", *arguments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=cwd,
    )


def script(path: Path, program: str) -> Path:
    """Write a command that runs in this interpreter, as package managers do."""
    path.write_text(f"#!{sys.executable}\n{program}")
    path.chmod(0o755)
    return path


def test_run_serves_a_program_by_its_own_command(tmp_path: Path) -> None:
    """A command on the PATH gets Forebay, and its arguments, whatever they look like."""
    script(tmp_path / "worker", WHOSE)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    for separator in (["--"], []):
        arguments = ["--only", "a", "--", "--help", ""]
        done = forebay_run(*separator, "worker", *arguments, PATH=path)
        assert (done.stdout, done.stderr) == (f"{ALL}\n--only a -- --help \n", "")


@pytest.mark.parametrize("form", ["file", "module", "text", "child"])
def test_run_serves_every_way_to_start_python(form: str, tmp_path: Path) -> None:
    """`python file.py`, `python -m module`, `python -c`, and what another program starts."""
    module = tmp_path / "program.py"
    module.write_text(WHOSE)
    python = sys.executable
    command = {
        "file": [python, str(module), "x"],
        "module": [python, "-m", "program", "x"],
        "text": [python, "-c", WHOSE, "x"],
        "child": ["sh", "-c", f"{python} {module} x; true"],
    }[form]
    done = forebay_run("--", *command, cwd=tmp_path)
    assert (done.stdout, done.stderr) == (f"{ALL}\nx\n", "")


@pytest.mark.parametrize("how", ["option", "variable"])
def test_run_installs_only_what_is_asked_for(how: str) -> None:
    """By an option, or by the environment; the other originals stay."""
    option = ["--only", "psycopg_pool, psycopg2_pool"] if how == "option" else []
    variable = "psycopg_pool,psycopg2_pool" if how == "variable" else ""
    done = forebay_run(*option, "--", sys.executable, "-c", WHOSE, FOREBAY_INSTALL=variable)
    assert (done.stdout, done.stderr) == ("True False True\n\n", "")


def test_the_variables_alone_do_the_same() -> None:
    """`forebay env` prints them, for a place where the command cannot be changed."""
    command = [sys.executable, "-m", "forebay", "env", "--only", "psycopg2_pool"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    variables = dict(line.split("=", 1) for line in shlex.split(printed))
    assert variables["FOREBAY_INSTALL"] == "psycopg2_pool"
    hook = variables["PYTHONPATH"].split(os.pathsep)[0]
    program = "import psycopg2_pool; print(psycopg2_pool.__name__)"
    for value, name in (("psycopg2_pool", "forebay.psycopg2_pool"), ("", "psycopg2_pool")):
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([hook, *sys.path[1:]]),
            "FOREBAY_INSTALL": value,
        }
        done = subprocess.run(
            [sys.executable, "-c", program], env=environment, capture_output=True, text=True
        )
        assert (done.stdout.strip(), done.stderr) == (name, "")


@pytest.mark.parametrize("fails", [False, True])
def test_run_leaves_the_sitecustomize_of_the_program_in_force(fails: bool, tmp_path: Path) -> None:
    """It is run too, under its name, and its error is Python's to report; the path is as before."""
    (tmp_path / "sitecustomize.py").write_text(
        f"import sys; sys.mine = __name__, __file__; assert not {fails}, 'its own'"
    )
    (tmp_path / "beside.py").write_text("name = 'beside'")
    program = (
        "import sys, beside; print(*sys.mine, beside.name);"
        "print(sum('_hook' in path for path in sys.path));"
        "print(getattr(sys.modules.get('sitecustomize'), '__file__', None))"
    )
    done = forebay_run("--", sys.executable, "-c", program, PYTHONPATH=str(tmp_path))
    file = str(tmp_path / "sitecustomize.py")
    expected = f"sitecustomize {file} beside\n0\n{None if fails else file}\n"
    assert done.stdout == expected
    assert ("AssertionError: its own" in done.stderr) == fails


@pytest.mark.parametrize("value", ["psycopg2_pool", ""])
def test_opentelemetry_calls_the_hook_that_it_displaces(value: str) -> None:
    """`opentelemetry-instrument` runs no other `sitecustomize`, and has a place for this."""
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    entry = project["entry-points"]["opentelemetry_pre_instrument"]["forebay"]
    program = f"""
        import os, sys
        from importlib.metadata import EntryPoint
        os.environ["FOREBAY_INSTALL"] = "{value}"
        finders = len(sys.meta_path)
        EntryPoint("forebay", "{entry}", "opentelemetry_pre_instrument").load()()
        print(len(sys.meta_path) - finders)
        import psycopg2_pool
        print(psycopg2_pool.__name__)
        """
    expected = ["1", "forebay.psycopg2_pool"] if value else ["0", "psycopg2_pool"]
    assert run(program).split() == expected


def test_run_within_run_is_run() -> None:
    """A program that is started so, and starts another one so, changes nothing twice."""
    program = "import os; print(os.environ['PYTHONPATH'].count('_hook'))"
    inner = [sys.executable, "-m", "forebay", "run", "--", sys.executable, "-c", program]
    done = forebay_run("--", *inner)
    assert (done.stdout, done.stderr) == ("1\n", "")


def test_run_loads_nothing_for_a_program_that_imports_no_pool() -> None:
    """Nothing is installed in it but the finder."""
    loaded = "{'psycopg', 'psycopg2', 'asyncio', 'logging', 'forebay.pool'} & {*sys.modules}"
    done = forebay_run("--", sys.executable, "-c", f"import sys; print({loaded})")
    assert (done.stdout, done.stderr) == ("set()\n", "")


def test_a_program_that_is_run_may_install_by_itself() -> None:
    """An application that calls `install_as_psycopg_pool()` after its framework's import."""
    program = "import psycopg_pool, forebay; forebay.install_as_psycopg_pool(); print('fine')"
    done = forebay_run("--", sys.executable, "-c", program)
    assert (done.stdout, done.stderr) == ("fine\n", "")


def test_a_command_ends_as_it_ends() -> None:
    """Its exit code is that of `run`, a signal ends both, and both are one process."""
    assert forebay_run("--", "sh", "-c", "exit 7").returncode == 7
    assert forebay_run("--", "sh", "-c", "kill -TERM $$").returncode == -signal.SIGTERM
    command = [sys.executable, "-m", "forebay", "run", "--", "sh", "-c", "echo $$"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.communicate()[0] == f"{process.pid}\n"


def test_a_command_hears_the_signals_that_python_ignores() -> None:
    """A pipe that closes ends a program that is no Python, as from a shell."""
    done = forebay_run("--", "sh", "-c", "kill -PIPE $$; echo survived")
    assert (done.returncode, done.stdout) == (-signal.SIGPIPE, "")


def test_a_command_that_is_not_there_is_said_in_a_sentence(tmp_path: Path) -> None:
    """The exit codes are a shell's."""
    orphan = tmp_path / "orphan"
    orphan.write_text("#!/no/such/python\n")
    orphan.chmod(0o755)
    plain = tmp_path / "plain"
    plain.write_text("text")
    for command, code, said in (
        ("no-such-command", 127, "no-such-command: command not found: give a path, or"),
        (str(orphan), 127, f"the interpreter that the first line of {orphan} names is not there"),
        (str(plain), 126, f"{plain} cannot be run: Permission denied"),
    ):
        done = forebay_run("--", command)
        assert (done.returncode, done.stdout) == (code, "")
        assert said in done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize("arguments", [[], ["--"], ["--only", "psycopg_pool"]])
def test_run_without_a_command_says_how_it_is_called(arguments: list[str]) -> None:
    """Usage, and an example."""
    done = forebay_run(*arguments)
    assert done.returncode == 2
    assert "usage: forebay run [--only NAMES] [--] COMMAND ..." in done.stderr
    assert "forebay run -- procrastinate worker" in done.stderr


def test_a_name_that_forebay_cannot_stand_for_is_refused() -> None:
    """By `run` before it starts anything, and in a program whose environment has it."""
    said = "expected names of psycopg_pool,psycopg2.pool,psycopg2_pool, got 'asyncpg'"
    done = forebay_run("--only", "asyncpg", "--", "true")
    assert done.returncode == 2
    assert said in done.stderr
    variable = "import os; os.environ['FOREBAY_INSTALL'] = 'asyncpg';"
    inner = f"{variable} os.execv({sys.executable!r}, [{sys.executable!r}, '-c', 'print(1)'])"
    done = forebay_run("--", sys.executable, "-c", inner)
    assert (done.returncode, done.stdout) == (0, "1\n")
    assert done.stderr == f"forebay run: not installed in {sys.executable}: {said}\n"


def test_a_python_that_has_no_forebay_says_so_and_goes_on(tmp_path: Path) -> None:
    """The command's interpreter may be another one: the program runs, and does so loudly."""
    hook = Path(forebay.__file__).with_name("_hook")
    environment = {"PYTHONPATH": str(hook), "FOREBAY_INSTALL": "psycopg_pool"}
    venv.create(tmp_path, symlinks=True)
    python = tmp_path / "bin" / "python"
    done = subprocess.run(
        [python, "-c", "print(1)"], env=environment, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, "1\n")
    assert done.stderr == f"forebay run: not installed in {python}: No module named 'forebay'\n"
