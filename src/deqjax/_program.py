"""f as a program of arrays, known by what it computes; and programs around it, compiled once.

Called outside of `jit`, JAX runs Python operation by operation. It compiles a loop whenever it
meets one, and knows it by the functions in it, which are new ones at every call. So f, once traced,
is looked up among the programs met before: alike ones are one `Code`, and what has been compiled
for it is found again. The arrays that f closes over are inputs, and may be others each time.
"""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any

import jax
import numpy as np
from jax import lax
from jax.core import Tracer
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal, jaxpr_as_fun

PyTree = Any

KEPT = 256  # programs that are known

_known: OrderedDict[Hashable, Code] = OrderedDict()
_lock = threading.Lock()
# The keys of jaxprs inside of others, which JAX itself keeps and uses again.
_inner: weakref.WeakKeyDictionary[Any, Hashable] = weakref.WeakKeyDictionary()


def staged() -> bool:
    """Whether JAX records operations now, as under `jit`, instead of running them.

    Under an eager `grad` or `vmap` an operation on constants is run.
    """
    return isinstance(lax.neg(np.int32(0)), Tracer)


class Code:
    """code(z, inputs) -> f(z), without closures: inputs are the arrays that f closed over.

    Attributes:
        known: all f that compute the same are this object.
        values: the same without rules of its own for derivatives (`jax.custom_jvp`,
            `jax.custom_vjp`), whose functions are new in every trace; itself where it has none.
    """

    def __init__(self, jaxpr: Any, out: Any, *, known: bool = False, values: Code | None = None):
        self._run, self._out = jaxpr_as_fun(jaxpr), out
        self.known, self.values = known, self if values is None else values
        self._within: dict[Hashable, Code] = {}

    def __call__(self, z: PyTree, inputs: list) -> PyTree:
        return jax.tree.unflatten(self._out, self._run(*inputs, *jax.tree.leaves(z)))

    def within(self, layout: Any) -> Code:
        """The same of a state as it is laid out inside (`Layout`)."""
        # No lock: `_Within` takes it again, for the values.
        found = self._within.get(layout)
        return found or self._within.setdefault(layout, _Within(self, layout))


class _Within(Code):
    def __init__(self, code: Code, layout: Any):
        self.known, self._code, self._layout = code.known, code, layout
        self.values = self if code.values is code else code.values.within(layout)

    def __call__(self, z: PyTree, inputs: list) -> PyTree:
        return self._layout.inner(self._code(self._layout.outer(z), inputs))


def code_of(closed: Any, out: Any) -> Code:
    """The code of a traced f whose result has the structure `out`."""
    opened = _opened(closed)
    if staged() or closed.effects:
        return Code(opened, out)
    try:
        key = (_key(opened.jaxpr), out)
        hash(key)
    except (_Unknown, TypeError):
        return Code(opened, out)
    has_rules = any(map(_has_rule, opened.jaxpr.eqns))
    with _lock:
        found = _known.get(key)
        if found is None:
            found = Code(_values(opened) if has_rules else opened, out, known=True)
            _known[key] = found
        _known.move_to_end(key)
        while len(_known) > KEPT:
            _known.popitem(last=False)
    return Code(opened, out, values=found) if has_rules else found


class Program:
    """fun(equation, *arrays, **options), compiled where that pays: where JAX would run it operation
    by operation, and the equation's code is a known one. The options are static."""

    def __init__(self, fun: Callable, *options: str):
        self.inline, self._options = fun, options
        self._compiled = jax.jit(fun, static_argnames=options)

    def __call__(self, equation: Any, *arrays, **options):
        fun = self._compiled if self.is_compiled(equation, options) else self.inline
        return fun(equation, *arrays, **options)

    def is_compiled(self, equation: Any, options: dict[str, Any]) -> bool:
        """Whether a call with these would be."""
        # What is traced while JAX records is not known.
        if not equation.code.known or jax.sharding.get_abstract_mesh().manual_axes:
            return False
        if equation.parts:  # never known, and new in every call
            return False
        try:
            hash(tuple(options.values()))
        except TypeError:
            return False
        return True


def program(*options: str) -> Callable[[Callable], Program]:
    """A decorator: the function as a `Program` with those options."""
    return lambda fun: Program(fun, *options)


def at_once(fun: Callable, static: tuple[int, ...] = ()) -> Callable:
    """Small work on arrays: one program where JAX would run each operation by itself."""
    compiled = jax.jit(fun, static_argnums=static)
    return lambda *arrays: (compiled if concrete(arrays) else fun)(*arrays)


def concrete(tree: PyTree) -> bool:
    """Whether all of it are numbers, which nothing differentiates or maps."""
    return not any(isinstance(x, Tracer) for x in jax.tree.leaves(tree))


def still(tree: PyTree) -> PyTree:
    """`lax.stop_gradient`, which takes time even where there is nothing to stop."""
    return tree if concrete(tree) else lax.stop_gradient(tree)


# ------------------------------------------------------------------------------- the key


class _Unknown(Exception):
    """Two traces of the same function would not give the same key."""


class _Same:
    """An object that JAX keeps: equal to itself alone."""

    def __init__(self, what: Any):
        self.what = what

    def __hash__(self) -> int:
        return id(self.what)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.what is other.what


def _key(jaxpr: Any, outermost: bool = True) -> Hashable:
    """What the program computes: its operations with their parameters, variables as numbers."""
    numbers: dict[Any, int] = {}

    def atom(x):
        if isinstance(x, Literal):
            return (_param(x.val), x.aval)
        return numbers.setdefault(x, len(numbers))

    def named(variables):
        return tuple((atom(v), v.aval) for v in variables)

    def equation(e):
        rule = _has_rule(e)
        if rule and not outermost:
            raise _Unknown
        params = {"call_jaxpr": e.params["call_jaxpr"]} if rule else e.params
        # A jitted function within f is one object for JAX, rules inside included.
        at = _jitted if e.primitive.name in ("jit", "pjit") else _param
        told = tuple((name, at(params[name])) for name in sorted(params))
        context = e.ctx
        where = (context.compute_type, context.cur_abstract_mesh, context.threefry_partitionable)
        where += (_param(context.xla_metadata),)
        return e.primitive, tuple(map(atom, e.invars)), told, named(e.outvars), where

    given = named((*jaxpr.constvars, *jaxpr.invars))
    return given, tuple(map(equation, jaxpr.eqns)), tuple(map(atom, jaxpr.outvars))


def _has_rule(equation: Any) -> bool:
    return equation.primitive.name in ("custom_jvp_call", "custom_vjp_call")


def _param(value: Any) -> Hashable:
    if isinstance(value, ClosedJaxpr | Jaxpr):
        consts = getattr(value, "consts", ())
        return _key_of_inner(value.jaxpr if isinstance(value, ClosedJaxpr) else value, consts)
    if isinstance(value, tuple | list):
        return (type(value), *map(_param, value))
    if isinstance(value, dict):
        return tuple((k, _param(value[k])) for k in sorted(value))
    if isinstance(value, np.ndarray | np.generic):
        return value.shape, value.dtype, value.tobytes()
    if isinstance(value, float):
        return float, value.hex()  # no number equals NaN, and 0.0 equals -0.0
    if callable(value) and not isinstance(value, type):
        raise _Unknown
    return type(value), value


def _jitted(value: Any) -> Hashable:
    try:
        return _param(value)
    except _Unknown:
        return _Same(value)


def _key_of_inner(jaxpr: Any, consts: Any) -> Hashable:
    if len(consts):
        return _Same(jaxpr)
    found = _inner.get(jaxpr)
    if found is None:
        found = _inner[jaxpr] = _key(jaxpr, outermost=False)
    return found


# ------------------------------------------------------------------------------- jaxprs


def _opened(closed: Any) -> Any:
    """The program without the values of what it closes over: they are its first arguments."""
    jaxpr = closed.jaxpr
    given = [*jaxpr.constvars, *jaxpr.invars]
    return _program_of(jaxpr, given, jaxpr.eqns, jaxpr.outvars)


def _program_of(jaxpr: Any, given: list, equations: list, out: list) -> Any:
    """A part of a jaxpr."""
    info = jaxpr.debug_info._replace(arg_names=None, result_paths=None)
    return ClosedJaxpr(Jaxpr([], given, out, equations, jaxpr.effects, info), [])


def _values(opened: Any) -> Any:
    """The same program without rules for derivatives."""
    jaxpr = opened.jaxpr

    def run(*args):
        known = dict(zip(jaxpr.invars, args, strict=True))
        read = lambda x: x.val if isinstance(x, Literal) else known[x]
        for e in jaxpr.eqns:
            if _has_rule(e):
                given, inner = e.invars, e.params["call_jaxpr"]
            else:
                given = [x for x in e.invars if not isinstance(x, Literal)]
                inner = _program_of(jaxpr, given, [e], e.outvars)
            found = jaxpr_as_fun(inner)(*map(read, given))
            known |= dict(zip(e.outvars, found, strict=True))
        return [read(x) for x in jaxpr.outvars]

    return jax.make_jaxpr(run)(*(v.aval for v in jaxpr.invars))
