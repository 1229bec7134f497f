"""The recorded table and pictures, from runs.

    python -m experiments.sudoku.report --runs runs/sudoku-9x9-satnet-puzzles-seed0 …
    python -m experiments.sudoku.report                # table and pictures of what is recorded

A run that is not finished is scored at its newest checkpoint, which does not disturb it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from deqjax._errors import check_integer
from deqjax.training import (
    Checkpoints,
    OptionError,
    checked,
    command_line,
    load_model,
    read_config,
    read_metrics,
)
from deqjax.training.folder import write_json

from . import page, results
from .score import evaluate
from .task import Config as Trained
from .task import held_in_and_out, parameters, prepare


@dataclass(frozen=True)
class Config:
    """Record runs of experiments.sudoku, and draw what is recorded."""

    runs: tuple[Path, ...] = ()
    """folders of runs to record"""
    weights: bool = False
    """record their weights too (4×4: 10 to 90 KB each)"""
    data_dir: Path | None = None
    """where the boards are now, if not where they were"""
    sweeps: tuple[int, ...] = ()
    """score satnet once more with each of these limits on its sweeps instead of its own"""

    def check(self) -> None:
        for limit in self.sweeps:
            check_integer("--sweeps", limit, least=1)


def main(config: Config) -> None:
    checked(config)
    for directory in config.runs:
        if not (directory / "result.json").exists() and (directory / "checkpoints").exists():
            score_checkpoint(directory, config.data_dir)
        if config.sweeps:
            score_sweeps(directory, config.sweeps, config.data_dir)
        results.record(directory, weights=config.weights)
    (results.RECORDED / results.TABLE).write_text(page.write(), "utf-8")


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


def score_sweeps(directory: Path, limits: tuple[int, ...], data_dir: Path | None) -> None:
    """Add to a run's scores what the same weights do with other limits on the sweeps."""
    options, model, told = results.load(directory)
    if options.layer != "satnet":
        raise OptionError(f"--sweeps is for satnet, and {directory} is of {options.layer}")
    options = replace(options, data_dir=data_dir or options.data_dir)
    boards = held_in_and_out(options).test
    told["by_sweeps"] = {str(options.satnet.max_sweeps): told["solved"]}
    for limit in limits:
        model.layer.max_sweeps = limit
        score = evaluate(model, boards, options.train.batch_size)
        told["by_sweeps"][str(limit)] = int(score.right.sum())
    write_json(directory / results.SCORES, told)


if __name__ == "__main__":
    command_line(Config, main)
