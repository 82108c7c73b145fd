"""Mutations of the package: each changes one statement, and a test has to notice.

    python -m tests.mutations                         run all, print which were killed
    python -m tests.mutations --only ring --out FILE  run some, and keep the outcome as JSON

`mutations.json` lists them: the statement as tokens, what replaces it, and the modules of tests
that ought to notice. Tokens are compared, so a statement is found wherever it was moved to and
however it was folded. A statement that is not there exactly once is reported as "absent": give its
new form.

A mutation is killed if its tests fail or do not end in time; it has survived if they pass.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import tokenize
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
TIME_LIMIT_S = 300.0
_SIGNIFICANT = (tokenize.NAME, tokenize.NUMBER, tokenize.STRING, tokenize.OP)

Mutation = dict[str, Any]


def tokens_of(text: str) -> list[tokenize.TokenInfo]:
    """The names, numbers, strings and operators of a text."""
    read = io.StringIO(text).readline
    return [token for token in tokenize.generate_tokens(read) if token.type in _SIGNIFICANT]


def without_last_commas(tokens: list[str]) -> list[str]:
    """The tokens without commas before a closing bracket, which come and go with folding."""
    pairs = zip(tokens, [*tokens[1:], ""], strict=True)
    return [token for token, after in pairs if not (token == "," and after and after in ")]}")]


class Package:
    """The modules of a package, and where statements are in them."""

    def __init__(self, folder: Path) -> None:
        self._texts = {path: path.read_text() for path in sorted(folder.rglob("*.py"))}
        self._tokens = {path: tokens_of(text) for path, text in self._texts.items()}

    def places(self, statement: str) -> Iterator[tuple[Path, int, int]]:
        """Each `(path, start, stop)` of that statement, in characters."""
        wanted = without_last_commas(statement.split(" "))
        for path, tokens in self._tokens.items():
            strings = [token.string for token in tokens]
            for first, string in enumerate(strings):
                if string == wanted[0] and (last := self._matches(strings, first, wanted)):
                    text = self._texts[path]
                    yield path, offset(text, tokens[first].start), offset(text, tokens[last].end)

    @staticmethod
    def _matches(strings: list[str], first: int, wanted: list[str]) -> int:
        """The last of the tokens from `first` that are the wanted ones; 0 if they are others."""
        at = first
        for token in wanted:
            if strings[at : at + 1] == [","] and token in ")]}":
                at += 1
            if strings[at : at + 1] != [token]:
                return 0
            at += 1
        return at - 1

    def mutated(self, path: Path, start: int, stop: int, new: str) -> str:
        """The text of that module with `new` from `start` to `stop`."""
        text = self._texts[path]
        return text[:start] + new + text[stop:]


def offset(text: str, place: tuple[int, int]) -> int:
    """The number of characters before a place of `tokenize`."""
    line, column = place
    return sum(len(each) for each in text.splitlines(keepends=True)[: line - 1]) + column


def outcome(mutation: Mutation, folder: Path) -> str:
    """Run the tests of a mutation in a copy of the project: "killed", "survived" or "absent"."""
    package = Package(folder / "areplay")
    places = list(package.places(mutation["old"]))
    if len(places) != 1:
        return "absent"
    path, start, stop = places[0]
    before = path.read_text()
    path.write_text(package.mutated(path, start, stop, mutation["new"]))
    tests = [name for name in mutation["tests"] if (folder / name).exists()]
    if not tests:
        return "absent"
    try:
        done = subprocess.run(
            [sys.executable, "-B", "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests],
            cwd=folder,
            env={
                **os.environ,
                "PYTHONPATH": str(folder),
                "HYPOTHESIS_STORAGE_DIRECTORY": str(folder),
            },
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=TIME_LIMIT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return "killed"
    finally:
        path.write_text(before)
    return "survived" if done.returncode == 0 else "killed"


def main() -> None:
    """Run the mutations, print a line for each, and sum up."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--only", default="", help="mutations whose name has this text")
    parser.add_argument("--out", type=Path, help="a JSON file for the outcomes")
    parser.add_argument("--list", type=Path, default=ROOT / "tests/mutations.json")
    parser.add_argument("--root", type=Path, default=ROOT, help="the project to mutate")
    options = parser.parse_args()
    found: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="areplay-mutations-") as temporary:
        folder = Path(temporary) / "project"
        left_out = shutil.ignore_patterns(".git", ".venv", "__pycache__", "_build")
        shutil.copytree(options.root, folder, ignore=left_out)
        for mutation in json.loads(options.list.read_text()):
            if options.only in mutation["name"]:
                found[mutation["name"]] = outcome(mutation, folder)
                print(f"{found[mutation['name']]:9} {mutation['name']}", flush=True)
            if options.out:
                options.out.write_text(json.dumps(found, indent=1) + "\n")
    print(", ".join(f"{count} {kind}" for kind, count in sorted(Counter(found.values()).items())))


if __name__ == "__main__":
    main()
