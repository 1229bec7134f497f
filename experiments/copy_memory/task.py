"""The task as the training loop sees it: data, loss, held-out score."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from deqjax import adjoint_probe
from deqjax._errors import check_tolerance
from deqjax.adjoints import as_adjoint
from deqjax.data import copy_memory
from deqjax.nn import cross_entropy
from deqjax.regularization import jacobian_penalty
from deqjax.training import (
    OptionError,
    SolverOptions,
    Task,
    TrainOptions,
    checked,
    draw_rows,
    fingerprint,
)

from . import models

COPIED = 10

Model = Literal["deq-transformer", "universal-transformer", "tcn", "lstm", "gru"]
Preset = Literal["quick", "paper"]


@dataclass(frozen=True)
class Config:
    """Train a model to repeat ten symbols after a long delay."""

    model: Model = "deq-transformer"
    """row of the table; universal-transformer is the same cell, stacked `depth` times"""
    preset: Preset = "quick"
    """how to train it where no flag says otherwise: a few minutes, or the recorded runs"""
    length: int = 400
    """blanks between the symbols and the signal to repeat them (T); sequences have T + 20 steps"""
    train_sequences: int = 20_000
    """training sequences"""
    test_sequences: int = 2_000
    """held-out sequences; the first `valid_sequences` of them are scored during training"""
    valid_sequences: int = 256
    """see test_sequences"""
    width: int = 32
    """width of the state: d of a transformer, channels, hidden units"""
    heads: int = 1
    """attention heads"""
    inner: int = 80
    """width of the feed-forward"""
    depth: int = 4
    """how often universal-transformer applies its cell"""
    jacobian: float = 0.0
    """weight of the penalty ‖J‖²/n at z* on deq-transformer, which keeps its solves short"""
    settle: float = 0.3
    """weight of ‖f(z) − z‖²/n at the end of deq-transformer's warm-up stack: without it the stack
    may learn to swing between two states that both give the right answer"""
    random_starts: float = 0.0
    """share of the sequences whose stack or solve begins at noise and not at zero while
    deq-transformer is trained: the answer must not depend on the start"""
    solver: SolverOptions = field(default_factory=SolverOptions)
    train: TrainOptions = field(default_factory=TrainOptions)

    def check(self) -> None:
        if self.train_sequences < self.train.batch_size:
            raise OptionError("--train-sequences must be at least --batch-size")
        if self.test_sequences < 1 or self.valid_sequences < 1:
            raise OptionError("--test-sequences and --valid-sequences must be at least 1")
        check_tolerance("--jacobian", self.jacobian)
        check_tolerance("--settle", self.settle)
        if not 0 <= self.random_starts <= 1:
            raise OptionError(f"--random-starts must be from 0 to 1; got {self.random_starts}")


class Pair(NamedTuple):
    """inputs and targets, int32 (batch, T + 20)."""

    inputs: np.ndarray
    targets: np.ndarray

    def rows(self, rows: Any) -> Pair:
        return Pair(self.inputs[rows], self.targets[rows])


class Score(NamedTuple):
    """loss: mean cross-entropy over all positions, nats. recall: share of the copied symbols that
    are right. steps: solver steps a sequence, and converged: the share that did; None if nothing
    was solved."""

    loss: float
    recall: float
    steps: float | None = None
    converged: float | None = None


@dataclass(frozen=True)
class CopyMemory(Task):
    """Cross-entropy over all positions, and recall accuracy over the last ten."""

    config: Config
    train: Pair
    test: Pair

    def build(self, rngs: nnx.Rngs) -> nnx.Module:
        return models.build(self.config, rngs)

    def fingerprint(self) -> str:
        return fingerprint(self.train, self.test)

    def batch(self, index: int, rows: slice = slice(None)) -> Pair:
        size = self.config.train.batch_size
        epoch, position = divmod(index * size, len(self.train.inputs) // size * size)
        order = np.random.default_rng((self.config.train.seed, epoch))
        chosen = order.permutation(len(self.train.inputs))[position : position + size]
        return self.train.rows(chosen[rows])

    @property
    def solves(self) -> bool:
        return self.config.model == "deq-transformer"

    def probe(self, phase, rows):
        adjoint = phase.adjoint or self.config.solver.adjoint
        if not self.solves or as_adjoint(adjoint).differentiates_loop:
            return None
        return adjoint_probe(rows)

    def loss(self, model, carry, batch, *, step, phase, probe):
        options: dict[str, Any] = {}
        if self.solves:
            options = phase.keywords(model.deq.solver.max_steps)
            options |= dict(adjoint_probe=probe, keep_context=True)
            if self.config.random_starts:
                options["z0"] = self._starts(step, (*batch.inputs.shape, model.cell.d))
        out = model(batch.inputs, **options)
        nats, recall = _losses(out.logits, batch.targets)
        loss = nats.mean()
        metrics: dict[str, Any] = {"recall": recall}
        if self.solves:
            metrics["solve"], z = out.solution.stats, out.solution.z
            f = lambda z: model.cell(z, out.context)
            if self.config.jacobian:
                key = jax.random.fold_in(jax.random.key(0), step)
                metrics["jacobian"] = jacobian_penalty(f, z, key=key, batch_axis=0)
                loss = loss + self.config.jacobian * metrics["jacobian"]
            if phase.depth is not None and self.config.settle:
                metrics["unsettled"] = jnp.mean((f(z) - z) ** 2)
                loss = loss + self.config.settle * metrics["unsettled"]
        return loss, (carry, metrics)

    def _starts(self, step: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """Noise for a share of the sequences, zeros for the others."""
        which, noise = jax.random.split(jax.random.fold_in(jax.random.key(1), step))
        n, *each = shape
        share = self.config.random_starts
        drawn = draw_rows(lambda key: jax.random.bernoulli(key, share, (1, 1)), which, n)
        return jnp.where(drawn, draw_rows(lambda key: jax.random.normal(key, each), noise, n), 0.0)

    def evaluate(self, model) -> dict[str, float]:
        held_out = self.test.rows(slice(self.config.valid_sequences))
        score = evaluate(model, held_out, self.config.train.batch_size)
        named = dict(loss=score.loss, recall=score.recall)
        if score.steps is not None and score.converged is not None:
            named |= dict(forward_steps=score.steps, converged=score.converged)
        return {f"valid_{name}": value for name, value in named.items()}


def evaluate(
    model: Any, pair: Pair, batch_size: int, start: Callable[[np.ndarray], Any] | None = None
) -> Score:
    """Score a model on every sequence of `pair`, with sums in float64.

    start: inputs -> z0, where solves begin.
    """
    sums, n = np.zeros(4), len(pair.inputs)
    for first in range(0, n, batch_size):
        batch = pair.rows(slice(first, first + batch_size))
        options = {} if start is None else {"z0": start(batch.inputs)}
        nats, others = (np.asarray(x, np.float64) for x in _score(model, batch, options))
        sums += [nats.mean(-1).sum(), *(len(batch.inputs) * others)]
    loss, recall, steps, converged = (sums / n).tolist()
    return Score(loss, recall) if np.isnan(steps) else Score(loss, recall, steps, converged)


@nnx.jit
def _score(model, batch, options):
    out = model(batch.inputs, **options)
    solve = (jnp.nan, jnp.nan)
    if out.solution is not None and model.solves:
        stats = out.solution.stats
        solve = (stats.steps.mean(), stats.converged.mean())
    nats, recall = _losses(out.logits, batch.targets)
    return nats, jnp.stack([recall, *solve])


def _losses(logits: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(nats at every position, recall)."""
    hits = logits.argmax(-1) == targets
    return cross_entropy(logits, targets), hits[:, -COPIED:].mean(dtype=jnp.float32)


def held_out(seed: int, count: int, length: int) -> Pair:
    """The test sequences of a seed; never among the training ones."""
    return Pair(*copy_memory((seed, 1), count, length))


def prepare(config: Config) -> CopyMemory:
    """The task; whatever is wrong with the options is an `OptionError`."""
    checked(config.solver, config.train, config)
    try:
        train = Pair(*copy_memory((config.train.seed, 0), config.train_sequences, config.length))
        test = held_out(config.train.seed, config.test_sequences, config.length)
        task = CopyMemory(config, train, test)
        nnx.eval_shape(lambda: task.build(nnx.Rngs(0)))
    except (ValueError, TypeError) as wrong:
        raise OptionError(str(wrong)) from None
    return task
