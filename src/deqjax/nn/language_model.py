"""A causal language model around one equilibrium."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from .._errors import check_integer
from .._solution import Solution, Stats
from .adaptive import AdaptiveSoftmax
from .deq import DEQ
from .transformer import TransformerInput


class LanguageModelOutput(NamedTuple):
    """logits: (batch, time, vocabulary), float32; memory: for the next segment; solution: z*; nats:
    −log p(target), (batch, time), instead of logits where targets were given.

    Models without memory or equilibrium leave theirs None.
    """

    logits: jax.Array | None
    memory: Any = None
    solution: Solution | None = None
    nats: jax.Array | None = None


class LanguageModel(nnx.Module):
    """Embedding, equilibrium, and a softmax tied to the embedding.

    Args:
        vocabulary: number of tokens.
        cell: a `TransformerCell`, a `TrellisCell`, a `CellStack`, or any cell with their methods;
            what it calls `output` must be as wide as its input, `n_in`.
        dropout: rate of the variational dropout on the embedded input and on z*.
        depth: None solves. An int stacks the cell that often instead, in every call that does not
            say otherwise: the Universal Transformer (Dehghani et al. 2018) of the same cell.
        softmax: an `AdaptiveSoftmax` of this vocabulary and of width `cell.n_in`, which brings the
            embedding with it; None, a plain table and the softmax tied to it.
        rngs: for the parameters and, as `rngs.dropout`, the masks.
        **options: `solver`, `adjoint`, `adjoint_solver`, `rtol`, `atol`, `max_steps` of `DEQ`.
    """

    def __init__(
        self,
        vocabulary: int,
        cell: Any,
        *,
        dropout: float = 0.0,
        depth: int | None = None,
        softmax: AdaptiveSoftmax | None = None,
        rngs: nnx.Rngs,
        **options: Any,
    ):
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {dropout!r}")
        check_integer("depth", depth, least=1, optional=True)
        self.depth = depth
        d = cell.n_in
        init = nnx.initializers.normal(1 / math.sqrt(d))
        if softmax is None:
            self.embedding = nnx.Param(init(rngs.params(), (vocabulary, d)))
            self.bias = nnx.Param(jnp.zeros((vocabulary,)))
        elif (softmax.embedding.vocabulary, softmax.embedding.d) != (vocabulary, d):
            raise ValueError(
                f"the softmax must be of {vocabulary} tokens and width {d}, not of "
                f"{softmax.embedding.vocabulary} and {softmax.embedding.d}"
            )
        self.softmax = softmax
        self.deq = DEQ(cell, **options)
        self.drop_in = nnx.Dropout(dropout, broadcast_dims=(1,), rngs=rngs)
        self.drop_out = nnx.Dropout(dropout, broadcast_dims=(1,), rngs=rngs)

    @property
    def cell(self) -> Any:
        return self.deq.cell

    def embed(self, tokens: jax.Array) -> jax.Array:
        """The input x of the equilibrium, (batch, time, d)."""
        if self.softmax is not None:
            return self.drop_in(self.softmax.embedding(tokens))
        table = self.embedding[...]
        return self.drop_in(table[tokens] * math.sqrt(table.shape[1]))

    def __call__(
        self,
        tokens: jax.Array,
        memory: Any = None,
        *,
        targets: jax.Array | None = None,
        z0: jax.Array | None = None,
        depth: int | None = None,
        adjoint_probe: Stats | None = None,
    ) -> LanguageModelOutput:
        """Next-token logits of `tokens`, int (batch, time), after `memory`.

        Given `targets`, int (batch, time), their −log p instead: an adaptive softmax then never
        holds the logits of all positions at once.

        `z0`, `depth` and `adjoint_probe` are those of `DEQ.__call__`.
        """
        given = TransformerInput(self.embed(tokens), memory)
        depth = self.depth if depth is None else depth
        context = self.cell.inject(given)
        solution = self.deq(given, z0=z0, depth=depth, context=context, adjoint_probe=adjoint_probe)
        z = self.drop_out(self.cell.output(solution.z))
        if self.cell.memory_length:
            memory = self.cell.remember(given, solution.z, context)
        if targets is None:
            return LanguageModelOutput(self._logits(z), memory, solution)
        if self.softmax is None:
            cross_entropy = optax.softmax_cross_entropy_with_integer_labels
            nats = cross_entropy(self._logits(z), targets)
        else:
            nats = self.softmax.loss(z, targets)
        return LanguageModelOutput(None, memory, solution, nats)

    def _logits(self, z: jax.Array) -> jax.Array:
        if self.softmax is not None:
            return self.softmax.log_probs(z)
        return (z @ self.embedding[...].T).astype(jnp.float32) + self.bias[...]
