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
# # Is my gradient right, and what did it cost?
#
# The gradient of an equilibrium is θ̄ = uᵀ ∂f/∂θ, where u solves an equation of its own,
# u = Jᵀu + v, with J = ∂f/∂z at z\* and v the gradient of the loss at z\*. One may solve it, guess
# it, or go back through the steps of the solver. Here is what each costs and how far off it is, for
# one cell f(z, θ, x) = tanh(W z + b + x).

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from jax.flatten_util import ravel_pytree

import deqjax
from deqjax import Phantom, Shine, Tail, diagnostics

jax.config.update("jax_enable_x64", True)
plt.rcParams.update(diagnostics.style())
n, rng = 64, np.random.default_rng(1)
noise = rng.normal(size=(n, n)) / n**0.5
theta = {"W": jnp.array(0.45 * noise + 0.25 * (noise + noise.T)), "b": jnp.zeros(n)}
x, z0, target = jnp.array(0.5 * rng.normal(size=n)), jnp.zeros(n), jnp.array(rng.normal(size=n))


def f(z, theta, x):
    return jnp.tanh(theta["W"] @ z + theta["b"] + x)


# %%
common = dict(loss=lambda z: target @ z, rtol=1e-6, max_steps=300)
cheap = {"JFB": "jfb", **{f"Phantom, {k} terms": Phantom(steps=k) for k in (5, 20, 50)}}
solved = {"Implicit": "implicit", "SHINE": Shine(refine=2), "Tail, 5 steps": Tail(steps=5)}
broyden = diagnostics.gradient_audit(
    *(f, z0, theta, x),
    solver=deqjax.Broyden(memory=30),
    adjoints=cheap | solved,
    **common,
)
reversible = deqjax.Reversible(damping=0.2)
steps = {"Unrolled (Picard)": "unrolled", "Reversible (Picard)": reversible}
picard = diagnostics.gradient_audit(*(f, z0, theta, x), solver="picard", adjoints=steps, **common)
ax = broyden.plot()
picard.plot(ax, offset=len(broyden.rows))
plt.show()

# %% [markdown]
# Low and left is good. **Implicit** solves the adjoint equation to the tolerance of the forward
# solve. **JFB** leaves J out (u = v); **Phantom** adds terms of the series v + Jᵀv + …, so that
# more terms buy less error; **Tail** goes back through a few applications of f after the solve.
# **SHINE** transposes the inverse that Broyden has built, which costs next to nothing.
# **Unrolled** goes back through all steps of the solver, and **Reversible** does so by running the
# solve backwards, in constant memory. Both of these need a plain iteration, which takes more steps
# here; the relaxed one of Reversible has not quite converged in 300.

# %%
print(broyden)
print(picard)

# %% [markdown]
# The cosine says whether the direction is right, |g|/|g\*| whether the length is. For a direction
# that an optimiser will rescale anyway, 0.9 may do. SHINE has the row of JFB: the inverse that
# Broyden built along its own path was worse than none for this random target, which it noticed, and
# fell back.
#
# ## When is cheap good enough?
#
# It depends on J, and J changes as a model trains. Scale W so that the spectral radius goes from
# 0.1 to nearly one, and ask again. `gain` is ‖u‖/‖v‖: what the adjoint solve multiplies v by.


# %%
def questions(scale):
    scaled = theta | {"W": scale * theta["W"]}
    audit = diagnostics.gradient_audit(
        *(f, z0, scaled, x), adjoints={k: v for k, v in cheap.items() if "50" not in k}, **common
    )
    z = deqjax.fixed_point(f, z0, scaled, x, rtol=1e-10, max_steps=300).z
    J = np.asarray(jax.jacobian(f)(z, scaled, x))
    condition = np.linalg.cond(np.eye(n) - J)
    radius = np.abs(np.linalg.eigvals(J)).max()
    return radius, condition, float(audit.reference.gain), [row.cosine for row in audit.rows]


scales = np.array([0.1, 0.4, 0.7, 0.9, 1.0, 1.07, 1.12])
radius, condition, gain, cosines = map(np.array, zip(*map(questions, scales), strict=True))

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(10.5, 3.9))
for name, marker, values in zip(cheap, "os^", cosines.T, strict=False):
    left.plot(radius, values, marker + "-", label=name)
left.set(xlabel="spectral radius of J", ylabel="cosine with the exact gradient", ylim=(0, 1.03))
left.legend(loc="lower left")
right.semilogy(radius, condition, "o-", label="condition number of I − J")
right.semilogy(radius, gain, "s--", label="gain ‖u‖ / ‖v‖ (in your metrics)")
right.set(xlabel="spectral radius of J", ylabel="factor")
right.legend()
plt.show()

# %% [markdown]
# The condition number is what you want to know and cannot afford; the gain is what every adjoint
# solve reports anyway, and a lower bound of how much an error can grow. `training` writes it into
# the metrics as `adjoint_gain`. A gain of 2 is a cell for which anything works. Hundreds are a
# cell near a singular I − J: there the exact gradient is long because the truth is, and the
# remedies are those of the model ([keeping it solvable](../docs/training.md#keeping-it-solvable)).
#
# ## Two tolerances
#
# Two solves stand behind the implicit gradient: the forward one, which finds the z\* at which J is
# taken, and the adjoint one, which finds u. A backward pass has no output of its own, so the
# adjoint solve reports through a probe: the "gradient" of the probe is its statistics.


# %%
@jax.jit(static_argnums=(0, 1))
def gradient(forward_rtol, adjoint_rtol):
    def loss(theta, probe):
        solution = deqjax.fixed_point(
            *(f, z0, theta, x),
            solver=deqjax.Broyden(rtol=forward_rtol, memory=30),
            adjoint_solver=deqjax.Broyden(rtol=adjoint_rtol, memory=30),
            max_steps=300,
            adjoint_probe=probe,
        )
        return target @ solution.z

    grad, report = jax.grad(loss, (0, 1))(theta, deqjax.adjoint_probe())
    return ravel_pytree(grad)[0], report


exact, _ = gradient(1e-13, 1e-13)
error = lambda grad: float(jnp.linalg.norm(grad - exact) / jnp.linalg.norm(exact))

# %%
tolerances = [1e-1, 1e-2, 1e-3, 1e-5, 1e-7]
adjoint_loose = [gradient(1e-11, rtol) for rtol in tolerances]
forward_loose = [gradient(rtol, 1e-11) for rtol in tolerances]
figure, ax = plt.subplots()
ax.loglog(tolerances, [error(g) for g, _ in adjoint_loose], "o-", label="error: adjoint loose")
ax.loglog(tolerances, [error(g) for g, _ in forward_loose], "s-", label="error: forward loose")
reported = [report.rel_residual for _, report in adjoint_loose]
ax.loglog(tolerances, reported, "^--", label="residual that the probe reports")
ax.invert_xaxis()
ax.set(xlabel="rtol of the loose solve (the other: 1e-11)", ylabel="relative error of the gradient")
ax.legend()
plt.show()

# %% [markdown]
# The error of the gradient follows either tolerance down. It stays above the residual, by no more
# than about the condition number. So read the probe's residual beside the forward one: neither
# solve is worth doing much better than the other.
#
# ## Second derivatives
#
# `forward_mode=True` gives derivatives in every direction and order: forward, reverse, and mixed.
# Here is the Hessian of a loss in two of the inputs, and a check by differences of gradients.


# %%
def loss(two):
    moved = x.at[:2].add(two)
    solution = deqjax.fixed_point(f, z0, theta, moved, rtol=1e-12, max_steps=300, forward_mode=True)
    return jnp.sum((solution.z - target) ** 2)


here, h = jnp.zeros(2), 1e-5
slope = jax.jit(jax.grad(loss))
print("jax.hessian:\n", jax.jit(jax.hessian(loss))(here))
differences = [(slope(here + h * e) - slope(here - h * e)) / (2 * h) for e in jnp.eye(2)]
print("by differences:\n", jnp.stack(differences))

# %% [markdown]
# A Hessian-vector product, `jax.jvp(jax.grad(loss), (here,), (v,))`, costs two linear solves beside
# the two of the gradient. What is approximate (JFB, phantom, tail, SHINE) has no second derivative
# that means anything, and is refused.
#
# ## Exercise
#
# 1. `deqjax.Implicit(max_gain=5.0)` scales u down where its gain is larger. Add it to the audit at
#    `scale = 1.12`. What does it do to the cosine, and what to the length?
# 2. At which radius does Phantom with 5 terms fall below a cosine of 0.9? Its error should go like
#    ρ(½ I + ½ J)⁵. Does it?
# 3. Wrap the loss so that it does not depend on z\* at all, and look at the report of the probe.
