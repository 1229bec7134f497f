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
# # From a `for` loop to an equilibrium, and then swap everything
#
# Somebody has written a network that applies one layer again and again. Here it becomes an
# equilibrium in one line, and then the solver, the gradient, the tolerance and the library that
# solves are exchanged, one at a time.

# %%
import tempfile
import time
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from sklearn.datasets import load_digits

import deqjax
from deqjax import diagnostics, nn, training
from deqjax.data import Stream, load_corpus

plt.rcParams.update(diagnostics.style())


# %%
def layer(z, theta, x):
    return jnp.tanh(z @ theta["w"] + x @ theta["u"] + theta["b"])


def loop(theta, x, depth=12):
    z = jnp.zeros((len(x), 64))
    for _ in range(depth):
        z = layer(z, theta, x)
    return z @ theta["readout"], z


def solved(theta, x, **options):
    z0 = jnp.zeros((len(x), 64))
    sol = deqjax.fixed_point(layer, z0, theta, x, batch_axis=0, rtol=1e-4, **options)
    return sol.z @ theta["readout"], sol


# %%
pixels, digits = load_digits(return_X_y=True)
order = np.random.default_rng(0).permutation(len(digits))
x, y = jnp.asarray(pixels[order] / 16, jnp.float32), jnp.asarray(digits[order])
test = slice(1400, None)

keys = jax.random.split(jax.random.key(0), 3)
sizes = {"w": 0.5 / 8, "u": 1 / 8, "readout": 1 / 8}
shapes = {"w": (64, 64), "u": (64, 64), "readout": (64, 10)}
drawn = {
    k: sizes[k] * jax.random.normal(key, shapes[k]) for k, key in zip(sizes, keys, strict=True)
}
theta = drawn | {"b": jnp.zeros(64)}

# %% [markdown]
# `solved` differs from `loop` in one line. First the memory that a gradient needs, as the compiler
# plans it:


# %%
def megabytes(network):
    def loss(theta):
        return jnp.square(network(theta, x)[0]).sum()

    plan = jax.jit(jax.grad(loss)).lower(theta).compile().memory_analysis()
    return plan.temp_size_in_bytes / 1e6


depths = [4, 8, 16, 32, 64]
kept = [megabytes(lambda theta, x, depth=d: loop(theta, x, depth)) for d in depths]
flat = megabytes(lambda theta, x: solved(theta, x, max_steps=64))
figure, ax = plt.subplots(figsize=(6.6, 3.6))
ax.plot(depths, kept, "o-", label="the loop")
ax.plot(depths, [flat] * len(depths), "s--", label="fixed_point, at most 64 steps")
ax.set(
    xlabel="times that the layer is applied", ylabel="memory of the gradient (MB)", ylim=(0, None)
)
ax.legend()
plt.show()

# %% [markdown]
# ## Train the loop, solve its equilibrium
#
# The loop is trained with its twelve applications. What does more depth do to it, and how near is
# it to the equilibrium of its own layer?

# %%
optimiser = optax.adam(3e-3)


@jax.jit
def step(theta, state, x, y):
    def loss(theta):
        logits, _ = loop(theta, x)
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    updates, state = optimiser.update(jax.grad(loss)(theta), state)
    return optax.apply_updates(theta, updates), state


# %%
state = optimiser.init(theta)
for i in range(300):
    rows = np.random.default_rng(i).integers(0, 1400, 128)
    theta, state = step(theta, state, x[rows], y[rows])
right = lambda logits: float((logits.argmax(-1) == y[test]).mean())
logits, solution = solved(theta, x[test], on_failure="ignore")
print("the loop:       ", right(loop(theta, x[test])[0]))
print("the equilibrium:", right(logits), solution.stats)

# %%
counts = [1, 2, 4, 8, 12, 20, 40, 80]
runs = [loop(theta, x[test], depth) for depth in counts]
norms = lambda z: jnp.linalg.norm(z, axis=1)  # of each image
far = [jnp.median(norms(z - solution.z) / norms(solution.z)) for _, z in runs]
figure, (left, panel) = plt.subplots(1, 2, figsize=(10.5, 3.6))
left.loglog(counts, far, "o-")
left.set(xlabel="applications", ylabel="relative distance (median image)")
panel.semilogx(counts, [right(logits) for logits, _ in runs], "o-", label="the loop")
panel.axhline(right(logits), color="k", ls="--", lw=1, label="the equilibrium")
panel.axvline(12, color="0.6", ls=":", label="trained depth")
panel.set(xlabel="applications", ylabel="share of right digits", ylim=(0, 1.03))
panel.legend()
plt.show()

# %% [markdown]
# Nobody told this loop to converge, and on most images it does. From here on training can go on
# with `solved` in place of `loop`: `deqjax.nn.DEQ` calls the loop a warm-up, `deq(x, depth=12)`.
#
# ## Swap the solver
#
# Solver objects of jaxopt and of optimistix go into `solver=` as they are (`pip install jaxopt
# optimistix`). Their update rules run in this library's loop: the stop test, the best iterate and
# the statuses are the same for all, so that the comparison is one of methods. They know nothing of
# samples, so here the batch is one equation.

# %%
solvers = {"Picard": "picard", "Anderson": "anderson", "Broyden": "broyden"}
try:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says that nobody maintains it any more
        import jaxopt

    solvers["jaxopt's Anderson"] = jaxopt.AndersonAcceleration(lambda z: z, history_size=5)
except ImportError:
    print("without jaxopt: pip install jaxopt")
try:
    import optimistix

    solvers["optimistix' iteration"] = optimistix.FixedPointIteration(1e-5, 1e-5)
except ImportError:
    print("without optimistix: pip install optimistix")

# %%
few = x[test][:64]
comparison = diagnostics.compare_solvers(
    *(layer, jnp.zeros((64, 64)), theta, few), solvers=solvers, rtol=1e-5, repeats=5
)
comparison.figure()
plt.show()
print(comparison)

# %% [markdown]
# ## Swap the gradient
#
# `adjoint=` says how the backward pass is done; the forward pass does not change. Each is one word.

# %%
audit = diagnostics.gradient_audit(
    *(layer, jnp.zeros((64, 64)), theta, few),
    adjoints=("jfb", "phantom", "tail", "implicit", deqjax.Implicit(max_gain=10.0)),
    batch_axis=0,
    rtol=1e-4,
)
audit.plot()
plt.show()

# %% [markdown]
# ## Swap the tolerance: perplexity against effort
#
# How exactly need an equilibrium be solved? Train a small language model on the documentation that
# every Python carries, and score its held-out text with the same weights at other tolerances.

# %%
folder = Path(tempfile.mkdtemp())
corpus = load_corpus("python-docs", cache_dir=folder / "cache")
cut = lambda ids: Stream(ids, 16, 32, corpus.vocabulary.start_id)


def new_model(rngs):
    cell = nn.TransformerCell(64, heads=4, d_inner=128, memory_length=32, rngs=rngs)
    return nn.LanguageModel(len(corpus.vocabulary), cell, solver="broyden", rtol=1e-3, rngs=rngs)


task = training.LanguageModelling(new_model, cut(corpus.train), cut(corpus.valid[:10_000]))
options = training.TrainOptions(steps=300, batch_size=16, eval_every=300, runs=folder)
model = training.fit(task, options, name="language").model


# %%
def scored(rtol, repeats=3):
    """Solver steps, perplexity, and the least time of some rounds, the first of which compiles."""
    model.deq.solver = deqjax.Broyden(rtol=rtol, max_steps=60)
    times = [time.perf_counter()]
    for _ in range(1 + repeats):
        score = training.perplexity(model, task.valid)
        times.append(time.perf_counter())
    return score.steps / score.solves, score.perplexity, np.diff(times)[1:].min()


rtols = (0.5, 0.2, 0.1, 3e-2, 1e-2, 1e-3, 1e-4)
steps, perplexities, seconds = map(np.array, zip(*map(scored, rtols), strict=True))
for row in zip(rtols, steps, perplexities, seconds, strict=True):
    print("rtol {:<6g} steps {:4.1f}  perplexity {:.3f}  {:.2f} s".format(*row))

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(10.5, 3.6), sharey=True)
left.semilogx(rtols, perplexities, "o-")
left.invert_xaxis()
left.set(xlabel="tolerance rtol of the solve", ylabel="perplexity of held-out text")
right.plot(steps, perplexities, "s-")
right.set(xlabel="steps of a solve, mean over the text")
plt.show()

# %% [markdown]
# The curves are flat from some tolerance on: below it steps buy digits of z that no prediction
# needs, and time (last column of the table) goes with the steps. Where that is depends on the
# model, so look before you choose. `max_steps=` of a single call is the same knob, in steps.
#
# ## Exercise
#
# 1. Go on training with `solved` in place of `loop` for 100 steps. What becomes of the accuracy,
#    and of `solution.stats.steps`?
# 2. Write a solver of your own ([how](../docs/own.md)): heavy-ball momentum,
#    z⁺ = f(z) + β (z − z₋). Put it into `compare_solvers` beside the others.
# 3. Read the loop's depth off the left picture of the equilibrium's distance: at which depth is the
#    loop as exact as `rtol=1e-2`? Compare with the steps of Anderson.
