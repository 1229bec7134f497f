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
# # Four solvers that fail and do not say so
#
# A solver of twenty lines is quickly written, returns numbers of the right shape, and lets a model
# train. Four faults that such solvers have are rebuilt here. None of them raises; each reports a
# small residual, and each is found by asking one honest question: *does this z solve this
# equation?* Black is what the solver says of itself, colour what is true.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import deqjax
from deqjax import Status, diagnostics

jax.config.update("jax_enable_x64", True)
plt.rcParams.update(diagnostics.style())

# %% [markdown]
# ## 1. A yardstick that the solver stretches
#
# The test ‖f(z) − z‖ ≤ rtol ‖f(z)‖ can be met in two ways: by a small residual, or by a large z.
# The function below has no fixed point at all: f(z) − z is a half and more everywhere. Where it is
# flat, a secant step, which is Anderson's in one dimension, runs off until anything is small
# beside z.

# %%
nowhere = lambda z: z + 0.5 + jnp.exp(-z)
z, before, residuals, relative = 1.0, 0.0, [], []
while not relative or relative[-1] > 1e-6:
    r, r_before = nowhere(z) - z, nowhere(before) - before
    before, z = z, z - r * (z - before) / (r - r_before)
    residuals += [nowhere(z) - z]
    relative += [residuals[-1] / abs(nowhere(z))]
figure, ax = plt.subplots(figsize=(6.8, 3.4))
ax.semilogy(relative, "ks--", label="|f(z) − z| / |f(z)|, what it says")
ax.semilogy(residuals, "o-", label="|f(z) − z|")
ax.set(xlabel="step", ylabel="residual")
ax.legend(loc="lower left")
plt.show()
print(f"z = {z:.1e}, converged to {relative[-1]:.0e}")

# %%
for rtol in (1e-2, 1e-4):
    found = deqjax.fixed_point(
        nowhere, jnp.array(0.0), solver="broyden", rtol=rtol, on_failure="ignore"
    )
    print(f"rtol {rtol:g}: {Status(int(found.stats.status)).name}")
print(Status.UNBOUNDED.message)

# %% [markdown]
# Such a "solution" is worse than none in training: it is large, its gradient has nothing to do
# with any equilibrium, and the log says that all solves converge. A yardstick must be one that the
# solver cannot move: `deqjax` lets ‖f(z)‖ count for at most a hundred times the largest size that
# the problem has shown.

# %% [markdown]
# One evaluation of f is enough for an honest answer where z is of a sensible size. The other three
# faults are found with it.


# %%
def check(f, z, *args, rtol=1e-4, batch_axis=None):
    """How well z solves z = f(z): one evaluation, and the status that a solve would have had."""
    options = dict(rtol=rtol, batch_axis=batch_axis, on_failure="ignore")
    return deqjax.implicit_function(f, z, *args, **options).stats


# %% [markdown]
# Here is the solver that the next two share: Anderson's method in the form of the DEQ papers, z⁺ =
# Σ αᵢ f(zᵢ), where α minimises ‖Σ αᵢ (f(zᵢ) − zᵢ)‖ subject to Σ αᵢ = 1, by a linear system with a
# small ridge. It says how good it is by that minimum, which costs no evaluation of f.


# %%
def anderson(f, z0, memory=5, steps=40, ridge=1e-4, written=True):
    Z, F, said, true = np.zeros((memory, z0.size)), np.zeros((memory, z0.size)), [], []
    Z[0], F[0] = z0, f(z0)
    for k in range(1, steps):
        m = min(k, memory) if written else memory  # slots that take part
        G = F[:m] - Z[:m]
        system = np.block([[np.zeros((1, 1)), np.ones((1, m))], [np.ones((m, 1)), G @ G.T]])
        system[1:, 1:] += ridge * np.eye(m)
        alpha = np.linalg.solve(system, np.eye(m + 1)[0])[1:]
        now, z = k % memory, alpha @ F[:m]
        Z[now], F[now] = z, f(z)
        size = np.linalg.norm(F[now])
        said.append(np.linalg.norm(alpha @ G) / size)
        true.append(np.linalg.norm(F[now] - Z[now]) / size)
    return np.array(said), np.array(true)


# %%
n, rng = 32, np.random.default_rng(0)
W = jnp.array(0.9 * rng.normal(size=(n, n)) / n**0.5)
x = jnp.array(rng.normal(size=n))
cell = jax.jit(lambda z: jnp.tanh(W @ z + x))

# %% [markdown]
# ## 2. A history that was never written
#
# At first only one of the slots holds anything. The others are zeros, and a slot of zeros has z =
# 0, f = 0 and a residual of exactly zero: the best that the least-squares problem has ever seen.
# It puts its weight there. The whole fault is `written=False`: all slots take part from the
# beginning.

# %%
figure, panels = plt.subplots(1, 2, figsize=(10.5, 3.8), sharey=True)
for ax, memory in zip(panels, (5, 20), strict=True):
    for written, name in ((True, "written slots"), (False, "all slots")):
        said, true = anderson(cell, np.zeros(n), memory=memory, written=written)
        if not written:
            ax.semilogy(np.maximum(said, 1e-9), "k--", label="all slots: what it says")
        ax.semilogy(true, "o-" if written else "s-", markersize=3.5, label=f"{name}: truth")
    ax.set(title=f"memory {memory}", xlabel="step")
panels[0].set_ylabel("relative residual  |f(z) − z| / |f(z)|")
panels[0].legend()
plt.show()

# %% [markdown]
# Until every slot has been written the faulty solver stays near z = 0 and says that it is nearly
# done. Then it works, so a long solve shows nothing. But a model is trained with few steps, often
# no more than the memory is long: what then trains is f(0), a network of one layer that is called
# an equilibrium. One evaluation at the end tells:

# %%
honest = deqjax.fixed_point(cell, jnp.zeros(n), rtol=1e-4)
print("a solve:            ", honest.stats)
print("f(0) for a solution:", check(cell, cell(jnp.zeros(n))))

# %% [markdown]
# ## 3. A ridge with a size of its own
#
# `ridge=1e-4` is small beside ‖r‖² = 1. As the solve gets on, ‖r‖² falls to 1e-8, and then the
# ridge is all there is: α becomes the plain mean of the history. Measure z in other units, metres
# for millimetres, and it happens at once. A ridge must be relative to the matrix that it is added
# to, as that of `deqjax.Anderson` is.


# %%
def in_units(s):
    return jax.jit(lambda z: s * jnp.tanh(W @ z / s + x))


figure, ax = plt.subplots(figsize=(7.2, 3.9))
for s, style in ((1.0, "o-"), (1e-2, "s-"), (1e-4, "^-")):
    _, true = anderson(in_units(s), np.zeros(n))
    ax.semilogy(true, style, markersize=3.5, label=f"ridge 1e-4, z of size {s:g}")
for s, style in ((1.0, "k-"), (1e-4, "w:")):
    options = dict(solver=deqjax.Anderson(rtol=1e-12, max_steps=40), trace=True)
    stats = deqjax.fixed_point(in_units(s), jnp.zeros(n), **options, on_failure="ignore").stats
    ax.semilogy(stats.trace * stats.rel_residual / stats.residual, style, lw=1.6)
ax.plot([], [], "k-", label="deqjax.Anderson, both sizes in one line")
ax.set(xlabel="step", ylabel="relative residual")
ax.legend(fontsize="small", loc="lower left")
plt.show()

# %% [markdown]
# The two solves of `deqjax`, the black line and the white dots on it, take the same steps in
# whatever units. Nothing here looks like an error: a solve that crawls looks like a hard equation.
# So ask whether the number of steps changes with the units of z. It must not.
#
# ## 4. One stop for a whole batch
#
# Stop when the residual of the *batch* is small beside the batch: one norm over all samples. Large
# samples then answer for small ones. `batch_axis=None` does exactly that to a batch, since it takes
# it for one equation; `batch_axis=0` gives each sample a test of its own.

# %%
sizes = jnp.logspace(-3, 0.5, 64)[:, None]  # samples of very different size
xs = sizes * jnp.array(rng.normal(size=(64, n)))
batch = lambda z, x: jnp.tanh(z @ W.T + x)
common = dict(solver="picard", rtol=1e-3, max_steps=500, on_failure="ignore")
together = deqjax.fixed_point(batch, jnp.zeros((64, n)), xs, **common)
each = deqjax.fixed_point(batch, jnp.zeros((64, n)), xs, batch_axis=0, **common)
true = check(batch, together.z, xs, rtol=1e-3, batch_axis=0)

figure, ax = plt.subplots(figsize=(6.8, 3.6))
ax.loglog(sizes[:, 0], true.rel_residual, "s", ms=4, label="stopped together: truth")
ax.loglog(sizes[:, 0], each.stats.rel_residual, "o", ms=4, label="stopped one by one")
ax.axhline(float(together.stats.rel_residual), color="k", ls="--", label="together: what it says")
ax.set(xlabel="size of the sample's input", ylabel="relative residual of the sample")
ax.legend()
plt.show()
print("together:", together.stats, "\nin truth:", Status.counts(true.status))

# %% [markdown]
# Stopping when the *worst* sample is done is the safe version of this, and has another fault: the
# answer to a question depends on who else asks. One image that never converges keeps all others
# iterating to the limit, and a test set scored in batches of 64 is not the one scored in batches
# of 1. In `deqjax` a sample that has met its test is frozen.

# %%
alone = deqjax.fixed_point(batch, jnp.zeros((1, n)), xs[:1], batch_axis=0, **common)
difference = lambda z: float(jnp.abs(z - alone.z[0]).max() / jnp.abs(alone.z).max())
print(f"sample 0 alone and in its batch differ by {difference(each.z[0]):.0e}")
print(f"... and by {difference(together.z[0]):.0e} where the batch stops together")

# %% [markdown]
# ## What to take home
#
# | fault | what the log says | the question that finds it |
# |---|---|---|
# | a stretched yardstick | converged | did z grow while the residual did not fall? |
# | slots that were never written | nearly done | f once more at the z that is *used* |
# | an absolute ridge | a hard equation | the same solve with z in other units |
# | one stop for the batch | converged | a status for every sample |
#
# ## Exercise
#
# 1. `check` is one evaluation of f. Wrap the solver of a DEQ that you have at hand with it, and
#    count the samples whose status is not `CONVERGED`.
# 2. Replace the stop of number 4 by the largest relative residual of the batch. How many steps does
#    the easiest sample take now, and how many did it need?
# 3. Give `nowhere` a solution: `z - 1e-4 + jnp.exp(-z)`. Broyden finds z\* = 9.2. What does it
#    return with `rtol=1e-2`, and what is the gain of its adjoint there? (`deqjax.adjoint_probe`)
