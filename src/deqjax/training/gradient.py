"""The gradient of the samples in hand: the loop-free inside of a training step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from .._closure import vary_like, vary_with
from .._rows import batch_rows
from .._solution import Stats
from .frozen import held
from .options import Phase
from .task import Task

PyTree = Any


class Sums(NamedTuple):
    """What the parts of a batch add up to. A part whose loss or gradient is not finite adds nothing
    but a one to `bad`."""

    grads: PyTree  # Σ weight · gradient
    metrics: dict[str, jax.Array]  # Σ weight · metric
    weight: jax.Array
    bad: jax.Array


@dataclass(frozen=True)
class Gradient:
    """What `Parallel.spread` spreads: the sums of loss and gradient over some samples of a batch.

    Attributes:
        task, graph: the model and its loss.
        phase: what is computed.
        accumulate: in how many parts, one after the other.
        freeze: an `nnx` filter of parameters that have no gradient.
    """

    task: Task
    graph: nnx.GraphDef
    phase: Phase
    accumulate: int = 1
    freeze: Any = None

    def __call__(
        self,
        params: PyTree,
        rest: PyTree,
        carry: PyTree,
        batch: PyTree,
        step: jax.Array,
        first: Any = 0,
    ) -> tuple[Sums, PyTree, PyTree]:
        """(sums, carry, rest) of the samples in hand, which begin at number `first` of the batch.

        Part i of `accumulate` takes every accumulate-th sample, beginning with the i-th: each part
        is then as evenly spread over the devices as the whole.
        """
        count = next(x.shape[0] for x in jax.tree.leaves(batch) if jnp.ndim(x))
        rows = first + jnp.arange(count, dtype=jnp.int32)
        if self.accumulate == 1:
            return self.of_part(params, rest, step, carry, batch, rows)
        one = lambda given: self.of_part(params, rest, step, *given)
        parts = jax.tree.map(self._cut, (carry, batch, rows))

        def add(total, given):
            sums, carry, rest = one(given)
            return jax.tree.map(jnp.add, total, sums), (carry, rest)

        shapes = jax.eval_shape(one, jax.tree.map(lambda x: x[0], parts))[0]
        zero = vary_like(jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes), shapes)
        sums, (carry, rest) = jax.lax.scan(add, zero, parts)
        return sums, jax.tree.map(_joined, carry), jax.tree.map(lambda x: x[-1], rest)

    def _cut(self, x):
        n = self.accumulate
        if not jnp.ndim(x):
            return jnp.broadcast_to(x, (n,))
        return jnp.moveaxis(x.reshape(len(x) // n, n, *x.shape[1:]), 1, 0)

    def of_part(self, params, rest, step, carry, batch, rows) -> tuple[Sums, PyTree, PyTree]:
        """(sums, carry, rest) of some samples at once, with one gradient."""
        task, phase = self.task, self.phase

        def objective(params, probe):
            params = held(params, self.freeze)
            model = nnx.merge(self.graph, params, rest, copy=True)
            loss, (after, metrics) = task.loss(
                model, carry, batch, step=step, phase=phase, probe=probe
            )
            return loss, (after, nnx.split(model, nnx.Param, ...)[2], metrics)

        probe = task.probe(phase, rows.shape[0]) if phase.depth is None else None
        probe = vary_with(probe, params)  # else its "gradient" would be summed over devices
        with batch_rows(rows):
            differentiate = jax.value_and_grad(objective, argnums=(0, 1), has_aux=True)
            (loss, (after, new, metrics)), (grads, adjoint) = differentiate(params, probe)
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
        return sums, jax.tree.map(keep, after, carry), new


def _joined(x):
    if x.ndim == 1:
        return x[-1]
    return jnp.moveaxis(x, 0, 1).reshape(x.shape[0] * x.shape[1], *x.shape[2:])


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
