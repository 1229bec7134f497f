"""What becomes of the memory that a program on a CPU frees between two steps."""

from __future__ import annotations

import ctypes
import os
import platform

# mallopt(3)
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
SETTINGS = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_MMAP_MAX_")


def keep_freed_memory() -> bool:
    """Let this process keep the memory that it frees, for its next allocation.

    XLA allocates the temporary memory of a program on a CPU anew in every call. A block of more
    than 32 MB comes from the system each time, and goes back there, if glibc is left to itself
    (mallopt(3)): every step of a training then waits for the system to clear all of its pages, one
    after the other. docs/training.md says what that costs.

    Larger blocks than 64 MB still come from the system wherever another thread than the first asks
    for them, as XLA's threads do: that is the size of a heap of theirs.

    It is meant for a process that does one thing, such as a training on a CPU; `command_line` calls
    it for every experiment. The process then never gives back what it once needed, until it ends.

    Returns:
        Whether it is so now. False where the C library is not glibc, and where the environment
        says itself what malloc is to do: MALLOC_TRIM_THRESHOLD_, MALLOC_MMAP_THRESHOLD_,
        MALLOC_MMAP_MAX_, or glibc.malloc in GLIBC_TUNABLES.

    Examples:
        >>> kept = keep_freed_memory()  # before the first array is made
    """
    chosen = any(name in os.environ for name in SETTINGS)
    if chosen or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", ""):
        return False
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    # No block of its own from the system, and no end of a heap returned to it. One heap for all
    # threads (M_ARENA_MAX) would serve larger blocks too, but threads then wait for each other.
    return bool(mallopt(M_MMAP_MAX, 0) and mallopt(M_TRIM_THRESHOLD, -1))
