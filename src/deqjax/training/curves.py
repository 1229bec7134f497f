"""The picture of one training run, for a report or a README."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

_TRAIN = _FORWARD = "#1f6fb4"
_HELD_OUT = "#d1495b"
_ADJOINT = "#e08e1b"
_CONVERGED = "#3a8f5c"
_QUIET = "#5f6670"

_SOLVES = ("forward_steps", "adjoint_steps", "converged")
_HIGHEST = 1e30  # perplexity of a run that has blown up; a log axis cannot go to the last double


def plot_curves(
    metrics: Iterable[Mapping[str, Any]],
    path: str | os.PathLike[str],
    *,
    title: str,
    baselines: Mapping[str, float] | None = None,
    heldout_key: str = "valid_perplexity",
) -> None:
    """Draw perplexity and solver effort against the training step, 1400 by 500 pixels.

    Left: training perplexity, every row lightly and a running mean boldly, with the held-out
    points and the baselines as dashed lines. Right: forward and adjoint solver steps, and below
    them the share of samples that converged; a run without a solver has the left part alone, 800
    by 500 pixels. The held-out point and the running mean are what to read: the single rows are
    batches of different text.

    Args:
        metrics: rows as `read_metrics` gives them. Keys read: `step`, `perplexity` (or `loss`, in
            nats, where that is missing), `forward_steps`, `adjoint_steps`, `converged` (0 to 1),
            and `heldout_key`. A key may be missing from any row; None, NaN and infinity are left
            out.
        path: the picture to write; its ending names the format.
        title: one line above the panels.
        baselines: perplexities to compare with, by name.
        heldout_key: the key of the held-out perplexity.

    Raises:
        ImportError: Matplotlib is not installed.

    Examples:
        >>> import tempfile
        >>> rows = [{"step": i, "perplexity": 60 / i + 5, "forward_steps": 8} for i in range(1, 9)]
        >>> picture = Path(tempfile.mkdtemp()) / "curves.png"
        >>> plot_curves(rows, picture, title="a short run", baselines={"unigram": 27.0})
        >>> picture.exists()
        True
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.layout_engine import ConstrainedLayoutEngine
    except ImportError as error:
        raise ImportError(
            "plots need Matplotlib: pip install 'deqjax[plot]'", name="matplotlib"
        ) from error
    rows = list(metrics)
    layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.06)
    solves = any(_series(rows, key)[0].size for key in _SOLVES)
    figure = Figure(figsize=(14 if solves else 8, 5), dpi=100, layout=layout)
    FigureCanvasAgg(figure)  # the object API: no global state, no display, safe in any thread
    figure.suptitle(title, x=0.012, ha="left", fontsize=14, fontweight="bold")
    grid = figure.add_gridspec(2, 2 if solves else 1, height_ratios=(3, 1))
    left = figure.add_subplot(grid[:, 0])
    last = max((row["step"] for row in rows if _finite(row.get("step"))), default=1)
    _perplexity(left, rows, heldout_key, dict(baselines or {}), last)
    left.set_xlabel("training step", fontsize=11)
    if solves:
        grid.set_width_ratios((1.15, 1))
        effort = figure.add_subplot(grid[0, 1])
        share = figure.add_subplot(grid[1, 1], sharex=effort)
        _effort(effort, rows)
        _share(share, rows)
        effort.tick_params(labelbottom=False)
        share.set_xlabel("training step", fontsize=11)
    for axes in figure.axes:
        axes.grid(True, color="#e6e8eb", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=10, colors="#30343a")
        axes.set_xlim(0, last * 1.01)
    figure.savefig(Path(path))


def _perplexity(
    axes: Any,
    rows: list[Mapping[str, Any]],
    heldout_key: str,
    baselines: dict[str, float],
    last: float,
) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_title("Perplexity (lower is better)", loc="left", fontsize=12)
    axes.set_ylabel("perplexity per token, log scale", fontsize=11)
    axes.set_yscale("log")
    steps, values = _series(rows, "perplexity", positive=True)
    if not steps.size:
        steps, losses = _series(rows, "loss")
        values = np.exp(np.minimum(losses, math.log(_HIGHEST)))
    seen, held_out = _series(rows, heldout_key, positive=True)
    values, held_out = np.minimum(values, _HIGHEST), np.minimum(held_out, _HIGHEST)
    if steps.size:
        axes.plot(steps, values, color=_TRAIN, alpha=0.22, linewidth=0.9)
        smooth = np.exp(_running_mean(np.log(values)))
        axes.plot(steps, smooth, color=_TRAIN, linewidth=2.2, label="training (running mean)")
    if seen.size:
        axes.plot(
            seen,
            held_out,
            color=_HELD_OUT,
            linewidth=1.2,
            marker="o",
            markersize=6,
            markeredgecolor="white",
            label=f"held out (last {_figure(held_out[-1])})",
            zorder=3,
        )
    named = {name: value for name, value in baselines.items() if _finite(value) and value > 0}
    for value in named.values():
        axes.axhline(value, color=_QUIET, linestyle=(0, (5, 4)), linewidth=1.2)
    # The first steps may be a thousand times above the rest. They enter from above the frame, so
    # that the comparison with the baselines has the room.
    warm = values[steps > 0.02 * last]
    shown = np.concatenate(
        [warm if warm.size else values, held_out, np.array(list(named.values()))]
    )
    if shown.size:
        axes.set_ylim(shown.min() / 1.15, shown.max() * 1.35)
        # Whole powers of ten alone would leave most runs with one label or none.
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    _name_lines(axes, named)
    if steps.size or seen.size:
        axes.legend(loc="upper right", fontsize=10, framealpha=0.85, edgecolor="none")
    else:
        _say_nothing_recorded(axes)


def _name_lines(axes: Any, named: Mapping[str, float]) -> None:
    """Write each baseline's name and value right of its line, moved up where two would overlap."""
    gap = 0.055  # of the panel's height: one line of text
    lowest = -1.0
    low, high = np.log(axes.get_ylim())
    for name, value in sorted(named.items(), key=lambda item: item[1]):
        lowest = max(lowest + gap, (math.log(value) - low) / (high - low))
        axes.text(
            1.012,
            lowest,
            f"{name} {_figure(value)}",
            transform=axes.transAxes,
            va="center",
            fontsize=10,
            color=_QUIET,
        )


def _effort(axes: Any, rows: list[Mapping[str, Any]]) -> None:
    axes.set_title("Solver effort per training step", loc="left", fontsize=12)
    axes.set_ylabel("solver steps (mean)", fontsize=11)
    highest = 0.0
    for key, name, color in (
        ("forward_steps", "forward", _FORWARD),
        ("adjoint_steps", "adjoint", _ADJOINT),
    ):
        steps, values = _series(rows, key)
        if steps.size:
            smooth = _running_mean(values)
            axes.plot(steps, values, color=color, alpha=0.22, linewidth=0.9)
            label = f"{name} (last {smooth[-1]:.1f})"
            axes.plot(steps, smooth, color=color, linewidth=2.2, label=label)
            highest = max(highest, values.max())
    if highest:
        axes.set_ylim(0, highest * 1.15)
        axes.legend(loc="lower right", fontsize=10, framealpha=0.85, edgecolor="none")
    else:
        _say_nothing_recorded(axes)


def _share(axes: Any, rows: list[Mapping[str, Any]]) -> None:
    axes.set_ylabel("converged", fontsize=11)
    axes.set_ylim(-0.04, 1.06)
    axes.set_yticks([0, 0.5, 1], ["0%", "50%", "100%"])
    steps, values = _series(rows, "converged")
    if steps.size:
        smooth = _running_mean(values)
        axes.plot(steps, values, color=_CONVERGED, alpha=0.3, linewidth=0.9)
        axes.plot(steps, smooth, color=_CONVERGED, linewidth=2.2)
        axes.fill_between(steps, 0, smooth, color=_CONVERGED, alpha=0.1, linewidth=0)
        axes.text(
            0.99, 0.12, f"last {smooth[-1]:.1%}", transform=axes.transAxes, ha="right", fontsize=10
        )
    else:
        _say_nothing_recorded(axes)


def _say_nothing_recorded(axes: Any) -> None:
    axes.text(0.5, 0.5, "not recorded", transform=axes.transAxes, ha="center", color=_QUIET)


def _finite(value: Any) -> bool:
    return value is not None and math.isfinite(value)


def _series(
    rows: list[Mapping[str, Any]], key: str, *, positive: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """The steps and values of the rows that have a usable one."""
    pairs = [
        (float(row["step"]), float(row[key]))
        for row in rows
        if _finite(row.get("step")) and _finite(row.get(key)) and (not positive or row[key] > 0)
    ]
    array = np.array(sorted(pairs), dtype=float).reshape(-1, 2)
    return array[:, 0], array[:, 1]


def _running_mean(values: np.ndarray) -> np.ndarray:
    """The mean over the neighbours within a fortieth of the run."""
    # Centred and not trailing: a trailing mean draws the fall of a curve later than it was. The
    # window opens from one value on, because the start is steep, and is cut off at the end, because
    # there a single value would be noise.
    reach = max(1, values.size // 40) if values.size > 4 else 0
    total = np.concatenate([[0.0], np.cumsum(values)])
    index = np.arange(values.size)
    low = np.maximum(index - reach, 0)
    high = np.minimum(index + np.minimum(index, reach) + 1, values.size)
    return (total[high] - total[low]) / (high - low)


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"
