"""A batch in which few samples are slow: `Compacted` must not run the others along."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

import deqjax

from .report import Row, Settings, at_most, info
from .timing import interleaved, spread

TITLE = "Compacted: batch of 64, an eighth of which needs five times the steps"
LIMIT = 0.5
SOLVERS = (deqjax.Picard(), deqjax.Anderson(memory=5))


def run(settings: Settings) -> list[Row]:
    if not hasattr(deqjax, "Compacted"):
        return [info("deqjax.Compacted", "not measured: this deqjax does not have it")]
    return [row for solver in SOLVERS for row in compare(solver, settings)]


def compare(solver: deqjax.Solver, settings: Settings) -> list[Row]:
    f, z0, args = uneven(*((16, 4, 8) if settings.quick else (64, 64, 256)))
    compacted = deqjax.Compacted(solver, stages=3)  # type: ignore[attr-defined]
    plain_call, compact_call = (_solve(f, z0, args, s) for s in (solver, compacted))
    plain, compact = plain_call(), compact_call()
    steps = np.sort(np.asarray(plain.stats.steps))
    fast, slow = int(np.median(steps)), int(steps[-1])
    times = interleaved({"plain": plain_call, "compacted": compact_call}, **settings.timing)
    over = spread(times.seconds["compacted"] / times.seconds["plain"])
    difference = float(jnp.max(jnp.abs(plain.z - compact.z)) / jnp.max(jnp.abs(plain.z)))
    detail = f"{fast} steps, the slow ones {slow}; {over.quartiles}"
    ended = bool((np.asarray(plain.stats.status) == np.asarray(compact.stats.status)).all())
    return [
        at_most(f"{solver.name}: time over the plain solver", over.median, LIMIT, detail),
        at_most(f"{solver.name}: largest relative difference", difference, 1e-5),
        Row(f"{solver.name}: ended alike", str(ended), "True", ended),
    ]


def uneven(batch: int, tokens: int, d: int):
    """f(z) = tanh(a W z + x), a per sample: an eighth contracts at 0.9, the rest far faster.

    W is orthogonal and x small, so that the rate of Picard is a itself: 98 steps beside about 20.
    """
    rng = np.random.default_rng(7)
    w = np.float32(np.linalg.qr(rng.normal(size=(d, d)))[0])
    a = np.full((batch, 1, 1), 0.55, np.float32)
    a[rng.permutation(batch)[: batch // 8]] = 0.9
    x = np.float32(0.01 * rng.normal(size=(batch, tokens, d)))

    def f(z, w, a, x):
        return jnp.tanh(a * (z @ w) + x)

    return f, jnp.zeros_like(x), jax.tree.map(jnp.asarray, (w, a, x))


def _solve(f, z0, args, solver):
    @jax.jit
    def solve(*args):
        return deqjax.fixed_point(
            f, z0, *args, solver=solver, rtol=1e-5, max_steps=500, batch_axis=0
        )

    return functools.partial(solve, *args)
