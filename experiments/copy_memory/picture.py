"""How the equilibrium solves the task, in one picture: where it looks, and how it settles.

    python -m experiments.copy_memory.picture --weights runs/copy-memory-400-deq-transformer

On the left the attention at z*, on the right the distance from z* in plain iteration.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import matplotlib.pyplot as plt
import numpy as np

import deqjax
from deqjax.nn import TransformerInput
from deqjax.training import command_line

from . import results
from .task import COPIED, held_out

SPAN = 15  # positions shown at both ends


@dataclass(frozen=True)
class Config:
    """Draw how a trained model of experiments.copy_memory solves the task."""

    weights: Path
    """folder with weights.npz and config.json"""
    out: Path | None = None
    """the picture; equilibrium.png in that folder if not given"""


def attention_and_residuals(model: Any, inputs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For one sequence, (T + 20,): weights at z*, (heads, T + 20, T + 20), and the distance of
    each position's state from z* after every evaluation of f in plain iteration, (steps, T + 20),
    relative to the size of z*."""
    x = model.embed(inputs[None])
    context = model.cell.inject(TransformerInput(x))
    z_star = deqjax.fixed_point(
        lambda z: model.cell(z, context), 0 * x, solver="anderson", rtol=1e-6, max_steps=200
    ).z

    def step(z, _):
        z = model.cell(z, context)
        return z, np.sqrt(x.shape[-1]) ** -1 * jax.numpy.linalg.norm(z - z_star, axis=-1)[0]

    _, distance = jax.lax.scan(step, 0 * x, length=16)
    return np.asarray(model.cell.attention_weights(z_star, context)[0]), np.asarray(distance)


def main(config: Config) -> Path:
    options, model, _ = results.load(config.weights)
    inputs = held_out(options.train.seed, 1, options.length).inputs[0]
    weights, distance = attention_and_residuals(model, inputs)
    out = config.out or config.weights / results.PICTURE
    draw(inputs, weights.mean(0), distance, out)
    print(f"written: {out}")
    return out


def draw(inputs: np.ndarray, weights: np.ndarray, distance: np.ndarray, out: Path) -> None:
    n = len(inputs)
    span = min(SPAN, n // 3)
    shown = np.r_[:span, n - 2 * span : n]
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    block = weights[n - 2 * span :][:, shown]
    image = left.imshow(block, cmap="Blues", vmin=0, vmax=1, aspect="auto", interpolation="nearest")
    ticks = [0, min(COPIED, span) - 1, 3 * span - COPIED, 3 * span - 1]
    left.set_xticks(ticks, [str(shown[t]) for t in ticks])
    rows = [0, 2 * span - COPIED, 2 * span - 1]
    left.set_yticks(rows, [str(n - 2 * span + r) for r in rows])
    left.axvline(span - 0.5, color="0.6", lw=0.8, ls=":")
    left.axhline(2 * span - COPIED - 0.5, color="#c8502d", lw=0.8)
    left.set_xlabel(f"position looked at (… {n - 3 * span} positions left out at the dotted line)")
    left.set_ylabel("position that looks")
    left.set_title("Attention at the equilibrium", loc="left")
    figure.colorbar(image, ax=left, shrink=0.8)

    steps = np.arange(1, len(distance) + 1)
    groups = {
        "the ten symbols": (slice(0, COPIED), "#5f6670"),
        "blanks": (slice(COPIED, n - COPIED), "#1f6fb2"),
        "where they are repeated": (slice(n - COPIED, n), "#c8502d"),
    }
    for name, (where, colour) in groups.items():
        part = distance[:, where]
        right.plot(steps, np.median(part, 1), color=colour, label=name)
        right.fill_between(steps, part.min(1), part.max(1), color=colour, alpha=0.15, lw=0)
    right.set_yscale("log")
    right.set_xlabel("evaluations of f")
    right.set_ylabel("distance from z*, relative")
    right.set_title("How fast each part settles", loc="left")
    right.legend(frameon=False)
    for axis in (left, right):
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(out, dpi=130)
    plt.close(figure)


if __name__ == "__main__":
    command_line(Config, main)
