"""Options that every experiment shares. The comment under a field is its help text."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np

from .._errors import check_integer, check_tolerance
from .._options import choose
from ..adjoints import Implicit, as_adjoint
from ..solvers import as_solver
from ..solvers.base import DEFAULT_MAX_STEPS
from .checkpoints import CheckpointError
from .host_memory import keep_freed_memory
from .identity import FREE

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
    max_gain: float | None = None
    """largest |u|/|v| that the adjoint of a sample may have: beyond it u is scaled down, an
    approximation that keeps one sample near a singular I - J from being the whole gradient"""

    def check(self) -> None:
        choose(**self.keywords())

    def keywords(self) -> dict[str, Any]:
        """For `deqjax.nn.DEQ` and `deqjax.fixed_point`."""
        options = dict(vars(self))
        max_gain, own = options.pop("max_gain"), options.pop("adjoint_solver")
        if self.adjoint != "implicit":
            if max_gain is not None:
                raise OptionError(f"--max-gain goes with adjoint=implicit, not {self.adjoint}")
            return options | dict(adjoint_solver=own)
        solver = as_solver(self.solver).for_adjoint() if own is None else as_solver(own)
        # In training both passes have the same budget.
        solver = solver.with_options(max_steps=self.max_steps)
        return options | dict(adjoint=Implicit(solver=solver, max_gain=max_gain))


@dataclass(frozen=True)
class PenaltyOptions:
    """What is added to the loss of a language model."""

    jacobian: float = 0.0
    """weight of the penalty ‖J‖²/n at z*, which keeps solves short (Bai et al. 2021)"""
    jacobian_share: float = 0.4
    """share of the training steps, drawn at random, that pay for it"""
    jacobian_growth: float = 0.0
    """what its weight gains every jacobian_every steps"""
    jacobian_every: int = 1000
    """see jacobian_growth"""
    tighten: bool = False
    """raise the penalty's weight by itself while less than nine solves in ten converge"""
    activation: float = 0.0
    """weight of the mean square of the output after dropout (alpha of AWD-LSTM)"""
    temporal: float = 0.0
    """weight of the mean square of the output's change over a step in time (its beta)"""

    def check(self) -> None:
        for name in ("jacobian", "jacobian_growth", "activation", "temporal"):
            check_tolerance("--" + name.replace("_", "-"), getattr(self, name))
        check_integer("--jacobian-every", self.jacobian_every, least=1)
        if not 0 < self.jacobian_share <= 1:
            raise OptionError(
                f"--jacobian-share must be above 0 and at most 1; got {self.jacobian_share}"
            )
        if self.tighten and not self.jacobian:
            raise OptionError("--tighten raises the weight of --jacobian, which must not be 0")


class Phase(NamedTuple):
    """What a training step computes. Each that occurs in a run is compiled once.

    Attributes:
        depth: a stack of so many applications; None, the solve.
        adjoint: the gradient of the solve; None, the model's own.
        fewer_steps: how many solver steps fewer than the model's own `max_steps` are allowed.
    """

    depth: int | None = None
    adjoint: str | None = None
    fewer_steps: int = 0

    def keywords(self, max_steps: int | None) -> dict[str, Any]:
        """For the call of a `DEQ` whose own limit is `max_steps`; None is a solver's default."""
        if self.fewer_steps:
            max_steps = max(1, (max_steps or DEFAULT_MAX_STEPS) - self.fewer_steps)
        return dict(depth=self.depth, adjoint=self.adjoint, max_steps=max_steps)


@dataclass(frozen=True)
class LaunchOptions:
    """How the processes of a job on several hosts find each other (`deqjax.training.connect`)."""

    distributed: Literal["auto", "yes", "no"] = "auto"
    """be one process of several: auto where srun, mpirun or a TPU pod on GKE has started several;
    yes always asks JAX to find the others (a Cloud TPU VM), or takes the next three"""
    coordinator: str | None = None
    """host:port of process 0, where no launcher says it"""
    processes: int | None = None
    """number of processes, with --coordinator"""
    process: int | None = None
    """number of this process, from 0, with --coordinator"""

    def check(self) -> None:
        given = (self.coordinator, self.processes, self.process)
        if all(x is None for x in given):
            return
        if self.processes is None or self.process is None or self.coordinator is None:
            raise OptionError(
                "--coordinator, --processes and --process go together: give all three"
            )
        check_integer("--processes", self.processes, least=1)
        check_integer("--process", self.process, least=0)
        if self.process >= self.processes:
            raise OptionError(
                f"--process counts from 0: with --processes {self.processes} it is at most "
                f"{self.processes - 1}; got {self.process}"
            )
        host, _, port = self.coordinator.rpartition(":")
        if not host or not port.isdecimal():
            raise OptionError(
                f"--coordinator is host:port, such as node0:1234; got {self.coordinator!r}"
            )
        if self.distributed == "no":
            raise OptionError("--distributed no and --coordinator contradict each other: drop one")


@dataclass(frozen=True)
class TrainOptions:
    """How long and how to train, and what a run leaves behind."""

    steps: int = field(default=1000, metadata=FREE)
    """training steps"""
    batch_size: int = 8
    """sequences in a step"""
    learning_rate: float = 3e-3
    """peak learning rate"""
    optimiser: Literal["adamw", "sgd"] = "adamw"
    """sgd is plain: no momentum"""
    schedule: Literal["cosine", "constant", "plateau"] = "cosine"
    """after the warm-up: cosine decay, or no decay, or a cut wherever held-out loss stands still"""
    learning_rate_end: float = 0.05
    """final learning rate of the cosine and least one of the plateau, as a fraction of the peak"""
    plateau_patience: int = 1
    """evaluations in a row without a better one that plateau bears before it cuts"""
    plateau_factor: float = 0.25
    """what a cut multiplies the learning rate by"""
    warmup: int = 30
    """steps of linear learning-rate warm-up"""
    beta2: float = 0.98
    """AdamW's decay of squared gradients: lower forgets the large ones of an early phase sooner"""
    weight_decay: float = 0.01
    """decoupled weight decay, of matrices"""
    clip: float = 1.0
    """global gradient norm above which gradients are scaled down"""
    parallel: Literal["shard_map", "jit", "pmap"] = "shard_map"
    """how a step is spread over devices: each runs its own solver loops (shard_map; pmap is the
    older name for it), or the compiler cuts one program (jit)"""
    mesh: str | None = None
    """devices along data, fsdp (parameters stored in parts) and tensor (cells computed in parts,
    with --parallel jit), such as data=4,fsdp=2; all devices along data if not given"""
    accumulate: int = 1
    """parts that each device computes its samples in, one after the other"""
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
    seed: int = 0
    """seed of parameters, data order and dropout"""
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
        for name in (
            *("steps", "batch_size", "accumulate"),
            *("log_every", "eval_every", "checkpoint_every"),
        ):
            check_integer("--" + name.replace("_", "-"), getattr(self, name), least=1)
        for name in (
            *("warmup", "stack_steps", "stack_jitter", "cheap_steps", "step_jitter"),
            *("plateau_patience", "snapshot_every", "seed"),
        ):
            check_integer("--" + name.replace("_", "-"), getattr(self, name), least=0)
        check_integer("--stack-depth", self.stack_depth, least=1)
        for name in ("learning_rate", "learning_rate_end", "weight_decay"):
            check_tolerance("--" + name.replace("_", "-"), getattr(self, name))
        as_adjoint(self.cheap_adjoint)
        self.launch.check()
        if not 0 < self.plateau_factor < 1:
            raise OptionError(
                f"--plateau-factor must be between 0 and 1, such as 0.25; got {self.plateau_factor}"
            )
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
    that is missing, ends the program with one sentence and exit code 2; so does a run that cannot
    go on. The process keeps the memory that it frees (`keep_freed_memory`).
    """
    try:
        import tyro
    except ImportError:
        sys.exit("the experiments need the extra packages: pip install 'deqjax[experiments]'")
    args = sys.argv[1:] if args is None else args
    default = {} if defaults is None else {"default": defaults(args)}
    options = tyro.cli(tyro.conf.OmitArgPrefixes[config], args=args, **default)  # type: ignore
    keep_freed_memory()
    try:
        main(options)
    except (OptionError, FileNotFoundError, CheckpointError, FloatingPointError) as wrong:
        print(f"error: {wrong}", file=sys.stderr)
        sys.exit(2)


def checked(*options: Any) -> None:
    """Run every `check`, with whatever is wrong as an `OptionError`."""
    for option in options:
        try:
            option.check()
        except (TypeError, ValueError) as wrong:
            raise OptionError(str(wrong)) from None
