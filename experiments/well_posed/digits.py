"""`ImplicitDense` on digits beside an MLP of its width, with a certificate after every update."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from deqjax.nn import ImplicitDense

from ..first_deq.models import CLASSES, PIXELS
from ..first_deq.train import BATCH, LEARNING_RATE, Digits, cross_entropy


class Classifier(nnx.Module):
    """Logits, (batch, 10), linear in the equilibrium; and the share of solves that converged."""

    def __init__(self, d: int, *, rngs: nnx.Rngs, **options: Any):
        self.hidden = ImplicitDense(PIXELS, d, rngs=rngs, **options)
        self.readout = nnx.Linear(d, CLASSES, rngs=rngs)

    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        sol = self.hidden(x)
        return self.readout(sol.z), sol.stats.converged.mean()


class Explicit(nnx.Module):
    """Hidden layers of relu and width d. Two have as many parameters as an equilibrium of the
    width; one has half of them."""

    def __init__(self, d: int, depth: int, *, rngs: nnx.Rngs):
        sizes = [PIXELS, *[d] * depth]
        self.layers = nnx.List([nnx.Linear(a, b, rngs=rngs) for a, b in pairwise(sizes)])
        self.readout = nnx.Linear(d, CLASSES, rngs=rngs)

    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        for layer in self.layers:
            x = jax.nn.relu(layer(x))
        return self.readout(x), jnp.ones(())


MODELS: dict[str, Callable[[int, nnx.Rngs], nnx.Module]] = {
    "MLP, one hidden layer": lambda d, rngs: Explicit(d, 1, rngs=rngs),
    "MLP, two hidden layers": lambda d, rngs: Explicit(d, 2, rngs=rngs),
    **{
        f"ImplicitDense, {kind}": lambda d, rngs, kind=kind: Classifier(d, kind=kind, rngs=rngs)
        for kind in ("inf_norm", "mu_inf", "monotone")
    },
}


def trained(
    build: Callable, train: Digits, test: Digits, *, d: int, seed: int, epochs: int
) -> dict[str, Any]:
    """Adam; every update is followed by `certify` of the layer's A, where it has one.

    accuracy is on the test digits after the last epoch.
    """
    graph, parameters = nnx.split(build(d, nnx.Rngs(seed)), nnx.Param)
    optimiser = optax.adam(LEARNING_RATE)
    memory = optimiser.init(parameters)

    def loss(parameters, images, classes):
        logits, converged = nnx.merge(graph, parameters)(images)
        return cross_entropy(logits, classes).mean(), converged

    @jax.jit
    def update(parameters, memory, index):
        change, converged = jax.grad(loss, has_aux=True)(
            parameters, train.images[index], train.classes[index]
        )
        change, memory = optimiser.update(change, memory, parameters)
        return optax.apply_updates(parameters, change), memory, converged

    @jax.jit
    def accuracy(parameters):
        logits, _ = nnx.merge(graph, parameters)(test.images)
        return (logits.argmax(-1) == test.classes).mean()

    rng = np.random.default_rng(seed)
    shares, bounds, held = [], [], 0
    for _ in range(epochs):
        order = rng.permutation(len(train.images))
        for index in order[: len(order) // BATCH * BATCH].reshape(-1, BATCH):
            parameters, memory, converged = update(parameters, memory, jnp.asarray(index))
            shares.append(float(converged))
            layer = getattr(nnx.merge(graph, parameters), "hidden", None)
            if layer is not None:
                found = layer.certificate()
                held += found.holds
                bounds.append(found.bound)
    return dict(
        accuracy=float(accuracy(parameters)),
        converged=float(np.mean(shares)),
        updates=len(shares),
        certified=held if bounds else None,
        bound=max(bounds, default=None),
    )


def compared(seeds: int, epochs: int, d: int) -> list[dict[str, Any]]:
    """A row a model, and in it one entry a seed."""
    train, test = Digits.load()
    rows = []
    for name, build in MODELS.items():
        runs = [trained(build, train, test, d=d, seed=seed, epochs=epochs) for seed in range(seeds)]
        rows.append(dict(model=name, runs=runs))
        print(name, *(f"{run['accuracy']:.4f}" for run in runs), flush=True)
    return rows
