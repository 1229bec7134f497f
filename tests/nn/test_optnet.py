"""`OptNet`: always feasible, and learns constraints on the smoothed gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from deqjax.nn import OptNet


def test_every_parameter_has_a_gradient_and_every_program_a_solution():
    layer = OptNet(6, equalities=2, inequalities=3, rank=2, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(0), (4, 6))

    @nnx.jit
    def step(layer):
        return nnx.value_and_grad(lambda layer: (layer(x).z ** 2).sum())(layer), layer(x)

    (loss, grads), sol = step(layer)
    assert np.all(sol.stats.converged)
    z0 = np.exp(layer.log_z0[...])
    assert np.allclose(sol.z @ layer.A[...].T, layer.A[...] @ z0, atol=1e-2)
    assert np.all(sol.z > -1e-2) and np.all(sol.slack > -1e-2)
    for name in ("A", "log_z0", "G", "log_s", "L"):
        grad = grads[name][...]
        assert np.all(np.isfinite(grad)) and np.any(grad != 0), name


def test_learns_that_one_entry_of_each_pair_is_one():
    """The rules zᵢ + zᵢ₊₁ = 1, from examples: the given entry decides the other."""
    n, rng = 6, np.random.default_rng(0)
    bits = rng.integers(0, 2, (64, n // 2))
    wanted = np.stack([bits, 1 - bits], axis=2).reshape(64, n).astype(np.float32)
    known = np.zeros_like(wanted)
    known[:, ::2] = 2 * wanted[:, ::2] - 1  # the first of each pair, and nothing of the second
    layer = OptNet(n, equalities=3, rngs=nnx.Rngs(1))
    optimizer = nnx.Optimizer(layer, optax.adam(0.1), wrt=nnx.Param)

    @nnx.jit
    def step(layer, optimizer):
        def loss(layer):
            sol = layer(jnp.asarray(known))
            return jnp.mean((sol.z - wanted) ** 2), sol.stats.converged.all()

        (value, converged), grads = nnx.value_and_grad(loss, has_aux=True)(layer)
        optimizer.update(layer, grads)
        return value, converged

    for _ in range(60):
        value, converged = step(layer, optimizer)
        assert converged
    z = np.asarray(layer(jnp.asarray(known)).z)
    assert np.array_equal(z > 0.5, wanted > 0.5), value


@pytest.mark.parametrize(
    "options, says",
    [
        (dict(quadratic=0.0), "quadratic must be positive"),
        (dict(gradient="exakt"), "did you mean 'exact'"),
        (dict(gradient="exact", smoothing=1e-3), "needs gradient='smoothed'"),
        (dict(on_failure="shout"), "not a known policy"),
    ],
)
def test_bad_options_fail_where_the_module_is_made(options, says):
    with pytest.raises(ValueError, match=says):
        OptNet(4, 2, rngs=nnx.Rngs(0), **options)
