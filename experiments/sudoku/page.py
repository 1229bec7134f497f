"""The page of everything recorded: its tables, and the pictures that it shows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from deqjax.training import OptionError

from ..tables import table
from . import picture, results
from .picture import kind

SHOWN = 8  # boards in a picture


def write() -> str:
    """The Markdown of everything recorded; its pictures are drawn on the way."""
    if not results.folders():
        raise OptionError("nothing is recorded yet: name --runs")
    runs = [
        json.loads((f / results.SCORES).read_text()) | dict(gradient=_gradient(f))
        for f in results.folders()
    ]
    curves = [r for r in runs if r.get("curve")]
    if curves:
        picture.against_epochs(results.RECORDED / "epochs.png", curves)
    picture.by_clues(results.RECORDED / "clues.png", runs)
    pictures = []
    for folder, told in zip(results.folders(), runs, strict=True):
        with np.load(folder / results.BOARDS) as file:
            shown = {name: file[name][-SHOWN:] for name in file.files}
        if told["seed"] == 0 and told["split"] == "puzzles" and len(shown["puzzles"]):
            title = f"{told['size']}×{told['size']}, {kind(told)}: held-out boards"
            picture.boards(folder / "boards.png", title, shown)
            pictures.append(f"![{title}]({folder.name}/boards.png)")
    return TEXT.format(
        learned=_learned([r for r in runs if kind(r) != "spectral"]),
        spectral=_spectral([r for r in runs if kind(r) == "spectral"]),
        epochs="![accuracy against epochs](epochs.png)" if curves else "",
        sweeps=_by_sweeps([r for r in runs if r.get("by_sweeps")]),
        clues=_by_clues([r for r in runs if r["size"] == 9]),
        pictures="\n\n".join(pictures),
    )


def _row(told: dict[str, Any]) -> list[str]:
    cpu = told.get("cpu_seconds")
    return [
        f"{told['size']}×{told['size']}",
        kind(told),
        f"{told['split']}",
        str(told["seed"]),
        f"{told['train_boards']:,}",
        f"{told['solved']:,} of {told['test_boards']:,}",
        f"{told['cells']:.2%}",
        f"{told['loss']:.2e}",
        f"{told['converged']:.1%}",
        f"{told['parameters']:,}",
        "–" if cpu is None else f"{cpu:.0f} s",
    ]


HEAD = [
    "board",
    "layer",
    "held out",
    "seed",
    "training boards",
    "boards right",
    "empty cells right",
]
HEAD += ["loss", "solves converged", "parameters", "CPU"]


def _gradient(folder: Path) -> str:
    """What trained the run in that folder."""
    options = json.loads((folder / "config.json").read_text())
    if options["layer"] == "optnet":
        return f"smoothed, {options['smoothing']:g}"
    return "implicit" if options["damping"] <= 1e-6 else f"damped, {options['damping']:g}"


def _learned(runs: list[dict[str, Any]]) -> str:
    def epochs(told: dict[str, Any]) -> str:
        reached = f"{told['curve'][-1]['epoch']:g}" if told.get("curve") else "0"
        return reached + (", unfinished" if told.get("unfinished") else "")

    rows = [
        [
            *_row(told),
            told["gradient"],
            epochs(told),
        ]
        for told in sorted(runs, key=lambda t: (t["size"], t["layer"], t["split"], t["seed"]))
    ]
    return table([*HEAD, "gradient", "epochs"], rows)


def _spectral(runs: list[dict[str, Any]]) -> str:
    rows = []
    for told in runs:
        tried = ", ".join(f"{t['weight']:g}: {t['boards']:.1%}" for t in told["clue_weights_tried"])
        rows.append([*_row(told), f"{told['clue_weight']:g}", tried, f"{told['hull_of']:,}"])
    return table([*HEAD, "clue weight", "tried on training boards", "hull of solutions"], rows)


def _by_sweeps(runs: list[dict[str, Any]]) -> str:
    if not runs:
        return ""
    limits = sorted({int(limit) for told in runs for limit in told["by_sweeps"]})
    rows = [
        [
            f"{told['size']}×{told['size']}, {told['split']}, seed {told['seed']}",
            *(_of(told["by_sweeps"].get(str(limit)), told["test_boards"]) for limit in limits),
        ]
        for told in runs
    ]
    return SWEEPS + table(["satnet", *(f"{limit} sweeps" for limit in limits)], rows) + "\n"


def _of(solved: int | None, count: int) -> str:
    return "–" if solved is None else f"{solved:,} of {count:,}"


def _by_clues(runs: list[dict[str, Any]]) -> str:
    clues = sorted({int(c) for told in runs for c in told["by_clues"]})
    rows = [
        [
            f"{kind(told)}, {told['split']}, seed {told['seed']}",
            *("{} of {}".format(*told["by_clues"].get(str(c), (0, 0))) for c in clues),
        ]
        for told in runs
    ]
    return table(["9×9", *(f"{c} clues" for c in clues)], rows)


SWEEPS = """
The same weights with other limits on the sweeps of a solve; the least is that of training, and of
the table above. None was chosen: all that were tried are here.

"""

TEXT = """# Sudoku

Boards that a layer completes after seeing solved ones; what the columns mean and how to read them
is in docs/sudoku.md. A board is right if every cell is, clues included; "held out: solutions" means
that no solution of a test board was in training. CPU seconds are of the whole process: imports,
compilation, training and every evaluation.

## Learned by gradients

SATNet's paper has 98.3% of 9×9 test boards after 100 epochs (arXiv 1905.12149), on boards of about
36 clues: those here have 33.8 and are harder, so the figures do not compare as like with like. Two
kinds of gradient are approximations: optnet's is smoothed, since at a Sudoku's solution the exact
one is zero, and "damped" is satnet's with a backward damping above 1e-6.

{learned}

{epochs}
{sweeps}
## Not learned: the spectral start

A is the null space of the covariance of training solutions; no gradient had a part in it. The
weight of the clues is the best of those tried on boards of the training set.

{spectral}

## By number of clues

{clues}

![accuracy by number of clues](clues.png)

## Boards

Clues are black, what was filled in is blue; a wrong cell is red, with the right digit in its
corner.

{pictures}

A row is trained by `python -m experiments.sudoku --layer LAYER --size SIZE --split HELD_OUT --seed
SEED --data-dir …`; this page is written by `python -m experiments.sudoku.report --runs …`.
"""
