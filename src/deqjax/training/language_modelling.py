"""Language modelling as a task: loss, perplexity by the streaming protocol, and sampling."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from .._fixed_point import adjoint_probe
from .._solution import Stats
from ..adjoints import as_adjoint
from ..data import Batch, Stream
from ..nn import LanguageModel, Memory, forget

PyTree = Any


class Carry(NamedTuple):
    """What one segment hands to the next: its memory, and its z* to start from (or None)."""

    memory: Memory | tuple[Memory, ...]
    z: jax.Array | None


class Score(NamedTuple):
    """Sums over a stream: nats, tokens, solver steps, solves, solves that converged."""

    nats: float
    tokens: float
    steps: float
    solves: float
    converged: float

    @property
    def perplexity(self) -> float:
        return math.exp(min(self.nats / self.tokens, 80.0))


@dataclass(frozen=True)
class LanguageModelling:
    """Next-token prediction over contiguous streams, memory carried from segment to segment.

    Attributes:
        new_model: builds the model from `nnx.Rngs`.
        train: the training stream.
        valid: the held-out stream; every one of its tokens is scored.
        adjoint: the name of the adjoint, which decides whether there are statistics to probe.
        warm_start: start each training solve at the z* of the segment before it, and not at zero.
    """

    new_model: Callable[[nnx.Rngs], LanguageModel]
    train: Stream
    valid: Stream
    adjoint: str = "implicit"
    warm_start: bool = False

    def build(self, rngs: nnx.Rngs) -> LanguageModel:
        return self.new_model(rngs)

    def carry(self) -> Carry:
        cell = nnx.eval_shape(lambda: self.new_model(nnx.Rngs(0))).cell
        rows = self.train.batch_size
        z = jnp.zeros((rows, self.train.segment, cell.d)) if self.warm_start else None
        return Carry(cell.empty_memory(rows), z)

    def batch(self, index: int) -> Batch:
        batch = self.train[index]
        return batch._replace(fresh=np.asarray(batch.fresh))

    def probe(self) -> Stats | None:
        if as_adjoint(self.adjoint).differentiates_loop:
            return None
        return adjoint_probe(self.train.batch_size)

    def loss(self, model, carry, batch, *, depth, probe):
        memory = forget(carry.memory, batch.fresh)
        options = dict(z0=carry.z, depth=depth, adjoint_probe=probe)
        out = model(batch.inputs, memory, targets=batch.targets, **options)
        tokens = jnp.maximum(batch.weights.sum(), 1)
        loss = jnp.sum(out.nats * batch.weights) / tokens
        z = jax.lax.stop_gradient(out.solution.z) if self.warm_start else None
        return loss, (Carry(out.memory, z), {"solve": out.solution.stats})

    def evaluate(self, model: LanguageModel) -> dict[str, float]:
        score = perplexity(model, self.valid)
        return {
            "valid_perplexity": score.perplexity,
            "valid_forward_steps": score.steps / score.solves,
            "valid_converged": score.converged / score.solves,
        }


def perplexity(model: LanguageModel, stream: Stream) -> Score:
    """Score every token of `stream`, memory carried along each row.

    Args:
        model: in eval mode.
        stream: its rows are scored side by side; fewer rows, more context.
    """
    memory = model.cell.empty_memory(stream.batch_size)
    totals = np.zeros(5)
    for batch in stream:
        sums, memory = _score(model, memory, batch._replace(fresh=np.asarray(batch.fresh)))
        totals += np.asarray(sums, np.float64)
    return Score(*totals.tolist())


@nnx.jit
def _score(model, memory, batch):
    out = model(batch.inputs, memory, targets=batch.targets)
    stats = out.solution.stats
    rows = stats.steps.shape[0]
    sums = jnp.stack(
        [
            jnp.sum(out.nats * batch.weights),
            jnp.sum(batch.weights),
            jnp.sum(stats.steps).astype(jnp.float32),
            jnp.float32(rows),
            jnp.sum(stats.converged).astype(jnp.float32),
        ]
    )
    return sums, out.memory


def sample(
    model: LanguageModel,
    prompt: np.ndarray,
    length: int,
    *,
    seed: int = 0,
    temperature: float = 0.8,
) -> np.ndarray:
    """Continue `prompt`, int (n,), by `length` tokens drawn one at a time.

    The prompt's last token is the first input of the loop; what stands before it, and every token
    drawn, lives on in the memory. Text further back than the memory is forgotten.

    Args:
        model: in eval mode, with a cell that has memory.
        temperature: logits are divided by it; below 1, safer text.
    """
    if model.cell.memory_length < 1:
        raise ValueError("sampling needs a cell with memory_length >= 1")
    prompt = np.asarray(prompt, np.int32)
    if prompt.ndim != 1 or len(prompt) < 1:
        raise ValueError(f"the prompt must hold at least one token, shape (n,); got {prompt.shape}")
    memory = model.cell.empty_memory(1)
    if len(prompt) > 1:
        memory = _read(model, memory, prompt[None, :-1])
    key = jax.random.key(seed)
    return np.asarray(_draw(model, memory, prompt[-1], key, length, temperature))


@nnx.jit
def _read(model, memory, tokens):
    return model(tokens, memory).memory


@nnx.jit(static_argnames=("length", "temperature"))
def _draw(model, memory, token, key, length, temperature):
    graph, state = nnx.split(model)

    def step(carry, key):
        memory, token = carry
        out = nnx.merge(graph, state)(token[None, None], memory)
        token = jax.random.categorical(key, out.logits[0, -1] / temperature).astype(jnp.int32)
        return (out.memory, token), token

    keys = jax.random.split(key, length)
    return jax.lax.scan(step, (memory, jnp.asarray(token, jnp.int32)), keys)[1]
