"""The pure training step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from .gradient import Gradient
from .options import Phase
from .parallel import Parallel
from .schedules import scaled
from .task import Task

PyTree = Any


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """Everything that a restart needs, as one pytree of arrays.

    Attributes:
        step: int32, updates done; also the position in the data.
        params: the `nnx.Param`s.
        rest: every other variable of the model: random keys and counters, running statistics.
        opt_state: the optimiser's.
        carry: memory and warm start handed from batch to batch.
        skipped: int32, updates skipped because no loss and gradient was finite.
        in_a_row: int32, how many of them were the latest.
        plateau: the state of `Plateau`; () unless that is the schedule.
    """

    step: Any
    params: Any
    rest: Any
    opt_state: Any
    carry: Any
    skipped: Any
    in_a_row: Any
    plateau: Any = ()


def new_state(
    task: Task,
    optimiser: optax.GradientTransformation,
    seed: int,
    plateau: PyTree = (),
    parallel: Parallel | None = None,
) -> tuple[nnx.GraphDef, TrainState]:
    """The model's graph, which is static, and the state before the first step, made where it lives:
    no device ever holds more of it than its part."""
    make, graphs = _maker(task, optimiser, seed, plateau)
    where = None if parallel is None else parallel.state_shardings(jax.eval_shape(make))
    state = jax.jit(make, out_shardings=where)()
    return graphs[-1], state


def abstract_state(
    task: Task, optimiser: optax.GradientTransformation, plateau: PyTree = ()
) -> tuple[nnx.GraphDef, TrainState]:
    """The graph and the shapes of the state that `new_state` makes; no array is made."""
    make, graphs = _maker(task, optimiser, 0, plateau)
    state = jax.eval_shape(make)
    return graphs[-1], state


def _maker(task, optimiser, seed, plateau) -> tuple[Callable[[], TrainState], list[nnx.GraphDef]]:
    """A function that makes the state, and a list that every call of it adds the graph to."""
    graphs = []

    def make() -> TrainState:
        graph, params, rest = nnx.split(task.build(nnx.Rngs(seed)), nnx.Param, ...)
        graphs.append(graph)
        opt_state, carry = optimiser.init(params), task.carry()
        step, skipped, in_a_row = (jnp.zeros((), jnp.int32) for _ in range(3))
        return TrainState(step, params, rest, opt_state, carry, skipped, in_a_row, plateau)

    return make, graphs


def make_step(
    task: Task,
    graph: nnx.GraphDef,
    optimiser: optax.GradientTransformation,
    phase: Phase | None = None,
    *,
    parallel: Parallel | None = None,
    accumulate: int = 1,
    freeze: Any = None,
) -> Callable[[TrainState, PyTree], tuple[TrainState, dict[str, jax.Array]]]:
    """`train_step(state, batch) -> (state, metrics)`, pure and ready for `jax.jit`.

    Args:
        phase: what is computed; the model's own solve and gradient if not given.
        parallel: how the batch is spread over devices; one device if not given.
        accumulate: in how many parts, one after the other, each device computes the gradient of its
            samples: memory of a part, the gradient of all.
        freeze: an `nnx` filter of parameters that have no gradient; see `frozen.spared`.

    A step of which no part has a finite loss and gradient changes nothing but `step`, `skipped` and
    `in_a_row`. Where a device computes its own samples (`shard_map`, `pmap`, or accumulated parts),
    one whose data are bad is left out of the mean, keeps its carry, and is counted in the metric
    `bad_parts`.
    """
    now = Phase() if phase is None else phase
    sums_of = (parallel or Parallel()).spread(Gradient(task, graph, now, accumulate, freeze))
    rule = optax.with_extra_args_support(optimiser)  # some ask for the loss

    def train_step(state: TrainState, batch: PyTree):
        sums, carry, rest = sums_of(state.params, state.rest, state.carry, batch, state.step)
        grads, metrics = jax.tree.map(lambda x: x / sums.weight, (sums.grads, sums.metrics))
        norm = optax.tree.norm(grads)
        finite = (sums.weight > 0) & jnp.isfinite(norm)
        updates, opt_state = rule.update(
            grads, state.opt_state, state.params, value=metrics["loss"]
        )
        updates = scaled(updates, state.plateau)
        carry, metrics = task.after(carry, dict(metrics), now)
        updated = (optax.apply_updates(state.params, updates), rest, opt_state, carry)
        current = (state.params, state.rest, state.opt_state, state.carry)
        kept = jax.tree.map(lambda new, old: jnp.where(finite, new, old), updated, current)
        params, rest, opt_state, carry = kept
        skipped = state.skipped + ~finite
        in_a_row = jnp.where(finite, 0, state.in_a_row + 1)
        metrics = dict(
            metrics, grad_norm=norm, skipped=skipped, in_a_row=in_a_row, bad_parts=sums.bad
        )
        state = TrainState(
            state.step + 1, params, rest, opt_state, carry, skipped, in_a_row, state.plateau
        )
        return state, metrics

    return train_step
