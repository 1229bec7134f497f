"""How each row is trained where no flag says otherwise."""

from __future__ import annotations

import argparse

from deqjax.training import SolverOptions, TrainOptions

from .task import Config

# What gives each row its 14,000 parameters (the TCN: 16,000).
WIDTHS = {"tcn": 14, "lstm": 52, "gru": 60}

STEPS = {"quick": 400, "paper": 1000}
STACK = {"quick": 200, "paper": 900}  # the equilibrium's warm-up
# Recurrent networks get about the time that the equilibrium takes.
LONGER = {"tcn": 3000, "lstm": 12000, "gru": 12000, "universal-transformer": 700}
LEARNING_RATE = {"tcn": 2e-3, "lstm": 3e-3, "gru": 3e-3}


def recipe(args: list[str]) -> Config:
    """The defaults that belong to the --model and --preset among the arguments."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--model", default="deq-transformer")
    parser.add_argument("--preset", default="quick")
    chosen = parser.parse_known_args(args)[0]
    solves = chosen.model == "deq-transformer"
    steps = STEPS.get(chosen.preset, 400)
    if chosen.preset == "paper":
        steps = LONGER.get(chosen.model, steps)
    train = TrainOptions(
        steps=steps,
        stack_steps=STACK.get(chosen.preset, 200) if solves else 0,
        stack_jitter=2,
        batch_size=32,
        beta2=0.95,
        clip=1e-4 if "transformer" in chosen.model else 1.0,
        learning_rate=LEARNING_RATE.get(chosen.model, 3e-3),
    )
    return Config(
        width=WIDTHS.get(chosen.model, 32),
        random_starts=0.5,
        solver=SolverOptions(rtol=1e-4, max_steps=40),
        train=train,
    )
