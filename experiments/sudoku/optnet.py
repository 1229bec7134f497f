"""Sudoku by OptNet: the equalities A z = b of a quadratic program are learned.

    minimise ½ ε zᵀz − w clues·z   subject to   A z = A exp(log z₀),   z ≥ 0

A Sudoku's solution is a vertex, where the exact gradient is zero (a small change of A moves z* to
no other vertex), so what trains is the smoothed gradient: that of the program on its central path.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from deqjax import Stats
from deqjax._errors import check_integer, check_tolerance
from deqjax.implicit import qp
from deqjax.training import OptionError

from .answer import Answer, digits_one_hot


@dataclass(frozen=True)
class OptNetOptions:
    """Of --layer optnet."""

    equalities: int = 40
    """rows of A; the rules of a 4×4 board have 40 independent ones, those of 9×9 have 249"""
    quadratic: float = 0.1
    """ε, the weight of ½ zᵀz"""
    clue_weight: float = 1.0
    """w, the weight of the clues; --start spectral chooses it on training boards"""
    qp_rtol: float = 1e-3
    """tolerance of the quadratic programs"""
    qp_max_steps: int = 40
    """limit of their steps"""
    smoothing: float = 1e-3
    """size of the products of slacks and multipliers at which the gradient is taken"""

    def check(self) -> None:
        check_integer("--equalities", self.equalities, least=1)
        check_integer("--qp-max-steps", self.qp_max_steps, least=1)
        check_tolerance("--qp-rtol", self.qp_rtol)
        for name in ("quadratic", "clue_weight", "smoothing"):
            check_tolerance("--" + name.replace("_", "-"), getattr(self, name))
            if not getattr(self, name) > 0:
                raise OptionError(f"--{name.replace('_', '-')} must be positive, and is 0")


class OptNetSudoku(nnx.Module):
    """z of the quadratic program: a score of every digit in every cell."""

    def __init__(self, options: OptNetOptions, size: int, rngs: nnx.Rngs):
        shape = (options.equalities, size**3)
        self.A = nnx.Param(jax.random.normal(rngs.params(), shape) / shape[1] ** 0.5)
        self.log_z0 = nnx.Param(jnp.zeros(shape[1]))
        self.clue_weight = nnx.Variable(jnp.asarray(options.clue_weight))
        self.options = options

    @property
    def equalities(self) -> int:
        return self.A.shape[0]

    def set_equalities(self, A: np.ndarray, z0: np.ndarray) -> None:
        """Let the equalities be A z = A z₀."""
        self.A[...] = jnp.asarray(A, self.A.dtype)
        self.log_z0[...] = jnp.asarray(np.log(z0), self.log_z0.dtype)

    def __call__(self, puzzles: jax.Array, adjoint_probe: Stats | None = None) -> Answer:
        n, A = puzzles.shape[-1], self.A[...]
        solution = qp(
            jnp.full(n**3, self.options.quadratic),
            -self.clue_weight[...] * digits_one_hot(puzzles),
            A,
            A @ jnp.exp(self.log_z0[...]),
            lower=0.0,
            rtol=self.options.qp_rtol,
            max_steps=self.options.qp_max_steps,
            gradient="smoothed",
            smoothing=self.options.smoothing,
            on_failure="ignore",  # in the metrics instead
        )
        return Answer(solution.z.reshape(len(puzzles), n, n, n), solution.stats)

    def losses(self, scores: jax.Array, wanted: jax.Array) -> jax.Array:
        """Mean squared error of each board.

        Args:
            scores: (batch, n, n, n).
            wanted: (batch, n³), one-hot.
        """
        return jnp.square(scores.reshape(wanted.shape) - wanted).mean(-1)
