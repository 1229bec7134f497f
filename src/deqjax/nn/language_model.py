"""A causal language model around one equilibrium."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from .._errors import check_integer
from .._solution import Solution, Stats
from .deq import DEQ
from .transformer import Memory, TransformerInput


class LanguageModelOutput(NamedTuple):
    """logits: (batch, time, vocabulary), float32; memory: for the next segment; solution: z*.

    Models without memory or equilibrium leave theirs None.
    """

    logits: jax.Array
    memory: Memory | None = None
    solution: Solution | None = None


class LanguageModel(nnx.Module):
    """Embedding, equilibrium, and a softmax tied to the embedding.

    Args:
        vocabulary: number of tokens.
        cell: a `TransformerCell`, a `TrellisCell`, a `CellStack`, or any cell with their methods;
            what it calls `output` must be as wide as its input, `n_in`.
        dropout: rate of the variational dropout on the embedded input and on z*.
        depth: None solves. An int stacks the cell that often instead, in every call that does not
            say otherwise: the Universal Transformer (Dehghani et al. 2018) of the same cell.
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
        rngs: nnx.Rngs,
        **options: Any,
    ):
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {dropout!r}")
        check_integer("depth", depth, least=1, optional=True)
        self.depth = depth
        d = cell.n_in
        init = nnx.initializers.normal(1 / math.sqrt(d))
        self.embedding = nnx.Param(init(rngs.params(), (vocabulary, d)))
        self.bias = nnx.Param(jnp.zeros((vocabulary,)))
        self.deq = DEQ(cell, **options)
        self.drop_in = nnx.Dropout(dropout, broadcast_dims=(1,), rngs=rngs)
        self.drop_out = nnx.Dropout(dropout, broadcast_dims=(1,), rngs=rngs)

    @property
    def cell(self) -> Any:
        return self.deq.cell

    def embed(self, tokens: jax.Array) -> jax.Array:
        """The input x of the equilibrium, (batch, time, d)."""
        table = self.embedding[...]
        return self.drop_in(table[tokens] * math.sqrt(table.shape[1]))

    def __call__(
        self,
        tokens: jax.Array,
        memory: Memory | None = None,
        *,
        z0: jax.Array | None = None,
        depth: int | None = None,
        adjoint_probe: Stats | None = None,
    ) -> LanguageModelOutput:
        """Next-token logits of `tokens`, int (batch, time), after `memory`.

        `z0`, `depth` and `adjoint_probe` are those of `DEQ.__call__`.
        """
        given = TransformerInput(self.embed(tokens), memory)
        depth = self.depth if depth is None else depth
        context = self.cell.inject(given)
        solution = self.deq(given, z0=z0, depth=depth, context=context, adjoint_probe=adjoint_probe)
        z = self.drop_out(self.cell.output(solution.z))
        logits = (z @ self.embedding[...].T).astype(jnp.float32) + self.bias[...]
        if self.cell.memory_length:
            memory = self.cell.remember(given, solution.z, context)
        return LanguageModelOutput(logits, memory, solution)
