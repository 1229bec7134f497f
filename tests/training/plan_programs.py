"""Plans for eight devices, run by `test_plan` in a process that has them."""

import sys

import jax
from test_plan import SMALL, cell_flops

from experiments.full_size.plan import plan


def every_chip_computes_its_own_samples():
    """shard_map: the work of two samples, nothing sent in a loop, one gradient sent outside."""
    found = plan(SMALL, "cpu:8", global_batch=16)
    assert (found.chips, found.rows, found.shards) == (8, 2, 8)
    costs, rows = found.costs, found.rows
    for got in (found.evaluation.flops, costs.forward.flops):
        assert 1 <= got / (rows * cell_flops(SMALL)) < 1.02, got
    # u -> Jᵀu multiplies by every matrix once, and by each factor of the attention's products.
    for got in (found.pull_back.flops, costs.adjoint.flops):
        assert 1 <= got / (rows * cell_flops(SMALL)) < 1.2, got
    sent = [c for c in costs.outside.collectives if c.bytes > 100]
    assert {c.kind for c in sent} == {"all-reduce"} and {c.group for c in sent} == {8}
    assert 4 * found.parameters <= sum(c.bytes for c in sent) < 4 * found.parameters + 200
    everything = [*costs.outside.collectives, *costs.forward.collectives]
    assert not any(c.in_loop for c in everything) and not costs.adjoint.collectives
    memory = found.memory
    assert memory.parameters == 4 * found.parameters
    assert memory.optimiser == 2 * memory.parameters + 8  # and two counters
    assert memory.peak >= memory.parameters + memory.optimiser + memory.temporary
    assert costs.step(7, 3).flops == (
        costs.outside.flops + 7 * costs.forward.flops + 3 * costs.adjoint.flops
    )


def tensor_parallel():
    """jit: a part of the parameters on every chip, part of the work, and a flag in every step."""
    mesh = "data=2,fsdp=2,tensor=2"
    found = plan(SMALL, "cpu:8", parallel="jit", mesh=mesh, evaluations=False)
    assert found.mesh == dict(data=2, fsdp=2, tensor=2) and found.global_batch == 4
    assert 4 * found.parameters / 4 <= found.memory.parameters < 4 * found.parameters / 3
    assert found.costs.forward.flops < 0.6 * cell_flops(SMALL)
    inside = [(c.kind, c.group) for c in found.costs.forward.collectives]
    assert ("all-reduce", 2) in inside and all(c.in_loop for c in found.costs.forward.collectives)


if __name__ == "__main__":
    assert jax.device_count() == 8
    for name in sys.argv[1:]:
        globals()[name]()
