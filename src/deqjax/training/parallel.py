"""Three ways to spread a training step over a mesh: shard_map, jit and pmap.

All compute the sums of a `Gradient` over the batch; they differ in who cuts it. The optimiser comes
after, under `jit`, on parameters that stay where they are stored.

- `shard_map`: each device runs its own solver loops on its own samples, to its own stop. Parameters
  that are stored in `fsdp` parts are gathered once before, and gradients reduced once after: no
  loop communicates.
- `jit`: one program on global arrays, which the compiler partitions. A solver step ends when the
  last sample anywhere has converged, one reduction of a flag. The only one with a `tensor` axis.
- `pmap`: as shard_map over `data`, for code that is still written that way.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from .layouts import Step
from .mesh import (
    ROWS,
    cut_along,
    make_mesh,
    parameter_specs,
    row_specs,
    shardings,
    without,
)
from .options import TrainOptions

PyTree = Any

# (params, rest, carry, batch, step, first row = 0) -> (sums, carry, rest)
Local = Callable[..., tuple[Any, PyTree, PyTree]]


@dataclass(frozen=True)
class Parallel:
    """How and where a run computes.

    Attributes:
        way: one of the three.
        mesh: its devices; None is one device and nothing to spread.
    """

    way: Literal["shard_map", "jit", "pmap"] = "shard_map"
    mesh: Mesh | None = None

    @classmethod
    def of(cls, options: TrainOptions, devices: list[Any] | None = None) -> Parallel:
        """What the options ask for, on these devices or all.

        Raises:
            OptionError: they cannot be met; the sentence says which and why.
        """
        return cls(options.parallel, make_mesh(options, devices))

    def state_shardings(self, state: Any) -> Any:
        """Where each array of a `TrainState`, or of its shapes, lives; None without a mesh."""
        if self.mesh is None:
            return None
        stored = dict(params=state.params, opt_state=state.opt_state)
        specs = {name: parameter_specs(tree, self.mesh) for name, tree in stored.items()}
        everywhere = dict(
            step=state.step,
            rest=state.rest,
            skipped=state.skipped,
            in_a_row=state.in_a_row,
            plateau=state.plateau,
        )
        specs |= {k: jax.tree.map(lambda _: PartitionSpec(), v) for k, v in everywhere.items()}
        specs["carry"] = row_specs(state.carry)
        return type(state)(**{k: shardings(v, self.mesh) for k, v in specs.items()})

    def compile(self, step: Callable, state: Any) -> Step:
        """A train step, compiled for states that live as this one does, which it may overwrite."""
        return Step(step, state, self.state_shardings(state))

    def rows(self, batch_size: int) -> slice:
        """The samples that this process must bring; all, where it has devices of every part."""
        if self.mesh is None or jax.process_count() == 1:
            return slice(0, batch_size)
        spread = NamedSharding(self.mesh, PartitionSpec(ROWS))
        found = spread.addressable_devices_indices_map((batch_size,)).values()
        parts = [index[0] for index in found if index]
        first = min(part.start or 0 for part in parts)
        last = max(batch_size if part.stop is None else part.stop for part in parts)
        return slice(first, last)

    def put(self, batch: PyTree, batch_size: int) -> PyTree:
        """NumPy arrays, this process's `rows` of a batch, onto the devices."""
        mesh = self.mesh
        if mesh is None:
            return jax.device_put(batch)
        first = self.rows(batch_size).start

        def place(x, spec):
            x = np.asarray(x)
            shape = (batch_size, *x.shape[1:]) if x.ndim else ()

            def part(index):
                if not x.ndim:
                    return x
                begin, end, _ = index[0].indices(batch_size)
                return x[begin - first : end - first]

            return jax.make_array_from_callback(shape, NamedSharding(mesh, spec), part)

        return jax.tree.map(place, batch, row_specs(batch))

    def row_devices(self) -> tuple[Any, ...]:
        """Devices of this process that hold the whole model, each for samples of its own; () where
        there is one, or where the model is stored in parts."""
        mesh = self.mesh
        if mesh is None or mesh.shape["fsdp"] > 1 or mesh.shape["tensor"] > 1:
            return ()
        here = jax.process_index()
        return tuple(d for d in mesh.devices.flat if d.process_index == here)

    def everywhere(self, values: PyTree) -> PyTree:
        """What every process holds alike, on all devices."""
        mesh = self.mesh
        if mesh is None:
            return values
        spread = NamedSharding(mesh, PartitionSpec())

        def place(x):
            x = np.asarray(x)
            return jax.make_array_from_callback(x.shape, spread, lambda _: x)

        return jax.tree.map(place, values)

    def here(self, tree: PyTree) -> PyTree:
        """The arrays of a job of several processes, whole, on one device of this process, for what
        it does with them alone. All processes must ask. In one process, `tree` as it is."""
        mesh = self.mesh
        if mesh is None or jax.process_count() == 1:
            return tree
        whole = jax.jit(lambda tree: tree, out_shardings=NamedSharding(mesh, PartitionSpec()))
        return jax.tree.map(lambda x: x.addressable_data(0), whole(tree))

    def spread(self, local: Local) -> Local:
        """`local`, for the samples in hand, as a function of the whole batch."""
        if self.mesh is None:
            return local
        return {"shard_map": self._shard_map, "jit": self._jit, "pmap": self._pmap}[self.way](local)

    def _shard_map(self, local: Local) -> Local:
        mesh = self.mesh
        assert mesh is not None

        def run(params, rest, carry, batch, step):
            specs = parameter_specs(params, mesh)
            everywhere = lambda tree: jax.tree.map(lambda _: PartitionSpec(), tree)

            def on_device(params, rest, carry, batch, step):
                params = jax.tree.map(_gathered, params, specs)
                # Typed as different on every device, so that no gradient is summed before its time.
                params = jax.tree.map(_vary, params)
                first = lax.axis_index(ROWS) * _count(batch)
                sums, carry, rest = local(params, rest, carry, batch, step, first)
                grads = jax.tree.map(_reduced, sums.grads, specs)
                others = lax.psum(jax.tree.map(_vary, sums._replace(grads=())), ROWS)
                return others._replace(grads=grads), carry, jax.tree.map(_same, rest)

            sums = jax.eval_shape(lambda *given: local(*given)[0], params, rest, carry, batch, step)
            out = everywhere(sums)._replace(grads=specs), row_specs(carry), everywhere(rest)
            mapped = jax.shard_map(
                on_device,
                mesh=mesh,
                in_specs=(
                    specs,
                    everywhere(rest),
                    row_specs(carry),
                    row_specs(batch),
                    PartitionSpec(),
                ),
                out_specs=out,
            )
            return mapped(params, rest, carry, batch, step)

        return run

    def _jit(self, local: Local) -> Local:
        mesh = self.mesh
        assert mesh is not None

        def run(params, rest, carry, batch, step):
            stored = parameter_specs(params, mesh)
            is_spec = lambda x: isinstance(x, PartitionSpec)
            whole = jax.tree.map(lambda s: without(s, "fsdp"), stored, is_leaf=is_spec)
            at = lambda tree, specs: lax.with_sharding_constraint(tree, shardings(specs, mesh))
            # Gathered once, before any loop.
            sums, carry, rest = local(at(params, whole), rest, carry, batch, step)
            # Summed whole, and then cut: asked for the parts at once, the compiler would spread
            # activations over the axis of the parameters instead.
            grads = at(at(sums.grads, whole), stored)
            return sums._replace(grads=grads), at(carry, row_specs(carry)), rest

        return run

    def _pmap(self, local: Local) -> Local:
        mesh = self.mesh
        assert mesh is not None
        devices = list(mesh.devices.flat)

        def run(params, rest, carry, batch, step):
            axes = lambda tree: jax.tree.map(lambda x: 0 if np.ndim(x) else None, tree)

            def on_device(params, rest, carry, batch, step):
                first = lax.axis_index("data") * _count(batch)
                sums, carry, rest = local(params, rest, carry, batch, step, first)
                return lax.psum(sums, "data"), carry, rest

            n = len(devices)
            cut = lambda x: x.reshape(n, len(x) // n, *x.shape[1:]) if np.ndim(x) else x
            joined = lambda x: x.reshape(n * x.shape[1], *x.shape[2:]) if x.ndim else x
            mapped = jax.pmap(
                on_device,
                axis_name="data",
                in_axes=(None, None, axes(carry), axes(batch), None),
                out_axes=(None, axes(carry), None),
                devices=devices,
            )
            sums, carry, rest = mapped(
                params, rest, jax.tree.map(cut, carry), jax.tree.map(cut, batch), step
            )
            return sums, jax.tree.map(joined, carry), rest

        return run


def _count(batch: PyTree) -> int:
    """Samples in a batch."""
    return next(x.shape[0] for x in jax.tree.leaves(batch) if np.ndim(x))


def _gathered(x: jax.Array, spec: PartitionSpec) -> jax.Array:
    axis = cut_along(spec, "fsdp")
    return x if axis is None else lax.all_gather(x, "fsdp", axis=axis, tiled=True)


def _reduced(grad: jax.Array, spec: PartitionSpec) -> jax.Array:
    """The sum over devices, each of which keeps the part that it stores."""
    axis = cut_along(spec, "fsdp")
    if axis is None:
        return lax.psum(_vary(grad), ROWS)
    return lax.psum(lax.psum_scatter(grad, "fsdp", scatter_dimension=axis, tiled=True), "data")


def _vary(x: jax.Array) -> jax.Array:
    missing = tuple(a for a in ROWS if a not in jax.typeof(x).manual_axis_type.varying)
    return lax.pcast(x, missing, to="varying") if missing else x


def _same(x: jax.Array) -> jax.Array:
    """What does not depend on the samples is as it is; running statistics of them are averaged."""
    varying = jax.typeof(x).manual_axis_type.varying
    if varying and jnp.issubdtype(x.dtype, jnp.floating):
        return lax.pmean(x, tuple(varying))
    return x
