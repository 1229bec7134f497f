"""Parameters that training leaves as they are."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Hashable
from typing import Any

import jax
import optax
from flax import nnx

from .options import OptionError

PyTree = Any


def named(names: tuple[str, ...]) -> Any:
    """The `nnx` filter of parameters at or below these paths: `embedding`, `deq/cell`,
    `*/kernel`. None for no names."""
    if not names:
        return None

    def matches(path: tuple[Any, ...], variable: Any) -> bool:
        return any(_at_or_below("/".join(map(str, path)), name) for name in names)

    return matches


def either(one: Any, other: Any) -> Any:
    """The filter of what passes one of two filters, of which either may be None."""
    given = [f for f in (one, other) if f is not None]
    return nnx.Any(*given) if given else None


def check(params: nnx.State, freeze: Any, names: tuple[str, ...] = ()) -> None:
    """Whether the filter, and each of the names, finds a parameter, and leaves some to train.

    Raises:
        OptionError: it does not.
    """
    paths = ["/".join(map(str, path)) for path, _ in nnx.to_flat_state(params)]
    for name in names:
        if not any(_at_or_below(path, name) for path in paths):
            known = {path.rsplit("/", k)[0] for path in paths for k in range(path.count("/") + 1)}
            close = difflib.get_close_matches(name, known, n=1)
            parts = sorted({path.partition("/")[0] for path in paths})
            hint = f"did you mean {close[0]!r}?" if close else f"its parts are {', '.join(parts)}"
            raise OptionError(f"--freeze {name} is no part of the model: {hint}")
    if freeze is not None:
        frozen = jax.tree.leaves(which(params, freeze))
        if not any(frozen):
            raise OptionError("freeze is a filter that no parameter of the model passes")
        if all(frozen):
            raise OptionError("with every parameter frozen there is nothing to train")


def which(params: nnx.State, freeze: Any) -> PyTree:
    """Whether each array of the parameters is frozen."""
    frozen = nnx.filterlib.to_predicate(freeze)
    mark = lambda path, x: jax.tree.map(lambda _: bool(frozen(path, x)), x)
    return nnx.map_state(mark, params)


def held(params: nnx.State, freeze: Any) -> nnx.State:
    """The parameters, of which the frozen ones have no gradient: none is computed either."""
    if freeze is None:
        return params
    stop = lambda x, frozen: jax.lax.stop_gradient(x) if frozen else x
    return jax.tree.map(stop, params, which(params, freeze))


def spared(optimiser: optax.GradientTransformation, freeze: Any) -> optax.GradientTransformation:
    """An optimiser that neither moves the frozen parameters nor keeps anything for them."""
    if freeze is None:
        return optimiser
    kinds: dict[Hashable, Any] = {"trained": optimiser, "frozen": optax.set_to_zero()}
    label = lambda frozen: "frozen" if frozen else "trained"
    return optax.partition(kinds, lambda params: jax.tree.map(label, which(params, freeze)))


def _at_or_below(path: str, name: str) -> bool:
    return path.startswith(name + "/") or fnmatch.fnmatchcase(path, name)
