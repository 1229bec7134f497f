"""Well-posedness, measured: a short run, and tables that keep what another run has found."""

import jax
import numpy as np
import pytest

from experiments.well_posed import __main__ as well_posed
from experiments.well_posed import certificates, digits, report


def test_the_optimum_of_the_projection_is_one():
    """No other point of the ball is nearer."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        a = rng.normal(size=5)
        best = certificates.optimum(a, 0.7)
        assert np.abs(best).sum() <= 0.7 + 1e-12
        others = rng.normal(size=(500, 5))
        others *= 0.7 / np.abs(others).sum(axis=1, keepdims=True)
        near = 0.9 * best + 0.1 * others
        assert (np.linalg.norm(a - best) <= np.linalg.norm(a - near, axis=1)).all()


def test_certificates_on_few_matrices(tmp_path):
    found = certificates.checked(60)
    *methods, radius = found["rows"]
    assert all(row["false"] == 0 for row in methods) and radius["false"] > 0
    out = tmp_path / "well_posed.md"
    report.record(out, "projection", "elsewhere", [])
    report.record(out, "certificates", "here", found)
    text = out.read_text("utf-8")
    assert "elsewhere" in text and "here" in text and "| perron |" in text


@pytest.mark.slow
def test_a_short_run(tmp_path):
    pytest.importorskip("sklearn")
    out = tmp_path / "well_posed.md"
    well_posed.main(well_posed.Config(matrices=50, seeds=1, epochs=1, width=8, out=out))
    text = out.read_text("utf-8")
    for part in report.HEADS:
        assert f"## {part.capitalize()}" in text
    assert out.with_suffix(".png").exists()
    assert not jax.config.jax_enable_x64


@pytest.mark.slow
def test_a_certified_layer_is_no_worse_than_an_mlp_of_its_width():
    """Over five seeds, and certified after every update."""
    pytest.importorskip("sklearn")
    train, test = digits.Digits.load()
    means = {}
    for name in ("MLP, one hidden layer", "ImplicitDense, inf_norm"):
        runs = [
            digits.trained(digits.MODELS[name], train, test, d=64, seed=seed, epochs=20)
            for seed in range(5)
        ]
        means[name] = np.mean([run["accuracy"] for run in runs])
        if name != "MLP, one hidden layer":
            assert all(run["certified"] == run["updates"] for run in runs)
    assert means["ImplicitDense, inf_norm"] >= means["MLP, one hidden layer"]
