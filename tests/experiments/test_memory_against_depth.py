"""Memory against depth: the programs, what is said of them, and what the recorded table shows."""

import json
from pathlib import Path

import numpy as np
import pytest

from experiments import memory_against_depth as experiment
from experiments.memory_figure import share, slope

RECORDED = Path(experiment.__file__).parent / "results" / "memory_against_depth.json"


def test_slope_and_share():
    rows = [
        dict(method=method, depth=depth, bytes=3 * depth**power)
        for method, power in (("unrolled", 1.0), ("half", 0.5))
        for depth in (16, 64, 1024)
    ]
    np.testing.assert_allclose([slope(rows, "unrolled"), slope(rows, "half")], [1, 0.5])
    np.testing.assert_allclose(share(rows, "half", 1024), 32)


def test_the_recorded_memory_grows_as_it_should():
    rows = json.loads(RECORDED.read_text("utf-8"))["rows"]
    assert sorted({row["depth"] for row in rows}) == list(experiment.DEPTHS)
    slopes = {method: slope(rows, method) for method in experiment.METHODS}
    assert abs(slopes["unrolled"] - 1) < 0.1 and abs(slopes["checkpoint every layer"] - 1) < 0.1
    assert abs(slopes["checkpoint every √L layers"] - 0.5) < 0.1
    assert abs(slopes["equilibrium, Picard"]) < 0.1 and abs(slopes["flow, backsolve"]) < 0.1
    assert share(rows, "equilibrium, Picard", 1024) >= 400
    errors = {(row["method"], row["depth"]): row["error"] for row in rows}
    assert errors["unrolled", 4096] < 1e-5 and errors["equilibrium, Picard", 4096] < 1e-5
    assert errors["flow, backsolve", 16] > 0.05 and errors["flow, backsolve", 4096] == 1


@pytest.mark.slow
def test_a_small_run(tmp_path):
    out = tmp_path / "memory.md"
    small = experiment.Config(depths=(16, 64), batch=64, width=32, repeats=1, out=out)
    experiment.main(small)
    rows = json.loads(out.with_suffix(".json").read_text("utf-8"))["rows"]
    assert slope(rows, "unrolled") > 0.9
    assert abs(slope(rows, "equilibrium, Picard")) < 1e-2
    found = {(row["method"], row["depth"]): row for row in rows}
    for method in ("unrolled", "checkpoint every √L layers", "flow, recursive", "flow, direct"):
        assert found[method, 64]["error"] < 1e-5  # they are the same layers
    assert found["flow, backsolve", 64]["reconstruction"] > 1e6
    assert "backsolve" in out.read_text("utf-8") and out.with_suffix(".png").stat().st_size > 10_000
