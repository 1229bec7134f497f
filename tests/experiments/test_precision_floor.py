"""The residual floors: how they are measured, and how the table is kept."""

import jax.numpy as jnp
import pytest

import deqjax
from experiments import precision_floor
from experiments.benchmarks.cells import tanh


def test_a_residual_falls_as_far_as_the_precision_of_f():
    cell = tanh(4, 32)
    full = precision_floor.floor(cell, deqjax.Anderson(), "float32")
    rounded = precision_floor.floor(cell, deqjax.Anderson(), "float32", jnp.bfloat16)
    assert full < 1e-6 < 1e-4 < rounded < 1e-2


@pytest.mark.slow
def test_the_table_keeps_other_devices(tmp_path):
    out = tmp_path / "floor.md"
    precision_floor._record(out, "another", [["cell", "Picard", "1", "2", "3", "4"]])
    precision_floor.main(precision_floor.Config(quick=True, out=out))
    text = out.read_text()
    assert "## another" in text and "## cpu" in text and text.count("| Anderson |") == 3
