"""What learns in the Atari example: the network of Mnih et al. (Nature 2015), and a double DQN that
trains it."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import areplay

LEARNING_RATE, MAX_GRADIENT_NORM = 1e-4, 10.0
TARGET_STEPS = 2_500  # learner steps for which the target network stays the same


def set_up(threads: int) -> None:
    """Let torch use so many cores of this process, and what a GPU has to be fast."""
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision("high")  # TF32: exact enough
    torch.backends.cudnn.benchmark = True


def best_device() -> str:
    """Where to learn."""
    return "cuda" if torch.cuda.is_available() else "cpu"


class Network(nn.Module):
    """What each action is worth: the convolutional network of Mnih et al., Nature 2015."""

    def __init__(self, actions: int) -> None:
        super().__init__()
        self.actions = actions
        self.version = -1
        self.layers = nn.Sequential(
            *(nn.Conv2d(4, 32, kernel_size=8, stride=4), nn.ReLU()),
            *(nn.Conv2d(32, 64, kernel_size=4, stride=2), nn.ReLU()),
            *(nn.Conv2d(64, 64, kernel_size=3, stride=1), nn.ReLU(), nn.Flatten()),
            *(nn.Linear(64 * 7 * 7, 512), nn.ReLU()),
            nn.Linear(512, actions),
        )

    def forward(self, stacks: Tensor) -> Tensor:
        """(n, actions) for n stacks of frames, (n, 4, 84, 84) uint8."""
        values: Tensor = self.layers(stacks / 255)
        return values

    def act(self, stacks: NDArray[np.uint8]) -> NDArray[np.int64]:
        """The best action for each stack."""
        with torch.inference_mode():
            device = next(self.parameters()).device
            return self(torch.from_numpy(stacks).to(device)).argmax(dim=1).cpu().numpy()

    def arrays(self) -> dict[str, NDArray[np.float32]]:
        """All weights by name."""
        return {name: tensor.cpu().numpy() for name, tensor in self.state_dict().items()}

    def follow(self, weights: areplay.Weights) -> bool:
        """Take over the newest published weights; whether they are new."""
        version, arrays = weights.latest()
        is_new = version != self.version
        if is_new:
            self.load_state_dict({name: torch.tensor(array) for name, array in arrays.items()})
            self.version = version
        return is_new


class DoubleDQN:
    """A network that learns from batches of transitions.

    Attributes:
        steps: learnt, by all runs that went on from each other's checkpoints; `steps_now` are those
            of this one.
        loss: of the last step, on the device.
    """

    def __init__(self, actions: int, device: str, seed: int) -> None:
        torch.manual_seed(seed)
        self.steps = self.steps_now = 0
        self.network = Network(actions).to(device)
        self.target = copy.deepcopy(self.network)
        self.loss = torch.zeros(())
        self._optimiser = torch.optim.Adam(self.network.parameters(), lr=LEARNING_RATE)

    def learn(self, batch: Mapping[str, Tensor]) -> None:
        """One step down the Huber loss's gradient."""
        with torch.no_grad():
            best = self.network(batch["next_obs"]).argmax(dim=1, keepdim=True)
            next_values = self.target(batch["next_obs"]).gather(1, best)[:, 0]
            targets = batch["reward"] + batch["discount"] * next_values
        values = self.network(batch["obs"]).gather(1, batch["action"][:, None])[:, 0]
        loss = nn.functional.smooth_l1_loss(values, targets)
        self._optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), MAX_GRADIENT_NORM)
        self._optimiser.step()
        self.loss = loss.detach()
        self.steps += 1
        self.steps_now += 1
        if self.steps % TARGET_STEPS == 0:
            self.target.load_state_dict(self.network.state_dict())

    def save(self, path: Path) -> None:
        """Write a checkpoint. Killed meanwhile, the one before is still there."""
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_name(f"{path.name}.new")
        parts = {"network": self.network, "target": self.target, "optimiser": self._optimiser}
        torch.save(
            {"steps": self.steps} | {name: part.state_dict() for name, part in parts.items()}, new
        )
        new.replace(path)

    def load(self, path: Path) -> None:
        """Go on from a checkpoint."""
        checkpoint = torch.load(
            path, map_location=next(self.network.parameters()).device, weights_only=True
        )
        self.network.load_state_dict(checkpoint["network"])
        self.target.load_state_dict(checkpoint["target"])
        self._optimiser.load_state_dict(checkpoint["optimiser"])
        self.steps = checkpoint["steps"]
