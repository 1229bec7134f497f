"""Why one layer is enough: a deep network, and a stack of equilibria, as one equilibrium (Bai,
Kolter and Koltun 2019, arXiv 1909.01377, section 3 and appendix)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp

from ._activations import ACTIVATIONS, Activation, Refused, as_activation

PyTree = Any


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class WeightTied:
    """f(z, x) = σ(W z + U x + b), the same at every depth, whose equilibrium is a whole network.

    z holds the hidden states of all L layers, [h₁, …, h_L]. W has layer i's weights in the block
    below the diagonal that leads from h_{i−1} to h_i, and zeros elsewhere; U has the first layer's;
    σ is the activation of layer i on block i. W is nilpotent and so is J = ∂f/∂z, with J^L = 0:
    from any finite start, L evaluations of f give every h exactly, and h_L is the network's output.

    A theorem and not a way to compute: W has (Σ widths)² entries, and each evaluation is as much
    work as all layers together.

    Attributes:
        W: (n, n), n the sum of the widths.
        U: (n, d).
        b: (n,).
        widths: of the layers.
        activations: one a layer.
    """

    W: jax.Array
    U: jax.Array
    b: jax.Array
    widths: tuple[int, ...] = field(metadata=dict(static=True))
    activations: tuple[Callable, ...] = field(metadata=dict(static=True))

    @property
    def depth(self) -> int:
        """L."""
        return len(self.widths)

    @property
    def slices(self) -> list[slice]:
        """Where each hᵢ is in z."""
        ends = [sum(self.widths[:i]) for i in range(self.depth + 1)]
        return [slice(a, b) for a, b in pairwise(ends)]

    def __call__(self, z: jax.Array, x: jax.Array) -> jax.Array:
        """f(z, x), (..., n), for z (..., n) and x (..., d)."""
        y = z @ self.W.T + x @ self.U.T + self.b
        parts = [s(y[..., at]) for s, at in zip(self.activations, self.slices, strict=True)]
        return jnp.concatenate(parts, axis=-1)

    def start(self, x: jax.Array) -> jax.Array:
        """Zeros, as good a start as any other."""
        return jnp.zeros((*x.shape[:-1], len(self.b)), jnp.result_type(x, self.b))

    def output(self, z: jax.Array) -> jax.Array:
        """h_L, (..., width of the last layer)."""
        return z[..., self.slices[-1]]


def weight_tied(
    weights: Sequence[Any], biases: Sequence[Any], activations: Any = "relu"
) -> WeightTied:
    """The network hᵢ = σᵢ(Wᵢ hᵢ₋₁ + bᵢ), h₀ = x, as one weight-tied layer.

    Differentiable in the weights and biases; `fixed_point` on what it returns gives the network's
    output, and the implicit gradient is back-propagation's:

    - Picard is exact after L steps, from any finite start, as W is nilpotent.
    - The adjoint u = Jᵀu + v is exact after L steps, for the same reason.
    - `Phantom(steps=k, damping=1.0)` is exact if and only if k ≥ L (as long as no layer's slopes
      vanish): with fewer, the first L − k layers get a gradient of zero.
    - `JFB` is that with k = 1: every layer but the last one has a gradient of zero.

    Args:
        weights: Wᵢ of shape (widthᵢ, widthᵢ₋₁), i = 1, …, L; that of W₁ is (width₁, d).
        biases: (widthᵢ,) each.
        activations: one for all layers, or one a layer; names, or functions that act entry by
            entry. Any function will do here.

    Raises:
        ValueError: no layers, or shapes and numbers that do not fit together.

    Examples:
        >>> import jax.numpy as jnp, deqjax
        >>> from deqjax.theory.universality import weight_tied
        >>> layers = [jnp.ones((3, 2)), jnp.ones((1, 3))]
        >>> f = weight_tied(layers, [jnp.zeros(3), jnp.zeros(1)], ["relu", "identity"])
        >>> x = jnp.array([1.0, 2.0])
        >>> sol = deqjax.fixed_point(lambda z: f(z, x), f.start(x), solver="picard", max_steps=2)
        >>> f.output(sol.z).tolist()
        [9.0]
    """
    weights, biases = [jnp.asarray(w) for w in weights], [jnp.asarray(b) for b in biases]
    sigmas = _functions(activations, len(weights))
    _check_shapes(weights, biases)
    widths = tuple(len(b) for b in biases)
    n = sum(widths)
    dtype = jnp.result_type(*weights, *biases)
    U = jnp.zeros((n, weights[0].shape[1]), dtype).at[: widths[0]].set(weights[0])
    W = jnp.zeros((n, n), dtype)
    tied = WeightTied(W, U, jnp.concatenate(biases), widths, sigmas)
    at = tied.slices
    for i in range(1, len(weights)):
        W = W.at[at[i], at[i - 1]].set(weights[i])
    return WeightTied(W, U, tied.b, widths, sigmas)


def stacked(
    first: Callable[..., PyTree], second: Callable[..., PyTree]
) -> Callable[..., tuple[PyTree, PyTree]]:
    """Two equilibria, the second on top of the first, as one equation.

    z₁ = f(z₁, x) and then z₂ = g(z₂, z₁) is (z₁, z₂) = (f(z₁, x), g(z₂, z₁)) (Bai, Kolter and
    Koltun 2019, theorem 2: deep stacks of equilibria have no more power than one). Its Jacobian is
    block triangular, so that it has one solution where f and g have (`wellposed.compose`), its
    spectral radius is the larger of the two, and its implicit gradient is that of one solve after
    the other.

    One solve for both is rarely cheaper than two: g is evaluated before z₁ is right, and one stop
    test holds for both (give `scale` where they are of different size).

    Args:
        first: f(z1, *args) -> z1.
        second: g(z2, z1) -> z2.

    Returns:
        F((z1, z2), *args), for `fixed_point`.

    Examples:
        >>> import jax.numpy as jnp, deqjax
        >>> from deqjax.theory.universality import stacked
        >>> F = stacked(lambda z, x: 0.5 * z + x, lambda z, y: 0.5 * z + y)
        >>> z1, z2 = deqjax.fixed_point(F, (jnp.zeros(1), jnp.zeros(1)), jnp.ones(1)).z
        >>> round(float(z1[0]), 3), round(float(z2[0]), 3)
        (2.0, 4.0)
    """
    if not callable(first) or not callable(second):
        raise TypeError("stacked takes two functions, f(z1, *args) -> z1 and g(z2, z1) -> z2")

    def both(z: tuple[PyTree, PyTree], *args: PyTree) -> tuple[PyTree, PyTree]:
        z1, z2 = z
        return first(z1, *args), second(z2, z1)

    return both


def _functions(given: Any, depth: int) -> tuple[Callable, ...]:
    if isinstance(given, str | Activation) or callable(given):
        given = [given] * depth
    if len(given) != depth:
        raise ValueError(f"there are {depth} layers and {len(given)} activations")
    return tuple(_function(a) for a in given)


def _function(given: Any) -> Callable:
    if isinstance(given, Activation):
        return given.function
    if isinstance(given, str):
        try:
            return as_activation(given).function
        except Refused as refused:
            known = ", ".join(ACTIVATIONS)
            raise ValueError(f"an activation here is a function or one of {known}") from refused
    if not callable(given):
        raise TypeError(f"an activation is a name or a function, not {type(given).__name__}")
    return given


def _check_shapes(weights: list[jax.Array], biases: list[jax.Array]) -> None:
    if not weights or len(weights) != len(biases):
        raise ValueError(
            f"a network needs a weight and a bias a layer; got {len(weights)} weights and "
            f"{len(biases)} biases"
        )
    for i, (w, b) in enumerate(zip(weights, biases, strict=True)):
        before = w.shape[-1] if i == 0 else weights[i - 1].shape[0]
        if w.ndim != 2 or w.shape[1] != before or b.shape != w.shape[:1]:
            raise ValueError(
                f"layer {i + 1} needs a weight of shape (width, {before}) and a bias (width,); got "
                f"{w.shape} and {b.shape}"
            )
