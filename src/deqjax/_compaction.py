"""f on a part of the batch, for solves whose finished samples are left behind.

f(z, *args) is a Python function of whole batches. On the samples in an index array it is
f(z[index], *args[index]), where only those leaves of args are indexed that carry the batch. Which
ones do is found by tracing f with a batch of another size: a wrong choice does not fit together.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

PyTree = Any

# More than this many choices of leaves are not tried.
CHOICES = 256


def take(tree: PyTree, index: jax.Array, axis: int = 0) -> PyTree:
    return jax.tree.map(lambda x: jnp.take(x, index, axis=axis), tree)


def put_back(tree: PyTree, index: jax.Array, part: PyTree, axis: int = 0) -> PyTree:
    """The inverse of `take`: `part` written back."""

    def leaf(x, p):
        where = (slice(None),) * axis + (index,)
        return x.at[where].set(p, unique_indices=True)

    return jax.tree.map(leaf, tree, part)


def batched_args(f: Callable, z0: PyTree, args: tuple, axis: int) -> list[bool]:
    """For every leaf of args, whether it carries the batch of z0 along `axis`.

    Raises:
        ValueError: no choice of leaves fits f.
    """
    leaves, treedef = jax.tree.flatten(args)
    size = jax.tree.leaves(z0)[0].shape[axis]
    sizes = {n for x in [*leaves, *jax.tree.leaves(z0)] for n in getattr(x, "shape", ())}
    probe = next(n for n in itertools.count(2) if n not in sizes)

    def resized(x):
        shape = list(x.shape)
        shape[axis] = probe
        return jax.ShapeDtypeStruct(shape, x.dtype)

    def could_be(x):
        return isinstance(x, jax.Array) and -x.ndim <= axis < x.ndim and x.shape[axis] == size

    z = jax.tree.map(resized, z0)
    want = [(x.shape, x.dtype) for x in jax.tree.leaves(z)]

    is_array = [isinstance(x, jax.Array) for x in leaves]  # or a function, which f calls

    def call(z, arrays):
        given = iter(arrays)
        filled = [next(given) if a else x for x, a in zip(leaves, is_array, strict=True)]
        return f(z, *jax.tree.unflatten(treedef, filled))

    def fits(chosen) -> bool:
        given = [resized(x) if c else x for x, c in zip(leaves, chosen, strict=True)]
        given = [x for x, a in zip(given, is_array, strict=True) if a]
        try:
            out = jax.eval_shape(call, z, given)
        except Exception:
            return False
        return [(x.shape, x.dtype) for x in jax.tree.leaves(out)] == want

    open_ = [i for i, x in enumerate(leaves) if could_be(x)]
    # All of them is by far the likeliest; then all but one, and so on.
    subsets = (s for n in range(len(open_), -1, -1) for s in itertools.combinations(open_, n))
    for subset in itertools.islice(subsets, CHOICES):
        chosen = [i in subset for i in range(len(leaves))]
        if fits(chosen):
            break
    else:
        raise ValueError(
            "Compacted() evaluates f on a part of the batch, but f does not accept one: pass "
            f"everything that has one row a sample (along batch_axis={axis}) through *args, not "
            "through a closure"
        )
    # What f fits without is shared: a table that all samples read may have as many rows.
    # One at a time, then two: keys and values of a table go together.
    for n in (1, 2):
        for some in itertools.islice(itertools.combinations(subset, n), CHOICES):
            without = [c and i not in some for i, c in enumerate(chosen)]
            if without != chosen and fits(without):
                chosen = without
    return chosen
