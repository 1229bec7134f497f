"""What a finished run leaves for others, and the table of all that is recorded."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from deqjax.training import OptionError, load_weights, read_config, save_weights
from deqjax.training.folder import write_json
from deqjax.training.identity import describe

from .score import Score
from .task import Config, Sudoku, build

WEIGHTS, SCORES, BOARDS, TABLE = "weights.npz", "scores.json", "boards.npz", "README.md"
RECORDED = Path(__file__).parents[1] / "results" / "sudoku"


def told(task: Sudoku, score: Score) -> dict[str, Any]:
    """What a score says, for scores.json."""
    config = task.config
    return dict(
        layer=config.layer,
        size=config.size,
        start=config.start,
        split=config.split,
        seed=config.train.seed,
        train_boards=len(task.boards.train.puzzles),
        test_boards=len(score.right),
        test_clues=round(float(score.given.clues.mean()), 2),
        solved=int(score.right.sum()),
        **score.means(),
        by_clues={str(k): list(v) for k, v in score.by_clues().items()},
        jax=jax.__version__,
    )


def curve(rows: Iterable[Mapping[str, Any]], task: Sudoku) -> list[dict[str, float]]:
    """Accuracy on the held-out boards at every evaluation of a run, by epochs."""
    return [
        dict(
            epoch=round(row["step"] / task.steps_per_epoch, 3),
            boards=row["valid_boards"],
            cells=row["valid_cells"],
            loss=row["valid_loss"],
        )
        for row in rows
        if row.get("valid_boards") is not None
    ]


def save(directory: Path, model: nnx.Module, score: Score, told: dict[str, Any]) -> None:
    """Add weights, scores, and what was made of some boards to a run's folder."""
    save_weights(directory / WEIGHTS, model)
    write_json(directory / SCORES, told)
    shown = chosen(score)
    given = score.given.rows(shown)
    named = dict(puzzles=given.puzzles, solutions=given.solutions, filled=score.boards[shown])
    np.savez_compressed(directory / BOARDS, allow_pickle=False, **named)


def save_config(directory: Path, config: Config) -> None:
    """The options, where `fit` has not written them."""
    write_json(directory / "config.json", describe(config))


def chosen(score: Score, each: int = 4) -> np.ndarray:
    """A few boards for a picture: the first that are right, then the first that are wrong."""
    right, wrong = np.flatnonzero(score.right)[:each], np.flatnonzero(~score.right)[:each]
    return np.concatenate([right, wrong])


def record(directory: Path, *, weights: bool) -> Path:
    """Copy what others need of a run's folder to the recorded results."""
    if not (directory / SCORES).exists():
        raise OptionError(f"{directory} holds no {SCORES}: give the folder of a finished run")
    target = RECORDED / directory.name
    target.mkdir(parents=True, exist_ok=True)
    config = json.loads((directory / "config.json").read_text())
    write_json(target / "config.json", config | dict(data_dir=None))  # it is nobody else's
    for file in (SCORES, BOARDS, *([WEIGHTS] if weights else [])):
        shutil.copyfile(directory / file, target / file)
    return target


def folders() -> list[Path]:
    """All recorded runs."""
    return sorted(p.parent for p in RECORDED.glob(f"*/{SCORES}"))


def load(directory: Path) -> tuple[Config, Any, dict[str, Any]]:
    """(options, model in eval mode, scores) of a folder with weights."""
    if not (directory / WEIGHTS).exists():
        raise OptionError(f"{directory} holds no {WEIGHTS}")
    config = read_config(Config, directory)
    model = build(config, nnx.Rngs(0))
    load_weights(directory / WEIGHTS, model)
    model.eval()
    return config, model, json.loads((directory / SCORES).read_text())


def sentence(told: Mapping[str, Any]) -> str:
    """A run's score in words."""
    cpu = told.get("cpu_seconds")
    return (
        f"{told['solved']:,} of {told['test_boards']:,} held-out boards right in every cell, "
        f"{told['cells']:.2%} of the empty cells; {told['parameters']:,} parameters"
        + ("" if cpu is None else f", {cpu:.0f} s of CPU")
    )
