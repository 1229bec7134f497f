"""A plan: the real train step of a full-size model, compiled for a topology."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, overload

import jax
import numpy as np

from ..configs import FullSize, named
from ..mesh import parse_mesh
from ..options import OptionError, SolverOptions, TrainOptions, checked
from ..step import Task
from .chips import Chip
from .cost import Cost, Costs, program_costs
from .memory import Memory, compile_for, from_compiler, from_shapes
from .program import Programs, Subject
from .roofline import Roofline
from .search import Largest, largest_batch
from .topology import devices_of

Precision = Literal["float32", "bfloat16"]


@dataclass(frozen=True)
class Plan:
    """What a train step takes of every chip. All sizes are bytes, all times seconds.

    Attributes:
        config: the model's name, or that of the task.
        topology, chip, chips: what it is compiled for.
        options, solver, precision: how it trains; the solver is None where the task has its own.
        mesh: sizes of the mesh's axes; {} for one chip.
        rows: samples that a chip computes at once.
        segment: positions of a sample.
        solves: whether the model solves an equilibrium.
        parameters: of the model, in all.
        memory: see `Memory`.
        costs: of the compiled train step; None where it does not fit.
        evaluation, pull_back: one evaluation of f, and one of u -> Jᵀu, on the samples that a chip
            solves for at once; None for a model that solves nothing, or if not asked for.
        flops_once: of the train step, all loops once; and `xla_flops`, what `cost_analysis` says,
            which counts them so and includes elementwise arithmetic.
        compile_seconds: of the train step.
        max_steps: of its solves, where the equation is that of a `LanguageModel`.
    """

    config: str
    topology: str
    chip: Chip
    chips: int
    options: TrainOptions
    solver: SolverOptions | None
    precision: Precision
    mesh: dict[str, int]
    rows: int
    segment: int
    solves: bool
    parameters: int
    memory: Memory
    costs: Costs | None
    evaluation: Cost | None
    pull_back: Cost | None
    flops_once: float | None
    xla_flops: float | None
    compile_seconds: float
    max_steps: int | None = None

    @property
    def global_batch(self) -> int:
        """Samples in a train step, all chips together."""
        return self.options.batch_size

    @property
    def shards(self) -> int:
        """Parts that the batch is cut into."""
        return self.global_batch // self.rows // self.options.accumulate

    @property
    def fits(self) -> bool:
        return self.memory.fits

    def step(self, forward: float, adjoint: float) -> Cost | None:
        """A train step with that many solver steps, forward and adjoint, on average."""
        return None if self.costs is None else self.costs.step(forward, adjoint)

    def roofline(self, forward: float, adjoint: float) -> Roofline | None:
        """A lower bound of its time; None for a chip without published peaks."""
        if self.costs is None:
            return None
        return Roofline.of(self.costs, self.chip, self.precision, (forward, adjoint))

    def json(self, forward: float, adjoint: float) -> dict[str, Any]:
        """Everything, as plain data."""
        step, roofline = self.step(forward, adjoint), self.roofline(forward, adjoint)
        options = self.options
        found = {
            k: v for k, v in vars(self).items() if k not in ("options", "solver", "chip", "costs")
        }
        plain = lambda x: None if x is None else asdict(x)
        for name in ("memory", "evaluation", "pull_back"):
            found[name] = plain(found[name])
        bounded = self.memory.capacity < float("inf")
        capacity = self.memory.capacity if bounded else None  # JSON has no infinity
        found["memory"] |= dict(
            activations=self.memory.activations, fits=self.fits, capacity=capacity
        )
        return found | dict(
            chip=asdict(self.chip) | dict(memory=capacity),
            global_batch=self.global_batch,
            parallel=options.parallel,
            accumulate=options.accumulate,
            optimiser=options.optimiser,
            solver=plain(self.solver),
            costs=plain(self.costs),
            steps=dict(forward=forward, adjoint=adjoint),
            train_step=plain(step),
            roofline=None
            if roofline is None
            else asdict(roofline) | dict(seconds=roofline.seconds, bound=roofline.bound),
        )


@overload
def plan(
    subject: Task,
    options: TrainOptions,
    topology: str,
    *,
    name: str | None = None,
    precision: Precision = "float32",
    evaluations: bool = True,
) -> Plan: ...


@overload
def plan(
    subject: str | FullSize,
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
) -> Plan: ...


def plan(subject: Any, *given: Any, **keywords: Any) -> Plan:
    """Compile a train step for `topology` and read off what it takes. Nothing is run, and no array
    of the model is made.

    `plan(task, options, topology)` is for any task, as `plan_task` says; `plan(config, topology)`
    for a full-size model of the paper, as `plan_config` does.
    """
    kind: Any = plan_task if isinstance(subject, Task) else plan_config
    return kind(subject, *given, **keywords)


def plan_config(
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
    """Compile a full-size model's train step for `topology`.

    Args:
        config: a name in `deqjax.training.configs.CONFIGS`, or such a configuration.
        topology: "v5e:16x16", "v5p:2x2x1", "v6e:4x4", "h100:8", or "cpu:8".
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

    Examples:
        >>> from dataclasses import replace
        >>> from deqjax.training import SolverOptions
        >>> from deqjax.training.configs import named
        >>> from deqjax.training.plan import plan
        >>> small = replace(named("wt103-transformer-small"), vocabulary=50, cutoffs=(), n_in=20,
        ...                 d=20, inner=40, segment=4, memory=4, batch=2)
        >>> found = plan(small, "cpu:1", solver=SolverOptions("picard"), evaluations=False)
        >>> found.global_batch, found.parameters, found.memory.parameters
        (2, 6170, 24680)
    """
    model = _config(config)
    if chunk_size is not None:
        model = _in_chunks(model, chunk_size)
    chip, devices = devices_of(topology)
    solver = SolverOptions() if solver is None else solver
    options = replace(
        TrainOptions() if options is None else options,
        parallel=parallel,
        mesh=mesh,
        accumulate=accumulate,
    )
    options = replace(options, batch_size=_batch(model, options, devices, global_batch))
    checked(solver, options)
    subject = Subject.of_config(model, options, solver, precision)
    return _compiled(subject, options, topology, chip, devices, solver, precision, evaluations)


def plan_task(
    task: Task,
    options: TrainOptions,
    topology: str,
    *,
    name: str | None = None,
    precision: Precision = "float32",
    evaluations: bool = True,
) -> Plan:
    """Compile the train step of any task for `topology`, as `fit(task, options, ...)` runs it.

    Only the shapes of the first batch are looked at. Where the equation is not that of a
    `LanguageModel`, what the solver keeps is not told apart from activations, and f is not compiled
    alone.

    Args:
        task: as `fit` takes it.
        options: as `fit` takes them; `batch_size` is that of the task's batches.
        topology: as `plan` takes it.
        name: of the report; the task's kind if not given.
        precision: of f, for the roofline: the task has its own.
        evaluations: compile f and its pull-back alone as well.

    Raises:
        OptionError: the topology, mesh or batch size cannot be; a compiler is not installed.
    """
    checked(options)
    chip, devices = devices_of(topology)
    batch = task.batch(0)
    rows = next(len(x) for x in jax.tree.leaves(batch) if np.ndim(x))
    if rows != options.batch_size:
        raise OptionError(
            f"the task's batches have {rows} samples and batch_size is {options.batch_size}: give "
            "both the same"
        )
    subject = Subject.of_task(task, type(task).__name__ if name is None else name)
    return _compiled(subject, options, topology, chip, devices, None, precision, evaluations)


def _compiled(
    subject: Subject,
    options: TrainOptions,
    topology: str,
    chip: Chip,
    devices: list[Any],
    solver: SolverOptions | None,
    precision: Precision,
    evaluations: bool,
) -> Plan:
    programs = Programs.of(subject, options, devices)
    fields = from_shapes(programs, chip.memory)
    lowered = programs.train_step()
    start = time.perf_counter()
    compiled, missing = compile_for(lowered, chip)
    seconds = time.perf_counter() - start
    costs = once = xla_flops = evaluation = pull_back = None
    if compiled is None:
        fields |= missing
    else:
        fields |= from_compiler(compiled, chip)
        text = compiled.as_text() or ""
        costs, once = program_costs(text), program_costs(text, once=True).outside.flops
        xla_flops = (compiled.cost_analysis() or {}).get("flops")
        if evaluations and subject.known:
            alone = [compile_for(programs.evaluation(adjoint=a), chip)[0] for a in (False, True)]
            evaluation, pull_back = (
                None if c is None else program_costs(c.as_text() or "").forward for c in alone
            )
    found = programs.parallel.mesh
    return Plan(
        config=subject.name,
        topology=topology,
        chip=chip,
        chips=1 if found is None else found.size,
        options=options,
        solver=solver,
        precision=precision,
        mesh={} if found is None else {k: int(v) for k, v in found.shape.items()},
        rows=programs.rows,
        segment=subject.segment,
        solves=subject.solves,
        parameters=sum(math.prod(x.shape) for x in jax.tree.leaves(programs.state.params)),
        memory=Memory(**fields),
        costs=costs,
        evaluation=evaluation,
        pull_back=pull_back,
        flops_once=once,
        xla_flops=xla_flops,
        compile_seconds=seconds,
        max_steps=programs.max_steps,
    )


def largest(
    first: Plan,
    again: Callable[[int], Plan],
    *,
    within: float = 0.02,
    compilations: int = 16,
) -> Largest:
    """The largest global batch that fits.

    Args:
        first: a plan to begin with; it counts as one compilation.
        again: the same plan for another global batch; leave `evaluations` out.
        within: stop where a batch fits and one that is larger by this share of it does not; 0, to
            one sample a shard.
        compilations: how many at most.
    """
    known = {first.global_batch: first}

    def needs(batch: int) -> tuple[float | None, bool]:
        found = known.get(batch) or known.setdefault(batch, again(batch))
        return found.memory.peak or found.memory.needed, found.fits

    unit = first.shards * first.options.accumulate
    limit = first.memory.capacity
    begin = first.global_batch
    return largest_batch(needs, unit, limit, first=begin, within=within, compilations=compilations)


def _in_chunks(model: FullSize, size: int) -> FullSize:
    if model.kind != "transformer" or size < 1:
        raise OptionError(f"--chunk-size is for transformers, and at least 1; got {size}")
    return replace(model, chunk_size=size)


def _config(config: str | FullSize) -> FullSize:
    if isinstance(config, FullSize):
        return config
    try:
        return named(config)
    except ValueError as wrong:
        raise OptionError(f"--config {wrong}") from None


def _batch(model: FullSize, options: TrainOptions, devices: list, given: int | None) -> int:
    """The batch given, or the model's own, rounded up."""
    if given is not None:
        return given
    sizes = {"data": len(devices)} if options.mesh is None else parse_mesh(options.mesh)
    unit = sizes["data"] * sizes.get("fsdp", 1) * options.accumulate
    return -(-model.batch // unit) * unit
