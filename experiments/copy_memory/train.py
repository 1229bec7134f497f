"""Train one row of the table and leave its weights and scores."""

from __future__ import annotations

import jax

from deqjax.data import memoryless_loss
from deqjax.training import connect, fit, read_metrics

from . import results
from .task import Config, evaluate, prepare


def main(config: Config):
    connect(config.train.launch)
    task = prepare(config)
    name = f"copy-memory-{config.length}-{config.model}"
    if config.train.seed:
        name += f"-seed{config.train.seed}"
    run = fit(task, config.train, config, name=name)
    if jax.process_index():
        return run
    score = evaluate(run.model, task.test, config.train.batch_size)
    kept = {k: run.result[k] for k in ("parameters", "seconds", "steps", "jax")}
    solves = results.over_training(read_metrics(run.directory))
    results.save(run.directory, run.model, score._asdict() | kept | solves)
    chance = memoryless_loss(config.length)
    solved = "" if score.converged is None else f"; {score.converged:.0%} of test solves converged"
    print(
        f"\ntest loss {score.loss:.3g} (without memory {chance:.4f}), recall of the ten "
        f"symbols {score.recall:.1%}, {run.result['parameters']:,} parameters, "
        f"{run.result['seconds']:.0f} s{solved}\n"
        f"Everything is in {run.directory}/"
    )
    return run
