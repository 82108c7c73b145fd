"""Frame stacks: observations that consist of the last k frames of an episode, put together when
they are sampled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from areplay._base.arrays import Array
from areplay._base.episode_links import Numbers
from areplay._base.validation import set_checked, whole_number
from areplay.spec import Spec

PADS = ("first", "zero")


@dataclass(frozen=True)
class Stacks:
    """Which observations are stacked, how deep, and what stands for the frames before an episode's
    first.

    Args:
        frame_stack: frames of each observation field, or of those that are named; None: no stacks.
        pad: "first": the first frame is repeated; "zero": zeros.

    Raises:
        ValueError, TypeError: not such options.
    """

    frame_stack: int | Mapping[str, int] | None
    pad: str

    def __post_init__(self) -> None:
        if self.pad not in PADS:
            raise ValueError(f"pad must be one of {', '.join(PADS)}, got {self.pad!r}")
        set_checked(self, frame_stack=_checked(self.frame_stack))

    @property
    def pad_text(self) -> str:
        """For a `repr`: `pad`, if it is not the default."""
        return "" if self.pad == PADS[0] else f", pad={self.pad!r}"

    @property
    def back(self) -> int:
        """How many frames before an observation are needed."""
        if isinstance(self.frame_stack, Mapping):
            return max(self.frame_stack.values(), default=1) - 1
        return (self.frame_stack or 1) - 1

    def depth(self, name: str) -> int:
        """Frames of that observation field; 0: it is not stacked."""
        if isinstance(self.frame_stack, Mapping):
            return self.frame_stack.get(name, 0)
        return self.frame_stack or 0

    def check(self, spec: Spec) -> None:
        """Refuse a stack of what is no observation.

        Raises:
            ValueError: names it.
        """
        if not isinstance(self.frame_stack, Mapping):
            return
        for name in self.frame_stack:
            if name not in spec.observations:
                known = ", ".join(spec.observations)
                raise ValueError(
                    f"frame_stack: {name!r} is no observation field of the spec, which has {known}"
                )

    def columns(self, depth: int, last: Numbers, behind: Numbers) -> Numbers:
        """(..., depth): the columns of windows in which the frames of the stacks that end in column
        `last` are.

        Args:
            behind: how many rows of the episode there are before that column's, of the same shape
                as `last`.
        """
        past = np.minimum(np.arange(depth - 1, -1, -1), behind[..., None])
        columns: Numbers = last[..., None] - past
        return columns

    def blank(self, frames: Array, behind: Numbers) -> None:
        """With `pad="zero"`, zero the frames (B, depth, ...) before an episode's first.

        Args:
            behind: (B,) how many frames there are before the last one.
        """
        if self.pad == "zero":
            short = np.flatnonzero(behind < frames.shape[1] - 1)
            if len(short):
                missing = np.arange(frames.shape[1]) < frames.shape[1] - 1 - behind[short, None]
                rows, columns = np.nonzero(missing)
                frames[short[rows], columns] = 0


def _checked(frame_stack: int | Mapping[str, int] | None) -> int | dict[str, int] | None:
    if isinstance(frame_stack, Mapping):
        return {
            name: whole_number(f"frame_stack[{name!r}]", depth)
            for name, depth in frame_stack.items()
        }
    return None if frame_stack is None else whole_number("frame_stack", frame_stack)
