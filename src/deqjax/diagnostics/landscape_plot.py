"""The picture of a solve's path over the landscape of residuals."""

from __future__ import annotations

from typing import Any

import numpy as np

from ._drawing import COLOURS, ORDERED, axes
from .residual_landscape import Landscape


def plot_landscape(found: Landscape, ax: Any = None) -> Any:
    """Draw the residual as a map, the iterates as a line over it, and the returned z as a star.

    Args:
        found: a `Landscape`.
        ax: Matplotlib Axes; None makes new ones.

    Returns:
        The Axes.

    Raises:
        ImportError: Matplotlib is not installed.
    """
    from matplotlib.ticker import MaxNLocator

    ax = axes(ax, (6.0, 4.4))
    height = found.height
    floor = max(np.nanmin(height[height > 0], initial=np.inf), 1e-12)
    image = ax.contourf(
        found.along,
        found.across,
        np.log10(np.maximum(height, floor)),
        levels=24,
        cmap=ORDERED,
    )
    label = "log₁₀ of the residual  |f(z) − z| / |f(z*)|"
    ax.figure.colorbar(image, ax=ax, label=label, ticks=MaxNLocator(6))
    x, y = found.path.T
    ax.plot(x, y, "-", color="white", linewidth=3.2, solid_joinstyle="round")
    ax.plot(x, y, "o-", color=COLOURS[1], linewidth=1.4, markersize=4.5, label="iterates")
    ax.plot(x[:1], y[:1], "s", color="white", markeredgecolor=COLOURS[1], ms=8, label="z₀")
    ended = bool(found.stats.converged)
    name = "z*" if ended else "best z (did not converge)"
    ax.plot([0], [0], "*" if ended else "X", color="white", mec="black", ms=14, label=name)
    first, second = found.shares
    ax.set_xlabel(f"first principal direction ({first:.0%} of the path), in units of z")
    ax.set_ylabel(f"second ({second:.0%})")
    ax.set_title(f"{found.solver}, {len(found.path) - 1} steps")
    ax.grid(False)
    ax.legend(frameon=True, framealpha=0.85, edgecolor="none", fontsize="small")
    return ax
