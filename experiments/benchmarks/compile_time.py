"""Time to trace and compile value-and-gradient, over a Picard custom_vjp written by hand."""

from __future__ import annotations

import time

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import deqjax

from . import peers
from .cells import Cell, cells
from .peers_jax import LIBRARIES
from .report import Row, Settings, at_most, info
from .timing import spread

TITLE = "Compile time of value-and-grad, by hand and by peers; traces of f (reference cell)"
SOLVERS = ("picard", "anderson", "broyden")


def run(settings: Settings) -> list[Row]:
    cell = cells(settings.quick)[0]
    losses = {"by hand": by_hand(cell)}
    for axis in (None, 0):
        losses |= {f"{s}, batch_axis={axis}": ours(cell, s, axis) for s in SOLVERS}
    rivals = {
        (library, solver): loss
        for library in peers.present(settings)
        for solver in SOLVERS
        if (loss := theirs(cell, library, solver)) is not None
    }
    named = {f"{library} {solver}": loss for (library, solver), loss in rivals.items()}
    seconds = compile_seconds(cell, losses | named, 2 if settings.quick else 7)
    base = seconds["by hand"]
    rows = [info("by hand", f"{np.median(base):.3f} s")]
    for name in (*list(losses)[1:], *named):
        ratio = spread(seconds[name] / base)
        rows.append(info(name, f"{np.median(seconds[name]):.3f} s ({ratio.median:.2f} of by hand)"))
    for solver in SOLVERS:
        times = {n: seconds[f"{n} {solver}"] for n, s in rivals if s == solver}
        if not times:
            continue
        fastest = min(times, key=lambda n: np.median(times[n]))
        over = spread(seconds[f"{solver}, batch_axis=None"] / times[fastest])
        rows.append(at_most(f"{solver}: deqjax / {fastest}", over.median, 1.0, over.quartiles))
    for solver in SOLVERS:
        for axis in (None, 0):
            forward, both = traces(cell, solver, axis)
            what = f"{solver}, batch_axis={axis}: traces of f"
            rows.append(at_most(f"{what}, forward", forward, 2))
            rows.append(at_most(f"{what}, more for the adjoint", both - forward, 1))
    return rows


def theirs(cell: Cell, library: str, solver: str):
    """The loss by a peer that runs on JAX and has that solver, to the same tolerance backward."""
    if library not in LIBRARIES:
        return None
    found = LIBRARIES[library]()
    label = {"anderson": "anderson(5)", "broyden": "broyden(10)"}.get(solver, solver)
    if label not in found.forward:
        return None
    way_back = label if library == "banax" else next(iter(found.backward))
    solve = found.forward[label].solve(100, (way_back, 100 if library == "banax" else 1e-5))
    start = lambda x: jnp.zeros_like(x)
    return lambda theta, x: jnp.vdot(cell.v, solve(cell.f, start(x), theta, x))


def compile_seconds(cell: Cell, losses: dict, rounds: int) -> dict[str, np.ndarray]:
    """Seconds of tracing, lowering and compiling, interleaved, nothing taken from a cache."""
    persistent = jax.config.jax_enable_compilation_cache  # type: ignore[attr-defined]
    jax.config.update("jax_enable_compilation_cache", False)
    given = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), (cell.theta, cell.x))
    seconds: dict[str, list[float]] = {name: [] for name in losses}
    try:
        for round_ in range(rounds + 1):
            order = list(losses) if round_ % 2 == 0 else list(losses)[::-1]
            for name in order:
                jax.clear_caches()
                start = time.perf_counter()
                jax.jit(jax.value_and_grad(losses[name], (0, 1))).lower(*given).compile()
                if round_:  # the first warms the process up
                    seconds[name].append(time.perf_counter() - start)
    finally:
        jax.config.update("jax_enable_compilation_cache", persistent)
    return {name: np.array(values) for name, values in seconds.items()}


def traces(cell: Cell, solver: str, axis) -> tuple[int, int]:
    """How often f is called in tracing (forward alone, value-and-gradient)."""
    calls = []

    def f(z, theta, x):
        calls.append(1)
        return cell.f(z, theta, x)

    counts = []
    loss = ours(cell, solver, axis, f)
    for function in (loss, jax.value_and_grad(loss, (0, 1))):
        jax.clear_caches()
        calls.clear()
        jax.jit(function).lower(cell.theta, cell.x)
        counts.append(len(calls))
    return counts[0], counts[1]


def ours(cell: Cell, solver: str, axis, f=None):
    def loss(theta, x):
        sol = deqjax.fixed_point(
            f or cell.f, jnp.zeros_like(x), theta, x, solver=solver, rtol=1e-5, batch_axis=axis
        )
        return jnp.vdot(cell.v, sol.z)

    return loss


def by_hand(cell: Cell, rtol: float = 1e-5, max_steps: int = 100):
    """What somebody who knows the theorem writes in 25 lines."""

    def iterate(f, z0):
        def unfinished(carry):
            k, z, fz = carry
            return (k < max_steps) & (jnp.linalg.norm(fz - z) > rtol * jnp.linalg.norm(fz))

        return lax.while_loop(unfinished, lambda c: (c[0] + 1, c[2], f(c[2])), (0, z0, f(z0)))[2]

    @jax.custom_vjp
    def solve(theta, x):
        return iterate(lambda z: cell.f(z, theta, x), jnp.zeros_like(x))

    def forward(theta, x):
        z = solve(theta, x)
        return z, (z, theta, x)

    def backward(saved, v):
        z, theta, x = saved
        _, pull = jax.vjp(cell.f, z, theta, x)
        u = iterate(lambda u: pull(u)[0] + v, v)
        return pull(u)[1:]

    solve.defvjp(forward, backward)
    return lambda theta, x: jnp.vdot(cell.v, solve(theta, x))
