"""The Penn Treebank at the paper's size, trained as far as the time goes.

Each model has a schedule of `--schedule-minutes`, whose number of steps follows from the rate that
a few steps show, and a run of its own under the folder of runs, which later calls go on with.
"""

from __future__ import annotations

import math
import os
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx

from deqjax.training import fit, read_config, read_metrics
from deqjax.training.loop import Interrupted, count

from ..language_model import Config as ModelConfig
from ..language_model import score, trade
from ..language_model.paper import PAPER, short
from ..language_model.task import VOCABULARY, prepare
from ..tables import table
from .clock import UNTIL
from .config import Config
from .ledger import Rows

TITLE = "Penn Treebank, 24M parameters"
# unit: its name in the tables, and the published test perplexity.
MODELS: dict[str, tuple[str, float | None]] = {
    "trellisnet": ("DEQ-TrellisNet", 57.1),
    "transformer": ("DEQ-Transformer", None),
    "transformer-xl": ("Transformer-XL, 12 layers", 54.5),
}
TRIAL = 40  # steps that show the rate
SCORING = 60.0  # seconds kept for the test text
SAID = """\
Test perplexity, every word scored and memory carried, where the schedule stands now. Published:
57.1 for DEQ-TrellisNet (Bai, Kolter and Koltun 2019, table 2) and 54.5 for Transformer-XL (Dai et
al. 2019), each on a long schedule of its own; the schedules here take minutes: AdamW, a cosine, and
the regularisation of the presets `ptb-paper-*` (experiments/language_model/paper.py)."""


def units(config: Config, rows: Rows) -> list[str]:
    return list(MODELS) if config.data_dir is not None or config.quick else []


def run(unit: str, config: Config) -> dict[str, Any]:
    """Train until the schedule or the time ends, then score."""
    given = _config(unit, config)
    if given is None:
        return dict(failed="the time was up before the first steps were timed")
    directory = given.train.runs / unit
    _train(unit, given)
    loaded = score.load(directory, given.data_dir)
    found = trade.score(loaded.config, loaded.corpus, loaded.model, loaded.corpus.test, "trained")
    rows = read_metrics(directory)
    last = rows[-max(1, len(rows) // 10) :]
    rates = [r["tokens_per_second"] for r in rows if "tokens_per_second" in r]
    step, size = rows[-1]["step"], given.train.batch_size * given.segment
    solves = ("forward_steps", "adjoint_steps", "converged", "adjoint_converged")
    told = {name: [row[name] for row in last if row.get(name) is not None] for name in solves}
    valid = [row for row in rows if "valid_perplexity" in row]
    return dict(
        step=step,
        steps=given.train.steps,
        unfinished=step < given.train.steps,
        words=step * size,
        epochs=step * size / len(loaded.corpus.train),
        perplexity=found.perplexity,
        scored=found.tokens,
        score_rate=found.rate,
        rate=float(np.median(rates)),
        parameters=count(nnx.state(loaded.model, nnx.Param)),
        curve=[[row["step"] * size, row["valid_perplexity"]] for row in valid],
        **{name: float(np.mean(values)) for name, values in told.items() if values},
    )


def _config(unit: str, config: Config) -> ModelConfig | None:
    """The options of the unit's run: those that its folder holds, or new ones by the rate here."""
    runs = config.runs_folder / "penn"
    preset = PAPER[f"ptb-paper-{unit}"]
    if config.quick:
        preset = preset | QUICK
    data = None if config.quick else config.data_dir
    folder = runs / unit
    if (folder / "config.json").exists():
        found = read_config(ModelConfig, folder)
        return replace(found, data_dir=data, train=replace(found.train, runs=runs))
    with_steps = lambda steps: ModelConfig(**short(preset, steps), data_dir=data)
    if config.quick:
        given = with_steps(6)
        train = replace(given.train, batch_size=4, runs=runs, log_every=1)
        return replace(given, train=train, solver=replace(given.solver, max_steps=4))
    trial = with_steps(TRIAL)
    train = replace(trial.train, stack_steps=0, log_every=5, eval_every=TRIAL + 1, runs=runs)
    trial = replace(trial, train=replace(train, restart=True))
    if not _train(f"{unit}-trial", trial):
        return None
    rates = [row["tokens_per_second"] for row in read_metrics(runs / f"{unit}-trial")]
    size = trial.train.batch_size * trial.segment
    steps = int(60 * config.schedule_minutes * np.median(rates[len(rates) // 2 :]) / size)
    given = with_steps(max(120, steps // 12 * 12))
    return replace(given, train=replace(given.train, runs=runs))


# What `--quick` makes of a preset: text that Python ships, and a few numbers.
QUICK: dict[str, Any] = dict(
    dataset="python-docs", width=20, heads=2, hidden=24, inner=24, layers=3, segment=8, eval_rows=64
)


def _train(name: str, config: ModelConfig) -> bool:
    """Train until the end of the schedule, which is True, or of the time: then a checkpoint is
    written, as it is at Ctrl-C."""
    corpus, task = prepare(config)
    seconds = float(os.environ.get(UNTIL, math.inf)) - time.time() - SCORING
    if math.isinf(seconds):
        seconds = threading.TIMEOUT_MAX
    timer = threading.Timer(max(0.0, seconds), lambda: os.kill(os.getpid(), signal.SIGTERM))
    timer.daemon = True
    timer.start()
    try:
        fit(task, config.train, config, name=name, files={VOCABULARY: corpus.vocabulary.save})
    except Interrupted:
        return False
    finally:
        timer.cancel()
    return True


def line(row: dict[str, Any]) -> str:
    where = f"step {row['step']:,} of {row['steps']:,}"
    return f"{where}, {row['perplexity']:.1f} on the test text, {row['rate']:,.0f} tokens a second"


def report(rows: Rows) -> list[str]:
    head = ["model", "parameters", "test perplexity", "published", "schedule", "epochs"]
    head += ["tokens/s", "scored tokens/s", "forward + adjoint steps", "converged"]
    lines = []
    for unit, row in rows.items():
        name, published = MODELS[unit]
        cells = [name, f"{row['parameters'] / 1e6:.1f}M", f"{row['perplexity']:.1f}"]
        cells += ["–" if published is None else str(published)]
        cells += [f"{row['step']:,} of {row['steps']:,} steps", f"{row['epochs']:.1f}"]
        cells += [f"{row['rate']:,.0f}", f"{row['score_rate']:,.0f}"]
        solved = "forward_steps" in row
        cells += [f"{row['forward_steps']:.1f} + {row['adjoint_steps']:.1f}" if solved else "–"]
        cells += [f"{row['converged']:.0%}" if solved else "–"]
        lines.append(cells)
    return [SAID, table(head, lines)]


def picture(rows: Rows, folder: Path, device: str) -> None:
    """Held-out perplexity as training goes on: `penn.png`."""
    curves = {unit: row["curve"] for unit, row in rows.items() if row["curve"]}
    if not curves:
        return
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(6.5, 4.2))
    for i, (unit, curve) in enumerate(curves.items()):
        name, published = MODELS[unit]
        words, values = np.array(curve).T
        axis.plot(words / 1e6, values, "o-", color=f"C{i}", markersize=3, label=name)
        if published is not None:
            axis.axhline(published, color=f"C{i}", linewidth=1, linestyle=":")
            said = f"published (test) {published}"
            at = (1.0, published)
            how: Any = dict(xycoords=("axes fraction", "data"), ha="right", va="bottom")
            axis.annotate(said, at, color=f"C{i}", fontsize=8, **how)
    axis.set(xlabel="million words trained on", ylabel="validation perplexity", yscale="log")
    axis.yaxis.set_major_formatter("{x:g}")
    axis.yaxis.set_minor_formatter("{x:g}")
    axis.locator_params(axis="x", nbins=5)
    axis.set_title(f"Penn Treebank, 24M parameters, {device}", fontsize=10)
    axis.legend(fontsize=8, loc="upper right")
    figure.tight_layout()
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / "penn.png", dpi=120)
    plt.close(figure)
