"""The residual floors: how they are measured, and how the table is kept."""

from functools import partial

import jax.numpy as jnp
import numpy as np
import pytest

import deqjax
from experiments import precision_floor
from experiments.benchmarks.cells import cells, tanh


def test_a_residual_falls_as_far_as_the_precision_of_f():
    cell = tanh(4, 32)
    floors = [precision_floor.floor(cell, deqjax.Anderson(), bits) for bits in (None, 10, 7)]
    floors.append(precision_floor.floor(cell, deqjax.Anderson(), dtype=jnp.bfloat16))
    assert floors == sorted(floors)
    assert floors[0] < 1e-6 < floors[1] < 1e-4 < floors[2] < 1e-2


@pytest.mark.parametrize("cell", cells(quick=True)[:3], ids=lambda cell: cell.name)
def test_rounding_products_changes_nothing_else(cell):
    f = partial(cell.f, theta=cell.theta, x=cell.x)
    z = jnp.asarray(cell.x)
    np.testing.assert_allclose(precision_floor.rounding_products(f, 23)(z), f(z), rtol=1e-6)
    rough = np.max(np.abs(precision_floor.rounding_products(f, 7)(z) - f(z)))
    assert 1e-4 < rough < 0.05


@pytest.mark.slow
def test_the_table_keeps_other_devices(tmp_path):
    out = tmp_path / "floor.md"
    precision_floor._record(out, "another", [["cell", "Picard", *"1234"]])
    precision_floor.main(precision_floor.Config(quick=True, out=out))
    text = out.read_text()
    assert "## another" in text and "## cpu" in text and text.count("| Anderson |") == 3
