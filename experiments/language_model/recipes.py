"""What each model is and how it is trained where no flag says otherwise."""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any

from deqjax.training import SolverOptions, TrainOptions

from .config import Config
from .paper import PAPER


def recipe(args: list[str]) -> Config:
    """The defaults that belong to the --model and --preset among the arguments."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--model", default="deq-transformer")
    parser.add_argument("--preset", default="quick")
    chosen = parser.parse_known_args(args)[0]
    config = Config()
    if chosen.preset in PAPER:
        return dataclasses.replace(config, **PAPER[chosen.preset])
    if chosen.preset in WORDS:
        given = WORDS[chosen.preset] | SIZES.get(chosen.model, {})
        config = dataclasses.replace(config, **given)
    if chosen.model not in ("deq-transformer", "universal-transformer"):
        config = dataclasses.replace(config, injection="qkv", prelude=0)
    return config


def _training(stack_steps: int = 0) -> TrainOptions:
    return TrainOptions(
        steps=9000,
        batch_size=16,
        learning_rate=2e-3,
        warmup=200,
        weight_decay=0.02,
        clip=0.5,
        stack_steps=stack_steps,
        stack_jitter=2,
        eval_every=900,
        checkpoint_every=300,
        log_every=20,
    )


def _words(dataset: str) -> dict[str, Any]:
    """Words of a small corpus: many passes over it, and much dropout."""
    return dict(
        preset=dataset,
        dataset=dataset,
        segment=64,
        memory=64,
        width=128,
        dropout=0.1,
        dropout_in=0.2,
        dropout_out=0.3,
        solver=SolverOptions(rtol=1e-2, max_steps=16),
        train=_training(),
    )


# Sixteen rows of 64 tokens, 1,024 in a step: 907 steps are an epoch of the Penn Treebank, 2,040 one
# of WikiText-2.
WORDS: dict[str, dict[str, Any]] = {name: _words(name) for name in ("ptb", "wikitext-2")}

# What makes each row of the table; the transformers share their width, and so the embedding.
_TRELLIS: dict[str, Any] = dict(hidden=192, weight_norm=True, memory=1)
SIZES: dict[str, dict[str, Any]] = {
    "deq-transformer": dict(inner=440),
    "universal-transformer": dict(inner=440, depth=6),
    "deq-trellisnet": dict(**_TRELLIS, train=_training(stack_steps=6000)),
    "trellisnet": _TRELLIS,
    "lstm": dict(hidden=256, layers=2, weight_drop=0.2, dropout_words=0.1),
}
