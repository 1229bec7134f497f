"""What a run leaves when it has ended: `result.json` and its curves."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from .curves import plot_curves
from .folder import write_json
from .metrics import read_metrics
from .running import Running
from .step import TrainState
from .watch import ConvergenceWatch


def record(
    run: Running,
    state: TrainState,
    watch: ConvergenceWatch,
    evaluated: dict[str, Any],
    baselines: dict[str, float],
) -> dict[str, Any]:
    """Write both; return what the first says."""
    rows = read_metrics(run.directory)
    result = {
        "steps": int(state.step),
        "seconds": round(run.seconds(), 1),
        "parameters": count(state.params),
        "skipped_steps": int(state.skipped),
        **_tail(rows),
        **watch.summary(),
        **evaluated,
        "baselines": baselines,
        "jax": jax.__version__,
        "backend": jax.default_backend(),
    }
    write_json(run.directory / "result.json", result)
    plot_curves(
        rows,
        run.directory / "curves.png",
        title=f"{run.directory.name}: {result['parameters']:,} parameters, {result['steps']} steps",
        baselines=baselines,
    )
    return result


def count(params: Any) -> int:
    """Number of scalars in a tree of parameters."""
    return sum(x.size for x in jax.tree.leaves(params))


def _tail(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Means over the last tenth of the run."""
    rows = rows[-max(1, len(rows) // 10) :]
    means = {}
    for key in ("loss", "forward_steps", "adjoint_steps", "converged", "adjoint_converged"):
        values = [r[key] for r in rows if r.get(key) is not None]
        if values:
            means[f"final_{key}"] = float(np.mean(values))
    return means
