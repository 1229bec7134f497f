"""What a compiled program costs a chip: arithmetic, memory traffic, communication.

XLA's own `cost_analysis` counts the body of every loop once, however often it runs. Here a loop
whose counter has a limit counts that often, and one whose end depends on data (a solver's) has its
body kept apart: it costs this much for each step. Both are read from the same compiled text.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from .flops import flops
from .hlo import Instruction, Program

# Instructions that move nothing: names for what is there, or, of a pair, the end.
_FREE = frozenset(
    (
        *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "domain"),
        *("partition-id", "replica-id", "opt-barrier", "add-dependency"),
    )
)
_SLICES = frozenset(("dynamic-slice", "slice", "gather"))
# What these write over their first operand: the operand of that number.
_IN_PLACE = {"dynamic-update-slice": 1, "scatter": 2}
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
    times: int = 1

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
        bytes: read from and written to main memory, without what stays in a TPU's VMEM. Every
            instruction reads its operands and writes its result; caches are not thought of.
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
        """That often; collectives keep their own count (`Collective.times`)."""
        return replace(self, flops=self.flops * times, bytes=self.bytes * times)

    @property
    def sent(self) -> float:
        """Bytes that a chip sends to others."""
        return sum(c.sent for c in self.collectives)


@dataclass(frozen=True)
class Costs:
    """Of a train step: `outside` the solvers' loops, and of a step of each solver."""

    outside: Cost = field(default_factory=Cost)
    forward: Cost = field(default_factory=Cost)
    adjoint: Cost = field(default_factory=Cost)
    loops: tuple[int, int] = (0, 0)  # solver loops of the program, forward and adjoint

    def step(self, forward_steps: float, adjoint_steps: float) -> Cost:
        """A train step whose solvers take that many steps."""
        total = self.outside + self.forward * forward_steps + self.adjoint * adjoint_steps
        return replace(total, collectives=self.outside.collectives)

    def once(self) -> Cost:
        """Every solver's body once."""
        return self.outside + self.forward + self.adjoint


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

    def costs(self) -> Costs:
        found = {"outside": Cost(), "forward": Cost(), "adjoint": Cost()}
        loops = {"forward": 0, "adjoint": 0}
        for part, cost in self._computation(self.program.entry, _Place(), loops):
            found[part] += cost
        return Costs(**found, loops=(loops["forward"], loops["adjoint"]))

    def _computation(self, name: str, at: _Place, loops: dict) -> Iterator[tuple[str, Cost]]:
        for i in self.program.computations.get(name, {}).values():
            if i.op == "while":
                inside = self._body(i, at, loops)
                for part in ("condition", "body"):
                    yield from self._computation(i.called[part], inside, loops)
            elif i.op == "conditional":
                yield from self._largest(i, at, loops)
            elif i.op in _CONTROL and i.called:
                yield from self._computation(next(iter(i.called.values())), at, loops)
            else:
                yield at.part, self._instruction(name, i, at)

    def _body(self, loop: Instruction, at: _Place, loops: dict) -> _Place:
        trips = 1 if self.once else self.program.trips(loop)
        if trips is not None or at.part != "outside":
            # Within a step of a solver a loop that depends on data counts once.
            return at._replace(times=at.times * (1 if trips is None else trips), in_loop=True)
        part = "adjoint" if "transpose(" in loop.op_name else "forward"
        loops[part] += 1
        return at._replace(part=part, in_loop=True)

    def _largest(self, i: Instruction, at: _Place, loops: dict) -> list[tuple[str, Cost]]:
        """As if the costliest branch were always taken."""
        branches = [
            list(self._computation(n, at, loops))
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
        return Cost(count, self._traffic(computation, i) * at.times, tuple(found))

    # ------------------------------------------------------------------------- communication

    def _collectives(self, computation: str, i: Instruction) -> Iterator[Collective]:
        if i.collective:
            given = sum(a.bytes for a in self._operands(computation, i))
            got = sum(a.bytes for a in i.arrays)
            if i.op.endswith("-start") and i.collective != "all-reduce":
                got -= given  # it returns its operands as well
            yield Collective(i.collective, max(given, got), self.program.group(i), False)
        elif i.op == "fusion":
            inner = i.called.get("calls", "")
            for j in self.program.computations.get(inner, {}).values():
                yield from self._collectives(inner, j)

    # ------------------------------------------------------------------------- memory traffic

    def _traffic(self, computation: str, i: Instruction) -> int:
        if i.op in _FREE or i.op.endswith("-done") or i.collective:
            return 0
        operands = self._operands(computation, i)
        if i.op.endswith("-start"):  # an asynchronous copy, or one of a slice
            moved = min(operands + i.arrays, key=lambda a: (a.bytes < 64, a.bytes), default=None)
            ends = operands[0].space == 0, any(a.space == 0 for a in _written(i, operands))
            return 0 if moved is None else moved.bytes * sum(ends)
        if i.op in _SLICES:
            return sum(2 * a.bytes for a in i.arrays if a.space == 0)
        if i.op in _IN_PLACE:
            return 2 * operands[_IN_PLACE[i.op]].bytes if i.arrays[0].space == 0 else 0
        if i.op != "fusion":
            return sum(a.bytes for a in (*operands, *i.arrays) if a.space == 0)
        return self._fusion_traffic(operands, i)

    def _fusion_traffic(self, operands: tuple, i: Instruction) -> int:
        inner = i.called.get("calls", "")
        body = self.program.computations.get(inner, {})
        parameters = {int(j.argument): j.name for j in body.values() if j.op == "parameter"}
        total = 0
        if len(parameters) == len(operands):
            for n, operand in enumerate(operands):
                if operand.space == 0:
                    total += min(operand.bytes, self._read(inner, parameters[n], operand.bytes))
        root = next((j for j in body.values() if j.root), None)
        results = [root] if root is not None else []
        if root is not None and root.op == "tuple":
            results = [body[n] for n in root.operands if n in body]
        for result, array in zip(results, i.arrays, strict=False):
            if array.space == 0:
                which = _IN_PLACE.get(result.op)
                update = None if which is None else body.get(result.operands[which])
                total += array.bytes if update is None else sum(a.bytes for a in update.arrays)
        return total

    def _read(self, computation: str, name: str, whole: int) -> int:
        """How much of a parameter of a fusion is read: all, or what slices take from it."""
        total = 0
        for j in self.program.computations[computation].values():
            if name not in j.operands:
                continue
            if j.op in _SLICES and j.operands[0] == name:
                total += sum(a.bytes for a in j.arrays)
            elif j.op == "bitcast":
                total += self._read(computation, j.name, whole)
            elif j.op in _IN_PLACE and j.operands[0] == name:
                pass  # written in place
            elif j.op == "fusion":
                inner = j.called.get("calls", "")
                for k in self.program.computations.get(inner, {}).values():
                    if k.op == "parameter" and j.operands[int(k.argument)] == name:
                        total += self._read(inner, k.name, whole)
            else:
                return whole
        return total

    def _operands(self, computation: str, i: Instruction) -> tuple:
        names = self.program.computations[computation]
        return tuple(a for n in i.operands if n in names for a in names[n].arrays)


def _written(i: Instruction, operands: tuple) -> list:
    """What an asynchronous copy returns besides its operand and its flag."""
    rest = [a for a in i.arrays if a.bytes >= 64]
    for operand in operands:
        if operand in rest:
            rest.remove(operand)
    return rest
