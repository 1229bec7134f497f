"""The devices of a run as a mesh, and which part of an array lives where.

Two kinds of things are spread. Samples: whatever has the batch as its first axis is cut over the
axes `data` and `fsdp`. Parameters and the optimiser's moments: `fsdp` cuts them for storage, and
`tensor` for computation, along the axes that a module names.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from .options import OptionError, TrainOptions

PyTree = Any

AXES: tuple[str, ...] = ("data", "fsdp", "tensor")
ROWS = ("data", "fsdp")

# What the axes of parameters are called in the modules, and the mesh axis that each is cut over.
RULES = {"vocabulary": "tensor", "heads": "tensor", "inner": "tensor", "embed": "fsdp"}


def parse_mesh(text: str) -> dict[str, int]:
    """ "data=4,fsdp=2" as sizes, in that order; an axis that is not named has size 1."""
    sizes = dict.fromkeys(AXES, 1)
    named = set()
    for part in filter(None, text.replace(" ", "").split(",")):
        axis, _, size = part.partition("=")
        if axis not in AXES or axis in named or not size.isdecimal() or int(size) < 1:
            raise OptionError(
                f"--mesh takes sizes of data, fsdp and tensor, each once, such as data=4,fsdp=2; "
                f"got {text!r}"
            )
        named.add(axis)
        sizes[axis] = int(size)
    return sizes


def make_mesh(options: TrainOptions, devices: list[Any] | None = None) -> Mesh | None:
    """The mesh that the options ask for; None where one device needs none.

    Raises:
        OptionError: the mesh does not fit the devices, the batch or the kind of parallelism.
    """
    devices = jax.devices() if devices is None else devices
    sizes = {"data": len(devices)} if options.mesh is None else parse_mesh(options.mesh)
    sizes = dict.fromkeys(AXES, 1) | sizes
    total = math.prod(sizes.values())
    if total > len(devices) or (total < len(devices) and jax.process_count() > 1):
        raise OptionError(f"--mesh {_text(sizes)} is for {total} devices; there are {len(devices)}")
    if sizes["tensor"] > 1 and options.parallel != "jit":
        raise OptionError(
            f"a tensor axis cuts the cell itself, which --parallel {options.parallel} leaves "
            "whole: use --parallel jit"
        )
    if options.parallel == "pmap" and sizes["fsdp"] > 1:
        raise OptionError("--parallel pmap has data=N only; shard_map and jit have fsdp too")
    if options.parallel == "pmap" and jax.process_count() > 1:
        raise OptionError("--parallel pmap is for one process; use shard_map or jit")
    shards = sizes["data"] * sizes["fsdp"]
    if options.batch_size % (shards * options.accumulate):
        pieces = f" and {options.accumulate} accumulated parts" if options.accumulate > 1 else ""
        raise OptionError(
            f"--batch-size {options.batch_size} cannot be cut evenly over {shards} devices"
            f"{pieces}: take a multiple of {shards * options.accumulate}, or another --mesh"
        )
    if total == 1 and jax.process_count() == 1:
        return None
    # make_mesh orders a pod's chips by their neighbours; a plain list of devices stays as it is.
    return jax.make_mesh(
        tuple(sizes.values()), AXES, (AxisType.Auto,) * len(AXES), devices=devices[:total]
    )


def parameter_specs(tree: PyTree, mesh: Mesh) -> PyTree:
    """A `PartitionSpec` for every array of `tree`: parameters, or moments that mirror them.

    A parameter's axis is cut as `RULES` says of its name (`out_sharding` of its `nnx.Variable`)
    where the mesh axis divides it. A parameter that gives no names is stored in `fsdp` parts along
    its longest axis. What nothing divides is on every device.
    """
    is_variable = lambda x: isinstance(x, nnx.Variable)
    specs = []
    for node in jax.tree.leaves(tree, is_leaf=is_variable):
        names = node.get_metadata().get("out_sharding") if is_variable(node) else None
        trained = isinstance(node, nnx.Param)
        specs += [_spec(x.shape, names, trained, mesh) for x in jax.tree.leaves(node)]
    return jax.tree.unflatten(jax.tree.structure(tree), specs)


def row_specs(tree: PyTree) -> PyTree:
    """Samples first: whatever has axes is cut along the first of them; scalars are everywhere."""
    return jax.tree.map(lambda x: PartitionSpec(ROWS) if np.ndim(x) else PartitionSpec(), tree)


def shardings(specs: PyTree, mesh: Mesh) -> PyTree:
    is_spec = lambda x: isinstance(x, PartitionSpec)
    return jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs, is_leaf=is_spec)


def cut_along(spec: PartitionSpec, axis: str) -> int | None:
    """Which dimension a spec cuts over the mesh axis."""
    return next((i for i, name in enumerate(spec) if name == axis), None)


def without(spec: PartitionSpec, axis: str) -> PartitionSpec:
    """The spec of an array that has been gathered along a mesh axis."""
    return PartitionSpec(*(None if name == axis else name for name in spec))


def _spec(shape, names, trained, mesh) -> PartitionSpec:
    divides = lambda axis, size: mesh.shape[axis] > 1 and size % mesh.shape[axis] == 0
    if names is not None:
        axes = [RULES.get(name) for name in names]
        axes = [a if a and divides(a, n) else None for a, n in zip(axes, shape, strict=True)]
        return PartitionSpec(*axes)
    longest = max(range(len(shape)), key=lambda i: shape[i], default=None)
    if not trained or longest is None or not divides("fsdp", shape[longest]):
        return PartitionSpec()
    return PartitionSpec(*("fsdp" if i == longest else None for i in range(len(shape))))


def _text(sizes: dict[str, int]) -> str:
    return ",".join(f"{axis}={size}" for axis, size in sizes.items() if size > 1) or "data=1"
