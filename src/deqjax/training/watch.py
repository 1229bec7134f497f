"""Notices when the solves of a run stop converging, and when they do again."""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any


class ConvergenceWatch:
    """Follows the share of solves that converge, and the gain of their adjoints, over the last
    `window` rows of metrics.

    Args:
        least: a mean share below it is news, and so is a mean above it afterwards.
        window: rows to average over.
        most_gain: a gain ‖u‖/‖v‖ of which the median over the window is above it is news, once.

    Examples:
        >>> watch = ConvergenceWatch(window=2)
        >>> for step, share in enumerate([1.0, 1.0, 0.4, 0.2, 1.0, 1.0], start=1):
        ...     news = watch.see(step, {"converged": share})
        ...     if news:
        ...         print(news.split(",")[0])
        step 3: solves have stopped converging
        step 6: solves converge again
        >>> watch.summary()
        {'least_converged': 0.3, 'stopped_converging': [3], 'converging_again': [6]}
    """

    def __init__(self, least: float = 0.8, window: int = 20, most_gain: float = 1e3):
        self._least, self._recent = least, deque[float](maxlen=window)
        self._most_gain, self._gains = most_gain, deque[float](maxlen=window)
        self._largest_gain: float | None = None
        self._gained: list[int] = []
        self._worst = 1.0
        self._stopped: list[int] = []
        self._again: list[int] = []

    def see(self, step: int, row: Mapping[str, Any]) -> str | None:
        """Take a row; return a sentence if it is news. Rows without a solve count for nothing."""
        news = (self._see_share(step, row), self._see_gain(step, row))
        return "; ".join(filter(None, news)) or None

    def _see_gain(self, step: int, row: Mapping[str, Any]) -> str | None:
        gain = row.get("adjoint_gain")
        if gain is None:
            return None
        self._largest_gain = max(gain, self._largest_gain or 0.0)
        self._gains.append(gain)
        full = len(self._gains) == self._gains.maxlen
        median = statistics.median(self._gains)
        if self._gained or not full or median <= self._most_gain:
            return None
        self._gained.append(step)
        return (
            f"step {step}: adjoint solutions have grown to {median:.0f} times their cotangents: "
            "equilibria are near a singular I - J, and single samples make the gradient "
            "(--max-gain, --jacobian, or a contractive cell)"
        )

    def _see_share(self, step: int, row: Mapping[str, Any]) -> str | None:
        share = row.get("converged")
        if share is None:
            return None
        self._recent.append(share)
        if len(self._recent) < (self._recent.maxlen or 0):
            return None
        mean = sum(self._recent) / len(self._recent)
        self._worst = min(self._worst, mean)
        fails = len(self._stopped) > len(self._again)
        if mean < self._least and not fails:
            self._stopped.append(step)
            return (
                f"step {step}: solves have stopped converging, {mean:.0%} of the last ones did "
                "(more --max-steps, a larger --rtol or --jacobian, or --tighten; if they never "
                "did, on a GPU or TPU, JAX_DEFAULT_MATMUL_PRECISION=highest)"
            )
        if mean >= self._least and fails:
            self._again.append(step)
            return f"step {step}: solves converge again, {mean:.0%} of the last ones did"
        return None

    def catch_up(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Take the rows of an earlier part of the run, silently."""
        for row in rows:
            self.see(row["step"], row)

    def summary(self) -> dict[str, Any]:
        """For `result.json`; empty if nothing was solved."""
        if not self._recent:
            return {}
        found: dict[str, Any] = {
            "least_converged": round(self._worst, 4),
            "stopped_converging": self._stopped,
            "converging_again": self._again,
        }
        if self._largest_gain is not None:
            found |= {"largest_gain": float(f"{self._largest_gain:.4g}"), "gained": self._gained}
        return found
