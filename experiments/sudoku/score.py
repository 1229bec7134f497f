"""What a layer makes of boards: which are right, cell by cell, and by number of clues."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from flax import nnx

from deqjax.data import Boards

from .answer import digits_one_hot, filled


class Score(NamedTuple):
    """Per board: the filled-in one, uint8 (count, n, n), its loss, and how its solve ended.

    Nothing of a clue is put back into `boards`: a layer that overrules a clue is wrong.
    """

    given: Boards
    boards: np.ndarray
    losses: np.ndarray
    steps: np.ndarray
    converged: np.ndarray

    @property
    def right(self) -> np.ndarray:
        """Whether every cell of each board is right, (count,)."""
        return (self.boards == self.given.solutions).all((1, 2))

    def means(self) -> dict[str, float]:
        """loss; boards: the share that is right in every cell; cells: the share of the empty cells
        that are right; forward_steps and converged: of the solves."""
        empty = self.given.puzzles == 0
        return dict(
            loss=float(self.losses.mean(dtype=np.float64)),
            boards=float(self.right.mean()),
            cells=float((self.boards == self.given.solutions)[empty].mean()),
            forward_steps=float(self.steps.mean()),
            converged=float(self.converged.mean()),
        )

    def by_clues(self) -> dict[int, tuple[int, int]]:
        """How many boards are right, and how many there are, by their number of clues."""
        clues = self.given.clues
        return {
            int(c): (int(self.right[clues == c].sum()), int((clues == c).sum()))
            for c in np.unique(clues)
        }


def evaluate(model: Any, boards: Boards, batch_size: int) -> Score:
    """Have a model fill in every board."""
    count = len(boards.puzzles)
    # Whole batches, so that one program is compiled; what fills the last one up is cut off again.
    padded = np.resize(np.arange(count), -(-count // batch_size) * batch_size)
    parts = [
        [np.asarray(x) for x in _answer(model, boards.rows(which))]
        for which in np.split(padded, len(padded) // batch_size)
    ]
    columns: Sequence[np.ndarray] = [np.concatenate(x)[:count] for x in zip(*parts, strict=True)]
    return Score(boards, *columns)


@nnx.jit
def _answer(model, boards: Boards):
    answer = model(boards.puzzles)
    losses = model.losses(answer.scores, digits_one_hot(boards.solutions))
    return filled(answer.scores), losses, answer.stats.steps, answer.stats.converged
