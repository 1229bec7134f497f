"""The copy-memory task: remember ten symbols across `length` blanks."""

from collections.abc import Sequence

import numpy as np

SYMBOLS = 8
COPIED = 10
DELIMITER = 9
CLASSES = 10


def copy_memory(
    seed: int | Sequence[int] | np.random.Generator, count: int, length: int
) -> tuple[np.ndarray, np.ndarray]:
    """`count` sequences of the copy-memory task with `length` = T blanks (Hochreiter and
    Schmidhuber, 1997; Arjovsky et al., 2016).

    Returns `(inputs, targets)`, both int32 `(count, T + 20)` with 10 classes. `inputs[:, :10]` are
    random symbols from {1, …, 8}; all else is 0 but for the delimiter 9 at position `T + 10`.
    `targets` is 0 except at the last 10 positions, which repeat the symbols: a causal model has
    to give the first of them on seeing the delimiter.

    Equal seeds give equal arrays; a sequence such as `(seed, step)` is a seed too, which makes the
    data of a step a function of the step. Raises `ValueError` for a `count` or `length` below 1.

    >>> inputs, targets = copy_memory(0, count=1, length=2)
    >>> inputs.shape, int(inputs[0, 12]), bool((inputs[0, :10] == targets[0, -10:]).all())
    ((1, 22), 9, True)
    """
    for name, value in (("count", count), ("length", length)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    generator = np.random.default_rng(seed)
    symbols = generator.integers(1, SYMBOLS + 1, size=(count, COPIED), dtype=np.int32)
    inputs = np.zeros((count, length + 2 * COPIED), np.int32)
    targets = np.zeros_like(inputs)
    inputs[:, :COPIED] = symbols
    inputs[:, length + COPIED] = DELIMITER
    targets[:, -COPIED:] = symbols
    return inputs, targets


def memoryless_loss(length: int) -> float:
    """`10 ln 8 / (T + 20)`, in nats a position: the mean cross-entropy of the best model without
    memory, sure of every blank and uniform over the 8 symbols at the last 10 positions. A model
    that has learnt anything is below it.

    >>> round(memoryless_loss(length=100), 4)
    0.1733
    """
    if length < 1:
        raise ValueError(f"length must be at least 1, got {length}")
    return COPIED * float(np.log(SYMBOLS)) / (length + 2 * COPIED)
