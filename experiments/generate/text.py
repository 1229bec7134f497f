"""Continue prompts, show the texts, and say what they cost."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx

from deqjax.data import Vocabulary
from deqjax.nn import Decoder, Drawn
from deqjax.training import OptionError, load, read_config
from deqjax.training.architectures import FILE
from experiments import language_model
from experiments.language_model.models import build
from experiments.language_model.task import VOCABULARY

from .config import Config

PIECE = 16  # tokens between two looks at what was drawn, where nobody watches


def main(config: Config) -> list[str]:
    """The continuations, those of the first prompt first."""
    assert config.run is not None
    loaded = load(config.run, config.which, build=earlier(config.run))
    vocabulary = loaded.vocabulary
    if vocabulary is None:
        raise OptionError(f"{config.run} kept no vocabulary, so its tokens have no text")
    prompts = [encoded(vocabulary, text) for text in config.prompt for _ in range(config.count)]
    each = 1 if config.stream else min(PIECE, config.length)

    def begun() -> Decoder:
        try:
            return Decoder(
                loaded.model,
                prompts,
                config.sampling,
                seed=config.seed,
                cache=config.cache,
                warm_start=config.warm_start,
            )
        except ValueError as wrong:  # a model without memory, say
            raise OptionError(str(wrong)) from None

    begun().draw(each)  # compiles
    began = time.perf_counter()
    decoder = begun()
    read = time.perf_counter() - began
    if config.stream:
        sys.stdout.write(vocabulary.decode(prompts[0]))
    pieces: list[Drawn] = []
    shown = 0
    for piece in decoder.stream(config.length, each):
        pieces.append(piece)
        if config.stream:
            # All of it again: where a word ends is known when the next one begins.
            so_far = vocabulary.decode([*prompts[0], *tokens(pieces)[0]])
            at = shown or len(vocabulary.decode(prompts[0]))
            sys.stdout.write(so_far[at:])
            sys.stdout.flush()
            shown = len(so_far)
    seconds = time.perf_counter() - began - read
    texts = [vocabulary.decode(row) for row in tokens(pieces)]
    if config.stream:
        print()
    else:
        show(config, vocabulary, prompts, tokens(pieces))
    print(f"\n{config.run}, step {loaded.step}: {spent(pieces, read, seconds)}")
    print(solves(decoder, pieces))
    return texts


def earlier(run: Path) -> Callable[[nnx.Rngs], Any] | None:
    """Makes the model of a run of experiments.language_model from before runs kept `model.json`;
    None for any other."""
    vocabulary, options = run / VOCABULARY, run / "config.json"
    if (run / FILE).exists() or not (vocabulary.exists() and options.exists()):
        return None
    try:
        size = len(Vocabulary.load(vocabulary))
        trained = read_config(language_model.Config, run)
    except (ValueError, TypeError):  # `load` says what is wrong
        return None
    return lambda rngs: build(trained, size, rngs)


def encoded(vocabulary: Vocabulary, text: str) -> np.ndarray:
    """The ids of a prompt; an empty one is the beginning of a line."""
    try:
        ids = vocabulary.encode(text)
        return ids if len(ids) else np.array([vocabulary.start_id], np.int32)
    except ValueError as wrong:
        raise OptionError(str(wrong)) from None


def tokens(pieces: Sequence[Drawn]) -> np.ndarray:
    return np.concatenate([piece.tokens for piece in pieces], axis=1)


def show(config: Config, vocabulary: Vocabulary, prompts: list, drawn: np.ndarray) -> None:
    for i, (prompt, row) in enumerate(zip(prompts, drawn, strict=True)):
        if len(prompts) > 1:
            print(f"--- prompt {i // config.count + 1}, text {i % config.count + 1}")
        print(vocabulary.decode([*prompt, *row]))


def spent(pieces: Sequence[Drawn], read: float, seconds: float) -> str:
    rows, n = tokens(pieces).shape
    return (
        f"{rows * n:,} tokens in {seconds:.2f} s, {rows * n / seconds:,.1f} a second"
        f"{f' ({n / seconds:,.1f} in each of {rows} rows)' if rows > 1 else ''}; prompts read in "
        f"{read:.2f} s; compiled before that"
    )


def solves(decoder: Decoder, pieces: Sequence[Drawn]) -> str:
    """How the solves ended, the prompts' too."""
    if pieces[0].steps is None:
        return "the model solves nothing"
    steps = np.concatenate([piece.steps for piece in pieces if piece.steps is not None], axis=1)
    ended = np.concatenate([p.converged for p in pieces if p.converged is not None], axis=1)
    failed = int((~ended).sum())
    said = (
        f"solves: {steps.mean():.1f} steps a token, {steps.max()} at most; {ended.mean():.1%} "
        f"converged"
    )
    if failed:
        said += f" ({failed:,} of {ended.size:,} positions did not: raise the model's max_steps)"
    if decoder.read is not None:
        at_most = int(decoder.read.steps.max())
        good = int(decoder.read.converged.sum())
        said += f"; prompts: {at_most} steps at most, {good} of {decoder.read.steps.size} converged"
    return said
