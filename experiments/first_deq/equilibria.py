"""What the equilibria of a classifier are like, sample by sample, by dense linear algebra."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from .train import Digits, cross_entropy


class Equilibria(NamedTuple):
    """Of the z that a solve returned, whether it converged or not; each (samples,).

    Attributes:
        converged: as the solver says.
        radius: spectral radius of J = ∂f/∂z. From 1 on, plain iteration leaves z.
        gain: ‖u‖/‖v‖ with (I − J)ᵀ u = v, v the cotangent of z.
        size: ‖u‖.
    """

    converged: np.ndarray
    radius: np.ndarray
    gain: np.ndarray
    size: np.ndarray

    @classmethod
    def joined(cls, parts: list[Equilibria]) -> Equilibria:
        return cls(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))


def linearised(model: Callable[[Any], Any], digits: Digits) -> Callable[[Any], tuple]:
    """parameters of many seeds -> (converged, J, v), (seeds, samples, ...), compiled."""

    def one(parameters):
        now = model(parameters)
        _, sol = now(digits.images)
        context = now.deq.cell.inject(digits.images)

        def sample(z, x, label):
            J = jax.jacfwd(lambda z: now.deq.cell(z, context._replace(x=x)))(z)
            v = jax.grad(lambda z: cross_entropy(now.readout(z), label))(z)
            return J, v

        return sol.stats.converged, *jax.vmap(sample)(sol.z, context.x, digits.classes)

    return jax.jit(lambda parameters: jax.lax.map(one, parameters))


def examine(converged: Any, J: Any, v: Any) -> Equilibria:
    """Eigenvalues and an exact u for all samples, in float64. J is (..., d, d), v (..., d)."""
    d = np.shape(v)[-1]
    J = np.asarray(J, np.float64).reshape(-1, d, d)
    v = np.asarray(v, np.float64).reshape(-1, d)
    u = np.linalg.solve(np.eye(d) - J.transpose(0, 2, 1), v[..., None])[..., 0]
    size = np.linalg.norm(u, axis=-1)
    return Equilibria(
        converged=np.asarray(converged).reshape(-1),
        radius=np.abs(np.linalg.eigvals(J)).max(-1),
        gain=size / np.linalg.norm(v, axis=-1),
        size=size,
    )
