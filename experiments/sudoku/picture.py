"""Boards, accuracy against epochs, accuracy by number of clues."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

COLOURS = {"optnet": "#1f6fb2", "satnet": "#c8502d", "spectral": "#3a8f5c"}


def _figure(width: float, height: float):
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def boards(path: Path, title: str, shown: Mapping[str, np.ndarray]) -> None:
    """One row of what is given and one of what the layer made of it: clues black, what was filled
    in blue, and a wrong cell on red with the right digit in its corner.

    Args:
        path: the picture.
        title: above it.
        shown: puzzles, solutions and filled, each (count, n, n).
    """
    puzzles, solutions, filled = (shown[k] for k in ("puzzles", "solutions", "filled"))
    count = len(puzzles)
    figure = _figure(2.1 * count, 4.9)
    figure.suptitle(title, x=0.01, ha="left", fontweight="bold")
    axes = figure.subplots(2, count, squeeze=False)
    for j in range(count):
        wrong = int((filled[j] != solutions[j]).sum())
        said = "right" if not wrong else f"{wrong} cells wrong"
        clues = int((puzzles[j] > 0).sum())
        _board(axes[0, j], puzzles[j], puzzles[j], solutions[j])
        _board(axes[1, j], filled[j], puzzles[j], solutions[j])
        axes[0, j].set_title(f"given: {clues} clues", fontsize=9, color="#5f6670")
        colour = "#c8502d" if wrong else "#3a8f5c"
        axes[1, j].set_title(f"filled: {said}", fontsize=9, color=colour)
    figure.savefig(path)


def _board(axes: Any, digits: np.ndarray, puzzle: np.ndarray, solution: np.ndarray) -> None:
    n = len(digits)
    b = round(n**0.5)
    axes.set(xlim=(0, n), ylim=(n, 0), aspect="equal", xticks=[], yticks=[])
    size = 45 / n
    for i, j in np.argwhere(digits > 0):
        digit, x, y = digits[i, j], j + 0.5, i + 0.53
        if digit != solution[i, j]:
            axes.fill([j, j + 1, j + 1, j], [i, i, i + 1, i + 1], color="#f6c6b8", lw=0)
            axes.text(j + 0.93, i + 0.3, solution[i, j], fontsize=size, ha="right", color="#5f6670")
        clue = bool(puzzle[i, j])
        axes.text(
            x,
            y,
            digit,
            ha="center",
            va="center",
            fontsize=2 * size,
            color="#20242a" if clue else "#1f6fb2",
            fontweight="bold" if clue else "normal",
        )
    for k in range(n + 1):
        style = dict(color="#30343a", lw=1.4 if k % b == 0 else 0.4)
        axes.plot([k, k], [0, n], **style)
        axes.plot([0, n], [k, k], **style)
    axes.spines[:].set_visible(False)


def kind(told: Mapping[str, Any]) -> str:
    """The name of a row's layer: spectral is not learned, and never called optnet."""
    return "spectral" if told["start"] == "spectral" else told["layer"]


def against_epochs(path: Path, runs: Sequence[Mapping[str, Any]]) -> None:
    """Held-out accuracy after every epoch: boards on the left, empty cells on the right."""
    sizes = sorted({told["size"] for told in runs})
    figure = _figure(10, 0.5 + 3.1 * len(sizes))
    grid = figure.subplots(len(sizes), 2, squeeze=False)
    for row, n in zip(grid, sizes, strict=True):
        for axes, what, says in ((row[0], "boards", "boards"), (row[1], "cells", "empty cells")):
            named = set()
            for told in runs:
                if told["size"] != n or not told.get("curve"):
                    continue
                name = f"{told['layer']}, {told['split']} held out"
                epochs = [point["epoch"] for point in told["curve"]]
                values = [100 * point[what] for point in told["curve"]]
                axes.plot(
                    epochs,
                    values,
                    color=COLOURS[told["layer"]],
                    ls="-" if told["split"] == "puzzles" else "--",
                    marker="o",
                    ms=3,
                    lw=1.2,
                    alpha=0.8,
                    label=None if name in named else name,
                )
                named.add(name)
            axes.set_title(f"{n}×{n}: {says} right, %", loc="left", fontsize=10)
            axes.set_xlabel("epoch")
            axes.set_ylim(-3, 103)
            _quiet(axes)
        row[0].legend(frameon=False, fontsize=8)
    figure.savefig(path)


def by_clues(path: Path, runs: Sequence[Mapping[str, Any]]) -> None:
    """Share of the held-out boards that are right, by number of clues, a line a layer; runs of one
    layer are added up. How many boards there are stands below."""
    sizes = sorted({told["size"] for told in runs})
    figure = _figure(10, 0.5 + 3.1 * len(sizes))
    for axes, n in zip(np.atleast_1d(figure.subplots(len(sizes), 1)), sizes, strict=True):
        counts: dict[int, int] = {}
        for width, (name, colour) in zip((5, 3, 1.2), COLOURS.items(), strict=True):
            sums: dict[int, np.ndarray] = {}
            for told in runs:
                if told["size"] == n and kind(told) == name:
                    for clues, pair in told["by_clues"].items():
                        sums[int(clues)] = sums.get(int(clues), 0) + np.asarray(pair)
            if sums:
                clues = sorted(sums)
                shares = [100 * sums[c][0] / sums[c][1] for c in clues]
                # Thinner from layer to layer, since all may lie at 100.
                style = dict(color=colour, lw=width, marker="o", ms=3 + width)
                axes.plot(clues, shares, label=name, **style)
                counts |= {c: max(counts.get(c, 0), int(sums[c][1])) for c in clues}
        ticks = sorted(counts)
        axes.set_xticks(ticks, [f"{c}\n{counts[c]}" for c in ticks], fontsize=8)
        axes.set_title(
            f"{n}×{n}: boards right, %, by number of clues (below: boards, of all runs of a layer)",
            loc="left",
            fontsize=10,
        )
        axes.set_ylim(-3, 103)
        axes.legend(frameon=False, fontsize=8)
        _quiet(axes)
    figure.savefig(path)


def _quiet(axes: Any) -> None:
    axes.grid(True, color="#e6e8eb", lw=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
