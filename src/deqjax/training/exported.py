"""The evaluation of a model as a file that any JAX can run, without this package."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
from flax import nnx

from .._errors import check_integer


def export_eval(
    model: Any, *, rows: int, segment: int, platforms: Sequence[str] | None = None
) -> jax.export.Exported:
    """Scoring one segment, compiled as far as that goes without a device (`jax.export`).

    The function is `f(memory, inputs, targets)`, with inputs and targets int32 (rows, segment) and
    memory a list of arrays, all zeros before the first segment. It returns a dict: `nats`, −log p
    of every target, (rows, segment); `memory`, for the next segment; and of a model that solves,
    `steps` and `converged`, (rows,) each. The weights are constants of the program, and as large
    there as they are.

    Args:
        model: a `LanguageModel` or `LSTMLanguageModel`; dropout is off.
        rows: texts side by side.
        segment: tokens of each.
        platforms: such as ("cpu", "cuda"); None, the one that is there.

    Examples:
        >>> import jax
        >>> from flax import nnx
        >>> from deqjax.nn import LSTMLanguageModel
        >>> from deqjax.training import export_eval
        >>> model = LSTMLanguageModel(9, width=4, hidden=4, rngs=nnx.Rngs(0))
        >>> f = export_eval(model, rows=2, segment=3)
        >>> zeros = [jax.numpy.zeros(x.shape, x.dtype) for x in f.in_avals]
        >>> (memory, tokens, targets), _ = jax.tree.unflatten(f.in_tree, zeros)
        >>> f.call(memory, tokens, targets)["nats"].shape
        (2, 3)
    """
    check_integer("rows", rows, least=1)
    check_integer("segment", segment, least=1)
    graph, weights = nnx.split(model)
    leaves, form = jax.tree.flatten(model.empty_memory(rows))

    def evaluate(memory: list[jax.Array], inputs: jax.Array, targets: jax.Array) -> dict[str, Any]:
        copy = nnx.merge(graph, weights)
        copy.eval()
        out = copy(inputs, jax.tree.unflatten(form, memory), targets=targets)
        found = {"nats": out.nats, "memory": jax.tree.leaves(out.memory)}
        if copy.solves:
            stats = out.solution.stats
            found |= {"steps": stats.steps, "converged": stats.converged}
        return found

    shape = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype)
    tokens = jax.ShapeDtypeStruct((rows, segment), jnp.int32)
    given = [shape(x) for x in leaves], tokens, tokens
    return jax.export.export(jax.jit(evaluate), platforms=platforms)(*given)


def save_eval(
    path: Path, model: Any, *, rows: int, segment: int, platforms: Sequence[str] | None = None
) -> None:
    """Write what `export_eval` returns. `jax.export.deserialize(bytearray(path.read_bytes()))`
    reads it.

    Raises:
        ImportError: flatbuffers is not installed, with which JAX writes and reads such files.
    """
    if importlib.util.find_spec("flatbuffers") is None:
        raise ImportError(
            "exported programs are written with flatbuffers: pip install 'deqjax[experiments]'",
            name="flatbuffers",
        )
    exported = export_eval(model, rows=rows, segment=segment, platforms=platforms)
    Path(path).write_bytes(exported.serialize())
