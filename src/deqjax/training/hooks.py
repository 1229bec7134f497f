"""What happens around the steps of a run, each at its own pace: `for hook in hooks: hook(at)`.

A hook is a function of a `Moment`. One of yours comes after the evaluation and before the line of
metrics is written, and so may add to it:

    def largest_weight(at):
        if at.due(100):
            at.row["largest"] = max(abs(x).max() for x in jax.tree.leaves(at.state.params))

In a job of several processes every process calls every hook.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax

from .folder import snapshot
from .options import TrainOptions
from .running import Moment
from .schedules import Plateau
from .watch import ConvergenceWatch
from .weights import save_weights

Hook = Callable[[Moment], object]

PATIENCE = 10  # steps in a row without a finite gradient, after which a checkpoint is restored

# What a progress line leaves out: how a step went, and not what it came to.
_QUIET = (
    *("grad_norm", "skipped", "in_a_row", "bad_parts", "input_wait"),
    *("forward_residual", "adjoint_residual", "adjoint_converged", "adjoint_gain"),
)


@dataclass
class Measure:
    """The metrics of a step, how many samples or tokens a second there were, and the share of the
    time that the devices waited for input."""

    every: int
    count: int = 0
    waited: float = 0.0
    began: float = field(default_factory=time.monotonic)

    def __call__(self, at: Moment) -> None:
        self.count += at.count
        if at.due(self.every):
            passed = time.monotonic() - self.began
            at.row |= {k: float(v) for k, v in jax.device_get(at.metrics).items()}
            at.row[f"{at.run.task.counted}_per_second"] = round(self.count / passed, 1)
            at.row["input_wait"] = round((at.waited - self.waited) / passed, 5)

    def begin(self, at: Moment) -> None:
        """Count from here, after what was not training."""
        if at.due(self.every):
            self.began, self.count, self.waited = time.monotonic(), 0, at.waited


@dataclass
class Evaluate:
    """The task's evaluation, by which a plateau cuts the learning rate."""

    every: int
    plateau: Plateau

    def __call__(self, at: Moment) -> None:
        if at.due(self.every):
            found = at.run.evaluated(at.state)
            if both := sorted(found.keys() & at.metrics.keys()):
                raise ValueError(
                    f"evaluate() returned {both[0]!r}, which is a metric of training: "
                    f"call it valid_{both[0]}"
                )
            at.row |= found
            if found.get("valid_loss") is not None:
                plateau = self.plateau.update(at.state.plateau, found["valid_loss"])
                plateau = at.run.parallel.everywhere(plateau)
                at.state = dataclasses.replace(at.state, plateau=plateau)


@dataclass
class Write:
    """The line of `metrics.jsonl`, wherever there is something to say; process 0 has the file."""

    def __call__(self, at: Moment) -> None:
        if at.row and at.run.metrics is not None:
            at.run.metrics.write(at.step, **at.row)


@dataclass
class Watch:
    """A sentence when solves stop converging, and when they do again."""

    every: int
    watch: ConvergenceWatch

    def __call__(self, at: Moment) -> None:
        if at.due(self.every) and (news := self.watch.see(at.step, at.row)):
            at.run.progress.note(news)


@dataclass
class Show:
    """The progress line, with what the last evaluation found."""

    every: int
    evaluated: dict[str, Any] = field(default_factory=dict)

    def __call__(self, at: Moment) -> None:
        self.evaluated = at.run.known(at.step) or self.evaluated
        if at.due(self.every):
            first = {k: at.row[k] for k in ("loss", "perplexity") if k in at.row}
            row = first | at.row | self.evaluated
            quiet = {*_QUIET, *(["valid_loss"] if "valid_perplexity" in row else [])}
            shown = {k: v for k, v in row.items() if k not in quiet or (k == "skipped" and v)}
            at.run.progress.update(at.step, **shown)


@dataclass
class Recover:
    """Back to the last good checkpoint, on with the data that come next, where no gradient has been
    finite for a while.

    Raises:
        FloatingPointError: there is none, or training has come to grief from it before.
    """

    every: int
    gone_back_to: int | None = None

    def __call__(self, at: Moment) -> None:
        if not at.due(self.every) or (failed := int(at.row.get("in_a_row", 0))) < PATIENCE:
            return
        found = at.run.checkpoints.restore(at.state)
        if found is None or found.step == self.gone_back_to:
            raise FloatingPointError(
                f"the last {failed} steps to step {at.step} had no finite gradient, and going back "
                "to an earlier checkpoint "
                + ("is not possible: there is none" if found is None else "has not helped")
                + "; try a smaller --learning-rate or --clip"
            )
        self.gone_back_to = found.step
        at.run.progress.note(
            f"no finite gradient in the last {failed} steps: back to the parameters of step "
            f"{found.step}, on with the data of step {at.step}"
        )
        here = dict(step=at.state.step, skipped=at.state.skipped)
        at.state = dataclasses.replace(found.tree, **here)


@dataclass
class Stop:
    """Whether Ctrl-C or SIGTERM has asked to."""

    asked: Callable[[int], bool]

    def __call__(self, at: Moment) -> None:
        at.stopping = not at.last and self.asked(at.step)


@dataclass
class Snapshot:
    """The weights in a file of their own, which stays; never, where `every` is 0."""

    every: int

    def __call__(self, at: Moment) -> None:
        if self.every and at.step % self.every == 0:
            model, file = at.model(), snapshot(at.run.directory, at.step)
            at.run.processes.by_first(lambda: save_weights(file, model))


@dataclass
class Save:
    """A checkpoint, beside the next steps; at the end, and where the run is to stop, waited for."""

    every: int

    def __call__(self, at: Moment) -> None:
        if not (at.due(self.every) or at.stopping):
            return
        run, wait = at.run, at.last or at.stopping
        if int(at.state.in_a_row) and not at.last:
            if wait:
                run.checkpoints.wait()
            return  # what led to non-finite steps is not worth keeping
        if run.metrics is not None:
            run.metrics.sync()  # first: a checkpoint must not know of steps that the metrics lack
        info = {"seconds": round(run.seconds(), 3)}
        metric = (run.known(at.step) or {}).get("valid_loss")
        run.checkpoints.save(at.step, at.state, info, metric=metric, wait=wait)


def usual(
    options: TrainOptions,
    watch: ConvergenceWatch,
    asked: Callable[[int], bool],
    own: tuple[Hook, ...] = (),
) -> tuple[Hook, ...]:
    """The hooks of a run, in their order, with the caller's own among them."""
    measure, o = Measure(options.log_every), options
    return (
        measure,
        Evaluate(o.eval_every, Plateau(o)),
        *own,
        Write(),
        Watch(o.log_every, watch),
        Show(o.log_every),
        measure.begin,
        Recover(o.log_every),
        Stop(asked),
        Snapshot(o.snapshot_every),
        Save(o.checkpoint_every),
    )
