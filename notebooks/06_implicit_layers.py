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
# # Implicit layers: flows, programs, proofs
#
# A layer can be defined by what its output satisfies. An equilibrium is one kind; a flow, a
# quadratic program and a relaxation of logic are others. Here is what they share and where they
# differ, in four short experiments.
#
# ## A flow and where it rests
#
# Follow dz/dt = f(z) − z long enough, and it comes to rest at the equilibrium z\* = f(z\*).

# %%
import itertools

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from flax import nnx

import deqjax
from deqjax import diagnostics
from deqjax.data import sudoku
from deqjax.implicit import ode
from deqjax.nn import ImplicitDense, OptNet, SATNet
from deqjax.theory import universality, wellposed

plt.rcParams.update(diagnostics.style())

# %%
rng, n = np.random.default_rng(0), 16
A = jnp.array(0.8 * rng.normal(size=(n, n)) / n**0.5, jnp.float32)
x = jnp.array(rng.normal(size=n), jnp.float32)
f = lambda z, A: jnp.tanh(A @ z + x)
flow = lambda t, z, A: f(z, A) - z


def gradient(solve):
    """t -> z, evaluations, and the gradient of Σz in A, compiled once for every t."""
    loss = lambda A, t: (lambda sol: (sol.z.sum(), sol))(solve(A, t))
    compiled = jax.jit(jax.grad(loss, has_aux=True))

    def at(t):
        grad, sol = compiled(A, t)
        return sol.z, int(sol.stats.f_evals), grad

    return at


# %%
z_star, evaluations, exact = gradient(lambda A, _: deqjax.fixed_point(f, jnp.zeros(n), A))(0.0)
off = lambda a, b: float(jnp.linalg.norm(a - b) / jnp.linalg.norm(b))
times, rows = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0), {}
for kind in ("recursive", "backsolve"):
    options = dict(adjoint=kind, on_failure="ignore")
    followed = gradient(lambda A, t1, options=options: ode(flow, jnp.zeros(n), A, t1=t1, **options))
    found = (followed(t1) for t1 in times)
    rows[kind] = [(off(z, z_star), cost, off(grad, exact)) for z, cost, grad in found]

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(10.5, 3.9))
far, costs, _ = zip(*rows["recursive"], strict=True)
left.semilogy(costs, far, "o-", label="flow, up to t = 1, 2, … 32")
left.plot(evaluations, 1e-5, "k*", markersize=14, label="fixed_point, rtol 1e-5")
left.set(xlabel="evaluations of f", ylabel="distance from z*, relative")
left.legend()
for kind, marker in (("recursive", "o-"), ("backsolve", "s--")):
    right.loglog(times, [error for *_, error in rows[kind]], marker, label=f"adjoint={kind!r}")
right.set(xlabel="time that the flow was followed", ylabel="error of the gradient, relative")
right.legend()
plt.show()

# %% [markdown]
# The flow gets there, with ten times the evaluations: it follows a path, and the solver jumps. On
# the right are gradients against the equilibrium's. Going back through the steps ("recursive") gets
# better the closer the flow comes to rest. Solving the adjoint equation backwards ("backsolve")
# does so for a while and then gets worse: a flow that contracts forward expands backward, and the z
# that it recomputes is not the one that was. The equilibrium needs no path back: its gradient knows
# only z\*.
#
# ## Is there exactly one equilibrium?
#
# For z = σ(A z + U x + b) that can be proved. Each method gives a bound, and one below 1 is a
# proof, for every input at once. Here is how far A can be scaled up before each of them gives up,
# and where there really are several solutions.

# %%
scales = np.linspace(0.2, 2.4, 12)
methods = ("inf_norm", "perron", "mu_inf", "monotone")
bounds = {m: [wellposed.certify(s * A, jnp.tanh, m).bound for s in scales] for m in methods}
radius = [np.abs(np.linalg.eigvals(s * A)).max() for s in scales]

starts = 3 * rng.normal(size=(len(scales), 20, n))  # of each scale, solved all at once
scaled = np.broadcast_to(scales[:, None, None], (len(scales), 20, 1))
sol = deqjax.fixed_point(
    lambda z, s: jnp.tanh(s * (z @ A.T) + 0.1 * x),
    *(jnp.asarray(v, jnp.float32).reshape(-1, v.shape[-1]) for v in (starts, scaled)),
    **dict(solver="broyden", max_steps=300, batch_axis=0, on_failure="ignore"),
)
ends = np.where(sol.stats.converged[:, None], sol.z, np.nan).reshape(starts.shape)
found = np.nanmax(ends, 1) - np.nanmin(ends, 1) > 1e-2
found = found.any(1)  # scales with several solutions

# %%
figure, ax = plt.subplots(figsize=(8.6, 4.0))
for (name, values), marker in zip(bounds.items(), "os^D", strict=True):
    ax.plot(scales, values, marker + "-", markersize=4, label=name)
ax.plot(scales, radius, "k:", label="spectral radius of A (proves nothing)")
ax.axhline(1, color="0.5", linestyle="--", linewidth=1)
for s in scales[found]:
    ax.axvspan(s - 0.1, s + 0.1, color="0.9", linewidth=0)
ax.plot([], [], "s", color="0.85", markersize=10, label="several solutions found")
ax.set(xlabel="scale of A", ylabel="bound (a proof where below 1)", ylim=(0, 4))
ax.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize="small")
plt.show()

# %% [markdown]
# Between the last proof and the first counterexample lies a gap: the methods are sufficient, not
# necessary. `monotone` reaches farthest here, since tanh has slopes between 0 and 1 and A has
# eigenvalues on all sides. `ImplicitDense` has an A made such that a proof holds, and keeps it
# through training:

# %%
layer = ImplicitDense(3, 16, kind="monotone", rngs=nnx.Rngs(0))
print(layer.certificate().kind, layer.certificate().holds, f"{layer.certificate().bound:.3f}")
print(layer(jnp.ones((4, 3))))

# %% [markdown]
# ## A deep network is one equilibrium
#
# Put all hidden states of a network of eight layers into one z: then one weight-tied layer
# f(z, x) = σ(W z + U x + b) has the network's output in its equilibrium. J is strictly lower
# triangular: all its eigenvalues are 0, Picard is exact after eight steps, and so is the gradient's
# series after eight terms.

# %%
depth = 8
weights = [jnp.array(rng.normal(size=(6, 6)) * 0.5, jnp.float32) for _ in range(depth)]
network = universality.weight_tied(weights, [jnp.zeros(6)] * depth, ["tanh"] * depth)
inputs = jnp.array(rng.normal(size=(1, 6)), jnp.float32)
start = 10 * jnp.ones_like(network.start(inputs))
common = dict(solver="picard", rtol=0.0, max_steps=12, on_failure="ignore")
sol = deqjax.fixed_point(network, start, inputs, trace=True, batch_axis=0, **common)


def gradient_by(adjoint):
    def loss(x):
        z = deqjax.fixed_point(network, start, x, adjoint=adjoint, batch_axis=0, **common).z
        return network.output(z).sum()

    return jax.grad(loss)(inputs)


# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(10.5, 3.6))
trace = np.asarray(sol.stats.trace).ravel()
left.semilogy(np.maximum(trace, 1e-9), "o-")
left.set(xlabel="steps of Picard", ylabel="residual  |f(z) − z| (1e-9: exactly 0)")
terms, exact = range(1, 11), gradient_by("implicit")
series = (gradient_by(deqjax.Phantom(steps=k, damping=1.0)) for k in terms)
errors = [max(off(grad, exact), 1e-9) for grad in series]
right.semilogy(terms, errors, "s-")
right.set(xlabel="terms of the gradient's series", ylabel="error of the gradient in x, relative")
for ax in (left, right):
    ax.axvline(depth, color="0.5", linestyle="--", linewidth=1)
plt.show()

# %% [markdown]
# One term, which is JFB, is the gradient of the last layer alone: the input gets none of it before
# all eight terms are there. A cheap gradient is cheap because it forgets what is far away, and in
# this equilibrium everything is.
#
# ## Rules, learned from solved boards
#
# A 4 × 4 Sudoku has 288 solutions. OptNet learns the equalities A z = b of a quadratic program,
# SATNet the clauses of a relaxed satisfiability problem; neither is told a rule. All boards of a
# fifth of the solutions are held out.

# %%
rows_of_four = np.array(list(itertools.permutations(range(1, 5))), np.uint8)
every = rows_of_four[np.indices((24,) * 4).reshape(4, -1).T]
every = every[sudoku.is_solution(every)]  # all 288
solutions = np.repeat(every, 40, axis=0)
keep = rng.random(solutions.shape) < rng.uniform(0.35, 0.8, (len(solutions), 1, 1))
puzzles = np.where(keep, solutions, 0).astype(np.uint8)
fits = (puzzles[:, None] == 0) | (puzzles[:, None] == every[None])
unique = fits.all((2, 3)).sum(1) == 1  # puzzles with one solution
boards = sudoku.Boards(puzzles[unique], solutions[unique])
train, test = sudoku.split_by_solution(boards, held_out=500)
print(
    f"{len(train.puzzles)} boards to train on, {test.clues.mean():.1f} clues of 16 in a test board"
)


# %%
class Rules(nnx.Module):
    """Scores (batch, 64) of every digit in every cell, and how the layer's solve ended."""

    def __init__(self, kind, rngs):
        self.kind = kind
        options = dict(rtol=1e-3, on_failure="ignore", rngs=rngs)
        if kind == "OptNet":
            self.layer = OptNet(64, equalities=40, smoothing=1e-3, **options)
        else:
            self.layer = SATNet(64, m=200, aux=50, adjoint_rtol=1e-2, **options)

    def __call__(self, clues, given):
        sol = self.layer(clues) if self.kind == "OptNet" else self.layer(clues, given)
        return sol.z, sol.stats


def tensors(boards):
    flat = lambda x: jnp.asarray(x.reshape(len(x), -1))
    given = flat(sudoku.given_mask(boards.puzzles))
    return flat(sudoku.one_hot(boards.puzzles)), given, flat(sudoku.one_hot(boards.solutions))


# %%
@nnx.jit
def step(model, optimizer, clues, given, wanted):
    def loss(model):
        z, _ = model(clues, given)
        if model.kind == "OptNet":
            return jnp.square(z - wanted).mean()
        p = jnp.clip(z, 1e-6, 1 - 1e-6)
        return -(wanted * jnp.log(p) + (1 - wanted) * jnp.log1p(-p)).mean()

    optimizer.update(model, nnx.grad(loss)(model))


@nnx.jit
def solved(model, clues, given, wanted):
    z, stats = model(clues, given)
    digits = lambda x: x.reshape(len(x), 16, 4).argmax(-1)
    return (digits(z) == digits(wanted)).all(1).mean(), stats


# %%
def learn(kind, rate, steps):
    model = Rules(kind, nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.adam(rate), wrt=nnx.Param)
    batches, held_out, curve = tensors(train), tensors(test), []
    for index in range(steps + 1):
        if index % 20 == 0:
            share, stats = solved(model, *held_out)
            curve.append((50 * index, float(share)))
        rows = np.random.default_rng(index).integers(0, len(train.puzzles), 50)
        step(model, optimizer, *(x[rows] for x in batches))
    return model, stats, curve


learned = {"OptNet": learn("OptNet", 1e-1, 240), "SATNet": learn("SATNet", 5e-3, 160)}

# %%
figure, ax = plt.subplots(figsize=(6.8, 3.6))
for (kind, (_, stats, curve)), marker in zip(learned.items(), ("o-", "s-"), strict=True):
    ax.plot(*zip(*curve, strict=True), marker, markersize=4, label=kind)
    print(kind, "on the test boards:", stats)
ax.set(xlabel="boards seen", ylabel="test boards all right", ylim=(-0.03, 1.05))
ax.legend()
plt.show()

# %% [markdown]
# Both learn the rules from some thousand boards. Read the last two lines as well: the programs of
# OptNet converge, the sweeps of SATNet do not to 1e-3 in the 40 that they are given, and it works
# all the same, because the digit is right long before the angle is. That is a decision which you
# can only take if the layer tells you.
#
# ## Exercise
#
# 1. Give the flow a rotation: add `3 * (B - B.T)` to A. Which of the four bounds does not mind, and
#    what becomes of Picard?
# 2. Let `OptNet` train on its exact gradient, `gradient="exact"`. It learns nothing: a solution of
#    a Sudoku is a corner, and corners do not move. What does the smoothed gradient see instead?
# 3. Which equalities did OptNet learn? Compare the row space of `layer.A` with that of the 40 rules
#    (a digit in a cell, in a row, in a column, in a block) by the angles between them.
