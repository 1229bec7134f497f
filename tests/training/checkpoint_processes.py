"""What `test_checkpoint_processes.py` runs beside itself: two processes of one job that share a
directory, and one with a mesh of its own.

    python checkpoint_processes.py FOLDER job INDEX PORT
    python checkpoint_processes.py FOLDER on_and_on INDEX PORT
    python checkpoint_processes.py FOLDER alone
"""

import contextlib
import errno
import itertools
import os
import sys
import time
import warnings
from pathlib import Path
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from deqjax.training.checkpoints import (
    CheckpointError,
    CheckpointMismatch,
    Checkpoints,
    manifest,
)


def values(step: int) -> dict:
    """The same on every process and every number of devices."""
    return {
        "matrix": jnp.arange(96.0).reshape(12, 8) + step,
        "half": jnp.linspace(-1, 1, 12, dtype=jnp.bfloat16) * step,
        "replicated": jnp.arange(5.0) - step,
        "weak": jnp.asarray(0.5 * step),
        "keys": jax.random.split(jax.random.key(step), 12),
        "key": jax.random.key(step),
        "empty": jnp.zeros((0, 3)),
        "local": jnp.int32(step),
        "numpy": np.arange(3) + step,
    }


def laid_out(tree: dict, mesh: Mesh) -> dict:
    """The tree over a mesh of axes a and b."""
    specs = dict(matrix=("a", "b"), half=("a",), keys=("a",))

    def put(name, value):
        if name in ("local", "numpy"):
            return value
        sharding = NamedSharding(mesh, PartitionSpec(*specs.get(name, ())))
        if name == "weak":
            return jax.device_put(value, sharding)
        return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])

    return {name: put(name, value) for name, value in tree.items()}


def numbers(array):
    if jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
        array = jax.random.key_data(array)
    return np.asarray(array)


def assert_restored(got: dict, step: int, template: dict) -> None:
    """Every value that is here is that of the step, laid out as the template asks."""
    want = values(step)
    assert set(got) == set(want)
    for name, value in got.items():
        assert (value.dtype, value.shape) == (want[name].dtype, want[name].shape), name
        if not isinstance(value, jax.Array):
            assert value.tobytes() == want[name].tobytes(), name
            continue
        assert value.sharding == template[name].sharding, name
        for shard in value.addressable_shards:
            here = numbers(want[name])[shard.index]
            assert numbers(shard.data).tobytes() == here.tobytes(), name
    assert got["weak"].weak_type and not got["replicated"].weak_type


def damage(folder: Path) -> None:
    path = max(folder.rglob("d/*"), key=lambda path: path.stat().st_size)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x10
    path.write_bytes(data)


def together(name: str) -> None:
    multihost_utils.sync_global_devices(name)


def job(folder: Path, index: int) -> None:
    mesh = Mesh(np.array(jax.devices()).reshape(2, 2), ("a", "b"))
    template = laid_out(values(0), mesh)

    with Checkpoints(folder / "one") as checkpoints:  # from one process to two
        restored = checkpoints.restore(template)
        assert (restored.step, restored.info) == (7, {"seconds": 1.5})
        assert_restored(restored.tree, 7, template)

    checkpoints = Checkpoints(folder / "two", keep=2, keep_best=1)
    assert checkpoints.restore(template) is None
    total = jax.jit(lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0)
    for step, metric in [(1, 1.0), (2, 3.0), (3, 2.0), (4, 4.0)]:
        tree = laid_out(values(step), mesh)
        matrix = tree["matrix"]
        checkpoints.save(step, tree, {"process": index}, metric=metric)
        for _ in range(10):  # collectives of the main thread, beside those who write
            matrix = total(matrix)
            float(jnp.sum(matrix))
    checkpoints.wait()
    assert checkpoints.steps() == [1, 3, 4] and checkpoints.best == 1
    restored = checkpoints.restore(template)
    assert (restored.step, restored.info, restored.metric) == (4, {"process": 0}, 4.0)
    assert_restored(restored.tree, 4, template)

    if index == 1:
        damage(folder / "two" / "step_000000004")
    together("damaged")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        restored = checkpoints.restore(template)
    said = [str(w.message) for w in caught if issubclass(w.category, RuntimeWarning)]
    assert len(said) == 1 and "step_000000004: " in said[0] and "SHA-256" in said[0], said
    assert restored.step == 3
    assert_restored(restored.tree, 3, template)
    assert checkpoints.restore(template, "best").step == 1

    # What goes wrong on one process is heard of on all.
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def fails(folder, arrays, real=checkpoints._arrays.write):
        real(folder, arrays)()
        full()

    said = "No space left on device"
    mute = "it failed, and could not write why"
    for where, what, patches in [
        (1, said, [(checkpoints._arrays, "write", fails)]),  # while it writes
        (1, said, [(manifest, "sealed", full)]),
        (1, mute, [(manifest, "sealed", full), (Path, "write_bytes", full)]),
        (0, said, [(manifest, "write", full)]),  # what all have written
    ]:
        with contextlib.ExitStack() as stack:
            for patch in patches if index == where else ():
                stack.enter_context(mock.patch.object(*patch))
            checkpoints.save(5, laid_out(values(5), mesh))
            try:
                checkpoints.wait()
            except CheckpointError as error:
                heard = said if index == where else f"process {where}: {what}"
                assert f": {heard}; the older" in str(error), error
            else:
                raise AssertionError("nobody noticed")
        together("failed")
        names = sorted(path.name for path in (folder / "two").iterdir())
        assert names == [f"step_{n:09d}" for n in (1, 3, 4)], names
    for tree in (dict(template, replicated=jnp.zeros(index + 5)), dict(template, more=np.ones(1))):
        try:
            checkpoints.restore(tree)
        except CheckpointMismatch:
            assert "more" in tree or index == 1
        except CheckpointError as error:
            assert index == 0 and str(error).startswith("process 1: the checkpoint of step 3")
        else:
            raise AssertionError("another tree was taken")
    try:
        checkpoints.save(5, dict(template, numpy=np.arange(3 + index)))
    except (CheckpointError, ValueError) as error:
        assert "process 1 saves another step or another tree" in str(error)
    else:
        raise AssertionError("two trees in one checkpoint")

    checkpoints.save(4, laid_out(values(4), mesh), wait=True)
    checkpoints.close()
    together("end")
    if index == 0:
        (folder / "done").touch()


def on_and_on(folder: Path, index: int) -> None:
    """Save step after step, going on from what is there, until killed."""
    mesh = Mesh(np.array(jax.devices()).reshape(2, 2), ("a", "b"))
    checkpoints = Checkpoints(folder, keep=2)
    restored = checkpoints.restore(laid_out(values(0), mesh))
    for step in itertools.count(1 if restored is None else restored.step + 1):
        checkpoints.save(step, laid_out(values(step), mesh))
        print("step", step, flush=True)


def alone(folder: Path) -> None:
    """Restore what two processes saved, on other meshes; and what one mesh saved, on another."""
    deadline = time.monotonic() + 100
    while not (folder / "done").exists():
        assert time.monotonic() < deadline, "the job did not end"
        time.sleep(0.05)
    devices = np.array(jax.devices())
    for shape in ((3, 1), (1, 2)):
        mesh = Mesh(devices[: shape[0] * shape[1]].reshape(shape), ("a", "b"))
        template = laid_out(values(0), mesh)
        abstract = {
            name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)
            if isinstance(x, jax.Array) and x.committed
            else x
            for name, x in template.items()
        }
        with Checkpoints(folder / "two") as checkpoints:
            restored = checkpoints.restore(abstract)
            assert restored.step == 4
            assert_restored(restored.tree, 4, template)
            checkpoints.save(4, restored.tree)  # for the next shape


if __name__ == "__main__":
    if sys.argv[2] != "alone":
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        number, port = int(sys.argv[3]), sys.argv[4]
        jax.distributed.initialize(f"127.0.0.1:{port}", 2, number)
        {"job": job, "on_and_on": on_and_on}[sys.argv[2]](Path(sys.argv[1]), number)
    else:
        alone(Path(sys.argv[1]))
