"""The training loop: checkpoints, metrics, progress, evaluation and a clean stop."""

from __future__ import annotations

import dataclasses
import io
import math
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from functools import cache
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from flax import nnx

from .checkpoints import Checkpoints
from .checkpoints.processes import Processes
from .curves import plot_curves
from .folder import claim, describe, snapshot, write_json
from .metrics import MetricsWriter, read_metrics
from .options import OptionError, Phase, TrainOptions
from .parallel import Parallel
from .prefetch import Prefetch
from .progress import Progress
from .schedules import Plateau
from .schedules import optimiser as make_optimiser
from .scoring import Share, sharing
from .step import Task, TrainState, make_step, new_state
from .stopping import stop_requests
from .watch import ConvergenceWatch
from .weights import save_weights

_SHOWN = (
    *("loss", "perplexity", "recall", "forward_steps", "adjoint_steps", "converged"),
    *("valid_perplexity", "valid_recall", "valid_boards", "tokens_per_second"),
)
_PATIENCE = 10  # steps in a row without a finite gradient, after which a checkpoint is restored


class Interrupted(SystemExit):
    """The run was asked to stop (Ctrl-C or SIGTERM) and did, after a checkpoint; but where the last
    steps were not finite, the one from before them stays the last."""


@dataclasses.dataclass(frozen=True)
class Run:
    """A finished run: where it is, its model in eval mode, and what `result.json` says."""

    directory: Path
    model: Any
    result: dict[str, Any]


def fit(
    task: Task,
    options: TrainOptions,
    config: Any,
    *,
    name: str,
    baselines: dict[str, float] | None = None,
    files: Mapping[str, Callable[[Path], object]] | None = None,
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
        config: the dataclass to record in `config.json`; a restart must bring an equal one.
        name: the run's folder, unless `options.name` says otherwise.
        baselines: perplexities to draw and record beside the run's.
        files: what else belongs into the folder from the beginning: names, and what writes them.

    Raises:
        OptionError: the folder holds a run with another config, or the options ask for a mesh that
            cannot be.
        CheckpointError: a checkpoint could not be written, or another process of the job failed.
        Interrupted: Ctrl-C or SIGTERM.
        FloatingPointError: no step has a finite gradient, and no checkpoint helps.
    """
    parallel = Parallel.of(options)  # before the folder is touched
    directory = options.runs / (options.name or name)
    processes = Processes("run")

    def claim_folder(described: list[dict[str, Any]]) -> None:
        claim(directory, described, options.restart)
        for file, write in (files or {}).items():
            write(directory / file)

    processes.agree(lambda: describe(config), claim_folder)
    optimiser, plateau = make_optimiser(options), Plateau(options)
    graph, state = new_state(task, optimiser, options.seed, plateau.init(), parallel)
    with Checkpoints(directory / "checkpoints") as checkpoints:
        shape = jax.eval_shape(lambda x: x, state)
        restored = checkpoints.restore(state)
        seconds = 0.0
        if restored is not None:
            state, seconds = restored.tree, restored.info["seconds"]
        start = int(state.step)
        metrics = None
        if processes.first:
            board = options.tensorboard or False
            metrics = MetricsWriter.resume(directory, start, tensorboard=board)

        @cache  # each phase is compiled once, when it first comes
        def compiled(phase: Phase) -> Callable:
            parts = options.accumulate
            step = make_step(task, graph, optimiser, phase, parallel=parallel, accumulate=parts)
            return parallel.compile(step, shape)

        session = _Session(
            directory,
            task,
            options,
            graph,
            parallel,
            processes,
            compiled,
            checkpoints,
            metrics,
            seconds,
        )
        with metrics or nullcontext():
            state = session.train(state, start)
    evaluated = session.last_evaluation(state)
    record = lambda: session.record(state, evaluated, baselines or {})
    return Run(directory, session.model(state), processes.by_first(record))


@dataclasses.dataclass(eq=False)
class _Session:
    """One call of `fit`: the cadence around the compiled steps."""

    directory: Path
    task: Task
    options: TrainOptions
    graph: nnx.GraphDef
    parallel: Parallel
    processes: Processes
    compiled: Callable[[Phase], Callable]
    checkpoints: Checkpoints
    metrics: MetricsWriter | None  # process 0 alone writes
    before: float  # seconds of earlier calls

    def __post_init__(self) -> None:
        self.began = time.monotonic()
        self.plateau = Plateau(self.options)
        self.watch = ConvergenceWatch()
        self.recovered: int | None = None  # the checkpoint that was gone back to last
        self.evaluated: tuple[int, dict[str, float]] | None = None
        self.share = Share(Processes("evaluation"), self.parallel.row_devices())
        if self.metrics is not None:
            self.watch.catch_up(read_metrics(self.directory))

    def seconds(self) -> float:
        """Wall time of the run so far, earlier calls included."""
        return self.before + time.monotonic() - self.began

    def _batch(self, step: int) -> tuple[Any, int]:
        """The batch of a step on the devices, and how many tokens all of it has."""
        size = self.options.batch_size
        rows = self.parallel.rows(size)
        batch = self.task.batch(step, rows)
        tokens = _tokens(batch) * size // (rows.stop - rows.start)
        return self.parallel.put(batch, size), tokens

    def model(self, state: TrainState) -> Any:
        """The model in eval mode, on devices of this process. All processes must ask."""
        model = nnx.merge(self.graph, *self.parallel.here((state.params, state.rest)))
        model.eval()
        return model

    def last_evaluation(self, state: TrainState) -> dict[str, float]:
        step = int(state.step)
        if self.evaluated is None or self.evaluated[0] != step:
            model = self.model(state)
            evaluate = lambda: _floats(self.task.evaluate(model))
            if self.task.shares_evaluation:
                with sharing(self.share):
                    found = self.processes.agree(evaluate, lambda found: found[0])
            else:
                found = self.processes.by_first(evaluate)
            self.evaluated = step, found
        return self.evaluated[1]

    def record(
        self, state: TrainState, evaluated: dict[str, float], baselines: dict[str, float]
    ) -> dict[str, Any]:
        """Write result.json and the curves of a run that has ended."""
        rows = read_metrics(self.directory)
        result = {
            "steps": int(state.step),
            "seconds": round(self.seconds(), 1),
            "parameters": count(state.params),
            "skipped_steps": int(state.skipped),
            **_tail(rows),
            **self.watch.summary(),
            **evaluated,
            "baselines": baselines,
            "jax": jax.__version__,
            "backend": jax.default_backend(),
        }
        write_json(self.directory / "result.json", result)
        plot_curves(
            rows,
            self.directory / "curves.png",
            title=f"{self.directory.name}: {result['parameters']:,} parameters, "
            f"{result['steps']} steps",
            baselines=baselines,
        )
        return result

    def train(self, state: TrainState, start: int) -> TrainState:
        options = self.options
        batches = Prefetch(self._batch, start, options.steps)
        shown = Progress(options.steps, out=None if self.processes.first else _Nowhere())
        with shown as progress, stop_requests() as asked, batches:
            if 0 < start < options.steps:
                progress.note(f"continuing at step {start} of {options.steps}")
            began, tokens, waited = time.monotonic(), 0, batches.waited
            for step in range(start, options.steps):
                batch, brought = next(batches)
                tokens += brought
                state, metrics = self.compiled(options.phase(step))(state, batch)
                done = step + 1
                last = done == options.steps
                row: dict[str, Any] = {}
                if done % options.log_every == 0 or last:
                    metrics = {k: float(v) for k, v in jax.device_get(metrics).items()}
                    passed = time.monotonic() - began
                    row |= self._row(metrics, tokens / passed)
                    row["input_wait"] = round((batches.waited - waited) / passed, 5)
                if done % options.eval_every == 0 or last:
                    found = self.last_evaluation(state)
                    row |= found
                    if "valid_loss" in found:
                        plateau = self.plateau.update(state.plateau, found["valid_loss"])
                        state = dataclasses.replace(
                            state, plateau=self.parallel.everywhere(plateau)
                        )
                if row and self.metrics is not None:
                    self.metrics.write(done, **row)
                if "loss" in row:
                    news = self.watch.see(done, row)
                    if news:
                        progress.note(news)
                    progress.update(done, **_visible(row))
                    began, tokens, waited = time.monotonic(), 0, batches.waited
                if row.get("in_a_row", 0) >= _PATIENCE:
                    state = self._recovered(state, progress)
                stop = not last and asked(done)
                if options.snapshot_every and done % options.snapshot_every == 0:
                    model, file = self.model(state), snapshot(self.directory, done)
                    self.processes.by_first(lambda: save_weights(file, model))  # noqa: B023
                if done % options.checkpoint_every == 0 or last or stop:
                    self._save(state, done, wait=last or stop)
                if stop:
                    progress.close()
                    kept = self.checkpoints.latest
                    where = "the beginning" if kept is None else f"the checkpoint of step {kept}"
                    raise Interrupted(
                        f"stopped after step {done}; the same command continues from {where}"
                    )
        return state

    def _row(self, metrics: dict[str, float], rate: float) -> dict[str, Any]:
        row: dict[str, Any] = dict(metrics)
        if "perplexity" not in row:
            row["perplexity"] = math.exp(min(row["loss"], 80.0))
        row["tokens_per_second"] = round(rate, 1)
        return row

    def _recovered(self, state: TrainState, progress: Progress) -> TrainState:
        """The last good checkpoint, to go on from with the data that come next.

        Raises:
            FloatingPointError: there is none, or training has come to grief from it before.
        """
        step, failed = int(state.step), int(state.in_a_row)
        found = self.checkpoints.restore(state)
        if found is None or found.step == self.recovered:
            raise FloatingPointError(
                f"the last {failed} steps to step {step} had no finite gradient, and going back to "
                "an earlier checkpoint "
                + ("is not possible: there is none" if found is None else "has not helped")
                + "; try a smaller --learning-rate or --clip"
            )
        self.recovered = found.step
        progress.note(
            f"no finite gradient in the last {failed} steps: back to the parameters of step "
            f"{found.step}, on with the data of step {step}"
        )
        here = dict(step=state.step, skipped=state.skipped)
        return dataclasses.replace(found.tree, **here)

    def _save(self, state: TrainState, step: int, *, wait: bool) -> None:
        if int(state.in_a_row) and step < self.options.steps:
            if wait:
                self.checkpoints.wait()
            return  # what led to non-finite steps is not worth keeping
        if self.metrics is not None:
            self.metrics.sync()  # first: a checkpoint must not know of steps that the metrics lack
        info = {"seconds": round(self.seconds(), 3)}
        evaluated, found = self.evaluated or (None, {})
        metric = found.get("valid_loss") if evaluated == step else None
        self.checkpoints.save(step, state, info, metric=metric, wait=wait)


def count(params: Any) -> int:
    """Number of scalars in a tree of parameters."""
    return sum(x.size for x in jax.tree.leaves(params))


def load_model(
    task: Task,
    options: TrainOptions,
    directory: Path,
    which: Literal["latest", "best"] = "latest",
) -> Any:
    """The model of a checkpoint in `directory`, in eval mode: the newest good one, or that with the
    lowest held-out loss.

    Raises:
        OptionError: there is no checkpoint.
        CheckpointError: there are, and all are damaged, or none was evaluated when the best is
            asked for.
    """
    optimiser = make_optimiser(options)
    graph, state = new_state(task, optimiser, options.seed, Plateau(options).init())
    with Checkpoints(directory / "checkpoints") as checkpoints:
        restored = checkpoints.restore(state, which)
    if restored is None:
        raise OptionError(f"{directory} has no checkpoint yet")
    model = nnx.merge(graph, restored.tree.params, restored.tree.rest)
    model.eval()
    return model


class _Nowhere(io.StringIO):
    """Keeps nothing of what it is told."""

    def write(self, text: str, /) -> int:
        return len(text)


def _floats(found: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in found.items()}


def _tokens(batch: Any) -> int:
    """Scored positions of a batch; its largest leaf if it has no weights."""
    weights = getattr(batch, "weights", None)
    if weights is not None:
        return int(np.count_nonzero(weights))
    return max(np.size(x) for x in jax.tree.leaves(batch))


def _visible(row: dict[str, Any]) -> dict[str, Any]:
    shown = {k: row[k] for k in _SHOWN if k in row}
    if row.get("skipped"):
        shown["skipped"] = row["skipped"]
    return shown


def _tail(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Means over the last tenth of the run."""
    rows = rows[-max(1, len(rows) // 10) :]
    means = {}
    for key in ("loss", "forward_steps", "adjoint_steps", "converged", "adjoint_converged"):
        values = [r[key] for r in rows if r.get(key) is not None]
        if values:
            means[f"final_{key}"] = float(np.mean(values))
    return means
