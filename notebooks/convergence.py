# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Does it converge, how fast, and is my gradient right?
#
# Three questions for any equilibrium model, asked here of one small cell,
# `f(z, θ, x) = tanh(W z + b + x)`. Everything below works the same for a cell of your own: the
# functions of `deqjax.diagnostics` take `f`, a state and the arguments, as `fixed_point` does.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from jax.flatten_util import ravel_pytree

import deqjax
from deqjax import diagnostics

jax.config.update("jax_enable_x64", True)
n = 256
rng = np.random.default_rng(0)
noise = rng.normal(size=(n, n)) / n**0.5
theta = {"W": jnp.array(0.55 * noise + 0.32 * (noise + noise.T)), "b": jnp.zeros(n)}
x = jnp.array(0.5 * rng.normal(size=n))
z0 = jnp.zeros(n)


def f(z, theta, x):
    return jnp.tanh(theta["W"] @ z + theta["b"] + x)


# %% [markdown]
# ## How fast?
#
# `compare_solvers` solves the same equation with each solver, counts evaluations of `f`, and
# measures time.

# %%
comparison = diagnostics.compare_solvers(
    *(f, z0, theta, x),
    solvers={
        "Picard": "picard",
        "Anderson": "anderson",
        "Broyden": "broyden",
        "Newton–Krylov": "newton_krylov",
        "5 × Picard, then N–K": deqjax.WarmStart("newton_krylov", start="picard", steps=5),
    },
    rtol=1e-10,
    max_steps=500,
    repeats=21,
)
figure = comparison.figure()
figure.axes[0].legend(frameon=False, loc=(0.27, 0.52))
print(comparison)

# %% [markdown]
# Picard soon gains the same few percent with every evaluation: a straight line. Anderson and
# Broyden learn the slow directions from the differences of their iterates, and need less than half
# as many. Broyden's spikes are steps that made things worse; a solve returns its best iterate, so
# they cost time and not accuracy. Newton–Krylov spends its evaluations on linear solves. Far away
# its line search cuts the steps short, and the residual hardly moves; near the solution each step
# about doubles the digits. Five Picard steps take it near enough.
#
# On the right is the time. Here `f` is one small matrix product, so what a solver does between two
# evaluations shows. Where `f` is a transformer block, the left panel decides.
#
# ## Why that fast? Ask the Jacobian
#
# Plain iteration multiplies the error by J = ∂f/∂z at the solution, so the eigenvalues of J say
# what to expect.

# %%
z_star = comparison.solutions["Broyden"].z
spectrum = diagnostics.spectrum(f, z_star, theta, x)
axes = spectrum.plot()
print(f"Picard gains one digit in about {2.3 / (1 - spectrum.radius):.0f} steps")

# %% [markdown]
# All eigenvalues lie inside the unit circle, so Picard converges; the one on the right, close to
# the circle, is what it waits for. For states too large for a dense Jacobian, `spectrum` finds the
# outermost eigenvalues by Arnoldi's method and draws those that it is not sure of hollow.
#
# ## One solution or several?
#
# A spectral radius below one holds near this solution. It says nothing about other solutions, so
# start from other places.

# %%
print(diagnostics.path_independence(f, z0, theta, x))

stretched = theta | {"W": 1.5 * theta["W"]}
print(diagnostics.path_independence(f, z0, stretched, x, solver="broyden", max_steps=500))

# %% [markdown]
# With `W` half as large again there are several fixed points, and which one you get depends on
# where you start. Picard, from `z0`, gets to none of them, and says so:

# %%
failed = deqjax.fixed_point(f, z0, stretched, x, solver="picard")
try:
    failed.raise_unless_converged()
except deqjax.SolveError as failure:
    print(failure)

# %% [markdown]
# ## Is the gradient right?
#
# The exact gradient is uᵀ ∂f/∂θ with u = Jᵀu + v. Two solves stand behind it: the forward one,
# which finds the z\* at which J is taken, and the adjoint one, which finds u. Each leaves an error.
# A backward pass has no output of its own, so the adjoint solve reports through a probe: the
# "gradient" of the probe is its statistics.

# %%
target = jnp.array(rng.normal(size=n))


def gradient(forward_rtol, adjoint_rtol):
    """The gradient of target·z* as one vector, and the report of its adjoint solve."""

    def loss(theta, probe):
        solution = deqjax.fixed_point(
            *(f, z0, theta, x),
            solver=deqjax.Broyden(rtol=forward_rtol),
            adjoint_solver=deqjax.Broyden(rtol=adjoint_rtol),
            max_steps=300,
            adjoint_probe=probe,
        )
        return target @ solution.z

    grad, report = jax.jit(jax.grad(loss, (0, 1)))(theta, deqjax.adjoint_probe())
    return ravel_pytree(grad)[0], report


# %% [markdown]
# The cell is small enough to have the truth from a dense solve with I − Jᵀ.

# %%
J = jax.jacobian(f)(z_star, theta, x)
u = jnp.linalg.solve(jnp.eye(n) - J.T, target)
exact = ravel_pytree(jax.vjp(lambda theta: f(z_star, theta, x), theta)[1](u))[0]


def error(grad):
    return jnp.linalg.norm(grad - exact) / jnp.linalg.norm(exact)


grad, report = gradient(1e-10, 1e-4)
print(f"condition number of I − J: {jnp.linalg.cond(jnp.eye(n) - J):.0f}")
print(f"adjoint solve: {int(report.steps)} steps, relative residual {report.rel_residual:.1e}")
print(f"gradient error: {error(grad):.1e}")

# %% [markdown]
# The residual is what you can see in training; the error is what you want to know. `gradient_audit`
# puts the cheap gradients beside them, without a dense solve:

# %%
audit = diagnostics.gradient_audit(
    *(f, z0, theta, x),
    adjoints={
        "JFB": "jfb",
        "Phantom, 5 terms": deqjax.Phantom(steps=5),
        "Phantom, 50 terms": deqjax.Phantom(steps=50),
        "SHINE": deqjax.Shine(refine=2),
    },
    loss=lambda z: target @ z,
    solver=deqjax.Broyden(memory=30),
    rtol=1e-10,
    max_steps=300,
)
print(audit)

# %% [markdown]
# SHINE has the same row as JFB. It transposes the inverse that the forward solve built along its
# own path; for this random target that was worse than none, which it noticed, and fell back.
#
# Now the error of the implicit gradient, as one of its two solves is loosened and the other stays
# tight:

# %%
tolerances = [1e-1, 1e-3, 1e-5, 1e-7]
adjoint_loose = [gradient(1e-10, rtol) for rtol in tolerances]
forward_loose = [gradient(rtol, 1e-10) for rtol in tolerances]

figure, (left, right) = plt.subplots(1, 2, figsize=(10.5, 4.2), sharey=True, layout="constrained")
for axes, solves in ((left, adjoint_loose), (right, forward_loose)):
    errors = [error(grad) for grad, _ in solves]
    axes.loglog(tolerances, errors, "o-", label="error of the gradient")
    for row in audit.rows:
        if row.adjoint.startswith("Phantom"):
            axes.axhline(row.relative_error, color="0.5", linestyle=":")
            axes.text(tolerances[-1], row.relative_error, row.adjoint, ha="right", va="bottom")
    axes.invert_xaxis()
    axes.grid(alpha=0.3)
reported = [report.rel_residual for _, report in adjoint_loose]
left.loglog(tolerances, reported, "s--", label="residual that the probe reports")
left.set(xlabel="rtol of the adjoint solve (forward: 1e-10)", ylabel="relative error")
right.set(xlabel="rtol of the forward solve (adjoint: 1e-10)")
left.legend(frameon=False, loc="lower left")
plt.show()

# %% [markdown]
# The error of the gradient follows either tolerance down. On the left it stays above the residual,
# by no more than about the condition number of I − J, which grows as eigenvalues come near one. The
# approximations stop at their bias, however well the forward solve converged. A longer series has
# less of it, but 35 steps of the adjoint solve were better than its 50 terms.
#
# So read the probe's residual beside the forward one, and repeat the audit now and then while a
# model trains: J changes, and the table with it.
