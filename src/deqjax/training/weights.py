"""Trained parameters as one small file: a NumPy archive and nothing that could run."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from .checkpoints import CheckpointError


def save_weights(path: Path, model: nnx.Module) -> None:
    """Write the `nnx.Param`s of `model` to an .npz file, each under its path: `embed/kernel`.

    For publishing what training has ended in. To go on training, use `Checkpoints`.
    """
    named = _named(nnx.state(model, nnx.Param))
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    with open(partial, "wb") as file:
        np.savez_compressed(file, allow_pickle=False, **jax.tree.map(np.asarray, named))
    os.replace(partial, path)


def load_weights(path: Path, model: nnx.Module) -> None:
    """Put what `save_weights` wrote into `model`, which must have the same parameters.

    Nothing is unpickled.

    Raises:
        CheckpointError: no such file, not such a file, or of another model.
    """
    try:
        with open(path, "rb") as opened, np.load(opened, allow_pickle=False) as file:
            found = {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as wrong:
        raise CheckpointError(f"{path} holds no weights: {wrong}") from None
    params = nnx.state(model, nnx.Param)
    wanted = _named(params)
    for name in sorted(found.keys() | wanted.keys()):
        here = found[name].shape if name in found else "absent"
        there = wanted[name].shape if name in wanted else "absent"
        if here != there:
            raise CheckpointError(
                f"{path} is of another model: {name} is {here}, where the model has {there}"
            )
    leaves = [found[name].astype(x.dtype) for name, x in wanted.items()]
    nnx.update(model, jax.tree.unflatten(jax.tree.structure(params), leaves))


def _named(params: Any) -> dict[str, Any]:
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {jax.tree_util.keystr(path[:-1], simple=True, separator="/"): x for path, x in leaves}
