"""The recorded table of the prefix sums, and its picture."""

from __future__ import annotations

import datetime
import json
import platform
import sys
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

`{command}`, {date}, Python {python}, jax {jax}."""


def record(config: Config, rows: Iterable[Row], out: Path = OUT) -> None:
    found = list(rows)
    if not found:
        return
    said = dict(
        parameters=3 * config.width * (2 * config.width + 1) + 3 * config.width + 1,
        bits=config.bits,
        longest=max(config.test_lengths),
        strings=config.strings,
        seeds=len(config.seeds),
        command=" ".join(["python -m experiments.prefix_sums", *sys.argv[1:]]),
        date=datetime.date.today().isoformat(),
        python=platform.python_version(),
        jax=jax.__version__,
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    write_json(out.with_suffix(".json"), dict(said=said, rows=[asdict(r) for r in found]))
    out.write_text(f"{SAID.format(**said)}\n\n{tables(found)}\n", "utf-8")
    print(tables(found))
    print(f"written: {out}")


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
        shares = lambda name, stacked, of=of: [
            _share(getattr(of[stacked, n], name), of[stacked, n].strings) for n in lengths
        ]
        packed = of[False, lengths[-1]].compacted
        line = [str(seed), *shares("right", False), *shares("converged", False)]
        line += ["–" if packed is None else f"{packed:.2f}", *shares("right", True)]
        lines.append(line)
    return table(head, lines)


def _share(count: int, of: int) -> str:
    return f"{100 * count / of:.1f}%" if of else "–"


def read(out: Path = OUT) -> list[Row]:
    """What was recorded."""
    return [Row(**r) for r in json.loads(out.with_suffix(".json").read_text("utf-8"))["rows"]]
