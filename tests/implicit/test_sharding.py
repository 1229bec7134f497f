"""Every implicit layer with its batch over four devices."""

import pytest

from . import sharding_programs
from .layers import LAYERS

# Those that share a process: it must start JAX.
QUICK: list[str] = []
SLOW = ["qp", "OptNet SATNet", "maxsat ImplicitDense", "ode NeuralODE"]


def test_every_layer_is_run():
    assert sorted(" ".join(QUICK + SLOW).split()) == sorted(LAYERS)


@pytest.mark.parametrize(
    "names", [*QUICK, *(pytest.param(group, marks=pytest.mark.slow) for group in SLOW)]
)
def test_rows_over_four_devices(names, on_devices):
    on_devices(4, sharding_programs.__file__, names)
