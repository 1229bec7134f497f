"""A run that goes on for another number of steps than it was begun with."""

from __future__ import annotations

import dataclasses
from typing import Any

from .options import OptionError, TrainOptions
from .schedules import learning_rate


def going_on(options: TrainOptions, recorded: dict[str, Any], done: int) -> str | None:
    """What other `--steps` mean for a run that is recorded so and has done so many; None if they
    mean nothing but more or fewer of them.

    Constant and plateau go on as they are. A cosine is another curve with another end.

    Raises:
        OptionError: the run is beyond them already, or its plateau would count other evaluations.
    """
    if options.steps < done:
        raise OptionError(
            f"the run has done {done} steps, and --steps is {options.steps}: give at least {done}"
        )
    every = recorded.get("eval_every", options.eval_every)
    if options.schedule == "plateau" and every != options.eval_every:
        raise OptionError(
            f"--schedule plateau cuts the learning rate by its evaluations, and --eval-every was "
            f"{every}, now {options.eval_every}: leave it, or choose another --name"
        )
    planned = recorded.get("steps", options.steps)
    if options.schedule != "cosine" or planned == options.steps or not done:
        return None
    rate: Any = lambda steps: learning_rate(dataclasses.replace(options, steps=steps))(done)
    then, now = float(rate(planned)), float(rate(options.steps))
    return (
        f"the cosine of the learning rate now ends at step {options.steps} and not at {planned}: "
        f"from step {done} on it is {now:.2g}, where it was {then:.2g} "
        "(--schedule constant or plateau goes on as it was)"
    )
