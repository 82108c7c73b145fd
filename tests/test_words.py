"""Each thing has one word: the glossary defines it, and the words that stood for it before are not
used any more."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
GLOSSARY = ROOT / "docs/glossary.md"
HISTORY = ("CHANGELOG.md", "docs/decisions/", "docs/glossary.md")
"""What tells of former times, where the former words stand."""


def rows(heading: str) -> list[tuple[str, str]]:
    """The first two cells of each row of the table below that heading."""
    section = GLOSSARY.read_text().split(f"\n## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| ")]
    return [
        (first.strip(), second.strip())
        for first, second in (line[1:].split("|")[:2] for line in lines[1:])
    ]


def headings() -> list[str]:
    """The headings of the glossary's tables of words."""
    return re.findall(r"^## (.*)$", GLOSSARY.read_text(), re.M)[:-1]


RETIRED = {
    word: new for cell, new in rows("Retired words") for word in re.findall(r"`(\w+)`", cell)
}


def tracked() -> list[Path]:
    """The texts of the project: code, tests, pages and examples."""
    listed = subprocess.run(
        ["git", "ls-files", "*.py", "*.md"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return [ROOT / name for name in listed.stdout.splitlines() if not name.startswith(HISTORY)]


def test_retired_words_are_not_used() -> None:
    """Neither in code nor on a page, alone or as a part of a name."""
    retired = re.compile(
        r"(?<![a-z])(" + "|".join(sorted(RETIRED, key=len, reverse=True)) + r")(?![a-z])"
    )
    found = [
        f"{path.relative_to(ROOT)}:{number}: {match[0]}, now {RETIRED[match[0]]}"
        for path in tracked()
        if path.exists() and path != Path(__file__)
        for number, line in enumerate(path.read_text().splitlines(), 1)
        for match in retired.finditer(line)
    ]
    assert found == []


@pytest.mark.parametrize("heading", headings())
def test_each_word_is_defined_once(heading: str) -> None:
    """No word has two definitions, on the whole page."""
    words = [word for other in headings() for cell, _ in rows(other) for word in cell.split(", ")]
    assert [
        word for cell, _ in rows(heading) for word in cell.split(", ") if words.count(word) != 1
    ] == []
