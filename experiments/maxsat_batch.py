"""Process CPU time of one training batch of `implicit.maxsat` at the size of 9 × 9 Sudoku.

    python -m experiments.maxsat_batch

40 boards of which a part is given, 729 inputs, 300 auxiliary variables, 600 clauses, k = 32, in
float32: sweeps forward, and forward with the gradient to the clauses. Writes the table into
`experiments/results/maxsat_batch.md`.
"""

from __future__ import annotations

import datetime
import json
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import deqjax
from deqjax.implicit import maxsat
from deqjax.training import command_line

from .tables import table

LIMIT = 5.0

EXPLAINED = """\
A batch of boards as in learning 9 × 9 Sudoku: binary values, about 34 of the 81 cells given,
clauses drawn from N(0, 2/(n + aux + 1 + m)) as a new `nn.SATNet` has them, a squared error. 40
sweeps at most, and 100 steps of conjugate gradients. Process CPU seconds, median and quartiles over
rounds; other work on a machine lengthens them.
"""


@dataclass(frozen=True)
class Config:
    """Time of a training batch of the MAXSAT layer."""

    quick: bool = False
    """a tiny batch: shows that everything runs"""
    rounds: int = 7
    """of timing"""
    out: Path = Path("experiments/results/maxsat_batch.md")
    """the table; those of other versions of JAX stay in it"""


@dataclass(frozen=True)
class Size:
    side: int
    aux: int
    clauses: int
    k: int
    boards: int

    @property
    def n(self) -> int:
        return self.side**3


def main(config: Config) -> None:
    size = Size(4, 10, 30, 4, 3) if config.quick else Size(9, 300, 600, 32, 40)
    S, boards, given = drawn(size)
    key, probe = jax.random.key(0), deqjax.adjoint_probe(size.boards)

    def loss(S, probe):
        known = jnp.where(given, boards, 0.5)
        sol = maxsat(S, known, given, key=key, aux=size.aux, k=size.k, adjoint_probe=probe)
        return jnp.mean((sol.z - boards) ** 2), sol.stats.steps

    forward = jax.jit(lambda S: loss(S, None))
    backward = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))
    taken = {"forward": [], "forward and gradient": []}
    for round_ in range(1 + config.rounds):
        for name, f in zip(taken, (lambda: forward(S), lambda: backward(S, probe)), strict=True):
            start = time.process_time()
            jax.block_until_ready(f())
            if round_:  # the first one compiles
                taken[name].append(time.process_time() - start)
    (_, sweeps), (_, report) = backward(S, probe)
    steps = {"sweeps": sweeps, "steps of conjugate gradients": report.steps}
    counted = {name: [int(x.min()), int(x.max())] for name, x in steps.items()}
    print(_record(config, size, taken, counted))
    print(f"written: {config.out}")


def drawn(size: Size) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Clauses, boards of cells with one value each, and which of their inputs are given."""
    rng = np.random.default_rng(0)
    rows = size.n + size.aux + 1
    S = (2 / (rows + size.clauses)) ** 0.5 * rng.standard_normal((rows, size.clauses))
    cells = (size.boards, size.side**2)
    values = np.eye(size.side)[rng.integers(0, size.side, cells)]
    given = np.repeat(rng.random(cells) < 34 / 81, size.side, axis=1)
    boards = values.reshape(size.boards, size.n)
    return jnp.asarray(S, jnp.float32), jnp.asarray(boards, jnp.float32), jnp.asarray(given)


def _record(config: Config, size: Size, taken: dict, counted: dict) -> str:
    path, data = config.out, config.out.with_suffix(".json")
    kept = json.loads(data.read_text("utf-8")) if data.exists() else {}
    command = " ".join(["python -m experiments.maxsat_batch", *sys.argv[1:]])
    kept[f"jax {jax.__version__}"] = dict(
        said=f"`{command}`, {datetime.date.today().isoformat()}, {os.cpu_count()} cores: "
        f"{size.boards} boards, n = {size.n}, aux = {size.aux}, m = {size.clauses}, k = {size.k}.",
        seconds=taken,
        counted=counted,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    data.write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n", "utf-8")
    parts = ["# A training batch of the MAXSAT layer", "", EXPLAINED]
    for version, run in kept.items():
        parts += [f"## {version}", "", run["said"], "", (last := _table(run)), ""]
    path.write_text("\n".join(parts), "utf-8")
    return last


def _table(run: dict) -> str:
    rows = []
    for name, seconds in run["seconds"].items():
        low, middle, high = np.quantile(seconds, (0.25, 0.5, 0.75))
        whole = name == "forward and gradient"
        verdict = [f"<= {LIMIT:g}", "pass" if middle <= LIMIT else "FAIL"] if whole else ["", ""]
        rows.append([f"{name}, CPU s", f"{middle:.2f} [{low:.2f}, {high:.2f}]", *verdict])
    for name, (least, most) in run["counted"].items():
        rows.append([f"{name} of a board", f"{least} to {most}", "", ""])
    return table(["", "measured", "must be", "verdict"], rows)


if __name__ == "__main__":
    command_line(Config, main)
