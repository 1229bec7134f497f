"""Every model of the experiment: tokens in, logits out."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from flax import nnx

from deqjax.nn import (
    AdaptiveEmbedding,
    AdaptiveSoftmax,
    CellStack,
    LanguageModel,
    LSTMLanguageModel,
    Prelude,
    ScannedStack,
    TransformerCell,
    TrellisCell,
)

from .config import Config


def build(config: Config, vocabulary: int, rngs: nnx.Rngs) -> Any:
    """The model of `config`."""
    c = config
    drop_in, drop_out = (c.dropout if x is None else x for x in (c.dropout_in, c.dropout_out))
    if c.model == "lstm":
        return LSTMLanguageModel(
            vocabulary,
            width=c.width,
            hidden=c.hidden,
            layers=c.layers,
            dropout_embedding=c.dropout_words,
            dropout_input=drop_in,
            dropout_hidden=c.dropout,
            dropout_output=drop_out,
            weight_drop=c.weight_drop,
            rngs=rngs,
        )
    cell = _cell(c, rngs)
    softmax = None
    if c.cutoffs or c.divisor > 1 or c.softmax_chunk:  # without cut-offs: one table, in chunks
        embedding = AdaptiveEmbedding(
            vocabulary, c.width, cutoffs=c.cutoffs, divisor=c.divisor, rngs=rngs
        )
        softmax = AdaptiveSoftmax(embedding, chunk_size=c.softmax_chunk or 512, rngs=rngs)
    return LanguageModel(
        vocabulary,
        cell,
        dropout=(drop_in, drop_out),
        dropout_words=c.dropout_words,
        depth=_depth(c),
        softmax=softmax,
        learned_start=c.learned_start,
        rngs=rngs,
        dtype=jnp.bfloat16 if c.precision == "bfloat16" else None,
        checkpoint="none" if c.model == "transformer-xl" else c.remat,
        scan=c.scan,
        **c.solver.keywords(),
    )


def _depth(config: Config) -> int | None:
    if config.solves:
        return None
    return 1 if config.model == "transformer-xl" else config.depth


def _cell(config: Config, rngs: nnx.Rngs) -> Any:
    c = config
    if "trellis" in c.model:
        return TrellisCell(
            c.width,
            hidden=c.hidden,
            memory_length=min(1, c.memory),
            dropout=c.dropout,
            weight_drop=c.weight_drop,
            weight_norm=c.weight_norm,
            rngs=rngs,
        )

    def block(injection):
        return TransformerCell(
            c.width,
            heads=c.heads,
            d_inner=c.inner,
            memory_length=c.memory,
            dropout=c.dropout,
            chunk_size=c.chunk_size,
            norm=c.norm,
            weight_norm=c.weight_norm,
            injection=injection,
            rngs=rngs,
        )

    if c.model == "transformer-xl":
        kind = ScannedStack if c.scan else CellStack
        return kind([block(None) for _ in range(c.layers)], checkpoint=c.remat)
    # x is added to q, k and v of every block, or to the state once.
    later = None if c.injection == "state" else c.injection
    blocks = [block(c.injection if i == 0 else later) for i in range(c.blocks)]
    cell = blocks[0] if c.blocks == 1 and c.norm == "post" else CellStack(blocks)
    if not c.prelude:
        return cell
    return Prelude(CellStack([block(None) for _ in range(c.prelude)], final_norm=False), cell)
