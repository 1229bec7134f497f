# pyright: reportMissingImports=false
# (the peers are optional)
"""The peers that run on JAX: jaxopt, optimistix and banax, as `Library` objects."""

from __future__ import annotations

import functools
from typing import Any

from .peers import Library, Rule, Variant

# ---------------------------------------------------------------------- jaxopt

_PICARD = Rule(
    start=lambda f, z0: (z0, z0),
    advance=lambda f, state: (state[1], f(state[1])),
    known=lambda state: state,
    returned=lambda state: state[1],
)


def from_jaxopt() -> Library:
    """Anderson as documented and with a ridge that does not slow it down; Broyden on z − f(z),
    since its B₀ is +I, without the line search; linear solvers for the adjoint."""
    import jaxopt
    from jaxopt import linear_solve

    linear = {
        "normal_cg": linear_solve.solve_normal_cg,  # its default
        "bicgstab": linear_solve.solve_bicgstab,
        # Not in batches of 20, which would overshoot.
        "gmres": functools.partial(linear_solve.solve_gmres, solve_method="incremental"),
    }

    def variant(kind, rule, evals, root=False, **options):
        def solve(k, backward):
            settings: dict[str, Any] = dict(options, maxiter=k, tol=0.0)
            if backward is not None:
                label, tol = backward
                settings["implicit_diff_solve"] = functools.partial(
                    linear[label], tol=tol, maxiter=500
                )

            def run(f, z0, theta, x):
                g = (lambda z, theta, x: z - f(z, theta, x)) if root else f
                return kind(g, **settings).run(z0, theta, x).params

            return run

        return Variant(rule, evals, solve)

    def stepped(kind, known, root=False, **options):
        def make(f):
            return kind((lambda z: z - f(z)) if root else f, maxiter=1, tol=0.0, **options)

        return Rule(
            start=lambda f, z0: (z0, make(f).init_state(z0)),
            advance=lambda f, state: tuple(make(f).update(*state)),
            known=known,
            returned=lambda state: state[0],
        )

    def anderson(**options):
        kind = jaxopt.AndersonAcceleration

        def known(state):
            fz, state = state
            last = (state.iter_num - 1) % options["history_size"]
            return fz - state.residuals_history[last], fz

        return variant(kind, stepped(kind, known, **options), lambda k: k, **options)

    root = {"stepsize": 1.0, "history_size": 10}
    return Library(
        forward={
            "picard": variant(jaxopt.FixedPointIteration, _PICARD, lambda k: k),
            "anderson(5)": anderson(history_size=5),
            "anderson(6, ridge=1e-8)": anderson(history_size=6, ridge=1e-8),
            "broyden(10)": variant(
                jaxopt.Broyden,
                stepped(jaxopt.Broyden, lambda s: (s[0], s[0] - s[1].value), root=True, **root),
                lambda k: k + 1,
                root=True,
                **root,
            ),
        },
        backward=dict.fromkeys(linear),
    )


# ---------------------------------------------------------------------- optimistix


def from_optimistix() -> Library:
    """Its fixed-point iteration, and Newton with GMRES, which is its way for large systems; the
    adjoint by GMRES or BiCGStab too (the default one builds the Jacobian)."""
    import lineax
    import optimistix

    def linear(label, tol):
        options = {"rtol": tol, "atol": tol * 1e-3, "max_steps": 500}
        if label == "bicgstab":
            return lineax.BiCGStab(**options)
        return lineax.GMRES(**options, restart=8 if label == "gmres(8)" else 20)

    def variant(solver, rule, evals):
        def solve(k, backward):
            adjoint = optimistix.ImplicitAdjoint(linear_solver=linear(*(backward or ("gmres", 1))))

            def run(f, z0, theta, x):
                return optimistix.fixed_point(
                    lambda z, args: f(z, *args),
                    solver,
                    z0,
                    args=(theta, x),
                    max_steps=k,
                    adjoint=adjoint,
                    throw=False,
                ).value

            return run

        return Variant(rule, evals, solve)

    newton = optimistix.Newton(rtol=0.0, atol=1e-30, linear_solver=linear("gmres", 1e-2))
    picard = optimistix.FixedPointIteration(rtol=0.0, atol=1e-30)
    return Library(
        forward={
            "picard": variant(picard, _PICARD, lambda k: k),
            "newton(gmres)": variant(newton, None, None),
        },
        backward={"gmres": None, "gmres(8)": None, "bicgstab": None},
    )


# ---------------------------------------------------------------------- banax


def from_banax() -> Library:
    from banax import adjoint
    from banax import solver as solvers

    # Positive tolerances: with both at zero it takes its own status for an array, and fails.
    def make(kind, k, **options):
        return kind(rtol=1e-30, atol=0.0, max_steps=k, **options)

    kinds = {
        "picard": (solvers.Picard, {}),
        "anderson(5)": (solvers.Anderson, {"depth": 5}),
        "anderson(5, ridge=1e-10)": (solvers.Anderson, {"depth": 5, "ridge": 1e-10}),
        "broyden(10)": (solvers.Broyden, {"history_size": 10}),
        "broyden(10, no clip)": (solvers.Broyden, {"history_size": 10, "spectral_clip": None}),
    }

    def rule(label):
        kind, options = kinds[label]
        solver = make(kind, 1, **options)

        def advance(f, state):
            z, _, inner = state
            return solver.step(lambda z: (f(z), None), z, inner)[:3]

        def start(f, z0):
            return z0, z0, solver.init(lambda z: (f(z), None), z0)[0]

        return Rule(start, advance, lambda s: s[:2], lambda s: s[0])

    def variant(label):
        kind, options = kinds[label]

        def solve(k, backward):
            forward = make(kind, k, **options)
            label_b, k_b = backward or (label, 1)
            kind_b, options_b = kinds[label_b]
            both = adjoint.Implicit(forward, make(kind_b, k_b, **options_b))

            def run(f, z0, theta, x):
                return both((f, (theta, x)), z0).value

            return run

        return Variant(rule(label), lambda k: k + 1, solve)

    return Library(
        forward={label: variant(label) for label in kinds},
        backward={label: rule(label) for label in kinds},
    )


LIBRARIES = {"jaxopt": from_jaxopt, "optimistix": from_optimistix, "banax": from_banax}
