"""The picture of docs/concepts.md: a solve for z* and one for u, in the plane.

    python tools/two_solves.py

writes docs/images/two_solves.png. It is the equation of the page's example with another W, whose
J turns and shrinks.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import deqjax

OUT = Path(__file__).parents[1] / "docs" / "images" / "two_solves.png"
COLOURS = {"picard": "#5f6670", "anderson": "#1f6fb2"}

W = 0.95 * jnp.array([[0.78, -0.63], [0.63, 0.78]])
X = jnp.array([0.30, 0.10])
V = jnp.array([1.0, 0.4])


def f(z: jax.Array) -> jax.Array:
    return jnp.tanh(W @ z + X)


def path(equation: Any, start: jax.Array, solver: str, steps: int) -> np.ndarray:
    """The iterates of a solver, (steps + 1, 2): what a solve returns that may take so many steps.

    An iterate that is worse than one before is not returned, so the path stands still there.
    """
    to = lambda n: deqjax.fixed_point(equation, start, solver=solver, max_steps=n, rtol=1e-6)
    with deqjax.checking_solves("ignore"):
        return np.stack([np.asarray(to(n).z) for n in range(steps + 1)])


def both() -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The paths of z and of u, by solver."""
    z_star = deqjax.fixed_point(f, jnp.zeros(2), rtol=1e-6).z
    pull = lambda u: jax.vjp(f, z_star)[1](u)[0]
    forward = {s: path(f, jnp.zeros(2), s, 24) for s in COLOURS}
    backward = {s: path(lambda u: pull(u) + V, V, s, 24) for s in COLOURS}
    return forward, backward


def draw(out: Path = OUT) -> None:
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    labels = (
        ("forward: z = f(z, θ)", "z₀", "z*"),
        ("backward: u = Jᵀu + v", "v", "u"),
    )
    figure, axes = plt.subplots(1, 2, figsize=(8, 3.6), constrained_layout=True)
    for ax, paths, (title, start, end) in zip(axes, both(), labels, strict=True):
        for name, line in paths.items():
            ax.plot(*line.T, "o-", ms=4, lw=1, color=COLOURS[name], label=name.title())
        last = paths["anderson"][-1]
        ax.plot(*last, "*", ms=14, color="#c8502d", zorder=3)
        ax.annotate(start, paths["picard"][0], (-4, -14), textcoords="offset points")
        ax.annotate(end, last, (10, 8), textcoords="offset points", color="#c8502d")
        ax.set_title(title)
        ax.margins(0.12)
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].legend(frameon=False)
    figure.savefig(out, dpi=150, metadata={"Software": None})
    plt.close(figure)


if __name__ == "__main__":
    draw()
