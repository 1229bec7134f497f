"""The task as the training loop sees it: boards, loss, held-out score."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from deqjax import adjoint_probe
from deqjax._errors import check_integer
from deqjax.data import Boards, Split, load_sudoku, split_boards, split_by_solution
from deqjax.training import (
    FREE,
    PLACE_OF_DATA,
    OptionError,
    Task,
    TrainOptions,
    checked,
    fingerprint,
)

from .answer import digits_one_hot, filled
from .optnet import OptNetOptions, OptNetSudoku
from .satnet import SATNetOptions, SATNetSudoku
from .score import evaluate

Layer = Literal["optnet", "satnet"]


@dataclass(frozen=True)
class Config:
    """Learn to complete Sudoku boards from solved ones."""

    layer: Layer = "optnet"
    """a quadratic program with learned equalities, or a MAXSAT relaxation with learned clauses"""
    size: Literal[4, 9] = 4
    """rows of a board"""
    data_dir: Path | None = field(default=None, metadata=PLACE_OF_DATA)
    """folder with the boards' CSV file, or that file"""
    split: Literal["puzzles", "solutions"] = "puzzles"
    """what is held out: the last distinct puzzles, or a fifth of the solutions with all puzzles"""
    held_out: int = 1000
    """boards to test on"""
    train_boards: int | None = None
    """train on the first so many only"""
    start: Literal["random", "spectral"] = "random"
    """of optnet: learn A from a random one, or compute it from the affine hull of the training
    solutions and train nothing"""
    epochs: int | None = field(default=None, metadata=FREE)
    """passes over the training boards, with an evaluation after each; if None, --steps and
    --eval-every say it"""
    optnet: OptNetOptions = field(default_factory=OptNetOptions)
    satnet: SATNetOptions = field(default_factory=SATNetOptions)
    train: TrainOptions = field(default_factory=TrainOptions)

    def check(self) -> None:
        check_integer("--held-out", self.held_out, least=1)
        check_integer("--train-boards", self.train_boards, least=1, optional=True)
        check_integer("--epochs", self.epochs, least=1, optional=True)
        if self.data_dir is None:
            raise OptionError(
                "--data-dir is needed: the folder of a CSV file with puzzles and solutions"
            )
        if self.start == "spectral" and self.layer != "optnet":
            raise OptionError("--start spectral is for --layer optnet, which has equalities A")

    @property
    def run_name(self) -> str:
        start = "-spectral" if self.start == "spectral" else ""
        return (
            f"sudoku-{self.size}x{self.size}-{self.layer}{start}-{self.split}-seed{self.train.seed}"
        )


@dataclass(frozen=True)
class Sudoku(Task):
    """A layer of one of the two kinds, on boards in an order that is drawn anew every epoch."""

    config: Config
    boards: Split

    @property
    def directory(self) -> Path:
        """Where the run is."""
        train = self.config.train
        return train.runs / (train.name or self.config.run_name)

    @property
    def steps_per_epoch(self) -> int:
        return len(self.boards.train.puzzles) // self.config.train.batch_size

    def build(self, rngs: nnx.Rngs) -> nnx.Module:
        return build(self.config, rngs)

    def fingerprint(self) -> str:
        return fingerprint(self.boards)

    def batch(self, index: int, rows: slice = slice(None)) -> Boards:
        size, train = self.config.train.batch_size, self.boards.train
        epoch, position = divmod(index * size, self.steps_per_epoch * size)
        order = np.random.default_rng((self.config.train.seed, epoch))
        chosen = order.permutation(len(train.puzzles))[position : position + size]
        return train.rows(chosen[rows])

    def probe(self, phase, rows):
        return adjoint_probe(rows) if self.config.layer == "satnet" else None

    def loss(self, model, carry, batch, *, step, phase, probe):
        answer = model(batch.puzzles, adjoint_probe=probe)
        losses = model.losses(answer.scores, digits_one_hot(batch.solutions))
        right = (filled(answer.scores) == batch.solutions).all((1, 2))
        return losses.mean(), (carry, dict(boards=jnp.mean(right * 1.0), solve=answer.stats))

    def evaluate(self, model) -> dict[str, float]:
        score = evaluate(model, self.boards.test, self.config.train.batch_size)
        return {f"valid_{name}": value for name, value in score.means().items()}


def build(config: Config, rngs: nnx.Rngs) -> Any:
    if config.layer == "satnet":
        return SATNetSudoku(config.satnet, config.size, rngs)
    return OptNetSudoku(config.optnet, config.size, rngs)


def held_in_and_out(config: Config) -> Split:
    """The boards of the config's split; which solutions are held out is the seed's choice."""
    assert config.data_dir is not None
    boards = load_sudoku(config.data_dir, config.size)
    if config.split == "puzzles":
        split = split_boards(boards, config.held_out)
    else:
        split = split_by_solution(boards, 0.2, config.held_out, seed=config.train.seed)
    return split._replace(train=split.train.rows(slice(config.train_boards)))


def prepare(config: Config) -> Sudoku:
    """The task; whatever is wrong with the options or the file is an `OptionError`."""
    checked(config, config.optnet, config.satnet, config.train)
    try:
        boards = held_in_and_out(config)
        count, size = len(boards.train.puzzles), config.train.batch_size
        if count < size:
            raise OptionError(f"--batch-size is {size}, and there are {count} training boards")
        task = Sudoku(config, boards)
        if config.epochs is not None:
            each = task.steps_per_epoch
            train = dataclasses.replace(config.train, steps=config.epochs * each, eval_every=each)
            task = Sudoku(dataclasses.replace(config, train=train), boards)
        nnx.eval_shape(lambda: task.build(nnx.Rngs(0)))
    except (ValueError, TypeError) as wrong:
        raise OptionError(str(wrong)) from None
    return task


def parameters(model: Any) -> int:
    return sum(x.size for x in jax.tree.leaves(nnx.state(model, nnx.Param)))
