"""Epochs: each item once an epoch, in random order."""

from __future__ import annotations

from dataclasses import dataclass, field

from areplay._base.validation import flag, set_checked, whole_number


@dataclass(frozen=True)
class Epochs:
    """Deliver each item once an epoch, in a new random order each time: for data that is in the
    ring already.

    The items are all that can be made of the rows that are there when the stream of batches is
    opened. Rows that come later do not belong to them. Where a later row would overwrite one that
    does, it waits until the last batch was handed out.

    Batches have `batch_size` items, also where one epoch ends and the next begins; only the last
    one of all may have fewer. After it the loop over the stream ends, and `get` raises
    `EndOfEpochs`. With no item there, or with `drop_last` less than a batch, `Stalled` is raised
    when the stream is opened, or by `sample`. Both can be tried again with the same selector when
    rows came.

    Args:
        epochs: how many; None for ever.
        drop_last: leave a last batch out that would have fewer items.

    Raises:
        ValueError: an option is not what it should be.
    """

    epochs: int | None = 1
    drop_last: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        epochs = self.epochs
        set_checked(
            self,
            epochs=None if epochs is None else whole_number("epochs", epochs),
            drop_last=flag("drop_last", self.drop_last),
        )
