"""Objects that choose and configure: solvers and adjoints."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from ._errors import check_keywords
from ._shown import changed


class Configured:
    """Base of frozen dataclasses of options. They are static: they select code, they are never
    traced."""

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        cls.__repr__ = Configured.__repr__  # before `dataclass` makes one
        jax.tree_util.register_static(cls)

    def __new__(cls, *args: Any, **options: Any):
        check_keywords(cls.__name__, options, cls.options())
        return super().__new__(cls)

    def __post_init__(self):
        for name in self.options():
            object.__setattr__(self, name, _plain(name, getattr(self, name)))

    def __repr__(self) -> str:
        return changed(self)

    @classmethod
    def options(cls) -> tuple[str, ...]:
        """Their names."""
        return tuple(f.name for f in fields(cls))  # type: ignore[arg-type]


def _plain(name: str, value: Any) -> Any:
    """Numbers as Python's, so that the object can be hashed."""
    if isinstance(value, Tracer):
        kind = "an integer" if jnp.issubdtype(value.dtype, jnp.integer) else "a Python number"
        raise TypeError(
            f"{name} must be {kind}, and is a traced value ({value.aval}): options are part of the "
            "compiled program and cannot be traced"
        )
    if isinstance(value, jax.Array | np.ndarray | np.generic) and np.ndim(value) == 0:
        return value.item()
    return value
