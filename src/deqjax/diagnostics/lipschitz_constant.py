"""The local Lipschitz constant: the most that f stretches a small change of z."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from .._errors import check_integer
from ._inputs import of_modules
from ._jacobian import Jacobian, norm, ratio

PyTree = Any


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Lipschitz:
    """What `lipschitz` found. Scalars, or (batch,) with `batch_axis`.

    Attributes:
        constant: σ = ‖J v‖ for the unit vector v found, a lower bound of ‖J‖₂ at z that meets it
            when converged.
        residual: ‖JᵀJ v − σ² v‖ / σ². Some singular value s of J has |s² − σ²| ≤ residual · σ².
        steps: iterations done.
    """

    constant: Any
    residual: Any
    steps: int = field(metadata=dict(static=True))


@of_modules(solved=True)
def lipschitz(
    f: Callable[..., PyTree],
    z: PyTree,
    *args: PyTree,
    batch_axis: int | None = None,
    steps: int = 40,
    key: jax.Array | None = None,
) -> Lipschitz:
    """‖J‖₂ at z for every sample: the Lipschitz constant of f in a small neighbourhood of z.

    Local, at this z and these arguments: a value below one says that f contracts here, not
    everywhere, and proves no uniqueness. A cell with a LayerNorm has no global certificate at all,
    since the norm's own Jacobian grows without bound as its input's variance goes to zero. And
    above one is no alarm: ρ(J) ≤ ‖J‖₂, and `spectral_radius` decides whether iteration converges.

    Power iteration on JᵀJ, v ← JᵀJ v / ‖JᵀJ v‖. Costs `steps` + 1 JVPs and as many VJPs. Works
    under `jit` and `vmap`.

    Args:
        f: f(z, *args) -> the pytree, shapes and dtypes of z, with derivatives of both modes; or a
            module such as `deqjax.nn.DEQ`, followed by its input alone: z is then its solution.
        z: pytree of floating-point arrays, `sol.z` as a rule.
        *args: pytrees of arrays.
        batch_axis: as in `fixed_point`: each sample has a Jacobian of its own.
        steps: iterations.
        key: PRNG key of the first vector; None is always the same key.

    Raises:
        ValueError: steps < 1, or whatever `fixed_point` says about f and z.

    Examples:
        >>> import jax.numpy as jnp
        >>> shear = jnp.array([[0.0, 3.0], [0.0, 0.0]])  # stretches, yet all eigenvalues are 0
        >>> found = lipschitz(lambda z: shear @ z, jnp.zeros(2))
        >>> round(float(found.constant), 4), bool(found.residual < 1e-5)
        (3.0, True)
    """
    check_integer("steps", steps, least=1)

    @jax.jit
    def run(z, args):
        jacobian = Jacobian(f, z, args, batch_axis)

        def unit(v, otherwise):
            size = norm(v)[:, None]
            return jnp.where(size > 0, v / jnp.where(size > 0, size, 1), otherwise)

        def step(_, v):
            return unit(jacobian.pull(jacobian.push(v)), v)

        v = jacobian.random(key)
        v = lax.fori_loop(0, steps, step, unit(v, v))
        jv = jacobian.push(v)
        sigma = norm(jv)
        error = norm(jacobian.pull(jv) - (sigma**2)[:, None] * v)
        residual = ratio(error, sigma**2)
        return Lipschitz(jacobian.squeeze(sigma), jacobian.squeeze(residual), steps)

    return run(z, args)
