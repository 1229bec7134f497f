"""How long a step must take at least, by the peaks that a chip's maker publishes."""

from __future__ import annotations

from dataclasses import dataclass

from .chips import Chip
from .cost import Cost, Costs


@dataclass(frozen=True)
class Part:
    """Of a train step: seconds that arithmetic, main memory and links each need for it."""

    compute: float
    memory: float
    links: float

    @property
    def seconds(self) -> float:
        """Arithmetic and memory at the same time, then the links."""
        return max(self.compute, self.memory) + self.links

    @property
    def bound(self) -> str:
        """What takes longest."""
        names = {"compute": self.compute, "HBM": self.memory, "interconnect": self.links}
        return max(names, key=lambda name: names[name])


@dataclass(frozen=True)
class Roofline:
    """A lower bound of a train step's time, not a prediction: peaks are not reached, elementwise
    arithmetic, latencies and waiting for the slowest chip are left out.

    Attributes:
        outside: all that is not in a solver's loop.
        forward, adjoint: all steps of the solvers together.
    """

    outside: Part
    forward: Part
    adjoint: Part

    @classmethod
    def of(
        cls, costs: Costs, chip: Chip, precision: str, steps: tuple[float, float]
    ) -> Roofline | None:
        """None for a chip of which no peaks are known."""
        if chip.bandwidth is None or chip.link is None:
            return None
        flops, bandwidth, link = chip.flops[precision], chip.bandwidth, chip.link

        def part(cost: Cost, times: float = 1.0) -> Part:
            total = cost * times
            return Part(total.flops / flops, total.bytes / bandwidth, total.sent / link)

        forward, adjoint = steps
        return cls(part(costs.outside), part(costs.forward, forward), part(costs.adjoint, adjoint))

    @property
    def seconds(self) -> float:
        return sum(p.seconds for p in (self.outside, self.forward, self.adjoint))

    @property
    def bound(self) -> str:
        """What most of the time goes to."""
        shares: dict[str, float] = {}
        for p in (self.outside, self.forward, self.adjoint):
            local = "compute" if p.compute >= p.memory else "HBM"
            shares[local] = shares.get(local, 0) + max(p.compute, p.memory)
            shares["interconnect"] = shares.get("interconnect", 0) + p.links
        return max(shares, key=lambda name: shares[name])
