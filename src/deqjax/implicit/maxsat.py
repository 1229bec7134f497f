"""MAXSAT as a layer: the semidefinite relaxation by the mixing method, and its exact gradient."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._closure import vary_like, vary_with
from .._errors import check_integer, check_tolerance, strict
from .._failure import Watch
from .._program import concrete, still
from .._solution import Solution, Stats, Status
from .._switches import own_arithmetic, with_own_arithmetic
from ..solvers import Picard
from . import _mixing as mixing
from . import _mixing_adjoint as adjoint


@dataclass(frozen=True)
class Options:
    """What is compiled in."""

    k: int
    max_sweeps: int
    rtol: float
    damping: float
    adjoint_rtol: float
    adjoint_max_steps: int


@strict
def maxsat(
    S: jax.Array,
    z: jax.Array,
    given: jax.Array,
    *,
    key: jax.Array,
    aux: int = 0,
    k: int = 32,
    max_sweeps: int = 40,
    rtol: float = 1e-4,
    damping: float = 1e-8,
    adjoint_rtol: float | None = None,
    adjoint_max_steps: int = 100,
    on_failure: str | None = None,
    adjoint_probe: Stats | None = None,
) -> Solution:
    """Complete boards of truth values by the MAXSAT relaxation with clauses S, differentiably.

    The variables are unit vectors in ℝᵏ: v₀ for "true", one for each of the n inputs and each of
    the `aux` auxiliary variables. Given inputs are vᵢ = −cos(πzᵢ) v₀ + sin(πzᵢ) wᵢ with a wᵢ ⊥ v₀;
    the others minimise

        ⟨SSᵀ, VVᵀ⟩ = Σ_clauses ‖Σᵢ sᵢ vᵢ‖²,   ‖vᵢ‖ = 1,

    by coordinate descent (the mixing method), and come back as zᵢ = arccos(−vᵢ·v₀)/π. For a key the
    result is a function of S and z alone: the sweeps take the variables in their order.
    The objective is not convex in V: the result is a stationary point, and by theory a minimum for
    almost every S where k > √(2(n + aux + 1)).

    The gradient, to S and to the given z (values between 0 and 1 included), is that of implicit
    differentiation, H U = −P dℓ/dV by preconditioned conjugate gradients, to `adjoint_rtol`. With a
    damping above 1e-6 it is an approximation, and the adjoint's report says `Status.LIMITED`. It is
    right at a minimum: as good as the residuals of the two solves. Reverse mode, once: there is no
    second derivative.

    A sample whose given z, or all whose S, are not finite end as `Status.NONFINITE`, with one half
    in place of what is not known, and a gradient of zero; so does the gradient alone where the
    loss's is not finite. None of this touches another sample. One that ends at
    `Status.MAX_STEPS` has its last V, the best, and the gradient of the equations there.

    Not for proving that clauses can or cannot be met: it is a relaxation. For quadratic programs
    see `qp`.

    Args:
        S: (n + aux + 1, m), row 0 of the truth vector, then the inputs, then the auxiliary
            variables; columns are clauses. float32 or float64; smaller ones are computed in
            float32.
        z: (batch, n) probabilities in [0, 1]; what stands where nothing is given is ignored.
        given: bool (batch, n), or (n,) for all samples alike: which inputs are given.
        key: of the random directions of the start and of the wᵢ: one for all samples, or (batch,)
            keys. With one, a sample's result does not depend on its place; with one each, what a
            gradient owes to chance averages out over a batch.
        aux: number of auxiliary variables.
        k: dimension of the vectors, at least 2.
        max_sweeps: at most so many passes over all variables.
        rtol: stop of a sample: √(Σ ‖gᵢ‖‖vᵢ⁺ − vᵢ‖² / Σ ‖gᵢ‖) over a sweep, with the forces
            gᵢ = Σⱼ sᵢ·sⱼ vⱼ. Its square is the fall of the objective relative to its size.
        damping: added to H's diagonal, in units of the mean ‖gᵢ‖ of the sample.
        adjoint_rtol: ‖HU + P dℓ/dV‖ relative to ‖P dℓ/dV‖; None is `rtol`.
        adjoint_max_steps: of conjugate gradients.
        on_failure: as in `deqjax.fixed_point`.
        adjoint_probe: as in `deqjax.fixed_point`, from `deqjax.adjoint_probe(batch)`.

    Returns:
        `Solution`: z (batch, n), given ones unchanged, of z's dtype; stats per sample, with steps
        the sweeps, residual the root of the objective's last fall (in units of S) and rel_residual
        what the test compares with rtol; state the vectors V, (batch, n + aux + 1, k).

    Raises:
        TypeError: an unknown keyword, z or S that are not floating-point, given that is not bool.
        ValueError: shapes that do not fit, or an option out of range.

    References:
        Wang, Donti, Wilder and Kolter, "SATNet", ICML 2019 (arXiv 1905.12149); Wang, Chang and
        Kolter, "The Mixing method", 2017 (arXiv 1706.00476).

    Examples:
        The clause (a or b) and (not a): b follows.

        >>> import jax, jax.numpy as jnp
        >>> from deqjax.implicit import maxsat
        >>> S = jnp.array([[-1.0, -1.0], [1.0, -1.0], [1.0, 0.0]])  # truth, a, b
        >>> a_is_false = jnp.array([[0.0, 0.5]])
        >>> sol = maxsat(S, a_is_false, jnp.array([[True, False]]), key=jax.random.key(0))
        >>> sol.z.round(2).tolist(), bool(sol.stats.converged.all())
        ([[0.0, 1.0]], True)
    """
    S, z, given = _checked(S, z, given, aux)
    options = check_options(k, max_sweeps, rtol, damping, adjoint_rtol, adjoint_max_steps)
    batch = z.shape[0]
    if adjoint_probe is not None and (
        not isinstance(adjoint_probe, Stats) or jnp.shape(adjoint_probe.steps) != (batch,)
    ):
        raise ValueError(
            f"adjoint_probe must come from deqjax.adjoint_probe(batch={batch}) for this call"
        )
    watch, limit = Watch.of_call(on_failure), Picard(max_steps=max_sweeps)
    with own_arithmetic():
        keys = _checked_keys(key, batch)
        S, z, given, keys = vary_with((S, z, given, keys), (S, z, given, keys))
        out, v, w, stats = _forward(still(S), still(z), given, keys, options)
        watch.hear(stats, limit)
        if not concrete((S, z, adjoint_probe)):
            sound = stats.status != Status.NONFINITE
            attach = partial(_attach, options, watch, limit)
            out = attach(S, z, given, sound, out, v, w, adjoint_probe)
        out = watch.mark(out, stats, limit)
        return Solution(out, stats, jnp.swapaxes(v, 0, 1))


def _attach(options, watch, limit, S, z, given, sound, out, v, w, probe) -> jax.Array:
    """out, with the derivative of the implicit function theorem."""

    @jax.custom_vjp
    def attached(S, z, given, sound, out, v, w, probe):
        return out

    def forward(*args):
        return attached(*args), args

    @with_own_arithmetic
    def backward(saved, bar):
        S, z, given, sound, _, v, w, probe = saved
        S_bar, z_bar, stats = _once(options, S, z, given, sound, v, w, bar)
        watch.of("adjoint solve").hear(stats, limit)
        if watch.policy == "nan":
            failed = (stats.status != Status.CONVERGED) & (stats.status != Status.LIMITED)
            z_bar = jnp.where(failed[:, None], jnp.nan, z_bar)
            S_bar = jnp.where(failed.any(), jnp.nan, S_bar)
        return S_bar, z_bar, None, None, None, None, None, _report(stats, probe)

    attached.defvjp(forward, backward)
    return attached(S, z, given, sound, *still((out, v, w)), probe)


@partial(jax.jit, static_argnames="options")
def _forward(S, z, given, keys, options: Options) -> tuple[jax.Array, jax.Array, jax.Array, Stats]:
    """The completed z, V as (n, batch, k), the wᵢ, and how the solve went."""
    real = _real(S, z)
    S_real, z_real = S.astype(real), z.astype(real)
    known = given & jnp.isfinite(z_real)
    sound = (jnp.isfinite(z_real) | ~given).all(axis=1) & jnp.isfinite(S_real).all()
    inside = jnp.where(known, z_real, 0.5)
    begin = mixing.start(jax.random.wrap_key_data(keys), inside, known, len(S), options.k)
    free = mixing.is_free(given, len(S))
    S_real = jnp.where(jnp.isfinite(S_real), S_real, 0)
    scale = mixing.unit(S_real)
    v, stats = mixing.minimise(
        S_real / scale, begin.v, free, sound, max_sweeps=options.max_sweeps, rtol=options.rtol
    )
    stats = replace(stats, residual=stats.residual * scale)
    inputs = v[1 : z.shape[1] + 1]
    # arccos loses half of the digits near 0 and 1, where most of the answers are.
    angle = jnp.arctan2(jnp.linalg.norm(inputs[..., 1:], axis=-1), -inputs[..., 0]).T
    found = jnp.where(sound[:, None], angle / jnp.pi, 0.5).astype(z.dtype)
    return jnp.where(known, z, found), v, begin.w, stats


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _once(options, *arrays):
    """`_backward`, which has no derivative."""
    return _backward(*arrays, options)


@_once.defjvp
def _refuse(options, primals, tangents):
    raise TypeError(
        "maxsat has first derivatives only: differentiate it once, in reverse mode, and take "
        "differences of that gradient for a second one"
    )


@partial(jax.jit, static_argnames="options")
def _backward(
    S, z, given, sound, v, w, bar, options: Options
) -> tuple[jax.Array, jax.Array, Stats]:
    """Cotangents of S and z for that of the result, and how the adjoint's solve went."""
    real, (rows, n) = v.dtype, (len(S), z.shape[1])
    finite = jnp.isfinite(bar).all(axis=1)
    sound &= finite
    keep = lambda x: jnp.where(sound[:, None], x, 0).astype(real)
    bar, z_real, given_t = keep(bar), keep(z), given.T
    S_real = jnp.where(jnp.isfinite(S), S, 0).astype(real)
    scale = mixing.unit(S_real)
    S_unit = S_real / scale

    Q = mixing.gram(S_unit)
    h = adjoint.system(Q, v, mixing.is_free(given, rows), options.damping)
    # dz = v₀·dv/(π sin πz): the length of P v₀ is sin πz, so that b is z̄/π times a unit vector.
    tangent = h.project(jnp.broadcast_to(jnp.eye(1, options.k, dtype=real)[0], v.shape))
    length = jnp.linalg.norm(tangent, axis=-1, keepdims=True)
    # At 0 and 1 the angle has no derivative.
    smooth = length > 10 * jnp.finfo(real).eps
    tangent = jnp.where(smooth, tangent / jnp.where(smooth, length, 1), 0)
    asked = jnp.zeros(v.shape[:2], real).at[1 : n + 1].set(jnp.where(given_t, 0, bar.T) / jnp.pi)
    u, qu, stats = adjoint.solve(
        h,
        asked[..., None] * -tangent,
        rtol=options.adjoint_rtol,
        max_steps=options.adjoint_max_steps,
    )

    # dℓ = Σᵢ uᵢ·dgᵢ,  gᵢ = Σⱼ (sᵢ·sⱼ) vⱼ.
    flat = lambda x: x.reshape(rows, -1)
    uv = jnp.matmul(flat(u), flat(v).T, precision=mixing.EXACT)
    S_bar = jnp.matmul(uv + uv.T, S_unit, precision=mixing.EXACT) / scale
    zt = z_real.T
    force = qu[1 : n + 1]
    along, across = force[..., 0], jnp.sum(force * w, axis=-1)
    through = jnp.pi * (mixing.sin_pi(zt) * along + mixing.cos_pi(zt) * across)
    z_bar = jnp.where(given, bar + through.T, 0)

    unanswered = (asked != 0) & ~smooth[..., 0]
    limited = (options.damping > adjoint.APPROXIMATE) | unanswered.any(axis=0)
    status = jnp.where(stats.converged & limited, int(Status.LIMITED), stats.status)
    status = jnp.where(sound, status, int(Status.NONFINITE)).astype(jnp.int32)
    stats = replace(stats, status=status, converged=status == Status.CONVERGED)
    return S_bar.astype(S.dtype), z_bar.astype(z.dtype), stats


def _report(stats: Stats, probe: Stats | None) -> Stats | None:
    if probe is None:
        return None
    stats = replace(stats, solves=jnp.ones_like(stats.residual))
    field = lambda value, like: value.astype(like.dtype)
    return vary_like(jax.tree.map(field, stats, probe), probe)


def _real(S, z) -> Any:
    """What is computed in: float32 at least."""
    return jnp.promote_types(jnp.promote_types(S.dtype, z.dtype), jnp.float32)


def _checked_keys(key, batch: int) -> jax.Array:
    """The numbers of one key or of a batch of them, typed or not, as (1, ...) or (batch, ...)."""
    key = key if isinstance(key, jax.Array) else jnp.asarray(key)
    if jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        key = jax.random.key_data(key)
    if key.dtype != jnp.uint32 or key.ndim not in (1, 2) or key.shape[:-1] not in ((), (batch,)):
        raise TypeError(
            f"key must come from jax.random.key(...), or be {batch} keys from jax.random.split; "
            f"got {key.dtype} {key.shape}"
        )
    return key if key.ndim == 2 else key[None]


def _checked(S, z, given, aux) -> tuple[jax.Array, jax.Array, jax.Array]:
    S, z, given = jnp.asarray(S), jnp.asarray(z), jnp.asarray(given)
    for name, x in (("S", S), ("z", z)):
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise TypeError(f"{name} must be floating-point, such as float32; got {x.dtype}")
    if given.dtype != bool:
        raise TypeError(f"given must be bool, True where z is given; got {given.dtype}")
    check_integer("aux", aux, least=0)
    if z.ndim != 2:
        raise ValueError(f"z must have the shape (batch, n); got {z.shape}")
    if given.shape not in (z.shape, z.shape[1:]):
        raise ValueError(
            f"given must have the shape of z, {z.shape}, or its row; got {given.shape}"
        )
    rows = z.shape[1] + aux + 1
    if S.ndim != 2 or len(S) != rows:
        raise ValueError(
            f"S must have the shape (n + aux + 1, m) = ({rows}, m), the truth vector first; got "
            f"{S.shape}"
        )
    if S.shape[1] == 0 or z.shape[1] == 0:
        raise ValueError(f"S needs at least one clause and z one input; got {S.shape}, {z.shape}")
    given = jnp.broadcast_to(given, z.shape)
    if concrete((z, given)) and _outside(*map(np.asarray, jax.device_get((z, given)))):
        raise ValueError("given z must be probabilities in [0, 1], with 1 for true")
    return S, z, given


def _outside(z: np.ndarray, given: np.ndarray) -> bool:
    # In numpy: under `jit`, JAX would trace even what is done to constants.
    return bool((given & ((z < 0) | (z > 1))).any())


def check_options(k, max_sweeps, rtol, damping, adjoint_rtol, adjoint_max_steps) -> Options:
    check_integer("k", k, least=2)
    check_integer("max_sweeps", max_sweeps, least=1)
    check_integer("adjoint_max_steps", adjoint_max_steps, least=1)
    check_tolerance("rtol", rtol)
    check_tolerance("damping", damping)
    check_tolerance("adjoint_rtol", adjoint_rtol)
    of_adjoint = float(rtol if adjoint_rtol is None else adjoint_rtol)
    return Options(
        int(k), int(max_sweeps), float(rtol), float(damping), of_adjoint, int(adjoint_max_steps)
    )
