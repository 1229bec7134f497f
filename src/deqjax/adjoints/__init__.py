"""Adjoints by name. A new one: one file here and one line in `ADJOINTS`."""

from __future__ import annotations

from .._errors import by_name
from .base import Adjoint, Ending
from .implicit import Implicit
from .phantom import JFB, Phantom
from .reversible import Reversible
from .shine import Shine
from .tail import Tail
from .unrolled import Unrolled

ADJOINTS: dict[str, type[Adjoint]] = {
    a.name: a for a in (Implicit, Phantom, JFB, Tail, Shine, Unrolled, Reversible)
}


def as_adjoint(given: str | Adjoint) -> Adjoint:
    """The adjoint that a name or an object stands for."""
    return by_name(given, Adjoint, ADJOINTS, "adjoint", "deqjax.Implicit(solver='broyden')")


__all__ = [
    "ADJOINTS",
    "JFB",
    "Adjoint",
    "Ending",
    "Implicit",
    "Phantom",
    "Reversible",
    "Shine",
    "Tail",
    "Unrolled",
    "as_adjoint",
]
