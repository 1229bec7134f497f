"""Linear systems with known spectra, and the cells of equilibrium models."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from .problem import Problem, newton, on_numpy

# ---------------------------------------------------------------------- linear


def linear(a, b, z):
    return a @ z + b - z


def with_spectrum(spectrum, seed=0):
    """A real A with these eigenvalues, pairs a ± bi given once, in a basis of condition 10."""
    rng = np.random.default_rng(seed)
    blocks = []
    for value in spectrum:
        if np.iscomplex(value):
            blocks.append(np.array([[value.real, value.imag], [-value.imag, value.real]]))
        else:
            blocks.append(np.array([[np.real(value)]]))
    n = sum(len(b) for b in blocks)
    diagonal = np.zeros((n, n))
    k = 0
    for block in blocks:
        diagonal[k : k + len(block), k : k + len(block)] = block
        k += len(block)
    left, right = (np.linalg.qr(rng.normal(size=(n, n)))[0] for _ in range(2))
    basis = left @ np.diag(np.geomspace(1, 10, n)) @ right
    return basis @ diagonal @ np.linalg.inv(basis), rng.normal(size=n)


ANGLES = np.pi * (np.arange(10) + 0.5) / 10
SPECTRA = {
    "real": np.linspace(-0.95, 0.95, 20),
    "complex": 0.9 * np.exp(1j * ANGLES),
    "gap 1e-6": np.append(np.linspace(-0.9, 0.9, 19), 1 - 1e-6),
    "radius 4": np.linspace(-4, 0.8, 20),
    "both sides of 1": np.concatenate([np.linspace(-2, 0.5, 10), np.linspace(1.5, 3, 10)]),
    "complex radius 3": 3 * np.exp(1j * ANGLES),
}


def linear_problem(kind):
    a, b = with_spectrum(SPECTRA[kind])
    return Problem(
        f"linear, {kind}",
        linear,
        -1 if np.trace(a) > len(a) else 1,
        np.zeros(len(a)),
        lambda: (np.linalg.solve(np.eye(len(a)) - a, b),),
        parameters=(a, b),
    )


# ---------------------------------------------------------------------- cells


def tanh_cell(w, b, z):
    return jnp.tanh(w @ z + b) - z


def tanh_problem(name, spectrum, input_scale):
    """tanh(W z + b), W symmetric with the spectrum."""
    n = len(spectrum)
    rng = np.random.default_rng(1)
    q = np.linalg.qr(rng.normal(size=(n, n)))[0]
    w, b = q @ np.diag(spectrum) @ q.T, input_scale * rng.normal(size=n)

    def root():
        """By Newton along a path of inputs, from b = 0, where the root is 0."""
        z = np.zeros(n)
        for t in np.linspace(0, 1, 21)[1:]:
            z = newton(lambda z, t=t: np.tanh(w @ z + t * b) - z, z)
        return (z,)

    return Problem(name, tanh_cell, 1, np.zeros(n), root, parameters=(w, b))


def normalised(x):
    x = x - jnp.mean(x, -1, keepdims=True)
    return x / jnp.sqrt(jnp.mean(x**2, -1, keepdims=True) + 1e-5)


def transformer(q, k, v, o, up, down, x, z):
    """One post-norm block with the input injected, as in Bai et al. 2019; 4 tokens, width 8."""
    h = z.reshape(x.shape)
    attention = jax.nn.softmax((h @ q + x) @ (h @ k + x).T / x.shape[-1] ** 0.5)
    h = normalised(h + x + attention @ (h @ v + x) @ o)
    h = normalised(h + jax.nn.gelu(h @ up) @ down)
    return h.reshape(-1) - z


def transformer_problem(name, scale):
    rng = np.random.default_rng(2)
    tokens, width, hidden = 4, 8, 16
    shapes = [(width, width)] * 4 + [(width, hidden), (hidden, width)]
    parameters = [scale * rng.normal(size=s) / s[0] ** 0.5 for s in shapes]
    x = rng.normal(size=(tokens, width))
    function = functools.partial(transformer, *parameters, x)

    def root():
        """Newton, after damped iteration has brought it near."""
        step = jax.jit(lambda z: z + 0.2 * function(z))
        z = np.zeros(x.size)
        for _ in range(400):
            z = step(z)
        return (newton(on_numpy(function), np.array(z)),)

    start = np.zeros(x.size)
    return Problem(name, transformer, 1, start, root, parameters=(*parameters, x))


def problems() -> tuple[Problem, ...]:
    return (
        *(linear_problem(kind) for kind in SPECTRA),
        tanh_problem("tanh near critical", np.linspace(-0.999, 0.999, 30), 1e-2),
        tanh_problem("tanh beyond critical", np.linspace(-3.0, 0.9, 30), 0.3),
        transformer_problem("transformer", 0.5),
        transformer_problem("transformer, wide", 1.5),
    )
