"""The LSTM language model, regularised as AWD-LSTM is: the recurrent baseline."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from .._errors import check_integer
from .axes import axes
from .dropout import masked, row_masks, variational_mask
from .language_model import LanguageModelOutput
from .log_likelihood import cross_entropy
from .memory import Memory


class LSTMMasks(NamedTuple):
    """One call's dropout, already scaled; None where there is none."""

    words: jax.Array | None  # (vocabulary, 1): rows of the embedding
    input: jax.Array | None  # (batch, 1, width): the embedded input
    outputs: tuple[jax.Array | None, ...]  # (batch, 1, n) a layer: its output
    recurrent: tuple[jax.Array | None, ...]  # (n, 4n) a layer: its hidden-to-hidden matrices


class LSTMLanguageModel(nnx.Module):
    """Embedding, LSTM layers, and a softmax tied to the embedding. A layer with input x is

        i, f, g, o = W x_t + (M ⊙ U) h_{t-1} + b
        c_t = σ(f) c_{t-1} + σ(i) tanh(g)
        h_t = σ(o) tanh(c_t)

    (Hochreiter and Schmidhuber 1997; Flax's `OptimizedLSTMCell`). The regularisation is AWD-LSTM's
    (Merity, Keskar and Socher 2018, arXiv 1708.02182, sections 2 and 4, and released code): the
    mask M of weight drop (DropConnect), whole words that the embedding drops, and variational
    dropout of the embedded input, between layers and of the output (Gal and Ghahramani 2016). Every
    mask is drawn once a call and is the same at all steps in time; words and M are shared by the
    batch. All of it is off in eval mode. The softmax reads the table without its mask. The paper's
    activation regularisation is a part of the loss: the output holds what it needs, `hidden` and
    `dropped`.

    Causal: output t depends on tokens up to t only. One step in time comes after the other, so a
    long segment is slow on a device that a `TransformerCell` would fill.

    Where this differs from the released code: one bias a layer instead of two that add up; Flax's
    initial weights, the hidden-to-hidden ones with orthogonal rows; and the embedded input has unit
    variance at the start, as in `LanguageModel`.

    In float64 where JAX's default is that (`jax_enable_x64`) when the model is made.

    Args:
        vocabulary: number of tokens.
        width: of the embedding and of the last layer, which the tied softmax reads. The paper's
            400.
        hidden: width of all layers but the last; no matter where there is only one. The paper's
            1150.
        layers: how many LSTM layers. The paper's 3.
        dropout_embedding: rate of the words that are dropped, in [0, 1) like all rates. In brackets
            those of the released script on Penn Treebank (0.1).
        dropout_input: rate on the embedded input (0.4).
        dropout_hidden: rate between layers (0.25).
        dropout_output: rate on what the softmax reads (0.4).
        weight_drop: rate on the hidden-to-hidden matrices of all layers (0.5).
        rngs: for the parameters and, as `rngs.dropout`, the masks.

    Raises:
        ValueError, TypeError: for sizes that are not positive integers and rates outside [0, 1).

    Examples:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from deqjax.nn import LSTMLanguageModel
        >>> model = LSTMLanguageModel(10, width=4, hidden=6, layers=2, rngs=nnx.Rngs(0))
        >>> tokens = jnp.zeros((2, 7), int)
        >>> out = model(tokens)
        >>> out.logits.shape, [m.z.shape for m in out.memory]
        ((2, 7, 10), [(2, 1, 12), (2, 1, 8)])
        >>> model(tokens, out.memory, targets=tokens).nats.shape
        (2, 7)
    """

    def __init__(
        self,
        vocabulary: int,
        *,
        width: int,
        hidden: int,
        layers: int = 1,
        dropout_embedding: float = 0.0,
        dropout_input: float = 0.0,
        dropout_hidden: float = 0.0,
        dropout_output: float = 0.0,
        weight_drop: float = 0.0,
        rngs: nnx.Rngs,
    ):
        sizes = dict(vocabulary=vocabulary, width=width, hidden=hidden, layers=layers)
        for name, value in sizes.items():
            check_integer(name, value, least=1)
        rates = dict(
            dropout_embedding=dropout_embedding,
            dropout_input=dropout_input,
            dropout_hidden=dropout_hidden,
            dropout_output=dropout_output,
            weight_drop=weight_drop,
        )
        for name, rate in rates.items():
            if not 0 <= rate < 1:
                raise ValueError(f"{name} must be in [0, 1), got {rate!r}")
        self.vocabulary, self.width = vocabulary, width
        self.widths = (*(hidden,) * (layers - 1), width)
        self.dropout_embedding, self.dropout_input = dropout_embedding, dropout_input
        self.dropout_hidden, self.dropout_output = dropout_hidden, dropout_output
        self.weight_drop = weight_drop
        self.deterministic = False

        table = nnx.initializers.normal(1 / math.sqrt(width))(rngs.params(), (vocabulary, width))
        self.embedding = nnx.Param(table, **axes("vocabulary", "embed"))
        self.bias = nnx.Param(jnp.zeros((vocabulary,), table.dtype), **axes("vocabulary"))
        self.cells = nnx.List(
            nnx.OptimizedLSTMCell(n_in, n_out, param_dtype=table.dtype, rngs=rngs)
            for n_in, n_out in zip((width, *self.widths), self.widths, strict=False)
        )
        # Last, so that the same seed gives the same parameters with and without dropout.
        self.rngs = rngs.fork() if any(rates.values()) else None

    @property
    def solves(self) -> bool:
        """False: there is no equilibrium to solve for."""
        return False

    def masks(self, batch: int) -> LSTMMasks:
        """New masks of dropout; none in eval mode."""
        rngs = None if self.deterministic else self.rngs

        def draw(rate, *shape, of=row_masks):
            return None if rngs is None or not rate else of(rngs.dropout(), rate, shape)

        rates = (*(self.dropout_hidden,) * (len(self.widths) - 1), self.dropout_output)
        return LSTMMasks(
            words=draw(self.dropout_embedding, self.vocabulary, 1, of=variational_mask),
            input=draw(self.dropout_input, batch, 1, self.width),
            outputs=tuple(draw(r, batch, 1, n) for r, n in zip(rates, self.widths, strict=True)),
            recurrent=tuple(
                draw(self.weight_drop, n, 4 * n, of=variational_mask) for n in self.widths
            ),
        )

    def __call__(
        self,
        tokens: jax.Array,
        memory: Sequence[Memory] | None = None,
        *,
        targets: jax.Array | None = None,
    ) -> LanguageModelOutput:
        """Next-token logits of `tokens`, int (batch, time), after `memory`; None is no memory.

        Given `targets`, int (batch, time), their −log p instead.

        The memory that is returned has one `Memory` a layer, detached: `z`, (batch, 1, 2n), holds
        h and c, in that order, of the last step; `injection` is empty, (batch, 1, 0).
        """
        batch = tokens.shape[0]
        masks = self.masks(batch)
        dropped = hidden = self._embed(tokens, masks)
        if memory is None:
            memory = self.empty_memory(batch, dropped.dtype)
        if len(memory) != len(self.cells):
            raise ValueError(
                f"the memory must have one part a layer, {len(self.cells)}, not {len(memory)}"
            )
        after = []
        for i, cell in enumerate(self.cells):
            hidden, last = _run(_drop(cell, masks.recurrent[i]), dropped, memory[i])
            dropped = masked(masks.outputs[i], hidden)
            after.append(last)
        logits = dropped @ self.embedding[...].T
        logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32)) + self.bias[...]
        nats = None
        if targets is not None:
            nats = cross_entropy(logits, targets)
            logits = None
        return LanguageModelOutput(logits, tuple(after), None, nats, hidden=hidden, dropped=dropped)

    def empty_memory(self, batch: int, dtype: Any = jnp.float32) -> tuple[Memory, ...]:
        """The memory before the first segment."""
        invalid = jnp.zeros((batch, 1), bool)
        return tuple(_memory(jnp.zeros((batch, 2 * n), dtype), invalid) for n in self.widths)

    def _embed(self, tokens: jax.Array, masks: LSTMMasks) -> jax.Array:
        """The first layer's input, (batch, time, width)."""
        table = self.embedding[...]
        words = None if masks.words is None else masks.words[tokens]
        return masked(masks.input, masked(words, table[tokens] * math.sqrt(self.width)))


def _run(cell: nnx.OptimizedLSTMCell, x: jax.Array, memory: Memory) -> tuple[jax.Array, Memory]:
    """h at every step, (batch, time, n), of x, (batch, time, n_in); and the memory after it."""
    # Zeros where nothing came before.
    z = jnp.where(memory.valid, memory.z[:, 0], 0).astype(x.dtype)
    h, c = jnp.split(z, 2, axis=-1)
    step = lambda carry, x: cell(carry, x)
    (c, h), outputs = jax.lax.scan(step, (c, h), jnp.swapaxes(x, 0, 1))
    z = jax.lax.stop_gradient(jnp.concatenate([h, c], axis=-1))
    return jnp.swapaxes(outputs, 0, 1), _memory(z, jnp.ones_like(memory.valid))


def _drop(cell: nnx.OptimizedLSTMCell, mask: jax.Array | None) -> nnx.OptimizedLSTMCell:
    """The cell with its hidden-to-hidden matrices masked: a copy, as the parameters stay."""
    if mask is None:
        return cell
    cell = nnx.clone(cell)
    cell.dense_h.kernel[...] = masked(mask, cell.dense_h.kernel[...])
    return cell


def _memory(z: jax.Array, valid: jax.Array) -> Memory:
    """z, (batch, 2n), holds h and c of one step."""
    return Memory(z[:, None], jnp.zeros((z.shape[0], 1, 0), z.dtype), valid)
