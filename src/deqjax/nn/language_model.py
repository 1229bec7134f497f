"""A causal language model around one equilibrium."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from .._errors import check_integer
from .._solution import Solution, Stats
from ..adjoints import Adjoint
from .adaptive import AdaptiveSoftmax
from .axes import axes
from .deq import DEQ, ModuleEquation
from .dropout import VariationalDropout
from .log_likelihood import cross_entropy
from .transformer import TransformerInput, layer_norm


class LanguageModelOutput(NamedTuple):
    """What a language model returns. Models without memory or equilibrium leave theirs None.

    Attributes:
        logits: (batch, time, vocabulary), float32; None where targets were given.
        memory: for the next segment.
        solution: z*.
        nats: −log p(target), (batch, time), where targets were given.
        hidden: what the softmax sees, before its dropout, (batch, time, n).
        dropped: the same after it.
        context: what the cell got besides z, dropout masks included, so that f of z is
            `model.cell(z, context)`; where it was asked for.
        start: the z0 of a model that learns its own.
    """

    logits: jax.Array | None
    memory: Any = None
    solution: Solution | None = None
    nats: jax.Array | None = None
    hidden: jax.Array | None = None
    dropped: jax.Array | None = None
    context: Any = None
    start: jax.Array | None = None


class LanguageModel(nnx.Module):
    """Embedding, equilibrium, and a softmax tied to the embedding.

    Args:
        vocabulary: number of tokens.
        cell: a `TransformerCell`, a `TrellisCell`, a `CellStack`, or any cell with their methods;
            what it calls `output` must be as wide as its input, `n_in`.
        dropout: rate of the variational dropout on the embedded input and on z*; or two, one each.
        dropout_words: rate at which whole words are left out of the input, the same words in all of
            a call (Gal and Ghahramani 2016); not with an adaptive softmax.
        depth: None solves. An int stacks the cell that often instead, in every call that does not
            say otherwise: the Universal Transformer (Dehghani et al. 2018) of the same cell.
        softmax: an `AdaptiveSoftmax` of this vocabulary and of width `cell.n_in`, which brings the
            embedding with it; None, a plain table and the softmax tied to it.
        learned_start: begin at z0 = LN(W x + b) and not at zero. A stack trains it like any other
            layer. The gradient of an equilibrium does not depend on where its solve began: there,
            fit `out.start` to z* (`LanguageModelling(start=)` does).
        rngs: for the parameters and, as `rngs.dropout`, the masks.
        **options: `solver`, `adjoint`, `adjoint_solver`, `rtol`, `atol`, `max_steps`, `dtype`,
            `checkpoint`, `scan` of `DEQ`.
    """

    def __init__(
        self,
        vocabulary: int,
        cell: Any,
        *,
        dropout: float | tuple[float, float] = 0.0,
        dropout_words: float = 0.0,
        depth: int | None = None,
        softmax: AdaptiveSoftmax | None = None,
        learned_start: bool = False,
        rngs: nnx.Rngs,
        **options: Any,
    ):
        drop_in, drop_out = dropout if isinstance(dropout, tuple) else (dropout, dropout)
        for name, rate in (
            *(("dropout", drop_in), ("dropout", drop_out)),
            ("dropout_words", dropout_words),
        ):
            if not 0 <= rate < 1:
                raise ValueError(f"{name} must be in [0, 1), got {rate!r}")
        if dropout_words and softmax is not None:
            raise ValueError("dropout_words needs the plain embedding, without softmax=")
        check_integer("depth", depth, least=1, optional=True)
        self.depth = depth
        d = cell.n_in
        init = nnx.initializers.normal(1 / math.sqrt(d))
        if softmax is None:
            table = init(rngs.params(), (vocabulary, d))
            self.embedding = nnx.Param(table, **axes("vocabulary", "embed"))
            self.bias = nnx.Param(jnp.zeros((vocabulary,)), **axes("vocabulary"))
        elif (softmax.embedding.vocabulary, softmax.embedding.d) != (vocabulary, d):
            raise ValueError(
                f"the softmax must be of {vocabulary} tokens and width {d}, not of "
                f"{softmax.embedding.vocabulary} and {softmax.embedding.d}"
            )
        self.softmax = softmax
        self.deq = DEQ(cell, **options)
        self.start = nnx.Linear(d, cell.d, rngs=rngs) if learned_start else None
        self.drop_in = VariationalDropout(drop_in, rngs=rngs)
        self.drop_out = VariationalDropout(drop_out, rngs=rngs)
        words = nnx.Dropout(dropout_words, broadcast_dims=(1,), rngs=rngs)
        self.drop_words = words if dropout_words else None

    @property
    def cell(self) -> Any:
        return self.deq.cell

    @property
    def vocabulary(self) -> int:
        """Number of tokens."""
        if self.softmax is not None:
            return self.softmax.embedding.vocabulary
        return self.embedding.shape[0]

    @property
    def solves(self) -> bool:
        """Whether a call without `depth` solves an equilibrium."""
        return self.depth is None

    def empty_memory(self, batch: int, dtype: Any = jnp.float32) -> Any:
        """The memory before the first segment."""
        return self.cell.empty_memory(batch, dtype)

    def embed(self, tokens: jax.Array) -> jax.Array:
        """The input x of the equilibrium, (batch, time, d)."""
        if self.softmax is not None:
            return self.drop_in(self.softmax.embedding(tokens))
        table = self.embedding[...]
        if self.drop_words is not None:
            table = self.drop_words(table)
        return self.drop_in(table[tokens] * math.sqrt(table.shape[1]))

    def __call__(
        self,
        tokens: jax.Array,
        memory: Any = None,
        *,
        targets: jax.Array | None = None,
        z0: jax.Array | None = None,
        depth: int | None = None,
        adjoint: str | Adjoint | None = None,
        max_steps: int | None = None,
        adjoint_probe: Stats | None = None,
        keep_context: bool = False,
    ) -> LanguageModelOutput:
        """Next-token logits of `tokens`, int (batch, time), after `memory`.

        Given `targets`, int (batch, time), their −log p instead: an adaptive softmax then never
        holds the logits of all positions at once.

        `z0`, `depth`, `adjoint`, `max_steps` and `adjoint_probe` are those of `DEQ.__call__`. Depth
        and max_steps may be others than in training: effort is chosen when a model is used.
        `keep_context` asks for `out.context`, as penalties on the cell's Jacobian need it.
        """
        given = TransformerInput(self.embed(tokens), memory)
        depth = self.depth if depth is None else depth
        context = self.cell.inject(given)
        start = None if self.start is None else layer_norm(self.start(given.x))
        solution = self.deq(
            given,
            z0=start if z0 is None else z0,
            depth=depth,
            context=context,
            adjoint=adjoint,
            max_steps=max_steps,
            adjoint_probe=adjoint_probe,
        )
        hidden = self.cell.output(solution.z)
        dropped = self.drop_out(hidden)
        if self.cell.memory_length:
            memory = self.cell.remember(given, solution.z, context)
        logits = nats = None
        if targets is None:
            logits = self._logits(dropped)
        elif self.softmax is None:
            nats = cross_entropy(self._logits(dropped), targets)
        else:
            nats = self.softmax.loss(dropped, targets)
        rest = (hidden, dropped, context if keep_context else None, start)
        return LanguageModelOutput(logits, memory, solution, nats, *rest)

    def equation(self, tokens: jax.Array, memory: Any = None) -> ModuleEquation:
        """What a call with these solves, see `DEQ.equation`: diagnostics take (model, tokens)."""
        given = TransformerInput(self.embed(tokens), memory)
        start = None if self.start is None else layer_norm(self.start(given.x))
        return self.deq.equation(given, z0=start)

    def _logits(self, z: jax.Array) -> jax.Array:
        if self.softmax is not None:
            return self.softmax.log_probs(z)
        return (z @ self.embedding[...].T).astype(jnp.float32) + self.bias[...]
