"""SATNet learns exclusive or from the parity of whole strings alone.

    python -m experiments.parity --length 20

One layer is applied along a string of bits: it is given the result so far and the next bit, and
completes the third variable, which is rounded and handed on. Only the last result is compared with
the string's parity, and only through the last application does a gradient flow, as in Wang, Donti,
Wilder and Kolter 2019 (arXiv 1905.12149). Writes `experiments/results/parity.md`; rows of other
settings stay in it.
"""

from __future__ import annotations

import datetime
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from deqjax.nn import SATNet
from deqjax.training import command_line

from .tables import table

# What a link can be given: the result so far and the next bit.
BOARDS = np.array([[0, 0], [0, 1], [1, 0], [1, 1]], np.float32)
GIVEN = np.array([True, True, False])

EXPLAINED = """\
Share of 1,000 held-out strings whose parity is wrong, after each epoch over 9,000 strings; training
ends at the first epoch without an error. "Zero" counts the seeds that got there. The layer has
three variables (the result so far, the next bit, the new result), and a damping above 1e-6 makes
its gradient an approximation. With one key for all samples the layer is a function of what it is
given, and a link is given one of four boards: these are solved once an update, for all strings and
links. Seconds are process CPU time of a seed, compilation included.
"""


@dataclass(frozen=True)
class Config:
    """Parity of bit strings by a chain of one learned MAXSAT layer."""

    length: int = 20
    """bits in a string"""
    seeds: int = 10
    """runs, each with data, clauses and directions of its own"""
    epochs: int = 5
    """at most so many passes over the training strings"""
    clauses: int = 4
    """m"""
    aux: int = 4
    """auxiliary variables"""
    optimizer: str = "adam"
    """sgd or adam"""
    rate: float = 0.1
    """learning rate"""
    batch: int = 100
    """strings an update"""
    damping: float = 1e-3
    """of the layer's gradient"""
    first: int = 0
    """bits of the strings of earlier epochs, until their test error is zero; 0 means no such"""
    fresh: bool = True
    """other directions for every update; else the seed's own for all"""
    strings: int = 10_000
    """data set, of which a tenth is for the test"""
    out: Path = Path("experiments/results/parity.md")
    """the table; rows of other settings stay in it"""


def main(config: Config) -> None:
    rows = []
    for seed in range(config.seeds):
        started = time.process_time()
        errors = train(config, seed)
        rows.append(dict(errors=errors, seconds=round(time.process_time() - started, 1)))
        shown = " ".join(f"{100 * e:.1f}%" for e in errors)
        print(f"seed {seed}: test errors {shown}; {rows[-1]['seconds']} s", flush=True)
    _record(config, rows)


def train(config: Config, seed: int) -> list[float]:
    """The test error after each epoch on strings of `length`."""
    layer = SATNet(
        *(3,),
        m=config.clauses,
        aux=config.aux,
        damping=config.damping,
        seed=seed,
        on_failure="ignore",
        rngs=nnx.Rngs(seed),
    )
    make = {"sgd": optax.sgd, "adam": optax.adam}[config.optimizer]
    optimizer = nnx.Optimizer(layer, make(config.rate), wrt=nnx.Param)
    key = jax.random.key(seed)
    stages = [(config.first, config.epochs)] if config.first else []
    errors: list[float] = []
    for length, epochs in [*stages, (config.length, config.epochs)]:
        strings = np.random.default_rng((seed, length)).integers(0, 2, (config.strings, length))
        split = config.strings * 9 // 10
        errors = []
        for epoch in range(epochs):
            order = np.random.default_rng((seed, length, epoch)).permutation(split)
            for i in range(0, split - config.batch + 1, config.batch):
                if config.fresh:
                    key, use = jax.random.split(key)
                else:
                    use = key
                update(layer, optimizer, jnp.asarray(strings[order[i : i + config.batch]]), use)
            errors.append(float(error(layer, jnp.asarray(strings[split:]), key)))
            if errors[-1] == 0:
                break
    return errors


def results(layer: SATNet, key: jax.Array) -> jax.Array:
    """What a link makes of each of the four boards, (4,)."""
    boards = jnp.concatenate([BOARDS, jnp.full((4, 1), 0.5)], axis=1)
    return layer(boards, jnp.broadcast_to(GIVEN, boards.shape), key=key).z[:, 2]


def last_board(made: jax.Array, strings: jax.Array) -> jax.Array:
    """Which board the last link is given, (batch,), for rounded results on the way."""
    rounded = (made > 0.5).astype(jnp.int32)

    def link(so_far, bit):
        return rounded[2 * so_far + bit], None

    so_far, _ = jax.lax.scan(link, strings[:, 0], strings.T[1:-1])
    return 2 * so_far + strings[:, -1]


@nnx.jit
def update(layer: SATNet, optimizer: nnx.Optimizer, strings: jax.Array, key: jax.Array) -> None:
    strings = jnp.asarray(strings, jnp.int32)
    parity = strings.sum(axis=1) % 2

    def loss(layer):
        made = results(layer, key)
        chance = jnp.clip(made[last_board(jax.lax.stop_gradient(made), strings)], 1e-6, 1 - 1e-6)
        return -jnp.mean(jnp.where(parity == 1, jnp.log(chance), jnp.log1p(-chance)))

    optimizer.update(layer, nnx.grad(loss)(layer))


@nnx.jit
def error(layer: SATNet, strings: jax.Array, key: jax.Array) -> jax.Array:
    strings = jnp.asarray(strings, jnp.int32)
    made = results(layer, key)
    return jnp.mean((made[last_board(made, strings)] > 0.5) != (strings.sum(axis=1) % 2 == 1))


def _record(config: Config, rows: list[dict]) -> None:
    data = config.out.with_suffix(".json")
    kept = json.loads(data.read_text("utf-8")) if data.exists() else {}
    command = " ".join(["python -m experiments.parity", *sys.argv[1:]])
    said = f"{datetime.date.today().isoformat()}, jax {jax.__version__}"
    kept[command] = dict(said=said, seeds=rows)
    config.out.parent.mkdir(parents=True, exist_ok=True)
    data.write_text(json.dumps(kept, indent=1) + "\n", "utf-8")
    parts = ["# Parity", "", EXPLAINED]
    for name, run in kept.items():
        zero = sum(row["errors"][-1] == 0 for row in run["seeds"])
        parts += [f"`{name}` ({run['said']}): zero {zero} of {len(run['seeds'])}.", ""]
        shown = [
            [str(i), " ".join(f"{100 * e:.1f}" for e in row["errors"]), f"{row['seconds']:.1f}"]
            for i, row in enumerate(run["seeds"])
        ]
        parts += [table(["seed", "test error after each epoch, %", "CPU s"], shown), ""]
    config.out.write_text("\n".join(parts), "utf-8")
    print(f"written: {config.out}")


if __name__ == "__main__":
    command_line(Config, main)
