# pyright: reportMissingImports=false
# (the peers are optional)
"""One adapter a library: solve a cell forward, or forward and backward, to a true residual.

Every peer has a stop test of its own. So that all do the same work, a peer's test is switched off
and it gets a fixed budget: the fewest steps after which an iterate that it has evaluated is known
to have ‖f(z) − z‖/‖f(z)‖ <= rtol, over the whole state; what it returns is checked by evaluating f
at it again. Likewise backward, with ‖Jᵀu + v − u‖/‖Jᵀu + v‖; u is read off as the gradient of a
shift b in f(z) + b. A peer that solves its adjoint by a linear solver gets the loosest tolerance of
a grid that is enough. Nobody can know such a budget in advance, and the peers do not pay for a
test: that favours them, since deqjax stops by its own. `evals` is what the budget costs;
`unknown_evals` what would do for somebody who is told, by whom ever, that the result is good.

A peer that is not installed is skipped, and named: `pip install torch torchdeq==0.1.0 jaxopt
optimistix banax==0.1.5` (banax needs Python 3.12).
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import deqjax
from deqjax.solvers import as_solver

from .cells import Cell
from .report import Settings

LARGEST_BUDGET = 8192
TOLERANCES = tuple(10.0 ** (-0.5 * i) for i in range(8, 17))  # 1e-4 to 1e-8


@dataclass(frozen=True, eq=False)
class Entry:
    """A solve that reaches the residual. `evals` is None where f is not all that it evaluates."""

    library: str
    variant: str
    call: Callable[[], Any]
    residual: float
    evals: int | None = None
    unknown_evals: int | None = None
    budget: int = 0

    @property
    def name(self) -> str:
        return f"{self.library} {self.variant}"


class Rule(NamedTuple):
    """A library's iteration, step by step: to find the budget in one compilation.

    known: state -> (z, f(z)), what it has evaluated last; returned: state -> z.
    """

    start: Callable[[Callable, Any], Any]
    advance: Callable[[Callable, Any], Any]
    known: Callable[[Any], tuple]
    returned: Callable[[Any], Any]


class Variant(NamedTuple):
    """solve(k, backward) -> (f, z0, θ, x) -> z, differentiable, of exactly k steps."""

    rule: Rule | None
    evals: Callable[[int], int] | None
    solve: Callable[[int, Any], Callable]


class Library(NamedTuple):
    """forward: {label: Variant}; backward: {label: a Rule, or None for a grid of tolerances}."""

    forward: dict[str, Variant]
    backward: dict[str, Rule | None]


# ---------------------------------------------------------------------- in common


def present(settings: Settings, say: Callable[[str], None] = print) -> list[str]:
    """The peers that are installed; the others are named."""
    found = []
    for name in settings.peers:
        needed = (name, "torch") if name == "torchdeq" else (name,)
        absent = [n for n in needed if importlib.util.find_spec(n) is None]
        if absent:
            say(f"peer {name} is skipped: {' and '.join(absent)} not installed")
        else:
            found.append(name)
    return found


def forward_entries(
    cell: Cell, rtol: float, settings: Settings, names: list[str]
) -> Iterator[Entry | str]:
    """Every variant of deqjax and of the named peers; a sentence for one that fails."""
    yield from _deqjax_forward(cell, rtol)
    for name in names:
        if name == "torchdeq":
            from . import peers_torch

            yield from peers_torch.forward_entries(cell, rtol, settings)
            continue
        for label, variant in library(name).forward.items():
            yield _attempt(f"{name} {label}", _forward, cell, rtol, name, label, variant)


def both_entries(
    cell: Cell, rtol: float, settings: Settings, fastest: dict[str, Entry]
) -> Iterator[Entry | str]:
    """Forward and backward: each library's fastest forward solve with each of its adjoints."""
    for name, entry in fastest.items():
        if name == "deqjax":
            yield from _deqjax_both(cell, rtol, entry)
        elif name == "torchdeq":
            from . import peers_torch

            yield from peers_torch.both_entries(cell, rtol, settings, entry)
        else:
            for label, rule in library(name).backward.items():
                yield _attempt(f"{name} {label}", _both, cell, rtol, name, entry, label, rule)


def library(name: str) -> Library:
    from .peers_jax import LIBRARIES

    return LIBRARIES[name]()


def _attempt(name, make, *args) -> Entry | str:
    try:
        return make(*args)
    except Exception as wrong:  # a peer's failure is a result, not the end of the run
        said = [line for line in str(wrong).splitlines() if line and line[0].strip()] or [""]
        return f"{name}: {type(wrong).__name__}: {said[0][:120]}"


def true_residual(cell: Cell, z) -> float:
    """‖f(z) − z‖/‖f(z)‖ over the whole state, recomputed in JAX whoever found z."""
    fz = jax.jit(cell.f)(jnp.asarray(z), cell.theta, cell.x)
    return _relative(fz, z)


def adjoint_residual(cell: Cell, z, u) -> float:
    """‖Jᵀu + v − u‖/‖Jᵀu + v‖ at z, for the cotangent v of the cell."""
    image = jax.jit(lambda z, u: adjoint_map(cell, z)(u))(jnp.asarray(z), jnp.asarray(u))
    return _relative(image, u)


def _relative(image, at) -> float:
    """‖image − at‖/‖image‖ in float64, which what has diverged does not overflow."""
    image, at = (np.asarray(a, np.float64) for a in (image, at))
    return float(np.linalg.norm(image - at) / np.linalg.norm(image))


def adjoint_map(cell: Cell, z) -> Callable:
    """u -> Jᵀu + v."""
    _, pull = jax.vjp(lambda z: cell.f(z, cell.theta, cell.x), z)
    return lambda u: pull(u)[0] + cell.v


def fewest(f: Callable, z0, rule: Rule, rtol: float) -> tuple[int, int]:
    """(fewest steps whose return value is good enough, fewest after which that is known)."""

    def ratio(z, fz):
        return jnp.linalg.norm(fz - z) / jnp.linalg.norm(fz)

    @functools.partial(jax.jit, static_argnums=1)
    def more(state, steps):
        def step(state, _):
            state = rule.advance(f, state)
            z = rule.returned(state)
            return state, (ratio(z, f(z)), ratio(*rule.known(state)))

        return lax.scan(step, state, length=steps)

    state = jax.jit(lambda z0: rule.start(f, z0))(z0)
    returned, known = np.zeros(0), np.zeros(0)
    while len(known) < LARGEST_BUDGET:
        state, found = more(state, 64 if len(known) < 256 else 1024)
        returned, known = (np.append(a, b) for a, b in zip((returned, known), found, strict=True))
        if (known <= rtol).any():
            return int(np.argmax(returned <= rtol)) + 1, int(np.argmax(known <= rtol)) + 1
        if not np.isfinite(known[-1]):
            raise RuntimeError(f"diverged; best residual {np.nanmin(known):.1e}")
    raise RuntimeError(f"not reached in {LARGEST_BUDGET} steps; best {np.nanmin(known):.1e}")


def forward_call(cell: Cell, solve: Callable) -> Callable[[], Any]:
    theta, x, z0 = jax.tree.map(jnp.asarray, (cell.theta, cell.x, cell.z0))
    return functools.partial(jax.jit(lambda th, x, z0: solve(cell.f, z0, th, x)), theta, x, z0)


def both_call(cell: Cell, solve: Callable) -> Callable[[], Any]:
    """θ̄ and x̄ of ⟨v, z*⟩."""
    theta, x, z0 = jax.tree.map(jnp.asarray, (cell.theta, cell.x, cell.z0))

    def loss(theta, x, z0):
        return jnp.vdot(cell.v, solve(cell.f, z0, theta, x))

    return functools.partial(jax.jit(jax.value_and_grad(loss, (0, 1))), theta, x, z0)


def solved_adjoint(cell: Cell, solve: Callable) -> tuple[Any, Any]:
    """z* and the u that a library's backward pass used: the gradient of b in f(z) + b."""

    def f(z, theta, x):
        return cell.f(z, theta["cell"], x) + theta["shift"]

    def loss(shift, theta, x, z0):
        z = solve(f, z0, {"cell": theta, "shift": shift}, x)
        return jnp.vdot(cell.v, z), z

    theta, x, z0 = jax.tree.map(jnp.asarray, (cell.theta, cell.x, cell.z0))
    u, z = jax.jit(jax.grad(loss, has_aux=True))(jnp.zeros_like(z0), theta, x, z0)
    return z, u


def _forward(cell, rtol, name, label, variant: Variant) -> Entry:
    if variant.rule is None:
        unknown = budget = _search(cell, rtol, variant)
    else:
        f = functools.partial(cell.f, theta=cell.theta, x=cell.x)
        unknown, budget = fewest(f, jnp.asarray(cell.z0), variant.rule, rtol)
    call = forward_call(cell, variant.solve(budget, None))
    evals = variant.evals
    return Entry(
        name,
        label,
        call,
        residual=true_residual(cell, call()),
        evals=None if evals is None else evals(budget),
        unknown_evals=None if evals is None else evals(unknown),
        budget=budget,
    )


def _search(cell, rtol, variant: Variant) -> int:
    """The fewest steps of a library that shows no steps: tried one by one."""
    residual = np.inf
    for budget in range(1, 13):
        residual = true_residual(cell, forward_call(cell, variant.solve(budget, None))())
        if residual <= rtol:
            return budget
    raise RuntimeError(f"not reached in {budget} Newton steps; last {residual:.1e}")


def _both(cell, rtol, name, entry: Entry, label, rule: Rule | None) -> Entry:
    variant = library(name).forward[entry.variant]
    if rule is not None:
        z = entry.call()
        _, budget = fewest(adjoint_map(cell, z), jnp.asarray(cell.v), rule, rtol)
        candidates = [budget, budget + 1, budget + 2]

        def reach(candidate):
            return solved_adjoint(cell, variant.solve(entry.budget, (label, candidate)))
    else:
        candidates = list(TOLERANCES)
        # The tolerance is traced: one compilation for the whole grid.
        reach = jax.jit(lambda tol: solved_adjoint(cell, variant.solve(entry.budget, (label, tol))))
    best = np.inf
    for candidate in candidates:
        reached = adjoint_residual(cell, *reach(candidate))
        if reached <= rtol:
            solve = variant.solve(entry.budget, (label, candidate))
            name_ = f"{entry.variant} + {label} ({candidate:.3g})"
            return Entry(name, name_, both_call(cell, solve), residual=reached)
        best = min(best, reached)
    raise RuntimeError(f"adjoint not reached; best residual {best:.1e}")


# ---------------------------------------------------------------------- deqjax

DEQJAX: dict[str, deqjax.Solver] = {
    "picard": deqjax.Picard(),
    "anderson(5)": deqjax.Anderson(memory=5),
    "broyden(10)": deqjax.Broyden(memory=10),
    "anderson(12)": deqjax.Anderson(memory=12),
}
AXES = (None, 0)


def deqjax_solve(solver: deqjax.Solver, rtol: float, axis: int | None, **options) -> Callable:
    def solve(f, z0, theta, x):
        return deqjax.fixed_point(
            f,
            z0,
            theta,
            x,
            solver=solver,
            rtol=rtol,
            max_steps=LARGEST_BUDGET,
            batch_axis=axis,
            **options,
        )

    return solve


def _deqjax_forward(cell: Cell, rtol: float) -> Iterator[Entry | str]:
    for label, solver in DEQJAX.items():
        for axis in AXES:
            yield _attempt(f"deqjax {label}", _one_deqjax, cell, rtol, label, solver, axis)


def _one_deqjax(cell, rtol, label, solver, axis) -> Entry:
    solve = deqjax_solve(solver, rtol, axis)
    stats = forward_call(cell, lambda *given: solve(*given).stats)()
    if not np.asarray(stats.converged).all():
        raise RuntimeError(f"not converged: {float(jnp.max(stats.rel_residual)):.1e}")
    call = forward_call(cell, lambda *given: solve(*given).z)
    evals = int(np.max(np.asarray(stats.f_evals)))
    return Entry("deqjax", f"{label} axis={axis}", call, true_residual(cell, call()), evals, evals)


def _deqjax_both(cell: Cell, rtol: float, entry: Entry) -> Iterator[Entry | str]:
    label, axis = entry.variant.split(" axis=")
    forward = DEQJAX[label]
    for adjoint in (None, "picard", "anderson", "broyden", "gmres"):
        # As many steps as the peers may take; the default is of the family of the forward solver.
        way_back = forward if adjoint is None else as_solver(adjoint)
        way_back = way_back.with_options(max_steps=LARGEST_BUDGET)
        over = None if axis == "None" else int(axis)
        name = f"{entry.variant} + {adjoint or 'default'}"

        def solve(tol, way_back=way_back, over=over):
            return deqjax_solve(forward, rtol, over, adjoint_solver=way_back.with_options(rtol=tol))

        yield _attempt(f"deqjax {name}", _loosest, cell, rtol, name, solve)


def _loosest(cell, rtol, name, solve) -> Entry:
    """With the loosest tolerance of a grid that is enough, as the peers' linear solvers get it: its
    own is relative to ‖v‖, and the residual that all must reach to a length of u."""
    tol, found = rtol, _deqjax_pair(cell, rtol, name, solve(rtol))
    while found.residual < 0.3 * rtol:
        tol *= 10**0.5
        try:
            found = _deqjax_pair(cell, rtol, f"{name} ({tol:.2g})", solve(tol))
        except RuntimeError:
            break
    return found


def _deqjax_pair(cell, rtol, name, solve) -> Entry:
    reached = adjoint_residual(cell, *solved_adjoint(cell, lambda *given: solve(*given).z))
    # Its own test, in its own summation order: the last digits may differ.
    if reached > 1.05 * rtol:
        raise RuntimeError(f"adjoint not reached: {reached:.1e}")
    return Entry("deqjax", name, both_call(cell, lambda *given: solve(*given).z), reached)


# ---------------------------------------------------------------------- for the other benchmarks


def fixed_steps(cell: Cell, steps: int, settings: Settings) -> dict[str, Callable[[], Any]]:
    """Calls of exactly `steps` steps of the peers' iterations, and of torch's own f."""
    calls = {}
    for name in present(settings, say=lambda line: None):
        if name == "torchdeq":
            from . import peers_torch

            calls |= peers_torch.fixed_steps(cell, steps, settings)
            continue
        for label, variant in library(name).forward.items():
            if label in ("picard", "anderson(5)", "broyden(10)"):
                calls[f"{name} {label}"] = forward_call(cell, variant.solve(steps, None))
    return calls


def verify_counts(cell: Cell, names: list[str], steps: int = 4) -> None:
    """Check by counting, on a small cell, what `evals` says of every iteration in JAX.

    torchdeq's are counted in every run.
    """
    counts = {}
    for name in names:
        if name != "torchdeq":
            for label, variant in library(name).forward.items():
                if variant.evals is not None:
                    counted = counted_evals(cell, variant.solve(steps, None))
                    counts[f"{name} {label}"] = (counted, variant.evals(steps))
    for label, solver in DEQJAX.items():
        fixed = replace(solver, rtol=0.0, atol=0.0, max_steps=steps)
        solve = lambda f, z0, theta, x, s=fixed: deqjax.fixed_point(f, z0, theta, x, solver=s)
        stats = forward_call(cell, lambda *given, solve=solve: solve(*given).stats)()
        counted = counted_evals(cell, lambda *given, solve=solve: solve(*given).z)
        counts[f"deqjax {label}"] = (counted, int(stats.f_evals))
    wrong = {name: pair for name, pair in counts.items() if pair[0] != pair[1]}
    if wrong:
        raise RuntimeError(f"evaluations (counted, claimed) differ: {wrong}")


def counted_evals(cell: Cell, solve: Callable) -> int:
    """How often f really ran: a callback counts, pure, so that what XLA drops is not counted."""
    calls = []

    def count(z):
        calls.append(1)
        return np.zeros((), np.float32)

    def f(z, theta, x):
        one = jax.pure_callback(count, jax.ShapeDtypeStruct((), jnp.float32), z)
        return cell.f(z, theta, x) + one

    jax.block_until_ready(jax.jit(lambda: solve(f, jnp.asarray(cell.z0), cell.theta, cell.x))())
    return len(calls)
