"""The training loop: from a task to a run that has ended."""

from __future__ import annotations

import io
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import optax
from flax import nnx

from . import folder, frozen
from .beginning import begun, check_model, claimed, described
from .checkpoints import Checkpoints
from .checkpoints.processes import Processes
from .ending import count as count
from .ending import record
from .hooks import Hook, usual
from .initial import CHECKPOINTS, model_of
from .lock import Lock
from .metrics import MetricsWriter, read_metrics
from .options import Phase, TrainOptions, checked
from .parallel import Parallel
from .prefetch import Prefetch
from .progress import Progress
from .running import Moment, Running
from .schedules import Plateau
from .schedules import optimiser as make_optimiser
from .scoring import Share
from .step import make_step, new_state
from .stopping import stop_requests
from .task import Task
from .watch import ConvergenceWatch


class Interrupted(SystemExit):
    """The run was asked to stop (Ctrl-C or SIGTERM) and did, after a checkpoint; but where the last
    steps were not finite, the one from before them stays the last."""


@dataclass(frozen=True)
class Run:
    """A finished run: where it is, its model in eval mode, and what `result.json` says."""

    directory: Path
    model: Any
    result: dict[str, Any]


def fit(
    task: Task,
    options: TrainOptions,
    config: Any = None,
    *,
    name: str,
    optimiser: optax.GradientTransformation | None = None,
    freeze: Any = None,
    hooks: tuple[Hook, ...] = (),
    baselines: dict[str, float] | None = None,
    files: folder.Files | None = None,
) -> Run:
    """Train `task`, or go on where an earlier, interrupted call with the same config stopped.

    Leaves `runs/<name>/` with `config.json`, `metrics.jsonl`, `checkpoints/`, and, at the end,
    `curves.png` and `result.json`. A run that is killed at any moment and started again follows
    the same sequence of states, bit for bit on the same devices: the state holds parameters,
    optimiser, random keys, memory and the position in the data. On others it goes on as far as
    rounding allows.

    In a job of several processes (`connect`) all of them call this with the same options and one
    `options.runs` that all can see. Each brings the samples of its own devices and writes its own
    part of the checkpoints, and of an evaluation that can be shared out (`Task.shares_evaluation`);
    process 0 writes everything else.

    Args:
        task: what to train.
        options: steps, learning rate, cadence.
        config: the dataclass to record in `config.json`, `options` if not given; a restart must
            bring an equal one, but for the fields that are free (`FREE`).
        name: the run's folder, unless `options.name` says otherwise.
        optimiser: any Optax transformation; it then has its own learning rate, and those of the
            options' that are about one have no effect but for the plateau's cuts. A restart must
            bring the same.
        freeze: an `nnx` filter of parameters to leave as they are, beside `options.freeze`. A
            restart must bring the same.
        hooks: functions of a `Moment`, called after every step; see `deqjax.training.hooks`.
        baselines: perplexities to draw and record beside the run's.
        files: what else belongs into the folder from the beginning: names, and what writes them.

    Raises:
        OptionError: the folder holds a run with another config or on other data, another process
            is at work in it, it cannot be written, or the options cannot be right.
        CheckpointError: a checkpoint could not be written, or another process of the job failed.
        Interrupted: Ctrl-C or SIGTERM.
        FloatingPointError: no step has a finite gradient, and no checkpoint helps.
    """
    checked(options)
    config = options if config is None else config
    parallel = Parallel.of(options)  # before the folder is touched
    directory = options.runs / (options.name or name)
    processes = Processes("run")
    with Lock(directory) as lock, Checkpoints(directory / CHECKPOINTS) as checkpoints:
        spared = frozen.either(freeze, frozen.named(options.freeze))
        check_model(task, options, spared, processes, checkpoints)
        claim = partial(claimed, directory, options, config, files or {}, lock, checkpoints)
        news = processes.agree(lambda: described(task, config), claim)
        rule = frozen.spared(optimiser or make_optimiser(options), spared)
        graph, state = new_state(task, rule, options.seed, Plateau(options).init(), parallel)
        shape = jax.eval_shape(lambda x: x, state)
        state, seconds = begun(state, checkpoints, options)
        start = int(state.step)
        metrics = None
        if processes.first:
            board = options.tensorboard or False
            metrics = MetricsWriter.resume(directory, start, tensorboard=board)

        @cache  # each phase is compiled once, when it first comes
        def compiled(phase: Phase) -> Callable:
            given: dict[str, Any] = dict(accumulate=options.accumulate, freeze=spared)
            return parallel.compile(
                make_step(task, graph, rule, phase, parallel=parallel, **given), shape
            )

        batches = Prefetch(partial(_batch, task, options, parallel), start, options.steps)
        shown = Progress(options.steps, out=None if processes.first else _Nowhere())
        watch = ConvergenceWatch()
        with metrics or nullcontext(), shown as progress, stop_requests() as asked, batches:
            run = Running(
                directory=directory,
                task=task,
                options=options,
                graph=graph,
                parallel=parallel,
                processes=processes,
                checkpoints=checkpoints,
                progress=progress,
                metrics=metrics,
                before=seconds,
                share=Share(Processes("evaluation"), parallel.row_devices()),
            )
            if metrics is not None:
                watch.catch_up(read_metrics(directory))
            if 0 < start < options.steps:
                progress.note(f"continuing at step {start} of {options.steps}")
                if news:
                    progress.note(news)
            every = usual(options, watch, asked, hooks)
            for step in range(start, options.steps):
                batch, count = next(batches)
                state, found = compiled(options.phase(step))(state, batch)
                at = Moment(
                    run=run,
                    step=step + 1,
                    state=state,
                    metrics=found,
                    count=count,
                    waited=batches.waited,
                    last=step + 1 == options.steps,
                )
                for hook in every:
                    hook(at)
                state = at.state
                if at.stopping:
                    raise _interrupted(run, at.step)
        evaluated = run.evaluated(state)
        result = lambda: record(run, state, watch, evaluated, baselines or {})
        return Run(directory, run.model(state), processes.by_first(result))


def _batch(task: Task, options: TrainOptions, parallel: Parallel, step: int) -> tuple[Any, int]:
    """The batch of a step on the devices, and how many samples or tokens all of it has."""
    size = options.batch_size
    rows = parallel.rows(size)
    batch = task.batch(step, rows)
    count = _counted(task, batch) * size // (rows.stop - rows.start)
    return parallel.put(batch, size), count


def _interrupted(run: Running, step: int) -> Interrupted:
    run.progress.close()
    kept = run.checkpoints.latest
    where = "the beginning" if kept is None else f"the checkpoint of step {kept}"
    return Interrupted(f"stopped after step {step}; the same command continues from {where}")


def load_model(
    task: Task,
    options: TrainOptions,
    directory: Path,
    which: Literal["latest", "best"] = "latest",
) -> Any:
    """The model of a checkpoint in `directory`, in eval mode: the newest good one, or that with the
    lowest held-out loss. It need not have been trained with these options.

    Raises:
        OptionError: there is no checkpoint.
        CheckpointError: there are, and all are damaged, or none was evaluated when the best is
            asked for.
    """
    optimiser = make_optimiser(options)
    graph, state = new_state(task, optimiser, options.seed)
    found = model_of(directory, state, which)
    model = nnx.merge(graph, found.params, found.rest)
    model.eval()
    return model


class _Nowhere(io.StringIO):
    """Keeps nothing of what it is told."""

    def write(self, text: str, /) -> int:
        return len(text)


def _counted(task: Task, batch: Any) -> int:
    """Samples of a batch, or its scored positions."""
    if task.counted == "tokens":
        return int(np.count_nonzero(batch.weights))
    return next(len(x) for x in jax.tree.leaves(batch) if np.ndim(x))
