"""The rooms of the house: imports point down only, and some things are kept in one room.

The order below is the drawing in docs/architecture.md. A new module is entered here, in its row. A folder is a room of
its own, whose modules may know each other.
"""

from __future__ import annotations

import ast
import functools
import graphlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import areplay

PACKAGE = Path(areplay.__file__).parent

ROOMS_ABOVE = [
    {"__main__"},
    {"commands"},
    {"__init__"},
    {"metrics"},
    {"replay", "program"},
    {"held"},
    {"observed"},
    {"standstill"},
    {"saving"},
    {"actor", "coordinator", "own_rows", "prefetch"},
    {"sampler"},
    {"crew"},
    {"process"},
    {"waiting", "dropped"},
    {"loops"},
]
# ------------- nothing below this line imports asyncio -------------
ROOMS_BELOW = [
    {"batch", "own_batches", "supply"},
    {"slots", "to_torch", "to_jax", "choices", "snapshot"},
    {"reader"},
    {"transform", "transitions", "sequences", "deliveries"},
    {"items", "item_log"},
    {"windows", "select", "stacks", "checkpoint"},
    {"priorities", "admission"},
    {"ring", "inbox", "weights", "episodes", "quiet"},
    {"locks", "doorbell", "segment", "watching", "ring_guard", "launching"},
    {"layout", "fence", "kill_points", "debug", "rate", "manifest"},
    {"limits", "block_sizes"},
    {"observation_memory", "vector_links"},
    {"spec", "options"},
    {"spaces", "forks"},
    {"errors", "arrays", "hooks", "identity", "links", "reports", "statistics"},
]
EXTRAS = {
    "spaces": {"gymnasium"},
    "to_torch": {"torch"},
    "to_jax": {"jax"},
    "batch": {"torch", "jax"},
    "metrics": {"prometheus_client"},
    "commands": {"rich"},
}  # rooms that know a library of an extra
ROOMS = ROOMS_ABOVE + ROOMS_BELOW
BELOW = sorted(set().union(*ROOMS_BELOW))
FOLDERS = {"commands"}
PATHS = {".".join(path.relative_to(PACKAGE).with_suffix("").parts): path for path in PACKAGE.rglob("*.py")}
MODULES = sorted(PATHS)


def room_of(module: str) -> str:
    """The module itself, or the folder that it is in."""
    return module.split(".")[0]


@functools.cache
def tree_of(module: str) -> ast.Module:
    """A module's code."""
    return ast.parse(PATHS[module].read_text())


def imports_of(module: str) -> Iterator[tuple[str, str]]:
    """`(module, name)` of each import anywhere in it; the name is empty for `import module`."""
    for node in ast.walk(tree_of(module)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, ""
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} has a relative import"
            for alias in node.names:
                yield node.module or "", alias.name


def neighbours_of(module: str) -> set[str]:
    """The modules of this package that it imports."""
    found = set()
    for source, name in imports_of(module):
        if source == "areplay":
            found.add(name if name in PATHS else f"{name}.__init__" if name in FOLDERS else "__init__")
        elif source.startswith("areplay."):
            inner = source.removeprefix("areplay.")
            found.add(
                f"{inner}.{name}" if f"{inner}.{name}" in PATHS else inner if inner in PATHS else f"{inner}.__init__"
            )
    return found


def packages_of(module: str) -> set[str]:
    """The top-level packages that it imports."""
    return {source.split(".")[0] for source, _ in imports_of(module)}


def test_every_module_has_a_room() -> None:
    """Each in exactly one row of the drawing, and no row names one that is gone. The package is flat, but for the
    folders that the drawing has, and those are."""
    drawn = [module for row in ROOMS for module in row]
    assert sorted(drawn) == sorted({room_of(module) for module in MODULES})
    assert {module.rpartition(".")[0] for module in MODULES} == {"", *FOLDERS}


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_down(module: str) -> None:
    """A module imports from lower rows only, never from its own or from a higher one, but for its own folder."""
    row = next(number for number, names in enumerate(ROOMS) if room_of(module) in names)
    below = set().union(*ROOMS[row + 1 :])
    assert {room_of(name) for name in neighbours_of(module)} - ({room_of(module)} & FOLDERS) <= below


def test_within_a_folder_nobody_imports_in_a_circle() -> None:
    """There is an order from those that know nobody to those that know all others."""
    graphlib.TopologicalSorter({module: neighbours_of(module) for module in MODULES}).prepare()


@pytest.mark.parametrize("module", BELOW)
def test_nothing_below_the_line_knows_of_event_loops(module: str) -> None:
    """The protocols are plain synchronous code: they can be tested, and understood, without a loop."""
    assert not packages_of(module) & {"asyncio", "uvloop", "aiomultiprocess", "concurrent"}
    assert not [node for node in ast.walk(tree_of(module)) if isinstance(node, (ast.AsyncFunctionDef, ast.Await))]


@pytest.mark.parametrize("module", MODULES)
def test_one_module_knows_aiomultiprocess(module: str) -> None:
    """Its traps are dealt with in one place."""
    assert ("aiomultiprocess" in packages_of(module)) == (module == "process")


@pytest.mark.parametrize("module", MODULES)
def test_of_multiprocessing_only_what_survives_a_kill_is_used(module: str) -> None:
    """Spawning and the passing of descriptors. Its locks, queues, events, pools and managers are stuck for ever after
    one SIGKILL; none is imported, or reached through the module."""
    launching = {"context", "parent_process", "popen_spawn_posix", "reduction", "resource_tracker", "spawn", "util"}
    of_children = {"launching": launching, "process": {"current_process", "process", "resource_tracker"}}
    allowed = of_children.get(module, {"reduction"})
    for source, name in imports_of(module):
        if source.split(".")[0] == "multiprocessing":
            assert source in ("multiprocessing", "multiprocessing.reduction")
            assert source != "multiprocessing" or name in allowed | {""}
    for node in ast.walk(tree_of(module)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "multiprocessing":
            assert node.attr in allowed


@pytest.mark.parametrize("module", MODULES)
def test_only_what_is_declared_is_needed(module: str) -> None:
    """The standard library, numpy, uvloop and aiomultiprocess: nothing else is imported, not even in passing. Rooms
    that know a library of an extra are imported only when they are needed."""
    declared = {"numpy", "uvloop", "aiomultiprocess", "areplay"} | EXTRAS.get(room_of(module), set())
    assert packages_of(module) <= declared | set(sys.stdlib_module_names)


def test_no_library_of_an_extra_is_imported_before_it_is_needed() -> None:
    """The package is there without them, and as quick to import with them."""
    modules = ", ".join({"areplay"} | {f"areplay.{module}" for module in MODULES if room_of(module) in FOLDERS})
    program = f"import sys, {modules}; print(*(sys.modules.keys() & {set().union(*EXTRAS.values())}))"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout == "\n"


@pytest.mark.parametrize("module", MODULES)
def test_nobody_prints_or_configures_logging(module: str) -> None:
    """What there is to say goes to a logger named after its module; where that leads is the program's business. The
    commands are programs, and print."""
    calls = [node.func for node in ast.walk(tree_of(module)) if isinstance(node, ast.Call)]
    if room_of(module) != "commands":
        assert not [call for call in calls if isinstance(call, ast.Name) and call.id == "print"]
    attributes = {call.attr for call in calls if isinstance(call, ast.Attribute)}
    assert not attributes & {"basicConfig", "addHandler", "setLevel", "dictConfig"}


@pytest.mark.parametrize("module", MODULES)
def test_a_module_begins_with_what_it_is_about(module: str) -> None:
    """A docstring of its own, and none so long that it cannot be read at once."""
    text = ast.get_docstring(tree_of(module))
    assert text and len(text.splitlines()[0]) <= 120
    assert len(PATHS[module].read_text().splitlines()) <= 650


def test_what_is_public_is_listed_and_documented() -> None:
    """`__all__` is sorted and complete, and everything in it says what it is."""
    assert areplay.__all__ == sorted(areplay.__all__)
    for name in areplay.__all__:
        assert getattr(areplay, name).__doc__, f"{name} has no docstring"
    imported = {name for source, name in imports_of("__init__") if source.startswith("areplay.")}
    assert imported == set(areplay.__all__)
