"""What the documents show is what the code does."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg import conninfo

from docs import diagram, floors
from forebay._core import Core

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("bench/*.md")],
    key=lambda page: page.relative_to(ROOT),
)
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]

EXAMPLES = [
    pytest.param(code, id=f"{name}-{number}")
    for name in ("README.md", "docs/migration.md", "docs/options.md")
    for number, code in enumerate(
        re.findall(r"^```python\n(.*?)^```", (ROOT / name).read_text(), re.DOTALL | re.MULTILINE)
    )
]

LINK = re.compile(r"\]\(([^)\s]+)\)")


@pytest.fixture
def bank(dsn: str) -> Iterator[str]:
    """Give a database where the examples' "dbname=bank" has its table, in a schema of its own."""
    with psycopg.connect(dsn, autocommit=True) as session:
        session.execute("create schema forebay_docs")
        session.execute("create table forebay_docs.account (id integer, balance integer)")
        session.execute("insert into forebay_docs.account values (1, 100)")
        try:
            yield conninfo.make_conninfo(dsn, options="-c search_path=forebay_docs")
        finally:
            session.execute("drop schema forebay_docs cascade")


@pytest.mark.parametrize("code", EXAMPLES)
def test_an_example_runs(code: str, bank: str) -> None:
    """A python block of the documents runs to its end, and has done what it says."""
    program = code.replace('"dbname=bank"', repr(bank))
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for shown in re.findall(r"print\(.*  # (.*)", code):
        assert re.search(
            ".*".join(re.escape(part.strip()) for part in shown.split("…")), done.stdout, re.DOTALL
        )
    with psycopg.connect(bank) as session:
        row = session.execute("select balance from account").fetchone()
    assert row == (90 if "balance - 10" in code else 100,)


def test_the_documents_have_examples() -> None:
    """The pattern that finds the examples still finds them."""
    assert len(EXAMPLES) == 7


def test_the_life_of_an_entry_is_drawn_as_the_core_lives_it() -> None:
    """The diagram of the page is what `python docs/diagram.py` writes now."""
    page = diagram.PAGE.read_text()
    shown = page.partition(diagram.BEGIN)[2].partition(diagram.END)[0]
    assert shown == diagram.render(), "run: python docs/diagram.py"


def test_the_floors_are_drawn_as_the_modules_import() -> None:
    """The picture of the page is what `python docs/floors.py` writes now."""
    page = floors.PAGE.read_text()
    shown = page.partition(floors.BEGIN)[2].partition(floors.END)[0]
    assert shown == floors.render(), "run: python docs/floors.py"


def test_every_transition_is_played_for_the_diagram() -> None:
    """A new transition of the core is drawn, or is known to move no entry."""
    public = {
        name for name, _ in inspect.getmembers(Core, inspect.isfunction) if not name.startswith("_")
    }
    assert public == diagram.PLAYED | diagram.MOVE_NOTHING


@pytest.mark.parametrize("name", NAMES)
def test_a_link_leads_somewhere(name: str) -> None:
    """Every relative link of a page names a file that is there, and a heading that is in it."""
    page = ROOT / name
    for link in LINK.findall(page.read_text()):
        if "://" in link:
            continue
        path, _, heading = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        if heading:
            assert heading in {anchor(line) for line in target.read_text().splitlines()}, link


def anchor(line: str) -> str | None:
    """What a heading is called in a link, as GitHub derives it."""
    if not line.startswith("#"):
        return None
    words = re.sub(r"[^\w\- ]", "", line.lstrip("#").strip().lower())
    return words.replace(" ", "-")


def test_every_decision_is_in_the_list() -> None:
    """The page of decisions links to all of them."""
    folder = ROOT / "docs" / "decisions"
    listed = set(LINK.findall((folder / "README.md").read_text()))
    assert listed == {page.name for page in folder.glob("[0-9]*.md")}
