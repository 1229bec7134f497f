"""A new run that begins with the weights of another."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from flax import nnx

from .checkpoints import Checkpoints
from .options import OptionError
from .step import TrainState

CHECKPOINTS = "checkpoints"  # in the folder of a run


def weights_of(
    run: Path, state: TrainState, which: Literal["latest", "best"] = "latest"
) -> TrainState:
    """The state with the parameters of a run, and its running statistics: all variables of the
    model but random keys. Optimiser, step and memory stay those of `state`.

    Raises:
        OptionError: the folder holds no checkpoint.
        CheckpointError: it holds those of another model, or all are damaged.
    """
    others = nnx.filter_state(state.rest, nnx.Not(nnx.RngState))
    found = _read(run, dict(params=state.params, rest=others), which)
    rest = nnx.merge_state(state.rest, found.rest)
    return dataclasses.replace(state, params=found.params, rest=rest)


def model_of(
    run: Path, state: TrainState, which: Literal["latest", "best"] = "latest"
) -> TrainState:
    """The state with all of a run's model, random keys too; whatever its optimiser was.

    Raises:
        OptionError: the folder holds no checkpoint.
        CheckpointError: it holds those of another model, or all are damaged.
    """
    found = _read(run, dict(params=state.params, rest=state.rest), which)
    return dataclasses.replace(state, params=found.params, rest=found.rest)


def check_source(run: Path, model: nnx.Module) -> None:
    """Read the weights once, before a run is begun with them. All processes of a job must.

    Args:
        model: of the new run; its shapes are enough.

    Raises:
        OptionError: the folder holds no checkpoint.
        CheckpointError: it holds those of another model, or all are damaged.
    """
    _, params, rest = nnx.split(model, nnx.Param, ...)
    rest = nnx.filter_state(rest, nnx.Not(nnx.RngState))
    # On the host, and whole; the templates take no memory.
    host = lambda x: np.broadcast_to(np.zeros((), x.dtype), x.shape)
    _read(run, jax.tree.map(host, dict(params=params, rest=rest)), "latest")


def _read(run: Path, wanted: dict[str, Any], which: Literal["latest", "best"]) -> TrainState:
    nothing = dict.fromkeys((field.name for field in dataclasses.fields(TrainState)), ())
    with Checkpoints(run / CHECKPOINTS) as checkpoints:
        found = checkpoints.restore(TrainState(**{**nothing, **wanted}), which, part=True)
    if found is None:
        raise _nothing(run)
    return found.tree


def _nothing(run: Path) -> OptionError:
    return OptionError(f"{run} has no checkpoint yet: give the folder of a run that has been saved")
