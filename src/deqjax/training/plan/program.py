"""The programs of a plan: the real train step, and f alone, as shapes on devices."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec, SingleDeviceSharding

from ...nn import TransformerInput
from ...solvers.base import DEFAULT_MAX_STEPS
from ..language_modelling import LanguageModelling
from ..mesh import ROWS, parameter_specs, row_specs, shardings, without
from ..options import TrainOptions
from ..parallel import Parallel
from ..schedules import Plateau
from ..schedules import optimiser as make_optimiser
from ..step import Task, TrainState, abstract_state, make_step

PyTree = Any


@dataclass(frozen=True)
class Subject:
    """What is planned for.

    Attributes:
        name: of it.
        task: its model, its data's shapes and its loss.
        solves: whether the model solves an equilibrium.
        segment: positions of a sample; 1 where the task does not say.
        known: whether the equation is one of a `LanguageModel`, so that f can be looked at alone.
    """

    name: str
    task: Task
    solves: bool
    segment: int
    known: bool

    @classmethod
    def of(cls, task: Task, name: str) -> Subject:
        solves = bool(getattr(task, "solves", False))
        language = isinstance(task, LanguageModelling)
        segment = task.train.segment if language else 1
        return cls(name, task, solves, segment, known=language and solves)


@dataclass(frozen=True)
class Programs:
    """What is compiled for a subject. Nothing of it is ever allocated.

    Attributes:
        state: shapes of the `TrainState`, each with its place.
    """

    subject: Subject
    options: TrainOptions
    parallel: Parallel
    device: Any
    graph: nnx.GraphDef
    state: TrainState

    @classmethod
    def of(cls, subject: Subject, options: TrainOptions, devices: list[Any]) -> Programs:
        parallel = Parallel.of(options, devices)
        plateau = Plateau(options).init()
        graph, state = abstract_state(subject.task, make_optimiser(options), plateau)
        where = parallel.state_shardings(state)
        if where is None:
            where = jax.tree.map(lambda _: SingleDeviceSharding(devices[0]), state)
        state = _placed(state, where)
        return cls(subject, options, parallel, devices[0], graph, state)

    @property
    def shards(self) -> int:
        """Parts that a batch is cut into."""
        shape = {} if self.parallel.mesh is None else self.parallel.mesh.shape
        return int(np.prod([shape[a] for a in ROWS if a in shape], dtype=int))

    @property
    def max_steps(self) -> int | None:
        """Steps after which a solve stops, where that is known."""
        if not self.subject.known:
            return None
        most = self.model_of(self.state).deq.solver.max_steps
        return DEFAULT_MAX_STEPS if most is None else most

    @property
    def rows(self) -> int:
        """Samples that a chip computes at once."""
        return self.options.batch_size // self.shards // self.options.accumulate

    def train_step(self) -> jax.stages.Lowered:
        """`make_step`, as a run compiles it; the state is donated."""
        parallel, options = self.parallel, self.options
        step = make_step(
            self.subject.task,
            self.graph,
            make_optimiser(options),
            parallel=parallel,
            accumulate=options.accumulate,
        )
        return parallel.compile(step, self.state).lower(self.state, self.batch())

    def batch(self) -> PyTree:
        """Shapes of the first batch, each with its place."""
        batch = jax.tree.map(np.asarray, self.subject.task.batch(0))
        if self.parallel.mesh is None:
            where = jax.tree.map(lambda _: SingleDeviceSharding(self.device), batch)
        else:
            where = shardings(row_specs(batch), self.parallel.mesh)
        return _placed(batch, where)

    def evaluation(self, *, adjoint: bool) -> jax.stages.Lowered:
        """A loop, of a length that is not known, of f alone, or of u -> Jᵀu.

        Where every chip solves for its own samples, for those of one; under `jit`, for all of them,
        as the mesh cuts them.
        """
        whole = self.parallel.mesh if self.parallel.way == "jit" else None
        rows = self.rows * (1 if whole is None else self.shards)
        memory = jax.eval_shape(lambda: self.model_of(self.state).empty_memory(rows))
        width = self.model_of(self.state).cell.n_in
        x = jax.ShapeDtypeStruct((rows, self.subject.segment, width), jnp.float32)
        n = jax.ShapeDtypeStruct((), jnp.int32)
        given = (self.state.params, self.state.rest, x, memory, n)
        if whole is None:
            where = jax.tree.map(lambda _: SingleDeviceSharding(self.device), given)
        else:
            is_spec = lambda s: isinstance(s, PartitionSpec)
            stored = parameter_specs(self.state.params, whole)
            gathered = jax.tree.map(lambda s: without(s, "fsdp"), stored, is_leaf=is_spec)
            everywhere = lambda tree: jax.tree.map(lambda _: PartitionSpec(), tree)
            specs = (gathered, everywhere(self.state.rest), row_specs(x), row_specs(memory))
            where = shardings((*specs, PartitionSpec()), whole)

        def repeat(params, rest, x, memory, n):
            model = nnx.merge(self.graph, params, rest, copy=True)
            given = TransformerInput(x, memory)
            f = model.deq.function(model.cell.inject(given))
            z = jnp.zeros((*x.shape[:2], model.cell.d), x.dtype)
            if whole is not None:
                z = lax.with_sharding_constraint(z, NamedSharding(whole, row_specs(z)))
            once: Callable = f
            if adjoint:
                _, pull = jax.vjp(f, z)
                once = lambda u: pull(u)[0]
            return lax.fori_loop(0, n, lambda _, z: once(z), z)

        return jax.jit(repeat).lower(*_placed(given, where))

    def model_of(self, state: TrainState) -> Any:
        return nnx.merge(self.graph, state.params, state.rest)


def _placed(tree: PyTree, where: PyTree) -> PyTree:
    """The shapes of a tree, each with its sharding."""
    place = lambda x, at: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=at)
    return jax.tree.map(place, tree, where)
