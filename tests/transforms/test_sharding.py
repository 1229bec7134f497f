"""Four devices: shard_map, jit with NamedSharding, pmap, explicit sharding."""

import pytest

from . import sharding_programs

# Programs that share a process: it must start JAX, which takes longer than most programs.
QUICK = [
    "shard_map_values shard_map_stability shard_map_probe shard_map_gradients",
    "shard_map_approximate_adjoints shard_map_closures shard_map_second_derivative",
    "no_collective_in_the_loops a_collective_in_f_is_found_in_the_loop "
    "explicit_sharding_follows_f shard_map_over_some_axes",
    "named_sharding pmap explicit_sharding",
]
SLOW = [
    "shard_map_unrolled shard_map_reversible shard_map_forward_mode shard_map_compacted",
    "shard_map_newton_krylov shard_map_line_search shard_map_gmres_adjoint shard_map_shine",
    "a_collective_in_f_needs_an_agreed_stop a_collective_couples_cotangents_of_any_size",
    "named_sharding_of_other_solvers explicit_sharding_picard explicit_sharding_newton_krylov",
    "explicit_one_equation explicit_sharding_broyden explicit_sharding_compacted",
    "shard_map_leaves_of_different_types",
]


def test_every_program_is_run():
    names = sorted(p.__name__ for p in sharding_programs.PROGRAMS)
    assert sorted(" ".join(QUICK + SLOW).split()) == names


@pytest.mark.parametrize(
    "programs", [*QUICK, *(pytest.param(group, marks=pytest.mark.slow) for group in SLOW)]
)
def test_on_four_devices(programs, on_devices):
    """Each program compares with the same computation on one device."""
    on_devices(4, sharding_programs.__file__, programs)
