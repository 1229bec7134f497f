"""The flows of a batch: each sample by itself, and the rule for their gradient."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.core import Tracer

from .._closure import hoist, is_differentiable, vary_with
from .._equation import Equation
from .._program import Code, program
from .._solution import Status
from .._state import cast_like
from ._isolated import isolated

PyTree = Any


class Traced(NamedTuple):
    """f, ready to be called for one sample.

    Attributes:
        code: code((t, z, leaves of args), what f closes over) -> dz/dt.
        theta: [t0, t1, *leaves of args, *what f closes over].
        axes: along which axis each of these holds a batch; None, shared.
        count: how many leaves args have.
        row: z0 of one sample, abstract.
        out: what f returned, abstract.
    """

    code: Any
    theta: list
    axes: tuple
    count: int
    row: PyTree
    out: PyTree


class _Called(NamedTuple):
    """f itself, where it cannot be traced ahead (see `_isolated`)."""

    call: Callable
    known: bool = False

    def __call__(self, given, _):
        return self.call(given)


def trace(f: Callable, span: tuple, z0: PyTree, args: tuple, axis, args_axes) -> Traced:
    """f, traced for one sample; an error of its own says how it was called."""
    leaves, treedef = jax.tree.flatten(args)
    is_array = [isinstance(x, jax.Array) for x in leaves]
    axes = _axes(args, args_axes, is_array)
    arrays = [x for x, a in zip(leaves, is_array, strict=True) if a]

    def call(given):
        t, z, arrays = given
        arrays = iter(arrays)
        full = [next(arrays) if a else x for x, a in zip(leaves, is_array, strict=True)]
        return f(t, z, *jax.tree.unflatten(treedef, full))

    row = jax.tree.map(lambda x: _first(x, axis), z0)
    rows = [_first(x, a) for x, a in zip(arrays, axes, strict=True)]
    try:
        hoisted = hoist(call, (span[0], row, rows))
    except Exception as wrong:
        shapes = jax.tree.map(lambda x: getattr(jax.typeof(x), "str_short", str)(), row)
        wrong.add_note(f"deqjax: f raised this when it was called as f(t, z, *args), z: {shapes}")
        raise
    code, closed = hoisted.pure, hoisted.inputs
    if jax.sharding.get_abstract_mesh().manual_axes:
        if hoisted.collectives or any(isinstance(x, Tracer) for x in closed):
            raise ValueError(
                "inside shard_map, f of ode must be given its arrays as args and must not "
                "communicate: it closes over traced arrays or calls a collective such as psum"
            )
        code, closed = _Called(call), []
    theta = [*span, *arrays, *closed]
    axes = (None, None, *axes, *(None for _ in closed))
    return Traced(code, theta, axes, len(arrays), row, hoisted.out)


def _axes(args: tuple, args_axes: Any, is_array: list) -> list:
    if args_axes is None:
        return [None] * sum(is_array)
    given = tuple(args_axes) if isinstance(args_axes, list) else args_axes
    none = lambda x: x is None
    try:
        # A mark in the place of None, which is no leaf where args hold None as well.
        marked = jax.tree.map(lambda x: "shared" if x is None else x, given, is_leaf=none)
        axes = jax.tree.leaves(jax.tree.broadcast(marked, args))
    except ValueError:
        raise ValueError(
            f"args_axes={args_axes!r} does not fit the {len(args)} args: give a tuple with None or "
            "an axis for each, as in_axes of jax.vmap"
        ) from None
    return [None if axis == "shared" else axis for axis, a in zip(axes, is_array, strict=True) if a]


def _first(x, axis: int | None):
    return x if axis is None else jax.lax.slice_in_dim(x, 0, 1, axis=axis % x.ndim)


@dataclass(frozen=True)
class Setup:
    """What a compiled program of a batch depends on, besides f.

    Attributes:
        axis: of the batch in z, or None.
        axes: see `Traced`.
        count: see `Traced`.
        floating: which of theta have a derivative.
        method: how a flow is stepped.
        dtype: in which.
    """

    axis: int | None
    axes: tuple
    count: int
    floating: tuple
    method: Any
    dtype: Any

    def field(self, code: Code, like: PyTree) -> Callable:
        """F(s, z, floating, others) = (t1 − t0) f(t0 + s (t1 − t0), z, *args)."""

        def field(s, z, floating, others):
            t0, t1, *rest = self.merge(floating, others)
            arrays, closed = rest[: self.count], rest[self.count :]
            span = t1 - t0
            value = code((t0 + s * span, cast_like(z, like), arrays), closed)
            return jax.tree.map(lambda x: span * x.astype(self.dtype), value)

        return field

    def split(self, theta: list) -> tuple[list, list]:
        """(with a derivative, without)."""
        pairs = list(zip(theta, self.floating, strict=True))
        return [x for x, d in pairs if d], [x for x, d in pairs if not d]

    def merge(self, floating: list, others: list) -> list:
        first, second = iter(floating), iter(others)
        return [next(first) if d else next(second) for d in self.floating]

    def over_samples(self, one: Callable) -> Callable:
        """one(theta, *states), of one sample with the batch axis of size one, over all of them.

        Results are batch-first, without that axis where they are states or gradients of a batch.
        """
        if self.axis is None:
            add = lambda tree: jax.tree.map(lambda x: jnp.expand_dims(x, 0), tree)
            return lambda *given: add(one(*given))

        axis = self.axis

        def row(theta, *states):
            keep = lambda x, a: x if a is None else jnp.expand_dims(x, a)
            theta = [keep(x, a) for x, a in zip(theta, self.axes, strict=True)]
            states = jax.tree.map(lambda x: jnp.expand_dims(x, axis), states)
            return one(theta, *states)

        return lambda theta, *states: jax.vmap(
            row, in_axes=(list(self.axes), *(axis for _ in states))
        )(theta, *states)

    def from_rows(self, rows: PyTree, axis: int | None) -> PyTree:
        """(batch, ...) with the batch axis of size one still in each → the user's layout."""
        if axis is None:
            return jax.tree.map(lambda x: x[0], rows)
        return jax.tree.map(
            lambda x: jnp.moveaxis(jnp.squeeze(x, axis % (x.ndim - 1) + 1), 0, axis), rows
        )


@program("setup")
def _forward(equation: Equation, z0: PyTree, *, setup: Setup):
    """(z, report) of each sample, with what f reads as the inputs of the equation."""
    from ._flow import flow, reconstruction_error

    def one(theta, z0):
        given = setup.split(theta)
        field = lambda s, z, given: setup.field(equation.code, z0)(s, z, *given)
        start = jax.tree.map(lambda x: x.astype(setup.dtype), z0)
        ended = flow(field, start, given, setup.method)
        error = None
        if setup.method.adjoint == "backsolve":
            error = reconstruction_error(field, start, ended.z, given, setup.method)
            error = jnp.where(ended.status == Status.CONVERGED, error, jnp.nan)
        return ended._replace(z=cast_like(ended.z, z0)), error

    ended, error = setup.over_samples(one)(equation.inputs, z0)
    return setup.from_rows(ended.z, setup.axis), (ended[1:], error)


@program("setup")
def _backward(equation: Equation, z0: PyTree, z1: PyTree, ct: PyTree, good, *, setup: Setup):
    """Cotangents of z0 and of what in theta is floating, and the report of the adjoint flow."""
    from ._flow import backsolve, flow

    method = setup.method

    def one(theta, good, z0, z1, ct):
        floating, others = setup.split(theta)
        field = setup.field(equation.code, z0)
        widened = lambda tree: jax.tree.map(lambda x: x.astype(setup.dtype), tree)
        ct = jax.tree.map(lambda x: jnp.where(good, x, 0), ct)
        if method.adjoint == "backsolve":
            a, g, ended = backsolve(field, widened(z1), floating, others, widened(ct), method)
            good &= ended.status == Status.CONVERGED
            found, report = (cast_like(a, z0), g), ended[1:]
        else:

            def value(z0, floating):
                along = lambda s, z, given: field(s, z, *given)
                given = (floating, others)
                ended = flow(along, widened(z0), given, method, differentiable=True)
                return cast_like(ended.z, z0)

            found, report = jax.vjp(value, z0, floating)[1](ct), None
        # What is differentiated through a step that was rejected for NaN is NaN.
        return jax.tree.map(lambda x: jnp.where(good, x, 0), found), report

    # Whether a sample is good is one more thing that has a batch.
    flag = None if setup.axis is None else 0
    wider = replace(setup, axes=(*setup.axes, flag), floating=(*setup.floating, False))
    given = lambda theta, *states: one(theta[:-1], theta[-1][0], *states)
    (of_z, of_theta), report = wider.over_samples(given)([*equation.inputs, good], z0, z1, ct)
    axes = [a for a, d in zip(setup.axes, setup.floating, strict=True) if d]
    of_theta = [
        x.sum(axis=0) if a is None else setup.from_rows(x, a)
        for x, a in zip(of_theta, axes, strict=True)
    ]
    return setup.from_rows(of_z, setup.axis), of_theta, report


class Samples:
    """The flows of all samples, with their gradient."""

    def __init__(self, traced: Traced, axis: int | None, method: Any, dtype: Any):
        self.code = traced.code
        floating = tuple(bool(is_differentiable(x)) for x in traced.theta)
        self.setup = Setup(axis, traced.axes, traced.count, floating, method, dtype)

    def solve(self, z0: PyTree, theta: list, hear: Callable) -> tuple[PyTree, Any]:
        """(z, ODEStats), (batch,) or (1,). hear(z, stats, what) is told of an adjoint flow."""
        code, setup = self.code, self.setup
        # One type for all of them: what is shared varies where the samples do, and the transpose of
        # this sums its gradient over devices.
        z0, theta = vary_with((z0, theta), (z0, theta))
        floating, others = setup.split(theta)

        @jax.custom_vjp
        def run(z0, floating, others):
            go = lambda theta, z0: _forward(Equation(code, theta), z0, setup=setup)
            z, report = isolated(go, setup.merge(floating, others), z0)
            return z, report

        def forward(z0, floating, others):
            z, report = run(z0, floating, others)
            return (z, report), (z0, floating, others, z, report[0][1] == Status.CONVERGED)

        def backward(kept, ct):
            z0, floating, others, z, good = kept
            go = lambda theta, *given: _backward(Equation(code, theta), *given, setup=setup)
            theta = setup.merge(floating, others)
            of_z, of_theta, report = isolated(go, theta, z0, z, ct[0], good)
            if report is not None:
                hear(z0, self._stats(theta, (report, None), good), "adjoint solve")
            return of_z, of_theta, None

        run.defvjp(forward, backward)
        z, report = run(z0, floating, others)
        report = jax.tree.map(jax.lax.stop_gradient, report)
        return z, self._stats(theta, report)

    def _stats(self, theta: list, report: Any, asked: Any = True) -> Any:
        from .ode import ODEStats

        (left, status, steps, f_evals), error = report
        # No adjoint was asked of a sample whose forward solve has failed.
        status = jnp.where(asked, status, int(Status.CONVERGED))
        return ODEStats(
            status=status,
            converged=status == Status.CONVERGED,
            steps=steps,
            f_evals=f_evals,
            residual=left * jnp.abs(jax.lax.stop_gradient(theta[1] - theta[0])),
            rel_residual=left,
            reconstruction=error,
        )
