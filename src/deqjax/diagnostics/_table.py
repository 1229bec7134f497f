"""Results as text that lines up."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .._solution import Stats, Status


def table(header: Sequence[str], rows: Sequence[Sequence[str]], words: Sequence[int] = (0,)) -> str:
    """Columns as wide as their longest entry: `words` start on the left, numbers on the right."""
    lines = [tuple(header), *map(tuple, rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, tuple("-" * width for width in widths))

    def line(entries):
        pairs = enumerate(zip(entries, widths, strict=True))
        return "  ".join(t.ljust(w) if i in words else t.rjust(w) for i, (t, w) in pairs).rstrip()

    return "\n".join(map(line, lines))


def ending(stats: Stats) -> str:
    """How a solve ended, in a few words: 'converged', or '3 of 8 failed: max_steps'."""
    status = np.ravel(np.asarray(stats.status))
    failed = status[status != Status.CONVERGED]
    if not failed.size:
        return "converged"
    worst = Status(int(failed.max())).name.lower()
    return worst if status.size == 1 else f"{failed.size} of {status.size} failed: {worst}"


def seconds(t: float) -> str:
    return f"{t:.2f} s" if t >= 1 else f"{1e3 * t:.2f} ms" if t >= 1e-3 else f"{1e6 * t:.0f} µs"
