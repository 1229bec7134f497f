"""A compiled program read from its text: XLA's HLO, as `compiled.as_text()` prints it.

Only what costs need: which instructions a computation has, what they call, how large they are.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

_BITS = {"pred": 8, "bf16": 16, "tf32": 32, "c64": 64, "c128": 128, "token": 0, "opaque": 0}
_ARRAY = re.compile(r"([a-z]+[0-9a-z]*)\[([0-9,]*)\](?:\{([^{}]*)\})?")
_HEAD = re.compile(r"(ENTRY )?%?([\w.\-]+) \(")
_LINE = re.compile(r"\s*(?:ROOT )?%?([\w.\-]+) = ")
_CALLS = re.compile(
    r"(calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.\-]+)"
)
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_KIND = re.compile(
    r"(all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute|collective-broadcast)"
    r"(-start)?$"
)


@dataclass(frozen=True)
class Array:
    """One array of a shape: its type, its sizes, and where it lives.

    Attributes:
        space: XLA's memory space; 0 is the chip's main memory, 1 on a TPU its VMEM.
    """

    dtype: str
    sizes: tuple[int, ...]
    space: int = 0

    @property
    def bytes(self) -> int:
        """Without the padding of a tiled layout."""
        bits = _BITS.get(self.dtype) or _bits(self.dtype)
        return math.prod(self.sizes) * bits // 8


@dataclass(frozen=True)
class Instruction:
    """One line: name = shape op(operands), attributes."""

    name: str
    shape: str
    op: str
    operands: tuple[str, ...]
    argument: str  # what stands in the parentheses
    attributes: str
    root: bool

    @cached_property
    def arrays(self) -> tuple[Array, ...]:
        """What it returns; several for a tuple."""
        return arrays(self.shape)

    @property
    def called(self) -> dict[str, str]:
        """The computations that it names: "body", "condition", "calls", "to_apply" and branches."""
        found = dict(_CALLS.findall(self.attributes))
        for names in _BRANCHES.findall(self.attributes):
            for i, name in enumerate(re.findall(r"%?([\w.\-]+)", names)):
                found[f"branch {i}"] = name
        return found

    @property
    def collective(self) -> str | None:
        """Its kind, such as "all-reduce", if devices communicate in it. Of a pair of start and
        done, the start counts."""
        kind = _KIND.match(self.op)
        return kind[1] if kind else None

    def attribute(self, name: str) -> str:
        """What stands after `name=`, braces taken off; "" if nothing does."""
        found = re.search(rf"\b{name}=(?:\{{([^}}]*)\}}|([^\s,]+))", self.attributes)
        return "" if found is None else found[1] if found[1] is not None else found[2]

    @property
    def op_name(self) -> str:
        """Where in the Python program it comes from."""
        found = re.search(r'op_name="([^"]*)"', self.attributes)
        return found[1] if found else ""


@dataclass(frozen=True)
class Program:
    """All computations by name, each the instructions by name, in their order."""

    computations: dict[str, dict[str, Instruction]]
    entry: str
    devices: int = 1

    @classmethod
    def parse(cls, text: str) -> Program:
        computations: dict[str, dict[str, Instruction]] = {}
        entry, now = "", {}
        for line in text.splitlines():
            if line[:1] in ("%", "E") or (line[:1].isalpha() and line.endswith("{")):
                head = _HEAD.match(line)
                if head and line.rstrip().endswith("{"):
                    now = computations.setdefault(head[2], {})
                    entry = head[2] if head[1] else entry
            elif " = " in line and (found := _instruction(line)):
                now[found.name] = found
        counts = re.findall(r"(?:num_partitions|replica_count)=(\d+)", text[: text.find("\n")])
        return cls(computations, entry, math.prod(map(int, counts)))

    def inside_loops(self) -> set[str]:
        """The computations that loops repeat: bodies, conditions, and whatever these call."""
        inside: set[str] = set()
        todo = [
            name
            for computation in self.computations.values()
            for i in computation.values()
            if i.op == "while"
            for name in i.called.values()
        ]
        while todo:
            name = todo.pop()
            if name not in inside:
                inside.add(name)
                for i in self.computations.get(name, {}).values():
                    todo += i.called.values()
        return inside

    def trips(self, loop: Instruction) -> int | None:
        """How often a loop runs, where the program says: its condition compares a counter, which
        starts at 0, with a constant. None where it depends on data."""
        known = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', loop.attributes)
        if known:
            return int(known[1])
        condition = self.computations.get(loop.called.get("condition", ""), {})
        root = next((i for i in condition.values() if i.root), None)
        if root is None or root.op != "compare" or root.attribute("direction") != "LT":
            return None
        limit = condition.get(root.operands[-1])
        return int(limit.argument) if limit is not None and limit.op == "constant" else None

    def group(self, i: Instruction) -> int:
        """How many devices take part in a collective together, in whichever of XLA's ways it says
        so: {{0,1},{2,3}}, [2,2]<=[4], or the axes of a mesh."""
        text = i.attributes.partition("replica_groups=")[2]
        if not text or text.startswith("{}"):
            return 2 if "source_target_pairs" in i.attributes else self.devices
        if text.startswith("mesh"):
            sizes = dict(re.findall(r"('[^']*')=(\d+)", text[: text.index("]")]))
            axes = re.search(r"\{('[^}]*)\}", text)
            named = axes[1].split(",") if axes else list(sizes)
            # A part of an axis is written 'axis':(offset)size.
            return math.prod(int(a.rpartition(")")[2] if ")" in a else sizes[a]) for a in named)
        if text.startswith("["):
            return int(text[1 : text.index("]")].split(",")[-1])
        return text[: text.index("}")].count(",") + 1


def collectives(text: str) -> tuple[dict[str, int], dict[str, int]]:
    """How many collectives of each kind a compiled program has: (in loops and what they call,
    outside).

    Examples:
        >>> from deqjax.training.plan.hlo import collectives
        >>> collectives('''ENTRY %main (x: f32[8]) -> f32[8] {
        ...   %x = f32[8]{0} parameter(0)
        ...   ROOT %sum = f32[8]{0} all-reduce(%x), to_apply=%add
        ... }''')
        ({}, {'all-reduce': 1})
    """
    program = Program.parse(text)
    inside = program.inside_loops()
    counts: tuple[dict[str, int], dict[str, int]] = ({}, {})
    for name, computation in program.computations.items():
        count = counts[0 if name in inside else 1]
        for i in computation.values():
            if i.collective:
                count[i.collective] = count.get(i.collective, 0) + 1
    return counts


def arrays(shape: str) -> tuple[Array, ...]:
    """The arrays of a shape, such as "f32[4,8]{1,0:T(8,128)S(1)}" or a tuple of them."""

    def read() -> Iterator[Array]:
        for dtype, sizes, layout in _ARRAY.findall(shape):
            space = re.search(r"S\((\d+)\)", layout)
            numbers = tuple(int(n) for n in sizes.split(",") if n)
            yield Array(dtype, numbers, int(space[1]) if space else 0)

    return tuple(read())


def _bits(dtype: str) -> int:
    found = re.match(r"[a-z]+(\d+)", dtype)  # f8e4m3fn has 8
    return int(found[1]) if found else 0


def _instruction(line: str) -> Instruction | None:
    name = _LINE.match(line)
    if name is None:
        return None
    rest = line[name.end() :]
    end = _closing(rest) + 1 if rest[0] == "(" else rest.find(" ")
    shape, rest = rest[:end], rest[end:].lstrip()
    opening = rest.find("(")
    if opening < 0:
        return None
    op, rest = rest[:opening], rest[opening:]
    end = _closing(rest)
    argument = rest[1:end]
    operands = tuple(re.findall(r"%([\w.\-]+)", argument))
    root = line.lstrip().startswith("ROOT ")
    return Instruction(name[1], shape, op, operands, argument, rest[end + 1 :], root)


def _closing(text: str) -> int:
    """Where the parenthesis that opens `text` closes."""
    depth = 0
    for found in re.finditer(r"[()]", text):
        depth += 1 if found[0] == "(" else -1
        if not depth:
            return found.start()
    return len(text)
