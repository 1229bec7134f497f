"""First derivatives against dense solves of (I − J)ᵀu = v."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import deqjax
from tests import cells


def pairs_of_solvers():
    """All pairs for an array; in the fast run each solver once on either side for the others."""
    for i, solver in enumerate(cells.SOLVERS):
        for j, adjoint_solver in enumerate(cells.SOLVERS):
            for shape in ("array", "pytree", "batch"):
                slow = shape != "array" and (j - i) % 3 != (1 if shape == "pytree" else 2)
                marks = [pytest.mark.slow] if slow else []
                yield pytest.param(solver, adjoint_solver, shape, marks=marks)


@pytest.mark.parametrize(("solver", "adjoint_solver", "shape"), list(pairs_of_solvers()))
def test_gradient_is_exact(solver, adjoint_solver, shape):
    theta, x = cells.tanh_parameters(6)
    if shape == "batch":
        x = x * np.array([0.1, 1.0, 5.0])[:, None]
    options = dict(
        solver=cells.SMALL[solver], adjoint_solver=cells.SMALL[adjoint_solver], **cells.TIGHT
    )

    def loss(theta, x):
        if shape == "pytree":
            sol = deqjax.fixed_point(
                cells.on_pytrees(cells.tanh_cell), cells.split(jnp.zeros(6)), theta, x, **options
            )
            return cells.loss_of(cells.join(sol.z))
        axis = 0 if shape == "batch" else None
        return cells.tanh_loss(theta, x, batch_axis=axis, **options)

    assert (
        cells.relative(jax.jit(jax.grad(loss, (0, 1)))(theta, x), cells.dense_gradient(theta, x))
        < 1e-8
    )


def test_gradient_through_an_expansive_cell():
    """ρ(J) = 3: no unrolling could give it, the implicit function theorem does."""
    a, b, z_star = cells.linear([3.0, -2.0, 0.5, 0.1])

    def loss(a, b):
        sol = deqjax.fixed_point(
            cells.linear_cell, jnp.zeros(4), a, b, solver="anderson", **cells.TIGHT
        )
        return cells.loss_of(sol.z)

    u = np.linalg.solve(np.eye(4) - a.T, cells.cotangent_of(z_star))
    assert cells.relative(jax.jit(jax.grad(loss, (0, 1)))(a, b), (np.outer(u, z_star), u)) < 1e-8


def test_gradients_reach_what_f_closes_over():
    theta, x = cells.tanh_parameters(6)
    scale = np.arange(1, 7) / 6

    @jax.jit
    def grad(theta, x, scale):
        def loss(theta, x, scale):
            hidden = {"w": theta["w"] * 1.0, "b": theta["b"]}  # a tracer of this trace
            f = lambda z: cells.tanh_cell(z, hidden, x) * scale
            return cells.loss_of(
                deqjax.fixed_point(f, jnp.zeros(6), solver=cells.SMALL["anderson"], **cells.TIGHT).z
            )

        return jax.grad(loss, (0, 1, 2))(theta, x, scale)

    @jax.jit
    def by_args(theta, x, scale):
        def loss(*args):
            f = lambda z, theta, x, scale: cells.tanh_cell(z, theta, x) * scale
            sol = deqjax.fixed_point(
                f, jnp.zeros(6), *args, solver=cells.SMALL["anderson"], **cells.TIGHT
            )
            return cells.loss_of(sol.z)

        return jax.grad(loss, (0, 1, 2))(theta, x, scale)

    got, want = grad(theta, x, scale), by_args(theta, x, scale)
    assert cells.relative(got, want) < 1e-10
    assert cells.relative(got[1], 0 * x) > 0.1  # and they are not zero
    ones = grad(theta, x, np.ones(6))
    assert cells.relative(ones[:2], cells.dense_gradient(theta, x)) < 1e-8


def test_gradients_reach_closures_and_args_at_once():
    theta, x = cells.tanh_parameters(6)

    def loss(theta, x):
        f = lambda z, w: cells.tanh_cell(z, {"w": w, "b": theta["b"]}, x)
        sol = deqjax.fixed_point(
            f, jnp.zeros(6), theta["w"], solver=cells.SMALL["broyden"], **cells.TIGHT
        )
        return cells.loss_of(sol.z)

    assert (
        cells.relative(jax.jit(jax.grad(loss, (0, 1)))(theta, x), cells.dense_gradient(theta, x))
        < 1e-8
    )


@pytest.mark.parametrize("closed_over", [False, True])
def test_integers_and_keys_pass_through(closed_over):
    """A mask from a key and a table row from an index, as arguments or closed over."""
    theta, x = cells.tanh_parameters(6)
    table = np.stack([0 * x, x, 2 * x])

    def cell(z, theta, table, row, key, flag):
        keep = jax.random.bernoulli(key, 0.5, z.shape)
        return jnp.where(keep & flag, cells.tanh_cell(z, theta, 0.0), 0.0) + table[row]

    @jax.jit
    def grad(theta, table, row, key, flag):
        def loss(theta, table):
            rest = (row, key, flag)
            if closed_over:
                f = lambda z: cell(z, theta, table, *rest)
                sol = deqjax.fixed_point(
                    f, jnp.zeros(6), solver=cells.SMALL["anderson"], **cells.TIGHT
                )
            else:
                sol = deqjax.fixed_point(
                    cell,
                    jnp.zeros(6),
                    theta,
                    table,
                    *rest,
                    solver=cells.SMALL["anderson"],
                    **cells.TIGHT,
                )
            return cells.loss_of(sol.z)

        return jax.grad(loss, (0, 1))(theta, table)

    key = jax.random.key(3)
    keep = np.asarray(jax.random.bernoulli(key, 0.5, (6,)))
    assert 0 < keep.sum() < 6
    got_theta, got_table = grad(theta, table, 1, key, True)
    # Dense: z = m ∘ tanh(Wz + b) + x, J = m ∘ J_tanh.
    z = np.zeros(6)
    for _ in range(200):
        z = keep * np.tanh(theta["w"] @ z + theta["b"]) + x
    u = np.linalg.solve(
        (np.eye(6) - keep[:, None] * cells.tanh_jacobian(z, theta)).T, cells.cotangent_of(z)
    )
    s = u * keep * (1 - np.tanh(theta["w"] @ z + theta["b"]) ** 2)
    assert cells.relative(got_theta, {"w": np.outer(s, z), "b": s}) < 1e-8
    assert cells.relative(got_table, np.stack([0 * u, u, 0 * u])) < 1e-8


def test_no_gradient_reaches_z0():
    theta, x = cells.tanh_parameters(4)
    f = lambda z0: cells.loss_of(
        deqjax.fixed_point(cells.tanh_cell, z0, theta, x, solver="picard", max_steps=2).z
    )
    np.testing.assert_array_equal(jax.jit(jax.grad(f))(np.ones(4)), 0.0)
    # Two steps do depend on z0, and unrolling says so.
    g = lambda z0: cells.loss_of(
        deqjax.fixed_point(
            cells.tanh_cell, z0, theta, x, solver="picard", max_steps=2, adjoint="unrolled"
        ).z
    )
    assert np.linalg.norm(jax.jit(jax.grad(g))(np.ones(4))) > 0.01


def test_statistics_and_state_carry_no_gradient():
    theta, x = cells.tanh_parameters(4)

    def loss(x):
        sol = deqjax.fixed_point(
            cells.tanh_cell, jnp.zeros(4), theta, x, solver="anderson", max_steps=3
        )
        inexact = [
            s
            for s in jax.tree.leaves((sol.stats, sol.state))
            if jnp.issubdtype(s.dtype, jnp.inexact)
        ]
        return sum(jnp.sum(s) for s in inexact)

    np.testing.assert_array_equal(jax.jit(jax.grad(loss))(x), 0.0)


@pytest.mark.parametrize("shape", ["array", "pytree"])
@pytest.mark.parametrize("solver", cells.SOLVERS)
def test_after_an_early_stop_the_adjoint_is_exact_at_the_returned_z(solver, shape):
    """The peers' 45% defect: the adjoint must belong to the z that the loss saw."""
    theta, x = cells.tanh_parameters(6, radius=0.95)
    f, z0, flat = (
        (cells.tanh_cell, jnp.zeros(6), lambda z: z)
        if shape == "array"
        else (cells.on_pytrees(cells.tanh_cell), cells.split(jnp.zeros(6)), cells.join)
    )

    @jax.jit
    def grad(theta, x):
        def loss(theta, x):
            sol = deqjax.fixed_point(
                f,
                z0,
                theta,
                x,
                solver=cells.SMALL[solver],
                rtol=1e-12,
                max_steps=2,
                adjoint_solver=deqjax.Anderson(memory=3, rtol=1e-12, atol=0.0, max_steps=300),
            )
            return cells.loss_of(flat(sol.z)), flat(sol.z)

        return jax.grad(loss, (0, 1), has_aux=True)(theta, x)

    got, z = grad(theta, x)
    assert cells.relative(z, cells.tanh_solution(theta, x)) > 1e-3  # stopped early indeed
    z = np.asarray(z)
    # The cell's injection is not in tanh, so J and the VJP at this z are tanh_gradient's.
    assert cells.relative(got, cells.tanh_gradient(theta, z, cells.cotangent_of(z))) < 1e-8


def test_two_forwards_before_one_backward():
    theta, x = cells.tanh_parameters(6)

    def two(theta, x):
        first, back_first = jax.vjp(functools.partial(cells.tanh_loss, **options), theta, x)
        second, back_second = jax.vjp(functools.partial(cells.tanh_loss, **options), theta, 2 * x)
        return back_first(jnp.ones_like(first)), back_second(jnp.ones_like(second))

    options = dict(solver=cells.SMALL["broyden"], **cells.TIGHT)
    first, second = jax.jit(two)(theta, x)
    assert cells.relative(first, cells.dense_gradient(theta, x)) < 1e-8
    assert cells.relative(second, cells.dense_gradient(theta, 2 * x)) < 1e-8


def test_two_solves_in_one_loss_add_up():
    theta, x = cells.tanh_parameters(6)
    options = dict(solver=cells.SMALL["anderson"], **cells.TIGHT)
    loss = lambda theta: (
        cells.tanh_loss(theta, x, **options) + 3.0 * cells.tanh_loss(theta, -x, **options)
    )
    want = jax.tree.map(
        lambda a, b: a + 3.0 * b,
        cells.dense_gradient(theta, x)[0],
        cells.dense_gradient(theta, -x)[0],
    )
    assert cells.relative(jax.jit(jax.grad(loss))(theta), want) < 1e-8


def adjoint_steps(theta, x, **options):
    return int(cells.probed(theta, x, deqjax.adjoint_probe(), **options)[1].steps)


def test_the_adjoint_takes_over_the_forward_tolerances_and_not_its_limit():
    theta, x = cells.tanh_parameters(6, radius=0.7)
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
    theta, x = cells.tanh_parameters(6, radius=0.9)
    x = x * np.array([0.1, 1.0, 5.0])[:, None]
    options = dict(batch_axis=0, adjoint_solver=adjoint_solver, **tolerances)

    def gradient(scale):
        def of(theta, probe):
            sol = deqjax.fixed_point(
                cells.tanh_cell, jnp.zeros_like(x), theta, x, adjoint_probe=probe, **options
            )
            return scale * cells.loss_of(sol.z)

        return jax.jit(jax.grad(of, (0, 1)))(theta, deqjax.adjoint_probe(3, x.dtype))

    large, (small, stats) = gradient(1.0)[0], gradient(1e-12)
    assert bool(stats.converged.all()) and int(stats.steps.min()) > 1
    assert float(stats.rel_residual.max()) <= 1e-6
    for a, b in zip(jax.tree.leaves(large), jax.tree.leaves(small), strict=True):
        np.testing.assert_allclose(1e12 * np.asarray(b), a, rtol=1e-9)


def test_an_absolute_tolerance_of_the_adjoint_is_its_own():
    theta, x = cells.tanh_parameters(6, radius=0.9)

    def steps(**options):
        def of(probe):
            sol = deqjax.fixed_point(
                cells.tanh_cell, jnp.zeros_like(x), theta, x, adjoint_probe=probe, **options
            )
            return cells.loss_of(sol.z)

        return int(jax.grad(of)(deqjax.adjoint_probe(None, x.dtype)).steps)

    assert steps(adjoint_solver=deqjax.Anderson(atol=1e3)) == 0 < steps(atol=1e3, rtol=1e-6)


def test_the_adjoint_solver_is_the_one_asked_for():
    theta, x = cells.tanh_parameters(6, radius=0.7)
    call = functools.partial(
        adjoint_steps, theta, x, solver="picard", rtol=1e-9, atol=0.0, max_steps=500
    )
    picard, anderson = call(), call(adjoint_solver=cells.SMALL["anderson"])
    assert anderson < 0.7 * picard
    assert call(adjoint=deqjax.Implicit(solver=cells.SMALL["anderson"])) == anderson


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
            cell, jnp.ones(layers * n), blocks, x, solver="picard", adjoint=adjoint, **cells.TIGHT
        )
        return jnp.sum(sol.z[-n:] ** 2), sol.stats.steps

    want = jax.jit(jax.grad(explicit, (0, 1)))(blocks, x)
    grad = jax.jit(jax.grad(implicit, (1, 2), has_aux=True), static_argnums=0)
    got, steps = grad("implicit", blocks, x)
    assert int(steps) == layers and cells.relative(got, want) < 1e-12
    assert cells.relative(grad("jfb", blocks, x)[0], want) > 0.3
