"""The operands of `qp`: checked, with the batch first, in one dtype."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ._quadratic import Layout, Program


class Operands(NamedTuple):
    """Attributes:
    program: the program; matrices that are shared have a batch of one.
    layout: what is known of it.
    axis: where results have their batch; None, they have none.
    dtype: that of results.
    """

    program: Program
    layout: Layout
    axis: int | None
    dtype: Any


def operands(Q, q, A, b, G, h, lower, upper, batch_axis: int | None) -> Operands:
    given = dict(Q=Q, q=q, A=A, b=b, G=G, h=h, lower=lower, upper=upper)
    for name, other in (("A", "b"), ("b", "A"), ("G", "h"), ("h", "G")):
        if given[name] is not None and given[other] is None:
            raise ValueError(f"{name} is given without {other}: a constraint needs both")
    arrays = {k: _array(k, x) for k, x in given.items() if x is not None}
    dtype = _dtype(arrays)
    wide = jnp.promote_types(dtype, jnp.float32)
    arrays = {k: x.astype(wide) for k, x in arrays.items()}

    q = _fronted("q", arrays["q"], 1, batch_axis)
    n = q.shape[-1]
    if n == 0:
        raise ValueError("q must have at least one entry")
    diagonal = _is_diagonal(arrays["Q"], n)
    parts = dict(Q=_fronted("Q", arrays["Q"], 1 if diagonal else 2, batch_axis), q=q)
    for name, ndim in dict(A=2, b=1, G=2, h=1, lower=1, upper=1).items():
        if name in arrays:
            x = arrays[name]
            if name in ("lower", "upper") and x.ndim == 0:
                x = jnp.broadcast_to(x, (n,))
            parts[name] = _fronted(name, x, ndim, batch_axis)
    _check_shapes(parts, n, diagonal)

    sizes = {k: x.shape[0] for k, x in parts.items() if _batched(k, x, diagonal)}
    if len(set(sizes.values())) > 1:
        told = ", ".join(f"{k} has {size}" for k, size in sizes.items())
        raise ValueError(f"operands must have one batch size: {told}")
    batch = next(iter(sizes.values()), 1)
    if batch == 0:
        raise ValueError("the batch must not be empty")

    full = {}
    for name, x in parts.items():
        full[name] = x if name in sizes else x[None]
        if name not in ("Q", "A", "G"):
            full[name] = jnp.broadcast_to(full[name], (batch, *full[name].shape[1:]))
    if not diagonal:
        # zᵀQz knows the symmetric part alone; so does the gradient to Q, by this line.
        full["Q"] = (full["Q"] + jnp.swapaxes(full["Q"], 1, 2)) / 2
    M = _stacked(full.get("A"), full.get("G"), n, wide)
    none = jnp.zeros((batch, 0), wide)
    e = jnp.concatenate([full.get("b", none), full.get("h", none)], axis=1)
    program = Program(full["Q"], M, full["q"], e, full.get("lower"), full.get("upper"))
    p = full["b"].shape[1] if "b" in full else 0
    layout = Layout(n, p, e.shape[1] - p, lower is not None, upper is not None, diagonal)
    return Operands(program, layout, batch_axis if sizes else None, dtype)


def _array(name: str, x: Any) -> jax.Array:
    try:
        x = jnp.asarray(x)
    except TypeError:
        raise TypeError(f"{name} must be an array, got {type(x).__name__}") from None
    if jnp.issubdtype(x.dtype, jnp.complexfloating):
        raise TypeError(f"{name} must be real, got {x.dtype}: split it into real and imaginary")
    if not (jnp.issubdtype(x.dtype, jnp.floating) or jnp.issubdtype(x.dtype, jnp.integer)):
        raise TypeError(f"{name} must be an array of numbers, got {x.dtype}")
    return x


def _dtype(arrays: dict[str, jax.Array]):
    real = [x for x in arrays.values() if jnp.issubdtype(x.dtype, jnp.floating)]
    return jnp.result_type(*real) if real else jnp.result_type(float)


def _fronted(name: str, x: jax.Array, ndim: int, axis: int | None) -> jax.Array:
    """The batch of x, if it has one, first."""
    if x.ndim == ndim:
        return x
    if x.ndim != ndim + 1:
        raise ValueError(
            f"{name} must have {ndim} axes, or {ndim + 1} with the batch, got shape {x.shape}"
        )
    if axis is None:
        raise ValueError(
            f"{name} has shape {x.shape}, one axis too many for a single program: batch_axis says "
            "which is the batch"
        )
    if not -x.ndim <= axis < x.ndim:
        raise ValueError(f"batch_axis={axis} is out of range for {name} of shape {x.shape}")
    return jnp.moveaxis(x, axis, 0)


def _is_diagonal(Q: jax.Array, n: int) -> bool:
    """(n,), or with a batch, which (n, n) is not."""
    return Q.ndim == 1 or (Q.ndim == 2 and Q.shape != (n, n))


def _batched(name: str, x: jax.Array, diagonal: bool) -> bool:
    base = 2 if name in ("A", "G") or (name == "Q" and not diagonal) else 1
    return x.ndim > base


def _check_shapes(parts: dict[str, jax.Array], n: int, diagonal: bool) -> None:
    if (not diagonal and parts["Q"].shape[-2:] != (n, n)) or parts["Q"].shape[-1] != n:
        raise ValueError(
            f"Q must be ({n}, {n}), or ({n},) for a diagonal one, since q has {n} entries; got "
            f"{parts['Q'].shape}"
        )
    for matrix, vector in (("A", "b"), ("G", "h")):
        if matrix in parts:
            rows, columns = parts[matrix].shape[-2:]
            if columns != n or parts[vector].shape[-1] != rows:
                raise ValueError(
                    f"{matrix} must be (rows, {n}) and {vector} (rows,), each with or without the "
                    f"batch; got {parts[matrix].shape} and {parts[vector].shape}"
                )
    for name in ("lower", "upper"):
        if name in parts and parts[name].shape[-1] != n:
            raise ValueError(f"{name} must be a number or ({n},), got {parts[name].shape}")


def _stacked(A, G, n: int, dtype) -> jax.Array:
    both = [x for x in (A, G) if x is not None]
    if not both:
        return jnp.zeros((1, 0, n), dtype)
    batch = max(x.shape[0] for x in both)
    return jnp.concatenate([jnp.broadcast_to(x, (batch, *x.shape[1:])) for x in both], axis=1)
