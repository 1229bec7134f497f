"""What a benchmark returns, and how it is printed and written down."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Settings:
    """What every benchmark is told. `quick` shrinks shapes and repetitions: to see that it runs."""

    quick: bool = False
    rounds: int = 15
    """interleaved rounds of a timing"""
    seconds: float = 0.1
    """least time of one block of calls within a round"""
    peers: tuple[str, ...] = ("torchdeq", "jaxopt", "optimistix", "banax")
    threads: int = 2
    """threads of torch"""

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


def markdown(tables: dict[str, tuple[str, list[Row]]], command: str) -> str:
    """All tables, {name: (title, rows)}, with what is needed to read and repeat them."""
    rows = [row for _, some in tables.values() for row in some]
    required = [row for row in rows if row.ok is not None]
    passed = sum(bool(row.ok) for row in required)
    lines = [
        "# Benchmarks",
        "",
        f"Measured {datetime.date.today().isoformat()} on {machine()}, by `{command}`.",
        f"{passed} of {len(required)} requirements pass; every figure is as it was measured.",
        "",
        ", ".join(f"{name} {version}" for name, version in versions().items()) + ".",
    ]
    for title, some in tables.values():
        lines += ["", f"## {title}", "", _line(HEADINGS), _line(("---",) * len(HEADINGS))]
        lines += [_line(row.cells) for row in some]
    return "\n".join(lines) + "\n"


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def machine() -> str:
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        model = names[0].partition(":")[2].strip() if names else model
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
    return f"{os.cpu_count()} CPU cores ({model}), load average {load:.1f} at the end of the run"


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


def save(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, "utf-8")
