"""How many iterations each splitting takes, on a W that no norm certifies."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import deqjax
from deqjax.theory import monotone
from deqjax.theory.monotone import ForwardBackward, PeacemanRachford

MARGIN = 0.1
SOLVERS: dict[str, Any] = {
    "forward–backward, α = m/‖I − W‖²": ForwardBackward(max_steps=20_000),
    "Peaceman–Rachford, α = 1/√(s₁ sₙ)": PeacemanRachford(),
    **{f"Peaceman–Rachford, α = {a}": PeacemanRachford(alpha=a) for a in (0.1, 0.3, 1.0, 3.0)},
    "Anderson on f": deqjax.Anderson(max_steps=20_000),
    "Picard on f": deqjax.Picard(max_steps=20_000),
}


def hard(n: int = 64, batch: int = 8) -> tuple[jax.Array, jax.Array]:
    """W, (n, n), and b, (batch, n), in float64: I − W ⪰ 0.1 I and λ_pf(|W|) above 16."""
    rng = np.random.default_rng(0)
    P, S = rng.normal(size=(2, n, n)) / n**0.5
    W = monotone.monotone(P, 1.7 * S, MARGIN)
    return W, jnp.asarray(rng.normal(size=(batch, n)))


def counted(rtol: float = 1e-9) -> dict[str, Any]:
    """λ_pf, and of every solver the most steps of a sample and how many samples converged."""
    W, b = hard()
    rows = []
    for name, solver in SOLVERS.items():
        run = jax.jit(
            lambda W, b, s=solver: monotone.solve(W, b, solver=s, rtol=rtol, trace=True).stats
        )
        stats = run(W, b)
        trace = np.asarray(stats.trace) / np.asarray(stats.residual / stats.rel_residual)
        worst = np.nanmax(trace[: int(stats.steps.max()) + 1], axis=1)
        at = np.unique(np.geomspace(1, len(worst), 150).astype(int)) - 1
        rows.append(
            dict(
                solver=name,
                steps=int(stats.steps.max()),
                converged=f"{int(stats.converged.sum())} of {len(b)}",
                iterations=at.tolist(),
                residuals=[float(f"{x:.4g}") for x in worst[at]],
            )
        )
    size = float(np.abs(np.linalg.eigvals(np.abs(W))).max())
    return dict(perron=size, margin=MARGIN, rtol=rtol, rows=rows)
