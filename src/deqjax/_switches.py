"""JAX's debugging switches are for the user's f: the library's own arithmetic goes without them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from functools import wraps

import jax


def own_arithmetic(*, with_nans: bool = False) -> ExitStack:
    """Within, dtypes and ranks are promoted as usual; with_nans: and NaN is a number like others,
    as the entries of a trace are that no step has filled."""
    stack, config = ExitStack(), jax.config
    if config.jax_numpy_dtype_promotion != "standard":  # type: ignore[attr-defined]
        stack.enter_context(jax.numpy_dtype_promotion("standard"))
    if config.jax_numpy_rank_promotion != "allow":  # type: ignore[attr-defined]
        stack.enter_context(jax.numpy_rank_promotion("allow"))
    if with_nans and config.jax_debug_nans:  # type: ignore[attr-defined]
        stack.enter_context(jax.debug_nans(False))
    return stack


def with_own_arithmetic(fun: Callable) -> Callable:
    """A function that JAX calls later, in whatever the switches are then."""

    @wraps(fun)
    def call(*args):
        with own_arithmetic():
            return fun(*args)

    return call
