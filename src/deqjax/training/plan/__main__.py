"""Will it fit, will it scale: a task's train step, compiled for chips that need not be there.

python -m deqjax.training.plan mine.tasks:numbers --topology h100:8
python -m deqjax.training.plan mine.tasks:numbers --topology v5e:4x4 --largest-batch
"""

from __future__ import annotations

import importlib
import inspect
import sys
from dataclasses import dataclass, field

import jax

from ..._errors import check_integer
from ..options import OptionError, TrainOptions, command_line
from ..step import Task
from . import Asked, Plan, plan, show
from ._plan import Precision


@dataclass(frozen=True)
class Config:
    """Will it fit, will it scale: compile a task's train step for chips that need not be there, and
    print what a chip needs for it."""

    task: str
    """module:function, which may come first without the flag; the function returns (task, options)
    as fit takes them, and takes batch_size as a keyword where one is given here"""
    topology: str = "v5e:4x4"
    """chips and their shape: v5e:16x16, v5p:2x2x1, v6e:4x4, h100:8, or cpu:8 to try things out"""
    batch_size: int | None = None
    """samples in a step, all chips together; the task's own if not given"""
    precision: Precision = "float32"
    """of f, for the roofline: the task has its own"""
    asked: Asked = field(default_factory=Asked)


def main(config: Config) -> None:
    check_integer("--batch-size", config.batch_size, least=1, optional=True)

    def of(batch: int | None, evaluations: bool) -> Plan:
        task, options = task_of(config.task, batch)
        given = dict(name=config.task, precision=config.precision, evaluations=evaluations)
        return plan(task, options, config.topology, **given)  # type: ignore[arg-type]

    show(of, config.batch_size, config.asked)


def task_of(spec: str, batch_size: int | None = None) -> tuple[Task, TrainOptions]:
    """What the function that `spec`, module:function, names returns.

    Raises:
        OptionError: there is none, it takes no `batch_size` and one is given, or it returns
            something else.
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
    if batch_size is None:
        found = function()
    elif "batch_size" in inspect.signature(function).parameters:
        found = function(batch_size=batch_size)
    else:
        raise OptionError(f"{spec} has one batch size: give the function a keyword batch_size")
    if not (
        isinstance(found, tuple)
        and len(found) == 2
        and isinstance(found[0], Task)
        and isinstance(found[1], TrainOptions)
    ):
        raise OptionError(f"{spec} must return a Task and its TrainOptions")
    return found


def flagged(args: list[str]) -> list[str]:
    """The arguments, with `--task` before a task that comes first."""
    named = args[:1] and not args[0].startswith("-")
    return ["--task", *args] if named else args


if __name__ == "__main__":
    # What compiles is told by name; this process itself computes nothing and wants no accelerator.
    if not jax.config.jax_platforms:  # type: ignore[attr-defined]
        jax.config.update("jax_platforms", "cpu")
    command_line(Config, main, flagged(sys.argv[1:]))
