"""The largest batch that fits, by compiling."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Largest:
    """What a search has found.

    Attributes:
        batch: the largest global batch that fits, 0 if none does.
        too_large: the smallest one that was found not to fit; None if all did.
        tried: (batch, bytes it needs or None, whether it fits) of every compilation.
    """

    batch: int
    too_large: int | None
    tried: tuple[tuple[int, float | None, bool], ...]


def largest_batch(
    needs: Callable[[int], tuple[float | None, bool]],
    unit: int,
    capacity: float,
    *,
    first: int | None = None,
    within: float = 0.0,
    compilations: int = 16,
) -> Largest:
    """The largest multiple of `unit` that fits.

    Doubles until a batch does not fit, then halves the interval. Memory grows with the batch nearly
    in a straight line, so the line through the two last batches says where to look; what it says is
    compiled, never believed. When `compilations` are spent, what is known is returned.

    Args:
        needs: batch -> (bytes, or None where they are not known; whether it fits).
        unit: samples of the smallest batch.
        capacity: bytes that there are.
        first: where to begin, a multiple of `unit`.
        within: stop where a batch fits and one that is larger by this share of it does not.
    """
    tried: list[tuple[int, float | None, bool]] = []
    fits, fails = 0, None
    near = lambda batch: max(unit, int(within * batch) // unit * unit)
    now = unit if first is None else first
    while len(tried) < compilations:
        found = needs(now)
        tried.append((now, *found))
        if found[1]:
            fits = max(fits, now)
        else:
            fails = now if fails is None else min(fails, now)
        if fails is not None and fails - fits <= near(fits):
            break
        guess = _line(tried, capacity)
        if fails is None:
            # The first two lie close together: what is far from them is approached in leaps.
            now = 2 * fits if guess is None else min(8 * fits, guess // unit * unit)
            now = max(now, fits + unit)
        elif guess is not None and fits < guess // unit * unit < fails:
            now = guess // unit * unit
        elif guess is not None and fits == guess // unit * unit:
            now = fits + near(fits)
        elif guess is not None and fails == guess // unit * unit:
            now = fails - near(fits)
        else:
            now = (fits + fails) // 2 // unit * unit
        now = max(now, unit)
    return Largest(fits, fails, tuple(tried))


def _line(tried: list, capacity: float) -> int | None:
    """Where the line through the two batches nearest to the capacity meets it."""
    known = sorted(
        {(b, n) for b, n, _ in tried if n is not None}, key=lambda p: abs(p[1] - capacity)
    )
    if len(known) < 2:
        return None
    (b0, n0), (b1, n1) = sorted(known[:2])
    return int(b1 + (capacity - n1) * (b1 - b0) / (n1 - n0)) if n1 > n0 else None
