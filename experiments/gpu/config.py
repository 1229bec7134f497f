"""The options of the command, which its parts see too."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from deqjax.training import OptionError

Part = Literal["step", "solvers", "penn", "plan"]
PARTS: tuple[Part, ...] = ("step", "solvers", "penn", "plan")
RESULTS = Path("experiments/results/gpu")


@dataclass(frozen=True)
class Config:
    """Measure the paper's sizes on the GPU at hand, as far as the minutes go."""

    minutes: float = 30.0
    """time for this call; what is left over is for the next one, which goes on from there"""
    part: tuple[Part, ...] = PARTS
    """parts to run, in their order"""
    data_dir: Path | None = None
    """folder of the Penn Treebank (ptb.train.txt and so on); without it, penn is left out"""
    schedule_minutes: float = 5.0
    """training time of each model of penn that its schedule is made for"""
    runs: Path | None = None
    """runs, checkpoints, compiled programs and a copy of what was measured; kept between calls;
    runs/gpu if not given"""
    out: Path | None = None
    """folder of the tables and pictures; experiments/results/gpu if not given"""
    again: bool = False
    """measure what has been measured once more"""
    quick: bool = False
    """tiny models and few repetitions, on a CPU too: shows that all runs, and measures nothing"""
    unit: str | None = None
    """measure this unit of the one part given, in this process (what the command itself starts)"""
    answer: Path | None = None
    """with --unit: the file for what was found"""

    def check(self) -> None:
        for name in ("minutes", "schedule_minutes"):
            if not getattr(self, name) > 0:
                flag = "--" + name.replace("_", "-")
                raise OptionError(f"{flag} must be above 0; got {getattr(self, name)}")
        if self.unit is not None and (len(self.part) != 1 or self.answer is None):
            raise OptionError("--unit goes with one --part and an --answer")
        if self.data_dir is not None and not self.data_dir.is_dir():
            raise OptionError(f"--data-dir {self.data_dir} is no folder")

    @property
    def runs_folder(self) -> Path:
        return self.runs or Path("runs/gpu-quick" if self.quick else "runs/gpu")

    @property
    def out_folder(self) -> Path:
        return self.out or (self.runs_folder / "results" if self.quick else RESULTS)
