"""Run benchmarks, each a module with `TITLE` and `run(settings) -> rows`."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable

import jax

from . import report
from .report import Row, Settings

PRECISION = {"float32": "highest", "tensorfloat32": "tensorfloat32"}


def measure(
    names: tuple[str, ...],
    settings: Settings,
    runs: dict[str, tuple[str, Callable[[Settings], list[Row]]]] | None = None,
) -> dict[str, tuple[str, list[Row]]]:
    """{name: (title, rows)}. One that breaks off is a failed row; the others still run."""
    tables = {}
    for name in names:
        if runs is None:
            module = importlib.import_module(f"{__package__}.{name}")
            title, run = module.TITLE, module.run
        else:
            title, run = runs[name]
        print(f"== {title}", flush=True)
        start = time.perf_counter()
        try:
            with jax.default_matmul_precision(PRECISION[settings.products]):
                rows = run(settings)
        except Exception as wrong:  # an hour of other measurements is not thrown away
            said = f"{type(wrong).__name__}: {wrong}".splitlines()[0][:200]
            rows = [Row(name, said, "to run to its end", False)]
        tables[name] = (title, rows)
        print(report.table(rows))
        print(f"   ({time.perf_counter() - start:.0f} s)\n", flush=True)
    return tables
