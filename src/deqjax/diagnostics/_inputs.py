"""What every diagnostic asks of its inputs, and how it names a choice of several options."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import is_dataclass
from functools import wraps
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax.core import Tracer

from .._fixed_point import fixed_point
from .._shown import changed

PyTree = Any
Diagnostic = TypeVar("Diagnostic", bound=Callable[..., Any])


def checked(f: Callable, z: PyTree, args: tuple, batch_axis: int | None) -> tuple[PyTree, int]:
    """z as arrays and the number of samples, or `fixed_point`'s sentence on what is wrong."""

    def solve(z):
        return fixed_point(f, z, *args, solver="picard", max_steps=0, batch_axis=batch_axis)

    jax.eval_shape(solve, z)
    z = jax.tree.map(jnp.asarray, z)
    return z, 1 if batch_axis is None else jax.tree.leaves(z)[0].shape[batch_axis]


def of_modules(*, solved: bool = False) -> Callable[[Diagnostic], Diagnostic]:
    """A decorator: diagnostic(f, z, *args, ...) also takes (module, x, ...), of a module that knows
    its `equation(x)` (`deqjax.nn.DEQ`, `LanguageModel`), and then leaves to it what is not given.

    solved: z is where the module's solve ends, and not where it starts.
    """

    def decorate(diagnostic: Diagnostic) -> Diagnostic:
        takes = inspect.signature(diagnostic).parameters

        @wraps(diagnostic)
        def call(f, *rest, **options):
            if not hasattr(f, "equation"):
                return diagnostic(f, *rest, **options)
            if len(rest) != 1:
                raise TypeError(
                    f"{diagnostic.__name__}(module, x) takes the module and its input, and nothing "
                    f"else by position: the module brings z0 and parameters; got {len(rest)} more"
                )
            f, z, args, own = f.equation(*rest)
            if solved:
                z = fixed_point(f, z, *args, **own | dict(on_failure="warn")).z
            own = {name: value for name, value in own.items() if name in takes}
            return diagnostic(f, z, *args, **own | options)

        return call  # type: ignore[return-value]

    return decorate


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
    return str(option) if isinstance(option, str) or not is_dataclass(option) else changed(option)
