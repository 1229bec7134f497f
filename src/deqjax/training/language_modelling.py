"""Language modelling as a task: loss, perplexity by the streaming protocol, and sampling."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from .._closure import vary_with
from .._fixed_point import adjoint_probe
from .._solution import Stats
from ..adjoints import as_adjoint
from ..data import Batch, Stream
from ..nn import LanguageModel, Memory, forget
from ..nn.cell import missing
from ..regularization import jacobian_penalty
from .identity import fingerprint
from .options import PenaltyOptions, Phase
from .scoring import current
from .step import Task

PyTree = Any


class Pressure(NamedTuple):
    """How hard the Jacobian penalty presses: `share`, a running mean of the share of solves that
    converge, and `factor`, what the penalty's weight is multiplied by."""

    share: jax.Array
    factor: jax.Array

    def after(self, converged: jax.Array) -> Pressure:
        """Two per cent more after every step while the share is below nine tenths, else back to 1
        by one per cent a step."""
        share = 0.98 * self.share + 0.02 * converged
        factor = self.factor * jnp.where(share < 0.9, 1.02, 1 / 1.01)
        return Pressure(share, jnp.clip(factor, 1.0, 100.0))


class Carry(NamedTuple):
    """What one segment hands to the next: its memory, and its z* to start from (or None)."""

    memory: Memory | tuple[Any, ...]
    z: jax.Array | None
    pressure: Pressure | None = None


class Score(NamedTuple):
    """Sums over a stream: nats, tokens, solver steps, solves, solves that converged. A model that
    solves nothing has none of the last three."""

    nats: float
    tokens: float
    steps: float
    solves: float
    converged: float

    @property
    def perplexity(self) -> float:
        return math.exp(min(self.nats / self.tokens, 80.0))


@dataclass(frozen=True)
class LanguageModelling(Task):
    """Next-token prediction over contiguous streams, memory carried from segment to segment.

    Attributes:
        new_model: builds the model from `nnx.Rngs`: a `LanguageModel` or whatever is called alike.
        train: the training stream.
        valid: the held-out stream; every one of its tokens is scored.
        adjoint: the name of the adjoint, which decides whether there are statistics to probe.
        warm_start: start each training solve at the z* of the segment before it, and not at zero.
        penalties: what is added to the loss.
        start: weight of |z0 − z*|², where the model learns where to begin.
        seed: of what is drawn for the penalties.
        corpus: the fingerprint of the corpus that the streams are of; theirs, if not given.
    """

    shares_evaluation: ClassVar[bool] = True
    counted: ClassVar[Literal["samples", "tokens"]] = "tokens"

    new_model: Callable[[nnx.Rngs], Any]
    train: Stream
    valid: Stream
    adjoint: str = "implicit"
    warm_start: bool = False
    penalties: PenaltyOptions = field(default_factory=PenaltyOptions)
    start: float = 0.1
    seed: int = 0
    corpus: str | None = None

    def build(self, rngs: nnx.Rngs) -> Any:
        return self.new_model(rngs)

    def fingerprint(self) -> str:
        if self.corpus is not None:
            return self.corpus
        return fingerprint(*((text.ids, text.start_id) for text in (self.train, self.valid)))

    @cached_property
    def _shape(self) -> Any:
        """The model without its arrays."""
        model = nnx.eval_shape(lambda: self.new_model(nnx.Rngs(0)))
        if isinstance(model, LanguageModel) and (lacks := missing(model.cell)):
            raise TypeError(
                f"{type(model.cell).__name__} is no cell of a language model: it lacks "
                f"{', '.join(lacks)}; see deqjax.nn.LanguageCell"
            )
        return model

    @property
    def solves(self) -> bool:
        """Whether the model solves an equilibrium at all."""
        return self._shape.solves

    def carry(self) -> Carry:
        model, rows = self._shape, self.train.batch_size
        memory = model.empty_memory(rows)
        if self.warm_start and not self.solves:
            raise ValueError("a warm start needs a model that solves an equilibrium")
        z = jnp.zeros((rows, self.train.segment, model.cell.d)) if self.warm_start else None
        one = lambda: jnp.ones(())
        return Carry(memory, z, Pressure(one(), one()) if self.penalties.tighten else None)

    def batch(self, index: int, rows: slice = slice(None)) -> Batch:
        batch = self._rows_of(rows)[index]
        return batch._replace(fresh=np.asarray(batch.fresh))

    def _rows_of(self, rows: slice) -> Stream:
        return self.train if rows == slice(None) else replace(self.train, rows=rows)

    def probe(self, phase: Phase, rows: int) -> Stats | None:
        if not self.solves or as_adjoint(phase.adjoint or self.adjoint).differentiates_loop:
            return None
        return adjoint_probe(rows)

    def loss(self, model, carry, batch, *, step, phase, probe):
        memory = forget(carry.memory, batch.fresh)
        options = {}
        if self.solves:
            options = phase.keywords(model.deq.solver.max_steps)
            options |= dict(
                z0=carry.z, adjoint_probe=probe, keep_context=bool(self.penalties.jacobian)
            )
        out = model(batch.inputs, memory, targets=batch.targets, **options)
        tokens = jnp.maximum(batch.weights.sum(), 1)
        nats = jnp.sum(out.nats * batch.weights) / tokens
        metrics: dict[str, Any] = {"nats": nats}
        loss = nats + self._of_output(out)
        carry = carry._replace(memory=out.memory)
        if self.solves:
            stats = out.solution.stats
            metrics["solve"] = stats
            if out.start is not None:
                target = jax.lax.stop_gradient(out.solution.z)
                metrics["start"] = jnp.mean((out.start - target) ** 2)
                loss += self.start * metrics["start"]
            if self.penalties.jacobian:
                factor = 1.0 if carry.pressure is None else carry.pressure.factor
                metrics["jacobian"] = self._of_jacobian(model, out, step)
                loss += metrics["jacobian"] * self.penalties.jacobian * factor
            if self.warm_start:
                carry = carry._replace(z=jax.lax.stop_gradient(out.solution.z))
        return loss, (carry, metrics)

    def weight(self, batch):
        return batch.weights.sum()

    def after(self, carry, metrics, phase):
        nats = jnp.minimum(metrics.pop("nats"), 80.0)
        metrics["perplexity"] = jnp.exp(nats)
        if carry.pressure is not None and phase.depth is None:
            pressure = carry.pressure.after(metrics["converged"])
            metrics["pressure"] = pressure.factor
            carry = carry._replace(pressure=pressure)
        return carry, metrics

    def _of_output(self, out) -> jax.Array | float:
        """Activation regularisation (Merity, McCann and Socher 2017, arXiv 1708.01009)."""
        p, penalty = self.penalties, 0.0
        if p.activation:
            penalty += p.activation * jnp.mean(out.dropped**2)
        if p.temporal:
            penalty += p.temporal * jnp.mean((out.hidden[:, 1:] - out.hidden[:, :-1]) ** 2)
        return penalty

    def _of_jacobian(self, model, out, step) -> jax.Array:
        """‖J‖²/n at z*, at a share of the steps and else zero."""
        p = self.penalties
        draw, probe = jax.random.split(jax.random.fold_in(jax.random.key(self.seed), step))
        f = lambda z: model.cell(z, out.context)

        def penalty(z):
            return jacobian_penalty(f, z, key=probe, batch_axis=0)

        paid = jax.random.bernoulli(draw, p.jacobian_share)
        zero = lambda z: vary_with(jnp.zeros(()), z)
        return jax.lax.cond(paid, penalty, zero, out.solution.z)

    def evaluate(self, model: Any) -> dict[str, float]:
        score = perplexity(model, self.valid)
        found = {"valid_perplexity": score.perplexity, "valid_loss": score.nats / score.tokens}
        if score.solves:
            found["valid_forward_steps"] = score.steps / score.solves
            found["valid_converged"] = score.converged / score.solves
        return found


def perplexity(
    model: Any, stream: Stream, each: Callable[[int, Score], None] | None = None
) -> Score:
    """Score every token of `stream`, memory carried along each row, with sums in float64.

    Inside `fit` the rows are shared out over all devices of the job, which makes no difference but
    in rounding.

    Args:
        model: in eval mode.
        stream: its rows are scored side by side; fewer rows, more context.
        each: called with the number of segments done and the sums so far after every segment.
    """
    share = current()
    mine = share.of(stream)

    def sums() -> list[float]:
        totals = np.zeros(5)
        if mine is None:
            return totals.tolist()
        rows = len(range(mine.batch_size)[mine.rows])
        memory, score = model.empty_memory(rows), share.scorer(model, rows)
        for done, batch in enumerate(mine, start=1):
            batch = batch._replace(fresh=np.asarray(batch.fresh))
            nats, others, memory = score(memory, batch)
            totals += [np.asarray(nats, np.float64).sum(), *np.asarray(others, np.float64)]
            if each is not None:
                each(done, Score(*totals.tolist()))
        return totals.tolist()

    return Score(*share.total(sums))


def sample(
    model: Any,
    prompt: np.ndarray,
    length: int,
    *,
    seed: int = 0,
    temperature: float = 0.8,
) -> np.ndarray:
    """Continue `prompt`, int (n,), by `length` tokens drawn one at a time.

    The memory is projected anew for every token: `deqjax.nn.generate` keeps what it was projected
    to, takes several prompts, and says how the solves ended.

    The prompt's last token is the first input of the loop; what stands before it, and every token
    drawn, lives on in the memory. Text further back than the memory is forgotten.

    Args:
        model: in eval mode, with a cell that has memory.
        temperature: logits are divided by it; below 1, safer text.
    """
    memory = model.empty_memory(1)
    if not sum(m.valid.size for m in jax.tree.leaves(memory, is_leaf=_is_memory)):
        raise ValueError("sampling needs a cell with memory_length >= 1")
    prompt = np.asarray(prompt, np.int32)
    if prompt.ndim != 1 or len(prompt) < 1:
        raise ValueError(f"the prompt must hold at least one token, shape (n,); got {prompt.shape}")
    if len(prompt) > 1:
        memory = _read(model, memory, prompt[None, :-1])
    key = jax.random.key(seed)
    return np.asarray(_draw(model, memory, prompt[-1], key, length, temperature))


def _is_memory(x: Any) -> bool:
    return isinstance(x, Memory)


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
