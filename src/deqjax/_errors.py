"""Checks of options: each failure is one sentence that names the wrong value and a right one."""

from __future__ import annotations

import difflib
import functools
import inspect
import math
import operator
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ParamSpec, TypeVar

import jax.numpy as jnp

P = ParamSpec("P")
R = TypeVar("R")


def suggest(word: str, known: Iterable[str]) -> str:
    """'; did you mean 'x'?' for the closest known word, or '; choose from ...'."""
    known = sorted(known)
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    # 'tol' is contained in 'rtol' and 'atol' but close to neither by ratio in longer words.
    close = close or [k for k in known if word and word in k][:1]
    if close:
        return f"; did you mean {close[0]!r}? Known: {', '.join(known)}"
    return f"; choose from {', '.join(known)}"


def by_name(given: Any, kind: type, known: Mapping[str, type], keyword: str, example: str) -> Any:
    """The option that `given` stands for: an object of `kind`, or the name of one in `known`."""
    if isinstance(given, kind):
        return given
    if isinstance(given, str):
        if given not in known:
            what = kind.__name__.lower()
            raise ValueError(f"{keyword}={given!r} is not a known {what}{suggest(given, known)}")
        return known[given]()
    if isinstance(given, type) and issubclass(given, kind):
        raise TypeError(f"{keyword}= needs an object: write {given.__name__}()")
    raise TypeError(
        f"{keyword}= takes a name ({', '.join(sorted(known))}) or an object such as {example}, "
        f"not {type(given).__name__}"
    )


def strict(function: Callable[P, R]) -> Callable[P, R]:
    """`function`, answering a keyword that it has not with the closest one that it has."""
    known = [
        name
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.kind is not parameter.VAR_POSITIONAL
    ]

    @functools.wraps(function)
    def checked(*args: P.args, **options: P.kwargs) -> R:
        check_keywords(function.__name__, options, known)
        return function(*args, **options)

    return checked


def check_keywords(function: str, given: Iterable[str], known: Iterable[str]) -> None:
    for name in given:
        if name not in known:
            raise TypeError(f"{function}() has no keyword {name!r}{suggest(name, known)}")


def check_callable(name: str, value: Any) -> None:
    if not callable(value):
        raise TypeError(f"{name} must be callable as {name}(z, *args), got {type(value).__name__}")


def check_tolerance(name: str, value) -> None:
    if value is None:
        return
    try:
        number = float(value)
    except Exception:
        raise TypeError(
            f"{name} must be a Python number or None, got {type(value).__name__}: tolerances are "
            "part of the compiled program and cannot be traced"
        ) from None
    if not number >= 0 or math.isinf(number):
        raise ValueError(f"{name} must be a finite number >= 0, such as 1e-5; got {value!r}")


def check_integer(name: str, value: Any, *, least: int, optional: bool = False) -> None:
    if value is None and optional:
        return
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"{name} must be an integer >= {least}, got {value!r}") from None
    if isinstance(value, bool) or number < least:
        raise ValueError(f"{name} must be an integer >= {least}, got {value!r}")


def check_fraction(name: str, value, *, low: float = 0.0, high: float = 1.0) -> None:
    """low < value <= high."""
    try:
        inside = low < float(value) <= high
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be a number in ({low:g}, {high:g}], got {value!r}") from None
    if not inside:
        raise ValueError(f"{name} must be in ({low:g}, {high:g}], got {value!r}")


def check_positive(name: str, value: Any, *, optional: bool = False) -> None:
    if value is None and optional:
        return
    try:
        inside = 0 < float(value) < math.inf  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be a number > 0, got {value!r}") from None
    if not inside:
        raise ValueError(f"{name} must be a finite number > 0, got {value!r}")


def check_dtype(name: str, value) -> None:
    if value is None:
        return
    try:
        dtype = jnp.dtype(value)
    except TypeError:
        raise TypeError(f"{name} must be a dtype such as 'bfloat16', got {value!r}") from None
    if not jnp.issubdtype(dtype, jnp.inexact):
        raise ValueError(f"{name} must be a floating-point dtype such as 'bfloat16', got {dtype}")
