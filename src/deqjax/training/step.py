"""The pure training step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from .._solution import Stats, Status
from .options import Phase
from .schedules import scaled

PyTree = Any


class Task(Protocol):
    """What is trained: a model, its data, its loss and its evaluation. One file an experiment."""

    def build(self, rngs: nnx.Rngs) -> nnx.Module:
        """A new model."""
        ...

    def carry(self) -> PyTree:
        """What the first batch gets from the (missing) one before: memory, warm start, or ()."""
        ...

    def batch(self, index: int) -> PyTree:
        """The batch of training step `index`, NumPy arrays. Pure: a restart asks again."""
        ...

    def probe(self, phase: Phase) -> Stats | None:
        """`deqjax.adjoint_probe` for the loss, or None where the adjoint has nothing to report."""
        ...

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
        """(loss, (the next carry, metrics)); metrics["solve"] is the `Stats` of the solve, if there
        is one. `step` counts from 0."""
        ...

    def evaluate(self, model: Any) -> dict[str, float]:
        """Held-out metrics of a model in eval mode; "valid_loss" is what the plateau watches."""
        ...


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
        skipped: int32, updates skipped because the loss or a gradient was not finite.
        plateau: the state of `Plateau`; () unless that is the schedule.
    """

    step: Any
    params: Any
    rest: Any
    opt_state: Any
    carry: Any
    skipped: Any
    plateau: Any = ()


def new_state(
    task: Task, optimiser: optax.GradientTransformation, seed: int, plateau: PyTree = ()
) -> tuple[nnx.GraphDef, TrainState]:
    """The model's graph, which is static, and the state before the first step."""
    model = task.build(nnx.Rngs(seed))
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    zero = jnp.zeros((), jnp.int32)
    opt_state = optimiser.init(params)
    state = TrainState(zero, params, rest, opt_state, task.carry(), zero, plateau)
    # Every leaf in a buffer of its own, as each is donated.
    return graph, jax.tree.map(lambda x: x.copy(), state)


def make_step(
    task: Task,
    graph: nnx.GraphDef,
    optimiser: optax.GradientTransformation,
    phase: Phase | None = None,
) -> Callable[[TrainState, PyTree], tuple[TrainState, dict[str, jax.Array]]]:
    """`train_step(state, batch) -> (state, metrics)`, pure and ready for `jax.jit`.

    Args:
        phase: what is computed; the model's own solve and gradient if not given.

    A step whose loss or gradient is not finite changes nothing but `step` and `skipped`.
    """
    now = Phase() if phase is None else phase

    def train_step(state: TrainState, batch: PyTree):
        def objective(params, probe):
            model = nnx.merge(graph, params, state.rest, copy=True)
            options = dict(step=state.step, phase=now, probe=probe)
            loss, (carry, metrics) = task.loss(model, state.carry, batch, **options)
            rest = nnx.split(model, nnx.Param, ...)[2]
            return loss, (carry, rest, metrics)

        probe = task.probe(now) if now.depth is None else None
        differentiate = jax.value_and_grad(objective, argnums=(0, 1), has_aux=True)
        (loss, (carry, rest, metrics)), (grads, adjoint) = differentiate(state.params, probe)
        norm = optax.tree.norm(grads)
        finite = jnp.isfinite(loss) & jnp.isfinite(norm)
        updates, opt_state = optimiser.update(grads, state.opt_state, state.params)
        updates = scaled(updates, state.plateau)
        updated = (optax.apply_updates(state.params, updates), rest, opt_state, carry)
        current = (state.params, state.rest, state.opt_state, state.carry)
        params, rest, opt_state, carry = jax.tree.map(
            lambda new, old: jnp.where(finite, new, old), updated, current
        )
        skipped = state.skipped + ~finite
        state = TrainState(state.step + 1, params, rest, opt_state, carry, skipped, state.plateau)
        forward = _report(metrics.pop("solve", None), "forward")
        if now.depth is not None:
            forward.pop("converged", None)  # a stack does not try to
        metrics = dict(metrics, loss=loss, grad_norm=norm, skipped=state.skipped)
        return state, metrics | forward | _report(adjoint, "adjoint")

    return train_step


def _report(stats: Stats | None, which: str) -> dict[str, jax.Array]:
    """Means over the batch: steps, the share converged and the relative residual."""
    if stats is None:
        return {}
    share = "converged" if which == "forward" else f"{which}_converged"
    return {
        f"{which}_steps": jnp.mean(stats.steps.astype(jnp.float32)),
        share: jnp.mean((stats.status == Status.CONVERGED).astype(jnp.float32)),
        f"{which}_residual": jnp.mean(stats.rel_residual),
    }
