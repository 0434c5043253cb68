"""The documents are written in the words of CONTRIBUTING.md, "Words".

The list stands there once, as a table; it is read from there.  `offences` takes texts, so that
docstrings and messages can be added to what is read.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LIST = ROOT / "CONTRIBUTING.md"

PAGES = {
    str(page.relative_to(ROOT)): page
    for page in [
        *(ROOT / "README.md", LIST, ROOT / "bench" / "README.md"),
        *sorted((ROOT / "docs").glob("**/*.md")),
    ]
}

#: The table of words: its head, and all its rows.
TABLE = re.compile(r"^\| do not write \| write \|\n\| --- \| --- \|\n((?:\|.*\n)+)", re.MULTILINE)

#: What quotes code: blocks, code in a line, where links lead, comments.
QUOTED = re.compile(
    r"^ *(?P<fence>```+).*?^ *(?P=fence) *$|(?P<ticks>`+)(?:(?!\n\n).)+?(?P=ticks)"
    r"|(?<=\])\([^)\s]*\)|<!--.*?-->",
    re.MULTILINE | re.DOTALL,
)


def words(page: str) -> list[str]:
    """The words and phrases of the first column, which are not to be written."""
    table = TABLE.search(page)
    assert table is not None, 'the table "do not write" is not in CONTRIBUTING.md'
    cells = [row.split("|")[1] for row in table[1].splitlines()]
    return [phrase.strip() for cell in cells for phrase in cell.split(",")]


def offences(texts: Mapping[str, str], phrases: Iterable[str]) -> Iterator[str]:
    """Where one of the phrases stands in one of the texts, which have names: `name:line: phrase`.

    In any case of letters, across line ends, as whole words, and not in what quotes code.
    """
    patterns = [r"\s+".join(map(re.escape, phrase.split())) for phrase in phrases]
    found = re.compile(rf"(?<!\w)(?:{'|'.join(patterns)})(?!\w)", re.IGNORECASE)
    for name, text in texts.items():
        prose = QUOTED.sub(_blank, text)
        for match in found.finditer(prose):
            line = prose.count("\n", 0, match.start()) + 1
            yield f"{name}:{line}: {' '.join(match[0].split())}"


def _blank(match: re.Match[str]) -> str:
    """Nothing, in as many lines; a mark, so that what is around it is no phrase."""
    return "\N{BULLET}" + "\n" * match[0].count("\n")


def prose_of(page: Path) -> str:
    """A page, without the list itself."""
    text = page.read_text("utf-8")
    return TABLE.sub(_blank, text) if page == LIST else text


@pytest.mark.parametrize("name", PAGES)
def test_a_page_has_none_of_the_words_that_are_not_written(name: str) -> None:
    """What to write instead stands beside it in CONTRIBUTING.md, "Words"."""
    found = list(offences({name: prose_of(PAGES[name])}, words(LIST.read_text("utf-8"))))
    assert not found, "see CONTRIBUTING.md, Words:\n" + "\n".join(found)


def test_the_list_is_short_and_says_what_to_write() -> None:
    """A list that is not read helps no reader; each row has both its cells."""
    table = TABLE.search(LIST.read_text("utf-8"))
    assert table is not None
    rows = [[cell.strip() for cell in row.strip("|").split("|")] for row in table[1].splitlines()]
    assert 15 <= len(rows) <= 25
    assert all(len(row) == 2 and all(row) for row in rows)


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("It is lent.", [1]),
        ("LENT, and\nlent again", [1, 2]),
        ("two failures in\n  a row", [1]),
        ("one\ntwo\n\n```python\nlent\n```\nlent", [7]),
        ("a `lent` and\na ``lent ` lent`` one", []),
        ("an open ` tick, and it is lent.\n\nAnother ` tick", [1]),
        ("silent, lentil, in a rowing boat", []),
        ("[a page](what-is-lent.md) <!-- lent -->", []),
        ("in a `row`", []),
    ],
)
def test_a_phrase_is_found_in_prose_only(text: str, lines: list[int]) -> None:
    """Whole words, in any case, over line ends; code is what it is."""
    found = offences({"page": text}, ["lent", "in a row"])
    assert [int(each.split(":")[1]) for each in found] == lines
