"""The time that a call has."""

from __future__ import annotations

import time

# The environment of a unit says when its time is up, in seconds since 1970.
UNTIL = "DEQJAX_GPU_UNTIL"


class Clock:
    """Counts down from so many minutes."""

    def __init__(self, minutes: float):
        self.end = time.monotonic() + 60 * minutes

    @property
    def left(self) -> float:
        """Seconds."""
        return self.end - time.monotonic()

    def __str__(self) -> str:
        return f"{max(0.0, self.left) / 60:.1f} min left"
