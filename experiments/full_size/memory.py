"""How many parameters the full-size models have, and what training them takes, as tables."""

from __future__ import annotations

import datetime
import json
import math
import platform
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from deqjax.nn import DEQ, TransformerInput
from deqjax.solvers import Anderson, Broyden, Solver
from deqjax.training import OptionError
from deqjax.training.plan.memory import from_compiler, shortage
from deqjax.training.plan.topology import devices_of

from ..tables import table
from .configs import CONFIGS, FullSize, named

Target = Literal["cpu", "v5e", "v5p"]
SolverName = Literal["anderson", "anderson-bfloat16", "broyden"]
TOPOLOGIES = {"cpu": "cpu:1", "v5e": "v5e:2x2", "v5p": "v5p:2x2x1"}
SOLVERS: dict[SolverName, Solver] = {
    "anderson": Anderson(),
    "anderson-bfloat16": Anderson(history_dtype="bfloat16"),
    "broyden": Broyden(),
}
# Positions that an equilibrium computes f for at a time: most of a wide cell's memory is that of
# its inside. For the small one, the solver's history is most of what is left: 5 take 2 MB more.
CHUNKS = {
    "wt103-transformer-small": 2,
    "wt103-transformer-medium": 10,
    "wt103-transformer-medium-adaptive": 10,
}
BATCH, SEGMENT, MAX_STEPS = 15, 150, 30
FLOAT = 4  # bytes

COUNTED = """\
Training memory at {segment} positions and a batch of {batch}, without embedding and softmax. All
arrays are float32 (a TPU multiplies them in its default precision). The forward and backward pass
of one training step through the body is compiled and not run: a loss of the output, the sum of its
squares, and its gradient with respect to all parameters of the body and to the embedded input.
Dropout is on, and there is a memory of the segment before. The compiler's own plan of its buffers
(`memory_analysis`) says what that takes:

- **activations**: all that lives between the arguments and the results: activations, a solver's
  history, normalised copies of the weights, work space. On a CPU it is the heap that is allocated
  for them, on a TPU the most that is alive at once (docs/design.md, "Several devices").
- **training**: these, the parameters, their gradients, and the two moments of Adam. The inputs
  (embedded text, memory of the segment before) are in neither.

An equilibrium is solved in at most {steps} steps, forward and backward, by Anderson acceleration
with a memory of 5, the library's default, the same with that memory in bfloat16, or Broyden's
method with a memory of 10; its gradient is the implicit one. The explicit networks keep all that
back-propagation needs, but for the checkpointed one.

The equilibrium transformers compute f for a few positions at a time, and each chunk again in the
gradient (`TransformerCell(chunk_size=)`); the tables say how many, and "all" where there are no
chunks. The explicit networks of the paper have none. Rows "in chunks" give them the same ones,
which recompute each layer in the gradient as well: a layer then keeps little but its input, as
under gradient checkpoints. Rows "all positions at once" are the equilibrium without.

The paper's figures are measured, on a GPU with PyTorch, and it does not say what they count. 1 GB
is 10⁹ bytes."""


@dataclass(frozen=True)
class Config:
    """Parameters and training memory of the paper's full-size models."""

    only: tuple[str, ...] = ()
    """models to compile, and their explicit counterparts; all if not given"""
    target: Target = "cpu"
    """compile for this machine's CPU, or through libtpu for a TPU chip (v5p has more memory)"""
    solvers: tuple[SolverName, ...] = ("anderson", "anderson-bfloat16", "broyden")
    """solvers of the equilibrium; the second one keeps its history in bfloat16"""
    out: Path = Path("experiments/results/full_size.md")
    """the tables"""


@dataclass(frozen=True)
class Measured:
    """What the compiler plans for one model, in bytes."""

    model: str
    parameters: int
    temporary: int
    arguments: int
    outputs: int
    seconds: float
    chunk_size: int | None = None

    @property
    def training(self) -> int:
        """With parameters, their gradients, and two moments."""
        return 4 * self.parameters + self.temporary


def main(config: Config) -> None:
    chosen = _chosen(config.only)
    counts = {name: model.count() for name, model in CONFIGS.items()}
    print(count_table(counts), flush=True)
    kept = _read(config.out)
    mine = kept.setdefault("targets", {}).setdefault(config.target, {})
    kept["counts"] = counts
    for label, model, solver in (row for name in chosen for row in _rows(name, config.solvers)):
        print(f"{label}: compiling ...", end=" ", flush=True)
        try:
            measured = measure(model, solver, config.target)
        except jax.errors.JaxRuntimeError as wrong:
            print(_shortage(wrong), flush=True)
            continue
        print(f"{measured.seconds:.0f} s, {_gb(measured.temporary)} GB", flush=True)
        mine[label] = asdict(measured) | _circumstances()
        _write(config.out, kept)
    print("\n" + memory_tables(kept["targets"]))
    print(f"\nwritten: {config.out}")


def measure(
    model: FullSize,
    solver: Solver | None,
    target: Target = "cpu",
    batch: int = BATCH,
    segment: int = SEGMENT,
) -> Measured:
    """Compile the forward and backward pass of the body for one chip."""
    chip, (device, *_) = devices_of(TOPOLOGIES[target])
    loss, given = training_loss(model, solver, batch, segment)
    here = jax.sharding.SingleDeviceSharding(device)
    shapes = jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=here), given)
    start = time.perf_counter()
    lowered = jax.jit(jax.value_and_grad(loss, argnums=(0, 1))).lower(*shapes)
    found = from_compiler(lowered.compile(), chip)
    if not found:
        raise OptionError("this back end does not say how much memory a program takes")
    return Measured(
        model=model.name,
        parameters=sum(FLOAT * math.prod(p.shape) for p in jax.tree.leaves(given[0])),
        temporary=found["temporary"],
        arguments=found["arguments"],
        outputs=found["results"],
        seconds=time.perf_counter() - start,
        chunk_size=model.chunk_size,
    )


def training_loss(
    model: FullSize, solver: Solver | None, batch: int, segment: int
) -> tuple[Callable, tuple]:
    """loss(params, x, memory, rest), and the shapes of its arguments."""
    solver = Anderson() if solver is None else solver  # not used
    body: Any = nnx.eval_shape(
        lambda: DEQ(
            model.cell(nnx.Rngs(0)),
            solver=solver,
            max_steps=MAX_STEPS,
            checkpoint=model.checkpoint,
        )
    )
    graph, params, rest = nnx.split(body, nnx.Param, ...)

    def loss(params, x, memory, rest):
        body: Any = nnx.merge(graph, params, rest, copy=True)
        z = body(TransformerInput(x, memory), depth=model.depth).z
        return jnp.sum(body.cell.output(z) ** 2)

    x = jax.ShapeDtypeStruct((batch, segment, model.n_in), jnp.float32)
    memory = jax.eval_shape(lambda: body.cell.empty_memory(batch))
    return loss, (params, x, memory, rest)


def _shortage(wrong: Exception) -> str:
    """What a compiler that gives up says, in short."""
    found = shortage(wrong)
    if not found:
        return str(wrong)[:300]
    needed, capacity = (found[k] / 2**30 for k in ("needed", "capacity"))
    return f"it needs {needed:.2f} GiB, the chip has {capacity:.2f}: take a larger --target"


def _rows(
    name: str, solvers: Iterable[SolverName]
) -> Iterator[tuple[str, FullSize, Solver | None]]:
    """What to measure of a model: (label, model, solver).

    Where a model goes in chunks of positions, it is measured without them too, with the first
    solver, and its explicit networks, which go without them, are measured with them too.
    """
    model = CONFIGS[name]
    if model.solves:
        chunked = replace(model, chunk_size=CHUNKS.get(name))
        yield from ((f"{name} ({solver})", chunked, SOLVERS[solver]) for solver in solvers)
        if name in CHUNKS:
            first = next(iter(solvers))
            yield f"{name} ({first}, all positions at once)", model, SOLVERS[first]
        return
    yield name, model, None
    for other, size in CHUNKS.items():
        if name in CONFIGS[other].explicit:
            yield f"{name} (in chunks)", replace(model, chunk_size=size), None


def _chosen(only: Iterable[str]) -> list[str]:
    """Those names and the explicit counterparts of each."""
    if not only:
        return list(CONFIGS)
    found: dict[str, None] = {}
    for name in only:
        try:
            found |= dict.fromkeys((name, *named(name).explicit))
        except ValueError as wrong:
            raise OptionError(str(wrong)) from None
    return list(found)


# ------------------------------------------------------------------------------- tables


def count_table(counts: dict[str, tuple[int, int]]) -> str:
    rows = []
    for name, (total, body) in counts.items():
        published = CONFIGS[name].published
        said = (published.total, published.body)
        row = [name]
        for ours, theirs in zip((total, body), said, strict=True):
            row += [f"{ours / 1e6:.2f}M", "–" if theirs is None else f"{theirs:g}M"]
            row += ["–" if theirs is None else f"{100 * (ours / 1e6 / theirs - 1):+.1f}%"]
        rows.append(row)
    head = ["model", "parameters", "paper", "difference", "body", "paper", "difference"]
    return table(head, rows)


def memory_tables(targets: dict[str, dict[str, Any]]) -> str:
    """For each target: what each model takes, and the ratios."""
    parts = []
    for target, kept in targets.items():
        names = [f.name for f in fields(Measured)]
        found = {
            label: Measured(**{n: row[n] for n in names if n in row}) for label, row in kept.items()
        }
        said = next(iter(kept.values()))["circumstances"]
        parts += [f"## {target}", "", said, "", _memory_table(found), "", _ratio_table(found), ""]
    return "\n".join(parts)


def _memory_table(found: dict[str, Measured]) -> str:
    rows = []
    for label in _in_order(found):
        m = found[label]
        sizes = (m.temporary, m.training, m.parameters, m.arguments, m.outputs)
        said = CONFIGS[m.model].published.memory
        chunk = "all" if m.chunk_size is None else str(m.chunk_size)
        rows.append([label, chunk, *map(_gb, sizes), f"{said:g}", f"{m.seconds:.0f} s"])
    head = ["model", "positions at a time", "activations", "training", "parameters", "arguments"]
    return table([*head, "results", "paper", "to compile"], rows)


def _ratio_table(found: dict[str, Measured]) -> str:
    rows = []
    for label in _in_order(found):
        ours = found[label]
        for other in _in_order(found):
            theirs = found[other]
            if theirs.model not in CONFIGS[ours.model].explicit:
                continue
            if ours.chunk_size is None and theirs.chunk_size is not None:
                continue
            paper = CONFIGS[ours.model].published.memory / CONFIGS[theirs.model].published.memory
            row = [label, other, f"{paper:.2f}"]
            for what in ("temporary", "training"):
                ratio = getattr(ours, what) / getattr(theirs, what)
                row += [f"{ratio:.3f}", _verdict(ratio, paper)]
            rows.append(row)
    head = ["equilibrium", "explicit network", "paper", "activations", "", "training", ""]
    return table(head, rows)


def _verdict(ratio: float, paper: float) -> str:
    if ratio <= 0.5 * paper:
        return "at most half"
    return "at most the paper's" if ratio <= paper else "above the paper's"


def _in_order(found: dict[str, Measured]) -> list[str]:
    names = list(CONFIGS)
    return sorted(found, key=lambda label: (names.index(found[label].model), label))


def _gb(size: float) -> str:
    return f"{size / 1e9:.3f}"


def _circumstances() -> dict[str, str]:
    command = " ".join(["python -m experiments.full_size", *sys.argv[1:]])
    today = datetime.date.today().isoformat()
    said = f"`{command}`, {today}; Python {platform.python_version()}, jax {jax.__version__}."
    return {"circumstances": said}


def _read(path: Path) -> dict[str, Any]:
    data = path.with_suffix(".json")
    return json.loads(data.read_text("utf-8")) if data.exists() else {}


def _write(path: Path, kept: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".json").write_text(json.dumps(kept, indent=1) + "\n", "utf-8")
    text = ["# Full-size models", "", count_table(kept["counts"]), "", "# Training memory", ""]
    text += [COUNTED.format(segment=SEGMENT, batch=BATCH, steps=MAX_STEPS), ""]
    path.write_text("\n".join(text) + "\n" + memory_tables(kept["targets"]), "utf-8")
