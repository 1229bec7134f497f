"""What the comparison says, and its tables."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from ..tables import table
from .libraries import installed

MARGIN = 3e-5
PEERS = ("jaxopt", "qpax")
LIMITS = {"forward": 0.4, "backward": 0.25}

EXPLAINED = f"""\
A batch of strictly convex programs, half as many inequalities and a quarter as many equalities as
unknowns; in one of them an inequality is within {MARGIN:g} of the other side. Tolerances are 1e-9
in float64 and 1e-5 in float32: absolute ones in the peers, relative to the sizes involved in
`qp`, whose units the batch has been given so that float32 can meet OSQP's.

Times are process CPU times, milliseconds, median and quartiles over rounds in which all take turns
in one process, LAPACK on one thread; the ratio is the median over the rounds of the time of `qp`
over that of the peer with the least median. Other work on a machine lengthens all of them, and not
all alike: ratios hold better than times, and both should be read from a quiet machine.

KKT is the largest error of the four conditions, recomputed in float64 from the operands as each
library was given them, worst sample. Gradients are those of a random linear function of z to Q, q,
A, b, G and h, against dense float64 solves on the constraints that bind, whose signs prove them
right: the largest error in a sample relative to the largest entry of that gradient, worst sample
and operand, and worst without the nearly degenerate sample. "Converged" is what a library says
itself.

OSQP runs under `vmap` with its own implicit differentiation, once with a dense LU factor for its
linear system (`implicit_diff_solve`, a ridge because the system is singular), and once with the
default, conjugate gradients on the normal equations, which end too early for its condition. qpax's
implicit backend runs with κ = 1e-9, by which it smooths gradients; its default is 1e-3.
"""


@dataclass(frozen=True)
class Measured:
    dtype: str
    library: str
    forward: list[float]  # seconds of each round
    backward: list[float]  # with forward
    converged: int
    kkt: float
    gradient: float
    gradient_of_others: float


def ratios(found: list[Measured]) -> list[dict]:
    """`qp` over the fastest peer, of each dtype, forward and with the gradient."""
    rows = []
    for dtype in dict.fromkeys(m.dtype for m in found):
        own, *peers = [m for m in found if m.dtype == dtype]
        for what, limit in LIMITS.items() if peers else ():
            peer = min(peers, key=lambda m, what=what: np.median(getattr(m, what)))
            each = np.array(getattr(own, what)) / np.array(getattr(peer, what))
            low, middle, high = (float(x) for x in np.quantile(each, (0.25, 0.5, 0.75)))
            rows.append(
                dict(dtype=dtype, what=what, peer=peer.library, ratio=middle, low=low, high=high)
                | dict(limit=limit, ok=middle <= limit)
            )
    return rows


def record(path: Path, found: list[Measured], *, batch: int, n: int, rounds: int) -> None:
    data = path.with_suffix(".json")
    kept = json.loads(data.read_text("utf-8")) if data.exists() else {}
    names = ["jax", *(peer for peer in PEERS if installed(peer))]
    versions = {name: importlib.metadata.version(name) for name in names}
    kept[f"jax {versions['jax']}"] = dict(
        command=" ".join(["python -m experiments.qp_peers", *sys.argv[1:]]),
        date=datetime.date.today().isoformat(),
        versions={"python": platform.python_version()} | versions,
        cores=os.cpu_count(),
        batch=batch,
        n=n,
        rounds=rounds,
        ratios=ratios(found),
        measured=[asdict(m) for m in found],
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    data.write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n", "utf-8")
    path.write_text(page(kept), "utf-8")


def page(kept: dict[str, dict]) -> str:
    parts = ["# Quadratic programs beside other libraries", "", EXPLAINED]
    for name, run in kept.items():
        parts += [f"## {name}", "", _said(run), "", _ratios(run["ratios"]), ""]
        parts += [_table([Measured(**m) for m in run["measured"]], run["batch"]), ""]
    return "\n".join(parts)


def summary(found: list[Measured]) -> str:
    return _table(found, None) + "\n\n" + _ratios(ratios(found))


def _said(run: dict) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in run["versions"].items())
    absent = [peer for peer in PEERS if peer not in run["versions"]]
    missing = "".join(f" {peer} was not installed, and is left out." for peer in absent)
    return (
        f"`{run['command']}`, {run['date']}: batch {run['batch']}, n = {run['n']}, "
        f"{run['rounds']} rounds, {run['cores']} cores; {versions}.{missing}"
    )


def _ratios(rows: list[dict]) -> str:
    head = ["dtype", "", "fastest peer", "time of `qp` over its", "must be", "verdict"]
    what = {"forward": "forward", "backward": "forward and gradient"}
    lines = []
    for r in rows:
        ratio = f"{r['ratio']:.3f} [{r['low']:.3f}, {r['high']:.3f}]"
        verdict = "pass" if r["ok"] else "FAIL"
        lines.append([r["dtype"], what[r["what"]], r["peer"], ratio, f"<= {r['limit']:g}", verdict])
    return table(head, lines)


def _table(found: list[Measured], batch: int | None) -> str:
    head = ["dtype", "", "forward", "forward and gradient", "converged", "KKT"]
    head += ["gradient off", "the others'"]
    of = "" if batch is None else f" of {batch}"
    rows = []
    for m in found:
        row = [m.dtype, m.library, _milliseconds(m.forward), _milliseconds(m.backward)]
        row += [f"{m.converged}{of}"]
        row += [f"{x:.1e}" for x in (m.kkt, m.gradient, m.gradient_of_others)]
        rows.append(row)
    return table(head, rows)


def _milliseconds(seconds: list[float]) -> str:
    low, middle, high = 1e3 * np.quantile(seconds, (0.25, 0.5, 0.75))
    return f"{middle:.0f} [{low:.0f}, {high:.0f}]"
