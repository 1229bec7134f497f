"""Adam on digits for many seeds at once: one compiled program per row, an epoch a call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from deqjax.regularization import jacobian_penalty

from .rows import Row

BATCH, LEARNING_RATE = 128, 3e-3
TRAINED_ON = 1437  # of 1797 digits: four fifths


class Digits(NamedTuple):
    """Images (n, 64) in [0, 1], and their classes (n,)."""

    images: jax.Array
    classes: jax.Array

    @classmethod
    def load(cls) -> tuple[Digits, Digits]:
        """scikit-learn's digits in one random order, divided into those to train on and to test."""
        from sklearn.datasets import load_digits

        found: Any = load_digits()
        order = np.random.default_rng(0).permutation(len(found.data))
        images = jnp.asarray(found.data[order] / 16, jnp.float32)
        classes = jnp.asarray(found.target[order], jnp.int32)
        return (
            cls(images[:TRAINED_ON], classes[:TRAINED_ON]),
            cls(images[TRAINED_ON:], classes[TRAINED_ON:]),
        )


class State(NamedTuple):
    parameters: Any
    optimiser: Any


class Found(NamedTuple):
    """What an epoch was like, each (seeds,): the largest norm of a gradient, the share of solves in
    training that converged, and the accuracy on the test digits after it."""

    gradient: Any
    converged: Any
    accuracy: Any


class Trainer(NamedTuple):
    """start(seeds) -> State and epoch(state, keys) -> (State, Found), with a leading axis of seeds;
    model(parameters) -> the model of one seed."""

    start: Callable[[int], State]
    epoch: Callable[[State, jax.Array], tuple[State, Found]]
    model: Callable[[Any], Any]


def trainer(row: Row, d: int, train: Digits, test: Digits) -> Trainer:
    """How a row is trained. Adam sees the gradient as it is, or clipped where the row says so."""
    adam, clip = optax.adam(LEARNING_RATE), row.remedy.clip
    optimiser = adam if clip is None else optax.chain(optax.clip_by_global_norm(clip), adam)
    graph, _ = nnx.split(row.build(d, nnx.Rngs(0)), nnx.Param)

    def model(parameters):
        return nnx.merge(graph, parameters)

    def one_start(seed):
        _, parameters = nnx.split(row.build(d, nnx.Rngs(jax.random.key(seed))), nnx.Param)
        return State(parameters, optimiser.init(parameters))

    def loss(parameters, batch: Digits, key):
        now = model(parameters)
        logits, sol = now(batch.images)
        value = cross_entropy(logits, batch.classes).mean()
        if row.remedy.penalty:
            cell = now.deq.cell
            context = cell.inject(batch.images)
            penalty = jacobian_penalty(cell, sol.z, context, key=key, batch_axis=0)
            value += row.remedy.penalty * penalty
        return value, jnp.nan if sol is None else sol.stats.converged.mean()

    def one_epoch(given):
        state, key = given
        n = len(train.images)
        order = jax.random.permutation(key, n)[: n // BATCH * BATCH].reshape(-1, BATCH)

        def step(state, given):
            index, key = given
            batch = Digits(train.images[index], train.classes[index])
            parameters, memory = state
            change, converged = jax.grad(loss, has_aux=True)(parameters, batch, key)
            size = optax.tree.norm(change)
            change, memory = optimiser.update(change, memory, parameters)
            return State(optax.apply_updates(parameters, change), memory), (size, converged)

        state, (size, converged) = jax.lax.scan(
            step, state, (order, jax.random.split(key, len(order)))
        )
        logits, _ = model(state.parameters)(test.images)
        accuracy = (logits.argmax(-1) == test.classes).mean()
        return state, Found(size.max(), converged.mean(), accuracy)

    # A loop over the seeds and not vmap: a seed would wait for the slowest solve of all.
    return Trainer(
        start=lambda seeds: jax.vmap(one_start)(jnp.arange(seeds)),
        epoch=jax.jit(lambda state, keys: jax.lax.map(one_epoch, (state, keys))),
        model=model,
    )


def epoch_keys(seeds: int, epoch: int) -> jax.Array:
    """(seeds,): the same for every row, which so sees the same batches."""
    return jax.vmap(lambda seed: jax.random.fold_in(jax.random.key(seed), epoch))(jnp.arange(seeds))


def cross_entropy(logits: jax.Array, classes: jax.Array) -> jax.Array:
    return optax.softmax_cross_entropy_with_integer_labels(logits, classes)
