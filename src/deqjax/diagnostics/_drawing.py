"""What the pictures share. Matplotlib is imported when the first one is drawn."""

from __future__ import annotations

from typing import Any

# Okabe and Ito's colours, told apart under every common colour blindness, without their yellow;
# markers tell the curves apart once more.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
QUIET = "#5f6670"


def side_by_side() -> tuple[Any, Any]:
    """A figure with two panels that share the vertical axis."""
    return _pyplot().subplots(1, 2, figsize=(10.5, 4.2), sharey=True, layout="constrained")


def axes(ax: Any, size: tuple[float, float]) -> Any:
    """The given Axes, or new ones."""
    return _pyplot().subplots(figsize=size, layout="constrained")[1] if ax is None else ax


def _pyplot() -> Any:
    try:
        import matplotlib.pyplot as pyplot
    except ImportError as error:
        raise ImportError(
            "plots need Matplotlib: pip install 'deqjax[plot]'", name="matplotlib"
        ) from error
    return pyplot


def quiet(ax: Any) -> None:
    ax.grid(True, color="#e6e8eb", linewidth=0.8)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
