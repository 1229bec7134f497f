"""Tokens a second with keys and values kept, and with the memory projected for every token."""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx

from deqjax.nn import Decoder, Sampling
from deqjax.training import sample
from experiments import language_model
from experiments.language_model.models import build

from .config import Config

RESULTS = Path(__file__).parents[1] / "results"
VOCABULARY, PROMPT, TOKENS = 96, 64, 32
SIZE: dict[str, Any] = dict(width=512, memory=512, heads=8)
CELLS = {
    "default": language_model.Config(**SIZE, inner=1024),
    "paper's": language_model.Config(
        **SIZE, inner=2048, injection="qkv", prelude=0, blocks=1, norm="post"
    ),
}


class Row(NamedTuple):
    """One way to draw, of one cell.

    Attributes:
        cell: a key of `CELLS`.
        way: how tokens are drawn.
        rows: texts side by side.
        rate: tokens a second in all, the median over rounds.
        gain: how many times the rate of `sample` that is.
        steps: solver steps a token.
        converged: share of the solves.
        same: whether the tokens are those of `sample`.
    """

    cell: str
    way: str
    rows: int
    rate: float
    gain: float
    steps: float | None
    converged: float | None
    same: bool


def main(config: Config) -> list[Row]:
    rows = []
    print(HEADER)
    for name, options in CELLS.items():
        for row in measure(name, options, config.rounds):
            print(line(row), flush=True)
            rows.append(row)
    if config.record:
        record(rows, config.rounds)
    return rows


def measure(name: str, options: language_model.Config, rounds: int) -> list[Row]:
    """Every way in every round, one after the other; the prompt is read outside of the time, but
    for `sample`, whose share of it is measured by a second call for one token."""
    model = build(options, VOCABULARY, nnx.Rngs(0))
    model.eval()
    prompt = np.random.default_rng(0).integers(0, VOCABULARY, PROMPT).astype(np.int32)
    greedy = Sampling(temperature=0)
    drawn: dict[str, Any] = {}
    taken: dict[str, list[float]] = {}
    today = "sample"

    def reference(count: int) -> Any:
        return sample(model, prompt, count, temperature=1e-6)

    ways: dict[str, Callable[[], Decoder]] = {
        "kept": lambda: Decoder(model, prompt, greedy),
        "kept, warm start": lambda: Decoder(model, prompt, greedy, warm_start=True),
        "kept, eight rows": lambda: Decoder(model, [prompt] * 8, greedy),
    }
    for round_ in range(rounds + 1):  # the first compiles
        one, all_ = seconds(lambda: reference(1)), seconds(lambda: reference(TOKENS + 1))
        if round_:
            taken.setdefault(today, []).append(all_ - one)
        for way, begin in ways.items():
            decoder = begin()
            passed = seconds(lambda: drawn.update({way: decoder.draw(TOKENS)}))  # noqa: B023
            if round_:
                taken.setdefault(way, []).append(passed)
    wanted = np.asarray(reference(TOKENS))
    base = TOKENS / statistics.median(taken[today])
    found = [Row(name, today, 1, base, 1.0, None, None, True)]
    for way in ways:
        d = drawn[way]
        rate = d.tokens.size / statistics.median(taken[way])
        same = bool((d.tokens == wanted).all())
        shares = float(d.steps.mean()), float(d.converged.mean())
        found.append(Row(name, way, len(d.tokens), rate, rate / base, *shares, same))
    return found


def seconds(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


HEADER = (
    "| cell | way | rows | tokens a second | times sample | steps a token | converged | same "
    "tokens |\n|---|---|---|---|---|---|---|---|"
)


def line(row: Row) -> str:
    steps = "" if row.steps is None else f"{row.steps:.1f}"
    converged = "" if row.converged is None else f"{row.converged:.0%}"
    return (
        f"| {row.cell} | {row.way} | {row.rows} | {row.rate:.1f} | {row.gain:.2f} | {steps} | "
        f"{converged} | {'yes' if row.same else 'no'} |"
    )


def record(rows: list[Row], rounds: int) -> None:
    where = f"{jax.default_backend()}, {os.cpu_count()} cores, JAX {jax.__version__}"
    text = (
        "# Decoding\n\n`python -m experiments.generate --benchmark --record`: a memory of 512 "
        f"positions at width 512, new weights, {TOKENS} tokens after a prompt of {PROMPT}, the "
        f"most likely one each time, float32; medians of {rounds} rounds in which every way takes "
        f"its turn; {where}. `sample` projects the memory for every token.\n\n"
    )
    text += "\n".join([HEADER, *map(line, rows)]) + "\n"
    if not all(row.same for row in rows):
        text += (
            "\nFrom another start a solve ends elsewhere within its tolerance; with new weights "
            "the two most likely tokens are so close that this decides between them.\n"
        )
    (RESULTS / "generate.md").write_text(text)
    content = {"where": where, "rounds": rounds, "rows": [row._asdict() for row in rows]}
    (RESULTS / "generate.json").write_text(json.dumps(content, indent=1) + "\n")
