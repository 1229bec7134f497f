"""Reliability, measured: what is lost when training is disturbed, counted over many trials.

    python -m experiments.reliability                      # all of it, half an hour on two cores
    python -m experiments.reliability --only damage full_disk

A part that is finished is recorded at once in `experiments/results/reliability.md`, where the parts
of earlier calls stay, and each kill by itself: a call that was stopped goes on. Exit code 1 where a
trial lost something.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from deqjax._errors import check_integer
from deqjax.training import checked, command_line

from . import bad_sample, damage, elsewhere, full_disk, kills
from .report import Ledger, record, text
from .trials import Outcome, Reference

Part = Literal["kills", "damage", "full_disk", "elsewhere", "bad_sample"]
PARTS: dict[Part, Callable[[Reference, int, int], list[Outcome]]] = {
    "kills": kills.outcomes,
    "damage": damage.outcomes,
    "full_disk": full_disk.outcomes,
    "elsewhere": elsewhere.outcomes,
    "bad_sample": bad_sample.outcomes,
}


@dataclass(frozen=True)
class Config:
    """What training survives, counted."""

    only: tuple[Part, ...] = ()
    """parts to measure; all if not given"""
    trials: int = 50
    """kills, every fifth of them in a job of two processes"""
    seed: int = 0
    """seed of the moments"""
    out: Path = Path("experiments/results/reliability.md")
    """the table"""

    def check(self) -> None:
        check_integer("--trials", self.trials, least=1)
        check_integer("--seed", self.seed, least=0)


def main(config: Config) -> None:
    checked(config)
    lost = 0
    with tempfile.TemporaryDirectory() as folder:
        reference = Reference(Path(folder), Ledger(config.out.with_name("reliability_kills.json")))
        for part in config.only or PARTS:
            print(f"{part} ...", flush=True)
            found = PARTS[part](reference, config.trials, config.seed)
            print(text({part: found}), flush=True)
            record(config.out, part, found)
            lost += sum(o.trials - o.kept for o in found)
    print(f"written: {config.out}")
    if lost:
        sys.exit(f"{lost} trials lost something")


if __name__ == "__main__":
    command_line(Config, main)
