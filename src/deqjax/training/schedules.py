"""Learning-rate schedules and the optimiser, as Optax chains."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
from optax import contrib

from .options import TrainOptions


def learning_rate(options: TrainOptions) -> optax.Schedule:
    """Linear warm-up, then cosine decay to `learning_rate_end` times the peak, or none.

    Where the stack gives way to the solve, the rate warms up again: the gradient is then another
    one, and AdamW's averages of squares are too small for it.
    """
    warmup = min(options.warmup, max(options.steps - 1, 0))
    start = options.learning_rate / (warmup + 1)
    if options.schedule == "cosine":
        rate = optax.warmup_cosine_decay_schedule(
            init_value=start,
            peak_value=options.learning_rate,
            warmup_steps=warmup,
            decay_steps=max(options.steps, warmup + 1),
            end_value=options.learning_rate * options.learning_rate_end,
        )
    else:
        rate = optax.linear_schedule(start, options.learning_rate, warmup)
    if not options.stack_steps:
        return rate

    def warmed_up_again(step):
        since = step - options.stack_steps
        return rate(step) * jnp.where(since < 0, 1.0, jnp.minimum((since + 1) / (warmup + 1), 1.0))

    return warmed_up_again


def optimiser(options: TrainOptions) -> optax.GradientTransformation:
    """AdamW or plain gradient descent, after clipping by the global norm. Weight decay is
    decoupled, and spares vectors (biases)."""
    rate = learning_rate(options)
    clip = optax.clip_by_global_norm(options.clip)
    if options.optimiser == "sgd":
        decay = optax.add_decayed_weights(options.weight_decay, mask=_matrices)
        return optax.chain(clip, decay, optax.sgd(rate))
    adamw = optax.adamw(rate, b2=options.beta2, weight_decay=options.weight_decay, mask=_matrices)
    return optax.chain(clip, adamw)


class Plateau:
    """Cuts the learning rate where held-out loss stands still (`optax.contrib.reduce_on_plateau`).

    Its state is a few scalars in `TrainState`; updates are multiplied by `state.scale`. Without
    the plateau schedule the state is () and nothing happens.
    """

    def __init__(self, options: TrainOptions):
        self._transform = None
        if options.schedule == "plateau":
            self._transform = contrib.reduce_on_plateau(
                factor=options.plateau_factor,
                patience=options.plateau_patience + 1,
                min_scale=options.learning_rate_end,
            )

    def init(self) -> Any:
        return () if self._transform is None else self._transform.init(jnp.zeros(()))

    def update(self, state: Any, loss: float) -> Any:
        """The state after an evaluation whose held-out loss is `loss`."""
        if self._transform is None:
            return state
        value = jnp.asarray(loss, state.scale.dtype)
        return self._transform.update((), state, value=value)[1]


def scaled(updates: Any, plateau: Any) -> Any:
    """The updates, at the plateau's scale."""
    if not plateau:
        return updates
    return jax.tree.map(lambda u: u * plateau.scale.astype(u.dtype), updates)


def _matrices(params):
    return jax.tree.map(lambda p: p.ndim >= 2, params)
