"""How a trained DEQ converges: residual against evaluations of f, solver by solver.

    python -m experiments.convergence --run runs/python-docs

Draws `convergence.png` into the run's folder, from held-out text, and prints the table behind it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from deqjax import fixed_point
from deqjax.data import Stream
from deqjax.nn import TransformerInput
from deqjax.training import OptionError, command_line, load_model, read_config
from experiments import language_model

SOLVERS = ("picard", "anderson", "broyden")
COLOURS = {"picard": "#5f6670", "anderson": "#1f6fb2", "broyden": "#c8502d"}


@dataclass(frozen=True)
class Config:
    """Trace the solvers on held-out segments of a trained language model."""

    run: Path = Path("runs/python-docs")
    """folder of a finished or interrupted run of experiments.language_model"""
    max_steps: int = 60
    """solver steps to trace"""
    rtol: float = 1e-6
    """where the solvers stop"""
    out: Path | None = None
    """the picture; convergence.png in the run's folder if not given"""


def traces(config: Config) -> tuple[dict[str, np.ndarray], float]:
    """What `trace` gives for every solver; and the tolerance of training."""
    trained = read_config(language_model.Config, config.run)
    _, task = language_model.prepare(trained)
    model = load_model(task, trained.train, config.run)
    reach = trained.memory if trained.memory > 1 else 64
    cell = held_out(model, task.valid, reach)
    found = {s: np.asarray(trace(*cell, s, config.rtol, config.max_steps)) for s in SOLVERS}
    return found, trained.solver.rtol


def held_out(model: Any, stream: Stream, reach: int) -> tuple[Any, Any, jax.Array]:
    """(cell, context, z0) of a segment that comes after at least `reach` tokens of each row."""
    memory = model.empty_memory(stream.batch_size)
    for index in range(-(-reach // stream.segment)):
        memory = model(stream[index].inputs, memory).memory
    given = TransformerInput(model.embed(stream[index + 1].inputs), memory)
    return model.cell, model.cell.inject(given), model.cell.initial_state(given)


@nnx.jit(static_argnames=("solver", "rtol", "max_steps"))
def trace(cell, context, z0, solver: str, rtol: float, max_steps: int) -> jax.Array:
    """Relative residual after each evaluation of f, (steps, samples)."""
    sol = fixed_point(
        cell,
        z0,
        context,
        solver=solver,
        batch_axis=0,
        rtol=rtol,
        max_steps=max_steps,
        trace=True,
    )
    size = sol.stats.residual / sol.stats.rel_residual
    return sol.stats.trace / size


def plot(traced: dict[str, np.ndarray], rtol: float, path: Path, title: str) -> None:
    """One line a solver, the median over samples, in a band from best to worst."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for solver, trace in traced.items():
        # A sample that has stopped keeps its last residual, so that the median stays one of all.
        filled = np.fmin.accumulate(trace, axis=0)
        last = int(np.flatnonzero(np.isfinite(trace).any(axis=1)).max())
        evaluations = np.arange(1, last + 2)
        low, middle, high = (np.quantile(filled[: last + 1], q, axis=1) for q in (0, 0.5, 1))
        axes.fill_between(evaluations, low, high, color=COLOURS[solver], alpha=0.15, lw=0)
        axes.plot(evaluations, middle, color=COLOURS[solver], lw=2, label=solver)
    axes.axhline(rtol, color="black", lw=1, ls="--")
    axes.annotate(
        "tolerance in training",
        (1, rtol),
        xycoords=("axes fraction", "data"),
        xytext=(0, 3),
        textcoords="offset points",
        ha="right",
    )
    axes.legend(frameon=False)
    axes.set_yscale("log")
    axes.set_xlim(left=1)
    axes.margins(x=0.12)
    axes.set_xlabel("evaluations of f")
    axes.set_ylabel("best relative residual  ‖f(z) − z‖ / ‖f(z)‖")
    axes.set_title(title)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)


def main(config: Config) -> None:
    if not (config.run / "config.json").exists():
        raise OptionError(f"{config.run} holds no run: train one with experiments.language_model")
    traced, rtol = traces(config)
    print(
        f"evaluations of f to a relative residual, median over {len(traced['picard'][0])} samples"
    )
    levels = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5)
    print(f"{'':10}" + "".join(f"{level:>9.0e}" for level in levels))
    for solver, trace in traced.items():
        best = np.fmin.accumulate(trace, axis=0)
        needed = [np.where(best <= level, 1.0, np.inf) for level in levels]
        counts = [np.median(_first(reached)) for reached in needed]
        shown = "".join(f"{c:>9.1f}" if np.isfinite(c) else f"{'-':>9}" for c in counts)
        print(f"{solver:10}{shown}")
    path = config.out or config.run / "convergence.png"
    plot(traced, rtol, path, "A trained DEQ-Transformer converges on text it has not seen")
    print(f"picture: {path}")


def _first(reached: np.ndarray) -> np.ndarray:
    """Evaluations until a sample is below its level, infinity if never, for (steps, samples)."""
    hit = np.isfinite(reached)
    return np.where(hit.any(axis=0), hit.argmax(axis=0) + 1.0, np.inf)


if __name__ == "__main__":
    command_line(Config, main)
