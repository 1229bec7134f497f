"""Activations as proximal operators: what the splittings apply instead of σ."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from ._activations import Activation, as_activation

# Newton's method on a scalar equation; where it leaves its bracket, bisection.
ITERATIONS = 40


def proximal(activation: str | Activation | Callable) -> Activation:
    """The activation, if it is the proximal operator of a convex function.

    Raises:
        ValueError: one that decreases somewhere, expands somewhere, or is not known.
    """
    sigma = as_activation(activation)
    if not sigma.is_proximal:
        raise ValueError(
            f"{sigma.name} has slopes in [{sigma.slopes[0]:g}, {sigma.slopes[1]:g}], and a "
            "splitting needs an activation that is a proximal operator, with slopes in [0, 1]: "
            "relu, tanh, sigmoid, softplus, …"
        )
    return sigma


def resolvent(sigma: Activation, alpha: Any, x: jax.Array) -> jax.Array:
    """prox_{αf}(x), where σ = prox_f: y with y + α (σ⁻¹(y) − y) = x.

    For α = 1 it is σ. A positively homogeneous σ has a closed form, for relu σ itself at every α.
    Otherwise y = σ(t), with t the root of h(t) = α t + (1 − α) σ(t) − x, whose
    slope is between 1 and α.
    """
    if isinstance(alpha, float | int) and alpha == 1:
        return sigma(x)
    if sigma.homogeneous:
        slope = jnp.where(x > 0, sigma(jnp.ones_like(x)), -sigma(-jnp.ones_like(x)))
        return sigma(x) / (slope + alpha * (1 - slope))
    least, most = jnp.minimum(1.0, alpha), jnp.maximum(1.0, alpha)
    one = jnp.ones_like(x)

    def body(_, carry):
        t, low, high = carry
        value, slope = jax.jvp(sigma.function, (t,), (one,))
        error = x - alpha * t - (1 - alpha) * value
        low, high = jnp.where(error > 0, t, low), jnp.where(error < 0, t, high)
        newton = t + error / jnp.clip(alpha + (1 - alpha) * slope, least, most)
        inside = (newton >= low) & (newton <= high)
        return jnp.where(inside, newton, (low + high) / 2), low, high

    # |h′| is between least and most: the root is this far from x at most.
    error = x - alpha * x - (1 - alpha) * sigma(x)
    ends = error / least, error / most
    low, high = (x + pick(*ends) for pick in (jnp.minimum, jnp.maximum))
    t, _, _ = lax.fori_loop(0, ITERATIONS, body, (x + error / most, low, high))
    return sigma(t)
