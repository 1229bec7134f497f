"""The rows of the table: every model of about 14,000 parameters, token in, logits out."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from flax import nnx

from deqjax.data.copy_memory import CLASSES
from deqjax.nn import TCN, LanguageModel, Recurrent, TransformerCell

if TYPE_CHECKING:
    from .task import Config

TAPS = 8


def build(config: Config, rngs: nnx.Rngs) -> nnx.Module:
    c = config
    if c.model == "tcn":
        return TCN(CLASSES, channels=c.width, levels=_levels(c.length), kernel_size=TAPS, rngs=rngs)
    if c.model in ("lstm", "gru"):
        return Recurrent(CLASSES, kind=c.model, features=CLASSES, hidden=c.width, rngs=rngs)
    cell = TransformerCell(c.width, heads=c.heads, d_inner=c.inner, mimetic=True, rngs=rngs)
    depth = c.depth if c.model == "universal-transformer" else None
    return LanguageModel(CLASSES, cell, depth=depth, rngs=rngs, **c.solver.keywords())


def _levels(length: int) -> int:
    """The fewest levels with which a TCN sees the first symbol at the delimiter."""
    return math.ceil(math.log2((length + 10) / (2 * (TAPS - 1)) + 1))
