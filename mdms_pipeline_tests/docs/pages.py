"""The documentation as data: headings, code blocks, tables, links."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
READMES = ("README.md", "README.ko.md")
PAGES = (*READMES, *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").glob("*.md")))


class Block(NamedTuple):
    """One fenced code block."""

    language: str
    code: str


@cache
def text(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


@cache
def prose(page: str) -> str:
    """The page without its code blocks."""
    return re.sub(r"^```.*?^```$", "", text(page), flags=re.MULTILINE | re.DOTALL)


@cache
def blocks(page: str, language: str | None = None) -> tuple[Block, ...]:
    found = [Block(*match) for match in re.findall(r"^```(\w*)\n(.*?)^```$", text(page), re.MULTILINE | re.DOTALL)]
    return tuple(block for block in found if language in (None, block.language))


def headings(page: str) -> list[int]:
    """The levels of the headings, in order."""
    return [len(marks) for marks in re.findall(r"^(#+) ", prose(page), re.MULTILINE)]


def tables(page: str) -> list[list[list[str]]]:
    """Every table as rows of cells, without the line below its head."""
    found: list[list[list[str]]] = []
    before = ""
    for line in prose(page).splitlines():
        if line.startswith("|"):
            if not before.startswith("|"):
                found.append([])
            cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
            if not all(re.fullmatch(r":?-+:?", cell) for cell in cells):
                found[-1].append(cells)
        before = line
    return found


def table_of(page: str, first: str) -> list[list[str]]:
    """The table in whose first column a cell has `first` in it."""
    found = [table for table in tables(page) if any(first in row[0] for row in table)]
    assert len(found) == 1, f"{page}: {len(found)} tables have {first!r} in their first column"
    return found[0][1:]


def coded(cell: str) -> list[str]:
    """What stands in backticks."""
    return re.findall(r"`([^`]+)`", cell)


def links(page: str) -> list[str]:
    """Targets of links that are not addresses of the net."""
    found = re.findall(r"\]\(([^)\s]+)\)", prose(page))
    return [link for link in found if not re.match(r"[a-z]+:", link)]
