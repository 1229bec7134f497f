"""The options of generating text."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from deqjax._errors import check_integer
from deqjax.nn import Sampling
from deqjax.training import OptionError


@dataclass(frozen=True)
class Config:
    """Continue prompts with a trained language model."""

    run: Path | None = None
    """folder of a run of experiments.language_model"""
    prompt: tuple[str, ...] = ("",)
    """what to continue: one text or several, read and continued side by side; if not given, the
    beginning of a line"""
    length: int = 300
    """tokens to draw for each"""
    temperature: float = 0.8
    """below 1, safer text; 0 takes the most likely token"""
    top_k: int | None = None
    """draw among so many of the most likely tokens only"""
    top_p: float | None = None
    """draw among the most likely tokens that together have this probability only"""
    count: int = 1
    """continuations of every prompt"""
    stream: bool = False
    """show a text while it is drawn; for one prompt and a --count of 1"""
    seed: int = 0
    """of what is drawn"""
    which: Literal["latest", "best"] = "latest"
    """checkpoint: the newest, or the one with the lowest held-out loss"""
    warm_start: bool = False
    """start every solve at the equilibrium of the position before it"""
    cache: bool = True
    """keep keys and values of solved positions; without, the memory is projected for every token"""
    benchmark: bool = False
    """measure tokens a second with and without the cache, for a memory of 512 at width 512; needs
    no run"""
    rounds: int = 7
    """of the benchmark, in each of which every way takes its turn"""
    record: bool = False
    """keep the benchmark's figures under experiments/results"""

    @property
    def sampling(self) -> Sampling:
        return Sampling(self.temperature, self.top_k, self.top_p)

    def check(self) -> None:
        try:
            for name in ("length", "count", "rounds"):
                check_integer(f"--{name}", getattr(self, name), least=1)
            check_integer("--seed", self.seed, least=0)
            self.sampling  # noqa: B018 - checks itself
        except (TypeError, ValueError) as wrong:
            raise OptionError(str(wrong)) from None
        if self.benchmark:
            if self.run is not None:
                raise OptionError("--benchmark measures new models of one size: leave out --run")
        elif self.run is None:
            raise OptionError("--run says which model: the folder of a run, such as runs/ptb")
        elif not self.prompt:
            raise OptionError("--prompt needs a text, which may be empty")
        if self.record and not self.benchmark:
            raise OptionError("--record goes with --benchmark")
        if self.stream and self.count * len(self.prompt) > 1:
            raise OptionError("--stream shows one text: give one --prompt, and no --count")
