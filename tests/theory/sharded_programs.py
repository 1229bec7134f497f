"""Programs for two devices, run by tests in a process of their own.

    python sharded_programs.py NAME ...

XLA fixes the number of host devices when it starts, hence the process.
"""

import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import deqjax
from deqjax.theory import monotone
from deqjax.theory.universality import weight_tied

jax.config.update("jax_enable_x64", True)


def compare(loss, W, b):
    """The gradients of a sum over samples, b cut over the devices, against one device's."""
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))

    def total(W, b):
        parts = jax.shard_map(
            lambda W, b: loss(W, b)[None], mesh=mesh, in_specs=(P(), P("data")), out_specs=P("data")
        )(W, b)
        return parts.sum()

    want = jax.jit(jax.grad(loss, (0, 1)))(W, b)
    got = jax.jit(jax.grad(total, (0, 1)))(W, b)
    for one, other in zip(want, got, strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-9, atol=1e-11)
        assert jnp.abs(one).max() > 1e-3


def splitting():
    rng = np.random.default_rng(0)
    W = monotone.monotone(rng.normal(size=(4, 4)), 2 * rng.normal(size=(4, 4)), 0.3)

    def loss(W, b):
        return jnp.sum(jnp.sin(monotone.solve(W, b, "tanh", rtol=1e-13).z))

    compare(loss, W, jnp.asarray(rng.normal(size=(4, 4))))


def universality():
    rng = np.random.default_rng(0)
    W = jnp.asarray(rng.normal(size=(3, 4, 4)))

    def loss(W, x):
        f = weight_tied(list(W), [jnp.ones(4)] * 3, "tanh")
        sol = deqjax.fixed_point(
            f, f.start(x), x, solver="picard", batch_axis=0, adjoint_solver="picard"
        )
        return jnp.sum(jnp.sin(f.output(sol.z)))

    compare(loss, W, jnp.asarray(rng.normal(size=(4, 4))))


if __name__ == "__main__":
    for name in sys.argv[1:]:
        globals()[name]()
