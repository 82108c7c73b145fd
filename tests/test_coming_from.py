"""The tables of docs/coming-from.md: what stands in areplay's column can be called so.

Each piece of code there is read as Python. `replay`, `actor`, `batch` and `batches` are what
areplay gives under these names, names with a capital are areplay's own; calls have to fit the
signature, options on their own (`prefetch=16`) some signature, and fields (`batch["obs"]`) are
those of real batches. What a reader brings along stands for itself.
"""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path
from typing import Any

import pytest

import areplay

PAGE = Path(__file__).parent.parent / "docs" / "coming-from.md"
OBJECTS = {
    "areplay": areplay,
    "replay": areplay.Replay,
    "actor": areplay.Actor,
    "batch": areplay.Batch,
    "batches": areplay.Batches,
}
# stored, and made of them
FIELDS = {"obs", "action", "reward", "terminated", "truncated"}, {"next_obs", "discount"}
BROUGHT = {"columns", "device", "env", "error", "error_buffer", "explore", "function", "gamma", "item", "max_size"} | {
    "n", "next_value", "p", "path", "size", "spec", "step", "td",
}  # fmt: skip
UNKNOWN = object()  # something that a call returns, or that a reader brings
CALLS = (areplay.Replay.batches, areplay.Prioritized, areplay.SamplesPerInsert, areplay.Fifo)
OPTIONS = {name for call in CALLS for name in inspect.signature(call).parameters}


def pieces() -> list[str]:
    """The code in areplay's column, in order."""
    rows = re.findall(r"^\| (.*) \| (.*) \|$", PAGE.read_text(), re.MULTILINE)
    return [
        code for _, cell in rows if cell != "areplay" for code in re.findall(r"`([^`]+)`", cell)
    ]


def read(code: str) -> ast.AST:
    """As Python, with what the page leaves out put in."""
    code = re.sub(r"(\w=)(?=[,)])", r"\1None", code)  # add(obs=, action=)
    code = re.sub(r", \.\.\.}", "}", code)  # {"obs": ..., ...}
    code = f"{code} pass" if code.endswith(":") else code
    code = f"_keyword({code})" if re.match(r"\w+=[^=]", code) else code
    return ast.parse(f"async def page():\n {code}").body[0]


def check(code: str) -> None:
    """That there is all of it."""
    for statement in read(code).body:  # type: ignore[attr-defined]
        for node in ast.iter_child_nodes(statement):
            if isinstance(node, ast.expr):
                meaning(node)


def meaning(node: ast.AST) -> Any:
    """What an expression is: an object of areplay, or unknown. All that it is made of is
    checked."""
    if isinstance(node, ast.Call):
        return meaning_of_call(node)
    if isinstance(node, ast.Attribute):
        of = meaning(node.value)
        if of is UNKNOWN:
            return UNKNOWN
        assert hasattr(of, node.attr), f"{of} has no {node.attr}"
        return getattr(of, node.attr)
    if (
        isinstance(node, ast.Subscript)
        and isinstance(node.value, ast.Name)
        and node.value.id == "batch"
    ):
        assert isinstance(node.slice, ast.Constant) and node.slice.value in set.union(*FIELDS), (
            ast.unparse(node)
        )
        return UNKNOWN
    if isinstance(node, ast.Name):
        if node.id in OBJECTS:
            return OBJECTS[node.id]
        if node.id[0].isupper():
            assert hasattr(areplay, node.id), f"areplay has no {node.id}"
            return getattr(areplay, node.id)
        assert node.id in set.union(BROUGHT, OPTIONS, *FIELDS) or isinstance(node.ctx, ast.Store), (
            f"what is {node.id}?"
        )
        return UNKNOWN
    for child in ast.iter_child_nodes(node):
        meaning(child)
    return UNKNOWN


def meaning_of_call(node: ast.Call) -> Any:
    """The class, if one is called, so that its methods are known."""
    for argument in (*node.args, *(keyword.value for keyword in node.keywords)):
        meaning(argument)
    names = [keyword.arg for keyword in node.keywords if keyword.arg is not None]
    if isinstance(node.func, ast.Name) and node.func.id == "_keyword":
        assert set(names) <= OPTIONS, names
        return UNKNOWN
    if isinstance(node.func, ast.Name) and node.func.id in ("len", "anext"):
        assert len(node.args) == 1 and meaning(node.args[0]) is not UNKNOWN
        return UNKNOWN
    called = meaning(node.func)
    if called is UNKNOWN:
        return UNKNOWN
    assert callable(called), f"{called} is nothing to call"
    signature = inspect.signature(called)
    given: list[Any] = [None] * sum(not is_left_out(argument) for argument in node.args)
    if isinstance(node.func, ast.Attribute) and next(iter(signature.parameters), "") == "self":
        given.insert(0, None)
    is_whole = not any(map(is_left_out, node.args))
    try:
        (signature.bind if is_whole else signature.bind_partial)(*given, **dict.fromkeys(names))
    except TypeError as error:
        raise AssertionError(f"{ast.unparse(node)}: {error}") from None
    fields = set(names) - set(signature.parameters)
    if called in (areplay.Actor.add, areplay.Replay.add):
        assert fields <= FIELDS[0] | {"next_obs"}, fields
    return called if inspect.isclass(called) else UNKNOWN


def is_left_out(argument: ast.expr) -> bool:
    """Whether it is the three dots."""
    return isinstance(argument, ast.Constant) and argument.value is Ellipsis


@pytest.mark.parametrize("code", dict.fromkeys(pieces()))
def test_what_stands_in_areplays_column_can_be_called_so(code: str) -> None:
    """Names, arguments, attributes and fields."""
    check(code)


def test_all_four_tables_are_read() -> None:
    """Each row has code of areplay, but for those that say "nothing", or put it in words."""
    text = PAGE.read_text()
    tables = re.findall(
        r"^\| (?:cpprb|torchrl|Reverb|Stable-Baselines3) \| areplay \|$", text, re.MULTILINE
    )
    assert len(tables) == 4
    assert len(pieces()) > 60


async def test_fields_are_those_of_a_real_batch() -> None:
    """Of steps, read as transitions."""
    spec = areplay.Spec.steps(obs=((4,), "float32"), action=((), "int64"))
    assert set(spec) == FIELDS[0]
    async with areplay.Replay(spec, 1_000) as replay:
        step = {
            "obs": [0.0] * 4,
            "action": 1,
            "reward": 1.0,
            "terminated": False,
            "truncated": False,
        }
        for _ in range(3):
            await replay.add(**step, next_obs=[0.0] * 4)
        assert set(replay.sample(2, areplay.Transitions())) >= {
            "obs",
            "action",
            "reward",
            *FIELDS[1],
        }


@pytest.mark.parametrize(
    "code",
    [
        "replay.smaple(256)",
        "replay.sample()",
        "Transitions(nstep=3)",
        "Replay(spec, size=3)",
        "selector=Prioritised(0.6)",
        "selector=Prioritized(0.6, beta=0.4)",
        "priority_exponents=0.4",
        "batch.indexes",
        'batch["observations"]',
        "await actor.add(obs=, rew=)",
        "await Replay.restore(path)",
        "limiter=areplay.SamplesPerInserts(...)",
        "areplay.Transform()",
        "prefetched",
        "async for batch in batch_queue:",
        "await anext(queue)",
    ],
)
def test_what_is_not_there_is_noticed(code: str) -> None:
    """The check can fail: a name, an argument, a field."""
    with pytest.raises(AssertionError):
        check(code)
