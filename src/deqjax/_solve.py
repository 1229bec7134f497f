"""From what the user calls with to what the driver runs: checks, layout, units, and back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Unpack

import jax
import jax.numpy as jnp

from ._arguments import (
    as_arguments,
    batch_size,
    check_cell,
    checked_axis,
    checked_state,
    traced_cell,
)
from ._closure import Hoisted, hoist, is_plain
from ._compaction import batched_args, take
from ._driver import Resume
from ._equation import Rows
from ._equilibrium import equilibrium
from ._errors import check_integer
from ._failure import Watch
from ._layout import Layout
from ._options import DEFAULTS, Options, choose
from ._program import at_once
from ._scale import by, checked_scale, over, scaled
from ._solution import Solution, Stats
from ._state import is_sharded
from ._switches import own_arithmetic
from .adjoints import Adjoint
from .solvers import Solver

PyTree = Any


def solve(
    f: Callable,
    z0: PyTree,
    args: tuple,
    *,
    root: bool = False,
    watch: Watch | None = None,
    **options: Unpack[Options],
) -> Solution:
    """z* = f(z*, *args), or f(z*, *args) = 0 for a root.

    options: those of `fixed_point`. watch: what is done about a failure; None is what they say.
    """
    o = DEFAULTS | options
    batch_axis, scale, probe = checked_axis(o["batch_axis"]), o["scale"], o["adjoint_probe"]
    forward, gradient = choose(
        **{k: o[k] for k in ("solver", "adjoint", "adjoint_solver", "rtol", "atol", "max_steps")}
    )
    z0 = _first_guess(forward, checked_state(z0))
    batch = batch_size(z0, batch_axis)
    args = as_arguments(args)
    traced = traced_cell(f, z0, args)
    check_cell(traced.out, z0)
    with own_arithmetic(with_nans=bool(o["trace"])):
        _check_probe(probe, batch, gradient)
        if o["forward_mode"]:
            _check_forward_mode(gradient, probe)
        exact = _exact_modes(bool(o["forward_mode"]), gradient)
        for chosen in (forward, gradient):
            chosen.check_call(batched=batch_axis is not None, exact_modes=exact)
        if scale is not None:
            scale = checked_scale(scale, z0)
            f, z0, args = scaled(f, scale), over(z0, scale), (scale, *args)
            traced = hoist(lambda z: f(z, *args), z0)

        layout = Layout.of(z0, batch_axis)
        rows = None
        if batch and (forward.batch_sizes(batch) or gradient.batch_sizes(batch)):
            rows = _rows(f, z0, args, layout)

        result = equilibrium(
            _within(layout, traced, lambda z: f(z, *args), z0),
            layout.inner(z0),
            forward,
            gradient,
            watch or Watch.of_call(o["on_failure"]),
            batched=batch_axis is not None,
            forward_mode=bool(o["forward_mode"]),
            trace=bool(o["trace"]),
            resume=_checked_resume(o["resume"]),
            probe=probe,
            rows=rows,
            root=root,
            layout=layout,
            stability=_products(o["stability"], root),
        )
        z = result.z
        stats = result.stats if batch_axis is not None else _squeeze(result.stats)
        return Solution(z=z if scale is None else by(z, scale), stats=stats, state=result.state)


def _within(layout: Layout, traced: Hoisted, f: Callable, z0: PyTree) -> Callable | Hoisted:
    """f of states as they are inside; traced already, where types of arrays play no part."""
    if is_plain(z0, traced.out):
        return traced._replace(pure=traced.pure.within(layout), out=None)
    return lambda z: layout.inner(f(layout.outer(z)))


def _first_guess(solver: Solver, z0: PyTree) -> PyTree:
    guess = solver.first_guess(z0)
    if guess is z0:
        return z0
    guess = checked_state(guess)
    want, got = (jax.tree.map(jax.typeof, z) for z in (z0, guess))
    if jax.tree.structure(want) != jax.tree.structure(got):
        raise TypeError(
            f"the start of WarmStart() must keep the structure of z0, {want}, not {got}"
        )
    if [x.shape for x in jax.tree.leaves(want)] != [x.shape for x in jax.tree.leaves(got)]:
        raise ValueError(f"the start of WarmStart() must keep the shape of z0, {want}, not {got}")
    guess = jax.tree.map(lambda x, z: x.astype(z.dtype), guess, z0)
    return guess


def _rows(f: Callable, z0: PyTree, args: tuple, layout: Layout) -> Rows:
    """f on a part of the batch: the same function of fewer rows."""
    axis = layout.axis
    assert axis is not None
    carries_batch = batched_args(f, z0, args, axis)
    rows = [x for x, b in zip(jax.tree.leaves(args), carries_batch, strict=True) if b]
    if any(map(is_sharded, jax.tree.leaves((z0, rows)))):
        raise ValueError(
            "Compacted() gathers samples, which explicitly sharded ones do not allow: run it "
            "inside shard_map, or use the solver without Compacted()"
        )

    leaves, treedef = jax.tree.flatten(args)

    def prepare(index):
        pairs = zip(leaves, carries_batch, strict=True)
        return [take(x, index, axis) for x, carries in pairs if carries]

    def apply(z, rows):
        given = iter(rows)
        filled = [next(given) if b else x for x, b in zip(leaves, carries_batch, strict=True)]
        return layout.inner(f(layout.outer(z), *jax.tree.unflatten(treedef, filled)))

    return Rows(prepare, apply)


def _check_probe(probe: Stats | None, batch: int | None, adjoint: Adjoint) -> None:
    if probe is None:
        return
    if adjoint.differentiates_loop:
        raise ValueError(
            f"adjoint={adjoint.name!r} has no adjoint solve to report: leave adjoint_probe out"
        )
    shape = () if batch is None else (batch,)
    if not isinstance(probe, Stats) or jnp.shape(probe.steps) != shape:
        raise ValueError(
            f"adjoint_probe must come from deqjax.adjoint_probe(batch={batch}) for this call"
        )


def _check_forward_mode(adjoint: Adjoint, probe: Stats | None) -> None:
    if not (adjoint.exact or adjoint.differentiates_loop):
        raise ValueError(
            f"forward_mode=True gives exact derivatives, adjoint={adjoint.name!r} a reverse-mode "
            "approximation: use adjoint='implicit' or leave forward_mode out"
        )
    if probe is not None:
        raise ValueError(
            "adjoint_probe reports on reverse mode's own adjoint solve: with forward_mode=True "
            "there is none, leave one of them out"
        )


def _exact_modes(forward_mode: bool, adjoint: Adjoint) -> str | None:
    """What in the call asks for other derivatives than a rule for reverse mode gives."""
    if forward_mode:
        return "forward_mode=True"
    return f"adjoint={adjoint.name!r}" if adjoint.differentiates_loop else None


def _products(count: int | None, root: bool) -> int | None:
    """How many products with J are to say whether a solution is stable."""
    check_integer("stability", count, least=4, optional=True)
    if count is not None and root:
        raise ValueError(
            "stability= asks whether f keeps its fixed point: a root of g has no iteration, so "
            "leave it out or solve z = f(z) by fixed_point"
        )
    return count


def _checked_resume(resume: Any) -> Resume | None:
    if not isinstance(resume, Resume | None):
        raise TypeError(f"resume= takes the .state of a Solution, not {type(resume).__name__}")
    return resume


@at_once
def _squeeze(stats: Stats) -> Stats:
    """Drop the batch axis of length one, which is last in the trace and first elsewhere."""
    leaves = None if stats.leaves is None else stats.leaves[0]
    return replace(jax.tree.map(lambda x: x[..., 0], replace(stats, leaves=None)), leaves=leaves)
