"""Results as a reader wants to see them: a line in the REPL, a paragraph when asked for more."""

from __future__ import annotations

import html
from dataclasses import fields
from typing import Any

import jax
import numpy as np
from jax.core import Tracer

PyTree = Any

NAMED = 4  # leaves of a state that are written out


class Text(str):
    """Text that a REPL and a notebook show as it is."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(self)}</pre>"


class Shown:
    """Base of results whose `str` is meant to be read: shown as that everywhere."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(str(self))}</pre>"


def state(z: PyTree) -> str:
    """float32[6,8], or {'a': float32[3], 'b': float32[4]}, or how many there are."""
    leaves = jax.tree.leaves(z)
    if len(leaves) > NAMED:
        return f"{len(leaves)} leaves, {sum(np.size(x) for x in leaves):,} numbers"
    return str(jax.tree.map(lambda x: _Form(_form(x)), z))


class _Form(str):
    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def _form(x: Any) -> str:
    return f"{x.dtype}[{','.join(map(str, x.shape))}]" if hasattr(x, "dtype") else repr(x)


def concrete(*given: Any) -> bool:
    """Whether these hold numbers: not so while JAX traces, or of a shape without values."""
    return all(
        isinstance(x, jax.Array | np.ndarray | np.generic | int | float | bool)
        and not isinstance(x, Tracer)
        and getattr(x, "is_fully_addressable", True)
        for x in jax.tree.leaves(given)
    )


def counts(status: Any, name: Any) -> dict[str, int]:
    """How many samples ended how, the commonest first; name: code -> name."""
    codes, times = np.unique(np.asarray(status), return_counts=True)
    found = {name(int(c)): int(n) for c, n in zip(codes, times, strict=True)}
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def endings(found: dict[str, int]) -> str:
    """6/6 converged, or 4/6 converged, 2 max_steps; of one solve, its ending."""
    total = sum(found.values())
    if total == 1:
        return next(iter(found)).lower()
    rest = [f"{n} {name.lower()}" for name, n in found.items() if name != "CONVERGED"]
    return ", ".join([f"{found.get('CONVERGED', 0)}/{total} converged", *rest])


def span(x: Any) -> str:
    """6-9, or 6."""
    low, high = (f"{v:.6g}" for v in (np.min(x), np.max(x)))
    return low if low == high else f"{low}\N{EN DASH}{high}"


def worst(x: Any) -> float:
    """The largest entry; NaN if there is one."""
    return float(np.max(np.asarray(x)))


def changed(options: Any) -> str:
    """Anderson(memory=6): what differs from the defaults."""
    values = ((f.name, getattr(options, f.name), f.default) for f in fields(options))
    given = ", ".join(f"{name}={value!r}" for name, value, default in values if value != default)
    return f"{type(options).__name__}({given})"
