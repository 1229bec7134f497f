"""The recorded table of the prefix sums, and its picture."""

from __future__ import annotations

import datetime
import json
import platform
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax
import numpy as np

from deqjax.training.folder import write_json

from ..tables import table
from .proof import Row
from .task import Config

OUT = Path("experiments/results/prefix_sums.md")
SAID = """\
# Prefix sums: what converged and stable is worth

A network with {parameters:,} parameters learns the parity of every prefix of a string of bits, on
strings of {bits}. One step of its cell sees two bits to either side, so that an answer takes as
many steps as the string is long, and it is computed as an equilibrium. Below, strings of up to
{longest} bits, each from a random start, {strings} of each length for each of {seeds} seeds. A
string is right when all of its prefixes are. "Certified" is converged (to rtol 1e-4, in at most
four steps a bit and 200) and stable (`stability=16`: the spectral radius of J, and its error, below
one).

`python -m experiments.prefix_sums`, {date}, Python {python}, jax {jax}."""


def record(config: Config, rows: Iterable[Row], out: Path | None = None) -> None:
    """Add the rows of a run to the table; those of other runs with the same settings stay."""
    out = OUT if out is None else out
    kept = [r for r in read(config, out) if (r.seed, r.stacked) != _run(config)]
    found = sorted([*kept, *rows], key=lambda r: (r.seed, r.stacked))
    said = settings(config) | dict(
        seeds=len({r.seed for r in found}),
        date=datetime.date.today().isoformat(),
        python=platform.python_version(),
        jax=jax.__version__,
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    write_json(out.with_suffix(".json"), dict(said=said, rows=[asdict(r) for r in found]))
    if any(not r.stacked for r in found):
        out.write_text(f"{SAID.format(**said)}\n\n{tables(found)}\n", "utf-8")
    print(f"written: {out}", flush=True)


def settings(config: Config) -> dict[str, Any]:
    """What all rows of a table have in common."""
    return dict(
        parameters=3 * config.width * (2 * config.width + 1) + 3 * config.width + 1,
        bits=config.bits,
        longest=max(config.test_lengths),
        strings=config.strings,
    )


def read(config: Config, out: Path | None = None) -> list[Row]:
    """What was recorded with these settings."""
    file = (OUT if out is None else out).with_suffix(".json")
    if not file.exists():
        return []
    found = json.loads(file.read_text("utf-8"))
    wanted = settings(config)
    same = all(found["said"].get(name) == value for name, value in wanted.items())
    return [Row(**r) for r in found["rows"]] if same else []


def asked(config: Config) -> bool:
    """Whether the rows of this run are there."""
    return _run(config) in {(r.seed, r.stacked) for r in read(config)}


def _run(config: Config) -> tuple[int, bool]:
    return config.train.seed, config.stacked


def tables(rows: list[Row]) -> str:
    parts = [_by_solver([r for r in rows if not r.stacked])]
    parts += ["## By seed, Picard", "", _by_seed([r for r in rows if r.solver == "Picard"])]
    return "\n\n".join(parts[:1]) + "\n\n" + "\n".join(parts[1:])


def _by_solver(rows: list[Row]) -> str:
    head = ["solver", "bits", "strings", "right", "converged", "wrong among these", "certified"]
    head += ["wrong among these", "right among the unconverged", "mean steps"]
    lines = []
    for solver in dict.fromkeys(r.solver for r in rows):
        for length in sorted({r.length for r in rows}):
            of = [r for r in rows if (r.solver, r.length) == (solver, length)]
            total = lambda name, of=of: sum(getattr(r, name) for r in of)
            n, converged, certified = (total(k) for k in ("strings", "converged", "certified"))
            lines.append(
                [
                    *(solver, str(length), f"{n:,}", _share(total("right"), n)),
                    *(_share(converged, n), f"{total('wrong_converged')} of {converged:,}"),
                    *(_share(certified, n), f"{total('wrong_certified')} of {certified:,}"),
                    f"{total('right_unconverged')} of {n - converged:,}",
                    f"{np.mean([r.steps for r in of]):.0f}",
                ]
            )
    return table(head, lines)


def _by_seed(rows: list[Row]) -> str:
    lengths = sorted({r.length for r in rows})
    head = ["seed", *(f"right at {n}" for n in lengths), *(f"converged at {n}" for n in lengths)]
    head += [f"evaluations by `Compacted`, of a loop of fixed length, at {lengths[-1]}"]
    head += [f"stack of 40: right at {n}" for n in lengths]
    lines = []
    for seed in sorted({r.seed for r in rows}):
        of: dict[Any, Row] = {(r.stacked, r.length): r for r in rows if r.seed == seed}

        def shares(name, stacked, of=of):
            there = [of.get((stacked, n)) for n in lengths]
            return ["–" if r is None else _share(getattr(r, name), r.strings) for r in there]

        last = of.get((False, lengths[-1]))
        packed = None if last is None else last.compacted
        line = [str(seed), *shares("right", False), *shares("converged", False)]
        line += ["–" if packed is None else f"{packed:.2f}", *shares("right", True)]
        lines.append(line)
    return table(head, lines)


def _share(count: int, of: int) -> str:
    return f"{100 * count / of:.1f}%" if of else "–"
