"""Transitions: what an agent that learns from single steps needs, n steps deep if wished, from rows
stored once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from areplay._base.arrays import Array
from areplay._base.validation import fraction, set_checked, whole_number
from areplay._storage.windows import Window, Windows
from areplay.items.frame_stack import Stacks
from areplay.items.item import Fields, FieldView
from areplay.spec import Spec

MAX_STEPS = 10_000


@dataclass(frozen=True, repr=False)
class Transitions:
    """Each item is a transition over n steps of one episode, or fewer where it ends.

    With o, a, r of step t, where the episode ends after m more steps at the latest (n = min(n_step,
    m))::

        obs = o[t], action = a[t], reward = r[t] + gamma r[t+1] + ... + gamma^(n-1) r[t+n-1]
        next_obs = o[t+n], discount = gamma^n, or 0 if step t+n-1 terminated the episode
        terminated, truncated: of step t+n-1; n; each extra of step t

    so that `reward + discount * value(next_obs)` is the n-step target (Sutton & Barto,
    Reinforcement Learning, 2nd ed., eq. 7.1), also after a truncation: `next_obs` is the final
    observation there. Dtypes as in the spec; `reward` at least float32, `discount` like `reward`,
    `n` int64. Integer rewards become floats, and those above 2**53 are rounded to the nearest
    float64; `Rows` and `Sequences` give them as they are.

    Args:
        n_step: n, at least 1.
        gamma: from 0 to 1.
        frame_stack: observations of the last so many frames, oldest first, `(frame_stack, *shape)`;
            or `{"obs.camera": 4}` to stack some. `obs` and `next_obs` are then views of one array,
            which do not lie in one piece; with `n_step=1` they share the frames that they have in
            common.
        pad: what stands for the frames before an episode's first: "first", that one again; or
            "zero".

    Raises:
        ValueError, TypeError: an option is not such a number.
    """

    n_step: int = 1
    gamma: float = 0.99
    frame_stack: int | Mapping[str, int] | None = field(default=None, hash=False)
    pad: str = "first"
    window: Window = field(init=False, compare=False)
    _stacks: Stacks = field(init=False, compare=False)
    _discounts: NDArray[np.float64] = field(init=False, compare=False)

    def __post_init__(self) -> None:
        n_step = whole_number("n_step", self.n_step, at_most=MAX_STEPS)
        gamma = fraction("gamma", self.gamma)
        stacks = Stacks(self.frame_stack, self.pad)
        set_checked(
            self,
            n_step=n_step,
            gamma=gamma,
            frame_stack=stacks.frame_stack,
            window=Window(back=stacks.back, forward=n_step),
            _stacks=stacks,
            _discounts=gamma ** np.arange(n_step + 1),
        )

    def fields(self, spec: Spec) -> Fields:
        """See `Item.fields`."""
        if not spec.is_steps:
            raise ValueError(
                f"{self!r} needs a spec of steps, made with Spec.steps or Spec.from_env; use Rows()"
            )
        self._stacks.check(spec)
        fields: dict[str, object] = {}
        for name in spec.observations:
            shape, dtype, depth = spec[name].shape, spec[name].dtype, self._stacks.depth(name)
            if depth:
                # With one step the next observation has all of this one's frames but the oldest:
                # they are there once. Else all are in one array so that one gather copies them,
                # from neighbouring rows: 8 % faster than two.
                next_at = 1 if self.n_step == 1 else depth
                fields[f"frames:{name}"] = ((next_at + depth, *shape), dtype)
                fields[name] = FieldView(f"frames:{name}", 0, depth)
                fields[f"next_{name}"] = FieldView(f"frames:{name}", next_at, next_at + depth)
            else:
                fields[name] = fields[f"next_{name}"] = (shape, dtype)
        for name in spec.actions:
            fields[name] = spec[name]
        reward = (spec["reward"].shape, np.result_type(spec["reward"].dtype, np.float32))
        fields |= {"reward": reward, "discount": ((), np.empty(0, reward[1]).real.dtype)}
        fields |= {"terminated": ((), "bool"), "truncated": ((), "bool"), "n": ((), "int64")}
        for name in spec.extras:
            if name in fields:
                raise ValueError(
                    f"the extra {name!r} has the name of a field of Transitions; give "
                    "it another one"
                )
            fields[name] = spec[name]
        return fields

    def assemble(self, windows: Windows, out: Mapping[str, Array]) -> None:
        """See `Item.assemble`."""
        n = windows.ahead
        is_full = int(n.min()) == self.n_step
        for name in windows.spec.observations:
            self._assemble_observations(windows, name, out)
        # The last step of each transition tells whether its episode ended there.
        if is_full:
            at_last = windows.positions[:, windows.back + self.n_step - 1]
        else:
            at_last = windows.positions[np.arange(len(n)), windows.back + n - 1]
        for name in ("terminated", "truncated"):
            windows.columns[name].take(at_last, out=out[name], mode="clip")
        self._sum_rewards(windows, out["reward"], is_full)
        np.multiply(
            self._discounts.take(n, mode="clip"),
            ~out["terminated"],
            out=out["discount"],
            casting="unsafe",
        )
        out["n"][:] = n
        for name in windows.spec.actions + windows.spec.extras:
            windows.take(name, out=out[name])

    def _assemble_observations(self, windows: Windows, name: str, out: Mapping[str, Array]) -> None:
        """The observation before the first step and the one after the last, of one field."""
        depth = self._stacks.depth(name)
        if not depth:
            windows.take(name, out=out[name])
            windows.take(name, self.n_step, out=out[f"next_{name}"])
        elif self.n_step == 1:
            frames = out[f"frames:{name}"]
            windows.take(name, slice(1 - depth, 2), out=frames)
            self._stacks.blank(frames, np.minimum(windows.behind + 1, depth))
        else:
            self._take_both(windows, name, depth, out[f"frames:{name}"])

    def _take_both(self, windows: Windows, name: str, depth: int, out: Array) -> None:
        """The stacks that end with the row itself, and those that end with the row after the last
        step."""
        back = windows.back
        ours, nexts = (
            np.arange(back + 1 - depth, back + 1),
            np.arange(-depth, 0) + back + 1 + self.n_step,
        )
        positions = windows.positions[:, np.concatenate([ours, nexts])]
        behind = windows.behind + windows.ahead
        # there the episode ends within the window
        short = np.flatnonzero(windows.ahead < self.n_step)
        if len(short):
            columns = self._stacks.columns(depth, back + windows.ahead[short], behind[short])
            positions[short, depth:] = windows.positions[short[:, None], columns]
        windows.columns[name].take(positions, axis=0, out=out, mode="clip")
        self._stacks.blank(out[:, :depth], windows.behind)
        self._stacks.blank(out[:, depth:], behind)

    def _sum_rewards(self, windows: Windows, out: Array, is_full: bool) -> None:
        if self.n_step == 1:
            out[:] = windows.take("reward")
            return
        rewards = windows.take("reward", slice(0, self.n_step)).astype(
            np.result_type(out.dtype, np.float64)
        )
        if not is_full:
            rewards[np.arange(self.n_step) >= windows.ahead[:, None]] = 0
        out[:] = np.moveaxis(rewards, 1, -1) @ self._discounts[:-1]

    def __repr__(self) -> str:
        stacks = self._stacks
        stack = (
            f", frame_stack={stacks.frame_stack!r}{stacks.pad_text}" if stacks.frame_stack else ""
        )
        return f"Transitions(n_step={self.n_step}, gamma={self.gamma}{stack})"
