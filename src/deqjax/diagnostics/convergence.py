"""The picture of how solves converge: residuals against cost."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from .._solution import Solution, Stats, Status
from ._drawing import COLOURS, MARKERS, axes, quiet

_AXIS = {
    "evaluations": "evaluations of f",
    "steps": "solver steps",
    "time": "time (ms)",
}


def plot_convergence(
    solves: Mapping[str, Any],
    ax: Any = None,
    *,
    against: str = "evaluations",
    seconds: Mapping[str, float] | None = None,
    scale: Any = None,
) -> Any:
    """Draw the residual of every step on a log scale, one curve for each solve.

    With a batch the curve is that of the sample worst off at each step, a finished sample counting
    with its last residual: it is the curve that the loop waits for. It ends in a filled marker
    where the solve converged and in a cross where it failed.

    The trace has one entry a step. A step that takes several evaluations is drawn with the solve's
    mean number of evaluations a step, and time is spread evenly over the steps.

    Args:
        solves: {label: `Solution` or `Stats` with `trace=True`, or an array of residuals, (steps +
            1,) or (steps + 1, batch)}. Residuals of a solve are drawn relative to ‖f(z)‖ where it
            ended, those of an array as they are, one evaluation a step.
        ax: Matplotlib Axes; None makes new ones.
        against: "evaluations", "steps" or "time".
        seconds: {label: wall time}, for "time".
        scale: one ‖f(z)‖ for all, a number or (batch,): right where all solve the same equation,
            since then all curves start from the same height.

    Returns:
        The Axes.

    Raises:
        ImportError: Matplotlib is not installed.
        ValueError: a solve without a trace, or "time" without `seconds`.

    Examples:
        >>> import numpy as np
        >>> ax = plot_convergence({"halving": 0.5 ** np.arange(10)})
        >>> ax.get_xlabel()
        'evaluations of f'
    """
    if against not in _AXIS:
        raise ValueError(f"against must be one of {', '.join(map(repr, _AXIS))}; got {against!r}")
    ax = axes(ax, (6.4, 4.2))
    for i, (label, solve) in enumerate(solves.items()):
        y, evaluations, converged = _curve(label, solve, scale)
        steps = np.arange(y.size)
        x = {"steps": steps, "evaluations": 1 + steps * evaluations}.get(against)
        if x is None:
            if seconds is None or label not in seconds:
                raise ValueError(f"against='time' needs seconds={{{label!r}: wall time}}")
            x = 1e3 * seconds[label] * (1 + steps * evaluations) / (1 + steps[-1] * evaluations)
        colour, marker = COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]
        name = label if converged is not False else f"{label} (did not converge)"
        ax.plot(
            *(x, y),
            label=name,
            color=colour,
            linewidth=1.8,
            marker=marker,
            markersize=4,
            markevery=max(1, y.size // 8),
        )
        end = dict(marker="x", markersize=10, markeredgewidth=2.5)
        if converged is not False:
            end = dict(marker=marker, markersize=8, markeredgecolor="white")
        ax.plot(x[-1:], y[-1:], color=colour, zorder=3, clip_on=False, **end)
    relative = scale is not None or all(isinstance(s, Solution | Stats) for s in solves.values())
    ax.set_yscale("log")
    ax.set_xlabel(_AXIS[against])
    ax.set_ylabel("relative residual  |f(z) − z| / |f(z)|" if relative else "residual  |f(z) − z|")
    ax.set_xlim(left=0)
    quiet(ax)
    if solves:
        ax.legend(frameon=False)
    return ax


def _curve(label: str, solve: Any, scale: Any) -> tuple[np.ndarray, float, bool | None]:
    """The worst sample's residual at each step, evaluations a step, and whether all converged."""
    if not isinstance(solve, Solution | Stats):
        trace = np.asarray(solve, np.float64)
        return _worst(trace if scale is None else trace / scale), 1.0, None
    stats = solve.stats if isinstance(solve, Solution) else solve
    if stats.trace is None:
        raise ValueError(f"the solve {label!r} has no trace: solve with trace=True")
    trace, residual, relative = (
        np.array(x, np.float64) for x in (stats.trace, stats.residual, stats.rel_residual)
    )
    if scale is None:
        # Relative to ‖f(z)‖ at the end, one scale for the whole curve.
        trace *= np.divide(relative, residual, out=np.ones_like(residual), where=residual > 0)
    else:
        trace /= scale
    steps, f_evals = (int(np.max(np.asarray(x))) for x in (stats.steps, stats.f_evals))
    converged = bool(np.all(np.asarray(stats.status) == Status.CONVERGED))
    return _worst(trace), (f_evals - 1) / max(steps, 1), converged


def _worst(trace: np.ndarray) -> np.ndarray:
    """Over the batch, each sample's residual held after its stop; without the steps not taken."""
    trace = np.array(trace.reshape(trace.shape[0], -1), np.float64)
    taken = 1 + int(np.flatnonzero(np.isfinite(trace).any(axis=1)).max(initial=0))
    trace = trace[:taken]
    for k in range(1, taken):
        trace[k] = np.where(np.isfinite(trace[k]), trace[k], trace[k - 1])
    return trace.max(axis=1)
