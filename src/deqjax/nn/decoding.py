"""Text from a language model, one position at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from .._errors import check_integer
from .memory import key_memory_of
from .sampling import Sampling


class Drawn(NamedTuple):
    """What was drawn, and how the solve behind every token ended.

    Attributes:
        tokens: int32 (rows, n).
        steps: solver steps of the position that each was drawn from, int32 (rows, n); None where
            the model solves nothing.
        converged: whether that solve did, bool (rows, n); None likewise.
    """

    tokens: np.ndarray
    steps: np.ndarray | None = None
    converged: np.ndarray | None = None

    def map(self, f: Callable[[Any], np.ndarray]) -> Drawn:
        """f of each of them."""
        return jax.tree.map(f, self)


class State(NamedTuple):
    """Where decoding stands."""

    memory: Any
    token: jax.Array  # int32 (rows,): the last one, not read yet
    drawn: jax.Array  # int32 (): how many have been
    key: jax.Array
    z: jax.Array | None  # (rows, 1, d): the last equilibrium, where solves start from it


class Decoder:
    """Continues prompts, all of them at once.

    A prompt but for its last token is read as one segment. From there every token costs the solve
    of one position: what the cell keeps of the solved ones are their keys and values, which do not
    change any more (`KeyMemory`). Text further back than the memory is forgotten. A cell that has
    no `cache` carries its memory instead, with the same result.

    A row depends on its own prompt and number alone, not on the others beside it. Prompts of one
    length are read together; each length compiles a program.

    Args:
        model: a `LanguageModel` or an `LSTMLanguageModel`; dropout is off. Its weights are those of
            now.
        prompts: token ids, one sequence or several, of any lengths of at least 1.
        sampling: how tokens are drawn.
        seed: of what is drawn.
        cache: False carries the memory itself: slower, to compare with.
        warm_start: start every solve at the equilibrium of the position before, and not where the
            model starts. Fewer steps where neighbours are alike; docs/generate.md has a measure.

    Attributes:
        read: the `Stats` of the solves that read the prompts, one for each; None where nothing was
            solved for it: prompts of one token, models without an equilibrium.

    Raises:
        ValueError: an empty prompt, a token outside the vocabulary, a model without memory, a warm
            start of a model that solves nothing.

    Examples:
        >>> from flax import nnx
        >>> from deqjax.nn import Decoder, LanguageModel, Sampling, TransformerCell
        >>> cell = TransformerCell(8, heads=2, d_inner=16, memory_length=4, rngs=nnx.Rngs(0))
        >>> model = LanguageModel(50, cell, rngs=nnx.Rngs(0))
        >>> decoder = Decoder(model, [[1, 2, 3], [4]], Sampling(temperature=0))
        >>> drawn = decoder.draw(5)
        >>> drawn.tokens.shape, bool(drawn.converged.all())
        ((2, 5), True)
    """

    def __init__(
        self,
        model: Any,
        prompts: Sequence[Any] | np.ndarray,
        sampling: Sampling | None = None,
        *,
        seed: int = 0,
        cache: bool = True,
        warm_start: bool = False,
    ):
        rows = checked_prompts(prompts, getattr(model, "vocabulary", None))
        memory = model.empty_memory(1)
        if not sum(m.valid.size for m in jax.tree.leaves(memory, is_leaf=_has_valid)):
            raise ValueError("decoding needs a cell with memory_length >= 1")
        if warm_start and not model.solves:
            raise ValueError("a warm start needs a model that solves an equilibrium")
        self.sampling = Sampling() if sampling is None else sampling
        self._graph, self._weights = nnx.split(model)
        memory, self.read = self._read(model, rows)
        if cache and hasattr(model, "cell"):
            memory = _cached(self._graph, self._weights, memory)
        self._state = State(
            memory,
            jnp.asarray([row[-1] for row in rows], jnp.int32),
            jnp.zeros((), jnp.int32),
            jax.random.key(seed),
            jnp.zeros((len(rows), 1, model.cell.d)) if warm_start else None,
        )

    def draw(self, count: int) -> Drawn:
        """The next `count` tokens of every row, in one program."""
        check_integer("count", count, least=1)
        self._state, found = _draw(self._graph, self._weights, self._state, count, self.sampling)
        return found.map(lambda x: np.asarray(x).T)

    def stream(self, length: int, each: int = 1) -> Iterator[Drawn]:
        """The next `length` tokens of every row, so many at a time. The last piece is drawn whole
        and shown in part, so that one program does it all."""
        check_integer("length", length, least=1)
        check_integer("each", each, least=1)
        for left in range(length, 0, -each):
            yield self.draw(each).map(lambda x: x[:, :left])  # noqa: B023

    def _read(self, model: Any, rows: list[np.ndarray]) -> tuple[Any, Any]:
        """The memory behind every prompt's last token, and how reading ended."""
        lengths = sorted({len(row) for row in rows})
        order = [i for n in lengths for i, row in enumerate(rows) if len(row) == n]
        memories, stats = [], []
        for n in lengths:
            some = np.stack([row for row in rows if len(row) == n])
            if n == 1:
                memories.append(model.empty_memory(len(some)))
                continue
            memory, ended = _read(self._graph, self._weights, some[:, :-1])
            memories.append(memory)
            stats.append(ended)
        back = np.argsort(order)
        memory = jax.tree.map(lambda *x: jnp.concatenate(x)[back], *memories)
        if not stats or stats[0] is None:
            return memory, None
        if lengths[0] == 1:
            back = np.argsort([i for i in order if len(rows[i]) > 1])
        return memory, jax.tree.map(lambda *x: np.concatenate(x)[back], *stats)


def generate(
    model: Any,
    prompts: Sequence[Any] | np.ndarray,
    length: int,
    *,
    temperature: float = 0.8,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
) -> Drawn:
    """Continue every prompt by `length` tokens: `Decoder` in one call.

    Args:
        model: a `LanguageModel` or an `LSTMLanguageModel`; dropout is off.
        prompts: token ids, one sequence or several, of any lengths of at least 1.
        length: tokens to draw.
        temperature: as in `Sampling`.
        top_k: as in `Sampling`.
        top_p: as in `Sampling`.
        seed: of what is drawn.

    Raises:
        ValueError: as `Decoder` and `Sampling` do.

    Examples:
        >>> from flax import nnx
        >>> from deqjax.nn import LanguageModel, TransformerCell, generate
        >>> cell = TransformerCell(8, heads=2, d_inner=16, memory_length=4, rngs=nnx.Rngs(0))
        >>> model = LanguageModel(50, cell, rngs=nnx.Rngs(0))
        >>> generate(model, [1, 2, 3], 10, top_k=5).tokens.shape
        (1, 10)
    """
    sampling = Sampling(temperature, top_k, top_p)
    return Decoder(model, prompts, sampling, seed=seed).draw(length)


def checked_prompts(prompts: Any, vocabulary: int | None) -> list[np.ndarray]:
    """int32 (n,) for each prompt; a single one may come without a list around it."""
    rows = [np.asarray(row) for row in prompts]
    if rows and rows[0].ndim == 0:
        rows = [np.asarray(prompts)]
    if not rows:
        raise ValueError("there must be at least one prompt")
    for i, row in enumerate(rows):
        if row.ndim != 1 or not row.size:
            raise ValueError(
                f"a prompt must hold at least one token, shape (n,); prompt {i} has {row.shape}"
            )
        if not np.issubdtype(row.dtype, np.integer):
            raise ValueError(f"a prompt is of token ids, integers; prompt {i} is {row.dtype}")
        if row.min() < 0 or (vocabulary is not None and row.max() >= vocabulary):
            worst = row.min() if row.min() < 0 else row.max()
            known = "at least 0" if vocabulary is None else f"in 0 ... {vocabulary - 1}"
            raise ValueError(f"token ids are {known}; prompt {i} has {worst}")
    return [row.astype(np.int32) for row in rows]


def _has_valid(x: Any) -> bool:
    return hasattr(x, "valid")


def _merged(graph: nnx.GraphDef, weights: Any) -> Any:
    model = nnx.merge(graph, weights)
    model.eval()
    return model


@partial(jax.jit, static_argnums=0)
def _read(graph, weights, tokens):
    model = _merged(graph, weights)
    out = model(tokens, model.empty_memory(tokens.shape[0]))
    return out.memory, out.solution.stats if model.solves else None


@partial(jax.jit, static_argnums=0)
def _cached(graph, weights, memory):
    return key_memory_of(nnx.merge(graph, weights).cell, memory)


@partial(jax.jit, static_argnums=(0, 3, 4), donate_argnums=2)
def _draw(graph, weights, state, count, sampling):
    rows = jnp.arange(state.token.shape[0])

    def step(state: State, _):
        model = _merged(graph, weights)
        options = {} if state.z is None else dict(z0=state.z)
        out = model(state.token[:, None], state.memory, **options)
        key = jax.random.fold_in(state.key, state.drawn)
        keys = jax.vmap(lambda row: jax.random.fold_in(key, row))(rows)
        token = sampling(out.logits[:, -1], keys)
        found = [token]
        if model.solves:
            found += [out.solution.stats.steps, out.solution.stats.converged]
        z = None if state.z is None else out.solution.z
        return State(out.memory, token, state.drawn + 1, state.key, z), Drawn(*found)

    return jax.lax.scan(step, state, None, length=count)
