"""Jacobian penalty against dense Frobenius norms, correction losses against the solver's path."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import deqjax
from deqjax.regularization import correction_states, fixed_point_correction, jacobian_penalty
from tests import cells

N = 5
THETA, X = cells.tanh_parameters(N)
Z = np.linspace(-0.5, 0.8, N)
KEY = jax.random.key(3)


def dense(z=Z, theta=THETA):
    return cells.tanh_jacobian(np.asarray(z), theta)


def penalty(z=Z, theta=THETA, **options):
    theta = jax.tree.map(jnp.asarray, theta)
    return jacobian_penalty(cells.tanh_cell, jnp.asarray(z), theta, X, **({"key": KEY} | options))


def squares(j):
    return (j**2).sum((-2, -1)) / j.shape[-1]


def test_one_probe_is_exact_for_orthogonal_rows():
    """(vᵀJ)² needs no average where JJᵀ is diagonal: the variance is that of signs."""
    d, _ = np.linalg.qr(dense())
    d = np.diag(np.arange(1.0, N + 1)) @ d
    got = jacobian_penalty(lambda z: jnp.asarray(d) @ z, jnp.asarray(Z), key=KEY)
    np.testing.assert_allclose(got, squares(d), rtol=1e-12)


def test_unbiased_with_the_variance_of_signs():
    """Mean ‖J‖²_F / n, variance 2 Σᵢ≠ⱼ (JJᵀ)ᵢⱼ² / n² over the number of probes."""
    jj = dense() @ dense().T
    sigma = np.sqrt(2 * (np.sum(jj**2) - np.sum(np.diag(jj) ** 2))) / N
    keys = jax.random.split(KEY, 2000)
    for probes in (1, 16):
        drawn = jax.jit(jax.vmap(lambda key, p=probes: penalty(key=key, probes=p)))(keys)
        want = sigma / np.sqrt(probes)
        np.testing.assert_allclose(drawn.mean(), squares(dense()), atol=4 * want / np.sqrt(2000))
        np.testing.assert_allclose(drawn.std(), want, rtol=0.15)


def test_gradient_against_dense_derivatives():
    """The same signs, with J from jacfwd: value and gradients agree to round-off."""
    probes = 3
    keys = jax.random.split(KEY, probes)
    first = lambda key: jax.random.fold_in(jax.random.split(key, 2)[0], 0)  # leaf 0, sample 0
    v = jnp.stack([jax.random.rademacher(first(k), (N,), float) for k in keys])

    def reference(z, theta):
        return jnp.mean(jnp.sum((v @ jax.jacfwd(cells.tanh_cell)(z, theta, X)) ** 2, axis=1)) / N

    z, theta = jnp.asarray(Z), jax.tree.map(jnp.asarray, THETA)
    ours = jax.value_and_grad(lambda z, t: penalty(z, t, probes=probes), (0, 1))(z, theta)
    for got, want in zip(
        *map(jax.tree.leaves, (ours, jax.value_and_grad(reference, (0, 1))(z, theta))), strict=True
    ):
        np.testing.assert_allclose(got, want, rtol=1e-10)


def test_gradient_goes_on_through_the_implicit_solution():
    """d/dx of penalty(z*(x)): ∂penalty/∂z (I − J)⁻¹, since ∂f/∂x = I."""
    theta = jax.tree.map(jnp.asarray, THETA)

    def loss(x):
        options = dict(rtol=1e-12, atol=1e-12)
        z = deqjax.fixed_point(cells.tanh_cell, jnp.zeros(N), theta, x, **options).z
        return jacobian_penalty(cells.tanh_cell, z, theta, x, key=KEY)

    z = cells.tanh_solution(THETA, X)
    direct = jax.grad(lambda z: penalty(z))(jnp.asarray(z))
    want = np.linalg.solve((np.eye(N) - dense(z)).T, direct)
    np.testing.assert_allclose(jax.grad(loss)(jnp.asarray(X)), want, rtol=1e-8)


@pytest.mark.slow
def test_samples_and_layouts():
    """Per sample, the mean over them, any batch axis, a pytree: the same numbers."""
    z = np.stack([Z, 2 * Z, -Z])
    f = lambda z: {"a": jnp.tanh(z["a"]) * jnp.arange(1.0, N + 1), "b": 0.5 * z["b"]}
    state = {"a": jnp.asarray(z), "b": jnp.ones((3, 2, 2))}
    slope = (1 - np.tanh(z) ** 2) * np.arange(1.0, N + 1)
    want = (np.sum(slope**2, axis=1) + 4 * 0.25) / (N + 4)
    each = jacobian_penalty(f, state, key=KEY, batch_axis=0, per_sample=True)
    np.testing.assert_allclose(each, want, rtol=1e-12)
    np.testing.assert_allclose(
        jacobian_penalty(f, state, key=KEY, batch_axis=0, probes=2), want.mean(), rtol=1e-12
    )
    turned = jacobian_penalty(
        *(lambda z: jnp.tanh(z.T).T, jnp.asarray(z.T)), key=KEY, batch_axis=1, per_sample=True
    )
    np.testing.assert_allclose(turned, np.mean((1 - np.tanh(z) ** 2) ** 2, axis=1), rtol=1e-12)


def test_dtypes():
    low = jacobian_penalty(lambda z: 2 * z, jnp.ones(1000, jnp.bfloat16), key=KEY, probes=2)
    assert low.dtype == jnp.float32 and low == 4.0
    twist = jnp.array([1.0 + 2.0j, 0.5])
    complex_ = jacobian_penalty(lambda z: twist * z, jnp.ones(2, complex), key=KEY)
    np.testing.assert_allclose(complex_, (5 + 0.25) / 2, rtol=1e-12)


def test_nothing_is_solved_again_and_probes_share_memory():
    """A program with the penalty has the while loops of one without, plus one scan of fixed length.

    And its temporaries do not grow with the number of probes.
    """
    theta = jax.tree.map(jnp.asarray, THETA)

    def loss(theta, probes):
        z = deqjax.fixed_point(cells.tanh_cell, jnp.zeros(N), theta, X, solver="picard").z
        extra = (
            jacobian_penalty(cells.tanh_cell, z, theta, X, key=KEY, probes=probes) if probes else 0
        )
        return z.sum() + extra

    loops = [str(jax.make_jaxpr(lambda t, p=p: loss(t, p))(theta)).count("while[") for p in (0, 3)]
    assert loops[0] == loops[1] == 1

    def memory(probes):
        z = jnp.ones((200, N))
        run = lambda t: jacobian_penalty(
            cells.tanh_cell, z, t, X, key=KEY, probes=probes, batch_axis=0
        )
        return jax.jit(jax.grad(run)).lower(theta).compile().memory_analysis().temp_size_in_bytes

    assert memory(32) < memory(2) + 32 * 200 * N  # far below 30 more states of 8 bytes a number


def test_penalty_says_what_is_wrong():
    with pytest.raises(ValueError, match="probes must be an integer >= 1"):
        penalty(probes=0)
    with pytest.raises(ValueError, match="per_sample=True needs batch_axis="):
        penalty(per_sample=True)


# ------------------------------------------------------------------------------- correction


@pytest.mark.parametrize("solver", ("picard", "anderson", "broyden"))
def test_states_are_the_path_of_the_solve(solver):
    """The residual of each is the least that the one long solve had seen by then."""
    theta = jax.tree.map(jnp.asarray, THETA)
    at = (1, 3, 6)
    states = correction_states(cells.tanh_cell, jnp.zeros(N), theta, X, at=at, solver=solver)
    trace = deqjax.fixed_point(
        *(cells.tanh_cell, jnp.zeros(N), theta, X), solver=solver, trace=True
    ).stats.trace
    for steps, z in zip(at, states, strict=True):
        residual = jnp.linalg.norm(cells.tanh_cell(z, theta, X) - z)
        np.testing.assert_allclose(residual, jnp.min(trace[: steps + 1]), rtol=1e-9)


def test_gradient_is_that_of_one_evaluation():
    """∂f/∂x = I, so JFB's gradient of c·zᵢ to x is c itself; weights γ and 1."""
    theta = jax.tree.map(jnp.asarray, THETA)
    c = jnp.arange(1.0, N + 1)

    def loss(x):
        states = correction_states(cells.tanh_cell, jnp.zeros(N), theta, x, at=(2, 4))
        return fixed_point_correction(lambda z: c @ z, states, decay=0.5)

    np.testing.assert_allclose(jax.jit(jax.grad(loss))(jnp.asarray(X)), 1.5 * c, rtol=1e-12)


def test_weights():
    assert fixed_point_correction(lambda z: z, (1.0, 10.0, 100.0), decay=0.5) == 105.25
    assert fixed_point_correction(lambda z: z, [3.0]) == 3.0


def test_correction_says_what_is_wrong():
    for at in ((), (4, 4), (8, 4)):
        with pytest.raises(ValueError, match="increasing numbers of steps"):
            correction_states(lambda z: z, jnp.zeros(2), at=at)
    with pytest.raises(ValueError, match="states is empty"):
        fixed_point_correction(lambda z: z, ())
    with pytest.raises(ValueError, match="decay must be in"):
        fixed_point_correction(lambda z: z, (1.0,), decay=0.0)
