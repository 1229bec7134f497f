"""The command line of `deqjax.training.plan`."""

from __future__ import annotations

import dataclasses
import importlib
import json
import sys
from dataclasses import dataclass, field
from typing import Literal

import jax

from ..options import OptionError, SolverOptions, TrainOptions, command_line
from ..step import Task
from . import largest, plan
from ._plan import Plan, Precision
from .report import largest_text, report


@dataclass(frozen=True)
class Config:
    """Will it fit, will it scale: compile a full-size model's train step for chips that need not be
    there, and print what a chip needs for it."""

    task: str | None = None
    """a task of one's own instead, as module:function, which may come first without the flag; the
    function returns (task, options) as fit takes them, and flags about the model have no effect"""
    config: str = "wt103-transformer-medium"
    """a name in deqjax.training.configs"""
    topology: str = "v5e:4x4"
    """chips and their shape: v5e:16x16, v5p:2x2x1, v6e:4x4, h100:8, or cpu:8 to try things out"""
    global_batch: int | None = None
    """samples in a step; the paper's, rounded up to a multiple of the shards, if not given"""
    parallel: Literal["shard_map", "jit", "pmap"] = "shard_map"
    """how a step is spread over chips"""
    mesh: str | None = None
    """chips along data, fsdp and tensor, such as data=8,fsdp=2; all along data if not given"""
    accumulate: int = 1
    """parts that each chip computes its samples in, one after the other"""
    precision: Precision = "float32"
    """of f; parameters and solver stay in float32"""
    chunk_size: int | None = None
    """positions that a transformer's cell computes at a time; all of them if not given"""
    solver: SolverOptions = field(default_factory=SolverOptions)
    forward_steps: float | None = None
    """mean steps of the forward solves, for the totals; --max-steps if not given"""
    adjoint_steps: float | None = None
    """mean steps of the adjoint solves; --max-steps if not given"""
    largest_batch: bool = False
    """look for the largest global batch that fits, by compiling again and again"""
    evaluations: bool = True
    """compile f and its pull-back alone as well"""
    json: bool = False
    """print everything as JSON instead"""


def main(config: Config) -> None:
    def of(batch: int | None, evaluations: bool) -> Plan:
        if config.task is not None:
            _only_a_task(config)
            task, options = task_of(config.task)
            given = dict(name=config.task, precision=config.precision, evaluations=evaluations)
            return plan(task, options, config.topology, **given)  # type: ignore[arg-type]
        return plan(
            config.config,
            config.topology,
            global_batch=batch,
            parallel=config.parallel,
            mesh=config.mesh,
            accumulate=config.accumulate,
            solver=config.solver,
            chunk_size=config.chunk_size,
            precision=config.precision,
            evaluations=evaluations,
        )

    asked = config.forward_steps, config.adjoint_steps
    if min(given or 0.0 for given in asked) < 0:
        raise OptionError("--forward-steps and --adjoint-steps must not be negative")
    found = of(config.global_batch, config.evaluations)
    most = config.solver.max_steps if found.max_steps is None else found.max_steps
    steps = [float(most if given is None else given) for given in asked]
    best = None
    if not config.json:
        print(report(found, *steps), flush=True)
    if config.largest_batch:
        if found.memory.capacity == float("inf"):
            raise OptionError("--largest-batch needs a chip of known memory, not cpu")

        def again(batch: int) -> Plan:
            print(f"compiling for a batch of {batch:,} ...", file=sys.stderr, flush=True)
            return of(batch, False)

        best = largest(found, again)
        if not config.json:
            print("\n" + largest_text(best, found.shards * config.accumulate))
    if config.json:
        data = found.json(*steps)
        if best is not None:
            data["largest_batch"] = dict(vars(best))
        print(json.dumps(data, indent=1))


def task_of(spec: str) -> tuple[Task, TrainOptions]:
    """What the function that `spec`, module:function, names returns.

    Raises:
        OptionError: there is none, or it returns something else.
    """
    module, _, name = spec.partition(":")
    if not (module and name):
        raise OptionError(f"a task is named as module:function, such as mine.tasks:numbers: {spec}")
    sys.path.insert(0, "")  # as `python -m` has it
    try:
        function = getattr(importlib.import_module(module), name)
    except ImportError as wrong:
        raise OptionError(f"{spec}: {wrong}") from None
    except AttributeError:
        raise OptionError(f"{spec}: {module} has no {name}") from None
    finally:
        sys.path.remove("")
    found = function()
    if not (
        isinstance(found, tuple)
        and len(found) == 2
        and isinstance(found[0], Task)
        and isinstance(found[1], TrainOptions)
    ):
        raise OptionError(f"{spec} must return a Task and its TrainOptions")
    return found


def _only_a_task(config: Config) -> None:
    plain = Config(
        task=config.task,
        topology=config.topology,
        precision=config.precision,
        forward_steps=config.forward_steps,
        adjoint_steps=config.adjoint_steps,
        evaluations=config.evaluations,
        json=config.json,
    )
    for name in (f.name for f in dataclasses.fields(config)):
        if getattr(config, name) != getattr(plain, name):
            flag = "--" + name.replace("_", "-")
            raise OptionError(f"{flag} is for --config: a task brings its own")


def flagged(args: list[str]) -> list[str]:
    """The arguments, with `--task` before a task that comes first."""
    named = args[:1] and not args[0].startswith("-")
    return ["--task", *args] if named else args


if __name__ == "__main__":
    # What compiles is told by name; this process itself computes nothing and wants no accelerator.
    if not jax.config.jax_platforms:  # type: ignore[attr-defined]
        jax.config.update("jax_platforms", "cpu")
    command_line(Config, main, flagged(sys.argv[1:]))
