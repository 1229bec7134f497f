"""Options that every experiment shares. The comment under a field is its help text."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from .._errors import check_integer, check_tolerance
from .._options import choose
from .checkpoints import CheckpointError

Config = TypeVar("Config")


class OptionError(ValueError):
    """An option that cannot be right. `command_line` prints it as one sentence."""


@dataclass(frozen=True)
class SolverOptions:
    """How equilibria and their gradients are computed."""

    solver: str = "anderson"
    """forward solver: picard, anderson or broyden"""
    adjoint: str = "implicit"
    """gradient: implicit (exact), phantom or jfb (approximate), unrolled (through the steps)"""
    adjoint_solver: str | None = None
    """solver of the implicit adjoint; the forward one if not given"""
    rtol: float = 1e-3
    """a solve has converged when its residual is at most atol + rtol * |f(z)|"""
    atol: float = 1e-8
    """see rtol"""
    max_steps: int = 30
    """solver steps after which a solve stops unconverged, forward and adjoint"""

    def check(self) -> None:
        choose(**self.keywords())

    def keywords(self) -> dict[str, Any]:
        """For `deqjax.nn.DEQ` and `deqjax.fixed_point`."""
        return dict(vars(self))


@dataclass(frozen=True)
class TrainOptions:
    """How long and how to train, and what a run leaves behind."""

    steps: int = 1000
    """training steps"""
    batch_size: int = 8
    """sequences in a step"""
    learning_rate: float = 3e-3
    """peak learning rate of AdamW"""
    learning_rate_end: float = 0.05
    """final learning rate, as a fraction of the peak (cosine decay)"""
    warmup: int = 30
    """steps of linear learning-rate warm-up"""
    beta2: float = 0.98
    """AdamW's decay of squared gradients: lower forgets the large ones of an early phase sooner"""
    weight_decay: float = 0.01
    """decoupled weight decay"""
    clip: float = 1.0
    """global gradient norm above which gradients are scaled down"""
    stack_steps: int = 0
    """first steps, in which a stack of stack_depth applications is trained instead of the solve"""
    stack_depth: int = 2
    """see stack_steps"""
    stack_jitter: int = 0
    """up to this many applications more in a step, drawn at random: a fixed point gives the same
    answer at every depth, a cycle does not"""
    seed: int = 0
    """seed of parameters, data order and dropout"""
    runs: Path = Path("runs")
    """folder of all runs"""
    name: str | None = None
    """name of this run; chosen from the other options if not given"""
    restart: bool = False
    """start afresh where a run of this name exists, deleting it"""
    log_every: int = 5
    """steps between two lines of metrics.jsonl"""
    eval_every: int = 250
    """steps between two evaluations on held-out data"""
    checkpoint_every: int = 100
    """steps between two checkpoints"""
    tensorboard: bool = False
    """write TensorBoard events too (needs tensorboardX)"""

    def stack_depths(self) -> range:
        """The depths that `depth` may give."""
        return range(self.stack_depth, self.stack_depth + self.stack_jitter + 1)

    def depth(self, step: int) -> int | None:
        """What training step `step` trains: a stack of so many applications, or None, the solve."""
        if step >= self.stack_steps:
            return None
        return int(np.random.default_rng((self.seed, step)).choice(self.stack_depths()))

    def check(self) -> None:
        for name in ("steps", "batch_size", "log_every", "eval_every", "checkpoint_every"):
            check_integer("--" + name.replace("_", "-"), getattr(self, name), least=1)
        for name in ("warmup", "stack_steps", "stack_jitter", "seed"):
            check_integer("--" + name.replace("_", "-"), getattr(self, name), least=0)
        check_integer("--stack-depth", self.stack_depth, least=1)
        for name in ("learning_rate", "learning_rate_end", "weight_decay"):
            check_tolerance("--" + name.replace("_", "-"), getattr(self, name))
        if not 0 < self.beta2 < 1:
            raise OptionError(f"--beta2 must be between 0 and 1, such as 0.98; got {self.beta2}")
        if not self.clip > 0:
            raise OptionError(f"--clip must be positive, such as 1.0; got {self.clip}")


def command_line(
    config: type[Config],
    main: Callable[[Config], object],
    args: list[str] | None = None,
    defaults: Callable[[list[str]], Config] | None = None,
) -> None:
    """Read `config` from the command line and run `main` on it.

    Every field of the (nested) dataclasses is a flag. `defaults` may look at the arguments and
    say what holds where no flag does: a preset. An option that cannot be right, or a file
    that is missing, ends the program with one sentence and exit code 2.
    """
    try:
        import tyro
    except ImportError:
        sys.exit("the experiments need the extra packages: pip install 'deqjax[experiments]'")
    args = sys.argv[1:] if args is None else args
    default = {} if defaults is None else {"default": defaults(args)}
    options = tyro.cli(tyro.conf.OmitArgPrefixes[config], args=args, **default)  # type: ignore
    try:
        main(options)
    except (OptionError, FileNotFoundError, CheckpointError) as wrong:
        print(f"error: {wrong}", file=sys.stderr)
        sys.exit(2)


def checked(*options: Any) -> None:
    """Run every `check`, with whatever is wrong as an `OptionError`."""
    for option in options:
        try:
            option.check()
        except (TypeError, ValueError) as wrong:
            raise OptionError(str(wrong)) from None
