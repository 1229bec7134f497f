"""Monotone equilibria: the parametrisation, the splittings as solvers, and their gradients."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import deqjax
from deqjax.theory import monotone
from deqjax.theory.monotone import Averaged, ForwardBackward, PeacemanRachford, prox
from deqjax.theory.wellposed import Activation, certify, mu_bounded
from experiments.well_posed.splitting import hard

N, BATCH = 5, 3
PROXIMAL = ["relu", "leaky_relu", "tanh", "sigmoid", "softplus", "soft_sign", "identity"]


@functools.cache
def problem():
    rng = np.random.default_rng(0)
    W = monotone.monotone(rng.normal(size=(N, N)), 2 * rng.normal(size=(N, N)), 0.3)
    return jnp.asarray(W), jnp.asarray(rng.normal(size=(BATCH, N)))


def relu_solution(W, b):
    """z = relu(W z + b) by trying all linear pieces."""
    n = len(W)
    for piece in np.ndindex(*(2,) * n):
        z = np.linalg.solve(np.eye(n) - np.diag(piece) @ W, np.diag(piece) @ b)
        if np.all((W @ z + b > 0) == np.array(piece, bool)):
            return z * np.array(piece)  # without -1e-17
    raise AssertionError("no piece has a solution")


def exact_gradients(W, b, c):
    """Of c·z* to W and b, for relu, by a dense solve."""
    W_bar, b_bar = np.zeros_like(W), np.zeros_like(b)
    for i, (row, weight) in enumerate(zip(b, c, strict=True)):
        z = relu_solution(W, row)
        D = np.diag((z > 0).astype(float))
        u = D @ np.linalg.solve((np.eye(N) - D @ W).T, weight)
        W_bar += np.outer(u, z)
        b_bar[i] = u
    return W_bar, b_bar


def test_the_parametrisation_is_monotone_and_reaches_every_such_matrix():
    rng = np.random.default_rng(1)
    for m in (0.01, 0.1, 1.0):
        W = monotone.monotone(rng.normal(size=(3, N)), 9 * rng.normal(size=(N, N)), m)
        assert np.linalg.eigvalsh(np.eye(N) - (W + W.T) / 2)[0] >= m - 1e-12
        assert certify(W, "relu", "monotone").margin == pytest.approx(m, abs=1e-9)
        narrow = monotone.monotone(
            rng.normal(size=(3, N)).astype("float32"), np.eye(N, dtype="float32"), m
        )
        assert narrow.dtype == jnp.float32 and certify(narrow, "tanh", "monotone").holds
    A = np.asarray(problem()[0])
    P = np.linalg.cholesky(np.eye(N) - 0.2 * np.eye(N) - (A + A.T) / 2).T
    np.testing.assert_allclose(monotone.monotone(P, A / 2, 0.2), A, atol=1e-13)


@pytest.mark.parametrize(
    "solver",
    [PeacemanRachford(), PeacemanRachford(alpha=0.2), PeacemanRachford(alpha=2.0),
     ForwardBackward(max_steps=5000), ForwardBackward(alpha=0.01, max_steps=20_000)],
    ids=["pr", "pr-0.2", "pr-2", "fb", "fb-0.01"],
)  # fmt: skip
def test_splittings_find_the_exact_solution(solver):
    W, b = problem()
    sol = monotone.solve(W, b, solver=solver, rtol=1e-12)
    assert sol.stats.converged.all() and (sol.stats.steps > 5).all()
    want = [relu_solution(np.asarray(W), row) for row in np.asarray(b)]
    np.testing.assert_allclose(sol.z, want, atol=1e-10)
    # The statistics are those of f.
    residual = jnp.linalg.norm(jax.nn.relu(sol.z @ W.T + b) - sol.z, axis=1)
    np.testing.assert_allclose(sol.stats.residual, residual, atol=1e-15, rtol=1e-3)
    assert (sol.stats.f_evals == sol.stats.steps + 1).all()


@pytest.mark.parametrize("alpha", [0.3, 2.0])
@pytest.mark.parametrize("name", PROXIMAL)
def test_prox_solves_its_equation(name, alpha):
    """y = σ(t) with α t + (1 − α) σ(t) = x."""
    t = jnp.asarray(np.random.default_rng(0).normal(size=200) * 4)
    sigma = monotone.as_activation(name)
    found = prox(name, alpha, alpha * t + (1 - alpha) * sigma(t))
    np.testing.assert_allclose(found, sigma(t), atol=1e-13)
    np.testing.assert_array_equal(prox(name, 1.0, t), sigma(t))


def test_prox_of_one_of_your_own():
    half = Activation("half", lambda t: t / 2, slopes=(0.5, 0.5), homogeneous=True)
    np.testing.assert_allclose(prox(half, 3.0, jnp.array([4.0, -4.0])), [1.0, -1.0])
    for bad in ("gelu", "selu", "abs"):
        with pytest.raises(ValueError, match="proximal operator"):
            prox(bad, 1.0, jnp.zeros(2))


@pytest.mark.parametrize("name", ["tanh", pytest.param("leaky_relu", marks=pytest.mark.slow)])
def test_other_activations(name):
    W, b = problem()
    z = [monotone.solve(W, b, name, solver=s, rtol=1e-12, max_steps=9000).z
         for s in (PeacemanRachford(alpha=0.4), ForwardBackward(), "newton_krylov")]  # fmt: skip
    np.testing.assert_allclose(z[0], z[2], atol=1e-10)
    np.testing.assert_allclose(z[1], z[2], atol=1e-9)


def test_averaged_solves_what_picard_does_not():
    _, b = problem()
    A = mu_bounded(4 * np.random.default_rng(3).normal(size=(N, N)), 0.8)
    solve = lambda solver: monotone.solve(A, b, "tanh", solver=solver, rtol=1e-10)
    assert not solve(deqjax.Picard(max_steps=300)).stats.converged.all()
    sol = solve("averaged")
    assert sol.stats.converged.all()
    np.testing.assert_allclose(sol.z, jnp.tanh(sol.z @ A.T + b), atol=1e-9)
    with pytest.raises(ValueError, match="decreases"):
        monotone.solve(A, b, "gelu", solver=Averaged())


def loss(W, b, c):
    return jnp.sum(monotone.solve(W, b, rtol=1e-13).z * c)


@pytest.mark.slow
def test_gradients_under_jit_and_vmap():
    W, b = problem()
    c = np.random.default_rng(4).normal(size=b.shape)
    want = exact_gradients(np.asarray(W), np.asarray(b), c)
    jitted = jax.jit(jax.grad(loss, (0, 1)))(W, b, c)

    def mapped(W, b):
        return jax.vmap(loss, (None, 0, 0))(W, b, c).sum()

    for found in (jitted, jax.jit(jax.grad(mapped, (0, 1)))(W, b)):
        for got, exact in zip(found, want, strict=True):
            np.testing.assert_allclose(got, exact, atol=1e-10)


def test_a_w_of_its_own_for_every_sample():
    """vmap over W: V is inverted for each."""
    W, b = problem()
    several = jnp.stack([W, W.T, -0.5 * jnp.eye(N)])
    sol = jax.jit(jax.vmap(functools.partial(monotone.solve, rtol=1e-12)))(several, b)
    want = [
        relu_solution(np.asarray(w), np.asarray(row)) for w, row in zip(several, b, strict=True)
    ]
    np.testing.assert_allclose(sol.z, want, atol=1e-10)


def test_float32_and_a_sample_that_fails_alone():
    W, b = (x.astype(jnp.float32) for x in problem())
    sol = jax.jit(monotone.solve)(W, b)
    assert sol.z.dtype == jnp.float32 and sol.stats.converged.all()
    spoilt = jax.jit(functools.partial(monotone.solve, on_failure="ignore"))(
        W, b.at[1].set(jnp.nan)
    )
    assert spoilt.stats.status[1] == deqjax.Status.NONFINITE
    np.testing.assert_array_equal(spoilt.z[::2], sol.z[::2])


def test_a_warm_start_at_the_solution_stays_there():
    W, b = problem()
    sol = monotone.solve(W, b, rtol=1e-12)
    again = monotone.solve(W, b, z0=sol.z, rtol=0.0, atol=0.0, max_steps=3)
    np.testing.assert_allclose(again.z, sol.z, atol=1e-11)
    resumed = monotone.solve(W, b, z0=sol.z, resume=sol.state, rtol=1e-9)
    assert resumed.stats.steps.max() <= 1


def test_peaceman_rachford_takes_a_twentieth_of_the_iterations():
    """λ_pf(|W|) above 16, m = 0.1, and one stop test for both."""
    W, b = hard()
    assert np.abs(np.linalg.eigvals(np.abs(W))).max() > 16
    steps = {}
    for solver in (PeacemanRachford(), ForwardBackward(max_steps=20_000)):
        solve = jax.jit(lambda W, b, s=solver: monotone.solve(W, b, solver=s, rtol=1e-9).stats)
        stats = solve(W, b)
        assert stats.converged.all()
        steps[solver.name] = int(stats.steps.max())
    assert 20 * steps["peaceman_rachford"] <= steps["forward_backward"]


def test_with_fixed_point_itself():
    W, b = problem()
    f = lambda z, W, b: jax.nn.relu(W @ z + b)
    solver = PeacemanRachford().of(W, b[0])
    sol = deqjax.fixed_point(f, jnp.zeros(N), W, b[0], solver=solver, rtol=1e-12)
    np.testing.assert_allclose(sol.z, relu_solution(np.asarray(W), np.asarray(b[0])), atol=1e-10)
    # Of another equation: nothing claims to have converged.
    other = deqjax.fixed_point(f, jnp.zeros(N), W, b[1], solver=solver)
    assert not other.stats.converged


def test_bad_input_in_one_sentence():
    W, b = problem()
    f = lambda z: jax.nn.relu(z @ W.T + b)
    with pytest.raises(TypeError, match="does not know its equation"):
        deqjax.fixed_point(f, b, solver=PeacemanRachford(), batch_axis=0)
    with pytest.raises(ValueError, match="one array"):
        deqjax.fixed_point(f, b, solver=PeacemanRachford().of(W, b))
    for bad_w, bad_b in ((W[:3], b), (W, b[:, :2]), (W, b[None])):
        with pytest.raises(ValueError, match="a splitting takes"):
            PeacemanRachford().of(bad_w, bad_b)
    with pytest.raises(ValueError, match="proximal operator"):
        monotone.solve(W, b, "gelu")
    with pytest.raises(ValueError, match="alpha"):
        PeacemanRachford(alpha=0.0)
    with pytest.raises(TypeError, match="did you mean 'alpha'"):
        ForwardBackward(alfa=1.0)  # type: ignore[call-arg]
    with pytest.raises(ValueError, match="same n"):
        monotone.monotone(np.ones((2, 3)), np.ones((2, 2)))
    with pytest.raises(ValueError, match="m must be"):
        monotone.monotone(np.ones((2, 2)), np.ones((2, 2)), 0.0)


@pytest.mark.slow
def test_sharded(on_devices):
    on_devices(2, str(Path(__file__).with_name("sharded_programs.py")), "splitting universality")
