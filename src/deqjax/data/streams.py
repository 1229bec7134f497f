"""Contiguous language-model streams, addressed by one integer."""

import operator
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np


class Batch(NamedTuple):
    """One segment of every row of a stream; a pytree. B rows, T tokens a row.

    - `inputs`: int32 `(B, T)`, the token before each target (0 where padded).
    - `targets`: int32 `(B, T)`, the tokens to predict (0 where padded).
    - `weights`: float32 `(B, T)`, 1 for a real target and 0 for padding.
    - `fresh`: True on the first segment of an epoch, where carried memory must be reset.
    """

    inputs: np.ndarray
    targets: np.ndarray
    weights: np.ndarray
    fresh: bool


@dataclass(frozen=True, eq=False)
class Stream:
    """A token stream cut into `batch_size` contiguous stretches, read `segment` tokens at a time.

    Row `b` holds stretch `b`, and `stream[i + 1]` goes on in every row where `stream[i]` stopped,
    so recurrent memory may be carried. Over the `len(stream)` segments of an epoch every token of
    `ids` is a target exactly once with weight 1: stretches differ in length by one token at most,
    and the ragged tail is padded with weight 0. The input before a row's first target is the last
    token of the stretch above, and `start_id` for the first row.

    Nothing is stored but the arguments: a position is an `int`, and resuming is indexing. An index
    beyond the epoch wraps around (`index // len(stream)` is the epoch). Iterating gives one epoch.

    `ids` is an integer array `(n,)`, memory-mapped if you like; `rows` picks the rows this host
    reads, out of the `batch_size` of all hosts.

    Raises `ValueError` when `ids` has fewer tokens than rows, for sizes below 1, a negative
    `start_id` or an empty `rows`; `TypeError` when `ids` is not an integer vector; `IndexError` for
    a negative index.

    >>> stream = Stream(np.arange(1, 8), batch_size=2, segment=3, start_id=0)
    >>> len(stream)
    2
    >>> stream[0].inputs.tolist(), stream[0].targets.tolist()
    ([[0, 1, 2], [4, 5, 6]], [[1, 2, 3], [5, 6, 7]])
    >>> stream[1].targets.tolist(), stream[1].weights.tolist()
    ([[4, 0, 0], [0, 0, 0]], [[1.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    """

    ids: np.ndarray
    batch_size: int
    segment: int
    start_id: int
    rows: slice = field(default_factory=lambda: slice(None))

    def __post_init__(self) -> None:
        if not isinstance(self.ids, np.ndarray) or self.ids.ndim != 1:
            raise TypeError("ids must be a numpy vector of token ids, shape (n,)")
        if not np.issubdtype(self.ids.dtype, np.integer):
            raise TypeError(f"ids must have an integer dtype such as int32, got {self.ids.dtype}")
        for name in ("batch_size", "segment"):
            if operator.index(getattr(self, name)) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if operator.index(self.start_id) < 0:
            raise ValueError(f"start_id must be a token id, 0 or more, got {self.start_id}")
        if len(self.ids) < self.batch_size:
            raise ValueError(
                f"{len(self.ids)} tokens are too few for batch_size={self.batch_size}: every row "
                "needs at least one, so take a smaller batch or a larger corpus"
            )
        if not range(self.batch_size)[self.rows]:
            raise ValueError(f"{self.rows} selects none of the {self.batch_size} rows")

    def __len__(self) -> int:
        """Segments in an epoch: `⌈⌈n / batch_size⌉ / segment⌉`."""
        longest = -(-len(self.ids) // self.batch_size)
        return -(-longest // self.segment)

    def __getitem__(self, index: int) -> Batch:
        index = operator.index(index)
        if index < 0:
            raise IndexError(f"a stream position is 0 or more, got {index}")
        index %= len(self)
        row = np.arange(self.batch_size + 1)
        short, extra = divmod(len(self.ids), self.batch_size)
        edges = row * short + np.minimum(row, extra)  # stretch b is ids[edges[b]:edges[b + 1]]
        start, stop = edges[:-1][self.rows, None], edges[1:][self.rows, None]
        position = start + index * self.segment + np.arange(self.segment)
        real = position < stop
        position = np.where(real, position, start)
        before = np.where(position > 0, self.ids[position - 1], self.start_id)
        return Batch(
            inputs=np.where(real, before, 0).astype(np.int32),
            targets=np.where(real, self.ids[position], 0).astype(np.int32),
            weights=real.astype(np.float32),
            fresh=index == 0,
        )

    def __iter__(self) -> Iterator[Batch]:
        return (self[i] for i in range(len(self)))
