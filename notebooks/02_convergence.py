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
# # Does it converge, how fast, and to what?
#
# Questions for any equilibrium model, asked here of one small cell, `f(z, θ, x) = tanh(W z + b +
# x)`. Everything below works the same for a cell of your own: the functions of
# `deqjax.diagnostics` take `f`, a state and the arguments, as `fixed_point` does, or a `DEQ` and
# its input.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import deqjax
from deqjax import diagnostics

jax.config.update("jax_enable_x64", True)
plt.rcParams.update(diagnostics.style())
n, rng = 256, np.random.default_rng(0)
noise = rng.normal(size=(n, n)) / n**0.5
theta = {"W": jnp.array(0.55 * noise + 0.32 * (noise + noise.T)), "b": jnp.zeros(n)}
x, z0 = jnp.array(0.5 * rng.normal(size=n)), jnp.zeros(n)


def f(z, theta, x):
    return jnp.tanh(theta["W"] @ z + theta["b"] + x)


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
figure.axes[0].legend(loc=(0.27, 0.52))
plt.show()
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
plt.show()
print(f"Picard gains one digit in about {2.3 / (1 - spectrum.radius):.0f} steps")

# %% [markdown]
# All eigenvalues lie inside the unit circle, so Picard converges; the one on the right, close to
# the circle, is what it waits for. For states too large for a dense Jacobian, `spectrum` finds the
# outermost eigenvalues by Arnoldi's method and draws those that it is not sure of hollow.
#
# ## The way there
#
# `landscape` keeps every iterate and draws them over the residual, in the plane that holds most of
# the path. Beside this cell is one with `−W`, whose outermost eigenvalue is near −1 and not near
# +1.

# %%
cells = {"near +1": theta, "near −1": theta | {"W": -theta["W"]}}
figure, panels = plt.subplots(1, 2, figsize=(11, 4.2))
for ax, (name, parameters) in zip(panels, cells.items(), strict=True):
    way = diagnostics.landscape(f, z0, parameters, x, solver="picard", max_steps=100)
    way.plot(ax).set_title(f"Picard, an eigenvalue {name}")
    print(way)
plt.show()

# %% [markdown]
# On the left Picard falls into a valley and creeps along its floor: each step goes the same way and
# is a few percent shorter. On the right it swings from one side to the other. Averaging two steps
# would cure the right one and make the left one slower still.
#
# ## Which memory, which mixing?
#
# Anderson has two settings: how many differences it keeps (memory; none is Picard), and how far it
# trusts f(z) against z (mixing, the damping of Picard). Here are the steps that both cells take.


# %%
def steps(theta, memory, mixing):
    solver = deqjax.Anderson(memory=memory, mixing=mixing, rtol=1e-8, max_steps=500)
    stats = deqjax.fixed_point(f, z0, theta, x, solver=solver, on_failure="ignore").stats
    return int(stats.steps) if stats.converged else np.nan


memories, mixings = (0, 1, 2, 5, 10), (0.2, 0.4, 0.6, 0.8, 1.0)
maps = {
    name: np.array([[steps(theta, m, b) for m in memories] for b in mixings])
    for name, theta in cells.items()
}

# %%
figure, panels = plt.subplots(1, 2, figsize=(10, 3.8), sharey=True)
for ax, (name, counts) in zip(panels, maps.items(), strict=True):
    image = ax.imshow(np.log10(counts), origin="lower", aspect="auto", vmin=1.7, vmax=2.7)
    for (i, j), count in np.ndenumerate(counts):
        dark = count < 150
        text = "–" if np.isnan(count) else f"{count:.0f}"
        ax.text(j, i, text, ha="center", va="center", color="white" if dark else "black")
    ax.set(title=f"an eigenvalue {name}", xlabel="memory (differences kept)")
    ax.set(xticks=range(5), xticklabels=memories, yticks=range(5), yticklabels=mixings)
    ax.grid(False)
panels[0].set_ylabel("mixing β")
figure.colorbar(image, ax=panels, label="log₁₀ of the steps to 1e-8")
plt.show()

# %% [markdown]
# A dash did not converge in 500 steps. Without memory (left columns) mixing decides. An eigenvalue
# λ becomes 1 − β + βλ: near −1 a β of 0.8 is a cure, near +1 any β below one makes it worse. With
# more memory it matters less and less, because Anderson learns what mixing would have to know
# beforehand; only the very cautious β of 0.2 still costs. Ten differences need twice the storage
# of five, for a fifth to a third of the steps less.
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
failed = deqjax.fixed_point(f, z0, stretched, x, solver="picard", on_failure="ignore")
try:
    failed.raise_unless_converged()
except deqjax.SolveError as failure:
    print(failure)

# %% [markdown]
# In two unknowns all starts can be seen at once. This cell has two solutions that attract and one
# that repels, between them. Picard divides the plane cleanly. Anderson and Broyden do not follow
# the iteration: they extrapolate, so they reach the third solution too, and near the border a
# small change of the start decides.

# %%
w = jnp.array([[1.4, -0.6], [-0.6, 1.4]])
figure, panels = plt.subplots(1, 3, figsize=(11.5, 4.4), sharey=True)
for ax, solver in zip(panels, ("picard", "anderson", "broyden"), strict=True):
    found = diagnostics.basins(
        lambda z: jnp.tanh(w @ z), jnp.zeros(2), points=121, span=1.5, solver=solver
    )
    found.plot(ax).set_title(f"{solver}, median {np.median(found.stats.steps):.0f} steps")
plt.show()

# %% [markdown]
# If your model must not depend on the start (a warm start from the last batch, say), look at
# `path_independence` now and then while it trains; if it must always have exactly one solution,
# see [when is there an equilibrium?](../docs/well_posed.md).
#
# ## Exercise
#
# 1. Multiply `W` by 1.05, 1.1, 1.2 in turn. At which factor does Picard stop converging, and what
#    does `spectrum` show there? (Solve with Broyden first: the Jacobian must be taken at a
#    solution.)
# 2. Put the eigenvalues on the imaginary axis: `W = 0.5 * (noise - noise.T)`. Which mixing does
#    Picard need now? Compare with the maps above.
# 3. `compare_solvers(deq, x)` takes a trained `DEQ`. Train one
#    ([04](04_train_a_deq.ipynb)) and see whether the order of the solvers is the same at its
#    beginning and its end.
