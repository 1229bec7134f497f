"""A run while it is at work: what its hooks share."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx

from .checkpoints import Checkpoints
from .checkpoints.processes import Processes
from .metrics import MetricsWriter
from .options import TrainOptions
from .parallel import Parallel
from .progress import Progress
from .scoring import Share, sharing
from .step import TrainState
from .task import Task


@dataclass(kw_only=True, eq=False)
class Running:
    """One call of `fit`.

    Attributes:
        directory: the run's folder.
        task, options, graph, parallel, processes, checkpoints: what it is made of.
        before: seconds of earlier calls.
        metrics: what writes `metrics.jsonl`; process 0 alone has it.
        progress: the line that says where it stands.
        share: this process's part of an evaluation that is shared out.
    """

    directory: Path
    task: Task
    options: TrainOptions
    graph: nnx.GraphDef
    parallel: Parallel
    processes: Processes
    checkpoints: Checkpoints
    progress: Progress
    metrics: MetricsWriter | None
    share: Share
    before: float = 0.0
    _began: float = field(default_factory=time.monotonic)
    _evaluated: tuple[int, dict[str, Any]] | None = None

    def seconds(self) -> float:
        """Wall time of the run so far, earlier calls included."""
        return self.before + time.monotonic() - self._began

    def model(self, state: TrainState) -> Any:
        """The model in eval mode, on devices of this process. All processes must ask."""
        model = nnx.merge(self.graph, *self.parallel.here((state.params, state.rest)))
        model.eval()
        return model

    def evaluated(self, state: TrainState) -> dict[str, Any]:
        """What the task's evaluation gives, computed once a step. All processes must ask."""
        step = int(state.step)
        if (known := self.known(step)) is not None:
            return known
        model = self.model(state)
        evaluate = lambda: numbers(self.task.evaluate(model))
        if self.task.shares_evaluation:
            with sharing(self.share):
                found = self.processes.agree(evaluate, lambda found: found[0])
        else:
            found = self.processes.by_first(evaluate)
        self._evaluated = step, found
        return found

    def known(self, step: int) -> dict[str, Any] | None:
        """The evaluation of that step, if there was one."""
        at, found = self._evaluated or (None, None)
        return found if at == step else None


@dataclass(kw_only=True, eq=False)
class Moment:
    """Where a run stands after a step: what every hook gets, one after the other.

    Attributes:
        run: the run.
        step: updates done.
        state: the state, which a hook may replace.
        row: what is to be a line of `metrics.jsonl`; a hook before the writing one may add to it.
            Nothing is written where it is empty.
        metrics: those of the step, on the devices: reading one waits for it.
        count: samples or tokens of the batch, as `Task.counted` says.
        waited: seconds that the run has stood still for its input.
        last: whether this is the last step.
        stopping: whether the run has been asked to stop.
    """

    run: Running
    step: int
    state: TrainState
    metrics: dict[str, Any]
    count: int
    waited: float
    last: bool
    stopping: bool = False
    row: dict[str, Any] = field(default_factory=dict)

    def due(self, every: int) -> bool:
        """Whether something that happens every so many steps, and at the end, happens now."""
        return self.last or self.step % every == 0

    def model(self) -> Any:
        """The model as it is now, in eval mode. In a job of several processes all must ask."""
        return self.run.model(self.state)


def numbers(found: Mapping[str, Any]) -> dict[str, float | None]:
    """What an evaluation returned, as JSON has it: a number under every name.

    Raises:
        TypeError: something is no number; the sentence names it.

    Examples:
        >>> numbers({"accuracy": np.float32(0.5), "errors": 3, "nothing": None})
        {'accuracy': 0.5, 'errors': 3.0, 'nothing': None}
    """
    plain: dict[str, float | None] = {}
    for name, value in found.items():
        try:
            plain[name] = None if value is None else float(np.asarray(value)[()])
        except (TypeError, ValueError):
            raise TypeError(
                f"evaluate() returned {name!r} of type {type(value).__name__} and shape "
                f"{np.asarray(value).shape}: a metric is one number; a hook may write anything else"
            ) from None
    return plain
