"""The planner: compiled programs read, what they cost, what fits."""

import json
import re
import sys
import types
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from deqjax.nn import DEQ
from deqjax.training import OptionError, SolverOptions, Task, TrainOptions
from deqjax.training.plan import CHIPS, Asked, Collective, Cost, Costs, Roofline, largest, plan
from deqjax.training.plan.__main__ import Config, flagged, main, task_of
from deqjax.training.plan.cost import program_costs
from deqjax.training.plan.hlo import Program, arrays, collectives
from deqjax.training.plan.memory import shortage
from deqjax.training.plan.program import Programs, Subject
from deqjax.training.plan.report import largest_text, report
from deqjax.training.plan.search import largest_batch
from deqjax.training.plan.topology import devices_of
from experiments.full_size import named
from experiments.full_size import plan as full_size

SMALL = replace(
    named("wt103-transformer-small"),
    **dict(vocabulary=50, cutoffs=(), n_in=20, d=20, inner=200, segment=16, memory=16, batch=2),
    # What compiles fast.
    **dict(dropout=0.0, dropout_in=0.0, dropout_out=0.0, weight_norm=False),
)


def cell_flops(config):
    """Matrix products of one evaluation of a transformer cell on one sample: q, k, v, output and
    feed-forward; content and position scores, values."""
    t, keys, d = config.segment, config.segment + config.memory, config.d
    return 2 * t * (4 * d * d + 2 * d * config.inner) + 3 * 2 * t * keys * d


# ---------------------------------------------------------------------------------- the text

TEXT = """\
HloModule jit_f, is_scheduled=true, num_partitions=8

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%inner (p: f32[4,8]) -> f32[4,8] {
  %p = f32[4,8]{1,0} parameter(0)
  ROOT %deep = f32[4,8]{1,0} all-reduce(%p), replica_groups={{0,1},{2,3}}, to_apply=%add
}

%body (c: (s32[], f32[4,8])) -> (s32[], f32[4,8]) {
  %c = (s32[]{:T(128)}, f32[4,8]{1,0:T(8,128)S(1)}) parameter(0)
  %k = s32[] get-tuple-element(%c), index=0
  %z = f32[4,8]{1,0} get-tuple-element(%c), index=1
  %w = f32[8,8]{1,0} constant({...})
  %y = f32[4,8]{1,0} dot(%z, %w), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  %u = f32[4,8]{1,0} call(%y), to_apply=%inner
  ROOT %t = (s32[], f32[4,8]{1,0}) tuple(%k, %u)
}

%until_data (c: (s32[], f32[4,8])) -> pred[] {
  %c = (s32[], f32[4,8]{1,0}) parameter(0)
  ROOT %go = pred[] fusion(%c), kind=kLoop, calls=%whatever
}

%until_three (c: (s32[], f32[4,8])) -> pred[] {
  %c = (s32[], f32[4,8]{1,0}) parameter(0)
  %k = s32[] get-tuple-element(%c), index=0
  %three = s32[]{:T(128)} constant(3)
  ROOT %lt = pred[] compare(%k, %three), direction=LT
}

ENTRY %main (x: f32[4,8]) -> f32[4,8] {
  %x = f32[4,8]{1,0} parameter(0)
  %zero = s32[] constant(0)
  %start = (s32[], f32[4,8]{1,0}) tuple(%zero, %x)
  %counted = (s32[], f32[4,8]{1,0}) while(%start), condition=%until_three, body=%body
  %solve = (s32[], f32[4,8]{1,0}) while(%counted), condition=%until_data, body=%body
  %back = (s32[], /*index=1*/f32[4,8]{1,0}) while(%solve), condition=%until_data, body=%body, \
metadata={op_name="jit(f)/transpose(jvp())/while"}
  %z = f32[4,8]{1,0} get-tuple-element(%back), index=1
  %g = (f32[4,8]{1,0}, f32[8,8]{1,0}) all-gather-start(%z), replica_groups=[4,2]<=[8]
  %h = f32[8,8]{1,0} all-gather-done(%g)
  ROOT %r = f32[4,8]{1,0} all-reduce(%z), replica_groups=mesh['a'=2,'b'=4] {'b'}, to_apply=%add
}
"""


def test_collectives_in_loops_and_what_they_call():
    assert collectives(TEXT) == ({"all-reduce": 1}, {"all-gather": 1, "all-reduce": 1})


def test_loops_that_are_counted_and_loops_that_depend_on_data():
    costs = program_costs(TEXT)
    product = 2 * 4 * 8 * 8
    assert costs.loops == (1, 1)
    assert [c.flops for c in (costs.outside, costs.forward, costs.adjoint)] == [
        3 * product,
        product,
        product,
    ]
    assert costs.outside.collectives == (
        Collective("all-reduce", 128, 2, in_loop=True, times=3),
        Collective("all-gather", 256, 2, in_loop=False),
        Collective("all-reduce", 128, 4, in_loop=False),
    )
    assert costs.forward.collectives == (Collective("all-reduce", 128, 2, in_loop=True),)
    assert program_costs(TEXT, once=True).outside.flops == 3 * product


def test_what_a_ring_sends():
    assert Collective("all-reduce", 100, 4, False).sent == 150
    assert Collective("all-gather", 100, 4, False, times=2).sent == 150
    assert Collective("collective-permute", 100, 2, False).sent == 100


def test_shapes():
    found = arrays("(f32[4,8]{1,0:T(8,128)S(1)}, /*index=1*/bf16[3]{0}, pred[], s4[6]{0})")
    assert [a.bytes for a in found] == [128, 6, 1, 3]
    assert [a.space for a in found] == [1, 0, 0, 0]


@pytest.mark.parametrize(
    ("said", "size"),
    [
        ("replica_groups={{0,1,2,3}}", 4),
        ("replica_groups={}, use_global_device_ids=true", 8),
        ("replica_groups=[2,4]<=[4,2]T(1,0)", 4),
        ("replica_groups=mesh['a'=2,'b'=4], device_ids=([8]) {'a','b'}", 8),
        ("replica_groups=mesh['a'=2,'b'=4] {'b':(1)2}, channel_id=1", 2),
        ("source_target_pairs={{0,1},{1,0}}", 2),
    ],
)
def test_groups(said, size):
    text = f"HloModule m, num_partitions=8\n\nENTRY %e (x: f32[]) -> f32[] {{\n  %x = f32[] \
parameter(0)\n  ROOT %r = f32[] all-reduce(%x), {said}, to_apply=%add\n}}\n"
    program = Program.parse(text)
    assert program.group(program.computations["e"]["r"]) == size


def test_traffic_of_slices_and_of_a_tpus_own_memory():
    text = """\
%cut (p0: f32[100,8], p1: s32[]) -> f32[1,8] {
  %p0 = f32[100,8]{1,0} parameter(0)
  %p1 = s32[] parameter(1)
  ROOT %s = f32[1,8]{1,0} dynamic-slice(%p0, %p1, %p1), dynamic_slice_sizes={1,8}
}

ENTRY %main (x: f32[100,8], k: s32[]) -> f32[1,8] {
  %x = f32[100,8]{1,0} parameter(0)
  %k = s32[]{:S(6)} parameter(1)
  %row = f32[1,8]{1,0} fusion(%x, %k), kind=kLoop, calls=%cut
  %near = f32[1,8]{1,0:S(1)} negate(%row)
  ROOT %there = f32[1,8]{1,0:S(1)} negate(%near)
}
"""
    assert program_costs(text).outside.bytes == 32 + 32 + 32


def test_convolutions_count_where_the_window_meets_its_input():
    # A TPU's form of a batched product (2, 5, 3) x (2, 3, 7): the batch is a window that jumps.
    text = """\
ENTRY %main (x: f32[2,5,3], w: f32[2,3,7]) -> f32[2,5,7] {
  %x = f32[2,5,3]{2,1,0} parameter(0)
  %w = f32[2,3,7]{2,1,0} parameter(1)
  ROOT %y = f32[2,5,7]{2,1,0} convolution(%x, %w), window={size=2 stride=1 pad=0_0 lhs_dilate=2}, \
dim_labels=0bf_0io->0bf
}
"""
    assert program_costs(text).outside.flops == 2 * 2 * 5 * 3 * 7
    plain = text.replace("window={size=2 stride=1 pad=0_0 lhs_dilate=2}, ", "")
    plain = plain.replace("2,5,3", "5,3").replace("2,3,7", "3,7").replace("2,5,7", "5,7")
    plain = plain.replace("{2,1,0}", "{1,0}").replace("0bf_0io->0bf", "bf_io->bf")
    assert program_costs(plain).outside.flops == 2 * 5 * 3 * 7


def test_a_product_that_cublas_computes():
    text = """\
ENTRY %main (x: f32[16,32], w: f32[32,8]) -> f32[16,8] {
  %x = f32[16,32]{1,0} parameter(0)
  %w = f32[32,8]{1,0} parameter(1)
  %both = (f32[16,8]{1,0}, s8[4194304]{0}) custom-call(%x, %w), custom_call_target="__cublas$gemm",\
 backend_config={"gemm_backend_config":{"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"],\
"rhs_contracting_dimensions":["0"]}}}
  ROOT %y = f32[16,8]{1,0} get-tuple-element(%both), index=0
}
"""
    cost = program_costs(text).outside
    assert cost.flops == 2 * 16 * 32 * 8
    assert cost.bytes == 4 * (16 * 32 + 32 * 8 + 16 * 8)


def test_a_compiled_program_against_its_own_arithmetic():
    """And against `cost_analysis`, which counts the body of a loop once."""

    def f(w, x, n):
        x, _ = jax.lax.scan(lambda x, _: (x @ w, None), x, length=7)
        return jax.lax.while_loop(lambda c: c[0] < n, lambda c: (c[0] + 1, c[1] @ w @ w), (0, x))

    compiled = jax.jit(f).lower(jnp.ones((32, 32)), jnp.ones((16, 32)), 5).compile()
    product = 2 * 16 * 32 * 32
    costs = program_costs(compiled.as_text())
    assert (costs.outside.flops, costs.forward.flops) == (7 * product, 2 * product)
    assert costs.step(5, 0).flops == 17 * product
    assert program_costs(compiled.as_text(), once=True).outside.flops == 3 * product
    assert compiled.cost_analysis()["flops"] == pytest.approx(3 * product, rel=0.02)


# ---------------------------------------------------------------------------------- plans


@pytest.mark.slow
def test_on_eight_devices(on_devices):
    on_devices(8, str(Path(__file__).with_name("plan_programs.py")), PROGRAMS[0])


@pytest.mark.slow
def test_tensor_parallel_on_eight_devices(on_devices):
    on_devices(8, str(Path(__file__).with_name("plan_programs.py")), PROGRAMS[1])


PROGRAMS = ["every_chip_computes_its_own_samples", "tensor_parallel"]


@pytest.fixture(scope="module")
def one_chip():
    jax.devices()  # started, so that a plan cannot ask for more of them
    return full_size.plan(SMALL, "cpu:1", solver=SolverOptions(solver="picard"), evaluations=False)


def test_a_report_has_every_part(one_chip):
    chip = CHIPS["v5e"]
    found = replace(one_chip, chip=chip, memory=replace(one_chip.memory, capacity=chip.memory))
    text = report(found, 10, 5)
    for word in ("forward step", "peak", "Collectives", "bound by", "tokens/s"):
        assert word in text
    data = json.loads(json.dumps(found.json(10, 5)))
    assert data["train_step"]["flops"] == found.step(10, 5).flops
    assert data["memory"]["peak"] == found.memory.peak and data["roofline"]["bound"]


def test_what_does_not_fit_is_a_result(one_chip):
    memory = replace(one_chip.memory, peak=None, temporary=None, needed=20e9, capacity=16e9)
    text = report(replace(one_chip, memory=memory, costs=None), 10, 10)
    assert "DOES NOT FIT: needs 20 GB of 16 GB" in text


def test_a_roofline_is_what_its_parts_say():
    chip = CHIPS["v5e"]
    send = Collective("all-gather", 2 * 200_000_000, 2, False)
    step = Cost(flops=1.97e12, bytes=8.19e8)
    costs = Costs(Cost(bytes=8.19e9, collectives=(send,)), step, step)
    found = Roofline.of(costs, chip, "float32", (4, 2))
    assert found.outside.seconds == pytest.approx(0.011) and found.outside.bound == "HBM"
    assert found.forward.seconds == pytest.approx(0.040) and found.forward.bound == "compute"
    assert found.seconds == pytest.approx(0.071) and found.bound == "compute"


def test_wrong_options_are_one_sentence():
    jax.devices()
    for wrong, sentence in (
        (dict(config="wt103-transformer-smal"), "did you mean 'wt103-transformer-small'"),
        (
            dict(topology="v9:2x2"),
            "v9 is unknown here.*known are a100, b200, cpu, h100, h200, v5e, v5p, v6e",
        ),
        (dict(topology="a10:8"), "a10 is unknown here"),
        (dict(topology="v5e"), "such as v5e:4x4"),
        (dict(topology="cpu:99"), "device_count=99"),
        (dict(mesh="data=3"), "is for 3 devices; there are 1"),
        (dict(mesh="rows=3"), "data=4,fsdp=2"),
        (dict(solver=SolverOptions(solver="andersen")), "anderson"),
    ):
        options = dict(config=SMALL, topology="cpu:1") | wrong
        with pytest.raises(OptionError, match=sentence):
            full_size.plan(options.pop("config"), options.pop("topology"), **options)
    with pytest.raises(OptionError, match="must not be negative"):
        full_size.main(full_size.Config(asked=Asked(forward_steps=-1)))


def numbers(batch_size=6):
    """What `plan_programs:numbers` would name: a task that is no language model."""

    class Cell(nnx.Module):
        def __init__(self, rngs):
            small = nnx.initializers.normal(0.1)
            self.linear = nnx.Linear(4, 4, kernel_init=small, rngs=rngs)

        def __call__(self, z, x):
            return jnp.tanh(self.linear(z) + x)

    class Regression(Task):
        def build(self, rngs):
            return DEQ(Cell(rngs), solver="picard")

        def batch(self, index, rows=slice(None)):
            return np.ones((batch_size, 4), np.float32)[rows]

        def loss(self, model, carry, batch, *, step, phase, probe):
            sol = model(batch)
            return jnp.mean((sol.z - 0.5) ** 2), (carry, {"solve": sol.stats})

    return Regression(), TrainOptions(batch_size=batch_size, optimiser="sgd")


def test_any_task_is_planned(capsys):
    task, options = numbers()
    found = plan(task, options, "cpu:1", name="numbers")
    assert (found.parameters, found.global_batch, found.rows, found.segment) == (20, 6, 6, 1)
    assert found.evaluation is None and found.memory.carry == 6 * 4 * 4
    assert found.costs.outside.flops > 0 and "numbers, 0.0M parameters" in report(found, 3, 3)
    assert json.loads(json.dumps(found.json(3, 3)))["solver"] is None
    with pytest.raises(OptionError, match="have 6 samples and batch_size is 8"):
        plan(task, replace(options, batch_size=8), "cpu:1")


def test_a_task_is_named_on_the_command_line(monkeypatch, capsys):
    sys.modules["some_tasks"] = module = types.ModuleType("some_tasks")
    monkeypatch.setattr(module, "numbers", lambda: numbers(), raising=False)
    monkeypatch.setattr(module, "nothing", lambda: None, raising=False)
    assert flagged(["some_tasks:numbers", "--json"]) == ["--task", "some_tasks:numbers", "--json"]
    assert flagged(["--json"]) == ["--json"]
    assert task_of("some_tasks:numbers")[1].batch_size == 6
    for spec, says in (
        ("numbers", "module:function"),
        ("no_such_module:f", "no_such_module"),
        ("some_tasks:letters", "some_tasks has no letters"),
        ("some_tasks:nothing", "must return a Task"),
    ):
        with pytest.raises(OptionError, match=says):
            task_of(spec)
    with pytest.raises(OptionError, match="give the function a keyword batch_size"):
        main(Config(task="some_tasks:numbers", topology="cpu:1", batch_size=3))
    monkeypatch.setattr(module, "many", lambda batch_size=6: numbers(batch_size), raising=False)
    main(Config(task="some_tasks:many", topology="cpu:1", batch_size=3, asked=Asked(json=True)))
    assert json.loads(capsys.readouterr().out)["global_batch"] == 3
    del sys.modules["some_tasks"]


def test_a_compiler_that_is_missing_is_named(monkeypatch):
    from jax.experimental import topologies

    def missing(*_, platform, **__):
        if platform == "cuda":
            raise NotImplementedError("topology not implemented for cuda")
        raise RuntimeError("JAX TPU support not installed; cannot generate TPU topology.")

    monkeypatch.setattr(topologies, "get_topology_desc", missing)
    for name in ("TPU_SKIP_MDS_QUERY", "TPU_WORKER_HOSTNAMES", "JAX_SKIP_CUDA_CONSTRAINTS_CHECK"):
        monkeypatch.setenv(name, "")
    with pytest.raises(OptionError, match=r"pip install 'jax\[tpu\]=="):
        devices_of("v5e:2x2")
    with pytest.raises(OptionError, match=r"pip install 'jax\[cuda12\]=="):
        devices_of("h100:1")
    with pytest.raises(OptionError, match="take 8 or 16"):
        devices_of("h100:12")


# ---------------------------------------------------------------------------------- the search


@pytest.mark.parametrize("capacity", [9, 10, 100, 1000, 12345])
@pytest.mark.parametrize("bend", [0.0, 0.01])
def test_the_largest_batch(capacity, bend):
    """Exact, whether memory grows in a straight line or not, and sooner where it does."""
    need = lambda batch: 4 + batch + bend * batch**1.5
    compiled = []

    def needs(batch):
        compiled.append(batch)
        return (need(batch), True) if need(batch) <= capacity else (None, False)

    found = largest_batch(needs, 5, capacity, first=10)
    want = max((b for b in range(0, 20000, 5) if not b or need(b) <= capacity), default=0)
    assert found.batch == want and found.too_large == want + 5
    assert len(compiled) == len(set(compiled)) <= (7 if not bend else 16)


@pytest.mark.parametrize("capacity", [100, 1000, 12345, 10**5])
@pytest.mark.parametrize("bend", [0.0, 0.01])
def test_a_search_to_two_percent(capacity, bend):
    need = lambda batch: 4 + batch + bend * batch**1.5
    needs = lambda batch: (need(batch), need(batch) <= capacity)
    found = largest_batch(needs, 5, capacity, first=10, within=0.02)
    assert need(found.batch) <= capacity < need(found.too_large)
    assert found.too_large - found.batch <= max(5, 0.02 * found.batch)
    compiled = [batch for batch, _, _ in found.tried]
    assert len(compiled) == len(set(compiled)) <= (8 if not bend else 10)


def test_a_search_stops_when_its_compilations_are_spent():
    found = largest_batch(lambda batch: (None, True), 8, 100, compilations=3)
    assert found.batch == 32 and found.too_large is None and len(found.tried) == 3
    assert "larger ones were not tried" in largest_text(found, 8)


def test_the_search_of_a_plan_begins_with_it(one_chip):
    memory = replace(one_chip.memory, capacity=1e6)
    first = replace(one_chip, memory=replace(memory, peak=300_000))

    def again(batch):
        options = replace(first.options, batch_size=batch)
        memory = replace(first.memory, peak=100_000 + 100_000 * batch)
        return replace(first, options=options, rows=batch, memory=memory)

    assert largest(first, again).batch == 9


def test_shortages():
    said = "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space \
hbm. Used 20.05G of 15.75G hbm. Exceeded hbm capacity by 4.30G."
    found = shortage(RuntimeError(said))
    assert found == dict(needed=20.05 * 2**30, capacity=15.75 * 2**30)
    said = "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO \
temporaries (400.00G) exceeds available HBM (95.74G)."
    assert shortage(RuntimeError(said))["capacity"] == 95.74 * 2**30
    assert shortage(RuntimeError("RESOURCE_EXHAUSTED: Out of memory")) == {}
    assert shortage(RuntimeError("INTERNAL: something else")) is None


# ---------------------------------------------------------------------------------- libtpu


@pytest.mark.slow
def test_a_tpu_program():
    """The parser reads what libtpu writes: the work of the cell, in VMEM or not."""
    pytest.importorskip("libtpu")
    wide = replace(SMALL, inner=2000)  # most of its work is in products, which both count
    found = full_size.plan(wide, "v5e:2x2", global_batch=8)
    assert found.chips == 4 and found.rows == 2 and found.fits
    assert found.costs.loops == (1, 1)
    for got in (found.evaluation.flops, found.costs.forward.flops):
        assert 1 <= got / (2 * cell_flops(wide)) < 1.05, got
    assert 0.8 < found.flops_once / found.xla_flops <= 1
    assert not found.costs.forward.collectives and not found.costs.adjoint.collectives


@pytest.mark.slow
def test_a_tpu_step_turns_no_parameter_or_moment_round():
    """A wide table: in the usual layout, with the fewest numbers of padding, its rows lie across
    the lanes, and the products want them along. The compiler chooses (`layouts.Step`)."""
    pytest.importorskip("libtpu")
    _, devices = devices_of("v5e:2x2")
    words = replace(SMALL, vocabulary=20_000, n_in=60, d=60)
    options = TrainOptions(batch_size=8, learning_rate=1e-3)
    task = full_size.task(words, options, SolverOptions())
    programs = Programs.of(Subject.of(task, words.name), options, devices)
    text = programs.train_step().compile().as_text()
    entry = text[text.index("\nENTRY") :]
    state = re.findall(r"(%\S+) = f32\[20000,60\]\S* parameter", entry)
    assert len(state) == 3  # the table and its two moments
    assert not re.findall(rf"copy\((?:{'|'.join(map(re.escape, state))})[,)]", entry)


@pytest.mark.slow
def test_a_gpu_program():
    pytest.importorskip("jax_plugins.xla_cuda12")
    found = full_size.plan(SMALL, "h100:4", global_batch=8)
    assert found.chips == 4 and found.costs.loops == (1, 1)
    for got in (found.evaluation.flops, found.costs.forward.flops):
        assert 1 <= got / (2 * cell_flops(SMALL)) < 1.05, got
    assert not found.costs.forward.collectives and not found.costs.adjoint.collectives
