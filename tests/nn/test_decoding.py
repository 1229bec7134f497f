"""Text one position at a time: with keys and values kept, as with the memory carried."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from deqjax.nn import (
    CellStack,
    Decoder,
    KeyMemory,
    LanguageModel,
    LSTMLanguageModel,
    NarrowScannedStack,
    Prelude,
    Sampling,
    TransformerCell,
    TransformerInput,
    TrellisCell,
    forget,
    generate,
)

SIZE, MEMORY = 13, 6
GREEDY = Sampling(temperature=0)


def cell(rngs, memory=MEMORY, **options):
    sizes = dict(heads=2, d_inner=16, memory_length=memory)
    return TransformerCell(8, **(sizes | options), rngs=rngs)


def prelude(rngs, memory=MEMORY):
    first = CellStack([cell(rngs, memory, injection=None, norm="pre")], final_norm=False)
    blocks = [cell(rngs, memory, injection=kind, norm="pre") for kind in ("state", None)]
    return Prelude(first, CellStack(blocks))


def models(memory=MEMORY):
    rngs = nnx.Rngs(0)
    layers = lambda: CellStack([cell(rngs, memory, injection=None) for _ in range(2)])
    solve = dict(rngs=rngs, solver="picard", rtol=1e-5, max_steps=60)  # which compiles fast
    return {
        "post": lambda: LanguageModel(
            SIZE, cell(rngs, memory, weight_norm=True, chunk_size=4), **solve
        ),
        "prelude": lambda: LanguageModel(SIZE, prelude(rngs, memory), **solve),
        "stack": lambda: LanguageModel(SIZE, cell(rngs, memory), depth=3, rngs=rngs),
        "layers": lambda: LanguageModel(SIZE, layers(), depth=1, rngs=rngs),
        "scanned": lambda: LanguageModel(
            SIZE,
            NarrowScannedStack(layers().cells, n_in=12, rngs=rngs),
            depth=1,
            rngs=rngs,
        ),
        "trellis": lambda: LanguageModel(
            SIZE, TrellisCell(8, hidden=8, memory_length=1, rngs=rngs), **solve
        ),
        "lstm": lambda: LSTMLanguageModel(SIZE, width=8, hidden=8, layers=2, rngs=rngs),
    }


def model_of(kind, memory=MEMORY):
    return models(memory)[kind]()


def text(n, seed=0):
    return np.random.default_rng(seed).integers(0, SIZE, n).astype(np.int32)


SLOW = [
    pytest.param(kind, marks=pytest.mark.slow) for kind in ("prelude", "scanned", "trellis", "lstm")
]


@pytest.mark.parametrize("kind", ["post", "stack", "layers", *SLOW])
def test_tokens_are_those_of_the_memory_carried(kind):
    """Twice round the ring, from a memory that is not full."""
    model = model_of(kind)
    decoders = (Decoder(model, text(4), Sampling(1.0), cache=c) for c in (True, False))
    kept, carried = (decoder.draw(3 * MEMORY) for decoder in decoders)
    np.testing.assert_array_equal(kept.tokens, carried.tokens)
    assert len(set(kept.tokens[0])) > 4
    if model.solves:
        np.testing.assert_array_equal(kept.steps, carried.steps)
        assert kept.converged.all() and kept.steps.min() > 0
    else:
        assert kept.steps is None and kept.converged is None


@pytest.mark.parametrize("kind", ["post", pytest.param("prelude", marks=pytest.mark.slow)])
def test_logits_are_those_of_the_whole_text_to_the_tolerance(kind):
    model = model_of(kind, memory=20)
    ids = text(14)[None]
    whole = nnx.jit(lambda model, ids: model(ids).logits)(model, ids)

    @nnx.jit
    def read(model, ids):
        return model.cell.cache(model(ids, model.empty_memory(1)).memory)

    memory, step = read(model, ids[:, :3]), nnx.jit(lambda model, *given: model(*given))
    for i in range(3, 14):
        out = step(model, ids[:, i : i + 1], memory)
        memory = out.memory
        np.testing.assert_allclose(out.logits[:, 0], whole[:, i], atol=1e-3)
    if kind == "post":
        assert isinstance(memory, KeyMemory) and int(memory.oldest) == 11


@pytest.mark.slow
def test_rows_of_other_lengths_do_not_matter():
    model = model_of("post")
    prompts = [text(5, 1), text(1, 2), text(3, 3), text(5, 4)]
    together = Decoder(model, prompts, Sampling(1.0))
    drawn = together.draw(8)
    assert together.read.steps.shape == (3,) and together.read.converged.all()
    again = Decoder(model, [*prompts[:2], text(5, 9), text(3, 8)], Sampling(1.0)).draw(8)
    np.testing.assert_array_equal(drawn.tokens[:2], again.tokens[:2])
    assert (drawn.tokens[2:] != again.tokens[2:]).any()
    alone = Decoder(model, prompts[0], Sampling(1.0)).draw(8)
    np.testing.assert_array_equal(drawn.tokens[0], alone.tokens[0])


def test_a_solve_that_does_not_converge_is_counted():
    model = model_of("post")
    model.deq.solver = model.deq.solver.with_options(max_steps=2)
    drawn = Decoder(model, text(1), GREEDY).draw(3)
    assert (drawn.steps == 2).all() and not drawn.converged.any()


@pytest.mark.slow
def test_a_warm_start_ends_at_the_same_tokens():
    model = model_of("prelude")
    cold, warm = (Decoder(model, text(4), GREEDY, warm_start=w).draw(9) for w in (0, 1))
    np.testing.assert_array_equal(cold.tokens, warm.tokens)
    assert (cold.steps != warm.steps).any()


def test_pieces_and_seeds():
    model = model_of("stack")
    whole = generate(model, text(4), 7, seed=3).tokens
    pieces = Decoder(model, text(4), seed=3).stream(7, each=3)
    pieces = [piece.tokens for piece in pieces]
    assert [piece.shape for piece in pieces] == [(1, 3), (1, 3), (1, 1)]
    np.testing.assert_array_equal(np.concatenate(pieces, axis=1), whole)
    assert (generate(model, text(4), 7, seed=4).tokens != whole).any()


def test_forget_empties_a_ring():
    c = cell(nnx.Rngs(0))
    memory = c.cache(c.empty_memory(2))
    memory = memory._replace(valid=jnp.ones_like(memory.valid))
    after = forget(memory, jnp.array([[True], [False]]))
    assert not after.valid[0].any() and after.valid[1].all()


def test_a_short_memory_fills_the_end_of_the_ring():
    c = cell(nnx.Rngs(0))
    x = jnp.ones((1, 2, 8))
    memory = c.remember(TransformerInput(x), x)
    assert c.cache(memory).valid.tolist() == [[False] * 4 + [True] * 2]


def test_what_cannot_be_is_refused_in_a_sentence():
    model = model_of("post")
    for prompts, says in (
        ([], "at least one prompt"),
        ([[1], []], "at least one token.*prompt 1"),
        ([[1, 13]], "0 ... 12; prompt 0 has 13"),
        ([-1], "has -1"),
        ([0.5], "token ids"),
    ):
        with pytest.raises(ValueError, match=says):
            Decoder(model, prompts)
    with pytest.raises(ValueError, match="memory_length"):
        Decoder(model_of("post", memory=0), [1])
    with pytest.raises(ValueError, match="warm start"):
        Decoder(model_of("stack"), [1], warm_start=True)
    with pytest.raises(ValueError, match="count"):
        Decoder(model, [1]).draw(0)
    with pytest.raises(ValueError, match="one position at a time, not 2"):
        c = cell(nnx.Rngs(0))
        c.inject(TransformerInput(jnp.ones((1, 2, 8)), c.cache(c.empty_memory(1))))
