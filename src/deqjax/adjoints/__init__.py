"""Adjoints by name. A new one: one file here and one line in `ADJOINTS`."""

from __future__ import annotations

from .._errors import suggest
from .base import Adjoint
from .implicit import Implicit
from .phantom import JFB, Phantom
from .unrolled import Unrolled

ADJOINTS: dict[str, type[Adjoint]] = {a.name: a for a in (Implicit, Phantom, JFB, Unrolled)}


def as_adjoint(given: str | Adjoint) -> Adjoint:
    """The adjoint that a name or an object stands for."""
    if isinstance(given, Adjoint):
        return given
    if isinstance(given, str):
        if given not in ADJOINTS:
            raise ValueError(f"adjoint={given!r} is not an adjoint{suggest(given, ADJOINTS)}")
        return ADJOINTS[given]()
    if isinstance(given, type) and issubclass(given, Adjoint):
        raise TypeError(f"adjoint= needs an object: write {given.__name__}()")
    raise TypeError(
        f"adjoint= takes a name ({', '.join(sorted(ADJOINTS))}) or a deqjax adjoint such as "
        f"deqjax.Implicit(solver='broyden'), not {type(given).__name__}"
    )


__all__ = ["ADJOINTS", "JFB", "Adjoint", "Implicit", "Phantom", "Unrolled", "as_adjoint"]
