"""What a finished run leaves for others: weights, options and scores, a few dozen KB."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from flax import nnx

from deqjax.training import OptionError, load_weights, read_config, save_weights

from . import models
from .task import Config

WEIGHTS, SCORES = "weights.npz", "scores.json"
RECORDED = Path(__file__).parents[1] / "results" / "copy_memory"


def save(directory: Path, model: nnx.Module, scores: dict[str, Any]) -> None:
    """Add weights and scores to a run's folder."""
    save_weights(directory / WEIGHTS, model)
    (directory / SCORES).write_text(json.dumps(scores, indent=1) + "\n")


def record(directory: Path) -> Path:
    """Copy what others need of a run's folder to the recorded results."""
    target = RECORDED / directory.name
    target.mkdir(parents=True, exist_ok=True)
    for file in ("config.json", WEIGHTS, SCORES, "curves.png"):
        shutil.copyfile(directory / file, target / file)
    return target


def load(directory: Path) -> tuple[Config, Any, dict[str, Any]]:
    """(options, model in eval mode, scores) of a folder that `save` has filled."""
    if not (directory / WEIGHTS).exists():
        raise OptionError(f"{directory} holds no {WEIGHTS}: give the folder of a finished run")
    config = read_config(Config, directory)
    model = models.build(config, nnx.Rngs(0))
    load_weights(directory / WEIGHTS, model)
    model.eval()
    return config, model, json.loads((directory / SCORES).read_text())
