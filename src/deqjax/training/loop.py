"""The training loop: checkpoints, metrics, progress, evaluation and a clean stop."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from flax import nnx

from .checkpoints import Checkpoints
from .curves import plot_curves
from .metrics import MetricsWriter, read_metrics
from .options import OptionError, Phase, TrainOptions
from .parallel import Parallel
from .prefetch import Prefetch
from .progress import Progress
from .schedules import Plateau
from .schedules import optimiser as make_optimiser
from .step import Task, TrainState, make_step, new_state
from .watch import ConvergenceWatch
from .weights import save_weights

Config = TypeVar("Config")

_SHOWN = (
    *("loss", "perplexity", "recall", "forward_steps", "adjoint_steps", "converged"),
    *("valid_perplexity", "valid_recall", "tokens_per_second"),
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
    the same sequence of states, bit for bit on one machine: the state holds parameters, optimiser,
    random keys, memory and the position in the data.

    Args:
        task: what to train.
        options: steps, learning rate, cadence.
        config: the dataclass to record in `config.json`; a restart must bring an equal one.
        name: the run's folder, unless `options.name` says otherwise.
        baselines: perplexities to draw and record beside the run's.
        files: what else belongs into the folder from the beginning: names, and what writes them.

    Raises:
        OptionError: the folder holds a run with another config, the options ask for a mesh that
            cannot be, or there are several processes, which this loop is not made for yet.
        Interrupted: Ctrl-C or SIGTERM.
        FloatingPointError: no step has a finite gradient, and no checkpoint helps.
    """
    if jax.process_count() > 1:
        raise OptionError(
            f"this loop trains in one process and there are {jax.process_count()}: start one, with "
            "all its devices in --mesh"
        )
    parallel = Parallel.of(options)  # before the folder is touched
    directory = options.runs / (options.name or name)
    _claim(directory, config, options.restart)
    for file, write in (files or {}).items():
        write(directory / file)
    optimiser, plateau = make_optimiser(options), Plateau(options)
    graph, state = new_state(task, optimiser, options.seed, plateau.init(), parallel)
    with Checkpoints(directory / "checkpoints") as checkpoints:
        shape = jax.eval_shape(lambda x: x, state)
        restored = checkpoints.restore(state)
        seconds = 0.0
        if restored is not None:
            state, seconds = restored.tree, restored.info["seconds"]
        start = int(state.step)
        metrics = MetricsWriter.resume(directory, start, tensorboard=options.tensorboard or False)

        @cache  # each phase is compiled once, when it first comes
        def compiled(phase: Phase) -> Callable:
            parts = options.accumulate
            step = make_step(task, graph, optimiser, phase, parallel=parallel, accumulate=parts)
            return parallel.compile(step, shape)

        session = _Session(
            directory, task, options, graph, parallel, compiled, checkpoints, metrics, seconds
        )
        session.watch.catch_up(read_metrics(directory))
        with metrics:
            state = session.train(state, start)
    model = session.model(state)
    result = {
        "steps": int(state.step),
        "seconds": round(session.seconds(), 1),
        "parameters": count(state.params),
        "skipped_steps": int(state.skipped),
        **_tail(read_metrics(directory)),
        **session.watch.summary(),
        **session.last_evaluation(state),
        "baselines": baselines or {},
        "jax": jax.__version__,
        "backend": jax.default_backend(),
    }
    write_json(directory / "result.json", result)
    plot_curves(
        read_metrics(directory),
        directory / "curves.png",
        title=f"{directory.name}: {result['parameters']:,} parameters, {result['steps']} steps",
        baselines=baselines or {},
    )
    return Run(directory, model, result)


@dataclasses.dataclass(eq=False)
class _Session:
    """One call of `fit`: the cadence around the compiled steps."""

    directory: Path
    task: Task
    options: TrainOptions
    graph: nnx.GraphDef
    parallel: Parallel
    compiled: Callable[[Phase], Callable]
    checkpoints: Checkpoints
    metrics: MetricsWriter
    before: float  # seconds of earlier calls

    def __post_init__(self) -> None:
        self.began = time.monotonic()
        self.plateau = Plateau(self.options)
        self.watch = ConvergenceWatch()
        self.recovered: int | None = None  # the checkpoint that was gone back to last
        self.evaluated: tuple[int, dict[str, float]] | None = None

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
        model = nnx.merge(self.graph, state.params, state.rest)
        model.eval()
        return model

    def last_evaluation(self, state: TrainState) -> dict[str, float]:
        step = int(state.step)
        if self.evaluated is None or self.evaluated[0] != step:
            self.evaluated = step, self.task.evaluate(self.model(state))
        return self.evaluated[1]

    def train(self, state: TrainState, start: int) -> TrainState:
        options = self.options
        batches = Prefetch(self._batch, start, options.steps)
        with Progress(options.steps) as progress, _stop_requests() as asked, batches:
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
                        state = dataclasses.replace(state, plateau=plateau)
                if row:
                    self.metrics.write(done, **row)
                if "loss" in row:
                    news = self.watch.see(done, row)
                    if news:
                        progress.note(news)
                    progress.update(done, **_visible(row))
                    began, tokens, waited = time.monotonic(), 0, batches.waited
                if row.get("in_a_row", 0) >= _PATIENCE:
                    state = self._recovered(state, progress)
                if options.snapshot_every and done % options.snapshot_every == 0:
                    save_weights(snapshot(self.directory, done), self.model(state))
                if done % options.checkpoint_every == 0 or last or asked:
                    self._save(state, done, wait=bool(last or asked))
                if asked and not last:
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
        self.metrics.sync()  # first: a checkpoint must not know of steps that the metrics lack
        info = {"seconds": round(self.seconds(), 3)}
        evaluated, found = self.evaluated or (None, {})
        metric = found.get("valid_loss") if evaluated == step else None
        self.checkpoints.save(step, state, info, metric=metric, wait=wait)


def snapshot(directory: Path, step: int) -> Path:
    """Where a run in `directory` keeps its weights of that step."""
    return directory / "snapshots" / f"{step:08d}.npz"


def count(params: Any) -> int:
    """Number of scalars in a tree of parameters."""
    return sum(x.size for x in jax.tree.leaves(params))


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file in one move."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(value, indent=2, sort_keys=True, default=str) + "\n")
    os.replace(partial, path)


def _claim(directory: Path, config: Any, restart: bool) -> None:
    """Make the folder this run's own, or find that it already is."""
    if restart and directory.exists():
        shutil.rmtree(directory)
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / "config.json"
    wanted = json.loads(json.dumps(_flat(config), default=str))
    if path.exists():
        try:
            found = json.loads(path.read_text())
        except json.JSONDecodeError:
            found = {}
        different = sorted(k for k in wanted | found if wanted.get(k) != found.get(k))
        if different:
            k = different[0]
            raise OptionError(
                f"{directory} holds a run with other options ({k} was {found.get(k)!r}, now "
                f"{wanted.get(k)!r}): choose another --name, or --restart to delete that run"
            )
    write_json(path, wanted)


def read_config(kind: type[Config], directory: Path) -> Config:
    """The config of the run in `directory`, as the (nested) dataclass it was written from."""
    found = json.loads((directory / "config.json").read_text())

    def build(kind: Any, default: Any) -> Any:
        values = {}
        for field in dataclasses.fields(kind):
            value = getattr(default, field.name)
            if dataclasses.is_dataclass(value):
                values[field.name] = build(type(value), value)
            elif field.name in found:
                values[field.name] = found[field.name]
        return kind(**values)

    return build(kind, kind())


def load_model(task: Task, options: TrainOptions, directory: Path) -> Any:
    """The model of the newest good checkpoint in `directory`, in eval mode.

    Raises:
        OptionError: there is no checkpoint.
    """
    optimiser = make_optimiser(options)
    graph, state = new_state(task, optimiser, options.seed, Plateau(options).init())
    with Checkpoints(directory / "checkpoints") as checkpoints:
        restored = checkpoints.restore(state)
    if restored is None:
        raise OptionError(f"{directory} has no checkpoint yet")
    model = nnx.merge(graph, restored.tree.params, restored.tree.rest)
    model.eval()
    return model


def _flat(config: Any) -> dict[str, Any]:
    """Field names and values of nested dataclasses; where a run lives is not part of what it is."""
    flat: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            flat |= _flat(value)
        elif field.name not in ("runs", "name", "restart", "parallel", "mesh"):
            flat[field.name] = value
    return flat


@contextmanager
def _stop_requests() -> Iterator[list[int]]:
    """A list that Ctrl-C or SIGTERM makes true; a second Ctrl-C interrupts at once."""
    asked: list[int] = []

    def ask(number, frame):
        asked.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    try:
        old = {s: signal.signal(s, ask) for s in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread: signals are somebody else's
        old = {}
    try:
        yield asked
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


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
