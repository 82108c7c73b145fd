"""Selectors: which rows the items of a batch are drawn by."""

from areplay.selectors.prioritized import Prioritized
from areplay.selectors.selector import Selector
from areplay.selectors.uniform import Uniform

__all__ = ["Prioritized", "Selector", "Uniform"]
