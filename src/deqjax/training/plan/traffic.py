"""Bytes that an instruction of a compiled program moves through a chip's main memory.

It reads its operands and writes its result; caches are not thought of. What a TPU's compiler has
put into VMEM (another memory space than 0) moves nothing, and of a slice only the part counts.
"""

from __future__ import annotations

from .hlo import Array, Instruction, Program

# Instructions that move nothing: names for what is there.
_FREE = frozenset(
    (
        *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "domain"),
        *("partition-id", "replica-id", "opt-barrier", "add-dependency"),
    )
)
_SLICES = frozenset(("dynamic-slice", "slice", "gather"))
# What these write over their first operand: the operand of that number.
_IN_PLACE = {"dynamic-update-slice": 1, "scatter": 2}
_FLAG = 64  # bytes; smaller results of an asynchronous copy are its semaphores


def traffic(program: Program, computation: str, i: Instruction) -> int:
    """Bytes of one instruction. Calls, loops and branches are the caller's to follow."""
    if i.op in _FREE or i.op.endswith("-done") or i.collective:
        return 0
    given = operands(program, computation, i)
    if i.op.endswith("-start"):
        return _copy(given, i)
    if i.op in _SLICES:
        return sum(2 * a.bytes for a in i.arrays if a.space == 0)
    if i.op in _IN_PLACE:
        return 2 * given[_IN_PLACE[i.op]].bytes if i.arrays[0].space == 0 else 0
    if i.op == "fusion":
        return _fusion(program, given, i)
    moved = [*given, *i.arrays]
    if i.op == "custom-call":  # the last bytes that cuBLAS returns are its work space
        moved = [a for a in moved if a.dtype != "s8"]
    return sum(a.bytes for a in moved if a.space == 0)


def operands(program: Program, computation: str, i: Instruction) -> tuple[Array, ...]:
    """The arrays that an instruction is given."""
    names = program.computations[computation]
    return tuple(a for n in i.operands if n in names for a in names[n].arrays)


def _copy(given: tuple[Array, ...], i: Instruction) -> int:
    """An asynchronous copy, of an array or of a slice of it: one end or both in main memory. It
    returns its operand, its result and a flag."""
    results = [a for a in i.arrays if a.bytes >= _FLAG]
    for operand in given:
        if operand in results:
            results.remove(operand)
    if not results or not given:
        return 0
    ends = (given[0].space == 0) + any(a.space == 0 for a in results)
    return min(a.bytes for a in (*given[:1], *results)) * ends


def _fusion(program: Program, given: tuple[Array, ...], i: Instruction) -> int:
    inner = i.called.get("calls", "")
    body = program.computations.get(inner, {})
    parameters = {int(j.argument): j.name for j in body.values() if j.op == "parameter"}
    total = 0
    for n, operand in enumerate(given):
        if operand.space == 0:
            part = _read(program, inner, parameters[n]) if len(parameters) == len(given) else None
            total += operand.bytes if part is None else min(part, operand.bytes)
    root = next((j for j in body.values() if j.root), None)
    results = [] if root is None else [root]
    if root is not None and root.op == "tuple":
        results = [body[n] for n in root.operands if n in body]
    for result, array in zip(results, i.arrays, strict=False):
        if array.space == 0:
            which = _IN_PLACE.get(result.op)
            update = None if which is None else body.get(result.operands[which])
            total += array.bytes if update is None else sum(a.bytes for a in update.arrays)
    return total


def _read(program: Program, computation: str, name: str) -> int | None:
    """How much of a parameter of a fusion slices take from it; None if all of it is read."""
    total = 0
    for j in program.computations[computation].values():
        if name not in j.operands:
            continue
        part: int | None = None
        if j.op in _SLICES and j.operands[0] == name:
            part = sum(a.bytes for a in j.arrays)
        elif j.op == "bitcast":
            part = _read(program, computation, j.name)
        elif j.op in _IN_PLACE and j.operands[0] == name:
            part = 0
        elif j.op == "fusion":
            inner = j.called.get("calls", "")
            names = [
                k.name
                for k in program.computations.get(inner, {}).values()
                if k.op == "parameter" and j.operands[int(k.argument)] == name
            ]
            parts = [_read(program, inner, n) for n in names]
            part = None if None in parts else sum(p for p in parts if p is not None)
        if part is None:
            return None
        total += part
    return total
