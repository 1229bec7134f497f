"""A progress line for long work, in plain text."""

from __future__ import annotations

import math
import operator
import shutil
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, TextIO

# Fields that training knows get a short name and a width that keeps lines under each other.
_SHORT = {
    "loss": "loss",
    "perplexity": "ppl",
    "valid_perplexity": "valid ppl",
    "forward_steps": "fwd",
    "adjoint_steps": "adj",
    "valid_forward_steps": "valid fwd",
}
_SHARES = {"converged": "converged", "valid_converged": "valid converged"}
_RATES = {"tokens_per_second": "tok/s", "samples_per_second": "samples/s"}


class Progress:
    """Show where a loop stands: step, fields, rate and time left.

    On a terminal one line is rewritten in place; anywhere else (a log file, a batch job) a line is
    printed now and then. The last step is always shown. A line reads::

        step 120/600   20%  loss 2.310  ppl 10.07  fwd  8.2  converged  97%  5.1k tok/s  left 1m40s

    The time left comes from the last updates only, and never from the time before the first one,
    which is compilation. Field values may be JAX scalars: they are read, and so waited for, only
    when a line is shown.

    Not for measuring: the rate shown is that of the loop with everything in it.

    Args:
        total: the number of the last step.
        out: where to print; standard error if not given.
        every_seconds: the least time between two lines; 0.1 on a terminal and 5 elsewhere if not
            given. 0 shows every update.
        clock: seconds, from any start.

    Raises:
        ValueError: `total` or `every_seconds` is negative.

    Examples:
        >>> with Progress(2, out=sys.stdout, every_seconds=0, clock=iter(range(9)).__next__) as p:
        ...     p.update(1, loss=2.5)
        ...     p.update(2, loss=2.25, converged=1.0)
        step 1/2   50%  loss 2.500
        step 2/2  100%  loss 2.250  converged 100%  1.0 step/s  in 2s
    """

    def __init__(
        self,
        total: int,
        *,
        out: TextIO | None = None,
        every_seconds: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.total = operator.index(total)
        self._out = sys.stderr if out is None else out
        self._rewrites = self._out.isatty()
        if every_seconds is None:
            every_seconds = 0.1 if self._rewrites else 5.0
        if self.total < 0 or every_seconds < 0:
            raise ValueError(
                f"total={total} and every_seconds={every_seconds} must not be negative"
            )
        self._every = every_seconds
        self._clock = clock
        self._start = clock()
        # (time, step) of the last updates. The first update ends the first step, so time spent
        # before it (compilation) is in no difference of two of these.
        self._recent: deque[tuple[float, int]] = deque(maxlen=64)
        self._shown_at = -math.inf
        self._pending: tuple[int, Mapping[str, Any]] | None = None
        self._width = 0  # of the line that stands on the terminal

    def update(self, step: int, **fields: Any) -> None:
        """Say that `step` is done.

        Args:
            step: from 1 to `total`. It may start anywhere, as in a resumed run, and jump.
            **fields: numbers to show. `loss`, `perplexity`, `valid_perplexity`, `forward_steps`,
                `adjoint_steps`, `converged` (a share from 0 to 1), `tokens_per_second` and
                `samples_per_second` have a form of their own; others appear under their names. None
                leaves a field out.
        """
        now = self._clock()
        self._recent.append((now, operator.index(step)))
        self._pending = (step, fields)
        if step >= self.total or now - self._shown_at >= self._every:
            self._show(now)

    def note(self, text: str) -> None:
        """Print a line of text that stays, above the progress line on a terminal."""
        if self._rewrites and self._width:
            self._out.write("\r" + " " * self._width + "\r")
            self._width = 0
        self._out.write(text + "\n")
        self._out.flush()

    def close(self) -> None:
        """Show the last update if it is not on display yet, and end the line."""
        if self._pending is not None:
            self._show(self._recent[-1][0])
        if self._rewrites and self._width:
            self._out.write("\n")
            self._out.flush()
            self._width = 0

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _show(self, now: float) -> None:
        assert self._pending is not None
        line = self._line(now, *self._pending)
        self._pending = None
        self._shown_at = now
        if self._rewrites:
            line = line[
                : shutil.get_terminal_size().columns - 1
            ]  # a wrapped line cannot be rewritten
            self._out.write("\r" + line.ljust(self._width))
            self._width = len(line)
        else:
            self._out.write(line + "\n")
        self._out.flush()

    def _line(self, now: float, step: int, fields: Mapping[str, Any]) -> str:
        percent = 100 * step // self.total if self.total else 100
        parts = [f"step {step:>{len(str(self.total))}}/{self.total}  {percent:>3}%"]
        rate = self._steps_per_second()
        for name, value in fields.items():
            if value is None or name in _RATES:
                continue
            number = float(value)
            if name in _SHARES:
                parts.append(f"{_SHARES[name]} {_percent(number):>4}")
            elif name.endswith(("forward_steps", "adjoint_steps")):
                parts.append(f"{_SHORT.get(name, name.replace('_', ' '))} {number:>4.1f}")
            else:
                parts.append(f"{_SHORT.get(name, name.replace('_', ' '))} {_number(number)}")
        counted = [name for name in _RATES if fields.get(name) is not None]
        parts += [f"{_count(float(fields[name]))} {_RATES[name]}" for name in counted]
        if rate and not counted:
            parts.append(f"{_count(rate)} step/s")
        if step >= self.total:
            parts.append(f"in {_duration(now - self._start)}")
        elif rate:
            parts.append(f"left {_duration((self.total - step) / rate)}")
        return "  ".join(parts)

    def _steps_per_second(self) -> float | None:
        """Over the last updates; None until two of them tell a rate."""
        (then, first), (now, last) = self._recent[0], self._recent[-1]
        return (last - first) / (now - then) if now > then and last > first else None


def _percent(share: float) -> str:
    if not math.isfinite(share):
        return str(share)
    # Rounded down: 100% is said only when it is all of them.
    return f"{math.floor(100 * share + 1e-6)}%"


def _number(value: float) -> str:
    """Four figures that matter, in five characters where they fit, so that columns hold still."""
    size = abs(value)
    if not math.isfinite(value) or value == 0:
        return f"{value:>5.1f}" if value == 0 else f"{value:>5}"
    if size < 1e-3 or size >= 1e6:
        return f"{value:.2e}"
    digits = max(0, 3 - max(0, math.floor(math.log10(size))))
    return f"{value:>5.{digits}f}"


def _count(value: float) -> str:
    for limit, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= limit * 0.9995:
            return _short(value / limit) + letter
    return _short(value)


def _short(value: float) -> str:
    if value >= 99.95:
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 0.995 else f"{value:.2g}"


def _duration(seconds: float) -> str:
    """The two largest units: 45s, 1m40s, 2h05m, 3d04h."""
    whole = max(0, round(seconds))
    for size, unit, smaller, below in (
        (86400, "d", 3600, "h"),
        (3600, "h", 60, "m"),
        (60, "m", 1, "s"),
    ):
        if whole >= size:
            return f"{whole // size}{unit}{whole % size // smaller:02}{below}"
    return f"{whole}s"
