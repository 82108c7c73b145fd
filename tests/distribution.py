"""`python -m tests.distribution dist`: sdist and wheel are complete, and the wheel works in an
environment of its own.

What `make dist` has built is compared with what git knows, installed with nothing but what it asks
for, and used to run the README's program outside of this repository.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
NOT_IN_SDIST = {".ci/run", ".gitignore"}
PROGRAM = re.compile(r"```python\n(.*?)```", re.DOTALL)


def tracked() -> set[str]:
    """The files that git knows."""
    command = ["git", "-C", str(ROOT), "ls-files", "-z"]
    return set(
        subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\0")
    ) - {""}


def missing_in_sdist(path: Path) -> set[str]:
    """What git knows and the sdist lacks, but for what is about this repository only."""
    with tarfile.open(path) as file:
        names = {name.partition("/")[2] for name in file.getnames()}
    return tracked() - NOT_IN_SDIST - names


def missing_in_wheel(path: Path) -> set[str]:
    """Of the package."""
    with zipfile.ZipFile(path) as file:
        names = set(file.namelist())
    wanted = {name for name in tracked() if name.startswith("areplay/")}
    return {name for name in wanted if name not in names} | ({"the licence"} - {_licence(names)})


def strangers_in_wheel(path: Path) -> set[str]:
    """What is neither of the package nor about it."""
    with zipfile.ZipFile(path) as file:
        return {
            name
            for name in file.namelist()
            if not re.match(r"areplay/|areplay-[^/]+\.dist-info/", name)
        }


def _licence(names: set[str]) -> str:
    return (
        "the licence" if any(name.endswith("dist-info/licenses/LICENSE") for name in names) else ""
    )


def try_wheel(path: Path) -> str:
    """What the README's program prints, with the wheel in a fresh environment and this repository
    out of sight."""
    with tempfile.TemporaryDirectory() as folder:
        venv.create(Path(folder) / "venv", with_pip=True)
        binaries = Path(folder) / "venv" / "bin"
        subprocess.run([binaries / "pip", "install", "--quiet", path.resolve()], check=True)
        program = Path(folder) / "program.py"
        program.write_text(PROGRAM.findall((ROOT / "README.md").read_text())[0])
        subprocess.run([binaries / "areplay", "doctor"], cwd=folder, check=True)
        run = [binaries / "python", "-W", "error", program]
        return subprocess.run(
            run, cwd=folder, stdout=subprocess.PIPE, text=True, check=True, timeout=120
        ).stdout


def main(folder: Path) -> None:
    """Look at what is in that folder: one sdist and one wheel."""
    (sdist,), (wheel,) = folder.glob("*.tar.gz"), folder.glob("*.whl")
    for what, names in (
        (f"missing in {sdist.name}", missing_in_sdist(sdist)),
        (f"missing in {wheel.name}", missing_in_wheel(wheel)),
        (f"should not be in {wheel.name}", strangers_in_wheel(wheel)),
    ):
        if names:
            sys.exit(f"{what}: {', '.join(sorted(names))}")
    printed = try_wheel(wheel)
    if not printed.startswith("learnt"):
        sys.exit(f"the README's program printed {printed!r}")
    print(
        f"{sdist.name} and {wheel.name} are complete; installed, the README's program says: "
        f"{printed}",
        end="",
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
