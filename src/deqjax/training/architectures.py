"""What a language model is built of, as JSON: enough to build it again, and nothing that runs."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from .. import adjoints, nn, solvers
from .._errors import suggest

FILE = "model.json"  # in a run's folder, beside its checkpoints
_FORMAT = "deqjax-model-1"


class NotDescribed(ValueError):
    """A model of parts that this module does not know, or a description that is none."""


def architecture(model: Any) -> dict[str, Any]:
    """What builds `model` again: kinds of modules and their arguments, without any array.

    Args:
        model: a `LanguageModel` of this package's cells, or an `LSTMLanguageModel`; its shapes
            (`nnx.eval_shape`) do as well.

    Raises:
        NotDescribed: a module, solver or adjoint of another kind is in it.

    Examples:
        >>> from flax import nnx
        >>> from deqjax.nn import LanguageModel, TrellisCell
        >>> from deqjax.training import architecture, from_architecture
        >>> model = LanguageModel(50, TrellisCell(4, hidden=6, rngs=nnx.Rngs(0)), rngs=nnx.Rngs(0))
        >>> described = architecture(model)
        >>> described["vocabulary"], described["cell"]["hidden"]
        (50, 6)
        >>> architecture(from_architecture(described, nnx.Rngs(1))) == described
        True
    """
    return json.loads(json.dumps(_described(model)))


def from_architecture(described: dict[str, Any], rngs: nnx.Rngs) -> Any:
    """A new model of that architecture.

    Raises:
        NotDescribed: `described` is not what `architecture` returns.
    """
    try:
        return _built(described, rngs)
    except (KeyError, TypeError, ValueError, AttributeError) as wrong:
        raise NotDescribed(f"this describes no model: {wrong}") from None


def save_architecture(path: Path, model: Any) -> None:
    """Write `architecture(model)` to a file; `load` looks for it in a run's folder.

    `fit(..., files={"model.json": lambda path: save_architecture(path, model)})` puts it there.
    """
    content = {"format": _FORMAT, **architecture(model)}
    Path(path).write_text(json.dumps(content, indent=1) + "\n")


def load_architecture(path: Path) -> dict[str, Any]:
    """What `save_architecture` wrote.

    Raises:
        FileNotFoundError: no such file.
        NotDescribed: it is not such a file.
    """
    try:
        content = json.loads(Path(path).read_text())
    except ValueError as wrong:
        raise NotDescribed(f"{path} describes no model: {wrong}") from None
    if not isinstance(content, dict) or content.pop("format", None) != _FORMAT:
        raise NotDescribed(f"{path} describes no model: its format is not {_FORMAT!r}")
    return content


# ------------------------------------------------------------------------- arguments of modules


def _of(*names: str) -> Callable[[Any], dict[str, Any]]:
    """Arguments that a module keeps under their own names."""
    return lambda module: {name: getattr(module, name) for name in names}


def _language_model(m: Any) -> dict[str, Any]:
    d = m.deq
    return dict(
        vocabulary=m.vocabulary,
        cell=m.cell,
        dropout=(m.drop_in.rate, m.drop_out.rate),
        dropout_words=0.0 if m.drop_words is None else m.drop_words.rate,
        depth=m.depth,
        softmax=m.softmax,
        learned_start=m.start is not None,
        **{name: getattr(d, name) for name in ("solver", "adjoint", "on_failure", "checkpoint")},
        dtype=None if d.dtype is None else jnp.dtype(d.dtype),
        scan=d.scan,
    )


def _lstm(m: Any) -> dict[str, Any]:
    rates = ("embedding", "input", "hidden", "output")
    return dict(
        vocabulary=m.vocabulary,
        width=m.width,
        hidden=m.widths[0],
        layers=len(m.widths),
        weight_drop=m.weight_drop,
        **{f"dropout_{name}": getattr(m, f"dropout_{name}") for name in rates},
    )


def _softmax(m: Any) -> dict[str, Any]:
    tied = [projection is None for projection in m.projections]
    return dict(
        embedding=m.embedding,
        tie_projections=True if all(tied) else tied,
        chunk_size=m.chunk_size,
    )


def _embedding(m: Any) -> dict[str, Any]:
    return _of("vocabulary", "d", "cutoffs", "divisor")(m) | dict(d_embed=m.widths[0])


def _scanned(m: Any) -> dict[str, Any]:
    return dict(cells=[m.layers] * m.count, **_of("final_norm", "checkpoint")(m))


_STACK = _of("cells", "final_norm", "checkpoint")
_NARROW = ("cells", "checkpoint", "n_in")

MODULES: dict[type, Callable[[Any], dict[str, Any]]] = {
    nn.LanguageModel: _language_model,
    nn.LSTMLanguageModel: _lstm,
    nn.AdaptiveSoftmax: _softmax,
    nn.AdaptiveEmbedding: _embedding,
    nn.TransformerCell: _of(
        *("d", "heads", "d_inner", "memory_length", "dropout"),
        *("norm", "weight_norm", "injection", "chunk_size"),
    ),
    nn.TrellisCell: _of(
        *("n_in", "hidden", "n_out", "memory_length", "dropout", "weight_drop", "weight_norm")
    ),
    nn.Prelude: _of("layers", "cell"),
    nn.CellStack: _STACK,
    nn.NarrowStack: _of(*_NARROW),
    nn.ScannedStack: _scanned,
    nn.NarrowScannedStack: lambda m: {
        name: x for name, x in (_scanned(m) | _of(*_NARROW[1:])(m)).items() if name != "final_norm"
    },
}
# What has parameters, or draws, of its own.
_WITHOUT_RNGS = (nn.Prelude, nn.CellStack, nn.ScannedStack)
_OPTIONS = {
    kind.__name__: kind
    for module in (solvers, adjoints)
    for kind in vars(module).values()
    if isinstance(kind, type) and dataclasses.is_dataclass(kind)
}
_KINDS = {kind.__name__: kind for kind in MODULES} | _OPTIONS


# --------------------------------------------------------------------------------- both directions


def _described(x: Any) -> Any:
    if x is None or isinstance(x, bool | int | float | str):
        return x
    if isinstance(x, np.dtype):
        return {"dtype": x.name}
    if isinstance(x, list | tuple | nnx.List):
        return [_described(item) for item in x]
    name = type(x).__name__
    if _KINDS.get(name) is not type(x):
        raise NotDescribed(
            f"{name} is not a part that can be described as data; give load(build=...) a function "
            "that makes the model instead"
        )
    if type(x) in MODULES:
        found = MODULES[type(x)](x)
    else:
        found = {f.name: getattr(x, f.name) for f in dataclasses.fields(x) if f.init}
    return {"kind": name} | {key: _described(value) for key, value in found.items()}


def _built(x: Any, rngs: nnx.Rngs) -> Any:
    if isinstance(x, list):
        return tuple(_built(item, rngs) for item in x)
    if not isinstance(x, dict):
        return x
    if "dtype" in x and len(x) == 1:
        return jnp.dtype(x["dtype"])
    given = dict(x)
    name = given.pop("kind")
    if name not in _KINDS:
        raise ValueError(f"{name!r} is not a known kind{suggest(str(name), _KINDS)}")
    kind: Any = _KINDS[name]
    arguments = {key: _built(value, rngs) for key, value in given.items()}
    if kind in MODULES and kind not in _WITHOUT_RNGS:
        arguments["rngs"] = rngs
    return kind(**arguments)
