"""The copy-memory task of the DEQ paper (Bai et al. 2019, Table 1) with a DEQ-Transformer.

    python -m experiments.copy_memory --length 400

The paper's cross-entropy at length 400: DEQ-Transformer 3.5e-6, TCN 2.7e-5, LSTM 0.0501,
GRU 0.0491. A model without memory scores 0.0495.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from deqjax import adjoint_probe
from deqjax.adjoints import as_adjoint
from deqjax.data import copy_memory, memoryless_loss
from deqjax.nn import LanguageModel, TransformerCell
from deqjax.training import OptionError, SolverOptions, TrainOptions, checked, command_line, fit

CLASSES = 10
COPIED = 10


@dataclass(frozen=True)
class Config:
    """Train a DEQ-Transformer to repeat ten symbols after a long delay."""

    length: int = 400
    """blanks between the symbols and the signal to repeat them (T); sequences have T + 20 steps"""
    train_sequences: int = 20_000
    """training sequences"""
    test_sequences: int = 2_000
    """held-out sequences"""
    width: int = 32
    """width of the state z"""
    heads: int = 4
    """attention heads"""
    inner: int = 80
    """width of the feed-forward"""
    solver: SolverOptions = field(default_factory=SolverOptions)
    train: TrainOptions = field(default_factory=lambda: TrainOptions(steps=2000, batch_size=32))

    def check(self) -> None:
        if self.test_sequences < 1 or self.train_sequences < self.train.batch_size:
            raise OptionError(
                "--train-sequences must be at least --batch-size, and --test-sequences at least 1"
            )


class Pair(NamedTuple):
    """inputs and targets, int32 (batch, T + 20)."""

    inputs: np.ndarray
    targets: np.ndarray


@dataclass(frozen=True)
class CopyMemory:
    """Cross-entropy over all positions, and recall accuracy over the last ten."""

    config: Config
    train: Pair
    test: Pair

    def build(self, rngs: nnx.Rngs) -> LanguageModel:
        c = self.config
        cell = TransformerCell(c.width, heads=c.heads, d_inner=c.inner, rngs=rngs)
        return LanguageModel(CLASSES, cell, rngs=rngs, **c.solver.keywords())

    def carry(self):
        return ()

    def batch(self, index: int) -> Pair:
        size = self.config.train.batch_size
        epoch, position = divmod(index * size, len(self.train.inputs) // size * size)
        order = np.random.default_rng((self.config.train.seed, epoch))
        rows = order.permutation(len(self.train.inputs))[position : position + size]
        return Pair(self.train.inputs[rows], self.train.targets[rows])

    def probe(self):
        if as_adjoint(self.config.solver.adjoint).differentiates_loop:
            return None
        return adjoint_probe(self.config.train.batch_size)

    def loss(self, model, carry, batch, *, depth, probe):
        out = model(batch.inputs, depth=depth, adjoint_probe=probe)
        loss = optax.softmax_cross_entropy_with_integer_labels(out.logits, batch.targets).mean()
        hits = out.logits.argmax(-1) == batch.targets
        recall = hits[:, -COPIED:].mean(dtype=jnp.float32)
        return loss, (carry, {"solve": out.solution.stats, "recall": recall})

    def evaluate(self, model) -> dict[str, float]:
        size = self.config.train.batch_size
        sums, n = np.zeros(4), 0
        for start in range(0, len(self.test.inputs), size):
            rows = slice(start, start + size)
            batch = Pair(self.test.inputs[rows], self.test.targets[rows])
            count = len(batch.inputs)
            sums += count * np.asarray(_score(model, batch), np.float64)
            n += count
        keys = ("valid_loss", "valid_recall", "valid_forward_steps", "valid_converged")
        return dict(zip(keys, (sums / n).tolist(), strict=True))


@nnx.jit
def _score(model, batch):
    out = model(batch.inputs)
    loss = optax.softmax_cross_entropy_with_integer_labels(out.logits, batch.targets).mean()
    hits = out.logits.argmax(-1) == batch.targets
    stats = out.solution.stats
    return loss, hits[:, -COPIED:].mean(), stats.steps.mean(), stats.converged.mean()


def prepare(config: Config) -> CopyMemory:
    """The task; whatever is wrong with the options is an `OptionError`."""
    checked(config.solver, config.train, config)
    try:
        train = Pair(*copy_memory((config.train.seed, 0), config.train_sequences, config.length))
        test = Pair(*copy_memory((config.train.seed, 1), config.test_sequences, config.length))
        task = CopyMemory(config, train, test)
        nnx.eval_shape(lambda: task.build(nnx.Rngs(0)))
    except (ValueError, TypeError) as wrong:
        raise OptionError(str(wrong)) from None
    return task


def main(config: Config):
    task = prepare(config)
    run = fit(task, config.train, config, name=f"copy-memory-{config.length}")
    result, chance = run.result, memoryless_loss(config.length)
    print(
        f"\ntest loss {result['valid_loss']:.3g} (without memory {chance:.4f}), recall of the ten "
        f"symbols {result['valid_recall']:.1%}, {result['parameters']:,} parameters, "
        f"{result['seconds']:.0f} s; {result['valid_converged']:.0%} of test solves converged\n"
        f"Everything is in {run.directory}/"
    )
    return run


if __name__ == "__main__":
    command_line(Config, main)
