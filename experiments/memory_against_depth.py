"""What a gradient costs against depth: stacks, flows and the equilibrium.

    python -m experiments.memory_against_depth

One cell, z⁺ = f(z) = tanh(zW + x), contractive, and the gradient of a loss to W: through L layers
that are kept, computed again from checkpoints, or followed as the flow dz/dt = f(z) − z, of which L
Euler steps of length one are those L layers; and by the implicit function theorem at the
equilibrium. For each, the temporary bytes of the compiled program (`memory_analysis`), the error
against the same stack in float64, and process CPU time. Writes a table, the numbers and a figure
into `experiments/results/memory_against_depth.{md,json,png}`.
"""

from __future__ import annotations

import datetime
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import deqjax
from deqjax.implicit import ode
from deqjax.training import command_line

from .memory_figure import draw, markdown

DEPTHS = (16, 64, 256, 1024, 4096)


@dataclass(frozen=True)
class Config:
    """Memory, gradient error and time of a gradient against depth."""

    depths: tuple[int, ...] = DEPTHS
    """layers; square numbers"""
    batch: int = 128
    """samples"""
    width: int = 128
    """of the state of each"""
    repeats: int = 3
    """timed runs of each program, interleaved; the fastest counts"""
    out: Path = Path("experiments/results/memory_against_depth.md")
    """the table; the numbers and the figure are written beside it"""


def cell(z, w, x):
    return jnp.tanh(z @ w + x)


def unrolled(w, x, depth: int, layer: Callable = cell):
    def step(z, _):
        return layer(z, w, x), None

    return jax.lax.scan(step, jnp.zeros_like(x), None, length=depth)[0]


def every_layer(w, x, depth: int):
    return unrolled(w, x, depth, jax.checkpoint(cell))


def root(w, x, depth: int):
    """A checkpoint every √L layers (Chen et al. 2016, arXiv 1604.06174)."""
    length = round(depth**0.5)

    @jax.checkpoint
    def several(z):
        return jax.lax.scan(lambda z, _: (cell(z, w, x), None), z, None, length=length)[0]

    def step(z, _):
        return several(z), None

    return jax.lax.scan(step, jnp.zeros_like(x), None, length=depth // length)[0]


def flow(adjoint: str, t1: float | None = None) -> Callable:
    """The flow to t1 in `depth` Euler steps; None, to t1 = depth."""

    def run(w, x, depth: int):
        return follow(w, x, depth, adjoint, t1).z

    return run


def follow(w, x, depth: int, adjoint: str, t1: float | None) -> deqjax.Solution:
    return ode(
        lambda t, z, w, x: cell(z, w, x) - z,
        jnp.zeros_like(x),
        w,
        x,
        t1=depth if t1 is None else t1,
        solver="euler",
        steps=depth,
        adjoint=adjoint,
    )


def equilibrium(solver: deqjax.Solver) -> Callable:
    tight: Any = dict(rtol=1e-6, adjoint_solver=solver)

    def run(w, x, depth: int):
        return deqjax.fixed_point(cell, jnp.zeros_like(x), w, x, solver=solver, **tight).z

    return run


METHODS: dict[str, Callable] = {
    "unrolled": unrolled,
    "checkpoint every layer": every_layer,
    "checkpoint every √L layers": root,
    "flow, recursive": flow("recursive"),
    "flow, direct": flow("direct"),
    "flow, backsolve": flow("backsolve"),
    "flow to t = 1, backsolve": flow("backsolve", 1.0),
    "equilibrium, Picard": equilibrium(deqjax.Picard(max_steps=400)),
    "equilibrium, Anderson": equilibrium(deqjax.Anderson(max_steps=400)),
}


def short_stack(w, x, depth: int):
    """L Euler steps to t = 1: what a flow of that length is compared with."""
    return unrolled(w, x, depth, lambda z, w, x: z + (cell(z, w, x) - z) / depth)


def main(config: Config) -> None:
    w, x, v = data(config)
    rows: list[dict[str, Any]] = []
    for depth in config.depths:
        exact = {False: reference(unrolled, w, x, v, depth)}
        exact[True] = reference(short_stack, w, x, v, depth)
        programs = {name: compiled(run, w, x, v, depth) for name, run in METHODS.items()}
        seconds = timed(programs, (w, x, v), config.repeats)
        for name, program in programs.items():
            gradient = np.asarray(program(w, x, v), np.float64)
            true = exact["t = 1" in name]
            row: dict[str, Any] = dict(
                method=name,
                depth=depth,
                bytes=program.memory_analysis().temp_size_in_bytes,
                error=float(np.linalg.norm(gradient - true) / np.linalg.norm(true)),
                seconds=seconds[name],
                gradient=bool(np.any(gradient)),
            )
            if "backsolve" in name:
                row["reconstruction"] = reconstruction(
                    w, x, depth, 1.0 if "t = 1" in name else None
                )
            rows.append(row)
            print(json.dumps(row), flush=True)
    record(config, rows)
    print(f"written: {config.out}")


def data(config: Config) -> tuple[jax.Array, jax.Array, jax.Array]:
    """W symmetric with eigenvalues from −0.9 to 0.9, inputs, and the cotangent of the last state.

    The modes of the flow then decay at rates from 0.1 to 1.9: gradients come from far back, where
    slow modes are still felt and a fast one, followed backwards, has left every bound.
    """
    rng = np.random.default_rng(0)
    q, _ = np.linalg.qr(rng.normal(size=(config.width, config.width)))
    w = q * np.linspace(-0.9, 0.9, config.width) @ q.T
    x, v = rng.normal(size=(2, config.batch, config.width))
    x = 0.3 * x
    return jnp.asarray(w, jnp.float32), jnp.asarray(x, jnp.float32), jnp.asarray(v, jnp.float32)


def compiled(run: Callable, w, x, v, depth: int) -> Any:
    def loss(w, x, v):
        return jnp.sum(v * run(w, x, depth))

    return jax.jit(jax.grad(loss)).lower(w, x, v).compile()


def reference(run: Callable, w, x, v, depth: int) -> np.ndarray:
    """The gradient in float64."""
    with jax.enable_x64(True):
        given = [jnp.asarray(np.asarray(a), jnp.float64) for a in (w, x, v)]
        return np.asarray(compiled(run, given[0], given[1], given[2], depth)(*given))


def timed(programs: dict[str, Any], given: tuple, repeats: int) -> dict[str, float]:
    """The least process CPU time of each, in seconds."""
    best = dict.fromkeys(programs, float("inf"))
    for _ in range(repeats):
        for name, program in programs.items():
            start = time.process_time()
            jax.block_until_ready(program(*given))
            best[name] = min(best[name], time.process_time() - start)
    return best


def reconstruction(w, x, depth: int, t1: float | None) -> float | None:
    """‖z̃0 − z0‖ relative to the solution; None where the backward solve ended before t0."""

    def solve(w, x):
        stats: Any = follow(w, x, depth, "backsolve", t1).stats  # those of a flow
        return stats.reconstruction

    found = float(jax.jit(solve)(w, x))
    return found if np.isfinite(found) else None


def record(config: Config, rows: list[dict[str, Any]]) -> None:
    command = " ".join(["python -m experiments.memory_against_depth", *sys.argv[1:]])
    device = jax.devices()[0].device_kind
    said = (
        f"`{command}`, {datetime.date.today().isoformat()}, jax {jax.__version__}, {device}, batch "
        f"{config.batch}, width {config.width}, float32."
    )
    out = config.out
    out.parent.mkdir(parents=True, exist_ok=True)
    kept = json.dumps(dict(said=said, rows=rows), indent=1)
    out.with_suffix(".json").write_text(kept + "\n", "utf-8")
    out.write_text(markdown(said, rows), "utf-8")
    draw(rows, out.with_suffix(".png"))


if __name__ == "__main__":
    command_line(Config, main)
