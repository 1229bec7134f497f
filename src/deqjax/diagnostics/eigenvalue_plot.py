"""The picture of a spectrum: eigenvalues in the complex plane, against the unit circle."""

from __future__ import annotations

from typing import Any

import numpy as np

from ._condition import sentence
from ._drawing import COLOURS, QUIET, axes, quiet
from .eigenvalues import Spectrum


def plot_spectrum(eigenvalues: Any, ax: Any = None) -> Any:
    """Draw eigenvalues in the complex plane, with the unit circle.

    Inside the circle: Picard iteration converges near this z. Values that are uncertain by more
    than 2 % are drawn hollow: they are in no certain place yet. The title says where that is so of
    the outermost one.

    Args:
        eigenvalues: a `Spectrum`, or an array of complex numbers of any shape.
        ax: Matplotlib Axes; None makes new ones.

    Returns:
        The Axes.

    Raises:
        ImportError: Matplotlib is not installed.

    Examples:
        >>> ax = plot_spectrum([0.5 + 0.5j, 0.5 - 0.5j, -0.8])
        >>> ax.get_title()
        'spectral radius 0.8'
    """
    if isinstance(eigenvalues, Spectrum):
        title = sentence(eigenvalues.radius, eigenvalues.uncertainties[..., 0])
        eigenvalues, sure = eigenvalues.eigenvalues, np.ravel(eigenvalues.converged)
    else:
        eigenvalues = np.asarray(eigenvalues, np.complex128)
        title = f"spectral radius {np.abs(eigenvalues).max(initial=0):.3g}"
        sure = np.ones(eigenvalues.size, bool)
    values = np.ravel(np.asarray(eigenvalues, np.complex128))
    ax = axes(ax, (4.8, 4.8))
    angle = np.linspace(0, 2 * np.pi, 400)
    ax.fill(np.cos(angle), np.sin(angle), color=COLOURS[0], alpha=0.06, linewidth=0)
    ax.plot(np.cos(angle), np.sin(angle), color=QUIET, linewidth=1.2, label="unit circle")
    dots = dict(s=26, linewidths=1.2, zorder=3)
    ax.scatter(values.real[sure], values.imag[sure], color=COLOURS[1], label="eigenvalues", **dots)
    if not sure.all():
        ax.scatter(
            values.real[~sure],
            values.imag[~sure],
            facecolors="none",
            edgecolors=COLOURS[1],
            label="not converged (uncertain by > 2 %)",
            **dots,
        )
    ax.set_title(title)
    ax.set_xlabel("real part")
    ax.set_ylabel("imaginary part")
    ax.set_aspect("equal", adjustable="datalim")
    quiet(ax)
    ax.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=2)
    return ax
