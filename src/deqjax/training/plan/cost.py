"""What a compiled program costs a chip: arithmetic, memory traffic, communication.

XLA's own `cost_analysis` counts the body of every loop once, however often it runs. Here a loop
whose counter has a limit counts that often, and one whose end depends on data (a solver's) has its
body kept apart: it costs this much for each step. Both are read from the same compiled text.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from .flops import flops
from .hlo import Instruction, Program
from .traffic import operands, traffic

_CONTROL = frozenset(("while", "conditional", "call", "async-start"))


class Collective(NamedTuple):
    """One collective of a program.

    Attributes:
        kind: such as "all-reduce".
        bytes: the larger of what a chip puts in and what it gets.
        group: how many chips take part in it together.
        in_loop: whether it is in the body of a loop, of whatever kind.
        times: how often it happens, in a step of its solver or in a train step.
    """

    kind: str
    bytes: int
    group: int
    in_loop: bool
    times: float = 1

    @property
    def sent(self) -> float:
        """Bytes that every chip of a ring sends; all-reduce is reduce-scatter and all-gather."""
        passes = 2 if self.kind == "all-reduce" else 1
        share = 1.0 if self.kind.startswith("collective") else 1 - 1 / max(self.group, 1)
        return passes * share * self.bytes * self.times


@dataclass(frozen=True)
class Cost:
    """Of some part of a program, on one chip.

    Attributes:
        flops: of matrix products and convolutions, two for a multiplication and its addition.
            Everything elementwise comes on top and is not counted.
        bytes: read from and written to main memory; see `traffic`.
        collectives: see `Collective`.
    """

    flops: float = 0.0
    bytes: float = 0.0
    collectives: tuple[Collective, ...] = ()

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.flops + other.flops,
            self.bytes + other.bytes,
            self.collectives + other.collectives,
        )

    def __mul__(self, times: float) -> Cost:
        """That often."""
        found = tuple(c._replace(times=c.times * times) for c in self.collectives)
        return Cost(self.flops * times, self.bytes * times, found)

    @property
    def sent(self) -> float:
        """Bytes that a chip sends to others."""
        return sum(c.sent for c in self.collectives)


@dataclass(frozen=True)
class Costs:
    """Of a train step.

    Attributes:
        outside: all but the solvers' loops. Of every branch that depends on data, such as a rare
            word's part of an adaptive softmax, the costliest side counts.
        forward, adjoint: one step of each solver.
        loops: solvers' loops in the program, forward and adjoint; the costs of several add up.
        branches: that depend on data.
    """

    outside: Cost = field(default_factory=Cost)
    forward: Cost = field(default_factory=Cost)
    adjoint: Cost = field(default_factory=Cost)
    loops: tuple[int, int] = (0, 0)
    branches: int = 0

    def step(self, forward_steps: float, adjoint_steps: float) -> Cost:
        """A train step whose solvers take that many steps."""
        return self.outside + self.forward * forward_steps + self.adjoint * adjoint_steps


def program_costs(text: str, *, once: bool = False) -> Costs:
    """The costs of a compiled program, as `compiled.as_text()` prints it.

    Args:
        once: count every loop once, as XLA's `cost_analysis` does; to compare the two.
    """
    return _Walk(Program.parse(text), once).costs()


class _Place(NamedTuple):
    """Where an instruction is: in which part, how often it runs there, and inside of a loop."""

    part: str = "outside"
    times: int = 1
    in_loop: bool = False


@dataclass
class _Walk:
    program: Program
    once: bool
    counts: Counter = field(default_factory=Counter)

    def costs(self) -> Costs:
        found = {"outside": Cost(), "forward": Cost(), "adjoint": Cost()}
        for part, cost in self._computation(self.program.entry, _Place()):
            found[part] += cost
        loops = self.counts["forward"], self.counts["adjoint"]
        return Costs(**found, loops=loops, branches=self.counts["branches"])

    def _computation(self, name: str, at: _Place) -> Iterator[tuple[str, Cost]]:
        for i in self.program.computations.get(name, {}).values():
            if i.op == "while":
                inside = self._body(i, at)
                for part in ("condition", "body"):
                    yield from self._computation(i.called[part], inside)
            elif i.op == "conditional":
                yield from self._largest(i, at)
            elif i.op in _CONTROL and i.called:
                yield from self._computation(next(iter(i.called.values())), at)
            else:
                yield at.part, self._instruction(name, i, at)

    def _body(self, loop: Instruction, at: _Place) -> _Place:
        trips = 1 if self.once else self.program.trips(loop)
        if trips is not None or at.part != "outside":
            # Within a step of a solver a loop that depends on data counts once.
            return at._replace(times=at.times * (1 if trips is None else trips), in_loop=True)
        part = "adjoint" if "transpose(" in loop.op_name else "forward"
        self.counts[part] += 1
        return at._replace(part=part, in_loop=True)

    def _largest(self, i: Instruction, at: _Place) -> list[tuple[str, Cost]]:
        """As if the costliest branch were always taken."""
        self.counts["branches"] += 1
        branches = [
            list(self._computation(n, at))
            for k, n in i.called.items()
            if k.startswith("branch") or k.endswith("_computation")
        ]
        weight = lambda found: (sum(c.flops for _, c in found), sum(c.bytes for _, c in found))
        return max(branches, key=weight, default=[])

    def _instruction(self, computation: str, i: Instruction, at: _Place) -> Cost:
        found = [
            c._replace(times=at.times, in_loop=at.in_loop)
            for c in self._collectives(computation, i)
        ]
        count = flops(self.program, computation, i) * at.times
        return Cost(count, traffic(self.program, computation, i) * at.times, tuple(found))

    # ------------------------------------------------------------------------- communication

    def _collectives(self, computation: str, i: Instruction) -> Iterator[Collective]:
        if i.collective:
            given = sum(a.bytes for a in operands(self.program, computation, i))
            got = sum(a.bytes for a in i.arrays)
            if i.op.endswith("-start") and i.collective != "all-reduce":
                got -= given  # it returns its operands as well
            yield Collective(i.collective, max(given, got), self.program.group(i), False)
        elif i.op == "fusion":
            inner = i.called.get("calls", "")
            for j in self.program.computations.get(inner, {}).values():
                yield from self._collectives(inner, j)
