"""The picture of a gradient audit: what each gradient costs, and what it is worth."""

from __future__ import annotations

from typing import Any

import numpy as np

from ._drawing import COLOURS, MARKERS, QUIET, axes, quiet
from .gradients import GradientAudit


def plot_gradients(audit: GradientAudit, ax: Any = None, *, offset: int = 0) -> Any:
    """Draw the relative error of each gradient against its cost, with its name and its cosine.

    Low and to the left is good. The dashed line is what the exact gradient took, to the tolerance
    of the audit: what lies right of it costs more than the truth. Errors below the reference's own
    residual are drawn at that residual, since nothing is known below.

    Args:
        audit: a `GradientAudit`.
        ax: Matplotlib Axes; None makes new ones. Several audits go into the same ones.
        offset: colours and markers begin so many later, for a second audit; it has no dashed line.

    Returns:
        The Axes.

    Raises:
        ImportError: Matplotlib is not installed.
    """
    ax = axes(ax, (6.8, 4.4))
    floor = max(float(np.max(audit.reference.rel_residual)), 1e-16)
    for i, row in enumerate(audit.rows, start=offset):
        error = max(row.relative_error, floor)
        ax.plot(
            *([row.evaluations], [error]),
            MARKERS[(i + i // len(COLOURS)) % len(MARKERS)],  # the second round is no copy
            color=COLOURS[i % len(COLOURS)],
            markersize=9,
            label=f"{row.adjoint} (cosine {row.cosine:.3f})",
        )
    if not offset:
        line = dict(color=QUIET, linestyle="--", linewidth=1.2)
        ax.axvline(audit.evaluations, label="exact, as tight as it gets", **line)
    costs = [x for line in ax.lines for x in line.get_xdata() if x > 1]
    ax.set_xscale("log" if max(costs) > 10 * min(costs) else "linear")
    ax.set_yscale("log")
    ax.set_xlabel("evaluations of f and products with its Jacobian, forward and backward")
    ax.set_ylabel("relative error of the gradient")
    quiet(ax)
    ax.legend(frameon=False, fontsize="small", loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return ax
