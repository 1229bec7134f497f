"""Certificates: never a false one, and each bound is the one it names."""

import functools
import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import deqjax
from deqjax.theory import monotone
from deqjax.theory.wellposed import (
    Activation,
    averaging,
    certify,
    compose,
    lipschitz_bound,
    rescaled,
)
from experiments.well_posed.enumeration import GRID, Drawn, draw, is_well_posed, solutions

METHODS = ("inf_norm", "perron", "mu_inf", "monotone", "block_triangular")


def random(seed, n, size=1.0):
    return size * np.random.default_rng(seed).normal(size=(n, n)) / n**0.5


@pytest.mark.parametrize("count", [1000, pytest.param(10_000, marks=pytest.mark.slow)])
def test_no_false_certificate(count):
    """Against the principal minors of I − A, in whole numbers."""
    matrices = draw(count)
    well_posed = np.array([is_well_posed(m) for m in matrices])
    assert 0.2 < well_posed.mean() < 0.8
    held = {method: np.array([certify(m.A, "relu", method).holds for m in matrices])
            for method in METHODS}  # fmt: skip
    for method, found in held.items():
        assert not (found & ~well_posed).any(), method
        assert found.sum() > 0.05 * count, method
    every = np.array([certify(m.A, "relu").holds for m in matrices[:200]])
    np.testing.assert_array_equal(every, np.any([*held.values()], axis=0)[:200])


def test_the_enumeration_finds_what_the_minors_say():
    rng = np.random.default_rng(1)
    counted = {True: [], False: []}
    for m in draw(300, seed=2):
        found = [len(solutions(m.A, b)) for b in rng.normal(size=(12, len(m.K)))]
        counted[is_well_posed(m)].append(found)
    assert {c for found in counted[True] for c in found} == {1}
    assert np.mean([set(found) != {1} for found in counted[False]]) > 0.5


def test_a_spectral_radius_is_no_certificate():
    """ρ(A) = 0.5, and two solutions, or none."""
    A = np.array([[3.0, 2.5], [-2.5, -2.0]])
    assert np.abs(np.linalg.eigvals(A)).max() == pytest.approx(0.5, abs=1e-6)
    assert {len(solutions(A, b)) for b in np.array([[-1.0, 0], [1, 0]])} != {1}
    assert not certify(A, "relu").holds
    found = certify(A, "relu", "local", slopes=np.ones(2))
    assert not found.holds and found.kind == "local" and "not a certificate" in found.reason
    assert found.bound == pytest.approx(0.5, abs=1e-6)
    assert certify(A, "relu", "local", slopes=np.array([1, 0])).bound == pytest.approx(3.0)


@pytest.mark.parametrize("row", [[64], [-40, 24], [16, 16, -32]])
def test_on_the_border_nothing_is_certified(row):
    """A row that sums to exactly one; one unit less is certified."""
    n = len(row)
    K = np.zeros((n, n), np.int64)
    K[:] = row
    assert not certify(Drawn(K).A, "relu", "inf_norm").holds
    A = Drawn(K).A * (1 - 1e-14)
    assert certify(A, "relu", "inf_norm").holds


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 7), st.integers(0, 10**6), st.sampled_from(["float32", "float64"]))
def test_bounds_are_rounded_outward(n, seed, dtype):
    """Against rational arithmetic."""
    A = random(seed, n, 0.7).astype(dtype)
    exact = [[abs(Fraction(float(a))) for a in row] for row in A]
    assert Fraction(certify(A, "relu", "inf_norm").bound) >= max(map(sum, exact))
    found = certify(A, "relu", "perron")
    if found.holds:
        v = [Fraction(float(x)) for x in found.vector]
        ratios = [sum(a * x for a, x in zip(row, v, strict=True)) / w
                  for row, w in zip(exact, v, strict=True)]  # fmt: skip
        assert max(ratios) <= Fraction(found.bound) < 1 and min(v) > 0
    eigenvalue = np.linalg.eigvalsh((A.astype(float) + A.T.astype(float)) / 2)[-1]
    bound = certify(A, "relu", "monotone").bound
    assert eigenvalue <= bound <= eigenvalue + 1e-10


def test_perron_of_reducible_and_nilpotent_matrices():
    A = np.triu(random(0, 5, 30.0), 1)
    found = certify(A, "tanh", "perron")
    assert found.holds and (found.vector > 0).all()
    A = np.kron(np.diag([0.5, 0.8]), np.ones((2, 2)) / 2)  # two components
    found = certify(A, "abs", "perron")
    assert found.bound == pytest.approx(0.8, abs=1e-12) or 0.8 <= found.bound < 1
    assert not certify(A / 0.8, "abs", "perron").holds


def test_perron_holds_exactly_where_the_perron_eigenvalue_is_below_one():
    for seed in range(200):
        A = random(seed, 4)
        root = np.abs(np.linalg.eigvals(np.abs(A))).max()
        assert certify(A / root * (1 - 1e-9), "relu", "perron").holds
        assert not certify(A / root * (1 + 1e-9), "relu", "perron").holds


def test_a_lipschitz_constant_counts():
    A = 0.9 * np.eye(2)
    assert not certify(A, "selu").holds and certify(3.9 * np.eye(2), "sigmoid").holds
    assert not certify(4.0 * np.eye(2), "sigmoid").holds
    # What decreases has neither of the two.
    for method in ("mu_inf", "monotone"):
        assert certify(-3 * np.eye(2), "relu", method).holds
        found = certify(-3 * np.eye(2), "silu", method)
        assert not found.holds and "decreases" in found.reason
    # One solution of relu, several of |·|: z = |−3z + b| has two for b > 0.
    assert not certify([[-3.0]], "abs").holds


def test_averaging_converges_where_picard_does_not():
    A, b = np.array([[-3.0, 0.5], [0.5, 0.2]]), np.ones(2)
    assert certify(A, "relu").kind == "mu_inf"
    f = lambda z, A, b: jax.nn.relu(A @ z + b)
    solve = lambda damping: deqjax.fixed_point(
        *(f, jnp.zeros(2), A, b), solver=deqjax.Picard(damping=damping, max_steps=400)
    )
    assert not solve(1.0).stats.converged
    found = solve(averaging(A, "relu"))
    assert found.stats.converged
    np.testing.assert_allclose(found.z, *solutions(A, b), atol=1e-7)


def test_weighted_mu():
    """μ_∞ is above one, and below it in a weighted norm."""
    A = np.array([[-9.0, 8.0], [0.05, 0.3]])
    K = A * np.array([1.0, 10.0]) / np.array([1.0, 10.0])[:, None]
    assert K[0].sum() > 1
    found = certify(K, "relu", "mu_inf")
    assert found.holds and not np.allclose(found.vector, found.vector[0])
    v = found.vector
    worst = max(K[i, i] + sum(abs(K[i, j]) * v[j] / v[i] for j in range(2) if j != i)
                for i in range(2))  # fmt: skip
    assert worst <= found.bound < 1


def test_block_triangular_composition():
    """A monotone block and a contracting one, coupled in one direction, in any order."""
    A = np.zeros((4, 4))
    A[:2, :2] = [[-4.0, 9.0], [-9.0, 0.5]]
    A[2:, 2:] = [[0.4, 8.0], [0.02, 0.3]]
    A[:2, 2:] = 50.0
    order = [3, 0, 2, 1]
    A = A[np.ix_(order, order)]
    found = certify(A, "relu")
    assert found.holds and found.kind == "block_triangular" and found.bound < 1
    A[order.index(2), order.index(0)] = 50.0  # now they feed each other
    assert not certify(A, "relu").holds

    parts = [certify([[0.5]], "relu"), certify([[3.0]], "sigmoid")]
    assert compose(*parts).holds and compose(*parts).bound == parts[1].bound
    assert not compose(*parts, certify([[2.0]], "relu")).holds
    with pytest.raises(ValueError, match="at least one"):
        compose()


def test_rescaling_keeps_a_relu_and_would_move_a_tanh():
    n = 6
    A, U, b = random(3, n, 1.0), random(4, n), random(5, n)[0]
    A = A / np.abs(np.linalg.eigvals(np.abs(A))).max() * 0.95 * np.ones(n)
    scale = np.geomspace(1e-3, 1e3, n)
    A = A * scale / scale[:, None]
    found = certify(A, "relu", "perron")
    assert found.holds and np.abs(A).sum(axis=1).max() > 10
    scaled = rescaled(A, U, b, found.vector, "relu")
    assert np.abs(scaled[0]).sum(axis=1).max() < 1
    x = random(6, n)[0]

    def solve(sigma, A, U, b):
        f = lambda z: sigma(A @ z + U @ x + b)
        z = np.zeros(n)
        for _ in range(2000):
            z = f(z)
        return np.asarray(z)

    relu = lambda t: np.maximum(t, 0)
    z = solve(relu, A, U, b)
    np.testing.assert_allclose(found.vector * solve(relu, *map(np.asarray, scaled)), z, rtol=1e-12)
    with pytest.raises(ValueError, match="not positively homogeneous"):
        rescaled(A, U, b, found.vector, "tanh")
    moved = found.vector * solve(np.tanh, *map(np.asarray, scaled)) - solve(np.tanh, A, U, b)
    assert np.abs(moved).max() > 0.1
    with pytest.raises(ValueError, match="entries > 0"):
        rescaled(A, U, b, None, "relu")


@functools.cache
def newton(name):
    """One program for every kind."""
    return jax.jit(lambda A, b: monotone.solve(A, b, name, solver="newton_krylov", rtol=1e-12))


@pytest.mark.parametrize("kind", ["inf_norm", "perron", "mu_inf", "monotone"])
@pytest.mark.parametrize("name", ["relu", pytest.param("sigmoid", marks=pytest.mark.slow)])
def test_no_pair_of_inputs_moves_z_more_than_the_bound(kind, name):
    size, found, seed = 4.0, None, 0
    while found is None or not found.holds:
        A = random(seed, 4, size) - (2.0 if kind in ("mu_inf", "monotone") else 0) * np.eye(4)
        found, size, seed = certify(A, name, kind), 0.9 * size, seed + 1
    U = np.random.default_rng(1).normal(size=(4, 3))
    bound = lipschitz_bound(found, U)
    order = 2 if kind == "monotone" else math.inf
    xs = np.random.default_rng(2).normal(size=(400, 3))
    xs[1::2] = xs[::2] + 0.3 * xs[1::2]
    sol = newton(name)(A, jnp.asarray(xs @ U.T))
    assert sol.stats.converged.all()
    far = np.linalg.norm(sol.z[::2] - sol.z[1::2], order, axis=1)
    ratio = far / np.linalg.norm(xs[::2] - xs[1::2], order, axis=1)
    assert 0.01 * bound < ratio.max() <= bound


def test_the_lipschitz_bound_is_reached():
    """z = relu(a z + u x): z moves u/(1 − a) as far as x."""
    for kind in ("inf_norm", "perron", "mu_inf", "monotone"):
        bound = lipschitz_bound(certify([[0.75]], "relu", kind), [[3.0]])
        assert bound == pytest.approx(12.0, rel=1e-12) and bound >= 12
    assert lipschitz_bound(certify([[-3.0]], "relu", "mu_inf")) == pytest.approx(0.25)
    blocks = certify([[0.5, 9.0], [0.0, 0.5]], "relu", "block_triangular")
    for bad in (certify([[2.0]], "relu"), blocks):
        with pytest.raises(ValueError, match="of one norm"):
            lipschitz_bound(bad)
    with pytest.raises(ValueError, match="rows"):
        lipschitz_bound(certify([[0.5]], "relu"), np.ones((2, 2)))


def test_bad_input_in_one_sentence():
    for bad, why in (
        (np.ones((2, 3)), "square"),
        (np.ones(3), "two axes"),
        (np.zeros((0, 0)), "two axes"),
        (np.full((2, 2), np.nan), "not finite"),
    ):
        with pytest.raises(ValueError, match=why):
            certify(bad, "relu")
    with pytest.raises(TypeError, match="real"):
        certify(np.eye(2) * 1j, "relu")
    with pytest.raises(TypeError, match="outside jit"):
        jax.jit(lambda A: certify(A, "relu").bound)(jnp.eye(2))
    with pytest.raises(ValueError, match="did you mean 'inf_norm'"):
        certify(np.eye(2), "relu", "infnorm")
    with pytest.raises(ValueError, match="slopes="):
        certify(np.eye(2), "relu", "local")
    with pytest.raises(ValueError, match="local"):
        certify(np.eye(2), "relu", slopes=np.ones(2))


def test_one_of_your_own():
    clipped = Activation("clipped", lambda t: jnp.clip(t, -1, 1), slopes=(0.0, 1.0))
    assert certify(-9 * np.eye(2), clipped).kind == "mu_inf"
    assert GRID == 64
