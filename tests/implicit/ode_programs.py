"""Programs for four devices, run by `test_ode` in a process of their own."""

import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from deqjax.implicit import ode


def mesh():
    return jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))


def flows(adjoint):
    """Values, statistics and gradients of a batch over devices, parameters on all of them."""
    rng = np.random.default_rng(0)
    w, z0, x = (jnp.asarray(rng.normal(size=s)) for s in ((2, 2), (8, 2), (8, 2)))
    f = lambda t, z, w, x: jnp.tanh(z @ w) - t * x
    options = dict(batch_axis=0, args_axes=(None, 0), rtol=1e-8, max_steps=64)

    def loss(w, z0, x):
        sol = ode(f, z0, w, x, adjoint=adjoint, **options)
        return jnp.sin(sol.z).sum(), sol.stats.steps

    def local(w, z0, x):
        value, steps = loss(w, z0, x)
        return jax.lax.psum(value, "data"), steps

    spread = (P(), P("data"), P("data")), (P(), P("data"))
    total = jax.shard_map(local, mesh=mesh(), in_specs=spread[0], out_specs=spread[1])
    run = lambda f: jax.jit(jax.value_and_grad(f, (0, 1, 2), has_aux=True))(w, z0, x)
    for a, b in zip(jax.tree.leaves(run(total)), jax.tree.leaves(run(loss)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12)


flow_recursive, flow_direct, flow_backsolve = (
    partial(flows, adjoint) for adjoint in ("recursive", "direct", "backsolve")
)


def a_closure_is_refused():
    def local(z):
        return ode(lambda t, y: -z * y, jnp.ones_like(z), steps=2, solver="euler").z

    try:
        jax.jit(jax.shard_map(local, mesh=mesh(), in_specs=P("data"), out_specs=P("data")))(
            jnp.ones((4, 2))
        )
    except ValueError as refused:
        assert "as args" in str(refused)
    else:
        raise AssertionError("a closure over a traced array was taken")


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    for name in sys.argv[1:]:
        globals()[name]()
