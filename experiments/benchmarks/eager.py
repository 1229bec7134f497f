"""What a repeated call outside of `jit` takes beyond the same call inside, as a notebook makes it.

Every call brings a function that is new to JAX. optimistix, where it is installed, is called alike.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

import deqjax

from .report import Row, Settings, at_most, info
from .timing import interleaved, spread

TITLE = "A repeated call outside of jit over the same call inside, 64 numbers"
SOLVE, GRADIENT = 1.0, 2.0  # ms
SIZE = 64


def run(settings: Settings) -> list[Row]:
    w = 0.3 * jax.random.normal(jax.random.key(0), (SIZE, SIZE)) / SIZE**0.5
    x = jnp.linspace(-1.0, 1.0, SIZE)
    solvers: dict[str, Callable] = {"deqjax": ours}
    if "optimistix" in settings.peers and (found := theirs()) is not None:
        solvers["optimistix"] = found
    functions: dict[Any, Callable] = {}
    for name, solve in solvers.items():
        gradient = jax.grad(lambda w, x, solve=solve: solve(w, x).sum(), (0, 1))
        for what, call in (("solve", solve), ("gradient", gradient)):
            functions[name, what, "eager"] = lambda call=call: call(w, x)
            compiled = jax.jit(call)
            functions[name, what, "jit"] = lambda compiled=compiled: compiled(w, x)
    times = interleaved(functions, **settings.timing)
    rows = []
    for name in solvers:
        for what, limit in (("solve", SOLVE), ("gradient", GRADIENT)):
            eager, jitted = (times.seconds[name, what, how] for how in ("eager", "jit"))
            over = spread(1e3 * (eager - jitted))
            label = f"{name}, {what}"
            if name == "deqjax":
                rows.append(at_most(label, over.median, limit, over.quartiles, " ms"))
            else:
                rows.append(info(label, f"{over.median:.2f} ms ({over.quartiles})"))
    return rows


def ours(w, x):
    return deqjax.fixed_point(lambda z: jnp.tanh(w @ z + x), jnp.zeros(SIZE)).z


def theirs() -> Callable | None:
    try:
        import optimistix  # pyright: ignore[reportMissingImports]
    except ImportError:
        return None
    solver = optimistix.FixedPointIteration(rtol=1e-5, atol=1e-5)

    def solve(w, x):
        f = lambda z, args: jnp.tanh(args[0] @ z + args[1])
        return optimistix.fixed_point(f, solver, jnp.zeros(SIZE), (w, x)).value

    return solve
