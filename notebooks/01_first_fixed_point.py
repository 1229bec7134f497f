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
# # Your first fixed point
#
# An equilibrium is a point that a function leaves where it is, z\* = f(z\*). Applying f again and
# again finds some of them. On the left it does, on the right it never will, with the equilibrium in
# plain sight.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from flax import nnx

import deqjax
from deqjax import diagnostics
from deqjax.nn import DEQ

jax.config.update("jax_enable_x64", True)
plt.rcParams.update(diagnostics.style())


def f(z, a):
    return a * z * (1 - z)


# %%
figure, panels = plt.subplots(1, 2, figsize=(10, 4), sharey=True)
line = np.linspace(0, 1, 200)
for ax, a in zip(panels, (2.8, 3.3), strict=True):
    z = [0.1]
    for _ in range(40):
        z += [f(z[-1], a)]
    ax.plot(line, f(line, a), label="f(z)")
    ax.plot(line, line, color="0.5", linewidth=1, label="z")
    ax.plot(np.repeat(z, 2)[:-1], np.repeat(z, 2)[1:], linewidth=1, label="z → f(z) → …")
    ax.plot(1 - 1 / a, 1 - 1 / a, "ko", label="z* = f(z*)")
    ax.set(title=f"f(z) = {a} z (1 − z)", xlabel="z")
panels[0].set_ylabel("f(z)")
panels[0].legend(loc="upper left")
plt.show()

# %% [markdown]
# ## Solve
#
# `fixed_point` takes f, a start and the arguments of f. Anderson's method, the default, remembers
# the last few steps and extrapolates.

# %%
solution = deqjax.fixed_point(f, jnp.array(0.5), 2.8)
print(solution)
print("z* =", solution.z, "and by hand", 1 - 1 / 2.8)

# %% [markdown]
# The line says how the solve ended, what it cost, and how well z\* solves the equation. These are
# numbers that a program can use: `solution.stats.converged`, `.steps`, `.rel_residual`, `.status`.
#
# ## When it does not converge
#
# Near z\* one application multiplies the error by f′(z\*) = 2 − a. For a = 3.3 that is −1.3: the
# error grows and changes sides. Plain iteration, which is called Picard's, says that it failed:

# %%
failed = deqjax.fixed_point(f, jnp.array(0.5), 3.3, solver="picard", on_failure="ignore")
print(failed.summary())

# %% [markdown]
# A solve never raises by itself and never returns NaN in place of an answer; outside of `jit` it
# warns, which `on_failure="ignore"` has switched off here. *You* decide what a failure means: see
# [when a solve fails](../docs/failures.md).
#
# Two cures. Damping mixes the old z in, z⁺ = (1 − λ) z + λ f(z), and multiplies the error by
# 1 − λ + λ f′. Anderson finds out by itself, from how the residual changed.

# %%
options = dict(trace=True, max_steps=40, on_failure="ignore")
traces = {
    name: deqjax.fixed_point(f, jnp.array(0.5), 3.3, solver=solver, **options)
    for name, solver in {
        "Picard": "picard",
        "Picard, damped by λ = 0.5": deqjax.Picard(damping=0.5),
        "Anderson": "anderson",
        "Broyden": "broyden",
    }.items()
}
ax = diagnostics.plot_convergence(traces)
plt.show()

# %% [markdown]
# ## Differentiate
#
# z\* depends on a, and its derivative does not need the steps of the solver: differentiate
# z\* = f(z\*, a) on both sides and solve for dz\*/da = ∂f/∂a / (1 − f′). That is the implicit
# function theorem, and what `jax.grad` gets here, whatever the solver did.

# %%
equilibrium = lambda a: deqjax.fixed_point(f, jnp.array(0.5), a).z
print("by jax.grad:      ", jax.grad(equilibrium)(2.8))
print("by hand, 1 / a²:  ", 1 / 2.8**2)
print("by a difference:  ", (equilibrium(2.8 + 1e-4) - equilibrium(2.8 - 1e-4)) / 2e-4)

# %% [markdown]
# ## Many at once
#
# With `batch_axis=0` every row is an equation of its own: it stops when *it* has converged, and its
# answer does not depend on its neighbours. Here are the equilibria of 400 values of a, their
# derivatives, and the steps each of them took.

# %%
a = jnp.linspace(1.05, 3.95, 400)
z0 = jnp.full((400,), 0.3)
solve = lambda a: deqjax.fixed_point(f, z0, a, batch_axis=0, rtol=1e-10)
many = solve(a)
slope = jax.grad(lambda a: solve(a).z.sum())(a)

figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6))
left.plot(a, many.z, label="z*")
left.plot(a, slope, "--", label="dz*/da")
left.set(xlabel="a", ylabel="z* and its derivative")
left.legend()
right.plot(a, many.stats.steps)
right.set(xlabel="a", ylabel="steps of the solve")
plt.show()
print(many)

# %% [markdown]
# Nothing happens at a = 3, where Picard gives up: the equilibrium is there as before, it only
# repels. The steps grow on the left, where f′ = 2 − a comes near 1 and two equilibria (the other is
# 0) come near each other. That is the hard case, and the derivative is large there too.
#
# ## More than one solution
#
# Two unknowns that hold each other down have two stable equilibria and a saddle between. Which one
# a start reaches is its basin.

# %%
w = jnp.array([[1.4, -0.6], [-0.6, 1.4]])
found = diagnostics.basins(
    lambda z: jnp.tanh(w @ z), jnp.zeros(2), points=121, span=1.5, solver="picard"
)
figure = found.figure()
plt.show()
print(found)

# %% [markdown]
# ## A layer
#
# A deep equilibrium model is this with a network for f: z is a vector for each sample, and the
# input x is one of the arguments. `DEQ` turns a cell into a layer.


# %%
class Cell(nnx.Module):
    def __init__(self, width, rngs):
        small = nnx.initializers.normal(0.5 / width**0.5)
        self.w = nnx.Linear(width, width, kernel_init=small, rngs=rngs)

    def __call__(self, z, x):
        return jnp.tanh(self.w(z) + x)


layer = DEQ(Cell(32, nnx.Rngs(0)))
images = jax.random.normal(jax.random.key(1), (8, 32))
print(layer(images))

# %% [markdown]
# ## Exercise
#
# 1. For which a does the damped iteration with λ = 0.5 converge? Work it out from
#    |1 − λ + λ (2 − a)| < 1, then try `a = 3.9`.
# 2. Newton's method for √2 is z → (z + 2/z)/2. Solve it, and look at `trace`: how many digits does
#    a step bring, and does Anderson do better or worse than Picard here? Why?
# 3. In the picture of the basins, replace `solver="picard"` by `"anderson"` and then by
#    `"broyden"`. The third solution, (0, 0), gets a basin with room in it. Why does Picard reach
#    it from next to nowhere?
