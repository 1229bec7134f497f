"""The recorded table and pictures, from runs.

    python -m experiments.sudoku.report --runs runs/sudoku-9x9-satnet-puzzles-seed0 …
    python -m experiments.sudoku.report                # table and pictures of what is recorded

A run that is not finished is scored at its newest checkpoint, which does not disturb it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from deqjax.training import (
    Checkpoints,
    OptionError,
    command_line,
    load_model,
    read_config,
    read_metrics,
)

from ..tables import table
from . import picture, results
from .picture import kind
from .score import evaluate
from .task import Config as Trained
from .task import parameters, prepare

SHOWN = 8  # boards in a picture


@dataclass(frozen=True)
class Config:
    """Record runs of experiments.sudoku, and draw what is recorded."""

    runs: tuple[Path, ...] = ()
    """folders of runs to record"""
    weights: bool = False
    """record their weights too (4×4: 10 to 90 KB each)"""
    data_dir: Path | None = None
    """where the boards of an unfinished run are now, if not where they were"""


def main(config: Config) -> None:
    for directory in config.runs:
        if not (directory / "result.json").exists() and (directory / "checkpoints").exists():
            score_checkpoint(directory, config.data_dir)
        results.record(directory, weights=config.weights)
    (results.RECORDED / results.TABLE).write_text(write(), "utf-8")


def score_checkpoint(directory: Path, data_dir: Path | None) -> None:
    """Write the scores of a run that is still going on, at its newest checkpoint."""
    options = read_config(Trained, directory)
    options = replace(options, data_dir=data_dir or options.data_dir)
    task = prepare(options)
    model = load_model(task, task.config.train, directory)
    with Checkpoints(directory / "checkpoints") as checkpoints:
        step = checkpoints.latest
    rows = read_metrics(directory)
    score = evaluate(model, task.boards.test, task.config.train.batch_size)
    told = results.told(task, score) | dict(
        parameters=parameters(model),
        unfinished=True,
        training_steps=step,
        cpu_seconds=None,
        curve=results.curve(rows, task),
    )
    results.save(directory, model, score, told)
    print(f"{directory}: {results.sentence(told)}")


def write() -> str:
    """The Markdown of everything recorded; its pictures are drawn on the way."""
    if not results.folders():
        raise OptionError("nothing is recorded yet: name --runs")
    runs = [json.loads((f / results.SCORES).read_text()) for f in results.folders()]
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


def _learned(runs: list[dict[str, Any]]) -> str:
    epochs = lambda told: f"{told['curve'][-1]['epoch']:g}" if told.get("curve") else "0"
    rows = [
        [*_row(told), epochs(told) + (", unfinished" if told.get("unfinished") else "")]
        for told in sorted(runs, key=lambda t: (t["size"], t["layer"], t["split"], t["seed"]))
    ]
    return table([*HEAD, "epochs"], rows)


def _spectral(runs: list[dict[str, Any]]) -> str:
    rows = []
    for told in runs:
        tried = ", ".join(f"{t['weight']:g}: {t['boards']:.1%}" for t in told["clue_weights_tried"])
        rows.append([*_row(told), f"{told['clue_weight']:g}", tried, f"{told['hull_of']:,}"])
    return table([*HEAD, "clue weight", "tried on training boards", "hull of solutions"], rows)


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


TEXT = """# Sudoku

Boards that a layer completes after seeing solved ones; what the columns mean and how to read them
is in docs/sudoku.md. A board is right if every cell is, clues included; "held out: solutions" means
that no solution of a test board was in training. CPU seconds are of the whole process: imports,
compilation, training and every evaluation.

## Learned by gradients

SATNet's paper has 98.3% of 9×9 test boards after 100 epochs (arXiv 1905.12149), on boards of about
36 clues: those here have 33.8 and are harder, so the figures do not compare as like with like. The
gradient of optnet is smoothed: at a Sudoku's solution the exact one is zero.

{learned}

{epochs}

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

if __name__ == "__main__":
    command_line(Config, main)
