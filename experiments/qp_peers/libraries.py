"""The libraries: each solves a batch of programs, in JAX, differentiably."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from deqjax.implicit import qp

# The matrix of OSQP's own conditions is singular: each row has two multipliers, and an infinite end
# has no condition. Of 1e-8 to 1e-4 the least is the most exact, in float32 too.
RIDGE = 1e-8
# Of 1e-8 to 1e-10 the one by which qpax's gradients are the best; less changes nothing.
KAPPA = 1e-9


class Answer(NamedTuple):
    z: jax.Array
    nu: jax.Array
    lam: jax.Array
    converged: jax.Array


class Library(NamedTuple):
    """solution(operands, tolerance) → z, differentiable; answer, all of it, is not timed."""

    name: str
    solution: Callable[..., jax.Array]
    answer: Callable[..., Answer]


def libraries() -> list[Library]:
    """deqjax first, and of the peers those that are installed."""
    found = [Library("deqjax", lambda o, tolerance: _deqjax(o, tolerance).z, _deqjax)]
    if installed("jaxopt"):
        found += [
            Library(name, lambda o, tolerance, answer=answer: answer(o, tolerance).z, answer)
            for name, answer in (
                ("jaxopt OSQP", partial(_osqp, dense=True)),
                ("jaxopt OSQP, default gradient", partial(_osqp, dense=False)),
            )
        ]
    if installed("qpax"):
        found.append(Library("qpax implicit", _qpax_solution, _qpax))
    return found


def installed(peer: str) -> bool:
    return importlib.util.find_spec(peer) is not None


def _deqjax(operands, tolerance) -> Answer:
    sol = qp(*operands, rtol=tolerance)
    return Answer(sol.z, sol.nu, sol.lam, sol.stats.converged)


def _osqp(operands, tolerance, dense: bool) -> Answer:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is no longer maintained
        import jaxopt

    solve = partial(dense_solve, ridge=RIDGE) if dense else None
    solver = jaxopt.OSQP(tol=tolerance, implicit_diff_solve=solve)

    def one(Q, q, A, b, G, h):
        x, state = solver.run(None, (Q, q), (A, b), (G, h))
        return Answer(x.primal, x.dual_eq, x.dual_ineq, state.status == jaxopt.BoxOSQP.SOLVED)

    return jax.vmap(one)(*operands)


def dense_solve(matvec: Callable, b, *, ridge: float):
    """(J + ridge) x = b by an LU factor of the whole matrix: the best of what jaxopt may be given.

    Its default, conjugate gradients on the normal equations, takes longer and stops early.
    """
    flat, whole = ravel_pytree(b)
    J = jax.jacfwd(lambda x: ravel_pytree(matvec(whole(x)))[0])(flat)
    return whole(jnp.linalg.solve(J + ridge * jnp.eye(len(flat), dtype=flat.dtype), flat))


def _qpax_solution(operands, tolerance) -> jax.Array:
    import qpax  # pyright: ignore[reportMissingImports]

    options = dict(backend="i", solver_tol=tolerance, target_kappa=KAPPA)
    return jax.vmap(lambda *o: qpax.solve_qp_primal(*o, **options))(*operands)


def _qpax(operands, tolerance) -> Answer:
    import qpax  # pyright: ignore[reportMissingImports]

    def one(*o):
        z, _, lam, nu, converged, _ = qpax.solve_qp(*o, backend="i", solver_tol=tolerance)
        return Answer(z, nu, lam, converged == 1)

    return jax.vmap(one)(*operands)
