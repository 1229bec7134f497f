"""Programs for several devices and processes, run by `test_on_failure` in processes of their own.

python failure_programs.py devices Auto|Explicit
python failure_programs.py process INDEX COUNT PORT
"""

import os
import socket
import subprocess
import sys
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import deqjax


def affine(z, w):
    return w * z + 1


def gradient(w, **options):
    """Its adjoint fails for samples whose w is large."""
    adjoint = deqjax.Picard(max_steps=3)
    options = dict(batch_axis=0, rtol=1e-3, adjoint_solver=adjoint) | options
    loss = lambda w: deqjax.fixed_point(affine, jnp.zeros_like(w), w, **options).z.sum()
    return jax.grad(loss)(w)


def counts(function, *args) -> list[str]:
    """What is said of how many samples failed."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", deqjax.SolveWarning)
        jax.block_until_ready(function(*args))
        jax.effects_barrier()
    deqjax._failure._told.clear()
    return [str(w.message).split(" failed for ")[1].split(" samples")[0] for w in caught]


def devices(axes: str):
    w = jnp.array([0.9, 0.8, 0.9, 0.8, 0.9, 1e-3, 1e-3, 1e-3], jnp.float32)
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType[axes],))
    with jax.set_mesh(mesh):
        split = jax.device_put(w, NamedSharding(mesh, P("data")))
        assert counts(jax.jit(gradient), split) == []
        assert counts(gradient, split) == ["5 of 8"]
        heard = lambda w: gradient(w, on_failure="warn")
        assert counts(jax.jit(heard), split) == ["5 of 8"]
        # On each device by itself, and said by the first.
        each = jax.shard_map(heard, mesh=mesh, in_specs=P("data"), out_specs=P("data"))
        (first,) = counts(jax.jit(each), split)
        assert first in ("1 of 2", "2 of 2")
        marked = jax.jit(lambda w: gradient(w, on_failure="nan"))(split)
        np.testing.assert_array_equal(np.isnan(marked), np.asarray(w) > 0.5)


def process(index: int, count: int, port: int):
    """Two processes of two devices each: a solve that fails on the first."""
    jax.distributed.initialize(f"127.0.0.1:{port}", count, index)
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    w = np.array([0.9, 0.9, 1e-3, 1e-3], np.float32)
    rows = NamedSharding(mesh, P("data"))
    split = jax.make_array_from_callback(w.shape, rows, lambda i: w[i])
    for function in gradient, lambda w: gradient(w, solver="picard", max_steps=2):
        jax.block_until_ready(jax.jit(function)(split))
    solve = lambda w: deqjax.fixed_point(affine, jnp.zeros_like(w), w, batch_axis=0).z.max()
    print("z", round(float(jax.jit(solve)(split)), 2))


def start(file: Path, count: int) -> list[subprocess.Popen]:
    """`process` in `count` processes that find each other."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    flags = os.environ.get("XLA_FLAGS", "")
    environment = os.environ | {
        "XLA_FLAGS": f"{flags} --xla_force_host_platform_device_count=2",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
    }
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    command = [sys.executable, "-W", "error", str(file), "process"]
    return [
        subprocess.Popen([*command, str(i), str(count), str(port)], env=environment, **pipes)
        for i in range(count)
    ]


def finish(job: list[subprocess.Popen]) -> list[str]:
    """What they print; all must end well."""
    try:
        said = [p.communicate(timeout=240) for p in job]
    finally:
        for p in job:
            p.kill()
    assert all(p.returncode == 0 for p in job), said
    return [out for out, _ in said]


if __name__ == "__main__":
    name, *given = sys.argv[1:]
    if name == "devices":
        devices(*given)
    else:
        process(*map(int, given))
