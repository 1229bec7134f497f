"""Sudoku by OptNet: the equalities A z = b of a quadratic program are learned.

    minimise ½ ε zᵀz − w clues·z   subject to   A z = A exp(log z₀),   z ≥ 0

A Sudoku's solution is a vertex, where the exact gradient is zero (a small change of A moves z* to
no other vertex), so what trains is the smoothed gradient: that of the program on its central path.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
from flax import nnx

from deqjax import Stats
from deqjax._errors import check_integer, check_tolerance
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
    def __init__(self, options: OptNetOptions, size: int, rngs: nnx.Rngs):
        raise NotImplementedError
