"""The evaluation as a file: what it returns, and that it needs no more than JAX."""

import subprocess
import sys

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from deqjax.nn import LanguageModel, LSTMLanguageModel, TransformerCell
from deqjax.training import export_eval, save_eval

ROWS, SEGMENT, SIZE = 2, 5, 11


def solving():
    rngs = nnx.Rngs(0)
    cell = TransformerCell(8, heads=2, d_inner=8, memory_length=4, dropout=0.2, rngs=rngs)
    return LanguageModel(SIZE, cell, dropout=0.1, rngs=rngs, rtol=1e-3, max_steps=8)


def segments(seed=0):
    ids = np.random.default_rng(seed).integers(0, SIZE, (2, 2, ROWS, SEGMENT)).astype(np.int32)
    return [tuple(pair) for pair in ids]


@pytest.fixture
def flatbuffers():
    pytest.importorskip("flatbuffers", reason="jax.export writes files with it")


def test_the_file_gives_what_the_model_does(flatbuffers, tmp_path):
    model = solving()
    save_eval(tmp_path / "eval.jax", model, rows=ROWS, segment=SEGMENT)
    f = jax.export.deserialize(bytearray((tmp_path / "eval.jax").read_bytes()))
    model.eval()
    direct = nnx.jit(lambda model, *given: model(given[0], given[1], targets=given[2]))
    memory = model.empty_memory(ROWS)
    stored = [jnp.zeros_like(x) for x in jax.tree.leaves(memory)]
    for inputs, targets in segments():
        out = direct(model, inputs, memory, targets)
        found = f.call(stored, inputs, targets)
        np.testing.assert_allclose(found["nats"], out.nats, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(found["steps"], out.solution.stats.steps)
        np.testing.assert_array_equal(found["converged"], out.solution.stats.converged)
        memory, stored = out.memory, found["memory"]


PROGRAM = """
import sys
import jax, jax.export, numpy as np
f = jax.export.deserialize(bytearray(open(sys.argv[1], "rb").read()))
zeros = [np.zeros(x.shape, x.dtype) for x in f.in_avals]
(memory, inputs, targets), _ = jax.tree.unflatten(f.in_tree, zeros)
print(float(f.call(memory, inputs, targets)["nats"].sum()))
assert not any(name.startswith(("deqjax", "flax")) for name in sys.modules)
"""


@pytest.mark.slow
def test_a_process_without_this_package_runs_it(flatbuffers, tmp_path):
    model, file = solving(), tmp_path / "eval.jax"
    save_eval(file, model, rows=ROWS, segment=SEGMENT)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, file], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    model.eval()
    tokens = jnp.zeros((ROWS, SEGMENT), jnp.int32)
    nats = model(tokens, model.empty_memory(ROWS), targets=tokens).nats
    assert float(done.stdout) == pytest.approx(float(nats.sum()), rel=1e-5)


def test_a_model_that_solves_nothing_has_no_steps_and_sizes_are_checked():
    model = LSTMLanguageModel(SIZE, width=4, hidden=4, rngs=nnx.Rngs(0))
    exported = export_eval(model, rows=1, segment=2, platforms=("cpu", "tpu"))
    assert exported.platforms == ("cpu", "tpu")
    names = jax.tree.unflatten(exported.out_tree, exported.out_avals)
    assert set(names) == {"nats", "memory"}
    with pytest.raises(ValueError, match="rows must be an integer >= 1"):
        export_eval(model, rows=0, segment=2)
