"""A disk that is full at every point of a save.

The disk is real: a file system in memory, mounted where nobody else sees it, in which a ballast
leaves less and less room.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from deqjax.training import CheckpointError, Checkpoints

from .trials import Outcome, Reference, bits

SAID = "the save fails in words, the checkpoint before is bit for bit there, and with room again a \
save succeeds"
PAGE = 4096
SIZE = 4 * 2**20


def outcomes(reference: Reference, trials: int, seed: int) -> list[Outcome]:
    what = "disk full during a save"
    folder = reference.folder / "disk"
    folder.mkdir()
    inside = f"mount -t tmpfs -o size={SIZE} tmpfs {folder} && exec {sys.executable} -m {__name__} \
{folder}"
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", inside]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(p or os.getcwd() for p in sys.path)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        last = (done.stderr or done.stdout).strip().splitlines()[-1:]
        return [Outcome(what, 0, 0, SAID, ("not tried here: " + " ".join(last),))]
    found = json.loads(done.stdout.splitlines()[-1])
    return [Outcome(what, found["trials"], found["kept"], SAID, tuple(found["notes"]))]


def main(folder: Path) -> None:
    """Save with ever more room until it is enough, and print what came of it as JSON."""
    drawn = np.random.default_rng(0).random((64, 256), np.float32)  # nothing to compress
    at = lambda step: {"w": jnp.asarray(drawn + step), "n": np.arange(500) + step}
    kept, failed, notes = 0, 0, []
    for pages in range(10_000):
        _room(folder, None)
        directory = folder / "checkpoints"
        with Checkpoints(directory, keep=1, asynchronous=bool(pages % 2)) as checkpoints:
            if not pages:
                checkpoints.save(1, at(1), wait=True)
            step = checkpoints.latest or 0
            _room(folder, pages * PAGE)
            try:
                checkpoints.save(step + 1, at(step + 1))
                checkpoints.wait()
                full = False
            except CheckpointError:
                full = True
            lost = _state(checkpoints, at) != (step + (not full), bits(at(step + (not full))))
            _room(folder, None)
            checkpoints.save(step + 2, at(step + 2), wait=True)
            lost |= _state(checkpoints, at) != (step + 2, bits(at(step + 2)))
        failed, kept = failed + full, kept + (full and not lost)
        if lost:
            notes.append(f"{pages} pages of room")
        if not full:
            break
    notes.append(f"with room for 0 to {failed - 1} pages of {PAGE} bytes; {failed} were enough")
    print(json.dumps(dict(trials=failed, kept=kept, notes=notes)))


def _state(checkpoints: Checkpoints, at) -> tuple[int, str] | None:
    found = checkpoints.restore(jax.tree.map(np.zeros_like, at(0)))
    return None if found is None else (found.step, bits(found.tree))


def _room(folder: Path, room: int | None) -> None:
    """Leave so many bytes on the disk, or all that there is."""
    ballast = folder / "ballast"
    ballast.unlink(missing_ok=True)
    if room is None:
        return
    disk = os.statvfs(folder)
    with ballast.open("wb") as file:
        file.write(bytes(max(0, disk.f_bavail * disk.f_frsize - room)))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
