"""Multiplications of an instruction of a compiled program: products of matrices, convolutions.

A TPU's compiler writes a batched product as a convolution whose windows step from one matrix to the
next; only the positions at which a window meets its input count, as in XLA's own analysis.
"""

from __future__ import annotations

import math
import re

import numpy as np

from .hlo import Instruction, Program


def flops(program: Program, computation: str, i: Instruction) -> float:
    """Floating-point operations: two for a multiplication and its addition.

    A fusion counts what is in it. Calls and loops do not: they are the caller's to follow.
    """
    if i.op == "fusion":
        inner = i.called.get("calls", "")
        return sum(flops(program, inner, j) for j in program.computations.get(inner, {}).values())
    names = program.computations[computation]
    operands = [names[n].arrays[0] for n in i.operands if n in names and names[n].arrays]
    if i.op == "dot":
        return _product(i, operands, i.attribute("lhs_contracting_dims"))
    if i.op == "custom-call" and (found := _LIBRARY.search(i.attributes)):
        return _product(i, operands, found[1].replace('"', ""))
    return _convolution(i, operands) if i.op == "convolution" else 0.0


# A product that the compiler has given to a library, such as cuBLAS.
_LIBRARY = re.compile(r'"lhs_contracting_dimensions":\[([^\]]*)\]')


def _product(i: Instruction, operands: list, contracted: str) -> float:
    """2 · (elements of the result) · (length of the sums)."""
    sizes = [operands[0].sizes[int(n)] for n in contracted.split(",") if n]
    return 2.0 * math.prod(i.arrays[0].sizes) * math.prod(sizes)


def _convolution(i: Instruction, operands: list) -> float:
    lhs, rhs, out = operands[0].sizes, operands[1].sizes, i.arrays[0].sizes
    labels = re.match(r"(\w+)_(\w+)->(\w+)", i.attribute("dim_labels"))
    assert labels is not None
    window = dict(part.split("=") for part in i.attribute("window").split())
    spatial = sorted(n for n in labels[1] if n.isdecimal())

    def numbers(key: str, default: int) -> list[int]:
        """One for each spatial dimension; of a pair, such as a padding, the first."""
        given = window[key].split("x") if key in window else []
        return [int(n.split("_")[0]) for n in given] or [default] * len(spatial)

    strides, dilated, spread = (numbers(k, 1) for k in ("stride", "lhs_dilate", "rhs_dilate"))
    pads = numbers("pad", 0)
    positions = 1
    for k, label in enumerate(spatial):
        size = lhs[labels[1].index(label)]
        at = (
            np.arange(out[labels[3].index(label)])[:, None] * strides[k]
            - pads[k]
            + np.arange(rhs[labels[2].index(label)])[None, :] * spread[k]
        )
        positions *= int(((at % dilated[k] == 0) & (at >= 0) & (at < size * dilated[k])).sum())
    batch, features = lhs[labels[1].index("b")], out[labels[3].index("f")]
    groups = int(i.attribute("batch_group_count") or 1)
    # The kernel's input features are already those of one group.
    return 2.0 * positions * rhs[labels[2].index("i")] * features * batch / groups
