"""The rooms of the house: imports point down only, and some things are kept in one room.

The order below is the drawing in docs/architecture.md. A folder is a room, whose modules may know
one another.
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

ROOMS = [
    "__main__",
    "cli",
    "metrics",
    "__init__",
    "replay",
    "_engine",
    "_status",
    "_checkpoint",
    "batches",
    "batch",
    "_sampling",
    "actor",
    "_ingest",
    "selectors",
    "items",
    "_storage",
    "_processes",
    "limiters",
    "weights",
    "_shm",
    "spec",
    "_base",
    "statistics",
    "errors",
]
"""The strata, from the top: a room imports from lower ones only. A folder is one room."""
KNOW_EVENT_LOOPS = {
    "replay",
    "actor",
    "batches",
    "_engine.blueprint",
    "_engine.checkpoints",
    "_engine.engine",
    "_engine.periodic",
    "_engine.saver",
    "_ingest.actor_group",
    "_ingest.actors",
    "_ingest.coordinator",
    "_ingest.feed_tasks",
    "_ingest.inbox_writer",
    "_ingest.local_admission",
    "_ingest.local_writer",
    "_ingest.quiet_watch",
    "_ingest.running_actors",
    "_processes.backoff",
    "_processes.child",
    "_processes.child_main",
    "_processes.closing",
    "_processes.completion",
    "_processes.dropped",
    "_processes.event_loops",
    "_processes.lifetime",
    "_processes.opening",
    "_processes.reaper",
    "_processes.runner",
    "_processes.spawned",
    "_processes.starting",
    "_processes.supervisor",
    "_processes.waiter",
    "_sampling.pacing",
    "_sampling.sampler",
    "_sampling.stream",
    "cli.trial",
}
"""All others are plain synchronous code: decisions are made there, and waited for here."""
EXTRAS = {
    "_base.spaces": {"gymnasium"},
    "_sampling.torch": {"torch"},
    "_sampling.jax": {"jax"},
    "batch": {"torch", "jax"},
    "metrics": {"prometheus_client"},
    "cli": {"rich"},
}  # rooms that know a library of an extra
PATHS = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts): path
    for path in PACKAGE.rglob("*.py")
}
MODULES = sorted(PATHS)
FOLDERS = {module.partition(".")[0] for module in MODULES if "." in module}


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
            found.add(
                name if name in PATHS else f"{name}.__init__" if name in FOLDERS else "__init__"
            )
        elif source.startswith("areplay."):
            inner = source.removeprefix("areplay.")
            found.add(
                f"{inner}.{name}"
                if f"{inner}.{name}" in PATHS
                else inner
                if inner in PATHS
                else f"{inner}.__init__"
            )
    return found


def packages_of(module: str) -> set[str]:
    """The top-level packages that it imports."""
    return {source.split(".")[0] for source, _ in imports_of(module)}


def test_every_module_has_a_room() -> None:
    """Each is in the drawing, by itself or with its folder, and the drawing names no room that is
    gone."""
    assert sorted(ROOMS) == sorted({room_of(module) for module in MODULES})
    assert all(module.count(".") <= 1 for module in MODULES), "a folder in a folder"


def test_the_top_folder_shows_the_product() -> None:
    """Few entries, public names flat; machinery is in folders with an underscore."""
    assert len(ROOMS) <= 24


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_down(module: str) -> None:
    """A module imports from its own folder and from lower rooms only."""
    below = set(ROOMS[ROOMS.index(room_of(module)) + 1 :])
    assert {room_of(name) for name in neighbours_of(module)} - (
        {room_of(module)} & FOLDERS
    ) <= below


def test_modules_do_not_import_each_other_in_a_circle() -> None:
    """There is an order from those that know no other to those that know all others."""
    graphlib.TopologicalSorter({module: neighbours_of(module) for module in MODULES}).prepare()


@pytest.mark.parametrize("module", MODULES)
def test_only_those_that_wait_know_of_event_loops(module: str) -> None:
    """The protocols are plain synchronous code: they can be tested, and understood, without a
    loop."""
    uses_loops = bool(packages_of(module) & {"asyncio", "uvloop", "aiomultiprocess", "concurrent"})
    awaits = [
        node
        for node in ast.walk(tree_of(module))
        if isinstance(node, (ast.AsyncFunctionDef, ast.Await))
    ]
    assert (uses_loops or bool(awaits)) == (module in KNOW_EVENT_LOOPS)


@pytest.mark.parametrize("module", MODULES)
def test_one_module_knows_aiomultiprocess(module: str) -> None:
    """Its traps are dealt with in one place."""
    assert ("aiomultiprocess" in packages_of(module)) == (module == "_processes.spawned")


@pytest.mark.parametrize("module", MODULES)
def test_of_multiprocessing_only_what_survives_a_kill_is_used(module: str) -> None:
    """Spawning and the passing of descriptors. Its locks, queues, events, pools and managers are
    stuck for ever after one SIGKILL; none is imported, or reached through the module."""
    launching = {
        "context",
        "parent_process",
        "popen_spawn_posix",
        "reduction",
        "resource_tracker",
        "spawn",
        "util",
    }
    of_children = {
        "_processes.launcher": launching,
        "_processes.spawned": {"process", "resource_tracker"},
        "_processes.child_main": {"current_process"},
    }
    allowed = of_children.get(module, {"reduction"})
    for source, name in imports_of(module):
        if source.split(".")[0] == "multiprocessing":
            assert source in ("multiprocessing", "multiprocessing.reduction")
            assert source != "multiprocessing" or name in allowed | {""}
    for node in ast.walk(tree_of(module)):
        if (
            isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id == "multiprocessing"
        ):
            assert node.attr in allowed


@pytest.mark.parametrize("module", MODULES)
def test_only_what_is_declared_is_needed(module: str) -> None:
    """The standard library, numpy, uvloop and aiomultiprocess: nothing else is imported, not even
    in passing. Rooms that know a library of an extra are imported only when they are needed."""
    declared = {"numpy", "uvloop", "aiomultiprocess", "areplay"} | EXTRAS.get(
        module, EXTRAS.get(room_of(module), set())
    )
    assert packages_of(module) <= declared | set(sys.stdlib_module_names)


def test_no_library_of_an_extra_is_imported_before_it_is_needed() -> None:
    """The package is there without them, and as quick to import with them."""
    modules = ", ".join(
        {"areplay"} | {f"areplay.{module}" for module in MODULES if room_of(module) in FOLDERS}
    )
    program = (
        f"import sys, {modules}; print(*(sys.modules.keys() & {set().union(*EXTRAS.values())}))"
    )
    assert (
        subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=True
        ).stdout
        == "\n"
    )


@pytest.mark.parametrize("module", MODULES)
def test_nobody_prints_or_configures_logging(module: str) -> None:
    """What there is to say goes to a logger named after its module; where that leads is the
    program's business. The commands are programs, and print."""
    calls = [node.func for node in ast.walk(tree_of(module)) if isinstance(node, ast.Call)]
    if room_of(module) != "cli":
        assert not [call for call in calls if isinstance(call, ast.Name) and call.id == "print"]
    attributes = {call.attr for call in calls if isinstance(call, ast.Attribute)}
    assert not attributes & {"basicConfig", "addHandler", "setLevel", "dictConfig"}


@pytest.mark.parametrize("module", MODULES)
def test_a_module_begins_with_what_it_is_about(module: str) -> None:
    """A docstring of its own, and none so long that it cannot be read at once."""
    text = ast.get_docstring(tree_of(module))
    assert text and len(text.splitlines()[0]) <= 120
    # Half of `replay` is what users read of its calls.
    longest = 560 if module == "replay" else 415
    assert len(PATHS[module].read_text().splitlines()) <= longest


def test_what_is_public_is_listed_and_documented() -> None:
    """`__all__` is sorted and complete, and everything in it says what it is."""
    assert areplay.__all__ == sorted(areplay.__all__)
    for name in areplay.__all__:
        assert getattr(areplay, name).__doc__, f"{name} has no docstring"
    imported = {name for source, name in imports_of("__init__") if source.startswith("areplay.")}
    assert imported == set(areplay.__all__)
