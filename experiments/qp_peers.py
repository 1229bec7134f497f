"""`implicit.qp` beside the quadratic programs of jaxopt and qpax.

    python -m experiments.qp_peers

One batch of strictly convex programs, one of them near to degenerate, by each library in float64
and in float32, forward and with the gradient to all operands: process CPU time, interleaved in one
process, and errors against a dense solve on the constraints that bind. qpax takes part where it is
installed. Writes the table into `experiments/results/qp_peers.md`.
"""

from __future__ import annotations

import datetime
import importlib.util
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import jaxopt
import numpy as np

from deqjax.implicit import qp
from deqjax.training import command_line

from .tables import table

TOLERANCES = {"float64": 1e-9, "float32": 1e-5}
MARGIN = 3e-5

EXPLAINED = f"""\
A batch of strictly convex programs with n unknowns, half as many inequalities and a quarter as many
equalities; in one of them an inequality is within {MARGIN:g} of the other side. Time is process CPU
time, the least of all rounds, interleaved in one process. Errors are of z and of the gradient of
a random linear function of z to Q, q, A, b, G and h: the largest in a sample relative to the
largest entry of that gradient, worst sample and operand. The reference is a dense float64 solve on
the constraints that bind, whose signs prove them right. "Converged" is what a library says itself.
qpax smooths gradients: with κ = 1e-8 here, 1e-3 by default.
"""


@dataclass(frozen=True)
class Config:
    """Time and gradients of quadratic programs, beside jaxopt and qpax."""

    batch: int = 128
    """programs in a batch"""
    n: int = 64
    """unknowns of each"""
    rounds: int = 15
    """of timing"""
    out: Path = Path("experiments/results/qp_peers.md")
    """the table; those of other versions of JAX stay in it"""


class Programs(NamedTuple):
    """(batch, ...) float64 operands."""

    Q: np.ndarray
    q: np.ndarray
    A: np.ndarray
    b: np.ndarray
    G: np.ndarray
    h: np.ndarray


class Peer(NamedTuple):
    """solve(operands, tolerance) → z, and which samples it says have converged."""

    name: str
    solve: Callable


def main(config: Config) -> None:
    jax.config.update("jax_enable_x64", True)
    n = config.n
    programs = nearly_degenerate(strictly_convex(config.batch, n, n // 2, n // 4), 0, MARGIN)
    z_bar = np.random.default_rng(1).standard_normal(programs.q.shape)
    binding = np.asarray(binding_rows(programs))
    wanted = [reference(programs, i, binding[i], z_bar[i]) for i in range(config.batch)]
    rows = []
    for dtype in TOLERANCES:
        # jaxopt's loops mix the two where float64 is on.
        with jax.enable_x64(dtype == "float64"):
            rows += measured(programs, z_bar, wanted, dtype, config.rounds)
    _record(config, rows)
    print(f"written: {config.out}")


def measured(programs: Programs, z_bar, wanted, dtype: str, rounds: int) -> list[list[str]]:
    tolerance, batch = TOLERANCES[dtype], len(wanted)
    operands = tuple(jnp.asarray(x, dtype) for x in programs)
    weights = jnp.asarray(z_bar, dtype)
    runs = {}
    for peer in peers():
        forward = partial(peer.solve, tolerance=tolerance)
        loss = lambda o, forward=forward: jnp.vdot(forward(o)[0], weights)
        runs[peer.name] = jax.jit(forward), jax.jit(jax.value_and_grad(loss))
    times = interleaved(runs, operands, rounds)
    rows = []
    for name, (forward, backward) in runs.items():
        z, converged = forward(operands)
        bars = backward(operands)[1]
        errors = [_worst(x, [w[k] for w in wanted]) for k, x in enumerate(bars)]
        off = np.abs(np.asarray(z) - np.stack([w[-1] for w in wanted])).max()
        took = [f"{1e3 * t:.1f}" for t in times[name]]
        count = f"{int(np.sum(np.asarray(converged)))} of {batch}"
        rows.append([dtype, name, *took, count, f"{off:.1e}", f"{max(errors):.1e}"])
        print(" | ".join(rows[-1]), flush=True)
    return rows


# ------------------------------------------------------------------------------- the programs


def strictly_convex(batch: int, n: int, m: int, p: int, seed: int = 0) -> Programs:
    """Feasible programs of which a part of the inequalities binds."""
    rng = np.random.default_rng(seed)
    F = rng.standard_normal((batch, n, n))
    Q = F @ F.swapaxes(1, 2) / n + 0.1 * np.eye(n)
    A, G = rng.standard_normal((batch, p, n)), rng.standard_normal((batch, m, n))
    z = rng.standard_normal((batch, n))
    b = np.einsum("bij,bj->bi", A, z)
    h = np.einsum("bij,bj->bi", G, z) + 3 * rng.random((batch, m))
    return Programs(Q, 2 * rng.standard_normal((batch, n)), A, b, G, h)


def nearly_degenerate(programs: Programs, i: int, margin: float) -> Programs:
    """The same with one inequality of sample i that nearly binds: its slack is `margin`."""
    sol = qp(*programs, rtol=1e-10)
    slack = np.where(sol.lam[i] > 0, np.inf, sol.slack[i])
    row = int(np.argmin(slack))
    h = programs.h.copy()
    h[i, row] -= slack[row] - margin
    return programs._replace(h=h)


def binding_rows(programs: Programs) -> jax.Array:
    sol = qp(*programs, rtol=1e-10)
    return sol.lam > sol.slack


def reference(programs: Programs, i: int, binds: np.ndarray, z_bar: np.ndarray) -> list[np.ndarray]:
    """The gradients to all operands, and z, of sample i by dense solves on the rows that bind."""
    Q, q, A, b, G, h = (x[i] for x in programs)
    M, n, p = np.vstack([A, G[binds]]), len(q), len(b)
    K = np.block([[Q, M.T], [M, np.zeros((len(M), len(M)))]])
    z, y = np.split(np.linalg.solve(K, np.concatenate([-q, b, h[binds]])), [n])
    if not (np.all(y[p:] >= 0) and np.all((h - G @ z)[~binds] >= 0)):
        raise AssertionError(f"these are not the constraints that bind in sample {i}")
    u, w = np.split(np.linalg.solve(K, -np.concatenate([z_bar, np.zeros(len(M))])), [n])
    M_bar = np.outer(y, u) + np.outer(w, z)
    G_bar, h_bar = np.zeros_like(G), np.zeros_like(h)
    G_bar[binds], h_bar[binds] = M_bar[p:], -w[p:]
    return [(np.outer(u, z) + np.outer(z, u)) / 2, u, M_bar[:p], -w[:p], G_bar, h_bar, z]


def _worst(found: jax.Array, wanted: list[np.ndarray]) -> float:
    # A gradient to Q counts by its symmetric part: that is what zᵀQz can tell.
    found = np.asarray(found, np.float64)
    if found.ndim == 3 and found.shape[1] == found.shape[2]:
        found = (found + found.swapaxes(1, 2)) / 2
    pairs = zip(found, wanted, strict=True)
    return max(float(np.abs(x - y).max() / np.abs(y).max()) for x, y in pairs)


# ------------------------------------------------------------------------------- the libraries


def peers() -> list[Peer]:
    every = [Peer("deqjax", _deqjax), Peer("jaxopt OSQP", _osqp)]
    if importlib.util.find_spec("qpax"):
        every.append(Peer("qpax implicit", _qpax))
    return every


def _deqjax(operands, tolerance):
    sol = qp(*operands, rtol=tolerance)
    return sol.z, sol.stats.converged


def _osqp(operands, tolerance):
    def one(Q, q, A, b, G, h):
        found = jaxopt.OSQP(tol=tolerance).run(None, (Q, q), (A, b), (G, h))
        return found.params.primal, found.state.status == jaxopt.BoxOSQP.SOLVED

    return jax.vmap(one)(*operands)


def _qpax(operands, tolerance):
    import qpax

    options = dict(backend="i", solver_tol=tolerance)

    def one(*o):
        z = qpax.solve_qp_primal(*o, **options, target_kappa=1e-8)
        # What the differentiable function does not tell; the compiler drops it from a timing.
        return z, qpax.solve_qp(*jax.lax.stop_gradient(o), **options)[4] == 1

    return jax.vmap(one)(*operands)


def interleaved(runs: dict, operands: tuple, rounds: int) -> dict[str, list[float]]:
    """Process CPU seconds of z, and of z with its gradient."""
    only_z = {k: (jax.jit(lambda o, f=f: f(o)[0]), g) for k, (f, g) in runs.items()}
    best = {name: [np.inf, np.inf] for name in runs}
    for functions in only_z.values():
        for function in functions:
            jax.block_until_ready(function(operands))
    for _ in range(rounds):
        for name, functions in only_z.items():
            for k, function in enumerate(functions):
                start = time.process_time()
                jax.block_until_ready(function(operands))
                best[name][k] = min(best[name][k], time.process_time() - start)
    return best


def _record(config: Config, rows: list[list[str]]) -> None:
    path, data = config.out, config.out.with_suffix(".json")
    kept = json.loads(data.read_text("utf-8")) if data.exists() else {}
    command = " ".join(["python -m experiments.qp_peers", *sys.argv[1:]])
    said = (
        f"`{command}`, {datetime.date.today().isoformat()}, batch {config.batch}, n = {config.n}."
    )
    kept[f"jax {jax.__version__}"] = dict(said=said, rows=rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    data.write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n", "utf-8")
    head = ["dtype", "", "forward, ms", "with gradient, ms", "converged", "z off", "gradient off"]
    parts = ["# Quadratic programs beside other libraries", "", EXPLAINED]
    for name, of_version in kept.items():
        parts += [f"## {name}", "", of_version["said"], "", table(head, of_version["rows"]), ""]
    path.write_text("\n".join(parts), "utf-8")


if __name__ == "__main__":
    command_line(Config, main)
