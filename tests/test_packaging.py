"""What the package says of itself, and that nothing is left out when it is built. `make dist` tries
it out, too."""

from __future__ import annotations

import os
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
    needed = [
        text
        for text in metadata("areplay").get_all("Requires-Dist") or []
        if "extra ==" not in text
    ]
    assert {re.match(r"[\w-]+", text)[0] for text in needed} == {
        "numpy",
        "uvloop",
        "aiomultiprocess",
    }  # type: ignore[index]


@pytest.mark.skipif(
    not (ROOT / ".git").exists() or shutil.which("git") is None,
    reason="needs a clone of the repository",
)
def test_nothing_is_left_out_of_what_is_built(tmp_path: Path) -> None:
    """The sdist has all that git knows, the wheel the whole package, its types and the licence, and
    nothing else."""
    # of what git knows, without what earlier builds have left, which would be taken in
    copy = tmp_path / "copy"
    for name in tracked():
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, copy / name)
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", tmp_path, copy]
    done = subprocess.run(command, capture_output=True, text=True, timeout=170)
    assert done.returncode == 0, done.stderr
    (sdist,), (wheel,) = tmp_path.glob("*.tar.gz"), tmp_path.glob("*.whl")
    assert missing_in_sdist(sdist) == missing_in_wheel(wheel) == strangers_in_wheel(wheel) == set()


def test_a_clone_beside_a_script_does_not_hide_the_package(tmp_path: Path) -> None:
    """As the Makefile installs it: a folder of the clone's name beside the script is no package,
    and is passed over.

    With an import hook, which is what `pip install --editable` makes by default, that folder would
    be `areplay`.
    """
    installing = re.search(r"^INSTALL = .*$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert installing and "editable_mode=compat" in installing[0]
    site, here = tmp_path / "site", tmp_path / "here"
    for folder in (site, here / "areplay" / "areplay"):
        folder.mkdir(parents=True)
    (site / "__editable__.areplay.pth").write_text(f"{ROOT}\n")  # what it makes
    (here / "script.py").write_text(
        f"import site; site.addsitedir({str(site)!r}); import areplay; print(areplay.__file__)"
    )
    command = [sys.executable, "-S", here / "script.py"]
    libraries = os.pathsep.join(path for path in sys.path if path and Path(path) != ROOT)
    done = subprocess.run(
        command,
        env=os.environ | {"PYTHONPATH": libraries},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert Path(done.stdout.strip()).parent == ROOT / "areplay", done.stderr


def test_what_is_installed_first_is_light() -> None:
    """No library of gigabytes comes with the environment of the first example, nor with that of the
    tests."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]

    def libraries(extra: str) -> set[str]:
        found = set()
        for text in extras[extra]:
            if own := re.match(r"areplay\[(.*)\]", text):
                found |= set().union(*map(libraries, own[1].split(",")))
            else:
                found.add(re.match(r"[\w-]+", text)[0])  # type: ignore[index]
        return found

    assert libraries("cartpole") == {"gymnasium", "matplotlib", "rich"}
    assert not libraries("dev") & {"torch", "jax", "ale-py"}
    assert libraries("all") >= {"torch", "jax", "ale-py"} | libraries("dev")
