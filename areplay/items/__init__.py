"""Items: what a batch consists of, and how it is put together from rows."""

from areplay.items.item import FieldView, Item
from areplay.items.rows import Rows
from areplay.items.sequences import Sequences
from areplay.items.transform import Transform
from areplay.items.transitions import Transitions

__all__ = ["FieldView", "Item", "Rows", "Sequences", "Transform", "Transitions"]
