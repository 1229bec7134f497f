"""The leaves of a tree: how the manifest describes them, what is stored, where values go."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .errors import CheckpointError

Description = dict[str, Any]


def describe(path: Any, leaf: Any) -> Description:
    """The manifest's record of one leaf; the same for an array and a `ShapeDtypeStruct`."""
    name = jax.tree_util.keystr(path) or "(the whole tree)"
    if not hasattr(leaf, "shape") or not hasattr(leaf, "dtype"):
        kind = type(leaf).__name__
        raise TypeError(f"leaf {name} is {kind}, not an array; put Python values into info")
    dtype = leaf.dtype
    is_key = jnp.issubdtype(dtype, jax.dtypes.prng_key)
    if not is_key and (dtype.hasobject or dtype.type in (np.void, np.str_, np.bytes_)):
        raise TypeError(f"leaf {name} has dtype {dtype}; only arrays of numbers can be saved")
    return {"path": name, "shape": list(leaf.shape), "dtype": str(dtype), "prng": is_key}


def has_bytes(description: Description) -> bool:
    # Orbax refuses arrays without elements; the manifest's shape and dtype say all of them.
    return 0 not in description["shape"]


def key(index: int) -> str:
    """The name of a leaf's array."""
    # A number and not the leaf's path: paths may be empty, repeated, or hold any character.
    return f"{index:06d}"


def described_and_stored(tree: Any) -> tuple[list[Description], dict[str, Any]]:
    """The manifest's records, and the arrays of numbers that hold the values."""
    descriptions: list[Description] = []
    stored: dict[str, Any] = {}
    for index, (path, leaf) in enumerate(jax.tree_util.tree_flatten_with_path(tree)[0]):
        description = describe(path, leaf)
        if isinstance(leaf, jax.ShapeDtypeStruct):
            raise TypeError(f"leaf {description['path']} is a ShapeDtypeStruct and has no values")
        if description["prng"]:
            description["impl"] = str(jax.random.key_impl(leaf))
            leaf = jax.random.key_data(leaf)
        elif isinstance(leaf, jax.Array):
            # A weak type decides later promotions, so a restart that lost it could drift.
            description["weak"] = leaf.weak_type
        else:
            leaf = np.asarray(leaf)
        descriptions.append(description)
        if has_bytes(description):
            stored[key(index)] = leaf
    return descriptions, stored


def picked(
    saved: list[Description], wanted: list[Description], *, part: bool
) -> tuple[dict[str, Description], str | None]:
    """The saved leaves by the names of their arrays, and the first that does not fit. With `part`
    the wanted ones, in the order in which they are."""
    numbers = {leaf["path"]: i for i, leaf in enumerate(saved)}
    found = [numbers[leaf["path"]] for leaf in wanted if leaf["path"] in numbers]
    leaves = {key(i): saved[i] for i in (found if part else range(len(saved)))}
    there, here = (
        {leaf["path"]: f"{leaf['dtype']}[{','.join(map(str, leaf['shape']))}]" for leaf in side}
        for side in (leaves.values(), wanted)
    )
    for path in [*here, *there]:
        if path not in there:
            return leaves, f"leaf {path} is in the template and not in the checkpoint"
        if path not in here:
            return leaves, f"leaf {path} is in the checkpoint and not in the template"
        if there[path] != here[path]:
            return leaves, f"leaf {path} is {there[path]} there and {here[path]} in the template"
    in_order = [leaf["path"] for leaf in leaves.values()] == [leaf["path"] for leaf in wanted]
    return leaves, None if in_order else "its leaves come in another order"


def sharding_of(target: Any) -> Any:
    """Where the template wants a value; None: it does not say."""
    # An uncommitted array is on the default device by chance. Committing its restored value there
    # would forbid mixing it with arrays that are laid out over a mesh.
    by_chance = isinstance(target, jax.Array) and not target.committed
    return None if by_chance else getattr(target, "sharding", None)


def read_sharded(saved: Description, target: Any) -> Any:
    """The sharding to read a leaf with, shard by shard; None: whole, and `placed` lays it out."""
    return None if saved["prng"] or saved.get("weak") else sharding_of(target)


def placed(value: Any, saved: Description, target: Any) -> Any:
    """The stored value as the kind of leaf that the template has."""
    if not has_bytes(saved):
        value = _without_elements(saved)
    if isinstance(target, np.generic):
        value = value[()]
    elif not isinstance(target, np.ndarray):
        if saved["prng"]:
            value = jax.random.wrap_key_data(jnp.array(value), impl=saved["impl"])
        elif isinstance(value, np.ndarray):
            value = _unplaced(value, weak=saved.get("weak", False))
        if (sharding := sharding_of(target)) is not None:
            value = _laid_out(value, sharding)
    if str(value.dtype) != saved["dtype"]:  # int64 into a JAX without x64, for one
        raise CheckpointError(
            f"leaf {saved['path']} was saved as {saved['dtype']} and would come back as "
            f"{value.dtype}; set jax_enable_x64 as it was, or give a numpy.ndarray in the template"
        )
    return value


def _laid_out(value: jax.Array, sharding: Any) -> jax.Array:
    if value.sharding == sharding and value.committed:
        return value
    if sharding.is_fully_addressable or getattr(value, "weak_type", False):
        return jax.device_put(value, sharding)
    # Over several processes `device_put` compares the processes' values, which keys do not allow.
    return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])


def _without_elements(saved: Description) -> np.ndarray:
    if not saved["prng"]:
        return np.zeros(saved["shape"], jnp.dtype(saved["dtype"]))
    one = jax.random.key_data(jax.random.key(0, impl=saved["impl"]))
    return np.zeros((*saved["shape"], *one.shape), one.dtype)


def _unplaced(value: np.ndarray, *, weak: bool) -> jax.Array:
    if weak and value.ndim == 0:
        scalar = jnp.asarray(value.item())  # a Python scalar is how JAX makes a weak type
        if scalar.dtype == value.dtype and np.asarray(scalar).tobytes() == value.tobytes():
            return scalar
    return jnp.array(value, copy=True)
