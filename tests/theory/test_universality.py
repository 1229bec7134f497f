"""A deep network as one equilibrium: exact after L steps, both ways, and not before."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import deqjax
from deqjax.theory.universality import stacked, weight_tied
from deqjax.theory.wellposed import certify, compose
from experiments.well_posed.depth import backpropagated, layers, network, solved

MIXED = ("tanh", "relu", "sigmoid", "gelu")


def largest(tree):
    return max(float(jnp.max(jnp.abs(x))) for x in jax.tree.leaves(tree))


def apart(a, b):
    """The largest difference, relative to the largest entry."""
    return largest(jax.tree.map(lambda x, y: x - y, a, b)) / largest(b)


@pytest.mark.parametrize("depth", [4, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 32))])
def test_output_and_gradients_are_back_propagations(depth):
    weights, biases, sigmas, x = layers(depth)
    want, want_bar = backpropagated(weights, biases, sigmas, x)
    for start in (0.0, 1e3):
        got, got_bar, stats, adjoint = solved(weights, biases, sigmas, x, start=start)
        assert apart(got, want) <= 1e-14
        assert apart(got_bar, want_bar) <= 1e-14
        assert (stats.converged).all() and (stats.steps <= depth + 1).all()
        assert (adjoint.steps <= depth + 1).all() and (adjoint.converged == 1).all()


def test_exactly_l_steps_of_picard_and_of_the_adjoint():
    depth = 4
    weights, biases, sigmas, x = layers(depth)
    want, want_bar = backpropagated(weights, biases, sigmas, x)
    for steps in (depth - 1, depth):
        got, *_ = solved(weights, biases, sigmas, x, start=3.0, max_steps=steps)
        assert (apart(got, want) <= 1e-14) == (steps == depth)
        # From u = v, one application of Jᵀ less is enough; from the zero before it, L.
        adjoint = deqjax.Picard(max_steps=steps - 1, rtol=1e-15)
        _, bar, *_ = solved(weights, biases, sigmas, x, adjoint=deqjax.Implicit(solver=adjoint))
        assert (apart(bar, want_bar) <= 1e-14) == (steps == depth)


@pytest.mark.parametrize("k", [3, 4, *(pytest.param(k, marks=pytest.mark.slow) for k in (1, 2, 5))])
def test_phantom_is_exact_if_and_only_if_k_is_l_or_more(k):
    depth = 4
    weights, biases, sigmas, x = layers(depth)
    _, want = backpropagated(weights, biases, sigmas, x)
    _, bar, *_ = solved(weights, biases, sigmas, x, adjoint=deqjax.Phantom(steps=k, damping=1.0))
    assert (apart(bar, want) <= 1e-14) == (k >= depth)
    # The last k layers are right, those before have no gradient at all.
    for i, (got, exact) in enumerate(zip(bar[0], want[0], strict=True)):
        if i >= depth - k:
            assert apart([got], [exact]) <= 1e-14
        else:
            assert largest(got) == 0 < largest(exact)


def test_jfb_is_wrong():
    weights, biases, sigmas, x = layers(4)
    _, want = backpropagated(weights, biases, sigmas, x)
    _, bar, *_ = solved(weights, biases, sigmas, x, adjoint="jfb")
    assert apart(bar, want) > 0.3


@pytest.mark.slow
@settings(max_examples=5, deadline=None)
@given(st.lists(st.sampled_from([1, 4]), min_size=1, max_size=4), st.integers(0, 9), st.booleans())
def test_any_widths(widths, seed, float32):
    """Evaluated L times, without a solver: nothing is compiled."""
    dtype = np.float32 if float32 else np.float64
    rng = np.random.default_rng(seed)
    sizes = [3, *widths]
    weights = [rng.normal(size=(b, a)).astype(dtype) for a, b in zip(sizes, widths, strict=False)]
    biases = [rng.normal(size=b).astype(dtype) for b in widths]
    sigmas = [MIXED[i % 4] for i in range(len(widths))]
    f = weight_tied(weights, biases, sigmas)
    x = rng.normal(size=(2, 3)).astype(dtype)
    z = jnp.asarray(rng.normal(size=(2, sum(widths))).astype(dtype) * 1e3)
    assert f.depth == len(widths) and z.dtype == f(z, x).dtype == f.start(x).dtype
    for _ in range(f.depth):
        z = f(z, x)
    want = network(weights, biases, f.activations, x)
    np.testing.assert_allclose(f.output(z), want, rtol=2e-5 if float32 else 1e-13, atol=1e-6)
    np.testing.assert_array_equal(f(z, x), z)
    # Nilpotent, and so certified whatever the weights are.
    assert certify(f.W, "relu").holds
    assert not np.any(np.linalg.matrix_power(np.asarray(f.W) != 0, f.depth))


@pytest.mark.slow
def test_other_solvers_get_there_too():
    weights, biases, sigmas, x = layers(4)
    want, want_bar = backpropagated(weights, biases, sigmas, x)
    for solver in ("anderson", "broyden"):
        got, bar, *_ = solved(weights, biases, sigmas, x, solver=solver, rtol=1e-13)
        assert apart(got, want) <= 1e-12 and apart(bar, want_bar) <= 1e-12


def test_two_stacked_equilibria_are_one():
    """Theorem 2: values and gradients of one solve after the other."""
    rng = np.random.default_rng(0)
    A, B = (0.8 * w / np.linalg.norm(w, 2) for w in rng.normal(size=(2, 4, 4)))
    x = jnp.asarray(rng.normal(size=(3, 4)))
    theta = tuple(map(jnp.asarray, (A, B, rng.normal(size=(4, 4)))))
    how = dict(batch_axis=0, rtol=1e-13, max_steps=400, solver="picard")
    zeros = jnp.zeros_like(x)

    def first(z, A, x):
        return jnp.tanh(z @ A.T + x)

    def joint(theta, x):
        A, B, C = theta
        second = lambda z, y: jnp.sin(z @ B.T + y @ C.T)
        F = stacked(lambda z, x: first(z, A, x), second)
        sol = deqjax.fixed_point(F, (zeros, zeros), x, **how)
        return jnp.sum(sol.z[1] ** 3), (sol.z, sol.stats.converged)

    def nested(theta, x):
        A, B, C = theta
        z1 = deqjax.fixed_point(first, zeros, A, x, **how).z
        second = lambda z, B, y: jnp.sin(z @ B.T + y)
        z2 = deqjax.fixed_point(second, zeros, B, z1 @ C.T, **how).z
        return jnp.sum(z2**3), ((z1, z2), True)

    (_, (z, converged)), bar = jax.jit(jax.value_and_grad(joint, (0, 1), has_aux=True))(theta, x)
    (_, (want, _)), want_bar = jax.jit(jax.value_and_grad(nested, (0, 1), has_aux=True))(theta, x)
    assert converged.all()
    assert apart(z, want) < 1e-11 and apart(bar, want_bar) < 1e-11 and largest(want_bar) > 0.01
    # And it is well-posed where both are.
    parts = [certify(0.3 * A, "tanh"), certify(0.3 * B, "sin")]
    assert all(p.holds for p in parts) and compose(*parts).holds


def test_it_is_a_pytree():
    weights, biases, sigmas, x = layers(2)

    @jax.jit
    def values(f, z, x):
        return f(z, x)

    f = weight_tied(weights, biases, sigmas)
    z = f.start(x)
    np.testing.assert_allclose(values(f, z, x), f(z, x), rtol=1e-15)
    each = jax.jit(jax.vmap(functools.partial(f)))(z, x)
    np.testing.assert_allclose(each, f(z, x), rtol=1e-13)


def test_bad_input_in_one_sentence():
    w, b = np.ones((2, 3)), np.ones(2)
    with pytest.raises(ValueError, match="a weight and a bias a layer"):
        weight_tied([], [])
    with pytest.raises(ValueError, match="layer 2 needs"):
        weight_tied([w, w], [b, b])
    with pytest.raises(ValueError, match="1 layers and 2 activations"):
        weight_tied([w], [b], ["relu", "tanh"])
    with pytest.raises(ValueError, match="did you mean"):
        weight_tied([w], [b], "rleu")
    with pytest.raises(ValueError, match="a function or one of"):
        weight_tied([w], [b], "layer_norm")
    with pytest.raises(TypeError, match="not int"):
        weight_tied([w], [b], [3])
    with pytest.raises(TypeError, match="two functions"):
        stacked(3, 4)  # type: ignore[arg-type]
