"""Time and evaluations of f to the same true residual: deqjax beside every peer, cell by cell.

Every library enters with several solvers and adjoints; its fastest counts. What the peers are given
is in `peers`: budgets that nobody could know in advance.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from . import peers
from .cells import Cell, cells
from .peers import Entry
from .report import Row, Settings, at_most, info
from .timing import Times, interleaved, once

TITLE = "Time and f_evals to the same relative residual, 1e-5"
RTOL = {"float32": 1e-5, "tensorfloat32": 1e-3}  # by what f is rounded to
BEHIND = 2.0


def run(settings: Settings) -> list[Row]:
    names = peers.present(settings)
    rows = [
        info(f"peer {name}", "skipped: not installed")
        for name in settings.peers
        if name not in names
    ]
    peers.verify_counts(cells(quick=True)[0], names)
    for cell in cells(settings.quick):
        if not settings.cells or cell.name.startswith(settings.cells):
            rows += one_cell(cell, settings, names)
    return rows


def one_cell(cell: Cell, settings: Settings, names: list[str]) -> list[Row]:
    print(f"  {cell.name}: searching budgets", flush=True)
    rtol = RTOL[settings.products]
    entries, rows = _sorted_out(cell, peers.forward_entries(cell, rtol, settings, names))
    fastest, timed = _race(f"{cell.name}, forward", entries, settings)
    rows += timed
    rows += _evaluations(cell, entries)
    both, failed = _sorted_out(cell, peers.both_entries(cell, rtol, settings, fastest))
    rows += failed
    rows += _race(f"{cell.name}, forward + backward", both, settings)[1]
    return rows


def _sorted_out(cell: Cell, found: Iterable[Entry | str]) -> tuple[list[Entry], list[Row]]:
    entries, rows = [], []
    for one in found:
        if isinstance(one, str):
            print(f"    {one}", flush=True)
            rows.append(info(f"{cell.name}: no entry", one))
        else:
            budget = "" if one.evals is None else f", {one.evals} f_evals ({one.unknown_evals})"
            print(f"    {one.name}: residual {one.residual:.2e}{budget}", flush=True)
            entries.append(one)
    return entries, rows


def _race(what: str, entries: list[Entry], settings: Settings) -> tuple[dict[str, Entry], list]:
    """Each library's fastest entry, and the rows. Who is far behind the library's best in a single
    call is out; a short heat then sends two of every library into the final."""
    libraries = list(dict.fromkeys(e.library for e in entries))
    single = Times({e.name: np.array([once(e.call)]) for e in entries})
    runners = []
    for library in libraries:
        own = _ranked(single, entries, library)
        runners += [e for e in own if single.median(e.name) <= BEHIND * single.median(own[0].name)]
    heat = interleaved({e.name: e.call for e in runners}, rounds=3, seconds=0.02)
    finalists = [e for library in libraries for e in _ranked(heat, runners, library)[:2]]
    final = interleaved({e.name: e.call for e in finalists}, **settings.timing)
    fastest = {library: _ranked(final, finalists, library)[0] for library in libraries}
    if "deqjax" not in fastest:
        return fastest, [Row(what, "deqjax did not get there", "first", False)]
    rows = [_times(what, entry, final) for entry in finalists]
    ours = fastest["deqjax"].name
    for library, entry in fastest.items():
        if library != "deqjax":
            ratio = final.ratio(ours, entry.name)
            label = f"{what}: deqjax / {library}"
            rows.append(at_most(label, ratio.median, 1.0, ratio.quartiles))
    for entry in entries:
        if entry not in runners:
            rows.append(_times(f"{what}, one call", entry, single))
        elif entry not in finalists:
            rows.append(_times(f"{what}, heat only", entry, heat))
    return fastest, rows


def _ranked(times: Times, entries: list[Entry], library: str) -> list[Entry]:
    """The library's entries, fastest first."""
    own = [e for e in entries if e.library == library]
    return sorted(own, key=lambda e: times.median(e.name))


def _times(what: str, entry: Entry, times: Times) -> Row:
    spent = f"{1e3 * times.median(entry.name):.2f} ms, residual {entry.residual:.1e}"
    return info(f"{what}: {entry.name}", spent)


def _evaluations(cell: Cell, entries: list[Entry]) -> list[Row]:
    counted = [e for e in entries if e.evals is not None]
    rows = [
        info(f"{cell.name}, f_evals: {e.name}", f"{e.evals} ({e.unknown_evals} without knowing)")
        for e in counted
    ]
    ours = [e.evals for e in counted if e.library == "deqjax" and e.evals is not None]
    theirs = [e for e in counted if e.library != "deqjax"]
    if not ours or not theirs:
        return rows
    best = min(theirs, key=lambda e: e.evals or 0)
    label = f"{cell.name}, fewest f_evals, by a stop test"
    rows.append(at_most(label, min(ours), best.evals or 0, best.name))
    told = min(theirs, key=lambda e: e.unknown_evals or 0)
    text = f"{min(ours)} beside {told.unknown_evals} ({told.name})"
    return [*rows, info(f"{cell.name}, fewest f_evals, peers that need not know", text)]
