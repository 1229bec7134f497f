"""Options of a training run: a class for each group, and the run that has them all."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..._errors import check_integer, check_tolerance
from ...adjoints import as_adjoint
from ..identity import FREE
from .errors import OptionError, flag
from .launch import LaunchOptions
from .phase import Phase


@dataclass(frozen=True)
class StepOptions:
    """What a step is, how many there are, and how one is spread over devices."""

    steps: int = field(default=1000, metadata=FREE)
    """training steps"""
    batch_size: int = 8
    """sequences in a step"""
    accumulate: int = 1
    """parts that each device computes its samples in, one after the other"""
    parallel: Literal["shard_map", "jit", "pmap"] = "shard_map"
    """how a step is spread over devices: each runs its own solver loops (shard_map; pmap is the
    older name for it), or the compiler cuts one program (jit)"""
    mesh: str | None = None
    """devices along data, fsdp (parameters stored in parts) and tensor (cells computed in parts,
    with --parallel jit), such as data=4,fsdp=2; all devices along data if not given"""
    seed: int = 0
    """seed of parameters, data order and dropout"""

    def check(self) -> None:
        _integers(self, 1, "steps", "batch_size", "accumulate")
        _integers(self, 0, "seed")


@dataclass(frozen=True)
class OptimiserOptions:
    """How long a step is."""

    optimiser: Literal["adamw", "sgd"] = "adamw"
    """sgd is plain: no momentum"""
    learning_rate: float = 3e-3
    """peak learning rate"""
    warmup: int = 30
    """steps of linear learning-rate warm-up"""
    schedule: Literal["cosine", "constant", "plateau"] = "cosine"
    """after the warm-up: cosine decay, or no decay, or a cut wherever held-out loss stands still"""
    learning_rate_end: float = 0.05
    """final learning rate of the cosine and least one of the plateau, as a fraction of the peak"""
    plateau_patience: int = 1
    """evaluations in a row without a better one that plateau bears before it cuts"""
    plateau_factor: float = 0.25
    """what a cut multiplies the learning rate by"""
    beta2: float = 0.98
    """AdamW's decay of squared gradients: lower forgets the large ones of an early phase sooner"""
    weight_decay: float = 0.01
    """decoupled weight decay, of matrices"""
    clip: float = 1.0
    """global gradient norm above which gradients are scaled down"""

    def check(self) -> None:
        _integers(self, 0, "warmup", "plateau_patience")
        for name in ("learning_rate", "learning_rate_end", "weight_decay"):
            check_tolerance(flag(name), getattr(self, name))
        if not 0 < self.plateau_factor < 1:
            raise OptionError(
                f"--plateau-factor must be between 0 and 1, such as 0.25; got {self.plateau_factor}"
            )
        if not 0 < self.beta2 < 1:
            raise OptionError(f"--beta2 must be between 0 and 1, such as 0.98; got {self.beta2}")
        if not self.clip > 0:
            raise OptionError(f"--clip must be positive, such as 1.0; got {self.clip}")


@dataclass(frozen=True)
class CurriculumOptions:
    """What is cheaper than the solve and its exact gradient, and for how long it is trained."""

    stack_steps: int = 0
    """first steps, in which a stack of stack_depth applications is trained instead of the solve"""
    stack_depth: int = 2
    """see stack_steps"""
    stack_jitter: int = 0
    """up to this many applications more in a step, drawn at random: a fixed point gives the same
    answer at every depth, a cycle does not"""
    cheap_steps: int = 0
    """steps after the stack whose gradient is cheap_adjoint, before the exact one"""
    cheap_adjoint: str = "phantom"
    """see cheap_steps"""
    step_jitter: int = 0
    """up to this many solver steps fewer than --max-steps in a training step, drawn at random"""

    def check(self) -> None:
        _integers(self, 0, "stack_steps", "stack_jitter", "cheap_steps", "step_jitter")
        _integers(self, 1, "stack_depth")
        as_adjoint(self.cheap_adjoint)


@dataclass(frozen=True)
class FolderOptions:
    """Where a run lies, and what it begins with."""

    runs: Path = Path("runs")
    """folder of all runs"""
    name: str | None = None
    """name of this run; chosen from the other options if not given"""
    restart: bool = False
    """start afresh where a run of this name exists, deleting it"""
    init_from: Path | None = None
    """folder of another run, whose newest weights a new run begins with"""
    freeze: tuple[str, ...] = ()
    """parameters to leave as they are: all at or below these paths, such as embedding deq/cell, or
    those that a pattern such as */bias matches"""


@dataclass(frozen=True)
class CadenceOptions:
    """How often things are written."""

    log_every: int = field(default=5, metadata=FREE)
    """steps between two lines of metrics.jsonl"""
    eval_every: int = field(default=250, metadata=FREE)
    """steps between two evaluations on held-out data"""
    checkpoint_every: int = field(default=100, metadata=FREE)
    """steps between two checkpoints"""
    snapshot_every: int = field(default=0, metadata=FREE)
    """steps between two snapshots of the weights, all kept in snapshots/; 0 takes none"""
    tensorboard: bool = field(default=False, metadata=FREE)
    """write TensorBoard events too (needs tensorboardX)"""

    def check(self) -> None:
        _integers(self, 1, "log_every", "eval_every", "checkpoint_every")
        _integers(self, 0, "snapshot_every")


@dataclass(frozen=True)
class TrainOptions(StepOptions, OptimiserOptions, CurriculumOptions, FolderOptions, CadenceOptions):
    """How long and how to train, and what a run leaves behind."""

    launch: LaunchOptions = field(default_factory=LaunchOptions)

    def phase(self, step: int) -> Phase:
        """What training step `step` computes. A restart draws the same."""
        draw = np.random.default_rng((self.seed, step))
        if step < self.stack_steps:
            depths = range(self.stack_depth, self.stack_depth + self.stack_jitter + 1)
            return Phase(depth=int(draw.choice(depths)))
        cheap = step < self.stack_steps + self.cheap_steps
        # Three values at most, as each is compiled.
        fewer = sorted({0, self.step_jitter // 2, self.step_jitter})
        return Phase(None, self.cheap_adjoint if cheap else None, int(draw.choice(fewer)))

    def check(self) -> None:
        for group in (StepOptions, OptimiserOptions, CurriculumOptions, CadenceOptions):
            group.check(self)
        self.launch.check()


def _integers(options: Any, least: int, *names: str) -> None:
    for name in names:
        check_integer(flag(name), getattr(options, name), least=least)
