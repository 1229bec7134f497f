"""A training step on eight devices, three ways; and meshes that cannot be."""

import pytest

from deqjax.training import OptionError, TrainOptions
from deqjax.training.mesh import make_mesh, parse_mesh

from . import parallel_programs

QUICK = ["no_collective_in_the_loops"]
SLOW = [
    "bad_data_of_one_device_stays_there",
    "no_collective_in_the_loops_of_parts bad_data_of_the_only_device_skips_a_step",
    "parts_are_stored the_explicit_network_agrees",
    "the_transformer_agrees",
    "other_models_agree",
    "the_evaluation_agrees",
]


def test_every_program_is_run():
    names = sorted(p.__name__ for p in parallel_programs.PROGRAMS)
    assert sorted(" ".join(QUICK + SLOW).split()) == names


@pytest.mark.parametrize(
    "programs", [*QUICK, *(pytest.param(group, marks=pytest.mark.slow) for group in SLOW)]
)
def test_on_eight_devices(programs, on_devices):
    on_devices(8, parallel_programs.__file__, programs, timeout=1200)


def test_a_mesh_is_read():
    assert parse_mesh("data=4, fsdp=2") == {"data": 4, "fsdp": 2, "tensor": 1}
    for wrong in ("data", "data=0", "data=2,data=2", "model=2", "data=-1"):
        with pytest.raises(OptionError, match="data=4,fsdp=2"):
            parse_mesh(wrong)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (dict(mesh="data=16"), "is for 16 devices; there are 8"),
        (dict(mesh="data=4,tensor=2"), "--parallel jit"),
        (dict(mesh="data=4,fsdp=2", parallel="pmap"), "data=N only"),
        (dict(batch_size=12), "multiple of 8"),
        (dict(batch_size=8, accumulate=2), "multiple of 16"),
    ],
)
def test_a_mesh_that_cannot_be_is_one_sentence(options, sentence):
    options = TrainOptions(**(dict(batch_size=16) | options))
    with pytest.raises(OptionError, match=sentence):
        make_mesh(options, [object()] * 8)


def test_one_device_needs_no_mesh():
    assert make_mesh(TrainOptions(mesh="data=1"), [object()]) is None
