"""A plan: the real train step of a task, compiled for a topology."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

import jax
import numpy as np

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
        config: the name of what is planned.
        topology, chip, chips: what it is compiled for.
        options, solver, precision: how it trains; the solver is None where nobody said it.
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


def plan(
    task: Task,
    options: TrainOptions,
    topology: str,
    *,
    name: str | None = None,
    solver: SolverOptions | None = None,
    precision: Precision = "float32",
    evaluations: bool = True,
) -> Plan:
    """Compile a train step for `topology`, as `fit(task, options, ...)` runs it, and read off what
    it takes. Nothing is run, and no array of the model is made.

    Only the shapes of the first batch are looked at. Where the equation is not that of a
    `LanguageModel`, what the solver keeps is not told apart from activations, and f is not compiled
    alone.

    Args:
        task: as `fit` takes it.
        options: as `fit` takes them; `batch_size` is that of the task's batches.
        topology: "v5e:16x16", "v5p:2x2x1", "v6e:4x4", "h100:8", or "cpu:8".
        name: of the report; the task's kind if not given.
        solver: what the report says of the task's solves.
        precision: of f, for the roofline: the task has its own.
        evaluations: compile f and its pull-back alone as well.

    Raises:
        OptionError: the topology, mesh or batch size cannot be; a compiler is not installed.

    Examples:
        >>> import numpy as np
        >>> from flax import nnx
        >>> from deqjax.data import Stream
        >>> from deqjax.nn import LanguageModel, TrellisCell
        >>> from deqjax.training import LanguageModelling, TrainOptions
        >>> def build(rngs):
        ...     return LanguageModel(50, TrellisCell(4, hidden=6, rngs=rngs), rngs=rngs)
        >>> stream = Stream(np.zeros(64, np.int32), batch_size=2, segment=8)
        >>> task = LanguageModelling(build, stream, stream)
        >>> found = plan(task, TrainOptions(batch_size=2), "cpu:1", evaluations=False)
        >>> found.global_batch, found.parameters == found.memory.parameters / 4
        (2, True)
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
    subject = Subject.of(task, type(task).__name__ if name is None else name)
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
