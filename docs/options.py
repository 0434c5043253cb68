"""Writes the table of options in `options.md` as `forebay.options` has them.

python docs/options.py      # writes the table into docs/options.md
"""

from __future__ import annotations

from inspect import formatannotation
from pathlib import Path

from forebay.options import NULL_DEFAULTS, OPTIONS, TYPES

PAGE = Path(__file__).parent / "options.md"
BEGIN = "<!-- options: begin (written by docs/options.py) -->\n"
END = "<!-- options: end -->"


def render() -> str:
    """The table, a row for each option."""
    rows = ["| option | type | default | meaning |", "| --- | --- | --- | --- |"]
    for name, option in OPTIONS.items():
        default = f"`{option.default!r}`"
        if name in NULL_DEFAULTS:
            default += f", null pools `{NULL_DEFAULTS[name]!r}`"
        kind = formatannotation(TYPES[name]).replace("|", r"\|")
        rows.append(f"| `{name}` | `{kind}` | {default} | {option.text} |")
    return "\n".join(rows) + "\n"


def main() -> None:
    """Write the table into the page."""
    page = PAGE.read_text("utf-8")
    head, _, rest = page.partition(BEGIN)
    _, _, tail = rest.partition(END)
    PAGE.write_text(head + BEGIN + render() + END + tail, "utf-8")


if __name__ == "__main__":
    main()
