"""Learning-rate schedules and the optimiser, as Optax chains."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from .options import TrainOptions


def learning_rate(options: TrainOptions) -> optax.Schedule:
    """Linear warm-up, then cosine decay to `learning_rate_end` times the peak.

    Where the stack gives way to the solve, the rate warms up again: the gradient is then another
    one, and AdamW's averages of squares are too small for it.
    """
    warmup = min(options.warmup, max(options.steps - 1, 0))
    rate = optax.warmup_cosine_decay_schedule(
        init_value=options.learning_rate / (warmup + 1),
        peak_value=options.learning_rate,
        warmup_steps=warmup,
        decay_steps=max(options.steps, warmup + 1),
        end_value=options.learning_rate * options.learning_rate_end,
    )
    if not options.stack_steps:
        return rate

    def warmed_up_again(step):
        since = step - options.stack_steps
        return rate(step) * jnp.where(since < 0, 1.0, jnp.minimum((since + 1) / (warmup + 1), 1.0))

    return warmed_up_again


def optimiser(options: TrainOptions) -> optax.GradientTransformation:
    """AdamW after clipping by the global norm; vectors (biases) are not decayed."""

    return optax.chain(
        optax.clip_by_global_norm(options.clip),
        optax.adamw(
            learning_rate(options),
            b2=options.beta2,
            weight_decay=options.weight_decay,
            mask=_matrices,
        ),
    )


def _matrices(params):
    return jax.tree.map(lambda p: p.ndim >= 2, params)
