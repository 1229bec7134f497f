"""The table and the figure of `memory_against_depth`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .tables import table

Rows = Sequence[dict[str, Any]]

EXPLAINED = """\
Temporary memory is what the compiled gradient program asks for besides its inputs and outputs. The
slope is that of log(bytes) against log(depth), by least squares over all depths. A flow is followed
to t = L in L Euler steps of one, which are the L layers, or to t = 1 in L steps of 1/L. The error
is that of the gradient to W, ‖g − g₆₄‖/‖g₆₄‖, against those layers or steps in float64; the
equilibrium, a stack without end, is compared with L layers too. "none" stands where the backward
solve of `backsolve` ended before t = 0, its z beyond every bound: its status says so, and the
gradient is zero (an error of 1). Reconstruction is ‖z̃0 − z0‖ of that backward solve, relative to
z(t1) since z0 is zero. The slope of "every layer" is one: it keeps z where "unrolled" keeps more.
"""

# Validated for colour-blind readers; what belongs together has one hue.
STYLES = {
    "unrolled": ("#2a78d6", "o", "-"),
    "checkpoint every layer": ("#2a78d6", "s", "--"),
    "checkpoint every √L layers": ("#2a78d6", "^", ":"),
    "flow, recursive": ("#1b8a5a", "o", "-"),
    "flow, direct": ("#1b8a5a", "s", "--"),
    "flow to t = 1, backsolve": ("#c98500", "s", "--"),
    "flow, backsolve": ("#d03b3b", "D", "-"),
    "equilibrium, Picard": ("#4a3aa7", "o", "-"),
    "equilibrium, Anderson": ("#4a3aa7", "s", "--"),
}


def slope(rows: Rows, method: str) -> float:
    """Of log(bytes) against log(depth), by least squares."""
    found = [(row["depth"], row["bytes"]) for row in rows if row["method"] == method]
    depth, size = np.log(np.asarray(found, float)).T
    return float(np.polyfit(depth, size, 1)[0])


def share(rows: Rows, method: str, depth: int) -> float:
    """How many times the memory of `method` the unrolled stack takes at that depth."""
    size = {row["method"]: row["bytes"] for row in rows if row["depth"] == depth}
    return size["unrolled"] / size[method]


def markdown(said: str, rows: Rows) -> str:
    depths = sorted({row["depth"] for row in rows})
    methods = list(dict.fromkeys(row["method"] for row in rows))
    at = {(row["method"], row["depth"]): row for row in rows}
    shown = 1024 if 1024 in depths else depths[-1]

    def part(title: str, tell, more=(), extra=lambda method: []):
        head = ["", *(f"L = {depth}" for depth in depths), *more]
        lines = [[m, *(tell(at[m, d]) for d in depths), *extra(m)] for m in methods]
        return [f"## {title}", "", table(head, [line for line in lines if any(line[1:])]), ""]

    def error(row):
        return f"{row['error']:.1e}" if row["gradient"] else "none"

    def lost(row):
        if "reconstruction" not in row:
            return ""
        return "∞" if row["reconstruction"] is None else f"{row['reconstruction']:.1e}"

    memory = part(
        "Temporary memory, MiB",
        lambda row: f"{row['bytes'] / 2**20:.2f}",
        ["slope", f"unrolled is, at {shown}"],
        lambda m: [f"{slope(rows, m):.2f}", f"{share(rows, m, shown):.1f} times"],
    )
    parts = ["# A gradient's memory, error and time against depth", "", said, "", EXPLAINED]
    parts += [*memory, *part("Gradient error", error)]
    parts += part("CPU time, milliseconds", lambda row: f"{1e3 * row['seconds']:.1f}")
    parts += part("Reconstruction of z0 by the backward solve", lost)
    return "\n".join(parts)


def draw(rows: Rows, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.lines import Line2D

    figure, panels = pyplot.subplots(1, 3, figsize=(13, 5.2))
    values = (
        lambda row: row["bytes"] / 2**20,
        lambda row: row["error"] if np.isfinite(row["error"]) else 1.0,
        lambda row: 1e3 * row["seconds"],
    )
    titles = ("temporary memory, MiB", "relative error of the gradient", "CPU time, ms")
    for panel, value, title in zip(panels, values, titles, strict=True):
        for method, (colour, marker, line) in STYLES.items():
            own = [row for row in rows if row["method"] == method]
            if not own:
                continue
            x, y = [row["depth"] for row in own], [value(row) for row in own]
            width = 2.2 if method in ("unrolled", "equilibrium, Picard", "flow, backsolve") else 1.4
            panel.plot(x, y, line, color=colour, lw=width, marker=marker, ms=5, label=method)
            none = [(a, b) for a, b, row in zip(x, y, own, strict=True) if not row["gradient"]]
            if none and panel is panels[1]:
                panel.plot(*zip(*none, strict=True), "x", color=colour, ms=12, mew=2.5)
        panel.set(xscale="log", yscale="log", xlabel="depth L (layers or steps)", title=title)
        depths = sorted({row["depth"] for row in rows})
        panel.set_xticks(depths, [f"{d:,}" for d in depths])
        panel.minorticks_off()
        panel.grid(color="0.9", lw=0.6)
        panel.spines[["top", "right"]].set_visible(False)
    handles, labels = panels[0].get_legend_handles_labels()
    handles.append(Line2D([], [], color="#d03b3b", marker="x", ls="", ms=10, mew=2.5))
    labels.append("no gradient: z left every bound, backwards")
    figure.suptitle(
        "One contractive cell: what the gradient of L layers costs, and how wrong it is", y=0.98
    )
    figure.legend(handles, labels, loc="lower center", ncols=4, frameon=False, fontsize=9)
    figure.tight_layout(rect=(0, 0.14, 1, 1))
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
