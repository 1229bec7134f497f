"""Run the benchmarks; print and write down each table as it is measured.

    pip install torch torchdeq==0.1.0 jaxopt optimistix banax==0.1.5   # Python 3.12 for banax
    python -m experiments.benchmarks [--only per_step backward] [--quick]

Run it on an idle machine: the ratios are robust against slow drift, not against other programs.
On a GPU everything runs there, torch too, with float32 products in float32; with `--products
tensorfloat32`, JAX's default there, in which a solve to 1e-5 could not end, the race is to 1e-3.
Keep its report apart: `--out FILE`. `python -m experiments.gpu` runs both.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from deqjax.training import OptionError, command_line

from . import report
from .report import Products, Settings
from .run import measure

NAMES = (
    "per_step",
    "to_tolerance",
    "backward",
    "memory",
    "history_bytes",
    "compile_time",
    "warm_start",
    "small_state",
    "compacted",
    "eager",
)
CellName = Literal["reference", "tanh", "transformer", "near-singular"]
Name = Literal[
    "per_step",
    "to_tolerance",
    "backward",
    "memory",
    "history_bytes",
    "compile_time",
    "warm_start",
    "small_state",
    "compacted",
    "eager",
]


@dataclass(frozen=True)
class Config:
    """What deqjax costs, beside its peers."""

    only: tuple[Name, ...] = ()
    """benchmarks to run; all if not given"""
    quick: bool = False
    """tiny shapes and few repetitions: shows that everything runs, measures nothing"""
    out: Path = Path("experiments/results/benchmarks.md")
    """the report; tables that this run does not measure stay in it"""
    cells: tuple[CellName, ...] = ()
    """cells of `to_tolerance`; all if not given"""
    rounds: int = 15
    """interleaved rounds of a timing; the median of their ratios is reported"""
    peers: tuple[str, ...] = ("torchdeq", "jaxopt", "optimistix", "banax")
    """libraries to compare with; those that are absent are skipped and named"""
    threads: int = 2
    """threads of torch"""
    products: Products = "float32"
    """what matrices of float32 are multiplied in, on a GPU"""


def main(config: Config) -> bool:
    """Run, print and write; whether every requirement that was measured is met."""
    if config.rounds < 3:
        raise OptionError(f"--rounds must be at least 3, got {config.rounds}")
    settings = Settings(
        quick=config.quick,
        cells=config.cells,
        rounds=config.rounds,
        peers=config.peers,
        threads=config.threads,
        products=config.products,
    )
    command = " ".join(["python -m experiments.benchmarks", *sys.argv[1:]])
    tables = {}
    for name in config.only or NAMES:
        tables |= measure((name,), settings)
        title, rows = tables[name]
        key = name
        if name == "to_tolerance" and config.cells:  # a table of its own
            key, title = " ".join([name, *config.cells]), f"{title}: {', '.join(config.cells)}"
        report.record(config.out, key, title, rows, command)
    failed = [row.what for _, rows in tables.values() for row in rows if row.ok is False]
    print(f"{len(failed)} requirements are missed" if failed else "every requirement is met")
    print(f"written: {config.out}")
    return not failed


if __name__ == "__main__":
    command_line(Config, main)
