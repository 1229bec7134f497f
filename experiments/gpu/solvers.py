"""A solver step and the time to a tolerance beside the peers that are installed."""

from __future__ import annotations

from typing import Any

from deqjax.training import OptionError

from .. import benchmarks
from ..benchmarks.to_tolerance import RTOL
from ..tables import table
from .config import Config
from .ledger import Rows

TITLE = "A solver step, and time to a tolerance"
SAID = """\
The cells of `experiments.benchmarks`, every library with its fastest setting. Products of float32
in full precision ("float32") or in TensorFloat-32, which rounds f to some 1e-4: there the race is
to 1e-3."""
CELLS = ("reference", "tanh", "transformer", "near-singular")
HEAD = ["what", "measured"]


def units(config: Config, rows: Rows) -> list[str]:
    found = [f"per_step, {products}" for products in benchmarks.PRODUCTS]
    for cell in CELLS:
        found += [f"to_tolerance {cell}, {products}" for products in benchmarks.PRODUCTS]
    return found[:3] if config.quick else found


def run(unit: str, config: Config) -> dict[str, Any]:
    what, _, products = unit.partition(", ")
    name, _, cell = what.partition(" ")
    if products not in benchmarks.PRODUCTS:
        raise OptionError(f"no products in {products}")
    settings = benchmarks.Settings(
        quick=config.quick,
        cells=(cell,) if cell else (),
        rounds=3 if config.quick else 9,
        products=products,
    )
    title, rows = benchmarks.measure((name,), settings)[name]
    title = title.replace("1e-5", f"{RTOL[products]:g}")
    told = [[row.what, row.measured] for row in rows]
    if any(row.what == name and row.ok is False for row in rows):
        raise RuntimeError(told[0][1])  # it broke off
    return dict(title=title, rows=told, versions=benchmarks.versions())


def line(row: dict[str, Any]) -> str:
    return f"{len(row['rows'])} rows"


def report(rows: Rows) -> list[str]:
    versions = [f"{k} {v}" for k, v in next(iter(rows.values()))["versions"].items()]
    told = [SAID, ", ".join(versions) + "."]
    for unit, row in rows.items():
        told += [f"**{row['title']}** ({unit})", table(HEAD, row["rows"])]
    return told
