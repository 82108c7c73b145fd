"""Sequences: what a recurrent agent needs, stretches of episodes with a time axis, from rows stored
once."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import numpy as np

from areplay._base.arrays import Array
from areplay._base.validation import flag, set_checked, whole_number
from areplay._storage.windows import Window, Windows
from areplay.items.frame_stack import Stacks
from areplay.items.item import Fields, FieldView
from areplay.spec import Spec

MAX_STEPS = 100_000


@dataclass(frozen=True, repr=False)
class Sequences:
    """Each item is a sequence of T = `sequence_length` steps: fields `(batch, T, ...)`, and which
    of the steps count.

    All fields of the spec, and `mask`, `is_first` (B, T) bool: whether a step is to be learnt from,
    and whether it is the first of an episode. A sequence begins at any step whose number in its
    episode is a multiple of `period`, so that sequences overlap by `sequence_length - period` steps
    (as in R2D2, Kapturowski et al. 2019).

    Where the episode ends within the sequence, what follows is masked and zero, except that `obs`
    has the final observation at the first masked time: bootstrap from it after a truncation. A
    batch never shows a step whose successors within the sequence are still to come.

    Args:
        sequence_length: T, steps, `burn_in` included.
        burn_in: the first so many steps are only there to warm up a recurrent state, their `mask`
            is False. Sequences that would have no step after them are not drawn.
        period: steps from one beginning to the next.
        frame_stack: observations of the last so many frames, `(T, frame_stack, *shape)`, oldest
            first, as views of frames that are there once; or `{"obs.camera": 4}` to stack some.
            Masked times may show frames of the end.
        across_episodes: go on with the next episode of the same environment instead, its first step
            where the last one's successor would be; final observations are left out, and nothing is
            masked but `burn_in`.
        pad: what stands for the frames before an episode's first: "first", that one again; or
            "zero".
        first_step_only: extras of which only the first step's value is wanted, such as a recurrent
            state: `(B, ...)`.

    Raises:
        ValueError, TypeError: an option is not such a number.
    """

    sequence_length: int
    burn_in: int = 0
    period: int = 1
    frame_stack: int | Mapping[str, int] | None = field(default=None, hash=False)
    across_episodes: bool = False
    pad: str = "first"
    first_step_only: Collection[str] = ()
    window: Window = field(init=False, compare=False)
    _stacks: Stacks = field(init=False, compare=False)

    def __post_init__(self) -> None:
        length = whole_number("sequence_length", self.sequence_length, at_most=MAX_STEPS)
        stacks = Stacks(self.frame_stack, self.pad)
        set_checked(
            self,
            sequence_length=length,
            burn_in=whole_number("burn_in", self.burn_in, at_least=0, at_most=length - 1),
            period=whole_number("period", self.period),
            frame_stack=stacks.frame_stack,
            across_episodes=flag("across_episodes", self.across_episodes),
            first_step_only=_checked_names(self.first_step_only),
            _stacks=stacks,
        )
        window = Window(
            back=stacks.back,
            forward=length - 1,
            period=self.period,
            min_steps=self.burn_in + 1,
            across_episodes=self.across_episodes,
        )
        set_checked(self, window=window)

    def fields(self, spec: Spec) -> Fields:
        """See `Item.fields`."""
        if not spec.is_steps:
            raise ValueError(
                f"{self!r} needs a spec of steps, made with Spec.steps or Spec.from_env; use Rows()"
            )
        self._stacks.check(spec)
        for name in self.first_step_only:
            if name not in spec.extras:
                raise ValueError(
                    f"first_step_only: {name!r} is no extra of the spec, which has "
                    f"{spec.extras or 'none'}"
                )
        length = self.sequence_length
        fields: dict[str, object] = {}
        for name, each in spec.items():
            depth = self._stacks.depth(name) if name in spec.observations else 0
            if depth and not self.across_episodes:
                fields[f"frames:{name}"] = ((length + depth - 1, *each.shape), each.dtype)
                fields[name] = FieldView(f"frames:{name}", 0, length + depth - 1, stack=depth)
            elif depth:
                fields[name] = ((length, depth, *each.shape), each.dtype)
            else:
                fields[name] = (
                    each.shape if name in self.first_step_only else (length, *each.shape),
                    each.dtype,
                )
        for name in ("mask", "is_first"):
            if name in fields:
                raise ValueError(
                    f"the extra {name!r} has the name of a field of Sequences; give it another one"
                )
            fields[name] = ((length,), "bool")
        return fields

    def assemble(self, windows: Windows, out: Mapping[str, Array]) -> None:
        """See `Item.assemble`."""
        times, steps = np.arange(self.sequence_length), windows.steps[:, None]
        numbers = windows.numbers()[:, windows.back :]
        is_step = times < steps
        out["is_first"][:] = is_step & (numbers == 0)
        out["mask"][:] = is_step & (times >= self.burn_in)
        is_padded = not is_step.all()
        for name in windows.spec:
            if name in windows.spec.observations:
                self._assemble_observations(windows, name, out, numbers, times > steps)
            elif name in self.first_step_only:
                windows.take(name, out=out[name])
            else:
                windows.take(name, slice(0, self.sequence_length), out=out[name])
                if is_padded:
                    out[name][~is_step] = 0

    def _assemble_observations(
        self,
        windows: Windows,
        name: str,
        out: Mapping[str, Array],
        numbers: Array,
        is_beyond: Array,
    ) -> None:
        """The observations of one field, (B, T, ...).

        Args:
            numbers: (B, T), the number of each step in its episode.
            is_beyond: (B, T), the times after the final observation; they get zeros.
        """
        depth = self._stacks.depth(name)
        length = self.sequence_length
        if not depth:
            windows.take(name, slice(0, length), out=out[name])
            if is_beyond.any():
                out[name][is_beyond] = 0
        elif not self.across_episodes:
            frames = out[f"frames:{name}"]
            windows.take(name, slice(1 - depth, length), out=frames)
            self._stacks.blank(frames, np.minimum(windows.behind, depth - 1) + length - 1)
            if is_beyond.any():
                frames[:, depth - 1 :][is_beyond] = 0
        else:
            self._stack_each_step(windows, name, numbers, out[name])

    def _stack_each_step(self, windows: Windows, name: str, numbers: Array, out: Array) -> None:
        """A stack of its own for each step, (B, T, depth, ...): an episode may begin at any."""
        depth = self._stacks.depth(name)
        last = np.broadcast_to(np.arange(self.sequence_length) + windows.back, numbers.shape)
        behind = np.minimum(numbers, depth - 1)
        columns = self._stacks.columns(depth, last, behind)
        positions = windows.positions[np.arange(len(windows))[:, None, None], columns]
        windows.columns[name].take(positions, axis=0, out=out, mode="clip")
        self._stacks.blank(out.reshape(-1, *out.shape[2:]), behind.ravel())

    def __repr__(self) -> str:
        options = [f"{self.sequence_length}"]
        if self.burn_in:
            options.append(f"burn_in={self.burn_in}")
        if self.period != 1:
            options.append(f"period={self.period}")
        if self.across_episodes:
            options.append("across_episodes=True")
        if self._stacks.frame_stack:
            options.append(f"frame_stack={self._stacks.frame_stack!r}{self._stacks.pad_text}")
        if self.first_step_only:
            options.append(f"first_step_only={sorted(self.first_step_only)}")
        return f"Sequences({', '.join(options)})"


def _checked_names(names: Collection[str]) -> frozenset[str]:
    if isinstance(names, str) or not isinstance(names, Collection):
        raise ValueError(
            f"first_step_only must be names of extras, such as ('state',), got {names!r}"
        )
    return frozenset(names)
