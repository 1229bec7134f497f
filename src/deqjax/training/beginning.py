"""Before the first step: whose the folder is, and the state to begin with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flax import nnx

from . import folder, frozen
from .checkpoints import Checkpoints
from .checkpoints.processes import Processes
from .extending import going_on
from .identity import DATA, describe
from .initial import check_source, weights_of
from .lock import Lock
from .options import TrainOptions
from .step import TrainState
from .task import Task


def check_model(
    task: Task, options: TrainOptions, freeze: Any, processes: Processes, checkpoints: Checkpoints
) -> None:
    """Whether what is to be frozen and where to begin go with the model; before all else."""
    source = options.init_from
    if source is not None and not options.restart:
        kept = processes.by_first(lambda: checkpoints.latest)
        source = source if kept is None else None  # it has begun
    if freeze is None and source is None:
        return
    model = nnx.eval_shape(lambda: task.build(nnx.Rngs(options.seed)))
    frozen.check(nnx.state(model, nnx.Param), freeze, options.freeze)
    if source is not None:
        check_source(source, model)


def described(task: Task, config: Any) -> dict[str, Any]:
    """What `config.json` says: the config, and the fingerprint of the data if the task has one."""
    data = task.fingerprint()
    return describe(config) | ({} if data is None else {DATA: data})


def claimed(
    directory: Path,
    options: TrainOptions,
    config: Any,
    files: folder.Files,
    lock: Lock,
    checkpoints: Checkpoints,
    told: list[dict[str, Any]],
) -> str | None:
    """Make the folder this run's, or find that it is; and say what going on in it means. Until all
    is known to be well, nothing in it is changed."""
    wanted = folder.agreed(told)
    if not options.restart:
        folder.check_same(directory, config, wanted, files)  # without the lock, which is a file
    lock.take()
    if options.restart:
        folder.clear(directory)
    folder.check_same(directory, config, wanted, files)
    news = going_on(options, folder.recorded(directory) or {}, checkpoints.latest or 0)
    folder.claim(directory, wanted, files)
    return news


def begun(
    state: TrainState, checkpoints: Checkpoints, options: TrainOptions
) -> tuple[TrainState, float]:
    """The state to go on from, and the seconds that the run took to it."""
    if (restored := checkpoints.restore(state)) is not None:
        return restored.tree, restored.info["seconds"]
    if options.init_from is not None:
        state = weights_of(options.init_from, state)
        # The other run may go on, and this one must begin as it did.
        checkpoints.save(0, state, {"seconds": 0.0}, wait=True)
    return state, 0.0
