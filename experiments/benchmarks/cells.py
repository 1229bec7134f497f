# pyright: reportMissingImports=false
# (the peers are optional)
"""The four cells of the comparison, each in JAX and in torch with the same weights.

All parameters are seeded and live as numpy float32. `f(z, theta, x)` is the JAX function;
`torch_f(z, theta, x)` is the same function of torch tensors.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True, eq=False)
class Cell:
    """z = f(z, θ, x), solved from z = 0; v is the cotangent of z* in the backward pass."""

    name: str
    f: Callable[[Any, Any, Any], Any]
    torch_f: Callable[[Any, Any, Any], Any]
    theta: Arrays
    x: np.ndarray
    z0: np.ndarray
    v: np.ndarray


def cells(quick: bool = False) -> list[Cell]:
    """Reference, tanh-512, transformer and near-singular; in small if `quick`."""
    if quick:
        return [
            reference(2, 8, 16, 32),
            tanh(4, 32),
            transformer(2, 8, 16, 2, 32),
            near_singular(2, 24, 0.97),
        ]
    return [reference(), tanh(), transformer(), near_singular()]


def _cell(name, f, torch_f, theta, x, rng) -> Cell:
    theta = {key: value.astype(np.float32) for key, value in theta.items()}
    v = rng.normal(size=x.shape) / math.sqrt(x.size)
    return Cell(
        name,
        f,
        torch_f,
        theta,
        x.astype(np.float32),
        np.zeros_like(x, np.float32),
        np.asarray(v, np.float32),
    )


def reference(batch: int = 8, tokens: int = 128, d: int = 256, width: int = 1024) -> Cell:
    """f(z) = LN(z + x + W₂ relu(W₁ z + b₁) + b₂): a post-LN two-layer ReLU block."""
    rng = np.random.default_rng(0)
    theta = {
        "w1": rng.normal(size=(d, width)) / math.sqrt(d),
        "b1": 0.1 * rng.normal(size=width),
        "w2": 0.5 * rng.normal(size=(width, d)) / math.sqrt(width),
        "b2": 0.1 * rng.normal(size=d),
    }
    x = rng.normal(size=(batch, tokens, d))
    return _cell("reference", _feed_forward, _torch_feed_forward, theta, x, rng)


def tanh(batch: int = 32, d: int = 512, gain: float = 0.9) -> Cell:
    """f(z) = tanh(W z + x), W random with spectral radius near `gain`: eigenvalues fill a disc,
    on which no method does much better than Picard."""
    rng = np.random.default_rng(1)
    theta = {"w": gain * rng.normal(size=(d, d)) / math.sqrt(d)}
    x = 0.5 * rng.normal(size=(batch, d))
    return _cell(f"tanh-{d}", _tanh, _torch_tanh, theta, x, rng)


def transformer(
    batch: int = 4, tokens: int = 64, d: int = 128, heads: int = 4, width: int = 512
) -> Cell:
    """h = LN(z + x + attention(z)), f(z) = LN(h + feed_forward(h)): causal, post-LN."""
    rng = np.random.default_rng(2)
    theta = {
        "qkv": rng.normal(size=(d, 3 * d)) / math.sqrt(d),
        "out": rng.normal(size=(d, d)) / math.sqrt(d),
        "w1": rng.normal(size=(d, width)) / math.sqrt(d),
        "b1": 0.1 * rng.normal(size=width),
        "w2": 0.5 * rng.normal(size=(width, d)) / math.sqrt(width),
        "b2": 0.1 * rng.normal(size=d),
    }
    x = rng.normal(size=(batch, tokens, d))

    def f(z, theta, x):
        return _transformer(z, theta, x, heads)

    def torch_f(z, theta, x):
        return _torch_transformer(z, theta, x, heads)

    return _cell("transformer", f, torch_f, theta, x, rng)


def near_singular(batch: int = 16, d: int = 256, radius: float = 0.9995) -> Cell:
    """f(z) = tanh(W z + x), W symmetric with eigenvalues spread from −1/2 to `radius`.

    The gaps 1 − λ of the upper half go geometrically from 1 − `radius` to 1, and x is chosen for a
    small z* that lies mostly along the large λ: the Jacobian at z* is then nearly W, and Picard
    needs more than 5,000 steps.
    """
    rng = np.random.default_rng(3)
    upper = 1 - np.geomspace(1 - radius, 1, d - d // 2)
    spectrum = np.concatenate([upper, np.linspace(-0.5, 0, d // 2)])
    basis = np.linalg.qr(rng.normal(size=(d, d)))[0]
    weight = (1 - spectrum) ** -1.5
    z = rng.normal(size=(batch, d)) * weight
    z *= 4e-3 / np.sqrt(np.mean(z**2))
    theta = {"w": basis @ np.diag(spectrum) @ basis.T}
    return _cell("near-singular", _tanh, _torch_tanh, theta, z * (1 - spectrum) @ basis.T, rng)


# ---------------------------------------------------------------------- JAX


def _layer_norm(y):
    centred = y - y.mean(-1, keepdims=True)
    return centred * jax.lax.rsqrt(jnp.mean(centred**2, -1, keepdims=True) + 1e-5)


def _mlp(z, theta):
    return jax.nn.relu(z @ theta["w1"] + theta["b1"]) @ theta["w2"] + theta["b2"]


def _feed_forward(z, theta, x):
    return _layer_norm(z + x + _mlp(z, theta))


def _tanh(z, theta, x):
    return jnp.tanh(z @ theta["w"] + x)


def _transformer(z, theta, x, heads):
    batch, tokens, d = z.shape
    q, k, v = (
        part.reshape(batch, tokens, heads, d // heads)
        for part in jnp.split(z @ theta["qkv"], 3, axis=-1)
    )
    scores = jnp.einsum("bihd,bjhd->bhij", q, k) / math.sqrt(d // heads)
    causal = jnp.tril(jnp.ones((tokens, tokens), bool))
    weights = jax.nn.softmax(jnp.where(causal, scores, -1e9), axis=-1)
    attended = jnp.einsum("bhij,bjhd->bihd", weights, v).reshape(z.shape) @ theta["out"]
    h = _layer_norm(z + x + attended)
    return _layer_norm(h + _mlp(h, theta))


# ---------------------------------------------------------------------- torch


def _torch_layer_norm(y):
    import torch

    return torch.nn.functional.layer_norm(y, y.shape[-1:], eps=1e-5)


def _torch_mlp(z, theta):
    import torch

    hidden = torch.relu(torch.nn.functional.linear(z, theta["w1"].T, theta["b1"]))
    return torch.nn.functional.linear(hidden, theta["w2"].T, theta["b2"])


def _torch_feed_forward(z, theta, x):
    return _torch_layer_norm(z + x + _torch_mlp(z, theta))


def _torch_tanh(z, theta, x):
    import torch

    return torch.tanh(z @ theta["w"] + x)


def _torch_transformer(z, theta, x, heads):
    import torch

    batch, tokens, d = z.shape
    q, k, v = (
        part.reshape(batch, tokens, heads, d // heads).transpose(1, 2)
        for part in (z @ theta["qkv"]).chunk(3, dim=-1)
    )
    attended = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    h = _torch_layer_norm(z + x + attended.transpose(1, 2).reshape(z.shape) @ theta["out"])
    return _torch_layer_norm(h + _torch_mlp(h, theta))
