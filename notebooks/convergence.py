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
# One cell, `f(z) = tanh(W z + x)`, whose `W` is scaled so that the Jacobian at the solution comes
# close to losing contraction. We compare solvers by what they cost, evaluations of `f`, and then
# ask how good the gradient is that comes out of a solve of a given tolerance.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import deqjax

jax.config.update("jax_enable_x64", True)
n = 128
rng = np.random.default_rng(0)
symmetric = rng.normal(size=(n, n))
symmetric = symmetric + symmetric.T
W = jnp.array(symmetric * 1.6 / np.linalg.norm(symmetric, 2))
x = jnp.array(0.5 * rng.normal(size=n))


def f(z, W, x):
    return jnp.tanh(W @ z + x)


z_star = deqjax.fixed_point(f, jnp.zeros(n), W, x, solver="broyden", rtol=1e-13, max_steps=500).z
eigenvalues = jnp.linalg.eigvals(jax.jacobian(f)(z_star, W, x))
print(f"spectral radius of the Jacobian at the solution: {jnp.abs(eigenvalues).max():.3f}")

# %% [markdown]
# ## Solvers
#
# `trace=True` records the residual before the first step and after every step. All three solvers
# evaluate `f` once a step, so the step is the cost.

# %%
solvers = {
    "Picard": deqjax.Picard(),
    "Anderson(5)": deqjax.Anderson(memory=5),
    "Broyden(10)": deqjax.Broyden(memory=10),
}


@jax.jit
def traces(W, x):
    options = dict(rtol=1e-12, atol=0.0, max_steps=150, trace=True)
    return {
        name: deqjax.fixed_point(f, jnp.zeros(n), W, x, solver=s, **options).stats
        for name, s in solvers.items()
    }


figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
for name, stats in traces(W, x).items():
    axes.semilogy(stats.trace, label=f"{name}: {int(stats.f_evals)} evaluations")
axes.set(xlabel="solver steps", ylabel="‖f(z) − z‖", title="Three solvers on one equation")
axes.legend(frameon=False)
axes.grid(alpha=0.3)
plt.show()

# %% [markdown]
# Picard loses a fixed fraction of the error a step, the spectral radius. The other two learn the
# slow directions from the differences of their iterates.
#
# ## How good is the gradient?
#
# The exact gradient comes from a dense solve with the Jacobian. Against it: the implicit gradient
# at falling tolerances, and the two approximations, which do not depend on the tolerance at all.

# %%
target = jnp.array(rng.normal(size=n))
J = jax.jacobian(f)(z_star, W, x)
u = jnp.linalg.solve(jnp.eye(n) - J.T, target)
exact = jax.vjp(lambda W: f(z_star, W, x), W)[1](u)[0]


def gradient(rtol, adjoint):
    def loss(W):
        options = dict(rtol=rtol, max_steps=500, solver="broyden", adjoint=adjoint)
        return target @ deqjax.fixed_point(f, jnp.zeros(n), W, x, **options).z

    return jax.jit(jax.grad(loss))(W)


tolerances = [1e-1, 1e-2, 1e-3, 1e-4, 1e-6, 1e-8, 1e-10]
figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
for adjoint in ("implicit", "phantom", "jfb"):
    errors = [
        jnp.linalg.norm(gradient(rtol, adjoint) - exact) / jnp.linalg.norm(exact)
        for rtol in tolerances
    ]
    axes.loglog(tolerances, errors, marker="o", label=adjoint)
axes.invert_xaxis()
axes.set(xlabel="rtol of the solve", ylabel="relative error of dℓ/dW", title="Gradient error")
axes.legend(frameon=False)
axes.grid(alpha=0.3)
plt.show()

# %% [markdown]
# The implicit gradient follows the tolerance down. Phantom and Jacobian-free gradients stop at
# their bias, however well the forward solve converged.
#
# ## What the backward pass says about itself
#
# A backward pass has no output of its own. The "gradient" of a probe is the report of the adjoint
# solve.


# %%
def loss(W, probe):
    sol = deqjax.fixed_point(f, jnp.zeros(n), W, x, rtol=1e-8, adjoint_probe=probe)
    return target @ sol.z


grad, report = jax.grad(loss, argnums=(0, 1))(W, deqjax.adjoint_probe())
print(f"adjoint steps {int(report.steps)}, relative residual {report.rel_residual:.1e}")
print(f"gradient error {jnp.linalg.norm(grad - exact) / jnp.linalg.norm(exact):.1e}")

# %% [markdown]
# ## A failure says so
#
# With `W` three times as large, Picard has nothing to converge to. The status says it, and so does
# the exception, for those who ask for one.

# %%
failed = deqjax.fixed_point(f, jnp.zeros(n), 3 * W, x, solver="picard")
print(deqjax.Status(int(failed.stats.status)).name, f"{failed.stats.rel_residual:.2f}")
try:
    failed.raise_unless_converged()
except deqjax.SolveError as error:
    print(error)
