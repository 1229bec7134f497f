"""All adjoints of a converged solve: finite wherever the implicit one is, and equal to it within
what each promises.

The equations are the awkward ones: one or two unknowns, solves that are over after a step or two
(so that unrolled steps go on where nothing moves any more), starts at the solution, z* = 0, an f
that does not depend on z, the same sample several times, states of 1e-6.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import deqjax
from tests import cells

# What each row has: the factor c of z' = c tanh(W z) + x with ‖W‖₂ = 1, the size of x, and z0,
# None being x.
ROWS = {
    "plain": (0.5, 1.0, 0.0),
    "the same": (0.5, 1.0, 0.0),
    "early": (0.02, 1.0, 0.0),
    "constant f": (0.0, 1.0, 0.0),
    "constant f, from its value": (0.0, 1.0, None),
    "at the solution, zero": (0.5, 0.0, 0.0),
    "zero, from elsewhere": (0.2, 0.0, 1.0),
    "small": (0.3, 1e-6, 0.0),
    "the same again": (0.5, 1.0, 0.0),
}
ANDERSON, BROYDEN = deqjax.Anderson(memory=3), deqjax.Broyden(memory=4)
CASES = {
    "implicit, picard": dict(solver="picard"),
    "implicit, anderson": dict(solver=ANDERSON),
    "implicit, broyden": dict(solver=BROYDEN),
    "implicit, newton": dict(solver=deqjax.NewtonKrylov(memory=4)),
    "phantom": dict(solver=ANDERSON, adjoint=deqjax.Phantom(steps=60, damping=0.9)),
    "tail": dict(solver=ANDERSON, adjoint=deqjax.Tail(steps=60)),
    "shine": dict(solver=BROYDEN, adjoint=deqjax.Shine(refine=10)),
    "reversible": dict(solver="picard", adjoint="reversible"),
    "unrolled, picard": dict(solver="picard", adjoint="unrolled"),
    "unrolled, anderson": dict(solver=ANDERSON, adjoint="unrolled"),
    "unrolled, broyden": dict(solver=BROYDEN, adjoint="unrolled"),
    **{
        f"unrolled, {s.name}, {mode}": dict(solver=s, adjoint=deqjax.Unrolled(checkpoint=mode))
        for s in (ANDERSON, BROYDEN)
        for mode in ("all", "sqrt")
    },
}
QUICK = {"unrolled, picard", "unrolled, anderson", "unrolled, broyden", "phantom"}
# A batch in float32, one equation at a time in float64: by default, of one unknown.
SETTINGS = [
    *((n, *two) for n in (1, 2) for two in [("float32", True), ("float64", False)]),
    *((n, *two) for n in (1, 2) for two in [("float32", False), ("float64", True)]),
]


def every(cases):
    """All cases in all settings."""
    return pytest.mark.parametrize(
        ("case", "n", "dtype", "batched"),
        [
            pytest.param(
                *(case, *setting),
                marks=() if case in QUICK and setting in SETTINGS[:2] else pytest.mark.slow,
            )
            for case in cases
            for setting in SETTINGS
        ],
    )


# How close a gradient is to that of z*, relative to it, where a solve has gone to `rtol`.
PRECISION = {"float64": dict(rtol=1e-9, close=1e-5), "float32": dict(rtol=1e-5, close=3e-3)}
# Two states that come back: exact gradients of an iterate that converges more slowly.
REVERSIBLE = {"float64": dict(rtol=1e-4, close=1e-2), "float32": dict(rtol=1e-4, close=1e-2)}
MOST = 30


def cell(z, c, w, x):
    return c * jnp.tanh(w @ z) + x


def equations(n):
    """z0 and (c, W, x) of all rows, float64; rows of one name are the same."""
    rng = np.random.default_rng(n)
    w, x = rng.normal(size=(n, n)), rng.normal(size=n)
    w /= np.linalg.norm(w, 2)
    c = np.array([row[0] for row in ROWS.values()])
    x = np.array([row[1] for row in ROWS.values()])[:, None] * x
    starts = np.array([np.nan if row[2] is None else row[2] for row in ROWS.values()])[:, None]
    return np.where(np.isnan(starts), x, starts), (c, np.stack([w] * len(ROWS)), x)


@functools.cache
def exact(n):
    """Of each row: the gradients of the loss to (c, W, x) at z*, by dense linear algebra, and ‖J‖.

    The gradient to x is u itself.
    """
    rows = []
    for c, w, x in zip(*equations(n)[1], strict=True):
        z = np.zeros(n)
        for _ in range(200):
            z = c * np.tanh(w @ z) + x
        jacobian = c * (1 - np.tanh(w @ z) ** 2)[:, None] * w
        u = np.linalg.solve((np.eye(n) - jacobian).T, np.cos(z) * cells.weights(n))
        s = u * c * (1 - np.tanh(w @ z) ** 2)
        rows.append(((u @ np.tanh(w @ z), np.outer(s, z), u), np.linalg.norm(jacobian, 2)))
    return rows


def gradients(case, n, dtype, batched, **options):
    """(gradient to (c, W, x), statistics, report of the adjoint or None) of each row."""
    z0, args = jax.tree.map(lambda a: jnp.asarray(a, dtype), equations(n))
    options = dict(max_steps=MOST) | CASES[case] | options
    loops = "unrolled" in case
    f = jax.vmap(cell) if batched else cell
    options["batch_axis"] = 0 if batched else None
    probe = deqjax.adjoint_probe(batch=len(z0) if batched else None, dtype=dtype)

    @functools.partial(jax.grad, argnums=(0, 1), has_aux=True)
    def gradient(args, probe, z0):
        sol = deqjax.fixed_point(f, z0, *args, adjoint_probe=None if loops else probe, **options)
        return cells.loss_of(sol.z).astype(dtype), sol.stats

    run = jax.jit(gradient)
    rows = range(len(z0))
    if batched:
        (bars, report), stats = run(args, probe, z0)
        everything = jax.tree.map(np.asarray, (bars, stats, None if loops else report))
        return [jax.tree.map(lambda a, i=i: a[i], everything) for i in rows]
    found = []
    for i in rows:
        (bars, report), stats = run(jax.tree.map(lambda a, i=i: a[i], args), probe, z0[i])
        found.append(jax.tree.map(np.asarray, (bars, stats, None if loops else report)))
    return found


def flat(tree):
    return np.concatenate([np.ravel(x).astype(float) for x in jax.tree.leaves(tree)])


def check(case, n, rows, close, names=tuple(ROWS)):
    loops = case.startswith(("unrolled", "reversible"))
    for name, (bars, stats, report), (want, contraction) in zip(ROWS, rows, exact(n), strict=True):
        assert np.isfinite(flat(bars)).all(), name
        if name not in names:
            continue
        if loops and int(stats.steps) == 0:
            # Exact for the iterate that was computed: z0 does not depend on the parameters.
            assert not flat(bars).any(), name
            continue
        if loops and name.startswith("constant"):
            # What was computed is f(z0), in which c stands before tanh(W z0), and not tanh(W z*).
            bars, want = bars[2], want[2]
        error = np.linalg.norm(flat(bars) - flat(want)) / np.linalg.norm(flat(want))
        allowed = close
        if case.startswith(("phantom", "tail", "shine")):
            # ‖u − u*‖ ≤ ‖Jᵀu + v − u‖ / (1 − ‖J‖), and the residual is reported.
            u, left = bars[2], float(report.residual) / (1 - contraction)
            assert np.linalg.norm(u - want[2]) <= left + close * np.linalg.norm(u), name
            allowed += 2 * left / np.linalg.norm(flat(want))
        assert error <= allowed, (name, error)


@every(CASES)
def test_converged_gradients_are_those_of_the_solution(case, n, dtype, batched):
    rtol, close = (REVERSIBLE if case == "reversible" else PRECISION)[dtype].values()
    rows = gradients(case, n, dtype, batched, rtol=rtol)
    ended = {name for name, (_, stats, _) in zip(ROWS, rows, strict=True) if stats.converged}
    # Towards zero a residual is small only beside where it came from: more steps than come back.
    assert ended >= set(ROWS) - ({"zero, from elsewhere"} if case == "reversible" else set())
    check(case, n, rows, close, ended)


@every([case for case in CASES if "unrolled" in case])
def test_steps_that_go_on_at_the_solution_spoil_no_gradient(case, n, dtype, batched):
    """With tolerances of zero a solve goes on with differences of round-off, or of zero."""
    rows = gradients(case, n, dtype, batched, rtol=0.0, atol=0.0)
    # Anderson's γ is a quotient of round-off there, of any size, and so is what it does to
    # derivatives that have not come as far: they are numbers, and `Unrolled` promises no more.
    names = () if "anderson" in case else tuple(ROWS)
    check(case, n, rows, PRECISION[dtype]["close"], names)


def test_more_pairs_than_unknowns_spoil_no_gradient():
    """One unknown and a memory of five, at the default tolerance: all pairs are parallel."""
    rng = np.random.default_rng(0)
    w, c, x = rng.normal(size=100), rng.uniform(0.05, 0.95, size=100), rng.normal(size=100)
    args = (c, np.sign(w), x)
    f = lambda z, c, w, x: c * jnp.tanh(w * z) + x

    def gradient(adjoint, rtol, steps):
        options = dict(adjoint=adjoint, rtol=rtol, max_steps=steps, batch_axis=0)
        solver = deqjax.Anderson(memory=5)
        loss = lambda args: jnp.sin(
            deqjax.fixed_point(f, jnp.zeros(100), *args, solver=solver, **options).z
        ).sum()
        return np.stack(jax.jit(jax.grad(loss))(jax.tree.map(jnp.asarray, args)))

    want, got = gradient("implicit", 1e-12, 200), gradient("unrolled", None, 30)
    assert np.all(np.linalg.norm(got - want, axis=0) <= 0.02 * np.linalg.norm(want, axis=0))
