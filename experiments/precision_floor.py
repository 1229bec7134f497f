"""How small a residual can get, by the precision in which f multiplies matrices.

    python -m experiments.precision_floor

A float32 product is one of float32 on a CPU, of TensorFloat-32 (10 bits) on a GPU and of bfloat16
(7 bits) on a TPU, unless a precision is asked for. f then rounds what it is given, and no solver
gets below what that leaves. Writes the table into `experiments/results/precision_floor.md`.
"""

from __future__ import annotations

import datetime
import json
import sys
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import deqjax
from deqjax.training import command_line

from .benchmarks.cells import Cell, cells

PRECISIONS = ("default", "BF16_BF16_F32", "float32")
SOLVERS = {"Picard": deqjax.Picard(), "Anderson": deqjax.Anderson(), "Broyden": deqjax.Broyden()}
STEPS = 80

EXPLAINED = f"""\
The largest relative residual ‖f(z) − z‖/‖f(z)‖ over the samples of a batch, each at its best
iterate of {STEPS} steps that nothing stops, for the cells of the benchmarks. The columns are JAX's
`jax_default_matmul_precision`; the state and the solver are in float32. BF16_BF16_F32 rounds what
is multiplied to bfloat16 and adds in float32, as a TPU does by default; a CPU ignores it. The last
column computes f in bfloat16 altogether, as `DEQ(dtype=)` does. A tolerance below such a floor is
never met.
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
            found = [floor(cell, solver, p) for p in PRECISIONS]
            found.append(floor(cell, solver, "float32", jnp.bfloat16))
            rows.append([cell.name, name, *(f"{x:.1e}" for x in found)])
            print(" | ".join(rows[-1]), flush=True)
    _record(config.out, device, rows)
    print(f"written: {config.out}")


def floor(cell: Cell, solver: deqjax.Solver, precision: str, dtype=jnp.float32) -> float:
    """The worst sample's best relative residual, by f in that precision."""

    def f(z, theta, x):
        return cell.f(*jax.tree.map(lambda a: a.astype(dtype), (z, theta, x))).astype(z.dtype)

    @jax.jit
    def solve(z0, theta, x):
        sol = deqjax.fixed_point(
            f, z0, theta, x, solver=solver, rtol=0.0, atol=0.0, max_steps=STEPS, batch_axis=0
        )
        return sol.stats.rel_residual

    with jax.default_matmul_precision(precision):
        found = solve(*jax.tree.map(jnp.asarray, (cell.z0, cell.theta, cell.x)))
    return float(np.max(np.asarray(found)))


def _record(path: Path, device: str, rows: list[list[str]]) -> None:
    data = path.with_suffix(".json")
    kept = json.loads(data.read_text("utf-8")) if data.exists() else {}
    command = " ".join(["python -m experiments.precision_floor", *sys.argv[1:]])
    said = f"`{command}`, {datetime.date.today().isoformat()}, jax {jax.__version__}."
    kept[device] = dict(said=said, rows=rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    data.write_text(json.dumps(kept, indent=1) + "\n", "utf-8")
    head = ["cell", "solver", *PRECISIONS, "f in bfloat16"]
    parts = ["# Residual floors", "", EXPLAINED]
    for name, table in kept.items():
        lines = [head, ["---"] * len(head), *table["rows"]]
        parts += [f"## {name}", "", table["said"], ""]
        parts += ["\n".join("| " + " | ".join(line) + " |" for line in lines), ""]
    path.write_text("\n".join(parts), "utf-8")


if __name__ == "__main__":
    command_line(Config, main)
