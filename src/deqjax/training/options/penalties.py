"""Options of the penalties."""

from __future__ import annotations

from dataclasses import dataclass

from ..._errors import check_tolerance
from .errors import OptionError, flag


@dataclass(frozen=True)
class PenaltyOptions:
    """What is added to the loss of a language model."""

    jacobian: float = 0.0
    """weight of the penalty ‖J‖²/n at z*, which keeps solves short (Bai et al. 2021)"""
    jacobian_share: float = 0.4
    """share of the training steps, drawn at random, that pay for it"""
    tighten: bool = False
    """raise the penalty's weight by itself while less than nine solves in ten converge"""
    activation: float = 0.0
    """weight of the mean square of the output after dropout (alpha of AWD-LSTM)"""
    temporal: float = 0.0
    """weight of the mean square of the output's change over a step in time (its beta)"""

    def check(self) -> None:
        for name in ("jacobian", "activation", "temporal"):
            check_tolerance(flag(name), getattr(self, name))
        if not 0 < self.jacobian_share <= 1:
            raise OptionError(
                f"--jacobian-share must be above 0 and at most 1; got {self.jacobian_share}"
            )
        if self.tighten and not self.jacobian:
            raise OptionError("--tighten raises the weight of --jacobian, which must not be 0")
