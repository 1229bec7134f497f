"""What the pictures share. Matplotlib is imported when the first one is drawn."""

from __future__ import annotations

from typing import Any

# Okabe and Ito's colours, told apart under every common colour blindness, without their yellow;
# markers tell the curves apart once more.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
QUIET = "#5f6670"
GRID = "#e6e8eb"
FAILED = "#30343a"  # of a start, a sample, a step: darker than every colour above
ORDERED = "cividis"  # of what has an order: its lightness grows evenly for everybody


def style() -> dict[str, Any]:
    """Matplotlib settings with which pictures of your own look like those of this library.

    Colours that are told apart under every common colour blindness, a quiet grid, no frame, a size
    that a notebook shows whole.

    Raises:
        ImportError: Matplotlib is not installed.

    Examples:
        >>> import matplotlib.pyplot as plt
        >>> with plt.rc_context(style()):
        ...     figure, ax = plt.subplots()
        >>> plt.close(figure)
    """
    _pyplot()
    from cycler import cycler

    return {
        "axes.prop_cycle": cycler(color=COLOURS),
        "axes.grid": True,
        "axes.axisbelow": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "figure.constrained_layout.use": True,
        "figure.dpi": 80,
        "figure.figsize": (6.4, 4.2),
        "grid.color": GRID,
        "grid.linewidth": 0.8,
        "image.cmap": ORDERED,
        "legend.frameon": False,
        "lines.linewidth": 1.8,
    }


def side_by_side(width: float = 10.5) -> tuple[Any, Any]:
    """A figure with two panels that share the vertical axis."""
    return _pyplot().subplots(1, 2, figsize=(width, 4.2), sharey=True, layout="constrained")


def axes(ax: Any, size: tuple[float, float]) -> Any:
    """The given Axes, or new ones."""
    return _pyplot().subplots(figsize=size, layout="constrained")[1] if ax is None else ax


def colour_map(name: str) -> Any:
    """Matplotlib's colour map of that name: number from 0 to 1 -> colour."""
    _pyplot()
    import matplotlib

    return matplotlib.colormaps[name]


def _pyplot() -> Any:
    try:
        import matplotlib.pyplot as pyplot
    except ImportError as error:
        raise ImportError(
            "plots need Matplotlib: pip install 'deqjax[plot]'", name="matplotlib"
        ) from error
    return pyplot


def quiet(ax: Any) -> None:
    ax.grid(True, color=GRID, linewidth=0.8)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
