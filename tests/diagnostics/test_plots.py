"""The pictures say what the numbers say."""

import builtins

import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("matplotlib")
import matplotlib.pyplot as plt

import deqjax
from deqjax.diagnostics import Spectrum, compare_solvers, plot_convergence, plot_spectrum

from .cells import labels

plt.switch_backend("Agg")


def halving(**options):
    x = jnp.array([[1.0, 2.0], [0.0, 1e-9]])
    options = dict(solver="picard", batch_axis=0, trace=True, rtol=1e-6) | options
    return deqjax.fixed_point(lambda z, x: 0.5 * z + x, jnp.ones((2, 2)), x, **options)


def test_the_curve_is_the_worst_sample_held_after_its_stop(ax):
    sol = halving()
    assert plot_convergence({"picard": sol}, ax) is ax
    x, y = ax.lines[0].get_data()
    np.testing.assert_array_equal(x, 1 + np.arange(y.size))
    assert y.size == 1 + int(sol.stats.steps.max()) and np.isfinite(y).all()
    trace = np.asarray(sol.stats.trace)
    scale = np.asarray(sol.stats.rel_residual / sol.stats.residual)
    np.testing.assert_allclose(y[0], (trace[0] * scale).max())
    np.testing.assert_allclose(y[-1], np.max(sol.stats.rel_residual))
    assert ax.get_yscale() == "log" and ax.get_xlabel() == "evaluations of f"
    assert "relative residual" in ax.get_ylabel() and labels(ax) == ["picard"]


def test_failures_are_marked(ax):
    plot_convergence({"cut": halving(max_steps=3).stats, "done": halving()}, ax, against="steps")
    assert labels(ax) == ["cut (did not converge)", "done"]
    ends = [line for line in ax.lines if len(line.get_xdata()) == 1]
    assert [line.get_marker() == "x" for line in ends] == [True, False]
    assert ends[0].get_xdata() == [3]


def test_evaluations_per_step(ax):
    """A solver whose step costs three evaluations is drawn three apart."""
    stats = halving().stats
    dear = deqjax.Stats(
        *(stats.status, stats.converged, stats.steps, 1 + 3 * stats.steps),
        *(stats.residual, stats.rel_residual, stats.trace),
    )
    plot_convergence({"dear": dear}, ax)
    assert set(np.diff(ax.lines[0].get_xdata())) == {3.0}


def test_time_and_arrays_and_a_common_scale(ax):
    plot_convergence({"a": [4.0, 2.0, 1.0]}, ax, against="time", seconds={"a": 0.006}, scale=2.0)
    x, y = ax.lines[0].get_data()
    np.testing.assert_allclose((x, y), ([2.0, 4.0, 6.0], [2.0, 1.0, 0.5]))
    assert ax.get_xlabel() == "time (ms)"


def test_a_comparison_has_two_panels():
    found = compare_solvers(
        *(lambda z, x: 0.5 * jnp.tanh(z) + x, jnp.zeros(3), jnp.ones(3)),
        solvers=("picard",),
        repeats=1,
    )
    figure = found.figure()
    assert [ax.get_xlabel() for ax in figure.axes] == ["evaluations of f", "time (ms)"]
    assert labels(figure.axes[0]) == ["picard"]
    end = figure.axes[0].lines[0].get_xdata()[-1]
    assert end == found.rows[0].f_evals
    plt.close(figure)


def test_spectrum(ax):
    values = np.array([0.9j, -0.9j, 0.3])
    plot_spectrum(values, ax)
    assert ax.get_title() == "spectral radius 0.9" and ax.get_aspect() == 1
    assert labels(ax) == ["unit circle", "eigenvalues"]
    np.testing.assert_allclose(
        ax.collections[0].get_offsets(), np.stack([values.real, values.imag], 1)
    )
    circle = ax.lines[0].get_xydata()
    np.testing.assert_allclose(np.linalg.norm(circle, axis=1), 1)


def test_unsure_values_are_hollow(ax):
    values, unsure = np.array([0.9, 0.5 + 0j]), np.array([0.001, 0.3])
    Spectrum(values, unsure, False, np.ones(2), unsure).plot(ax)
    assert "not converged (uncertain by > 2 %)" in labels(ax)
    assert [len(c.get_offsets()) for c in ax.collections] == [1, 1]
    assert ax.get_title() == "spectral radius 0.9"


def test_a_radius_that_is_not_known_is_no_bare_number(ax):
    values, residuals = np.array([1.2, 0.5 + 0j]), np.array([0.03, 0.001])
    Spectrum(values, residuals, False, np.full(2, 10.0), 10 * residuals * abs(values)).plot(ax)
    assert ax.get_title() == "spectral radius 1.2 ± 0.4, not converged"


def test_new_axes_where_none_are_given():
    ax = plot_spectrum([0.5])
    assert ax.figure.number in plt.get_fignums()
    plt.close(ax.figure)


def test_says_what_is_wrong(ax, monkeypatch):
    with pytest.raises(ValueError, match="has no trace: solve with trace=True"):
        plot_convergence({"a": halving(trace=False)}, ax)
    with pytest.raises(ValueError, match="against must be one of"):
        plot_convergence({}, ax, against="evals")
    with pytest.raises(ValueError, match="needs seconds="):
        plot_convergence({"a": [1.0]}, ax, against="time")

    load = builtins.__import__

    def missing(name, *args):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return load(name, *args)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(ImportError, match="plots need Matplotlib: pip install"):
        plot_spectrum([0.5])
