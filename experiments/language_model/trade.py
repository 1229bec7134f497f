"""Perplexity by the paper's protocol, at any solver setting: steps traded for quality."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from deqjax.data import Corpus
from deqjax.training import perplexity
from deqjax.training.progress import Progress

from .config import Config
from .task import stream

STEPS = (1, 2, 3, 4, 6, 8, 12, 16, 24)
TOLERANCES = (0.3, 0.1, 0.03, 0.01, 0.003, 0.001)


class Line(NamedTuple):
    """A setting and what came of it. steps, converged: means over solves, None if nothing was
    solved; rate: tokens a second, compilation left out."""

    limit: str
    tokens: int
    perplexity: float
    steps: float | None
    converged: float | None
    rate: float

    def __str__(self) -> str:
        solved = " " * 20
        if self.steps is not None:
            solved = f"{self.steps:>9.1f}{self.converged:>11.1%}"
        scored = f"{self.limit:22}{self.tokens:>9,}{self.perplexity:>12.2f}"
        return f"{scored}{solved}{self.rate:>10,.0f}"


HEADER = f"{'':22}{'tokens':>9}{'perplexity':>12}{'steps':>9}{'converged':>11}{'tokens/s':>10}"


def score(config: Config, corpus: Corpus, model: Any, ids: np.ndarray, limit: str) -> Line:
    """Score every one of `ids`, memory carried along each row."""
    text = stream(config, corpus, ids, config.eval_rows)
    times = [time.monotonic()]
    with Progress(len(text)) as progress:

        def each(done, so_far):
            times.append(time.monotonic())
            progress.update(done, perplexity=so_far.perplexity)

        sums = perplexity(model, text, each)
    usual = float(np.median(np.diff(times)))
    solved = bool(sums.solves)
    return Line(
        limit,
        int(sums.tokens),
        sums.perplexity,
        sums.steps / sums.solves if solved else None,
        sums.converged / sums.solves if solved else None,
        sums.tokens / (usual * len(text)),
    )


def table(config: Config, corpus: Corpus, model: Any, ids: np.ndarray) -> Iterator[Line]:
    """The same weights with fewer steps, and with other tolerances; or stacked to other depths."""
    if not model.solves:
        for depth in STEPS:
            with changed(model, "depth", depth):
                yield score(config, corpus, model, ids, f"depth {depth}")
        return
    own = model.deq.solver
    for steps in STEPS:
        with changed(model.deq, "solver", own.with_options(max_steps=steps)):
            yield score(config, corpus, model, ids, f"at most {steps} steps")
    for rtol in TOLERANCES:
        solver = own.with_options(rtol=rtol, max_steps=max(60, own.max_steps))
        with changed(model.deq, "solver", solver):
            yield score(config, corpus, model, ids, f"tolerance {rtol:g}")


@contextmanager
def changed(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Within, `owner` has another value of that attribute."""
    own = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, own)


def plot(lines: list[Line], path: Path, title: str) -> None:
    """Perplexity against solver steps, labelled with the setting of each point."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    kinds = (
        ("at most", "limit on steps", "#1f6fb2", "o"),
        ("tolerance", "tolerance", "#c8502d", "s"),
    )
    for prefix, name, colour, marker in kinds:
        points = [x for x in lines if x.limit.startswith(prefix) and x.steps is not None]
        if not points:
            continue
        steps, values = np.array([(x.steps, x.perplexity) for x in points], float).T
        axes.plot(steps, values, color=colour, marker=marker, lw=1.5, label=name)
        span = max(x.steps for x in lines if x.steps is not None)
        shown = -1.0
        for point in sorted(points, key=lambda x: x.steps or 0):
            if point.steps is None or point.steps - shown < 0.03 * span:
                continue  # a limit that no longer limits: its label would hide the one before
            shown = point.steps
            short = point.limit.removeprefix("at most ").removeprefix("tolerance ")
            axes.annotate(
                short.removesuffix(" steps"),
                (point.steps, point.perplexity),
                xytext=(4, 5 if prefix == "at most" else -12),
                textcoords="offset points",
                fontsize=8,
                color=colour,
            )
    axes.set_xlabel("solver steps a segment (mean)")
    axes.set_ylabel("perplexity, log scale")
    axes.set_yscale("log")
    for axis in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
        axis(lambda value, _: f"{value:g}")
    axes.set_title(title, fontsize=11)
    axes.legend()
    axes.grid(alpha=0.25, which="both")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)
