"""The tables and the picture, from what runs have written down."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..tables import table

EXPLAINED = {
    "certificates": """\
Of {matrices} random A with n = 1 to 4, entries multiples of 1/64, z = relu(A z + b) has exactly one
solution for every b for {well_posed}: every principal minor of I − A is positive, computed in whole
numbers. A false certificate would be of one of the others.""",
    "projection": """\
`project_inf_norm` with κ = 0.95: the largest distance of an entry from the optimum (KKT conditions
in rational arithmetic), and how far the largest row sum, added up exactly, is above κ.""",
    "splittings": """\
W = 0.9 I − PᵀP + S − Sᵀ, n = 64, λ_pf(|W|) = {perron:.1f}, m = {margin}, relu, eight inputs,
float64: iterations until ‖f(z) − z‖ ≤ {rtol} ‖f(z)‖ for the last sample, f(z) = relu(W z + b).""",
    "digits": """\
scikit-learn's digits (1437 to train on, 360 to test), width 64, Adam at 0.003, batches of 128, as
many seeds as there are accuracies. After every update of an ImplicitDense its A was certified anew;
"bound" is the largest that a certificate gave, "converged" the share of solves in training.""",
    "universality": """\
Networks of L layers (tanh, relu, sigmoid, gelu in turn; widths 5, 3, 6, 4) as one weight-tied
equilibrium, float64, Picard. Errors are relative to the largest entry of back-propagation's
(gradients to all weights, biases and inputs together); "early" is L − 1 steps from the noise, and
an adjoint of k terms is Picard's iterate Σ (Jᵀ)ⁱ v, i < k.""",
}
HEADS = {
    "certificates": ["method", "certified", "false"],
    "projection": ["n", "dtype", "distance", "row sum above κ", "of the textbook formula"],
    "splittings": ["solver", "iterations", "converged"],
    "digits": ["model", "mean", "each seed", "updates", "certified", "bound", "converged"],
    "universality": [
        *("L", "output, L steps from 0", "from 1000·noise", "early", "gradient"),
        *("adjoint, L terms", "L − 1 terms", "Phantom(L)", "Phantom(L − 1)", "JFB"),
    ],
}


def record(path: Path, part: str, said: str, found: Any) -> dict[str, Any]:
    """Put a part into the tables at `path`, drawn from a file of the same name in JSON; all."""
    data = path.with_suffix(".json")
    kept = json.loads(data.read_text("utf-8")) if data.exists() else {}
    kept[part] = dict(said=said, found=found)
    kept = {name: kept[name] for name in HEADS if name in kept}
    path.parent.mkdir(parents=True, exist_ok=True)
    data.write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n", "utf-8")
    path.write_text(markdown(kept), "utf-8")
    return kept


def markdown(kept: Mapping[str, Any]) -> str:
    parts = ["# Well-posedness and universality", ""]
    for part, entry in kept.items():
        found = entry["found"]
        rows, values = (found["rows"], found) if isinstance(found, dict) else (found, {})
        parts += [f"## {part.capitalize()}", "", EXPLAINED[part].format(**values), ""]
        parts += [f"{entry['said']}.", "", table(HEADS[part], map(_cells[part], rows)), ""]
    return "\n".join(parts)


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    return "0" if value == 0 else f"{value:.1e}"


def _of_digits(row: dict[str, Any]) -> list[str]:
    runs = row["runs"]
    accuracies = [run["accuracy"] for run in runs]
    certified = runs[0]["certified"] is not None
    return [
        row["model"],
        f"{sum(accuracies) / len(accuracies):.2%}",
        " ".join(f"{a:.1%}" for a in accuracies),
        str(sum(run["updates"] for run in runs)),
        str(sum(run["certified"] for run in runs)) if certified else "–",
        f"{max(run['bound'] for run in runs):.6f}" if certified else "–",
        f"{min(run['converged'] for run in runs):.1%}" if certified else "–",
    ]


def _of_universality(row: dict[str, Any]) -> list[str]:
    names = ["output_zeros", "output_random", "output_early", "gradient_random", "adjoint_enough"]
    names += ["adjoint_short", "phantom_enough", "phantom_short", "jfb"]
    return [str(row["depth"]), *(_number(row.get(name)) for name in names)]


_cells: dict[str, Callable[[dict[str, Any]], list[str]]] = {
    "certificates": lambda row: [row["method"], str(row["certified"]), str(row["false"])],
    "projection": lambda row: [
        *(str(row["n"]), row["dtype"]),
        *(_number(row[name]) for name in ("error", "ours", "textbook")),
    ],
    "splittings": lambda row: [row["solver"], str(row["steps"]), row["converged"]],
    "digits": _of_digits,
    "universality": _of_universality,
}


def draw(kept: Mapping[str, Any], path: Path) -> None:
    """Residuals of the splittings on the left, digits on the right."""
    if not {"splittings", "digits"} <= set(kept):
        return
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    rows = kept["splittings"]["found"]["rows"]
    for row in rows:
        left.plot(row["iterations"], row["residuals"], label=row["solver"], lw=1.6)
    left.set_xscale("symlog", linthresh=1)
    left.set_yscale("log")
    left.set_ylim(1e-10, 1e4)
    left.set_xlabel("iteration")
    left.set_title("‖f(z) − z‖/‖f(z)‖ of the worst sample", loc="left")
    left.legend(fontsize=7, loc="lower left")
    for y, row in enumerate(kept["digits"]["found"]):
        accuracies = [run["accuracy"] for run in row["runs"]]
        right.scatter(accuracies, [y] * len(accuracies), s=22, alpha=0.5, lw=0, color="#1f6fb2")
        right.scatter([sum(accuracies) / len(accuracies)], [y], s=140, marker="|", color="#1f6fb2")
    right.set_yticks(
        range(len(kept["digits"]["found"])), [row["model"] for row in kept["digits"]["found"]]
    )
    right.invert_yaxis()
    right.set_title("digits: test accuracy, a dot a seed", loc="left")
    for axes in (left, right):
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)
