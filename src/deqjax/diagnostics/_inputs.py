"""What every diagnostic asks of its inputs, and how it names a choice of several options."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer

from .._fixed_point import fixed_point

PyTree = Any


def checked(f: Callable, z: PyTree, args: tuple, batch_axis: int | None) -> tuple[PyTree, int]:
    """z as arrays and the number of samples, or `fixed_point`'s sentence on what is wrong."""

    def solve(z):
        return fixed_point(f, z, *args, solver="picard", max_steps=0, batch_axis=batch_axis)

    jax.eval_shape(solve, z)
    z = jax.tree.map(jnp.asarray, z)
    return z, 1 if batch_axis is None else jax.tree.leaves(z)[0].shape[batch_axis]


def check_concrete(function: str, tree: PyTree) -> None:
    if any(isinstance(x, Tracer) for x in jax.tree.leaves(tree)):
        raise TypeError(f"{function}() reads numbers from its arrays: call it outside jit and grad")


def named(given: Any) -> dict[str, Any]:
    """{name: option} from one option, a sequence of them, or a mapping that names them itself."""
    if isinstance(given, Mapping):
        return dict(given)
    several = list(given) if isinstance(given, list | tuple) else [given]
    return {_short(option): option for option in several}


def _short(option: Any) -> str:
    """`Anderson(memory=6)`: what differs from the defaults."""
    if isinstance(option, str) or not is_dataclass(option):
        return str(option)
    values = ((f.name, getattr(option, f.name), f.default) for f in fields(option))
    changed = ", ".join(f"{name}={value!r}" for name, value, default in values if value != default)
    return f"{type(option).__name__}({changed})"
