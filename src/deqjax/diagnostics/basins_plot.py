"""The picture of basins: a plane of starts, coloured by where they lead."""

from __future__ import annotations

from typing import Any

import numpy as np

from ._drawing import COLOURS, FAILED, MARKERS, ORDERED, axes, colour_map
from .basins_of_attraction import Basins


def plot_basins(found: Basins, ax: Any = None, *, show: str = "solutions") -> Any:
    """Draw the plane of starts.

    "solutions": the colour is the solution that a start reached, paler the more steps it took;
    solutions in view are drawn as markers, and the legend has the six that most starts reach (all
    others are grey). "steps": the number of steps alone, on a log scale. Starts that did not
    converge are nearly black in both.

    Args:
        found: a `Basins`.
        ax: Matplotlib Axes; None makes new ones.
        show: "solutions" or "steps".

    Returns:
        The Axes.

    Raises:
        ImportError: Matplotlib is not installed.
        ValueError: another `show`.
    """
    if show not in ("solutions", "steps"):
        raise ValueError(f"show must be 'solutions' or 'steps'; got {show!r}")
    ax = axes(ax, (5.4, 4.6))
    (_coloured if show == "solutions" else _counted)(found, ax)
    ax.set_xlabel("first number of the start")
    ax.set_ylabel("second number of the start")
    ax.set_aspect("equal")
    ax.grid(False)
    return ax


def _extent(found: Basins) -> tuple[float, float, float, float]:
    """Edges of the pixels whose centres are the starts."""
    (left, right), (low, high) = (
        (c[0] - (c[1] - c[0]) / 2, c[-1] + (c[1] - c[0]) / 2) for c in (found.x, found.y)
    )
    return left, right, low, high


def _coloured(found: Basins, ax: Any) -> None:
    from matplotlib.colors import to_rgb

    named = COLOURS[:6]
    palette = np.array([to_rgb(c) for c in (*named, "0.6")])
    steps = np.log1p(np.asarray(found.stats.steps, np.float64))
    good = found.reached >= 0
    # The slowest are still a colour, and the few on a border do not make the others look alike.
    low, high = np.percentile(steps[good], (0, 98)) if good.any() else (0.0, 1.0)
    pale = 0.7 * np.clip((steps - low) / max(high - low, 1e-9), 0, 1)
    colours = palette[np.minimum(np.maximum(found.reached, 0), len(named))]
    image = colours + pale[..., None] * (1 - colours)
    image[~good] = to_rgb(FAILED)
    ax.imshow(np.clip(image, 0, 1), origin="lower", extent=_extent(found), interpolation="nearest")
    left, right, bottom, top = _extent(found)
    for i, (x, y) in enumerate(found.solutions[: len(named)]):
        inside = left <= x <= right and bottom <= y <= top
        label = f"{found.name(i)}: {found.shares[i]:.0%}"
        ax.plot(
            *([x] if inside else [], [y] if inside else []),
            MARKERS[i],
            color=named[i],
            markersize=9,
            markeredgecolor="white",
            markeredgewidth=1.5,
            label=label,
        )
    others = len(found.solutions) - len(named)
    if others > 0:
        ax.plot([], [], "o", color="0.6", label=f"{others} others")
    if not good.all():
        ax.plot([], [], "s", color=FAILED, label=f"did not converge: {np.mean(~good):.0%}")
    ax.set_title("solution reached (paler: more steps)")
    ax.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=2)


def _counted(found: Basins, ax: Any) -> None:
    from matplotlib.colors import LogNorm

    colours = colour_map(ORDERED).with_extremes(bad=FAILED)
    steps = np.maximum(np.asarray(found.stats.steps, np.float64), 1)
    good = found.reached >= 0
    norm = LogNorm(*((steps[good].min(), steps[good].max() + 1e-9) if good.any() else (1, 2)))
    image = ax.imshow(
        np.where(good, steps, np.nan),
        origin="lower",
        extent=_extent(found),
        interpolation="nearest",
        cmap=colours,
        norm=norm,
    )
    ax.figure.colorbar(image, ax=ax, label="solver steps (black: did not converge)")
    ax.set_title("steps")
