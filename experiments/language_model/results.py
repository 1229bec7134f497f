"""Recorded runs: what a finished run was, what it scores and what it costs; and their table."""

from __future__ import annotations

import dataclasses
import json
import shutil
import statistics
import subprocess
from pathlib import Path
from typing import Any

import jax
from flax import nnx

from deqjax.training import LanguageModelling, make_step, new_state, read_metrics
from deqjax.training.schedules import Plateau, optimiser

from . import trade
from .config import Config
from .recipes import recipe

RECORDED = Path(__file__).parents[1] / "results" / "language_models"
ROW, TABLE, NOTES = "row.json", "README.md", "notes.md"
COLUMNS = (
    *("run", "parameters", "without words", "test perplexity", "tokens seen", "s a step"),
    *("memory", "solves", "wall time"),
)
EMBEDDING = ("embedding", "softmax", "bias")  # parameters of the words, and not of the network


def record(run: Path, config: Config, task: LanguageModelling, line: trade.Line) -> Path:
    """Keep config, curves and one row of figures of a finished run under experiments/results."""
    target = RECORDED / run.name
    target.mkdir(parents=True, exist_ok=True)
    options = json.loads((run / "config.json").read_text())
    options["data_dir"] = None  # the text is somewhere else for whoever reads this
    (target / "config.json").write_text(json.dumps(options, indent=2, sort_keys=True) + "\n")
    for file in ("curves.png", "trade-test.png", "convergence-over-training.png"):
        if (run / file).exists():
            shutil.copyfile(run / file, target / file)
    result = json.loads((run / "result.json").read_text())
    row = {
        "dataset": config.dataset,
        "model": config.model,
        "command": command(config),
        "commit": _commit(),
        "test_perplexity": line.perplexity,
        "test_tokens": line.tokens,
        "training_tokens": result["steps"] * config.train.batch_size * config.segment,
        **{k: result[k] for k in ("valid_perplexity", "parameters", "steps", "seconds", "jax")},
        "non_embedding": non_embedding(task),
        "memory_bytes": training_memory(config, task),
        **_solves(read_metrics(run), config),
    }
    (target / ROW).write_text(json.dumps(row, indent=1) + "\n")
    (RECORDED / TABLE).write_text(table())
    return target


def non_embedding(task: LanguageModelling) -> int:
    """Parameters besides those of the words."""
    params = nnx.state(nnx.eval_shape(lambda: task.build(nnx.Rngs(0))), nnx.Param)
    named = jax.tree_util.tree_leaves_with_path(params)
    return sum(x.size for path, x in named if path[0].key not in EMBEDDING)


def training_memory(config: Config, task: LanguageModelling) -> int:
    """Bytes that the compiled training step needs, on this machine: arguments (parameters,
    optimiser, memory of the text), results that do not overwrite them, and temporaries."""
    transform, plateau = optimiser(config.train), Plateau(config.train)
    graph, state = new_state(task, transform, 0, plateau.init())
    shapes = jax.eval_shape(lambda: state)
    step = jax.jit(make_step(task, graph, transform), donate_argnums=0)
    found: Any = step.lower(shapes, task.batch(0)).compile().memory_analysis()
    kept = found.argument_size_in_bytes + found.output_size_in_bytes - found.alias_size_in_bytes
    return kept + found.temp_size_in_bytes


def command(config: Config) -> str:
    """What trains `config`: the flags that its model and preset do not imply."""
    given = ["--model", config.model, "--preset", config.preset]
    words = ["python -m experiments.language_model", *given]
    words += _flags(config, recipe(given))
    return " ".join(words)


def _flags(config: Any, usual: Any) -> list[str]:
    flags = []
    for field in dataclasses.fields(config):
        value, implied = getattr(config, field.name), getattr(usual, field.name)
        name = field.name.replace("_", "-")
        if dataclasses.is_dataclass(value):
            flags += _flags(value, implied)
        elif field.name == "data_dir":
            flags += [f"--data-dir path/to/{config.dataset}"] if value else []
        elif field.name in ("model", "preset", "runs", "name", "restart"):
            continue
        elif isinstance(value, list | tuple):
            if tuple(value) != tuple(implied):
                flags += [f"--{name} " + " ".join(map(str, value))]
        elif isinstance(value, bool):
            flags += [f"--{name}" if value else f"--no-{name}"] if value != implied else []
        elif value != implied:
            flags += [f"--{name} {value}"]
    return flags


def _solves(rows: list[dict[str, Any]], config: Config) -> dict[str, float]:
    """Seconds of a step, median over the last tenth; means over all steps that solved."""
    last = rows[-max(1, len(rows) // 10) :]
    rates = [row["tokens_per_second"] for row in last if "tokens_per_second" in row]
    size = config.train.batch_size * config.segment
    found = {"seconds_per_step": size / statistics.median(rates)}
    solved = [row for row in rows if "adjoint_steps" in row]
    for name in ("forward_steps", "adjoint_steps", "converged", "adjoint_converged"):
        if solved:
            found[f"training_{name}"] = statistics.fmean(row[name] for row in solved)
    return found


def _commit() -> str | None:
    """The commit that is checked out where this file lives, with a + if files have changed."""
    try:
        options: dict[str, Any] = dict(cwd=RECORDED.parent, capture_output=True, text=True)
        at = subprocess.run(["git", "rev-parse", "--short", "HEAD"], check=True, **options)
        changed = subprocess.run(["git", "diff", "--quiet", "HEAD", "--", "../../src"], **options)
    except (OSError, subprocess.CalledProcessError):
        return None
    return at.stdout.strip() + "+" * (changed.returncode != 0)


def table() -> str:
    """The recorded runs as Markdown, read from their files."""
    found = [
        json.loads(path.read_text()) | {"run": path.parent.name}
        for path in sorted(RECORDED.glob(f"*/{ROW}"))
    ]
    text = """# Language models

Two CPU cores, float32. Every token of the test text is scored once, memory carried along the
rows. "Memory" is what the compiled training step needs, on a CPU: parameters, optimiser, text
memory and temporaries. "Solves" are means over all training steps that solved an equilibrium:
forward / adjoint steps, and the share of forward solves that converged.
"""
    if (RECORDED / NOTES).exists():
        text += "\n" + (RECORDED / NOTES).read_text()
    for dataset in sorted({row["dataset"] for row in found}):
        text += f"\n## {dataset}\n\n| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}\n"
        rows = [row for row in found if row["dataset"] == dataset]
        for r in sorted(rows, key=lambda r: r["test_perplexity"]):
            solves = "–"
            if "training_forward_steps" in r:
                solves = (
                    f"{r['training_forward_steps']:.1f} / {r['training_adjoint_steps']:.1f}, "
                    f"{r['training_converged']:.0%}"
                )
            name = r["run"].removeprefix(dataset + "-")
            text += (
                f"| {name} | {r['parameters']:,} | {r['non_embedding']:,} "
                f"| {r['test_perplexity']:.1f} | {r['training_tokens'] / 1e6:.1f}M "
                f"| {r['seconds_per_step']:.2f} | {r['memory_bytes'] / 1e6:.0f} MB | {solves} "
                f"| {r['seconds'] / 60:.0f} min |\n"
            )
        text += (
            "\n```sh\n" + "\n".join(f"{r['command']} --name {r['run']}" for r in rows) + "\n```\n"
        )
    text += """
Written by `python -m experiments.evaluate --run RUN --data-dir DIR --record`.
"""
    return text
