"""The dense layer that is an equilibrium: certified whatever its parameters, exact gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import deqjax
from deqjax.nn import ImplicitDense
from deqjax.theory.monotone import Averaged
from deqjax.theory.wellposed import ACTIVATIONS, Activation

KINDS = ("inf_norm", "mu_inf", "monotone")


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
@pytest.mark.parametrize("kind", KINDS)
def test_certified_whatever_the_parameters_are(kind, dtype, double_precision):
    for name in ACTIVATIONS:
        try:
            layer = ImplicitDense(3, 6, kind=kind, activation=name, bound=0.99, rngs=nnx.Rngs(0))
        except ValueError:  # what the kind cannot certify
            continue
        for size in (0.0, 1.0, 1e3):
            rng = np.random.default_rng(0)
            for param in (layer.T, layer.P):
                if param is not None:
                    param[...] = jnp.asarray(size * rng.normal(size=(6, 6)), dtype)
            found = layer.certificate()
            if kind == "monotone" and size == 1e3 and dtype == jnp.float32:
                continue  # PᵀP of 1e6 rounds by more than the margin: see below
            assert found.holds and found.kind == kind, found
            assert found.bound <= 0.99 + 1e-4


def test_a_certificate_that_rounding_has_lost_is_not_given():
    layer = ImplicitDense(3, 6, kind="monotone", bound=0.99, rngs=nnx.Rngs(0))
    layer.P[...] = 1e4 * jax.random.normal(jax.random.key(0), (6, 6))
    exact = np.linalg.eigvalsh(np.asarray(layer.A() + layer.A().T, np.float64) / 2)[-1]
    assert layer.certificate().holds == (exact < 1)


@pytest.mark.parametrize(
    "kind", ["inf_norm", *(pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS[1:])]
)
def test_gradients_are_those_of_a_dense_solve(kind, double_precision):
    """z = tanh(A z + c), by Newton's method on dense matrices, differentiated by hand."""
    layer = ImplicitDense(
        *(2, 3), kind=kind, activation="tanh", bound=0.9, rtol=1e-13, max_steps=500,
        rngs=nnx.Rngs(0),
    )  # fmt: skip
    graph, state = nnx.split(layer, nnx.Param)
    state = jax.tree.map(lambda x: x.astype(jnp.float64), state)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 2)))

    def dense(state, x):
        layer = nnx.merge(graph, state)
        A, c = layer.A(), layer.inject(x)
        z = jnp.zeros_like(c)
        for _ in range(8):  # exact to rounding long before; the derivative of the last is exact
            t = jnp.tanh(z @ A.T + c)
            J = (1 - t**2)[..., None] * A
            z = z - jnp.linalg.solve(jnp.eye(3) - J, (z - t)[..., None])[..., 0]
        return z

    def solved(state, x):
        return nnx.merge(graph, state)(x).z

    weight = jnp.arange(1.0, 13).reshape(4, 3)
    both = [
        jax.jit(jax.value_and_grad(lambda s, x, g=g: jnp.sum(weight * g(s, x)), (0, 1)))(state, x)
        for g in (dense, solved)
    ]
    for want, got in zip(*map(jax.tree.leaves, both), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-11)
    assert all(jnp.abs(g).max() > 1e-3 for g in jax.tree.leaves(both[0][1]))


@pytest.mark.parametrize(
    "kind", ["inf_norm", *(pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS[1:])]
)
def test_the_certificate_is_true_after_every_update(kind):
    """With steps far too long."""
    layer = ImplicitDense(4, 8, kind=kind, bound=0.9, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(0), (16, 4))
    graph, state = nnx.split(layer, nnx.Param)
    optimiser = optax.adam(0.3)

    @jax.jit
    def update(state, memory):
        def loss(state):
            sol = nnx.merge(graph, state)(x)
            return -jnp.mean(sol.z**2), sol.stats.converged

        change, converged = jax.grad(loss, has_aux=True)(state)
        change, memory = optimiser.update(change, memory)
        return optax.apply_updates(state, change), memory, converged

    memory, start = optimiser.init(state), layer.A()
    for _ in range(8):
        state, memory, converged = update(state, memory)
        assert converged.all()
        assert nnx.merge(graph, state).certificate().holds
    assert jnp.abs(nnx.merge(graph, state).A() - start).max() > 0.1


def test_one_input_starts_and_solvers():
    layer = ImplicitDense(3, 5, kind="mu_inf", solver="averaged", max_steps=2000, rngs=nnx.Rngs(0))
    assert isinstance(layer.solver, Averaged)
    x = jnp.ones(3)
    solve = jax.jit(lambda x, z0: layer(x, z0=z0))
    sol = solve(x, jnp.zeros(5))
    assert sol.z.shape == (5,) and sol.stats.converged.shape == () and sol.stats.converged
    assert solve(x, sol.z).stats.steps == 0

    def loss(x, probe):
        return layer(x, adjoint_probe=probe).z.sum()

    _, report = jax.jit(jax.grad(loss, (0, 1)))(x, deqjax.adjoint_probe())
    assert report.converged == 1
    mapped = jax.jit(jax.vmap(lambda x: layer(x).z))(jnp.stack([x, 2 * x]))
    np.testing.assert_allclose(mapped[0], sol.z, rtol=1e-4)


def test_bad_options_in_one_sentence():
    rngs = nnx.Rngs(0)
    for options, why in (
        (dict(kind="infnorm"), "did you mean 'inf_norm'"),
        (dict(bound=1.0), "below 1"),
        (dict(bound=0.0), r"in \(0, 1\]"),
        (dict(kind="mu_inf", activation="gelu"), "non-decreasing"),
        (dict(kind="monotone", activation="selu"), r"slopes in \[0, 1\]"),
        (dict(activation="layer_norm"), "1/sqrt"),
        (dict(solver="pickard"), "did you mean 'picard'"),
        (dict(activation=Activation("nought", jnp.zeros_like, slopes=(0.0, 0.0))), "constant"),
    ):
        with pytest.raises(ValueError, match=why):
            ImplicitDense(3, 5, **options, rngs=rngs)
    with pytest.raises(ValueError, match="reshape"):
        ImplicitDense(3, 5, rngs=rngs)(jnp.ones((2, 2, 3)))
