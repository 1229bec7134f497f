"""The spectral start of OptNet: A from the affine hull of the training solutions, not learned.

One-hot solutions x ∈ {0, 1}^(n³) of all boards lie in an affine space. With their covariance C, its
equations are A x = A x̄, where the rows of A span the null space of C: for a 9×9 board 249 of 729
directions, found exactly from some 500 solutions. They are what OptNet would have to learn, and no
gradient had a part in them: the result is reported apart from the learned ones. What is left to
choose is the weight of the clues, by boards of the training set.
"""

from __future__ import annotations

import dataclasses
import time
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import nnx

from deqjax.data import Boards, one_hot
from deqjax.training import OptionError

from .optnet import OptNetSudoku
from .score import Score, evaluate
from .task import Sudoku, parameters

WEIGHTS = (0.3, 1.0, 3.0, 10.0, 30.0)
SOLUTIONS = 2000  # that the hull is of; from about 500 on it is always the same
CHOSEN_ON = 500  # training boards, none of them among those
_NOTHING = 1e-9  # of the largest variance: rounding


def affine_hull(solutions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A with orthonormal rows, (equations, n³), and x̄ > 0, (n³,), float64: the affine hull of the
    one-hot solutions is {x: A x = A x̄}.

    Args:
        solutions: (count, n, n), enough to span what all solutions span.

    Raises:
        OptionError: fewer solutions than the dimension of their hull would need to be known.
    """
    x = one_hot(solutions).reshape(len(solutions), -1).astype(np.float64)
    mean = x.mean(0)
    variances, directions = np.linalg.eigh((x - mean).T @ (x - mean) / len(x))
    null = variances <= _NOTHING * variances[-1]
    rank = np.count_nonzero(~null)
    if rank >= len(x) - 1:
        raise OptionError(
            f"{len(x)} training solutions span {rank} dimensions, all that they can: more of them "
            "would span more, and equations that hold for these would not hold for others"
        )
    # x̄ need not be inside of the positive orthant, and log z₀ must be finite.
    return directions[:, null].T, np.maximum(mean, 1e-6)


def start(task: Sudoku) -> tuple[OptNetSudoku, int]:
    """The model with A of the hull, and how many solutions that is of."""
    solutions = task.boards.train.solutions[:SOLUTIONS]
    A, mean = affine_hull(solutions)
    options = dataclasses.replace(task.config.optnet, equalities=len(A))
    model = OptNetSudoku(options, task.config.size, nnx.Rngs(0))
    model.set_equalities(A, mean)
    model.eval()
    return model, len(solutions)


def choose_weight(model: OptNetSudoku, boards: Boards, batch_size: int) -> list[dict[str, float]]:
    """Give the model the weight of the clues with which most of the boards are right; of several
    such, the one with the lowest loss. Returns what was found with each."""
    tried = []
    for weight in WEIGHTS:
        model.clue_weight[...] = jnp.asarray(weight)
        means = evaluate(model, boards, batch_size).means()
        tried.append(dict(weight=weight, boards=means["boards"], loss=means["loss"]))
    best = max(tried, key=lambda t: (t["boards"], -t["loss"]))
    model.clue_weight[...] = jnp.asarray(best["weight"])
    return tried


class Found(NamedTuple):
    """The task with the options that were found, the model, its score on the held-out boards, and
    what else belongs to the scores."""

    task: Sudoku
    model: OptNetSudoku
    score: Score
    more: dict[str, Any]


def run(task: Sudoku) -> Found:
    config, boards = task.config, task.boards
    model, used = start(task)
    rest = boards.train.rows(slice(used, used + CHOSEN_ON))
    if not len(rest.puzzles):
        rest = boards.train.rows(slice(CHOSEN_ON))
    tried = choose_weight(model, rest, config.train.batch_size)
    score = evaluate(model, boards.test, config.train.batch_size)
    weight = float(model.clue_weight[...])
    options = dataclasses.replace(config.optnet, equalities=model.equalities, clue_weight=weight)
    more = dict(
        parameters=parameters(model),
        hull_of=used,
        equalities=model.equalities,
        clue_weight=weight,
        clue_weights_tried=tried,
        chosen_on=len(rest.puzzles),
        training_steps=0,
        cpu_seconds=round(time.process_time(), 1),  # of this process from its start
    )
    found = dataclasses.replace(task, config=dataclasses.replace(config, optnet=options))
    return Found(found, model, score, more)
