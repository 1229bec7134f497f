"""How convergence changes while a model is trained: residual against evaluations of f.

    python -m experiments.language_model ... --snapshot-every 500
    python -m experiments.convergence_over_training --run runs/ptb --length 150 400

One row of panels a length of sequences, one panel a solver, one line a snapshot: the median over
rows of held-out text. Plain iteration (Picard) is what stacking more and more layers does.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx

from deqjax._errors import check_integer
from deqjax.data import Stream
from deqjax.training import OptionError, checked, command_line, load_weights, read_config
from experiments import language_model
from experiments.convergence import SOLVERS, held_out, trace


@dataclass(frozen=True)
class Config:
    """Trace the solvers on held-out text for every snapshot of a run."""

    run: Path = Path("runs/python-docs")
    """folder of a run of experiments.language_model that took snapshots"""
    length: tuple[int, ...] = (150, 400)
    """lengths of the sequences"""
    rows: int = 4
    """sequences of each length"""
    max_steps: int = 40
    """solver steps to trace"""
    out: Path | None = None
    """the picture; its ending .png becomes .json for the figures behind it. In the run's folder if
    not given"""

    def check(self) -> None:
        for length in self.length:
            check_integer("--length", length, least=1)
        check_integer("--rows", self.rows, least=1)
        check_integer("--max-steps", self.max_steps, least=1)


def curves(config: Config) -> dict[int, dict[int, dict[str, list[float]]]]:
    """{length: {training step: {solver: median residual after each evaluation}}}."""
    trained = read_config(language_model.Config, config.run)
    corpus, task = language_model.prepare(trained)
    if trained.model in ("transformer-xl", "lstm"):
        raise OptionError(f"{trained.model} has no cell that is applied again and again")
    model = task.build(nnx.Rngs(0))
    found: dict[int, dict[int, dict[str, list[float]]]] = {}
    for length in config.length:
        text = Stream(corpus.valid, config.rows, length, corpus.vocabulary.start_id)
        for path in sorted((config.run / "snapshots").glob("*.npz")):
            load_weights(path, model)
            model.eval()
            cell = held_out(model, text, 1)
            lines = {s: _median(trace(*cell, s, 1e-6, config.max_steps)) for s in SOLVERS}
            found.setdefault(length, {})[int(path.stem)] = lines
            shown = "  ".join(f"{s} {line[-1]:.1e}" for s, line in lines.items())
            print(f"length {length}, training step {int(path.stem)}: last residual {shown}")
    return found


def _median(traced: Any) -> list[float]:
    """Over samples, of the best residual so far; a sample that has stopped keeps its last."""
    best = np.fmin.accumulate(np.asarray(traced), axis=0)
    return np.median(best, axis=1).tolist()


def plot(found: dict[int, dict[int, dict[str, list[float]]]], path: Path, title: str) -> None:
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.2 * len(found) + 0.6), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, x=0.01, ha="left", fontsize=12)
    grid = figure.subplots(len(found), len(SOLVERS), sharex=True, sharey=True, squeeze=False)
    colours = matplotlib.colormaps["viridis_r"]
    for row, (length, snapshots) in zip(grid, found.items(), strict=True):
        for axes, solver in zip(row, SOLVERS, strict=True):
            for i, (step, lines) in enumerate(snapshots.items()):
                colour = colours(0.15 + 0.85 * i / max(len(snapshots) - 1, 1))
                evaluations = np.arange(1, len(lines[solver]) + 1)
                axes.plot(evaluations, lines[solver], color=colour, lw=1.6, label=f"{step:,}")
            axes.set_yscale("log")
            axes.set_title(f"{solver}, length {length}", fontsize=10, loc="left")
            axes.grid(alpha=0.25)
            axes.spines[["top", "right"]].set_visible(False)
        row[0].set_ylabel("best relative residual")
    for axes in grid[-1]:
        axes.set_xlabel("evaluations of f")
    handles, labels = grid[0, -1].get_legend_handles_labels()
    figure.legend(handles, labels, title="training step", fontsize=8, loc="outside right upper")
    figure.savefig(path)


def main(config: Config) -> None:
    checked(config)
    if not sorted((config.run / "snapshots").glob("*.npz")):
        raise OptionError(
            f"{config.run} holds no snapshots: train with experiments.language_model "
            "--snapshot-every N"
        )
    found = curves(config)
    path = config.out or config.run / "convergence-over-training.png"
    path.with_suffix(".json").write_text(json.dumps(found) + "\n")
    model = json.loads((config.run / "config.json").read_text())["model"]
    plot(found, path, f"{model}: convergence on held-out text while it is trained")
    print(f"picture: {path}")


if __name__ == "__main__":
    command_line(Config, main)
