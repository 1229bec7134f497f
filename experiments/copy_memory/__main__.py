"""The copy-memory task of the DEQ paper (Bai et al. 2019, Table 1), row by row.

    python -m experiments.copy_memory --model deq-transformer --length 400 --preset paper

The paper's cross-entropy at length 400: DEQ-Transformer 3.5e-6, TCN 2.7e-5, LSTM 0.0501,
GRU 0.0491. A model without memory scores 0.0495.
"""

from __future__ import annotations

from deqjax.data import memoryless_loss
from deqjax.training import command_line, fit

from . import results
from .recipes import recipe
from .task import Config, evaluate, prepare


def main(config: Config):
    task = prepare(config)
    run = fit(task, config.train, config, name=f"copy-memory-{config.length}-{config.model}")
    score = evaluate(run.model, task.test, config.train.batch_size)
    kept = ("parameters", "seconds", "steps", "final_forward_steps", "final_adjoint_steps")
    scores = score._asdict() | {k: run.result[k] for k in kept if k in run.result}
    results.save(run.directory, run.model, scores)
    chance = memoryless_loss(config.length)
    solved = "" if score.converged is None else f"; {score.converged:.0%} of test solves converged"
    print(
        f"\ntest loss {score.loss:.3g} (without memory {chance:.4f}), recall of the ten "
        f"symbols {score.recall:.1%}, {run.result['parameters']:,} parameters, "
        f"{run.result['seconds']:.0f} s{solved}\n"
        f"Everything is in {run.directory}/"
    )
    return run


if __name__ == "__main__":
    command_line(Config, main, defaults=recipe)
