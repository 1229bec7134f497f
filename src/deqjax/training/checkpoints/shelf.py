"""The folders of one directory: which hold a checkpoint, which is the best, which may go."""

from __future__ import annotations

import contextlib
import math
import os
import re
import shutil
import uuid
from pathlib import Path
from typing import NamedTuple

from . import manifest as manifest_
from .errors import CheckpointError, Damaged

_NAME = re.compile(r"step_(\d+)(?:\.(\d+))?")
# Folders under this prefix are half written or half deleted. No reader takes them, and the next
# save sweeps them away.
_PARTIAL = ".partial-"


class Entry(NamedTuple):
    """A checkpoint folder. Ordered by age: a later attempt at one step is the newer."""

    step: int
    attempt: int
    path: Path


class Shelf:
    """The checkpoint folders under `directory`, which need not exist yet."""

    def __init__(self, directory: Path):
        self.directory = directory
        # Folders whose hashes failed. They must not count among the good ones.
        self.known_damaged: set[Path] = set()

    def entries(self) -> list[Entry]:
        """All of them, oldest first."""
        paths = self.directory.iterdir() if self.directory.is_dir() else ()
        matches = ((_NAME.fullmatch(path.name), path) for path in paths)
        return sorted(Entry(int(m[1]), int(m[2] or 0), path) for m, path in matches if m)

    def good(self) -> dict[Entry, float | None]:
        """The last good-looking attempt at every step, oldest first, and their metrics."""
        good: dict[int, tuple[Entry, float | None]] = {}
        for entry in self.entries():
            if entry.path not in self.known_damaged:
                with contextlib.suppress(Damaged):
                    manifest = manifest_.read(entry.path, sizes=True)
                    good[entry.step] = entry, manifest.get("metric")
        return dict(good.values())

    def candidates(self, which: str) -> list[str]:
        """The folders to try to restore, in order.

        Raises:
            CheckpointError: the best is asked for, and there are checkpoints, none with a metric.
        """
        found = self.entries()[::-1]
        if which == "best":
            metrics: dict[Entry, float | None] = {}
            for entry in found:
                try:
                    metrics[entry] = manifest_.read(entry.path).get("metric")
                except Damaged:
                    metrics[entry] = -math.inf  # it may have been the best: first, to be reported
            found = ranked(metrics)
        if not found and self.entries():
            raise CheckpointError(
                f"no checkpoint in {self.directory} was saved with a metric, so none is the best; "
                "which='latest' restores the newest"
            )
        return [entry.path.name for entry in found]

    def reserve(self, step: int) -> tuple[str, str]:
        """The folder of a new checkpoint, and that in which it is written until it is complete.

        Raises:
            ValueError: the step is negative, or older than a good checkpoint.
        """
        if step < 0:
            raise ValueError(f"cannot save step {step}: steps count from 0")
        latest = max((entry.step for entry in self.good()), default=step)
        if step < latest:
            raise ValueError(
                f"cannot save step {step}: {self.directory} already holds step {latest}; "
                "restore that one first, or use another directory"
            )
        attempts = [entry.attempt for entry in self.entries() if entry.step == step]
        name = f"step_{step:09d}" + (f".{max(attempts) + 1}" if attempts else "")
        # A name of its own each time: threads of a save that failed may still write into theirs.
        return name, f"{_PARTIAL}{name}-{uuid.uuid4().hex[:8]}"

    def publish(self, partial: Path, final: Path) -> None:
        """The moment at which a checkpoint comes to exist."""
        os.rename(partial, final)
        self.known_damaged.discard(final)  # a pruned folder's name may come back
        manifest_.sync(self.directory)

    def prune(self, keep: int, keep_best: int) -> None:
        """Delete all but the newest and the best good ones, and what is damaged and old."""
        good = self.good()
        newest = {entry.step: entry for entry in good}
        latest = list(good)[-keep:]
        kept = {*latest, *ranked(good)[:keep_best]}
        for entry in self.entries():
            superseded = entry.step in newest and entry < newest[entry.step]
            if superseded or (latest and entry < latest[0] and entry not in kept):
                # Out of sight first: a kill amid the deletion must not leave what looks like a
                # damaged checkpoint. Failing is harmless, the next save tries again.
                with contextlib.suppress(OSError):
                    os.rename(entry.path, entry.path.with_name(_PARTIAL + entry.path.name))
        self.sweep()

    def sweep(self) -> None:
        """Delete what is half written or half deleted."""
        for path in self.directory.glob(_PARTIAL + "*"):
            shutil.rmtree(path, ignore_errors=True)


def ranked(metrics: dict[Entry, float | None]) -> list[Entry]:
    """Those with a metric, the lowest first, the newest first among equals."""
    known = {entry: metric for entry, metric in metrics.items() if metric is not None}
    return sorted(sorted(known, reverse=True), key=known.__getitem__)
