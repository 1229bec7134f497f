"""Losses that keep a DEQ solvable while it trains: Jacobian penalty and fixed-point correction."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from ._errors import check_fraction, check_integer
from ._fixed_point import fixed_point
from ._rows import draw_rows
from ._state import dot, from_front, to_front
from .adjoints import Adjoint
from .solvers import Solver

PyTree = Any


def jacobian_penalty(
    f: Callable[..., PyTree],
    z: PyTree,
    *args: PyTree,
    key: jax.Array,
    probes: int = 1,
    batch_axis: int | None = None,
    per_sample: bool = False,
) -> jax.Array:
    """Estimate ‖J‖²_F / n at z, with J = ∂f/∂z and n the size of the state.

    Hutchinson's estimator, E ‖vᵀJ‖² = ‖J‖²_F for E vvᵀ = I, with independent signs in v: among
    such v they have the smallest variance, 2 Σᵢ≠ⱼ (JJᵀ)ᵢⱼ² over `probes`. Add a small multiple of
    it to the loss (Bai, Koltun and Kolter 2021, arXiv 2106.14342, who draw v from a Gaussian): it
    bounds the spectral radius from above, ρ(J) ≤ ‖J‖_F, so that the solves of a trained network
    stay short. It pulls on every singular value where the largest would do, so weigh it lightly.

    Call it with the `sol.z` of the solve that you have: nothing is solved again. Gradients flow to
    `args`, to what f closes over, and through z, where they go on through the adjoint of its solve.
    One probe costs one evaluation of f and one VJP, and its gradient about twice that again.

    Args:
        f: f(z, *args) -> the pytree, shapes and dtypes of z, differentiable twice in reverse mode.
        z: pytree of floating-point arrays, `sol.z` as a rule.
        *args: pytrees of arrays.
        key: PRNG key; take a new one at every training step.
        probes: how many v to average over, one after the other: memory does not grow.
        batch_axis: as in `fixed_point`: the mean over the samples is returned.
        per_sample: return the estimate of each sample, (batch,), and not their mean.

    Returns:
        A scalar in float32 at least, whatever the dtype of z; (batch,) with `per_sample`.

    Raises:
        ValueError: probes < 1, or `per_sample` without `batch_axis`.

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> f = lambda z, w: w * z  # J = diag(w): here one probe is exact
        >>> w = jnp.array([3.0, 4.0])
        >>> float(jacobian_penalty(f, jnp.zeros(2), w, key=jax.random.key(0)))
        12.5
    """
    check_integer("probes", probes, least=1)
    if per_sample and batch_axis is None:
        raise ValueError("per_sample=True needs batch_axis=, the axis that holds the samples")

    z = to_front(jax.tree.map(jnp.asarray, z), batch_axis)

    def cell(z):
        return to_front(f(from_front(z, batch_axis), *args), batch_axis)

    def estimate(key):
        """‖vᵀJ‖² / n for one v, (batch,)."""
        _, pull = jax.vjp(cell, z)
        (pulled,) = pull(_signs(key, z))
        return dot(pulled, pulled) / _size(z)

    if probes == 1:
        mean = estimate(key)
    else:
        # Without the checkpoint the gradient would keep every probe's intermediates.
        one = jax.checkpoint(estimate)
        keys = jax.random.split(key, probes)
        shape = jax.eval_shape(estimate, keys[0])
        zero = jnp.zeros(shape.shape, shape.dtype)
        total, _ = lax.scan(lambda total, key: (total + one(key), None), zero, keys)
        mean = total / probes
    return mean if per_sample else mean.mean()


def correction_states(
    f: Callable[..., PyTree],
    z0: PyTree,
    *args: PyTree,
    at: Sequence[int] = (4, 8),
    solver: str | Solver = "anderson",
    adjoint: str | Adjoint = "jfb",
    rtol: float | None = None,
    atol: float | None = None,
    batch_axis: int | None = None,
) -> tuple[PyTree, ...]:
    """The iterates of a solve after `at` steps, each with an approximate, cheap gradient.

    For `fixed_point_correction`. Each is the best iterate of the solve that `fixed_point` would
    stop after that many steps (earlier where it converges earlier), and its gradient is that of
    one evaluation of f there, unless another adjoint is named. No gradient reaches z0.

    Every iterate is a solve of its own from z0, since a solver keeps no record of its path. So
    this costs sum(at) + len(at) evaluations of f on top of the main solve, about one more solve
    for the defaults, and one VJP for each iterate in the backward pass.

    Args:
        f: as in `fixed_point`.
        z0: the start of the main solve.
        *args: as in `fixed_point`.
        at: numbers of steps, increasing.
        solver: the solver of the main solve; its options too should be the same.
        adjoint: "jfb", or "phantom" for a better and dearer gradient.
        rtol: as in `fixed_point`.
        atol: as in `fixed_point`.
        batch_axis: as in `fixed_point`.

    Returns:
        One state, like z0, for each entry of `at`.

    Raises:
        ValueError: `at` is empty or does not increase.

    Examples:
        >>> import jax.numpy as jnp
        >>> f = lambda z, x: 0.5 * z + x
        >>> states = correction_states(f, jnp.zeros(2), jnp.ones(2), at=(1, 2), solver="picard")
        >>> [float(z[0]) for z in states]  # on the way to 2
        [1.0, 1.5]
    """
    at = tuple(at)
    for steps in at:
        check_integer("every entry of at", steps, least=1)
    if not at or any(b <= a for a, b in itertools.pairwise(at)):
        raise ValueError(f"at must hold increasing numbers of steps, such as (4, 8); got {at}")
    return tuple(
        fixed_point(
            *(f, z0, *args),
            solver=solver,
            adjoint=adjoint,
            rtol=rtol,
            atol=atol,
            max_steps=steps,
            batch_axis=batch_axis,
            on_failure="ignore",  # to stop on the way is the purpose
        ).z
        for steps in at
    )


def fixed_point_correction(
    loss: Callable[[PyTree], jax.Array], states: Sequence[PyTree], *, decay: float = 0.8
) -> jax.Array:
    """Σᵢ γⁿ⁻ⁱ loss(zᵢ) over n states in the order of the solve: the last counts in full.

    A DEQ that is asked to be right early, and not at the equilibrium alone, converges faster and
    its training stays stable (Bai et al. 2022, "Deep equilibrium optical flow estimation", arXiv
    2204.08442). Put the main solution last, `(*correction_states(...), sol.z)`, and this is the
    whole training loss.

    Args:
        loss: loss(z) -> scalar.
        states: z₁ … zₙ, as from `correction_states`.
        decay: γ in (0, 1].

    Raises:
        ValueError: no states, or a decay outside (0, 1].

    Examples:
        >>> fixed_point_correction(lambda z: z, (1.0, 2.0), decay=0.5)
        2.5
    """
    check_fraction("decay", decay)
    states = tuple(states)
    if not states:
        raise ValueError("states is empty: give the iterates, as from correction_states(...)")
    total = loss(states[-1])
    for i, z in enumerate(states[-2::-1], start=1):
        total = total + decay**i * loss(z)
    return total


def _signs(key: jax.Array, z: PyTree) -> PyTree:
    """Independent ±1 like z, samples first; a complex entry counts as two numbers."""
    leaves, treedef = jax.tree.flatten(z)
    keys = jax.random.split(key, 2 * len(leaves))

    def leaf(x, key, imaginary):
        real = jnp.finfo(x.dtype).dtype
        signs = lambda key: jax.random.rademacher(key, x.shape[1:], real)
        v = draw_rows(signs, key, x.shape[0])
        if jnp.iscomplexobj(x):
            v = lax.complex(v, draw_rows(signs, imaginary, x.shape[0]))
        return v

    drawn = [leaf(x, keys[2 * i], keys[2 * i + 1]) for i, x in enumerate(leaves)]
    return jax.tree.unflatten(treedef, drawn)


def _size(z: PyTree) -> int:
    """Real numbers in one sample's state."""
    return sum((2 if jnp.iscomplexobj(x) else 1) * x[0].size for x in jax.tree.leaves(z))
