"""The picture of how a spectrum moves while a model trains."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from ._drawing import COLOURS, ORDERED, QUIET, axes, colour_map, quiet
from .eigenvalues import Spectrum


def plot_spectra(
    spectra: Iterable[tuple[float, Any]], ax: Any = None, *, show: str = "plane"
) -> Any:
    """Draw the spectra of several training steps.

    "plane": the eigenvalues in the complex plane with the unit circle, later steps lighter, to see
    *which* ones move and whether to 1 or to −1. "moduli": |λ| against the step, the largest as a
    line with its uncertainty, to see *when* plain iteration stops converging.

    Args:
        spectra: pairs (step, `Spectrum` or array of eigenvalues), in any order. A spectrum of a
            batch counts with the eigenvalues of all its samples.
        ax: Matplotlib Axes; None makes new ones.
        show: "plane" or "moduli".

    Returns:
        The Axes.

    Raises:
        ImportError: Matplotlib is not installed.
        ValueError: no spectra, or another `show`.

    Examples:
        >>> ax = plot_spectra([(0, [0.5, -0.1]), (100, [0.8, -0.2])], show="moduli")
        >>> ax.get_xlabel()
        'training step'
    """
    pairs = sorted(((float(step), given) for step, given in spectra), key=lambda pair: pair[0])
    if not pairs:
        raise ValueError("plot_spectra needs at least one (step, spectrum)")
    if show not in ("plane", "moduli"):
        raise ValueError(f"show must be 'plane' or 'moduli'; got {show!r}")
    return (_plane if show == "plane" else _moduli)(pairs, ax)


def _values(given: Any) -> np.ndarray:
    values = given.eigenvalues if isinstance(given, Spectrum) else given
    return np.ravel(np.asarray(values, np.complex128))


def _plane(pairs: list[tuple[float, Any]], ax: Any) -> Any:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    ax = axes(ax, (5.8, 4.8))
    angle = np.linspace(0, 2 * np.pi, 400)
    ax.plot(np.cos(angle), np.sin(angle), color=QUIET, linewidth=1.2)
    first, last = pairs[0][0], pairs[-1][0]
    norm, colours = Normalize(first, max(last, first + 1)), colour_map(ORDERED)
    for step, given in pairs:
        values = _values(given)
        ax.scatter(np.real(values), np.imag(values), s=16, color=colours(norm(step)), zorder=3)
    ax.figure.colorbar(ScalarMappable(norm, colours), ax=ax, label="training step")
    ax.set_xlabel("real part")
    ax.set_ylabel("imaginary part")
    ax.set_title("eigenvalues, and the unit circle")
    ax.set_aspect("equal", adjustable="datalim")
    quiet(ax)
    return ax


def _moduli(pairs: list[tuple[float, Any]], ax: Any) -> Any:
    ax = axes(ax, (6.4, 4.2))
    steps = np.array([step for step, _ in pairs])
    for step, given in pairs:
        moduli = np.abs(_values(given))
        ax.scatter(np.full(moduli.size, step), moduli, s=7, color=COLOURS[0], alpha=0.35, lw=0)
    largest = np.array([np.abs(_values(given)).max() for _, given in pairs])
    unsure = np.array([_uncertainty(given) for _, given in pairs])
    ax.plot(steps, largest, "o-", color=COLOURS[1], markersize=4, label="spectral radius")
    ax.fill_between(
        steps, largest - unsure, largest + unsure, color=COLOURS[1], alpha=0.2, linewidth=0
    )
    limit = dict(color=QUIET, linestyle="--", linewidth=1.2)
    ax.axhline(1.0, label="plain iteration converges below", **limit)
    ax.set_xlabel("training step")
    ax.set_ylabel("modulus of the eigenvalues  |λ|")
    ax.set_ylim(0, 1.3 * max(1.0, (largest + unsure).max()))  # room for the legend
    quiet(ax)
    ax.legend(frameon=False, loc="upper left")
    return ax


def _uncertainty(given: Any) -> float:
    """Of the largest modulus."""
    if not isinstance(given, Spectrum):
        return 0.0
    return float(np.ravel(given.uncertainties)[np.argmax(np.abs(_values(given)))])
