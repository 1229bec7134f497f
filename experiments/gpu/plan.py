"""What `deqjax.training.plan` says of each measured training step, beside what was measured."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax

from deqjax.training import OptionError, SolverOptions

from ..full_size import named
from ..full_size.plan import plan
from ..tables import table
from . import step
from .config import Config
from .ledger import Ledger, Rows

TITLE = "The plan beside the truth"
SAID = """\
`deqjax.training.plan` compiles the same step without the device. Its time is a lower bound by the
peaks that the maker publishes, and its memory the compiler's; measured over planned. For
an explicit network, whose layers are a scan, the time is no bound: the plan counts more traffic of
that loop than there is, and a ratio below one shows it."""
TOPOLOGIES = {"NVIDIA H100": "h100:1"}  # the beginning of a device's name: what to plan for


def units(config: Config, rows: Rows) -> list[str]:
    """One for each training step that has been measured."""
    return [name for name, row in rows.items() if not row.get("failed")]


def run(unit: str, config: Config) -> dict[str, Any]:
    ledger = Ledger(config.runs_folder, config.out_folder)
    found = ((device, parts["step"].get(unit)) for device, parts in ledger.known())
    device, row = next((d, r) for d, r in found if r is not None)
    case = next(case for case in step.cases() if case.name == unit)
    model, segment, batch = named(case.model), step.SEGMENT, step.BATCH
    if config.quick:
        model, batch, segment = step.miniature(model), 2, 8
    topology = "cpu:1" if config.quick else _topology(device)
    # A compiler for the topology needs no device, and must not take its memory.
    jax.config.update("jax_platforms", "cpu")
    steps = case.steps or 1
    found = plan(
        replace(model, scan=not model.solves, segment=segment),
        topology,
        global_batch=batch,
        precision=case.precision,
        solver=SolverOptions("anderson", rtol=0.0, atol=0.0, max_steps=steps),
        evaluations=False,
    )
    bound = found.roofline(steps, steps)
    return dict(
        measured_seconds=row["seconds"],
        measured_peak=row["peak"],
        seconds=None if bound is None else bound.seconds,
        peak=found.memory.peak,
        topology=topology,
    )


def _topology(device: str) -> str:
    for name, topology in TOPOLOGIES.items():
        if device.startswith(name):
            return topology
    raise OptionError(f"no plan is made for {device}: its peaks are in no table here")


def line(row: dict[str, Any]) -> str:
    return ", ".join(f"{name} {_over(row, name)}" for name in ("seconds", "peak"))


def report(rows: Rows) -> list[str]:
    head = ["", "ms a step", "at least", "measured / planned", "peak GB", "planned"]
    lines = []
    for name, row in rows.items():
        times = [row["measured_seconds"], row["seconds"]]
        sizes = [row["measured_peak"], row["peak"]]
        cells = ["–" if x is None else f"{1e3 * x:.1f}" for x in times] + [_over(row, "seconds")]
        cells += ["–" if x is None else f"{x / 1e9:.2f}" for x in sizes] + [_over(row, "peak")]
        lines.append([name, *cells])
    return [SAID, table([*head, "measured / planned"], lines)]


def _over(row: dict[str, Any], name: str) -> str:
    measured, planned = row[f"measured_{name}"], row[name]
    return "–" if None in (measured, planned) else f"{measured / planned:.2f}"
