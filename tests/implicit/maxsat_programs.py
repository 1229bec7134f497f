"""A program for four devices, run by `test_maxsat` in a process of its own."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import deqjax
from deqjax.implicit import maxsat

N, AUX, M, BATCH = 5, 2, 12, 8


def value_and_gradients(S, z, given, probe):
    def loss(S, z, probe):
        options = dict(aux=AUX, k=4, rtol=1e-9, max_sweeps=2000, adjoint_rtol=1e-9)
        sol = maxsat(S, z, given, key=jax.random.key(0), adjoint_probe=probe, **options)
        return jnp.sum(jnp.sin(3 * sol.z)), sol.stats.steps

    return jax.value_and_grad(loss, (0, 1, 2), has_aux=True)(S, z, probe)


def shard_map_is_one_device():
    """Clauses replicated, boards sharded; each device stops by itself."""
    rng = np.random.default_rng(0)
    S = jnp.asarray(rng.normal(size=(N + AUX + 1, M)))
    z, given = jnp.asarray(rng.random((BATCH, N))), jnp.asarray(rng.random((BATCH, N)) < 0.5)
    probe = deqjax.adjoint_probe(BATCH, jnp.float64)
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))

    def local(S, z, given, probe):
        (value, steps), bars = value_and_gradients(S, z, given, probe)
        return jax.lax.psum(value, "data"), steps, bars

    rows = P("data")
    specs = dict(in_specs=(P(), rows, rows, rows), out_specs=(P(), rows, (P(), rows, rows)))
    sharded = jax.jit(jax.shard_map(local, mesh=mesh, **specs))
    got = sharded(S, z, given, probe)
    (value, steps), bars = jax.jit(value_and_gradients)(S, z, given, probe)
    np.testing.assert_array_equal(got[1], steps)
    np.testing.assert_allclose(got[0], value, rtol=1e-9)
    for a, b in zip(got[2][:2], bars[:2], strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    assert got[2][2].converged.all() and bars[2].converged.all()


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    for name in sys.argv[1:]:
        globals()[name]()
