"""A plan as text."""

from __future__ import annotations

from collections.abc import Iterable

from ._plan import Plan
from .cost import Collective, Cost
from .roofline import Part
from .search import Largest


def report(plan: Plan, forward: float, adjoint: float) -> str:
    """What `python -m deqjax.training.plan` prints: everything on one chip."""
    parts = [_head(plan), _memory(plan)]
    if plan.costs is not None:
        parts += [_costs(plan, forward, adjoint), _collectives(plan)]
        parts += [_roofline(plan, forward, adjoint)]
    return "\n\n".join(p for p in parts if p)


def largest_text(found: Largest, shards: int) -> str:
    """The outcome of a search, and what was compiled for it."""
    lines = []
    for batch, needed, fits in found.tried:
        said = "needs an unknown amount" if needed is None else f"needs {size(needed)}"
        lines.append(f"  {batch:>8,}  {said}{'' if fits else ', too much'}")
    if not found.batch:
        end = "No batch fits, not even one sample a shard: try fsdp=, --accumulate or other chips"
    elif found.too_large is None:
        end = f"Largest batch compiled: {found.batch:,}, which fits; larger ones were not tried"
    else:
        exact = found.too_large - found.batch <= shards
        end = f"Largest global batch that fits: {found.batch:,}"
        end += "" if exact else f" ({found.too_large:,} does not)"
    return "\n".join(["Batches compiled, and what a chip needs for them", *lines, end])


def size(count: float | None) -> str:
    """Bytes in the unit that suits them; 1 GB is 10⁹."""
    return "?" if count is None else _scaled(count, "B")


def _head(plan: Plan) -> str:
    mesh = ",".join(f"{a}={n}" for a, n in plan.mesh.items() if n > 1) or "one chip"
    options, solver, solved = plan.options, plan.solver, ""
    if solver is not None and plan.solves:
        solved = f"{solver.solver}, {solver.adjoint} gradient, at most {solver.max_steps} steps; "
    lines = [
        f"{plan.config}, {plan.parameters / 1e6:.1f}M parameters, on {plan.topology} "
        f"({plan.chips} of its chips; {plan.chip.source})",
        f"{options.parallel}, {mesh}; global batch {plan.global_batch:,}, "
        f"{plan.rows} a chip" + (f", {options.accumulate} times" if options.accumulate > 1 else ""),
        f"f in {plan.precision}; {solved}{options.optimiser}; compiled in "
        f"{plan.compile_seconds:.0f} s",
    ]
    return "\n".join(lines)


def _memory(plan: Plan) -> str:
    m = plan.memory
    rows = [
        ("parameters", m.parameters, ""),
        ("optimiser", m.optimiser, ""),
        ("memory of the text, batch", m.carry, ""),
    ]
    if m.temporary is not None:
        rows += [
            ("temporary", m.temporary, "what lives between arguments and results, of which:"),
            ("  gradients", m.gradients, "from their shapes"),
            *([("  solver history", m.history, "from its shapes")] if plan.solves else []),
            ("  activations and the rest", m.activations, "the difference"),
            ("program", m.code, ""),
        ]
    lines = [f"  {name:<28}{size(n):>10}  {why}".rstrip() for name, n, why in rows]
    bounded = m.capacity < float("inf")
    if m.peak is None:
        needed = "more than there is" if m.needed is None else size(m.needed)
        lines.append(f"  DOES NOT FIT: needs {needed} of {size(m.capacity)}")
    elif not bounded:
        lines.append(f"  {'peak':<28}{size(m.peak):>10}")
    else:
        share = f"{100 * m.peak / m.capacity:.0f}% of {size(m.capacity)}"
        verdict = "" if m.fits else ": DOES NOT FIT"
        lines.append(f"  {'peak':<28}{size(m.peak):>10}  {share}{verdict}")
    return "\n".join(["Memory", *lines])


def _costs(plan: Plan, forward: float, adjoint: float) -> str:
    costs = plan.costs
    assert costs is not None
    rows: list[tuple[str, Cost | None, str]] = [
        ("f", plan.evaluation, "compiled alone"),
        ("f's pull-back", plan.pull_back, "compiled alone"),
    ]
    if costs.loops != (0, 0):
        rows += [
            ("forward step", costs.forward, _loops(costs.loops[0], plan.options.accumulate)),
            ("adjoint step", costs.adjoint, _loops(costs.loops[1], plan.options.accumulate)),
        ]
    branches = f"the costliest side of {costs.branches} branches" if costs.branches else ""
    rows.append(("outside the solvers", costs.outside, branches))
    steps = f"with {forward:g} forward and {adjoint:g} adjoint steps"
    if costs.loops == (0, 0):
        steps = "every step that its loops may take" if plan.solves else ""
    rows.append(("train step", plan.step(forward, adjoint), steps))
    lines = [
        f"  {name:<28}{_scaled(c.flops, 'FLOP'):>13}{size(c.bytes):>12}  {why}".rstrip()
        for name, c, why in rows
        if c is not None
    ]
    if plan.xla_flops and plan.flops_once:
        ours, theirs = (_scaled(n, "FLOP") for n in (plan.flops_once, plan.xla_flops))
        lines.append(f"  all loops once{ours:>27}{'':12}  XLA, with elementwise: {theirs}")
    return "\n".join(["Cost: matrix products, and traffic of the main memory", *lines])


def _loops(count: int, parts: int) -> str:
    if count == 1:
        return f"in all of {parts} parts" if parts > 1 else ""
    return "none in the program" if not count else f"{count} loops together: an upper bound"


def _collectives(plan: Plan) -> str:
    costs = plan.costs
    assert costs is not None
    parts = dict(outside=costs.outside, forward=costs.forward, adjoint=costs.adjoint)
    rows = []
    for part, cost in parts.items():
        where = "outside the solvers" if part == "outside" else f"in every {part} step"
        if part != "outside" and costs.loops == (0, 0):
            continue
        said = _by_kind(cost.collectives) or "none"
        rows.append(f"  {where:<28}{said}")
    loops = [c for c in costs.outside.collectives if c.in_loop]
    if loops:
        rows.append(f"  of these in other loops     {_by_kind(loops)}")
    return "\n".join(["Collectives", *rows])


def _by_kind(found: Iterable[Collective]) -> str:
    kinds: dict[str, tuple[float, float]] = {}
    for c in found:
        count, total = kinds.get(c.kind, (0, 0))
        kinds[c.kind] = count + c.times, total + c.bytes * c.times
    return ", ".join(f"{n:g} {kind} of {size(total)}" for kind, (n, total) in kinds.items())


def _roofline(plan: Plan, forward: float, adjoint: float) -> str:
    found = plan.roofline(forward, adjoint)
    if found is None:
        return ""
    parts = {"outside the solvers": found.outside}
    if plan.solves:
        parts |= {"forward solve": found.forward, "adjoint solve": found.adjoint}
    lines = [f"  {name:<28}{_part(p)}" for name, p in parts.items()]
    tokens = plan.global_batch * plan.segment / found.seconds
    end = (
        f"{1e3 * found.seconds:.3g} ms, mostly {found.bound}; at most {_scaled(tokens, 'tokens/s')}"
    )
    title = "Roofline: the least time a train step can take, at published peaks"
    return "\n".join([title, *lines, f"  {'train step':<28}{end}"])


def _part(p: Part) -> str:
    each = ((p.compute, "compute"), (p.memory, "HBM"), (p.links, "interconnect"))
    said = ", ".join(f"{name} {1e3 * s:.3g}" for s, name in each)
    return f"{1e3 * p.seconds:.3g} ms, bound by {p.bound} ({said})"


def _scaled(value: float, unit: str) -> str:
    for power, prefix in ((15, "P"), (12, "T"), (9, "G"), (6, "M"), (3, "k")):
        if value >= 10**power:
            return f"{value / 10**power:.3g} {prefix}{unit}"
    return f"{value:.3g} {unit}"
