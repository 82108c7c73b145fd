"""Selectors: which rows the items of a batch are drawn by."""

from areplay.selectors.epochs import Epochs
from areplay.selectors.fifo import Fifo
from areplay.selectors.prioritized import Prioritized
from areplay.selectors.selector import Selector
from areplay.selectors.uniform import Uniform

__all__ = ["AnySelector", "Epochs", "Fifo", "Prioritized", "Selector", "Uniform"]

AnySelector = Selector | Prioritized | Fifo | Epochs
"""What a stream of batches or `Replay.sample` may be given. `Uniform` is a `Selector`."""
