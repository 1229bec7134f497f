"""The pure training step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from .._closure import vary_like, vary_with
from .._rows import batch_rows
from .._solution import Stats
from .options import Phase
from .parallel import Parallel
from .schedules import scaled

PyTree = Any


class Task:
    """What is trained: a model, its data, its loss and its evaluation. One file an experiment.

    Samples come first in every array of a batch and of the carry; scalars belong to all of them.
    """

    # Whether `evaluate` shares its work out over the processes and devices of a job by itself, as
    # `perplexity` does; else process 0 evaluates.
    shares_evaluation: ClassVar[bool] = False

    def build(self, rngs: nnx.Rngs) -> nnx.Module:
        """A new model."""
        raise NotImplementedError

    def carry(self) -> PyTree:
        """What the first batch gets from the (missing) one before: memory, warm start, or ()."""
        return ()

    def batch(self, index: int, rows: slice = slice(None)) -> PyTree:
        """Those samples of the batch of training step `index`, NumPy arrays. Pure: a restart asks
        again."""
        raise NotImplementedError

    def probe(self, phase: Phase, rows: int) -> Stats | None:
        """`deqjax.adjoint_probe` for the loss of so many samples, or None where the adjoint has
        nothing to report."""
        return None

    def loss(
        self,
        model: Any,
        carry: PyTree,
        batch: PyTree,
        *,
        step: jax.Array,
        phase: Phase,
        probe: Stats | None,
    ) -> tuple[jax.Array, tuple[PyTree, dict[str, Any]]]:
        """(loss, (the next carry, metrics)), means over the samples in hand, which may be a part of
        the batch; metrics["solve"] is the `Stats` of the solve, if there is one. `step` counts from
        0. Draw what belongs to a sample with `deqjax.training.draw_rows`."""
        raise NotImplementedError

    def weight(self, batch: PyTree) -> jax.Array:
        """How much those samples count beside the rest of the batch: what `loss` is a mean over."""
        rows = next(x.shape[0] for x in jax.tree.leaves(batch) if jnp.ndim(x))
        return jnp.asarray(rows, jnp.float32)

    def after(
        self, carry: PyTree, metrics: dict[str, jax.Array], phase: Phase
    ) -> tuple[PyTree, dict[str, jax.Array]]:
        """The carry and the metrics, once the metrics are those of the whole batch."""
        return carry, metrics

    def evaluate(self, model: Any) -> dict[str, float]:
        """Held-out metrics of a model in eval mode; "valid_loss" is what the plateau watches."""
        raise NotImplementedError


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


class Sums(NamedTuple):
    """What the parts of a batch add up to. A part whose loss or gradient is not finite adds nothing
    but a one to `bad`."""

    grads: PyTree  # Σ weight · gradient
    metrics: dict[str, jax.Array]  # Σ weight · metric
    weight: jax.Array
    bad: jax.Array


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
) -> Callable[[TrainState, PyTree], tuple[TrainState, dict[str, jax.Array]]]:
    """`train_step(state, batch) -> (state, metrics)`, pure and ready for `jax.jit`.

    Args:
        phase: what is computed; the model's own solve and gradient if not given.
        parallel: how the batch is spread over devices; one device if not given.
        accumulate: in how many parts, one after the other, each device computes the gradient of its
            samples: memory of a part, the gradient of all.

    A step of which no part has a finite loss and gradient changes nothing but `step`, `skipped` and
    `in_a_row`. Where a device computes its own samples (`shard_map`, `pmap`, or accumulated parts),
    one whose data are bad is left out of the mean, keeps its carry, and is counted in the metric
    `bad_parts`.
    """
    now = Phase() if phase is None else phase

    def local(params, rest, carry, batch, step, first):
        return shard_sums(task, graph, now, accumulate, params, rest, carry, batch, step, first)

    spread = (parallel or Parallel()).spread(local)

    def train_step(state: TrainState, batch: PyTree):
        sums, carry, rest = spread(state.params, state.rest, state.carry, batch, state.step)
        grads, metrics = jax.tree.map(lambda x: x / sums.weight, (sums.grads, sums.metrics))
        norm = optax.tree.norm(grads)
        finite = (sums.weight > 0) & jnp.isfinite(norm)
        updates, opt_state = optimiser.update(grads, state.opt_state, state.params)
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


def shard_sums(
    task: Task,
    graph: nnx.GraphDef,
    phase: Phase,
    accumulate: int,
    params: PyTree,
    rest: PyTree,
    carry: PyTree,
    batch: PyTree,
    step: jax.Array,
    first: Any,
) -> tuple[Sums, PyTree, PyTree]:
    """(sums, carry, rest) of the samples in hand, which begin at number `first` of the batch.

    Part i of `accumulate` takes every accumulate-th sample, beginning with the i-th: each part is
    then as evenly spread over the devices as the whole.
    """
    count = next(x.shape[0] for x in jax.tree.leaves(batch) if jnp.ndim(x))
    rows = first + jnp.arange(count, dtype=jnp.int32)
    one = lambda given: _part_sums(task, graph, phase, params, rest, step, *given)
    if accumulate == 1:
        return one((carry, batch, rows))

    def cut(x):
        if not jnp.ndim(x):
            return jnp.broadcast_to(x, (accumulate,))
        return jnp.moveaxis(x.reshape(len(x) // accumulate, accumulate, *x.shape[1:]), 1, 0)

    def join(x):
        if x.ndim == 1:
            return x[-1]
        return jnp.moveaxis(x, 0, 1).reshape(x.shape[0] * x.shape[1], *x.shape[2:])

    parts = jax.tree.map(cut, (carry, batch, rows))

    def add(total, given):
        sums, carry, rest = one(given)
        return jax.tree.map(jnp.add, total, sums), (carry, rest)

    shapes = jax.eval_shape(one, jax.tree.map(lambda x: x[0], parts))[0]
    zero = vary_like(jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes), shapes)
    sums, (carry, rest) = jax.lax.scan(add, zero, parts)
    return sums, jax.tree.map(join, carry), jax.tree.map(lambda x: x[-1], rest)


def _part_sums(task, graph, phase, params, rest, step, carry, batch, rows):
    """(sums, carry, rest) of some samples at once, with one gradient."""

    def objective(params, probe):
        model = nnx.merge(graph, params, rest, copy=True)
        loss, (after, metrics) = task.loss(model, carry, batch, step=step, phase=phase, probe=probe)
        return loss, (after, nnx.split(model, nnx.Param, ...)[2], metrics)

    probe = task.probe(phase, rows.shape[0]) if phase.depth is None else None
    probe = vary_with(probe, params)  # else its "gradient" would be summed over devices
    with batch_rows(rows):
        differentiate = jax.value_and_grad(objective, argnums=(0, 1), has_aux=True)
        (loss, (after, rest, metrics)), (grads, adjoint) = differentiate(params, probe)
    solve = _report(metrics.pop("solve", None), "forward")
    if phase.depth is not None:
        solve.pop("converged", None)  # a stack does not try to
    metrics = metrics | {"loss": loss} | solve | _report(adjoint, "adjoint")
    finite = jnp.isfinite(loss) & jnp.isfinite(optax.tree.norm(grads))
    weight = jnp.where(finite, task.weight(batch), 0.0)
    add = lambda x: jnp.where(finite, x * weight, 0).astype(x.dtype)
    metrics = {k: jnp.asarray(x, jnp.float32) for k, x in metrics.items()}
    grads, metrics = jax.tree.map(add, (grads, metrics))
    sums = Sums(grads, metrics, weight, (~finite).astype(jnp.float32))
    keep = lambda new, old: jnp.where(finite, new, old) if jnp.ndim(new) else new
    return sums, jax.tree.map(keep, after, carry), rest


def _report(stats: Stats | None, which: str) -> dict[str, jax.Array]:
    """Means over the batch: steps, the share converged and the relative residual; of an adjoint
    solve the largest gain too, since one sample near a singular I − J can be most of a gradient."""
    if stats is None:
        return {}
    share = "converged" if which == "forward" else f"{which}_converged"
    report = {
        f"{which}_steps": jnp.mean(stats.steps.astype(jnp.float32)),
        share: jnp.mean(stats.converged.astype(jnp.float32)),
        f"{which}_residual": jnp.mean(stats.rel_residual),
    }
    return report if stats.gain is None else report | {f"{which}_gain": jnp.max(stats.gain)}
