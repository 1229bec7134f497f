"""Cells with known answers: the dense solution and the dense implicit gradient, in numpy float64.

None of the references uses the library, JAX's differentiation, or an iteration of the kind under
test: solutions come from Newton's method with a dense Jacobian, gradients from (I − J)ᵀu = v.
"""

import jax
import jax.numpy as jnp
import numpy as np

import deqjax

SOLVERS = ("picard", "anderson", "broyden")
# The same with short histories, which compile in half the time.
SMALL = {
    "picard": deqjax.Picard(),
    "anderson": deqjax.Anderson(memory=3),
    "broyden": deqjax.Broyden(memory=4),
}
TIGHT = dict(rtol=1e-12, atol=1e-12, max_steps=300)


def relative(got, want) -> float:
    """‖got − want‖ / ‖want‖ over all leaves as one vector."""
    got, want = (
        np.concatenate([np.ravel(np.asarray(x)).astype(np.complex128) for x in jax.tree.leaves(t)])
        for t in (got, want)
    )
    assert got.shape == want.shape
    return float(np.linalg.norm(got - want) / max(np.linalg.norm(want), 1e-300))


def solve(f, z0, *args, **options):
    """`fixed_point` under jit."""
    return jax.jit(lambda z0, args: deqjax.fixed_point(f, z0, *args, **options))(z0, args)


def trace_of(sol):
    """The residuals of the steps that were taken, numpy."""
    return np.asarray(sol.stats.trace)[: int(sol.stats.steps) + 1]


# ------------------------------------------------------------------------------- tanh cell


def tanh_cell(z, theta, x):
    """z' = tanh(W z + b) + x on the last axis. ∂z'/∂x = I, so the gradient to x is u itself."""
    return jnp.tanh(z @ theta["w"].T + theta["b"]) + x


def tanh_parameters(n=6, radius=0.7, seed=0):
    """theta and x, numpy; ‖W‖₂ = radius, so the cell contracts with that factor."""
    rng = np.random.default_rng(seed)
    w = rng.normal(size=(n, n))
    w *= radius / np.linalg.norm(w, 2)
    return {"w": w, "b": rng.normal(size=n)}, rng.normal(size=n)


def tanh_jacobian(z, theta):
    return (1 - np.tanh(theta["w"] @ z + theta["b"]) ** 2)[:, None] * theta["w"]


def tanh_solution(theta, x):
    """z* by Newton with the dense Jacobian; x may carry a batch on axis 0."""
    if x.ndim == 2:
        return np.stack([tanh_solution(theta, row) for row in x])
    z = np.zeros_like(x)
    for _ in range(60):
        g = np.tanh(theta["w"] @ z + theta["b"]) + x - z
        z = z + np.linalg.solve(np.eye(x.size) - tanh_jacobian(z, theta), g)
    assert np.linalg.norm(np.tanh(theta["w"] @ z + theta["b"]) + x - z) < 1e-13
    return z


def tanh_gradient(theta, z, v):
    """Dense implicit gradient at z for the cotangent v: ({"w", "b"}, x). Rows of a batch add up."""
    if z.ndim == 2:
        rows = [tanh_gradient(theta, a, b) for a, b in zip(z, v, strict=True)]
        total = {k: sum(r[0][k] for r in rows) for k in theta}
        return total, np.stack([r[1] for r in rows])
    u = np.linalg.solve((np.eye(z.size) - tanh_jacobian(z, theta)).T, v)
    s = u * (1 - np.tanh(theta["w"] @ z + theta["b"]) ** 2)
    return {"w": np.outer(s, z), "b": s}, u


# Fixed weights of the scalar loss Σ c · sin(z), whose cotangent is c · cos(z).


def weights(n):
    return np.linspace(-1.0, 2.0, n)


def loss_of(z):
    return jnp.sum(jnp.sin(z) * weights(z.shape[-1]))


def cotangent_of(z):
    return np.cos(z) * weights(z.shape[-1])


def dense_gradient(theta, x):
    """The gradient of `loss_of` at z* to (theta, x)."""
    z = tanh_solution(theta, x)
    return tanh_gradient(theta, z, cotangent_of(z))


def tanh_loss(theta, x, **options):
    return loss_of(deqjax.fixed_point(tanh_cell, jnp.zeros_like(x), theta, x, **options).z)


def tanh_batch(n=5, rows=3):
    """theta, and x with rows of different size."""
    theta, x = tanh_parameters(n)
    return theta, x * np.array([0.1, 1.0, 8.0])[:rows, None]


def tanh_solve(theta, x, solver="anderson", **options):
    """To a tight tolerance, with a short history."""
    options = TIGHT | dict(solver=SMALL[solver]) | options
    return deqjax.fixed_point(tanh_cell, jnp.zeros_like(x), theta, x, **options)


def small_loss(theta, x, **options):
    return loss_of(tanh_solve(theta, x, **options).z)


def probed(theta, x, probe, **options):
    """The gradient of `tanh_loss` to (x, probe)."""
    loss = lambda x, probe: tanh_loss(theta, x, adjoint_probe=probe, **options)
    return jax.jit(jax.grad(loss, (0, 1)))(x, probe)


# ------------------------------------------------------------------------------- as a pytree


def split(z):
    """A vector (last axis) as a nested pytree of two leaves of different sizes."""
    k = z.shape[-1] // 3
    return {"a": z[..., :k], "b": (z[..., k:],)}


def join(tree):
    return jnp.concatenate([tree["a"], tree["b"][0]], axis=-1)


def on_pytrees(f):
    return lambda tree, *args: split(f(join(tree), *args))


# ------------------------------------------------------------------------------- linear cell


def linear(spectrum, seed=0, symmetric=True):
    """A, b and z* of z = A z + b, where A has the given spectrum."""
    spectrum = np.asarray(spectrum, float)
    rng = np.random.default_rng(seed)
    basis = rng.normal(size=(spectrum.size,) * 2)
    if symmetric:
        basis = np.linalg.qr(basis)[0]
    a = basis @ np.diag(spectrum) @ np.linalg.inv(basis)
    b = rng.normal(size=spectrum.size)
    return a, b, np.linalg.solve(np.eye(spectrum.size) - a, b)


def linear_cell(z, a, b):
    return z @ a.T + b


def chandrasekhar(c=0.99, n=100):
    """The H-equation H(μ) = 1 / (1 − c/2 ∫ μ H(ν) / (μ + ν) dν) at n midpoints."""
    mu = (np.arange(n) + 0.5) / n
    kernel = 0.5 * c / n * mu[:, None] / (mu[:, None] + mu)
    return lambda h: 1 / (1 - kernel @ h)
