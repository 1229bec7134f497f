"""What is trained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from .._solution import Stats
from .options import Phase

PyTree = Any


class Task:
    """What is trained: a model, its data, its loss and its evaluation. One file an experiment.

    Samples come first in every array of a batch and of the carry; scalars belong to all of them.
    """

    # Whether `evaluate` shares its work out over the processes and devices of a job by itself, as
    # `perplexity` does; else process 0 evaluates.
    shares_evaluation: ClassVar[bool] = False
    # What the rate of training counts: samples, or tokens, which are those that `batch.weights`
    # count.
    counted: ClassVar[Literal["samples", "tokens"]] = "samples"

    def build(self, rngs: nnx.Rngs) -> nnx.Module:
        """A new model."""
        raise NotImplementedError

    def fingerprint(self) -> str | None:
        """Which data these are, by `deqjax.training.fingerprint`: a run that was begun on others is
        refused. None, and nobody asks."""
        return None

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

    def evaluate(self, model: Any) -> Mapping[str, Any]:
        """Held-out metrics of a model in eval mode: numbers under any names that `loss` has not
        given to its own. They are recorded, and the progress line shows them. "valid_loss" is what
        the plateau schedule watches, and by which the best checkpoint is kept."""
        return {}
