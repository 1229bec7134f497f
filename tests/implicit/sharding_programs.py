"""Every implicit layer on four devices: run by `test_sharding` in a process of its own."""

import sys

import jax
import numpy as np
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from tests.implicit.layers import LAYERS
from tests.transforms.sharding_programs import COLLECTIVE, inside_loops

DEVICES = 4


def rows_over_devices(name):
    """Weights on all devices, samples spread: values and gradients are those of one device, and
    devices talk to each other before and after the loops, never inside."""
    layer = LAYERS[name]()
    mesh = jax.make_mesh((DEVICES,), ("data",), axis_types=(AxisType.Auto,))

    def local(weights, *rows):
        value, by_sample = layer.loss(weights, *rows)
        return jax.lax.psum(value, "data"), by_sample

    rows = P("data")
    specs = (P(), *(rows,) * len(layer.rows)), (P(), rows)
    total = jax.shard_map(local, mesh=mesh, in_specs=specs[0], out_specs=specs[1])
    step = jax.jit(jax.value_and_grad(total, tuple(range(1 + layer.floating)), has_aux=True)).lower(
        layer.weights, *layer.rows
    )
    compiled = step.compile()
    got = compiled(layer.weights, *layer.rows)
    want = jax.jit(layer.value_and_gradients)(layer.weights, *layer.rows)
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-7, atol=1e-7)
    np.testing.assert_array_equal(got[0][1][1], want[0][1][1])  # steps
    assert all(abs(x).max() > 1e-3 for x in jax.tree.leaves(want[1]))

    graph, reached = inside_loops(compiled.as_text())
    assert len(reached) >= 2, sorted(reached)
    outside = "".join(text for name, text in graph.items() if name not in reached)
    assert COLLECTIVE.search(outside)
    for computation in reached:
        found = COLLECTIVE.search(graph[computation])
        assert found is None, f"{found.group()} in {computation}"


if __name__ == "__main__":
    assert len(jax.devices()) == DEVICES
    jax.config.update("jax_enable_x64", True)
    for name in sys.argv[1:]:
        print(name, flush=True)
        rows_over_devices(name)
