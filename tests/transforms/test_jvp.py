"""forward_mode=True: jvp, jacfwd, Hessians and every mix of both modes, against dense answers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import deqjax
from tests import cells

N = 5


def solution(theta, x, **options):
    options = dict(forward_mode=True, **cells.TIGHT) | options
    return deqjax.fixed_point(cells.tanh_cell, jnp.zeros_like(x), theta, x, **options).z


@pytest.mark.parametrize(
    "solver",
    [*cells.SMALL.values(), pytest.param(deqjax.NewtonKrylov(), marks=pytest.mark.slow)],
    ids=lambda s: s.name,
)
def test_jacobian_both_ways(solver):
    theta, x = cells.tanh_parameters(N)
    dense = np.linalg.inv(np.eye(N) - cells.tanh_jacobian(cells.tanh_solution(theta, x), theta))
    for jacobian in (jax.jacfwd, jax.jacrev):
        got = jax.jit(jacobian(lambda x: solution(theta, x, solver=solver)))(x)
        assert cells.relative(got, dense) < 1e-9


@pytest.mark.parametrize("adjoint_solver", ["gmres", "broyden"])
def test_the_linear_solves_use_the_adjoint_solver(adjoint_solver):
    theta, x = cells.tanh_parameters(N)
    dense = np.linalg.inv(np.eye(N) - cells.tanh_jacobian(cells.tanh_solution(theta, x), theta))
    got = jax.jit(jax.jacfwd(lambda x: solution(theta, x, adjoint_solver=adjoint_solver)))(x)
    assert cells.relative(got, dense) < 1e-9


def test_jvp_to_every_input_against_differences():
    theta, x = jax.tree.map(jnp.asarray, cells.tanh_parameters(N))
    rng = np.random.default_rng(3)
    direction = jax.tree.map(lambda a: jnp.asarray(rng.normal(size=a.shape)), (theta, x))
    z, z_dot = jax.jit(lambda *given: jax.jvp(solution, *given))((theta, x), direction)
    h = 1e-6
    shifted = [
        cells.tanh_solution(
            *jax.tree.map(lambda a, d, s=s: np.asarray(a + s * h * d), (theta, x), direction)
        )
        for s in (1, -1)
    ]
    assert cells.relative(z, cells.tanh_solution(*jax.tree.map(np.asarray, (theta, x)))) < 1e-11
    assert cells.relative(z_dot, (shifted[0] - shifted[1]) / (2 * h)) < 1e-7


@pytest.mark.slow
def test_hessian_vector_products_in_every_order_of_modes():
    theta, x = cells.tanh_parameters(N)
    loss = lambda x: cells.loss_of(solution(theta, x))
    v = jnp.linspace(-1, 1, N)
    orders = (
        lambda x: jax.jvp(jax.grad(loss), (x,), (v,))[1],
        jax.grad(lambda x: jax.jvp(loss, (x,), (v,))[1]),
        jax.grad(lambda x: jax.grad(loss)(x) @ v),
        lambda x: jax.jvp(lambda x: jax.jvp(loss, (x,), (jnp.eye(N)[0],))[1], (x,), (v,))[1],
    )
    products = [jax.jit(order)(x) for order in orders]
    unrolled = lambda x: cells.loss_of(
        jax.lax.scan(lambda z, _: (cells.tanh_cell(z, theta, x), None), jnp.zeros(N), length=300)[0]
    )
    exact = jax.hessian(unrolled)(jnp.asarray(x)) @ v
    for got in products[:3]:
        assert cells.relative(got, exact) < 1e-7
    assert abs(products[3] - exact[0]) < 1e-7 * np.linalg.norm(exact)


@pytest.mark.slow
def test_third_derivatives_of_a_scalar():
    """z = a z + sin(x) has z* = sin(x) / (1 − a)."""
    z = lambda x: (
        deqjax.fixed_point(
            lambda z: 0.5 * z + jnp.sin(x), jnp.zeros(()), forward_mode=True, rtol=1e-13
        ).z
    )
    x = 0.3
    for modes in (
        (jax.jacfwd,) * 3,
        (jax.jacrev, jax.jacfwd, jax.jacrev),
        (jax.jacfwd, jax.jacrev, jax.jacfwd),
    ):
        d = z
        for mode in modes:
            d = mode(d)
        assert abs(float(jax.jit(d)(x)) + 2 * np.cos(x)) < 1e-10


@pytest.mark.slow
def test_integers_and_keys_pass_and_vmap_works():
    theta, _ = cells.tanh_parameters(N)
    xs = np.random.default_rng(0).normal(size=(3, N))
    key = jax.random.key(0)

    def z(x, i):
        noise = jax.random.normal(jax.random.fold_in(key, i), (N,))
        f = lambda z: cells.tanh_cell(z, theta, x) + 0.1 * noise
        return deqjax.fixed_point(f, jnp.zeros(N), forward_mode=True, **cells.TIGHT).z

    i = jnp.arange(3)
    forward = jax.jit(jax.vmap(jax.jacfwd(z)))(xs, i)
    reverse = jax.jit(jax.vmap(jax.jacrev(z)))(xs, i)
    assert cells.relative(forward, reverse) < 1e-9
    assert cells.relative(forward[1], jax.jacfwd(z)(xs[1], i[1])) < 1e-9


def test_pytrees_and_batches():
    theta, x = cells.tanh_parameters(6)
    f = cells.on_pytrees(lambda z, x: cells.tanh_cell(z, theta, x))
    tree = lambda x: (
        deqjax.fixed_point(f, cells.split(jnp.zeros(6)), x, forward_mode=True, **cells.TIGHT).z
    )
    dense = np.linalg.inv(np.eye(6) - cells.tanh_jacobian(cells.tanh_solution(theta, x), theta))
    got = jax.jit(jax.jacfwd(tree))(x)
    assert cells.relative(jnp.concatenate([got["a"], got["b"][0]]), dense) < 1e-9

    xs = np.stack([x, 3 * x, -x])
    batched = jax.jit(jax.jacfwd(lambda xs: solution(theta, xs, batch_axis=0)))(xs)
    for i in range(3):
        dense = np.linalg.inv(
            np.eye(6) - cells.tanh_jacobian(cells.tanh_solution(theta, xs[i]), theta)
        )
        assert cells.relative(batched[i, :, i], dense) < 1e-9
        assert float(jnp.abs(batched[i, :, (i + 1) % 3]).max()) == 0


@pytest.mark.slow
def test_statistics_have_no_derivative():
    theta, x = cells.tanh_parameters(N)

    def residual(x):
        sol = deqjax.fixed_point(
            cells.tanh_cell, jnp.zeros(N), theta, x, forward_mode=True, rtol=1e-3
        )
        return sol.stats.residual

    assert float(jnp.abs(jax.jacfwd(residual)(x)).max()) == 0


def test_unrolled_has_forward_mode_of_its_own():
    theta, x = cells.tanh_parameters(N)
    got = jax.jit(jax.jacfwd(lambda x: solution(theta, x, adjoint="unrolled", max_steps=120)))(x)
    dense = np.linalg.inv(np.eye(N) - cells.tanh_jacobian(cells.tanh_solution(theta, x), theta))
    assert cells.relative(got, dense) < 1e-7


def test_without_it_forward_mode_is_refused_by_jax():
    theta, x = cells.tanh_parameters(N)
    with pytest.raises(TypeError, match=r"give fixed_point\(..., forward_mode=True\)"):
        jax.jacfwd(lambda x: solution(theta, x, forward_mode=False))(x)


@pytest.mark.parametrize("adjoint", ["phantom", "jfb", "shine", "reversible"])
def test_approximate_adjoints_are_refused(adjoint):
    solver = {"shine": "broyden"}.get(adjoint, "picard")
    with pytest.raises(ValueError, match="forward_mode=True gives exact derivatives"):
        deqjax.fixed_point(jnp.cos, jnp.zeros(2), forward_mode=True, adjoint=adjoint, solver=solver)


def test_a_probe_is_refused():
    with pytest.raises(ValueError, match="adjoint_probe reports on reverse mode"):
        deqjax.fixed_point(
            jnp.cos, jnp.zeros(2), forward_mode=True, adjoint_probe=deqjax.adjoint_probe()
        )


class OneSolve(deqjax.adjoints.Adjoint):
    """Somebody's own exact adjoint."""

    name = "one_solve"
    exact = True

    def cotangent(self, pull, v, solve, end):
        return solve(lambda u: jax.tree.map(jnp.add, pull(u), v), v, deqjax.Broyden(rtol=1e-10))


@pytest.mark.slow
def test_an_exact_adjoint_of_ones_own_goes_forward():
    f = lambda z, x: jnp.tanh(0.5 * z + x)
    solve = lambda x, **o: deqjax.fixed_point(f, jnp.zeros(3), x, rtol=1e-10, **o).z
    x = jnp.linspace(-1.0, 1.0, 3)
    want = jax.jacrev(solve)(x)
    mine = dict(adjoint=OneSolve(), forward_mode=True)
    np.testing.assert_allclose(jax.jacfwd(lambda x: solve(x, **mine))(x), want, atol=1e-8)
    np.testing.assert_allclose(jax.jacrev(lambda x: solve(x, **mine))(x), want, atol=1e-8)
