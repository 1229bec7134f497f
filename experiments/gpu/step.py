"""A training step and an evaluated token of the paper's models beside their explicit networks."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from ..full_size import FullSize, named
from ..measured_step import Config as StepConfig
from ..measured_step import Row, measure
from ..tables import table
from .config import Config
from .ledger import Rows

TITLE = "Training step and evaluated token"
BATCH, SEGMENT = 15, 150  # what the paper gives memory for
# Solver steps, forward and as many in the adjoint. Twelve first: models trained with the Jacobian
# penalty take 12 to 14 (Bai, Koltun and Kolter 2021, arXiv 2106.14342), and those of `penn`, whose
# own steps stand in its table, fewer.
STEPS = (12, 6, 24)
PAIRS = {
    "wt103-transformer-medium": "wt103-transformer-medium-explicit",
    "wt103-trellisnet": "wt103-trellisnet-explicit",
}


@dataclass(frozen=True)
class Paper:
    """Ratios of an equilibrium to an explicit network of like accuracy (Bai, Kolter and Koltun
    2019, arXiv 1909.01377, table 3 and section 5.3)."""

    training: float
    evaluation: float
    memory: float


# Its times are relative to 18 layers with adaptive embeddings; the memory is that of 16.
PAPER = {
    "wt103-transformer-medium": Paper(2.82, 1.76, 0.32),
    "wt103-trellisnet": Paper(2.40, 1.64, 0.13),
}
SAID = f"""\
{BATCH} samples of {SEGMENT} positions, embedding, softmax and AdamW included. An equilibrium takes
a fixed number of Anderson steps forward and as many in its adjoint; f in float32 (products in
TensorFloat-32, JAX's default) or in bfloat16. The layers of the explicit networks are a scan.
"Memory" is what the allocator gave out at most, over that of the explicit network (on a CPU the
compiler's temporary bytes); the paper's figures leave out word embeddings."""
COPIED = [f.name for f in Row.__dataclass_fields__.values()]
Precision = Literal["float32", "bfloat16"]


@dataclass(frozen=True)
class Case:
    model: str
    precision: Precision
    steps: int | None  # None for an explicit network

    @property
    def name(self) -> str:
        steps = "" if self.steps is None else f", {self.steps} + {self.steps} steps"
        return f"{self.model}, {self.precision}{steps}"


def cases() -> list[Case]:
    """All, what matters most first."""
    precisions: tuple[Precision, ...] = ("float32", "bfloat16")
    found = []
    for steps in STEPS:
        for precision in precisions:
            for ours, theirs in PAIRS.items():
                found.append(Case(ours, precision, steps))
                found += [Case(theirs, precision, None)] if steps == STEPS[0] else []
    return found


def units(config: Config, rows: Rows) -> list[str]:
    names = [case.name for case in cases()]
    return [*names[:4], names[8]] if config.quick else names


def run(unit: str, config: Config) -> dict[str, Any]:
    device = jax.local_devices()[0]
    if unit == "device":
        return dict(device=device.device_kind, platform=device.platform)
    case = next(case for case in cases() if case.name == unit)
    model, batch, segment, repeats = named(case.model), BATCH, SEGMENT, 20
    if config.quick:
        model, batch, segment, repeats = miniature(model), 2, 8, 2
    given = StepConfig(
        batch=batch,
        segment=segment,
        steps=case.steps or 1,
        precision=case.precision,
        repeats=repeats,
    )
    return asdict(measure(model, given)) | dict(jax=jax.__version__)


def miniature(model: FullSize) -> FullSize:
    """The same kind of model, a few numbers large."""
    layers = None if model.layers is None else 3
    sizes: dict[str, Any] = dict(vocabulary=50, cutoffs=(), n_in=20, d=20, inner=40)
    return replace(model, **sizes, layers=layers, memory=min(4, model.memory))


def line(row: dict[str, Any]) -> str:
    peak = "" if row["peak"] is None else f", {row['peak'] / 1e9:.2f} GB"
    return f"{1e3 * row['seconds']:.1f} ms a step, {1e3 * row['evaluated']:.1f} evaluated{peak}"


# ------------------------------------------------------------------------------- the report


def report(rows: Rows) -> list[str]:
    order = {case.name: i for i, case in enumerate(cases())}
    names = sorted(rows, key=lambda name: (_model(name), order.get(name, len(order))))
    head = ["", "ms a step (quartiles)", "µs a token", "µs an evaluated token", "peak GB"]
    head += ["planned", "temporary"]
    measured = [[name, *_cells(rows[name])] for name in names]
    head_of_ratios = ["equilibrium over explicit", "f in", "steps", "training", "paper"]
    head_of_ratios += ["evaluation", "paper", "memory", "paper"]
    told = [SAID, table(head, measured)]
    ratios = [_ratio_cells(found) for found in ratios_of(rows)]
    return told + ([table(head_of_ratios, ratios)] if ratios else []) + _levels(rows)


def _cells(row: dict[str, Any]) -> list[str]:
    low, high = (1e3 * q for q in row["quartiles"])
    times = f"{1e3 * row['seconds']:.1f} ({low:.1f} to {high:.1f})"
    tokens = [f"{1e6 * row[key] / row['tokens']:.1f}" for key in ("seconds", "evaluated")]
    sizes = [row[key] for key in ("peak", "planned", "temporary")]
    return [times, *tokens, *("–" if n is None else f"{n / 1e9:.2f}" for n in sizes)]


@dataclass(frozen=True)
class Ratio:
    model: str
    precision: str
    steps: int
    training: float
    evaluation: float
    memory: float


def ratios_of(rows: Rows) -> list[Ratio]:
    """Every equilibrium over its explicit network, where both are there."""
    found = []
    for case in cases():
        other = Case(PAIRS[case.model], case.precision, None).name if case.steps else None
        if case.steps is None or case.name not in rows or other not in rows:
            continue
        ours, theirs = rows[case.name], rows[other]
        memory = "temporary" if None in (ours["peak"], theirs["peak"]) else "peak"
        over = lambda key: ours[key] / theirs[key]  # noqa: B023
        shares = (over("seconds"), over("evaluated"), over(memory))
        found.append(Ratio(case.model, case.precision, case.steps, *shares))
    return sorted(found, key=lambda r: (r.model, r.precision, r.steps))


def _ratio_cells(ratio: Ratio) -> list[str]:
    paper = PAPER[ratio.model]
    cells = [ratio.model, ratio.precision, f"{ratio.steps} + {ratio.steps}"]
    for name in ("training", "evaluation", "memory"):
        cells += [f"{getattr(ratio, name):.2f}", f"{getattr(paper, name):.2f}"]
    return cells


def straight_lines(rows: Rows) -> dict[tuple[str, str], tuple[np.ndarray, ...]]:
    """{(model, precision): (training, evaluation)}, each ratio as (slope, at no step), by least
    squares, where two numbers of steps are there: time is a straight line in the steps."""
    points = defaultdict(list)
    for ratio in ratios_of(rows):
        points[ratio.model, ratio.precision].append(ratio)
    return {
        key: tuple(
            np.polyfit([r.steps for r in found], [getattr(r, name) for r in found], 1)
            for name in ("training", "evaluation")
        )
        for key, found in points.items()
        if len(found) > 1
    }


def _levels(rows: Rows) -> list[str]:
    """At which number of steps each ratio is the paper's."""
    said = []
    for (model, precision), lines in straight_lines(rows).items():
        paper = PAPER[model]
        told = []
        pairs = zip(lines, ("training", "evaluation"), strict=True)
        for (slope, start), name in pairs:
            level = getattr(paper, name)
            at = f"at {(level - start) / slope:.1f}" if slope > 0 else "at no number of them"
            told.append(f"{name} {start:.2f} + {slope:.3f} a step, the paper's {level} {at}")
        said.append(f"- {model}, {precision}: " + "; ".join(told))
    if not said:
        return []
    return ["The ratios as straight lines in the number of solver steps:", "\n".join(said)]


def picture(rows: Rows, folder: Path, device: str) -> None:
    """Ratios against solver steps, with the paper's beside them: `ratios.png`."""
    found = ratios_of(rows)
    if not found:
        return
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = list(dict.fromkeys(ratio.model for ratio in found))
    figure, axes = plt.subplots(1, len(names), figsize=(5.5 * len(names), 4), squeeze=False)
    colours = {"training": "tab:blue", "evaluation": "tab:orange"}
    for axis, name in zip(axes[0], names, strict=True):
        highest = PAPER[name].training
        for kind, colour in colours.items():
            for precision, style in (("float32", "o-"), ("bfloat16", "s--")):
                some = [r for r in found if (r.model, r.precision) == (name, precision)]
                if not some:
                    continue
                x, y = [r.steps for r in some], [getattr(r, kind) for r in some]
                highest = max(highest, *y)
                axis.plot(x, y, style, color=colour, label=f"{kind}, {precision}")
            level = getattr(PAPER[name], kind)
            axis.axhline(level, color=colour, linewidth=1, linestyle=":")
            axis.annotate(f"paper {level}", (0, level), color=colour, fontsize=8, va="bottom")
        axis.set(title=name, xlabel="solver steps, forward and in the adjoint")
        axis.set(xlim=(0, None), ylim=(0, 1.15 * highest))
        axis.legend(fontsize=8, loc="lower right")
    axes[0][0].set_ylabel("time over the explicit network's")
    figure.suptitle(f"What an equilibrium costs, {device}", fontsize=10)
    figure.tight_layout()
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / "ratios.png", dpi=120)
    plt.close(figure)


def _model(name: str) -> str:
    return name.partition(",")[0]
