"""What a finished run leaves for others: weights, options and scores, a few dozen KB; and the table
of all that is recorded."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx

from deqjax.data import memoryless_loss
from deqjax.training import OptionError, load_weights, read_config, save_weights

from . import models
from .audit import Line
from .task import Config

WEIGHTS, SCORES, CHECKS, TABLE = "weights.npz", "scores.json", "checks.json", "README.md"
PICTURE = "equilibrium.png"
RECORDED = Path(__file__).parents[1] / "results" / "copy_memory"


def over_training(rows: Iterable[dict[str, Any]]) -> dict[str, float]:
    """Means over all training steps that solved an equilibrium; empty if none did."""
    solved = [row for row in rows if "adjoint_steps" in row]
    names = ("forward_steps", "adjoint_steps", "converged", "adjoint_converged")
    return {f"training_{n}": float(np.mean([r[n] for r in solved])) for n in names if solved}


def save(directory: Path, model: nnx.Module, scores: dict[str, Any]) -> None:
    """Add weights and scores to a run's folder."""
    save_weights(directory / WEIGHTS, model)
    (directory / SCORES).write_text(json.dumps(scores, indent=1) + "\n")


def record(directory: Path, checks: list[Line]) -> Path:
    """Copy what others need of a run's folder to the recorded results, with what was checked.

    The first of the checks is the score of all test sequences: it replaces the recorded one.
    """
    target = RECORDED / directory.name
    target.mkdir(parents=True, exist_ok=True)
    for file in ("config.json", WEIGHTS, SCORES, "curves.png"):
        if directory != target:
            shutil.copyfile(directory / file, target / file)
    found = checks[0].score
    scores = json.loads((target / SCORES).read_text())
    scores |= dict(loss=found.loss, recall=found.recall, converged=found.converged)
    (target / SCORES).write_text(json.dumps(scores, indent=1) + "\n")
    lines = [line._asdict() | {"score": line.score._asdict()} for line in checks]
    (target / CHECKS).write_text(json.dumps(lines, indent=1) + "\n")
    (RECORDED / TABLE).write_text(table())
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


def folders() -> list[Path]:
    """All recorded runs."""
    return sorted(p.parent for p in RECORDED.glob(f"*/{WEIGHTS}"))


def table() -> str:
    """The recorded runs as Markdown, read from their files."""
    rows, checks, lengths, seeds = [], [], set(), []
    for folder in folders():
        config = json.loads((folder / "config.json").read_text())
        s = json.loads((folder / SCORES).read_text())
        lengths.add(config["length"])
        if config["model"] == "deq-transformer":
            seeds.append(s["loss"])
        solves = "–"
        if "training_forward_steps" in s:
            solves = (
                f"{s['training_forward_steps']:.1f} / {s['training_adjoint_steps']:.1f}, "
                f"{s['training_converged']:.1%} / {s['training_adjoint_converged']:.1%}"
            )
        rows.append(
            f"| {folder.name} | {s['parameters']:,} | {config['seed']} | {s['loss']:.2e} "
            f"| {s['recall']:.2%} | {solves} | {s['steps']:,} | {s['seconds'] / 60:.0f} min |"
        )
        if (folder / CHECKS).exists() and config["model"] == "deq-transformer":
            for line in json.loads((folder / CHECKS).read_text())[1:]:
                score = line["score"]
                checks.append(
                    f"| {folder.name} | {line['name']} | {line['length']} | {line['count']} "
                    f"| {score['loss']:.2e} | {score['recall']:.2%} | {score['steps']:.1f} "
                    f"| {score['converged']:.1%} |"
                )
    spread = ""
    if seeds:
        spread = (
            f"\nThe equilibrium over {len(seeds)} seeds: mean {np.mean(seeds):.2e}, "
            f"worst {max(seeds):.2e}.\n"
        )
    chance = ", ".join(f"{memoryless_loss(n):.4f} at T = {n}" for n in sorted(lengths))
    text = f"""# Copy memory

The task of the DEQ paper (Bai et al. 2019, Table 1), whose losses at T = 400 are 3.5e-6
(DEQ-Transformer, 14K parameters), 2.7e-5 (TCN, 16K), 0.0501 (LSTM) and 0.0491 (GRU). A model
without memory scores {chance}. The loss is the mean
cross-entropy over all positions of 2,000 test sequences, in nats, computed so that small losses
keep their digits (`deqjax.nn.cross_entropy`) and summed in float64; recall is over the last ten
positions. "Solves" are means over all training steps that solved an equilibrium: forward / adjoint
steps, and the shares that converged. Two CPU cores.

| run | parameters | seed | test loss | recall | solves | training steps | wall time |
|---|---|---|---|---|---|---|---|
{chr(10).join(rows)}
{spread}
`python -m experiments.copy_memory --model MODEL --length 400 --preset paper` trains a row,
`python -m experiments.evaluate` scores the recorded weights again. Written by
`python -m experiments.evaluate --record`.
"""
    if checks:
        text += f"""
## Is the equilibrium real, and does it generalise?

The same weights, solved otherwise, and on longer sequences than any that they were trained on.

| run | solved | T | sequences | loss | recall | steps | converged |
|---|---|---|---|---|---|---|---|
{chr(10).join(checks)}
"""
    pictures = [f.name for f in folders() if (f / PICTURE).exists()]
    if pictures:
        text += """
## How it is solved

Left: where each position looks at the equilibrium; the ten below the red line repeat the symbols,
which are the positions 0 to 9. Right: how far from the equilibrium plain iteration is. Drawn by
`python -m experiments.copy_memory.picture`.
"""
    for name in pictures:
        text += f"\n![attention and settling of {name}]({name}/{PICTURE})\n"
    return text
