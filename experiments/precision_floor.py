"""How small a residual can get, by the precision in which f multiplies matrices.

    python -m experiments.precision_floor

Unless a precision is asked for, JAX multiplies float32 matrices in float32 on a CPU, in
TensorFloat-32 (10 bits) on a GPU, and in bfloat16 (7 bits) on a TPU; sums are of float32. f then
rounds what it is given, and no solver gets below what that leaves. Here the operands of every
product in f are rounded so, which any device can do. Writes the table into
`experiments/results/precision_floor.md`.
"""

from __future__ import annotations

import datetime
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend import core

import deqjax
from deqjax.training import command_line

from .benchmarks.cells import Cell, cells
from .tables import table

# Bits of the mantissa of what is multiplied; None is all.
PRODUCTS = {"device": None, "TensorFloat-32": 10, "bfloat16": 7}
SOLVERS = {"Picard": deqjax.Picard(), "Anderson": deqjax.Anderson(), "Broyden": deqjax.Broyden()}
STEPS = 80

EXPLAINED = f"""\
The largest relative residual ‖f(z) − z‖/‖f(z)‖ over the samples of a batch, each at its best
iterate of {STEPS} steps that nothing stops, for the cells of the benchmarks in float32. Columns say
to what the operands of f's matrix products are rounded: by the device alone, by its default; to
TensorFloat-32, as a GPU does by default; to bfloat16, as a TPU does. In the last one all of f is in
bfloat16, as in `DEQ(dtype="bfloat16")`. A tolerance below such a floor is never met:
`jax_default_matmul_precision` set to "highest" brings a GPU or a TPU to what a CPU does.
"""


@dataclass(frozen=True)
class Config:
    """Residual floors of the benchmark cells on the device at hand."""

    quick: bool = False
    """tiny cells: shows that everything runs"""
    out: Path = Path("experiments/results/precision_floor.md")
    """the table; those of other devices stay in it"""


def main(config: Config) -> None:
    device = jax.devices()[0].device_kind
    rows = []
    for cell in cells(config.quick)[:3]:
        for name, solver in SOLVERS.items():
            found = [floor(cell, solver, bits) for bits in PRODUCTS.values()]
            found.append(floor(cell, solver, dtype=jnp.bfloat16))
            rows.append([cell.name, name, *(f"{x:.1e}" for x in found)])
            print(" | ".join(rows[-1]), flush=True)
            _record(config.out, device, rows)
    print(f"written: {config.out}")


def floor(
    cell: Cell, solver: deqjax.Solver, bits: int | None = None, dtype: Any = jnp.float32
) -> float:
    """The worst sample's best relative residual, by f with products of so many bits, in `dtype`."""

    def f(z, theta, x):
        return cell.f(*jax.tree.map(lambda a: a.astype(dtype), (z, theta, x))).astype(z.dtype)

    @jax.jit
    def solve(z0, theta, x):
        sol = deqjax.fixed_point(
            f if bits is None else rounding_products(f, bits),
            z0,
            theta,
            x,
            solver=solver,
            rtol=0.0,
            atol=0.0,
            max_steps=STEPS,
            batch_axis=0,
        )
        return sol.stats.rel_residual

    found = solve(*jax.tree.map(jnp.asarray, (cell.z0, cell.theta, cell.x)))
    return float(np.max(np.asarray(found)))


def rounding_products(f: Callable, bits: int) -> Callable:
    """f with what its matrix products are given rounded to `bits` bits of mantissa first.

    f returns one array, and calls nothing but functions of JAX.
    """

    def rounded(*args):
        given = jax.make_jaxpr(f)(*args)
        (out,) = _evaluate(given, bits, jax.tree.leaves(args))
        return out

    return rounded


def _evaluate(closed: core.ClosedJaxpr, bits: int, args: list[Any]) -> list[Any]:
    jaxpr = closed.jaxpr
    known = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*closed.consts, *args], strict=True))
    read = lambda v: v.val if isinstance(v, core.Literal) else known[v]
    for equation in jaxpr.eqns:
        given = [read(v) for v in equation.invars]
        inner = equation.params.get("jaxpr", equation.params.get("call_jaxpr"))
        if inner is not None:
            found = _evaluate(inner, bits, given)
        else:
            if equation.primitive is lax.dot_general_p:
                given = [lax.reduce_precision(x, 8, bits) for x in given]
            found = equation.primitive.bind(*given, **equation.params)
            found = found if equation.primitive.multiple_results else [found]
        known |= dict(zip(equation.outvars, found, strict=True))
    return [read(v) for v in jaxpr.outvars]


def _record(path: Path, device: str, rows: list[list[str]]) -> None:
    data = path.with_suffix(".json")
    kept = json.loads(data.read_text("utf-8")) if data.exists() else {}
    command = " ".join(["python -m experiments.precision_floor", *sys.argv[1:]])
    said = f"`{command}`, {datetime.date.today().isoformat()}, jax {jax.__version__}."
    kept[device] = dict(said=said, rows=rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    data.write_text(json.dumps(kept, indent=1) + "\n", "utf-8")
    head = ["cell", "solver", *PRODUCTS, "all of f in bfloat16"]
    parts = ["# Residual floors", "", EXPLAINED]
    for name, of_device in kept.items():
        parts += [f"## {name}", "", of_device["said"], "", table(head, of_device["rows"]), ""]
    path.write_text("\n".join(parts), "utf-8")


if __name__ == "__main__":
    command_line(Config, main)
