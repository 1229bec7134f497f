"""Will it fit, will it scale: a full-size model's train step on chips that need not be there.

    python -m experiments.full_size.plan --config wt103-transformer-medium --topology v5e:16x16
    python -m experiments.full_size.plan --config wt103-trellisnet --topology h100:8 --largest-batch

The planner itself is `deqjax.training.plan`, which takes any task.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from deqjax.data import Stream
from deqjax.training import (
    LanguageModelling,
    OptionError,
    SolverOptions,
    TrainOptions,
    checked,
    command_line,
)
from deqjax.training import plan as planner
from deqjax.training.mesh import parse_mesh
from deqjax.training.plan import Asked, Plan, show
from deqjax.training.plan.topology import devices_of

from .configs import FullSize, named

Precision = Literal["float32", "bfloat16"]


@dataclass(frozen=True)
class Config:
    """Will it fit, will it scale: compile a full-size model's train step for chips that need not be
    there, and print what a chip needs for it."""

    config: str = "wt103-transformer-medium"
    """a name in experiments.full_size.configs"""
    topology: str = "v5e:4x4"
    """chips and their shape: v5e:16x16, v5p:2x2x1, v6e:4x4, h100:8, or cpu:8 to try things out"""
    global_batch: int | None = None
    """samples in a step; the paper's, rounded up to a multiple of the shards, if not given"""
    parallel: Literal["shard_map", "jit", "pmap"] = "shard_map"
    """how a step is spread over chips"""
    mesh: str | None = None
    """chips along data, fsdp and tensor, such as data=8,fsdp=2; all along data if not given"""
    accumulate: int = 1
    """parts that each chip computes its samples in, one after the other"""
    precision: Precision = "float32"
    """of f; parameters and solver stay in float32"""
    chunk_size: int | None = None
    """positions that a transformer's cell computes at a time; all of them if not given"""
    solver: SolverOptions = field(default_factory=SolverOptions)
    asked: Asked = field(default_factory=Asked)


def main(config: Config) -> None:
    names = ("parallel", "mesh", "accumulate", "precision", "chunk_size", "solver")
    given = {name: getattr(config, name) for name in names}

    def of(batch: int | None, evaluations: bool) -> Plan:
        return plan(
            config.config, config.topology, global_batch=batch, evaluations=evaluations, **given
        )

    show(of, config.global_batch, config.asked)


def plan(
    config: str | FullSize,
    topology: str,
    *,
    global_batch: int | None = None,
    parallel: Literal["shard_map", "jit", "pmap"] = "shard_map",
    mesh: str | None = None,
    accumulate: int = 1,
    solver: SolverOptions | None = None,
    precision: Precision = "float32",
    options: TrainOptions | None = None,
    chunk_size: int | None = None,
    evaluations: bool = True,
) -> Plan:
    """`deqjax.training.plan.plan` of a full-size model.

    Args:
        config: a name in `CONFIGS`, or such a configuration.
        topology: as the planner takes it.
        global_batch: samples in a step; if not given, the configuration's own, rounded up to what
            can be cut evenly.
        parallel: as in `TrainOptions`.
        mesh: as in `TrainOptions`.
        accumulate: as in `TrainOptions`.
        solver: Anderson to rtol 1e-3 in at most 30 steps if not given.
        precision: of f, as `DEQ(dtype=)`; parameters stay in float32.
        options: everything else about training: the optimiser, say.
        chunk_size: positions that a transformer's cell computes at a time.
        evaluations: compile f and its pull-back alone as well.

    Raises:
        OptionError: the name, the topology or the mesh cannot be; a compiler is not installed.
    """
    model = _config(config)
    if chunk_size is not None:
        model = _in_chunks(model, chunk_size)
    solver = SolverOptions() if solver is None else solver
    options = replace(
        TrainOptions() if options is None else options,
        parallel=parallel,
        mesh=mesh,
        accumulate=accumulate,
    )
    if global_batch is None:
        global_batch = _own_batch(model, options, topology)
    options = replace(options, batch_size=global_batch)
    checked(solver, options)
    return planner.plan(
        task(model, options, solver, precision),
        options,
        topology,
        name=model.name,
        solver=solver,
        precision=precision,
        evaluations=evaluations,
    )


def task(
    config: FullSize, options: TrainOptions, solver: SolverOptions, precision: Precision = "float32"
) -> LanguageModelling:
    """The model on text that says nothing: for compiling."""
    dtype = None if precision == "float32" else jnp.dtype(precision)

    def new_model(rngs: nnx.Rngs) -> Any:
        keywords = solver.keywords() if config.solves else {}
        return config.build(rngs, dtype=dtype, **keywords)

    # One segment of every row, all of the same word, which takes no memory.
    words = np.broadcast_to(np.int32(0), (options.batch_size * config.segment,))
    stream = Stream(words, options.batch_size, config.segment, 0)
    return LanguageModelling(new_model, stream, stream, adjoint=solver.adjoint)


def _config(config: str | FullSize) -> FullSize:
    if isinstance(config, FullSize):
        return config
    try:
        return named(config)
    except ValueError as wrong:
        raise OptionError(f"--config {wrong}") from None


def _in_chunks(model: FullSize, size: int) -> FullSize:
    if model.kind != "transformer" or size < 1:
        raise OptionError(f"--chunk-size is for transformers, and at least 1; got {size}")
    return replace(model, chunk_size=size)


def _own_batch(model: FullSize, options: TrainOptions, topology: str) -> int:
    """The model's own batch, rounded up to what the devices share evenly."""
    _, devices = devices_of(topology)
    sizes = {"data": len(devices)} if options.mesh is None else parse_mesh(options.mesh)
    unit = sizes["data"] * sizes.get("fsdp", 1) * options.accumulate
    return -(-model.batch // unit) * unit


if __name__ == "__main__":
    # What compiles is told by name; this process itself computes nothing and wants no accelerator.
    if not jax.config.jax_platforms:  # type: ignore[attr-defined]
        jax.config.update("jax_platforms", "cpu")
    command_line(Config, main)
