"""A run to look at while it trains: one picture, drawn anew in its place."""

from __future__ import annotations

import io
import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..diagnostics._drawing import COLOURS, QUIET, quiet
from .curves import _running_mean, _series
from .metrics import read_metrics
from .running import Moment
from .watch import ConvergenceWatch

RESULT = "result.json"  # a run has one when it has ended

# (title, unit, log scale, {metric: name})
_PANELS: tuple[tuple[str, str, bool, dict[str, str]], ...] = (
    ("loss", "loss", True, {"loss": "training", "valid_loss": "held out"}),
    ("solver steps", "steps", False, {"forward_steps": "forward", "adjoint_steps": "adjoint"}),
    (
        *("converged", "share of solves", False),
        {"converged": "forward", "adjoint_converged": "adjoint"},
    ),
    ("gain of the adjoint", "|u| / |v|", True, {"adjoint_gain": "largest of a step"}),
)


@dataclass
class LiveView:
    """Loss, solver steps, the share of solves that converged and the gain of the adjoint against
    the training step, drawn while a run is at work. What `ConvergenceWatch` has to say stands on
    top: that solves have stopped converging, say, and what helps.

    In the process that trains it is a hook, `fit(..., hooks=(LiveView(),))`. For a run of another
    process, on this machine or on one whose disk is seen here, `LiveView().follow("runs/ptb")`
    reads `metrics.jsonl` again and again; stopping the cell leaves the run alone.

    Drawing takes some tenths of a second, during which a hook's training waits: not more often than
    every `seconds`.

    Attributes:
        seconds: least time between two pictures.
        show: what is done with each picture, the bytes of a PNG; None shows it in the notebook, in
            place of the one before, or, where there is no notebook, keeps it as `live.png` in the
            run's folder.

    Raises:
        ImportError: Matplotlib is not installed.

    Examples:
        >>> pictures = []
        >>> view = LiveView(show=pictures.append)
        >>> view.draw([{"step": 1, "loss": 2.0, "forward_steps": 8.0, "converged": 1.0}])
        >>> pictures[0][1:4]
        b'PNG'
    """

    seconds: float = 2.0
    show: Callable[[bytes], object] | None = None
    _rows: list[Mapping[str, Any]] = field(default_factory=list, repr=False)
    _drawn: float = field(default=float("-inf"), repr=False)
    _handle: Any = field(default=None, repr=False)

    def __call__(self, at: Moment) -> None:
        """As a hook of `fit`: it sees what is to be a line of metrics. In a job of several
        processes the first one draws."""
        if not at.run.processes.first:
            return
        if not self._rows and at.step > 1:
            self._rows = [row for row in _rows(at.run.directory) if row["step"] < at.step]
        if not at.row:
            return
        self._rows.append({**at.row, "step": at.step})
        if at.last or time.monotonic() - self._drawn >= self.seconds:
            self.draw(self._rows, at.run.directory)

    def follow(
        self, directory: str | os.PathLike[str], *, until: Callable[[], bool] | None = None
    ) -> None:
        """Draw the run in `directory` until it has ended, or until the notebook's stop button.

        A run that was killed is waited for, as it may be started again.

        Args:
            directory: the run's folder. It need not hold anything yet.
            until: asked after each picture whether to leave; None leaves when there is a
                `result.json`.
        """
        directory = Path(directory)
        ended = until or (directory / RESULT).exists
        seen = None
        try:
            while True:
                leaving = ended()  # first, so that the last lines are drawn
                rows = _rows(directory)
                if rows != seen:
                    self.draw(rows, directory)
                    seen = rows
                if leaving:
                    return
                time.sleep(self.seconds)
        except KeyboardInterrupt:
            return

    def draw(
        self, rows: Iterable[Mapping[str, Any]], directory: str | os.PathLike[str] = "."
    ) -> None:
        """Draw rows as `read_metrics` gives them. Metrics that no row has get no panel.

        Args:
            rows: oldest first.
            directory: where `live.png` goes, if there is neither a notebook nor `show`.
        """
        picture = _picture(list(rows))
        self._drawn = time.monotonic()
        if self.show is not None:
            self.show(picture)
        elif (notebook := _notebook()) is None:
            (Path(directory) / "live.png").write_bytes(picture)
        elif self._handle is None:
            self._handle = notebook.display(notebook.Image(picture), display_id=True)
        else:
            self._handle.update(notebook.Image(picture))


def _notebook() -> Any:
    """`IPython.display`, if this process is the kernel of a notebook."""
    try:
        import IPython  # type: ignore[import-not-found]
    except ImportError:
        return None
    shell = IPython.get_ipython()
    return IPython.display if getattr(shell, "kernel", None) is not None else None


def _rows(directory: Path) -> list[dict[str, Any]]:
    try:
        return read_metrics(directory)
    except FileNotFoundError:
        return []


def _news(rows: list[Mapping[str, Any]]) -> str:
    """The last thing that the watch had to say."""
    watch, last = ConvergenceWatch(), ""
    for row in rows:
        last = watch.see(row["step"], row) or last
    return last


def _picture(rows: list[Mapping[str, Any]]) -> bytes:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            "plots need Matplotlib: pip install 'deqjax[plot]'", name="matplotlib"
        ) from error
    panels = [panel for panel in _PANELS if any(_series(rows, k)[0].size for k in panel[3])]
    figure = Figure(figsize=(10.5, 2.9 * max(1, (len(panels) + 1) // 2)), dpi=80)
    figure.set_layout_engine("constrained")
    FigureCanvasAgg(figure)
    last = rows[-1]["step"] if rows else 0
    news = _news(rows)
    figure.suptitle(
        "\n".join(filter(None, [f"step {last}" if rows else "nothing recorded yet", news])),
        ha="left",
        x=0.01,
        fontsize=11,
        wrap=True,
    )
    for i, panel in enumerate(panels, start=1):
        ax = figure.add_subplot(-(-len(panels) // 2), min(2, len(panels)), i)
        _panel(ax, rows, *panel)
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()


def _panel(
    ax: Any, rows: list[Mapping[str, Any]], title: str, unit: str, log: bool, keys: dict[str, str]
) -> None:
    lowest = np.inf
    for colour, (key, name) in zip(COLOURS, keys.items(), strict=False):
        steps, values = _series(rows, key)
        if not steps.size:
            continue
        lowest = min(lowest, values.min())
        label = f"{name} (last {values[-1]:.3g})"
        if key.startswith("valid"):
            ax.plot(steps, values, "o-", color=colour, markersize=4, label=label)
            continue
        ax.plot(steps, values, color=colour, alpha=0.25, linewidth=0.9)
        dashes = "--" if key.startswith("adjoint_c") else "-"  # where both are one, both are seen
        ax.plot(steps, _running_mean(values), dashes, color=colour, linewidth=2, label=label)
    if log and lowest > 0:
        ax.set_yscale("log")
    elif unit == "share of solves":
        ax.set_ylim(-0.04, 1.06)
        ax.axhline(1.0, color=QUIET, linewidth=0.8)
    else:
        ax.set_ylim(bottom=min(0, lowest))
    ax.set_title(title, loc="left", fontsize=10)
    ax.set_xlabel("training step")
    ax.set_ylabel(unit)
    ax.legend(frameon=False, fontsize="small")
    quiet(ax)
