"""Train one layer on one split, and leave its weights and scores."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, NamedTuple

import jax

from deqjax.training import connect, fit, read_metrics

from . import results, spectral
from .score import Score, evaluate
from .task import Config, Sudoku, prepare


class Trained(NamedTuple):
    """Where a run is, its model, its score on the held-out boards, and what was written of it."""

    directory: Path
    model: Any
    score: Score
    told: dict[str, Any]


def main(config: Config) -> Trained | None:
    connect(config.train.launch)
    task = prepare(config)
    if task.config.start == "spectral":
        return _spectral(task)
    return _learned(task)


def _learned(task: Sudoku) -> Trained | None:
    config, directory = task.config, task.directory
    continued = (directory / "checkpoints").exists() and not config.train.restart
    run = fit(task, config.train, config, name=config.run_name)
    if jax.process_index():
        return None
    score = evaluate(run.model, task.boards.test, config.train.batch_size)
    told = results.told(task, score) | dict(
        parameters=run.result["parameters"],
        training_steps=run.result["steps"],
        wall_seconds=run.result["seconds"],
        # Of this process from its start, compilation and evaluations included; not known of a run
        # that several processes had a part in.
        cpu_seconds=None if continued else round(time.process_time(), 1),
        curve=results.curve(read_metrics(directory), task),
    )
    results.save(directory, run.model, score, told)
    print(f"\n{results.sentence(told)}\nEverything is in {directory}/")
    return Trained(directory, run.model, score, told)


def _spectral(task: Sudoku) -> Trained:
    found = spectral.run(task)
    told = results.told(found.task, found.score) | found.more
    directory = found.task.directory
    directory.mkdir(parents=True, exist_ok=True)
    results.save_config(directory, found.task.config)
    results.save(directory, found.model, found.score, told)
    print(f"\n{results.sentence(told)}\nEverything is in {directory}/")
    return Trained(directory, found.model, found.score, told)
