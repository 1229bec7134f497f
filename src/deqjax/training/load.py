"""A trained model, from the folder of its run."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
from flax import nnx

from ..data import Vocabulary
from .architectures import FILE, NotDescribed, from_architecture, load_architecture
from .checkpoints import Checkpoints
from .options import OptionError

VOCABULARY = "vocabulary.json"


@dataclass(frozen=True)
class Loaded:
    """What a run has made.

    Attributes:
        model: in eval mode, with the parameters of the checkpoint.
        vocabulary: text to ids and back; None where the run kept none.
        options: `config.json`: every option of the run by its name.
        step: the training step of the checkpoint.
        directory: the run's folder.
    """

    model: Any
    vocabulary: Vocabulary | None
    options: dict[str, Any]
    step: int
    directory: Path


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class _Parameters:
    """The part of a `TrainState` that is read, under the same name."""

    params: Any


def load(
    run: str | Path,
    which: Literal["latest", "best"] = "latest",
    *,
    build: Callable[[nnx.Rngs], Any] | None = None,
) -> Loaded:
    """The model of a run, its vocabulary and its options, from the run's folder alone.

    The architecture is that of `model.json`, which is data and not code; nothing is unpickled, and
    every file of the checkpoint is compared with its SHA-256. A damaged checkpoint is told by a
    `RuntimeWarning`, and the one before it is taken. Optimiser, memory and text are not read.

    Args:
        run: the folder, such as runs/python-docs.
        which: "latest", the newest good checkpoint, or "best", the one with the lowest held-out
            loss.
        build: makes the model, for one that is not of this package's kinds or for a run that has no
            `model.json`.

    Raises:
        OptionError: there is no such run, it has no checkpoint, or it is one of a program that
            keeps no language model.
        CheckpointError: all its checkpoints are damaged, or hold another model, or none was
            evaluated when the best is asked for.
    """
    run = Path(run)
    if which not in ("latest", "best"):
        raise OptionError(f"which must be 'latest' or 'best'; got {which!r}")
    options = _options(run)
    if build is None:
        build = _builder(run)
    vocabulary = None
    if (run / VOCABULARY).exists():
        try:
            vocabulary = Vocabulary.load(run / VOCABULARY)
        except ValueError as wrong:
            raise OptionError(str(wrong)) from None
    make = build
    shape = nnx.eval_shape(lambda: make(nnx.Rngs(0)))
    params = nnx.state(shape, nnx.Param)
    with Checkpoints(run / "checkpoints") as checkpoints:
        restored = checkpoints.restore(_Parameters(params), which, part=True)
    if restored is None:
        raise OptionError(f"{run} has no checkpoint yet")
    model = build(nnx.Rngs(0))
    nnx.update(model, restored.tree.params)
    model.eval()
    return Loaded(model, vocabulary, options, restored.step, run)


def _options(run: Path) -> dict[str, Any]:
    if not run.is_dir():
        raise OptionError(f"there is no run at {run}")
    try:
        options = json.loads((run / "config.json").read_text())
    except FileNotFoundError:
        raise OptionError(f"{run} is not a run: it has no config.json") from None
    except ValueError as wrong:
        raise OptionError(f"{run}/config.json cannot be read: {wrong}") from None
    if not isinstance(options, dict):
        raise OptionError(f"{run}/config.json holds no options")
    return options


def _builder(run: Path) -> Callable[[nnx.Rngs], Any]:
    try:
        described = load_architecture(run / FILE)
        nnx.eval_shape(lambda: from_architecture(described, nnx.Rngs(0)))
    except FileNotFoundError:
        raise OptionError(
            f"{run} does not say what its model is, for it has no {FILE}: it is the "
            "run of another program, or of an earlier version; load(build=...) takes a function "
            "that makes the model"
        ) from None
    except NotDescribed as wrong:
        raise OptionError(f"{run}: {wrong}") from None
    return lambda rngs: from_architecture(described, rngs)
