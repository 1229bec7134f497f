"""First derivatives against dense solves of (I − J)ᵀu = v."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import deqjax
from deqjax import Status

from .cells import (
    SMALL,
    SOLVERS,
    TIGHT,
    cotangent_of,
    join,
    linear,
    linear_cell,
    loss_of,
    on_pytrees,
    relative,
    split,
    tanh_cell,
    tanh_gradient,
    tanh_jacobian,
    tanh_parameters,
    tanh_solution,
)


def dense(theta, x):
    """The gradient of `loss_of` to (theta, x)."""
    z = tanh_solution(theta, x)
    return tanh_gradient(theta, z, cotangent_of(z))


def value(theta, x, **options):
    return loss_of(deqjax.fixed_point(tanh_cell, jnp.zeros_like(x), theta, x, **options).z)


# ------------------------------------------------------------------------------- exactness


def pairs_of_solvers():
    """All pairs for an array; in the fast run each solver once on either side for the others."""
    for i, solver in enumerate(SOLVERS):
        for j, adjoint_solver in enumerate(SOLVERS):
            for shape in ("array", "pytree", "batch"):
                slow = shape != "array" and (j - i) % 3 != (1 if shape == "pytree" else 2)
                marks = [pytest.mark.slow] if slow else []
                yield pytest.param(solver, adjoint_solver, shape, marks=marks)


@pytest.mark.parametrize(("solver", "adjoint_solver", "shape"), list(pairs_of_solvers()))
def test_gradient_is_exact(solver, adjoint_solver, shape):
    theta, x = tanh_parameters(6)
    if shape == "batch":
        x = x * np.array([0.1, 1.0, 5.0])[:, None]
    options = dict(solver=SMALL[solver], adjoint_solver=SMALL[adjoint_solver], **TIGHT)

    def loss(theta, x):
        if shape == "pytree":
            sol = deqjax.fixed_point(
                on_pytrees(tanh_cell), split(jnp.zeros(6)), theta, x, **options
            )
            return loss_of(join(sol.z))
        axis = 0 if shape == "batch" else None
        return value(theta, x, batch_axis=axis, **options)

    assert relative(jax.jit(jax.grad(loss, (0, 1)))(theta, x), dense(theta, x)) < 1e-8


def test_gradient_through_an_expansive_cell():
    """ρ(J) = 3: no unrolling could give it, the implicit function theorem does."""
    a, b, z_star = linear([3.0, -2.0, 0.5, 0.1])

    def loss(a, b):
        sol = deqjax.fixed_point(linear_cell, jnp.zeros(4), a, b, solver="anderson", **TIGHT)
        return loss_of(sol.z)

    u = np.linalg.solve(np.eye(4) - a.T, cotangent_of(z_star))
    assert relative(jax.jit(jax.grad(loss, (0, 1)))(a, b), (np.outer(u, z_star), u)) < 1e-8


def test_gradients_reach_what_f_closes_over():
    theta, x = tanh_parameters(6)
    scale = np.arange(1, 7) / 6

    @jax.jit
    def grad(theta, x, scale):
        def loss(theta, x, scale):
            hidden = {"w": theta["w"] * 1.0, "b": theta["b"]}  # a tracer of this trace
            f = lambda z: tanh_cell(z, hidden, x) * scale
            return loss_of(deqjax.fixed_point(f, jnp.zeros(6), solver=SMALL["anderson"], **TIGHT).z)

        return jax.grad(loss, (0, 1, 2))(theta, x, scale)

    @jax.jit
    def by_args(theta, x, scale):
        def loss(*args):
            f = lambda z, theta, x, scale: tanh_cell(z, theta, x) * scale
            sol = deqjax.fixed_point(f, jnp.zeros(6), *args, solver=SMALL["anderson"], **TIGHT)
            return loss_of(sol.z)

        return jax.grad(loss, (0, 1, 2))(theta, x, scale)

    got, want = grad(theta, x, scale), by_args(theta, x, scale)
    assert relative(got, want) < 1e-10
    assert relative(got[1], 0 * x) > 0.1  # and they are not zero
    ones = grad(theta, x, np.ones(6))
    assert relative(ones[:2], dense(theta, x)) < 1e-8


def test_gradients_reach_closures_and_args_at_once():
    theta, x = tanh_parameters(6)

    def loss(theta, x):
        f = lambda z, w: tanh_cell(z, {"w": w, "b": theta["b"]}, x)
        sol = deqjax.fixed_point(f, jnp.zeros(6), theta["w"], solver=SMALL["broyden"], **TIGHT)
        return loss_of(sol.z)

    assert relative(jax.jit(jax.grad(loss, (0, 1)))(theta, x), dense(theta, x)) < 1e-8


@pytest.mark.parametrize("closed_over", [False, True])
def test_integers_and_keys_pass_through(closed_over):
    """A mask from a key and a table row from an index, as arguments or closed over."""
    theta, x = tanh_parameters(6)
    table = np.stack([0 * x, x, 2 * x])

    def cell(z, theta, table, row, key, flag):
        keep = jax.random.bernoulli(key, 0.5, z.shape)
        return jnp.where(keep & flag, tanh_cell(z, theta, 0.0), 0.0) + table[row]

    @jax.jit
    def grad(theta, table, row, key, flag):
        def loss(theta, table):
            rest = (row, key, flag)
            if closed_over:
                f = lambda z: cell(z, theta, table, *rest)
                sol = deqjax.fixed_point(f, jnp.zeros(6), solver=SMALL["anderson"], **TIGHT)
            else:
                sol = deqjax.fixed_point(
                    cell, jnp.zeros(6), theta, table, *rest, solver=SMALL["anderson"], **TIGHT
                )
            return loss_of(sol.z)

        return jax.grad(loss, (0, 1))(theta, table)

    key = jax.random.key(3)
    keep = np.asarray(jax.random.bernoulli(key, 0.5, (6,)))
    assert 0 < keep.sum() < 6
    got_theta, got_table = grad(theta, table, 1, key, True)
    # Dense: z = m ∘ tanh(Wz + b) + x, J = m ∘ J_tanh.
    z = np.zeros(6)
    for _ in range(200):
        z = keep * np.tanh(theta["w"] @ z + theta["b"]) + x
    u = np.linalg.solve((np.eye(6) - keep[:, None] * tanh_jacobian(z, theta)).T, cotangent_of(z))
    s = u * keep * (1 - np.tanh(theta["w"] @ z + theta["b"]) ** 2)
    assert relative(got_theta, {"w": np.outer(s, z), "b": s}) < 1e-8
    assert relative(got_table, np.stack([0 * u, u, 0 * u])) < 1e-8


def test_no_gradient_reaches_z0():
    theta, x = tanh_parameters(4)
    f = lambda z0: loss_of(
        deqjax.fixed_point(tanh_cell, z0, theta, x, solver="picard", max_steps=2).z
    )
    np.testing.assert_array_equal(jax.jit(jax.grad(f))(np.ones(4)), 0.0)
    # Two steps do depend on z0, and unrolling says so.
    g = lambda z0: loss_of(
        deqjax.fixed_point(
            tanh_cell, z0, theta, x, solver="picard", max_steps=2, adjoint="unrolled"
        ).z
    )
    assert np.linalg.norm(jax.jit(jax.grad(g))(np.ones(4))) > 0.01


def test_statistics_and_state_carry_no_gradient():
    theta, x = tanh_parameters(4)

    def loss(x):
        sol = deqjax.fixed_point(tanh_cell, jnp.zeros(4), theta, x, solver="anderson", max_steps=3)
        inexact = [
            s
            for s in jax.tree.leaves((sol.stats, sol.state))
            if jnp.issubdtype(s.dtype, jnp.inexact)
        ]
        return sum(jnp.sum(s) for s in inexact)

    np.testing.assert_array_equal(jax.jit(jax.grad(loss))(x), 0.0)


# ------------------------------------------------------------------------------- early stops


@pytest.mark.parametrize("shape", ["array", "pytree"])
@pytest.mark.parametrize("solver", SOLVERS)
def test_after_an_early_stop_the_adjoint_is_exact_at_the_returned_z(solver, shape):
    """The peers' 45% defect: the adjoint must belong to the z that the loss saw."""
    theta, x = tanh_parameters(6, radius=0.95)
    f, z0, flat = (
        (tanh_cell, jnp.zeros(6), lambda z: z)
        if shape == "array"
        else (on_pytrees(tanh_cell), split(jnp.zeros(6)), join)
    )

    @jax.jit
    def grad(theta, x):
        def loss(theta, x):
            sol = deqjax.fixed_point(
                f,
                z0,
                theta,
                x,
                solver=SMALL[solver],
                rtol=1e-12,
                max_steps=2,
                adjoint_solver=deqjax.Anderson(memory=3, rtol=1e-12, atol=0.0, max_steps=300),
            )
            return loss_of(flat(sol.z)), flat(sol.z)

        return jax.grad(loss, (0, 1), has_aux=True)(theta, x)

    got, z = grad(theta, x)
    assert relative(z, tanh_solution(theta, x)) > 1e-3  # stopped early indeed
    z = np.asarray(z)
    # The cell's injection is not in tanh, so J and the VJP at this z are tanh_gradient's.
    assert relative(got, tanh_gradient(theta, z, cotangent_of(z))) < 1e-8


def test_two_forwards_before_one_backward():
    theta, x = tanh_parameters(6)

    def two(theta, x):
        first, back_first = jax.vjp(functools.partial(value, **options), theta, x)
        second, back_second = jax.vjp(functools.partial(value, **options), theta, 2 * x)
        return back_first(jnp.ones_like(first)), back_second(jnp.ones_like(second))

    options = dict(solver=SMALL["broyden"], **TIGHT)
    first, second = jax.jit(two)(theta, x)
    assert relative(first, dense(theta, x)) < 1e-8
    assert relative(second, dense(theta, 2 * x)) < 1e-8


def test_two_solves_in_one_loss_add_up():
    theta, x = tanh_parameters(6)
    options = dict(solver=SMALL["anderson"], **TIGHT)
    loss = lambda theta: value(theta, x, **options) + 3.0 * value(theta, -x, **options)
    want = jax.tree.map(lambda a, b: a + 3.0 * b, dense(theta, x)[0], dense(theta, -x)[0])
    assert relative(jax.jit(jax.grad(loss))(theta), want) < 1e-8


# ------------------------------------------------------------------------------- the probe


def probed(theta, x, probe, **options):
    return jax.jit(
        jax.grad(
            lambda x, probe: loss_of(
                deqjax.fixed_point(
                    tanh_cell, jnp.zeros_like(x), theta, x, adjoint_probe=probe, **options
                ).z
            ),
            (0, 1),
        )
    )(x, probe)


@pytest.mark.parametrize(
    "adjoint",
    ["implicit", deqjax.Phantom(steps=3, damping=0.6), "jfb"],
    ids=["implicit", "phantom", "jfb"],
)
def test_probe_reports_the_true_residual_of_the_adjoint(adjoint):
    """∂z'/∂x = I makes the gradient to x equal to u: recompute ‖Jᵀu + v − u‖ from it."""
    theta, x = tanh_parameters(6, radius=0.9)
    options = dict(solver=deqjax.Picard(max_steps=200, rtol=1e-12, atol=0.0), adjoint=adjoint)
    if adjoint == "implicit":
        options["adjoint_solver"] = deqjax.Picard(max_steps=3)
    u, stats = probed(theta, x, deqjax.adjoint_probe(dtype=jnp.float64), **options)
    z = tanh_solution(theta, x)
    target = tanh_jacobian(z, theta).T @ u + cotangent_of(z)
    residual = np.linalg.norm(target - u)
    assert residual > 1e-3
    np.testing.assert_allclose(stats.residual, residual, rtol=1e-8)
    v = np.linalg.norm(cotangent_of(z))
    np.testing.assert_allclose(stats.rel_residual, residual / v, rtol=1e-8)
    np.testing.assert_allclose(stats.gain, np.linalg.norm(u) / v, rtol=1e-8)
    assert float(stats.solves) == 1
    assert float(stats.status) == Status.MAX_STEPS and float(stats.converged) == 0.0
    assert float(stats.steps) == {"implicit": 3, "jfb": 0}.get(adjoint, 2)


def test_probe_of_a_batch():
    theta, x = tanh_parameters(6, radius=0.9)
    x = x * np.array([0.01, 1.0, 20.0])[:, None]
    u, stats = probed(
        theta,
        x,
        deqjax.adjoint_probe(3, dtype=jnp.float64),
        solver=SMALL["anderson"],
        batch_axis=0,
        rtol=1e-12,
        atol=0.0,
        max_steps=200,
        adjoint_solver=deqjax.Anderson(memory=3, rtol=1e-3),
    )
    z = tanh_solution(theta, x)
    assert stats.steps.shape == (3,) and np.unique(stats.steps).size > 1
    np.testing.assert_array_equal(stats.converged, 1.0)
    np.testing.assert_array_equal(stats.f_evals, stats.steps + 1)
    for i in range(3):
        target = tanh_jacobian(z[i], theta).T @ u[i] + cotangent_of(z[i])
        residual = np.linalg.norm(target - u[i])
        assert 1e-8 < residual <= 1e-3 * np.linalg.norm(target)
        np.testing.assert_allclose(stats.residual[i], residual, rtol=0.01)


def test_probe_says_when_the_adjoint_failed():
    """J = 3 I: Picard's adjoint diverges; u falls back to v, which is the Jacobian-free one."""
    x = np.ones(4)

    def loss(x, probe):
        f = lambda z, x: 3.0 * z + x
        z0 = -0.5 * jnp.ones(4)  # the solution
        sol = deqjax.fixed_point(f, z0, x, solver="picard", adjoint_probe=probe)
        return jnp.sum(sol.z)

    grad, stats = jax.jit(jax.grad(loss, (0, 1)))(x, deqjax.adjoint_probe())
    assert float(stats.status) == Status.DIVERGED and float(stats.converged) == 0
    np.testing.assert_array_equal(grad, 1.0)


def test_probe_changes_no_gradient():
    theta, x = tanh_parameters(6)
    options = dict(solver=SMALL["anderson"], rtol=1e-6)
    with_probe, _ = probed(theta, x, deqjax.adjoint_probe(), **options)
    without, none = probed(theta, x, None, **options)
    assert none is None
    np.testing.assert_array_equal(with_probe, without)


# ------------------------------------------------------------------------------- its solver


def adjoint_steps(theta, x, **options):
    return int(probed(theta, x, deqjax.adjoint_probe(), **options)[1].steps)


def test_the_adjoint_takes_over_the_forward_tolerances_and_not_its_limit():
    theta, x = tanh_parameters(6, radius=0.7)
    call = functools.partial(adjoint_steps, theta, x, solver="picard")
    loose, tight = call(rtol=1e-2, max_steps=500), call(rtol=1e-8, max_steps=500)
    assert 0 < loose < tight
    # Its own options win, and only those that are None are taken over.
    own = deqjax.Picard(rtol=1e-2)
    assert call(rtol=1e-8, max_steps=500, adjoint_solver=own) == loose
    assert call(rtol=1e-8, max_steps=500, adjoint=deqjax.Implicit(solver=own)) == loose
    # A warm start may have a limit of a few steps: the adjoint has no warm start.
    assert call(rtol=1e-8, max_steps=3) > 3
    assert call(rtol=1e-8, adjoint_solver=deqjax.Picard(max_steps=3)) == 3


@pytest.mark.parametrize("tolerances", [dict(rtol=1e-6, atol=1e-3), dict(rtol=0.0, atol=1e-6)])
@pytest.mark.parametrize(
    "adjoint_solver",
    [
        None,
        *(
            pytest.param(s, marks=pytest.mark.slow)
            for s in ("broyden", deqjax.Compacted("anderson"))
        ),
    ],
)
def test_the_gradient_of_a_small_loss_is_as_good_as_of_a_large_one(tolerances, adjoint_solver):
    """The adjoint equation is linear: an absolute tolerance on z says nothing about its solution,
    and must not take a small cotangent for a solved equation."""
    theta, x = tanh_parameters(6, radius=0.9)
    x = x * np.array([0.1, 1.0, 5.0])[:, None]
    options = dict(batch_axis=0, adjoint_solver=adjoint_solver, **tolerances)

    def gradient(scale):
        def of(theta, probe):
            sol = deqjax.fixed_point(
                tanh_cell, jnp.zeros_like(x), theta, x, adjoint_probe=probe, **options
            )
            return scale * loss_of(sol.z)

        return jax.jit(jax.grad(of, (0, 1)))(theta, deqjax.adjoint_probe(3, x.dtype))

    large, (small, stats) = gradient(1.0)[0], gradient(1e-12)
    assert bool(stats.converged.all()) and int(stats.steps.min()) > 1
    assert float(stats.rel_residual.max()) <= 1e-6
    for a, b in zip(jax.tree.leaves(large), jax.tree.leaves(small), strict=True):
        np.testing.assert_allclose(1e12 * np.asarray(b), a, rtol=1e-9)


def test_an_absolute_tolerance_of_the_adjoint_is_its_own():
    theta, x = tanh_parameters(6, radius=0.9)

    def steps(**options):
        def of(probe):
            sol = deqjax.fixed_point(
                tanh_cell, jnp.zeros_like(x), theta, x, adjoint_probe=probe, **options
            )
            return loss_of(sol.z)

        return int(jax.grad(of)(deqjax.adjoint_probe(None, x.dtype)).steps)

    assert steps(adjoint_solver=deqjax.Anderson(atol=1e3)) == 0 < steps(atol=1e3, rtol=1e-6)


def test_the_adjoint_solver_is_the_one_asked_for():
    theta, x = tanh_parameters(6, radius=0.7)
    call = functools.partial(
        adjoint_steps, theta, x, solver="picard", rtol=1e-9, atol=0.0, max_steps=500
    )
    picard, anderson = call(), call(adjoint_solver=SMALL["anderson"])
    assert anderson < 0.7 * picard
    assert call(adjoint=deqjax.Implicit(solver=SMALL["anderson"])) == anderson


# ------------------------------------------------------------------------------- approximate ones


def by_adjoint(adjoint, theta, x, **options):
    loss = functools.partial(value, adjoint=adjoint, solver="picard", **TIGHT, **options)
    return jax.jit(jax.grad(loss, (0, 1)))(theta, x)


def direct(theta, z, u):
    """One VJP of the cell at z, with the cotangent u."""
    s = u * (1 - np.tanh(theta["w"] @ z + theta["b"]) ** 2)
    return {"w": np.outer(s, z), "b": s}, u


@pytest.mark.parametrize(("steps", "damping"), [(1, 0.5), (2, 1.0), (5, 0.5)])
def test_phantom_is_the_documented_series(steps, damping):
    """u = λ Σᵢ ((1 − λ) I + λ J)ᵀⁱ v over i < steps."""
    theta, x = tanh_parameters(5)
    z = tanh_solution(theta, x)
    v = cotangent_of(z)
    step = ((1 - damping) * np.eye(5) + damping * tanh_jacobian(z, theta)).T
    u = damping * sum(np.linalg.matrix_power(step, i) @ v for i in range(steps))
    got = by_adjoint(deqjax.Phantom(steps=steps, damping=damping), theta, x)
    assert relative(got, direct(theta, z, u)) < 1e-9


def test_phantom_tends_to_the_exact_gradient():
    theta, x = tanh_parameters(5)
    errors = [
        relative(by_adjoint(deqjax.Phantom(steps=k, damping=0.8), theta, x), dense(theta, x))
        for k in (1, 5, 100)
    ]
    assert errors[0] > 0.1 and errors[1] < 0.7 * errors[0] and errors[2] < 1e-8
    assert relative(by_adjoint("phantom", theta, x), dense(theta, x)) > 1e-3  # default: approximate


def test_jfb_leaves_the_jacobian_out():
    theta, x = tanh_parameters(5)
    z = tanh_solution(theta, x)
    got = by_adjoint("jfb", theta, x)
    assert relative(got, direct(theta, z, cotangent_of(z))) < 1e-9
    assert relative(got, dense(theta, x)) > 0.05


def test_a_feed_forward_net_as_one_fixed_point():
    """Block-subdiagonal W (nilpotent): Picard is exact after L steps, implicit gradients are
    back-propagation, and the Jacobian-free gradient is wrong."""
    rng = np.random.default_rng(0)
    layers, n = 3, 2
    blocks = rng.normal(size=(layers - 1, n, n))
    x = rng.normal(size=n)

    def cell(z, blocks, x):
        parts = [x, *(jnp.tanh(w @ z[i * n : (i + 1) * n]) for i, w in enumerate(blocks))]
        return jnp.concatenate(parts)

    def explicit(blocks, x):
        h = x
        for w in blocks:
            h = jnp.tanh(w @ h)
        return jnp.sum(h**2)

    def implicit(adjoint, blocks, x):
        sol = deqjax.fixed_point(
            cell, jnp.ones(layers * n), blocks, x, solver="picard", adjoint=adjoint, **TIGHT
        )
        return jnp.sum(sol.z[-n:] ** 2), sol.stats.steps

    want = jax.jit(jax.grad(explicit, (0, 1)))(blocks, x)
    grad = jax.jit(jax.grad(implicit, (1, 2), has_aux=True), static_argnums=0)
    got, steps = grad("implicit", blocks, x)
    assert int(steps) == layers and relative(got, want) < 1e-12
    assert relative(grad("jfb", blocks, x)[0], want) > 0.3


# ------------------------------------------------------------------------------- unrolled


@pytest.mark.parametrize("checkpoint", ["none", "all", "sqrt"])
def test_unrolled_is_back_propagation_through_the_steps(checkpoint):
    theta, x = tanh_parameters(5, radius=0.95)
    budget = 7  # not a square: the last block of "sqrt" is longer than the budget

    def by_hand(theta, x):
        z = jnp.zeros(5)
        for _ in range(budget):
            z = 0.7 * tanh_cell(z, theta, x) + 0.3 * z
        return loss_of(z)

    got = jax.jit(
        jax.value_and_grad(
            functools.partial(
                value,
                solver=deqjax.Picard(damping=0.7),
                adjoint=deqjax.Unrolled(checkpoint=checkpoint),
                rtol=0.0,
                atol=0.0,
                max_steps=budget,
            ),
            (0, 1),
        )
    )(theta, x)
    want = jax.jit(jax.value_and_grad(by_hand, (0, 1)))(theta, x)
    assert relative(got, want) < 1e-12
    assert relative(got[1], dense(theta, x)) > 1e-3  # exact for this iterate, not for z*


@pytest.mark.parametrize("solver", ["anderson", "broyden"])
def test_unrolled_through_accelerated_steps(solver):
    """Against finite differences of the same early-stopped solve."""
    theta, x = tanh_parameters(5, radius=0.9)
    make = type(SMALL[solver])
    options = dict(solver=make(memory=2), adjoint="unrolled", rtol=0.0, atol=0.0, max_steps=3)
    both = jax.jit(jax.value_and_grad(functools.partial(value, **options), 1))
    direction, h = np.linspace(-1, 1, 5), 1e-6
    up, down = (both(theta, x + step * direction)[0] for step in (h, -h))
    grad = both(theta, x)[1]
    np.testing.assert_allclose(grad @ direction, (up - down) / (2 * h), rtol=1e-6)
    assert relative(grad, dense(theta, x)[1]) > 1e-6


def test_unrolled_of_a_batch_stops_each_sample_where_the_solve_did():
    theta, x = tanh_parameters(5, radius=0.9)
    x = x * np.array([0.1, 10.0])[:, None]

    def loss(x, axis, adjoint="unrolled"):
        options = dict(solver="picard", adjoint=adjoint, rtol=1e-3, atol=0.0, max_steps=20)
        sol = deqjax.fixed_point(tanh_cell, jnp.zeros_like(x), theta, x, batch_axis=axis, **options)
        return loss_of(sol.z), sol.stats.steps

    batch, steps = jax.jit(jax.grad(lambda x: loss(x, 0), has_aux=True))(x)
    alone = jax.jit(jax.grad(lambda x: loss(x, None), has_aux=True))
    rows = [alone(row) for row in x]
    assert int(steps[0]) != int(steps[1])
    assert [int(k) for _, k in rows] == np.asarray(steps).tolist()
    assert relative(batch, np.stack([g for g, _ in rows])) < 1e-10
