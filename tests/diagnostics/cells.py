"""Linear cells with a given Jacobian, in every layout that a state can have."""

import jax.numpy as jnp
import numpy as np


def linear(z, a):
    """J = A for one state vector; for rows of a batch, J = A[i] for row i."""
    return jnp.einsum("...ij,...j->...i", a, z)


def linear_pytree(z, a):
    """The same J, the state cut into a vector and a matrix."""
    flat = jnp.concatenate([z["b"], z["a"].ravel()])
    out = a @ flat
    return {"b": out[: z["b"].size], "a": out[z["b"].size :].reshape(z["a"].shape)}


def matrix(kind, n, seed=0):
    rng = np.random.default_rng(seed)
    a = rng.normal(size=(n, n)) / np.sqrt(n)
    if kind == "symmetric":
        return a + a.T
    if kind == "random":
        return a
    if kind == "non-normal":
        return np.triu(3 * a, 1) + np.diag(np.linspace(-0.9, 0.7, n))
    if kind == "complex pair":  # 0.95 e^{±i}, all others below 0.5
        basis, _ = np.linalg.qr(rng.normal(size=(n, n)))
        d = np.diag(np.linspace(-0.5, 0.5, n))
        d[:2, :2] = 0.95 * np.array([[np.cos(1), -np.sin(1)], [np.sin(1), np.cos(1)]])
        return basis @ (d + 0.3 * np.triu(rng.normal(size=(n, n)) / n, 2)) @ basis.T
    raise ValueError(kind)


KINDS = ("symmetric", "random", "non-normal", "complex pair")


def radius(a):
    return np.abs(np.linalg.eigvals(a)).max(axis=-1)


def labels(ax):
    """What the legend of a picture says."""
    return [text.get_text() for text in ax.get_legend().get_texts()]
