"""What a benchmark returns, and how it is printed and written down."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import jax

from deqjax.training import keep_freed_memory

Products = Literal["float32", "tensorfloat32"]
PRODUCTS: tuple[Products, ...] = ("float32", "tensorfloat32")


@dataclass(frozen=True)
class Settings:
    """What every benchmark is told. `quick` shrinks shapes and repetitions: to see that it runs."""

    quick: bool = False
    cells: tuple[str, ...] = ()
    """beginnings of the names of the cells to compare on; all if empty"""
    rounds: int = 15
    """interleaved rounds of a timing"""
    seconds: float = 0.1
    """least time of one block of calls within a round"""
    peers: tuple[str, ...] = ("torchdeq", "jaxopt", "optimistix", "banax")
    threads: int = 2
    """threads of torch"""
    products: Products = "float32"
    """what matrices of float32 are multiplied in, on a GPU"""

    @property
    def timing(self) -> dict:
        return {"rounds": 3, "seconds": 0.005} if self.quick else self._full

    @property
    def _full(self) -> dict:
        return {"rounds": self.rounds, "seconds": self.seconds}


@dataclass(frozen=True)
class Row:
    """One line of a table: `ok` is None where nothing is required."""

    what: str
    measured: str
    limit: str = ""
    ok: bool | None = None

    @property
    def verdict(self) -> str:
        return {None: "", True: "pass", False: "FAIL"}[self.ok]

    @property
    def cells(self) -> tuple[str, ...]:
        return (self.what, self.measured, self.limit, self.verdict)


HEADINGS = ("what", "measured", "must be", "verdict")


def at_most(what: str, value: float, limit: float, detail: str = "", unit: str = "") -> Row:
    """A row that passes if `value` is at most `limit`, exactly: nothing is rounded first."""
    measured = f"{value:.4g}{unit}" + (f" ({detail})" if detail else "")
    return Row(what, measured, f"<= {limit:g}{unit}", bool(value <= limit))


def at_least(what: str, value: float, limit: float, detail: str = "", unit: str = "") -> Row:
    measured = f"{value:.4g}{unit}" + (f" ({detail})" if detail else "")
    return Row(what, measured, f">= {limit:g}{unit}", bool(value >= limit))


def info(what: str, measured: str) -> Row:
    """A row that is no requirement."""
    return Row(what, measured)


def table(rows: Iterable[Row]) -> str:
    """The rows as text for a terminal."""
    lines = [HEADINGS, *(row.cells for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(HEADINGS))]
    return "\n".join(
        "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def record(path: Path, name: str, title: str, rows: list[Row], command: str) -> None:
    """Put one table into the report at `path`; what other runs measured stays in it.

    The report is drawn from a file of the same name that ends in .json, where the tables are kept.
    """
    data = path.with_suffix(".json")
    tables = json.loads(data.read_text("utf-8")) if data.exists() else {}
    tables[name] = {
        "title": title,
        "rows": [asdict(row) for row in rows],
        "command": command,
        "measured": f"{datetime.date.today().isoformat()} on {accelerator()}{machine()}",
        "versions": versions(),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    data.write_text(json.dumps(tables, indent=1) + "\n", "utf-8")
    path.write_text(markdown(tables), "utf-8")


def markdown(tables: dict[str, Any]) -> str:
    """All tables, each with what is needed to read and repeat it."""
    rows = [Row(**row) for table in tables.values() for row in table["rows"]]
    required = [row for row in rows if row.ok is not None]
    passed = sum(bool(row.ok) for row in required)
    lines = [
        "# Benchmarks",
        "",
        f"{passed} of {len(required)} requirements pass; every figure is as it was measured.",
    ]
    for table in tables.values():
        packages = ", ".join(f"{name} {version}" for name, version in table["versions"].items())
        lines += [
            *("", f"## {table['title']}", ""),
            f"`{table['command']}`, {table['measured']}; {packages}.",
            *("", _line(HEADINGS), _line(("---",) * len(HEADINGS))),
        ]
        lines += [_line(Row(**row).cells) for row in table["rows"]]
    return "\n".join(lines) + "\n"


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def accelerator() -> str:
    """What computes, where that is no CPU."""
    device = jax.devices()[0]
    return "" if device.platform == "cpu" else f"one {device.device_kind}, beside "


def machine() -> str:
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        model = names[0].partition(":")[2].strip() if names else model
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
    # `command_line` has asked for it; asked again, it tells.
    kept = "freed memory kept, " if keep_freed_memory() else ""
    return f"{os.cpu_count()} CPU cores ({model}), {kept}load average {load:.1f} at the end"


def versions() -> dict[str, str]:
    found = {"Python": platform.python_version()}
    names = ("jax", "jaxlib", "torch", "torchdeq", "jaxopt", "optimistix", "lineax", "banax")
    for name in ("deqjax", *names):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = _source_version() if name == "deqjax" else "absent"
    return found


def _source_version() -> str:
    import deqjax

    return deqjax.__version__
