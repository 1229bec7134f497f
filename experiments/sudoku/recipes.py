"""How each layer is trained where no flag says otherwise."""

from __future__ import annotations

import argparse

from deqjax.training import TrainOptions

from .optnet import OptNetOptions
from .satnet import SATNetOptions
from .task import Config

# (learning rate, batch, epochs)
TRAINED = {
    ("optnet", "4"): (1e-1, 50, 3),
    ("optnet", "9"): (1e-1, 50, 3),
    ("satnet", "4"): (5e-3, 40, 1),
    ("satnet", "9"): (2e-3, 40, 100),
}


def recipe(args: list[str]) -> Config:
    """The defaults that belong to the --layer and --size among the arguments."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--layer", default="optnet")
    parser.add_argument("--size", default="4")
    chosen = parser.parse_known_args(args)[0]
    nine = chosen.size == "9"
    rate, batch, epochs = TRAINED.get((chosen.layer, chosen.size), TRAINED["optnet", "4"])
    train = TrainOptions(
        learning_rate=rate,
        batch_size=batch,
        schedule="constant",
        warmup=0,
        beta2=0.999,
        weight_decay=0.0,
        clip=1e6,  # plain Adam
        log_every=1,
        checkpoint_every=25 if nine else 1000,
    )
    return Config(
        epochs=epochs,
        optnet=OptNetOptions(equalities=250 if nine else 40),
        satnet=SATNetOptions(clauses=600, auxiliary=300) if nine else SATNetOptions(),
        train=train,
    )
