"""Scoring a segment on every device of a job, each of which runs its own solver loops."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from ..data import Batch, Stream
from .checkpoints.processes import Processes

PyTree = Any
# (memory, batch) -> (nats of every target, (tokens, steps, solves, converged), memory)
Score = Callable[[PyTree, Batch], tuple[jax.Array, jax.Array, PyTree]]


@dataclass(frozen=True)
class Share:
    """What of an evaluation this process does: some of the rows, on some of its devices. A row is
    scored by one device, which computes what it would compute of all of them.

    Attributes:
        processes: of the job, all of which evaluate; None for this one alone.
        devices: to spread rows over; () leaves everything where it is.
    """

    processes: Processes | None = None
    devices: tuple[Any, ...] = ()

    def of(self, stream: Stream) -> Stream | None:
        """Its rows; None if there are fewer than processes and none is left."""
        if self.processes is None or self.processes.count == 1:
            return stream
        n, k, count = stream.batch_size, self.processes.index, self.processes.count
        rows = slice(n * k // count, n * (k + 1) // count)
        return replace(stream, rows=rows) if rows.stop > rows.start else None

    def total(self, sums: Callable[[], list[float]]) -> list[float]:
        """Those of all processes. What goes wrong on one is raised on each."""
        add = lambda found: [sum(x) for x in zip(*found, strict=True)]
        return sums() if self.processes is None else self.processes.agree(sums, add)

    def scorer(self, model: Any, rows: int) -> Score:
        """`score` of that model, whose rows are cut evenly over as many devices as can be."""
        devices = self.devices
        count = max((n for n in range(1, len(devices) + 1) if rows % n == 0), default=1)
        if count == 1:
            return partial(_in_place, model)
        mesh = Mesh(np.array(devices[:count]), ("data",), axis_types=(AxisType.Auto,))
        graph, weights = nnx.split(model)
        weights = jax.device_put(weights, NamedSharding(mesh, PartitionSpec()))
        return partial(_spread, graph, mesh, weights)


_share = Share()


def current() -> Share:
    """The share of the evaluation that is under way; everything, outside of `sharing`."""
    return _share


@contextmanager
def sharing(share: Share) -> Iterator[None]:
    """Inside, `perplexity` does that share, and returns what all shares come to."""
    global _share
    before, _share = _share, share
    try:
        yield
    finally:
        _share = before


def score(model: Any, memory: PyTree, batch: Batch) -> tuple[jax.Array, jax.Array, PyTree]:
    """−log p of every target, (rows, time); tokens, solver steps, solves and converged solves,
    (rows, 4), zeros of a model that solves nothing; and the next memory."""
    out = model(batch.inputs, memory, targets=batch.targets)
    tokens = jnp.sum(batch.weights, axis=1)
    columns = [tokens, *(jnp.zeros_like(tokens) for _ in range(3))]
    if model.solves:
        stats = out.solution.stats
        columns[1:] = [stats.steps, jnp.ones_like(tokens), stats.converged]
    return out.nats * batch.weights, jnp.stack(columns, 1, dtype=jnp.float32), out.memory


@nnx.jit
def _in_place(model, memory, batch):
    nats, columns, memory = score(model, memory, batch)
    return nats, columns.sum(0), memory


@partial(jax.jit, static_argnums=(0, 1))
def _spread(graph, mesh, weights, memory, batch):
    everywhere = lambda tree: jax.tree.map(lambda _: PartitionSpec(), tree)
    cut = lambda tree: jax.tree.map(
        lambda x: PartitionSpec("data") if jnp.ndim(x) else PartitionSpec(), tree
    )

    def on_device(weights, memory, batch):
        return score(nnx.merge(graph, weights), memory, batch)

    mapped = jax.shard_map(
        on_device,
        mesh=mesh,
        in_specs=(everywhere(weights), cut(memory), cut(batch)),
        out_specs=PartitionSpec("data"),
    )
    nats, columns, memory = mapped(weights, memory, batch)
    return nats, columns.sum(0), memory
