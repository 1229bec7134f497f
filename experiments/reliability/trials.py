"""One disturbed run beside the one that nothing happened to."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import MutableMapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from deqjax.training import Checkpoints, fingerprint, new_state, read_metrics
from deqjax.training.schedules import Plateau, optimiser

from . import run

MOST = 600.0  # seconds that a run may take
_TIMES = ("tokens_per_second", "input_wait")


@dataclass(frozen=True)
class Outcome:
    """What came of the trials of one kind.

    Attributes:
        what: was done.
        trials: how often.
        kept: after how many of them nothing was lost.
        said: what was compared.
        notes: of those that lost something, and what else is worth knowing.
    """

    what: str
    trials: int
    kept: int
    said: str
    notes: tuple[str, ...] = ()


@dataclass
class Reference:
    """Runs that nothing happened to, made when they are first asked for.

    Args:
        folder: where everything of these trials lies.
        ledger: trials that need not be made again.
    """

    folder: Path
    ledger: MutableMapping[str, dict[str, Any]] = field(default_factory=dict)
    _made: dict[int, dict[str, Any]] = field(default_factory=dict)

    def of(self, count: int = 1) -> dict[str, Any]:
        """What an undisturbed job of `count` processes left behind, and `seconds` a step."""
        if count not in self._made:
            folder = self.folder / f"whole-{count}"
            began = time.monotonic()
            start(folder, count).finish()
            first = (folder / "run" / "config.json").stat().st_mtime
            last = (folder / "run" / "result.json").stat().st_mtime
            print(f"  undisturbed, {count} process(es): {time.monotonic() - began:.0f} s")
            self._made[count] = left(folder) | dict(seconds=(last - first) / run.STEPS)
        return self._made[count]

    def path(self, count: int = 1) -> Path:
        self.of(count)
        return self.folder / f"whole-{count}" / "run"


@dataclass(frozen=True)
class Job:
    """The processes of a run, and its folder."""

    folder: Path
    processes: list[subprocess.Popen]

    @property
    def running(self) -> bool:
        return all(process.poll() is None for process in self.processes)

    def kill(self, first: int = 0) -> None:
        """Kill one, and the others a moment later, as a launcher does."""
        order = [
            self.processes[first],
            *(p for p in self.processes if p is not self.processes[first]),
        ]
        for process in order:
            process.kill()
            process.wait()
            time.sleep(0.2 if len(order) > 1 else 0)

    def finish(self) -> None:
        """Wait for its end, which must be a good one."""
        try:
            codes = [process.wait(timeout=MOST) for process in self.processes]
        finally:
            for process in self.processes:
                process.kill()
        if any(codes):
            said = [p.read_text().strip()[-500:] for p in sorted(self.folder.glob("said-*.txt"))]
            raise RuntimeError(f"the run ended with {codes}: {said}")


def start(folder: Path, count: int = 1, *flags: str, devices: int = 1) -> Job:
    """The run in `folder`, as a job of so many processes."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    folder.mkdir(parents=True, exist_ok=True)
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "PYTHONPATH": os.pathsep.join(p or os.getcwd() for p in sys.path),
        # Every start compiles the same programs.
        "JAX_COMPILATION_CACHE_DIR": str(folder.parent / "cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    command = [sys.executable, "-m", run.__name__, str(folder), *flags]
    job = []
    for index in range(count):
        given = ["--index", str(index), "--count", str(count), "--port", str(port)]
        with open(folder / f"said-{index}.txt", "ab") as said:
            job.append(
                subprocess.Popen(
                    command + given, env=environment, stdout=said, stderr=subprocess.STDOUT
                )
            )
    return Job(folder, job)


def written(folder: Path) -> int:
    """Steps that the run has written down."""
    metrics = folder / "run" / "metrics.jsonl"
    return metrics.read_bytes().count(b"\n") if metrics.exists() else 0


def template() -> Any:
    """A state of the run, for a restore."""
    options = run.options(Path())
    _, state = new_state(run.task(), optimiser(options), options.seed, Plateau(options).init())
    return state


def state_of(folder: Path) -> dict[str, Any]:
    """The newest checkpoint that is sound: its step, and a fingerprint of every bit of it."""
    with Checkpoints(folder / "run" / "checkpoints") as checkpoints:
        found = checkpoints.restore(template())
    if found is None:
        return dict(step=None, state=None)
    return dict(step=found.step, state=bits(found.tree))


def bits(tree: Any) -> str:
    """A fingerprint of all arrays, random keys as well."""

    def plain(x: Any) -> Any:
        return jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x

    return fingerprint(jax.tree.map(plain, tree))


def left(folder: Path) -> dict[str, Any]:
    """Everything that a finished run has to show, but how long it took."""
    rows = read_metrics(folder / "run")
    for row in rows:
        for name in _TIMES:
            row.pop(name, None)
    done = (folder / "run" / "result.json").exists()
    return state_of(folder) | dict(rows=rows, done=done)


def same(found: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """In what two runs differ."""
    return [name for name in ("done", "step", "state", "rows") if found[name] != wanted[name]]
