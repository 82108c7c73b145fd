"""The documentation: its programs run and print what the pages say, its links lead somewhere, its
site builds.

The Python blocks of a page are one program, in their order, up to the block with
`if __name__ == "__main__"`; what follows begins the next one. A block of text after it is what it
prints, but for the numbers. The README's blocks are run by `test_readme.py`.
"""

from __future__ import annotations

import ast
import html
import inspect
import os
import re
import subprocess
import sys
import tomllib
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import pytest

import areplay

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(path for path in DOCS.rglob("*.md") if "_build" not in path.parts)
TEXTS = [
    ROOT / "README.md",
    ROOT / "CHANGELOG.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "benchmarks" / "README.md",
    *PAGES,
]
# which are made by programs
WRAPPED = [path for path in PAGES if path.name not in ("peers.md", "bench.md")]
FENCE = re.compile(r"^```(\S*)[^\n]*\n(.*?)^```$", re.DOTALL | re.MULTILINE)
END = 'if __name__ == "__main__":'

BEFORE = {
    "checkpoints.md": """
import areplay, numpy

async def _save():
    async with areplay.Replay(areplay.Spec(x=((2,), "float32")), capacity=1_000, block_rows=16) as replay:
        await replay.extend({"x": numpy.arange(100, dtype="float32").reshape(50, 2)})
        await replay.save("checkpoints/run-1")

areplay.run(_save())
""",
    "observing.md": """
import areplay, asyncio, prometheus_client, urllib.request

def start_at_a_free_port(port, start=prometheus_client.start_http_server, **options):
    global server
    assert port == 9100
    server, _ = start(0, **options)

prometheus_client.start_http_server = start_at_a_free_port
runner = asyncio.Runner()
replay = areplay.Replay(areplay.Spec(x=((2,), "float32")), capacity=1_000)
runner.run(replay.__aenter__())
""",
}
AFTER = {
    "checkpoints.md": "\nassert (rows['x'] == np.arange(100).reshape(50, 2)).all()\n",
    "observing.md": """
page = urllib.request.urlopen(f"http://127.0.0.1:{server.server_port}/metrics").read().decode()
assert "areplay_capacity_rows{" in page and f"}} {replay.capacity_rows:.1f}" in page, page
runner.run(replay.close())
""",
}
"""What a page takes for granted, and what shows that it did what it says. No port is fixed, for
other runs."""

LEARNT = {
    "howto/asyncio.md": [1, -2, 0.5],
    "howto/jax.md": [1, -2, 3, 0.5],
    "howto/prioritised.md": [100],
    "howto/pytorch.md": [1, -2, 3, 0.5],
    "howto/recurrent.md": [0],
    "reference/items.md": [4.901, 4, 3.94, 5, 2.97, 6, 1.99, 7, 1],
    "reference/selectors.md": [64],
}
"""The last numbers of what is printed, where they are known; nearly."""

HIDDEN = {
    "Windows": {"blocks", "changed", "joined", "part", "places", "unchanged", "where"},
    "Field": {"convert"},
    "Spec": {"check_names", "convert_columns", "described", "description", "differences"},
}
"""Methods that are there for areplay itself."""


@dataclass(frozen=True)
class Program:
    """A program of a page, and what it prints; None if the page does not say."""

    page: str
    number: int
    code: str
    prints: str | None

    def __str__(self) -> str:
        return f"{self.page}-{self.number}"


def blocks_of(path: Path) -> list[tuple[str, str]]:
    """`(language, text)` of each fenced block."""
    return FENCE.findall(path.read_text())


def programs_of(path: Path) -> Iterator[Program]:
    """Those of a page, in order."""
    name = str(path.relative_to(DOCS))
    found: list[list[str]] = [[]]
    prints: dict[int, str] = {}
    is_over = False
    for language, text in blocks_of(path):
        if language == "python":
            if is_over:
                found.append([])
            found[-1].append(text)
            is_over = END in text
        elif language == "text" and found[-1]:
            prints.setdefault(len(found) - 1, text)
    for number, parts in enumerate(found):
        if parts:
            code = BEFORE.get(name, "") + "\n\n".join(parts) + AFTER.get(name, "")
            yield Program(name, number, code, prints.get(number))


PROGRAMS = [program for page in PAGES for program in programs_of(page)]


NUMBER = re.compile(r"[-+]?\d[\d,]*(?:\.\d*)?(?:e[-+]?\d+)?")


def numbers_of(output: str) -> list[float]:
    """All that are in it."""
    return [float(number.replace(",", "")) for number in NUMBER.findall(output)]


def shape_of(output: str) -> list[str]:
    """The lines with each number replaced by the same sign, and repeated lines once."""
    lines = [NUMBER.sub("#", line) for line in output.strip().splitlines()]
    return [
        line for line, _ in groupby(re.sub(r"\s+", " ", line.replace("[ ", "[")) for line in lines)
    ]


@pytest.mark.parametrize("program", PROGRAMS, ids=str)
def test_a_pages_program_runs_and_prints_what_the_page_says(
    program: Program, tmp_path: Path
) -> None:
    """As a reader would run it: pasted into a file and started. Torch and jax are for those who
    want them."""
    for library in sorted(set(re.findall(r"\b(torch|jax)\b", program.code))):
        pytest.importorskip(library)
    path = tmp_path / "program.py"
    path.write_text(program.code)
    # or small matrices take the cores from everybody
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, path]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=150
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr and "Warning" not in done.stderr, done.stderr
    if program.prints is not None:
        assert shape_of(done.stdout) == shape_of(program.prints), done.stdout
    if program.page in LEARNT:
        learnt = LEARNT[program.page]
        assert numbers_of(done.stdout)[-len(learnt) :] == pytest.approx(
            learnt, rel=0.05, abs=0.1
        ), done.stdout
    if program.page == "tutorial.md":
        assert numbers_of(done.stdout.splitlines()[-2])[-1] >= 100, done.stdout


def test_all_code_is_run() -> None:
    """Each block of Python is part of a program: there is none that is only to be looked at."""
    blocks = [text for page in PAGES for language, text in blocks_of(page) if language == "python"]
    run = "".join(program.code for program in PROGRAMS)
    assert blocks and all(text in run for text in blocks)
    languages = {language for page in PAGES for language, _ in blocks_of(page)}
    # it is "python", and "sh"
    assert not languages & {"py", "python3", "pycon", "console", "shell", "bash"}


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_name_what_there_is(path: Path) -> None:
    """Targets of the Makefile, extras of the package, programs and modules of this repository."""
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    extras = set(
        tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    )
    text = path.read_text()
    code = "\n".join([body for language, body in FENCE.findall(text) if language in ("sh", "")])
    code += "\n".join(re.findall(r"`([^`\n]+)`", FENCE.sub("", text)))
    assert set(re.findall(r"\bmake ([a-z][a-z-]*)", code)) <= targets
    for names in re.findall(r"\.\[([a-z,]+)\]", code):
        assert set(names.split(",")) <= extras
    for name in re.findall(r"\bpython (examples/\S+\.py)", code):
        assert (ROOT / name).is_file()
    for name in re.findall(r"\bpython -m (benchmarks|tests)\b", code):
        assert (ROOT / name).is_dir()


def test_every_target_is_told_to_contributors() -> None:
    """With what it does and how long it takes; but for the one that clears up."""
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)) - {
        "clean"
    }
    told = re.findall(
        r"^\| `make ([a-z-]+)` \| [^|]+ \| [^|]+ \|$",
        (ROOT / "CONTRIBUTING.md").read_text(),
        re.MULTILINE,
    )
    assert sorted(told) == sorted(targets)


def test_nothing_is_said_to_be_on_an_index() -> None:
    """areplay is installed from a clone, wherever it is told of: in the pages and in what the
    program says."""
    for path in (*TEXTS, *(ROOT / "areplay").rglob("*.py"), *(ROOT / "examples").glob("*.py")):
        for line in path.read_text().splitlines():
            assert not re.search(r"pip install (-\S+ )*'?areplay\b", line), line


@pytest.mark.parametrize("path", WRAPPED, ids=lambda path: str(path.relative_to(ROOT)))
def test_lines_are_of_120_columns(path: Path) -> None:
    """As in the code; but for tables, which know no line breaks."""
    assert [
        line
        for line in path.read_text().splitlines()
        if len(line) > 120 and not line.startswith("|")
    ] == []


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_to_files_that_are_there(path: Path) -> None:
    """Relative ones, as a forge follows them, which knows nothing of the site; headings too."""
    for target in re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", path.read_text())):
        if re.match(r"https?:", target):
            continue
        name, _, heading = target.partition("#")
        goal = (path.parent / name).resolve() if name else path
        assert goal.exists() and ROOT in goal.parents, target
        if heading:
            titles = re.findall(r"^#+ (.*)$", FENCE.sub("", goal.read_text()), re.MULTILINE)
            assert heading in {
                re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles
            }, target


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as `make docs` does: any warning is an error."""
    out = tmp_path_factory.mktemp("site")
    options = [
        "--fail-on-warning",
        "--keep-going",
        "--nitpicky",
        "--quiet",
        f"--doctree-dir={out / '.doctrees'}",
    ]
    command = [sys.executable, "-m", "sphinx", *options, DOCS, out]
    done = subprocess.run(command, capture_output=True, text=True, timeout=170)
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture(scope="module")
def documented(site: Path) -> set[str]:
    """The names that have a place on the site, from the list that it offers to others."""
    inventory = (site / "objects.inv").read_bytes().split(b"\n", 4)[4]
    return {
        line.split()[0]
        for line in zlib.decompress(inventory).decode().splitlines()
        if " py:" in line
    }


def test_every_page_is_on_the_site(site: Path) -> None:
    """And reached from the first one."""
    index = (site / "index.html").read_text()
    for page in PAGES:
        name = page.relative_to(DOCS).with_suffix(".html")
        assert (site / name).is_file()
        assert f'href="{name}"' in index or name.name == "index.html" or len(name.parts) > 1, name


def test_every_public_name_is_on_the_site(documented: set[str]) -> None:
    """What `import areplay` offers, and what can be called of it."""
    wanted = set(areplay.__all__)
    for name in areplay.__all__:
        thing = getattr(areplay, name)
        if inspect.isclass(thing) and not issubclass(thing, BaseException):
            workers = {
                member
                for base in thing.__mro__
                if "areplay" in base.__module__
                for member in vars(base)
            }
            workers -= HIDDEN.get(name, set())
            # told of by the class's own docstring
            workers -= set(getattr(thing, "__dataclass_fields__", ()))
            wanted |= {f"{name}.{member}" for member in workers if not member.startswith("_")}
    assert wanted - {name.removeprefix("areplay.") for name in documented} == set()


def test_signatures_are_those_that_a_reader_needs(site: Path) -> None:
    """Arrays have one name, and what a reader never makes has no constructor."""
    pages = [page.read_text() for page in (site / "reference").glob("*.html")]
    text = html.unescape(re.sub(r"<[^>]+>", "", "".join(pages)))
    assert "NDArray[int64]" in text and "ndarray[" not in text
    for name in (
        "Actor",
        "Actors",
        "Batch",
        "Batches",
        "Checkpoints",
        "Windows",
        "Item",
        "Statistics",
    ):
        assert re.search(rf"\bclass\s+areplay\.{name}\s*\[source\]", text), name
    assert re.search(r"\bclass\s+areplay\.Replay\(\s*spec", text)


def test_every_statistic_is_on_the_site_with_what_it_says(site: Path, documented: set[str]) -> None:
    """Each field of each record, with the docstring that stands below it in the source."""
    text = re.sub(r"<[^>]+>", "", (site / "reference" / "statistics.html").read_text())
    text = re.sub(r"\s+", " ", html.unescape(text))
    for record in ast.parse((ROOT / "areplay" / "statistics.py").read_text()).body:
        if isinstance(record, ast.ClassDef):
            for field, after in zip(record.body, [*record.body[1:], None], strict=True):
                if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
                    assert f"areplay.{record.name}.{field.target.id}" in documented
                    if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
                        said = re.sub(r"\s+", " ", str(after.value.value).replace("`", ""))
                        assert said in text, said
