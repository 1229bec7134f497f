"""Score trained models again.

    python -m experiments.evaluate                                      # recorded copy memory
    python -m experiments.evaluate --weights runs/copy-memory-400-tcn   # a run's
    python -m experiments.evaluate --checks                             # is it an equilibrium?
    python -m experiments.evaluate --run runs/ptb --data-dir path/to/ptb --table

Copy memory: the test loss of every row and, with --checks, where a model solves an equilibrium, the
loss with other tolerances, solvers and starts, and on longer sequences. A language model
(--run): its perplexity, every token scored and memory carried, at any solver setting.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from deqjax._errors import check_integer
from deqjax.training import checked, command_line
from experiments.copy_memory import results
from experiments.copy_memory.audit import Line, audit, generalisation
from experiments.copy_memory.task import evaluate, held_out
from experiments.language_model import score

BATCH = 10  # a fifth faster than 50 on two CPU cores, at T = 400


@dataclass(frozen=True)
class Config:
    """Score trained weights of experiments.copy_memory, or a run of experiments.language_model."""

    weights: tuple[Path, ...] = ()
    """folders with weights.npz and config.json; those under experiments/results if not given"""
    checks: bool = False
    """solve again with other tolerances, solvers, starts and lengths; two minutes a model"""
    record: bool = False
    """keep what was found, with the checks of copy memory, under experiments/results/"""
    run: Path | None = None
    """folder of a run of experiments.language_model; what follows is about it"""
    data_dir: Path | None = None
    """where its text is now, if not where it was"""
    which: Literal["latest", "best"] = "latest"
    """checkpoint: the newest, or the one with the lowest held-out loss"""
    split: Literal["train", "valid", "test"] = "test"
    """the text to score"""
    tokens: int | None = None
    """score the first so many tokens; all if not given"""
    rows: int | None = None
    """rows that the text is scored in; fewer rows, more context"""
    solver: str | None = None
    """another solver than in training"""
    rtol: float | None = None
    """another tolerance"""
    max_steps: int | None = None
    """another limit on solver steps"""
    table: bool = False
    """perplexity against tolerance and step limit, and a picture of it in the run's folder"""

    def check(self) -> None:
        for name in ("tokens", "rows"):
            check_integer(f"--{name}", getattr(self, name), least=1, optional=True)


def main(config: Config) -> Any:
    if config.run is None:
        return copies(config)
    checked(config)
    names = (
        "data_dir",
        "which",
        "split",
        "tokens",
        "rows",
        "solver",
        "rtol",
        "max_steps",
        "table",
        "record",
    )
    return score.main(config.run, **{name: getattr(config, name) for name in names})


def copies(config: Config) -> dict[str, list[Line]]:
    """{folder: lines} of copy memory, printed as they come."""
    folders = config.weights or results.folders()
    tables = {}
    print(f"{'':40}{'T':>6}{'n':>6}{'loss':>11}{'recall':>9}{'steps':>8}{'converged':>11}")
    for folder in folders:
        options, model, _ = results.load(folder)
        pair = held_out(options.train.seed, options.test_sequences, options.length)
        found = evaluate(model, pair, BATCH)
        lines = [Line(folder.name, options.length, len(pair.inputs), found)]
        show(lines[0])
        if (
            (config.checks or config.record)
            and found.steps is not None
            and options.model == "deq-transformer"
        ):
            for line in (*audit(model, options), *generalisation(model, options)):
                show(line, indent=2)
                lines.append(line)
        tables[folder.name] = lines
        if config.record:
            results.record(folder, lines)
    return tables


def show(line: Line, indent: int = 0) -> None:
    of = line.score
    solved = ""
    if of.steps is not None:
        solved = f"{of.steps:>8.1f}{of.converged:>11.1%}"
    name = " " * indent + line.name
    print(
        f"{name:40}{line.length:>6}{line.count:>6}{of.loss:>11.2e}{of.recall:>9.2%}{solved}",
        flush=True,
    )


if __name__ == "__main__":
    former = {"--checkpoint": "--run"}
    command_line(Config, main, [former.get(arg, arg) for arg in sys.argv[1:]])
