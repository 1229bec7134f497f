"""What a training step of the paper's full-size models takes on the device at hand.

    python -m experiments.measured_step                                   # made for a GPU or a TPU
    python -m experiments.measured_step --only wt103-transformer-medium --precision bfloat16

The train step that a run compiles, and that `deqjax.training.plan` compiles for devices which are
not there, is run on random words: an equilibrium takes exactly `--steps` solver steps forward and
as many in its adjoint. So is the scoring of held-out text, forward alone. Layers of an explicit
network are a loop over one of them (`FullSize.scan`): as copies, sixteen did not compile in 40 s.
Each model has a process of its own, so that what the device gave out at
most is that model's. Writes the tables into `experiments/results/measured_step.md`.
"""

from __future__ import annotations

import datetime
import json
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from flax import nnx

from deqjax.data import Stream
from deqjax.training import OptionError, SolverOptions, TrainOptions, command_line, perplexity
from deqjax.training.plan.program import Programs, Subject
from deqjax.training.schedules import optimiser as make_optimiser
from deqjax.training.step import make_step, new_state

from .full_size import CONFIGS, FullSize, named
from .full_size.memory import CHUNKS
from .full_size.plan import task
from .tables import table

NAME = "experiments.measured_step"
DEFAULT = tuple(name for name in CONFIGS if name.startswith("wt103-transformer"))
WARM_UP = 3

EXPLAINED = """\
A training step of the whole model, word embedding, softmax and AdamW included, in float32 or with
f in bfloat16 (parameters, residuals and the solver stay in float32). An equilibrium takes a fixed
number of Anderson steps forward and in the adjoint, as the tables say, so that times are
comparable; trained models stop by their residual.

- **ms a step**: median, with the quartiles, of steps one after the other that wait for each other.
- **peak**: what the device's allocator gave out at most, in gigabytes (10⁹ bytes).
- **planned**: arguments, results and temporary buffers by the compiler's own plan.
- **temporary**: those that live between arguments and results: activations, gradients, histories.
- **evaluated**: a batch of the same size scored in eval mode, memory carried, which is how
  held-out text is scored.
"""


@dataclass(frozen=True)
class Config:
    """Seconds and bytes of a training step of full-size models, measured here."""

    only: tuple[str, ...] = DEFAULT
    """names in experiments.full_size.configs"""
    batch: int = 15
    """samples in a step; 15 is what the paper gives memory for"""
    segment: int | None = None
    """positions of a sample; the model's own if not given"""
    steps: int = 12
    """solver steps of every forward and of every adjoint solve"""
    solver: str = "anderson"
    """picard, anderson or broyden"""
    precision: Literal["float32", "bfloat16"] = "float32"
    """of f, as in a run"""
    chunked: bool = False
    """compute the equilibrium transformers' f for a few positions at a time, as in full_size"""
    repeats: int = 20
    """steps that are timed, one after the other"""
    alone: bool = False
    """measure one model in this process and print it as JSON"""
    out: Path = Path("experiments/results/measured_step.md")
    """the tables; rows that this run does not measure stay in them"""


@dataclass(frozen=True)
class Row:
    """One model on one device; bytes and seconds. `peak` is None where a device does not say."""

    model: str
    device: str
    precision: str
    chunk_size: int | None
    solver: str
    steps: int
    batch: int
    tokens: int
    seconds: float
    quartiles: tuple[float, float]
    peak: int | None
    planned: int
    temporary: int
    loss: float
    evaluated: float | None = None

    @property
    def label(self) -> str:
        if not self.solver:
            return self.model
        chunks = "" if self.chunk_size is None else f", {self.chunk_size} positions at a time"
        return f"{self.model} ({self.solver}, {self.steps} + {self.steps} steps{chunks})"


def main(config: Config) -> None:
    models = [_named(name) for name in config.only]
    for name in ("batch", "steps", "repeats", "segment"):
        if getattr(config, name) is not None and getattr(config, name) < 1:
            raise OptionError(f"--{name} must be at least 1; got {getattr(config, name)}")
    if config.alone:
        print(json.dumps(asdict(measure(models[0], config))))
        return
    for model in models:
        print(f"{model.name} ...", end=" ", flush=True)
        try:
            row = _elsewhere(model.name, config)
        except RuntimeError as wrong:
            print(wrong, flush=True)
            continue
        print(" | ".join(_cells(row)), flush=True)
        _record(config.out, row)
    print(f"written: {config.out}")


def measure(model: FullSize, config: Config) -> Row:
    """Compile the train step of a model for this device, and run it."""
    if config.chunked and model.solves:
        model = replace(model, chunk_size=CHUNKS.get(model.name))
    model = replace(model, scan=not model.solves, segment=config.segment or model.segment)
    solver = SolverOptions(config.solver, rtol=0.0, atol=0.0, max_steps=config.steps)
    options = TrainOptions(batch_size=config.batch)
    device = jax.local_devices()[0]
    subject = Subject.of(task(model, options, solver, config.precision), model.name)
    programs = Programs.of(subject, options, [device])
    trained, parallel, optimiser = subject.task, programs.parallel, make_optimiser(options)
    graph, state = new_state(trained, optimiser, seed=0, parallel=parallel)
    step = parallel.compile(make_step(trained, graph, optimiser, parallel=parallel), state)
    rng = np.random.default_rng(0)

    def words(x: Any) -> Any:
        return rng.integers(0, model.vocabulary, x.shape, np.int32) if np.ndim(x) else x

    batches = [jax.device_put(jax.tree.map(words, trained.batch(0)), device) for _ in range(4)]
    taken, metrics = [], {}
    for i in range(WARM_UP + config.repeats):
        start = time.perf_counter()
        state, metrics = step(state, batches[i % len(batches)])
        jax.block_until_ready(metrics)
        taken.append(time.perf_counter() - start)
    for which in ("forward_steps", "adjoint_steps") if model.solves else ():
        if round(float(metrics[which]), 3) != config.steps:  # a mean over the batch
            raise RuntimeError(f"{which} are {metrics[which]}, not {config.steps}")
    peak = (device.memory_stats() or {}).get("peak_bytes_in_use")  # of training alone
    timed = np.array(taken[WARM_UP:])
    low, high = np.quantile(timed, (0.25, 0.75))
    assert step.compiled is not None
    plan: Any = step.compiled.memory_analysis()
    results = plan.output_size_in_bytes - plan.alias_size_in_bytes
    return Row(
        model=model.name,
        device=device.device_kind,
        precision=config.precision,
        chunk_size=model.chunk_size,
        solver=config.solver if model.solves else "",
        steps=config.steps if model.solves else 0,
        batch=config.batch,
        tokens=config.batch * model.segment,
        seconds=float(np.median(timed)),
        quartiles=(float(low), float(high)),
        peak=peak,
        planned=plan.argument_size_in_bytes + results + plan.temp_size_in_bytes,
        temporary=plan.temp_size_in_bytes,
        loss=float(metrics["loss"]),
        evaluated=_evaluated(nnx.merge(graph, state.params, state.rest), model, config),
    )


def _evaluated(trained: Any, model: FullSize, config: Config) -> float:
    """Median seconds of a batch of held-out text."""
    trained.eval()
    rng, count = np.random.default_rng(1), WARM_UP + config.repeats
    ids = rng.integers(0, model.vocabulary, config.batch * model.segment * count, np.int32)
    times = [time.perf_counter()]
    tell = lambda done, score: times.append(time.perf_counter())
    perplexity(trained, Stream(ids, config.batch, model.segment, 0), tell)
    return float(np.median(np.diff(times)[WARM_UP:]))


def _elsewhere(name: str, config: Config) -> Row:
    """The row of a model, from a process of its own; RuntimeError with what it said last."""
    given = dict(only=name, batch=config.batch, steps=config.steps, solver=config.solver)
    given |= dict(precision=config.precision, repeats=config.repeats)
    given |= {} if config.segment is None else dict(segment=config.segment)
    options = [word for key, value in given.items() for word in (f"--{key}", str(value))]
    options += ["--alone", *["--chunked"] * config.chunked]
    done = subprocess.run([sys.executable, "-m", NAME, *options], capture_output=True, text=True)
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.strip()] or ["no word"]
        raise RuntimeError(f"failed: {said[-1][:300]}")
    found = json.loads(done.stdout.splitlines()[-1])
    return Row(**found | dict(quartiles=tuple(found["quartiles"])))


def _named(name: str) -> FullSize:
    try:
        return named(name)
    except ValueError as wrong:
        raise OptionError(str(wrong)) from None


# ------------------------------------------------------------------------------- tables


HEAD = ["model", "f in", "batch", "ms a step", "ktokens/s", "peak", "planned", "temporary", "loss"]
HEAD += ["ms evaluated"]


def _cells(row: Row) -> list[str]:
    low, high = (1e3 * q for q in row.quartiles)
    times = f"{1e3 * row.seconds:.1f} ({low:.1f} to {high:.1f})"
    sizes = ["–" if n is None else f"{n / 1e9:.2f}" for n in (row.peak, row.planned, row.temporary)]
    rate = f"{row.tokens / row.seconds / 1e3:.1f}"
    scored = "–" if row.evaluated is None else f"{1e3 * row.evaluated:.1f}"
    given = [row.label, row.precision, str(row.batch), times, rate, *sizes]
    return [*given, f"{row.loss:.2f}", scored]


def _ratios(rows: list[Row]) -> list[list[str]]:
    """Each equilibrium over each of its explicit networks."""
    found = []
    for ours in rows:
        for theirs in rows:
            alike = (ours.precision, ours.batch) == (theirs.precision, theirs.batch)
            if theirs.model not in CONFIGS[ours.model].explicit or not alike:
                continue
            paper = CONFIGS[ours.model].published.memory / CONFIGS[theirs.model].published.memory
            pairs = [(ours.peak, theirs.peak), (ours.temporary, theirs.temporary)]
            pairs += [(ours.seconds, theirs.seconds), (ours.evaluated, theirs.evaluated)]
            shares = ["–" if None in (a, b) else f"{a / b:.3f}" for a, b in pairs]  # type: ignore
            label = [ours.label, theirs.model, ours.precision, str(ours.batch)]
            found.append([*label, f"{paper:.2f}", *shares])
    return found


def _record(path: Path, row: Row) -> None:
    """Put a row into the tables at `path`, which are drawn from a file of the same name in JSON."""
    data = path.with_suffix(".json")
    kept = json.loads(data.read_text("utf-8")) if data.exists() else {}
    given = [
        a for a, before in zip(sys.argv[1:], sys.argv, strict=False) if "--out" not in (a, before)
    ]
    command = " ".join([f"python -m {NAME}", *given])
    said = f"`{command}`, {datetime.date.today().isoformat()}, jax {jax.__version__}"
    of_device = kept.setdefault(row.device, {})
    of_device[f"{row.label}, {row.precision}, {row.batch}"] = asdict(row) | {"said": said}
    path.parent.mkdir(parents=True, exist_ok=True)
    data.write_text(json.dumps(kept, indent=1) + "\n", "utf-8")
    path.write_text(markdown(kept), "utf-8")


def markdown(kept: dict[str, dict[str, Any]]) -> str:
    order = list(CONFIGS)
    parts = ["# A training step, measured", "", EXPLAINED]
    for device, found in kept.items():
        said = dict.fromkeys(row["said"] for row in found.values())
        rows = [Row(**{k: v for k, v in row.items() if k != "said"}) for row in found.values()]
        rows.sort(key=lambda r: (order.index(r.model), r.label, r.precision, r.batch))
        parts += [f"## {device}", "", *(f"- {line}" for line in said), ""]
        parts += [table(HEAD, [_cells(row) for row in rows]), ""]
        head = ["equilibrium", "explicit network", "f in", "batch", "paper's memory"]
        parts += [table([*head, "peak", "temporary", "time", "evaluated"], _ratios(rows)), ""]
    return "\n".join(parts)


if __name__ == "__main__":
    command_line(Config, main)
