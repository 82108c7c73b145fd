"""What the package says of itself, and that nothing is left out when it is built. `make dist` tries it out, too."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import metadata
from pathlib import Path

import pytest

import areplay
from tests.distribution import missing_in_sdist, missing_in_wheel, strangers_in_wheel, tracked

ROOT = Path(__file__).parent.parent


def test_the_version_is_the_same_everywhere() -> None:
    """In the package, its metadata, and what it asks to be cited as."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (cited,) = re.findall(r"^version: (.*)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    assert areplay.__version__ == project["version"] == cited == metadata("areplay")["Version"]


def test_only_three_libraries_are_needed() -> None:
    """All others are extras."""
    needed = [text for text in metadata("areplay").get_all("Requires-Dist") or [] if "extra ==" not in text]
    assert {re.match(r"[\w-]+", text)[0] for text in needed} == {"numpy", "uvloop", "aiomultiprocess"}  # type: ignore[index]


@pytest.mark.skipif(
    not (ROOT / ".git").exists() or shutil.which("git") is None, reason="needs a clone of the repository"
)
def test_nothing_is_left_out_of_what_is_built(tmp_path: Path) -> None:
    """The sdist has all that git knows, the wheel the whole package, its types and the licence, and nothing else."""
    copy = tmp_path / "copy"  # of what git knows, without what earlier builds have left, which would be taken in
    for name in tracked():
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, copy / name)
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", tmp_path, copy]
    done = subprocess.run(command, capture_output=True, text=True, timeout=170)
    assert done.returncode == 0, done.stderr
    (sdist,), (wheel,) = tmp_path.glob("*.tar.gz"), tmp_path.glob("*.whl")
    assert missing_in_sdist(sdist) == missing_in_wheel(wheel) == strangers_in_wheel(wheel) == set()
