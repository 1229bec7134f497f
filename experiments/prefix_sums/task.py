"""The task as the training loop sees it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import lax

from deqjax import Implicit, Picard, Tail, adjoint_probe
from deqjax._errors import check_integer
from deqjax.nn import DEQ, RecallConv
from deqjax.training import Task, TrainOptions, draw_rows

# What a stack of the same cell is trained through, and how long an equilibrium is solved for.
DEPTH, MAX_STEPS = 40, 100
TRAIN = TrainOptions(
    steps=1200,
    batch_size=64,
    cheap_steps=600,
    cheap_adjoint="tail",
    weight_decay=1e-3,
    eval_every=600,
    checkpoint_every=300,
    log_every=20,
)


@dataclass(frozen=True)
class Config:
    """Train on short strings, ask about long ones."""

    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """runs, each with parameters, strings and starts of its own"""
    bits: int = 32
    """length of the strings in training"""
    width: int = 32
    """channels of the state"""
    tail: int = 8
    """steps that are differentiated while solves do not converge yet"""
    stacked: bool = False
    """the same cell, back-propagated through 40 steps; set by the program for its comparison"""
    test_lengths: tuple[int, ...] = (32, 128, 512)
    """lengths of the strings in the test"""
    strings: int = 200
    """of each length"""
    train: TrainOptions = field(default_factory=lambda: TRAIN)

    @property
    def run_name(self) -> str:
        kind = "stack" if self.stacked else "settling"
        return f"prefix-sums-{kind}-seed{self.train.seed}"

    def of(self, seed: int, stacked: bool) -> Config:
        """The run of one seed. An update of a stack of 40 takes three times as long, so that it
        gets a third of them."""
        given: dict[str, Any] = dict(seed=seed)
        if stacked:
            steps = self.train.steps // 3
            given |= dict(steps=steps, cheap_steps=0, stack_steps=steps, stack_depth=DEPTH)
        return replace(self, stacked=stacked, train=replace(self.train, **given))

    def check(self) -> None:
        for name in ("bits", "width", "tail", "strings"):
            check_integer("--" + name, getattr(self, name), least=1)


class Network(nnx.Module):
    """A bit at every position in, the logit of the prefix's parity at every position out."""

    def __init__(self, config: Config, rngs: nnx.Rngs):
        cell = RecallConv(1, config.width, rngs=rngs)
        # Exact where the solve converged: elsewhere that gradient does harm.
        adjoint = Implicit(unconverged="tail")
        self.deq = DEQ(cell, solver=Picard(), adjoint=adjoint, rtol=1e-3, max_steps=MAX_STEPS)
        self.readout = nnx.Linear(config.width, 1, rngs=rngs)

    def logits(self, z: jax.Array) -> jax.Array:
        return self.readout(z)[..., 0]


def network(config: Config, rngs: nnx.Rngs) -> Network:
    return Network(config, rngs)


def strings(rng: np.random.Generator, count: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Bits as ±1, (count, length, 1), and the parity of each prefix, (count, length)."""
    bits = rng.integers(0, 2, (count, length))
    return (2 * bits - 1)[..., None].astype(np.float32), np.cumsum(bits, axis=1) % 2


@dataclass(frozen=True)
class PrefixSums(Task):
    """Fresh strings at every step, from random starts.

    While solves do not converge, the state is iterated for a number of steps that is drawn, without
    a gradient, and a few steps more are differentiated. Then whole solves, and exact gradients.
    """

    config: Config

    def build(self, rngs: nnx.Rngs) -> Network:
        return network(self.config, rngs)

    def batch(self, index: int, rows: slice = slice(None)):
        rng = np.random.default_rng((self.config.train.seed, index))
        x, parity = strings(rng, self.config.train.batch_size, self.config.bits)
        return x[rows], parity[rows], np.int32(rng.integers(DEPTH))

    def probe(self, phase, rows):
        exact = phase.depth is None and phase.adjoint is None
        return adjoint_probe(rows) if exact else None

    def loss(self, model, carry, batch, *, step, phase, probe):
        x, parity, before = batch
        key = jax.random.fold_in(jax.random.key(self.config.train.seed), step)
        z0 = draw_rows(lambda key: model.deq.cell.random_state(key, x[0]), key, len(x))
        if phase.adjoint == "tail":
            z0 = iterated(model, z0, x, before)
            given: dict[str, Any] = dict(max_steps=0, adjoint=Tail(steps=self.config.tail))
        else:
            given = phase.keywords(MAX_STEPS)
        sol = model.deq(x, z0=z0, adjoint_probe=probe, **given)
        logits = model.logits(sol.z)
        losses = optax.sigmoid_binary_cross_entropy(logits, parity.astype(logits.dtype))
        right = jnp.mean(jnp.all((logits > 0) == (parity > 0), axis=1) * 1.0)
        return losses.mean(), (carry, dict(strings=right, solve=sol.stats))

    def evaluate(self, model: Network) -> dict[str, float]:
        rng = np.random.default_rng((self.config.train.seed, 10**6))
        x, parity = strings(rng, 200, 2 * self.config.bits)
        depth = DEPTH if self.config.stacked else None
        sol = jax.jit(lambda x: model.deq(x, depth=depth, max_steps=4 * MAX_STEPS))(x)
        logits = model.logits(sol.z)
        loss = optax.sigmoid_binary_cross_entropy(logits, parity.astype(np.float32)).mean()
        right = ((logits > 0) == (parity > 0)).all(axis=1).mean()
        return dict(valid_loss=float(loss), valid_strings=float(right))


def iterated(model: Network, z: jax.Array, x: jax.Array, steps: jax.Array) -> jax.Array:
    """z after so many steps, without a gradient."""
    f = lax.stop_gradient(nnx.state(model.deq.cell))
    cell = nnx.merge(nnx.graphdef(model.deq.cell), f)
    recalled = lax.stop_gradient(cell.inject(x))
    step = lambda c: (c[0] + 1, cell(c[1], recalled))
    return lax.stop_gradient(lax.while_loop(lambda c: c[0] < steps, step, (0, z))[1])
