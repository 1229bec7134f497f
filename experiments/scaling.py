"""Weak scaling from 1 to 256 chips, as the compiler plans it: the same samples on every chip.

    python -m experiments.scaling                                  # needs libtpu, and hours of CPU
    python -m experiments.scaling --chips v5e --counts 1 16

Every row is one compiled train step (`deqjax.training.plan`) and is kept in
`experiments/results/scaling.json` as soon as it is there: what is there already is not compiled
again. `scaling.md` beside it has the tables.
"""

from __future__ import annotations

import datetime
import json
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax

from deqjax.training import OptionError, command_line
from deqjax.training.plan import Plan
from deqjax.training.plan.report import size

from .full_size.plan import plan

Kind = Literal["v5e", "v5p", "v6e"]
_FLAT = {1: "1x1", 4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16"}
_CUBE = {1: "1x1x1", 4: "2x2x1", 8: "2x2x2", 16: "2x2x4", 32: "2x4x4", 64: "4x4x4"}
SHAPES: dict[str, dict[int, str]] = {
    "v5e": _FLAT,
    "v6e": _FLAT,
    "v5p": _CUBE | {128: "4x4x8", 256: "4x8x8"},
}
FORWARD, ADJOINT = 10, 10  # solver steps in the totals
FLOAT = 4  # bytes

SAID = """\
Weak scaling as the compiler plans it: `{config}`, {rows} samples on every chip, `--parallel
shard_map`, all chips along `data`. Nothing is run: each row is one train step compiled by libtpu
for that topology. FLOPs (of matrix products), traffic of the main memory and collectives are read
from the compiled program, with {forward} forward and {adjoint} adjoint steps; memory is the
compiler's: `temporary` is the most that is alive at once besides the state, `peak` has the state
and the program too. 1 GB is 10⁹ bytes. Differences are to the smallest count with more than one
chip.

Expected: the same work and memory on every chip whatever their number; no collective in any loop;
outside, one reduction of the gradient a step, 4 bytes a parameter ({gradient}), and of a few
scalars. XLA splits it into several all-reduces: `gradients` is their bytes over those of the
gradient."""


@dataclass(frozen=True)
class Config:
    """Weak scaling from 1 to 256 chips, compiled and not run."""

    chips: tuple[Kind, ...] = ("v5e", "v5p", "v6e")
    """which chips"""
    counts: tuple[int, ...] = (1, 4, 16, 64, 256)
    """how many of them"""
    config: str = "wt103-transformer-medium"
    """a name in experiments.full_size.configs"""
    rows: int = 4
    """samples on every chip"""
    out: Path = Path("experiments/results/scaling.md")
    """the tables"""


def main(config: Config) -> None:
    kept = _read(config)
    for kind in config.chips:
        for count in config.counts:
            if count not in SHAPES[kind]:
                known = ", ".join(map(str, SHAPES[kind]))
                raise OptionError(f"--counts {count} has no shape here; choose from {known}")
            topology = f"{kind}:{SHAPES[kind][count]}"
            if topology in kept["rows"]:
                continue
            print(f"{topology}: compiling ...", end=" ", flush=True)
            batch = config.rows * count
            found = plan(config.config, topology, global_batch=batch, evaluations=False)
            print(f"{found.compile_seconds:.0f} s", flush=True)
            kept["rows"][topology] = row(found)
            _write(config, kept)
    _write(config, kept)
    print(f"written: {config.out}")


def row(found: Plan) -> dict[str, Any]:
    """What the table shows of a plan, as plain data."""
    step, costs = found.step(FORWARD, ADJOINT), found.costs
    assert step is not None and costs is not None, "a few samples fit on every chip"
    inside = [*costs.forward.collectives, *costs.adjoint.collectives]
    outside = [c for c in costs.outside.collectives if not c.in_loop]
    inside += [c for c in costs.outside.collectives if c.in_loop]
    return dict(
        chips=found.chips,
        batch=found.global_batch,
        parameters=found.parameters,
        flops=step.flops,
        bytes=step.bytes,
        temporary=found.memory.temporary,
        peak=found.memory.peak,
        in_loops=len(inside),
        outside={k: sum(c.kind == k for c in outside) for k in sorted({c.kind for c in outside})},
        collective_bytes=sum(c.bytes for c in outside),
        compile_seconds=round(found.compile_seconds, 1),
        versions=f"Python {platform.python_version()}, jax {jax.__version__}",
        date=datetime.date.today().isoformat(),
    )


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown, a line for every number of chips."""
    first = min((r for r in rows if r["chips"] > 1), key=lambda r: r["chips"], default=rows[0])
    head = ["chips", "batch", "FLOP a chip", "", "traffic", "", "temporary", "", "peak", ""]
    head += ["in loops", "outside", "bytes", "gradients"]
    lines = [head, ["---"] * len(head)]
    for r in sorted(rows, key=lambda r: r["chips"]):
        line = [str(r["chips"]), f"{r['batch']:,}"]
        for key in ("flops", "bytes", "temporary", "peak"):
            line.append(f"{r[key]:.4g}" if key == "flops" else size(r[key]))
            line.append(f"{100 * (r[key] / first[key] - 1):+.1f}%")
        kinds = ", ".join(f"{n} {kind}" for kind, n in r["outside"].items()) or "–"
        line += [str(r["in_loops"] or "none"), kinds, size(r["collective_bytes"])]
        line.append(f"{r['collective_bytes'] / (FLOAT * r['parameters']):.4f}")
        lines.append(line)
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _read(config: Config) -> dict[str, Any]:
    data = config.out.with_suffix(".json")
    asked = dict(config=config.config, rows_a_chip=config.rows)
    if not data.exists():
        return asked | dict(rows={})
    kept = json.loads(data.read_text("utf-8"))
    if {k: kept.get(k) for k in asked} != asked:
        raise OptionError(f"{data} holds the rows of another model or batch: take another --out")
    return kept


def _write(config: Config, kept: dict[str, Any]) -> None:
    config.out.parent.mkdir(parents=True, exist_ok=True)
    config.out.with_suffix(".json").write_text(json.dumps(kept, indent=1) + "\n", "utf-8")
    parameters = next(iter(kept["rows"].values()))["parameters"]
    said = SAID.format(
        config=config.config,
        rows=config.rows,
        forward=FORWARD,
        adjoint=ADJOINT,
        gradient=size(FLOAT * parameters),
    )
    parts = ["# Weak scaling", "", said]
    for kind in SHAPES:
        rows = [r for name, r in kept["rows"].items() if name.startswith(kind)]
        if rows:
            said = f"{rows[-1]['versions']}, {rows[-1]['date']}."
            parts += ["", f"## {kind}", "", said, "", table(rows)]
    config.out.write_text("\n".join(parts) + "\n", "utf-8")


if __name__ == "__main__":
    command_line(Config, main)
