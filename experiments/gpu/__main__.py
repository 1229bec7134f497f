"""Measure what only an accelerator can show; go on where the last call stopped.

    python -m experiments.gpu --minutes 30 --data-dir path/to/ptb
    python -m experiments.gpu --minutes 9 --part step solvers

Needs this repository, the data folder and a GPU; no network. docs/gpu.md is its page. `--quick`
runs all parts in miniature, on a CPU too.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from deqjax.training import OptionError, checked, command_line
from deqjax.training.folder import write_json

from . import report
from .clock import UNTIL, Clock
from .config import Config
from .ledger import Ledger

NAME = "experiments.gpu"
GRACE = 20.0  # seconds between asking a unit to stop and stopping it


def main(config: Config) -> None:
    checked(config)
    if config.unit is not None:
        _answer(config)
        return
    clock = Clock(config.minutes)
    device = _device(config, clock)
    ledger = Ledger(config.runs_folder, config.out_folder)
    print(f"{device}, {clock}", flush=True)
    left = []
    for part in config.part:
        module = report.MODULES[part]
        for unit in module.units(config, ledger.rows(device, "step")):
            label = f"{part}: {unit}"
            if ledger.done(device, part, unit) and not config.again:
                continue
            if clock.left < 2 * GRACE:
                left.append(label)
                continue
            print(f"{label} ({clock})", flush=True)
            row = _elsewhere(part, unit, config, clock)
            ledger.put(device, part, unit, row)
            report.write(ledger, config.out_folder)
            if row.get("failed"):
                print(f"   {row['failed']}", flush=True)
            else:
                print("   " + module.line(row), flush=True)
            if row.get("failed") or row.get("unfinished"):
                left.append(label)
    report.write(ledger, config.out_folder)
    print(f"written: {config.out_folder}/gpu.md")
    if left:
        print("left for another call:\n  " + "\n  ".join(left))
    else:
        print("nothing is left")


def _device(config: Config, clock: Clock) -> str:
    """The kind of the device, asked for in another process: this one must not hold its memory."""
    row = _ask("step", "device", config, clock)
    if "failed" in row:
        raise OptionError(f"JAX does not start: {row['failed']}")
    if row["platform"] == "cpu" and not config.quick:
        raise OptionError(
            "JAX sees no accelerator here, only a CPU: install jax[cuda13] (or cuda12) on a "
            "machine with a GPU, or try --quick"
        )
    return row["device"]


def _elsewhere(part: str, unit: str, config: Config, clock: Clock) -> dict[str, Any]:
    start = time.monotonic()
    row = _ask(part, unit, config, clock)
    said = " ".join(["python -m", NAME, *_without_unit(sys.argv[1:])])
    return row | dict(took=round(time.monotonic() - start, 1), command=said)


def _ask(part: str, unit: str, config: Config, clock: Clock) -> dict[str, Any]:
    """What a unit answers, from a process of its own, in the time that is left."""
    folder = config.runs_folder
    folder.mkdir(parents=True, exist_ok=True)
    environment = os.environ | dict(
        JAX_COMPILATION_CACHE_DIR=str((folder / "cache").resolve()),
    )
    environment[UNTIL] = str(time.time() + clock.left - GRACE)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        answer = Path(scratch) / "answer.json"
        command = [sys.executable, "-m", NAME, "--part", part, "--unit", unit]
        command += ["--answer", str(answer), *_flags(config)]
        process = subprocess.Popen(command, env=environment)
        try:
            process.wait(max(1.0, clock.left))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(GRACE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if answer.exists():
            return json.loads(answer.read_text("utf-8"))
    if clock.left <= 0:
        return dict(failed="the time was up")
    return dict(failed=f"the process ended with code {process.returncode} and no answer")


def _answer(config: Config) -> None:
    """Measure one unit here. Whatever goes wrong is an answer too."""
    assert config.unit is not None and config.answer is not None
    module = report.MODULES[config.part[0]]
    try:
        row = module.run(config.unit, config)
    except Exception as wrong:
        lines = [line for line in str(wrong).splitlines() if line.strip()]
        row = dict(failed=f"{type(wrong).__name__}: {lines[0][:300] if lines else ''}")
    write_json(config.answer, row)


def _flags(config: Config) -> list[str]:
    """The options that a unit sees."""
    flags = ["--schedule-minutes", str(config.schedule_minutes), "--runs", str(config.runs_folder)]
    flags += ["--out", str(config.out_folder)]
    flags += ["--data-dir", str(config.data_dir)] if config.data_dir else []
    return flags + ["--quick"] * config.quick


def _without_unit(args: list[str]) -> list[str]:
    """The command as it was given, without folders that mean nothing elsewhere."""
    kept, skip = [], False
    for arg in args:
        if skip:
            skip = False
        elif arg in ("--out", "--runs", "--data-dir"):
            skip = True
        else:
            kept.append(arg)
    return kept


if __name__ == "__main__":
    command_line(Config, main)
