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
# # Eight devices, one laptop
#
# Equilibria scale over devices in a way that stacked networks do not: each device may stop when
# *its* samples have converged, and has nothing to say to the others while it solves. XLA can
# pretend that a processor is eight devices, which is enough to see who waits for whom, and what is
# sent.

# %%
import os

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + (
    " --xla_force_host_platform_device_count=8"  # before JAX is imported
)
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import deqjax
from deqjax import diagnostics, nn, training
from deqjax.data import Stream
from deqjax.training import plan
from deqjax.training.plan.cost import program_costs
from deqjax.training.plan.report import report

plt.rcParams.update(diagnostics.style())

# %% [markdown]
# ## Every device to its own stop
#
# 64 equations, the easy ones first, so that the last devices have the hard ones.

# %%
rng, n = np.random.default_rng(0), 16
w = rng.normal(size=(n, n))
w = jnp.array(w / np.linalg.norm(w, 2), jnp.float32)
hard = jnp.linspace(0.3, 0.98, 64)[:, None]  # J's size, sample by sample
x = jnp.array(0.1 * rng.normal(size=(64, n)), jnp.float32)
mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))


def solve(w, hard, x):
    f = lambda z, w, hard, x: jnp.tanh(hard * (z @ w.T)) + x
    solver = deqjax.Picard(rtol=1e-5, max_steps=500)
    sol = deqjax.fixed_point(f, jnp.zeros_like(x), w, hard, x, solver=solver, batch_axis=0)
    return sol.z, sol.stats


rows = dict(in_specs=(P(), P("data"), P("data")), out_specs=P("data"))
on_eight = jax.jit(jax.shard_map(solve, mesh=mesh, **rows))
z, stats = on_eight(w, hard, x)
print(stats)

# %%
steps = np.asarray(stats.steps).reshape(8, 8)  # a row is a device
figure, ax = plt.subplots(figsize=(7.4, 3.6))
ax.bar(range(8), steps.max(1), color="0.85", label="the device's loop: its slowest sample")
for device, taken in enumerate(steps):
    ax.plot([device] * 8, taken, "o", color="C0", ms=4, label=None if device else "samples")
ax.axhline(steps.max(), color="k", ls="--", lw=1, label="one loop for all would run so long")
ax.set(xlabel="device", ylabel="solver steps", xticks=range(8))
ax.legend(loc="upper left")
plt.show()
print(f"steps of all devices: {steps.max(1).sum()}, in one common loop {8 * steps.max()}")

# %% [markdown]
# Within a device a sample that has ended is frozen and waits; between devices no one waits before
# the end of the solve. In training the batch is mixed, and the devices end at about the same time;
# what then counts is that none of them talks.
#
# ## What is sent
#
# Read the compiled program. `shard_map` gives each device a program of its own; `jit` with a
# sharded batch is one program that the compiler cuts, whose loop asks all devices whether anyone
# is still running.


# %%
def sent(function, *arguments):
    """The collectives in the solver's loops, and outside of them."""
    text = jax.jit(function).lower(*arguments).compile().as_text()
    costs = program_costs(text)
    kinds = lambda cost: [c.kind for c in cost.collectives] or "none"
    return {
        "in a forward step": kinds(costs.forward),
        "in an adjoint step": kinds(costs.adjoint),
        "outside": kinds(costs.outside),
    }


# %%
def gradient(solve):
    loss = lambda w, hard, x: jnp.square(solve(w, hard, x)[0]).sum()
    return jax.grad(loss)


cut = NamedSharding(mesh, P("data"))
spread = jax.device_put((hard, x), cut)
print("shard_map:", sent(gradient(jax.shard_map(solve, mesh=mesh, **rows)), w, *spread))
print("jit:      ", sent(gradient(solve), w, *spread))

# %% [markdown]
# In the loops of `shard_map` there are none, forward and adjoint; outside there is one sum, of the
# gradient of w. That is all that data parallelism costs, however many steps the solves take.
#
# ## A plan of a model of one's own
#
# The planner compiles the real train step for a topology, runs nothing, and says what every chip
# holds, computes and sends. `"cpu:8"` is this processor, seen eight times. For a pod that you do
# not have, `pip install 'jax[tpu]'` and say `"v5e:4x4"`: the rest of the notebook stays as it is.


# %%
def planned(width, topology="cpu:8"):
    def new_model(rngs):
        cell = nn.TransformerCell(width, heads=4, d_inner=2 * width, memory_length=32, rngs=rngs)
        return nn.LanguageModel(1000, cell, solver="anderson", rtol=1e-3, rngs=rngs)

    stream = Stream(np.zeros(10_000, np.int32), batch_size=16, segment=32, start_id=0)
    task = training.LanguageModelling(new_model, stream, stream)
    options = training.TrainOptions(batch_size=16)
    return plan.plan(task, options, topology, evaluations=False)


plans = {width: planned(width) for width in (32, 64, 128)}
print(report(plans[128], forward=10, adjoint=10))

# %%
figure, ax = plt.subplots(figsize=(7.4, 3.6))
bottom = np.zeros(len(plans))
names = [f"width {width}\n{p.parameters / 1e3:.0f}k parameters" for width, p in plans.items()]
parts = ("parameters", "optimiser", "gradients", "history", "activations")
for part, hatch in zip(parts, ("", "//", "..", "xx", "\\\\"), strict=True):
    size = np.array([getattr(p.memory, part) / 1e6 for p in plans.values()])
    ax.bar(names, size, bottom=bottom, hatch=hatch, edgecolor="white", label=part)
    bottom += size
ax.set_ylabel("memory of a device (MB)")
ax.legend(loc="upper left")
plt.show()

# %% [markdown]
# Activations do not grow with the depth of the solve: whatever `max_steps` is, there is one
# application of the cell to keep, and the solver's history of five differences. Beyond that it is a
# model like any other: parameters, moments and gradients, which `fsdp` can store in parts.
#
# ## Exercise
#
# 1. Shuffle `hard`. What becomes of the eight bars, and of the sum of the steps?
# 2. `TrainOptions(mesh="data=4,fsdp=2")` stores parameters and moments in two parts. Plan it: what
#    shrinks, and which collectives appear outside the loops?
# 3. Plan width 256 with `accumulate=2`. Which part of the memory does that halve?
