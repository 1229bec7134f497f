"""Every file of a checkpoint damaged in turn."""

from __future__ import annotations

import re
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np

from deqjax.training import Checkpoints

from .trials import Outcome, Reference, bits, template

SAID = "the damage is told, and the state is that of the checkpoint before, bit for bit"


def outcomes(reference: Reference, trials: int, seed: int) -> list[Outcome]:
    draw = np.random.default_rng(seed)
    run = reference.path()
    newest = max((run / "checkpoints").glob("[!.]*"), key=lambda p: int(re.sub(r"\D", "", p.name)))
    shutil.copytree(run, only := reference.folder / "before")
    shutil.rmtree(only / "checkpoints" / newest.name)
    wanted, told = _restored(only)
    assert wanted is not None and not told, "the checkpoint before must be sound"
    files = sorted(p.relative_to(run) for p in newest.rglob("*") if p.is_file())
    kinds: dict[str, Callable[[Path], None]] = {
        "a bit turned over": lambda path: _flip(path, draw),
        "cut short": _truncate,
        "absent": lambda path: path.unlink(),
    }
    found = []
    for kind, spoil in kinds.items():
        kept, notes = 0, []
        touched = [f for f in files if kind == "absent" or (run / f).stat().st_size]
        for file in touched:
            copy = reference.folder / "damaged"
            shutil.copytree(run, copy)
            spoil(copy / file)
            state, told = _restored(copy)
            if state == wanted and told:
                kept += 1
            else:
                which = "another state" if state != wanted else "no warning"
                notes.append(f"{file.relative_to('checkpoints')}: {which}")
            shutil.rmtree(copy)
        found.append(Outcome(f"a checkpoint's file {kind}", len(touched), kept, SAID, tuple(notes)))
    return found


def _restored(run: Path) -> tuple[str | None, bool]:
    """The bits of the state that a restart would begin with, and whether a damage was told."""
    with warnings.catch_warnings(record=True) as told, Checkpoints(run / "checkpoints") as kept:
        warnings.simplefilter("always")
        found = kept.restore(template())
    said = any("damaged" in str(w.message) for w in told)
    return None if found is None else bits(found.tree), said


def _flip(path: Path, draw: np.random.Generator) -> None:
    content = bytearray(path.read_bytes())
    content[draw.integers(len(content))] ^= 1 << draw.integers(8)
    path.write_bytes(content)


def _truncate(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
