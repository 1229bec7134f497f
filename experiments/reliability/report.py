"""The table of reliability."""

from __future__ import annotations

import datetime
import json
import platform
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax

from deqjax.training.folder import write_json

from ..tables import table
from .trials import Outcome

HEAD = """\
# Reliability

`python -m experiments.reliability` disturbs a small training run (a language model with dropout,
memory over segments, warm starts and a plateau; its newest and its best checkpoint kept) and counts
after how many of the trials nothing was lost that a checkpoint held."""


class Ledger(dict):
    """Trials by name, written down one by one in a JSON file."""

    def __init__(self, file: Path):
        super().__init__(json.loads(file.read_text("utf-8")) if file.exists() else {})
        self.file = file

    def __setitem__(self, name: str, row: Any) -> None:
        super().__setitem__(name, row)
        self.file.parent.mkdir(parents=True, exist_ok=True)
        write_json(self.file, dict(self))


def record(path: Path, part: str, found: list[Outcome]) -> None:
    """Write a part into the table; other parts stay in it."""
    data = path.with_suffix(".json")
    kept: dict[str, Any] = json.loads(data.read_text("utf-8")) if data.exists() else {}
    said = f"{datetime.date.today().isoformat()}, Python {platform.python_version()}, \
jax {jax.__version__}"
    kept[part] = dict(said=said, outcomes=[asdict(o) for o in found])
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(data, kept)
    outcomes = {p: [Outcome(**o) for o in row["outcomes"]] for p, row in kept.items()}
    when = "\n".join(f"- `{p}`: {row['said']}." for p, row in kept.items())
    path.write_text(f"{HEAD}\n\n{text(outcomes)}\n\n{when}\n", "utf-8")


def text(parts: dict[str, list[Outcome]]) -> str:
    rows = [
        [o.what, str(o.trials), str(o.kept), f"{o.said}. {'; '.join(o.notes)}"]
        for found in parts.values()
        for o in found
    ]
    return table(["disturbed by", "trials", "nothing lost", "what is compared, and notes"], rows)
