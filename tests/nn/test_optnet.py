"""`OptNet`: always feasible, and its parameters learn."""

import jax
import numpy as np
import pytest
from flax import nnx

from deqjax.nn import OptNet


def test_every_parameter_has_a_gradient_and_every_program_a_solution():
    layer = OptNet(6, equalities=2, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(0), (4, 6))

    @nnx.jit
    def step(layer):
        return nnx.value_and_grad(lambda layer: (layer(x).z ** 2).sum())(layer), layer(x)

    (_, grads), sol = step(layer)
    assert np.all(sol.stats.converged)
    z0 = np.exp(layer.log_z0[...])
    assert np.allclose(sol.z @ layer.A[...].T, layer.A[...] @ z0, atol=1e-2)
    assert np.all(sol.z > -1e-2)
    for name in ("A", "log_z0"):
        grad = grads[name][...]
        assert np.all(np.isfinite(grad)) and np.any(grad != 0), name


@pytest.mark.parametrize(
    "options, says",
    [
        (dict(quadratic=0.0), "quadratic must be"),
        (dict(gradient="exakt"), "did you mean 'exact'"),
        (dict(gradient="exact", smoothing=1e-3), "needs gradient='smoothed'"),
    ],
)
def test_bad_options_fail_where_the_module_is_made(options, says):
    with pytest.raises(ValueError, match=says):
        OptNet(4, equalities=2, rngs=nnx.Rngs(0), **options)
