"""Training on eight devices against one, run by `test_parallel` in a process of its own.

python parallel_programs.py NAME ...
"""

import sys

import jax
import numpy as np
from flax import nnx

from deqjax.data import Stream
from deqjax.nn import (
    CellStack,
    LanguageModel,
    LSTMLanguageModel,
    Prelude,
    TransformerCell,
    TrellisCell,
)
from deqjax.training import (
    LanguageModelling,
    Parallel,
    PenaltyOptions,
    Phase,
    TrainOptions,
    make_step,
    new_state,
    perplexity,
)
from deqjax.training.plan.hlo import collectives
from deqjax.training.schedules import optimiser
from deqjax.training.scoring import Share, sharing

VOCABULARY, ROWS, STEPS = 24, 16, 50
compiled: list[str] = []
jax.monitoring.register_event_duration_secs_listener(
    lambda event, seconds, **_: compiled.append(event) if "backend_compile" in event else None
)


def transformer(rngs, **options):
    options = dict(heads=4, d_inner=32, memory_length=4, dropout=0.2) | options
    return TransformerCell(16, **options, rngs=rngs)


def deq_transformer(rngs):
    # Every solve converges: one that does not ends at the mercy of rounding.
    cell = transformer(rngs)
    cell.qkv.kernel[...] *= 0.3
    cell.inject_qkv.kernel[...] *= 2.0
    cell.out.kernel[...] *= 2.0
    options = dict(dropout=0.1, rtol=1e-5, max_steps=40)
    return LanguageModel(VOCABULARY, cell, **options, rngs=rngs)


def explicit(rngs):
    layers = [transformer(rngs, injection=None) for _ in range(3)]
    return LanguageModel(VOCABULARY, CellStack(layers), depth=1, dropout=0.1, rngs=rngs)


def deq_after_a_prelude(rngs):
    first = CellStack([transformer(rngs, injection=None, norm="pre")], final_norm=False)
    core = CellStack([transformer(rngs, injection="state", norm="pre")])
    options = dict(dropout=0.1, rtol=1e-5, max_steps=40)
    return LanguageModel(VOCABULARY, Prelude(first, core), **options, rngs=rngs)


def deq_trellisnet(rngs):
    options = dict(hidden=24, memory_length=1, dropout=0.2, weight_drop=0.1)
    cell = TrellisCell(16, **options, rngs=rngs)
    return LanguageModel(VOCABULARY, cell, dropout=0.1, rtol=1e-5, max_steps=60, rngs=rngs)


def lstm(rngs):
    options = dict(width=16, hidden=24, layers=2, dropout_hidden=0.1, weight_drop=0.1)
    return LSTMLanguageModel(VOCABULARY, **options, rngs=rngs)


def run(new_model, steps=STEPS, bad_row=None, **given):
    """Losses, the last metrics and the compiled program of `steps` training steps."""
    ids = np.random.default_rng(0).integers(0, VOCABULARY, 5000).astype(np.int32)
    options = TrainOptions(steps=steps, batch_size=ROWS, learning_rate=1e-3, **given)
    solves = new_model in (deq_transformer, deq_trellisnet)
    task = LanguageModelling(
        new_model,
        Stream(ids, ROWS, 6, 0),
        Stream(ids[:50], 2, 6, 0),
        warm_start=solves,
        penalties=PenaltyOptions(jacobian=0.05, tighten=True) if solves else PenaltyOptions(),
    )
    parallel = Parallel.of(options) if given.get("mesh") != "data=1" else Parallel()
    rule = optimiser(options)
    graph, state = new_state(task, rule, 0, parallel=parallel)
    step = make_step(task, graph, rule, Phase(), parallel=parallel, accumulate=options.accumulate)
    step = parallel.compile(step, state)
    losses, before = [], 0
    for i in range(steps):
        batch = task.batch(i, parallel.rows(ROWS))
        if bad_row is not None and i == 1:
            batch.weights[bad_row] = np.nan
        batch = parallel.put(batch, ROWS)
        before = before or len(compiled)
        with jax.transfer_guard("disallow"):
            state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
        # One compilation, at the first call; neither another one nor an implicit transfer later.
        assert len(compiled) <= before + 1, f"compiled again in step {i}"
    return np.array(losses), metrics, step.compiled, state


WAYS = {
    "accumulated": dict(mesh="data=1", accumulate=2),
    "shard_map": {},
    "shard_map_fsdp": dict(mesh="data=2,fsdp=2", accumulate=2),
    "jit": dict(parallel="jit"),
    "jit_tensor": dict(parallel="jit", mesh="data=2,fsdp=2,tensor=2"),
    "pmap": dict(parallel="pmap"),
}


def agree(new_model, *ways):
    """The same losses for fifty steps, dropout and all, wherever the samples are."""
    want = run(new_model, mesh="data=1")[0]
    for way in ways:
        got, metrics, program, _ = run(new_model, **WAYS[way])
        furthest = np.abs(got / want - 1).max()
        print(f"{new_model.__name__} {way}: {furthest:.1e}, {collectives(program.as_text())}")
        assert furthest < 1e-5, (way, got - want)
        assert float(metrics["bad_parts"]) == 0 and float(metrics.get("converged", 1)) == 1


def no_collective_in_the_loops():
    """shard_map: none in any loop, and one reduction a step; jit: one flag a solver step."""
    inside, outside = collectives(run(deq_transformer, steps=1)[2].as_text())
    assert not inside and outside == {"all-reduce": 1}, (inside, outside)
    inside, _ = collectives(run(deq_transformer, steps=1, parallel="jit")[2].as_text())
    # One in the condition of the forward solve's loop, one in that of the adjoint's.
    assert inside == {"all-reduce": 2}, inside


def no_collective_in_the_loops_of_parts():
    inside, _ = collectives(run(deq_transformer, steps=1, mesh="data=4,fsdp=2")[2].as_text())
    assert not inside, inside


def parts_are_stored():
    """FSDP and tensor parallelism: a device holds its part of the parameters and moments."""
    for way in ("shard_map_fsdp", "jit_tensor"):
        state = run(deq_transformer, steps=1, **WAYS[way])[3]
        kernel = state.params["deq"]["cell"]["up"]["kernel"][...]
        parts = 4 if "tensor" in way else 2
        assert kernel.addressable_shards[0].data.size * parts == kernel.size, way
        leaves = jax.tree.leaves(state.opt_state)
        assert any(x.addressable_shards[0].data.size * parts == x.size > 1 for x in leaves)


def bad_data_of_one_device_stays_there():
    """One sample is not finite: the step goes on without the two of its device."""
    _, metrics, _, state = run(deq_transformer, steps=2, bad_row=3)
    assert int(metrics["skipped"]) == 0 and int(metrics["bad_parts"]) == 1
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((state.params, state.carry)))


def bad_data_of_the_only_device_skips_a_step():
    _, metrics, _, _ = run(deq_transformer, steps=2, bad_row=3, mesh="data=1")
    assert int(metrics["skipped"]) == 1 and int(metrics["in_a_row"]) == 1


def the_transformer_agrees():
    agree(deq_transformer, *WAYS)


def the_explicit_network_agrees():
    agree(explicit, "shard_map_fsdp", "jit_tensor", "pmap")


def other_models_agree():
    for new_model in (deq_after_a_prelude, deq_trellisnet, lstm):
        agree(new_model, "shard_map", "shard_map_fsdp", "jit_tensor", "pmap")


def the_evaluation_agrees():
    """Rows of held-out text over eight devices, of two kinds of memory; six rows over six."""
    ids = np.random.default_rng(1).integers(0, VOCABULARY, 160).astype(np.int32)
    everywhere = Share(devices=tuple(jax.devices()))
    for new_model, rows in ((deq_transformer, 8), (lstm, 6)):
        model = new_model(nnx.Rngs(0))
        model.eval()
        stream = Stream(ids, batch_size=rows, segment=7, start_id=0)
        alone = perplexity(model, stream)
        with sharing(everywhere):
            spread = perplexity(model, stream)
        np.testing.assert_allclose(spread, alone, rtol=1e-6)
        assert spread.tokens == 160 and model.solves == bool(spread.solves)
        batch = stream[0]._replace(fresh=np.asarray(True))
        memory = everywhere.scorer(model, rows)(model.empty_memory(rows), batch)[2]
        assert {len(x.sharding.device_set) for x in jax.tree.leaves(memory)} == {rows}


PROGRAMS = [
    no_collective_in_the_loops,
    no_collective_in_the_loops_of_parts,
    parts_are_stored,
    bad_data_of_one_device_stays_there,
    bad_data_of_the_only_device_skips_a_step,
    the_transformer_agrees,
    the_explicit_network_agrees,
    other_models_agree,
    the_evaluation_agrees,
]

if __name__ == "__main__":
    assert jax.device_count() == 8
    for name in sys.argv[1:]:
        globals()[name]()
