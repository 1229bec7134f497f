"""Sudoku by SATNet: the clauses S are learned, the clues are given inputs."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx

from deqjax import Stats
from deqjax._errors import check_integer, check_tolerance
from deqjax.nn import SATNet
from deqjax.training import OptionError

from .answer import Answer, digits_one_hot


@dataclass(frozen=True)
class SATNetOptions:
    """Of --layer satnet."""

    clauses: int = 200
    """m, the rank of the clause matrix"""
    auxiliary: int = 50
    """variables that are neither input nor output"""
    dimension: int = 32
    """k of the unit vectors"""
    max_sweeps: int = 40
    """sweeps over all variables after which a board's solve stops"""
    sweep_rtol: float = 1e-3
    """a board has converged when its vectors move less than this in a sweep"""
    damping: float = 1e-8
    """of the backward solve; above 1e-6 the gradient is an approximation"""
    adjoint_rtol: float = 1e-2
    """tolerance of the backward solve"""
    adjoint_max_steps: int = 30
    """limit of its steps"""

    def check(self) -> None:
        for name, least in (("clauses", 1), ("auxiliary", 0), ("dimension", 2), ("max_sweeps", 1)):
            check_integer("--" + name.replace("_", "-"), getattr(self, name), least=least)
        for name in ("sweep_rtol", "damping", "adjoint_rtol"):
            check_tolerance("--" + name.replace("_", "-"), getattr(self, name))
        if not self.damping > 0:
            raise OptionError(f"--damping must be positive, such as 1e-8; got {self.damping}")


class SATNetSudoku(nnx.Module):
    """z = maxsat(S, clues): the probability of every digit in every cell."""

    def __init__(self, options: SATNetOptions, size: int, rngs: nnx.Rngs):
        self.layer = SATNet(
            size**3,
            m=options.clauses,
            aux=options.auxiliary,
            k=options.dimension,
            max_sweeps=options.max_sweeps,
            rtol=options.sweep_rtol,
            damping=options.damping,
            adjoint_rtol=options.adjoint_rtol,
            adjoint_max_steps=options.adjoint_max_steps,
            on_failure="ignore",  # in the metrics instead
            rngs=rngs,
        )

    def __call__(self, puzzles: jax.Array, adjoint_probe: Stats | None = None) -> Answer:
        n = puzzles.shape[-1]
        given = jnp.repeat((puzzles != 0).reshape(len(puzzles), -1), n, axis=-1)
        solution = self.layer(digits_one_hot(puzzles), given, adjoint_probe=adjoint_probe)
        return Answer(solution.z.reshape(len(puzzles), n, n, n), solution.stats)

    def losses(self, scores: jax.Array, wanted: jax.Array) -> jax.Array:
        """Mean binary cross-entropy of each board, nats an entry; clues, which are right by
        construction, count as zeros.

        Args:
            scores: (batch, n, n, n).
            wanted: (batch, n³), one-hot.
        """
        p = jnp.clip(scores.reshape(wanted.shape), 1e-6, 1 - 1e-6)
        return -(wanted * jnp.log(p) + (1 - wanted) * jnp.log1p(-p)).mean(-1)
