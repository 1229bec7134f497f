"""The table and the picture of all rows, from what a run has written down."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..tables import table
from .rows import ROWS

EXPLAINED = """\
Digits of 8 × 8 pixels (scikit-learn's, 1437 to train on, 360 to test), f(z, x) = tanh(Wz + Ux + b)
of width 64 with a linear readout, Adam at 0.003, batches of 128, relative tolerance 1e-4, every
adjoint solved by the forward solver. What follows from it: docs/first_deq.md.

- **accuracy**: on the test digits after the last epoch, the mean over the seeds and the worst seed.
- **gradient**: the largest norm of a batch's gradient in training, before any clipping.
- **unfinished**: the share of all solves in training that did not converge.

The rest is of {samples} test digits after every epoch, for every seed, from the exact J = ∂f/∂z of
each at the z that the solver returned, and without any limit:

- **gain**: the largest ‖u‖/‖v‖, with (I − J)ᵀ u = v and v the cotangent of z.
- **radius**: the largest spectral radius of J.
- **unstable**: the share of digits whose solve converged to a z of radius 1 or more, which Picard
  would leave.
- **owed to unfinished**: the share of the sum of ‖u‖² that comes from solves that did not converge.
"""
HEAD = ["solver", "", "mean accuracy", "worst", "gradient", "unfinished", "gain", "radius"]
HEAD += ["unstable", "owed to unfinished"]
COLOURS = {None: "#5f6670", "picard": "#3a8f5c", "anderson": "#1f6fb2", "broyden": "#c8502d"}


def summary(row: str, found: Any, equilibria: Any) -> dict[str, Any]:
    """The numbers of a row. `found` is (epochs, seeds); `equilibria` None where nothing is solved.

    `accuracies` has one number a seed.
    """
    last = [float(x) for x in found.accuracy[-1]]
    told = dict(row=row, accuracies=last, gradient=float(found.gradient.max()))
    if equilibria is None:
        return told
    left = ~equilibria.converged
    squares = equilibria.size**2
    return told | dict(
        unfinished=float(1 - found.converged.mean()),
        gain=float(equilibria.gain.max()),
        radius=float(equilibria.radius.max()),
        unstable=float((equilibria.converged & (equilibria.radius >= 1)).mean()),
        owed=float(squares[left].sum() / squares.sum()),
    )


def record(path: Path, said: str, samples: int, row: dict[str, Any]) -> dict[str, Any]:
    """Put a row into the table at `path`, drawn from a file of the same name in JSON; all rows."""
    data = path.with_suffix(".json")
    kept = json.loads(data.read_text("utf-8")) if data.exists() else {}
    kept[row["row"]] = row | dict(said=said, samples=samples)
    kept = {name: kept[name] for name in ROWS if name in kept}
    path.parent.mkdir(parents=True, exist_ok=True)
    data.write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n", "utf-8")
    path.write_text(markdown(kept), "utf-8")
    return kept


def markdown(kept: Mapping[str, dict[str, Any]]) -> str:
    samples = " or ".join(str(n) for n in dict.fromkeys(row["samples"] for row in kept.values()))
    said = dict.fromkeys(row["said"] for row in kept.values())
    parts = ["# Your first DEQ", "", EXPLAINED.format(samples=samples)]
    return "\n".join(
        [*parts, *(f"- {line}" for line in said), "", table(HEAD, map(cells, kept.values())), ""]
    )


def cells(told: dict[str, Any]) -> list[str]:
    """A row as it stands in the table."""
    row, accuracies = ROWS[told["row"]], told["accuracies"]
    first = [row.solver or "–", row.says]
    first += [f"{sum(accuracies) / len(accuracies):.3f}", f"{min(accuracies):.3f}"]
    first.append(f"{told['gradient']:.1f}")
    if row.solver is None:
        return [*first, *["–"] * 5]
    return [
        *first,
        f"{told['unfinished']:.2%}",
        f"{told['gain']:.0f}",
        f"{told['radius']:.2f}",
        f"{told['unstable']:.2%}",
        f"{told['owed']:.0%}",
    ]


def draw(kept: Mapping[str, dict[str, Any]], path: Path) -> None:
    """A line a row: on the left every seed's accuracy, on the right its largest gradient."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    n = len(kept)
    figure = Figure(figsize=(10, 1.6 + 0.3 * n), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    title = "A first DEQ on digits: where one sample's gradient explodes, seeds fail"
    figure.suptitle(title, x=0.012, ha="left", fontweight="bold")
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    for y, (name, told) in enumerate(kept.items()):
        colour = COLOURS[ROWS[name].solver]
        seeds = told["accuracies"]
        left.scatter(seeds, [y] * len(seeds), s=22, color=colour, alpha=0.45, lw=0)
        left.scatter([sum(seeds) / len(seeds)], [y], s=90, color=colour, marker="|", lw=2.5)
        right.hlines(y, 0.5, told["gradient"], color=colour, lw=5)
    labels = [": ".join(filter(None, (ROWS[name].solver, ROWS[name].says))) for name in kept]
    left.set_yticks(range(n), labels)
    for tick, name in zip(left.get_yticklabels(), kept, strict=True):
        tick.set_color(COLOURS[ROWS[name].solver])
    left.invert_yaxis()
    left.set_xlabel("test accuracy: a dot a seed, a bar their mean")
    right.set_xscale("log")
    right.set_xlim(left=0.5)
    right.set_xlabel("largest gradient norm in training")
    for axes in (left, right):
        axes.grid(axis="x", alpha=0.25)
        axes.tick_params(axis="y", length=0)
        axes.spines[["top", "right", "left"]].set_visible(False)
    figure.savefig(path)
