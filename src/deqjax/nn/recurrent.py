"""Recurrent baselines: Flax's LSTM and GRU cells between an embedding and a softmax."""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from .language_model import LanguageModelOutput

CELLS = {"lstm": nnx.OptimizedLSTMCell, "gru": nnx.GRUCell}


class Recurrent(nnx.Module):
    """Embedding, one recurrent layer, softmax.

    Args:
        vocabulary: number of tokens.
        kind: "lstm" (Hochreiter and Schmidhuber 1997) or "gru" (Cho et al. 2014), Flax's cells.
        features: width of the embedding.
        hidden: width of the recurrent state.
        rngs: for the parameters.

    Examples:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from deqjax.nn import Recurrent
        >>> model = Recurrent(10, kind="gru", features=8, hidden=16, rngs=nnx.Rngs(0))
        >>> model(jnp.zeros((2, 7), int)).logits.shape
        (2, 7, 10)
    """

    def __init__(
        self,
        vocabulary: int,
        *,
        kind: Literal["lstm", "gru"],
        features: int,
        hidden: int,
        rngs: nnx.Rngs,
    ):
        if kind not in CELLS:
            raise ValueError(f"kind must be one of {', '.join(CELLS)}; got {kind!r}")
        self.embed = nnx.Embed(vocabulary, features, rngs=rngs)
        self.layer = nnx.RNN(CELLS[kind](features, hidden, rngs=rngs), rngs=rngs)
        self.decode = nnx.Linear(hidden, vocabulary, rngs=rngs)

    def __call__(self, tokens: jax.Array) -> LanguageModelOutput:
        """Logits (batch, time, vocabulary) for tokens, int (batch, time)."""
        hidden: Any = self.layer(self.embed(tokens))
        return LanguageModelOutput(self.decode(hidden).astype(jnp.float32))
